"""Regions of a band of rows, and the corners between its pixels, found in two passes over the rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from geoseg._jit import njit
from geoseg.polygons.cracks import ByteArray, Int32Array, Int64Array, ValueArray

# Directions are numbered clockwise as seen on the map: east 0, south 1, west 2, north 3; direction d has bit 1 << d.
EAST, SOUTH, WEST, NORTH = 1, 2, 4, 8
NODE, SEAM = 16, 32  # further bits of a corner
_NOWHERE = np.iinfo(np.int64).max


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


@njit
def mark_corners(rows: ValueArray) -> tuple[ByteArray, int, int, int]:
    """Bits of the cracks at each corner, (h + 2, W + 1), and upper bounds of labels, nodes and loops.

    The first and last row of the result stand for the seams.
    """
    height, width = rows.shape[0] - 1, rows.shape[1] - 2
    codes = np.empty((height + 2, width + 1), dtype=np.uint8)
    codes[0] = SEAM
    codes[height + 1] = SEAM
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
def label_regions(
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
            if code & SOUTH == 0:
                if code & EAST == 0 and code & (NORTH | WEST):
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
                if code & EAST == 0:
                    label = int(above[x + 1])
                else:
                    label = label_count
                    label_count += 1
                    parent[label] = label
                    value[label] = rows[i, x + 1]
                    first[label] = np.int64(y) * width + x
            here[x + 1] = label
            fewer = code & (code - 1)  # without its lowest bit
            outer = (x == 0 or x == width) and (code & (NORTH | SOUTH)) != (NORTH | SOUTH)
            if fewer & (fewer - 1) or outer:
                corners[x] = code | NODE
                nodes[node_count] = np.int64(i) * (width + 1) + x
                node_count += 1
            elif code == EAST | SOUTH:
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
