"""GeoPackage 1.4, written straight into SQLite: one layer with spatial index, feature count and QGIS style."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyproj
from rasterio.crs import CRS

from geoseg._jit import njit
from geoseg.classes import ClassTable
from geoseg.errors import OutputError
from geoseg.export.layer import Layer
from geoseg.export.qml import style_qml
from geoseg.export.rtree import PackedRTree
from geoseg.export.sqlite_pages import PagedTable, PageFile, put_varint
from geoseg.export.wkb import copy_bytes, polygon_bounds, polygon_wkb
from geoseg.polygons.batch import FloatArray, PolygonBatch

_APPLICATION_ID = 0x47504B47  # "GPKG"
_VERSION = 10400  # 1.4
_FID, _GEOMETRY = "fid", "geom"
_BOX_LITTLE_ENDIAN = 0b11
_UNDEFINED_CARTESIAN, _WGS84, _OWN_SRS = -1, 4326, 100_000
# Types of values in SQLite's records.
_NULL, _SHORT, _INTEGER, _FLOAT = 0, 2, 6, 7

_DEFAULT_COLUMNS = {"area_m2": np.dtype(np.float64), "perim_m": np.dtype(np.float64)}


def write_geopackage(batches: Iterable[PolygonBatch], path: Path, layer: Layer) -> int:
    """Write a layer of polygons as they come; memory is bounded by the largest batch.

    The table has ``fid``, ``geom``, ``class_id``, ``class_name``, the columns of the batches and, where it is known,
    ``source``. The spatial index is packed (`geoseg.export.rtree`), its triggers keep it true when the layer is
    edited, and ``layer_styles`` holds the class colours, which QGIS applies by itself.

    Args:
        batches: Polygons in the map's CRS, all batches with the same columns. No batch at all, or only empty ones,
            give a layer without features.
        path: File to create. It may be partial after an error, so it is a scratch path (`geoseg.outputs`).
        layer: Name, grid, classes and source. Without a CRS the layer is in undefined Cartesian coordinates.

    Returns:
        Number of features.

    Raises:
        OutputError: The file is locked, the disk full, or the layer's name one that GeoPackage keeps for itself.

    References:
        OGC 12-128r19, GeoPackage 1.4, with its extension "RTree Spatial Indexes".
    """
    remaining = iter(batches)
    first = next(remaining, None)
    fields = _DEFAULT_COLUMNS if first is None else {name: v.dtype for name, v in first.columns.items()}
    try:
        srs_id, roots, node_bytes = _create(path, layer, fields)
        with PageFile(path) as file:
            table = PagedTable(file, roots[layer.name])
            index_name = _index_name(layer)
            nodes, rows = roots[f"{index_name}_node"], roots[f"{index_name}_rowid"]
            index = PackedRTree(file, nodes, rows, node_bytes=node_bytes)
            count, total = 0, np.array([np.inf, -np.inf, np.inf, -np.inf])
            for batch in itertools.chain([] if first is None else [first], remaining):
                if len(batch) == 0:
                    continue
                boxes = polygon_bounds(batch)[:, [0, 2, 1, 3]]  # minimum and maximum x, then y
                blobs, offsets = polygon_wkb(batch, _headers(boxes, srs_id))
                table.append(*_records(batch, list(fields), layer, blobs, offsets))
                index.add(boxes)
                total[0::2] = np.minimum(total[0::2], boxes[:, 0::2].min(axis=0))
                total[1::2] = np.maximum(total[1::2], boxes[:, 1::2].max(axis=0))
                count += len(batch)
            table.finish()
            root_node, parents = index.finish()
        _complete(path, layer, count, total, root_node, parents)
    except sqlite3.Error as error:
        hint = "free some space or choose another folder or name"
        raise OutputError(f"cannot write {path.name}: {error}", hint=hint) from error
    return count


def _headers(boxes: FloatArray, srs_id: int) -> npt.NDArray[np.uint8]:
    """What a GeoPackage has in front of the WKB: magic, flags, spatial reference and bounding box, (n, 40)."""
    headers = np.empty(
        len(boxes), [("magic", "S2"), ("version", "u1"), ("flags", "u1"), ("srs", "<i4"), ("box", "<f8", 4)]
    )
    headers["magic"], headers["version"], headers["flags"] = b"GP", 0, _BOX_LITTLE_ENDIAN
    headers["srs"], headers["box"] = srs_id, boxes
    return headers.view(np.uint8).reshape(len(boxes), -1)


def _records(
    batch: PolygonBatch,
    fields: list[str],
    layer: Layer,
    blobs: npt.NDArray[np.uint8],
    offsets: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The rows of a batch in SQLite's record format, and where each begins."""
    numbers = np.empty((len(batch), len(fields), 8), np.uint8)
    types = np.empty((len(batch), len(fields)), np.uint8)
    for i, field in enumerate(fields):
        values = batch.columns[field]
        if values.dtype.kind not in "fiub":
            raise TypeError(f"column {field} holds {values.dtype}, wanted numbers")
        is_float = values.dtype.kind == "f"
        numbers[:, i] = values.astype(">f8" if is_float else ">i8").view(np.uint8).reshape(-1, 8)
        types[:, i] = np.where(np.isnan(values), _NULL, _FLOAT) if is_float else _INTEGER
    names = [c.name.encode() for c in layer.classes]
    source = b"" if layer.source is None else layer.source.encode()
    return _encode_records(
        blobs,
        offsets,
        np.ascontiguousarray(batch.class_id, dtype=np.uint8),
        np.frombuffer(b"".join(names), np.uint8),
        np.cumsum([0, *map(len, names)]),
        types,
        numbers,
        np.frombuffer(source, np.uint8),
        layer.source is not None,
    )


@njit
def _encode_records(
    blobs: npt.NDArray[np.uint8],
    offsets: npt.NDArray[np.int64],
    class_id: npt.NDArray[np.uint8],
    names: npt.NDArray[np.uint8],
    name_offsets: npt.NDArray[np.int64],
    types: npt.NDArray[np.uint8],
    numbers: npt.NDArray[np.uint8],
    source: npt.NDArray[np.uint8],
    has_source: bool,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Rows (NULL for fid, geom, class_id, class_name, numbers …, source), each a header of types and its values."""
    count, fields = types.shape
    longest_name = np.max(np.diff(name_offsets))
    out = np.empty(len(blobs) + count * (40 + 9 * fields + longest_name + len(source)), np.uint8)
    starts = np.zeros(count + 1, np.int64)
    at = 0
    for row in range(count):
        begin, end = offsets[row], offsets[row + 1]
        name_begin, name_end = name_offsets[class_id[row]], name_offsets[class_id[row] + 1]
        header = at
        out[at + 1] = _NULL
        at = put_varint(out, at + 2, 12 + 2 * (end - begin))
        out[at] = _SHORT
        at = put_varint(out, at + 1, 13 + 2 * (name_end - name_begin))
        for i in range(fields):
            out[at + i] = types[row, i]
        at += fields
        if has_source:
            at = put_varint(out, at, 13 + 2 * len(source))
        out[header] = at - header
        at = copy_bytes(out, at, blobs, begin, end - begin)
        out[at], out[at + 1] = 0, class_id[row]
        at += 2
        at = copy_bytes(out, at, names, name_begin, name_end - name_begin)
        for i in range(fields):
            if types[row, i] != _NULL:
                for j in range(8):
                    out[at + j] = numbers[row, i, j]
                at += 8
        at = copy_bytes(out, at, source, 0, len(source))
        starts[row + 1] = at
    return out[:at], starts


def _create(path: Path, layer: Layer, fields: Mapping[str, np.dtype[Any]]) -> tuple[int, dict[str, int], int]:
    """Create the file with all its tables, the layer's being empty.

    Returns:
        Id of the spatial reference, root page of every table, and the length of a node of the spatial index.
    """
    with closing(sqlite3.connect(path, isolation_level=None, timeout=1.0)) as connection:
        for setting in ("auto_vacuum = NONE", "encoding = 'UTF-8'", "journal_mode = OFF", "synchronous = OFF"):
            connection.execute(f"PRAGMA {setting}")
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {_VERSION}")
        connection.execute("BEGIN EXCLUSIVE")
        srs_id = _create_metadata(connection, layer.grid.crs)
        _create_layer(connection, layer, fields)
        _register_layer(connection, layer, srs_id)
        _add_style(connection, layer.name, layer.classes)
        connection.execute("COMMIT")
        roots = dict(connection.execute("SELECT name, rootpage FROM sqlite_master WHERE type = 'table'"))
        nodes = _quoted(f"{_index_name(layer)}_node")
        (node_bytes,) = connection.execute(f"SELECT length(data) FROM {nodes} WHERE nodeno = 1").fetchone()
    return srs_id, roots, node_bytes


def _complete(
    path: Path, layer: Layer, count: int, bounds: FloatArray, root_node: bytes, parents: list[tuple[int, int]]
) -> None:
    """Write what is known at the end: count, bounds, the last free fid, and the upper nodes of the spatial index."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=1.0)) as connection:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN EXCLUSIVE")
        index = _index_name(layer)
        connection.execute(f"UPDATE {_quoted(f'{index}_node')} SET data = ? WHERE nodeno = 1", [root_node])
        connection.executemany(f"INSERT INTO {_quoted(f'{index}_parent')} VALUES (?, ?)", parents)
        connection.execute("UPDATE gpkg_ogr_contents SET feature_count = ?", [count])
        if count:
            x_min, x_max, y_min, y_max = bounds.tolist()
            connection.execute(
                "UPDATE gpkg_contents SET min_x = ?, min_y = ?, max_x = ?, max_y = ? WHERE table_name = ?",
                [x_min, y_min, x_max, y_max, layer.name],
            )
            connection.execute("INSERT INTO sqlite_sequence VALUES (?, ?)", [layer.name, count])
        connection.execute("COMMIT")


def _create_metadata(connection: sqlite3.Connection, crs: CRS | None) -> int:
    """Create the tables that every GeoPackage has, with the layer's spatial reference, whose id is returned."""
    connection.execute(
        "CREATE TABLE gpkg_spatial_ref_sys (srs_name TEXT NOT NULL, srs_id INTEGER NOT NULL PRIMARY KEY, "
        "organization TEXT NOT NULL, organization_coordsys_id INTEGER NOT NULL, definition TEXT NOT NULL, "
        "description TEXT)"
    )
    connection.execute(
        "CREATE TABLE gpkg_contents (table_name TEXT NOT NULL PRIMARY KEY, data_type TEXT NOT NULL, "
        "identifier TEXT UNIQUE, description TEXT DEFAULT '', "
        "last_change DATETIME NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')), "
        "min_x DOUBLE, min_y DOUBLE, max_x DOUBLE, max_y DOUBLE, srs_id INTEGER, "
        "CONSTRAINT fk_gc_r_srs_id FOREIGN KEY (srs_id) REFERENCES gpkg_spatial_ref_sys(srs_id))"
    )
    connection.execute(
        "CREATE TABLE gpkg_geometry_columns (table_name TEXT NOT NULL, column_name TEXT NOT NULL, "
        "geometry_type_name TEXT NOT NULL, srs_id INTEGER NOT NULL, z TINYINT NOT NULL, m TINYINT NOT NULL, "
        "CONSTRAINT pk_geom_cols PRIMARY KEY (table_name, column_name), "
        "CONSTRAINT uk_gc_table_name UNIQUE (table_name), "
        "CONSTRAINT fk_gc_tn FOREIGN KEY (table_name) REFERENCES gpkg_contents(table_name), "
        "CONSTRAINT fk_gc_srs FOREIGN KEY (srs_id) REFERENCES gpkg_spatial_ref_sys(srs_id))"
    )
    connection.execute(
        "CREATE TABLE gpkg_extensions (table_name TEXT, column_name TEXT, extension_name TEXT NOT NULL, "
        "definition TEXT NOT NULL, scope TEXT NOT NULL, "
        "CONSTRAINT ge_tce UNIQUE (table_name, column_name, extension_name))"
    )
    # GDAL's own table: without it, every count of features reads the whole layer.
    connection.execute(
        "CREATE TABLE gpkg_ogr_contents (table_name TEXT NOT NULL PRIMARY KEY, feature_count INTEGER DEFAULT NULL)"
    )
    references = [
        ("Undefined Cartesian SRS", _UNDEFINED_CARTESIAN, "NONE", _UNDEFINED_CARTESIAN, "undefined"),
        ("Undefined geographic SRS", 0, "NONE", 0, "undefined"),
        _spatial_reference(CRS.from_epsg(_WGS84)),
    ]
    srs_id = _UNDEFINED_CARTESIAN
    if crs is not None:
        reference = _spatial_reference(crs)
        srs_id = reference[1]
        if srs_id != _WGS84:
            references.append(reference)
    connection.executemany("INSERT INTO gpkg_spatial_ref_sys VALUES (?, ?, ?, ?, ?, NULL)", references)
    return srs_id


def _spatial_reference(crs: CRS) -> tuple[str, int, str, int, str]:
    """Name, id, organization, the organization's id and WKT of a CRS; one that nobody numbered gets a number here."""
    authority = crs.to_authority()
    if authority is None or not authority[1].isdecimal():
        organization, code = "NONE", _OWN_SRS
    else:
        organization, code = authority[0], int(authority[1])
    return pyproj.CRS.from_user_input(crs).name, code, organization, code, crs.to_wkt()


def _create_layer(connection: sqlite3.Connection, layer: Layer, fields: Mapping[str, np.dtype[Any]]) -> None:
    columns = [
        f"{_FID} INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL",
        f"{_GEOMETRY} POLYGON",
        "class_id MEDIUMINT",
        "class_name TEXT",
        *(f"{_quoted(name)} {_sql_type(dtype)}" for name, dtype in fields.items()),
    ]
    if layer.source is not None:
        columns.append("source TEXT")
    connection.execute(f"CREATE TABLE {_quoted(layer.name)} ({', '.join(columns)})")
    connection.execute(f"CREATE VIRTUAL TABLE {_quoted(_index_name(layer))} USING rtree(id, minx, maxx, miny, maxy)")


def _sql_type(dtype: np.dtype[Any]) -> str:
    if dtype == np.float32:
        return "FLOAT"
    return {"f": "REAL", "i": "INTEGER", "u": "INTEGER", "b": "BOOLEAN"}.get(dtype.kind, "TEXT")


def _index_name(layer: Layer) -> str:
    return f"rtree_{layer.name}_{_GEOMETRY}"


def _register_layer(connection: sqlite3.Connection, layer: Layer, srs_id: int) -> None:
    name = layer.name
    connection.execute(
        "INSERT INTO gpkg_contents (table_name, data_type, identifier, srs_id) VALUES (?, 'features', ?, ?)",
        [name, name, srs_id],
    )
    connection.execute("INSERT INTO gpkg_geometry_columns VALUES (?, ?, 'POLYGON', ?, 0, 0)", [name, _GEOMETRY, srs_id])
    connection.execute("INSERT INTO gpkg_ogr_contents VALUES (?, 0)", [name])
    connection.execute(
        "INSERT INTO gpkg_extensions VALUES (?, ?, 'gpkg_rtree_index', "
        "'http://www.geopackage.org/spec140/#extension_rtree', 'write-only')",
        [name, _GEOMETRY],
    )
    for trigger, event, action in _triggers(name):
        connection.execute(f"CREATE TRIGGER {_quoted(trigger)} AFTER {event} BEGIN {action} END")


def _triggers(name: str) -> Iterator[tuple[str, str, str]]:
    """Name, event and action of the triggers that keep spatial index and feature count true when a layer is edited.

    Those of the index are prescribed word for word by GeoPackage 1.4, annex "RTree Spatial Indexes".
    """
    prefix, table, index = f"rtree_{name}_{_GEOMETRY}", _quoted(name), _quoted(f"rtree_{name}_{_GEOMETRY}")
    i, t = f'"{_FID}"', f'"{_GEOMETRY}"'
    values = f"NEW.{i}, ST_MinX(NEW.{t}), ST_MaxX(NEW.{t}), ST_MinY(NEW.{t}), ST_MaxY(NEW.{t})"
    box = f"minx = ST_MinX(NEW.{t}), maxx = ST_MaxX(NEW.{t}), miny = ST_MinY(NEW.{t}), maxy = ST_MaxY(NEW.{t})"
    new_filled = f"(NEW.{t} NOTNULL AND NOT ST_IsEmpty(NEW.{t}))"
    new_empty = f"(NEW.{t} ISNULL OR ST_IsEmpty(NEW.{t}))"
    old_filled = f"(OLD.{t} NOTNULL AND NOT ST_IsEmpty(OLD.{t}))"
    old_empty = f"(OLD.{t} ISNULL OR ST_IsEmpty(OLD.{t}))"
    moved = f"UPDATE OF {t} ON {table} WHEN OLD.{i} = NEW.{i} AND"
    renumbered = f"UPDATE ON {table} WHEN OLD.{i} != NEW.{i} AND"
    insert, delete = f"INSERT OR REPLACE INTO {index} VALUES ({values});", f"DELETE FROM {index} WHERE id = OLD.{i};"
    yield f"{prefix}_insert", f"INSERT ON {table} WHEN {new_filled}", insert
    yield f"{prefix}_update2", f"{moved} {new_empty}", delete
    yield f"{prefix}_update4", f"{renumbered} {new_empty}", f"DELETE FROM {index} WHERE id IN (OLD.{i}, NEW.{i});"
    yield f"{prefix}_update5", f"{renumbered} {new_filled}", f"{delete} {insert}"
    yield f"{prefix}_update6", f"{moved} {new_filled} AND {old_filled}", f"UPDATE {index} SET {box} WHERE id = NEW.{i};"
    yield f"{prefix}_update7", f"{moved} {new_filled} AND {old_empty}", f"INSERT INTO {index} VALUES ({values});"
    yield f"{prefix}_delete", f"DELETE ON {table} WHEN OLD.{t} NOT NULL", delete
    literal = "'{}'".format(name.replace("'", "''"))
    for event, change in (("INSERT", "+ 1"), ("DELETE", "- 1")):
        yield (
            f"trigger_{event.lower()}_feature_count_{name}",
            f"{event} ON {table}",
            f"UPDATE gpkg_ogr_contents SET feature_count = feature_count {change} "
            f"WHERE lower(table_name) = lower({literal});",
        )


def _add_style(connection: sqlite3.Connection, layer: str, classes: ClassTable) -> None:
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
        "styleQML, styleSLD, useAsDefault, description, owner) VALUES ('', '', ?, ?, ?, ?, '', 1, ?, '')",
        [layer, _GEOMETRY, "classes", style_qml(classes), "class colours, by geoseg"],
    )


def _quoted(name: str) -> str:
    return '"{}"'.format(name.replace('"', '""'))
