"""One raster file, and how one or several are opened.

A pixel is invalid if all read bands hold nodata, any band is NaN, a mask band says so, or, only on request, the alpha
band is 0.
"""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioError
from rasterio.windows import Window as RasterWindow

from geoseg.arrays import Pixels, Valid
from geoseg.errors import SceneError, quoted
from geoseg.georeference import refuse_unwarped, warp_command
from geoseg.grid import grid_of
from geoseg.options import AnyPath, Imagery
from geoseg.paths import RASTER_SUFFIXES, file_behind, input_path, opened_name
from geoseg.runtime.ahead import gather
from geoseg.scene.mosaic import UNUSABLE, Mosaic
from geoseg.scene.open_files import OpenFiles, is_remote, open_dataset, reason, remote_facts, server_complaint
from geoseg.scene.raster import Raster, can_hold
from geoseg.windows import Window

_OPENING_THREADS = 8


class Scene(Raster):
    """One raster file; see `Raster` for what it has. Each thread that reads gets a dataset of its own.

    Args:
        path: Anything GDAL opens: GeoTIFF, VRT, PNG, JPEG, a URL, /vsizip/…, or a zip file with one raster in it.
        bands: 1-based bands in the order wanted, or None for all (without the alpha band where ``alpha``).
        nodata: Value that means nothing, overriding the file's; None takes the file's.
        alpha: Take the file's alpha band as validity too.
        crs: CRS of a file that has a transform but no CRS; None takes the file's.
        files: Where datasets are kept open, shared by the scenes of a mosaic; None keeps them for this scene.

    Raises:
        SceneError: The file cannot be opened, or lacks the bands, dtypes, nodata value, alpha or CRS asked for.

    Attributes:
        has_mask: Whether a mask band says which pixels are valid.
        warp_command: What to type for a file with control points in place of a transform, else None.
    """

    def __init__(
        self,
        path: AnyPath,
        *,
        bands: Sequence[int] | None = None,
        nodata: float | None = None,
        alpha: bool = False,
        crs: str | None = None,
        files: OpenFiles | None = None,
    ) -> None:
        self.path = opened_name(path, RASTER_SUFFIXES, SceneError)
        self.paths = (self.path,)
        self._files = OpenFiles() if files is None else files
        self._dataset: Any = None
        self._is_closed = False
        with self._files.borrow(self.path) as src:
            self.grid = grid_of(src, crs)
            if not abs(self.grid.transform.determinant) > 0:
                raise SceneError(
                    f"the pixels of {self.path} have no area: its transform is {self.grid.transform.to_gdal()}",
                    hint="give it its corners: gdal_translate -a_ullr LEFT TOP RIGHT BOTTOM",
                )
            self.warp_command = warp_command(src)
            self.file_bands = src.count
            self.alpha_band = next((i for i in src.indexes if src.colorinterp[i - 1] is ColorInterp.alpha), None)
            if alpha and self.alpha_band is None:
                raise SceneError(f"{self.path} has no alpha band", hint="leave out --alpha")
            self._alpha = alpha
            self.bands = self._checked_bands(bands)
            self.band_names = tuple(_band_name(src, b) for b in self.bands)
            self.dtype = _common_dtype(self.path, [src.dtypes[b - 1] for b in self.bands])
            self._nodata = tuple(src.nodatavals[b - 1] if nodata is None else nodata for b in self.bands)
            if nodata is not None and not can_hold(self.dtype, nodata):
                raise SceneError(
                    f"nodata {nodata:g} does not fit the {self.dtype} pixels of {self.path}",
                    hint="give a value the pixels can have with --nodata",
                )
            self.nodata = self._nodata[0]
            scaling = tuple((float(src.scales[b - 1]), float(src.offsets[b - 1])) for b in self.bands)
            self.scaling = None if all(pair == (1, 0) for pair in scaling) else scaling
            self.has_palette = ColorInterp.palette in src.colorinterp
            self.block_shape = src.block_shapes[self.bands[0] - 1]
            self._is_pixel_interleaved = src.profile.get("interleave") == "pixel"
            flags = src.mask_flag_enums[self.bands[0] - 1]
            self.has_mask = MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags
            # A VRT names its sources here, which may change while it does not.
            self._sources = tuple(dict.fromkeys((self.path, *src.files)))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_dataset": None}

    @property
    def dataset(self) -> Any:
        """A rasterio dataset, for what is not said here; not to be read while other threads read."""
        if self._dataset is None:
            self._dataset = open_dataset(self.path)
        return self._dataset

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        self._is_closed = True
        self._files.close(self.path)
        if self._dataset is not None:
            self._dataset.close()

    @property
    def can_be_invalid(self) -> bool:
        """See `Raster`."""
        declared = all(value is not None and can_hold(self.dtype, value) for value in self._nodata)
        return declared or self.dtype.kind == "f" or self.has_mask or self._alpha or self.aoi is not None

    @property
    def row_of_blocks_bytes(self) -> int:
        """See `Raster`."""
        rows, cols = self.block_shape
        # Where bands lie pixel by pixel, GDAL decodes and keeps all of them, wanted or not.
        bands = self.file_bands if self._is_pixel_interleaved else len(self.bands) + self._alpha
        # One block more for what GDAL notes about each: a cache a little too small for a row holds nothing of it.
        blocks = -(-self.grid.width // cols) + 1
        # Band after band, both rows of blocks of a strip have passed before the next strip comes to the second.
        passed = 1 if (self._is_pixel_interleaved or bands == 1) and not self.has_mask else 2
        return passed * blocks * cols * rows * (bands * self.dtype.itemsize + self.has_mask)

    def source_facts(self) -> list[dict[str, Any]]:
        """Path, size and time of change of the file, and of the files it refers to."""
        if is_remote(self.path):
            return [remote_facts(self.path)]
        return [_local_facts(path) for path in self._sources]

    def _read_inside(self, window: Window) -> tuple[Pixels, Valid]:
        if self._is_closed:
            raise ValueError(f"scene {self.path} is closed")
        inside = RasterWindow(window.col, window.row, window.width, window.height)
        try:
            with self._files.borrow(self.path) as dataset:
                pixels = dataset.read(self.bands, window=inside)
                return pixels, self._valid(dataset, pixels, inside)
        except RasterioError as error:
            why = reason(error, self.path)
            hint = f"the file looks truncated or corrupt; check it with: gdalinfo -checksum {quoted(self.path)}"
            if is_remote(self.path):
                why = server_complaint(self.path) or why
                hint = "run the same command again when the server is well, or download the file first"
            raise SceneError(
                f"{self.path} cannot be read in rows {window.row} … {window.row_stop - 1}, "
                f"columns {window.col} … {window.col_stop - 1}: {why}",
                hint=hint,
            ) from error

    def _valid(self, dataset: Any, pixels: Pixels, window: RasterWindow) -> Valid:
        valid = np.ones(pixels.shape[1:], dtype=bool)
        if all(value is not None and can_hold(self.dtype, value) for value in self._nodata):
            np.not_equal(pixels[0], self.dtype.type(self._nodata[0]), out=valid)
            for band, value in zip(pixels[1:], self._nodata[1:], strict=True):
                valid |= band != self.dtype.type(value)
        if self.dtype.kind == "f":
            valid &= ~np.isnan(pixels).any(axis=0)
        if self.has_mask:
            valid &= dataset.read_masks(self.bands[0], window=window) > 0
        if self._alpha:
            valid &= dataset.read(self.alpha_band, window=window) > 0
        return valid

    def _checked_bands(self, bands: Sequence[int] | None) -> tuple[int, ...]:
        count = self.file_bands
        if count == 0:
            raise SceneError(
                f"{self.path} holds no bands of its own", hint=f"list its parts with: gdalinfo {quoted(self.path)}"
            )
        if bands is None:
            bands = [i for i in range(1, count + 1) if not (self._alpha and i == self.alpha_band)]
        wrong = [b for b in bands if not 1 <= b <= count]
        if wrong:
            raise SceneError(
                f"{self.path} has bands 1 … {count}, but band {wrong[0]} was asked for",
                hint=f"list its bands with: geoseg info {quoted(self.path)}",
            )
        if not bands:
            raise SceneError(f"no band of {self.path} is left to read", hint="name bands with --bands")
        return tuple(bands)


def open_scene(paths: AnyPath | Sequence[AnyPath], imagery: Imagery = Imagery()) -> Raster:
    """One path as a `Scene`, several as a `Mosaic`; the GSD of ``imagery`` is in metres.

    Raises:
        SceneError: No path, a file with control points in place of a transform, or see `Scene`, `Mosaic`, `load_aoi`
            and `Resampled`. No file is left open then, and all files with a problem are listed.
    """
    names = [paths] if isinstance(paths, str | PathLike) else list(paths)
    if not names:
        raise SceneError("no scene was named", hint="name one or several rasters")
    files = OpenFiles()

    def opened(path: AnyPath) -> Scene:
        scene = Scene(
            path, bands=imagery.bands, nodata=imagery.nodata, alpha=imagery.alpha, crs=imagery.crs, files=files
        )
        refuse_unwarped(scene.path, scene.warp_command)
        return scene

    try:
        scenes = gather(opened, names, UNUSABLE, threads=_OPENING_THREADS, name="open")
        raster: Raster = scenes[0] if len(scenes) == 1 else Mosaic(scenes)
        # Few scenes need these two, and numba and pandas, which come with them, take their time to load.
        if imagery.gsd is not None:
            from geoseg.scene.resample import Resampled

            raster = Resampled(raster, float(imagery.gsd))
        if imagery.aoi is not None:
            from geoseg.scene.aoi import load_aoi

            raster.aoi = load_aoi(imagery.aoi, raster.grid)
        return raster
    except BaseException:
        files.close()
        raise


def _band_name(dataset: Any, band: int) -> str:
    interp = dataset.colorinterp[band - 1]
    known = interp.name if interp not in (ColorInterp.undefined, ColorInterp.gray) else f"band {band}"
    return dataset.descriptions[band - 1] or known


def _common_dtype(path: str, names: list[str]) -> np.dtype[Any]:
    if len(set(names)) > 1:
        raise SceneError(
            f"the bands of {path} have several dtypes: {', '.join(names)}",
            hint="choose bands of one dtype with --bands",
        )
    if names[0].startswith("complex"):
        raise SceneError(f"the pixels of {path} are complex ({names[0]})", hint="write its amplitude first")
    dtype: np.dtype[Any] = np.dtype(names[0])
    return dtype


def _local_facts(path: str) -> dict[str, Any]:
    file = file_behind(input_path(path))
    if file is None:
        return {"path": path}
    try:
        status = file.stat()
    except OSError:  # a source of a VRT that is not a file
        return {"path": path}
    member = path.partition(f"{file}")[2]
    return {"path": f"{file.resolve()}{member}", "bytes": status.st_size, "modified_ns": status.st_mtime_ns}
