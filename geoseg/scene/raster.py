"""What one file (`Scene`), several (`Mosaic`), and either at another GSD (`Resampled`) have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from geoseg.arrays import IntArray, Pixels, Valid
from geoseg.grid import Grid
from geoseg.windows import Window

if TYPE_CHECKING:
    from geoseg.scene.aoi import Aoi

_SAMPLES, _SAMPLE_PX = 5, 64  # windows along each side of a scene that `Raster.sample` reads, and their side, px


class Raster(ABC):
    """Open imagery; a context manager. Several threads may read one raster at once; it travels to other processes."""

    path: str  # the file, or the first of several and how many more
    paths: tuple[str, ...]  # all files
    grid: Grid
    bands: tuple[int, ...]  # 1-based bands that `read` returns
    band_names: tuple[str, ...]  # description of each of them, else its colour interpretation, else ``band N``
    dtype: np.dtype[Any]
    nodata: float | None  # nodata value of the first read band, or None
    # (scale, offset) of each read band in the file's tags, which are not applied; None if all are (1, 0)
    scaling: tuple[tuple[float, float], ...] | None
    alpha_band: int | None  # 1-based band tagged as alpha, whether used or not, or None
    file_bands: int  # how many bands the file has
    has_palette: bool  # whether a band holds numbers of colours in a table
    block_shape: tuple[int, int]  # (rows, columns) of the file's blocks, px: the unit in which it is decoded
    aoi: Aoi | None = None  # area outside which nothing is valid, or None
    covered_share: float = 1.0  # share of the grid that its files cover, at most 1
    _parts: tuple[Raster, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_from(self, *parts: Raster) -> None:
        """Be made of other rasters: have their files, and but for the grid what is said of the first or of all."""
        first, self._parts = parts[0], parts
        self.path = first.path if len(parts) == 1 else f"{first.path} and {len(parts) - 1} more"
        self.paths = tuple(path for part in parts for path in part.paths)
        self.bands, self.band_names, self.dtype, self.nodata = first.bands, first.band_names, first.dtype, first.nodata
        self.alpha_band, self.file_bands, self.has_palette = first.alpha_band, first.file_bands, first.has_palette
        self.block_shape, self.covered_share = first.block_shape, first.covered_share
        self.scaling = next((part.scaling for part in parts if part.scaling is not None), None)

    def close(self) -> None:
        """Close all files; a second time does nothing."""
        for part in self._parts:
            part.close()

    def source_facts(self) -> list[dict[str, Any]]:
        """The state of each file on disk or server, for `fingerprint`; of several in the order in which they win."""
        return [fact for part in self._parts for fact in part.source_facts()]

    @property
    def own_grid(self) -> Grid:
        """The grid of the pixels in its files, which may be resampled to another one."""
        return self.grid

    @property
    def can_be_invalid(self) -> bool:
        """Whether the scene may have invalid pixels; decodes nothing."""
        return self.aoi is not None or self.covered_share < 1 or any(part.can_be_invalid for part in self._parts)

    @property
    def row_of_blocks_bytes(self) -> int:
        """GDAL cache, bytes, for one thread to decode every block once though strips or windows end inside blocks.

        The blocks of one row of pixels, twice if bands are stored one after another.
        """
        return max(part.row_of_blocks_bytes for part in self._parts)

    @abstractmethod
    def _read_inside(self, window: Window) -> tuple[Pixels, Valid]:
        """Pixels and validity of a window inside the grid, regardless of the area of interest."""

    def _is_covered(self, window: Window) -> bool:
        """Whether any file covers a pixel of a window inside the grid."""
        return True

    def read(self, window: Window, *, reflect_valid: bool = False, clip: bool = True) -> tuple[Pixels, Valid]:
        """Pixels (B, H, W) in the file's dtype and validity (H, W) of a window, which may reach past the scene.

        Outside the scene the pixels are those of the scene reflected at its edge (the edge pixel is not repeated).
        With ``clip``, blocks without a pixel of the area of interest are not decoded; their pixels are nodata or 0.

        Args:
            window: Rows and columns, px.
            reflect_valid: Reflect validity too, for a network's input; else all is invalid outside the scene.
            clip: Make pixels outside the area of interest invalid. False lets a network look across its border.

        Raises:
            SceneError: A file is truncated, a block of it corrupt, or a server fails; the message names the rows.
        """
        rows, cols = np.arange(window.row, window.row_stop), np.arange(window.col, window.col_stop)
        from_rows, from_cols = reflected(rows, self.grid.height), reflected(cols, self.grid.width)
        inside = spanned(from_rows, from_cols)
        pixels, valid = self._read_clipped(inside, self.aoi) if clip and self.aoi else self._read_inside(inside)
        if inside == window:
            return pixels, valid
        index = (from_rows - inside.row)[:, None], from_cols - inside.col
        pixels, valid = pixels[:, index[0], index[1]], valid[index]
        if not reflect_valid:
            valid &= np.equal(rows, from_rows)[:, None] & np.equal(cols, from_cols)
        return pixels, valid

    def sample(self) -> tuple[Pixels, Valid]:
        """Pixels (B, N) and validity (N,) of small windows all over the scene, corners included; quick for any size."""
        height, width = (min(_SAMPLE_PX, n) for n in self.grid.shape)
        rows, cols = (
            sorted({round(i * (n - size) / (_SAMPLES - 1)) for i in range(_SAMPLES)})
            for n, size in zip(self.grid.shape, (height, width), strict=True)
        )
        parts = [self.read(Window(row, col, height, width)) for row in rows for col in cols]
        pixels = np.concatenate([p.reshape(len(p), -1) for p, _ in parts], axis=1)
        return pixels, np.concatenate([v.ravel() for _, v in parts])

    def inside(self, window: Window) -> Valid:
        """Where a map is wanted, (H, W): inside the scene and the area of interest; decodes nothing."""
        wanted = np.zeros((window.height, window.width), dtype=bool)
        part = self._intersection(window)
        if part is not None:
            rows, cols = slices(part, window)
            wanted[rows, cols] = True if self.aoi is None else self.aoi.mask(part)
        return wanted

    def may_be_valid(self, window: Window) -> bool:
        """False if a window lies outside the scene, its files or the area of interest; decodes nothing."""
        part = self._intersection(window)
        return part is not None and self._is_covered(part) and (self.aoi is None or self.aoi.touches(part))

    def fingerprint(self) -> dict[str, Any]:
        """What a result depends on, as JSON; if equal, so are the pixels, as far as size and time of files tell."""
        crs = self.grid.crs
        return {
            "files": self.source_facts(),
            "height": self.grid.height,
            "width": self.grid.width,
            "transform": list(self.grid.transform)[:6],
            "crs": crs.to_wkt() if crs is not None else None,
            "bands": list(self.bands),
            "dtype": str(self.dtype),
            "nodata": str(self.nodata) if self.nodata is not None else None,  # JSON knows no NaN
            "aoi": self.aoi.digest if self.aoi is not None else None,
        }

    def empty(self, height: int, width: int) -> tuple[Pixels, Valid]:
        """Pixels (B, H, W) of nodata, or 0 if there is none, and valid (H, W), all False."""
        fill = self.nodata if self.nodata is not None and can_hold(self.dtype, self.nodata) else 0
        return np.full((len(self.bands), height, width), fill, dtype=self.dtype), np.zeros((height, width), dtype=bool)

    def _intersection(self, window: Window) -> Window | None:
        return intersection(window, Window(0, 0, *self.grid.shape))

    def _read_clipped(self, window: Window, aoi: Aoi) -> tuple[Pixels, Valid]:
        wanted = aoi.mask(window)
        if wanted.all():
            return self._read_inside(window)
        pixels, valid = self.empty(window.height, window.width)
        for part in _touched_blocks(wanted, window, self.block_shape[1]):
            rows, cols = slices(part, window)
            pixels[:, rows, cols], valid[rows, cols] = self._read_inside(part)
        return pixels, valid & wanted


def intersection(a: Window, b: Window) -> Window | None:
    """What two windows share, or None."""
    row, col = max(a.row, b.row), max(a.col, b.col)
    height, width = min(a.row_stop, b.row_stop) - row, min(a.col_stop, b.col_stop) - col
    return Window(row, col, height, width) if height > 0 and width > 0 else None


def spanned(rows: IntArray, cols: IntArray) -> Window:
    """The smallest window that holds all these rows and columns."""
    row, col = int(rows.min()), int(cols.min())
    return Window(row, col, int(rows.max()) - row + 1, int(cols.max()) - col + 1)


def can_hold(dtype: np.dtype[Any], value: float) -> bool:
    """Whether a pixel of this dtype can equal the value: a header may say -9999 of bytes."""
    if dtype.kind == "f":
        return True
    return math.isfinite(value) and value == int(value) and np.iinfo(dtype).min <= value <= np.iinfo(dtype).max


def slices(part: Window, window: Window) -> tuple[slice, slice]:
    """Rows and columns of an array of a window that hold a part of it."""
    row, col = part.row - window.row, part.col - window.col
    return slice(row, row + part.height), slice(col, col + part.width)


def _touched_blocks(wanted: Valid, window: Window, block_width: int) -> Iterator[Window]:
    """Parts of a window, whole columns of blocks side by side, that hold all wanted pixels."""
    first = window.col // block_width
    starts = np.arange(first * block_width, window.col_stop, block_width) - window.col
    touched = np.logical_or.reduceat(wanted.any(axis=0), np.maximum(starts, 0))
    changes = np.flatnonzero(np.diff(np.concatenate([[False], touched, [False]])))
    edges = np.concatenate([np.maximum(starts, 0), [window.width]])
    for start, stop in zip(edges[changes[::2]].tolist(), edges[changes[1::2]].tolist(), strict=True):
        rows = np.flatnonzero(wanted[:, start:stop].any(axis=1))
        top, bottom = int(rows[0]), int(rows[-1]) + 1
        yield Window(window.row + top, window.col + start, bottom - top, stop - start)


def reflected(index: IntArray, length: int) -> IntArray:
    """Indices in [0, length) of an axis continued by reflection without repeating its ends: a triangle wave."""
    if length == 1:
        return np.zeros_like(index)
    phase = index % (2 * (length - 1))
    return np.minimum(phase, 2 * (length - 1) - phase)
