"""Where the tasks of a prediction run: by name, each a function that does them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Protocol, cast

from geoseg.errors import ConfigError
from geoseg.plan import IN_PROCESS, Task
from geoseg.predictor import Predictor
from geoseg.scene import Raster
from geoseg.stages import Stages
from geoseg.tasks import Job


class Executor(Protocol):
    """Does tasks of a job; returns when all their parts are there."""

    def __call__(
        self,
        job: Job,
        tasks: Sequence[Task],
        *,
        predictor: Predictor,
        scene: Raster,
        stages: Stages,
        on_rows: Callable[[int], None],
        on_part: Callable[[Task], None],
    ) -> None:
        """Do the tasks.

        Args:
            job: The prediction.
            tasks: What is left to do.
            predictor: The model, loaded in this process.
            scene: The scene, open in this process.
            stages: Gets the time of each stage.
            on_rows: To be called with a number of pixels whenever so many are finished.
            on_part: To be called with every task whose part is there, one at a time.
        """


EXECUTORS = {IN_PROCESS: "geoseg.executors.in_process"}
"""Modules by name, each with a function ``run``; loaded when used, since some bring large packages."""


def find_executor(name: str) -> Executor:
    """The executor of a name.

    Raises:
        ConfigError: No such executor; the hint lists them.
    """
    if name not in EXECUTORS:
        raise ConfigError(f"no executor is called {name!r}", hint=f"--executor {', '.join(EXECUTORS)}")
    return cast(Executor, import_module(EXECUTORS[name]).run)
