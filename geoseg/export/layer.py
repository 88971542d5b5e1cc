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
        source: The scene that was mapped, or None where it is not known.
    """

    name: str
    grid: Grid
    classes: ClassTable
    source: str | None = None
