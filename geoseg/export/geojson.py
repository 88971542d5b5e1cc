"""GeoJSON after RFC 7946, as one collection or one feature a line, at the speed of a disk."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import shapely

from geoseg.errors import OutputError
from geoseg.export.antimeridian import Shapes, cut_polygon, shift_or_cut
from geoseg.export.json_text import DOUBLE, SINGLE, WHOLE, ByteArray, Geometries, Properties, features_text
from geoseg.export.layer import Layer
from geoseg.export.lonlat import LonLat, lonlat_of
from geoseg.polygons.batch import IntArray, PolygonBatch

_log = logging.getLogger(__name__)

_START, _END = b'{"type":"FeatureCollection","features":[', b"\n]}\n"


def write_geojson(batches: Iterable[PolygonBatch], path: Path, layer: Layer) -> int:
    """Write a layer of polygons as they come, as one FeatureCollection with a feature a line.

    WGS84 longitude and latitude, shells counter-clockwise, holes clockwise, cut at the antimeridian, no ``crs``.
    Coordinates have seven decimals (1 cm), more where pixels are below 9 cm (`geoseg.export.lonlat`). Each vertex is
    the same text in every polygon that has it, and long edges are split where they would bend, so borders stay shared.
    Without a CRS there is no longitude to give: coordinates stay as they are, and a warning says so.

    Numbers of float64 columns have twelve digits, those of float32 columns as many as give the value back; NaN is null.

    Args:
        batches: Polygons in the map's CRS, with columns of numbers. None at all gives an empty collection.
        path: File to create. It may be partial after an error, so it is a scratch path (`geoseg.outputs`).
        layer: Grid, classes and source.

    Returns:
        Number of features.

    Raises:
        OutputError: The disk is full, or a vertex has no longitude and latitude.

    References:
        RFC 7946: 3.1.6 (rings), 3.1.9 (antimeridian), 4 (WGS84), 11.2 (precision).
    """
    return _write(batches, path, layer, lines=False)


def write_geojson_lines(batches: Iterable[PolygonBatch], path: Path, layer: Layer) -> int:
    """Write newline-delimited GeoJSON (``.geojsonl``, ``.ndjson``): a feature a line, and nothing around them.

    See `write_geojson`, whose lines these are; RFC 8142 without its record separators, as GDAL, tippecanoe and
    ``jq`` read it.
    """
    return _write(batches, path, layer, lines=True)


def _write(batches: Iterable[PolygonBatch], path: Path, layer: Layer, *, lines: bool) -> int:
    lonlat = lonlat_of(layer.grid)
    if not lonlat.is_geographic:
        _log.warning(
            "%s: the map has no CRS, so the GeoJSON holds its coordinates, not longitude and latitude", path.name
        )
    separator = b"\n" if lines else b",\n"
    count = 0
    with path.open("wb", buffering=0) as file:
        # What separates two features is written in front of the second: nobody knows which one is the last.
        between = b"" if lines else _START + b"\n"
        for batch in batches:
            for text in _texts(batch, layer, lonlat, separator, path):
                _put(file, between, path)
                _put(file, text[: -len(separator)].data, path)
                between = separator
            count += len(batch)
        if lines:
            _put(file, b"\n" if count else b"", path)
        else:
            _put(file, (b"" if count else _START) + _END, path)
    return count


def _texts(batch: PolygonBatch, layer: Layer, lonlat: LonLat, separator: bytes, path: Path) -> Iterator[ByteArray]:
    """The features of a batch as text, a run of polygons or one multipolygon at a time, each ended by ``separator``."""
    if len(batch) == 0:
        return
    properties = _properties(batch, layer)
    rings = np.ascontiguousarray(batch.rings, dtype=np.int64)
    polygons = np.ascontiguousarray(batch.polygons, dtype=np.int64)
    xy, rings = lonlat.split_long_edges(np.ascontiguousarray(batch.xy, dtype=np.float64), rings)
    placed = lonlat.place(xy)
    if (lost := placed.min(axis=1) == np.iinfo(np.int64).min).any():
        x, y = xy[lost][0]
        raise OutputError(
            f"cannot write {path.name}: ({x}, {y}) of the map's CRS has no longitude and latitude",
            hint=f"write for example -o {path.with_suffix('.gpkg').name}, which keeps the map's CRS",
        )
    half = 180 * 10**lonlat.decimals
    cut = np.zeros(len(batch), np.bool_)
    if lonlat.is_geographic:
        cut = shift_or_cut(placed, rings, polygons, half)
    one_each = np.arange(len(batch) + 1)
    # Runs of polygons that stay whole, and between them those that do not.
    edges = np.unique(np.concatenate([[0, len(batch)], np.flatnonzero(cut), np.flatnonzero(cut) + 1]))
    for first, last in itertools.pairwise(edges.tolist()):
        if cut[first]:
            borders = itertools.pairwise(rings[polygons[first] : polygons[last] + 1].tolist())
            geometries = _multipolygon(cut_polygon([placed[a:b] for a, b in borders], half))
        else:
            geometries = Geometries(placed, rings, polygons, one_each[first : last + 1])
        yield features_text(properties, geometries, decimals=lonlat.decimals, separator=separator, first=first)


def _multipolygon(parts: Shapes) -> Geometries:
    _, xy, (rings, polygons) = shapely.to_ragged_array(parts)
    whole = np.rint(xy).astype(np.int64)
    return Geometries(whole, rings.astype(np.int64), polygons.astype(np.int64), np.array([0, len(parts)]))


def _properties(batch: PolygonBatch, layer: Layer) -> Properties:
    heads = [
        f'{{"type":"Feature","properties":{{"class_id":{c.id},"class_name":{_json(c.name)}'.encode()
        for c in layer.classes
    ]
    keys = [f",{_json(name)}:".encode() for name in batch.columns]
    tail = "}," if layer.source is None else f',"source":{_json(layer.source)}}},'
    numbers = np.empty((len(batch), len(keys)))
    kinds = np.empty(len(keys), np.uint8)
    for i, (name, values) in enumerate(batch.columns.items()):
        if values.dtype.kind not in "fiub":
            raise TypeError(f"column {name} holds {values.dtype}, wanted numbers")
        numbers[:, i] = values
        kinds[i] = WHOLE if values.dtype.kind != "f" else SINGLE if values.dtype == np.float32 else DOUBLE
    return Properties(
        np.ascontiguousarray(batch.class_id, dtype=np.uint8),
        *_joined(heads),
        *_joined(keys),
        numbers,
        kinds,
        np.frombuffer(tail.encode(), np.uint8),
    )


def _json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _joined(parts: list[bytes]) -> tuple[ByteArray, IntArray]:
    return np.frombuffer(b"".join(parts), np.uint8), np.cumsum([0, *map(len, parts)], dtype=np.int64)


def _put(file: BinaryIO, data: bytes | memoryview, path: Path) -> None:
    """Write all of it.

    Raises:
        OutputError: The disk is full.
    """
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        hint = "free some space or choose another folder"
        raise OutputError(f"cannot write {path.name}: {error.strerror}", hint=hint) from error
