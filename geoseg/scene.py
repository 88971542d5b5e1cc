"""Open one raster, or several as one, and read windows: pixels (B, H, W) and valid (H, W).

A pixel is invalid where all read bands hold nodata, where any band is NaN, where a mask band says so, or, only when
asked, where the alpha band is 0. Alpha is not taken unasked: a four-band GeoTIFF written with GDAL's defaults calls
its near infrared "alpha", and a dark pixel there is no hole in the scene.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Sequence
from os import PathLike, fspath
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window as RasterWindow

from geoseg.errors import SceneError
from geoseg.grid import Grid
from geoseg.windows import Window

Pixels = npt.NDArray[Any]
Valid = npt.NDArray[np.bool_]

ALIGNMENT_PX = 0.01
"""How far scenes of one mosaic may lie off its pixel grid, px; more would need resampling."""


class Scene:
    """An open raster; a context manager. Reads are serialised by a lock, so threads may share one scene.

    Args:
        path: Anything GDAL opens: GeoTIFF, VRT, PNG, JPEG, a URL, /vsicurl/…
        bands: 1-based bands in the order wanted, or None for all (without the alpha band where ``alpha``).
        nodata: Value that means nothing, overriding the file's; None takes the file's.
        alpha: Take the file's alpha band as validity too.

    Attributes:
        path: As given.
        grid: Size, transform and CRS.
        bands: 1-based bands that `read` returns.
        band_names: Description of each of them, else its colour interpretation, else ``band N``.
        dtype: Of the pixels.
        nodata: Value of the first read band that means nothing, or None.
        alpha_band: 1-based band tagged as alpha, whether used or not, or None.
        file_bands: How many bands the file has.
        block_shape: (rows, columns) of the file's blocks, px: the unit in which it is decoded.
        dataset: The rasterio dataset, for what is not said here; not for reading while other threads read.

    Raises:
        SceneError: No such file, no raster, a band that is not there, bands of several or complex dtypes, a nodata
            value the dtype cannot hold, or alpha asked for and absent.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        bands: Sequence[int] | None = None,
        nodata: float | None = None,
        alpha: bool = False,
    ) -> None:
        self.path = fspath(path)
        self._lock = threading.Lock()
        self.dataset = src = _open(self.path)
        try:
            self.grid = Grid(src.height, src.width, src.transform, src.crs)
            self.file_bands: int = src.count
            self.alpha_band = next((i for i in src.indexes if src.colorinterp[i - 1] is ColorInterp.alpha), None)
            if alpha and self.alpha_band is None:
                raise SceneError(f"{self.path} has no alpha band", hint="leave out --alpha")
            self._alpha = alpha
            self.bands = self._checked_bands(bands)
            self.band_names = tuple(self._band_name(b) for b in self.bands)
            self.dtype = self._common_dtype()
            self._nodata = tuple(src.nodatavals[b - 1] if nodata is None else nodata for b in self.bands)
            if nodata is not None and not _can_hold(self.dtype, nodata):
                raise SceneError(
                    f"nodata {nodata:g} does not fit the {self.dtype} pixels of {self.path}",
                    hint="give a value the pixels can have with --nodata",
                )
            self.nodata: float | None = self._nodata[0]
            rows, cols = src.block_shapes[self.bands[0] - 1]
            self.block_shape = int(rows), int(cols)
            flags = src.mask_flag_enums[self.bands[0] - 1]
            self._has_mask = MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags
        except BaseException:
            src.close()
            raise

    def __enter__(self) -> Scene:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        with self._lock:
            self.dataset.close()

    def read(self, window: Window, *, reflect_valid: bool = False) -> tuple[Pixels, Valid]:
        """Pixels and validity of a window, which may reach past the scene or lie wholly outside it.

        Outside the scene the pixels are the whole scene's, reflected at its edge (the edge pixel is not repeated)
        as often as needed, and invalid, unless their validity is to be reflected with them.

        Args:
            window: Rows and columns, px.
            reflect_valid: Outside the scene, give the validity of the pixel that was reflected: what a network may
                look at, where the default is what may be mapped.

        Returns:
            Pixels (B, H, W) in the file's dtype and valid (H, W), of the window's size.

        Raises:
            SceneError: The file is truncated or a block of it is corrupt; the message names the rows.
        """
        return _read_reflected(window, self.grid, self._read_inside, reflect_valid=reflect_valid)

    def _read_inside(self, window: Window) -> tuple[Pixels, Valid]:
        inside = RasterWindow(window.col, window.row, window.width, window.height)
        try:
            with self._lock:
                pixels = self.dataset.read(self.bands, window=inside)
                return pixels, self._valid(pixels, inside)
        except RasterioError as error:
            raise SceneError(
                f"{self.path} cannot be read in rows {window.row} … {window.row_stop - 1}, "
                f"columns {window.col} … {window.col_stop - 1}: {_reason(error, self.path)}",
                hint=f"the file looks truncated or corrupt; check it with: gdalinfo -checksum {self.path}",
            ) from error

    def _valid(self, pixels: Pixels, window: RasterWindow) -> Valid:
        valid = np.ones(pixels.shape[1:], dtype=bool)
        if all(value is not None and _can_hold(self.dtype, value) for value in self._nodata):
            nothing = [band == self.dtype.type(value) for band, value in zip(pixels, self._nodata, strict=True)]
            valid &= ~np.logical_and.reduce(nothing)
        if self.dtype.kind == "f":
            valid &= ~np.isnan(pixels).any(axis=0)
        if self._has_mask:
            valid &= self.dataset.read_masks(self.bands[0], window=window) > 0
        if self._alpha:
            valid &= self.dataset.read(self.alpha_band, window=window) > 0
        return valid

    def _checked_bands(self, bands: Sequence[int] | None) -> tuple[int, ...]:
        count = self.file_bands
        if count == 0:
            raise SceneError(
                f"{self.path} holds no bands of its own", hint=f"list its parts with: gdalinfo {self.path}"
            )
        if bands is None:
            bands = [i for i in range(1, count + 1) if not (self._alpha and i == self.alpha_band)]
        wrong = [b for b in bands if not 1 <= b <= count]
        if wrong:
            raise SceneError(
                f"{self.path} has bands 1 … {count}, but band {wrong[0]} was asked for",
                hint=f"list its bands with: geoseg info {self.path}",
            )
        if not bands:
            raise SceneError(f"no band of {self.path} is left to read", hint="name bands with --bands")
        return tuple(bands)

    def _band_name(self, band: int) -> str:
        interp = self.dataset.colorinterp[band - 1]
        known = interp.name if interp not in (ColorInterp.undefined, ColorInterp.gray) else f"band {band}"
        return self.dataset.descriptions[band - 1] or known

    def _common_dtype(self) -> np.dtype[Any]:
        names = [self.dataset.dtypes[b - 1] for b in self.bands]
        if len(set(names)) > 1:
            raise SceneError(
                f"the bands of {self.path} have several dtypes: {', '.join(names)}",
                hint="choose bands of one dtype with --bands",
            )
        if names[0].startswith("complex"):
            raise SceneError(f"the pixels of {self.path} are complex ({names[0]})", hint="write its amplitude first")
        dtype: np.dtype[Any] = np.dtype(names[0])
        return dtype


class Mosaic:
    """Several scenes read as one; a context manager with the interface of `Scene`.

    The grid is the union of theirs. Where scenes overlap the later one wins wherever it is valid; pixels that none
    covers are invalid and hold nodata, or 0 without it. All files stay open: for thousands, build a VRT.

    Args:
        scenes: At least one, on one pixel grid: same CRS, pixel size and orientation, origins whole pixels apart.

    Raises:
        SceneError: Another CRS, pixel grid, dtype or number of bands than the first scene's.
    """

    def __init__(self, scenes: Sequence[Scene]) -> None:
        first = scenes[0]
        self.scenes = tuple(scenes)
        self.path = first.path if len(scenes) == 1 else f"{first.path} and {len(scenes) - 1} more"
        self.bands, self.band_names, self.dtype = first.bands, first.band_names, first.dtype
        self.nodata, self.block_shape = first.nodata, first.block_shape
        self.alpha_band, self.file_bands = first.alpha_band, first.file_bands
        places = [_place(scene, first) for scene in scenes]
        top, left = min(w.row for w in places), min(w.col for w in places)
        height, width = max(w.row_stop for w in places) - top, max(w.col_stop for w in places) - left
        self.grid = first.grid.crop(Window(top, left, height, width))
        self._places = [Window(w.row - top, w.col - left, w.height, w.width) for w in places]

    def __enter__(self) -> Mosaic:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all files."""
        for scene in self.scenes:
            scene.close()

    def read(self, window: Window, *, reflect_valid: bool = False) -> tuple[Pixels, Valid]:
        """Pixels and validity of a window of the union; see `Scene.read`."""
        return _read_reflected(window, self.grid, self._read_inside, reflect_valid=reflect_valid)

    def _read_inside(self, window: Window) -> tuple[Pixels, Valid]:
        fill = self.nodata if self.nodata is not None and _can_hold(self.dtype, self.nodata) else 0
        pixels = np.full((len(self.bands), window.height, window.width), fill, dtype=self.dtype)
        valid = np.zeros(pixels.shape[1:], dtype=bool)
        for scene, place in zip(self.scenes, self._places, strict=True):
            top, left = max(window.row, place.row), max(window.col, place.col)
            height, width = min(window.row_stop, place.row_stop) - top, min(window.col_stop, place.col_stop) - left
            if height <= 0 or width <= 0:
                continue
            new, use = scene.read(Window(top - place.row, left - place.col, height, width))
            rows = slice(top - window.row, top - window.row + height)
            cols = slice(left - window.col, left - window.col + width)
            np.copyto(pixels[:, rows, cols], new, where=use)
            valid[rows, cols] |= use
        return pixels, valid


Raster: TypeAlias = Scene | Mosaic


def open_scene(
    paths: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    bands: Sequence[int] | None = None,
    nodata: float | None = None,
    alpha: bool = False,
) -> Raster:
    """One path as a `Scene`, several as a `Mosaic`; options as of `Scene`, for each of them.

    Raises:
        SceneError: No path, or see `Scene` and `Mosaic`; no file is left open then.
    """
    if isinstance(paths, str | PathLike):
        return Scene(paths, bands=bands, nodata=nodata, alpha=alpha)
    if not paths:
        raise SceneError("no scene was named", hint="name one or several rasters")
    scenes: list[Scene] = []
    try:
        for path in paths:
            scenes.append(Scene(path, bands=bands, nodata=nodata, alpha=alpha))
        return scenes[0] if len(scenes) == 1 else Mosaic(scenes)
    except BaseException:
        for scene in scenes:
            scene.close()
        raise


def _open(path: str) -> Any:
    """The rasterio dataset of a path; a missing georeference is a fact of the scene here and not worth a warning."""
    if not path:
        raise SceneError("the path of the scene is empty", hint="name a raster")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            return rasterio.open(path)
    except RasterioError as error:
        is_local = "://" not in path and not path.startswith("/vsi")
        if is_local and Path(path).is_dir():
            raise SceneError(f"{path} is a folder, not a raster", hint=f"name the files in it: {path}/*.tif") from error
        if "No such file" in str(error):
            raise SceneError(f"no such scene: {path}", hint="check the path") from error
        raise SceneError(
            f"{path} is not a raster that GDAL can read: {_reason(error, path)}",
            hint=f"check {'the file' if is_local else 'the address'} with: gdalinfo {path}",
        ) from error


def _reason(error: RasterioError, path: str) -> str:
    """What GDAL said first, without the path it begins with: rasterio's own words are "see previous exception"."""
    text = str(error.__cause__ or error)
    return text.removeprefix(f"'{path}' ").removeprefix(f"{Path(path).name}, ").removeprefix(f"{path}: ").rstrip(".")


def _read_reflected(
    window: Window, grid: Grid, read_inside: Callable[[Window], tuple[Pixels, Valid]], *, reflect_valid: bool
) -> tuple[Pixels, Valid]:
    """Read any window by way of the smallest inside window that holds all its pixels and their reflections."""
    rows, cols = np.arange(window.row, window.row_stop), np.arange(window.col, window.col_stop)
    from_rows, from_cols = _reflect(rows, grid.height), _reflect(cols, grid.width)
    top, left = int(from_rows.min()), int(from_cols.min())
    inside = Window(top, left, int(from_rows.max()) - top + 1, int(from_cols.max()) - left + 1)
    pixels, valid = read_inside(inside)
    if inside == window:
        return pixels, valid
    index = (from_rows - top)[:, None], from_cols - left
    pixels, valid = pixels[:, index[0], index[1]], valid[index]
    if not reflect_valid:
        valid &= np.equal(rows, from_rows)[:, None] & np.equal(cols, from_cols)
    return pixels, valid


def _reflect(index: npt.NDArray[np.int_], length: int) -> npt.NDArray[np.int_]:
    """Indices in [0, length) of an axis continued by reflection without repeating its ends: a triangle wave."""
    if length == 1:
        return np.zeros_like(index)
    phase = index % (2 * (length - 1))
    return np.minimum(phase, 2 * (length - 1) - phase)


def _can_hold(dtype: np.dtype[Any], value: float) -> bool:
    """Whether a pixel of this dtype can equal the value; a byte is never -9999, whatever the file's header says."""
    if dtype.kind == "f":
        return True
    return math.isfinite(value) and value == int(value) and np.iinfo(dtype).min <= value <= np.iinfo(dtype).max


def _place(scene: Scene, first: Scene) -> Window:
    """Where a scene lies on the pixel grid of the first one, px."""
    if scene.grid.crs != first.grid.crs:
        raise SceneError(
            f"{scene.path} is in {_crs_name(scene)}, but {first.path} in {_crs_name(first)}",
            hint=f"reproject it first: gdalwarp -t_srs {_crs_name(first)} {scene.path} same_crs.tif",
        )
    if (scene.dtype, len(scene.bands)) != (first.dtype, len(first.bands)):
        raise SceneError(
            f"{scene.path} has {len(scene.bands)} bands of {scene.dtype}, "
            f"but {first.path} has {len(first.bands)} of {first.dtype}",
            hint="choose bands with --bands, or predict the scenes one by one",
        )
    height, width = scene.grid.shape
    to_first: Affine = ~first.grid.transform @ scene.grid.transform
    col, row = to_first @ (0, 0)
    place = Window(round(row), round(col), height, width)
    # All four corners: a slightly different pixel size or rotation shows only at the far ones.
    for c, r in (0, 0), (width, 0), (0, height), (width, height):
        x, y = to_first @ (c, r)
        if max(abs(x - place.col - c), abs(y - place.row - r)) > ALIGNMENT_PX:
            t = first.grid.transform
            raise SceneError(
                f"{scene.path} is not on the pixel grid of {first.path}: pixel size or origin differ",
                hint=f"resample it: gdalwarp -tr {abs(t.a):.12g} {abs(t.e):.12g} -tap {scene.path} aligned.tif, "
                "for both files, or read them as one with gdalbuildvrt",
            )
    return place


def _crs_name(scene: Scene) -> str:
    crs = scene.grid.crs
    return crs.to_string() if crs is not None else "no CRS"
