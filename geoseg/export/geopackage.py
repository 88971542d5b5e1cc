"""GeoPackage: a layer by GDAL's writer, and its QGIS style in ``layer_styles``."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Collection, Iterable
from contextlib import closing
from pathlib import Path

from geoseg.export.arrow import writing
from geoseg.export.formats import GEOPACKAGE
from geoseg.export.gdal import write_layer
from geoseg.export.layer import Layer, noting
from geoseg.export.qml import style_qml
from geoseg.export.sld import style_sld
from geoseg.polygons.batch import PolygonBatch

_GEOMETRY = "geom"  # GDAL's name for the column


def write_geopackage(batches: Iterable[PolygonBatch], path: Path, layer: Layer) -> int:
    """Write a layer of polygons as they come; memory is bounded by the largest batch.

    The table has ``fid``, ``geom``, ``class_id``, ``class_name``, the columns of the batches and, where it is known,
    ``source``, and a spatial index. ``layer_styles`` holds the class colours of those that are
    present, as QML, which QGIS applies by itself, and as SLD, for GeoServer.

    Args:
        batches: Polygons in the map's CRS, all batches with the same columns. No batch at all, or only empty ones,
            give a layer without features.
        path: File to create. It may be partial after an error, so it is a scratch path (`geoseg.files`).
        layer: Name, grid, classes and source. Without a CRS the layer is in undefined Cartesian coordinates.

    Returns:
        Number of features.

    Raises:
        OutputError: The file is locked, the disk full, or the layer's name one that GeoPackage keeps for itself.
    """
    present: set[int] = set()
    count = write_layer(noting(batches, present), path, layer, GEOPACKAGE)
    with writing(path, sqlite3.Error), closing(sqlite3.connect(path)) as connection, connection:
        if _indexed(connection, layer.name) != count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        _add_style(connection, layer, present)
    return count


def _indexed(connection: sqlite3.Connection, name: str) -> int:
    """Number of features in the spatial index, which GDAL writes last; it does not report that the disk was full."""
    index = f"rtree_{name}_{_GEOMETRY}_rowid".replace('"', '""')
    try:
        (count,) = connection.execute(f'SELECT count(*) FROM "{index}"').fetchone()
    except sqlite3.OperationalError:  # no index at all
        return 0
    return int(count)


def _add_style(connection: sqlite3.Connection, layer: Layer, present: Collection[int]) -> None:
    """The table ``layer_styles`` as QGIS creates it, with one default style."""
    columns = (
        "id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, f_table_catalog TEXT(256), f_table_schema TEXT(256), "
        "f_table_name TEXT(256), f_geometry_column TEXT(256), styleName TEXT(30), styleQML TEXT, styleSLD TEXT, "
        "useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30), "
        "update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now'))"
    )
    connection.execute(f"CREATE TABLE layer_styles ({columns})")
    # GDAL, and with it QGIS, looks up tables here.
    connection.execute(
        "INSERT INTO gpkg_contents (table_name, identifier, data_type, description) "
        "VALUES ('layer_styles', 'layer_styles', 'attributes', 'QGIS styles')"
    )
    connection.execute(
        "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, styleName, "
        "styleQML, styleSLD, useAsDefault, description, owner) VALUES ('', '', ?, ?, ?, ?, ?, 1, ?, '')",
        [
            layer.name,
            _GEOMETRY,
            "classes",
            style_qml(layer.classes, present=present, units=layer.units),
            style_sld(layer.classes, layer.name, present=present),
            "class colours, by geoseg",
        ],
    )
