"""The photometric distortion that SegNeXt is trained with, for red, green and blue in 8 bit.

Each of four changes happens to every other window:

- brightness: a number in [-32, 32) is added;
- contrast: values are multiplied by a number in [0.5, 1.5), at random before or after the changes of colour;
- saturation: the S of HSV is multiplied by a number in [0.5, 1.5);
- hue: an integer from -18 to 17 is added to the H of HSV, which OpenCV counts in half degrees, modulo 180.

After every step values are clipped to 0 … 255 and rounded down, and each change of colour goes through 8-bit HSV, as in
the original.

References:
    Liu et al., SSD (arXiv 1512.02325); mmsegmentation's configurations of SegNeXt (Apache-2.0). Written from a
    description of what these do.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from geoseg.arrays import ByteArray

BRIGHTNESS = 32.0
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE = 18
HUES = 180
"""OpenCV's full turn in 8 bit."""

_VALUES = np.arange(256, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes of one window: a summand, a factor and its place, a factor on S, half degrees of H; None leaves it."""

    brightness: float | None = None
    contrast: float | None = None
    contrast_first: bool = False
    saturation: float | None = None
    hue: int | None = None


def draw_changes(rng: np.random.Generator) -> Changes:
    """Random changes of one window."""
    return Changes(
        brightness=float(rng.uniform(-BRIGHTNESS, BRIGHTNESS)) if rng.random() < 0.5 else None,
        contrast=float(rng.uniform(*CONTRAST)) if rng.random() < 0.5 else None,
        contrast_first=bool(rng.random() < 0.5),
        saturation=float(rng.uniform(*SATURATION)) if rng.random() < 0.5 else None,
        hue=int(rng.integers(-HUE, HUE)) if rng.random() < 0.5 else None,
    )


def distort(pixels: ByteArray, changes: Changes) -> ByteArray:
    """Red, green and blue (3, H, W) after the changes, in a new array."""
    changed = pixels.copy()
    if changes.brightness is not None:
        changed = look_up(changed, _table(1, changes.brightness))
    if changes.contrast is not None and changes.contrast_first:
        changed = look_up(changed, _table(changes.contrast))
    if changes.saturation is not None:
        changed = change_colors(changed, None, _table(changes.saturation))
    if changes.hue is not None:
        changed = change_colors(changed, hue_table(changes.hue), None)
    if changes.contrast is not None and not changes.contrast_first:
        changed = look_up(changed, _table(changes.contrast))
    return changed


def change_colors(pixels: ByteArray, hues: ByteArray | None, saturations: ByteArray | None) -> ByteArray:
    """Red, green and blue (3, H, W) with hue (half degrees) and saturation replaced by tables of 256, if any."""
    hsv = cv2.cvtColor(cv2.merge([np.ascontiguousarray(band) for band in pixels]), cv2.COLOR_RGB2HSV)
    hue, saturation, value = cv2.split(hsv)
    if hues is not None:
        hue = cv2.LUT(hue, hues)
    if saturations is not None:
        saturation = cv2.LUT(saturation, saturations)
    changed: ByteArray = np.stack(cv2.split(cv2.cvtColor(cv2.merge([hue, saturation, value]), cv2.COLOR_HSV2RGB)))
    return changed


def hue_table(turn: int) -> ByteArray:
    """Table of hues turned by a number of half degrees."""
    return ((np.arange(256) + turn) % HUES).astype(np.uint8)


def look_up(pixels: ByteArray, table: ByteArray) -> ByteArray:
    """Every value (B, H, W) replaced by lookup in a table of 256."""
    flat = np.ascontiguousarray(pixels).reshape(len(pixels), -1)
    return np.asarray(cv2.LUT(flat, table), dtype=np.uint8).reshape(pixels.shape)


def _table(factor: float, added: float = 0.0) -> ByteArray:
    """Each of 256 values after a factor and a summand, clipped to 0 … 255 and rounded down."""
    return np.asarray(np.clip(_VALUES * np.float32(factor) + np.float32(added), 0, 255), dtype=np.uint8)
