"""What stands in the way of an arc that loses a vertex: the vertices of all arcs of the map, asked for by place."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from geoseg.arrays import ByteArray, IntArray
from geoseg.polygons.trace.cracks import Cracks
from geoseg.runtime.jit import helper, int64

CLEARANCE_PX = 0.25
"""Least distance between a vertex and an edge that is not its own, px."""

GONE = -1
"""In place of the vertex that follows: the vertex has been taken out."""


def vertex_plane(cracks: Cracks, first_row: int, last_row: int) -> ByteArray:
    """Where arcs turn or end in the corner rows ``first_row`` … ``last_row``, packed like `BitRows`."""
    right, left, down, up = crack_planes(cracks, first_row, last_row)
    return np.asarray((right | left) & (down | up))


def crack_planes(cracks: Cracks, first_row: int, last_row: int) -> tuple[ByteArray, ByteArray, ByteArray, ByteArray]:
    """Which cracks leave the corners of some rows: to the right, to the left, down and up; packed like `BitRows`."""
    right, down = cracks.horizontal.between(first_row, last_row), cracks.vertical.between(first_row - 1, last_row)
    return right, shift_right(right), down[1:], down[:-1]


def shift_left(plane: ByteArray) -> ByteArray:
    """The bit of column x + 1 at column x."""
    shifted = plane >> np.uint8(1)
    shifted[:, :-1] |= plane[:, 1:] << np.uint8(7)
    return np.asarray(shifted)


def shift_right(plane: ByteArray) -> ByteArray:
    """The bit of column x − 1 at column x."""
    shifted = plane << np.uint8(1)
    shifted[:, 1:] |= plane[:, :-1] >> np.uint8(7)
    return np.asarray(shifted)


@helper
def scatter(x: int, y: int) -> int:
    """A number for a place that scatters neighbours: multiples of the golden ratio and of the plastic number.

    Places that have the same number are at least 4 · 10⁹ apart, so on a map each has its own.
    """
    return x * -7046029254386353131 + y * -4521708957497675121


class Surroundings(NamedTuple):
    """What is around the arcs that are simplified."""

    obstacles: ByteArray  # all vertices of all arcs, those to be simplified included; a bit per lattice point, x from 0
    first_row: int  # lattice row of ``obstacles[0]``; the plane covers the rows of all arcs
    clearance2: float  # square of the distance that new edges keep from vertices, lattice units, below 1
    guard: ByteArray | None  # lattice points from which new edges keep a whole unit, a plane like ``obstacles``


class Line(NamedTuple):
    """An arc while it is simplified."""

    x: IntArray
    y: IntArray
    following: IntArray  # the vertex after each that is left, or `GONE`
    table: IntArray  # hash table of the vertices
    used: int  # part of the table in use


@helper
def hash_vertices(scattered: IntArray, size: int, table: IntArray) -> int:
    """Enter the `scatter` of an arc's vertices; the part of the table in use."""
    used = 4
    while used < 2 * size:
        used *= 2
    table[:used] = -1
    for i in range(size):
        at = (scattered[i] >> 20) & (used - 1)
        while table[at] >= 0:
            at = (at + 1) & (used - 1)
        table[at] = i
    return used


@helper
def _may_be_passed(px: int, py: int, line: Line) -> bool:
    """Whether a vertex found on the map is one of the arc's own that is gone."""
    at = (scatter(px, py) >> 20) & (line.used - 1)
    while line.table[at] >= 0:
        i = line.table[at]
        if line.x[i] == px and line.y[i] == py:
            return bool(line.following[i] == GONE)
        at = (at + 1) & (line.used - 1)
    return False


@helper
def is_blocked(a: int, v: int, b: int, line: Line, around: Surroundings, guard: ByteArray | None) -> bool:
    """Whether another vertex is in the closed triangle a, v, b or too near to the segment a–b, or a guarded point.

    ``around.guard`` comes as a parameter of its own, for what it asks for to be compiled only where it is given.
    """
    x, y, first_row = line.x, line.y, around.first_row
    widest2 = around.clearance2 if guard is None else 1.0
    ax, ay, vx, vy, bx, by = x[a], y[a], x[v], y[v], x[b], y[b]
    left, right = min(ax, vx, bx), max(ax, vx, bx)
    top, bottom = min(ay, vy, by), max(ay, vy, by)
    if guard is None and right - left <= 1 and bottom - top <= 1:
        return False  # the fourth corner of a unit square is 0.7 from the diagonal
    dx, dy = bx - ax, by - ay
    length2 = dx * dx + dy * dy
    # Along a row the line a–v–b–a is crossed at these slopes, and the clearance reaches this far; 0 on level sides.
    slope_av = (vx - ax) / (vy - ay) if vy != ay else 0.0
    slope_vb = (bx - vx) / (by - vy) if by != vy else 0.0
    slope_ab = dx / dy if dy != 0 else 0.0
    reach = math.sqrt(widest2 * length2) / abs(dy) if dy != 0 else 0.0
    wide = right - left >= 8
    begin, end = left, right
    for row in range(top, bottom + 1):
        if wide:  # else looking at the whole rectangle is quicker
            low, high = float(right), float(left)
            if min(ay, vy) <= row <= max(ay, vy):
                at = ax + (row - ay) * slope_av
                low, high = min(low, at), max(high, at)
                if ay == vy:
                    low, high = min(low, float(vx)), max(high, float(vx))
            if min(vy, by) <= row <= max(vy, by):
                at = vx + (row - vy) * slope_vb
                low, high = min(low, at), max(high, at)
                if vy == by:
                    low, high = min(low, float(bx)), max(high, float(bx))
            if min(ay, by) <= row <= max(ay, by):
                at = ax + (row - ay) * slope_ab
                low, high = min(low, at - reach), max(high, at + reach)
                if ay == by:
                    low, high = min(low, float(bx)), max(high, float(bx))
            begin, end = max(math.ceil(low - 1e-6), left), min(math.floor(high + 1e-6), right)
        for byte in range(begin >> 3, (end >> 3) + 1):
            bits, guarded = int64(around.obstacles[row - first_row, byte]), 0
            if guard is not None:
                guarded = int64(guard[row - first_row, byte])
                bits |= guarded
            column = byte << 3
            if column < begin:
                bits &= 0xFF << (begin - column)
            if column + 7 > end:
                bits &= (1 << (end - column + 1)) - 1
            column -= 1
            while bits != 0:
                column += 1
                here, is_guarded = bits & 1, guarded >> (column & 7) & 1
                bits >>= 1
                if here == 0:
                    continue
                if (column == ax and row == ay) or (column == vx and row == vy) or (column == bx and row == by):
                    continue
                clearance2 = 1.0 if is_guarded else around.clearance2
                if not _is_in_the_way(column, row, ax, ay, vx, vy, bx, by, length2, clearance2):
                    continue
                if is_guarded or not _may_be_passed(column, row, line):
                    return True
    return False


@helper
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
