"""Polygons on their way to a file: flat arrays, a batch at a time, never one Python object for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import shapely

from geoseg.arrays import AnyArray, ByteArray, FloatArray, Geometries, IntArray


@dataclass(frozen=True, slots=True, eq=False)
class PolygonBatch:
    """Some polygons of a layer in the layout of `shapely.from_ragged_array` and GeoArrow.

    Attributes:
        class_id: Class of each polygon, (n,) uint8.
        xy: Vertices of all rings, one ring after the other, (v, 2) float64. A ring's last vertex is its first one; the
            first ring of a polygon is its shell, counter-clockwise, the others are its holes, clockwise.
        rings: Where each ring begins in ``xy``, (r + 1,) int64; the last entry is v.
        polygons: Where each polygon begins in ``rings``, (n + 1,) int64; the last entry is r.
        columns: Further attributes by field name, each (n,): ``area_m2``, ``perim_m``, ``conf_mean``, …
    """

    class_id: ByteArray
    xy: FloatArray
    rings: IntArray
    polygons: IntArray
    columns: Mapping[str, AnyArray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.class_id)

    def geometries(self) -> Geometries:
        """The polygons as shapely objects, (n,)."""
        if len(self) == 0:
            return np.empty(0, dtype=object)
        offsets = self.rings, self.polygons
        return np.asarray(shapely.from_ragged_array(shapely.GeometryType.POLYGON, self.xy, offsets))
