"""Read a class map: a raster of one uint8 band, 255 = nodata, whole or as rows; also one made by other programs."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import rasterio

from geoseg.arrays import ByteArray
from geoseg.class_map.names import class_table, renamed
from geoseg.class_tables import read_class_table
from geoseg.classes import NODATA, ClassTable
from geoseg.errors import SceneError, quoted
from geoseg.grid import Grid, grid_of
from geoseg.map_rows import MapRows
from geoseg.options import AnyPath, MapReading
from geoseg.paths import RASTER_SUFFIXES, InputPath, exists, input_path, opened_name
from geoseg.scene.scene import Scene
from geoseg.windows import Window, pieces

log = logging.getLogger(__name__)

SCENE_TAG = "GEOSEG_SCENE"  # TIFF tag with the name of the imagery that was mapped

DIGEST_TAG = "GEOSEG_MAP_SHA256"
"""TIFF tag with the SHA-256 of the class ids, row by row; all layers of one map bear it."""

_ROWS, _ROWS_PX = 512, 1 << 22
_CACHE_BYTES = 64 << 20


def layer_path(path: AnyPath, layer: str) -> Path:
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
        reading: How to read it.

    Attributes:
        warp_command: What to type for a file with control points in place of a transform, else None.
        is_named: Whether any class has a name of its own.
        source: Name of the imagery that was mapped, else of the map.
        confidence_path: The confidence raster that was written with this very map (`MapFileWriter`), or None.
        contact_path: The same of the contact raster.

    Raises:
        SceneError: No such file, unreadable, more than one band, or not uint8; or a CRS that is not the file's.
        ConfigError: A file of classes that cannot be read.
    """

    def __init__(self, path: AnyPath, reading: MapReading = MapReading()) -> None:
        self.path = input_path(opened_name(path, RASTER_SUFFIXES, SceneError))
        if not exists(self.path):
            raise SceneError(f"no such class map: {path}", hint="check the path")
        self._scene = Scene(path, bands=[1], crs=reading.crs)
        try:
            _check_class_map(self._scene)
            self.grid, self.warp_command = self._scene.grid, self._scene.warp_command
            file = self._scene.dataset
            if reading.classes is None:
                self.classes, self.is_named = class_table(file, self._highest)
            else:
                self.classes, self.is_named = renamed(file, read_class_table(reading.classes)), True
            tags = file.tags()
        except BaseException:
            self._scene.close()
            raise
        self.source = tags.get(SCENE_TAG, Path(self.path).name)
        self.confidence_path, self.contact_path = (
            self._find_layer(layer, tags.get(DIGEST_TAG)) for layer in ("confidence", "contact")
        )

    def _highest(self) -> int:
        strips = map(self.read, pieces(*self.grid.shape, _ROWS, self.grid.width))
        return max(int(ids.max(where=ids != NODATA, initial=0)) for ids in strips)

    def _find_layer(self, layer: str, digest: str | None) -> InputPath | None:
        stem, dot, suffix = str(self.path).rpartition(".")
        path = input_path(f"{stem}_{layer}{dot}{suffix}")
        if digest is None or not exists(path):
            return None
        with suppress(SceneError), Scene(path) as found:
            if found.dataset.tags().get(DIGEST_TAG) == digest and found.grid == grid_of(self._scene.dataset):
                return path
        log.warning("%s belongs to another map than %s and is ignored", path, self.path)
        return None

    def rows(self, height: int | None = None, *, contact: bool = False) -> Iterator[MapRows]:
        """The map from top to bottom, ``height`` rows at a time, with its confidence where that lies beside it.

        ``contact`` adds its contact, likewise. Memory is that of the rows and 64 MB, whatever the size of the map.
        Heights that are a multiple of the file's blocks (512 px in what geoseg writes) decode every block once; None
        takes such a one, of some 4 Mpx. For errors see `read`.
        """
        height = height or max(_ROWS_PX // self.grid.width // _ROWS * _ROWS, _ROWS)
        paths = {"confidence": self.confidence_path, "contact": self.contact_path if contact else None}
        with ExitStack() as stack:
            beside = {layer: stack.enter_context(Scene(path)) for layer, path in paths.items() if path is not None}
            for window in pieces(*self.grid.shape, height, self.grid.width):
                yield MapRows(self.read(window), **{layer: _read(scene, window) for layer, scene in beside.items()})

    def read(self, window: Window) -> ByteArray:
        """Class ids of a window, (height, width) uint8, 255 where invalid; a `SceneError` if 255 is a class."""
        return _read(self._scene, window)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._scene.close()


def read_class_map(path: AnyPath, *, window: Window | None = None) -> ClassMap:
    """A class map in memory, whole or a window inside it; see `ClassMapReader`."""
    with ClassMapReader(path) as reader:
        part = window or Window(0, 0, *reader.grid.shape)
        return ClassMap(reader.read(part), reader.grid.crop(part), reader.classes)


def _check_class_map(scene: Scene) -> None:
    if scene.file_bands == 1 and scene.dtype == np.uint8:
        return
    if scene.file_bands == 1:
        found = f"1 band of {scene.dtype}"
        hint = (
            f"if its values are ids of at most {NODATA} classes: gdal_translate -ot Byte {quoted(scene.path)} MAP.tif"
        )
    else:
        found = f"{scene.file_bands} bands of {scene.dtype}"
        hint = f"map the scene first: geoseg predict {quoted(scene.path)} -m MODEL -o MAP.tif"
    raise SceneError(f"{scene.path} is not a class map: found {found}, expected 1 band of uint8", hint=hint)


def _read(scene: Scene, window: Window) -> ByteArray:
    # GDAL's cache is a share of the machine's memory by default, and would fill up with the whole map.
    with rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES):
        pixels, valid = scene.read(window)
    values: ByteArray = pixels[0]
    if scene.nodata == NODATA and not scene.has_mask:
        return values
    if scene.can_be_invalid and scene.nodata != NODATA and ((values == NODATA) & valid).any():
        raise SceneError(
            f"{scene.path} has a class of the value {NODATA}, which is nodata in a class map",
            hint=f'renumber it: gdal_calc.py -A {quoted(scene.path)} --calc="where(A==255,1,A)" --outfile=MAP.tif',
        )
    np.copyto(values, np.uint8(NODATA), where=~valid)
    return values
