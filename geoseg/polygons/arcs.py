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
import numpy.typing as npt

from geoseg.polygons._jit import njit
from geoseg.polygons.cracks import ByteArray, ValueArray

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]

# Directions are numbered clockwise as seen on the map: east 0, south 1, west 2, north 3; direction d has bit 1 << d.
_EAST, _SOUTH, _WEST, _NORTH = 1, 2, 4, 8
_NODE, _SEAM, _USED = 16, 32, 64  # further bits of a corner
_STEP_X = (1, 0, -1, 0)
_STEP_Y = (0, 1, 0, -1)
_NOWHERE = np.iinfo(np.int64).max


def _turns() -> ByteArray:
    """Direction in which an arc leaves a corner of two cracks, by 4 · (bits of the corner) + direction of arrival."""
    turns = np.zeros(64, dtype=np.uint8)
    for first in range(4):
        for second in range(4):
            if first != second:
                turns[4 * (1 << first | 1 << second) + (first ^ 2)] = second  # arriving along `first` backwards
    return turns


_TURNS = _turns()


class BandRegions(NamedTuple):
    """Regions of a band in raster order of their first pixel; number 0 is the outside.

    Attributes:
        value: Value of the pixels, (n,) int16.
        pixels: Number of pixels without the overlap row, (n,) int64.
        first: First pixel as row · W + column without the overlap row, (n,) int64; the largest int64 if there is none.
        last: Last row, (n,) int32; −1 for a region of the overlap row alone.
        confidence_sum: Sum of the confidence, (n,) int64; 0 where none was given.
        confidence_min: Smallest confidence, (n,) uint8; 255 where none was given.
        top: Region of each pixel of the overlap row, (W,) int32.
        bottom: Region of each pixel of the last row, (W,) int32.
    """

    value: ValueArray
    pixels: Int64Array
    first: Int64Array
    last: Int32Array
    confidence_sum: Int64Array
    confidence_min: ByteArray
    top: Int32Array
    bottom: Int32Array


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
    codes, label_bound, node_bound, loop_bound = _mark_corners(rows)
    regions, labels, compact, nodes, loops = _label_regions(
        rows, codes, label_bound, node_bound, loop_bound, confidence, first_row
    )
    return regions, _follow_arcs(codes, labels, compact, nodes, loops, first_row)


@njit
def _mark_corners(rows: ValueArray) -> tuple[ByteArray, int, int, int]:
    """Bits of the cracks at each corner, (h + 2, W + 1), and upper bounds of labels, nodes and loops.

    The first and last row of the result stand for the seams.
    """
    height, width = rows.shape[0] - 1, rows.shape[1] - 2
    codes = np.empty((height + 2, width + 1), dtype=np.uint8)
    codes[0] = _SEAM
    codes[height + 1] = _SEAM
    labels = width + 1  # at most, in the overlap row
    nodes = 4
    loops = 0
    for i in range(height):
        above, below, out = rows[i], rows[i + 1], codes[i + 1]
        for x in range(width + 1):
            east = np.uint8(above[x + 1] != below[x + 1])
            south = np.uint8(below[x] != below[x + 1])
            west = np.uint8(above[x] != below[x])
            north = np.uint8(above[x] != above[x + 1])
            out[x] = east | south << 1 | west << 2 | north << 3
        for x in range(width + 1):
            code = out[x]
            if code:
                labels += (code & 3) == 3
                nodes += (code & (code - 1)) & ((code & (code - 1)) - 1) != 0
                loops += code == 3
    return codes, labels, nodes, loops


@njit
def find_root(parent: Int32Array, label: int) -> int:
    """The label that stands for all those joined with this one, in a forest of labels."""
    while parent[label] != label:
        parent[label] = parent[parent[label]]
        label = parent[label]
    return label


@njit
def _label_regions(
    rows: ValueArray,
    codes: ByteArray,
    label_bound: int,
    node_bound: int,
    loop_bound: int,
    confidence: ByteArray,
    first_row: int,
) -> tuple[BandRegions, Int32Array, Int32Array, Int64Array, Int64Array]:
    """Regions of a band, provisional labels (h + 1, W + 2), their region, and the corners of nodes and possible loops.

    A pixel takes the label of its left or else its upper neighbour of equal value; where it has both and they meet in
    it for the first time, the labels are joined under the smaller one. Marks the nodes in ``codes``.
    """
    height, width = rows.shape[0] - 1, rows.shape[1] - 2
    labels = np.zeros((height + 1, width + 2), dtype=np.int32)
    parent = np.zeros(label_bound, dtype=np.int32)
    value = np.full(label_bound, np.int16(-1))
    pixels = np.zeros(label_bound, dtype=np.int64)
    first = np.full(label_bound, np.int64(_NOWHERE))
    last = np.full(label_bound, np.int32(-1))
    confidence_sum = np.zeros(label_bound, dtype=np.int64)
    confidence_min = np.full(label_bound, np.uint8(255))
    nodes = np.empty(node_bound, dtype=np.int64)
    loops = np.empty(loop_bound, dtype=np.int64)
    label_count, node_count, loop_count = 1, 0, 0
    for x in range(1, width + 1):
        if rows[0, x] < 0:
            continue
        if rows[0, x] == rows[0, x - 1]:
            labels[0, x] = labels[0, x - 1]
            continue
        parent[label_count] = label_count
        value[label_count] = rows[0, x]
        labels[0, x] = label_count
        label_count += 1
    for i in range(1, height + 1):
        y = first_row + i - 1
        corners, above, here = codes[i], labels[i - 1], labels[i]
        label = 0
        begin = 0  # of the run of pixels with this label
        for x in range(width + 1):
            code = corners[x]
            if code == 0:
                here[x + 1] = label
                continue
            if code & _SOUTH == 0:
                if code & _EAST == 0 and code & (_NORTH | _WEST):
                    a, b = find_root(parent, label), find_root(parent, int(above[x + 1]))
                    if a < b:
                        parent[b] = a
                    else:
                        parent[a] = b
            else:
                if label:
                    pixels[label] += x - begin
                    last[label] = y
                    if confidence.size:
                        total, least = np.int64(0), np.uint8(255)
                        for k in range(begin, x):
                            total += confidence[i - 1, k]
                            least = min(least, confidence[i - 1, k])
                        confidence_sum[label] += total
                        confidence_min[label] = min(confidence_min[label], least)
                begin = x
                if code & _EAST == 0:
                    label = int(above[x + 1])
                else:
                    label = label_count
                    label_count += 1
                    parent[label] = label
                    value[label] = rows[i, x + 1]
                    first[label] = np.int64(y) * width + x
            here[x + 1] = label
            fewer = code & (code - 1)  # without its lowest bit
            outer = (x == 0 or x == width) and (code & (_NORTH | _SOUTH)) != (_NORTH | _SOUTH)
            if fewer & (fewer - 1) or outer:
                corners[x] = code | _NODE
                nodes[node_count] = np.int64(i) * (width + 1) + x
                node_count += 1
            elif code == _EAST | _SOUTH:
                loops[loop_count] = np.int64(i) * (width + 1) + x
                loop_count += 1
    # Roots are the smallest labels of their regions, so numbers given in this order follow the first pixels.
    compact = np.zeros(label_count, dtype=np.int32)
    count = 1
    for label in range(1, label_count):
        root = parent[label]
        if root == label:
            number = count
            count += 1
            value[number], pixels[number] = value[label], pixels[label]
            first[number], last[number] = first[label], last[label]
            confidence_sum[number], confidence_min[number] = confidence_sum[label], confidence_min[label]
        else:
            number = compact[root]
            pixels[number] += pixels[label]
            first[number] = min(first[number], first[label])
            last[number] = max(last[number], last[label])
            confidence_sum[number] += confidence_sum[label]
            confidence_min[number] = min(confidence_min[number], confidence_min[label])
        compact[label] = number
    top = compact[labels[0, 1 : width + 1]]
    bottom = compact[labels[height, 1 : width + 1]]
    regions = BandRegions(
        value[:count].copy(),
        pixels[:count].copy(),
        first[:count].copy(),
        last[:count].copy(),
        confidence_sum[:count].copy(),
        confidence_min[:count].copy(),
        top,
        bottom,
    )
    return regions, labels, compact, nodes[:node_count], loops[:loop_count]


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
        turns += (code & 5 != 0) & (code & 10 != 0) & (code < _NODE)
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
            if code != _EAST | _SOUTH:
                continue
            flat[place] |= _NODE  # for the walk to end here
        elif code & _USED or not code & (_SEAM | 1 << direction):
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
        if code & _SEAM:
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
            if code >= _NODE:
                break
            turned = _TURNS[4 * code + direction]
            if turned != direction:
                direction = turned
                if code == _EAST | _SOUTH:
                    flat[place] = 0  # no loop starts here
                points[size, 0], points[size, 1] = x, y
                size += 1
                twice += np.int64(last_x) * y - np.int64(x) * last_y
                high, low = min(high, y), max(low, y)
                last_x, last_y = x, y
        area[arc] = twice + np.int64(last_x) * y - np.int64(x) * last_y
        extent[arc, 0], extent[arc, 1] = min(high, y), max(low, y)
        back = direction ^ 2
        if code & _SEAM:
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
        if codes[1, x] & _NORTH:
            starts[count] = 4 * x + 1
            count += 1
    for x in range(stride):
        if codes[height, x] & _SOUTH:
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
