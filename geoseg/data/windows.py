"""Windows of labelled scenes as torch data sets: random ones to train on, and ones that cover what validates."""

from collections.abc import Iterator, Sequence

import numpy as np
import rasterio
import torch
from torch import Tensor
from torch.utils.data import Dataset

from geoseg.arrays import AnyArray, ByteArray, Valid
from geoseg.classes import NODATA
from geoseg.config import TrainConfig
from geoseg.data.augment import Augmenter
from geoseg.data.labelled import LabelledScene
from geoseg.data.sampling import Sampler
from geoseg.windows import Window, round_up, window_grid

Sample = dict[str, Tensor]
"""A window: ``pixels`` (B, H, W), scaled float32 or uint8 (see `WindowDataset`), ``valid`` bool (H, W), ``labels``
uint8 (H, W) with 255 to be ignored, ``index`` int64, from which its data set tells its place."""


class WindowDataset(Dataset[Sample]):
    """Windows of labelled scenes. It travels to worker processes with its files closed.

    ``as_bytes`` leaves 8-bit pixels unscaled: a quarter of the bytes from a worker process. The receiver multiplies
    them by ``imagery.effective_scale``.
    """

    def __init__(self, scenes: Sequence[LabelledScene], settings: TrainConfig, *, as_bytes: bool = False) -> None:
        self.scenes = list(scenes)
        self._scale = None if as_bytes else np.float32(settings.imagery.effective_scale)
        self._cache_bytes = settings.train.cache_mb << 20

    def _reading(self) -> rasterio.Env:
        """GDAL caches ``train.cache_mb`` of decoded blocks; by default it would take 5 % of the RAM."""
        return rasterio.Env(GDAL_CACHEMAX=self._cache_bytes)

    def _read(self, scene: int, window: Window, labels: ByteArray | None = None) -> tuple[AnyArray, Valid, ByteArray]:
        """Pixels, valid and labels of a window; the labels are logit channels, contacts of objects among them."""
        labelled = self.scenes[scene]
        pixels, valid, labels = labelled.read(window, labels)
        return pixels, valid, labels if labelled.touching is None else labelled.touching.mark(labels, window)

    def _sample(self, pixels: AnyArray, valid: Valid, labels: ByteArray, index: int) -> Sample:
        if pixels.dtype == np.uint8 and self._scale is not None:
            pixels = np.multiply(pixels, self._scale, dtype=np.float32)
        arrays = {"pixels": pixels, "valid": valid, "labels": labels, "index": np.array(index, dtype=np.int64)}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


class RandomWindows(WindowDataset):
    """Windows at random places, zooms and flips; window ``i`` depends on the seed and ``start + i`` alone.

    So windows do not depend on the number of workers, and a resumed run draws the same ones. ``std`` is the standard
    deviation of each band's scaled values, the unit of random brightness and noise; None takes the configured ones, or
    each window's own.
    """

    def __init__(
        self,
        scenes: Sequence[LabelledScene],
        settings: TrainConfig,
        *,
        length: int,
        start: int = 0,
        std: Sequence[float] | None = None,
        as_bytes: bool = False,
    ) -> None:
        super().__init__(scenes, settings, as_bytes=as_bytes)
        self._seed, self._length, self._start = settings.seed, length, start
        with self._reading():
            self._sampler = Sampler(self.scenes, settings)
        imagery = settings.imagery
        colors = imagery.dtype == "uint8" and imagery.bands == ("red", "green", "blue")
        unit = imagery.effective_scale if imagery.dtype == "uint8" else 1.0  # `LabelledScene.read` does not scale it
        std = imagery.std if std is None else std
        spread = None if std is None else [value / unit for value in std]
        self._augment = Augmenter(settings.augment, size=settings.train.size, colors=colors, std=spread)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        index = self._start + index
        rng = np.random.default_rng((self._seed, index))
        with self._reading():
            scene, window, labels = self._sampler.draw(rng)
            pixels, valid, labels = self._read(scene, window, labels)
        return self._sample(*self._augment(pixels, valid, labels, seed=int(rng.integers(2**31))), index)

    def place(self, index: int) -> tuple[str, Window]:
        """Scene and window that an item was drawn from, by the item's ``index``."""
        with self._reading():
            scene, window, _ = self._sampler.draw(np.random.default_rng((self._seed, index)))
        return str(self.scenes[scene].config.scene), window


class CoveringWindows(WindowDataset):
    """Windows of one size, side by side, that cover every scene, or every block that validates.

    Labels outside the block, and those a window shares with the one before, are 255: each pixel counts once.
    """

    def __init__(self, scenes: Sequence[LabelledScene], settings: TrainConfig, *, as_bytes: bool = False) -> None:
        super().__init__(scenes, settings, as_bytes=as_bytes)
        self._items = [
            (i, window, counted)
            for i, scene in enumerate(self.scenes)
            for block in ([Window(0, 0, *scene.grid.shape)] if scene.split is None else scene.split.validation)
            for window, counted in _cover(block, settings.window.size)
        ]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Sample:
        scene, window, counted = self._items[index]
        with self._reading():
            pixels, valid, labels = self._read(scene, window)
        row, col = counted.row - window.row, counted.col - window.col
        labels[:row] = labels[row + counted.height :] = NODATA
        labels[:, :col] = labels[:, col + counted.width :] = NODATA
        return self._sample(pixels, valid, labels, index)

    def place(self, index: int) -> tuple[str, Window]:
        """Scene and window of an item."""
        scene, window, _ = self._items[index]
        return str(self.scenes[scene].config.scene), window


def _cover(block: Window, size: int) -> Iterator[tuple[Window, Window]]:
    """Windows that cover a block, and the part of each that counts."""
    for w in window_grid(block.height, block.width, size=size, overlap=0):
        # The last window of a row is moved back over the one before.
        row, col = round_up(w.row, size), round_up(w.col, size)
        height, width = min(w.row + size, block.height) - row, min(w.col + size, block.width) - col
        yield (
            Window(block.row + w.row, block.col + w.col, size, size),
            Window(block.row + row, block.col + col, height, width),
        )
