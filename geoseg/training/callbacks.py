"""Callbacks between steps: checkpoints, early stopping, signals, and norms shared by all processes."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from torch import Tensor, nn

from geoseg.config.settings import RunConfig
from geoseg.files import output_error
from geoseg.training.failures import NOT_BEGUN, RunStopped
from geoseg.training.processes import PeerEnded, Team
from geoseg.training.task import SegmentationTask

BEST, LAST = "best.ckpt", "last.ckpt"

_STOP = 1
"""State of a process that received SIGTERM; larger for one whose loss is not finite, largest for the first process."""


class StopSignal(Exception):
    """Ends Lightning's loop after a checkpoint; becomes a `RunStopped`."""


class Checkpoints(Checkpoint):
    """The best checkpoint by validation mIoU, and the last one, from which ``--resume`` continues.

    The last one is written every ``checkpoint_every`` iterations, at validations, at the end and on SIGTERM. Files are
    renamed when complete, so a killed run leaves a complete one. Lightning calls a Checkpoint after all other
    callbacks, whose state it stores.
    """

    def __init__(self, folder: Path, recipe: RunConfig, team: Team) -> None:
        self._folder, self._recipe, self._team = folder, recipe, team
        self.best: float | None = None  # validation mIoU; NaN without a score
        self._since_best = 0
        self.step = 0  # iterations done
        self.saved: int | None = None  # iterations of the last checkpoint
        self._signal: int | None = None
        self._has_begun = False
        self._before: Any = None

    @property
    def has_ended_early(self) -> bool:
        """Whether mIoU has not improved for as many validations as ``patience``."""
        patience = self._recipe.patience
        return patience is not None and self._since_best >= patience

    def state_dict(self) -> dict[str, Any]:
        """The best score so far, and validations since, for checkpoints."""
        return {"best": self.best, "since_best": self._since_best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the scores of a checkpoint."""
        self.best, self._since_best = state_dict["best"], state_dict["since_best"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Handle SIGTERM instead of Lightning, which would end without a checkpoint."""
        self.step = trainer.global_step
        self.saved = self.step or None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        if trainer.received_sigterm:  # Lightning has caught it before
            raise StopSignal

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the handler of SIGTERM."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """From now on SIGTERM waits for the end of a step."""
        self._has_begun = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After a step, write the last checkpoint or end the run when due."""
        step = trainer.global_step
        if step == self.step:  # a forward pass that only accumulates gradients
            return
        self.step = step
        is_due = step % self._recipe.checkpoint_every == 0
        is_last = step == self._recipe.iterations
        validates = is_last or step % self._recipe.validation_interval == 0
        stops = self._agree(pl_module, all_of_them=validates or is_due)
        if is_last:
            trainer.should_stop = True  # Lightning then validates once more, whatever val_every is
        if validates:  # which saves afterwards
            return
        if stops or is_due:
            self._save(trainer)
        if stops:
            raise StopSignal

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last and the best checkpoint, and end if mIoU has not improved for long."""
        score = float(trainer.callback_metrics["val_miou"])
        # A score is better than none, and of validations without a score the last one counts.
        is_better = self.best is None or self.best != self.best or score > self.best
        self.best, self._since_best = (score, 0) if is_better else (self.best, self._since_best + 1)
        self._save(trainer)
        if is_better and self._team.is_first:
            with _reported(self._folder / BEST):
                _link(self._folder / LAST, self._folder / BEST)
        if self.has_ended_early:
            trainer.should_stop = True
        if self._agree(pl_module, all_of_them=True) and trainer.global_step < self._recipe.iterations:
            raise StopSignal

    def _agree(self, task: LightningModule, *, all_of_them: bool) -> bool:
        """Whether any process received SIGTERM; ``all_of_them`` checks the last loss too, for which a GPU waits.

        A `ConfigError` in the first process whose loss is not finite, a `PeerEnded` in the others.
        """
        assert isinstance(task, SegmentationTask)
        failure = task.watch.failure(all_of_them=all_of_them)
        mine = _STOP + self._team.size - self._team.rank if failure else _STOP if self._signal is not None else 0
        worst = self._team.worst(mine)
        if failure is not None and worst == mine:
            raise failure
        if worst > _STOP:
            raise PeerEnded(f"the loss is not finite in process {_STOP + self._team.size - worst} of the run")
        return worst == _STOP

    def _save(self, trainer: Trainer) -> None:
        path = self._folder / LAST
        scratch = _partial(path)
        with _reported(path):
            trainer.save_checkpoint(scratch)
            if self._team.is_first:
                with scratch.open("rb") as file:
                    os.fsync(file.fileno())
                scratch.replace(path)
        self.saved = trainer.global_step

    def _note(self, number: int, frame: Any) -> None:
        self._signal = number
        if not self._has_begun:  # reading processes may take a minute to start
            raise StopSignal


class NormsOfFirst(Callback):
    """Copies the running statistics of the first process to the others after each step, without synchronised norms.

    torch's DDP would copy them before every forward pass, also in validations, where processes have unequal numbers of
    windows and would wait for each other forever.
    """

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Copy all statistics at once."""
        norms = [m for m in pl_module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        buffers = [b for norm in norms for b in (norm.running_mean, norm.running_var) if b is not None]
        if not buffers:
            return
        flat = torch.cat([buffer.flatten() for buffer in buffers])
        dist.broadcast(flat, src=0)
        for buffer, values in zip(buffers, torch.split(flat, [b.numel() for b in buffers]), strict=True):
            buffer.copy_(values.view_as(buffer))


class MovingAverage(WeightAveraging):
    """Lightning's moving average of parameters and buffers, with a decay that grows to ``decay``.

    After step t it is ``d · average + (1 − d) · weights`` with ``d = min(decay, (1 + t) / (10 + t))``, so that
    the first steps are soon forgotten.
    """

    def __init__(self, decay: float) -> None:
        def update(average: list[Tensor], weights: list[Tensor], steps: Any) -> None:
            if average[0].is_floating_point():
                t = int(steps) + 1
                torch._foreach_lerp_(average, weights, 1 - min(decay, (1 + t) / (10 + t)))
            else:  # counters
                torch._foreach_copy_(average, weights)

        super().__init__(multi_avg_fn=update)


@contextmanager
def interruptible(run: Path, checkpoints: Checkpoints) -> Iterator[None]:
    """After SIGTERM or Ctrl-C, report what is kept and how to continue."""
    try:
        yield
    except StopSignal as error:
        after = f"stopped by a signal after iteration {checkpoints.step}; continue with --resume: {run}"
        raise RunStopped(after if checkpoints.step else NOT_BEGUN) from error
    except KeyboardInterrupt as error:
        if checkpoints.saved is None:
            raise KeyboardInterrupt("interrupted before the first checkpoint: nothing is kept") from error
        kept = f"{run / 'checkpoints' / LAST} is of iteration {checkpoints.saved}"
        raise KeyboardInterrupt(f"interrupted; {kept}: continue from there with --resume") from error


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Report why a checkpoint cannot be written, and leave nothing partial."""
    try:
        yield
    except OSError as error:
        _partial(path).unlink(missing_ok=True)
        hint = "free some space, then continue from the previous one with --resume"
        raise output_error(f"cannot write checkpoint {path}", error, hint=hint) from error


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _link(source: Path, target: Path) -> None:
    """A second name for a file that is never changed in place; a copy if the disk has no links."""
    scratch = _partial(target)
    scratch.unlink(missing_ok=True)
    try:
        os.link(source, scratch)
    except OSError:
        shutil.copyfile(source, scratch)
    scratch.replace(target)
