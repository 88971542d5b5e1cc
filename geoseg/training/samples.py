"""Pictures for TensorBoard: imagery, labels and prediction of a few validation windows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import Dataset

from geoseg.arrays import BoolArray, ByteArray, Float32Array
from geoseg.classes import NODATA, ClassTable

PICTURES = 4
LARGEST_PX = 512
NOTHING = (128, 128, 128)
"""Colour of unlabelled pixels."""
CONTACT = (255, 255, 255)


class SamplePictures(Callback):
    """Draw the same few validation windows at every validation."""

    def __init__(self, windows: Dataset[dict[str, Tensor]], classes: ClassTable) -> None:
        count = len(windows)  # type: ignore[arg-type]
        chosen = sorted({int(i) for i in np.linspace(0, count - 1, min(PICTURES, count))})
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
    """Imagery, labels and prediction (H, W) of a window side by side, (H, 3 W, 3); large ones are thinned out."""
    valid = sample["valid"].numpy()
    shown = np.where(valid, predicted, NODATA)
    parts = [stretched(sample["pixels"].numpy(), valid)]
    parts += [colored(ids, classes) for ids in (sample["labels"].numpy(), shown)]
    step = -(-valid.shape[0] // LARGEST_PX)
    return np.concatenate([part[::step, ::step] for part in parts], axis=1)


def colored(ids: npt.NDArray[np.integer], classes: ClassTable) -> ByteArray:
    """Logit channels (H, W) in their colours, (H, W, 3): contacts are white, 255 is grey."""
    table = np.full((NODATA + 1, 3), NOTHING, np.uint8)
    table[: len(classes.channels)] = CONTACT
    for c in classes:
        table[c.id] = c.color
    picture: ByteArray = table[ids]
    return picture


def stretched(pixels: Float32Array, valid: BoolArray) -> ByteArray:
    """The first three bands, or one in grey, (B, H, W) stretched from 2nd to 98th percentile, (H, W, 3)."""
    bands = pixels[:3] if len(pixels) >= 3 else pixels[[0, 0, 0]]
    picture = np.zeros((*valid.shape, 3), np.uint8)
    for i, band in enumerate(bands):
        if valid.any():
            low, high = np.percentile(band[valid], (2, 98))
            shade = (band - low) / max(high - low, 1e-6)
            picture[..., i] = np.where(valid, np.clip(np.nan_to_num(shade), 0, 1) * 255, 0)
    return picture
