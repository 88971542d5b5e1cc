"""A training window at its size, changed at random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import albumentations as A
import numpy as np

from geoseg.arrays import AnyArray, ByteArray, Pixels, Valid
from geoseg.config import AugmentConfig
from geoseg.data.augment.distortion import distort, draw_changes
from geoseg.data.augment.photometric import Photometric
from geoseg.data.augment.resizing import resize_window
from geoseg.errors import ConfigError


class Augmenter:
    """Resize a window to the training size and change it at random, the same way for the same seed.

    Args:
        config: What may change, and how much.
        size: Side of the result, px.
        colors: Whether the bands are red, green and blue in 8 bit, so that hue means something.
        std: Standard deviation of each band over the data set, in units of the pixels; None takes each window's own.
            See `Photometric`.

    Raises:
        ConfigError: SegNeXt's distortion for other imagery than red, green and blue in 8 bit.
    """

    def __init__(self, config: AugmentConfig, *, size: int, colors: bool, std: Sequence[float] | None = None) -> None:
        if config.distortion and not colors:
            raise ConfigError(
                "augment.distortion works for red, green and blue in 8 bit only",
                hint="augment.distortion=false, and brightness, contrast and band_gain, which work for any bands",
            )
        self._size = size
        self._distortion = config.distortion
        self._photometric = Photometric(config, colors=colors, std=std)
        self._turns: Any = None
        if config.dihedral:  # includes the flip
            self._turns = A.Compose([A.D4(p=1)])
        elif config.horizontal_flip:
            self._turns = A.Compose([A.HorizontalFlip(p=0.5)])

    def __call__(
        self, pixels: Pixels, valid: Valid, labels: ByteArray, *, seed: int
    ) -> tuple[AnyArray, Valid, ByteArray]:
        """A changed window: pixels (B, size, size), 0 where invalid, valid and labels (size, size).

        Args:
            pixels: (B, H, W), uint8, or scaled as float32; other types become float32.
            valid: (H, W).
            labels: Class ids (H, W), 255 to be ignored.
            seed: Decides every random choice.
        """
        if pixels.dtype != np.uint8:
            pixels = pixels.astype(np.float32, copy=False)
        if not valid.all():
            pixels = np.where(valid, pixels, pixels.dtype.type(0))
        pixels, valid, labels = resize_window(pixels, valid, labels, self._size)
        if self._turns is not None:
            # Bands are passed as masks: albumentations turns these one by one, in the layout they have.
            self._turns.set_random_seed(seed)
            result = self._turns(image=labels, masks=[valid.astype(np.uint8), *pixels])
            turned_valid, *bands = result["masks"]
            pixels, valid, labels = np.stack(bands), turned_valid.astype(bool), result["image"]
        rng = np.random.default_rng((seed, 1))  # other numbers than albumentations draws from the seed
        if self._distortion:
            pixels = np.where(valid, distort(pixels, draw_changes(rng)), np.uint8(0))
        pixels = self._photometric(pixels, valid, rng)
        return np.ascontiguousarray(pixels), np.ascontiguousarray(valid), np.ascontiguousarray(labels)
