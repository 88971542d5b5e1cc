"""GeoParquet 1.1: WKB, a bounding box column, and polygons in Hilbert order so that readers can skip row groups."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyproj

from geoseg.arrays import AnyArray, FloatArray, IntArray
from geoseg.export.arrow import GEOMETRY, attribute_schema, number_array, portions, record, with_first, wkb_array
from geoseg.export.layer import Layer
from geoseg.export.wkb import polygon_bounds, wkb_offsets
from geoseg.files import writing
from geoseg.grid import Grid
from geoseg.polygons.batch import PolygonBatch

ROW_GROUP = 65_536
_ROW_GROUP_BYTES = 128 << 20

_BBOX = ("xmin", "ymin", "xmax", "ymax")
_BITS = 16  # of a Hilbert curve's side


def write_geoparquet(batches: Iterable[PolygonBatch], path: Path, layer: Layer, *, row_group: int = ROW_GROUP) -> int:
    """Write GeoParquet 1.1, zstd, sorted along a Hilbert curve over the map, ``row_group`` polygons at most together.

    Polygons wait in an Arrow file beside ``path``, as large as their WKB; in memory are a key, a size and a place for
    each (some 30 bytes) and one row group.

    Raises:
        OutputError: The file cannot be written.
    """
    import pyarrow.parquet as pq

    first, batches = with_first(batches)
    bbox = pa.struct([(name, pa.float64()) for name in _BBOX])
    schema = attribute_schema(first, layer)
    texts = [field.name for field in schema if pa.types.is_string(field.type)]
    schema = schema.append(pa.field(GEOMETRY, pa.binary())).append(pa.field("bbox", bbox))
    waiting = path.with_name(f"{path.name}.arrow")
    try:
        with writing(path, pa.ArrowException):
            with pa.OSFile(str(waiting), "wb") as file, pa.ipc.new_file(file, schema) as spool:
                order = _Order(layer.grid)
                for portion in (portion for batch in batches for portion in portions(batch)):
                    bounds = polygon_bounds(portion)
                    boxes = pa.StructArray.from_arrays([number_array(side) for side in bounds.T], fields=list(bbox))
                    rows = record(portion, layer, schema, wkb_array(portion), boxes)
                    others = 1 + 4 * 8 + sum(values.itemsize for values in portion.columns.values())
                    rows_order = order.add(bounds, np.diff(wkb_offsets(portion)) + others)
                    spool.write_batch(rows.take(number_array(rows_order)))
            schema = schema.with_metadata({"geo": json.dumps(_geo_metadata(layer.grid, order.extent()))})
            with (
                pa.memory_map(str(waiting)) as source,
                pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=["class_id", *texts]) as writer,
            ):
                for group in order.row_groups(pa.ipc.open_file(source), row_group):
                    writer.write_table(group)
    finally:
        waiting.unlink(missing_ok=True)
    return order.count


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


class _Order:
    """Order of the polygons of a file along a Hilbert curve, each batch of which is sorted by itself."""

    def __init__(self, grid: Grid) -> None:
        left, bottom, right, top = grid.bounds
        self._origin = np.array([left, bottom])
        self._cells = (1 << _BITS) / np.array([right - left, top - bottom])
        self._keys: list[AnyArray] = []
        self._sizes: list[IntArray] = []
        self._extents: list[FloatArray] = []
        self.count = 0

    def add(self, bounds: FloatArray, sizes: IntArray) -> IntArray:
        """Take note of a batch, given the bounds and bytes of its polygons; the order in which it is to be written."""
        keys = hilbert_keys((bounds[:, :2] + bounds[:, 2:]) / 2, self._origin, self._cells)
        order = np.argsort(keys, kind="stable")
        self._keys.append(keys[order])
        self._sizes.append(sizes[order])
        self._extents.append(np.concatenate([bounds[:, :2].min(axis=0), bounds[:, 2:].max(axis=0)]))
        self.count += len(keys)
        return order

    def extent(self) -> FloatArray | None:
        """Bounds of all polygons, if any."""
        if not self._extents:
            return None
        extents = np.array(self._extents)
        return np.concatenate([extents[:, :2].min(axis=0), extents[:, 2:].max(axis=0)])

    def row_groups(self, file: Any, most: int) -> Iterator[pa.Table]:
        """The polygons of the file of all batches, at most so many together."""
        batches = [file.get_batch(i) for i in range(file.num_record_batches)]  # mapped, not read
        if not batches:
            return
        lengths = [len(keys) for keys in self._keys]
        owner = np.repeat(np.arange(len(lengths)), lengths)
        row = np.concatenate([np.arange(length) for length in lengths])
        order = np.argsort(np.concatenate(self._keys), kind="stable")
        ends = np.cumsum(np.concatenate(self._sizes)[order])
        start = 0
        while start < self.count:
            before = ends[start - 1] if start else 0
            fitting = int(np.searchsorted(ends, before + _ROW_GROUP_BYTES, side="right"))
            stop = max(start + 1, min(fitting, start + most, self.count))
            chosen = order[start:stop]
            # Those of a batch lie one behind the other in it.
            by_owner = np.argsort(owner[chosen], kind="stable")
            owners, begin, counts = np.unique(owner[chosen][by_owner], return_index=True, return_counts=True)
            firsts = row[chosen[by_owner[begin]]].tolist()
            pieces = [batches[b].slice(i, n) for b, i, n in zip(owners, firsts, counts.tolist(), strict=True)]
            yield pa.Table.from_batches(pieces).take(number_array(np.argsort(by_owner)))
            start = stop


def hilbert_keys(xy: FloatArray, origin: FloatArray, cells: FloatArray) -> AnyArray:
    """Places of points (n, 2) on a Hilbert curve of 2¹⁶ × 2¹⁶ cells, (n,) uint32; those outside count to the nearest.

    ``origin`` is the corner of cell (0, 0), ``cells`` how many there are for each unit of x and y.

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
