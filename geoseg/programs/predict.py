"""Scenes and a model to a class map, or straight on to polygons: the program behind ``geoseg predict``."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeAlias

import numpy as np
from tqdm import tqdm

from geoseg.class_map import layer_path
from geoseg.class_map.overviews import class_areas
from geoseg.class_map.writing import LAYERS, MapFileWriter
from geoseg.errors import GeosegError
from geoseg.files import remove_scratch
from geoseg.grid import Grid
from geoseg.map_rows import MapRows
from geoseg.options import AnyPath, PredictOptions, from_keywords, signature_with
from geoseg.paths import is_map
from geoseg.prediction.bands import BandFacts
from geoseg.prediction.imagery import low_confidence
from geoseg.prediction.report import PredictReport, Stages, seam_text
from geoseg.prediction.tasks import Job, OpenJob
from geoseg.programs.rehearsal import Part, rehearsing, stitching, vectorizing
from geoseg.programs.session import Prepared, Session
from geoseg.programs.vectorize import VectorReport, write_vectors
from geoseg.runtime.ahead import Abandoned
from geoseg.tiling.plan import IN_PROCESS, Task
from geoseg.words import count

log = logging.getLogger(__name__)

Bar: TypeAlias = "tqdm[Any]"


def predict(
    scenes: AnyPath | Sequence[AnyPath],
    model: AnyPath,
    output: AnyPath,
    options: PredictOptions | None = None,
    **changes: Any,
) -> PredictReport:
    """Map scenes with a model.

    Everything that can be wrong is checked before the first window, and the output gets its name only when it is
    finished. If the run is interrupted, the same call continues it, and the output has the same bytes.

    Args:
        scenes: A raster, or several that are read as one mosaic; of a folder the rasters in it.
        model: Model folder, or the name of a shipped model.
        output: ``.tif`` for a class map; ``.gpkg`` or another suffix of `geoseg.export.EXPORTERS` for polygons.
        options: All options as one value, which type checkers know.
        changes: Single options: the fields of `geoseg.options.Tiling`, `Network`, `Imagery`, `Layers` and `Running`,
            as ``size=512, precision="float32"``, and ``rules``, a `geoseg.options.PolygonRules`.

    Raises:
        OutputError: Unknown suffix, the output exists, its folder cannot be written, or the disk is full.
        ModelError: No such model, or a broken one.
        SceneError: A scene that cannot be read, or breaks the model's imagery contract.
        ConfigError: An invalid option.
        DeviceError: No such device, or its memory does not hold a single window.
        KeyboardInterrupt: Ctrl-C; the message says how much is kept.
        TypeError: An unknown option.
    """
    options = from_keywords(PredictOptions, changes, caller="predict", given=options)
    running = options.running
    with Session(model, options) as session:
        return predict_in(session, scenes, Path(output), overwrite=running.overwrite, progress=running.progress)


predict.__signature__ = signature_with(predict, PredictOptions)  # type: ignore[attr-defined]


def predict_in(
    session: Session,
    scenes: AnyPath | Sequence[AnyPath],
    output: Path,
    *,
    overwrite: bool = False,
    progress: bool | Bar = False,
) -> PredictReport:
    """Map scenes with an open model; ``progress`` may be a bar that counts the pixels of several predictions."""
    with session.prepared(scenes, output, overwrite=overwrite) as ready:
        parts, restart = ready.job.parts, session.options.running.restart
        ready.check_room()
        with rehearsing(*_rehearsals(ready)), parts.opened(ready.fingerprint(), restart=restart), _kept(ready):
            for name in LAYERS:
                remove_scratch(layer_path(output, name))
            return _run(ready, progress)


def _rehearsals(ready: Prepared) -> list[Part]:
    """What this process will do with logits, once per session; the network is read or converted meanwhile."""
    session = ready.session
    options, parts = session.options, []
    if not session.rehearsed:
        if ready.predictor.device == "cpu" and options.running.executor == IN_PROCESS:
            parts += stitching(ready.job.parts.layers)
        if not is_map(ready.output):
            parts += vectorizing(options.rules, ready.output.suffix)
    session.rehearsed = True
    return parts


def _run(ready: Prepared, progress: bool | Bar) -> PredictReport:
    """Do what is left of the tasks; a thread writes the output as their parts get ready in order."""
    start = time.perf_counter()
    job, grid = ready.job, ready.scene.grid
    tasks = job.plan.tasks
    left = [task for task in tasks if not job.parts.has(task)]
    if len(left) < len(tasks):
        log.info("resuming: %d of %s done", len(tasks) - len(left), count(len(tasks), "part"))
    stages = Stages()
    arrivals = _Arrivals(job, grid)
    total = grid.height * grid.width
    there = total - sum(task.window.height * task.window.width for task in left)
    own: AbstractContextManager[object] = nullcontext()
    if isinstance(progress, bool):
        own = bar = progress_bar(total, there, shown=progress)
    else:
        bar = progress
        bar.update(there)

    with own, ThreadPoolExecutor(1, "geoseg-output") as thread:
        writing = arrivals.taker = thread.submit(_write_output, ready, arrivals, stages)
        work = OpenJob(job, ready.predictor, ready.scene, stages, on_rows=bar.update, on_part=arrivals.announce)
        try:
            ready.session.executor.run(work, left)
        except BaseException:
            arrivals.abandon()
            raise
        facts, vectors = writing.result()
    unsure = low_confidence(facts.mean_confidence, len(ready.predictor.classes))
    if unsure is not None:
        log.warning("%s", unsure)
    notes = () if vectors is None else vectors.notes
    return PredictReport(
        path=ready.output,
        grid=grid,
        plan=job.plan,
        skipped=facts.skipped,
        seams=facts.seams,
        areas_m2=arrivals.areas_m2,
        classes=ready.predictor.classes,
        seconds=time.perf_counter() - start,
        stages=stages.seconds,
        resumed=len(tasks) - len(left),
        polygons=None if vectors is None else vectors.polygons,
        mean_confidence=facts.mean_confidence,
        notes=(*notes, *ready.doubts),
    )


class _Arrivals:
    """Rows of the map, each band as soon as all its parts exist, for a thread beside the one that makes parts."""

    def __init__(self, job: Job, grid: Grid) -> None:
        self._job, self._row_areas = job, grid.pixel_area_m2()
        self._news: SimpleQueue[Task | None] = SimpleQueue()  # None where no more parts will come
        self.taker: Future[Any] | None = None  # the thread that takes the rows
        self.areas_m2 = np.zeros(job.parts.classes)  # area per class of the rows so far, (K,)

    def abandon(self) -> None:
        """End the rows: no more parts will come."""
        self._news.put(None)

    def announce(self, task: Task) -> None:
        """A part is there. Raises what stopped the thread that takes the rows: no need to make more."""
        self._news.put(task)
        if self.taker is not None and self.taker.done():
            self.taker.result()

    def rows(self) -> Iterator[MapRows]:
        """The map from top to bottom; waits for parts that do not exist yet, `Abandoned` if no more will come."""
        plan, parts = self._job.plan, self._job.parts
        row = 0
        for band in range(plan.bands):
            wanted = [plan.task(band, strip) for strip in range(plan.strips)]
            while not all(parts.has(task) for task in wanted):
                if self._news.get() is None:
                    raise Abandoned
            for rows in parts.rows(plan, band):
                self.areas_m2 += class_areas(rows.classes, self._row_areas[row : row + len(rows)], len(self.areas_m2))
                row += len(rows)
                yield rows
        parts.publish()


def progress_bar(total: int, initial: int = 0, *, shown: bool) -> Bar:
    """A bar on standard error that counts pixels."""
    return tqdm(total=total, initial=initial, unit="px", unit_scale=True, desc="predict", disable=not shown)


def _write_output(ready: Prepared, arrivals: _Arrivals, stages: Stages) -> tuple[BandFacts, VectorReport | None]:
    """Write the output from rows as they arrive; returns facts of the map, and what was written if polygons."""
    job, grid, classes = ready.job, ready.scene.grid, ready.predictor.classes

    def facts() -> BandFacts:
        return sum((job.parts.facts(task) for task in job.plan.tasks), BandFacts())

    if not is_map(ready.output):
        source = Path(job.source.scenes[0]).name
        rules = ready.session.options.rules
        report = write_vectors(arrivals.rows(), grid, classes, ready.output, rules=rules, source=source)
        return facts(), report
    layers = ["classes", *job.parts.layers.names]
    tiles = job.parts.tiles(job.plan)
    with MapFileWriter(ready.output, grid, classes, layers=layers, tags=ready.tags(), tiles=tiles) as writer:
        for rows in arrivals.rows():
            with stages.time("output"):
                writer.write(rows)
        found = facts()
        writer.set_tags({"GEOSEG_SEAMS": seam_text(found.seams)})
    return found, None


@contextmanager
def _kept(ready: Prepared) -> Iterator[None]:
    """Add to an error how much of the run is kept."""
    parts, tasks = ready.job.parts, ready.job.plan.tasks
    try:
        yield
    except (GeosegError, KeyboardInterrupt) as error:
        done = sum(parts.has(task) for task in tasks)
        text = f"{done} of {count(len(tasks), 'band' if ready.job.plan.strips == 1 else 'part')} are kept"
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(
                f"interrupted; {text}, and the same command continues" if done else "interrupted"
            ) from error
        if done:
            error.message += f"; {text}"
            error.hint = f"{error.hint + '; ' if error.hint else ''}then the same command continues"
        raise
