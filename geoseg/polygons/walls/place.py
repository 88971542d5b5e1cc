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
    at_the_edge,
    cracks_at,
    cross,
    direction_at,
    distance,
    enclosed,
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


class Building(NamedTuple):
    """A region in its window of the map: views, and what holds for the whole map."""

    values: Int32Array  # objects, (h, w); changed where walls are accepted
    flags: ByteArray  # (h, w); that of a corner is at the pixel below and right of it
    runs: IntArray  # its pixels in the window as row, first column, column after the last, (r, 3)
    free: BoolArray  # by object: whether its pixels may become the building's, or the building's become its
    row: int  # of the window
    column: int
    stride: int  # corners of a row of the map


class Borders(NamedTuple):
    """What replaces arcs of the map and their ends, in 1/256 px of the map.

    The first ``arcs`` entries are whole arcs, by the smaller key of their ends (see `BandArcs`). The others are ends of
    borders, by the key of that end: the point of the wall, then the corners of the lattice from the node to the foot.
    """

    keys: IntArray
    offsets: IntArray  # where each entry begins in the points, (n + 1,)
    points: IntArray  # (p, 2)
    arcs: int


@njit
def build_walls(building: Building, tolerance: float) -> Borders:
    """Fit walls to a building and paint it, if they can stand; without an entry where they cannot."""
    nothing = _gathered(building, [int64(0)][:0], [building.runs][:0], 0)
    values, flags = building.values, building.flags
    own = np.zeros(values.shape, dtype=np.bool_)
    for k in range(len(building.runs)):
        row, begin, end = building.runs[k]
        own[row, begin:end] = True
    if at_the_edge(own):  # of the map
        return nothing
    old_ring = outline(own)
    if len(old_ring) > _LONGEST_RING:
        return nothing
    walls = np.rint(fit_walls(old_ring, tolerance) * SUBPIXEL).astype(np.int64)
    if len(walls) == 0 or not is_simple(walls):
        return nothing
    inside, filled = inside_of(walls, own.shape), inside_of(old_ring * SUBPIXEL, own.shape)
    painted = _painted(building, own, inside, filled)
    if len(painted) == 0 or at_the_edge(inside):
        return nothing
    ring = outline(inside)
    if enclosed(ring) != inside.sum() or pieces(painted) != pieces(values):
        return nothing
    guard = _guard(walls, ring, own.shape)
    if len(guard) == 0:
        return nothing
    borders = _borders(building, painted, inside, ring, walls, guard)
    if len(borders.keys) == 0:
        return nothing
    for y in range(1, len(values)):  # the first row and column do not change
        for x in range(1, values.shape[1]):
            values[y, x] = painted[y, x]
            flags[y, x] |= DECIDED * inside[y, x] + GUARD * guard[y, x]
            for corner in range(4 * guard[y, x]):
                flags[y - (corner & 1), x - (corner >> 1)] |= FIXED
    return borders


@helper
def _painted(building: Building, own: BoolArray, inside: BoolArray, filled: BoolArray) -> Int32Array:
    """The window once the walls enclose the building; without rows where pixels may not change, or too many would.

    A hole stays what it is. A lost pixel becomes what is nearest, in steps from pixel to pixel.
    """
    values = building.values
    height, width = values.shape
    painted, value = values.copy(), values[building.runs[0, 0], building.runs[0, 1]]
    lost, left = np.zeros(values.shape, dtype=np.bool_), 0
    common, either = 0, 0
    for y in range(height):
        for x in range(width):
            common += inside[y, x] and filled[y, x]
            either += inside[y, x] or filled[y, x]
            gained, lost[y, x] = inside[y, x] and not filled[y, x], own[y, x] and not inside[y, x]
            if not gained and not lost[y, x]:
                continue
            if building.flags[y, x] & FIXED or (gained and not building.free[values[y, x]]):
                return painted[:0]
            left += lost[y, x]
            if gained:
                painted[y, x] = value
    if common < _LEAST_IOU * either:
        return painted[:0]
    while left > 0:
        before, lost_before = lost.copy(), left
        for y in range(height):
            for x in range(width):
                for direction in range(4 * before[y, x]):
                    row, column = y + STEP_Y[direction], x + STEP_X[direction]
                    if not (0 <= row < height and 0 <= column < width) or before[row, column] or inside[row, column]:
                        continue
                    if building.free[painted[row, column]]:
                        painted[y, x], lost[y, x] = painted[row, column], False
                        left -= 1
                        break
        if left == lost_before:
            return painted[:0]
    return painted


@helper
def _guard(walls: IntArray, ring: IntArray, shape: tuple[int, ...]) -> BoolArray:
    """Corners within `GUARD_PX` of the walls and those of the ring, (h, w); no rows where they leave the window."""
    guard = np.zeros(shape, dtype=np.bool_)
    for i in range(len(walls)):
        a, b = walls[i - 1], walls[i]
        for y in range(min(a[1], b[1]) // SUBPIXEL - 1, max(a[1], b[1]) // SUBPIXEL + 3):
            for x in range(min(a[0], b[0]) // SUBPIXEL - 1, max(a[0], b[0]) // SUBPIXEL + 3):
                if distance(SUBPIXEL * x, SUBPIXEL * y, a, b)[0] <= GUARD_PX * SUBPIXEL:
                    if y < 1 or x < 1 or y >= shape[0] or x >= shape[1]:
                        return guard[:0]
                    guard[y, x] = True
    for i in range(len(ring)):
        guard[ring[i, 1], ring[i, 0]] = True
    return guard


@helper
def _borders(
    building: Building, painted: Int32Array, inside: BoolArray, ring: IntArray, walls: IntArray, guard: BoolArray
) -> Borders:
    """What replaces the ring and the ends of borders at it; feet join the guard. No entry if anything is in the way."""
    keys, lines = [int64(0)][:0], [walls][:0]  # of the ends; empty, but of a type
    nothing = _gathered(building, keys, lines, 0)
    passed = np.zeros(guard.shape, dtype=np.bool_)
    for i in range(len(ring)):
        passed[ring[i, 1], ring[i, 0]] = True
    nodes = 0
    node_at, position, ends = np.empty(len(ring), np.int64), np.empty(len(ring)), np.empty_like(ring)
    for i in range(len(ring)):
        x, y = ring[i, 0], ring[i, 1]
        ahead, back = direction_at(ring, i), direction_at(ring, i - 1) ^ 2
        outside = pixel(painted, x, y, ahead, 1)
        is_pinched = inside[y - 1, x - 1] == inside[y, x] and inside[y - 1, x] == inside[y, x - 1]
        merges = outside == painted[ring[0, 1], ring[0, 0]] or outside == pixel(painted, x, y, ahead, 0)
        if merges or is_pinched or outside == NODATA:
            return nothing
        directions = cracks_at(painted, x, y)
        if len(directions) == 2:
            continue
        node_at[nodes] = i
        position[nodes], ends[nodes, 0], ends[nodes, 1] = _on_walls(walls, SUBPIXEL * x, SUBPIXEL * y)
        for direction in directions:
            if direction != ahead and direction != back:
                stub = _stub(painted, guard, passed, ends[nodes], x, y, direction)
                if len(stub) == 0 or not _stands_free(walls, stub[0], stub[-1], guard):
                    return nothing
                keys.append(_key(building, x, y, direction))
                lines.append(stub)
        nodes += 1
    if not _are_apart(lines) or not _in_turn(position[:nodes], ends):
        return nothing
    for stub in lines:
        x, y = stub[-1, 0] // SUBPIXEL, stub[-1, 1] // SUBPIXEL
        guard[y, x] = passed[y, x] = True
    for y in range(1, guard.shape[0]):
        for x in range(1, guard.shape[1]):
            if guard[y, x] and (building.flags[y, x] & GUARD or (not passed[y, x] and len(cracks_at(painted, x, y)))):
                return nothing
    if nodes == 0:
        arc_keys = [_key(building, ring[0, 0], ring[0, 1], 1)]
        arcs = [_section(walls, walls[0], walls[0], 0.0, 0.0)]
    else:
        arc_keys, arcs = [int64(0)][:0], [walls][:0]
    for k in range(nodes):
        after = (k + 1) % nodes
        i, j = node_at[k], node_at[after]
        arc = _section(walls, ends[k], ends[after], position[k], position[after])
        key = _key(building, ring[i, 0], ring[i, 1], direction_at(ring, i))
        end_key = _key(building, ring[j, 0], ring[j, 1], direction_at(ring, j - 1) ^ 2)
        arc_keys.append(min(key, end_key))
        arcs.append(arc[::-1].copy() if end_key < key else arc)
    return _gathered(building, arc_keys + keys, arcs + lines, len(arcs))


@helper
def _gathered(building: Building, keys: list[int], lines: list[IntArray], arcs: int) -> Borders:
    found, offsets = np.empty(len(keys), np.int64), np.zeros(len(keys) + 1, np.int64)
    for k in range(len(keys)):
        found[k], offsets[k + 1] = keys[k], offsets[k] + len(lines[k])
    points = np.empty((offsets[-1], 2), np.int64)
    for k in range(len(keys)):
        for i in range(len(lines[k])):
            points[offsets[k] + i, 0] = lines[k][i, 0] + SUBPIXEL * building.column
            points[offsets[k] + i, 1] = lines[k][i, 1] + SUBPIXEL * building.row
    return Borders(found, offsets, points, arcs)


@helper
def _stub(
    painted: Int32Array, guard: BoolArray, passed: BoolArray, end: IntArray, x: int, y: int, direction: int
) -> IntArray:
    """From a wall to a node of the ring, and along the border that leaves it to its foot; no points if that is far."""
    stub = np.empty((_LONGEST_PREFIX + 2, 2), np.int64)
    stub[0, 0], stub[0, 1] = end[0], end[1]
    stub[1, 0], stub[1, 1] = SUBPIXEL * x, SUBPIXEL * y
    for size in range(2, len(stub)):
        x, y = x + STEP_X[direction], y + STEP_Y[direction]
        if x < 1 or y < 1 or x >= guard.shape[1] or y >= guard.shape[0]:
            break
        stub[size, 0], stub[size, 1] = SUBPIXEL * x, SUBPIXEL * y
        if not guard[y, x]:
            return stub[: size + 1]
        onward = cracks_at(painted, x, y)
        if passed[y, x] or len(onward) != 2:
            break
        passed[y, x] = True
        direction = onward[0] if onward[0] != direction ^ 2 else onward[1]
    return stub[:0]


@helper
def _are_apart(stubs: list[IntArray]) -> bool:
    """Whether stubs have no point in common but that of the wall."""
    for i in range(len(stubs)):
        for j in range(i):
            a, b, c, d = stubs[i][0], stubs[i][-1], stubs[j][0], stubs[j][-1]
            meet = a[0] == c[0] and a[1] == c[1]
            same = b[0] == d[0] and b[1] == d[1]
            if same or (not meet and cross(a, b, c, d)):
                return False
    return True


@helper
def _in_turn(position: FloatArray, ends: IntArray) -> bool:
    """Whether borders end at the walls in the order of the ring, and apart."""
    falls = 0
    for k in range(len(position)):
        before = (k - 1) % len(position)
        gap = math.hypot(ends[k, 0] - ends[before, 0], ends[k, 1] - ends[before, 1])
        if before != k and gap < _LEAST_GAP * SUBPIXEL:
            return False
        falls += position[k] <= position[before]
    return falls <= 1


@helper
def _section(walls: IntArray, begin: IntArray, end: IntArray, start: float, stop: float) -> IntArray:
    """The walls from a point at position ``start`` on to another, once around if they are the same."""
    if stop <= start:
        stop += len(walls)
    first, last = math.floor(start) + 1, math.ceil(stop)
    section = np.empty((last - first + 2, 2), np.int64)
    for axis in range(2):
        section[0, axis], section[-1, axis] = begin[axis], end[axis]
        for corner in range(first, last):
            section[corner - first + 1, axis] = walls[corner % len(walls), axis]
    return section


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
