"""The bit planes of the crack rows that arcs still need, growing below and dropped above."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from geoseg.polygons.trace.cracks import NEAR_PX, ByteArray, Cracks, ValueArray
from geoseg.polygons.trace.tables import grown
from geoseg.runtime.jit import njit


class _Plane(NamedTuple):
    bits: ByteArray


class CrackRows:
    """Crack rows of a map from the first one needed to the last one known.

    Args:
        width: Width of the map, px.
        near: Whether to keep the plane `Cracks.near`. It lags 3 rows behind the others.
    """

    def __init__(self, width: int, *, near: bool = False) -> None:
        self._width, self._near_wanted = width, near
        row_bytes = (width + 8) // 8
        # A table each: where arcs span the whole map they grow large, and only one at a time is there twice.
        self._horizontal, self._vertical, self._near = (_Plane(np.empty((0, row_bytes), np.uint8)) for _ in range(3))
        self._first = self._begin = self._end = self._near_end = 0
        # Pixel rows y − 4 … y + 3 are near corner row y; there are none above the map.
        self._recent = np.zeros((NEAR_PX, row_bytes), np.uint8)

    def append(self, horizontal: ByteArray, vertical: ByteArray, near_pixels: ByteArray) -> None:
        """Add the planes of further rows, (h, ceil((W + 1) / 8)) each; ``near_pixels`` from `near_pixel_rows`."""
        count = len(horizontal)
        self._horizontal = grown(self._horizontal, self._end, self._end + count)
        self._horizontal.bits[self._end : self._end + count] = horizontal
        self._vertical = grown(self._vertical, self._end, self._end + count)
        self._vertical.bits[self._end : self._end + count] = vertical
        self._end += count
        if self._near_wanted:
            self._append_near(near_pixels)

    def finish(self) -> None:
        """Complete the plane ``near`` after the last row, below which there are no pixels."""
        if self._near_wanted:
            self._append_near(np.zeros((NEAR_PX - 1, self._recent.shape[1]), np.uint8))

    def _append_near(self, pixels: ByteArray) -> None:
        rows = np.concatenate([self._recent, pixels])
        self._recent = rows[-(2 * NEAR_PX - 1) :]
        if len(rows) < 2 * NEAR_PX:
            return
        rows = rows[:-1] | rows[1:]
        rows = rows[:-2] | rows[2:]
        rows = rows[:-4] | rows[4:]  # each the union of 8 pixel rows
        self._near = grown(self._near, self._near_end, self._near_end + len(rows))
        self._near.bits[self._near_end : self._near_end + len(rows)] = rows
        self._near_end += len(rows)

    def view(self) -> Cracks:
        """The rows as they are; valid until rows are appended or dropped."""
        horizontal, vertical = (plane.bits[self._begin : self._end] for plane in (self._horizontal, self._vertical))
        near = self._near.bits[self._begin : self._near_end] if self._near_wanted else np.empty((0, 0), np.uint8)
        return Cracks(horizontal, vertical, near, self._first, self._width)

    def drop_above(self, row: int) -> None:
        """Forget corner rows above ``row``; memory is given back once they are the larger part."""
        end = self._near_end if self._near_wanted else self._end
        dropped = min(max(row - self._first, 0), end - self._begin)
        self._first += dropped
        self._begin += dropped
        if 2 * self._begin > self._end:
            for plane in (self._horizontal, self._vertical):
                plane.bits[: self._end - self._begin] = plane.bits[self._begin : self._end]
            if self._near_wanted:
                near = self._near.bits
                near[: self._near_end - self._begin] = near[self._begin : self._near_end]
                self._near_end -= self._begin
            self._end -= self._begin
            self._begin = 0


@njit
def near_pixel_rows(rows: ValueArray, wanted: npt.NDArray[np.bool_]) -> ByteArray:
    """Corner columns within `NEAR_PX` of a wanted pixel of the same row, (h, ceil((W + 1) / 8)) bit planes.

    Args:
        rows: Values of pixels framed by one column on either side, (h, W + 2).
        wanted: Whether a value from 0 on is wanted.
    """
    height, width = rows.shape[0], rows.shape[1] - 2
    out = np.zeros((height, (width + 8) // 8), dtype=np.uint8)
    for i in range(height):
        for x in range(width):
            if rows[i, x + 1] >= 0 and wanted[rows[i, x + 1]]:
                for corner in range(max(x + 1 - NEAR_PX, 0), min(x + NEAR_PX, width) + 1):
                    out[i, corner >> 3] |= 1 << (corner & 7)
    return out
