"""Arcs without the staircase of pixels: every corner where an arc turns is cut off.

A cut runs from the middle of the last crack before the corner to the middle of the first crack after it, so it lies
within half a pixel of its corner. Cuts of different corners meet in the middle of a crack at most, and that crack
belongs to a single arc: smoothed arcs cross as little as the raster's. Walls along rows and columns stay where they
are, the ends of an arc stay too, and a 45° stair becomes one straight line. Vertices are then on the lattice of half
pixels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from geoseg.polygons._jit import njit
from geoseg.polygons.cracks import Cracks
from geoseg.polygons.guard import crack_planes

BoolArray = npt.NDArray[np.bool_]
ByteArray = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]
PointArray = npt.NDArray[np.int32]


@njit
def cut_corners(points: PointArray, offsets: IntArray, closed: BoolArray) -> tuple[PointArray, IntArray]:
    """Arcs whose turning corners are replaced by the middles of the cracks beside them.

    Args:
        points: Corners of the raster x, y where arcs turn and end, (n, 2); a closed arc repeats its first one.
        offsets: Where each arc begins in ``points``, (a + 1,).
        closed: The arc is a loop without a node, (a,).

    Returns:
        Points in half pixels, (m, 2), and where each arc begins in them, (a + 1,). The ends of open arcs are theirs as
        before, a closed arc again repeats its first point.
    """
    cut = np.empty((2 * len(points), 2), dtype=np.int32)
    cut_offsets = np.zeros_like(offsets)
    size = 0
    for arc in range(len(closed)):
        begin, end = offsets[arc], offsets[arc + 1]
        first = size
        if not closed[arc]:
            cut[size, 0], cut[size, 1] = 2 * points[begin, 0], 2 * points[begin, 1]
            size += 1
        for i in range(begin, end - 1):
            # From here to the next corner: a middle after this corner, and one before the next.
            x, y = 2 * points[i, 0], 2 * points[i, 1]
            next_x, next_y = 2 * points[i + 1, 0], 2 * points[i + 1, 1]
            step_x, step_y = np.sign(next_x - x), np.sign(next_y - y)
            after = closed[arc] or i > begin
            before = closed[arc] or i + 1 < end - 1
            if after:
                cut[size, 0], cut[size, 1] = x + step_x, y + step_y
                size += 1
            if before and not (after and abs(next_x - x) + abs(next_y - y) == 2):
                cut[size, 0], cut[size, 1] = next_x - step_x, next_y - step_y
                size += 1
        if closed[arc]:
            cut[size, 0], cut[size, 1] = cut[first, 0], cut[first, 1]
        else:
            cut[size, 0], cut[size, 1] = 2 * points[end - 1, 0], 2 * points[end - 1, 1]
        size += 1
        cut_offsets[arc + 1] = size
    return cut[:size].copy(), cut_offsets


def middle_plane(cracks: Cracks, first_row: int, last_row: int) -> ByteArray:
    """Where smoothed arcs have vertices: nodes, and the middles of the cracks beside turning corners.

    Args:
        cracks: The raster's cracks.
        first_row: First corner row to look at.
        last_row: Last corner row to look at.

    Returns:
        A bit per point of the lattice of half pixels, rows ``2 * first_row`` … ``2 * last_row``, x from 0, packed like
        the planes of `Cracks`.
    """
    right, left, down, up = crack_planes(cracks, first_row, last_row)
    turns = (right ^ left) & (down ^ up)
    nodes = (right & left & (down | up)) | (down & up & (right | left))
    turns_at_right = turns >> np.uint8(1)
    turns_at_right[:, :-1] |= turns[:, 1:] << np.uint8(7)
    plane = np.empty((2 * len(turns) - 1, 2 * turns.shape[1]), dtype=np.uint8)
    plane[::2] = _spread(nodes) | (_spread(right & (turns | turns_at_right)) << np.uint8(1))
    plane[1::2] = _spread(down[:-1] & (turns[:-1] | turns[1:]))
    return plane


def _spread(plane: ByteArray) -> ByteArray:
    """The bit of column x at column 2x, and nothing between."""
    return np.asarray(_SPREAD[plane].view(np.uint8).reshape(len(plane), -1))


_SPREAD = np.array([sum(((byte >> k) & 1) << (2 * k) for k in range(8)) for byte in range(256)], dtype="<u2")
