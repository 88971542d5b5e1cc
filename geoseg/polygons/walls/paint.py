"""What becomes of the pixels of a building, and of those beside it, if its walls stand."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from geoseg.arrays import BoolArray, ByteArray, Int32Array, IntArray
from geoseg.polygons.walls.shapes import STEP_X, STEP_Y, box_of, inside_of, is_simple
from geoseg.runtime.jit import helper, int64

FIXED = 2
"""Flag of a pixel that may not change; see `geoseg.polygons.walls.place` for the others."""

_LEAST_IOU = 0.7


class Building(NamedTuple):
    """A region, or several that touch, in a window of the map; values and flags change where walls are accepted."""

    values: Int32Array  # objects, (h, w)
    flags: ByteArray  # (h, w); that of a corner is at the pixel below and right of it
    parts: Int32Array  # region of each pixel, from 1; 0 outside, (h, w)
    free: BoolArray  # by object: whether its pixels may become the building's, or the building's become its
    row: int  # of the window
    column: int
    stride: int  # corners of a row of the map


class Walls(NamedTuple):
    """Walls to take the place of the rings of a building's parts; 1/256 px of the window."""

    outer: IntArray  # around all parts, (n, 2)
    corners: IntArray  # around each part, with those where walls of others end, (m, 2)
    before: IntArray  # the corner before each of these, (m, 2)
    bounds: IntArray  # where each part begins in the corners, the end last, (k + 1,)
    shared: BoolArray  # whether several parts have the corner, (m,)
    rings: IntArray  # that are replaced, by the numbers of parts, (r, 2)
    ring_bounds: IntArray  # (k + 1,)


@helper
def paint(building: Building, walls: Walls, inside: Int32Array, value: Int32Array, painted: Int32Array) -> bool:
    """Paint the window as if the walls enclosed the building; whether all pixels may change, and not too many do.

    A hole stays what it is. A lost pixel becomes what is nearest, in steps from pixel to pixel. ``inside`` becomes the
    part of each pixel, from 1 in the order of the walls, and ``value`` the objects of these.
    """
    parts, (height, width), filled = building.parts, painted.shape, np.zeros(painted.shape, dtype=np.bool_)
    for k in range(1, len(value)):
        corners = walls.corners[walls.bounds[k - 1] : walls.bounds[k]]
        if not is_simple(corners, len(value) > 2):
            return False
        enclosed, sizes = inside_of(corners, parts.shape), np.zeros(len(value), np.int64)
        part, common, either = int64(0), 0, 0
        top, left, bottom, right = box_of(corners, parts.shape)
        for y in range(top, bottom):
            for x in range(left, right):
                either += enclosed[y, x]
                if enclosed[y, x]:
                    inside[y, x] = k
                    sizes[parts[y, x]] += parts[y, x] > 0
                    if sizes[parts[y, x]] > sizes[part]:
                        part = int64(parts[y, x])
        if part == 0:
            return False
        ring = walls.rings[walls.ring_bounds[part - 1] : walls.ring_bounds[part]]
        before = inside_of(ring, parts.shape)
        top, left, bottom, right = box_of(ring, parts.shape)
        for y in range(top, bottom):
            for x in range(left, right):
                common += enclosed[y, x] and before[y, x]
                either += not enclosed[y, x] and before[y, x]
                if before[y, x]:
                    if filled[y, x]:  # a part within another, or taken twice
                        return False
                    filled[y, x] = True
                if parts[y, x] == part:
                    value[k] = painted[y, x]
        if common < _LEAST_IOU * either:
            return False
    lost, left_over = np.zeros(painted.shape, dtype=np.bool_), 0
    for y in range(height):
        for x in range(width):
            k, part = inside[y, x], parts[y, x]
            lost[y, x] = part > 0 and k == 0
            gained = k > 0 and (painted[y, x] != value[k] if part > 0 else not filled[y, x])
            if not gained and not lost[y, x]:
                continue
            if building.flags[y, x] & FIXED or (gained and part == 0 and not building.free[painted[y, x]]):
                return False
            left_over += lost[y, x]
            if gained:
                painted[y, x] = value[k]
    while left_over > 0:
        waiting, count = lost.copy(), left_over
        for y in range(1, height - 1):  # no pixel at the edge is the building's
            for x in range(1, width - 1):
                for direction in range(4 * waiting[y, x]):
                    row, column = y + STEP_Y[direction], x + STEP_X[direction]
                    if not waiting[row, column] and not inside[row, column] and building.free[painted[row, column]]:
                        painted[y, x], lost[y, x] = painted[row, column], False
                        left_over -= 1
                        break
        if left_over == count:
            return False
    return True
