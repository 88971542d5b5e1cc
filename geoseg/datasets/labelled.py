"""A scene and its labels, read together window by window."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from geoseg.classes import NODATA
from geoseg.config import ImageryConfig, SceneConfig, TrainConfig
from geoseg.datasets.labels import LabelArray, Labels, open_labels
from geoseg.errors import SceneError
from geoseg.grid import Grid
from geoseg.scene import Scene, Valid
from geoseg.windows import Window


class LabelledScene:
    """A scene and its labels, opened where they are read: it travels to worker processes closed.

    Raises:
        SceneError: A raster that cannot be read, or with another dtype or too few bands.
        LabelError: See `geoseg.datasets.labels.open_labels`.
    """

    def __init__(self, config: SceneConfig, settings: TrainConfig) -> None:
        self.config = config
        self._imagery = settings.imagery
        self._scene: Scene | None = None
        scene = self.scene
        wanted = self._imagery.dtype
        if scene.dtype != wanted:
            raise SceneError(
                f"scene {config.scene} is {scene.dtype}, the configuration says {wanted}",
                hint=f"set imagery.dtype={scene.dtype}",
            )
        self.grid: Grid = scene.grid
        self.labels: Labels = open_labels(config, self.grid, settings.class_table)

    @property
    def scene(self) -> Scene:
        """The open scene."""
        if self._scene is None:
            self._scene = open_configured(self.config, self._imagery)
        return self._scene

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_scene": None}

    def read(self, window: Window) -> tuple[npt.NDArray[Any], Valid, LabelArray]:
        """Pixels (B, H, W) ready to augment, valid (H, W), and labels (H, W), 255 where the pixels are invalid.

        Pixels of 8 bit stay as they are; others come as float32 scaled by the configuration. Invalid pixels hold 0.
        """
        pixels, valid = self.scene.read(window, reflect_valid=True)
        labels = np.where(valid, self.labels.read(window), NODATA).astype(np.uint8)
        if pixels.dtype != np.uint8:
            pixels = pixels.astype(np.float32) * np.float32(self._imagery.effective_scale)
        return np.where(valid, pixels, 0).astype(pixels.dtype), valid, labels


def open_configured(config: SceneConfig, imagery: ImageryConfig) -> Scene:
    """The scene of an entry with the configured bands, nodata and alpha."""
    nodata = imagery.nodata if isinstance(imagery.nodata, float) else None
    return Scene(config.scene, bands=imagery.band_indexes, nodata=nodata, alpha=imagery.alpha)
