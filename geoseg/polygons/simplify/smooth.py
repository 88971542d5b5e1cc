"""Arcs without the staircase of pixels: the corners of its steps are cut off.

A corner belongs to a step if the arc runs a single pixel from it to the next one, in one direction at least; a straight
border in whatever direction has only such corners, and where it runs two pixels and more both ways there is a corner on
the ground. A cut goes from the middle of the last crack before the corner to the middle of the first crack after it, so
it lies within half a pixel of its corner. Cuts of different corners meet in the middle of a crack at most, and that
crack belongs to a single arc: smoothed arcs cross as little as the raster's. Walls along rows and columns stay where
they are, the ends of an arc stay too, and a 45° stair becomes one straight line. Vertices are then on the lattice of
half pixels.
"""

from __future__ import annotations

import numpy as np

from geoseg.arrays import BoolArray, ByteArray, Int32Array, IntArray
from geoseg.polygons.simplify.guard import crack_planes, shift_left, shift_right
from geoseg.polygons.trace.cracks import Cracks
from geoseg.runtime.jit import njit


@njit
def cut_corners(points: Int32Array, offsets: IntArray, closed: BoolArray) -> tuple[Int32Array, IntArray]:
    """Arcs whose corners at steps are replaced by the middles of the cracks beside them.

    Takes columns of `ArcBatch`; returns points in half pixels and offsets alike.
    """
    cut = np.empty((2 * len(points), 2), dtype=np.int32)
    cut_offsets = np.zeros_like(offsets)
    size = 0
    for arc in range(len(closed)):
        begin, end, first = offsets[arc], offsets[arc + 1], size
        last = end - 1  # a closed arc's first corner again
        for i in range(begin, last if closed[arc] else end):
            x, y = 2 * points[i, 0], 2 * points[i, 1]
            before = last - 1 if i == begin else i - 1
            dx, dy = points[before, 0] - points[i, 0], points[before, 1] - points[i, 1]
            after = min(i + 1, last)
            next_dx, next_dy = points[after, 0] - points[i, 0], points[after, 1] - points[i, 1]
            pinned = not closed[arc] and i in (begin, last)
            if pinned or (abs(dx + dy) > 1 and abs(next_dx + next_dy) > 1):
                cut[size, 0], cut[size, 1] = x, y
                size += 1
                continue
            x_before, y_before = x + np.sign(dx), y + np.sign(dy)
            # The cut before may have come as far as the middle of the same crack.
            if size == first or cut[size - 1, 0] != x_before or cut[size - 1, 1] != y_before:
                cut[size, 0], cut[size, 1] = x_before, y_before
                size += 1
            cut[size, 0], cut[size, 1] = x + np.sign(next_dx), y + np.sign(next_dy)
            size += 1
        if closed[arc] and (cut[size - 1, 0] != cut[first, 0] or cut[size - 1, 1] != cut[first, 1]):
            cut[size, 0], cut[size, 1] = cut[first, 0], cut[first, 1]
            size += 1
        cut_offsets[arc + 1] = size
    return cut[:size].copy(), cut_offsets


def smoothed_vertex_plane(cracks: Cracks, first_row: int, last_row: int) -> ByteArray:
    """Where arcs turn or end once their corners are cut, in rows ``2 * first_row`` … ``2 * last_row`` of half pixels.

    Packed like `BitRows`, x from 0; looks two rows further up and one row further down.
    """
    right, left, down, up = crack_planes(cracks, first_row - 1, last_row + 1)
    vertices: ByteArray = (right | left) & (down | up)
    turns: ByteArray = (right ^ left) & (down ^ up)
    beside = (right & shift_left(vertices)) | (left & shift_right(vertices))
    beside[1:] |= up[1:] & vertices[:-1]
    beside[:-1] |= down[:-1] & vertices[1:]
    steps: ByteArray = turns & beside
    inside = slice(1, -1)
    across = (right & (steps | shift_left(steps)))[inside]
    upright = down[1:-2] & (steps[1:-2] | steps[2:-1])
    plane = np.empty((2 * len(across) - 1, 2 * across.shape[1]), dtype=np.uint8)
    plane[::2] = _spread((vertices & ~steps)[inside]) | (_spread(across) << np.uint8(1))
    plane[1::2] = _spread(upright)
    return plane


def guard_of_halves(guard: ByteArray) -> ByteArray:
    """The half pixels beside guarded corners, in rows like those of `smoothed_vertex_plane`."""
    across = _spread(guard)
    across |= shift_left(across) | shift_right(across)
    plane = np.repeat(across, 2, axis=0)[:-1]
    plane[1::2] |= across[1:]
    return plane


def _spread(plane: ByteArray) -> ByteArray:
    """The bit of column x at column 2x, and nothing between."""
    return np.asarray(_SPREAD[plane].view(np.uint8).reshape(len(plane), 2 * plane.shape[1]))


_SPREAD = np.array([sum(((byte >> k) & 1) << (2 * k) for k in range(8)) for byte in range(256)], dtype="<u2")
