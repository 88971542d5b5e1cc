"""Polygons as Arrow record batches, for the formats that are written through Arrow."""

from __future__ import annotations

import errno
import importlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import pyarrow as pa

from geoseg.arrays import AnyArray
from geoseg.errors import OutputError
from geoseg.export.layer import Layer
from geoseg.export.wkb import polygon_wkb, wkb_offsets
from geoseg.polygons.batch import PolygonBatch

GEOMETRY = "geometry"

# Offsets in Arrow arrays have 31 bits, and memory should not depend on the size of the batches that come.
MOST_FEATURES = 65_536
MOST_BYTES = 64 << 20


def with_first(
    batches: Iterable[PolygonBatch], *, importing: str | None = None
) -> tuple[PolygonBatch, Iterator[PolygonBatch]]:
    """The first batch, which shows the columns, and all batches; without any, an empty one without columns.

    Args:
        batches: The batches.
        importing: A module to import while the first batch is made: pyogrio takes 0.25 s, most of it for pandas.
    """
    rest = iter(batches)
    nothing = np.zeros(1, dtype=np.int64)
    with ThreadPoolExecutor(1) as thread:
        if importing:
            thread.submit(importlib.import_module, importing)
        first = next(rest, PolygonBatch(np.empty(0, np.uint8), np.empty((0, 2)), nothing, nothing))
    return first, chain([first], rest)


def attribute_schema(batch: PolygonBatch, layer: Layer) -> pa.Schema:
    """Fields of a layer in their order, without the geometry."""
    fields = [pa.field("class_id", pa.int32()), pa.field("class_name", pa.string())]
    fields += [pa.field(name, pa.from_numpy_dtype(values.dtype)) for name, values in batch.columns.items()]
    if layer.source is not None:
        fields.append(pa.field("source", pa.string()))
    return pa.schema(fields)


def record(batch: PolygonBatch, layer: Layer, schema: pa.Schema, *more: pa.Array) -> pa.RecordBatch:
    """A batch as a record batch: the columns of `attribute_schema`, NaN as null, then ``more``."""
    columns = [number_array(batch.class_id.astype(np.int32)), text_array(layer.classes.names, batch.class_id)]
    columns += [number_array(values) for values in batch.columns.values()]
    if layer.source is not None:
        columns.append(text_array([layer.source], np.zeros(len(batch), dtype=np.uint8)))
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


def wkb_array(batch: PolygonBatch) -> pa.Array:
    """The geometries as WKB."""
    data, offsets = polygon_wkb(batch)
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.binary(), len(batch), buffers)


def portions(batch: PolygonBatch, *, features: int = MOST_FEATURES, size: int = MOST_BYTES) -> Iterator[PolygonBatch]:
    """A batch in slices of at most ``features`` polygons and ``size`` bytes of WKB; a larger polygon stands alone.

    Raises:
        OutputError: A polygon of more than 2 GiB.
    """
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
        yield batch_slice(batch, start, stop)
        start = stop


def batch_slice(batch: PolygonBatch, start: int, stop: int) -> PolygonBatch:
    """Polygons ``start`` to ``stop`` of a batch, as views."""
    columns = {name: values[start:stop] for name, values in batch.columns.items()}
    return PolygonBatch(batch.class_id[start:stop], batch.xy, batch.rings, batch.polygons[start : stop + 1], columns)


def check_whole(is_whole: bool) -> None:
    """Raise what a full disk raises where a file read back is not whole: GDAL does not report every failed write."""
    if not is_whole:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
