"""A training window at its size, changed at random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import albumentations as A
import numpy as np
import numpy.typing as npt

from geoseg.config import AugmentConfig
from geoseg.data.augment.distortion import distort, draw_changes
from geoseg.data.augment.photometric import Photometric
from geoseg.data.augment.resizing import resize_window
from geoseg.errors import ConfigError

Valid = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.uint8]


class Augmenter:
    """Resize a window to the training size and change it at random, the same way for the same seed.

    Args:
        config: What may change, and how much.
        size: Side of the result, px.
        colors: True where the channels are red, green and blue as 8 bit, so that hue means something.
        std: Standard deviation of each band over the data set, in units of the pixels given (for uint8 that of the
            bytes), which brightness and noise are shares of; None takes each window's own. See `Photometric`.

    Raises:
        ConfigError: SegNeXt's distortion asked for other imagery than red, green and blue of 8 bit.
    """

    def __init__(self, config: AugmentConfig, *, size: int, colors: bool, std: Sequence[float] | None = None) -> None:
        if config.distortion and not colors:
            raise ConfigError(
                "augment.distortion is for imagery of red, green and blue in 8 bit, and this is other imagery",
                hint="augment.distortion=false, and brightness, contrast and band_gain, which are for any bands",
            )
        self._size = size
        self._distortion = config.distortion
        self._photometric = Photometric(config, colors=colors, std=std)
        self._turns: Any = None
        if config.dihedral:  # which holds the flip
            self._turns = A.Compose([A.D4(p=1)])
        elif config.horizontal_flip:
            self._turns = A.Compose([A.HorizontalFlip(p=0.5)])

    def __call__(
        self, pixels: npt.NDArray[Any], valid: Valid, labels: Labels, *, seed: int
    ) -> tuple[npt.NDArray[Any], Valid, Labels]:
        """A changed window.

        Args:
            pixels: (B, H, W), uint8, or scaled as float32; other types become float32.
            valid: (H, W), False where the pixels mean nothing.
            labels: Class ids (H, W), 255 to be ignored.
            seed: Decides every random choice.

        Returns:
            Pixels (B, size, size) in the same dtype, 0 where invalid; valid and labels (size, size).
        """
        if pixels.dtype != np.uint8:
            pixels = pixels.astype(np.float32, copy=False)
        if not valid.all():
            pixels = np.where(valid, pixels, pixels.dtype.type(0))
        pixels, valid, labels = resize_window(pixels, valid, labels, self._size)
        if self._turns is not None:
            pixels, valid, labels = self._turned(pixels, valid, labels, seed)
        # Not the numbers that albumentations draws from the same seed
        rng = np.random.default_rng((seed, 1))
        if self._distortion:
            pixels = np.where(valid, distort(pixels, draw_changes(rng)), np.uint8(0))
        pixels = self._photometric(pixels, valid, rng)
        return np.ascontiguousarray(pixels), np.ascontiguousarray(valid), np.ascontiguousarray(labels)

    def _turned(
        self, pixels: npt.NDArray[Any], valid: Valid, labels: Labels, seed: int
    ) -> tuple[npt.NDArray[Any], Valid, Labels]:
        # Every band goes as a mask: albumentations turns these one by one, in the layout they have.
        self._turns.set_random_seed(seed)
        result = self._turns(image=labels, masks=[valid.astype(np.uint8), *pixels])
        turned_valid, *bands = result["masks"]
        return np.stack(bands), turned_valid.astype(bool), result["image"]
