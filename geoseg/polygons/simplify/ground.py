"""Where an arc may run when its neighbours move as well: its own ground, which no other arc's ground overlaps.

The guard of `geoseg.polygons.simplify.guard` keeps an arc away from vertices of the raster, so it holds among arcs
whose vertices are vertices of the raster. Regularized walls leave the raster's vertices. Near them, therefore, every
arc stays on ground that is its own whatever the others do. The ground is made of unit squares, each around a corner of
the raster:

- the square of a corner that the arc passes;
- the square of a corner without cracks, if the arc's own are the only cracks up to `EXCLUSIVE_PX` around;
- of the square of a node where the arc ends, the quarter towards the arc's own crack.

Lines keep `MARGIN` from the border of their ground, so two arcs keep twice of it between them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from geoseg.arrays import Int32Array, IntArray
from geoseg.polygons.simplify.guard import scatter
from geoseg.polygons.trace.cracks import SUBPIXEL, Cracks, crack_count, is_set
from geoseg.runtime.jit import helper

EXCLUSIVE_PX = 2
"""How far around a corner without cracks there are no other arcs if it is to be part of an arc's ground, px."""

MARGIN = SUBPIXEL // 8
"""Distance that lines keep from the border of their ground, 1/256 px: half of `CLEARANCE_PX`."""

ROWS_AROUND = 8
"""Rows of the raster above and below an arc that decide about its ground."""

_HALF = SUBPIXEL // 2
_EMPTY = -1
_STEEPEST = (_HALF - MARGIN) / (_HALF + MARGIN)  # slope to its crack of a line that leaves a node on its own quarter


@helper
def path_length(points: Int32Array, begin: int, end: int) -> int:
    """Number of cracks of the arc ``points[begin:end]``."""
    length = 0
    for i in range(begin, end - 1):
        length += abs(points[i + 1, 0] - points[i, 0]) + abs(points[i + 1, 1] - points[i, 1])
    return length


@helper
def path_table_size(length: int) -> int:
    """Size of a hash table for the corners that an arc of some length passes."""
    size = 16
    while size < 2 * length:
        size *= 2
    return size


class Track(NamedTuple):
    """An arc along the lattice, and what decides about its ground."""

    corners: Int32Array  # corners x, y where it turns, its ends included, (n, 2)
    closed: bool  # a loop without a node
    cracks: Cracks
    passed: IntArray  # hash table of the corners that it passes
    used: int  # part of the table in use


@helper
def track(corners: Int32Array, closed: bool, cracks: Cracks, table: IntArray) -> Track:
    """An arc with all corners of the raster that it passes, except nodes, in the table."""
    used = path_table_size(path_length(corners, 0, len(corners)))
    table[:used] = _EMPTY
    for i in range(len(corners) - 1):
        x, y = int(corners[i, 0]), int(corners[i, 1])
        dx, dy = corners[i + 1, 0] - x, corners[i + 1, 1] - y
        for k in range(0 if closed or i > 0 else 1, abs(dx + dy)):
            _enter(x + k * int(np.sign(dx)), y + k * int(np.sign(dy)), table, used)
    return Track(corners, closed, cracks, table, used)


@helper
def _enter(x: int, y: int, table: IntArray, used: int) -> None:
    at = (scatter(x, y) >> 20) & (used - 1)
    while table[at] != _EMPTY:
        at = (at + 1) & (used - 1)
    table[at] = (y << 32) | x


@helper
def _is_passed(x: int, y: int, arc: Track) -> bool:
    if x < 0 or y < 0:
        return False
    at = (scatter(x, y) >> 20) & (arc.used - 1)
    while arc.passed[at] != _EMPTY:
        if arc.passed[at] == (y << 32) | x:
            return True
        at = (at + 1) & (arc.used - 1)
    return False


@helper
def _is_own(x: int, y: int, arc: Track) -> bool:
    """Whether the square of a corner that is no end of the arc is part of its ground."""
    if _is_passed(x, y, arc):
        return True
    found = False
    for j in range(y - EXCLUSIVE_PX, y + EXCLUSIVE_PX + 1):
        for i in range(x - EXCLUSIVE_PX, x + EXCLUSIVE_PX + 1):
            if crack_count(arc.cracks, i, j) > 0:
                if not _is_passed(i, j, arc):
                    return False
                found = True
    return found


@helper
def _leaves_well(dx: int, dy: int, crack_x: int, crack_y: int) -> bool:
    """Whether a line from a node goes through the quarter of the node's square that its own crack goes through."""
    return bool(abs(dx * crack_y - dy * crack_x) < _STEEPEST * (dx * crack_x + dy * crack_y))


@helper
def strays(x0: int, y0: int, x1: int, y1: int, at_start: bool, at_end: bool, only_near: bool, arc: Track) -> bool:
    """Whether a line from (x0, y0) to (x1, y1), 1/256 px, leaves the ground of its arc near regularized classes.

    ``at_start`` and ``at_end`` say that it begins or ends at a node of the arc, ``only_near`` that leaving the
    surroundings of the regularized classes counts as straying; otherwise anything goes beyond them.
    """
    corners, n = arc.corners, len(arc.corners)
    reach = _HALF + MARGIN
    for row in range(-((reach - min(y0, y1)) // SUBPIXEL), (max(y0, y1) + reach) // SUBPIXEL + 1):
        begin, end = float(x0), float(x1)
        if y0 != y1:
            enter, leave = (SUBPIXEL * row - reach - y0) / (y1 - y0), (SUBPIXEL * row + reach - y0) / (y1 - y0)
            begin = x0 + min(max(min(enter, leave), 0.0), 1.0) * (x1 - x0)
            end = x0 + min(max(max(enter, leave), 0.0), 1.0) * (x1 - x0)
        left, right = min(begin, end) - reach, max(begin, end) + reach
        for column in range(math.ceil(left / SUBPIXEL), math.floor(right / SUBPIXEL) + 1):
            if not is_set(arc.cracks.near, arc.cracks, column, row):
                if only_near:
                    return True
                continue
            x, y = column * SUBPIXEL, row * SUBPIXEL
            if at_start and x == x0 and y == y0:
                crack_x, crack_y = np.sign(corners[1, 0] - corners[0, 0]), np.sign(corners[1, 1] - corners[0, 1])
                if not _leaves_well(x1 - x0, y1 - y0, int(crack_x), int(crack_y)):
                    return True
            elif at_end and x == x1 and y == y1:
                crack_x = np.sign(corners[n - 2, 0] - corners[n - 1, 0])
                crack_y = np.sign(corners[n - 2, 1] - corners[n - 1, 1])
                if not _leaves_well(x0 - x1, y0 - y1, int(crack_x), int(crack_y)):
                    return True
            elif not _is_own(column, row, arc):
                return True
    return False
