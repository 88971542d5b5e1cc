"""A window at another size: pixels bilinear, labels and validity from the nearest pixel."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Valid = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.uint8]


def resize_window(
    pixels: npt.NDArray[Any], valid: Valid, labels: Labels, size: int
) -> tuple[npt.NDArray[Any], Valid, Labels]:
    """Pixels, valid and labels at ``size`` × ``size`` px; as they are where they have that size.

    Invalid pixels have no part in the interpolation: a pixel beside a hole is the weighted mean of its valid
    neighbours, not a shade darker. The nearest pixel is that whose area holds the centre of the new one, so that
    labels do not move against the imagery.

    Args:
        pixels: (B, H, W), uint8 or float32. Any number of bands: each is resized alone, as OpenCV takes few at once.
        valid: (H, W), False where the pixels mean nothing.
        labels: Class ids (H, W).
        size: Side of the result, px.

    Returns:
        Pixels (B, size, size) of the same dtype, 0 where invalid if any is; valid and labels (size, size).
    """
    if valid.shape == (size, size):
        return pixels, valid, labels
    pixels = np.ascontiguousarray(pixels)
    new_labels = _nearest(labels, size)
    if valid.all():
        return np.stack([_linear(band, size) for band in pixels]), np.ones((size, size), dtype=bool), new_labels
    new_valid = _nearest(valid.astype(np.uint8), size).astype(bool)
    weight = _linear(valid.astype(np.float32), size)
    # The nearest pixel has at least half of the weight along rows, and along columns.
    weight = np.where(new_valid, np.float32(1) / np.maximum(weight, np.float32(0.2)), np.float32(0))
    bands = [_linear(np.where(valid, band, 0).astype(np.float32), size) * weight for band in pixels]
    resized = np.stack(bands)
    return (np.rint(resized).astype(np.uint8) if pixels.dtype == np.uint8 else resized), new_valid, new_labels


def _linear(band: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    return np.asarray(cv2.resize(band, (size, size), interpolation=cv2.INTER_LINEAR))


def _nearest(band: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    # OpenCV's INTER_NEAREST takes the pixel that holds the new one's corner, up to half a pixel away.
    return np.asarray(cv2.resize(np.ascontiguousarray(band), (size, size), interpolation=cv2.INTER_NEAREST_EXACT))
