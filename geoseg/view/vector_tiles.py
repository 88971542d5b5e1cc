"""Vector tiles in Mapbox's format, version 2.1: features in Web Mercator, encoded as whole arrays.

Libraries for Python encode feature by feature, at 0.5 ms each, and GDAL writes whole sets of tiles only.
Source: https://github.com/mapbox/vector-tile-spec/tree/master/2.1
"""

import math
import struct
from typing import Any

import numpy as np
import pyarrow as pa
import shapely

from geoseg.arrays import ByteArray, Geometries, IntArray
from geoseg.scene.vector_files import single_parts
from geoseg.view.place import Bounds

EXTENT = 4096  # units of a tile's side
BUFFER = 64  # units by which features reach beyond the tile, so that no outline is drawn along its edge

_MOVE, _LINE, _CLOSE = 1, 2, 15
_FEWEST = {0: 1, 1: 2, 2: 3}  # different vertices that a point, a line and a ring need at least


def encode_tile(name: str, geometries: Geometries, fields: pa.Table, bounds: Bounds) -> bytes:
    """One tile with one layer of this name; b"" if nothing of the features (N,), of any type, is left in it.

    Of the attributes, N rows, text, numbers and truth values stay what they are, all else becomes text. Bounds are in
    the CRS of the geometries.
    """
    left, bottom, right, top = bounds
    scale = EXTENT / (right - left)
    edge = BUFFER / scale
    clipped = shapely.clip_by_rect(geometries, left - edge, bottom - edge, right + edge, top + edge)
    parts, owner = single_parts(shapely.orient_polygons(clipped, exterior_cw=True))
    dimension = shapely.get_dimensions(parts)
    tags, values = _attributes(fields)
    features = []
    for d in (0, 1, 2):
        lines, of = parts[dimension == d], owner[dimension == d]
        if d == 2:
            lines, part = shapely.get_rings(lines, return_index=True)
            of = of[part]
        xy, line = shapely.get_coordinates(lines, return_index=True)
        units = np.rint((xy - (left, top)) * (scale, -scale)).astype(np.int64)
        for row, commands in _commands(units, line, of, d):
            body = b"\x12" + _sized(tags[row]) + bytes((0x18, d + 1)) + b"\x22" + _sized(commands)
            features.append(b"\x12" + _sized(body))
    if not features:
        return b""
    keys = [b"\x1a" + _sized(key.encode()) for key in fields.column_names]
    layer = [b"\x78\x02\x0a", _sized(name.encode()), *features, *keys, *values, b"\x28", _varint(EXTENT)]
    return b"\x1a" + _sized(b"".join(layer))


def _commands(units: IntArray, line: IntArray, owner: IntArray, dimension: int) -> list[tuple[int, bytes]]:
    """The drawing commands of each row that has any, of vertices (V, 2) in units of the tile.

    Ascending are the line (ring, point) of each vertex and the row of each line; ``dimension`` is 0, 1 or 2.
    """
    is_kept = np.ones(len(units), bool)
    if dimension:  # of equal vertices one after another the first; of a ring the last one is the first again
        is_kept[1:] = (units[1:] != units[:-1]).any(axis=1) | (line[1:] != line[:-1])
        units, line = units[is_kept], line[is_kept]
    if dimension == 2 and len(line):
        is_kept = np.append(line[1:] == line[:-1], False)
        units, line = units[is_kept], line[is_kept]
    is_kept = (np.bincount(line, minlength=len(owner)) >= _FEWEST[dimension])[line]
    units = units[is_kept]
    if not len(units):
        return []
    lines, line, n = np.unique(line[is_kept], return_inverse=True, return_counts=True)
    owner = owner[lines]
    first = np.cumsum(n) - n  # vertex of each line
    leads = np.append(True, owner[1:] != owner[:-1])  # lines that begin a row
    steps = np.diff(units, axis=0, prepend=0)
    steps[first[leads]] = units[first[leads]]
    steps = (steps << 1) ^ (steps >> 63)

    length = 2 * n + 1 + dimension
    start = np.cumsum(length) - length
    stream = np.empty(length.sum(), np.int64)
    within = np.arange(len(units)) - first[line]
    at = start[line] + 1 + 2 * within + ((within > 0) if dimension else 0)
    stream[at], stream[at + 1] = steps.T
    stream[start] = ((1 if dimension else n) << 3) | _MOVE
    if dimension:
        stream[start + 3] = ((n - 1) << 3) | _LINE
    if dimension == 2:
        stream[start + length - 1] = _CLOSE
    data, place = _varints(stream)
    ends = np.append(place[start[leads]], len(data)).tolist()
    whole = data.tobytes()
    return [(row, whole[a:b]) for row, a, b in zip(owner[leads].tolist(), ends[:-1], ends[1:], strict=True)]


def _varints(values: IntArray) -> tuple[ByteArray, IntArray]:
    """Values as bytes of 7 bits each, and where each value begins."""
    size = 1 + np.searchsorted([1 << 7 * k for k in range(1, 5)], values, side="right")
    place = np.cumsum(size) - size
    data = np.empty(int(size.sum()), np.uint8)
    for k in range(5):
        has = size > k
        data[place[has] + k] = (values[has] >> 7 * k & 127) | ((size[has] > k + 1) << 7)
    return data, place


def _attributes(fields: pa.Table) -> tuple[list[bytes], list[bytes]]:
    """The pairs of key and value of each row, and all values."""
    rows: list[list[bytes]] = [[] for _ in range(fields.num_rows)]
    values: list[bytes] = []
    for key, column in enumerate(fields.columns):
        known = column.combine_chunks().dictionary_encode()
        pairs = []
        for value in known.dictionary.to_pylist():
            is_missing = value is None or (isinstance(value, float) and math.isnan(value))
            pairs.append(b"" if is_missing else _varint(key) + _varint(len(values)))
            if not is_missing:
                values.append(b"\x22" + _sized(_value(value)))
        for row, index in zip(rows, known.indices.to_pylist(), strict=True):
            if index is not None:
                row.append(pairs[index])
    return [b"".join(row) for row in rows], values


def _value(value: Any) -> bytes:
    if isinstance(value, bool):
        return bytes((0x38, value))
    if isinstance(value, int):
        return b"\x28" + _varint(value) if value >= 0 else b"\x30" + _varint(-2 * value - 1)
    if isinstance(value, float):
        return b"\x19" + struct.pack("<d", value)
    return b"\x0a" + _sized(str(value).encode())


def _sized(data: bytes) -> bytes:
    return _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
