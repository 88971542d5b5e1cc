"""Random changes of training windows. All of albumentations stays behind this file.

albumentations is MIT-licensed but no longer developed (its successor is AGPL), so nothing else may depend on it.
"""

from __future__ import annotations

from typing import Any

import albumentations as A
import cv2
import numpy as np
import numpy.typing as npt

from geoseg.config import AugmentConfig

FloatPixels = npt.NDArray[np.float32]
Valid = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.uint8]


class Augmenter:
    """Resize a window to the training size and change it at random, the same way for the same seed.

    Args:
        config: What may change, and how much.
        size: Side of the result, px.
        colors: True where the channels are red, green and blue as 8 bit, so that hue means something.
    """

    def __init__(self, config: AugmentConfig, *, size: int, colors: bool) -> None:
        steps: list[Any] = [A.Resize(size, size, interpolation=cv2.INTER_LINEAR, mask_interpolation=cv2.INTER_NEAREST)]
        if config.dihedral:
            steps.append(A.D4(p=1))
        if config.brightness or config.contrast:
            steps.append(
                A.RandomBrightnessContrast(
                    brightness_limit=config.brightness, contrast_limit=config.contrast, brightness_by_max=False, p=0.5
                )
            )
        if colors and (config.hue or config.saturation):
            # OpenCV counts the hue in half degrees
            steps.append(A.HueSaturationValue(config.hue / 2, config.saturation, 0, p=0.5))
        if config.noise:
            steps.append(A.GaussNoise(std_range=(0.0, config.noise), p=0.5))
        self._compose = A.Compose(steps)

    def __call__(
        self, pixels: npt.NDArray[Any], valid: Valid, labels: Labels, *, seed: int
    ) -> tuple[npt.NDArray[Any], Valid, Labels]:
        """A changed window.

        Args:
            pixels: (B, H, W), uint8, or float32 scaled to about [0, 1].
            valid: (H, W), False where the pixels mean nothing.
            labels: Class ids (H, W), 255 to be ignored.
            seed: Decides every random choice.

        Returns:
            Pixels (B, size, size) in the same dtype, valid and labels (size, size).
        """
        self._compose.set_random_seed(seed)
        image = np.ascontiguousarray(pixels.transpose(1, 2, 0))
        result = self._compose(image=image, masks=[valid.astype(np.uint8), labels])
        image, (valid, labels) = result["image"], result["masks"]
        if image.ndim == 2:  # OpenCV drops the axis of a single band
            image = image[:, :, None]
        return np.ascontiguousarray(image.transpose(2, 0, 1)), valid.astype(bool), np.ascontiguousarray(labels)
