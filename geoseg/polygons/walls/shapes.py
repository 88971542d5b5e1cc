"""Rings of corners and polygons of walls in a window of the map.

A corner (x, y) is the lattice point between pixels (y − 1, x − 1) and (y, x) of the window. Directions are numbered
clockwise as seen on the map: east 0, south 1, west 2, north 3. Walls are corners in 1/256 px.
"""

from __future__ import annotations

import math

import numpy as np

from geoseg.arrays import BoolArray, FloatArray, Int32Array, IntArray
from geoseg.polygons.trace.cracks import SUBPIXEL
from geoseg.runtime.forest import find_root, join
from geoseg.runtime.jit import helper, int64

_SHORTEST_WALL, _APART = 2.0, 1.0  # px, of a wall, and between walls that are no neighbours
STEP_X, STEP_Y = np.array([1, 0, -1, 0]), np.array([0, 1, 0, -1])


@helper
def outline(own: BoolArray) -> IntArray:
    """Corners around a region from crack to crack, first south from the topmost, there leftmost one; (n, 2)."""
    y = 0
    while not own[y].any():
        y += 1
    x = int64(np.argmax(own[y]))
    first_x, first_y, direction = x, y, 1
    ring = [(x, y)]
    while True:
        x, y = x + STEP_X[direction], y + STEP_Y[direction]
        if x == first_x and y == first_y:
            return np.array(ring)
        ring.append((x, y))
        # The region is on the left: right if that is still its own pixel, too, else straight on, else left.
        for turn in (1, 0, 3):
            ahead = (direction + turn) & 3
            if pixel(own, x, y, ahead, 0) and not pixel(own, x, y, ahead, 1):
                direction = ahead
                break


@helper
def pixel(plane: BoolArray | Int32Array, x: int, y: int, direction: int, side: int) -> int:
    """The pixel on the left (0) or right (1) of the crack that leaves a corner in a direction."""
    hand = (direction + side) & 3
    return int64(plane[y - (hand == 0 or hand == 3), x - (hand > 1)])


@helper
def cracks_at(values: Int32Array, x: int, y: int) -> IntArray:
    """Directions of the cracks at a corner."""
    found = np.empty(4, dtype=np.int64)
    count = 0
    for direction in range(4):
        if pixel(values, x, y, direction, 0) != pixel(values, x, y, direction, 1):
            found[count] = direction
            count += 1
    return found[:count]


@helper
def direction_at(ring: IntArray, i: int) -> int:
    """Direction in which a ring leaves its corner i."""
    following = ring[(i + 1) % len(ring)]
    dx, dy = following[0] - ring[i, 0], following[1] - ring[i, 1]
    return int64((1 - dx) if dx else (2 - dy))


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
    for row in range(shape[0]):
        for column in range(1, shape[1]):
            inside[row, column] ^= inside[row, column - 1]
    return inside


@helper
def enclosed(ring: IntArray) -> int:
    """Pixels that a ring of corners encloses."""
    twice = 0
    for i in range(len(ring)):
        twice += ring[i, 0] * ring[i - 1, 1] - ring[i - 1, 0] * ring[i, 1]
    return abs(twice) // 2


@helper
def pieces(values: Int32Array) -> int:
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
def at_the_edge(plane: BoolArray) -> bool:
    """Whether any pixel at the edge of the window is set."""
    return bool(plane[0].any() or plane[-1].any() or plane[:, 0].any() or plane[:, -1].any())


@helper
def is_simple(walls: IntArray) -> bool:
    """Whether walls are long enough, and those that are no neighbours apart."""
    n = len(walls)
    for i in range(n):
        j = (i + 1) % n
        if math.hypot(walls[j, 0] - walls[i, 0], walls[j, 1] - walls[i, 1]) < _SHORTEST_WALL * SUBPIXEL:
            return False
        for k in range(i + 2, n if i else n - 1):
            after = (k + 1) % n
            if cross(walls[i], walls[j], walls[k], walls[after]):
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
    return int64(np.sign((b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0])))


@helper
def cross(a: IntArray, b: IntArray, c: IntArray, d: IntArray) -> bool:
    """Whether the segments a–b and c–d have a point in common."""
    return _side(a, b, c) * _side(a, b, d) <= 0 and _side(c, d, a) * _side(c, d, b) <= 0
