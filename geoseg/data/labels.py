"""Labels of a scene, as class ids on the scene's own grid: from a raster, or from polygons burnt window by window."""

from __future__ import annotations

import os
from typing import Any, Protocol

import geopandas
import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.errors import RasterioError
from rasterio.features import rasterize
from rasterio.vrt import WarpedVRT
from shapely.geometry import box

from geoseg.classes import NODATA, ClassTable
from geoseg.config import SceneConfig
from geoseg.data.class_ids import MISSING, MIXED, UNKNOWN, field_classes
from geoseg.data.layers import has_features, read_layer
from geoseg.errors import LabelError, quoted
from geoseg.georeference import transformer
from geoseg.grid import Grid, crs_hint
from geoseg.paths import RASTER_SUFFIXES, InputPath, exists, file_behind, opened_name, suffix
from geoseg.scene import Scene
from geoseg.scene.aoi import Aoi, load_aoi
from geoseg.scene.open_files import OpenFiles
from geoseg.windows import Window
from geoseg.words import count

LabelArray = npt.NDArray[np.uint8]

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
        first_label: Number of the first class, in a raster or in a field; smaller ones are ignored, and 255 always is.

    Raises:
        LabelError: No such file, no CRS where the scene has one, labels or an area that do not touch the scene,
            another size, or a class outside the table.
    """
    if not exists(config.labels):
        raise LabelError(f"no such labels: {config.labels}", hint="check data.root and the path in the configuration")
    opened_name(config.labels, kind=LabelError)  # refuses archives in which labels of both kinds may be meant
    labels: Labels
    if is_raster(config):
        labels = RasterLabels(config.labels, grid, classes, first_label=first_label)
    else:
        labels = PolygonLabels(config, grid, classes, first_label=first_label)
    return labels if config.labelled_area is None else AreaLabels(labels, config.labelled_area, grid)


def is_raster(config: SceneConfig) -> bool:
    """Whether the labels of a configured scene are a raster, by their suffix; polygons otherwise."""
    return suffix(config.labels) in RASTER_SUFFIXES


class RasterLabels:
    """Class ids in a raster: on the scene's grid as they are, else nearest-neighbour resampled onto it.

    Pixels of the label file's own nodata value, and 255, are to be ignored; so are values below ``first_label``.
    """

    def __init__(self, path: InputPath, grid: Grid, classes: ClassTable, *, first_label: int = 0) -> None:
        with Scene(path) as labels:
            if len(labels.bands) != 1 or labels.dtype.kind not in "iu":
                found = f"{count(len(labels.bands), 'band')} of {labels.dtype}"
                raise LabelError(
                    f"labels {path} have {found}, wanted one band of class ids",
                    hint="a raster of labels holds the class id of each pixel",
                )
            own, self._block_rows = labels.grid, labels.block_shape[0]
            self._path = labels.path
        comparable = own.is_georeferenced and grid.is_georeferenced
        tolerance = 1e-6 * max(abs(grid.transform.a), abs(grid.transform.b))
        same_transform = own.transform.almost_equals(grid.transform, precision=tolerance)
        same_place = own.crs == grid.crs and same_transform
        self._aligned = own.shape == grid.shape and (same_place or not comparable)
        if self._aligned and not same_transform and own.has_transform and grid.has_transform:
            raise LabelError(
                f"labels {path} have another transform than the scene, and no CRS that says where both lie",
                hint=f"give both their CRS, the labels with: gdal_edit.py -a_srs EPSG:… {quoted(path)}",
            )
        if not self._aligned and not comparable:
            raise LabelError(
                f"labels {path} have {own.height} × {own.width} px, the scene has {grid.height} × {grid.width}",
                hint=crs_hint(grid) if own.is_georeferenced else "without a CRS, labels must have the scene's size",
            )
        if not self._aligned and not _touch(own, grid):
            raise LabelError(
                f"labels {path} do not touch the scene they are for",
                hint=f"check that both files have the right CRS: geoseg info {quoted(path)}",
            )
        self._grid, self._classes, self._first = grid, classes, first_label
        self._labels: Scene | None = None
        self._files: OpenFiles | None = None
        # A training opens its scenes several times, and of thousands this takes minutes.
        file = file_behind(path)
        state = file.stat() if file is not None else None
        key = (self._path, state and (state.st_size, state.st_mtime_ns), grid, first_label, len(classes))
        if key not in _sound:
            process_files().close(self._path)  # opened before the file became what it is now
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
                hint=f"see what they hold with: geoseg info {quoted(self._path)}",
            )


def away_hint(grid: Grid) -> str:
    """What to do where no polygon touches a scene."""
    if not grid.is_georeferenced:
        return crs_hint(grid)
    return "check that the CRS of the labels is right; a scene without objects takes a file without features"


class PolygonLabels:
    """Polygons with a class, burnt into a window by the pixel-centre rule; later polygons lie over earlier ones.

    Of the file only the polygons near the scene are read, once; they travel to worker processes, which read no file.
    A file without a single feature says that the whole scene is what lies outside polygons.
    """

    def __init__(self, config: SceneConfig, grid: Grid, classes: ClassTable, *, first_label: int = 0) -> None:
        path = config.labels
        if config.outside is None:
            raise LabelError(
                f"{path}: what lies outside the polygons is not said",
                hint=f"add outside: {classes.names[0]} to the scene's entry (or outside: ignore)",
            )
        frame = read_layer(path, grid, config.attribute)
        is_negative = frame.empty and not has_features(path)
        if is_negative and config.outside == "ignore":
            raise LabelError(
                f"labels {path} hold no features, and outside: ignore leaves no pixel of {config.scene} with a class",
                hint=f"where the scene has no objects, say what it is instead: outside: {classes.names[0]}",
            )
        if frame.empty and not is_negative:
            raise LabelError(
                f"no polygon of {path} touches scene {config.scene}"
                + ("" if grid.is_georeferenced else ", which has no CRS"),
                hint=away_hint(grid),
            )
        self._geometries, self._ids = frame.geometry, _class_ids(frame, config, classes, first_label)
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

    def __init__(self, labels: Labels, path: InputPath, grid: Grid) -> None:
        self._area = load_labelled_area(path, grid)
        self._labels = labels

    def read(self, window: Window) -> LabelArray:
        """Class ids (H, W) of a window, 255 where to be ignored, outside the area and outside the scene."""
        inside = self._area.mask(window)
        if not inside.any():
            return np.full(inside.shape, NODATA, dtype=np.uint8)
        return np.where(inside, self._labels.read(window), NODATA).astype(np.uint8)


def load_labelled_area(path: InputPath, grid: Grid) -> Aoi:
    """The polygons within which a scene is labelled.

    Raises:
        LabelError: See `geoseg.scene.aoi.load_aoi`.
    """
    return load_aoi(path, grid, what="labelled area", kind=LabelError)


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


def _class_ids(frame: geopandas.GeoDataFrame, config: SceneConfig, classes: ClassTable, first_label: int) -> LabelArray:
    """Class id of every feature, from its attribute (name or number) or one for all."""
    if config.class_name is not None:
        return np.full(len(frame), classes.id_of(config.class_name), dtype=np.uint8)
    attribute = config.attribute
    if attribute is None:
        raise LabelError(
            f"{config.labels}: the class of its polygons is not said",
            hint="add attribute: FIELD (a class name or id) or class_name: NAME to the scene's entry",
        )
    if frame.empty:
        return np.empty(0, dtype=np.uint8)
    found = field_classes(frame[attribute], classes, first_label)
    missing = int((found.ids == MISSING).sum())
    if missing:
        raise LabelError(
            f"field {attribute} of {config.labels} is empty in {missing} of {len(frame)} features near the scene",
            hint="fill it, or leave them out: "
            f'ogr2ogr -where "{attribute} IS NOT NULL" labels.gpkg {quoted(config.labels)}',
        )
    for i in np.flatnonzero(found.ids == UNKNOWN):
        raise LabelError(
            f"field {attribute} of {config.labels} holds {found.texts[i]!r}, which is no class name or id",
            hint=unknown_hint({found.texts[i]}, classes, first_label),
        )
    if found.mixed is not None:
        raise LabelError(mixed_message(config, found.mixed), hint=MIXED_HINT)
    assert not (found.ids == MIXED).any()
    return found.ids.astype(np.uint8)


MIXED_HINT = "name all classes in it, or number them all"


def mixed_message(config: SceneConfig, mixed: tuple[str, str]) -> str:
    """What is wrong with a field of names and numbers."""
    name, number = mixed
    return f"field {config.attribute} of {config.labels} holds names of classes ({name}) and numbers ({number})"


def unknown_hint(texts: set[str], classes: ClassTable, first_label: int) -> str:
    """What to do about values of a field that are no class."""
    if texts == {str(first_label + len(classes))} and not first_label:
        return "set data.first_label=1 where 1 stands for the first class, or add the class to the table"
    return f"classes: {', '.join(f'{c.id + first_label} {c.name}' for c in classes)}"
