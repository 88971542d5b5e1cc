"""A layer of polygons on its way to a file: what is known of it, and its batches as Arrow record batches with WKB."""

import errno
import importlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import pyarrow as pa

from geoseg.arrays import AnyArray, ByteArray, FloatArray, IntArray
from geoseg.classes import ClassTable
from geoseg.errors import OutputError
from geoseg.grid import Grid
from geoseg.polygons.batch import PolygonBatch
from geoseg.runtime.jit import helper, njit

GEOMETRY = "geometry"

# pyogrio holds Python's lock while it writes a batch; between two of them the threads that trace go on.
BATCH_FEATURES = 4096
_MOST_BYTES = 64 << 20  # offsets in Arrow arrays have 31 bits, and memory should not depend on the batches' size

_POLYGON = 3  # WKB's code of a polygon in two dimensions


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of polygons that came out of one class map.

    Attributes:
        name: Layer name, for formats that have one.
        grid: Grid of the class map: its CRS is the layer's, its pixels say which precision makes sense.
        classes: Names and colours of the ids.
        source: The scene that was mapped, or None if it is not known.
        more_texts: Further fields of text, with a value for each class.
    """

    name: str
    grid: Grid
    classes: ClassTable
    source: str | None = None
    more_texts: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def texts(self) -> dict[str, Sequence[str]]:
        """Fields of text that depend on the class, with a value for each."""
        return {"class_name": self.classes.names, **self.more_texts}

    @property
    def units(self) -> tuple[str, str]:
        """Units of the fields for areas and for lengths."""
        if self.grid.is_metric:
            return "m²", "m"
        unit = self.grid.area_unit[0]
        return unit, unit.removesuffix("²")

    @property
    def wkt(self) -> str | None:
        """The CRS as WKT, if any."""
        return None if self.grid.crs is None else self.grid.crs.to_wkt()

    def schema(self, batch: PolygonBatch) -> pa.Schema:
        """Fields in their order, without the geometry."""
        fields = [pa.field("class_id", pa.int32()), *(pa.field(name, pa.string()) for name in self.texts)]
        fields += [pa.field(name, pa.from_numpy_dtype(values.dtype)) for name, values in batch.columns.items()]
        return pa.schema([*fields, *([] if self.source is None else [pa.field("source", pa.string())])])

    def record(self, batch: PolygonBatch, schema: pa.Schema, *more: pa.Array) -> pa.RecordBatch:
        """A batch as a record batch: the fields of `schema`, NaN as null, then ``more``."""
        columns = [number_array(batch.class_id.astype(np.int32))]
        columns += [text_array(texts, batch.class_id) for texts in self.texts.values()]
        columns += [number_array(values) for values in batch.columns.values()]
        if self.source is not None:
            columns.append(text_array([self.source], np.zeros(len(batch), dtype=np.uint8)))
        return pa.RecordBatch.from_arrays([*columns, *more], schema=schema)


# `pyarrow.array` would do for both, but imports pandas, which takes 0.2 s.


def number_array(values: AnyArray) -> pa.Array:
    """Numbers as an Arrow array, NaN as null."""
    valid = None
    if values.dtype.kind == "f" and (missing := np.isnan(values)).any():
        valid = pa.py_buffer(np.packbits(~missing, bitorder="little"))
    data = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [valid, data])


def text_array(texts: Sequence[str], indices: AnyArray) -> pa.Array:
    """``texts[i]`` for each index, as an Arrow array."""
    encoded = [text.encode() for text in texts]
    sizes = np.array([len(text) for text in encoded])[indices]
    ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    data = b"".join([encoded[i] for i in indices.tolist()])
    return pa.StringArray.from_buffers(len(indices), pa.py_buffer(ends), pa.py_buffer(data))


# --- batches


def with_first(
    batches: Iterable[PolygonBatch], *, importing: str | None = None
) -> tuple[PolygonBatch, Iterator[PolygonBatch]]:
    """The first batch, which shows the columns, and all batches; without any, an empty one without columns.

    ``importing`` is a module to import while the first batch is made: pyogrio takes 0.25 s, most of it for pandas.
    """
    rest = iter(batches)
    nothing = np.zeros(1, dtype=np.int64)
    with ThreadPoolExecutor(1) as thread:
        if importing:
            thread.submit(importlib.import_module, importing)
        first = next(rest, PolygonBatch(np.empty(0, np.uint8), np.empty((0, 2)), nothing, nothing))
    return first, chain([first], rest)


def portions(
    batches: Iterable[PolygonBatch], *, features: int = BATCH_FEATURES, size: int = _MOST_BYTES
) -> Iterator[PolygonBatch]:
    """Batches of at most ``features`` polygons and ``size`` bytes of WKB; a larger polygon stands alone.

    An `OutputError` for a polygon of more than 2 GiB.
    """
    for batch in batches:
        offsets = wkb_offsets(batch)
        start = 0
        while start < len(batch):
            fitting = int(np.searchsorted(offsets, offsets[start] + size, side="right")) - 1
            stop = max(start + 1, min(fitting, start + features, len(batch)))
            if offsets[stop] - offsets[start] > np.iinfo(np.int32).max:
                raise OutputError(
                    f"a polygon of class {batch.class_id[start]} has more than 2 GiB of vertices",
                    hint="simplify it with --simplify or --min-area",
                )
            yield part_of(batch, start, stop)
            start = stop


def part_of(batch: PolygonBatch, start: int, stop: int) -> PolygonBatch:
    """Polygons ``start`` to ``stop`` of a batch."""
    first, last = batch.polygons[[start, stop]]
    begin, end = batch.rings[[first, last]]
    columns = {name: values[start:stop] for name, values in batch.columns.items()}
    rings, polygons = batch.rings[first : last + 1] - begin, batch.polygons[start : stop + 1] - first
    return PolygonBatch(batch.class_id[start:stop], batch.xy[begin:end], rings, polygons, columns)


def check_whole(is_whole: bool) -> None:
    """Raise what a full disk raises where a file read back is not whole: GDAL does not report every failed write."""
    if not is_whole:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# --- geometries


def wkb_array(batch: PolygonBatch) -> pa.Array:
    """The polygons as little-endian WKB, made in one pass and without a Python object for each."""
    offsets = wkb_offsets(batch)
    out = np.empty(offsets[-1], dtype=np.uint8)
    xy = np.ascontiguousarray(batch.xy, dtype="<f8").view(np.uint8).reshape(-1)
    _fill(out, offsets, xy, batch.rings, batch.polygons)
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(out)]
    return pa.Array.from_buffers(pa.binary(), len(batch), buffers)


def wkb_offsets(batch: PolygonBatch) -> IntArray:
    """Where each polygon begins in its batch's WKB, (n + 1,) int64."""
    # Byte order, type and number of rings; a number of points for each ring; 16 bytes for each point.
    before = batch.rings[batch.polygons] * 16 + batch.polygons * 4
    return np.asarray(before + np.arange(len(batch) + 1) * 9, dtype=np.int64)


def polygon_bounds(batch: PolygonBatch) -> FloatArray:
    """(left, bottom, right, top) of each polygon, (n, 4) float64."""
    columns = [np.ascontiguousarray(axis) for axis in batch.xy.T]
    starts = batch.rings[batch.polygons[:-1]]
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
