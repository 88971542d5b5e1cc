"""Objects of a landscape as polygons with what the renderer must know of each: a table, one row per object."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry import Polygon

from geoseg.classes import ClassTable

LANDSCAPE_CLASSES = ClassTable.from_names(
    ("bare_soil", "grass", "field", "road", "building", "tree", "water"),
    ("#b08d64", "#a6d96a", "#f2e394", "#7f7f7f", "#d7301f", "#1b7837", "#3182bd"),
)
"""Classes of the generated landscapes, ids 0 … 6."""

SOIL, GRASS, FIELD, ROAD, BUILDING, TREE, WATER = range(len(LANDSCAPE_CLASSES))


class Kind(IntEnum):
    """How an object is drawn; several kinds may share a class."""

    MEADOW = 0
    CROP = 1
    SOIL = 2
    WATER = 3
    ASPHALT = 4
    TRACK = 5
    CAR = 6
    ROOF = 7
    CANOPY = 8
    CROWN = 9


MAX_HEIGHT_M = 10.0
"""Nothing is higher; it bounds the longest shadow."""

# Painter's order; the fractional part orders objects within a class (tracks under main roads).
Z_GROUND, Z_WATER, Z_ROAD, Z_BUILDING, Z_TREE = 1.0, 2.0, 3.0, 4.0, 5.0

COLUMNS = np.dtype(
    [
        ("z", np.float64),
        ("kind", np.uint8),
        ("class_id", np.uint8),
        ("x", np.float64),  # local frame: origin, m in the scene's frame (x right, y down) …
        ("y", np.float64),
        ("ux", np.float64),  # … and the unit vector of its long axis
        ("uy", np.float64),
        ("half_length", np.float32),  # m
        ("half_width", np.float32),  # m
        ("height", np.float32),  # above ground, m
        ("style", np.float32),  # in [0, 1], read by the kind: roof type, sowing density, …
        ("period", np.float32),  # distance of rows, m
        ("color", np.float32, (4,)),  # reflectance in red, green, blue, nir …
        ("accent", np.float32, (4,)),  # … and of what is mixed in
    ]
)

Color4 = npt.NDArray[np.float64]
Point = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Features:
    """Polygons (without holes; m in the scene's frame) and their rows of `COLUMNS`, in painter's order where sorted."""

    polygons: npt.NDArray[np.object_]
    table: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.polygons)

    @staticmethod
    def join(parts: Iterable[Features]) -> Features:
        """All parts after one another, then stably sorted into painter's order."""
        parts = list(parts)
        polygons = np.concatenate([p.polygons for p in parts])
        table = np.concatenate([p.table for p in parts])
        order = np.argsort(table["z"], kind="stable")
        return Features(polygons[order], table[order])

    def touching(self, left: float, top: float, right: float, bottom: float) -> Features:
        """The objects whose bounding box meets a rectangle, in unchanged order."""
        bounds = shapely.bounds(self.polygons)
        keep = (bounds[:, 0] <= right) & (bounds[:, 2] >= left) & (bounds[:, 1] <= bottom) & (bounds[:, 3] >= top)
        return Features(self.polygons[keep], self.table[keep])


@dataclass(slots=True)
class FeatureList:
    """Objects of one cell while they are being placed."""

    polygons: list[Polygon] = field(default_factory=list)
    rows: list[tuple[Any, ...]] = field(default_factory=list)

    def add(
        self,
        polygon: Polygon,
        *,
        z: float,
        kind: Kind,
        class_id: int,
        origin: Sequence[float] | Point,
        axis: Sequence[float] | Point = (1.0, 0.0),
        half_length: float = 1.0,
        half_width: float = 1.0,
        height: float = 0.0,
        style: float = 0.5,
        period: float = 2.0,
        color: Color4,
        accent: Color4,
    ) -> None:
        """Append one object; units and meanings as in `COLUMNS`."""
        self.polygons.append(polygon)
        frame = (float(origin[0]), float(origin[1]), float(axis[0]), float(axis[1]))
        size = (half_length, half_width, height, style, period)
        self.rows.append((z, int(kind), class_id, *frame, *size, tuple(color), tuple(accent)))

    def features(self) -> Features:
        """The objects added so far, in the order they were added."""
        polygons = np.empty(len(self.polygons), dtype=object)
        polygons[:] = self.polygons
        return Features(polygons, np.array(self.rows, dtype=COLUMNS))
