"""GeoPackage: a layer by GDAL's writer, and its QGIS style in the table ``layer_styles``."""

import sqlite3
from collections.abc import Collection, Iterable
from contextlib import closing
from pathlib import Path

from geoseg.export.gdal import write_layer
from geoseg.export.layer import Layer, check_whole
from geoseg.export.styles import style_qml, style_sld
from geoseg.files import writing
from geoseg.polygons.batch import PolygonBatch

_GEOMETRY = "geom"  # GDAL's name for the column


def write_geopackage(batches: Iterable[PolygonBatch], path: Path, layer: Layer) -> int:
    """Write a layer of polygons as they come; memory is bounded by the largest batch.

    The table has ``fid``, ``geom``, ``class_id``, ``class_name``, the columns of the batches and, if known, ``source``,
    and a spatial index. Without a CRS the layer is in undefined Cartesian coordinates.
    """
    # Without a CRS GDAL would write an undefined one, about which QGIS asks; −1 is "undefined Cartesian".
    options = {} if layer.grid.crs else {"SRID": "-1"}
    count = write_layer(batches, path, layer, "GPKG", dataset_options={"VERSION": "1.4"}, layer_options=options)
    index = f"rtree_{layer.name}_{_GEOMETRY}_rowid".replace('"', '""')  # which GDAL writes last
    with writing(path, sqlite3.Error), closing(sqlite3.connect(path)) as connection:
        try:
            (indexed,) = connection.execute(f'SELECT count(*) FROM "{index}"').fetchone()
        except sqlite3.OperationalError:  # no index at all
            indexed = 0
        check_whole(indexed == count)
    return count


def add_layer_style(path: Path, layer: Layer, present: Collection[int]) -> None:
    """Add the table ``layer_styles`` as QGIS creates it, with a default style of the classes that are present.

    The style is there as QML, which QGIS applies by itself, and as SLD, for GeoServer.
    """
    columns = (
        "id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, f_table_catalog TEXT(256), f_table_schema TEXT(256), "
        "f_table_name TEXT(256), f_geometry_column TEXT(256), styleName TEXT(30), styleQML TEXT, styleSLD TEXT, "
        "useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30), "
        "update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now'))"
    )
    qml = style_qml(layer.classes, present=present, units=layer.units)
    sld = style_sld(layer.classes, layer.name, present=present)
    with writing(path, sqlite3.Error), closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"CREATE TABLE layer_styles ({columns})")
        # GDAL, and with it QGIS, looks up tables here.
        connection.execute(
            "INSERT INTO gpkg_contents (table_name, identifier, data_type, description) "
            "VALUES ('layer_styles', 'layer_styles', 'attributes', 'QGIS styles')"
        )
        connection.execute(
            "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, styleName, "
            "styleQML, styleSLD, useAsDefault, description, owner) VALUES ('', '', ?, ?, ?, ?, ?, 1, ?, '')",
            [layer.name, _GEOMETRY, "classes", qml, sld, "class colours, by geoseg"],
        )
