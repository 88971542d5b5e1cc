"""Training windows drawn live from scenes, and validation windows that cover them; no chips on disk."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from geoseg.augment import Augmenter
from geoseg.classes import NODATA
from geoseg.config import TrainConfig
from geoseg.datasets.labelled import LabelledScene
from geoseg.datasets.labels import LabelArray
from geoseg.grid import Grid
from geoseg.scene import Valid
from geoseg.windows import Window, window_grid

Sample = dict[str, Tensor]

DRAWS = 10
"""How often a window ruled by one class is redrawn, as in SegNeXt's training (mmsegmentation's cat_max_ratio)."""


class _WindowDataset(Dataset[Sample]):
    """Common to training and validation windows: arrays of a window as tensors."""

    def __init__(self, scenes: list[LabelledScene], scale: float) -> None:
        self.scenes = scenes
        self._scale = np.float32(scale)

    def _sample(self, pixels: npt.NDArray[Any], valid: Valid, labels: LabelArray) -> Sample:
        scaled = pixels.astype(np.float32) * self._scale if pixels.dtype == np.uint8 else pixels
        return {name: torch.from_numpy(a) for name, a in (("pixels", scaled), ("valid", valid), ("labels", labels))}


class RandomWindows(_WindowDataset):
    """Windows at random places, zooms and flips; window ``i`` is a function of the seed and ``i`` alone.

    So the windows do not depend on the number of workers, and a resumed run draws what it would have drawn.

    Args:
        scenes: Training scenes; each is drawn in proportion to its pixels.
        settings: The experiment.
        length: Number of windows.
        start: Index of the first one, for a resumed run.
    """

    def __init__(self, scenes: list[LabelledScene], settings: TrainConfig, *, length: int, start: int = 0) -> None:
        super().__init__(scenes, settings.imagery.effective_scale)
        self._seed, self._length, self._start = settings.seed, length, start
        self._size = settings.train.size
        self._zoom = settings.augment.scale
        self._max_share = settings.train.max_class_share
        pixels = np.array([s.grid.height * s.grid.width for s in scenes], dtype=float)
        self._share = pixels / pixels.sum()
        colors = settings.imagery.dtype == "uint8" and settings.imagery.bands == ("red", "green", "blue")
        self._augment = Augmenter(settings.augment, size=self._size, colors=colors)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng((self._seed, self._start + index))
        for _ in range(DRAWS):
            scene = self.scenes[rng.choice(len(self.scenes), p=self._share)]
            window = self._draw(scene.grid, rng)
            if self._is_mixed(scene.labels.read(window)):
                break
        return self._sample(*self._augment(*scene.read(window), seed=int(rng.integers(2**31))))

    def _draw(self, grid: Grid, rng: np.random.Generator) -> Window:
        """A square window whose side is the training size over a random zoom; inside the scene where it fits."""
        zoom = np.exp(rng.uniform(*np.log(self._zoom)))
        side = max(round(self._size / zoom), 1)
        starts = [int(rng.integers(min(0, n - side), max(0, n - side) + 1)) for n in grid.shape]
        return Window(starts[0], starts[1], side, side)

    def _is_mixed(self, labels: LabelArray) -> bool:
        counts = np.bincount(labels.ravel(), minlength=NODATA + 1)[:NODATA]
        mixed = (counts > 0).sum() > 1 and counts.max() < self._max_share * counts.sum()
        return self._max_share == 1 or bool(mixed)


class CoveringWindows(_WindowDataset):
    """Windows side by side that cover every scene once; what a window shares with the one before is ignored.

    Args:
        scenes: Validation scenes.
        settings: The experiment.
    """

    def __init__(self, scenes: list[LabelledScene], settings: TrainConfig) -> None:
        super().__init__(scenes, settings.imagery.effective_scale)
        size = settings.window.size
        self._size = size
        self._items = [
            (i, Window(w.row, w.col, size, size), w.row % size, w.col % size)
            for i, scene in enumerate(scenes)
            for w in window_grid(*scene.grid.shape, size=size, overlap=0)
        ]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Sample:
        scene, window, shared_rows, shared_cols = self._items[index]
        pixels, valid, labels = self.scenes[scene].read(window)
        if shared_rows:
            labels[: self._size - shared_rows] = NODATA
        if shared_cols:
            labels[:, : self._size - shared_cols] = NODATA
        return self._sample(pixels, valid, labels)
