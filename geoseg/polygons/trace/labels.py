"""Regions of a band of rows, and the corners between its pixels, found in two passes over the rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from geoseg.arrays import ByteArray, Int16Array, Int32Array, IntArray
from geoseg.map_rows import CUT_EAST, CUT_SOUTH
from geoseg.runtime.forest import join
from geoseg.runtime.jit import int64, njit

# Directions are numbered clockwise as seen on the map: east 0, south 1, west 2, north 3; direction d has bit 1 << d.
EAST, SOUTH, WEST, NORTH = 1, 2, 4, 8
NODE, SEAM = 16, 32  # further bits of a corner
_NOWHERE = np.iinfo(np.int64).max


class BandRegions(NamedTuple):
    """Regions of a band in raster order of their first pixel, (n,) each; number 0 is the outside."""

    value: Int16Array
    pixels: IntArray  # number of pixels without the overlap row
    first: IntArray  # first pixel as row · W + column without the overlap row; the largest int64 if there is none
    last: Int32Array  # last row; −1 for a region of the overlap row alone
    confidence_sum: IntArray  # 0 without confidence
    confidence_min: ByteArray  # 255 without confidence
    top: Int32Array  # region of each pixel of the overlap row, (W,)
    bottom: Int32Array  # region of each pixel of the last row, (W,)


class Corners(NamedTuple):
    """Corners of a band where arcs may begin, as places in its flattened ``codes``."""

    nodes: IntArray
    loops: IntArray  # where a loop without a node may begin
    turns: int  # upper bound of the turning corners


@njit
def _mark_corners(rows: Int16Array, cuts: ByteArray, codes: ByteArray) -> tuple[int, int, int, int]:
    """Write the bits of the cracks at each corner; upper bounds of labels, nodes, loops and turning corners."""
    height, width = rows.shape[0] - 1, rows.shape[1] - 2
    labels = width + 1  # at most, in the overlap row
    nodes = 4
    loops = 0
    turns = 0
    for i in range(height):
        above, below, out = rows[i], rows[i + 1], codes[i + 1]
        for x in range(width + 1):
            east = np.uint8(above[x + 1] != below[x + 1])
            south = np.uint8(below[x] != below[x + 1])
            west = np.uint8(above[x] != below[x])
            north = np.uint8(above[x] != above[x + 1])
            out[x] = east | south << 1 | west << 2 | north << 3
        if cuts.size:
            for x in range(width):
                above_cut, below_cut = cuts[i, x], cuts[i + 1, x]
                if above_cut & CUT_EAST:
                    out[x + 1] |= NORTH
                if above_cut & CUT_SOUTH:
                    out[x] |= EAST
                    out[x + 1] |= WEST
                if below_cut & CUT_EAST:
                    out[x + 1] |= SOUTH
        for x in range(width + 1):
            code = out[x]
            if code:
                labels += (code & 3) == 3
                nodes += (code & (code - 1)) & ((code & (code - 1)) - 1) != 0
                loops += code == 3
                turns += (code & 5 != 0) & (code & 10 != 0)
    return labels, nodes, loops, turns


def find_regions(
    rows: Int16Array, cuts: ByteArray, codes: ByteArray, confidence: ByteArray, first_row: int
) -> tuple[BandRegions, Int32Array, Int32Array, Corners]:
    """Regions of a band, provisional labels (h + 1, W + 2), their region, and the corners where arcs may begin.

    Takes what `trace_band` takes, and ``codes``, (h + 2, W + 1), for the bits of the cracks at each corner and of the
    nodes. Its first and last row stand for the seams, and are left as they are.
    """
    most, junctions, loop_corners, turns = _mark_corners(rows, cuts, codes)
    labels, parent = np.zeros(rows.shape, dtype=np.int32), np.zeros(most, dtype=np.int32)
    regions = BandRegions(
        value=np.full(most, -1, dtype=np.int16),
        pixels=np.zeros(most, dtype=np.int64),
        first=np.full(most, _NOWHERE, dtype=np.int64),
        last=np.full(most, -1, dtype=np.int32),
        confidence_sum=np.zeros(most, dtype=np.int64),
        confidence_min=np.full(most, 255, dtype=np.uint8),
        top=labels[0, 1:-1],
        bottom=labels[-1, 1:-1],
    )
    corners = Corners(np.empty(junctions, dtype=np.int64), np.empty(loop_corners, dtype=np.int64), turns)
    count, nodes, loops = _label_regions(rows, cuts, codes, confidence, first_row, labels, parent, regions, corners)
    columns = {name: getattr(regions, name)[:count].copy() for name in regions._fields[:-2]}
    regions = regions._replace(top=parent[regions.top], bottom=parent[regions.bottom], **columns)
    return regions, labels, parent, Corners(corners.nodes[:nodes], corners.loops[:loops], turns)


@njit
def _label_regions(
    rows: Int16Array,
    cuts: ByteArray,
    codes: ByteArray,
    confidence: ByteArray,
    first_row: int,
    labels: Int32Array,
    parent: Int32Array,
    regions: BandRegions,
    corners: Corners,
) -> tuple[int, int, int]:
    """Fill the arrays; ``parent`` becomes the region of each label. Numbers of regions, nodes and loops.

    A pixel takes the label of its left or else its upper neighbour of equal value; where it has both and they meet in
    it for the first time, the labels are joined under the smaller one.
    """
    height, width = rows.shape[0] - 1, rows.shape[1] - 2
    value, pixels, first, last = regions.value, regions.pixels, regions.first, regions.last
    confidence_sum, confidence_min = regions.confidence_sum, regions.confidence_min
    label_count, node_count, loop_count = 1, 0, 0
    for x in range(1, width + 1):
        if rows[0, x] < 0:
            continue
        if rows[0, x] == rows[0, x - 1] and not (cuts.size and cuts[0, x - 2] & CUT_EAST):
            labels[0, x] = labels[0, x - 1]
            continue
        parent[label_count] = label_count
        value[label_count] = rows[0, x]
        labels[0, x] = label_count
        label_count += 1
    for i in range(1, height + 1):
        y = first_row + i - 1
        row, above, here = codes[i], labels[i - 1], labels[i]
        label = 0
        begin = 0  # of the run of pixels with this label
        for x in range(width + 1):
            code = row[x]
            if code == 0:
                here[x + 1] = label
                continue
            if code & SOUTH == 0:
                if code & EAST == 0 and code & (NORTH | WEST):
                    join(parent, label, int64(above[x + 1]))
            else:
                if label:
                    pixels[label] += x - begin
                    last[label] = y
                    if confidence.size:
                        total, least = int64(0), np.uint8(255)
                        for k in range(begin, x):
                            total += confidence[i - 1, k]
                            least = min(least, confidence[i - 1, k])
                        confidence_sum[label] += total
                        confidence_min[label] = min(confidence_min[label], least)
                begin = x
                if code & EAST == 0:
                    label = int64(above[x + 1])
                else:
                    label = label_count
                    label_count += 1
                    parent[label] = label
                    value[label] = rows[i, x + 1]
                    first[label] = int64(y) * width + x
            here[x + 1] = label
            fewer = code & (code - 1)  # without its lowest bit
            outer = (x == 0 or x == width) and (code & (NORTH | SOUTH)) != (NORTH | SOUTH)
            if fewer & (fewer - 1) or outer:
                row[x] = code | NODE
                corners.nodes[node_count] = int64(i) * (width + 1) + x
                node_count += 1
            elif code == EAST | SOUTH:
                corners.loops[loop_count] = int64(i) * (width + 1) + x
                loop_count += 1
    # Roots are the smallest labels of their regions, so numbers given in this order follow the first pixels.
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
            number = int64(parent[root])  # a root comes before its labels, so this is its region's number
            pixels[number] += pixels[label]
            first[number] = min(first[number], first[label])
            last[number] = max(last[number], last[label])
            confidence_sum[number] += confidence_sum[label]
            confidence_min[number] = min(confidence_min[number], confidence_min[label])
        parent[label] = number
    return count, node_count, loop_count
