"""Batches of polygons → well-known binary and bounds, in one pass and without a Python object for each polygon."""

from __future__ import annotations

import numpy as np

from geoseg.arrays import ByteArray, FloatArray, IntArray
from geoseg.polygons.batch import PolygonBatch
from geoseg.runtime.jit import helper, njit

_POLYGON = 3  # type code of a polygon in two dimensions


def polygon_wkb(batch: PolygonBatch) -> tuple[ByteArray, IntArray]:
    """Little-endian WKB of all polygons one after the other (uint8), and where each begins in it, (n + 1,) int64."""
    offsets = wkb_offsets(batch)
    out = np.empty(offsets[-1], dtype=np.uint8)
    xy = np.ascontiguousarray(batch.xy, dtype="<f8").view(np.uint8).reshape(-1)
    _fill(out, offsets, xy, batch.rings, batch.polygons)
    return out, offsets


def wkb_offsets(batch: PolygonBatch) -> IntArray:
    """Where each polygon begins in `polygon_wkb`, (n + 1,) int64, without writing it."""
    # Byte order, type and number of rings; a number of points for each ring; 16 bytes for each point.
    before = batch.rings[batch.polygons] * 16 + batch.polygons * 4
    return np.asarray(before - before[0] + np.arange(len(batch) + 1) * 9, dtype=np.int64)


def polygon_bounds(batch: PolygonBatch) -> FloatArray:
    """(left, bottom, right, top) of each polygon, (n, 4) float64."""
    begin = batch.rings[batch.polygons]
    columns = [np.ascontiguousarray(batch.xy[begin[0] : begin[-1], axis]) for axis in (0, 1)]
    starts = begin[:-1] - begin[0]
    return np.column_stack([f.reduceat(column, starts) for f in (np.minimum, np.maximum) for column in columns])


@njit
def _fill(out: ByteArray, offsets: IntArray, xy: ByteArray, rings: IntArray, polygons: IntArray) -> None:
    """Write each polygon's bytes at its offset; ``xy`` are the bytes of the coordinates."""
    for i in range(len(polygons) - 1):
        at = offsets[i]
        out[at] = 1  # little-endian
        _put_uint32(out, at + 1, _POLYGON)
        _put_uint32(out, at + 5, polygons[i + 1] - polygons[i])
        at += 9
        for r in range(polygons[i], polygons[i + 1]):
            start, stop = rings[r], rings[r + 1]
            _put_uint32(out, at, stop - start)
            at += 4
            size = 16 * (stop - start)
            to = out[at : at + size]  # from 0 on, no index is checked for being negative
            of = xy[16 * start : 16 * stop]
            for k in range(size):
                to[k] = of[k]
            at += size


@helper
def _put_uint32(out: ByteArray, at: int, value: int) -> None:
    """Write a number as four bytes, the lowest first."""
    for k in range(4):
        out[at + k] = (value >> (8 * k)) & 255
