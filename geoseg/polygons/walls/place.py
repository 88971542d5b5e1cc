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

from geoseg.arrays import BoolArray, ByteArray, FloatArray, IntArray
from geoseg.classes import NODATA
from geoseg.polygons.trace.cracks import SUBPIXEL
from geoseg.polygons.walls.fit import fit_walls
from geoseg.runtime.forest import find_root, join
from geoseg.runtime.jit import helper, int64, njit

GUARD_PX = 0.85
DECIDED, FIXED, GUARD = 1, 2, 4
"""Flags of places: the pixel belongs to a decided building; the pixel may not change; the corner is guarded."""

_SHORTEST_WALL, _APART = 2.0, 1.0  # px, of a wall, and between walls that are no neighbours
_LEAST_IOU = 0.7
_LEAST_GAP = 0.5  # px, between the ends of borders at a wall, and between these and corners
_LONGEST_PREFIX = 8  # cracks of a border within the guard
_LONGEST_STUB = 2.5  # px, from the wall to a foot
_STEP_X, _STEP_Y = np.array([1, 0, -1, 0]), np.array([0, 1, 0, -1])  # east, south, west, north


class Building(NamedTuple):
    """A region in its window of the map: views, and what holds for the whole map."""

    values: ByteArray  # (h, w); changed where walls are accepted
    flags: ByteArray  # (h, w); that of a corner is at the pixel below and right of it
    runs: IntArray  # its pixels in the window as row, first column, column after the last, (r, 3)
    free: BoolArray  # whether pixels of a value may become the building's, or become this value, (256,)
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
    nothing = Borders(np.empty(0, np.int64), np.zeros(1, np.int64), np.empty((0, 2), np.int64), 0)
    values, flags = building.values, building.flags
    own = np.zeros(values.shape, dtype=np.bool_)
    for k in range(len(building.runs)):
        row, begin, end = building.runs[k]
        own[row, begin:end] = True
    if _at_the_edge(own):  # of the map
        return nothing
    old_ring = _outline(own)
    walls = np.rint(fit_walls(old_ring, tolerance) * SUBPIXEL).astype(np.int64)
    if len(walls) == 0 or not _is_simple(walls):
        return nothing
    inside, filled = _inside(walls, own.shape), _inside(old_ring * SUBPIXEL, own.shape)
    common, either = (inside & filled).sum(), (inside | filled).sum()
    if common < _LEAST_IOU * either or _at_the_edge(inside):
        return nothing
    painted = _painted(building, own, inside, filled)
    ring = _outline(inside)
    if len(painted) == 0 or _enclosed(ring) != inside.sum() or _pieces(painted) != _pieces(values):
        return nothing
    guard = _guard(walls, ring, own.shape)
    if len(guard) == 0:
        return nothing
    found, borders = _borders(building, painted, inside, ring, walls, guard)
    if not found:
        return nothing
    for y in range(1, len(values)):
        for x in range(1, values.shape[1]):
            flags[y, x] |= DECIDED * inside[y, x] + GUARD * guard[y, x]
            for corner in range(4 * guard[y, x]):
                flags[y - (corner & 1), x - (corner >> 1)] |= FIXED
    values[:] = painted
    return borders


@helper
def _outline(own: BoolArray) -> IntArray:
    """Corners around a region from crack to crack, first south from the topmost, there leftmost one; (n, 2)."""
    y = 0
    while not own[y].any():
        y += 1
    x = int64(np.argmax(own[y]))
    first_x, first_y, direction = x, y, 1
    ring = [(x, y)]
    while True:
        x, y = x + _STEP_X[direction], y + _STEP_Y[direction]
        if x == first_x and y == first_y:
            return np.array(ring)
        ring.append((x, y))
        # The region is on the left: right if that is still its own pixel, too, else straight on, else left.
        for turn in (1, 0, 3):
            ahead = (direction + turn) & 3
            if _pixel(own, x, y, ahead, 0) and not _pixel(own, x, y, ahead, 1):
                direction = ahead
                break


@helper
def _pixel(plane: BoolArray | ByteArray, x: int, y: int, direction: int, side: int) -> int:
    """The pixel on the left (0) or right (1) of the crack that leaves a corner in a direction."""
    hand = (direction + side) & 3
    return int64(plane[y - (hand == 0 or hand == 3), x - (hand > 1)])


@helper
def _inside(points: IntArray, shape: tuple[int, ...]) -> BoolArray:
    """The pixels whose centres a polygon encloses, 1/256 px."""
    inside = np.zeros(shape, dtype=np.bool_)
    crossings = np.empty(len(points))
    for row in range(shape[0]):
        y, count = SUBPIXEL * row + SUBPIXEL // 2, 0
        for i in range(len(points)):
            x0, y0, x1, y1 = points[i - 1, 0], points[i - 1, 1], points[i, 0], points[i, 1]
            if (y0 <= y) != (y1 <= y):
                crossings[count] = (x0 + (y - y0) * (x1 - x0) / (y1 - y0)) / SUBPIXEL - 0.5
                count += 1
        ends = np.sort(crossings[:count])
        for k in range(0, count, 2):
            inside[row, max(math.ceil(ends[k]), 0) : max(math.ceil(ends[k + 1]), 0)] = True
    return inside


@helper
def _at_the_edge(plane: BoolArray) -> bool:
    return bool(plane[0].any() or plane[-1].any() or plane[:, 0].any() or plane[:, -1].any())


@helper
def _enclosed(ring: IntArray) -> int:
    """Pixels that a ring of corners encloses."""
    twice = 0
    for i in range(len(ring)):
        twice += ring[i, 0] * ring[i - 1, 1] - ring[i - 1, 0] * ring[i, 1]
    return abs(twice) // 2


@helper
def _is_simple(walls: IntArray) -> bool:
    """Whether walls are long enough, and those that are no neighbours apart."""
    n = len(walls)
    for i in range(n):
        j = (i + 1) % n
        if math.hypot(walls[j, 0] - walls[i, 0], walls[j, 1] - walls[i, 1]) < _SHORTEST_WALL * SUBPIXEL:
            return False
        for k in range(i + 2, n if i else n - 1):
            after = (k + 1) % n
            if _cross(walls[i], walls[j], walls[k], walls[after]):
                return False
            for a, b, p in ((i, j, k), (i, j, after), (k, after, i), (k, after, j)):
                if _distance(walls[p, 0], walls[p, 1], walls[a], walls[b])[0] < _APART * SUBPIXEL:
                    return False
    return True


@helper
def _distance(px: float, py: float, a: IntArray | FloatArray, b: IntArray | FloatArray) -> tuple[float, float]:
    """Distance of a point from the segment a–b, and where on it, 0 … 1, the nearest point is."""
    dx, dy = float(b[0] - a[0]), float(b[1] - a[1])
    at = min(max(((px - a[0]) * dx + (py - a[1]) * dy) / (dx * dx + dy * dy), 0.0), 1.0)
    return math.hypot(px - a[0] - at * dx, py - a[1] - at * dy), at


@helper
def _side(a: IntArray, b: IntArray, p: IntArray) -> int:
    return int64(np.sign((b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0])))


@helper
def _cross(a: IntArray, b: IntArray, c: IntArray, d: IntArray) -> bool:
    """Whether the segments a–b and c–d have a point in common."""
    return _side(a, b, c) * _side(a, b, d) <= 0 and _side(c, d, a) * _side(c, d, b) <= 0


@helper
def _painted(building: Building, own: BoolArray, inside: BoolArray, filled: BoolArray) -> ByteArray:
    """The window once the walls enclose the building; without rows where pixels may not change.

    A hole stays what it is. A lost pixel becomes what is nearest, in steps from pixel to pixel.
    """
    values = building.values
    height, width = values.shape
    painted, value = values.copy(), values[building.runs[0, 0], building.runs[0, 1]]
    lost = own & ~inside
    for y in range(height):
        for x in range(width):
            gained = inside[y, x] and not filled[y, x]
            if not gained and not lost[y, x]:
                continue
            if building.flags[y, x] & FIXED or (gained and not building.free[values[y, x]]):
                return painted[:0]
            if gained:
                painted[y, x] = value
    left = -1
    while lost.any():
        if left == lost.sum():
            return painted[:0]
        left = lost.sum()
        before = lost.copy()
        lost_rows, lost_columns = np.nonzero(before)
        for y, x in zip(lost_rows, lost_columns):  # noqa: B905 (numba knows no strict)
            for direction in range(4):
                row, column = y + _STEP_Y[direction], x + _STEP_X[direction]
                if not (0 <= row < height and 0 <= column < width) or before[row, column] or inside[row, column]:
                    continue
                if building.free[painted[row, column]]:
                    painted[y, x], lost[y, x] = painted[row, column], False
                    break
    return painted


@helper
def _pieces(values: ByteArray) -> int:
    """Number of 4-connected regions."""
    height, width = values.shape
    parent = np.arange(values.size).astype(np.int32)
    for y in range(height):
        for x in range(width):
            if x and values[y, x] == values[y, x - 1]:
                join(parent, int64(y * width + x), int64(y * width + x - 1))
            if y and values[y, x] == values[y - 1, x]:
                join(parent, int64(y * width + x), int64(y * width + x - width))
    count = 0
    for i in range(len(parent)):
        count += find_root(parent, i) == i
    return count


@helper
def _guard(walls: IntArray, ring: IntArray, shape: tuple[int, ...]) -> BoolArray:
    """Corners within `GUARD_PX` of the walls and those of the ring, (h, w); no rows where they leave the window."""
    guard = np.zeros(shape, dtype=np.bool_)
    for i in range(len(walls)):
        a, b = walls[i - 1], walls[i]
        for y in range(min(a[1], b[1]) // SUBPIXEL - 1, max(a[1], b[1]) // SUBPIXEL + 3):
            for x in range(min(a[0], b[0]) // SUBPIXEL - 1, max(a[0], b[0]) // SUBPIXEL + 3):
                if _distance(SUBPIXEL * x, SUBPIXEL * y, a, b)[0] <= GUARD_PX * SUBPIXEL:
                    if y < 1 or x < 1 or y >= shape[0] or x >= shape[1]:
                        return guard[:0]
                    guard[y, x] = True
    for i in range(len(ring)):
        guard[ring[i, 1], ring[i, 0]] = True
    return guard


@helper
def _cracks(values: ByteArray, x: int, y: int) -> IntArray:
    """Directions of the cracks at a corner."""
    found = np.empty(4, dtype=np.int64)
    count = 0
    for direction in range(4):
        if _pixel(values, x, y, direction, 0) != _pixel(values, x, y, direction, 1):
            found[count] = direction
            count += 1
    return found[:count]


@helper
def _borders(
    building: Building, painted: ByteArray, inside: BoolArray, ring: IntArray, walls: IntArray, guard: BoolArray
) -> tuple[bool, Borders]:
    """What replaces the ring and the ends of borders at it; feet join the guard. False if anything is in the way."""
    n, value = len(ring), painted[ring[0, 1], ring[0, 0]]
    passed = np.zeros(guard.shape, dtype=np.bool_)
    node_at, node_position = np.empty(n, np.int64), np.empty(n)  # along the ring, and along the walls
    ends, nodes = np.empty((n, 2), np.int64), 0  # of the ring's arcs on the walls
    feet, stubs = [(int64(0), int64(0))][:0], 0
    stub_from, stub_to = np.empty((2 * n, 2), np.int64), np.empty((2 * n, 2), np.int64)
    keys, offsets, points = [int64(0)][:0], [int64(0)], [(int64(0), int64(0))][:0]
    heads, head_offsets, head_points = [int64(0)][:0], [int64(0)][:0], [(int64(0), int64(0))][:0]
    nothing = Borders(np.empty(0, np.int64), np.zeros(1, np.int64), np.empty((0, 2), np.int64), 0)
    for i in range(n):
        x, y = ring[i, 0], ring[i, 1]
        passed[y, x] = True
        ahead, back = _direction(ring, i), _direction(ring, i - 1) ^ 2
        outside = _pixel(painted, x, y, ahead, 1)
        is_pinched = inside[y - 1, x - 1] == inside[y, x] and inside[y - 1, x] == inside[y, x - 1]
        merges = outside == value
        if merges or is_pinched or outside == NODATA:
            return False, nothing
        cracks = _cracks(painted, x, y)
        if len(cracks) == 2:
            continue
        position, px, py = _on_walls(walls, SUBPIXEL * x, SUBPIXEL * y)
        node_at[nodes], node_position[nodes], ends[nodes, 0], ends[nodes, 1] = i, position, px, py
        nodes += 1
        for direction in cracks:
            if direction in (ahead, back):
                continue
            head_offsets.append(len(head_points))
            heads.append(_key(building, x, y, direction))
            head_points.append((px, py))
            head_points.append((SUBPIXEL * x, SUBPIXEL * y))
            cx, cy, going = x, y, direction
            for _ in range(_LONGEST_PREFIX):
                cx, cy = cx + _STEP_X[going], cy + _STEP_Y[going]
                if cx < 1 or cy < 1 or cx >= guard.shape[1] or cy >= guard.shape[0]:
                    return False, nothing
                head_points.append((SUBPIXEL * cx, SUBPIXEL * cy))
                if not guard[cy, cx]:
                    break
                onward = _cracks(painted, cx, cy)
                if passed[cy, cx] or len(onward) != 2:
                    return False, nothing
                passed[cy, cx] = True
                going = onward[0] if onward[0] != going ^ 2 else onward[1]
            if guard[cy, cx]:
                return False, nothing
            feet.append((cx, cy))
            stub_from[stubs, 0], stub_from[stubs, 1] = px, py
            stub_to[stubs, 0], stub_to[stubs, 1] = SUBPIXEL * cx, SUBPIXEL * cy
            if not _stands_free(walls, stub_from[stubs], stub_to[stubs], guard):
                return False, nothing
            stubs += 1
    for i in range(stubs):
        for j in range(i):
            meet = stub_from[i, 0] == stub_from[j, 0] and stub_from[i, 1] == stub_from[j, 1]
            same = stub_to[i, 0] == stub_to[j, 0] and stub_to[i, 1] == stub_to[j, 1]
            if same or (not meet and _cross(stub_from[i], stub_to[i], stub_from[j], stub_to[j])):
                return False, nothing
    for k in range(len(feet)):
        guard[feet[k][1], feet[k][0]] = passed[feet[k][1], feet[k][0]] = True
    height, width = guard.shape
    for y in range(1, height):
        for x in range(1, width):
            if guard[y, x] and (building.flags[y, x] & GUARD or (not passed[y, x] and len(_cracks(painted, x, y)) > 0)):
                return False, nothing
    falls = 0
    for k in range(nodes):
        before = (k - 1) % nodes
        gap = math.hypot(ends[k, 0] - ends[before, 0], ends[k, 1] - ends[before, 1])
        if nodes > 1 and gap < _LEAST_GAP * SUBPIXEL:
            return False, nothing
        falls += node_position[k] <= node_position[before]
    if nodes > 0 and falls != 1:
        return False, nothing
    for k in range(max(nodes, 1)):
        if nodes == 0:
            keys.append(_key(building, ring[0, 0], ring[0, 1], 1))
            section = [(walls[i, 0], walls[i, 1]) for i in range(len(walls))]
            section.append((walls[0, 0], walls[0, 1]))
        else:
            after = (k + 1) % nodes
            section = [(ends[k, 0], ends[k, 1])]
            stop = node_position[after] + (len(walls) if node_position[after] <= node_position[k] else 0)
            corner = math.floor(node_position[k]) + 1
            while corner < stop:
                section.append((walls[corner % len(walls), 0], walls[corner % len(walls), 1]))
                corner += 1
            section.append((ends[after, 0], ends[after, 1]))
            i, j = node_at[k], node_at[after]
            key = _key(building, ring[i, 0], ring[i, 1], _direction(ring, i))
            end_key = _key(building, ring[j, 0], ring[j, 1], _direction(ring, j - 1) ^ 2)
            if end_key < key:
                section = section[::-1]
            keys.append(min(key, end_key))
        points.extend(section)
        offsets.append(len(points))
    arcs = len(keys)
    for k in range(len(heads)):
        keys.append(heads[k])
        last = head_offsets[k + 1] if k + 1 < len(heads) else len(head_points)
        points.extend(head_points[head_offsets[k] : last])
        offsets.append(len(points))
    shift = np.array([SUBPIXEL * building.column, SUBPIXEL * building.row])
    return True, Borders(np.array(keys), np.array(offsets), np.array(points) + shift, arcs)


@helper
def _direction(ring: IntArray, i: int) -> int:
    """Direction in which a ring leaves its corner i."""
    following = ring[(i + 1) % len(ring)]
    dx, dy = following[0] - ring[i, 0], following[1] - ring[i, 1]
    return int64((1 - dx) if dx else (2 - dy))


@helper
def _key(building: Building, x: int, y: int, direction: int) -> int:
    return 4 * ((building.row + y) * building.stride + building.column + x) + direction


@helper
def _on_walls(walls: IntArray, x: float, y: float) -> tuple[float, int, int]:
    """The place on the walls nearest to a point: its position, wall by wall from 0 on, and x, y; corners attract."""
    nearest, position, px, py = np.inf, 0.0, int64(0), int64(0)
    for i in range(len(walls)):
        a, b = walls[i], walls[(i + 1) % len(walls)]
        distance, at = _distance(x, y, a, b)
        if distance < nearest:
            length = math.hypot(b[0] - a[0], b[1] - a[1])
            at = (
                0.0 if at * length < _LEAST_GAP * SUBPIXEL else 1.0 if (1 - at) * length < _LEAST_GAP * SUBPIXEL else at
            )
            nearest, position = distance, (i + at) % len(walls)
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
            if _distance(x, y, walls[i - 1], walls[i])[0] < 0.1 * quarter * SUBPIXEL:
                return False
    return True
