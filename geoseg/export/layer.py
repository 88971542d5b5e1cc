"""What an exporter has to know of a layer beside its polygons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from geoseg.classes import ClassTable
from geoseg.grid import Grid
from geoseg.polygons.batch import PolygonBatch


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

    @property
    def units(self) -> tuple[str, str]:
        """Units of the fields for areas and for lengths."""
        if self.grid.is_metric:
            return "m²", "m"
        unit = self.grid.area_unit[0]
        return unit, unit.removesuffix("²")


def noting(batches: Iterable[PolygonBatch], present: set[int]) -> Iterator[PolygonBatch]:
    """The batches as they come; ``present`` collects the ids of the classes in them."""
    for batch in batches:
        present.update(np.flatnonzero(np.bincount(batch.class_id)).tolist())
        yield batch
