"""Training windows drawn live from scenes; no chips on disk."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from geoseg.config import TrainConfig
from geoseg.data.augment import Augmenter
from geoseg.data.labelled import LabelledScene
from geoseg.data.samples import Sample, WindowDataset
from geoseg.data.sampling import Sampler
from geoseg.windows import Window


class RandomWindows(WindowDataset):
    """Windows at random places, zooms and flips; window ``i`` is a function of the seed and ``start + i`` alone.

    So the windows do not depend on the number of workers, and a resumed run draws what it would have drawn.

    Args:
        scenes: Training scenes.
        settings: The experiment.
        length: Number of windows.
        start: Index of the first one, for a resumed run.
        std: Standard deviation of each band's scaled values, what random changes of brightness are measured by; None
            takes the configured ones, or each window's own where there are none.
        as_bytes: See `WindowDataset`.

    Raises:
        ConfigError: See `geoseg.data.sampling.Sampler`.
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
        unit = imagery.effective_scale if imagery.dtype == "uint8" else 1.0  # what `LabelledScene.read` leaves unscaled
        std = imagery.std if std is None else std
        spread = None if std is None else [value / unit for value in std]
        self._augment = Augmenter(settings.augment, size=settings.train.size, colors=colors, std=spread)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        index = self._start + index
        rng = self._rng(index)
        with self._reading():
            scene, window, labels = self._sampler.draw(rng)
            pixels, valid, labels = self.scenes[scene].read(window, labels)
        return self._sample(*self._augment(pixels, valid, labels, seed=int(rng.integers(2**31))), index)

    def place(self, index: int) -> tuple[str, Window]:
        """Scene and window that an item was drawn from, by the item's ``index``; to name what is wrong with it."""
        with self._reading():
            scene, window, _ = self._sampler.draw(self._rng(index))
        return str(self.scenes[scene].config.scene), window

    def _rng(self, index: int) -> np.random.Generator:
        return np.random.default_rng((self._seed, index))
