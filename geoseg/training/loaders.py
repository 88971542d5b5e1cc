"""Loaders of a training run: each process's share of the windows, read by processes that end when the run does."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader

from geoseg.config import TrainConfig
from geoseg.data.augment import one_thread_each
from geoseg.training.processes import Team


class _Loader(DataLoader[Any]):
    """A loader whose processes never see SIGTERM: SLURM sends it to all processes of a job, and the run answers it."""

    def __iter__(self) -> Any:
        if not hasattr(signal, "pthread_sigmask"):
            return super().__iter__()
        if multiprocessing.get_start_method() != "fork":
            resource_tracker.ensure_running()  # when it starts, it unblocks the signal
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # inherited from the first instruction on
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_reading(worker: int) -> None:
    one_thread_each()  # where the process was started anew; a fork has it from its parent


def make_loader(dataset: Any, config: TrainConfig, team: Team) -> DataLoader[Any]:
    """A loader of this process's share of a data set."""
    if config.train.workers:
        one_thread_each()
    return _Loader(
        dataset,
        batch_size=config.train.batch_size,
        sampler=team.share(len(dataset)),
        num_workers=config.train.workers,
        persistent_workers=config.train.workers > 0,
        pin_memory=team.device.type == "cuda",
        worker_init_fn=_begin_reading,
    )


@contextmanager
def readers_ended(*loaders: DataLoader[Any]) -> Iterator[None]:
    """End the processes that read windows when the run ends, however it does.

    Lightning forgets those of the training when a validation is interrupted. An interpreter that exits would send them
    SIGTERM, which they never see, and wait for them forever.
    """
    others = set(multiprocessing.active_children())
    try:
        yield
    finally:
        CombinedLoader(loaders).reset()
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
