"""Brightness, contrast, gain of each band, noise and colour: right for any number of bands and any data type.

Pixels are uint8 as in the file, or float32 scaled by the configuration. 8-bit values are cut to 0 … 255; others are
left where they land, as scaled reflectances may well exceed 1 and elevations or decibels be negative.

How much is said in spreads of a band. A spread is two standard deviations: of 8-bit aerial imagery about the mean, and
of any other imagery, with a scale of whatever kind and values of whatever sign, what the band varies by. So a
brightness of 0.2 is about as strong for reflectances of 16 bit as for bytes, and a shift is the same for the network,
which sees bands divided by their standard deviation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from geoseg.config import AugmentConfig
from geoseg.data.augment.distortion import change_colors, hue_table

Pixels = npt.NDArray[Any]
Valid = npt.NDArray[np.bool_]
PerBand = npt.NDArray[np.float64]

HALF = 0.5
"""How often each change happens."""

SPREAD = 2.0
"""Standard deviations in a spread."""


class Photometric:
    """Change pixels at random, each of the changes in every other window.

    - Brightness adds the same share of its spread to every band.
    - Contrast moves values away from, or to, the mean of the window's valid pixels, band by band.
    - Gain multiplies each band by a number of its own.
    - Hue and saturation, of colours in 8 bit only, turn and move the H and S of HSV; grey stays grey.
    - Noise is normal, of one strength for the window, in spreads of each band.

    Args:
        config: What may change, and how much.
        colors: True where the bands are red, green and blue as 8 bit.
        std: Standard deviation of each band over the data set, in units of the pixels; None takes each window's own.
    """

    def __init__(self, config: AugmentConfig, *, colors: bool, std: Sequence[float] | None = None) -> None:
        self._config = config
        self._colors = colors
        self._std = None if std is None else np.asarray(std, dtype=np.float64)

    def __call__(self, pixels: Pixels, valid: Valid, rng: np.random.Generator) -> Pixels:
        """Changed pixels, of the same dtype.

        Args:
            pixels: (B, H, W), uint8 or float32, 0 where invalid.
            valid: (H, W), False where the pixels mean nothing: they have no part in any mean and stay 0.
            rng: Decides every random choice.
        """
        config, before = self._config, pixels
        if config.brightness or config.contrast or config.band_gain:
            pixels = self._shift(pixels, valid, rng)
        if self._colors and (config.hue or config.saturation) and rng.random() < HALF:
            # OpenCV counts the hue in half degrees
            turn = round(rng.uniform(-config.hue, config.hue) / 2)
            saturations = np.clip(np.arange(256) + rng.uniform(-config.saturation, config.saturation), 0, 255)
            saturations[0] = 0  # a grey has no hue that more saturation could show
            pixels = change_colors(pixels, hue_table(turn), np.rint(saturations).astype(np.uint8))
        if config.noise and rng.random() < HALF:
            sigma = rng.uniform(0, config.noise) * self._spread(pixels, valid)
            noise = rng.standard_normal(pixels.shape, dtype=np.float32)
            noise *= sigma.astype(np.float32)[:, None, None]
            noise += pixels
            pixels = _in_bytes(noise) if pixels.dtype == np.uint8 else noise
        if pixels is not before and not valid.all():
            pixels = np.where(valid, pixels, pixels.dtype.type(0))
        return pixels

    def _shift(self, pixels: Pixels, valid: Valid, rng: np.random.Generator) -> Pixels:
        """Brightness, contrast and gains are a factor and a summand for each band together, and rounded once."""
        config, bands = self._config, len(pixels)
        factor, added = np.ones(bands), np.zeros(bands)
        if config.contrast and rng.random() < HALF:
            contrast = rng.uniform(-config.contrast, config.contrast)
            factor += contrast
            added -= contrast * _mean(pixels, valid)
        if config.brightness and rng.random() < HALF:
            added += rng.uniform(-config.brightness, config.brightness) * self._spread(pixels, valid)
        if config.band_gain and rng.random() < HALF:
            gain = 1 + rng.uniform(-config.band_gain, config.band_gain, bands)
            factor, added = factor * gain, added * gain
        if (factor == 1).all() and (added == 0).all():
            return pixels
        if pixels.dtype == np.uint8:
            tables = _in_bytes(np.arange(256) * factor[:, None] + added[:, None])
            return np.stack([cv2.LUT(np.ascontiguousarray(b), t) for b, t in zip(pixels, tables, strict=True)])
        shifted = pixels * factor.astype(np.float32)[:, None, None]
        shifted += added.astype(np.float32)[:, None, None]
        return shifted

    def _spread(self, pixels: Pixels, valid: Valid) -> PerBand:
        std = _std(pixels, valid) if self._std is None else self._std
        return SPREAD * std


def _mean(pixels: Pixels, valid: Valid) -> PerBand:
    """Mean of the valid pixels of each band, (B,); 0 where there is none."""
    mask = _mask(valid)
    return np.array([cv2.mean(np.ascontiguousarray(band), mask=mask)[0] for band in pixels])


def _std(pixels: Pixels, valid: Valid) -> PerBand:
    """Standard deviation of the valid pixels of each band, (B,); 0 where there is none."""
    mask = _mask(valid)
    return np.array([cv2.meanStdDev(np.ascontiguousarray(band), mask=mask)[1][0, 0] for band in pixels])


def _mask(valid: Valid) -> npt.NDArray[np.uint8] | None:
    return None if valid.all() else valid.astype(np.uint8)


def _in_bytes(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.asarray(np.clip(np.rint(values), 0, 255), dtype=np.uint8)
