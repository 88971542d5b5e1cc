"""The bit planes of the crack rows that arcs still need, growing below and dropped above."""

from __future__ import annotations

import numpy as np

from geoseg.arrays import ByteArray
from geoseg.polygons.trace.cracks import Cracks

Planes = tuple[ByteArray, ByteArray]
"""Of some rows: ``horizontal`` and ``vertical`` of `Cracks`."""


class Plane:
    """Rows of bits, added below and dropped above; memory is given back once the dropped ones are the larger part."""

    def __init__(self, row_bytes: int) -> None:
        self._bits = np.empty((0, row_bytes), np.uint8)
        self._begin = self._end = 0

    @property
    def rows(self) -> ByteArray:
        """The rows that are left, a view."""
        return self._bits[self._begin : self._end]

    def add(self, rows: ByteArray) -> None:
        """Add rows below."""
        if self._end + len(rows) > len(self._bits):
            kept = self.rows
            self._begin, self._end = 0, len(kept)
            self._bits = np.empty((max(len(kept) + len(rows), 2 * len(kept)), kept.shape[1]), np.uint8)
            self._bits[: len(kept)] = kept
        self._bits[self._end : self._end + len(rows)] = rows
        self._end += len(rows)

    def drop(self, count: int) -> None:
        """Forget rows above."""
        self._begin += count
        if 2 * self._begin > self._end:
            left = self._end - self._begin
            self._bits[:left] = self.rows
            self._begin, self._end = 0, left


class CrackRows:
    """Crack rows of a map from the first one needed to the last one known."""

    def __init__(self, width: int) -> None:
        self._width, self._first = width, 0
        self._horizontal, self._vertical = Plane((width + 8) // 8), Plane((width + 8) // 8)

    def append(self, planes: Planes) -> None:
        """Add the planes of further rows, (h, ceil((W + 1) / 8)) each."""
        self._horizontal.add(planes[0])
        self._vertical.add(planes[1])

    def view(self) -> Cracks:
        """The rows as they are; valid until rows are appended or dropped."""
        return Cracks(self._horizontal.rows, self._vertical.rows, self._first, self._width)

    def drop_above(self, row: int) -> None:
        """Forget corner rows above ``row``."""
        dropped = min(max(row - self._first, 0), len(self._vertical.rows))
        self._first += dropped
        for plane in (self._horizontal, self._vertical):
            plane.drop(dropped)
