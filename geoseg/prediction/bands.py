"""Bands of one strip of a scene, from pixels to finished rows: reading, network and stitching side by side."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np

from geoseg.classes import NODATA
from geoseg.map_rows import CONFIDENCE_SCALE, MapRows, join_rows
from geoseg.options import Layers
from geoseg.prediction.predictor import Item, Predictor, WindowPixels
from geoseg.prediction.reading import read_rows
from geoseg.prediction.report import Stages
from geoseg.scene import Raster, Valid
from geoseg.tiling.arrays import Pending
from geoseg.tiling.plan import Plan, Task
from geoseg.tiling.stitcher import SeamCounts, Stitcher
from geoseg.windows import Window


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
    made together: two calls only compute the windows that they share at a band's end twice.

    Raises:
        SceneError: A block of the scene cannot be read.
        DeviceError: One window alone exceeds the device's memory.
    """
    stages = stages or Stages()
    rows, cols = plan.band_span(tasks[0].band, tasks[-1].band), plan.strip_span(tasks[0].strip)
    stitcher = Stitcher(plan, rows, cols, layers, device=predictor.device, channels=predictor.classes.channels)
    skipped, confidence, measured = Counter[int](), Counter[int](), Counter[int]()

    def windows() -> Iterator[Item[_RowEnd | None]]:
        left = cols.starts[0]
        for i, read in enumerate(read_rows(scene, plan, rows, cols, readers=readers, stages=stages)):
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
        for found in predictor.run(windows(), batch_size=plan.batch_size, stages=stages):
            with stages.time("stitch"):
                if found.window is not None and found.logits is not None:
                    stitcher.add(found.window, found.logits)
                end = found.note
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
                facts = BandFacts(skipped[band], stitcher.seams(band), confidence[band], measured[band])
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
