"""Regions and arcs of a band of rows, found by compiled code that knows nothing beyond these rows.

A band's regions are 4-connected pixels of one value without cuts (one pass, union-find). Its arcs are followed crack by
crack: first the pieces that leave the band through its upper or lower seam, then those between nodes, then the loops
that are left. Arcs that lie wholly in the band come out in canonical direction: nodes are visited in raster order and
the directions of each in the order east, south, west, north, so an arc starts at the smaller end by (y, x, direction).
A loop without a node starts at its topmost, there leftmost corner and goes south from it: what it encloses is on the
left.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from geoseg.arrays import ByteArray, Int16Array, Int32Array, IntArray
from geoseg.map_rows import NO_CUTS
from geoseg.polygons.trace.labels import EAST, NODE, NORTH, SEAM, SOUTH, BandRegions, find_regions
from geoseg.runtime.jit import int64, njit

_USED = 64  # further bit of a corner of a seam
_STEP_X = (1, 0, -1, 0)
_STEP_Y = (0, 1, 0, -1)
# A corner row lies between two rows of labels, and corner column x between their columns x and x + 1.
_LEFT_ROW = (-1, 0, 0, -1)
_LEFT_COLUMN = (1, 1, 0, 0)


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

    Where a piece crosses a seam it has no point of its own, so a straight piece from seam to seam has none at all.
    """

    points: Int32Array  # turning corners and end nodes x, y in map coordinates, (p, 2)
    offsets: IntArray  # where each arc begins in the points, (a + 1,)
    sides: Int32Array  # region on the left and on the right, (a, 2)
    nodes: Int32Array  # node at the start and at the end, (a, 2); −1 at a seam and for a loop without a node
    keys: IntArray  # 4 · (y · (W + 1) + x) + direction of leaving, of start and end, (a, 2); −1 at a seam
    area: IntArray  # ∑ x₁ y₂ − x₂ y₁ along the points, (a,); of a loop twice its area, negative if the inside is left
    extent: Int32Array  # smallest and largest y, (a, 2)
    open_pieces: int
    top: Int32Array  # end 2 · arc or 2 · arc + 1 that crosses the upper seam in a corner column, (W + 1,); −1 for none
    bottom: Int32Array  # the same for the lower seam
    cracks: ByteArray  # bits of the directions in which cracks leave each node, (nodes,), in raster order


def trace_band(
    rows: Int16Array, confidence: ByteArray, *, first_row: int, cuts: ByteArray = NO_CUTS
) -> tuple[BandRegions, BandArcs]:
    """Regions and arcs of a band; several bands may be traced in threads at once.

    The band owns the corner rows ``first_row`` … ``first_row + h − 1``, the upper edges of its pixel rows. Cracks that
    lead down from the last one are left to the next band.

    Args:
        rows: Values of the pixels, (h + 1, W + 2) int16: first the overlap row, which is the last row of the band above
            (`OUTSIDE` at the top of the map), then the band's own rows, with an `OUTSIDE` column on either side.
            Below the last row of the map follows one of `OUTSIDE`.
        confidence: Confidence of the band's own rows, (h, W) uint8, or an empty array; may lack a row of `OUTSIDE`.
        first_row: Pixel row of ``rows[1]`` in the map.
        cuts: `MapRows.cuts` of all ``rows``, (h + 1, W) uint8, or an empty array.
    """
    codes = np.full((len(rows) + 1, rows.shape[1] - 1), SEAM, dtype=np.uint8)
    regions, labels, region, corners = find_regions(rows, cuts, codes, confidence, first_row)
    nodes, flat, stride = corners.nodes, codes.reshape(-1), codes.shape[1]
    node_at = np.empty(codes.size, dtype=np.int32)
    node_at[nodes] = np.arange(len(nodes))
    # Where arcs may start, as 4 · place + direction: at the seams, at nodes, and loops.
    upper = 4 * np.flatnonzero(codes[1] & NORTH) + 1
    lower = 4 * ((len(codes) - 1) * stride + np.flatnonzero(codes[-2] & SOUTH)) + 3
    node, direction = np.nonzero(flat[nodes][:, None] >> np.arange(4, dtype=np.uint8) & 1)
    starts = np.concatenate([upper, lower, 4 * nodes[node] + direction, 4 * corners.loops + 1])
    open_starts, loop_starts = len(upper) + len(lower), len(starts) - len(corners.loops)
    most = loop_starts // 2 + len(corners.loops)
    arcs = BandArcs(
        points=np.empty((corners.turns + len(starts), 2), dtype=np.int32),
        offsets=np.zeros(most + 1, dtype=np.int64),
        sides=np.empty((most, 2), dtype=np.int32),
        nodes=np.full((most, 2), -1, dtype=np.int32),
        keys=np.full((most, 2), -1, dtype=np.int64),
        area=np.empty(most, dtype=np.int64),
        extent=np.empty((most, 2), dtype=np.int32),
        open_pieces=0,
        top=np.full(stride, -1, dtype=np.int32),
        bottom=np.full(stride, -1, dtype=np.int32),
        cracks=flat[nodes] & np.uint8(15),
    )
    count, size, open_pieces = _follow_arcs(
        flat, first_row, labels, region, node_at, starts, open_starts, loop_starts, arcs
    )
    whole = {name: getattr(arcs, name)[:count] for name in ("sides", "nodes", "keys", "area", "extent")}
    return regions, arcs._replace(
        points=arcs.points[:size], offsets=arcs.offsets[: count + 1], open_pieces=open_pieces, **whole
    )


@njit
def _follow_arcs(
    codes: ByteArray,
    first_row: int,
    labels: Int32Array,
    region: Int32Array,
    node_at: Int32Array,
    starts: IntArray,
    open_starts: int,
    loop_starts: int,
    arcs: BandArcs,
) -> tuple[int, int, int]:
    """Fill arcs, clearing bits of what was followed; numbers of arcs, points and open pieces."""
    points, sides, keys, stride = arcs.points, arcs.sides, arcs.keys, len(arcs.top)
    arc, size, open_pieces = 0, 0, 0
    for s in range(len(starts)):
        if s == open_starts:
            open_pieces = arc
        begin, first_direction = starts[s] >> 2, starts[s] & 3
        code = codes[begin]
        if s >= loop_starts:
            if code != EAST | SOUTH:
                continue
            codes[begin] |= NODE  # for the walk to end here
        elif code & _USED or not code & (SEAM | 1 << first_direction):
            continue  # the other end of an earlier arc
        row = begin // stride
        begin_x, begin_y = begin - row * stride, first_row + row - 1
        for side in range(2):  # the right is the left after a turn to the right
            hand = (first_direction + side) & 3
            sides[arc, side] = region[labels[row + _LEFT_ROW[hand], begin_x + _LEFT_COLUMN[hand]]]
        if not code & SEAM:
            points[size, 0], points[size, 1] = begin_x, begin_y
            size += 1
        place, x, y, direction = begin, begin_x, begin_y, first_direction
        last_x, last_y, high, low, twice = x, y, y, y, 0
        while True:
            step_x, step_y = _STEP_X[direction], _STEP_Y[direction]
            place += step_y * stride + step_x
            x += step_x
            y += step_y
            code = codes[place]
            turned = int64(_TURNS[4 * code + direction]) if code < NODE else direction
            if code >= NODE or turned != direction:
                twice += last_x * y - x * last_y
                high, low = min(high, y), max(low, y)
                if code >= NODE:
                    break
                direction = turned
                if code == EAST | SOUTH:
                    codes[place] = 0  # no loop starts here
                points[size, 0], points[size, 1] = x, y
                size += 1
                last_x, last_y = x, y
        arcs.area[arc], arcs.extent[arc, 0], arcs.extent[arc, 1] = twice, high, low
        if not code & SEAM:
            points[size, 0], points[size, 1] = x, y
            size += 1
        for end in range(2):
            leaving = first_direction
            if end:
                begin, begin_x, begin_y, leaving = place, x, y, direction ^ 2
            if codes[begin] & SEAM:
                codes[begin] |= _USED
                seam = arcs.top if begin < stride else arcs.bottom
                seam[begin_x] = 2 * arc + end
            else:
                codes[begin] &= ~(1 << leaving)
                keys[arc, end] = 4 * (begin_y * stride + begin_x) + leaving
                if s < loop_starts:
                    arcs.nodes[arc, end] = node_at[begin]
        if s >= loop_starts:
            codes[place] = 0
        arc += 1
        arcs.offsets[arc] = size
    if open_starts == len(starts):
        open_pieces = arc
    return arc, size, open_pieces
