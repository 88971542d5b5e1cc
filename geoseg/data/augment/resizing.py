"""A window at another size: pixels bilinear, labels and validity from the nearest pixel."""

from __future__ import annotations

import cv2
import numpy as np

from geoseg.arrays import AnyArray, ByteArray, Pixels, Valid


def resize_window(pixels: Pixels, valid: Valid, labels: ByteArray, size: int) -> tuple[Pixels, Valid, ByteArray]:
    """Pixels, valid and labels at ``size`` × ``size`` px, unchanged if they have that size.

    Invalid pixels do not count in the interpolation: a pixel beside a hole is the weighted mean of its valid
    neighbours. The nearest pixel is the one whose area contains the new pixel's centre, so labels do not shift against
    the imagery.

    Returns:
        Pixels (B, size, size) of the same dtype, 0 where invalid; valid and labels (size, size).
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
    bands = [_linear(np.where(valid, band, 0).astype(np.float32), size) * weight for band in pixels]
    resized = np.stack(bands)
    return (np.rint(resized).astype(np.uint8) if pixels.dtype == np.uint8 else resized), new_valid, new_labels


def _linear(band: AnyArray, size: int) -> AnyArray:
    return np.asarray(cv2.resize(band, (size, size), interpolation=cv2.INTER_LINEAR))


def _nearest(band: AnyArray, size: int) -> AnyArray:
    # OpenCV's INTER_NEAREST takes the pixel that holds the new one's corner, up to half a pixel away.
    return np.asarray(cv2.resize(np.ascontiguousarray(band), (size, size), interpolation=cv2.INTER_NEAREST_EXACT))
