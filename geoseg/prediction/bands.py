"""Bands of one strip of a scene, from pixels to finished rows: reading, network and stitching side by side."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise

import numpy as np

from geoseg.classes import NODATA
from geoseg.map_rows import CONFIDENCE_SCALE, MapRows, join_rows
from geoseg.options import Layers
from geoseg.prediction.predictor import Item, Predictor, WindowPixels
from geoseg.prediction.report import Stages
from geoseg.runtime.ahead import ahead
from geoseg.scene import Pixels, Raster, Valid
from geoseg.tiling.arrays import Pending, arrays_on
from geoseg.tiling.plan import Plan, Span, Task
from geoseg.tiling.stitcher import SeamCounts, Stitcher
from geoseg.windows import Window, round_up

_PIECE_BYTES = 16 << 20  # bytes read from a file at a time: less than GDAL's cache holds, in any order of decoding


@dataclass(frozen=True, slots=True)
class BandFacts:
    """Counts of a finished band of a strip."""

    skipped: int = 0  # windows that start in it and hold nothing to map, which the network never sees
    seams: SeamCounts = field(default_factory=SeamCounts)
    confidence: int = 0  # sum of 254 times the probability of the class, over the pixels where it was measured
    measured: int = 0  # number of these pixels: those of some pieces, or all where confidence is wanted

    @property
    def mean_confidence(self) -> float | None:
        """Mean probability of the class, 0 … 1; None if none was measured."""
        return self.confidence / self.measured / CONFIDENCE_SCALE if self.measured else None

    def __add__(self, other: BandFacts) -> BandFacts:
        return BandFacts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True, eq=False)
class BandRows:
    """Finished rows of a band; with the last of them come the facts of the whole band."""

    rows: MapRows
    facts: BandFacts | None


@dataclass(frozen=True, slots=True, eq=False)
class _RowEnd:
    """The end of a row of windows: no later window touches rows above the next row of windows."""

    next_row: int | None
    wanted: Valid  # of rows that were not seen before, over the output's columns


def rows_of_tasks(
    predictor: Predictor,
    scene: Raster,
    plan: Plan,
    tasks: Sequence[Task],
    *,
    layers: Layers = Layers(),
    readers: int = 1,
    stages: Stages | None = None,
) -> Iterator[BandRows]:
    """Finished rows of tasks, consecutive bands of a strip, from top to bottom.

    No rows lie in two bands. They are 255 exactly where there is nothing to map. They do not depend on which bands are
    made together: two calls only compute the windows that they share at a band's end twice. A `SceneError` if a block
    of the scene cannot be read, a `DeviceError` if one window alone exceeds the device's memory.
    """
    stages = stages or Stages()
    rows, cols = plan.band_span(tasks[0].band, tasks[-1].band), plan.strip_span(tasks[0].strip)
    stitcher = Stitcher(plan, rows, cols, arrays_on(predictor.device, predictor.classes.channels), layers)
    skipped, confidence, measured = Counter[int](), Counter[int](), Counter[int]()

    def windows() -> Iterator[Item[_RowEnd | None]]:
        left = cols.starts[0]
        for i, read in enumerate(_read_rows(scene, plan, rows, cols, readers=readers, stages=stages)):
            for col in cols.starts:
                here = slice(col - left, col - left + plan.window_width)
                if read.wanted[:, here].any():
                    window = Window(read.row, col, plan.window_height, plan.window_width)
                    yield Item(WindowPixels(window, read.pixels[:, :, here], read.valid[:, here]), None)
                elif cols.first <= col < cols.stop:
                    skipped[read.row // plan.band_rows] += 1
            fresh = max(plan.window_height - read.fresh, rows.first - read.row)
            own = read.wanted[fresh : max(rows.stop - read.row, 0), cols.first - left : cols.stop - left]
            yield Item(None, _RowEnd(rows.starts[i + 1] if i + 1 < len(rows.starts) else None, own.copy()))

    def finished() -> Iterator[MapRows]:
        wanted = np.empty((0, cols.stop - cols.first), dtype=bool)
        waiting: deque[Pending] = deque()  # one piece stays on its way from the device while the next is worked on
        for end, found in predictor.run(windows(), batch_size=plan.batch_size, stages=stages):
            with stages.time("stitch"):
                if found is not None:
                    stitcher.add(*found)
                if end is None:
                    continue
                wanted = np.concatenate([wanted, end.wanted])
                waiting.extend(stitcher.finish(end.next_row))
            while len(waiting) > (end.next_row is not None):
                piece = waiting.popleft()()
                _mark(piece, wanted[: len(piece)])
                wanted = wanted[len(piece) :]
                yield piece

    row = rows.first
    for piece in finished():
        while len(piece):
            band = row // plan.band_rows
            here = piece[: min((band + 1) * plan.band_rows, rows.stop) - row]
            row, piece = row + len(here), piece[len(here) :]
            if here.confidence is not None:
                sure = here.confidence[here.classes != NODATA]
                confidence[band] += int(sure.sum(dtype=np.int64))
                measured[band] += sure.size
            facts = None
            if row % plan.band_rows == 0 or row == plan.height:
                facts = BandFacts(skipped[band], stitcher.seams.of(band), confidence[band], measured[band])
            yield BandRows(here if layers.confidence else replace(here, confidence=None), facts)


def predicted_rows(
    predictor: Predictor, scene: Raster, plan: Plan, *, layers: Layers = Layers(), readers: int = 1
) -> Iterator[MapRows]:
    """A scene's map in finished rows from top to bottom, written nowhere; see `rows_of_tasks`.

    Where the plan has strips, the rows come band by band, and windows at the bands' ends are computed twice.
    """

    def rows(tasks: Sequence[Task]) -> Iterator[MapRows]:
        made = rows_of_tasks(predictor, scene, plan, tasks, layers=layers, readers=readers)
        return (piece.rows for piece in made)

    if plan.strips == 1:
        yield from rows(plan.tasks)
        return
    for band in range(plan.bands):
        tasks = [plan.task(band, strip) for strip in range(plan.strips)]
        yield join_rows([join_rows(list(rows([task])), axis=-2) for task in tasks], axis=-1)


def _mark(rows: MapRows, wanted: Valid) -> None:
    """Put nodata where nothing is to be mapped."""
    if wanted.all():
        return
    for layer in rows.layers.values():
        if layer is not None:
            layer[..., ~wanted] = NODATA


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """Rows of a scene over the columns of a strip's windows."""

    row: int  # first row, px
    pixels: Pixels
    valid: Valid  # pixels that the network may see, (h, w); past the scene's edge that of the reflected pixel
    wanted: Valid  # pixels to map, (h, w): valid, and inside the area of interest
    fresh: int  # how many of the last rows are new


def _read_rows(scene: Raster, plan: Plan, rows: Span, cols: Span, *, readers: int, stages: Stages) -> Iterator[_Read]:
    """The rows of pixels that each row of windows sees, one row of windows ahead of the caller.

    What two rows of windows share is kept. The file is read in chunks of whole blocks: where a block reaches past a
    window, its rest is kept too. Nothing is decoded where outlines show that no window needs it. ``readers`` threads
    decode; their number changes nothing.
    """
    with ThreadPoolExecutor(readers, "geoseg-decode") as pool:
        source = _Source(scene, plan, cols, pool if readers > 1 else None, readers)

        def read(row: int) -> _Read:
            with stages.time("read"):
                return source.read(row)

        yield from ahead(map(read, rows.starts), name="geoseg-read")


class _Source:
    """The scene, and what was read of it and may be needed again."""

    def __init__(self, scene: Raster, plan: Plan, cols: Span, pool: ThreadPoolExecutor | None, readers: int) -> None:
        self._scene, self._plan, self._pool = scene, plan, pool
        self._left, self._right = cols.starts[0], cols.starts[-1] + plan.window_width
        self._pieces = self._split(readers)
        self._last: _Read | None = None
        self._rest: tuple[Pixels, Valid] | None = None  # rows that were decoded and are not used yet

    def _split(self, readers: int) -> list[tuple[int, int]]:
        """Columns in pieces of whole blocks, at most `_PIECE_BYTES` each, and at least one for each reader."""
        block = min(self._scene.block_shape[1], self._scene.grid.width)
        width = self._right - self._left
        pixel = len(self._scene.bands) * self._scene.dtype.itemsize
        most = _PIECE_BYTES // max(pixel * max(self._plan.chunk_rows, 1), 1)
        step = max(min(most, -(-width // readers)) // block, 1) * block
        first = self._left // block * block
        edges = [self._left, *(e for e in range(first + step, self._right, step) if e > self._left), self._right]
        # The padding past the scene's edge is the reflection of what lies before it, so both are read together.
        while len(edges) > 2 and edges[-2] > self._scene.grid.width - self._plan.window_width // 2:
            del edges[-2]
        return list(pairwise(edges))

    def read(self, row: int) -> _Read:
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
        self._last = _Read(row, pixels, valid, wanted, height - kept)
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
