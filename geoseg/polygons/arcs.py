"""Regions and arcs of a band of rows, found by compiled code that knows nothing beyond these rows.

A band's regions are 4-connected pixels of one value (one pass, union-find). Its arcs are followed crack by crack: first
the pieces that leave the band through its upper or lower seam, then those between nodes, then the loops that are left.
Arcs that lie wholly in the band come out in canonical direction: nodes are visited in raster order and the directions
of each in the order east, south, west, north, so an arc starts at the smaller end by (y, x, direction). A loop without
a node starts at its topmost, there leftmost corner and goes south from it: what it encloses is on the left.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from geoseg._jit import njit
from geoseg.polygons.cracks import ByteArray, Int32Array, Int64Array, ValueArray
from geoseg.polygons.labels import EAST, NODE, NORTH, SEAM, SOUTH, BandRegions, label_regions, mark_corners

_USED = 64  # further bit of a corner of a seam
_STEP_X = (1, 0, -1, 0)
_STEP_Y = (0, 1, 0, -1)


def _turns() -> ByteArray:
    """Direction in which an arc leaves a corner of two cracks, by 4 · (bits of the corner) + direction of arrival."""
    turns = np.zeros(64, dtype=np.uint8)
    for first in range(4):
        for second in range(4):
            if first != second:
                turns[4 * (1 << first | 1 << second) + (first ^ 2)] = second  # arriving along `first` backwards
    return turns


_TURNS = _turns()


class BandArcs(NamedTuple):
    """Arcs of a band: the open pieces, which cross a seam, come first, whole arcs after them.

    Attributes:
        points: Turning corners and end nodes x, y in map coordinates, (p, 2) int32. Where a piece crosses a seam it has
            no point of its own, so a straight piece from seam to seam has none at all.
        offsets: Where each arc begins in ``points``, (a + 1,) int64.
        sides: Region on the left and on the right, (a, 2) int32.
        nodes: Node at the start and at the end, (a, 2) int32; −1 at a seam and for a loop without a node.
        keys: Place of start and end as 4 · (y · (W + 1) + x) + direction in which the arc leaves it, (a, 2) int64; −1
            at a seam.
        area: ∑ x₁ y₂ − x₂ y₁ along the points, (a,) int64; of a loop that is twice its area, and negative where the
            inner side is on the left.
        extent: Smallest and largest y, (a, 2) int32.
        open_pieces: How many of the arcs are open pieces.
        top: End 2 · arc (its start) or 2 · arc + 1 that crosses the upper seam in a corner column, (W + 1,) int32; −1
            where there is no crack.
        bottom: The same for the lower seam.
        cracks: Bits of the directions in which cracks leave each node, (nodes,) uint8; nodes are in raster order.
    """

    points: Int32Array
    offsets: Int64Array
    sides: Int32Array
    nodes: Int32Array
    keys: Int64Array
    area: Int64Array
    extent: Int32Array
    open_pieces: int
    top: Int32Array
    bottom: Int32Array
    cracks: ByteArray


def trace_band(rows: ValueArray, confidence: ByteArray, *, first_row: int) -> tuple[BandRegions, BandArcs]:
    """Regions and arcs of a band; several bands may be traced in threads at once.

    The band owns the corner rows ``first_row`` … ``first_row + h − 1``, the upper edges of its pixel rows. Cracks that
    lead down from the last one are left to the next band.

    Args:
        rows: Values of the pixels, (h + 1, W + 2) int16: first the overlap row, which is the last row of the band above
            (`OUTSIDE` at the top of the map), then the band's own rows, with an `OUTSIDE` column on either side.
            Below the last row of the map follows one of `OUTSIDE`.
        confidence: Confidence of the band's own rows, (h, W) uint8, or an empty array; may lack a row of `OUTSIDE`.
        first_row: Pixel row of ``rows[1]`` in the map.

    Returns:
        Regions and arcs of the band.
    """
    codes, label_bound, node_bound, loop_bound = mark_corners(rows)
    regions, labels, compact, nodes, loops = label_regions(
        rows, codes, label_bound, node_bound, loop_bound, confidence, first_row
    )
    return regions, _follow_arcs(codes, labels, compact, nodes, loops, first_row)


@njit
def _follow_arcs(
    codes: ByteArray, labels: Int32Array, compact: Int32Array, nodes: Int64Array, loops: Int64Array, first_row: int
) -> BandArcs:
    """Follow all cracks of a band; clears the bits of those it has followed in ``codes``."""
    stride = codes.shape[1]
    flat = codes.ravel()
    starts, open_starts, cracks = _starts(codes, nodes, loops)
    loop_starts = len(starts) - len(loops)
    node_at = np.empty(flat.size, dtype=np.int32)
    for k in range(len(nodes)):
        node_at[nodes[k]] = k
    turns = 0
    for place in range(stride, flat.size - stride):
        code = flat[place]
        turns += (code & 5 != 0) & (code & 10 != 0) & (code < NODE)
    points = np.empty((turns + len(starts), 2), dtype=np.int32)
    bound = loop_starts // 2 + len(loops)
    offsets = np.zeros(bound + 1, dtype=np.int64)
    sides = np.empty((bound, 2), dtype=np.int32)
    arc_nodes = np.full((bound, 2), np.int32(-1))
    keys = np.full((bound, 2), np.int64(-1))
    area = np.zeros(bound, dtype=np.int64)
    extent = np.empty((bound, 2), dtype=np.int32)
    top = np.full(stride, np.int32(-1))
    bottom = np.full(stride, np.int32(-1))
    arc, size, open_pieces = 0, 0, 0
    for s in range(len(starts)):
        if s == open_starts:
            open_pieces = arc
        place, direction = starts[s] >> 2, starts[s] & 3
        code = flat[place]
        if s >= loop_starts:
            if code != EAST | SOUTH:
                continue
            flat[place] |= NODE  # for the walk to end here
        elif code & _USED or not code & (SEAM | 1 << direction):
            continue  # the other end of an earlier arc
        row = place // stride
        x, y = place - row * stride, first_row + row - 1
        # A corner row lies between two rows of labels, and corner column x between their columns x and x + 1.
        if direction == 0:
            left, right = labels[row - 1, x + 1], labels[row, x + 1]
        elif direction == 1:
            left, right = labels[row, x + 1], labels[row, x]
        elif direction == 2:
            left, right = labels[row, x], labels[row - 1, x]
        else:
            left, right = labels[row - 1, x], labels[row - 1, x + 1]
        sides[arc, 0], sides[arc, 1] = compact[left], compact[right]
        high, low, twice = y, y, np.int64(0)
        if code & SEAM:
            flat[place] |= _USED
            if row == 0:
                top[x] = 2 * arc
            else:
                bottom[x] = 2 * arc
        else:
            flat[place] &= ~(1 << direction)
            keys[arc, 0] = 4 * (np.int64(y) * stride + x) + direction
            arc_nodes[arc, 0] = -1 if s >= loop_starts else node_at[place]
            points[size, 0], points[size, 1] = x, y
            size += 1
        last_x, last_y = x, y
        while True:
            step_x, step_y = _STEP_X[direction], _STEP_Y[direction]
            place += step_y * stride + step_x
            x += step_x
            y += step_y
            code = flat[place]
            if code >= NODE:
                break
            turned = _TURNS[4 * code + direction]
            if turned != direction:
                direction = turned
                if code == EAST | SOUTH:
                    flat[place] = 0  # no loop starts here
                points[size, 0], points[size, 1] = x, y
                size += 1
                twice += np.int64(last_x) * y - np.int64(x) * last_y
                high, low = min(high, y), max(low, y)
                last_x, last_y = x, y
        area[arc] = twice + np.int64(last_x) * y - np.int64(x) * last_y
        extent[arc, 0], extent[arc, 1] = min(high, y), max(low, y)
        back = direction ^ 2
        if code & SEAM:
            flat[place] |= _USED
            if place < stride:
                top[x] = 2 * arc + 1
            else:
                bottom[x] = 2 * arc + 1
        else:
            flat[place] &= ~(1 << back)
            keys[arc, 1] = 4 * (np.int64(y) * stride + x) + back
            arc_nodes[arc, 1] = -1 if s >= loop_starts else node_at[place]
            points[size, 0], points[size, 1] = x, y
            size += 1
        if s >= loop_starts:
            flat[place] = 0
        arc += 1
        offsets[arc] = size
    if open_starts == len(starts):
        open_pieces = arc
    return BandArcs(
        points[:size],
        offsets[: arc + 1],
        sides[:arc],
        arc_nodes[:arc],
        keys[:arc],
        area[:arc],
        extent[:arc],
        open_pieces,
        top,
        bottom,
        cracks,
    )


@njit
def _starts(codes: ByteArray, nodes: Int64Array, loops: Int64Array) -> tuple[Int64Array, int, ByteArray]:
    """Where arcs may start as 4 · place + direction: seams (how many), nodes, loops; and the bits of the nodes."""
    height, stride = codes.shape[0] - 2, codes.shape[1]
    flat = codes.ravel()
    lower = (height + 1) * stride
    starts = np.empty(2 * stride + 4 * len(nodes) + len(loops), dtype=np.int64)
    cracks = np.empty(len(nodes), dtype=np.uint8)
    count = 0
    for x in range(stride):
        if codes[1, x] & NORTH:
            starts[count] = 4 * x + 1
            count += 1
    for x in range(stride):
        if codes[height, x] & SOUTH:
            starts[count] = 4 * (lower + x) + 3
            count += 1
    open_starts = count
    for k in range(len(nodes)):
        cracks[k] = flat[nodes[k]] & 15
        for direction in range(4):
            if cracks[k] >> direction & 1:
                starts[count] = 4 * nodes[k] + direction
                count += 1
    for k in range(len(loops)):
        starts[count] = 4 * loops[k] + 1
        count += 1
    return starts[:count], open_starts, cracks
