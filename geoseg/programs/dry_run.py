"""What a prediction would do and how long it would take: ``geoseg predict --dry-run``. Writes nothing."""

import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from geoseg.errors import GeosegError
from geoseg.options import AnyPath, PredictOptions
from geoseg.prediction.predictor import WindowPixels
from geoseg.programs.session import Prepared, Session
from geoseg.tiling.plan import IN_PROCESS, Plan
from geoseg.windows import Window

TIMED_WINDOWS = 3


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a prediction would do."""

    plan: Plan
    window_seconds: float | None  # several at once as in the run; None without a valid window, or on a cluster
    free_bytes: int  # in the output's folder
    refusal: GeosegError | None = None  # why it would be refused, if it would

    def lines(self) -> list[str]:
        """The plan for people."""
        if self.refusal is not None:
            last = f"refused    {self.refusal.message}; {self.refusal.hint}"
        elif self.window_seconds is None:
            here = self.plan.executor == IN_PROCESS
            why = "the windows tried hold nothing to map" if here else "it depends on the cluster"
            last = f"time       unknown: {why}"
        else:
            seconds = self.window_seconds * self.plan.forwards  # if all of the scene were valid
            pace = f"{1000 * self.window_seconds:.0f} ms a window, "
            pace += f"{self.plan.height * self.plan.width / 1e6 / seconds:.2f} Mpx/s"
            last = f"time       about {_duration(seconds)} ({pace})"
        return [*self.plan.lines(), f"free       {self.free_bytes / 2**20:.0f} MiB in the output's folder", last]


def dry_run(
    scenes: AnyPath | Sequence[AnyPath], model: AnyPath, output: AnyPath, options: PredictOptions = PredictOptions()
) -> DryRun:
    """The plan of a prediction, timed on three windows of the scene; errors as of `geoseg.predict`."""
    with Session(model, options) as session:
        return dry_run_in(session, scenes, Path(output), overwrite=options.running.overwrite)


def dry_run_in(
    session: Session, scenes: AnyPath | Sequence[AnyPath], output: Path, *, overwrite: bool, timed: bool = True
) -> DryRun:
    """See `dry_run`; nothing is computed unless ``timed``."""
    with session.prepared(scenes, output, overwrite=overwrite) as ready:
        plan, free = ready.job.plan, shutil.disk_usage(output.parent).free
        try:
            ready.check_room()
        except GeosegError as error:
            return DryRun(plan, None, free, error)
        return DryRun(plan, _time_windows(ready) if timed and plan.executor == IN_PROCESS else None, free)


def _time_windows(ready: Prepared) -> float | None:
    """Seconds per window from file to logits, as many side by side as in the run, at three places of the scene."""
    plan, scene = ready.job.plan, ready.scene
    places = [(plan.rows[i * (len(plan.rows) - 1) // 2], plan.cols[i * (len(plan.cols) - 1) // 2]) for i in range(3)]
    start = time.perf_counter()
    items = []
    for row, col in dict.fromkeys(places):
        window = Window(row, col, plan.window_height, plan.window_width)
        items.append(WindowPixels(window, *scene.read(window, reflect_valid=True, clip=False)))
    reading = (time.perf_counter() - start) / len(items)
    if not any(item.valid.any() for item in items):
        return None

    def timed() -> float:
        work = [items[i % len(items)] for i in range(plan.batch_size)]
        start = time.perf_counter()
        for _ in ready.predictor.run_windows(work, batch_size=plan.batch_size):
            pass
        return (time.perf_counter() - start) / len(work)

    timed()  # the first forward chooses kernels
    return max(statistics.median(timed() for _ in range(TIMED_WINDOWS)), reading / ready.job.readers)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
