"""The sides between pixels of different value or object, one bit each, and the arcs that run along them.

A corner (x, y) is a lattice point between pixels: x = 0 … W counts columns from the left, y = 0 … H rows from the top,
y points down. A crack is the unit side between two 4-neighbours of different value, or with a cut between them; all
that lies outside the map has one value of its own, so the outline of the map is made of cracks as well. A node is a
corner where three or four cracks meet, or an outer corner of the map. An arc follows cracks from node to node, or is a
closed loop without a node; it is stored as its turning corners.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np

from geoseg.arrays import BoolArray, ByteArray, Int16Array, Int32Array, IntArray
from geoseg.map_rows import CUT_EAST, CUT_SOUTH, NO_CUTS

SUBPIXEL = 256
"""Finished points are integers in 1/256 px: lattice point x is 256 · x."""

OUTSIDE = -1
"""The value of everything outside the map, in int16 rows."""

LEFT_OUT = 256
"""The value, in int16 rows, of pixels whose class is to become no polygon. To all else they are ground like any."""


class BitRows:
    """A bit for each corner of some rows of a map, which are added below and dropped above.

    Rows are packed, (h, ceil((W + 1) / 8)): the bit of column x is ``x & 7`` of byte ``x >> 3``.
    """

    def __init__(self, width: int) -> None:
        self._row_bytes, self._first_row = (width + 8) // 8, 0
        self._blocks = deque[ByteArray]()

    def add(self, rows: ByteArray) -> None:
        """Add rows below."""
        self._blocks.append(rows)

    def drop_above(self, row: int) -> None:
        """Nothing above a row will be asked for again."""
        while self._blocks and self._first_row + len(self._blocks[0]) <= row:
            self._first_row += len(self._blocks.popleft())

    def between(self, first_row: int, last_row: int) -> ByteArray:
        """The bits of some rows, the last one included; 0 in rows that are not there."""
        found = np.zeros((last_row + 1 - first_row, self._row_bytes), np.uint8)
        at = self._first_row - first_row
        for block in self._blocks:
            if -len(block) < at < len(found):
                found[max(at, 0) : at + len(block)] = block[max(-at, 0) : len(found) - at]
            at += len(block)
        return found


class Cracks(NamedTuple):
    """The cracks of a map, as far as they are known and needed."""

    horizontal: BitRows  # there is a crack from corner (x, y) to (x + 1, y)
    vertical: BitRows  # there is a crack from corner (x, y) to (x, y + 1)


class ArcBatch(NamedTuple):
    """Complete arcs along the lattice, on their way to be simplified or smoothed.

    Every arc is there once and always walked in the same direction, so that what happens to it depends on the map
    alone.
    """

    points: Int32Array  # corners x, y where an arc turns or ends, (n, 2); a loop without a node repeats its first one
    offsets: IntArray  # where each arc begins in the points, (a + 1,)
    closed: BoolArray  # the arc is a loop without a node, (a,)
    least: ByteArray  # interior points that have to stay for its rings to keep an area, (a,); mostly 0
    keys: IntArray  # of both ends, see `geoseg.polygons.trace.arcs.BandArcs`, (a, 2)


def pack_cracks(rows: Int16Array, cuts: ByteArray = NO_CUTS) -> tuple[ByteArray, ByteArray]:
    """The bit planes of the corner rows between consecutive pixel rows.

    Args:
        rows: Values with one `OUTSIDE` column on either side, (h + 1, W + 2) int16. A whole map is framed above and
            below as well, and gives its H + 1 corner rows.
        cuts: Cuts between these pixels, (h + 1, W) uint8, or an empty array.

    Returns:
        Rows of ``horizontal`` and ``vertical`` of `Cracks`; corner row i lies between pixel rows i and i + 1 of
        ``rows``, and its vertical cracks stand below it.
    """
    horizontal = rows[:-1, 1:] != rows[1:, 1:]
    vertical = rows[1:, :-1] != rows[1:, 1:]
    if cuts.size:
        horizontal[:, :-1] |= cuts[:-1] & CUT_SOUTH > 0
        vertical[:, 1:] |= cuts[1:] & CUT_EAST > 0
    return np.packbits(horizontal, axis=1, bitorder="little"), np.packbits(vertical, axis=1, bitorder="little")
