"""Mean, standard deviation and percentiles of bands over valid pixels, in bounded memory and without cancellation."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from geoseg.data.labelled import LabelledScene
from geoseg.errors import SceneError, quoted
from geoseg.runtime.processors import processors
from geoseg.scene import Pixels, Valid
from geoseg.windows import Window

Values = npt.NDArray[np.float64]

SAMPLE_ROWS = 512
MAX_BANDS_OF_ROWS = 32
"""Rows are read in this many bands a scene at most, evenly spread: enough for a mean, bounded on huge scenes."""

MAX_SCENES = 1000
"""So many scenes at most are read for a mean, evenly spread over the list."""

_CHUNK_COLS = 4096
_THREADS = 8
_LOW_BITS = 16


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Number of pixels, their mean and the sum of their squared distances from it, per band.

    Moments of parts add up to those of the whole without subtracting large numbers from each other.

    References:
        Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing sample variances, 1979.
    """

    count: int
    mean: Values
    squares: Values

    @classmethod
    def of(cls, values: npt.NDArray[Any]) -> Moments:
        """Moments of values (B, N)."""
        if not values.shape[1]:
            return cls.none(len(values))
        exact = values.astype(np.float64)
        mean = exact.mean(axis=1)
        exact -= mean[:, None]
        return cls(values.shape[1], mean, np.einsum("bn,bn->b", exact, exact))

    @classmethod
    def none(cls, bands: int) -> Moments:
        """Moments of no pixel."""
        return cls(0, np.zeros(bands), np.zeros(bands))

    @property
    def std(self) -> Values:
        """Standard deviation per band, (B,)."""
        return np.sqrt(self.squares / max(self.count, 1))

    def __add__(self, other: Moments) -> Moments:
        count = self.count + other.count
        if not count:
            return self
        apart = other.mean - self.mean
        share = other.count / count
        return Moments(
            count,
            self.mean + apart * share,
            self.squares + other.squares + apart**2 * (self.count * share),
        )


class ValueCounts:
    """How often each value occurs per band, from which any percentile follows.

    Values of 8 and 16 bit are counted as they are. Of float32 a first pass counts the upper half of the bits, and a
    second one, for the shares asked for by `refine`, the lower half of those that matter: percentiles are exact too.
    Several threads may add at once.

    Args:
        dtype: uint8, uint16, int16 or float32.
        bands: Number of bands.
    """

    def __init__(self, dtype: np.dtype[Any], bands: int) -> None:
        self._dtype = dtype
        self._counts = np.zeros((bands, 256 if dtype.itemsize == 1 else 1 << 16), dtype=np.int64)
        self._fine: dict[tuple[int, int], npt.NDArray[np.int64]] = {}
        self._lock = threading.Lock()

    @property
    def is_exact(self) -> bool:
        """Whether one pass was enough."""
        return self._dtype.kind != "f"

    def add(self, values: npt.NDArray[Any]) -> None:
        """Count values (B, N)."""
        found = np.stack([np.bincount(self._upper(band), minlength=self._counts.shape[1]) for band in values])
        with self._lock:
            self._counts += found

    def refine(self, shares: Sequence[float]) -> None:
        """Choose what a second pass counts."""
        for band in range(len(self._counts)):
            for share in shares:
                self._fine.setdefault((band, self._bin(band, share)[0]), np.zeros(1 << _LOW_BITS, dtype=np.int64))

    def add_fine(self, values: npt.NDArray[Any]) -> None:
        """Count values (B, N) again."""
        keys = _sortable(values)
        for (band, upper), counts in self._fine.items():
            lower = keys[band][keys[band] >> _LOW_BITS == upper] & 0xFFFF
            found = np.bincount(lower, minlength=counts.size)
            with self._lock:
                counts += found

    def percentile(self, share: float) -> Values:
        """The smallest value per band that at least a share of the pixels does not exceed, (B,); NaN without pixels."""
        found = [self._value(band, share) for band in range(len(self._counts))]
        return np.array(found, dtype=np.float64)

    def _value(self, band: int, share: float) -> float:
        if not self._counts[band].any():
            return float("nan")
        upper, rank = self._bin(band, share)
        if self.is_exact:
            return float(upper + np.iinfo(self._dtype).min)
        lower = int(np.searchsorted(np.cumsum(self._fine[band, upper]), rank))
        return float(_from_sortable(np.array([upper << _LOW_BITS | lower], dtype=np.uint32))[0])

    def _bin(self, band: int, share: float) -> tuple[int, int]:
        """The bin that holds the pixel of a rank, and its rank in the bin, from 1."""
        ends = np.cumsum(self._counts[band])
        rank = max(int(np.ceil(share * ends[-1])), 1)
        upper = int(np.searchsorted(ends, rank))
        return upper, rank - (int(ends[upper - 1]) if upper else 0)

    def _upper(self, band: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self._dtype.kind == "f":
            return _sortable(band) >> _LOW_BITS
        if self._dtype.kind == "i":
            return band.astype(np.int64) - np.iinfo(self._dtype).min
        return band


def band_statistics(scenes: Sequence[LabelledScene], scale: float) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per band of the scaled, valid pixels that training may see.

    Args:
        scenes: Scenes of the same bands. Of a scene that is cut into blocks, those that validate are left out.
        scale: Factor on pixel values.

    Returns:
        Means and standard deviations, one per band; a constant band has standard deviation 1.

    Raises:
        SceneError: A scene that cannot be read, or that holds infinite values where it is valid; or no valid pixel.
    """
    if len(scenes) > MAX_SCENES:
        scenes = [scenes[i] for i in np.linspace(0, len(scenes) - 1, MAX_SCENES).astype(int)]
    moments = Moments.none(len(scenes[0].scene.bands))
    with ThreadPoolExecutor(min(_THREADS, processors()), thread_name_prefix="geoseg-mean") as threads:
        for part in threads.map(_scene_moments, scenes):  # in order: the same scenes give the same numbers
            moments += part
    if not moments.count:
        raise nothing_valid(scenes)
    return [round(float(m), 6) for m in moments.mean * scale], [round(s, 6) for s in scaled_std(moments.std, scale)]


def scaled_std(std: Sequence[float] | Values, scale: float) -> list[float]:
    """Standard deviations of scaled values, by which a network divides: 1 for a band that is constant."""
    return [float(s) * scale if s * scale > 1e-6 else 1.0 for s in std]


def nothing_valid(scenes: Sequence[LabelledScene]) -> SceneError:
    """What to raise where there is nothing to take a mean of."""
    return SceneError(
        f"no pixel is valid in {len(scenes)} scene{'s' if len(scenes) != 1 else ''}, {scenes[0].config.scene} first",
        hint=f"see what it holds with: geoseg info {quoted(scenes[0].config.scene)}; then imagery.nodata",
    )


def finite_moments(scene: LabelledScene, values: npt.NDArray[Any]) -> Moments:
    """Moments of values (B, N) of a scene.

    Raises:
        SceneError: An infinite value.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        moments = Moments.of(values)
    if not np.isfinite(moments.mean).all():
        raise SceneError(
            f"scene {scene.config.scene} holds infinite values where it is valid",
            hint="write NaN or a nodata value there, and set imagery.nodata",
        )
    return moments


def seen_by_training(scene: LabelledScene, window: Window) -> Valid | None:
    """Pixels of a window that training may see, (H, W); None for all."""
    return None if scene.split is None else ~scene.split.validates(window, scene.split.buffer)


def chosen(pixels: Pixels, valid: Valid, also: Valid | None = None) -> npt.NDArray[Any]:
    """Values (B, N) of the valid pixels."""
    use = valid if also is None else valid & also
    return pixels.reshape(len(pixels), -1) if use.all() else pixels[:, use]


def _scene_moments(scene: LabelledScene) -> Moments:
    moments = Moments.none(len(scene.scene.bands))
    for window in _sampled(*scene.grid.shape):
        also = seen_by_training(scene, window)
        if also is None or also.any():
            moments += finite_moments(scene, chosen(*scene.scene.read(window), also))
    return moments


def _sampled(height: int, width: int) -> Iterator[Window]:
    """Windows of bounded size over bands of rows that are evenly spread, the whole scene if it is not huge."""
    starts = np.arange(0, height, SAMPLE_ROWS)
    if len(starts) > MAX_BANDS_OF_ROWS:
        starts = starts[np.linspace(0, len(starts) - 1, MAX_BANDS_OF_ROWS).astype(int)]
    for row in starts.tolist():
        for col in range(0, width, _CHUNK_COLS):
            yield Window(row, col, min(SAMPLE_ROWS, height - row), min(_CHUNK_COLS, width - col))


def _sortable(values: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    """Unsigned integers in the order of float32 values."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000)).astype(np.uint32)


def _from_sortable(keys: npt.NDArray[np.uint32]) -> npt.NDArray[np.float32]:
    """The values of `_sortable`."""
    bits = np.where(keys >> 31, keys & np.uint32(0x7FFFFFFF), ~keys).astype(np.uint32)
    return bits.view(np.float32)
