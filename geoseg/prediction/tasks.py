"""A prediction as tasks that any process can do: open the scene, load the model, make parts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby

import rasterio

from geoseg.options import Imagery, Network
from geoseg.prediction.bands import BandRows, rows_of_tasks
from geoseg.prediction.parts import Parts
from geoseg.prediction.predictor import Predictor
from geoseg.prediction.report import Stages
from geoseg.runtime.ahead import behind
from geoseg.scene import Raster, open_scene
from geoseg.tiling.plan import Plan, Task

QUEUED_PIECES = 4  # pieces of finished rows that may wait to be written


@dataclass(frozen=True, slots=True)
class Source:
    """Scenes and what is read of them; of ``imagery``, ``nodata`` and ``gsd`` are resolved for the model."""

    scenes: tuple[str, ...]
    imagery: Imagery = Imagery()

    def open(self) -> Raster:
        """The open scene; see `geoseg.scene.open_scene`."""
        return open_scene(self.scenes, self.imagery)


@dataclass(frozen=True, slots=True)
class Job:
    """All that a task needs, as one value that travels to other processes."""

    source: Source
    model: str  # model folder, or the name of a shipped model
    network: Network  # what runs the model; its precision is resolved
    tta: str  # name of the test-time augmentation
    plan: Plan
    parts: Parts  # where finished tasks go
    readers: int = 1  # threads that decode


@dataclass(frozen=True, slots=True)
class OpenJob:
    """A job with its model and scene open in this process, and who follows its course.

    Attributes:
        stages: Gets the time of each stage.
        on_rows: Called with a number of pixels whenever so many are finished.
        on_part: Called with every task whose part is there, one at a time, in any thread.
    """

    job: Job
    predictor: Predictor
    scene: Raster
    stages: Stages = field(default_factory=Stages)
    on_rows: Callable[[int], object] = lambda pixels: None
    on_part: Callable[[Task], object] = lambda task: None


def make_parts(work: OpenJob, tasks: Sequence[Task]) -> None:
    """Do tasks, given in any order, and write each as a part when it is finished.

    Consecutive bands of a strip are made in one go, so that no window is computed twice. For errors see `rows_of_tasks`
    and `Parts.write`.
    """
    job, stages = work.job, work.stages
    # GDAL's cache would grow to a share of the machine's memory, for blocks that are read once.
    with rasterio.Env(GDAL_CACHEMAX=job.plan.cache_bytes):
        for run in _consecutive(tasks):
            rows = rows_of_tasks(
                work.predictor,
                work.scene,
                job.plan,
                run,
                layers=job.parts.layers,
                readers=job.readers,
                stages=stages,
            )
            with behind(partial(_write, work, run), most=QUEUED_PIECES, name="geoseg-write") as put:
                for piece in rows:
                    put(piece)
                    work.on_rows(piece.rows.classes.size)


def _write(work: OpenJob, run: Sequence[Task], pieces: Iterator[BandRows]) -> None:
    """Write the parts of consecutive tasks, in a thread."""
    for task in run:
        with ExitStack() as opened:
            part = opened.enter_context(work.job.parts.write(task))
            for piece in pieces:
                with work.stages.time("write"):
                    part.write(piece.rows)
                if piece.facts is not None:
                    part.facts = piece.facts
                    break
            with work.stages.time("write"):
                opened.close()
        work.on_part(task)


def _consecutive(tasks: Sequence[Task]) -> Iterator[list[Task]]:
    """Tasks by strip, in runs of consecutive bands."""
    ordered = sorted(tasks, key=lambda t: (t.strip, t.band))
    for _, run in groupby(enumerate(ordered), key=lambda pair: (pair[1].strip, pair[1].band - pair[0])):
        yield [task for _, task in run]
