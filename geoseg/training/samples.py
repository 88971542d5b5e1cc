"""Pictures for TensorBoard: imagery, labels and prediction of a few validation windows, side by side."""

from __future__ import annotations

import lightning
import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import Dataset

from geoseg.classes import NODATA, ClassTable

PICTURES = 4
LARGEST_PX = 512
NOTHING = (128, 128, 128)
"""Colour of what is not labelled."""

Picture = npt.NDArray[np.uint8]


class SamplePictures(lightning.Callback):
    """Draw the same few validation windows at every validation.

    Args:
        windows: Validation windows; those drawn are spread evenly over them.
        classes: Their colours.
    """

    def __init__(self, windows: Dataset[dict[str, Tensor]], classes: ClassTable) -> None:
        count = len(windows)  # type: ignore[arg-type]
        chosen = sorted({int(i) for i in np.linspace(0, count - 1, min(PICTURES, count))})
        self._samples = [windows[i] for i in chosen]
        self._classes = classes

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Predict and draw."""
        boards = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        for i, sample in enumerate(self._samples):
            pixels, valid = (sample[key][None].to(pl_module.device) for key in ("pixels", "valid"))
            with trainer.precision_plugin.val_step_context():
                predicted = pl_module(pixels, valid).argmax(1)[0].cpu().numpy()
            picture = draw_sample(sample, predicted, self._classes)
            for board in boards:
                board.add_image(f"window {i}", picture, trainer.global_step, dataformats="HWC")


def draw_sample(sample: dict[str, Tensor], predicted: npt.NDArray[np.integer], classes: ClassTable) -> Picture:
    """Imagery, labels and prediction (H, W) of a window side by side, (H, 3 W, 3); of large ones every n-th pixel."""
    valid = sample["valid"].numpy()
    shown = np.where(valid, predicted, NODATA)
    parts = [stretched(sample["pixels"].numpy(), valid)]
    parts += [colored(ids, classes) for ids in (sample["labels"].numpy(), shown)]
    step = -(-valid.shape[0] // LARGEST_PX)
    return np.concatenate([part[::step, ::step] for part in parts], axis=1)


def colored(ids: npt.NDArray[np.integer], classes: ClassTable) -> Picture:
    """Class ids (H, W) in their colours, (H, W, 3); 255 is grey."""
    table = np.full((NODATA + 1, 3), NOTHING, np.uint8)
    for c in classes:
        table[c.id] = c.color
    picture: Picture = table[ids]
    return picture


def stretched(pixels: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_]) -> Picture:
    """The first three bands (B, H, W) from 2nd to 98th percentile, (H, W, 3); of fewer the first one in grey."""
    bands = pixels[:3] if len(pixels) >= 3 else pixels[[0, 0, 0]]
    picture = np.zeros((*valid.shape, 3), np.uint8)
    for i, band in enumerate(bands):
        if valid.any():
            low, high = np.percentile(band[valid], (2, 98))
            shade = (band - low) / max(high - low, 1e-6)
            picture[..., i] = np.where(valid, np.clip(np.nan_to_num(shade), 0, 1) * 255, 0)
    return picture
