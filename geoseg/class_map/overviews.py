"""Halve the rows of a raster for its overviews, count and check them; 255 is nodata.

GDAL makes overviews by mode in several times the time, after the raster is complete. Here they are made as rows arrive.
"""

import numpy as np
import numpy.typing as npt

from geoseg.arrays import ByteArray, FloatArray, IntArray
from geoseg.classes import NODATA
from geoseg.runtime.jit import helper, int64, njit


@njit
def halve(rows: ByteArray, by_mean: bool) -> ByteArray:
    """The most common value of every 2 × 2 pixels, or their mean, without nodata (255); 255 where all are nodata.

    Takes (B, h, W) uint8 from an even row of the raster on, gives (B, ⌈h / 2⌉, ⌈W / 2⌉). Where W or h is odd, the last
    column or row is taken twice.
    """
    bands, height, width = rows.shape
    halved = np.empty((bands, (height + 1) // 2, (width + 1) // 2), dtype=np.uint8)
    for band in range(bands):
        for row in range(halved.shape[1]):
            above, below = rows[band, 2 * row], rows[band, min(2 * row + 1, height - 1)]
            for col in range(halved.shape[2]):
                left, right = 2 * col, min(2 * col + 1, width - 1)
                four = above[left], above[right], below[left], below[right]
                halved[band, row, col] = _mean(four) if by_mean else _mode(four)
    return halved


@helper
def _mode(values: tuple[np.uint8, np.uint8, np.uint8, np.uint8]) -> np.uint8:
    """The most common valid value, of equally common ones the first."""
    a, b, c, d = values
    if a == b == c == d:
        return a
    winner, most = np.uint8(NODATA), 0
    for value in values:
        votes = int64(value == a) + int64(value == b) + int64(value == c) + int64(value == d)
        if value != NODATA and votes > most:
            winner, most = value, votes
    return winner


@helper
def _mean(values: tuple[np.uint8, np.uint8, np.uint8, np.uint8]) -> np.uint8:
    """The mean of the valid values, rounded half up."""
    total, valid = 0, 0
    for value in values:
        if value != NODATA:
            total += int(value)
            valid += 1
    return np.uint8((2 * total + valid) // (2 * valid) if valid else NODATA)


@njit
def add_checksum(rows: ByteArray, first_row: int, first_col: int, total: npt.NDArray[np.uint64]) -> None:
    """Add to ``total``, (1,) uint64, a number that depends on every value of (B, h, W) uint8 and on its place.

    Parts may come in any order and of any shape: written by rows, a raster can be checked by blocks.
    """
    bands, height, width = rows.shape
    for band in range(bands):
        for row in range(height):
            # The line's number times an odd constant, its bits mixed; then another odd constant per column.
            line = np.uint64((first_row + row) * 65536 + band + 1) * np.uint64(0x9E3779B97F4A7C15)
            line ^= line >> np.uint64(29)
            line_total = np.uint64(0)
            for col in range(width):
                place = line + np.uint64(first_col + col) * np.uint64(0xD1B54A32D192ED03)
                line_total += (place ^ (place >> np.uint64(32))) * np.uint64(rows[band, row, col])
            total[0] += line_total


@njit
def count_values(rows: ByteArray, counts: IntArray) -> None:
    """Add to ``counts``, (256,) int64, how often every value occurs in (h, W) uint8.

    `numpy.bincount` first makes 8-byte integers of all pixels: 30 times slower, and 8 times the memory.
    """
    height, width = rows.shape
    for row in range(height):
        for col in range(width):
            counts[rows[row, col]] += 1


def class_areas(ids: ByteArray, row_areas: FloatArray, classes: int) -> FloatArray:
    """Area of each class (K,) in rows of class ids (h, W); ``row_areas`` (h,) has the area of a pixel in each row."""
    counts = np.zeros((len(ids), 256), dtype=np.int64)
    for row, found in zip(ids, counts, strict=True):
        count_values(row[None], found)
    return np.asarray(row_areas @ counts[:, :classes])
