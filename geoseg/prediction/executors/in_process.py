"""Every task in this process, one band after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from geoseg.errors import ConfigError
from geoseg.prediction.predictor import Predictor
from geoseg.prediction.stages import Stages
from geoseg.prediction.tasks import Job, make_parts
from geoseg.runtime.devices import resolve_device
from geoseg.runtime.processors import processors
from geoseg.scene import Raster
from geoseg.tiling.plan import Task


class InProcess:
    """See `geoseg.prediction.executors.Executor`."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.batched = device != "cpu"
        self.batch_size: int | None = None
        self.readers = min(8, processors()) if self.batched else 1

    def hardware(self, job: Job, predictor: Predictor) -> dict[str, str]:
        """This process's."""
        return predictor.hardware

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
        """Do the tasks."""
        make_parts(job, predictor, scene, tasks, stages=stages, on_rows=on_rows, on_part=on_part)


@contextmanager
def connect(device: str, address: str | None) -> Iterator[InProcess]:
    """The executor on a device.

    Raises:
        ConfigError: An address was given.
        DeviceError: See `geoseg.runtime.devices.resolve_device`.
    """
    if address is not None:
        raise ConfigError(
            f"an address was given, {address}, but the executor is in-process",
            hint=f"--executor ray --address {address}",
        )
    yield InProcess(resolve_device(device))
