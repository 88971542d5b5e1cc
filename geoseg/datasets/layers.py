"""Polygons of a vector layer that lie near a scene, in the scene's CRS; no more of the layer than that is read.

A file with a spatial index (GeoPackage, FlatGeobuf, shapefile with .qix, …) is asked for the scene's bounds. Any other
must be read whole, which happens once for all scenes that are opened within `whole_layers`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import pyogrio
from pyogrio.errors import DataLayerError, DataSourceError

from geoseg.errors import LabelError, quoted
from geoseg.georeference import crs_name, pyproj_crs, transformer
from geoseg.grid import Grid

Bounds = tuple[float, float, float, float]

_MARGIN = 0.01
"""Share of the scene by which more is read: its sides bow in the CRS of the layer."""


class _Kept:
    """Layers without a spatial index while scenes are opened, each read by the first scene that asks for it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.frames: dict[tuple[Path, str], geopandas.GeoDataFrame] = {}


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
                _kept.frames.clear()


def read_layer(path: Path, grid: Grid, column: str | None = None) -> geopandas.GeoDataFrame:
    """The features of a file's only layer with geometries whose bounds meet a scene, in the order of the file.

    Args:
        path: Any vector file GDAL reads.
        grid: The scene's grid.
        column: Field to read beside the geometry.

    Returns:
        Features in the grid's CRS; none where none is near.

    Raises:
        LabelError: No vector file, none or several layers with geometries, no such field, or no CRS where the scene
            has one.
    """
    try:
        layers = [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
        if not layers:
            raise LabelError(
                f"labels {path} hold no geometries", hint=f"see what they hold: ogrinfo -so -al {quoted(path)}"
            )
        if len(layers) > 1:
            raise LabelError(
                f"labels {path} hold several layers: {', '.join(layers)}",
                hint=f"take one of them: ogr2ogr labels.gpkg {quoted(path)} {quoted(layers[0])}",
            )
        info = pyogrio.read_info(path, layer=layers[0])
        if column is not None and column not in info["fields"]:
            raise LabelError(f"{path} has no field {column}", hint=f"its fields: {', '.join(info['fields'])}")
        if grid.is_georeferenced and info["crs"] is None:
            hint = f"say which one: ogr2ogr -a_srs EPSG:… out.gpkg {quoted(path)}"
            raise LabelError(f"labels {path} have no CRS", hint=hint)
        frame = _near(path, layers[0], info, grid, column)
    except (DataSourceError, DataLayerError, ValueError) as error:
        if isinstance(error, LabelError):
            raise
        raise LabelError(
            f"labels {path} cannot be read: {reason(error)}", hint=f"check it with: ogrinfo {quoted(path)}"
        ) from error
    if grid.is_georeferenced and frame.crs != pyproj_crs(grid.crs):
        if transformer(frame.crs, grid.crs) is None:
            raise LabelError(
                f"no way is known from the CRS of labels {path}, {frame.crs.name}, to {crs_name(grid.crs)}",
                hint="draw them in the scene's own CRS",
            )
        frame = frame.to_crs(grid.crs)
    # The frame around the scene in the layer's CRS is larger than the scene.
    return frame[_meets(frame, grid.bounds)].reset_index(drop=True)


def reason(error: Exception) -> str:
    """What pyogrio said, without its advice on drivers."""
    return str(error).partition("; It might help")[0].rstrip(".")


def _near(path: Path, layer: str, info: dict[str, Any], grid: Grid, column: str | None) -> geopandas.GeoDataFrame:
    """Features near a scene in the layer's own CRS; perhaps some more."""
    columns = [] if column is None else [column]
    bounds = _bounds_in(info["crs"], grid)
    if bounds is not None and info["capabilities"]["fast_spatial_filter"]:
        # An index answers in an order of its own; later features lie over earlier ones, so the file's order counts.
        return _frame(path, layer, columns, bbox=bounds, fid_as_index=True).sort_index()
    if _kept.users:
        key = path.resolve(), ",".join(columns)
        with _kept.lock:
            if key not in _kept.frames:
                _kept.frames[key] = _frame(path, layer, columns)
            frame = _kept.frames[key]
    else:
        frame = _frame(path, layer, columns)
    return frame if bounds is None else frame[_meets(frame, bounds)]


def _frame(path: Path, layer: str, columns: list[str], **options: Any) -> geopandas.GeoDataFrame:
    frame = pyogrio.read_dataframe(path, layer=layer, columns=columns, **options)
    if isinstance(frame, geopandas.GeoDataFrame):
        return frame
    assert isinstance(frame, pd.DataFrame)
    raise LabelError(f"labels {path} hold no geometries")


def _bounds_in(crs: str | None, grid: Grid) -> Bounds | None:
    """Bounds of a scene in another CRS and a little more; None where they cannot be told."""
    left, bottom, right, top = grid.bounds
    if crs is not None and grid.is_georeferenced:
        way = transformer(grid.crs, crs)
        if way is None:
            return None
        left, bottom, right, top = way.transform_bounds(left, bottom, right, top)
    if not np.isfinite([left, bottom, right, top]).all() or left >= right or bottom >= top:
        return None  # beyond the CRS, or across the antimeridian
    margin = _MARGIN * max(right - left, top - bottom)
    return left - margin, bottom - margin, right + margin, top + margin


def _meets(frame: geopandas.GeoDataFrame, bounds: Bounds) -> Any:
    """Which features have bounds that meet others; missing and empty geometries have none."""
    left, bottom, right, top = frame.geometry.bounds.to_numpy().T
    return (left <= bounds[2]) & (right >= bounds[0]) & (bottom <= bounds[3]) & (top >= bounds[1])
