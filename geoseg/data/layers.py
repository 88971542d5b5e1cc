"""Polygons of a vector layer that lie near a scene, in the scene's CRS.

A file with a spatial index is asked for the scene's bounds. Any other is read whole, once for all scenes that are
opened within `whole_layers`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import geopandas

from geoseg.data.places import no_transformation
from geoseg.data.problems import Problem, error, raise_first
from geoseg.errors import LabelError, quoted
from geoseg.georeference import are_apart, pyproj_crs
from geoseg.grid import Grid
from geoseg.paths import InputPath
from geoseg.scene.vector_files import VectorLayer, bounds_in, meets, open_layer, polygon_layer, polygons_of, reading
from geoseg.words import nearest


class _Kept:
    """Layers without a spatial index, read by the first scene that asks for them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.layers: dict[str, VectorLayer] = {}
        self.frames: dict[tuple[str, str], geopandas.GeoDataFrame] = {}


_kept = _Kept()


@contextmanager
def whole_layers() -> Iterator[None]:
    """Keep layers that had to be read whole until the block ends."""
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
    """Whether a file of labels has any feature, near a scene or not."""
    return _layer(path).features > 0


def read_layer(path: InputPath, grid: Grid, column: str | None = None, *, scene: InputPath) -> geopandas.GeoDataFrame:
    """The features of a file's only layer of polygons whose bounds meet a scene, in the order of the file.

    Args:
        path: GeoParquet, or any vector file GDAL reads.
        grid: The scene's grid.
        column: Field to read with the geometry.
        scene: Name of the scene, for messages.

    Returns:
        Polygons in the grid's CRS, perhaps none; features without a polygon are left out.

    Raises:
        LabelError: Not a vector file, none or several layers of polygons, or see `layer_problems`.
    """
    layer = _layer(path)
    if not layer.features:
        return geopandas.GeoDataFrame(geometry=[], crs=grid.crs)
    raise_first(layer_problems(path, layer, column, {scene: grid}))
    with reading("labels", path, LabelError):
        frame = _near(layer, grid, column)
    frame = frame.set_geometry(polygons_of(frame.geometry.to_numpy()), crs=frame.crs)
    if grid.is_georeferenced and frame.crs != pyproj_crs(grid.crs):
        frame = frame.to_crs(grid.crs)
    # What was read around the scene in the layer's CRS covers more than the scene.
    return frame[meets(frame.geometry.to_numpy(), grid.bounds)].reset_index(drop=True)


def layer_problems(
    path: InputPath, layer: VectorLayer, column: str | None, grids: Mapping[InputPath, Grid | None]
) -> Iterator[Problem]:
    """A field that does not exist, and a CRS that does not lead to that of every scene; ``grids`` is by scene."""
    if column is not None and column not in layer.fields:
        near = nearest(column, layer.fields)
        hint = f"{f'did you mean {near}? ' if near else ''}its fields: {', '.join(layer.fields)}"
        yield error(path, f"{path} has no field {column}", hint)
    placed = {scene: grid for scene, grid in grids.items() if grid is not None and grid.is_georeferenced}
    if placed and layer.crs is None:
        yield error(path, f"labels {path} have no CRS", assign_crs(path))
    for scene, grid in placed.items():
        if layer.crs is not None and are_apart(layer.crs, grid.crs):
            yield no_transformation("labels", path, layer.crs, scene, grid.crs, assign=assign_crs(path))
            return


def assign_crs(path: InputPath) -> str:
    """The command that assigns a CRS to a vector file."""
    return f"assign its CRS: ogr2ogr -a_srs EPSG:… out.gpkg {quoted(path)}"


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
