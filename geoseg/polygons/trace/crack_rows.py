"""The bit planes of the crack rows that arcs still need, growing below and dropped above."""

from __future__ import annotations

import numpy as np

from geoseg.arrays import BoolArray, ByteArray, Int16Array
from geoseg.polygons.trace.cracks import NEAR_PX, Cracks

Planes = tuple[ByteArray, ByteArray, ByteArray]
"""Of some rows: ``horizontal`` and ``vertical`` of `Cracks`, and `near_pixels`."""


class _Plane:
    """Rows of bits, added below and dropped above; memory is given back once the dropped ones are the larger part."""

    def __init__(self, row_bytes: int) -> None:
        self._bits = np.empty((0, row_bytes), np.uint8)
        self._begin = self._end = 0

    @property
    def rows(self) -> ByteArray:
        return self._bits[self._begin : self._end]

    def add(self, rows: ByteArray) -> None:
        if self._end + len(rows) > len(self._bits):
            kept = self.rows
            self._begin, self._end = 0, len(kept)
            self._bits = np.empty((max(len(kept) + len(rows), 2 * len(kept)), kept.shape[1]), np.uint8)
            self._bits[: len(kept)] = kept
        self._bits[self._end : self._end + len(rows)] = rows
        self._end += len(rows)

    def drop(self, count: int) -> None:
        self._begin += count
        if 2 * self._begin > self._end:
            left = self._end - self._begin
            self._bits[:left] = self.rows
            self._begin, self._end = 0, left


class CrackRows:
    """Crack rows of a map from the first one needed to the last one known.

    Args:
        width: Width of the map, px.
        near: Whether to keep the plane `Cracks.near`. It lags 3 rows behind the others.
    """

    def __init__(self, width: int, *, near: bool = False) -> None:
        self._width, self._first, self._is_near = width, 0, near
        row_bytes = (width + 8) // 8
        self._horizontal, self._vertical, self._near = (_Plane(row_bytes) for _ in range(3))
        # Pixel rows y − 4 … y + 3 are near corner row y; there are none above the map.
        self._recent = np.zeros((NEAR_PX, row_bytes), np.uint8)

    def append(self, planes: Planes) -> None:
        """Add the planes of further rows, (h, ceil((W + 1) / 8)) each."""
        horizontal, vertical, near = planes
        self._horizontal.add(horizontal)
        self._vertical.add(vertical)
        self._append_near(near)

    def finish(self) -> None:
        """Complete the plane ``near`` after the last row, below which there are no pixels."""
        self._append_near(np.zeros((NEAR_PX - 1, self._recent.shape[1]), np.uint8))

    def _append_near(self, pixels: ByteArray) -> None:
        if self._is_near:
            rows = np.concatenate([self._recent, pixels])
            self._recent = rows[-(2 * NEAR_PX - 1) :]
            if len(rows) >= 2 * NEAR_PX:
                self._near.add(_any_of_eight(rows))

    def view(self) -> Cracks:
        """The rows as they are; valid until rows are appended or dropped."""
        return Cracks(self._horizontal.rows, self._vertical.rows, self._near.rows, self._first, self._width)

    def drop_above(self, row: int) -> None:
        """Forget corner rows above ``row``."""
        planes = [self._horizontal, self._vertical, *([self._near] if self._is_near else [])]
        dropped = min(max(row - self._first, 0), len(planes[-1].rows))
        self._first += dropped
        for plane in planes:
            plane.drop(dropped)


def _any_of_eight(rows: ByteArray) -> ByteArray:
    """The union of 8 consecutive rows, from each row on that has so many."""
    rows = rows[:-1] | rows[1:]
    rows = rows[:-2] | rows[2:]
    return rows[:-4] | rows[4:]


def near_pixels(rows: Int16Array, wanted: BoolArray) -> ByteArray:
    """Corner columns within `NEAR_PX` of a wanted pixel of the same row, (h, ceil((W + 1) / 8)) bit planes.

    Args:
        rows: Values of pixels framed by one column on either side, (h, W + 2).
        wanted: Whether a value is wanted, `OUTSIDE` by its index −1.
    """
    pixels = np.pad(wanted[rows[:, 1:-1]].view(np.uint8), ((0, 0), (NEAR_PX, NEAR_PX)))
    return np.packbits(_any_of_eight(pixels.T).T, axis=1, bitorder="little")
