"""Read a class map: a raster of one uint8 band, 255 = nodata, whole or as rows; also one made by other programs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import rasterio
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError
from rasterio.windows import Window as RasterWindow

from geoseg.arrays import ByteArray
from geoseg.class_map.names import class_table, renamed
from geoseg.classes import NODATA, ClassTable
from geoseg.errors import SceneError, quoted
from geoseg.files import open_raster
from geoseg.georeference import warp_command
from geoseg.grid import Grid, grid_of
from geoseg.map_rows import MapRows
from geoseg.paths import RASTER_SUFFIXES, InputPath, exists, input_path, opened_name
from geoseg.windows import Window

log = logging.getLogger(__name__)


SCENE_TAG = "GEOSEG_SCENE"
"""TIFF tag with the name of the imagery that was mapped."""

DIGEST_TAG = "GEOSEG_MAP_SHA256"
"""TIFF tag with the SHA-256 of the class ids, row by row; all layers of one map bear it."""

_ROWS = 512
_CACHE_BYTES = 64 << 20


def layer_path(path: str | PathLike[str], layer: str) -> Path:
    """Where a layer of a class map lies: ``map_confidence.tif`` for ``map.tif``; "classes" is the map itself."""
    path = Path(path)
    return path if layer == "classes" else path.with_name(f"{path.stem}_{layer}{path.suffix}")


@dataclass(frozen=True, slots=True, eq=False)
class ClassMap:
    """A class map in memory: values (H, W) uint8 with 255 = nodata, where they lie, and what they mean."""

    values: ByteArray
    grid: Grid
    classes: ClassTable


class ClassMapReader:
    """An open class map that gives its rows from top to bottom; a context manager.

    Names and colours come from the file and what lies beside it, see `geoseg.class_map.names`. Where they do not say
    how many classes there are, the whole raster is read beforehand. Pixels that the file's nodata value or mask calls
    invalid become 255, and 255 is nodata where the file says nothing.

    Args:
        path: The file.
        crs: CRS of a file that has a transform but no CRS; None takes the file's.
        classes: Names and colours of the ids; None takes the file's.

    Attributes:
        path: The file.
        grid: Size, transform and CRS.
        warp_command: What to type for a file with control points in place of a transform, else None.
        classes: Ids, names and colours.
        is_named: Whether any class has a name of its own.
        source: Name of the imagery that was mapped, else of the map.
        confidence_path: The confidence raster that was written with this very map (`MapFileWriter`), or None.
        contact_path: The same of the contact raster.

    Raises:
        SceneError: No such file, unreadable, more than one band, or not uint8; or a CRS that is not the file's.
    """

    def __init__(self, path: str | PathLike[str], *, crs: str | None = None, classes: ClassTable | None = None) -> None:
        name = opened_name(path, RASTER_SUFFIXES, SceneError)
        self.path = input_path(name)
        with _as_scene_error(self.path):
            self._file = open_raster(name)
            try:
                _check_class_map(name, self._file)
                self.grid = grid_of(self._file, crs)
                self.warp_command = warp_command(self._file)
                self.classes, self.is_named = (
                    (renamed(self._file, classes), True)
                    if classes is not None
                    else class_table(self._file, lambda: _highest(self._file))
                )
            except BaseException:
                self._file.close()
                raise
        tags = self._file.tags()
        self.source = tags.get(SCENE_TAG, Path(self.path).name)
        self.confidence_path, self.contact_path = (
            self._find_layer(layer, tags.get(DIGEST_TAG)) for layer in ("confidence", "contact")
        )

    def _find_layer(self, layer: str, digest: str | None) -> InputPath | None:
        stem, dot, suffix = str(self.path).rpartition(".")
        path = input_path(f"{stem}_{layer}{dot}{suffix}")
        if digest is None or not exists(path):
            return None
        try:
            with open_raster(path) as file:
                belongs = file.tags().get(DIGEST_TAG) == digest and grid_of(file) == grid_of(self._file)
        except RasterioError:
            belongs = False
        if not belongs:
            log.warning("%s belongs to another map than %s and is ignored", path, self.path)
        return path if belongs else None

    def rows(self, height: int = _ROWS, *, contact: bool = False) -> Iterator[MapRows]:
        """The map from top to bottom, with its confidence where that lies beside it.

        Memory is that of the rows and 64 MB, whatever the size of the map. Heights that are a multiple of the file's
        blocks (512 px in what geoseg writes) decode every block once.

        Args:
            height: Rows at a time, px; the last ones may be fewer.
            contact: With its contact too, if that lies beside it.

        Raises:
            SceneError: A block that cannot be read, or a class with the value 255.
        """
        windows = (
            Window(top, 0, min(height, self.grid.height - top), self.grid.width)
            for top in range(0, self.grid.height, height)
        )
        paths = {"confidence": self.confidence_path, "contact": self.contact_path if contact else None}
        with ExitStack() as stack:
            files = {}
            for layer, path in paths.items():
                if path is not None:
                    with _as_scene_error(path):
                        files[layer] = path, stack.enter_context(open_raster(path))
            for window in windows:
                layers = {layer: _read(*file, window) for layer, file in files.items()}
                yield MapRows(self.read(window), **layers)

    def read(self, window: Window) -> ByteArray:
        """Class ids of a window, (height, width) uint8, 255 where invalid.

        Raises:
            SceneError: A block that cannot be read, or a class with the value 255.
        """
        return _read(self.path, self._file, window)

    def __enter__(self) -> ClassMapReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


open_class_map = ClassMapReader
"""A class map to be read row by row."""


def read_class_map(path: str | PathLike[str], *, window: Window | None = None) -> ClassMap:
    """A class map in memory, whole or a window of it; see `ClassMapReader` for where its names come from.

    Args:
        path: A raster of one uint8 band.
        window: Rows and columns inside the raster, px; None for all.

    Raises:
        SceneError: No such file, unreadable, more than one band, not uint8, or a class with the value 255.
    """
    with open_class_map(path) as reader:
        part = window or Window(0, 0, *reader.grid.shape)
        return ClassMap(reader.read(part), reader.grid if window is None else reader.grid.crop(part), reader.classes)


def _check_class_map(path: str | PathLike[str], file: Any) -> None:
    if file.count == 1 and file.dtypes[0] == "uint8":
        return
    if file.count == 1:
        found = f"1 band of {file.dtypes[0]}"
        hint = f"if its values are ids of at most {NODATA} classes: gdal_translate -ot Byte {quoted(path)} MAP.tif"
    else:
        found = f"{file.count} bands of {file.dtypes[0]}"
        hint = f"map the scene first: geoseg predict {quoted(path)} -m MODEL -o MAP.tif"
    raise SceneError(f"{path} is not a class map: found {found}, expected 1 band of uint8", hint=hint)


def _read(path: InputPath, file: Any, window: Window) -> ByteArray:
    part = RasterWindow(window.col, window.row, window.width, window.height)
    # GDAL's cache is a share of the machine's memory by default, and would fill up with the whole map.
    with _as_scene_error(path), rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES):
        values: ByteArray = file.read(1, window=part)
        flags = file.mask_flag_enums[0]
        if MaskFlags.all_valid in flags or (flags == [MaskFlags.nodata] and file.nodata == NODATA):
            return values
        invalid = file.read_masks(1, window=part) == 0
    if file.nodata != NODATA and (values[~invalid] == NODATA).any():
        raise SceneError(
            f"{path} has a class of the value {NODATA}, which is nodata in a class map",
            hint=f'renumber it: gdal_calc.py -A {quoted(path)} --calc="where(A==255,1,A)" --outfile=MAP.tif',
        )
    values[invalid] = NODATA
    return values


def _highest(file: Any) -> int:
    highest = 0
    for top in range(0, file.height, _ROWS):
        values = _read(Path(file.name), file, Window(top, 0, min(_ROWS, file.height - top), file.width))
        highest = max(highest, int(values.max(where=values != NODATA, initial=0)))
    return highest


@contextmanager
def _as_scene_error(path: InputPath) -> Iterator[None]:
    try:
        yield
    except RasterioError as error:
        if not exists(path):
            raise SceneError(f"no such class map: {path}", hint="check the path") from error
        raise SceneError(
            f"{path} cannot be read: {error}", hint=f"check it with: gdalinfo -checksum {quoted(path)}"
        ) from error
