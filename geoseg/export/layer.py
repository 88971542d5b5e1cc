"""What an exporter has to know of a layer beside its polygons."""

from __future__ import annotations

from dataclasses import dataclass

from geoseg.classes import ClassTable
from geoseg.grid import Grid


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of polygons that came out of one class map.

    Attributes:
        name: Layer name, for formats that have one.
        grid: Grid of the class map: its CRS is the layer's, its pixels say which precision makes sense.
        classes: Names and colours of the ids.
        source: The scene that was mapped, or None if it is not known.
    """

    name: str
    grid: Grid
    classes: ClassTable
    source: str | None = None

    @property
    def units(self) -> tuple[str, str]:
        """Units of the fields for areas and for lengths."""
        if self.grid.is_metric:
            return "m²", "m"
        unit = self.grid.area_unit[0]
        return unit, unit.removesuffix("²")

    @property
    def wkt(self) -> str | None:
        """The CRS as WKT, if any."""
        return None if self.grid.crs is None else self.grid.crs.to_wkt()
