"""What training and validation windows have in common: arrays as tensors, and how much GDAL keeps decoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import torch
from torch import Tensor
from torch.utils.data import Dataset

from geoseg.config import TrainConfig
from geoseg.data.labelled import LabelledScene
from geoseg.data.labels import LabelArray
from geoseg.scene import Valid

Sample = dict[str, Tensor]
"""A window: ``pixels`` (B, H, W), scaled float32 or uint8 (see `WindowDataset`), ``valid`` bool (H, W), ``labels``
uint8 (H, W) with 255 to be ignored, ``index`` int64, by which its data set tells where it lies."""


class WindowDataset(Dataset[Sample]):
    """Windows of labelled scenes. It travels to worker processes with its files closed.

    Args:
        scenes: Labelled scenes.
        settings: The experiment.
        as_bytes: Leave pixels of 8 bit as they are: a quarter of the bytes on their way from a worker process. Who
            gets them multiplies by ``imagery.effective_scale``, and has what would have come without this.
    """

    def __init__(self, scenes: Sequence[LabelledScene], settings: TrainConfig, *, as_bytes: bool = False) -> None:
        self.scenes = list(scenes)
        self._scale = None if as_bytes else np.float32(settings.imagery.effective_scale)
        self._cache_bytes = settings.train.cache_mb << 20

    def _reading(self) -> rasterio.Env:
        """While windows are read, GDAL keeps ``train.cache_mb`` of decoded blocks; its own limit is 5 % of the RAM."""
        return rasterio.Env(GDAL_CACHEMAX=self._cache_bytes)

    def _sample(self, pixels: npt.NDArray[Any], valid: Valid, labels: LabelArray, index: int) -> Sample:
        if pixels.dtype == np.uint8 and self._scale is not None:
            pixels = np.multiply(pixels, self._scale, dtype=np.float32)
        sample = {name: torch.from_numpy(a) for name, a in (("pixels", pixels), ("valid", valid), ("labels", labels))}
        return {**sample, "index": torch.tensor(index, dtype=torch.int64)}
