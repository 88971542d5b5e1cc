"""Polygons of a vector layer that lie near a scene, in the scene's CRS; no more of the layer than that is read.

A file with a spatial index is asked for the scene's bounds. Any other must be read whole, which happens once for all
scenes that are opened within `whole_layers`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import geopandas

from geoseg.errors import LabelError, quoted
from geoseg.georeference import crs_name, pyproj_crs, transformer
from geoseg.grid import Grid
from geoseg.paths import InputPath
from geoseg.scene.vector_files import VectorLayer, bounds_in, meets, open_layer, polygon_layer, polygons_of, reading


class _Kept:
    """Layers without a spatial index while scenes are opened, each read by the first scene that asks for it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.layers: dict[str, VectorLayer] = {}
        self.frames: dict[tuple[str, str], geopandas.GeoDataFrame] = {}


_kept = _Kept()


@contextmanager
def whole_layers() -> Iterator[None]:
    """Keep layers that had to be read whole until the block ends, for the other scenes that name them."""
    with _kept.lock:
        _kept.users += 1
    try:
        yield
    finally:
        with _kept.lock:
            _kept.users -= 1
            if not _kept.users:
                _kept.layers.clear()
                _kept.frames.clear()


def has_features(path: InputPath) -> bool:
    """Whether the layer of polygons in a file of labels holds any feature, near a scene or not.

    Raises:
        LabelError: No vector file, or none or several layers of polygons.
    """
    return _layer(path).features > 0


def read_layer(path: InputPath, grid: Grid, column: str | None = None) -> geopandas.GeoDataFrame:
    """The features of a file's only layer of polygons whose bounds meet a scene, in the order of the file.

    Args:
        path: GeoParquet, or any vector file GDAL reads.
        grid: The scene's grid.
        column: Field to read beside the geometry.

    Returns:
        Features with their polygons alone, in the grid's CRS; none where none is near. Features without a polygon are
        left out. A file without features needs neither field nor CRS.

    Raises:
        LabelError: No vector file, none or several layers of polygons, no such field, or no CRS where the scene has
            one.
    """
    layer = _layer(path)
    if not layer.features:
        return geopandas.GeoDataFrame(geometry=[], crs=grid.crs)
    if column is not None and column not in layer.fields:
        raise LabelError(f"{path} has no field {column}", hint=f"its fields: {', '.join(layer.fields)}")
    if grid.is_georeferenced and layer.crs is None:
        hint = f"say which one: ogr2ogr -a_srs EPSG:… out.gpkg {quoted(path)}"
        raise LabelError(f"labels {path} have no CRS", hint=hint)
    with reading("labels", path, LabelError):
        frame = _near(layer, grid, column)
    frame = frame.set_geometry(polygons_of(frame.geometry.to_numpy()), crs=frame.crs)
    if grid.is_georeferenced and frame.crs != pyproj_crs(grid.crs):
        if transformer(frame.crs, grid.crs) is None:
            raise LabelError(
                f"no way is known from the CRS of labels {path}, {frame.crs.name}, to {crs_name(grid.crs)}",
                hint="draw them in the scene's own CRS",
            )
        frame = frame.to_crs(grid.crs)
    # The frame around the scene in the layer's CRS is larger than the scene.
    return frame[meets(frame.geometry.to_numpy(), grid.bounds)].reset_index(drop=True)


def _layer(path: InputPath) -> VectorLayer:
    """The layer of polygons in a file of labels, its features counted."""
    with _kept.lock:
        layer = _kept.layers.get(str(path))
        if layer is None:
            layer = polygon_layer(path, "labels", LabelError)
            if layer.features < 0:
                layer = open_layer(path, layer.name, count=True)
            if _kept.users:
                _kept.layers[str(path)] = layer
    return layer


def _near(layer: VectorLayer, grid: Grid, column: str | None) -> geopandas.GeoDataFrame:
    """Features near a scene in the layer's own CRS; perhaps some more."""
    columns = [] if column is None else [column]
    bounds = bounds_in(layer.crs, grid)
    if layer.has_index:
        return layer.read(columns, bounds)
    if _kept.users:
        key = layer.path, ",".join(columns)
        with _kept.lock:
            if key not in _kept.frames:
                _kept.frames[key] = layer.read(columns)
            frame = _kept.frames[key]
    else:
        frame = layer.read(columns)
    return frame if bounds is None else frame[meets(frame.geometry.to_numpy(), bounds)]
