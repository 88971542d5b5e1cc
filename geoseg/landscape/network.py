"""The net of roads, tracks, rivers and field borders: a warped, turned lattice with everything else in its cells.

Node (i, j) is a jittered lattice point; edge (i, j, 0) runs to node (i+1, j) and edge (i, j, 1) to node (i, j+1), both
as smooth curves through their neighbours. Lines i or j = 0, 4, 8 … are main roads and 2, 6, 10 … minor roads, so
2 × 2 cells lie between roads; the kinds of edges on odd lines are random. Everything depends only on the seed and on
integer coordinates.
"""

import math
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Self

import numpy as np
from shapely.geometry import LineString, Polygon
from shapely.geometry.base import BaseGeometry

from geoseg.arrays import FloatArray

Rng = np.random.Generator
CELL_M = 170.0  # distance of neighbouring lattice lines, m
REACH_M = 1.15 * CELL_M  # no object of a cell is further than this from the cell's undistorted centre, m

_JITTER = 0.17
_STEPS = 8


def generator(seed: int, *key: int) -> Rng:
    """A generator that depends only on the seed and the integers of the key, which may be negative."""
    return np.random.default_rng([k & 0xFFFFFFFF for k in (seed, *key)])


class Use(Enum):
    """What a cell is covered with."""

    VILLAGE = 0
    ARABLE = 1
    MIXED = 2
    POND = 3


@dataclass(frozen=True, slots=True)
class Edge:
    """One edge of the lattice, m."""

    path: FloatArray  # its centre line, (n, 2)
    kind: str
    half_width: float
    verge: float  # clear strip on both sides, without fields and plots


@dataclass(frozen=True, slots=True)
class Frame:
    """Place of the lattice in the scene's frame (m, x right, y down): a rotation and the place of node (1, 1)."""

    seed: int
    x: float
    y: float
    angle: float

    @classmethod
    def around(cls, seed: int, x: float, y: float) -> Self:
        """The lattice of a seed with node (1, 1), the middle of the first 2 × 2 cells, near a point."""
        rng = generator(seed, 1)
        dx, dy = rng.uniform(-15, 15, 2)
        return cls(seed, x + float(dx), y + float(dy), float(rng.uniform(math.radians(8), math.radians(82))))

    def to_scene(self, i: float, j: float) -> FloatArray:
        """Scene coordinates of lattice coordinates."""
        c, s = math.cos(self.angle), math.sin(self.angle)
        u, v = (i - 1) * CELL_M, (j - 1) * CELL_M
        return np.array([self.x + c * u - s * v, self.y + s * u + c * v])

    def cells_near(self, left: float, top: float, right: float, bottom: float) -> list[tuple[int, int]]:
        """The cells whose objects may touch a rectangle, in row-major order."""
        c, s = math.cos(self.angle), math.sin(self.angle)
        corners = np.array([(x - self.x, y - self.y) for x in (left, right) for y in (top, bottom)])
        i = (corners @ (c, s)) / CELL_M + 1
        j = (corners @ (-s, c)) / CELL_M + 1
        cells = []
        for jj in range(math.floor(j.min()) - 2, math.ceil(j.max()) + 2):
            for ii in range(math.floor(i.min()) - 2, math.ceil(i.max()) + 2):
                x, y = self.to_scene(ii + 0.5, jj + 0.5)
                distance = math.hypot(max(left - x, 0, x - right), max(top - y, 0, y - bottom))
                if distance <= REACH_M:
                    cells.append((ii, jj))
        return cells


@lru_cache(maxsize=4096)
def node(frame: Frame, i: int, j: int) -> FloatArray:
    """Scene coordinates of a lattice node, m."""
    shift = generator(frame.seed, 2, i, j).uniform(-_JITTER, _JITTER, 2)
    return frame.to_scene(i + float(shift[0]), j + float(shift[1]))


@lru_cache(maxsize=4096)
def cell_use(seed: int, i: int, j: int) -> Use:
    """What a cell is used for; the 2 × 2 cells between roads have all four uses, or three of them."""
    block_i, block_j = i // 2, j // 2
    rng = generator(seed, 3, block_i, block_j)
    uses = rng.permutation(4)
    use = Use(int(uses[2 * (j % 2) + i % 2]))
    # Blocks vary, except the first: even a small scene has every class.
    if (block_i, block_j) != (0, 0) and rng.random() < 0.45:
        swap = {Use.VILLAGE: Use.ARABLE} if rng.random() < 0.5 else {Use.POND: Use.VILLAGE, Use.MIXED: Use.ARABLE}
        use = swap.get(use, use)
    return use


@lru_cache(maxsize=4096)
def edge(frame: Frame, i: int, j: int, axis: int) -> Edge:
    """The edge from node (i, j) along an axis: 0 to (i+1, j), 1 to (i, j+1)."""
    rng = generator(frame.seed, 4, i, j, axis)
    kind, half_width = _edge_kind(frame.seed, i, j, axis, rng)
    di, dj = (1, 0) if axis == 0 else (0, 1)
    p = [node(frame, i + k * di, j + k * dj) for k in (-1, 0, 1, 2)]
    t = (np.arange(_STEPS + 1) / _STEPS)[:, None]
    # Catmull-Rom through the four nodes, so roads are smooth across nodes, plus a bump that vanishes at both ends.
    path = 0.5 * (
        2 * p[1]
        + (p[2] - p[0]) * t
        + (2 * p[0] - 5 * p[1] + 4 * p[2] - p[3]) * t**2
        + (3 * p[1] - p[0] - 3 * p[2] + p[3]) * t**3
    )
    along = (p[2] - p[1]) / np.hypot(*(p[2] - p[1]))
    amplitude = {"main": 0.0, "river": 13.0}.get(kind, 5.0) * rng.uniform(-1, 1)
    path = path + amplitude * (4 * t * (1 - t)) ** 2 * np.array([-along[1], along[0]])
    verge = 2.5 if kind == "river" else float(rng.uniform(0.8, 2.2))
    return Edge(path, kind, half_width, verge)


def _edge_kind(seed: int, i: int, j: int, axis: int, rng: Rng) -> tuple[str, float]:
    line = j if axis == 0 else i
    river_line = 3 if generator(seed, 5).random() < 0.5 else 5
    lot = float(rng.random())
    if axis == 1 and line % 8 == river_line:
        return "river", 8.0
    if line % 4 == 0:
        return "main", 4.0
    if line % 4 == 2:
        return "minor", 2.9
    beside = (cell_use(seed, i, j), cell_use(seed, i, j - 1) if axis == 0 else cell_use(seed, i - 1, j))
    if Use.VILLAGE in beside and lot < 0.8:
        return "minor", 2.7
    if lot < 0.5:
        return "track", 1.8
    if lot < 0.65:
        return "minor", 2.7
    return "border", 1.2


def cell_outline(frame: Frame, i: int, j: int) -> tuple[Polygon, list[Edge]]:
    """The area of a cell without its edges' clear strips, and the four edges around it."""
    edges = [edge(frame, i, j, 0), edge(frame, i + 1, j, 1), edge(frame, i, j + 1, 0), edge(frame, i, j, 1)]
    ring = np.concatenate([edges[0].path[:-1], edges[1].path[:-1], edges[2].path[:0:-1], edges[3].path[:0:-1]])
    area: BaseGeometry = Polygon(ring).buffer(0)
    for side in edges:
        area = area.difference(LineString(side.path).buffer(side.half_width + side.verge, quad_segs=3))
    return largest(area), edges


def largest(area: BaseGeometry) -> Polygon:
    """The largest polygon of a possibly multi-part area, without its holes; empty stays empty."""
    parts = [g for g in getattr(area, "geoms", [area]) if isinstance(g, Polygon)]
    biggest = max(parts, key=lambda g: g.area, default=Polygon())
    return Polygon(biggest.exterior)
