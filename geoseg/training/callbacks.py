"""What happens between the steps: checkpoints, early stopping, signals, and norms that all processes share."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Checkpoint
from torch import nn

from geoseg.config import RunConfig
from geoseg.files import output_error
from geoseg.training.failures import RunStopped
from geoseg.training.processes import PeerEnded, Team
from geoseg.training.task import SegmentationTask

BEST, LAST = "best.ckpt", "last.ckpt"
NOT_BEGUN = "stopped by a signal before the first iteration"

_STOP = 1
"""State of a process that was told to end; of one whose loss is no number it is larger, most of all for the first."""


class StopSignal(Exception):
    """Ends Lightning's loop after a checkpoint; outside it is a `RunStopped`."""


class Checkpoints(Checkpoint):
    """The best checkpoint by validation mIoU, and the last one, which ``--resume`` goes on from.

    The last one is written every ``checkpoint_every`` iterations, at validations, at the end and on SIGTERM. Each is
    written beside its name and moved there: whenever the run is killed, a whole one is there.

    As a Checkpoint it comes after all other callbacks, whose state it stores.

    Attributes:
        saved: Iterations done at the last checkpoint; None before the first.
    """

    def __init__(self, folder: Path, recipe: RunConfig, team: Team) -> None:
        self._folder, self._recipe, self._team = folder, recipe, team
        self._best: float | None = None
        self._since_best = 0
        self._step = 0
        self.saved: int | None = None
        self._signal: int | None = None
        self._has_begun = False
        self._before: Any = None

    @property
    def best(self) -> float | None:
        """The best validation mIoU; None before the first validation, NaN where there was no score."""
        return self._best

    @property
    def has_ended_early(self) -> bool:
        """Whether validations have brought nothing better for as long as the recipe waits."""
        patience = self._recipe.patience
        return patience is not None and self._since_best >= patience

    def state_dict(self) -> dict[str, Any]:
        """The best score so far, and validations since."""
        return {"best": self._best, "since_best": self._since_best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's scores."""
        self._best, self._since_best = state_dict["best"], state_dict["since_best"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Listen for SIGTERM, in place of Lightning, which would end without a checkpoint."""
        self._step = trainer.global_step
        self.saved = self._step or None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        if trainer.received_sigterm:  # while Lightning still listened
            raise StopSignal

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Listen no longer."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """From now on there is something to save."""
        self._has_begun = True

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After a step: go on, end, or write the last checkpoint."""
        step = trainer.global_step
        if step == self._step:  # a forward that only gathers gradients
            return
        self._step = step
        every = self._recipe.checkpoint_every
        is_last = step == self._recipe.iterations
        validates = is_last or step % self._recipe.validation_interval == 0
        stops = self._agree(pl_module, all_of_them=validates or step % every == 0)
        if is_last:
            trainer.should_stop = True  # makes Lightning validate once more, whatever val_every is
        if validates:  # and saves after it
            return
        if stops or step % every == 0:
            self._save(trainer, LAST)
        if stops:
            raise StopSignal

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Keep the best and the last, and end where nothing has become better for long."""
        score = float(trainer.callback_metrics["val_miou"])
        # Of validations without a score the last one counts.
        is_better = self._best is None or self._best != self._best or score > self._best
        self._best, self._since_best = (score, 0) if is_better else (self._best, self._since_best + 1)
        self._save(trainer, LAST)
        if is_better and self._team.is_first:
            with _told(self._folder / BEST):
                _link(self._folder / LAST, self._folder / BEST)
        if self.has_ended_early:
            trainer.should_stop = True
        if self._agree(pl_module, all_of_them=True) and trainer.global_step < self._recipe.iterations:
            raise StopSignal

    def _agree(self, task: lightning.LightningModule, *, all_of_them: bool) -> bool:
        """Whether some process was told to end.

        Looking at the last loss of a GPU too makes it wait, which a checkpoint does anyway.

        Raises:
            ConfigError: This process is the first whose loss is no number.
            PeerEnded: Another one is.
        """
        assert isinstance(task, SegmentationTask)
        failure = task.watch.failure(all_of_them=all_of_them)
        mine = _STOP + self._team.size - self._team.rank if failure else _STOP if self._signal is not None else 0
        worst = self._team.worst(mine)
        if failure is not None and worst == mine:
            raise failure
        if worst > _STOP:
            raise PeerEnded(f"the loss is no number in process {_STOP + self._team.size - worst} of the run")
        return worst == _STOP

    def _save(self, trainer: lightning.Trainer, name: str) -> None:
        path = self._folder / name
        scratch = _partial(path)
        with _told(path):
            trainer.save_checkpoint(scratch)
            if self._team.is_first:
                with scratch.open("rb") as file:
                    os.fsync(file.fileno())
                scratch.replace(path)
        self.saved = trainer.global_step

    def _note(self, number: int, frame: Any) -> None:
        self._signal = number
        if not self._has_begun:  # the first windows may be a minute away, as processes start that read them
            raise StopSignal


class NormsOfFirst(lightning.Callback):
    """Without synchronised norms the first process's running statistics are everyone's after each step.

    torch's DDP copies them before every forward, in validations too, where processes have unequal numbers of windows
    and would wait for each other for ever.
    """

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Copy the statistics, all at once."""
        norms = [m for m in pl_module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        buffers = [b for norm in norms for b in (norm.running_mean, norm.running_var) if b is not None]
        if not buffers:
            return
        flat = torch.cat([buffer.flatten() for buffer in buffers])
        dist.broadcast(flat, src=0)
        for buffer, values in zip(buffers, torch.split(flat, [b.numel() for b in buffers]), strict=True):
            buffer.copy_(values.view_as(buffer))


def stopped(run: Path, step: int) -> RunStopped:
    """What a run that was told to end says."""
    if step == 0:
        return RunStopped(NOT_BEGUN)
    return RunStopped(f"stopped by a signal after iteration {step}; go on with --resume: {run}")


@contextmanager
def interruptible(run: Path, checkpoints: Checkpoints) -> Iterator[None]:
    """Say after Ctrl-C what is kept and how to go on."""
    try:
        yield
    except RunStopped:
        raise
    except KeyboardInterrupt as error:
        if checkpoints.saved is None:
            raise KeyboardInterrupt("interrupted before the first checkpoint: nothing is kept") from error
        kept = f"{run / 'checkpoints' / LAST} is of iteration {checkpoints.saved}"
        raise KeyboardInterrupt(f"interrupted; {kept}: go on from there with --resume") from error


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What keeps a checkpoint from being written, in words, and nothing half written."""
    try:
        yield
    except OSError as error:
        _partial(path).unlink(missing_ok=True)
        hint = "free some space and go on from the one before with --resume"
        raise output_error(f"cannot write checkpoint {path}", error, hint=hint) from error


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _link(source: Path, target: Path) -> None:
    """A second name for a file that is never changed in place; a copy where a disk has no links."""
    scratch = _partial(target)
    scratch.unlink(missing_ok=True)
    try:
        os.link(source, scratch)
    except OSError:
        shutil.copyfile(source, scratch)
    scratch.replace(target)
