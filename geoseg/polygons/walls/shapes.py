"""Rings of corners and polygons of walls in a window of the map.

A corner (x, y) is the lattice point between pixels (y − 1, x − 1) and (y, x) of the window. Directions are numbered
clockwise as seen on the map: east 0, south 1, west 2, north 3. Walls are corners in 1/256 px.
"""

from __future__ import annotations

import math

import numpy as np

from geoseg.arrays import BoolArray, FloatArray, Int32Array, IntArray
from geoseg.polygons.trace.cracks import SUBPIXEL
from geoseg.runtime.forest import join
from geoseg.runtime.jit import helper, int64, njit

_SHORTEST_WALL, _APART = 2.0, 1.0  # px, of a wall, and between walls that are no neighbours
STEP_X, STEP_Y = np.array([1, 0, -1, 0]), np.array([0, 1, 0, -1])


@njit
def outline(own: BoolArray) -> IntArray:
    """Corners around a region from crack to crack, first south from the topmost, there leftmost one; (n, 2)."""
    height, width = own.shape
    start, most = height * width, 4
    for i in range(height * width - 1, -1, -1):
        if own[i // width, i % width]:
            start, most = i, most + 4
    ring = np.empty((most, 2), np.int64)
    x, y, direction, n = start % width, start // width, 1, 0
    while n == 0 or x != ring[0, 0] or y != ring[0, 1]:
        ring[n, 0], ring[n, 1] = x, y
        n += 1
        x, y = x + STEP_X[direction], y + STEP_Y[direction]
        # The region is on the left: right if that is still its own pixel, too, else straight on, else left.
        for turn in (1, 0, 3):
            ahead = (direction + turn) & 3
            if pixel(own, x, y, ahead, 0) and not pixel(own, x, y, ahead, 1):
                direction = ahead
                break
    return ring[:n].copy()


@helper
def pixel(plane: BoolArray | Int32Array, x: int, y: int, direction: int, side: int) -> int:
    """The pixel on the left (0) or right (1) of the crack that leaves a corner in a direction."""
    hand = (direction + side) & 3
    return int64(plane[y - (hand == 0 or hand == 3), x - (hand > 1)])


@helper
def cracks_at(values: Int32Array, x: int, y: int) -> int:
    """The cracks at a corner: bit d for direction d."""
    found = 0
    for direction in range(4):
        if pixel(values, x, y, direction, 0) != pixel(values, x, y, direction, 1):
            found |= 1 << direction
    return found


@helper
def direction_at(ring: IntArray, i: int) -> int:
    """Direction in which a ring leaves its corner i."""
    following = ring[(i + 1) % len(ring)]
    dx, dy = following[0] - ring[i, 0], following[1] - ring[i, 1]
    return int64((1 - dx) if dx else (2 - dy))


@helper
def box_of(points: IntArray, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Rows and columns of a window that hold some points, and a pixel more: first row, first column, ends."""
    top, left, bottom, right = shape[0], shape[1], 0, 0
    for i in range(len(points)):
        x, y = points[i, 0] // SUBPIXEL, points[i, 1] // SUBPIXEL
        top, bottom, left, right = min(top, y - 1), max(bottom, y + 3), min(left, x - 1), max(right, x + 3)
    return max(top, 0), max(left, 0), min(bottom, shape[0]), min(right, shape[1])


@helper
def inside_of(points: IntArray, shape: tuple[int, ...]) -> BoolArray:
    """The pixels whose centres a polygon encloses, 1/256 px."""
    inside = np.zeros(shape, dtype=np.bool_)
    half = SUBPIXEL // 2
    for i in range(len(points)):
        x0, y0, x1, y1 = points[i - 1, 0], points[i - 1, 1], points[i, 0], points[i, 1]
        for row in range(
            max((min(y0, y1) + half) // SUBPIXEL - 1, 0), min((max(y0, y1) + half) // SUBPIXEL + 1, shape[0])
        ):
            y = SUBPIXEL * row + half
            if (y0 <= y) != (y1 <= y):
                column = max(math.ceil((x0 + (y - y0) * (x1 - x0) / (y1 - y0)) / SUBPIXEL - 0.5), 0)
                if column < shape[1]:
                    inside[row, column] ^= True  # from here on it is the other way round
    top, left, bottom, right = box_of(points, shape)
    for row in range(top, bottom):
        for column in range(left + 1, right):
            inside[row, column] ^= inside[row, column - 1]
    return inside


@helper
def encloses(ring: IntArray, inside: BoolArray) -> bool:
    """Whether a ring around some of these pixels encloses as many as there are."""
    twice = 0
    for i in range(len(ring)):
        twice += ring[i, 0] * ring[i - 1, 1] - ring[i, 1] * ring[i - 1, 0]
    return bool(twice == 2 * np.count_nonzero(inside))


@helper
def pieces(values: Int32Array) -> int:
    """Number of 4-connected regions."""
    height, width = values.shape
    parent = np.empty(height * width, np.int32)
    for i in range(len(parent)):
        y, x = i // width, i % width
        parent[i] = i
        if x and values[y, x] == values[y, x - 1]:
            join(parent, i, i - 1)
        if y and values[y, x] == values[y - 1, x]:
            join(parent, i, i - width)
    count = 0
    for i in range(len(parent)):
        count += parent[i] == i
    return count


@helper
def is_simple(walls: IntArray, may_align: bool) -> bool:
    """Whether walls are long enough, and those that are no neighbours apart, and not on one line unless they may."""
    n = len(walls)
    for i in range(n):
        if math.hypot(walls[i, 0] - walls[i - 1, 0], walls[i, 1] - walls[i - 1, 1]) < _SHORTEST_WALL * SUBPIXEL:
            return False
    for i in range(n):
        j = (i + 1) % n
        for k in range(i + 2, n if i else n - 1):
            after = (k + 1) % n
            sides = _side(walls[i], walls[j], walls[k]), _side(walls[i], walls[j], walls[after])
            aligned = may_align and sides[0] == 0 and sides[1] == 0
            if not aligned and cross(walls[i], walls[j], walls[k], walls[after]):
                return False
            for a, b, p in ((i, j, k), (i, j, after), (k, after, i), (k, after, j)):
                if distance(walls[p, 0], walls[p, 1], walls[a], walls[b])[0] < _APART * SUBPIXEL:
                    return False
    return True


@helper
def distance(px: float, py: float, a: IntArray | FloatArray, b: IntArray | FloatArray) -> tuple[float, float]:
    """Distance of a point from the segment a–b, and where on it, 0 … 1, the nearest point is."""
    dx, dy = float(b[0] - a[0]), float(b[1] - a[1])
    at = min(max(((px - a[0]) * dx + (py - a[1]) * dy) / (dx * dx + dy * dy), 0.0), 1.0)
    return math.hypot(px - a[0] - at * dx, py - a[1] - at * dy), at


@helper
def _side(a: IntArray, b: IntArray, p: IntArray) -> int:
    area = (b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0])
    return int64(area > 0) - int64(area < 0)


@helper
def cross(a: IntArray, b: IntArray, c: IntArray, d: IntArray) -> bool:
    """Whether the segments a–b and c–d have a point in common."""
    return _side(a, b, c) * _side(a, b, d) <= 0 and _side(c, d, a) * _side(c, d, b) <= 0
