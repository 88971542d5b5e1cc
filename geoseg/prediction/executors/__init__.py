"""Where the tasks of a prediction run: by name, each a module that opens an executor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Protocol, cast

from geoseg.errors import ConfigError
from geoseg.prediction.predictor import Predictor
from geoseg.prediction.stages import Stages
from geoseg.prediction.tasks import Job
from geoseg.scene import Raster
from geoseg.tiling.plan import IN_PROCESS, Task


class Executor(Protocol):
    """Does the tasks of one job.

    Attributes:
        device: Where this process has the model.
        batched: Whether the windows go in batches of one size where the work is done, as on a GPU.
        batch_size: Windows at once where nothing else is asked for; None leaves it to the predictor.
        readers: Threads that decode, for each process that does tasks.
    """

    device: str
    batched: bool
    batch_size: int | None
    readers: int

    def hardware(self, job: Job, predictor: Predictor) -> dict[str, str]:
        """What the last bits of a forward depend on where the work is done; see `Predictor.hardware`.

        Raises:
            GeosegError: The work cannot be done there.
        """

    def run(
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
        """Do tasks; returns when all their parts are there.

        Args:
            job: The prediction, the same as of `hardware`.
            tasks: What is left to do.
            predictor: The model, loaded in this process.
            scene: The scene, open in this process.
            stages: Gets the time of each stage.
            on_rows: To be called with a number of pixels whenever so many are finished.
            on_part: To be called with every task whose part is there, one at a time.
        """


Connect = Callable[[str, str | None], AbstractContextManager[Executor]]
"""Opens an executor for the name of a device and the address of a cluster, None for the usual one."""

EXECUTORS = {IN_PROCESS: "geoseg.prediction.executors.in_process", "ray": "geoseg.prediction.executors.ray"}
"""Modules by name, each with a function ``connect``; loaded when used, since some bring large packages."""


def find_executor(name: str) -> Connect:
    """What opens the executor of a name.

    Raises:
        ConfigError: No such executor, or what it needs is not installed; the hint says what to type.
    """
    if name not in EXECUTORS:
        raise ConfigError(f"no executor is called {name!r}", hint=f"--executor {', '.join(EXECUTORS)}")
    return cast(Connect, import_module(EXECUTORS[name]).connect)
