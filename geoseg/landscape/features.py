"""Objects of a landscape: polygons, and a table with what the renderer must know about each of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import shapely
from shapely.geometry import Polygon

from geoseg.arrays import AnyArray, ByteArray, FloatArray, Geometries
from geoseg.classes import ClassTable

LANDSCAPE_CLASSES = ClassTable.from_names(
    ("bare_soil", "grass", "field", "road", "building", "tree", "water"),
    ("#b08d64", "#a6d96a", "#f2e394", "#7f7f7f", "#d7301f", "#1b7837", "#3182bd"),
)
"""Classes of the generated landscapes, ids 0 … 6."""

SOIL, GRASS, FIELD, ROAD, BUILDING, TREE, WATER = range(len(LANDSCAPE_CLASSES))


class Kind(IntEnum):
    """How an object is drawn."""

    MEADOW = 0
    CROP = 1
    SOIL = 2
    WATER = 3
    TRACK = 4
    STREET = 5
    MAIN_ROAD = 6
    CAR = 7
    ROOF = 8
    CANOPY = 9
    CROWN = 10


CLASS_OF_KIND = np.array([GRASS, FIELD, SOIL, WATER, ROAD, ROAD, ROAD, ROAD, BUILDING, TREE, TREE], dtype=np.uint8)
_LAYER = np.array([0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8])  # painter's order of the kinds; parcels lie side by side
MAX_HEIGHT_M = 10.0  # nothing is higher; it bounds the longest shadow

COLUMNS = np.dtype(
    [
        ("kind", np.uint8),
        ("x", np.float64),  # local frame: origin, m in the scene's frame (x right, y down) …
        ("y", np.float64),
        ("ux", np.float64),  # … and the unit vector of its long axis
        ("uy", np.float64),
        ("half_length", np.float32),  # m
        ("half_width", np.float32),  # m
        ("height", np.float32),  # above ground, m
        ("style", np.float32),  # its meaning depends on the kind: roof type, sowing density, …
        ("period", np.float32),  # distance of rows, m
        ("color", np.float32, (4,)),  # reflectance in red, green, blue, nir …
        ("accent", np.float32, (4,)),  # … and of what is mixed in
    ]
)


class Place(NamedTuple):
    """An object's local frame, m: origin, unit vector of its long axis, half its length and half its width."""

    origin: FloatArray
    axis: FloatArray
    half_length: float
    half_width: float

    @classmethod
    def round(cls, origin: FloatArray, radius: float) -> Place:
        """A frame without a direction."""
        return cls(origin, np.array([1.0, 0.0]), radius, radius)

    @classmethod
    def around(cls, area: Polygon) -> Place:
        """The frame of the smallest rectangle around an area."""
        corners = shapely.get_coordinates(shapely.minimum_rotated_rectangle(area))[:4]
        first, second = corners[1] - corners[0], corners[2] - corners[1]
        a, b = float(np.hypot(*first)), float(np.hypot(*second))
        axis, length, width = (first / a, a, b) if a >= b else (second / b, b, a)
        return cls(corners.mean(axis=0), axis, length / 2, width / 2)

    def rectangle(self) -> Polygon:
        """The rectangle that fills the frame."""
        c, along = self.origin, self.axis * self.half_length
        across = np.array([-self.axis[1], self.axis[0]]) * self.half_width
        return Polygon([c - along - across, c + along - across, c + along + across, c - along + across])


@dataclass(frozen=True, slots=True)
class Features:
    """Polygons without holes, m in the scene's frame, and their rows of `COLUMNS`."""

    polygons: Geometries
    table: AnyArray

    def __len__(self) -> int:
        return len(self.polygons)

    @property
    def classes(self) -> ByteArray:
        """Class id of each object."""
        return np.asarray(CLASS_OF_KIND[self.table["kind"]])

    @staticmethod
    def join(parts: Iterable[Features]) -> Features:
        """All parts, stably sorted into painter's order."""
        parts = list(parts)
        polygons = np.concatenate([p.polygons for p in parts])
        table = np.concatenate([p.table for p in parts])
        order = np.argsort(_LAYER[table["kind"]], kind="stable")
        return Features(polygons[order], table[order])


@dataclass(slots=True)
class FeatureList:
    """Objects of one cell while they are being placed."""

    polygons: list[Polygon] = field(default_factory=list)
    rows: list[tuple[Any, ...]] = field(default_factory=list)

    def add(
        self,
        polygon: Polygon,
        kind: Kind,
        place: Place,
        colors: tuple[FloatArray, FloatArray],
        *,
        height: float = 0.0,
        style: float = 0.5,
        period: float = 2.0,
    ) -> None:
        """Append one object; units and meanings as in `COLUMNS`, ``colors`` are color and accent."""
        self.polygons.append(polygon)
        size = (place.half_length, place.half_width, height, style, period)
        self.rows.append((kind, *place.origin, *place.axis, *size, *map(tuple, colors)))

    def features(self) -> Features:
        """The objects in the order in which they were added."""
        polygons = np.empty(len(self.polygons), dtype=object)
        polygons[:] = self.polygons
        return Features(polygons, np.array(self.rows, dtype=COLUMNS))
