"""Where the tasks of a prediction run: in this process, or on a Ray cluster."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from geoseg.errors import ConfigError
from geoseg.options import ExecutorName
from geoseg.prediction.predictor import Predictor
from geoseg.prediction.tasks import Job, OpenJob, make_parts
from geoseg.runtime.devices import resolve_device
from geoseg.runtime.processors import processors
from geoseg.tiling.plan import IN_PROCESS, Task


class Executor(Protocol):
    """Does the tasks of one job.

    Attributes:
        device: Where this process has the model.
        batched: Whether windows go in batches of one size where the work is done, as on a GPU.
        batch_size: Windows at once unless the user says otherwise; None leaves it to the predictor.
        readers: Threads that decode, for each process that does tasks.
    """

    device: str
    batched: bool
    batch_size: int | None
    readers: int

    def hardware(self, job: Job, predictor: Predictor) -> dict[str, str]:
        """What the last bits of a forward depend on where the work is done; a `GeosegError` if it cannot be."""

    def run(self, work: OpenJob, tasks: Sequence[Task]) -> None:
        """Do tasks; returns when all their parts are there. The job is that of `hardware`."""


class InProcess:
    """Does every task in this process, one band after the other."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.batched = device != "cpu"
        self.batch_size: int | None = None
        self.readers = min(8, processors()) if self.batched else 1

    def hardware(self, job: Job, predictor: Predictor) -> dict[str, str]:
        """This process's."""
        return predictor.hardware

    def run(self, work: OpenJob, tasks: Sequence[Task]) -> None:
        """Do the tasks."""
        make_parts(work, tasks)


@contextmanager
def _in_process(device: str, address: str | None) -> Iterator[InProcess]:
    if address is not None:
        raise ConfigError(
            f"an address was given, {address}, but the executor is in-process",
            hint=f"--executor ray --address {address}",
        )
    yield InProcess(resolve_device(device))


Connect = Callable[[str, str | None], AbstractContextManager[Executor]]
"""Opens an executor for the name of a device and the address of a cluster, None for the usual one."""


def find_executor(name: ExecutorName) -> Connect:
    """What opens the executor of a name; a `ConfigError` if what it needs is not installed."""
    if name == IN_PROCESS:
        return _in_process
    from geoseg.prediction.executors.ray import connect  # loads Ray

    return connect
