"""Polygons of a vector layer that lie near a scene, in the scene's CRS.

A file with a spatial index is asked for the scene's bounds. Any other is read whole, once for all scenes that are
opened within `whole_layers`.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import geopandas
import numpy as np

from geoseg.data.buffers import (
    Buffer,
    distance_problems,
    distances,
    label_areas,
    no_metres,
    thin_features,
    widened_bounds,
)
from geoseg.data.labels import no_transformation
from geoseg.data.problems import Problem, error, raise_first
from geoseg.errors import LabelError, quoted
from geoseg.georeference import are_apart, pyproj_crs
from geoseg.grid import Grid
from geoseg.paths import InputPath
from geoseg.scene.vector_files import Bounds, VectorLayer, bounds_in, meets, open_layer, polygon_layer, reading
from geoseg.words import nearest

T = TypeVar("T")


_lock = threading.Lock()
_kept: list[dict[tuple[object, ...], Any]] = []
"""What was read of layers: one dictionary, listed once for each block of `whole_layers` that has begun."""


@contextmanager
def whole_layers() -> Iterator[None]:
    """Keep layers that had to be read whole until the block ends."""
    with _lock:
        _kept.append(_kept[0] if _kept else {})
    try:
        yield
    finally:
        with _lock:
            _kept.pop()


def _once(read: Callable[[], T], *key: object) -> T:
    """What ``read`` gives, read once for a key within `whole_layers`."""
    with _lock:
        if _kept:
            if key not in _kept[0]:
                _kept[0][key] = read()
            found: T = _kept[0][key]
            return found
    return read()


def has_features(path: InputPath, buffer: Buffer = None) -> bool:
    """Whether a file of labels has any feature, near a scene or not."""
    return _layer(path, buffer).features > 0


def read_layer(
    path: InputPath, grid: Grid, column: str | None = None, *, scene: InputPath, buffer: Buffer = None
) -> geopandas.GeoDataFrame:
    """The features of a file's only layer of polygons whose bounds meet a scene, in the order of the file.

    With ``buffer``, as ``buffer_m`` of a scene, points and lines count too. Polygons, perhaps none, are in the grid's
    CRS, with the field ``column``; features without a polygon are left out. A `LabelError` if the file cannot be read,
    has several such layers, points or lines without a width, or see `layer_problems`.
    """
    layer = _layer(path, buffer)
    if not layer.features:
        return geopandas.GeoDataFrame(geometry=[], crs=grid.crs)
    raise_first(layer_problems(path, layer, fields_read(column, buffer), {scene: grid}))
    with reading("labels", path, LabelError):
        frame = _near(layer, grid, fields_read(column, buffer), buffer)
    thin = thin_features(frame.geometry.to_numpy())
    if thin.any():
        raise_first(distance_problems(path, frame, buffer, thin))
        raise_first([] if grid.is_metric else [no_metres(path, scene, grid)])
    frame = frame.set_geometry(label_areas(frame, buffer), crs=frame.crs)
    if grid.is_georeferenced and frame.crs != pyproj_crs(grid.crs):
        frame = frame.to_crs(grid.crs)
    # What was read around the scene in the layer's CRS covers more than the scene.
    return frame[meets(frame.geometry.to_numpy(), grid.bounds)].reset_index(drop=True)


def fields_read(column: str | None, buffer: Buffer) -> list[str]:
    """The fields of labels that are read: that of the classes and that of the widths."""
    return list(dict.fromkeys(field for field in (column, buffer) if isinstance(field, str)))


def layer_problems(
    path: InputPath, layer: VectorLayer, columns: Sequence[str], grids: Mapping[InputPath, Grid | None]
) -> Iterator[Problem]:
    """Fields that do not exist, and a CRS that does not lead to that of every scene; ``grids`` is by scene."""
    for column in columns:
        if column in layer.fields:
            continue
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


def _layer(path: InputPath, buffer: Buffer) -> VectorLayer:
    """The layer of polygons in a file of labels, its features counted; of any geometries if they have a width."""
    any_kind = buffer is not None

    def counted() -> VectorLayer:
        layer = polygon_layer(path, "labels", LabelError, any_kind=any_kind)
        return layer if layer.features >= 0 else open_layer(path, layer.name, count=True)

    return _once(counted, "layer", str(path), any_kind)


def reach(layer: VectorLayer, bounds: Bounds, buffer: Buffer) -> Bounds | None:
    """Bounds, in the CRS of a layer, within which features lie whose width reaches into others; None if unknown."""
    widest = buffer or 0.0
    if isinstance(buffer, str):
        metres = _once(lambda: distances(layer.table([buffer]), buffer), "widths", layer.path, buffer)
        widest = float(metres[np.isfinite(metres)].max(initial=0))
    return bounds if not widest or layer.crs is None else widened_bounds(bounds, float(widest), layer.crs)


def _near(layer: VectorLayer, grid: Grid, columns: list[str], buffer: Buffer) -> geopandas.GeoDataFrame:
    """Features near a scene in the layer's own CRS; perhaps some more."""
    bounds = bounds_in(layer.crs, grid)
    if bounds is not None and grid.is_metric:
        bounds = reach(layer, bounds, buffer)
    if layer.has_index:
        return layer.read(columns, bounds)
    frame = _once(lambda: layer.read(columns), "features", layer.path, *columns)
    return frame if bounds is None else frame[meets(frame.geometry.to_numpy(), bounds)]
