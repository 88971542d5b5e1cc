"""A training window at its size, changed at random: resized, turned, then `photometric`."""

from collections.abc import Sequence
from typing import Any

import albumentations as A
import cv2
import numpy as np

from geoseg.arrays import AnyArray, ByteArray, Pixels, Valid
from geoseg.config import AugmentConfig
from geoseg.data.augment.photometric import Photometric, distort, draw_changes
from geoseg.errors import ConfigError


class Augmenter:
    """Resize a window to the training size and change it at random, the same way for the same seed.

    ``size`` is the side of the result, px; ``colors`` says whether the bands are red, green and blue in 8 bit, so that
    hue means something, which SegNeXt's distortion requires; for ``std`` see `Photometric`.
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

        Pixels are uint8, or scaled as float32 (other types become float32), (B, H, W). The seed decides every choice.
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


def resize_window(pixels: Pixels, valid: Valid, labels: ByteArray, size: int) -> tuple[Pixels, Valid, ByteArray]:
    """Pixels, valid and labels at ``size`` × ``size`` px, unchanged if they have that size.

    Pixels, 0 where invalid, are bilinear and keep their dtype; a pixel beside a hole is the weighted mean of its valid
    neighbours. Labels and validity come from the pixel that contains the new pixel's centre, so they do not shift
    against the imagery.
    """
    if valid.shape == (size, size):
        return pixels, valid, labels
    pixels = np.ascontiguousarray(pixels)
    new_labels = _nearest(labels, size)
    if valid.all():
        return np.stack([_linear(band, size) for band in pixels]), np.ones((size, size), dtype=bool), new_labels
    new_valid = _nearest(valid.astype(np.uint8), size).astype(bool)
    weight = _linear(valid.astype(np.float32), size)
    # The nearest pixel has at least half of the weight along each axis.
    weight = np.where(new_valid, np.float32(1) / np.maximum(weight, np.float32(0.2)), np.float32(0))
    resized = np.stack([_linear(np.where(valid, band, 0).astype(np.float32), size) * weight for band in pixels])
    return (np.rint(resized).astype(np.uint8) if pixels.dtype == np.uint8 else resized), new_valid, new_labels


def _linear(band: AnyArray, size: int) -> AnyArray:
    return np.asarray(cv2.resize(band, (size, size), interpolation=cv2.INTER_LINEAR))


def _nearest(band: AnyArray, size: int) -> AnyArray:
    # OpenCV's INTER_NEAREST takes the pixel that holds the new one's corner, up to half a pixel away.
    return np.asarray(cv2.resize(np.ascontiguousarray(band), (size, size), interpolation=cv2.INTER_NEAREST_EXACT))
