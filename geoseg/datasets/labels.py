"""Labels of a scene, as class ids on the scene's own grid: from a raster, or from polygons burnt window by window."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import geopandas
import numpy as np
import numpy.typing as npt
import pandas as pd
import rasterio
from pyogrio.errors import DataSourceError
from rasterio.errors import RasterioError
from rasterio.features import rasterize
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds
from shapely.geometry import box

from geoseg.classes import NODATA, ClassTable
from geoseg.config import SceneConfig
from geoseg.errors import LabelError
from geoseg.grid import Grid
from geoseg.scene import Scene, open_scene
from geoseg.windows import Window

LabelArray = npt.NDArray[np.uint8]

RASTER_SUFFIXES = frozenset({".tif", ".tiff", ".vrt", ".png", ".img", ".jp2"})


class Labels(Protocol):
    """Labels of one scene."""

    def read(self, window: Window) -> LabelArray:
        """Class ids (H, W) of a window, 255 where to be ignored and outside the scene."""
        ...


def open_labels(config: SceneConfig, grid: Grid, classes: ClassTable) -> Labels:
    """The labels of a configured scene.

    Args:
        config: Names the label file and how its classes are stated.
        grid: The scene's grid, which the labels are brought to.
        classes: The class table they must keep to.

    Raises:
        LabelError: No such file, no CRS where the scene has one, labels that do not touch the scene, another size,
            or a class outside the table.
    """
    if not config.labels.exists():
        raise LabelError(f"no such labels: {config.labels}", hint="check data.root and the path in the configuration")
    if config.labels.suffix.lower() in RASTER_SUFFIXES:
        return RasterLabels(config.labels, grid, classes)
    return PolygonLabels(config, grid, classes)


class RasterLabels:
    """Class ids in a raster: on the scene's grid as they are, else nearest-neighbour resampled onto it.

    Pixels of the label file's own nodata value, and 255, are to be ignored.
    """

    def __init__(self, path: Path, grid: Grid, classes: ClassTable) -> None:
        with open_scene(path) as labels:
            if len(labels.bands) != 1 or labels.dtype.kind not in "iu":
                raise LabelError(
                    f"labels {path} have {len(labels.bands)} bands of {labels.dtype}, wanted one band of class ids",
                    hint="a raster of labels holds the class id of each pixel",
                )
            own = labels.grid
        comparable = own.is_georeferenced and grid.is_georeferenced
        tolerance = 1e-6 * max(abs(grid.transform.a), abs(grid.transform.b))
        same_place = own.crs == grid.crs and own.transform.almost_equals(grid.transform, precision=tolerance)
        self._aligned = own.shape == grid.shape and (same_place or not comparable)
        if not self._aligned and not comparable:
            raise LabelError(
                f"labels {path} have {own.height} × {own.width} px, the scene has {grid.height} × {grid.width}",
                hint="without georeference, labels must have the scene's size",
            )
        if not self._aligned and not _touch(own, grid):
            raise LabelError(
                f"labels {path} do not touch the scene they are for",
                hint="check that both files have the right CRS: geoseg info",
            )
        self._path, self._grid, self._classes = path, grid, classes
        self._labels: Scene | None = None
        self._check_values()

    def __getstate__(self) -> dict[str, Any]:
        # An open file does not travel to a worker process: it opens its own.
        return {**self.__dict__, "_labels": None}

    def read(self, window: Window) -> LabelArray:
        """Class ids (H, W) of a window, 255 where to be ignored and outside the scene."""
        if not self._aligned:
            return self._read_warped(window)
        if self._labels is None:
            self._labels = Scene(self._path)
        values, valid = self._labels.read(window)
        return np.where(valid, values[0], NODATA).astype(np.uint8)

    def _read_warped(self, window: Window) -> LabelArray:
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
                    nodata=NODATA,
                    src_nodata=source.nodata,
                    dtype="int32",
                ) as warped,
            ):
                values: npt.NDArray[np.int32] = warped.read(1)
        except RasterioError as error:
            raise LabelError(f"labels {self._path} cannot be brought onto the scene's grid: {error}") from error
        return _only_inside(values.astype(np.uint8), window, self._grid)

    def _check_values(self) -> None:
        allowed = np.append(np.arange(len(self._classes)), NODATA)
        labelled = 0
        with Scene(self._path) as labels:
            rows = max(labels.block_shape[0], 512)
            for row in range(0, labels.grid.height, rows):
                height = min(rows, labels.grid.height - row)
                values, valid = labels.read(Window(row, 0, height, labels.grid.width))
                labelled += int((valid & (values[0] != NODATA)).sum())
                wrong = np.setdiff1d(values[0][valid], allowed)
                if wrong.size:
                    raise LabelError(
                        f"labels {self._path} hold class id {wrong[0]} in rows {row} … {row + height}, "
                        f"the class table ends at {len(self._classes) - 1}",
                        hint="add the class to the configuration, or set those pixels to 255 (ignore)",
                    )
        if not labelled:
            raise LabelError(
                f"labels {self._path} are empty: every pixel is nodata or {NODATA}",
                hint=f"see what they hold with: geoseg info {self._path}",
            )


class PolygonLabels:
    """Polygons with a class, burnt into a window by the pixel-centre rule; later polygons lie over earlier ones."""

    def __init__(self, config: SceneConfig, grid: Grid, classes: ClassTable) -> None:
        path = config.labels
        if config.outside is None:
            raise LabelError(
                f"{path}: what lies outside the polygons is not said",
                hint=f"add outside: {classes.names[0]} to the scene's entry (or outside: ignore)",
            )
        try:
            frame = geopandas.read_file(path)
        except (DataSourceError, ValueError) as error:
            raise LabelError(f"labels {path} cannot be read: {error}", hint=f"check it with: ogrinfo {path}") from error
        if not isinstance(frame, geopandas.GeoDataFrame):
            raise LabelError(f"labels {path} hold no geometries")
        if grid.crs is not None:
            if frame.crs is None:
                raise LabelError(
                    f"labels {path} have no CRS", hint=f"say which one: ogr2ogr -a_srs EPSG:… out.gpkg {path}"
                )
            frame = frame.to_crs(grid.crs)
        ids = _class_ids(frame, config, classes)
        usable = ~(frame.geometry.is_empty | frame.geometry.isna())
        self._geometries, self._ids = frame.geometry[usable].reset_index(drop=True), ids[usable.to_numpy()]
        self._outside = NODATA if config.outside == "ignore" else classes.id_of(config.outside)
        self._grid = grid
        left, bottom, right, top = grid.bounds
        if not len(self._geometries.cx[left:right, bottom:top]):
            raise LabelError(
                f"no polygon of {path} touches scene {config.scene}",
                hint="check that the CRS of the labels is what it says",
            )

    def read(self, window: Window) -> LabelArray:
        """Class ids (H, W) of a window; the class outside polygons elsewhere, 255 outside the scene."""
        part = self._grid.crop(window)
        hits = np.sort(self._geometries.sindex.query(box(*part.bounds)))
        labels = np.full(part.shape, self._outside, dtype=np.uint8)
        if hits.size:
            shapes = zip(self._geometries.iloc[hits], self._ids[hits].tolist(), strict=True)
            labels = rasterize(shapes, out=labels, transform=part.transform)
        return _only_inside(labels, window, self._grid)


def _only_inside(labels: LabelArray, window: Window, grid: Grid) -> LabelArray:
    """Labels of a window with 255 outside the scene, where a map or a polygon may well go on."""
    rows = np.arange(window.row, window.row_stop)
    cols = np.arange(window.col, window.col_stop)
    labels[(rows < 0) | (rows >= grid.height)] = NODATA
    labels[:, (cols < 0) | (cols >= grid.width)] = NODATA
    return labels


def _touch(a: Grid, b: Grid) -> bool:
    return box(*transform_bounds(a.crs, b.crs, *a.bounds)).intersects(box(*b.bounds))


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
    if attribute not in frame.columns:
        fields = ", ".join(c for c in frame.columns if c != frame.geometry.name)
        raise LabelError(f"{config.labels} has no field {attribute}", hint=f"its fields: {fields}")
    known: Mapping[str, int] = {c.name: c.id for c in classes} | {str(c.id): c.id for c in classes}
    texts = [_as_text(value) for value in frame[attribute]]
    unknown = sorted({t for t in texts if t not in known})
    if unknown:
        raise LabelError(
            f"field {attribute} of {config.labels} holds {unknown[0]!r}, which is no class name or id",
            hint=f"classes: {', '.join(f'{c.id} {c.name}' for c in classes)}",
        )
    return np.array([known[t] for t in texts], dtype=np.uint8)


def _as_text(value: Any) -> str:
    # Integer fields with a missing value come as floats: 3.0 is class 3.
    if isinstance(value, float) and not pd.isna(value) and value.is_integer():
        return str(int(value))
    return str(value)
