"""What stands in the way of an arc that loses a vertex: the vertices of all arcs of the map, asked for by place."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from geoseg.polygons._jit import njit
from geoseg.polygons.cracks import Cracks

CLEARANCE_PX = 0.25
"""Least distance between a vertex and an edge that is not its own, px."""

GONE = -1
"""In place of the vertex that follows: the vertex has been taken out."""

LINEAR_SEARCH = 16
"""Arcs up to this number of vertices are searched one by one instead of through a hash table."""

ByteArray = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]
IndexArray = npt.NDArray[np.int32]

_FOREIGN, _OWN_GONE, _OWN_KEPT = 0, 1, 2


def vertex_plane(cracks: Cracks, first_row: int, last_row: int) -> ByteArray:
    """Where arcs turn or end in the corner rows ``first_row`` … ``last_row``, packed like the planes of `Cracks`."""
    right, left, down, up = crack_planes(cracks, first_row, last_row)
    return np.asarray((right | left) & (down | up))


def crack_planes(cracks: Cracks, first_row: int, last_row: int) -> tuple[ByteArray, ByteArray, ByteArray, ByteArray]:
    """Which cracks leave the corners of some rows: to the right, to the left, down and up; packed like `Cracks`."""
    begin, end = first_row - cracks.first_row, last_row + 1 - cracks.first_row
    right, down = cracks.horizontal[begin:end], cracks.vertical[begin:end]
    up = cracks.vertical[begin - 1 : end - 1] if begin > 0 else np.vstack([np.zeros_like(down[:1]), down[:-1]])
    return right, shift_right(right), down, up


def shift_right(plane: ByteArray) -> ByteArray:
    """The bit of column x − 1 at column x."""
    shifted = plane << np.uint8(1)
    shifted[:, 1:] |= plane[:, :-1] >> np.uint8(7)
    return np.asarray(shifted)


@njit
def scatter(x: int, y: int) -> int:
    """A number for a place that scatters neighbours: multiples of the golden ratio and of the plastic number."""
    return int(x * -7046029254386353131 + y * -4521708957497675121)


@njit
def fill_table(x: IntArray, y: IntArray, size: int, table: IndexArray, used: int) -> None:
    """Hash the places of an arc's vertices, so that a vertex found on the map is known as its own."""
    table[:used] = -1
    for i in range(size):
        at = (scatter(x[i], y[i]) >> 20) & (used - 1)
        while table[at] >= 0:
            at = (at + 1) & (used - 1)
        table[at] = i


@njit
def _owner(
    px: int, py: int, x: IntArray, y: IntArray, size: int, following: IndexArray, table: IndexArray, used: int
) -> int:
    """Whether a vertex found on the map is another arc's, or the own arc's and gone, or kept."""
    if used == 0:
        for i in range(size):
            if x[i] == px and y[i] == py:
                return _OWN_GONE if following[i] == GONE else _OWN_KEPT
        return _FOREIGN
    at = (scatter(px, py) >> 20) & (used - 1)
    while table[at] >= 0:
        i = table[at]
        if x[i] == px and y[i] == py:
            return _OWN_GONE if following[i] == GONE else _OWN_KEPT
        at = (at + 1) & (used - 1)
    return _FOREIGN


@njit
def is_blocked(
    a: int,
    v: int,
    b: int,
    x: IntArray,
    y: IntArray,
    size: int,
    following: IndexArray,
    table: IndexArray,
    used: int,
    obstacles: ByteArray,
    first_row: int,
    clearance2: float,
) -> bool:
    """Whether another vertex is in the closed triangle a, v, b or too near to the segment a–b."""
    ax, ay, vx, vy, bx, by = x[a], y[a], x[v], y[v], x[b], y[b]
    left, right = min(ax, vx, bx), max(ax, vx, bx)
    top, bottom = min(ay, vy, by), max(ay, vy, by)
    if right - left <= 1 and bottom - top <= 1:
        return False  # the fourth corner of a unit square is 0.7 from the diagonal
    dx, dy = bx - ax, by - ay
    length2 = dx * dx + dy * dy
    reach = math.sqrt(clearance2 * length2) / abs(dy) if dy != 0 else 0.0  # of the clearance, along a row
    for row in range(top, bottom + 1):
        low, high = float(right), float(left)
        for side in range(3):
            if side == 0:
                px, py, qx, qy = ax, ay, vx, vy
            elif side == 1:
                px, py, qx, qy = vx, vy, bx, by
            else:
                px, py, qx, qy = ax, ay, bx, by
            if py == row:
                low, high = min(low, float(px)), max(high, float(px))
            if qy == row:
                low, high = min(low, float(qx)), max(high, float(qx))
            if min(py, qy) <= row <= max(py, qy) and py != qy:
                at = px + (row - py) * (qx - px) / (qy - py)
                spread = reach if side == 2 else 0.0
                low, high = min(low, at - spread), max(high, at + spread)
        begin, end = max(math.ceil(low - 1e-6), left), min(math.floor(high + 1e-6), right)
        for byte in range(begin >> 3, (end >> 3) + 1):
            bits = int(obstacles[row - first_row, byte])
            if bits == 0:
                continue
            for bit in range(8):
                if not (bits >> bit) & 1:
                    continue
                column = (byte << 3) + bit
                if column < begin or column > end:
                    continue
                if (column == ax and row == ay) or (column == vx and row == vy) or (column == bx and row == by):
                    continue
                if not _is_in_the_way(column, row, ax, ay, vx, vy, bx, by, length2, clearance2):
                    continue
                if _owner(column, row, x, y, size, following, table, used) != _OWN_GONE:
                    return True
    return False


@njit
def _is_in_the_way(
    px: int, py: int, ax: int, ay: int, vx: int, vy: int, bx: int, by: int, length2: int, clearance2: float
) -> bool:
    """Whether a point is in the closed triangle a, v, b, given that its rows and columns are, or too near to a–b."""
    beside = (bx - ax) * (py - ay) - (by - ay) * (px - ax)  # twice the area of a, b, p
    along = (bx - ax) * (px - ax) + (by - ay) * (py - ay)
    # Beyond a and b nothing is near, lattice points are a whole unit apart.
    if 0 < along < length2 and float(beside) * float(beside) < clearance2 * length2:
        return True
    first = (vx - ax) * (py - ay) - (vy - ay) * (px - ax)
    second = (bx - vx) * (py - vy) - (by - vy) * (px - vx)
    third = -beside
    return bool((first >= 0 and second >= 0 and third >= 0) or (first <= 0 and second <= 0 and third <= 0))
