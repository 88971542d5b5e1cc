"""Labels of a scene, as class ids on the scene's own grid: from a raster, or from polygons burnt window by window."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import geopandas
import numpy as np
import numpy.typing as npt
import pandas as pd
import rasterio
from rasterio.errors import RasterioError
from rasterio.features import rasterize
from rasterio.vrt import WarpedVRT
from shapely.geometry import box

from geoseg.classes import NODATA, ClassTable
from geoseg.config import SceneConfig
from geoseg.datasets.layers import read_layer
from geoseg.errors import LabelError, SceneError
from geoseg.georeference import transformer
from geoseg.grid import Grid, crs_hint
from geoseg.scene import Scene
from geoseg.scene.aoi import Aoi, load_aoi
from geoseg.scene.open_files import OpenFiles
from geoseg.windows import Window

LabelArray = npt.NDArray[np.uint8]

RASTER_SUFFIXES = frozenset({".tif", ".tiff", ".vrt", ".png", ".img", ".jp2", ".bmp", ".gif", ".jpg", ".jpeg"})


_NOTHING = -(2**31)
"""What GDAL fills in where a warped raster has nothing. With 255 it would turn labels of 255 into 254."""


class Labels(Protocol):
    """Labels of one scene."""

    def read(self, window: Window) -> LabelArray:
        """Class ids (H, W) of a window, 255 where to be ignored and outside the scene."""
        ...


def open_labels(config: SceneConfig, grid: Grid, classes: ClassTable, *, first_label: int = 0) -> Labels:
    """The labels of a configured scene, those outside its labelled area ignored.

    Args:
        config: Names the label file, how its classes are stated, and the labelled area.
        grid: The scene's grid, which the labels are brought to.
        classes: The class table they must keep to.
        first_label: Value of the first class in a raster; smaller values are ignored, and 255 always is.

    Raises:
        LabelError: No such file, no CRS where the scene has one, labels or an area that do not touch the scene,
            another size, or a class outside the table.
    """
    if not config.labels.exists():
        raise LabelError(f"no such labels: {config.labels}", hint="check data.root and the path in the configuration")
    labels: Labels
    if config.labels.suffix.lower() in RASTER_SUFFIXES:
        labels = RasterLabels(config.labels, grid, classes, first_label=first_label)
    else:
        labels = PolygonLabels(config, grid, classes)
    return labels if config.labelled_area is None else AreaLabels(labels, config.labelled_area, grid)


class RasterLabels:
    """Class ids in a raster: on the scene's grid as they are, else nearest-neighbour resampled onto it.

    Pixels of the label file's own nodata value, and 255, are to be ignored; so are values below ``first_label``.
    """

    def __init__(self, path: Path, grid: Grid, classes: ClassTable, *, first_label: int = 0) -> None:
        with Scene(path) as labels:
            if len(labels.bands) != 1 or labels.dtype.kind not in "iu":
                raise LabelError(
                    f"labels {path} have {len(labels.bands)} bands of {labels.dtype}, wanted one band of class ids",
                    hint="a raster of labels holds the class id of each pixel",
                )
            own, self._block_rows = labels.grid, labels.block_shape[0]
        comparable = own.is_georeferenced and grid.is_georeferenced
        tolerance = 1e-6 * max(abs(grid.transform.a), abs(grid.transform.b))
        same_place = own.crs == grid.crs and own.transform.almost_equals(grid.transform, precision=tolerance)
        self._aligned = own.shape == grid.shape and (same_place or not comparable)
        if not self._aligned and not comparable:
            raise LabelError(
                f"labels {path} have {own.height} × {own.width} px, the scene has {grid.height} × {grid.width}",
                hint=crs_hint(grid) if own.is_georeferenced else "without a CRS, labels must have the scene's size",
            )
        if not self._aligned and not _touch(own, grid):
            raise LabelError(
                f"labels {path} do not touch the scene they are for",
                hint="check that both files have the right CRS: geoseg info",
            )
        self._path, self._grid, self._classes, self._first = path, grid, classes, first_label
        self._labels: Scene | None = None
        self._files: OpenFiles | None = None
        # A training opens its scenes several times, and of thousands this takes minutes.
        state = path.stat()
        key = path.resolve(), state.st_size, state.st_mtime_ns, grid, first_label, len(classes)
        if key not in _sound:
            process_files().close(str(path))  # opened before the file became what it is now
            self._check_values()
            _sound.add(key)

    def __getstate__(self) -> dict[str, Any]:
        # An open file does not travel to a worker process: it opens its own.
        return {**self.__dict__, "_labels": None, "_files": None}

    def read(self, window: Window) -> LabelArray:
        """Class ids (H, W) of a window, 255 where to be ignored and outside the scene."""
        values, valid = self._read_values(window)
        is_class = valid & (values != NODATA)
        if self._first:
            is_class &= values >= self._first
            values = values - values.dtype.type(self._first)
        return np.where(is_class, values, NODATA).astype(np.uint8)

    def _read_values(self, window: Window) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Values of the file on the scene's grid, and where they mean anything."""
        if self._aligned:
            files = process_files()
            if self._labels is None or self._files is not files:
                self._labels, self._files = Scene(self._path, files=files), files
            values, valid = self._labels.read(window)
            return values[0], valid
        part = self._grid.crop(window)
        try:
            with (
                rasterio.open(self._path) as source,
                WarpedVRT(
                    source,
                    crs=part.crs,
                    transform=part.transform,
                    height=part.height,
                    width=part.width,
                    nodata=_NOTHING,
                    src_nodata=source.nodata,
                    dtype="int32",
                ) as warped,
            ):
                warped_values: npt.NDArray[np.int32] = warped.read(1)
        except RasterioError as error:
            raise LabelError(f"labels {self._path} cannot be brought onto the scene's grid: {error}") from error
        return warped_values, _inside(window, self._grid) & (warped_values != _NOTHING)

    def _check_values(self) -> None:
        last = self._first + len(self._classes) - 1
        height, width = self._grid.shape
        rows = max(self._block_rows, 512)
        labelled = 0
        for row in range(0, height, rows):
            values, valid = self._read_values(Window(row, 0, min(rows, height - row), width))
            found = np.unique(values[valid & (values != NODATA)])
            classes = found[found >= self._first] if self._first else found
            labelled += classes.size
            wrong = classes[(classes < self._first) | (classes > last)]
            if wrong.size:
                shifted = not self._first and wrong[0] == last + 1
                raise LabelError(
                    f"labels {self._path} hold class id {wrong[0]} in rows {row} … {min(row + rows, height)}, "
                    f"the class table ends at {last}",
                    hint="set data.first_label=1 where 1 stands for the first class, or add the class to the table"
                    if shifted
                    else "add the class to the configuration, or set those pixels to 255 (ignore)",
                )
        if not labelled:
            raise LabelError(
                f"labels {self._path} are empty: every pixel is nodata or {NODATA}"
                + (f" or below {self._first}" if self._first else ""),
                hint=f"see what they hold with: geoseg info {self._path}",
            )


class PolygonLabels:
    """Polygons with a class, burnt into a window by the pixel-centre rule; later polygons lie over earlier ones.

    Of the file only the polygons near the scene are read, once; they travel to worker processes, which read no file.
    """

    def __init__(self, config: SceneConfig, grid: Grid, classes: ClassTable) -> None:
        path = config.labels
        if config.outside is None:
            raise LabelError(
                f"{path}: what lies outside the polygons is not said",
                hint=f"add outside: {classes.names[0]} to the scene's entry (or outside: ignore)",
            )
        frame = read_layer(path, grid, config.attribute)
        ids = _class_ids(frame, config, classes)
        if frame.empty:
            raise LabelError(
                f"no polygon of {path} touches scene {config.scene}"
                + ("" if grid.is_georeferenced else ", which has no CRS"),
                hint="check that the CRS of the labels is what it says" if grid.is_georeferenced else crs_hint(grid),
            )
        self._geometries, self._ids = frame.geometry, ids
        self._outside = NODATA if config.outside == "ignore" else classes.id_of(config.outside)
        self._grid = grid

    def read(self, window: Window) -> LabelArray:
        """Class ids (H, W) of a window; the class outside polygons elsewhere, 255 outside the scene."""
        part = self._grid.crop(window)
        hits = np.sort(self._geometries.sindex.query(box(*part.bounds)))
        labels = np.full(part.shape, self._outside, dtype=np.uint8)
        if hits.size:
            shapes = zip(self._geometries.iloc[hits], self._ids[hits].tolist(), strict=True)
            labels = rasterize(shapes, out=labels, transform=part.transform)
        labels[~_inside(window, self._grid)] = NODATA
        return labels


class AreaLabels:
    """Labels of a scene of which only a part is labelled: 255 outside it, whatever the label file says there.

    Args:
        labels: Labels of the scene.
        path: Polygons of the labelled part, in any CRS.
        grid: The scene's grid.

    Raises:
        LabelError: See `load_labelled_area`.
    """

    def __init__(self, labels: Labels, path: Path, grid: Grid) -> None:
        self._area = load_labelled_area(path, grid)
        self._labels = labels

    def read(self, window: Window) -> LabelArray:
        """Class ids (H, W) of a window, 255 where to be ignored, outside the area and outside the scene."""
        inside = self._area.mask(window)
        if not inside.any():
            return np.full(inside.shape, NODATA, dtype=np.uint8)
        return np.where(inside, self._labels.read(window), NODATA).astype(np.uint8)


def load_labelled_area(path: Path, grid: Grid) -> Aoi:
    """The polygons within which a scene is labelled.

    Raises:
        LabelError: No such file, or see `geoseg.scene.aoi.load_aoi`.
    """
    if not path.exists():
        raise LabelError(f"no such labelled area: {path}", hint="check data.root and the path in the configuration")
    try:
        return load_aoi(path, grid)
    except SceneError as error:
        message = error.message.replace("area of interest", "labelled area")
        raise LabelError(message, hint=error.hint) from error


_sound: set[tuple[object, ...]] = set()
"""Rasters whose values this process has checked: file and its state, grid, first label, number of classes."""

_of_process: dict[int, OpenFiles] = {}


def process_files() -> OpenFiles:
    """The files of imagery and labels that this process keeps open: few, and none that a forked one inherited.

    Two processes that read one inherited file move each other's place in it.
    """
    return _of_process.setdefault(os.getpid(), OpenFiles())


def _inside(window: Window, grid: Grid) -> npt.NDArray[np.bool_]:
    """Pixels (H, W) of a window inside the scene; a map or a polygon may well go on outside."""
    rows = np.arange(window.row, window.row_stop)
    cols = np.arange(window.col, window.col_stop)
    inside: npt.NDArray[np.bool_] = ((rows >= 0) & (rows < grid.height))[:, None] & (cols >= 0) & (cols < grid.width)
    return inside


def _touch(a: Grid, b: Grid) -> bool:
    if a.crs == b.crs:
        return bool(box(*a.bounds).intersects(box(*b.bounds)))
    way = transformer(a.crs, b.crs)
    return way is not None and bool(box(*way.transform_bounds(*a.bounds)).intersects(box(*b.bounds)))


def _class_ids(frame: geopandas.GeoDataFrame, config: SceneConfig, classes: ClassTable) -> LabelArray:
    """Class id of every feature, from its attribute (name or id) or one for all."""
    if config.class_name is not None:
        return np.full(len(frame), classes.id_of(config.class_name), dtype=np.uint8)
    attribute = config.attribute
    if attribute is None:
        raise LabelError(
            f"{config.labels}: the class of its polygons is not said",
            hint="add attribute: FIELD (a class name or id) or class_name: NAME to the scene's entry",
        )
    missing = int(frame[attribute].isna().sum())
    if missing:
        raise LabelError(
            f"field {attribute} of {config.labels} is empty in {missing} of {len(frame)} features near the scene",
            hint=f'fill it, or leave them out: ogr2ogr -where "{attribute} IS NOT NULL" labels.gpkg {config.labels}',
        )
    known: Mapping[str, int] = {c.name: c.id for c in classes} | {str(c.id): c.id for c in classes}
    texts = [as_text(value) for value in frame[attribute]]
    unknown = sorted({t for t in texts if t not in known})
    if unknown:
        raise LabelError(
            f"field {attribute} of {config.labels} holds {unknown[0]!r}, which is no class name or id",
            hint=f"classes: {', '.join(f'{c.id} {c.name}' for c in classes)}",
        )
    return np.array([known[t] for t in texts], dtype=np.uint8)


def as_text(value: Any) -> str:
    """The name or id of a class that a field holds; "3" where it holds 3 or 3.0."""
    # Integer fields with a missing value come as floats.
    if isinstance(value, float) and not pd.isna(value) and value.is_integer():
        return str(int(value))
    return str(value)
