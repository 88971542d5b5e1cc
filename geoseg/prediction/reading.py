"""Rows of windows of a scene, read ahead of the network: whole blocks of the file, each decoded once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from geoseg.prediction.stages import Stages
from geoseg.runtime.ahead import ahead
from geoseg.scene import Pixels, Raster, Valid
from geoseg.tiling.plan import Plan, Span
from geoseg.windows import Window, round_up

PIECE_BYTES = 16 << 20
"""Bytes read from a file at a time: less than GDAL's cache holds, in any order of decoding."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows of a scene over the columns of a strip's windows.

    Attributes:
        row: First row, px.
        pixels: (B, h, w).
        valid: Pixels that the network may see, (h, w); past the scene's edge that of the reflected pixel.
        wanted: Pixels to map, (h, w): valid, and inside the area of interest.
        fresh: How many of the last rows are new.
    """

    row: int
    pixels: Pixels
    valid: Valid
    wanted: Valid
    fresh: int


def read_rows(
    scene: Raster, plan: Plan, rows: Span, cols: Span, *, readers: int = 1, stages: Stages | None = None
) -> Iterator[Rows]:
    """The rows of pixels that each row of windows sees, one row of windows ahead of the caller.

    What two rows of windows share is kept. The file is read in chunks of whole blocks: where a block reaches past a
    window, its rest is kept too. Nothing is decoded where outlines show that no window needs it.

    Args:
        scene: The open scene.
        plan: Its plan.
        rows: Which rows of windows.
        cols: Which columns of windows.
        readers: Threads that decode; their number changes nothing.
        stages: Gets the time of reading.

    Raises:
        SceneError: A block of the scene cannot be read.
    """
    with _Source(scene, plan, cols, readers, stages or Stages()) as source:
        yield from ahead((source.read(row) for row in rows.starts), name="geoseg-read")


class _Source:
    def __init__(self, scene: Raster, plan: Plan, cols: Span, readers: int, stages: Stages) -> None:
        self._scene, self._plan, self._stages = scene, plan, stages
        self._left, self._right = cols.starts[0], cols.starts[-1] + plan.window_width
        self._pool = ThreadPoolExecutor(readers, "geoseg-decode") if readers > 1 else None
        self._pieces = self._split(readers)
        self._last: Rows | None = None
        self._chunk: tuple[Pixels, Valid] | None = None  # rows that were decoded and are not used yet

    def __enter__(self) -> _Source:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

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
        with self._stages.time("read"):
            height = self._plan.window_height
            last = self._last
            known = row if last is None else last.row + height
            pixels = np.empty((len(self._scene.bands), height, self._right - self._left), dtype=self._scene.dtype)
            valid = np.empty(pixels.shape[1:], dtype=bool)
            kept = known - row
            if last is not None and kept:
                pixels[:, :kept] = last.pixels[:, height - kept :]
                valid[:kept] = last.valid[height - kept :]
            self._fill(pixels[:, kept:], valid[kept:], known)
            wanted = valid
            if self._scene.aoi is not None:
                wanted = valid & self._scene.inside(Window(row, self._left, height, self._right - self._left))
            self._last = Rows(row, pixels, valid, wanted, height - kept)
            return self._last

    def _fill(self, pixels: Pixels, valid: Valid, row: int) -> None:
        done = 0
        while done < len(valid):
            if self._chunk is None:
                self._chunk = self._read_chunk(row + done, row + len(valid))
            chunk, use = self._chunk
            taken = min(len(use), len(valid) - done)
            pixels[:, done : done + taken] = chunk[:, :taken]
            valid[done : done + taken] = use[:taken]
            done += taken
            self._chunk = (chunk[:, taken:], use[taken:]) if taken < len(use) else None

    def _read_chunk(self, first: int, stop: int) -> tuple[Pixels, Valid]:
        """Rows ``first … stop`` and the rest of the blocks that they end in; nothing where no window will look."""
        stop = max(stop, min(round_up(stop, self._plan.chunk_rows), self._scene.grid.height))
        windows = [Window(first, left, stop - first, right - left) for left, right in self._pieces]
        windows = [w for w in windows if self._is_seen(w)]
        if len(windows) == 1 and len(self._pieces) == 1:
            return self._read_window(windows[0])
        pixels, valid = self._scene.empty(stop - first, self._right - self._left)
        parts = map(self._read_window, windows) if self._pool is None else self._pool.map(self._read_window, windows)
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
