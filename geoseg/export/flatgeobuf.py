"""FlatGeobuf by GDAL's writer, fed through Arrow."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyogrio
from pyogrio.errors import CRSError, DataLayerError, DataSourceError, FeatureError, FieldError, GeometryError

from geoseg.export.arrow import GEOMETRY, attribute_schema, attributes, portions, with_first, wkb_array, writing
from geoseg.export.layer import Layer
from geoseg.polygons.batch import PolygonBatch

_NODE_SIZE, _NODE_BYTES = 16, 40  # of the index

_ERRORS = (DataSourceError, DataLayerError, CRSError, FeatureError, FieldError, GeometryError, RuntimeError)


def write_flatgeobuf(batches: Iterable[PolygonBatch], path: Path, layer: Layer) -> int:
    """Write a FlatGeobuf with its packed Hilbert R-tree.

    GDAL writes the features to a temporary file beside ``path`` and copies them in the order of the index at the end;
    in memory it keeps some 90 bytes for each, not the features.

    Args:
        batches: The polygons; all batches have the columns of the first.
        path: Scratch path of the file.
        layer: Name, grid, classes and source.

    Returns:
        Number of features.

    Raises:
        OutputError: The file cannot be written.
    """
    first, batches = with_first(batches)
    schema = attribute_schema(first, layer).append(
        pa.field(GEOMETRY, pa.binary(), metadata={"ARROW:extension:name": "ogc.wkb"})
    )
    stream = _Stream(batches, layer, schema)
    with warnings.catch_warnings(), writing(path, *_ERRORS):
        warnings.filterwarnings("ignore", "'crs' was not provided")  # a map without georeference is no mistake
        try:
            pyogrio.write_arrow(
                pa.RecordBatchReader.from_batches(schema, iter(stream)),
                path,
                layer=layer.name,
                driver="FlatGeobuf",
                geometry_name=GEOMETRY,
                geometry_type="Polygon",
                crs=None if layer.grid.crs is None else layer.grid.crs.to_wkt(),
                layer_options={"SPATIAL_INDEX": "YES"},
            )
        except BaseException:
            if stream.error is not None:
                raise stream.error from None
            raise
        _check_end(path, stream.count)
    return stream.count


def _check_end(path: Path, count: int) -> None:
    """See that the file ends where its last feature ends: GDAL says nothing when the last buffer finds the disk full.

    Raises:
        OSError: It ends before.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(8)  # after the magic bytes
        end = 12 + _uint(file.read(4))
        if count:
            nodes, level = 1 + count, count  # a packed R-tree of 16 nodes to a node: its root, …, the leaves at its end
            while level > _NODE_SIZE:
                level = -(-level // _NODE_SIZE)
                nodes += level
            features = end + nodes * _NODE_BYTES
            file.seek(features - 8)
            last = features + _uint(file.read(8))  # place of the last leaf's feature
            file.seek(min(last, size))
            end = last + 4 + _uint(file.read(4))
    if size < end:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _uint(data: bytes) -> int:
    return int.from_bytes(data, "little")


class _Stream:
    """Record batches as GDAL asks for them; keeps the error that it would turn into "no more batches"."""

    def __init__(self, batches: Iterable[PolygonBatch], layer: Layer, schema: pa.Schema) -> None:
        self._batches, self._layer, self._schema = batches, layer, schema
        self.count = 0
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        try:
            for batch in self._batches:
                for portion in portions(batch):
                    columns = [*attributes(portion, self._layer), wkb_array(portion)]
                    yield pa.RecordBatch.from_arrays(columns, schema=self._schema)
                    self.count += len(portion)
        except (Exception, KeyboardInterrupt) as error:
            self.error = error
            raise
