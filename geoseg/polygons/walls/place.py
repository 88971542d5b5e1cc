"""Whether walls can stand where they were fitted, and what becomes of the pixels and borders beside them.

Walls that are accepted are painted into the map: pixels whose centre they enclose become the building's, those it loses
become what is nearest. So the traced ring runs within a pixel of its walls, and its arcs are replaced by them. A border
that ends at the building is led to the nearest point of the wall from its *foot*, the first corner off the *guard*.

The guard of a building is all corners within `GUARD_PX` of its walls, those of its ring, and the feet. Nothing but the
building's ring and the borders that end there may pass a corner of it, no two buildings share a corner of it, pixels
that touch it change no more, and simplified edges stay a whole pixel away from it. Every point of a wall has a corner
of the guard within 0.71 px, so all edges keep more than a quarter of a pixel from the wall.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from geoseg.arrays import BoolArray, ByteArray, FloatArray, Int32Array, IntArray
from geoseg.classes import NODATA
from geoseg.polygons.trace.cracks import SUBPIXEL
from geoseg.polygons.walls.fit import fit_walls
from geoseg.polygons.walls.shapes import (
    STEP_X,
    STEP_Y,
    cracks_at,
    cross,
    direction_at,
    distance,
    encloses,
    inside_of,
    is_simple,
    outline,
    pieces,
    pixel,
)
from geoseg.runtime.jit import helper, int64, njit

GUARD_PX = 0.85
DECIDED, FIXED, GUARD = 1, 2, 4
"""Flags of places: the pixel belongs to a decided building; the pixel may not change; the corner is guarded."""

_LONGEST_RING = 8192  # cracks
_LEAST_IOU = 0.7
_LEAST_GAP = 0.5  # px, between the ends of borders at a wall, and between these and corners
_LONGEST_PREFIX = 8  # cracks of a border within the guard
_LONGEST_STUB = 2.5  # px, from the wall to a foot
_LEAST_CLEARANCE = 0.25  # px, between such a line and the corners of the walls


class Building(NamedTuple):
    """A region in its window of the map; values and flags change where walls are accepted."""

    values: Int32Array  # objects, (h, w)
    flags: ByteArray  # (h, w); that of a corner is at the pixel below and right of it
    runs: IntArray  # its pixels in the window as row, first column, column after the last, (r, 3)
    free: BoolArray  # by object: whether its pixels may become the building's, or the building's become its
    row: int  # of the window
    column: int
    stride: int  # corners of a row of the map


class Borders(NamedTuple):
    """What replaces arcs of the map, and ends of arcs, by their keys (see `BandArcs`); 1/256 px of the map."""

    arcs: dict[int, Int32Array]  # whole ones, by the smaller key of their ends
    ends: dict[int, Int32Array]  # the point of the wall, then the corners of the lattice from the node to the foot


class _Nodes(NamedTuple):
    """Where borders meet the painted ring, in its order, and the ends of these borders; 1/256 px of the window."""

    counts: IntArray  # of nodes, -1 if the walls cannot stand, and of ends, (2,); the other arrays may be longer
    keys: IntArray  # of the cracks of the ring after and before each node, without nodes of its first one, (n, 2)
    points: IntArray  # of the walls, (n, 2)
    position: FloatArray  # of these points, wall by wall from 0 on, (n,)
    end_keys: IntArray  # (e,)
    end_sizes: IntArray  # points of each end, (e,)
    ends: IntArray  # (e, _LONGEST_PREFIX + 2, 2)


def build_walls(building: Building, tolerance: float) -> Borders | None:
    """Fit walls to a building and paint it, if they can stand."""
    own = np.zeros(building.values.shape, dtype=np.bool_)
    for row, begin, end in building.runs.tolist():
        own[row, begin:end] = True
    if own[[0, -1]].any() or own[:, [0, -1]].any():  # at the edge of the map
        return None
    ring = outline(own)
    if len(ring) > _LONGEST_RING:
        return None
    walls = np.rint(fit_walls(ring, tolerance) * SUBPIXEL).astype(np.int64, order="C")
    if len(walls) == 0:
        return None
    nodes = _place(building, own, ring * SUBPIXEL, walls)
    return _borders(building, walls, nodes) if nodes.counts[0] >= 0 else None


def _borders(building: Building, walls: IntArray, nodes: _Nodes) -> Borders:
    """The ends of borders at the walls, and the sections between them."""
    origin = SUBPIXEL * np.array([building.column, building.row])
    count, end_count = nodes.counts.tolist()
    walls, points, lines = (
        (p + origin).astype(np.int32) for p in (walls, nodes.points[:count], nodes.ends[:end_count])
    )
    ends = {int(nodes.end_keys[i]): lines[i, : nodes.end_sizes[i]] for i in range(end_count)}
    if count == 0:
        return Borders({int(nodes.keys[0, 0]): np.vstack([walls, walls[:1]])}, ends)
    arcs = dict[int, Int32Array]()
    for i in range(count):
        j = (i + 1) % count
        start, stop = nodes.position[i], nodes.position[j]
        stop += len(walls) * (stop <= start)
        corners = walls[np.arange(math.floor(start) + 1, math.ceil(stop)) % len(walls)]
        arc = np.vstack([points[i], corners, points[j]])
        key, last_key = int(nodes.keys[i, 0]), int(nodes.keys[j, 1])
        arcs[min(key, last_key)] = arc if key <= last_key else arc[::-1]
    return Borders(arcs, ends)


@njit
def _place(building: Building, own: BoolArray, old_ring: IntArray, walls: IntArray) -> _Nodes:
    """Paint a building if its walls can stand."""
    values, flags = building.values, building.flags
    if not is_simple(walls):
        return _room(0)
    inside, filled = inside_of(walls, own.shape), inside_of(old_ring, own.shape)
    painted, guard = values.copy(), np.zeros(own.shape, dtype=np.bool_)
    if not _paint(building, own, inside, filled, painted) or not _guard_walls(walls, guard):
        return _room(0)
    ring = outline(inside)
    if not encloses(ring, inside) or pieces(painted) != pieces(values):
        return _room(0)
    nodes = _room(len(ring))
    if not _meet(building, painted, inside, ring, walls, guard, nodes):
        return _room(0)
    for y in range(1, len(values)):  # the first row and column do not change
        for x in range(1, values.shape[1]):
            values[y, x] = painted[y, x]
            flags[y, x] |= DECIDED * inside[y, x] + GUARD * guard[y, x]
            for corner in range(4 * guard[y, x]):
                flags[y - (corner & 1), x - (corner >> 1)] |= FIXED
    return nodes


@helper
def _room(count: int) -> _Nodes:
    """Room for some nodes; none is there, and the walls cannot stand."""
    return _Nodes(
        np.full(2, -1),
        np.empty((count, 2), np.int64),
        np.empty((count, 2), np.int64),
        np.empty(count),
        np.empty(2 * count, np.int64),
        np.empty(2 * count, np.int64),
        np.empty((2 * count, _LONGEST_PREFIX + 2, 2), np.int64),
    )


@helper
def _paint(building: Building, own: BoolArray, inside: BoolArray, filled: BoolArray, painted: Int32Array) -> bool:
    """Paint the window as if the walls enclosed the building; whether all pixels may change, and not too many do.

    A hole stays what it is. A lost pixel becomes what is nearest, in steps from pixel to pixel.
    """
    height, width = painted.shape
    value = painted[building.runs[0, 0], building.runs[0, 1]]
    lost, left = np.zeros(painted.shape, dtype=np.bool_), 0
    common, either = 0, 0
    for y in range(height):
        for x in range(width):
            common += inside[y, x] and filled[y, x]
            either += inside[y, x] or filled[y, x]
            gained, lost[y, x] = inside[y, x] and not filled[y, x], own[y, x] and not inside[y, x]
            if not gained and not lost[y, x]:
                continue
            if building.flags[y, x] & FIXED or (gained and not building.free[painted[y, x]]):
                return False
            left += lost[y, x]
            if gained:
                painted[y, x] = value
    if common < _LEAST_IOU * either:
        return False
    while left > 0:
        before, left_before = lost.copy(), left
        for y in range(1, height - 1):  # no pixel at the edge is the building's
            for x in range(1, width - 1):
                for direction in range(4 * before[y, x]):
                    row, column = y + STEP_Y[direction], x + STEP_X[direction]
                    if not before[row, column] and not inside[row, column] and building.free[painted[row, column]]:
                        painted[y, x], lost[y, x] = painted[row, column], False
                        left -= 1
                        break
        if left == left_before:
            return False
    return True


@helper
def _guard_walls(walls: IntArray, guard: BoolArray) -> bool:
    """Guard all corners within `GUARD_PX` of the walls; whether they are in the window."""
    for i in range(len(walls)):
        a, b = walls[i - 1], walls[i]
        for y in range(min(a[1], b[1]) // SUBPIXEL - 1, max(a[1], b[1]) // SUBPIXEL + 3):
            for x in range(min(a[0], b[0]) // SUBPIXEL - 1, max(a[0], b[0]) // SUBPIXEL + 3):
                if distance(SUBPIXEL * x, SUBPIXEL * y, a, b)[0] <= GUARD_PX * SUBPIXEL:
                    if y < 1 or x < 1 or y >= len(guard) or x >= guard.shape[1]:
                        return False
                    guard[y, x] = True
    return True


@helper
def _meet(
    building: Building,
    painted: Int32Array,
    inside: BoolArray,
    ring: IntArray,
    walls: IntArray,
    guard: BoolArray,
    nodes: _Nodes,
) -> bool:
    """Find where borders meet the ring; ring and feet join the guard. Whether nothing is in the way."""
    passed = np.zeros(guard.shape, dtype=np.bool_)
    for i in range(len(ring)):
        guard[ring[i, 1], ring[i, 0]] = passed[ring[i, 1], ring[i, 0]] = True
    value = building.values[building.runs[0, 0], building.runs[0, 1]]
    nodes.keys[0, 0] = _key(building, ring[0, 0], ring[0, 1], 1)
    count, end_count = 0, 0
    for i in range(len(ring)):
        x, y = ring[i, 0], ring[i, 1]
        ahead, back = direction_at(ring, i), direction_at(ring, i - 1) ^ 2
        outside = pixel(painted, x, y, ahead, 1)
        is_pinched = inside[y - 1, x - 1] == inside[y, x] and inside[y - 1, x] == inside[y, x - 1]
        merges = outside == value or outside == pixel(painted, x, y, ahead, 0)
        if merges or is_pinched or outside == NODATA:
            return False
        others = cracks_at(painted, x, y) & ~(1 << ahead | 1 << back)
        if others == 0:
            continue
        nodes.keys[count, 0], nodes.keys[count, 1] = _key(building, x, y, ahead), _key(building, x, y, back)
        point = nodes.points[count]
        nodes.position[count], point[0], point[1] = _on_walls(walls, SUBPIXEL * x, SUBPIXEL * y)
        count += 1
        for direction in range(4):
            if others >> direction & 1:
                end = nodes.ends[end_count]
                end[0, 0], end[0, 1] = point[0], point[1]
                size = _follow(painted, guard, passed, x, y, direction, end)
                if size == 0 or not _stands_free(walls, end[0], end[size - 1], guard):
                    return False
                nodes.end_keys[end_count], nodes.end_sizes[end_count] = _key(building, x, y, direction), size
                end_count += 1
    nodes.counts[0], nodes.counts[1] = count, end_count
    if not _are_apart(nodes) or not _in_turn(nodes):
        return False
    for i in range(end_count):
        foot = nodes.ends[i, nodes.end_sizes[i] - 1]
        x, y = foot[0] // SUBPIXEL, foot[1] // SUBPIXEL
        guard[y, x] = passed[y, x] = True
    for y in range(1, guard.shape[0]):
        for x in range(1, guard.shape[1]):
            if guard[y, x] and (building.flags[y, x] & GUARD or (not passed[y, x] and cracks_at(painted, x, y))):
                return False
    return True


@helper
def _follow(
    painted: Int32Array, guard: BoolArray, passed: BoolArray, x: int, y: int, direction: int, end: IntArray
) -> int:
    """Fill an end with the corners from a node to its foot; how many points it has then, 0 if that is too far."""
    end[1, 0], end[1, 1] = SUBPIXEL * x, SUBPIXEL * y
    for size in range(2, len(end)):
        x, y = x + STEP_X[direction], y + STEP_Y[direction]
        if x < 1 or y < 1 or x >= guard.shape[1] or y >= guard.shape[0]:
            return 0
        end[size, 0], end[size, 1] = SUBPIXEL * x, SUBPIXEL * y
        if not guard[y, x]:
            return size + 1
        onward = cracks_at(painted, x, y) & ~(1 << (direction ^ 2))
        if passed[y, x] or onward & (onward - 1):
            return 0
        passed[y, x] = True
        direction = 0
        while not onward >> direction & 1:
            direction += 1
    return 0


@helper
def _are_apart(nodes: _Nodes) -> bool:
    """Whether the lines from walls to feet have no point in common but that of the wall."""
    for i in range(nodes.counts[1]):
        a, b = nodes.ends[i, 0], nodes.ends[i, nodes.end_sizes[i] - 1]
        for j in range(i):
            c, d = nodes.ends[j, 0], nodes.ends[j, nodes.end_sizes[j] - 1]
            meet = a[0] == c[0] and a[1] == c[1]
            same = b[0] == d[0] and b[1] == d[1]
            if same or (not meet and cross(a, b, c, d)):
                return False
    return True


@helper
def _in_turn(nodes: _Nodes) -> bool:
    """Whether borders end at the walls in the order of the ring, and apart."""
    count, falls = nodes.counts[0], 0
    for k in range(count):
        before = (k - 1) % count
        a, b = nodes.points[before], nodes.points[k]
        if before != k and math.hypot(b[0] - a[0], b[1] - a[1]) < _LEAST_GAP * SUBPIXEL:
            return False
        falls += nodes.position[k] <= nodes.position[before]
    return falls <= 1


@helper
def _key(building: Building, x: int, y: int, direction: int) -> int:
    return 4 * ((building.row + y) * building.stride + building.column + x) + direction


@helper
def _on_walls(walls: IntArray, x: float, y: float) -> tuple[float, int, int]:
    """The place on the walls nearest to a point: its position, wall by wall from 0 on, and x, y; corners attract."""
    nearest, position, px, py = np.inf, 0.0, int64(0), int64(0)
    for i in range(len(walls)):
        a, b = walls[i], walls[(i + 1) % len(walls)]
        away, at = distance(x, y, a, b)
        if away < nearest:
            length = math.hypot(b[0] - a[0], b[1] - a[1])
            at = (
                0.0 if at * length < _LEAST_GAP * SUBPIXEL else 1.0 if (1 - at) * length < _LEAST_GAP * SUBPIXEL else at
            )
            nearest, position = away, (i + at) % len(walls)
            px, py = round(a[0] + at * (b[0] - a[0])), round(a[1] + at * (b[1] - a[1]))
    return position, px, py


@helper
def _stands_free(walls: IntArray, start: IntArray, foot: IntArray, guard: BoolArray) -> bool:
    """Whether a straight line from a wall to a foot moves away from the walls, between guarded corners."""
    if math.hypot(foot[0] - start[0], foot[1] - start[1]) > _LONGEST_STUB * SUBPIXEL:
        return False
    for i in range(len(walls)):
        a, b = walls[i - 1], walls[i]
        is_start = a[0] == start[0] and a[1] == start[1]
        if not is_start and distance(a[0], a[1], start, foot)[0] < _LEAST_CLEARANCE * SUBPIXEL:
            return False
        if distance(start[0], start[1], a, b)[0] > 1 and cross(a, b, start, foot):  # not the wall where it begins
            return False
    for quarter in range(1, 4):
        x = start[0] + quarter * (foot[0] - start[0]) / 4
        y = start[1] + quarter * (foot[1] - start[1]) / 4
        corner_x, corner_y = int64(round(x / SUBPIXEL)), int64(round(y / SUBPIXEL))
        is_foot = SUBPIXEL * corner_x == foot[0] and SUBPIXEL * corner_y == foot[1]
        if not is_foot and not guard[corner_y, corner_x]:
            return False
        for i in range(len(walls)):
            if distance(x, y, walls[i - 1], walls[i])[0] < 0.1 * quarter * SUBPIXEL:
                return False
    return True
