"""Where the tasks of a prediction run: in this process, or on a Ray cluster."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, TypeAlias

from geoseg.errors import ConfigError
from geoseg.options import ExecutorName
from geoseg.prediction.predictor import Predictor
from geoseg.prediction.tasks import Job, OpenJob, make_parts
from geoseg.runtime.machine import processors, resolve_device
from geoseg.tiling.plan import IN_PROCESS, Task

if TYPE_CHECKING:
    from geoseg.prediction.executors.ray import RayExecutor


class InProcess:
    """Does the tasks of one job in this process, one band after the other."""

    def __init__(self, device: str) -> None:
        self.device = device  # where this process has the model
        self.batched = device != "cpu"  # whether windows go in batches of one size where the work is done
        self.batch_size: int | None = None  # windows at once by default; None leaves it to the predictor
        self.readers = min(8, processors()) if self.batched else 1  # threads that decode, in each process

    def hardware(self, job: Job, predictor: Predictor) -> dict[str, str]:
        """What the last bits of a forward depend on where the work is done."""
        return predictor.hardware

    def run(self, work: OpenJob, tasks: Sequence[Task]) -> None:
        """Do tasks; returns when all their parts are there. The job is that of `hardware`."""
        make_parts(work, tasks)


Executor: TypeAlias = "InProcess | RayExecutor"
"""Does the tasks of one job, here or on a cluster, with the same attributes and methods."""


@contextmanager
def _in_process(device: str, address: str | None) -> Iterator[InProcess]:
    if address is not None:
        raise ConfigError(
            f"an address was given, {address}, but the executor is in-process",
            hint=f"--executor ray --address {address}",
        )
    yield InProcess(resolve_device(device))


def find_executor(name: ExecutorName) -> Callable[[str, str | None], AbstractContextManager[Executor]]:
    """What opens an executor for the name of a device and the address of a cluster, None for the usual one.

    A `ConfigError` if what it needs is not installed.
    """
    if name == IN_PROCESS:
        return _in_process
    from geoseg.prediction.executors.ray import connect  # loads Ray

    return connect
