"""GeoParquet 1.1: WKB, a bounding box column, and polygons in Hilbert order so that readers can skip row groups."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyproj

from geoseg.arrays import AnyArray, ByteArray, FloatArray, IntArray
from geoseg.export.arrow import GEOMETRY, attribute_schema, number_array, portions, record, with_first
from geoseg.export.layer import Layer
from geoseg.export.wkb import copy_bytes, polygon_bounds, polygon_wkb
from geoseg.files import writing
from geoseg.grid import Grid
from geoseg.polygons.batch import PolygonBatch
from geoseg.runtime.jit import njit

ROW_GROUP = 65_536
_ROW_GROUP_BYTES = 128 << 20

_BBOX = ("xmin", "ymin", "xmax", "ymax")
_BITS = 16  # of a Hilbert curve's side


def write_geoparquet(batches: Iterable[PolygonBatch], path: Path, layer: Layer, *, row_group: int = ROW_GROUP) -> int:
    """Write GeoParquet 1.1, zstd, sorted along a Hilbert curve over the map.

    Polygons wait in an unnamed temporary file in the folder of ``path``, as large as their WKB; in memory are a key,
    a size and a place for each (some 30 bytes) and one row group.

    Args:
        batches: The polygons; all batches have the columns of the first.
        path: Scratch path of the file.
        layer: Name, grid, classes and source. The grid's bounds are the extent of the Hilbert curve.
        row_group: Most polygons in a row group.

    Returns:
        Number of features.

    Raises:
        OutputError: The file cannot be written.
    """
    import pyarrow.parquet as pq

    first, batches = with_first(batches)
    bbox = pa.struct([(name, pa.float64()) for name in _BBOX])
    schema = attribute_schema(first, layer)
    texts = [field.name for field in schema if pa.types.is_string(field.type)]
    schema = schema.append(pa.field(GEOMETRY, pa.binary())).append(pa.field("bbox", bbox))
    with writing(path, pa.ArrowException):
        spool_file = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115
    with spool_file:
        spool = _Spool(spool_file, path, first, layer.grid)
        for batch in batches:
            for portion in portions(batch):
                spool.add(portion)
        schema = schema.with_metadata({"geo": json.dumps(_geo_metadata(layer.grid, spool.bounds))})
        with (
            writing(path, pa.ArrowException),
            pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=["class_id", *texts]) as writer,
        ):
            for attributes, wkb, bounds in spool.row_groups(row_group):
                boxes = pa.StructArray.from_arrays([number_array(side) for side in bounds.T], fields=list(bbox))
                writer.write_batch(record(attributes, layer, schema, wkb, boxes))
    return spool.count


def _geo_metadata(grid: Grid, bounds: FloatArray | None) -> dict[str, Any]:
    column: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": ["Polygon"],
        "crs": None if grid.crs is None else _projjson(grid.crs),
        "orientation": "counterclockwise",
        "covering": {"bbox": {name: ["bbox", name] for name in _BBOX}},
    }
    if bounds is not None:
        column["bbox"] = bounds.tolist()
    return {"version": "1.1.0", "primary_column": GEOMETRY, "columns": {GEOMETRY: column}}


def _projjson(crs: Any) -> dict[str, Any]:
    document = pyproj.CRS.from_user_input(crs).to_json_dict()
    # Members of an ensemble (of WGS 84) are added by the year: older PROJ does not know the ids of the latest.
    for part in (document, document.get("base_crs", {})):
        for member in part.get("datum_ensemble", {}).get("members", ()):
            member.pop("id", None)
    return document


class _Spool:
    """Polygons in a file: what a row group needs of each as one record, and the keys to sort them by in memory."""

    def __init__(self, file: IO[bytes], path: Path, first: PolygonBatch, grid: Grid) -> None:
        self._file, self._path = file, path
        self._columns = {name: values.dtype for name, values in first.columns.items()}
        fields = [("class_id", np.uint8), ("bounds", np.float64, 4)]
        self._head = np.dtype([*fields, *((f"column {name}", dtype) for name, dtype in self._columns.items())])
        left, bottom, right, top = grid.bounds
        self._origin = np.array([left, bottom])
        self._cells = (1 << _BITS) / np.array([right - left, top - bottom])
        self._keys: list[AnyArray] = []
        self._sizes: list[IntArray] = []
        self.bounds: FloatArray | None = None
        self.count = 0

    def add(self, batch: PolygonBatch) -> None:
        """Append a batch, sorted by key: what lies near each other is read in one piece."""
        bounds = polygon_bounds(batch)
        heads = np.empty(len(batch), self._head)
        heads["class_id"], heads["bounds"] = batch.class_id, bounds
        for name in self._columns:
            heads[f"column {name}"] = batch.columns[name]
        records, offsets = polygon_wkb(batch, heads.view(np.uint8).reshape(len(batch), -1))
        centres = (bounds[:, :2] + bounds[:, 2:]) / 2
        keys = hilbert_keys(centres, self._origin, self._cells)
        order = np.argsort(keys, kind="stable")
        sizes = np.diff(offsets)[order]
        data = _gather(records, offsets[:-1][order], sizes)
        with writing(self._path):
            self._file.write(data.data)
        self._keys.append(keys[order])
        self._sizes.append(sizes)
        extremes = np.concatenate([bounds[:, :2].min(axis=0), bounds[:, 2:].max(axis=0)])
        if self.bounds is not None:
            lows, highs = np.minimum(self.bounds, extremes)[:2], np.maximum(self.bounds, extremes)[2:]
            extremes = np.concatenate([lows, highs])
        self.bounds = extremes
        self.count += len(batch)

    def row_groups(self, most: int) -> Iterator[tuple[PolygonBatch, pa.Array, FloatArray]]:
        """Attributes (a batch without vertices), WKB and bounds of one row group after the other, in Hilbert order."""
        if self.count == 0:
            return
        order = np.argsort(np.concatenate(self._keys), kind="stable")
        sizes = np.concatenate(self._sizes)
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        sorted_ends = np.cumsum(sizes[order])
        start = 0
        while start < self.count:
            before = sorted_ends[start - 1] if start else 0
            fitting = int(np.searchsorted(sorted_ends, before + _ROW_GROUP_BYTES, side="right"))
            stop = max(start + 1, min(fitting, start + most, self.count))
            chosen = order[start:stop]
            yield self._read(offsets[chosen], sizes[chosen])
            start = stop

    def _read(self, starts: IntArray, sizes: IntArray) -> tuple[PolygonBatch, pa.Array, FloatArray]:
        data, places = self._read_records(starts, sizes)
        width = self._head.itemsize
        heads = _gather(data, places, np.full(len(places), width)).view(self._head)
        wkb = _gather(data, places + width, sizes - width)
        ends = np.concatenate([[0], np.cumsum(sizes - width)]).astype(np.int32)
        array = pa.Array.from_buffers(pa.binary(), len(sizes), [None, pa.py_buffer(ends), pa.py_buffer(wkb)])
        columns = {name: np.ascontiguousarray(heads[f"column {name}"]) for name in self._columns}
        no_rings = np.zeros(len(sizes) + 1, dtype=np.int64)
        batch = PolygonBatch(heads["class_id"].copy(), np.empty((0, 2)), no_rings[:1], no_rings, columns)
        return batch, array, heads["bounds"]

    def _read_records(self, starts: IntArray, sizes: IntArray) -> tuple[ByteArray, IntArray]:
        """Records that lie anywhere in the file, in the order of the file, and where each asked for begins in them."""
        by_place = np.argsort(starts, kind="stable")
        ends = starts[by_place] + sizes[by_place]
        breaks = np.flatnonzero(starts[by_place][1:] != ends[:-1]) + 1  # records that do not follow the one before
        firsts, lasts = np.concatenate([[0], breaks]), np.concatenate([breaks, [len(starts)]]) - 1
        pieces = []
        for first, last in zip(firsts, lasts, strict=True):
            begin = int(starts[by_place[first]])
            self._file.seek(begin)
            pieces.append(self._file.read(int(ends[last]) - begin))
        places = np.empty(len(starts), dtype=np.int64)
        places[by_place] = np.cumsum(sizes[by_place]) - sizes[by_place]
        return np.frombuffer(b"".join(pieces), dtype=np.uint8), places


@njit
def _gather(data: ByteArray, starts: IntArray, sizes: IntArray) -> ByteArray:
    """Pieces of ``data``, one after the other."""
    out = np.empty(np.sum(sizes), dtype=np.uint8)
    at = 0
    for i in range(len(starts)):
        at = copy_bytes(out, at, data, starts[i], sizes[i])
    return out


def hilbert_keys(xy: FloatArray, origin: FloatArray, cells: FloatArray) -> AnyArray:
    """Places of points on a Hilbert curve of 2¹⁶ × 2¹⁶ cells, (n,) uint32.

    Args:
        xy: Points, (n, 2); those outside count to the nearest cell.
        origin: Corner of cell (0, 0).
        cells: Cells for each unit of x and y.

    References:
        The curve of Hilbert (1891), one bit of x and y after the other with the quadrant turned in place.
    """
    x, y = np.clip((xy - origin) * cells, 0, (1 << _BITS) - 1).astype(np.int64).T
    keys = np.zeros(len(xy), dtype=np.uint32)
    for bit in range(_BITS - 1, -1, -1):
        east, north = x >> bit & 1, y >> bit & 1
        keys = keys << np.uint32(2) | (3 * east ^ north).astype(np.uint32)
        turned = north == 0  # the lower quadrants
        flip = -(turned & (east == 1)).astype(np.int64)
        x, y = np.where(turned, y ^ flip, x), np.where(turned, x ^ flip, y)
    return keys
