"""A scene read as if its pixels had another size: exact averages when they grow, bilinear when they shrink."""

from typing import Any

import numpy as np
import numpy.typing as npt
from affine import Affine

from geoseg.arrays import IntArray, Pixels, Valid
from geoseg.errors import SceneError
from geoseg.grid import Grid, crs_hint
from geoseg.runtime.jit import njit
from geoseg.scene.raster import Raster, spanned
from geoseg.windows import Window

Floats = npt.NDArray[np.floating[Any]]
Taps = tuple[IntArray, Floats]

_SOURCE_BYTES = 1 << 26  # source pixels read at once, bytes, unless a row of the file's blocks is larger
_CHUNK_PX = 1 << 19  # source pixels turned into floats at once

_MAX_FACTOR = 64
_SAME = 0.02


class Resampled(Raster):
    """A raster with square pixels of ``gsd_m`` on the ground; it closes its source.

    The grid covers exactly the same ground, in the same CRS and orientation; height and width are rounded. An axis
    within 2 % of the size keeps its pixels. Pixels that are not square on the ground, as in geographic coordinates,
    become square at the scene's centre. The size is at most 64 times the scene's own, or a 64th of it.

    A pixel is the area-weighted mean of the valid source pixels that it covers; along an axis where pixels shrink it is
    interpolated between two centres. It is valid if at least half of the weight is, so areas neither grow nor shrink.

    ``option`` is the one that gives the size, for errors.
    """

    def __init__(self, source: Raster, gsd_m: float, *, option: str = "--gsd") -> None:
        size_m = source.grid.pixel_size_m()
        if size_m is None:
            raise SceneError(
                f"scene {source.path} has no CRS, so its pixels have no size on the ground to resample from",
                hint=crs_hint(source.grid),
            )
        factors = [gsd_m / side for side in size_m]
        if not (gsd_m > 0 and all(1 / _MAX_FACTOR <= f <= _MAX_FACTOR for f in factors)):
            raise SceneError(
                f"scene {source.path} has pixels of {size_m[0]:.3g} × {size_m[1]:.3g} m, "
                f"which cannot be resampled to {gsd_m:.3g} m",
                hint=f"give {option} in metres, at most 64 times the scene's own or a 64th of it",
            )
        self.source, self.gsd_m = source, gsd_m
        self._read_from(source)
        old = source.grid
        height, width = (
            n if abs(f - 1) <= _SAME else max(round(n / f), 1) for n, f in zip(old.shape, factors, strict=True)
        )
        transform = old.transform @ Affine.scale(old.width / width, old.height / height)
        self.grid = Grid(height, width, transform, old.crs)
        rows, cols = source.block_shape
        self.block_shape = max(rows * height // old.height, 1), max(cols * width // old.width, 1)

    @property
    def own_grid(self) -> Grid:
        """See `Raster`."""
        return self.source.own_grid

    def fingerprint(self) -> dict[str, Any]:
        """See `Raster`."""
        return super().fingerprint() | {"gsd_m": self.gsd_m}

    def _is_covered(self, window: Window) -> bool:
        rows = _taps(window.row, window.row_stop, self.source.grid.height, self.grid.height)[0]
        cols = _taps(window.col, window.col_stop, self.source.grid.width, self.grid.width)[0]
        return self.source.may_be_valid(spanned(rows, cols))

    def _read_inside(self, window: Window) -> tuple[Pixels, Valid]:
        pixels, valid = self.empty(window.height, window.width)
        old, new = self.source.grid, self.grid
        if old.shape == new.shape:
            return self.source.read(window)
        rows = _taps(window.row, window.row_stop, old.height, new.height)
        cols = _taps(window.col, window.col_stop, old.width, new.width)
        row_bytes = spanned(rows[0], cols[0]).width * len(self.bands) * self.dtype.itemsize
        source_rows = max(_SOURCE_BYTES // row_bytes, self.source.block_shape[0])
        for row_part in _parts(rows, source_rows):
            span = spanned(rows[0][row_part], cols[0])
            strip, strip_valid = self.source.read(span)
            for col_part in _parts(cols, max(_CHUNK_PX // span.height, 1)):
                near = spanned(rows[0][row_part], cols[0][col_part])
                row_taps = rows[0][row_part] - near.row, rows[1][row_part]
                col_taps = cols[0][col_part] - near.col, cols[1][col_part]
                here = slice(near.col - span.col, near.col_stop - span.col)
                mean, use = self._means(strip[:, :, here], strip_valid[:, here], row_taps, col_taps)
                np.copyto(pixels[:, row_part, col_part], mean, where=use)
                valid[row_part, col_part] = use
        return pixels, valid

    def _means(self, source: Pixels, use: Valid, rows: Taps, cols: Taps) -> tuple[Pixels, Valid]:
        """Pixels and validity from source pixels and theirs."""
        kind = np.result_type(self.dtype, np.float32)
        # Validity is one more band, always: a shortcut for parts without holes would round them differently.
        values = np.concatenate([source, use[None]], dtype=kind, casting="unsafe")
        if not use.all():
            values[:-1] = np.where(use, values[:-1], 0)  # NaN, too, counts for nothing
        sums = _weighted(values, rows[0], rows[1].astype(kind), cols[0], cols[1].astype(kind))
        mean, weight = sums[:-1], sums[-1]
        mean /= np.maximum(weight, np.finfo(kind).tiny)
        if self.dtype.kind != "f":
            np.rint(mean, out=mean)  # a mean of pixels is never beyond what pixels can be
        # Half of the weight, though a sum of fractions falls short by its last digit.
        return mean.astype(self.dtype), weight > 0.5 - 1e-4


def _taps(first: int, stop: int, length: int, new_length: int) -> Taps:
    """Source indices (n, T) and weights (n, T), which sum to 1, of the pixels ``first … stop`` of a resampled axis."""
    j = np.arange(first, stop, dtype=np.int64)[:, None]
    if new_length <= length:
        # In units of 1 / new_length source pixels, pixel j covers [j·length, (j + 1)·length), source pixel i
        # [i·new_length, (i + 1)·new_length).
        taps = np.arange(-(-length // new_length) + (length % new_length > 0))
        index = j * length // new_length + taps
        low = np.maximum(j * length, index * new_length)
        high = np.minimum((j + 1) * length, (index + 1) * new_length)
        weight = np.maximum(high - low, 0) / length
    else:
        # The centre in source pixels is ((2j + 1)·length − new_length) / 2·new_length, counted from their centres.
        centre = (2 * j + 1) * length - new_length
        index = centre // (2 * new_length) + np.arange(2)
        share = centre % (2 * new_length) / (2 * new_length)
        weight = np.concatenate([1 - share, share], axis=1)
    return np.clip(index, 0, length - 1), weight


def _parts(taps: Taps, source_length: int) -> list[slice]:
    """Cut an axis where its source pixels would be more than ``source_length``; at least one pixel each."""
    low, high = taps[0].min(axis=1), taps[0].max(axis=1) + 1
    parts, start = [], 0
    while start < len(low):
        stop = max(int(np.searchsorted(high, low[start] + source_length, side="right")), start + 1)
        parts.append(slice(start, stop))
        start = stop
    return parts


@njit
def _weighted(
    values: Floats,
    row_index: IntArray,
    row_weight: Floats,
    col_index: IntArray,
    col_weight: Floats,
) -> Floats:
    """Weighted sums (B, n, m) of values (B, h, w), rows before columns and tap by tap: one order for every pixel."""
    bands, _, width = values.shape
    rows, cols = len(row_index), len(col_index)
    out = np.zeros((bands, rows, cols), dtype=values.dtype)
    row = np.empty(width, dtype=values.dtype)
    for b in range(bands):
        for i in range(rows):
            row[:] = 0
            for t in range(row_index.shape[1]):
                source, weight = values[b, row_index[i, t]], row_weight[i, t]
                for c in range(width):
                    row[c] += source[c] * weight
            for j in range(cols):
                for t in range(col_index.shape[1]):
                    out[b, i, j] += row[col_index[j, t]] * col_weight[j, t]
    return out
