"""A prediction as tasks that any process can do: open the scene, load the model, make parts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import rasterio

from geoseg.map_rows import MapRows
from geoseg.network.stored_model import open_model
from geoseg.options import Imagery, Network
from geoseg.prediction.bands import BandFacts, Bands, rows_of_bands
from geoseg.prediction.parts import Parts, PartWriter
from geoseg.prediction.predictor import Predictor
from geoseg.prediction.stages import Stages
from geoseg.scene import Raster, open_scene
from geoseg.tiling.plan import Plan, Task

QUEUED_PIECES = 4
"""Finished rows that may wait for being written."""


@dataclass(frozen=True, slots=True)
class Source:
    """Scenes and what is read of them; of ``imagery``, ``nodata`` and ``gsd`` are resolved for the model."""

    scenes: tuple[str, ...]
    imagery: Imagery = Imagery()

    def open(self) -> Raster:
        """The open scene.

        Raises:
            SceneError: See `geoseg.scene.open_scene`.
        """
        imagery = self.imagery
        return open_scene(
            self.scenes,
            bands=imagery.bands,
            nodata=imagery.nodata,
            alpha=imagery.alpha,
            crs=imagery.crs,
            aoi=imagery.aoi,
            gsd_m=None if imagery.gsd is None else float(imagery.gsd),
        )


@dataclass(frozen=True, slots=True)
class Job:
    """All that a task needs, as one value that travels to other processes.

    Attributes:
        source: What is read.
        model: Model folder, or the name of a shipped model.
        network: What runs the model; its precision is resolved.
        tta: Name of the test-time augmentation.
        plan: Windows, bands, strips.
        parts: Where finished tasks go.
        readers: Threads that decode.
    """

    source: Source
    model: str
    network: Network
    tta: str
    plan: Plan
    parts: Parts
    readers: int = 1

    def load(self, device: str) -> Predictor:
        """The model on a device.

        Raises:
            ModelError: See `geoseg.network.stored_model.open_model`.
        """
        network = self.network
        return Predictor(
            open_model(self.model), device, tta=self.tta, backend=network.backend, precision=network.precision
        )


def make_parts(
    job: Job,
    predictor: Predictor,
    scene: Raster,
    tasks: Sequence[Task],
    *,
    stages: Stages | None = None,
    on_rows: Callable[[int], None] = lambda pixels: None,
    on_part: Callable[[Task], None] = lambda task: None,
) -> None:
    """Do tasks, and write each as a part when it is finished.

    Consecutive bands of a strip are made in one go, so that no window is computed twice.

    Args:
        job: The prediction.
        predictor: Its model.
        scene: Its scene.
        tasks: What to do, in any order.
        stages: Gets the time of each stage.
        on_rows: Called with the number of pixels of finished rows.
        on_part: Called in the writing thread with every task whose part is written.

    Raises:
        SceneError: A block of the scene cannot be read.
        DeviceError: One window alone is more than the device's memory.
        OutputError: The disk is full.
    """
    stages = stages or Stages()
    # GDAL's cache would grow to a share of the machine's memory, for blocks that are read once.
    with rasterio.Env(GDAL_CACHEMAX=job.plan.cache_bytes), _Writing(job.parts, stages, on_part) as writing:
        for run in _consecutive(tasks):
            rows = rows_of_bands(
                predictor,
                scene,
                job.plan,
                Bands(run[0].strip, run[0].band, run[-1].band),
                layers=job.parts.layers,
                readers=job.readers,
                stages=stages,
            )
            for task in run:
                writing.begin(task)
                for piece in rows:
                    writing.write(piece.rows)
                    on_rows(piece.rows.classes.size)
                    if piece.facts is not None:
                        writing.end(task, piece.facts)
                        break


class _Writing:
    """Parts written in a thread, a few pieces behind."""

    def __init__(self, parts: Parts, stages: Stages, on_part: Callable[[Task], None]) -> None:
        self._parts, self._stages, self._on_part = parts, stages, on_part
        self._pool = ThreadPoolExecutor(1, "geoseg-write")
        self._queue: deque[Future[None]] = deque()
        self._failed = False
        self._part = ExitStack()
        self._writer: PartWriter | None = None

    def __enter__(self) -> _Writing:
        return self

    def __exit__(self, *error: Any) -> None:
        with self._part:  # an open part is not whole: the exception removes it
            try:
                if error[1] is not None:
                    raise error[1]
                self._wait(0)
            finally:
                self._pool.shutdown(cancel_futures=True)

    def begin(self, task: Task) -> None:
        self._submit(self._begin, task)

    def write(self, rows: MapRows) -> None:
        self._submit(self._write, rows)

    def end(self, task: Task, facts: BandFacts) -> None:
        self._submit(self._end, task, facts)

    def _submit(self, function: Callable[..., None], *args: Any) -> None:
        self._wait(QUEUED_PIECES)
        self._queue.append(self._pool.submit(self._timed, function, *args))

    def _wait(self, left: int) -> None:
        while len(self._queue) > left:
            self._queue.popleft().result()

    def _timed(self, function: Callable[..., None], *args: Any) -> None:
        if self._failed:  # writes queued behind a failure must not close the part as if it were whole
            return
        self._failed = True
        with self._stages.time("write"):
            function(*args)
        self._failed = False

    def _begin(self, task: Task) -> None:
        self._part = ExitStack()
        self._writer = self._part.enter_context(self._parts.write(task))

    def _write(self, rows: MapRows) -> None:
        assert self._writer is not None
        self._writer.write(rows)

    def _end(self, task: Task, facts: BandFacts) -> None:
        assert self._writer is not None
        self._writer.facts = facts
        self._part.close()
        self._on_part(task)


def _consecutive(tasks: Sequence[Task]) -> Iterator[list[Task]]:
    """Tasks by strip, in runs of consecutive bands."""
    ordered = sorted(tasks, key=lambda t: (t.strip, t.band))
    for _, run in groupby(enumerate(ordered), key=lambda pair: (pair[1].strip, pair[1].band - pair[0])):
        yield [task for _, task in run]
