"""Progress of a run in one line on standard error."""

from __future__ import annotations

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer
from tqdm import tqdm

from geoseg.training.callbacks import Checkpoints

REFRESH_S = 1.0
"""Reading the loss makes a GPU wait, so it is not read at every step."""


class ProgressLine(Callback):
    """Iterations done and time left, with loss, learning rate, and the last and the best mIoU of validations."""

    def __init__(self, iterations: int, checkpoints: Checkpoints) -> None:
        self._iterations, self._checkpoints = iterations, checkpoints
        self._bar: tqdm[Any] = tqdm(disable=True)
        self._shown = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, or continue where the run does."""
        start = trainer.global_step
        self._bar = tqdm(total=self._iterations, initial=start, desc="train", unit="it", dynamic_ncols=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count steps, not forward passes that only accumulate gradients."""
        if trainer.global_step > self._bar.n:
            if time.monotonic() - self._shown > REFRESH_S:
                self._show(trainer)
            self._bar.update(trainer.global_step - self._bar.n)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show that validation has begun."""
        self._bar.set_description("validate")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show that training goes on."""
        self._bar.set_description("train")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the last numbers."""
        self._show(trainer)
        self._bar.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the line as it is."""
        self._bar.close()

    def _show(self, trainer: Trainer) -> None:
        self._shown = time.monotonic()
        metrics, best = trainer.callback_metrics, self._checkpoints.best
        shown = {"loss": f"{float(metrics['loss']):.4f}"} if "loss" in metrics else {}
        shown["lr"] = f"{trainer.optimizers[0].param_groups[0]['lr']:.2g}"
        if "val_miou" in metrics:
            shown["mIoU"] = f"{float(metrics['val_miou']):.4f}"
        if best is not None:
            shown["best"] = f"{best:.4f}"
        self._bar.set_postfix(shown, refresh=False)
