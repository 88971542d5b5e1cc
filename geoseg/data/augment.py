"""Random changes of training windows: size, flips and turns, brightness and colour.

`AugmentConfig` says what each does. Pixels are uint8 as in the file, or float32 scaled by the configuration. 8-bit
values are clipped to 0 … 255; others are not clipped, since scaled reflectances may exceed 1 and elevations or decibels
be negative. Amounts are in spreads of a band, which mean the same for any data type, and to the network.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from geoseg.arrays import AnyArray, ByteArray, FloatArray, Pixels, Valid
from geoseg.config.settings import AugmentConfig
from geoseg.errors import ConfigError

# MIT-licensed but no longer developed (its successor is AGPL). It would ask PyPI for a newer version.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations as A

HALF = 0.5  # probability of each change
SPREAD = 2.0  # standard deviations in a spread


def one_thread_each() -> None:
    """Limit OpenCV to one thread, here and in processes forked later, of which there is one per core.

    To be called before a fork: a fork lacks OpenCV's other threads and would wait for them forever.
    """
    if cv2.getNumThreads() != 1:
        cv2.setNumThreads(1)


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


class Photometric:
    """Change pixels at random, each of the changes in every other window.

    Brightness and noise have one strength per window, in spreads of each band. ``std`` is the standard deviation of
    each band over the data set, in units of the pixels; None takes each window's own.
    """

    def __init__(self, config: AugmentConfig, *, colors: bool, std: Sequence[float] | None = None) -> None:
        self._config, self._colors = config, colors
        self._std = None if std is None else np.asarray(std, dtype=np.float64)

    def __call__(self, pixels: Pixels, valid: Valid, rng: np.random.Generator) -> Pixels:
        """Changed pixels (B, H, W), uint8 or float32 as given; invalid ones do not count in means and stay 0."""
        config, before = self._config, pixels
        if config.brightness or config.contrast or config.band_gain:
            pixels = self._shift(pixels, valid, rng)
        if self._colors and (config.hue or config.saturation) and rng.random() < HALF:
            turn = round(rng.uniform(-config.hue, config.hue) / 2)  # half degrees
            saturations = np.clip(np.arange(256) + rng.uniform(-config.saturation, config.saturation), 0, 255)
            saturations[0] = 0  # grey has no hue that more saturation could show
            pixels = _change_colors(pixels, turn, np.rint(saturations).astype(np.uint8))
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
        """Brightness, contrast and gains combined to a factor and a summand per band, rounded once."""
        config, bands = self._config, len(pixels)
        factor, added = np.ones(bands), np.zeros(bands)
        if config.contrast and rng.random() < HALF:
            contrast = rng.uniform(-config.contrast, config.contrast)
            factor += contrast
            added -= contrast * _per_band(lambda band, mask: cv2.mean(band, mask=mask)[0], pixels, valid)
        if config.brightness and rng.random() < HALF:
            added += rng.uniform(-config.brightness, config.brightness) * self._spread(pixels, valid)
        if config.band_gain and rng.random() < HALF:
            gain = 1 + rng.uniform(-config.band_gain, config.band_gain, bands)
            factor, added = factor * gain, added * gain
        if (factor == 1).all() and not added.any():
            return pixels
        if pixels.dtype == np.uint8:
            tables = _in_bytes(np.arange(256) * factor[:, None] + added[:, None])
            return np.stack([cv2.LUT(np.ascontiguousarray(b), t) for b, t in zip(pixels, tables, strict=True)])
        shifted = pixels * factor.astype(np.float32)[:, None, None]
        shifted += added.astype(np.float32)[:, None, None]
        return shifted

    def _spread(self, pixels: Pixels, valid: Valid) -> FloatArray:
        if self._std is not None:
            return SPREAD * self._std
        return SPREAD * _per_band(lambda band, mask: cv2.meanStdDev(band, mask=mask)[1][0, 0], pixels, valid)


def _per_band(measure: Callable[..., float], pixels: Pixels, valid: Valid) -> FloatArray:
    """A measure of the valid pixels of each band, (B,)."""
    mask = None if valid.all() else valid.astype(np.uint8)
    return np.array([measure(np.ascontiguousarray(band), mask) for band in pixels])


def _in_bytes(values: AnyArray) -> ByteArray:
    return np.asarray(np.clip(np.rint(values), 0, 255), dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes of one window by SegNeXt's photometric distortion; None leaves it out.

    After every step values are clipped to 0 … 255 and rounded down, and each change of colour goes through 8-bit HSV,
    as in the original.

    References:
        Liu et al., SSD (arXiv 1512.02325); mmsegmentation's configurations of SegNeXt (Apache-2.0). Written from a
        description of what these do.
    """

    brightness: float | None = None  # added
    contrast: float | None = None  # a factor
    contrast_first: bool = False  # before the changes of colour, not after
    saturation: float | None = None  # a factor on S of HSV
    hue: int | None = None  # half degrees, added to H of HSV


def draw_changes(rng: np.random.Generator) -> Changes:
    """Random changes, each of them for every other window."""
    return Changes(
        brightness=float(rng.uniform(-32, 32)) if rng.random() < 0.5 else None,
        contrast=float(rng.uniform(0.5, 1.5)) if rng.random() < 0.5 else None,
        contrast_first=bool(rng.random() < 0.5),
        saturation=float(rng.uniform(0.5, 1.5)) if rng.random() < 0.5 else None,
        hue=int(rng.integers(-18, 18)) if rng.random() < 0.5 else None,
    )


def distort(pixels: ByteArray, changes: Changes) -> ByteArray:
    """Red, green and blue (3, H, W) after the changes, in a new array."""
    changed = pixels.copy()
    if changes.brightness is not None:
        changed = _look_up(changed, _table(1, changes.brightness))
    if changes.contrast is not None and changes.contrast_first:
        changed = _look_up(changed, _table(changes.contrast))
    if changes.saturation is not None:
        changed = _change_colors(changed, 0, _table(changes.saturation))
    if changes.hue is not None:
        changed = _change_colors(changed, changes.hue, _table(1))
    if changes.contrast is not None and not changes.contrast_first:
        changed = _look_up(changed, _table(changes.contrast))
    return changed


def _change_colors(pixels: ByteArray, turn: int, saturations: ByteArray) -> ByteArray:
    """Red, green and blue (3, H, W) with hue turned by half degrees and saturation looked up in a table of 256."""
    hsv = cv2.cvtColor(cv2.merge([np.ascontiguousarray(band) for band in pixels]), cv2.COLOR_RGB2HSV)
    hue, saturation, value = cv2.split(hsv)
    hue = cv2.LUT(hue, ((np.arange(256) + turn) % 180).astype(np.uint8))  # 180 half degrees: OpenCV's turn in 8 bit
    hsv = cv2.merge([hue, cv2.LUT(saturation, saturations), value])
    return np.stack(cv2.split(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))).astype(np.uint8, copy=False)


def _look_up(pixels: ByteArray, table: ByteArray) -> ByteArray:
    """Every value (B, H, W) replaced by lookup in a table of 256."""
    flat = np.ascontiguousarray(pixels).reshape(len(pixels), -1)
    return np.asarray(cv2.LUT(flat, table), dtype=np.uint8).reshape(pixels.shape)


def _table(factor: float, added: float = 0.0) -> ByteArray:
    """Each of 256 values after a factor and a summand, clipped to 0 … 255 and rounded down."""
    values = np.arange(256, dtype=np.float32) * np.float32(factor) + np.float32(added)
    return np.asarray(np.clip(values, 0, 255), dtype=np.uint8)
