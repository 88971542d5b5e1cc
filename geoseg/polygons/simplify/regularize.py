"""Walls that are straight and at right angles, where the raster supports it.

Lines at right angles are fitted to each arc along the chosen classes (see `geoseg.polygons.simplify.walls`), corners
are where they meet, and nodes stay where they are. The result counts only if it explains the raster, and if it stays
on the arc's own ground (see `geoseg.polygons.simplify.ground`), so that it does not depend on what becomes of other
arcs. All other arcs are left to simplification.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from geoseg.arrays import BoolArray, FloatArray, Int32Array, IntArray
from geoseg.classes import NODATA
from geoseg.polygons.simplify.ground import Track, path_length, path_table_size, strays, track
from geoseg.polygons.simplify.walls import Frame, fit_walls, to_frame, to_map
from geoseg.polygons.trace.cracks import OUTSIDE, SUBPIXEL, ArcBatch, Cracks
from geoseg.runtime.jit import helper, njit

_PRICES = (2.5, 6.0)  # of a line: what it has to save in squared distances, px²; the dearer one if that fails
_SHORTEST_WALL = 2.0  # px
_MOST_AREA_CHANGE = 0.06
_SHORTEST_PATH, _LONGEST_PATH = 8, 20_000  # cracks
_MOST_CORNERS = 200
_WAY = 3  # cracks beside a node up to which a wall may begin
_WAYS = 1 + 2 * _WAY
_NODE_PULL = 0.75  # px up to which a wall is moved to pass the node that it ends at


@dataclass(slots=True)
class Outlines:
    """What became of the borders of the classes to regularize, counted as they are finished.

    A border runs from junction to junction: the outline of a house that touches one other class alone is one of them.

    Attributes:
        regular: Those with straight walls and right angles.
        total: All of them; the others are simplified.
    """

    regular: int = 0
    total: int = 0

    def __str__(self) -> str:
        rest = self.total - self.regular
        return f"{self.regular} of {self.total} outlines regularized, {rest} of {self.total} simplified"


@dataclass(frozen=True, slots=True)
class Regularize:
    """Which arcs get straight walls and right angles, and how far these may be from the raster.

    Attributes:
        classes: Classes whose borders are made regular, for example buildings; not their borders on nodata and on the
            end of the map.
        max_shift_px: Largest distance of a wall from the middles of its cracks, px, at most 1.5.
    """

    classes: tuple[int, ...]
    max_shift_px: float = 1.5

    def __post_init__(self) -> None:
        if not self.classes:
            raise ValueError("no class to regularize")
        if not 0 < self.max_shift_px <= 1.5:
            raise ValueError(f"max_shift_px is above 0 and at most 1.5, found {self.max_shift_px}")

    def concerns(self, batch: ArcBatch) -> BoolArray:
        """The arcs of a batch with one of the classes on one side and ground on the other, (a,)."""
        wanted = np.isin(batch.left, self.classes) | np.isin(batch.right, self.classes)
        for side in (batch.left, batch.right):
            wanted &= (side != NODATA) & (side != OUTSIDE)
        return wanted


def regular_arcs(batch: ArcBatch, cracks: Cracks, rule: Regularize) -> tuple[Int32Array, IntArray]:
    """Arcs with straight walls and right angles in the place of some arcs of a batch.

    Returns:
        Points in 1/256 px, (n, 2), and the number of points of each arc, (a,): arc i has the first ones of those from
        ``batch.offsets[i]`` on; 0 where the arc stays as it is.
    """
    points = np.empty_like(batch.points)
    sizes = np.zeros(len(batch.closed), dtype=np.int64)
    arcs = np.flatnonzero(rule.concerns(batch))
    if len(arcs):
        _regularize(batch, arcs, cracks, rule.max_shift_px, points, sizes)
    return points, sizes


class _Way(NamedTuple):
    """Ways from a node to the line of the first wall beside it, the best first."""

    sizes: IntArray  # number of points of each way, (ways,); 0 where there is none
    lines: FloatArray  # where the line is, (ways,)
    points: IntArray  # of each way in 1/256 px, the node first, (ways, ·, 2)


@njit
def _regularize(
    batch: ArcBatch, arcs: IntArray, cracks: Cracks, max_shift: float, out: Int32Array, sizes: IntArray
) -> None:
    """`regular_arcs`, one arc after the other."""
    points, offsets, closed = batch.points, batch.offsets, batch.closed
    walls = np.empty((_MOST_CORNERS + 2 * (_WAY + 3), 2), dtype=np.int64)
    for arc in arcs:
        begin = offsets[arc]
        corners = points[begin : offsets[arc + 1]]
        length = path_length(corners, 0, len(corners))
        if length < _SHORTEST_PATH or length > _LONGEST_PATH:
            continue
        own = track(corners, closed[arc], cracks, np.empty(path_table_size(length), dtype=np.int64))
        for price in _PRICES:
            frame, uv, bounds, lines, label = fit_walls(corners, closed[arc], price, max_shift)
            if len(lines) == 0 or len(lines) > _MOST_CORNERS:
                continue
            if closed[arc]:
                count = _ring(lines, label, frame, own, walls)
            else:
                count = _between_nodes(uv, bounds, lines, label, frame, own, walls)
            if 2 + batch.least[arc] <= count <= len(corners) and _is_simple(walls, count):
                for i in range(count):
                    out[begin + i, 0], out[begin + i, 1] = walls[i, 0], walls[i, 1]
                sizes[arc] = count
                break


@helper
def _put(walls: IntArray, at: int, u: float, v: float, frame: Frame) -> None:
    x, y = to_map(u, v, frame)
    walls[at, 0], walls[at, 1] = round(x * SUBPIXEL), round(y * SUBPIXEL)


@helper
def _put_corner(walls: IntArray, at: int, line: float, next_line: float, label: int, frame: Frame) -> None:
    """Where a line with a label meets the next one."""
    if label == 0:
        _put(walls, at, next_line, line, frame)
    else:
        _put(walls, at, line, next_line, frame)


@helper
def _ring(lines: FloatArray, label: int, frame: Frame, arc: Track, walls: IntArray) -> int:
    """Write the ring of a loop's lines to ``walls``; number of its points, the first repeated, or 0."""
    count = len(lines)
    for k in range(count):
        _put_corner(walls, k, lines[k], lines[(k + 1) % count], (label + k) % 2, frame)
    walls[count, 0], walls[count, 1] = walls[0, 0], walls[0, 1]
    if _has_short_wall(walls, 0, count + 1):
        return 0
    if not _keep_their_ground(walls, count + 1, arc):
        return 0
    corners, area, raster_area = arc.corners, 0.0, 0.0
    for k in range(count):
        area += walls[k, 0] * walls[k + 1, 1] - walls[k + 1, 0] * walls[k, 1]
    for k in range(len(corners) - 1):
        raster_area += int(corners[k, 0]) * corners[k + 1, 1] - int(corners[k + 1, 0]) * corners[k, 1]
    return count + 1 if abs(area / SUBPIXEL**2 / raster_area - 1) <= _MOST_AREA_CHANGE else 0


@helper
def _between_nodes(
    uv: FloatArray, bounds: IntArray, lines: FloatArray, label: int, frame: Frame, arc: Track, walls: IntArray
) -> int:
    """Write the lines, joined with the nodes at both ends of the arc, to ``walls``; number of points, or 0.

    Near a node all arcs have little ground. A wall that does not pass it begins at the first crack from where it keeps
    its ground, and the cracks before that one stay as they are if need be.
    """
    last = len(lines) - 1
    starts = _ways(uv, bounds[1], lines[0], label, frame, arc.corners, False)
    ends = _ways(uv, bounds[last + 1] - bounds[last], lines[last], (label + last) % 2, frame, arc.corners, True)
    for i in range(_WAYS):
        for j in range(_WAYS):
            if starts.sizes[i] == 0 or ends.sizes[j] == 0:
                continue
            count = starts.sizes[i]
            for k in range(count):
                walls[k, 0], walls[k, 1] = starts.points[i, k, 0], starts.points[i, k, 1]
            for k in range(last):
                line = starts.lines[i] if k == 0 else lines[k]
                next_line = ends.lines[j] if k == last - 1 else lines[k + 1]
                _put_corner(walls, count + k, line, next_line, (label + k) % 2, frame)
            if _has_short_wall(walls, count, count + last):
                continue
            count += last
            for k in range(ends.sizes[j] - 1, -1, -1):
                walls[count, 0], walls[count, 1] = ends.points[j, k, 0], ends.points[j, k, 1]
                count += 1
            if _keep_their_ground(walls, count, arc):
                return int(count)
    return 0


@helper
def _ways(uv: FloatArray, run: int, line: float, label: int, frame: Frame, corners: Int32Array, from_end: bool) -> _Way:
    """Ways to the line of the run that is the first one of an arc, or the last one seen from the arc's end."""
    sizes, lines = np.zeros(_WAYS, dtype=np.int64), np.full(_WAYS, line)
    points = np.empty((_WAYS, _WAY + 3, 2), dtype=np.int64)
    first, step = (len(corners) - 1, -1) if from_end else (0, 1)
    x, y = int(corners[first, 0]), int(corners[first, 1])
    points[:, 0, 0], points[:, 0, 1] = SUBPIXEL * x, SUBPIXEL * y
    u, v = to_frame(x, y, frame)
    node = v if label == 0 else u
    if abs(node - line) < _NODE_PULL:  # the line is moved to pass the node
        sizes[0], lines[0] = 1, node
    passed = 0  # corners between the node and x, y
    for k in range(1, min(_WAY, run - 2) + 1):
        # To the corner before the k-th crack, and on to the foot of its middle on the line; straight there if possible.
        turn = first + step * (passed + 1)
        x, y = x + int(np.sign(corners[turn, 0] - x)), y + int(np.sign(corners[turn, 1] - y))
        middle = len(uv) - 1 - k if from_end else k
        u, v = uv[middle, 0], uv[middle, 1]
        if label == 0:
            v = line
        else:
            u = line
        straight, along = points[k], points[_WAY + k]
        _put(straight, 1, u, v, frame)
        for i in range(1, passed + 1):
            along[i, 0] = SUBPIXEL * corners[first + step * i, 0]
            along[i, 1] = SUBPIXEL * corners[first + step * i, 1]
        along[passed + 1, 0], along[passed + 1, 1] = SUBPIXEL * x, SUBPIXEL * y
        _put(along, passed + 2, u, v, frame)
        sizes[k], sizes[_WAY + k] = 2, passed + 3
        if x == corners[turn, 0] and y == corners[turn, 1]:
            passed += 1
    return _Way(sizes, lines, points)


@helper
def _has_short_wall(walls: IntArray, begin: int, end: int) -> bool:
    """Whether two consecutive points of ``walls[begin:end]`` are too near to each other."""
    for i in range(begin, end - 1):
        dx, dy = walls[i + 1, 0] - walls[i, 0], walls[i + 1, 1] - walls[i, 1]
        if dx * dx + dy * dy < (_SHORTEST_WALL * SUBPIXEL) ** 2:
            return True
    return False


@helper
def _keep_their_ground(walls: IntArray, count: int, arc: Track) -> bool:
    """Whether walls stay where no other arc can come; those of an open arc begin and end at its nodes."""
    for i in range(count - 1):
        at_start, at_end = not arc.closed and i == 0, not arc.closed and i == count - 2
        if strays(walls[i, 0], walls[i, 1], walls[i + 1, 0], walls[i + 1, 1], at_start, at_end, True, arc):
            return False
    return True


@helper
def _is_simple(walls: IntArray, count: int) -> bool:
    """Whether edges that are no neighbours keep a quarter of a pixel between them."""
    closed = walls[0, 0] == walls[count - 1, 0] and walls[0, 1] == walls[count - 1, 1]
    for i in range(count - 1):
        for j in range(i + 2, count - 1):
            if closed and i == 0 and j == count - 2:
                continue
            apart = _side(walls, i, i + 1, j) * _side(walls, i, i + 1, j + 1) >= 0
            if not apart and _side(walls, j, j + 1, i) * _side(walls, j, j + 1, i + 1) < 0:
                return False
            for k in range(2):
                if _is_beside(walls, i + k, j, j + 1) or _is_beside(walls, j + k, i, i + 1):
                    return False
    return True


@helper
def _side(walls: IntArray, a: int, b: int, p: int) -> float:
    """Twice the area of the triangle a, b, p; its sign says on which side of a–b p is."""
    dx, dy = walls[b, 0] - walls[a, 0], walls[b, 1] - walls[a, 1]
    return float(dx * (walls[p, 1] - walls[a, 1]) - dy * (walls[p, 0] - walls[a, 0]))


@helper
def _is_beside(walls: IntArray, p: int, a: int, b: int) -> bool:
    """Whether point p is within a quarter of a pixel of the segment a–b."""
    dx, dy = float(walls[b, 0] - walls[a, 0]), float(walls[b, 1] - walls[a, 1])
    px, py = float(walls[p, 0] - walls[a, 0]), float(walls[p, 1] - walls[a, 1])
    length2 = dx * dx + dy * dy
    along = min(max((px * dx + py * dy) / length2, 0.0), 1.0) if length2 > 0 else 0.0
    return bool((px - along * dx) ** 2 + (py - along * dy) ** 2 < (SUBPIXEL / 4) ** 2)
