"""One function for each vector format: ``(frame, path, classes)`` → a file that a GIS opens finished.

The field names class_id, class_name and area_m2 have at most the ten characters that a shapefile allows, so they
are the same in every format.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import warnings
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import pyogrio
import shapely
from pyogrio.errors import DataLayerError, DataSourceError

from geoseg.classes import ClassTable
from geoseg.errors import OutputError
from geoseg.export.qml import style_qml

_log = logging.getLogger(__name__)

RFC7946_DECIMALS = 7
_MOST_DECIMALS = 12

Polygons = npt.NDArray[Any]


def write_geojson(frame: geopandas.GeoDataFrame, path: Path, classes: ClassTable) -> None:
    """GeoJSON after RFC 7946: WGS84 longitude and latitude, right-hand rings, cut at the antimeridian, no ``crs``.

    Coordinates have seven decimals (1 cm), each vertex rounded alike in every polygon that has it, so borders stay
    shared. Where that would make a polygon invalid (a neck thinner than 1 cm), all get as many more as it takes.

    Without a CRS there is no longitude to give: coordinates are written as they are, and a warning says so.
    """
    polygons = frame.geometry.to_numpy()
    if frame.crs is None:
        _log.warning(
            "%s: the map has no CRS, so the GeoJSON holds pixel coordinates, not longitude and latitude", path.name
        )
    else:
        polygons = _round_valid(_cut_at_antimeridian(frame.geometry.to_crs(4326).to_numpy()))
    properties = frame.drop(columns=frame.geometry.name).to_dict("records")
    # Not by GDAL: its writer takes the end of 15.0000001 for a rounding error and writes 15.0 (OGRFormatDouble).
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write('{"type": "FeatureCollection", "features": [\n')
        for index, (geometry, row) in enumerate(zip(shapely.to_geojson(polygons), properties, strict=True)):
            text = json.dumps(row, ensure_ascii=False)
            start = ",\n" if index else ""
            file.write(f'{start}{{"type": "Feature", "properties": {text}, "geometry": {geometry}}}')
        file.write("\n]}\n")


def write_geopackage(frame: geopandas.GeoDataFrame, path: Path, classes: ClassTable) -> None:
    """GeoPackage with a spatial index, one layer called like the file, and the style that QGIS gives it."""
    _write(frame, path, "GPKG", layer_options={"SPATIAL_INDEX": "YES"})
    _add_layer_style(path, path.stem, classes)


def write_flatgeobuf(frame: geopandas.GeoDataFrame, path: Path, classes: ClassTable) -> None:
    """FlatGeobuf with its packed spatial index, for which the polygons are sorted along a Hilbert curve."""
    _write(frame, path, "FlatGeobuf", layer_options={"SPATIAL_INDEX": "YES"})


def write_shapefile(frame: geopandas.GeoDataFrame, path: Path, classes: ClassTable) -> None:
    """Shapefile with its ``.shx``, ``.dbf``, ``.prj`` and a ``.cpg`` that says UTF-8."""
    _write(frame, path, "ESRI Shapefile", layer_options={"ENCODING": "UTF-8"})


def write_geoparquet(frame: geopandas.GeoDataFrame, path: Path, classes: ClassTable) -> None:
    """GeoParquet 1.1, zstd, with a bounding box column, so readers can skip what is elsewhere."""
    frame.to_parquet(path, compression="zstd", schema_version="1.1.0", write_covering_bbox=True, index=False)


def _write(frame: geopandas.GeoDataFrame, path: Path, driver: str, *, layer_options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'crs' was not provided")  # a map without georeference is no mistake
        try:
            pyogrio.write_dataframe(
                frame,
                path,
                layer=path.stem,
                driver=driver,
                geometry_type="Polygon" if frame.empty else None,
                layer_options=layer_options,
            )
        except (DataSourceError, DataLayerError) as error:
            hint = "free some space or choose another folder"
            raise OutputError(f"cannot write {path.name}: {error}", hint=hint) from error


def _cut_at_antimeridian(polygons: Polygons) -> Polygons:
    """Longitude and latitude polygons, those with edges from 180° to −180° cut there into two."""
    left, _, right, _ = shapely.bounds(polygons).T
    crossing = right - left > 180
    if not crossing.any():
        return polygons
    west = shapely.transform(polygons[crossing], lambda xy: xy + np.where(xy[:, :1] < 0, [[360.0, 0.0]], 0.0))
    near, far = (shapely.intersection(west, shapely.box(x, -90, x + 180, 90)) for x in (0, 180))
    whole = shapely.union(near, shapely.transform(far, lambda xy: xy - [360.0, 0.0]))
    cut = polygons.copy()
    cut[crossing] = whole
    return cut


def _round_valid(polygons: Polygons) -> Polygons:
    """Polygons with coordinates rounded to the fewest decimals, from seven on, that keep all of them valid."""
    for decimals in range(RFC7946_DECIMALS, _MOST_DECIMALS + 1):
        rounded = shapely.transform(polygons, partial(_rounded, decimals=decimals))
        if shapely.is_valid(rounded).all():
            break
    else:  # reprojection itself has folded a polygon: far outside the area its CRS is made for
        rounded = shapely.make_valid(rounded, method="structure", keep_collapsed=False)
    return np.asarray(shapely.orient_polygons(rounded))


def _rounded(xy: npt.NDArray[np.float64], *, decimals: int) -> npt.NDArray[np.float64]:
    return np.round(xy, decimals)


def _add_layer_style(path: Path, layer: str, classes: ClassTable) -> None:
    """The table ``layer_styles`` as QGIS creates it, with one default style."""
    columns = (
        "id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, f_table_catalog TEXT(256), f_table_schema TEXT(256), "
        "f_table_name TEXT(256), f_geometry_column TEXT(256), styleName TEXT(30), styleQML TEXT, styleSLD TEXT, "
        "useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30), "
        "update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now'))"
    )
    with closing(sqlite3.connect(path)) as connection, connection:
        (geometry,) = connection.execute(
            "SELECT column_name FROM gpkg_geometry_columns WHERE table_name = ?", [layer]
        ).fetchone()
        connection.execute(f"CREATE TABLE layer_styles ({columns})")
        # GDAL, and with it QGIS, looks up tables here.
        connection.execute(
            "INSERT INTO gpkg_contents (table_name, identifier, data_type, description) "
            "VALUES ('layer_styles', 'layer_styles', 'attributes', 'QGIS styles')"
        )
        connection.execute(
            "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, styleName, "
            "styleQML, styleSLD, useAsDefault, description, owner) VALUES ('', '', ?, ?, ?, ?, '', 1, ?, '')",
            [layer, geometry, "classes", style_qml(classes), "class colours, by geoseg"],
        )
