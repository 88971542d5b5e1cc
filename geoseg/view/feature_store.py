"""Features as the viewer keeps them in the user's cache: once brought to Web Mercator and indexed, then read by tile.

FlatGeobuf holds a spatial index, so a tile reads its own features only. Making vector tiles of all zoom levels instead
took GDAL twenty times as long, and them as much room as the features.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyogrio
import pyproj
import shapely

from geoseg.arrays import FloatArray, Geometries
from geoseg.files import atomic_output, make_folder
from geoseg.scene.vector_files import VectorLayer, is_parquet
from geoseg.view.place import WORLD_M, Bounds, Plane, tile_bounds
from geoseg.view.vector_tiles import BUFFER, EXTENT, encode_tile

CLASS_FIELDS = ("class_name", "class", "label", "category", "type", "name")
"""Fields that may hold the names of classes, the likeliest first."""

MOST_IN_TILE = 8192  # features that a tile shows at most
MOST_LARGE = 2048  # features that are shown, the largest ones, where all would be too many
MOST_VALUES = 64  # different values up to which a field gives the features their colours

_BATCH = 8192
_KEPT_BYTES = 4 << 30  # room of all stores; those not used for longest go

_ABANDONED_S = 24 * 3600

_MOST_VERTICES = 2000
"""Features with more are cut, so that a tile does not read the whole of a region that covers the map."""

_CELL = "geoseg_cell"  # field of the map tile that a piece was cut to, see `_cell_number`; 0 of whole features

_CACHE_HINT = "set XDG_CACHE_HOME to a folder that can be written"


@dataclass(frozen=True, slots=True)
class TiledLayer:
    """A layer of features on the page's map; its store may have to be made."""

    layer: VectorLayer  # the layer
    plane: Plane | None  # where it lies if it has no place on Earth; None if it has one
    bounds: Bounds | None  # longitudes and latitudes; None if it has no features
    zooms: tuple[int, int]  # lowest and highest zoom level
    full_zoom: int  # the zoom level from which on all features are shown; below it the largest ones
    store: Path  # the file that tiles are read from: a PMTiles file, or the main file of a store, ending in ``.json``
    # ``#rrggbb`` of each class in the layer's QGIS style, by its label and by its value
    colors: dict[str, str] = field(default_factory=dict)

    @property
    def is_made(self) -> bool:
        """Whether tiles can be read."""
        return self.store.exists()

    @property
    def is_partial(self) -> bool:
        """Whether below the full zoom level some features are left out."""
        return self.layer.features > MOST_LARGE

    @property
    def class_field(self) -> str | None:
        """The field that holds the names of classes, if any."""
        by_name = {field.lower(): field for field in self.layer.fields}
        return next((by_name[name] for name in CLASS_FIELDS if name in by_name), None)

    def make(self, progress: Callable[[int], None]) -> None:
        """Make the store; ``progress`` gets the number of features that have been read since the last call.

        An `OutputError` if the cache cannot be written.
        """
        from geoseg.export.gdal import WKB_FIELD, write_records  # which loads numba

        make_folder(self.store.parent, hint=_CACHE_HINT)
        _make_room(self.store.parent)
        values: set[str] = set()
        class_field = self.class_field
        with atomic_output(self.store) as scratch, _opened(self.layer) as (schema, read):
            large = _Largest(tolerance=WORLD_M / 2**self.full_zoom / 512)
            place = _placing(self.layer, self.plane)
            fields = pa.schema([*schema][:-1])
            written = fields.append(pa.field(_CELL, pa.int64())).append(WKB_FIELD)

            def records() -> Iterator[pa.RecordBatch]:
                for batch in read:
                    wkb = batch.column(batch.num_columns - 1).to_numpy(zero_copy_only=False)
                    shapes = place(shapely.force_2d(shapely.from_wkb(wkb)))
                    rows = np.flatnonzero(np.isfinite(shapely.bounds(shapes)).all(axis=1))  # of nothing they are NaN
                    shapes, kept = shapes[rows], batch.select(fields.names).take(pa.array(rows))
                    large.add(shapes, kept)
                    if class_field is not None and len(values) <= MOST_VALUES:
                        values.update(str(v) for v in kept.column(class_field).unique().to_pylist() if v is not None)
                    pieces, of, cells = _cut(shapes, self.full_zoom)
                    columns = kept.take(pa.array(of)).columns
                    yield pa.RecordBatch.from_arrays([*columns, pa.array(cells), _wkb(pieces)], schema=written)
                    progress(len(batch))

            for path, batches in (
                (_features(scratch), records()),
                (_features(scratch, all_of=False), large.batches(written)),
            ):
                options = {"driver": "FlatGeobuf", "layer": self.layer.name, "crs": "EPSG:3857"}
                write_records(batches, written, path, geometry_type="Unknown", is_exact=False, **options)
            known = sorted(values) if len(values) <= MOST_VALUES else []
            scratch.write_text(json.dumps({"values": known}), "utf-8")

    def values(self) -> list[str]:
        """The values of the class field, sorted; none if they are too many. The store counts as used."""
        os.utime(self.store)
        return list(json.loads(self.store.read_text("utf-8"))["values"])

    def tile(self, z: int, x: int, y: int) -> tuple[bytes, bool]:
        """A tile of the store, b"" where there are no features, and whether some were left out as too many."""
        bounds = left, bottom, right, top = tile_bounds(z, x, y)
        edge = (right - left) * BUFFER / EXTENT
        near = left - edge, bottom - edge, right + edge, top + edge
        path = _features(self.store, all_of=z >= self.full_zoom)
        with pyogrio.open_arrow(path, bbox=near, batch_size=MOST_IN_TILE) as (info, stream):
            batch = next(iter(pa.RecordBatchReader.from_stream(stream)), None)
            geometry = info["geometry_name"] or "wkb_geometry"
            # Where the index finds nothing, GDAL 3.12 gives rows without geometries.
            if batch is None or not pyarrow.compute.max(pyarrow.compute.binary_length(batch.column(geometry))).as_py():
                return b"", False
            cells = batch.column(_CELL).to_numpy()
            zooms = cells >> 44
            is_here = cells == _cell_number(zooms, x >> np.maximum(z - zooms, 0), y >> np.maximum(z - zooms, 0))
            shapes = shapely.from_wkb(batch.column(geometry).to_numpy(zero_copy_only=False)[is_here])
            fields = pa.Table.from_batches([batch]).drop_columns([_CELL, geometry]).filter(pa.array(is_here))
            return encode_tile(self.layer.name, shapes, fields, bounds), len(batch) == MOST_IN_TILE


def _features(store: Path, *, all_of: bool = True) -> Path:
    return store.with_suffix(".fgb" if all_of else ".large.fgb")


def _cell_number(z: Any, x: Any, y: Any) -> Any:
    """One number for a map tile; 0 for that of the whole world."""
    return z << 44 | x << 22 | y


def _cut(shapes: Geometries, zoom: int) -> tuple[Geometries, list[int], list[int]]:
    """Features in pieces of few vertices, each of one map tile and its buffer; the row and cell of each piece."""
    is_small = shapely.get_num_coordinates(shapes) <= _MOST_VERTICES
    of = np.flatnonzero(is_small).tolist()
    cells = [0] * len(of)
    pieces = shapes[is_small].tolist()
    for row in np.flatnonzero(~is_small).tolist():
        waiting = [(shapes[row], 0, 0, 0)]
        while waiting:
            shape, z, x, y = waiting.pop()
            if shape.is_empty:
                continue
            if z == zoom or shapely.get_num_coordinates(shape) <= _MOST_VERTICES:
                pieces.append(shape)
                of.append(row)
                cells.append(_cell_number(z, x, y))
                continue
            for child in ((z + 1, 2 * x + i, 2 * y + j) for i in (0, 1) for j in (0, 1)):
                left, bottom, right, top = tile_bounds(*child)
                edge = (right - left) * BUFFER / EXTENT
                near = shapely.clip_by_rect(shape, left - edge, bottom - edge, right + edge, top + edge)
                waiting.append((near, *child))
    return np.array(pieces, dtype=object), of, cells


class _Largest:
    """The largest features of all that were added, simplified."""

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._least = -1.0
        self._parts: list[tuple[FloatArray, Geometries, pa.Table]] = []

    def add(self, shapes: Geometries, fields: pa.RecordBatch) -> None:
        bounds = shapely.bounds(shapes)
        size = np.maximum(bounds[:, 2] - bounds[:, 0], bounds[:, 3] - bounds[:, 1])
        rows = np.flatnonzero(size > self._least)
        if len(rows):
            plain = shapely.simplify(shapes[rows], self._tolerance, preserve_topology=False)
            plain = np.where(shapely.is_empty(plain), shapes[rows], plain)
            self._parts.append((size[rows], plain, pa.Table.from_batches([fields.take(pa.array(rows))])))
            if sum(len(size) for size, _, _ in self._parts) > 4 * MOST_LARGE:
                self._prune()

    def _prune(self) -> None:
        sizes, shapes, tables = zip(*self._parts, strict=True)
        size = np.concatenate(sizes)
        rows = np.sort(np.argsort(-size, kind="stable")[:MOST_LARGE])
        self._parts = [(size[rows], np.concatenate(shapes)[rows], pa.concat_tables(tables).take(pa.array(rows)))]
        self._least = float(size[rows].min()) if len(rows) == MOST_LARGE else -1.0

    def batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """The largest features, once all have been added."""
        if self._parts:
            self._prune()
            _, shapes, table = self._parts[0]
            columns = [column.combine_chunks() for column in table.columns]
            cells = pa.array(np.zeros(len(shapes), np.int64))
            yield pa.RecordBatch.from_arrays([*columns, cells, _wkb(shapes)], schema=schema)


def _placing(layer: VectorLayer, plane: Plane | None) -> Callable[[Geometries], Geometries]:
    """What brings features to Web Mercator."""
    if plane is not None:
        shift, unit = np.array([plane.left, plane.top]), plane.unit
        return lambda shapes: shapely.transform(shapes, lambda xy: (xy - shift) * unit)
    way = pyproj.Transformer.from_crs(layer.crs, 3857, always_xy=True)
    return lambda shapes: shapely.transform(shapes, lambda xy: np.column_stack(way.transform(xy[:, 0], xy[:, 1])))


@contextmanager
def _opened(layer: VectorLayer) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    """The features of a layer as record batches, their geometry last; fields that hold lists are left out."""
    from geoseg.export.gdal import WKB_FIELD

    if is_parquet(layer.path):
        frame = layer.read(list(layer.fields))
        geometry = frame.geometry.name
        table = pa.Table.from_pandas(frame.drop(columns=geometry), preserve_index=False)
        table = table.select([f.name for f in table.schema if not pa.types.is_nested(f.type)])
        table = table.append_column(WKB_FIELD, pa.array(shapely.to_wkb(frame.geometry.to_numpy()), pa.binary()))
        yield table.schema, iter(table.to_batches(max_chunksize=_BATCH))
        return
    with pyogrio.open_arrow(layer.path, layer=layer.name, batch_size=_BATCH) as (info, stream):
        reader = pa.RecordBatchReader.from_stream(stream)
        geometry = info["geometry_name"] or "wkb_geometry"
        fields = [f for f in reader.schema if f.name in layer.fields and not pa.types.is_nested(f.type)]
        schema = pa.schema([*fields, WKB_FIELD])

        def batches() -> Iterator[pa.RecordBatch]:
            for batch in reader:
                columns = [batch.column(f.name) for f in fields]
                yield pa.RecordBatch.from_arrays([*columns, batch.column(geometry).cast(pa.binary())], schema=schema)

        yield schema, batches()


def _wkb(shapes: Geometries) -> pa.Array:
    return pa.array(shapely.to_wkb(shapes), pa.binary())


def _make_room(folder: Path) -> None:
    """Remove what a viewer that was ended left unfinished, and the stores beyond `_KEPT_BYTES`."""
    for scratch in folder.glob(".*.partial"):
        with suppress(OSError):
            if time.time() - scratch.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(scratch)
    room = _KEPT_BYTES
    for store in sorted(folder.glob("*.json"), key=lambda file: -file.stat().st_mtime):
        files = list(folder.glob(f"{store.stem}.*"))
        room -= sum(file.stat().st_size for file in files)
        if room < 0:
            for file in files:
                file.unlink(missing_ok=True)
