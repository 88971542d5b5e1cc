"""Every task in this process, one band after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from geoseg.plan import Task
from geoseg.predictor import Predictor
from geoseg.scene import Raster
from geoseg.stages import Stages
from geoseg.tasks import Job, make_parts


def run(
    job: Job,
    tasks: Sequence[Task],
    *,
    predictor: Predictor,
    scene: Raster,
    stages: Stages,
    on_rows: Callable[[int], None],
    on_part: Callable[[Task], None],
) -> None:
    """Do the tasks; see `geoseg.executors.Executor`."""
    make_parts(job, predictor, scene, tasks, stages=stages, on_rows=on_rows, on_part=on_part)
