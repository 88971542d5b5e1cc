"""Whether walls can stand where they were fitted, and what becomes of the pixels and borders beside them.

Walls that are accepted are painted into the map: pixels whose centre they enclose become the building's, those it loses
become what is nearest. So the traced ring runs within a pixel of its walls, and its arcs are replaced by them. A border
that ends at the building is led to the nearest point of the wall from its *foot*, the first corner off the *guard*.
Where a building has parts, houses that touch, borders between them are walls of both: a node of the raster where a part
meets others stands for the nearest corner that they share, and each part has as many of these as of those.

The guard of a building is all corners within `GUARD_PX` of its walls, those of its ring, and the feet. Nothing but the
building's ring and the borders that end there may pass a corner of it, no two buildings share a corner of it, pixels
that touch it change no more, and simplified edges stay a whole pixel away from it. Every point of a wall has a corner
of the guard within 0.71 px, so all edges keep more than a quarter of a pixel from the wall.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from geoseg.arrays import BoolArray, FloatArray, Int32Array, IntArray
from geoseg.classes import NODATA
from geoseg.polygons.trace.cracks import SUBPIXEL
from geoseg.polygons.walls.borders import divide
from geoseg.polygons.walls.fit import fit_walls
from geoseg.polygons.walls.paint import FIXED, Building, Walls, paint
from geoseg.polygons.walls.shapes import (
    STEP_X,
    STEP_Y,
    box_of,
    cracks_at,
    cross,
    direction_at,
    distance,
    encloses,
    is_simple,
    outline,
    pieces,
    pixel,
)
from geoseg.runtime.jit import helper, int64, njit

GUARD_PX = 0.85
DECIDED, GUARD, IN_TALL = 1, 4, 8
"""Flags of places: the pixel belongs to a decided building; the corner is guarded; the pixel belongs to a building of a
group that is too tall to be decided together. And `FIXED`."""

_LONGEST_RING = 8192  # cracks
_LEAST_GAP = 0.5  # px, between the ends of borders at a wall, and between these and corners
_LONGEST_PREFIX = 8  # cracks of a border within the guard
_LONGEST_STUB = 2.5  # px, from the wall to a foot
_LEAST_CLEARANCE = 0.25  # px, between such a line and the corners of the walls


_Lines = dict[int, Int32Array]


class _Nodes(NamedTuple):
    """Where borders meet the painted rings, in their order, and the ends of these borders; 1/256 px of the window."""

    counts: IntArray  # of the nodes up to the end of each ring, -1 if the walls cannot stand; of ends, (k + 1,)
    keys: IntArray  # of the cracks of a ring after and before each node, without nodes of its first one, (n, 2)
    points: IntArray  # of the walls, (n, 2); this array and the others may be longer
    position: FloatArray  # of these points, wall by wall from 0 on, (n,)
    end_keys: IntArray  # (e,)
    end_sizes: IntArray  # points of each end, (e,)
    ends: IntArray  # (e, _LONGEST_PREFIX + 2, 2)


def build_walls(building: Building, tolerance: float) -> tuple[_Lines, _Lines] | None:
    """Fit walls to a building, or to several that touch, and paint them if they can stand.

    Returns what `geoseg.polygons.walls.rows.Walls` keeps: arcs and ends of arcs by their keys.
    """
    parts = building.parts
    own = parts > 0
    if own[[0, -1]].any() or own[:, [0, -1]].any():  # at the edge of the map
        return None
    ring = outline(own)
    if len(ring) > _LONGEST_RING:
        return None
    fitted = fit_walls(ring, tolerance)
    if len(fitted) == 0:
        return None
    outer = np.rint(fitted * SUBPIXEL).astype(np.int64, order="C")
    around, rings = [outer], [ring]
    if parts.max() > 1:
        from scipy.ndimage import find_objects  # every verb that makes polygons would wait for it

        boxes = find_objects(parts)
        outer, *around = divide(parts, fitted, tolerance) or [outer]
        if len(around) != len(boxes):
            return None
        rings = [
            outline(np.pad(parts[box] == number, 1)) + np.array([box[1].start - 1, box[0].start - 1])
            for number, box in enumerate(boxes, 1)
        ]
    corners, before = np.concatenate(around), np.concatenate([np.roll(part, 1, axis=0) for part in around])
    _, which, uses = np.unique(corners, axis=0, return_inverse=True, return_counts=True)
    bounds, ring_bounds = (np.append(0, np.cumsum([len(part) for part in each])) for each in (around, rings))
    shared = uses[which.ravel()] > 1
    walls = Walls(outer, corners, before, bounds, shared, np.concatenate(rings) * SUBPIXEL, ring_bounds)
    nodes = _place(building, walls)
    return _borders(building, around, nodes) if nodes.counts[0] >= 0 else None


def _borders(building: Building, around: list[IntArray], nodes: _Nodes) -> tuple[_Lines, _Lines]:
    """The sections of the walls between borders, and the ends of these borders."""
    origin = SUBPIXEL * np.array([building.column, building.row])
    *stops, end_count = nodes.counts.tolist()
    points, lines = ((p + origin).astype(np.int32) for p in (nodes.points[: stops[-1]], nodes.ends[:end_count]))
    ends = {int(nodes.end_keys[i]): lines[i, : nodes.end_sizes[i]] for i in range(end_count)}
    arcs = dict[int, Int32Array]()
    for corners, first, last in zip(around, [0, *stops], stops, strict=False):
        walls = (corners + origin).astype(np.int32)
        if first == last:
            return {int(nodes.keys[0, 0]): np.vstack([walls, walls[:1]])}, ends
        for i in range(first, last):
            j = i + 1 if i + 1 < last else first
            start, stop = nodes.position[i], nodes.position[j]
            stop += len(walls) * (stop <= start)
            between = walls[np.arange(math.floor(start) + 1, math.ceil(stop)) % len(walls)]
            arc = np.vstack([points[i], between, points[j]])
            key, last_key = int(nodes.keys[i, 0]), int(nodes.keys[j, 1])
            arcs[min(key, last_key)] = arc if key <= last_key else arc[::-1]
    return arcs, ends


@njit
def _place(building: Building, walls: Walls) -> _Nodes:
    """Paint a building if its walls can stand."""
    values, flags, count = building.values, building.flags, len(walls.bounds) - 1
    painted, inside, value = values.copy(), np.zeros_like(building.parts), np.zeros(count + 1, np.int32)
    if not is_simple(walls.outer, count > 1) or not paint(building, walls, inside, value, painted):
        return _room(count, 0)
    if pieces(painted) != pieces(values):
        return _room(count, 0)
    guard, passed, total = np.zeros(values.shape, dtype=np.bool_), np.zeros(values.shape, dtype=np.bool_), 0
    if not _guard_walls(walls, guard):
        return _room(count, 0)
    for k in range(count):
        ring, part = _ring(inside, k, walls)
        if not encloses(ring, part):
            return _room(count, 0)
        total += len(ring)
        for i in range(len(ring)):
            guard[ring[i, 1], ring[i, 0]] = passed[ring[i, 1], ring[i, 0]] = True
    nodes = _room(count, total)
    for k in range(count):
        if not _meet(building, painted, inside, value, k, walls, guard, passed, nodes):
            return _room(count, 0)
    if not _are_free(building, painted, guard, passed, nodes):
        return _room(count, 0)
    for y in range(1, len(values)):  # the first row and column do not change
        for x in range(1, values.shape[1]):
            values[y, x] = painted[y, x]
            flags[y, x] |= DECIDED * (inside[y, x] > 0) + GUARD * guard[y, x]
            for corner in range(4 * guard[y, x]):
                flags[y - (corner & 1), x - (corner >> 1)] |= FIXED
    return nodes


@helper
def _room(rings: int, count: int) -> _Nodes:
    """Room for some nodes; none is there, and the walls cannot stand."""
    return _Nodes(
        np.full(rings + 1, -1),
        np.empty((count, 2), np.int64),
        np.empty((count, 2), np.int64),
        np.empty(count),
        np.empty(2 * count, np.int64),
        np.empty(2 * count, np.int64),
        np.empty((2 * count, _LONGEST_PREFIX + 2, 2), np.int64),
    )


@helper
def _guard_walls(walls: Walls, guard: BoolArray) -> bool:
    """Guard all corners within `GUARD_PX` of the walls; whether they are in the window."""
    for i in range(len(walls.before)):
        a, b = walls.before[i], walls.corners[i]
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
    inside: Int32Array,
    value: Int32Array,
    k: int,
    walls: Walls,
    guard: BoolArray,
    passed: BoolArray,
    nodes: _Nodes,
) -> bool:
    """Find where borders meet the ring of a part. Whether nothing is in the way."""
    begin, end = walls.bounds[k], walls.bounds[k + 1]
    mine, shared = walls.corners[begin:end], walls.shared[begin:end]
    ring, _ = _ring(inside, k, walls)
    first, end_count = (nodes.counts[k - 1], nodes.counts[-1]) if k else (0, 0)
    count, junctions = first, 0
    nodes.keys[first, 0] = _key(building, ring[0, 0], ring[0, 1], 1)
    for i in range(len(ring)):
        x, y = ring[i, 0], ring[i, 1]
        ahead, back = direction_at(ring, i), direction_at(ring, i - 1) ^ 2
        outside = pixel(painted, x, y, ahead, 1)
        is_pinched = (inside[y - 1, x - 1] == k + 1) == (inside[y, x] == k + 1) and (inside[y - 1, x] == k + 1) == (
            inside[y, x - 1] == k + 1
        )
        merges = outside == value[k + 1] or outside == pixel(painted, x, y, ahead, 0)
        if merges or is_pinched or outside == NODATA:
            return False
        others = cracks_at(painted, x, y) & ~(1 << ahead | 1 << back)
        if others == 0:
            continue
        nodes.keys[count, 0], nodes.keys[count, 1] = _key(building, x, y, ahead), _key(building, x, y, back)
        point, is_junction = nodes.points[count], False
        for direction in range(4):
            part = pixel(inside, x, y, direction, 0)
            is_junction |= part != 0 and part != k + 1
        if is_junction:
            junctions += 1
            at = _nearest(mine, shared, SUBPIXEL * x, SUBPIXEL * y)
            nodes.position[count], point[0], point[1] = at, mine[at, 0], mine[at, 1]
        else:
            nodes.position[count], point[0], point[1] = _on_walls(mine, SUBPIXEL * x, SUBPIXEL * y)
        count += 1
        for direction in range(4):
            if not others >> direction & 1:
                continue
            if is_junction:
                if pixel(inside, x, y, direction, 0) == pixel(inside, x, y, direction, 1):
                    return False  # two borders that are none of a part
                continue
            end = nodes.ends[end_count]
            end[0, 0], end[0, 1] = point[0], point[1]
            size = _follow(painted, guard, passed, x, y, direction, end)
            if size == 0 or not _stands_free(walls, end[0], end[size - 1], guard):
                return False
            nodes.end_keys[end_count], nodes.end_sizes[end_count] = _key(building, x, y, direction), size
            end_count += 1
    nodes.counts[k], nodes.counts[-1] = count, end_count
    for i in range(len(shared)):
        junctions -= shared[i]
    return junctions == 0 and _in_turn(nodes, first, count)


@helper
def _are_free(building: Building, painted: Int32Array, guard: BoolArray, passed: BoolArray, nodes: _Nodes) -> bool:
    """Add the feet to the guard; whether lines to them meet at walls alone, and no other border is within it."""
    for i in range(nodes.counts[-1]):
        start, foot = nodes.ends[i, 0], nodes.ends[i, nodes.end_sizes[i] - 1]
        for j in range(i):
            other_start, other_foot = nodes.ends[j, 0], nodes.ends[j, nodes.end_sizes[j] - 1]
            meet = start[0] == other_start[0] and start[1] == other_start[1]
            same = foot[0] == other_foot[0] and foot[1] == other_foot[1]
            if same or (not meet and cross(start, foot, other_start, other_foot)):
                return False
        x, y = foot[0] // SUBPIXEL, foot[1] // SUBPIXEL
        guard[y, x] = passed[y, x] = True
    for y in range(1, guard.shape[0]):
        for x in range(1, guard.shape[1]):
            if guard[y, x] and (building.flags[y, x] & GUARD or (not passed[y, x] and cracks_at(painted, x, y))):
                return False
    return True


@helper
def _ring(inside: Int32Array, k: int, walls: Walls) -> tuple[IntArray, BoolArray]:
    """The ring around the pixels of a part, and these pixels in their box."""
    top, left, bottom, right = box_of(walls.corners[walls.bounds[k] : walls.bounds[k + 1]], inside.shape)
    own = np.zeros((bottom - top, right - left), dtype=np.bool_)
    for y in range(top, bottom):
        for x in range(left, right):
            own[y - top, x - left] = inside[y, x] == k + 1
    ring = outline(own)
    for i in range(len(ring)):
        ring[i, 0], ring[i, 1] = ring[i, 0] + left, ring[i, 1] + top
    return ring, own


@helper
def _nearest(corners: IntArray, shared: BoolArray, x: int, y: int) -> int:
    """The shared corner that is nearest to a point."""
    nearest, found = np.inf, int64(0)
    for i in range(len(corners)):
        away = math.hypot(corners[i, 0] - x, corners[i, 1] - y)
        if shared[i] and away < nearest:
            nearest, found = away, int64(i)
    return found


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
def _in_turn(nodes: _Nodes, first: int, count: int) -> bool:
    """Whether borders end at the walls of a part in the order of its ring, and apart."""
    falls = 0
    for k in range(first, count):
        before = k - 1 if k > first else count - 1
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
def _stands_free(walls: Walls, start: IntArray, foot: IntArray, guard: BoolArray) -> bool:
    """Whether a straight line from a wall to a foot moves away from the walls, between guarded corners."""
    if math.hypot(foot[0] - start[0], foot[1] - start[1]) > _LONGEST_STUB * SUBPIXEL:
        return False
    for i in range(len(walls.before)):
        a, b = walls.before[i], walls.corners[i]
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
        for i in range(len(walls.before)):
            if distance(x, y, walls.before[i], walls.corners[i])[0] < 0.1 * quarter * SUBPIXEL:
                return False
    return True
