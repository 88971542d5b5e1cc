"""How a run goes, in one line on standard error."""

from __future__ import annotations

import time
from typing import Any

import lightning
from tqdm import tqdm

from geoseg.training.callbacks import Checkpoints

REFRESH_S = 1.0
"""Asking a GPU for the loss makes it wait, so it is not asked at every step."""


class ProgressLine(lightning.Callback):
    """Iterations done and time left, with loss, learning rate, and the last and the best mIoU of validations.

    Args:
        iterations: Of the whole run.
        checkpoints: Knows the best mIoU.
    """

    def __init__(self, iterations: int, checkpoints: Checkpoints) -> None:
        self._iterations, self._checkpoints = iterations, checkpoints
        self._bar: tqdm[Any] | None = None
        self._shown = 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begin, or go on where the run does."""
        start = trainer.global_step
        self._bar = tqdm(total=self._iterations, initial=start, desc="train", unit="it", dynamic_ncols=True)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a step; forwards that only gather gradients are none."""
        if self._bar is not None and trainer.global_step > self._bar.n:
            if time.monotonic() - self._shown > REFRESH_S:
                self._show(trainer)
            self._bar.update(trainer.global_step - self._bar.n)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Say what takes time now."""
        if self._bar is not None:
            self._bar.set_description("validate")

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Go back to the training."""
        if self._bar is not None:
            self._bar.set_description("train")

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Leave the line with the last numbers."""
        if self._bar is not None:
            self._show(trainer)
            self._bar.close()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Leave the line as it is."""
        if self._bar is not None:
            self._bar.close()

    def _show(self, trainer: lightning.Trainer) -> None:
        assert self._bar is not None
        self._shown = time.monotonic()
        metrics, best = trainer.callback_metrics, self._checkpoints.best
        shown = {"loss": f"{float(metrics['loss']):.4f}"} if "loss" in metrics else {}
        shown["lr"] = f"{trainer.optimizers[0].param_groups[0]['lr']:.2g}"
        if "val_miou" in metrics:
            shown["mIoU"] = f"{float(metrics['val_miou']):.4f}"
        if best is not None:
            shown["best"] = f"{best:.4f}"
        self._bar.set_postfix(shown, refresh=False)
