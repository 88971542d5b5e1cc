"""Open a raster and read windows of it: pixels (B, H, W) and valid (H, W).

A pixel is invalid where all read bands hold the nodata value, where any band is NaN, where a mask band says so,
or, only when asked, where the alpha band is 0. Alpha is not taken unasked: a four-band GeoTIFF written with GDAL's
defaults calls its near infrared "alpha", and a dark pixel there is no hole in the scene.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioError, RasterioIOError
from rasterio.windows import Window as RasterWindow

from geoseg.errors import SceneError
from geoseg.grid import Grid
from geoseg.windows import Window

Pixels = npt.NDArray[Any]
Valid = npt.NDArray[np.bool_]


class Scene:
    """An open raster; a context manager. Reads are serialised by a lock, so threads may share one scene.

    Args:
        path: Anything GDAL opens: GeoTIFF, VRT, PNG, JPEG, /vsicurl/…
        bands: 1-based bands in the order wanted, or None for all (without the alpha band where ``alpha``).
        nodata: Value that means nothing, overriding the file's; None takes the file's.
        alpha: Take the file's alpha band as validity.

    Raises:
        SceneError: No such file, no raster, a band that is not there, or alpha asked for and absent.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        bands: Sequence[int] | None = None,
        nodata: float | None = None,
        alpha: bool = False,
    ) -> None:
        self.path = str(path)
        self._lock = threading.Lock()
        try:
            self._dataset = rasterio.open(self.path)
        except (RasterioError, RasterioIOError) as error:
            if "://" not in self.path and not self.path.startswith("/vsi") and not Path(self.path).exists():
                raise SceneError(f"no such scene: {self.path}", hint="check the path") from error
            raise SceneError(f"{self.path} is not a raster that GDAL can read: {error}") from error
        src = self._dataset
        self.grid = Grid(src.height, src.width, src.transform, src.crs)
        self.file_bands: int = src.count
        self.alpha_band = _alpha_band(src.colorinterp)
        if alpha and self.alpha_band is None:
            src.close()
            raise SceneError(f"{self.path} has no alpha band", hint="leave out --alpha")
        if bands is None:
            bands = [i for i in range(1, src.count + 1) if not (alpha and i == self.alpha_band)]
        wrong = [b for b in bands if not 1 <= b <= src.count]
        if wrong:
            src.close()
            raise SceneError(
                f"{self.path} has bands 1 … {src.count}, but band {wrong[0]} was asked for",
                hint=f"list its bands with: geoseg info {self.path}",
            )
        self.bands = tuple(bands)
        self.dtype = np.dtype(src.dtypes[self.bands[0] - 1])
        self.nodata: float | None = src.nodata if nodata is None else nodata
        self._alpha = alpha
        self._has_mask = MaskFlags.per_dataset in src.mask_flag_enums[0] and MaskFlags.alpha not in src.mask_flag_enums[0]

    def __enter__(self) -> Scene:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._dataset.close()

    @property
    def block_shape(self) -> tuple[int, int]:
        """(rows, columns) of the file's blocks, px: the unit it is decoded in."""
        rows, cols = self._dataset.block_shapes[0]
        return int(rows), int(cols)

    @property
    def band_names(self) -> tuple[str, ...]:
        """Description of each read band, else its colour interpretation, else ``band N``."""
        src = self._dataset
        names = []
        for band in self.bands:
            interp = src.colorinterp[band - 1]
            known = interp.name if interp not in (ColorInterp.undefined, ColorInterp.gray) else f"band {band}"
            names.append(src.descriptions[band - 1] or known)
        return tuple(names)

    def read(self, window: Window) -> tuple[Pixels, Valid]:
        """Pixels and validity of a window, which may reach past the scene.

        Outside the scene the pixels are the scene's own, reflected at its edge (the edge pixel is not repeated),
        and invalid.

        Args:
            window: Rows and columns, px; it must overlap the scene.

        Returns:
            Pixels (B, H, W) in the file's dtype and valid (H, W), of the window's size.

        Raises:
            SceneError: The file is truncated or a block of it is corrupt; the message names the rows.
        """
        top, left = max(window.row, 0), max(window.col, 0)
        bottom, right = min(window.row_stop, self.grid.height), min(window.col_stop, self.grid.width)
        inside = RasterWindow(left, top, right - left, bottom - top)
        try:
            with self._lock:
                pixels = self._dataset.read(self.bands, window=inside)
                valid = self._valid(pixels, inside)
        except (RasterioError, RasterioIOError) as error:
            raise SceneError(
                f"{self.path} cannot be read in rows {top} … {bottom}, columns {left} … {right}: {error}",
                hint=f"the file looks truncated or corrupt; check it with: gdalinfo -checksum {self.path}",
            ) from error
        margins = (top - window.row, window.row_stop - bottom), (left - window.col, window.col_stop - right)
        if any(m for pair in margins for m in pair):
            pixels = pad_reflect(pixels, ((0, 0), *margins))
            valid = np.pad(valid, margins, constant_values=False)
        return pixels, valid

    def _valid(self, pixels: Pixels, window: RasterWindow) -> Valid:
        if self._alpha:
            return np.asarray(self._dataset.read(self.alpha_band, window=window) > 0)
        valid = np.ones(pixels.shape[1:], dtype=bool)
        if self.nodata is not None and not np.isnan(self.nodata):
            valid &= (pixels != self.nodata).any(axis=0)
        if pixels.dtype.kind == "f":
            valid &= ~np.isnan(pixels).any(axis=0)
        if self._has_mask:
            valid &= self._dataset.read_masks(self.bands[0], window=window) > 0
        return valid


def pad_reflect(pixels: Pixels, margins: Sequence[tuple[int, int]]) -> Pixels:
    """Pad an array by reflection, in several turns where a margin is wider than the array itself."""
    return np.pad(pixels, margins, mode="reflect")


def _alpha_band(interps: Sequence[ColorInterp]) -> int | None:
    return next((i for i, interp in enumerate(interps, start=1) if interp is ColorInterp.alpha), None)
