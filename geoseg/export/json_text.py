"""Batches of polygons → the text of GeoJSON features: a numba kernel that writes bytes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from geoseg._jit import njit
from geoseg.export.wkb import copy_bytes
from geoseg.polygons.batch import FloatArray, IntArray

ByteArray = npt.NDArray[np.uint8]

SINGLE, DOUBLE, WHOLE = range(3)
"""Kinds of numbers: float32 with the fewest digits that give it back, float64 with twelve digits, integers."""

_DOUBLE_DIGITS = 12
_TINY = 1e-290  # below it, float64 runs out of powers of ten, and nothing is measured; written as 0
_NUMBER_BYTES = 26  # a number of any kind is shorter
_POWERS = 10.0 ** np.arange(23)  # the powers of ten that float64 holds exactly
_WHOLE_POWERS = 10 ** np.arange(19)
_ZERO, _MINUS, _POINT, _COMMA, _OPEN, _CLOSE, _EXPONENT = (np.uint8(ord(c)) for c in "0-.,[]e")
_NULL = np.frombuffer(b"null", np.uint8)


class Properties(NamedTuple):
    """The attributes of features as the pieces their text is made of.

    Attributes:
        class_id: (n,) uint8.
        heads: For each class, the text of a feature up to its first number, (bytes,).
        head_offsets: Where each class's begins in ``heads``, (classes + 1,).
        keys: Text in front of each number.
        key_offsets: Where each column's begins in ``keys``, (columns + 1,).
        numbers: (n, columns) float64.
        kinds: `SINGLE`, `DOUBLE` or `WHOLE` for each column, (columns,) uint8.
        tail: Text from the last number to the geometry.
    """

    class_id: ByteArray
    heads: ByteArray
    head_offsets: IntArray
    keys: ByteArray
    key_offsets: IntArray
    numbers: FloatArray
    kinds: ByteArray
    tail: ByteArray


class Geometries(NamedTuple):
    """Polygons and multipolygons in whole multiples of the last decimal.

    Attributes:
        xy: (v, 2) int64.
        rings: Where each ring begins in ``xy``.
        polygons: Where each polygon begins in ``rings``.
        features: Where each feature begins in ``polygons``; one of several polygons is a MultiPolygon.
    """

    xy: IntArray
    rings: IntArray
    polygons: IntArray
    features: IntArray


_POLYGON_TEXT = np.frombuffer(b'"geometry":{"type":"Polygon","coordinates":', np.uint8)
_MULTI_TEXT = np.frombuffer(b'"geometry":{"type":"MultiPolygon","coordinates":[', np.uint8)
_END_TEXT = np.frombuffer(b"}}", np.uint8)


def features_text(
    properties: Properties, geometries: Geometries, *, decimals: int, separator: bytes, first: int = 0
) -> ByteArray:
    """The text of features, each followed by the separator.

    Args:
        properties: Attributes of a batch.
        geometries: Geometries of its rows from ``first`` on.
        decimals: Digits behind the point that ``xy`` includes; zeros at the end are not written.
        separator: What stands behind each feature.
        first: Row of the first geometry.
    """
    count, columns = len(geometries.features) - 1, len(properties.kinds)
    xy = geometries.xy
    digits = len(str(int(np.abs(xy).max(initial=1)) // 10**decimals)) + 2 + decimals  # sign and point
    each = int(np.diff(properties.head_offsets).max()) + len(properties.keys) + columns * _NUMBER_BYTES
    each += len(properties.tail) + len(_MULTI_TEXT) + len(_END_TEXT) + len(separator) + 4
    room = len(xy) * (2 * digits + 4) + 4 * len(geometries.rings) + 4 * len(geometries.polygons) + count * each
    out = np.empty(room, np.uint8)
    ends = np.frombuffer(separator, np.uint8)
    return out[: _write_features(out, properties, geometries, decimals, ends, first)]


@njit
def _write_features(
    out: ByteArray, properties: Properties, geometries: Geometries, decimals: int, separator: ByteArray, first: int
) -> int:
    """Fill ``out`` and give the number of bytes."""
    at = 0
    features = geometries.features
    for f in range(len(features) - 1):
        row = first + f
        head = properties.class_id[row]
        begin, end = properties.head_offsets[head], properties.head_offsets[head + 1]
        at = copy_bytes(out, at, properties.heads, begin, end - begin)
        for i in range(len(properties.kinds)):
            begin, end = properties.key_offsets[i], properties.key_offsets[i + 1]
            at = copy_bytes(out, at, properties.keys, begin, end - begin)
            at = _put_number(out, at, properties.numbers[row, i], properties.kinds[i])
        at = copy_bytes(out, at, properties.tail, 0, len(properties.tail))
        several = features[f + 1] - features[f] > 1
        kind = _MULTI_TEXT if several else _POLYGON_TEXT
        at = copy_bytes(out, at, kind, 0, len(kind))
        for p in range(features[f], features[f + 1]):
            if p > features[f]:
                out[at] = _COMMA
                at += 1
            at = _put_polygon(out, at, geometries, p, decimals)
        if several:
            out[at] = _CLOSE
            at += 1
        at = copy_bytes(out, at, _END_TEXT, 0, len(_END_TEXT))
        at = copy_bytes(out, at, separator, 0, len(separator))
    return at


@njit
def _put_polygon(out: ByteArray, at: int, geometries: Geometries, polygon: int, decimals: int) -> int:
    """Write the rings of a polygon and give the position behind them."""
    xy, rings, polygons = geometries.xy, geometries.rings, geometries.polygons
    out[at] = _OPEN
    at += 1
    for r in range(polygons[polygon], polygons[polygon + 1]):
        if r > polygons[polygon]:
            out[at] = _COMMA
            at += 1
        out[at] = _OPEN
        at += 1
        for v in range(rings[r], rings[r + 1]):
            if v > rings[r]:
                out[at] = _COMMA
                at += 1
            out[at] = _OPEN
            at = _put_fixed(out, at + 1, xy[v, 0], decimals)
            out[at] = _COMMA
            at = _put_fixed(out, at + 1, xy[v, 1], decimals)
            out[at] = _CLOSE
            at += 1
        out[at] = _CLOSE
        at += 1
    out[at] = _CLOSE
    return at + 1


@njit
def _put_whole(out: ByteArray, at: int, value: int) -> int:
    """Write an integer and give the position behind it."""
    if value < 0:
        out[at] = _MINUS
        at, value = at + 1, -value
    size = 1
    while size < 19 and value >= _WHOLE_POWERS[size]:
        size += 1
    for i in range(size - 1, -1, -1):
        out[at + i] = _ZERO + value % 10
        value //= 10
    return at + size


@njit
def _put_fixed(out: ByteArray, at: int, value: int, decimals: int) -> int:
    """Write value · 10^−decimals exactly, without zeros at its end, and give the position behind it."""
    if value < 0:
        out[at] = _MINUS
        at, value = at + 1, -value
    whole = value // _WHOLE_POWERS[decimals]
    fraction = value - whole * _WHOLE_POWERS[decimals]
    at = _put_whole(out, at, whole)
    if fraction == 0:
        return at
    while fraction % 10 == 0:
        fraction //= 10
        decimals -= 1
    out[at] = _POINT
    for i in range(decimals, 0, -1):
        out[at + i] = _ZERO + fraction % 10
        fraction //= 10
    return at + 1 + decimals


@njit
def _put_number(out: ByteArray, at: int, value: float, kind: int) -> int:
    """Write a number of one of the kinds, ``null`` for one that is not finite; give the position behind it."""
    if not np.isfinite(value):
        return copy_bytes(out, at, _NULL, 0, 4)
    if kind == WHOLE:
        return _put_whole(out, at, int(value))
    if value < 0:
        out[at] = _MINUS
        at, value = at + 1, -value
    if value < _TINY:
        value = 0.0
    if value < 1e18 and (value >= 1e11 or value == np.rint(value)):
        at = _put_whole(out, at, int(np.rint(value)))
        out[at], out[at + 1] = _POINT, _ZERO  # without it GDAL would take a column of such numbers for integers
        return at + 2
    exponent = int(np.floor(np.log10(value)))
    if kind == DOUBLE:
        decimals = _DOUBLE_DIGITS - 1 - exponent
        scaled = np.rint(_scaled(value, decimals))
    else:
        for digits in range(6, 10):
            decimals = digits - 1 - exponent
            scaled = np.rint(_scaled(value, decimals))
            if np.float32(_scaled(scaled, -decimals)) == np.float32(value):
                break
    if 0 <= decimals <= 18:
        return _put_fixed(out, at, int(scaled), decimals)
    # Digits and an exponent: 123e-30.
    at = _put_whole(out, at, int(scaled))
    out[at] = _EXPONENT
    return _put_whole(out, at + 1, -decimals)


@njit
def _scaled(value: float, decimals: int) -> float:
    """value · 10^decimals, rounded once as long as float64 has that power of ten."""
    if decimals < 0:
        return float(value / _POWERS[-decimals] if decimals >= -22 else value / 10.0**-decimals)
    return float(value * _POWERS[decimals] if decimals <= 22 else value * _POWERS[22] * 10.0 ** (decimals - 22))
