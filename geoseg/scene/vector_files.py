"""Vector files as inputs: which layer is meant, its features near a place, and their polygons.

GeoParquet is read by geopandas, everything else by GDAL. Of files with a spatial index (GeoPackage, FlatGeobuf,
shapefile with .qix, GeoParquet with a bounding box column) only features near a place are read, where these are wanted.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import pyogrio
import pyproj
import shapely
from pyogrio.errors import DataLayerError, DataSourceError

from geoseg.arrays import BoolArray, Geometries, IntArray
from geoseg.errors import GeosegError, quoted
from geoseg.georeference import pyproj_crs, transformer
from geoseg.grid import Grid
from geoseg.paths import VECTOR_SUFFIXES, InputPath, exists, opened_name

Bounds = tuple[float, float, float, float]

_PARQUET = (".parquet", ".geoparquet", ".pq")
STYLES = "layer_styles"  # QGIS's own table in a GeoPackage, no layer of anybody's data
_MARGIN = 0.01  # share of the scene by which more is read: its sides bow in the CRS of the layer


@dataclass(frozen=True, slots=True)
class VectorLayer:
    """One layer of a vector file, its features not read."""

    path: str  # what is opened
    name: str
    kind: str | None  # geometry type; None for a table
    crs: str | None  # its CRS, as pyproj takes one, or None
    fields: dict[str, str]  # data type of each field but the geometry
    features: int  # number of features; -1 if counting takes a pass over the file
    bounds: Bounds | None  # of all features in its CRS; None if there are none, or if this takes a pass over the file
    has_index: bool  # whether the features near a place are found without reading the others

    def read(self, columns: Sequence[str] = (), bounds: Bounds | None = None) -> geopandas.GeoDataFrame:
        """Features in the order of the file, with some of its fields; Z is left out. The index is the feature's id.

        With ``bounds``, in the layer's CRS, only features whose own bounds meet these; some more may come.
        """
        if is_parquet(self.path):
            frame = geopandas.read_parquet(
                self.path, columns=[*columns, _geo_column(self.path)[0]], bbox=bounds if self.has_index else None
            )
            return frame.set_geometry(shapely.force_2d(frame.geometry.array))
        frame = pyogrio.read_dataframe(
            self.path, layer=self.name, columns=list(columns), bbox=bounds, force_2d=True, fid_as_index=True
        )
        if not isinstance(frame, geopandas.GeoDataFrame):
            raise ValueError("it holds no geometries")
        # An index answers in an order of its own, and later features lie over earlier ones.
        return frame.sort_index()

    def table(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """All fields of all features, or some."""
        columns = list(self.fields if columns is None else columns)
        if is_parquet(self.path):
            return pd.read_parquet(self.path, columns=columns)
        frame = pyogrio.read_dataframe(self.path, layer=self.name, columns=columns, read_geometry=False)
        assert isinstance(frame, pd.DataFrame)
        return frame


@contextmanager
def reading(what: str, path: InputPath, kind: type[GeosegError]) -> Iterator[None]:
    """Turn other libraries' errors in reading a file into one of ``kind``; ``what`` is the user's word for it."""
    import pyarrow as pa

    try:
        yield
    except GeosegError:
        raise
    except (DataSourceError, DataLayerError, ValueError, OSError, pa.ArrowException, shapely.errors.GEOSException) as e:
        # pyogrio adds advice on drivers
        reason = " ".join(str(e).partition("; It might help")[0].split()).rstrip(".")
        check = "geoseg info" if is_parquet(str(path)) else "ogrinfo"
        raise kind(f"{what} {path} cannot be read: {reason}", hint=f"check it with: {check} {quoted(path)}") from e


def layer_names(path: InputPath) -> list[tuple[str, str | None]]:
    """Name and geometry type of every layer of a file, None of a table."""
    name = opened_name(path, VECTOR_SUFFIXES)
    if is_parquet(name):
        return [(Path(name).stem, "Unknown" if _geo_column(name)[0] else None)]
    return [(str(layer), None if kind is None else str(kind)) for layer, kind in pyogrio.list_layers(name)]


def open_layer(path: InputPath, layer: str, *, count: bool = False) -> VectorLayer:
    """A layer of a file; with ``count``, features are counted and their bounds measured even if that takes a pass."""
    name = opened_name(path, VECTOR_SUFFIXES)
    if is_parquet(name):
        return _parquet_layer(name, layer)
    info = pyogrio.read_info(name, layer=layer, force_feature_count=count, force_total_bounds=count)
    return VectorLayer(
        path=name,
        name=layer,
        kind=info["geometry_type"],
        crs=info["crs"],
        fields=dict(zip(map(str, info["fields"]), map(str, info["dtypes"]), strict=True)),
        features=int(info["features"]),
        bounds=_bounds(info["total_bounds"]),
        has_index=bool(info["capabilities"]["fast_spatial_filter"]),
    )


def polygon_layer(
    path: InputPath, what: str, kind: type[GeosegError], *, count: bool = False, any_kind: bool = False
) -> VectorLayer:
    """The only layer of a file that holds polygons, or may; with ``any_kind`` also points or lines.

    ``what`` is the user's word for the file, "labels" or "area of interest"; for ``count`` see `open_layer`. An error
    of the given ``kind`` if there is no such file, it cannot be read, or it has none or several layers of polygons.
    """
    if not exists(path):
        raise kind(f"no such {what}: {path}", hint="check the path")
    with reading(what, path, kind):
        layers = [(name, shape) for name, shape in layer_names(path) if shape is not None]
        polygons = [name for name, shape in layers if "Point" not in shape and "LineString" not in shape]
        names = [name for name, _ in layers] if any_kind or not polygons else polygons
        if len(names) == 1:
            return open_layer(path, names[0], count=count)
    verb = "hold" if what.endswith("s") else "holds"
    if not names:
        raise kind(f"{what} {path} {verb} no polygons", hint=f"see what it holds: geoseg info {quoted(path)}")
    of_what = "" if any_kind else " of polygons"
    raise kind(
        f"{what} {path} {verb} several layers{of_what}: {', '.join(names)}",
        hint=f"take one of them: ogr2ogr one.gpkg {quoted(opened_name(path, VECTOR_SUFFIXES))} {quoted(names[0])}",
    )


def bounds_in(crs: str | None, grid: Grid) -> Bounds | None:
    """Bounds of a scene in another CRS, with a margin; None if they are not known there."""
    left, bottom, right, top = grid.bounds
    if crs is not None and grid.is_georeferenced and pyproj_crs(crs) != pyproj_crs(grid.crs):
        way = transformer(grid.crs, crs)
        if way is None:
            return None
        left, bottom, right, top = way.transform_bounds(left, bottom, right, top)
    if not np.isfinite([left, bottom, right, top]).all() or left >= right or bottom >= top:
        return None  # beyond the CRS, or across the antimeridian
    margin = _MARGIN * max(right - left, top - bottom)
    return left - margin, bottom - margin, right + margin, top + margin


def meets(geometries: Geometries, bounds: Bounds) -> BoolArray:
    """Which geometries have bounds that meet the given ones, (n,); missing and empty geometries do not."""
    left, bottom, right, top = shapely.bounds(geometries).T
    return np.asarray((left <= bounds[2]) & (right >= bounds[0]) & (bottom <= bounds[3]) & (top >= bounds[1]))


def polygons_of(geometries: Geometries) -> Geometries:
    """The polygons of each geometry, (n,): itself, those of a collection as one geometry, or an empty polygon.

    Clipping and repairing leave lines and points in collections, where polygons touch in a line or a point.
    """
    out = np.array(geometries, dtype=object)
    kinds = shapely.get_type_id(out)
    is_area = np.isin(kinds, (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON))
    out[~is_area] = shapely.Polygon()
    for i in np.flatnonzero(kinds == shapely.GeometryType.GEOMETRYCOLLECTION):
        parts = single_polygons(np.asarray(geometries[i : i + 1]))
        out[i] = parts[0] if len(parts) == 1 else shapely.MultiPolygon(list(parts))
    return out


def single_parts(geometries: Geometries) -> tuple[Geometries, IntArray]:
    """All single geometries in geometries and in collections of any depth, (m,), and the row of each."""
    parts, owner = np.asarray(geometries, dtype=object), np.arange(len(geometries))
    while (shapely.get_type_id(parts) > shapely.GeometryType.POLYGON).any():
        parts, inner = shapely.get_parts(parts, return_index=True)
        owner = owner[inner]
    return parts, owner


def single_polygons(geometries: Geometries) -> Geometries:
    """All single polygons in geometries and in collections of any depth, without empty ones, (m,)."""
    parts, _ = single_parts(geometries)
    is_polygon = shapely.get_type_id(parts) == shapely.GeometryType.POLYGON
    return np.asarray(parts[is_polygon & ~shapely.is_empty(parts)])


def _bounds(values: Any) -> Bounds | None:
    if values is None or len(values) != 4:
        return None
    left, bottom, right, top = map(float, values)
    return left, bottom, right, top


def is_parquet(path: str) -> bool:
    """Whether a file is GeoParquet, by its suffix."""
    return path.lower().endswith(_PARQUET)


def _geo_column(path: str) -> tuple[str, dict[str, Any]]:
    """Name of the geometry column of a GeoParquet file, and its metadata; "" for other Parquet files."""
    import pyarrow.parquet as pq

    metadata = pq.read_schema(path).metadata or {}
    geo = json.loads(metadata.get(b"geo", b"{}"))
    name = str(geo.get("primary_column", ""))
    return name, geo.get("columns", {}).get(name, {})


def _parquet_layer(path: str, layer: str) -> VectorLayer:
    import pyarrow.parquet as pq

    name, column = _geo_column(path)
    covering = {paths[0] for paths in column.get("covering", {}).get("bbox", {}).values()}
    with pq.ParquetFile(path) as file:
        fields = {f.name: str(f.type) for f in file.schema_arrow if f.name not in {name, *covering}}
        features = file.metadata.num_rows
    kinds = column.get("geometry_types") or ["Unknown"]
    crs = pyproj.CRS.from_user_input(column.get("crs", "OGC:CRS84")) if column.get("crs", "") is not None else None
    bounds = list(column.get("bbox", []))
    return VectorLayer(
        path=path,
        name=layer,
        kind=(kinds[0] if len(kinds) == 1 else "Unknown") if name else None,
        crs=None if crs is None or not name else crs.to_wkt(),
        fields=fields,
        features=features,
        bounds=_bounds(bounds[:2] + bounds[len(bounds) // 2 :][:2]),  # there may be heights among them
        has_index=bool(covering),
    )
