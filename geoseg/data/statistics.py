"""Mean, standard deviation and percentiles of bands over valid pixels, in bounded memory."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from geoseg.arrays import AnyArray, FloatArray, IntArray, Pixels, Valid
from geoseg.data.labelled import LabelledScene, covered
from geoseg.errors import SceneError, quoted
from geoseg.runtime.machine import reading_threads
from geoseg.windows import Window
from geoseg.words import count

T = TypeVar("T")

SAMPLE_ROWS, MAX_BANDS_OF_ROWS, MAX_SCENES = 512, 32, 1000
"""For a mean at most so many scenes are read, and so many bands of rows in each, evenly spread."""

_CHUNK_COLS = 4096
_LOW_BITS = 16


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Number of pixels, their mean and sum of squared distances from it, per band; they add up without cancellation.

    By the pairwise algorithm of Chan, Golub and LeVeque, 1979.
    """

    count: int
    mean: FloatArray
    squares: FloatArray

    @classmethod
    def of(cls, values: AnyArray) -> Moments:
        """Moments of values (B, N)."""
        if not values.size:
            return cls(0, np.zeros(len(values)), np.zeros(len(values)))
        exact = values.astype(np.float64)
        mean = exact.mean(axis=1)
        exact -= mean[:, None]
        return cls(values.shape[1], mean, np.einsum("bn,bn->b", exact, exact))

    @classmethod
    def none(cls, bands: int) -> Moments:
        """Moments of no pixel."""
        return cls.of(np.zeros((bands, 0)))

    @property
    def std(self) -> FloatArray:
        """Standard deviation per band, (B,)."""
        return np.sqrt(self.squares / max(self.count, 1))

    def __add__(self, other: Moments) -> Moments:
        total = self.count + other.count
        if not total:
            return self
        apart = other.mean - self.mean
        share = other.count / total
        squares = self.squares + other.squares + apart**2 * (self.count * share)
        return Moments(total, self.mean + apart * share, squares)


class ValueCounts:
    """How often each value occurs per band, from which any percentile follows.

    8- and 16-bit values are counted as they are. For float32, a first pass counts the upper half of the bits, and a
    second one, for the shares given to `refine`, the lower half of those needed: percentiles are exact too. Several
    threads may add at once.
    """

    def __init__(self, dtype: np.dtype[Any], bands: int) -> None:
        self._dtype = dtype
        self._counts = np.zeros((bands, 256 if dtype.itemsize == 1 else 1 << 16), dtype=np.int64)
        self._fine: dict[tuple[int, int], IntArray] = {}
        self._lock = threading.Lock()

    @property
    def is_exact(self) -> bool:
        """Whether one pass is enough."""
        return self._dtype.kind != "f"

    def add(self, values: AnyArray) -> None:
        """Count values (B, N)."""
        if self._dtype.kind == "f":
            values = _sortable(values) >> _LOW_BITS
        elif self._dtype.kind == "i":
            values = values.astype(np.int64) - np.iinfo(self._dtype).min
        found = np.stack([np.bincount(band, minlength=self._counts.shape[1]) for band in values])
        with self._lock:
            self._counts += found

    def refine(self, shares: Sequence[float]) -> None:
        """Choose what the second pass counts."""
        for band in range(len(self._counts)):
            for share in shares:
                self._fine.setdefault((band, self._bin(band, share)[0]), np.zeros(1 << _LOW_BITS, dtype=np.int64))

    def add_fine(self, values: AnyArray) -> None:
        """Count values (B, N) in the second pass."""
        keys = _sortable(values)
        for (band, upper), counts in self._fine.items():
            lower = keys[band][keys[band] >> _LOW_BITS == upper] & 0xFFFF
            found = np.bincount(lower, minlength=counts.size)
            with self._lock:
                counts += found

    def percentile(self, share: float) -> FloatArray:
        """The smallest value per band that at least a share of the pixels does not exceed, (B,); NaN without pixels."""
        return np.array([self._value(band, share) for band in range(len(self._counts))], dtype=np.float64)

    def _value(self, band: int, share: float) -> float:
        if not self._counts[band].any():
            return float("nan")
        upper, rank = self._bin(band, share)
        if self.is_exact:
            return float(upper + np.iinfo(self._dtype).min)
        lower = int(np.searchsorted(np.cumsum(self._fine[band, upper]), rank))
        key = upper << _LOW_BITS | lower
        bits = key & 0x7FFFFFFF if key >> 31 else ~key & 0xFFFFFFFF  # the reverse of `_sortable`
        return float(np.uint32(bits).view(np.float32))

    def _bin(self, band: int, share: float) -> tuple[int, int]:
        """The bin of the pixel at a share of all, and its rank in the bin, from 1."""
        ends = np.cumsum(self._counts[band])
        rank = max(int(np.ceil(share * ends[-1])), 1)
        upper = int(np.searchsorted(ends, rank))
        return upper, rank - (int(ends[upper - 1]) if upper else 0)


def _sortable(values: AnyArray) -> npt.NDArray[np.uint32]:
    """Unsigned integers in the order of float32 values."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000)).astype(np.uint32)


def evenly(items: Sequence[T], most: int) -> Sequence[T]:
    """All items, or as many as wanted, spread evenly."""
    return items if len(items) <= most else [items[i] for i in np.linspace(0, len(items) - 1, most).astype(int)]


def band_statistics(scenes: Sequence[LabelledScene], scale: float) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per band of the scaled, valid pixels that training may see; 1 of a constant band.

    A `SceneError` for infinite values where a scene is valid, or if no pixel is.
    """
    scenes = evenly(scenes, MAX_SCENES)
    moments = Moments.none(len(scenes[0].scene.bands))
    with reading_threads("mean") as threads:
        for part in threads.map(_scene_moments, scenes):  # in order: the same scenes give the same numbers
            moments += part
    if not moments.count:
        raise nothing_valid(scenes)
    return [round(float(m), 6) for m in moments.mean * scale], [round(s, 6) for s in scaled_std(moments.std, scale)]


def scaled_std(std: Sequence[float] | FloatArray, scale: float) -> list[float]:
    """Standard deviations of scaled values, by which a network divides; 1 for a constant band."""
    return [float(s) * scale if s * scale > 1e-6 else 1.0 for s in std]


def nothing_valid(scenes: Sequence[LabelledScene]) -> SceneError:
    """The error that no pixel of some scenes is valid."""
    return SceneError(
        f"no pixel is valid in {count(len(scenes), 'scene')}, {scenes[0].config.scene} first",
        hint=f"see what it holds with: geoseg info {quoted(scenes[0].config.scene)}; then imagery.nodata",
    )


def finite_moments(scene: LabelledScene, values: AnyArray) -> Moments:
    """Moments of values (B, N) of a scene."""
    with np.errstate(invalid="ignore", over="ignore"):
        moments = Moments.of(values)
    if not np.isfinite(moments.mean).all():
        raise SceneError(
            f"scene {scene.config.scene} has infinite values where it is valid",
            hint="write NaN or a nodata value there, and set imagery.nodata",
        )
    return moments


def chosen(pixels: Pixels, valid: Valid, also: Valid | None = None) -> AnyArray:
    """Values (B, N) of the valid pixels."""
    use = valid if also is None else valid & also
    return pixels.reshape(len(pixels), -1) if use.all() else pixels[:, use]


def _scene_moments(scene: LabelledScene) -> Moments:
    """Moments over evenly spread bands of rows; they cover the scene unless it is huge."""
    moments = Moments.none(len(scene.scene.bands))
    height, width = scene.grid.shape
    starts = evenly(range(0, height, SAMPLE_ROWS), MAX_BANDS_OF_ROWS)
    for row, col in itertools.product(starts, range(0, width, _CHUNK_COLS)):
        window = Window(row, col, min(SAMPLE_ROWS, height - row), min(_CHUNK_COLS, width - col))
        also = covered(scene, "train", window)
        if also is None or also.any():
            moments += finite_moments(scene, chosen(*scene.scene.read(window), also))
    return moments
