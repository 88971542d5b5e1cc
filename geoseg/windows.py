"""Cover a scene with equal, overlapping windows. Integers only: no pixels, no coordinates."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """Integer rectangle of a scene, px: rows ``row … row + height``, columns ``col … col + width``, ends exclusive."""

    row: int
    col: int
    height: int
    width: int

    @property
    def row_stop(self) -> int:
        """First row below the window."""
        return self.row + self.height

    @property
    def col_stop(self) -> int:
        """First column right of the window."""
        return self.col + self.width


def round_up(value: int, multiple: int) -> int:
    """Smallest multiple of ``multiple`` that is not below ``value``."""
    return -(-value // multiple) * multiple


def window_starts(length: int, *, size: int, overlap: int, align: int = 1) -> list[int]:
    """Starts of equal windows that cover ``0 … length`` along one axis, px, in increasing order.

    Neighbours share ``overlap`` px, ``0 <= overlap < size``. The last window is moved back to end at the padded length,
    ``round_up(length, align)``, so all have one size. Starts, ``size`` and ``overlap`` are multiples of ``align``, so
    that logits of that stride lie on one scene-wide grid. A ValueError for a value outside its range.

    References:
        Edge rule of slide_inference in mmsegmentation; six possible rules are compared in torchgeo PR 448.
    """
    if length < 1 or align < 1:
        raise ValueError(f"length and align must be at least 1 px, found {length} and {align}")
    if not 0 <= overlap < size:
        raise ValueError(f"overlap must be in [0, size), found overlap {overlap} with size {size}")
    if size % align or overlap % align:
        raise ValueError(f"size and overlap must be multiples of {align}, found {size} and {overlap}")
    padded = round_up(length, align)
    last = max(padded - size, 0)
    return [*range(0, last, size - overlap), last]


def window_grid(height: int, width: int, *, size: int, overlap: int, align: int = 1) -> list[Window]:
    """Equal windows that cover a scene, row by row; along each axis as `window_starts` says.

    A scene smaller than ``size`` gets one window of its own padded size along that axis.
    """
    rows = window_starts(height, size=size, overlap=overlap, align=align)
    cols = window_starts(width, size=size, overlap=overlap, align=align)
    window_height = min(size, round_up(height, align))
    window_width = min(size, round_up(width, align))
    return [Window(row, col, window_height, window_width) for row in rows for col in cols]


def pieces(height: int, width: int, rows: int, cols: int) -> Iterator[Window]:
    """Windows of ``rows`` × ``cols`` px that cover a scene once, row by row; the last ones end with the scene."""
    for row in range(0, height, rows):
        for col in range(0, width, cols):
            yield Window(row, col, min(rows, height - row), min(cols, width - col))
