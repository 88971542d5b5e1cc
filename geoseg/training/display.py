"""What a run shows: the table of its log, a line of progress, and pictures of validation windows."""

from __future__ import annotations

import csv
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from geoseg.arrays import BoolArray, ByteArray, Float32Array
from geoseg.classes import NODATA, ClassTable
from geoseg.scene.shades import shades, stretch
from geoseg.training.callbacks import Checkpoints

REFRESH_S = 1.0
"""Reading the loss makes a GPU wait, so it is not read at every step."""


class MetricsTable(Logger):
    """Rows of ``step`` and what was logged; a resumed run keeps those before its ``start``.

    Lightning's own logger deletes the table of a resumed run.
    """

    def __init__(self, path: Path, *, start: int = 0) -> None:
        super().__init__()
        self._path = path
        self._rows: list[dict[str, Any]] = []
        self._fields = ["step"]
        self._is_written = False
        if start and path.exists():
            # A killed run may have left a partial row at the end.
            text = path.read_text(encoding="utf-8").rpartition("\n")[0]
            reader = csv.DictReader(text.splitlines())
            self._rows = [row for row in reader if int(row["step"]) < start]
            self._fields = list(reader.fieldnames or self._fields)

    name, version = "table", ""  # required by Lightning

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: they are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row; with a new column the whole table is written again."""
        row = {"step": step, **{key: value for key, value in metrics.items() if key != "epoch"}}
        self._rows.append(row)
        new = [key for key in row if key not in self._fields]
        self._fields += new
        is_whole = bool(new) or not self._is_written
        scratch = self._path.with_name(f".{self._path.name}.partial")
        with (scratch if is_whole else self._path).open("w" if is_whole else "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=self._fields)
            if is_whole:
                writer.writeheader()
            writer.writerows(self._rows if is_whole else [row])
        if is_whole:
            scratch.replace(self._path)
            self._is_written = True


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


class SamplePictures(Callback):
    """Draw the same four validation windows at every validation."""

    def __init__(self, windows: Dataset[dict[str, Tensor]], classes: ClassTable) -> None:
        count = len(windows)  # type: ignore[arg-type]
        chosen = sorted({int(i) for i in np.linspace(0, count - 1, min(4, count))})
        self._samples = [windows[i] for i in chosen]
        self._classes = classes

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Predict and draw."""
        boards = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        for i, sample in enumerate(self._samples):
            pixels, valid = (sample[key][None].to(pl_module.device) for key in ("pixels", "valid"))
            with trainer.precision_plugin.val_step_context():
                predicted = pl_module(pixels, valid).argmax(1)[0].cpu().numpy()
            picture = draw_sample(sample, predicted, self._classes)
            for board in boards:
                board.add_image(f"window {i}", picture, trainer.global_step, dataformats="HWC")


def draw_sample(sample: dict[str, Tensor], predicted: npt.NDArray[np.integer], classes: ClassTable) -> ByteArray:
    """Imagery, labels and prediction (H, W) of a window side by side, (H, 3 W, 3), above 512 px thinned out."""
    valid = sample["valid"].numpy()
    shown = np.where(valid, predicted, NODATA)
    parts = [stretched(sample["pixels"].numpy(), valid)]
    parts += [colored(ids, classes) for ids in (sample["labels"].numpy(), shown)]
    step = -(-valid.shape[0] // 512)
    return np.concatenate([part[::step, ::step] for part in parts], axis=1)


def colored(ids: npt.NDArray[np.integer], classes: ClassTable) -> ByteArray:
    """Logit channels (H, W) in their colours, (H, W, 3): contacts are white, 255 is grey."""
    table = np.full((NODATA + 1, 3), 128, np.uint8)
    table[: len(classes.channels)] = 255
    for c in classes:
        table[c.id] = c.color
    picture: ByteArray = table[ids]
    return picture


def stretched(pixels: Float32Array, valid: BoolArray) -> ByteArray:
    """The first three bands, or one in grey, (B, H, W) stretched from 2nd to 98th percentile, (H, W, 3)."""
    bands = pixels[:3] if len(pixels) >= 3 else pixels[[0, 0, 0]]
    picture = np.zeros((*valid.shape, 3), np.uint8)
    for i, band in enumerate(bands):
        picture[valid, i] = shades(band[valid], *stretch(band[valid]))
    return picture
