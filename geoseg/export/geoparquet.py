"""GeoParquet 1.1: WKB, a bounding box column, and polygons in Hilbert order so that readers can skip row groups."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyproj

from geoseg.arrays import AnyArray, FloatArray, IntArray
from geoseg.export.layer import (
    GEOMETRY,
    Layer,
    number_array,
    polygon_bounds,
    portions,
    with_first,
    wkb_array,
    wkb_offsets,
)
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
    """
    import pyarrow.parquet as pq

    first, batches = with_first(batches)
    bbox = pa.struct([(name, pa.float64()) for name in _BBOX])
    schema = layer.schema(first)
    texts = [field.name for field in schema if pa.types.is_string(field.type)]
    schema = schema.append(pa.field(GEOMETRY, pa.binary())).append(pa.field("bbox", bbox))
    keys: list[AnyArray] = []  # of each batch, sorted, as are its polygons
    sizes: list[IntArray] = []
    extents: list[FloatArray] = []
    waiting = path.with_name(f"{path.name}.arrow")
    try:
        with writing(path, pa.ArrowException):
            with pa.OSFile(str(waiting), "wb") as file, pa.ipc.new_file(file, schema) as spool:
                for portion in portions(batches, features=ROW_GROUP):
                    bounds = polygon_bounds(portion)
                    boxes = pa.StructArray.from_arrays([number_array(side) for side in bounds.T], fields=list(bbox))
                    rows = layer.record(portion, schema, wkb_array(portion), boxes)
                    others = 1 + 4 * 8 + sum(values.itemsize for values in portion.columns.values())
                    found = hilbert_keys((bounds[:, :2] + bounds[:, 2:]) / 2, layer.grid)
                    order = np.argsort(found, kind="stable")
                    keys.append(found[order])
                    sizes.append((np.diff(wkb_offsets(portion)) + others)[order])
                    extents.append(_extent(bounds))
                    spool.write_batch(rows.take(number_array(order)))
            schema = schema.with_metadata({"geo": json.dumps(_geo_metadata(layer.grid, extents))})
            with (
                pa.memory_map(str(waiting)) as source,
                pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=["class_id", *texts]) as writer,
            ):
                for group in _row_groups(pa.ipc.open_file(source), keys, sizes, row_group):
                    writer.write_table(group)
    finally:
        waiting.unlink(missing_ok=True)
    return sum(map(len, keys))


def _row_groups(file: Any, keys: list[AnyArray], sizes: list[IntArray], most: int) -> Iterator[pa.Table]:
    """The polygons of all batches of a file in the order of their keys, at most so many together."""
    batches = [file.get_batch(i) for i in range(file.num_record_batches)]  # mapped, not read
    if not batches:
        return
    lengths = [len(batch) for batch in batches]
    owner = np.repeat(np.arange(len(lengths)), lengths)
    row = np.concatenate([np.arange(length) for length in lengths])
    order = np.argsort(np.concatenate(keys), kind="stable")
    ends = np.cumsum(np.concatenate(sizes)[order])
    start = 0
    while start < len(order):
        before = ends[start - 1] if start else 0
        fitting = int(np.searchsorted(ends, before + _ROW_GROUP_BYTES, side="right"))
        stop = max(start + 1, min(fitting, start + most, len(order)))
        chosen = order[start:stop]
        # Those of a batch lie one behind the other in it.
        by_owner = np.argsort(owner[chosen], kind="stable")
        owners, begin, counts = np.unique(owner[chosen][by_owner], return_index=True, return_counts=True)
        firsts = row[chosen[by_owner[begin]]].tolist()
        pieces = [batches[b].slice(i, n) for b, i, n in zip(owners, firsts, counts.tolist(), strict=True)]
        yield pa.Table.from_batches(pieces).take(number_array(np.argsort(by_owner)))
        start = stop


def _extent(bounds: FloatArray) -> FloatArray:
    """Bounds of all of (n, 4) bounds."""
    return np.concatenate([bounds[:, :2].min(axis=0), bounds[:, 2:].max(axis=0)])


def _geo_metadata(grid: Grid, extents: list[FloatArray]) -> dict[str, Any]:
    column: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": ["Polygon"],
        "crs": None if grid.crs is None else _projjson(grid.crs),
        "orientation": "counterclockwise",
        "covering": {"bbox": {name: ["bbox", name] for name in _BBOX}},
    }
    if extents:
        column["bbox"] = _extent(np.array(extents)).tolist()
    return {"version": "1.1.0", "primary_column": GEOMETRY, "columns": {GEOMETRY: column}}


def _projjson(crs: Any) -> dict[str, Any]:
    document = pyproj.CRS.from_user_input(crs).to_json_dict()
    # Members of an ensemble (of WGS 84) are added by the year: older PROJ does not know the ids of the latest.
    for part in (document, document.get("base_crs", {})):
        for member in part.get("datum_ensemble", {}).get("members", ()):
            member.pop("id", None)
    return document


def hilbert_keys(xy: FloatArray, grid: Grid) -> AnyArray:
    """Places of points (n, 2) on a Hilbert curve of 2¹⁶ × 2¹⁶ cells over a map, (n,) uint32; outside, of the nearest.

    References:
        The curve of Hilbert (1891), one bit of x and y after the other with the quadrant turned in place.
    """
    left, bottom, right, top = grid.bounds
    cells = (1 << _BITS) / np.array([right - left, top - bottom])
    x, y = np.clip((xy - [left, bottom]) * cells, 0, (1 << _BITS) - 1).astype(np.int64).T
    keys = np.zeros(len(xy), dtype=np.uint32)
    for bit in range(_BITS - 1, -1, -1):
        east, north = x >> bit & 1, y >> bit & 1
        keys = keys << np.uint32(2) | (3 * east ^ north).astype(np.uint32)
        turned = north == 0  # the lower quadrants
        flip = -(turned & (east == 1)).astype(np.int64)
        x, y = np.where(turned, y ^ flip, x), np.where(turned, x ^ flip, y)
    return keys
