"""The sides between pixels of different value, one bit each, and the arcs that run along them.

A corner (x, y) is a lattice point between pixels: x = 0 … W counts columns from the left, y = 0 … H rows from the top,
y points down. A crack is the unit side between two 4-neighbours of different value; all that lies outside the map has
one value of its own, so the outline of the map is made of cracks as well. A node is a corner where three or four cracks
meet, or an outer corner of the map. An arc follows cracks from node to node, or is a closed loop without a node; it is
stored as its turning corners.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from geoseg.runtime.jit import helper

SUBPIXEL = 256
"""Finished points are integers in 1/256 px: lattice point x is 256 · x."""

OUTSIDE = -1
"""The value of everything outside the map, in int16 rows."""

NODATA = 255
"""The value of pixels that belong to no class."""

LEFT_OUT = 256
"""The value, in int16 rows, of pixels whose class is to become no polygon. To all else they are ground like any."""

NEAR_PX = 4
"""How far `Cracks.near` reaches from a pixel of the classes asked for, px."""

ByteArray = npt.NDArray[np.uint8]
ValueArray = npt.NDArray[np.int16]
Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]


class Cracks(NamedTuple):
    """Which sides of some rows of corners are cracks; bit ``x & 7`` of byte ``x >> 3`` belongs to corner column x.

    Attributes:
        horizontal: Crack from corner (x, y) to (x + 1, y), (rows, ceil((W + 1) / 8)) uint8.
        vertical: Crack from corner (x, y) to (x, y + 1), same shape.
        near: A pixel of the classes asked for lies within `NEAR_PX` of the corner, that is in columns x − 4 … x + 3
            and rows y − 4 … y + 3; same shape, or (0, 0) where no classes were asked for.
        first_row: Corner row y of index 0.
        width: Width of the map W, px.
    """

    horizontal: ByteArray
    vertical: ByteArray
    near: ByteArray
    first_row: int
    width: int


class ArcBatch(NamedTuple):
    """Complete arcs along the lattice, on their way to be simplified or smoothed.

    Every arc is there once and always walked in the same direction, so that what happens to it depends on the map
    alone. "Left" and "right" are the walker's hands as seen on the map, y down: walking in the direction of growing x,
    the left side is the row above.

    Attributes:
        points: Corners x, y where an arc turns, its two end nodes included, (n, 2) int32. A loop without a node repeats
            its first point at the end.
        offsets: Where each arc begins in ``points``, (a + 1,) int64; the last entry is n.
        closed: The arc is a loop without a node, (a,) bool.
        least: Interior points that have to stay for its rings to keep an area, (a,) uint8; 0 for ordinary arcs.
        left: Value of the pixels on the left, (a,) int16; −1 outside, 255 nodata.
        right: Value of the pixels on the right, (a,) int16.
        region_left: Number of the region on the left, (a,) int64; two arcs of a batch with the same number bound the
            same region. Numbers mean nothing beyond the batch.
        region_right: Number of the region on the right, (a,) int64.
    """

    points: Int32Array
    offsets: Int64Array
    closed: npt.NDArray[np.bool_]
    least: npt.NDArray[np.uint8]
    left: ValueArray
    right: ValueArray
    region_left: Int64Array
    region_right: Int64Array


@helper
def has_horizontal(cracks: Cracks, x: int, y: int) -> bool:
    """Whether the side from corner (x, y) to (x + 1, y) is a crack; False outside the stored rows and columns."""
    row = y - cracks.first_row
    if row < 0 or row >= cracks.horizontal.shape[0] or x < 0 or x >= cracks.width:
        return False
    return bool((cracks.horizontal[row, x >> 3] >> (x & 7)) & 1)


@helper
def has_vertical(cracks: Cracks, x: int, y: int) -> bool:
    """Whether the side from corner (x, y) to (x, y + 1) is a crack; False outside the stored rows and columns."""
    row = y - cracks.first_row
    if row < 0 or row >= cracks.vertical.shape[0] or x < 0 or x > cracks.width:
        return False
    return bool((cracks.vertical[row, x >> 3] >> (x & 7)) & 1)


@helper
def crack_count(cracks: Cracks, x: int, y: int) -> int:
    """Number of cracks that meet at a corner, 0 … 4."""
    along = int(has_horizontal(cracks, x, y)) + int(has_horizontal(cracks, x - 1, y))
    return along + int(has_vertical(cracks, x, y)) + int(has_vertical(cracks, x, y - 1))


@helper
def is_node(cracks: Cracks, x: int, y: int) -> bool:
    """Whether arcs end at a corner: three or four cracks meet there, or it is an outer corner of the map."""
    count = crack_count(cracks, x, y)
    if count == 2 and (x == 0 or x == cracks.width):
        # Cracks run along the whole left and right outline, so only an outer corner lacks one of its vertical two.
        return has_vertical(cracks, x, y) != has_vertical(cracks, x, y - 1)
    return count >= 3


@helper
def is_vertex(cracks: Cracks, x: int, y: int) -> bool:
    """Whether an arc turns or ends at a corner; False where none passes or one passes straight."""
    right, left = has_horizontal(cracks, x, y), has_horizontal(cracks, x - 1, y)
    down, up = has_vertical(cracks, x, y), has_vertical(cracks, x, y - 1)
    return (right or left) and (down or up)


@helper
def is_near(cracks: Cracks, x: int, y: int) -> bool:
    """Whether a corner is near a pixel of the classes asked for; False outside the stored rows, or without classes."""
    row = y - cracks.first_row
    if row < 0 or row >= cracks.near.shape[0] or x < 0 or x > cracks.width:
        return False
    return bool((cracks.near[row, x >> 3] >> (x & 7)) & 1)


def pack_cracks(rows: ValueArray) -> tuple[ByteArray, ByteArray]:
    """The bit planes of the corner rows between consecutive pixel rows.

    Args:
        rows: Values with one `OUTSIDE` column on either side, (h + 1, W + 2) int16. A whole map is framed above and
            below as well, and gives its H + 1 corner rows.

    Returns:
        ``horizontal`` and ``vertical`` of `Cracks`, (h, ceil((W + 1) / 8)) uint8 each; corner row i lies between pixel
        rows i and i + 1 of ``rows``, and its vertical cracks stand below it.
    """
    horizontal = rows[:-1, 1:] != rows[1:, 1:]
    vertical = rows[1:, :-1] != rows[1:, 1:]
    return np.packbits(horizontal, axis=1, bitorder="little"), np.packbits(vertical, axis=1, bitorder="little")
