"""The photometric distortion that SegNeXt is trained with, for red, green and blue of 8 bit.

Each of its four changes happens to every other window:

- brightness: a number in [-32, 32) is added;
- contrast: all values are multiplied by a number in [0.5, 1.5), which also makes them brighter or darker; a coin
  decides whether that comes before or after the two changes of colour;
- saturation: the S of HSV is multiplied by a number in [0.5, 1.5);
- hue: a whole number from -18 to 17 is added to the H of HSV, which OpenCV counts in half degrees, modulo 180.

After every step values are cut to 0 … 255 and to whole numbers (down), and colours go through HSV of 8 bit anew for
each step, as in the original: the roundings are part of it.

References:
    Liu et al., SSD (arXiv 1512.02325), which made it known; SegNeXt's configurations (Apache-2.0), which use
    mmsegmentation's. Written from a description of what these do.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

BRIGHTNESS = 32.0
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE = 18
HUES = 180
"""OpenCV's full turn in 8 bit."""

_VALUES = np.arange(256, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Changes:
    """What is done to one window; None leaves a step out.

    Attributes:
        brightness: Added to all values.
        contrast: Factor on all values.
        contrast_first: Contrast comes before the colours, not after them.
        saturation: Factor on S.
        hue: Added to H, half degrees.
    """

    brightness: float | None = None
    contrast: float | None = None
    contrast_first: bool = False
    saturation: float | None = None
    hue: int | None = None


def draw_changes(rng: np.random.Generator) -> Changes:
    """The changes of one window at random."""
    return Changes(
        brightness=float(rng.uniform(-BRIGHTNESS, BRIGHTNESS)) if rng.random() < 0.5 else None,
        contrast=float(rng.uniform(*CONTRAST)) if rng.random() < 0.5 else None,
        contrast_first=bool(rng.random() < 0.5),
        saturation=float(rng.uniform(*SATURATION)) if rng.random() < 0.5 else None,
        hue=int(rng.integers(-HUE, HUE)) if rng.random() < 0.5 else None,
    )


def distort(pixels: Bytes, changes: Changes) -> Bytes:
    """Red, green and blue (3, H, W) after the changes, in an array of their own."""
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


def change_colors(pixels: Bytes, hues: Bytes | None, saturations: Bytes | None) -> Bytes:
    """Red, green and blue (3, H, W) whose hue (half degrees) and saturation are replaced by what the tables say.

    Args:
        pixels: Red, green and blue (3, H, W).
        hues: New hue of each of 256, or None to leave it.
        saturations: New saturation of each of 256, or None to leave it.
    """
    hsv = cv2.cvtColor(cv2.merge([np.ascontiguousarray(band) for band in pixels]), cv2.COLOR_RGB2HSV)
    hue, saturation, value = cv2.split(hsv)
    if hues is not None:
        hue = cv2.LUT(hue, hues)
    if saturations is not None:
        saturation = cv2.LUT(saturation, saturations)
    changed: Bytes = np.stack(cv2.split(cv2.cvtColor(cv2.merge([hue, saturation, value]), cv2.COLOR_HSV2RGB)))
    return changed


def hue_table(turn: int) -> Bytes:
    """New hue of each, turned by a number of half degrees."""
    return ((np.arange(256) + turn) % HUES).astype(np.uint8)


def look_up(pixels: Bytes, table: Bytes) -> Bytes:
    """Every value (B, H, W) replaced by what the table of 256 says."""
    flat = np.ascontiguousarray(pixels).reshape(len(pixels), -1)
    return np.asarray(cv2.LUT(flat, table), dtype=np.uint8).reshape(pixels.shape)


def _table(factor: float, added: float = 0.0) -> Bytes:
    """Each of 256 values after a factor and a summand, cut to 0 … 255 and to whole numbers."""
    return np.asarray(np.clip(_VALUES * np.float32(factor) + np.float32(added), 0, 255), dtype=np.uint8)
