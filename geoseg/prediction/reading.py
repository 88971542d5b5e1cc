"""Rows of windows of a scene, read ahead of the network: whole blocks of the file, each decoded once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from geoseg.prediction.report import Stages
from geoseg.runtime.ahead import ahead
from geoseg.scene import Pixels, Raster, Valid
from geoseg.tiling.plan import Plan, Span
from geoseg.windows import Window, round_up

PIECE_BYTES = 16 << 20  # bytes read from a file at a time: less than GDAL's cache holds, in any order of decoding


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows of a scene over the columns of a strip's windows."""

    row: int  # first row, px
    pixels: Pixels
    valid: Valid  # pixels that the network may see, (h, w); past the scene's edge that of the reflected pixel
    wanted: Valid  # pixels to map, (h, w): valid, and inside the area of interest
    fresh: int  # how many of the last rows are new


def read_rows(scene: Raster, plan: Plan, rows: Span, cols: Span, *, readers: int, stages: Stages) -> Iterator[Rows]:
    """The rows of pixels that each row of windows sees, one row of windows ahead of the caller.

    What two rows of windows share is kept. The file is read in chunks of whole blocks: where a block reaches past a
    window, its rest is kept too. Nothing is decoded where outlines show that no window needs it. ``readers`` threads
    decode; their number changes nothing.
    """
    with ThreadPoolExecutor(readers, "geoseg-decode") as pool:
        source = _Source(scene, plan, cols, pool if readers > 1 else None, readers)

        def read(row: int) -> Rows:
            with stages.time("read"):
                return source.read(row)

        yield from ahead(map(read, rows.starts), name="geoseg-read")


class _Source:
    """The scene, and what was read of it and may be needed again."""

    def __init__(self, scene: Raster, plan: Plan, cols: Span, pool: ThreadPoolExecutor | None, readers: int) -> None:
        self._scene, self._plan, self._pool = scene, plan, pool
        self._left, self._right = cols.starts[0], cols.starts[-1] + plan.window_width
        self._pieces = self._split(readers)
        self._last: Rows | None = None
        self._rest: tuple[Pixels, Valid] | None = None  # rows that were decoded and are not used yet

    def _split(self, readers: int) -> list[tuple[int, int]]:
        """Columns in pieces of whole blocks, at most `PIECE_BYTES` each, and at least one for each reader."""
        block = min(self._scene.block_shape[1], self._scene.grid.width)
        width = self._right - self._left
        pixel = len(self._scene.bands) * self._scene.dtype.itemsize
        most = PIECE_BYTES // max(pixel * max(self._plan.chunk_rows, 1), 1)
        step = max(min(most, -(-width // readers)) // block, 1) * block
        first = self._left // block * block
        edges = [self._left, *(e for e in range(first + step, self._right, step) if e > self._left), self._right]
        # The padding past the scene's edge is the reflection of what lies before it, so both are read together.
        while len(edges) > 2 and edges[-2] > self._scene.grid.width - self._plan.window_width // 2:
            del edges[-2]
        return list(pairwise(edges))

    def read(self, row: int) -> Rows:
        """The rows from ``row`` on, as many as a window has."""
        height = self._plan.window_height
        parts: list[tuple[Pixels, Valid]] = []
        if self._last is not None:
            above = row - self._last.row
            parts.append((self._last.pixels[:, above:], self._last.valid[above:]))
        kept = known = sum(len(valid) for _, valid in parts)
        while known < height:
            pixels, valid = self._rest or self._read_chunk(row + known, row + height)
            taken = height - known
            parts.append((pixels[:, :taken], valid[:taken]))
            self._rest = (pixels[:, taken:], valid[taken:]) if taken < len(valid) else None
            known += len(parts[-1][1])
        pixels, valid = np.concatenate([p for p, _ in parts], axis=1), np.concatenate([v for _, v in parts])
        wanted = valid
        if self._scene.aoi is not None:
            wanted = valid & self._scene.inside(Window(row, self._left, height, self._right - self._left))
        self._last = Rows(row, pixels, valid, wanted, height - kept)
        return self._last

    def _read_chunk(self, first: int, stop: int) -> tuple[Pixels, Valid]:
        """Rows ``first … stop`` and the rest of the blocks that they end in; nothing where no window will look."""
        stop = max(stop, min(round_up(stop, self._plan.chunk_rows), self._scene.grid.height))
        windows = [Window(first, left, stop - first, right - left) for left, right in self._pieces]
        windows = [w for w in windows if self._is_seen(w)]
        if len(windows) == 1 and len(self._pieces) == 1:
            return self._read_window(windows[0])
        pixels, valid = self._scene.empty(stop - first, self._right - self._left)
        read = map if self._pool is None else self._pool.map
        parts = read(self._read_window, windows)
        for window, (part, use) in zip(windows, parts, strict=True):
            here = slice(window.col - self._left, window.col_stop - self._left)
            pixels[:, :, here] = part
            valid[:, here] = use
        return pixels, valid

    def _is_seen(self, piece: Window) -> bool:
        """Whether a window that touches the piece may hold a pixel to be mapped."""
        height, width = self._plan.window_height, self._plan.window_width
        return self._scene.may_be_valid(
            Window(piece.row - height, piece.col - width, piece.height + 2 * height, piece.width + 2 * width)
        )

    def _read_window(self, window: Window) -> tuple[Pixels, Valid]:
        # The network sees across the border of an area of interest.
        return self._scene.read(window, reflect_valid=True, clip=False)
