"""Layers written by GDAL through Arrow, as their batches come, and read back."""

from __future__ import annotations

import errno
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from geoseg.export.arrow import GEOMETRY, attribute_schema, attributes, portions, with_first, wkb_array, writing
from geoseg.export.formats import FLATGEOBUF, Format
from geoseg.export.layer import Layer
from geoseg.polygons.batch import PolygonBatch

_log = logging.getLogger(__name__)

# pyogrio holds the interpreter's lock while it writes a batch; between two of them the threads that trace go on.
BATCH_FEATURES = 4096

WKB_FIELD = pa.field(GEOMETRY, pa.binary(), metadata={"ARROW:extension:name": "ogc.wkb"})


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
    return write_layer(batches, path, layer, FLATGEOBUF)


def write_layer(batches: Iterable[PolygonBatch], path: Path, layer: Layer, format: Format) -> int:
    """Write a layer with the fields of `attribute_schema`, in the CRS of its grid; see `write_arrow`."""
    first, batches = with_first(batches, importing="pyogrio")
    schema = attribute_schema(first, layer).append(WKB_FIELD)
    records = (
        pa.RecordBatch.from_arrays([*attributes(portion, layer), wkb_array(portion)], schema=schema)
        for batch in batches
        for portion in portions(batch, features=BATCH_FEATURES)
    )
    crs = None if layer.grid.crs is None else layer.grid.crs.to_wkt()
    return write_arrow(records, schema, path, format, name=layer.name, crs=crs)


def write_arrow(
    records: Iterable[pa.RecordBatch],
    schema: pa.Schema,
    path: Path,
    format: Format,
    *,
    name: str,
    crs: str | None,
    dataset_options: Mapping[str, str] | None = None,
    layer_options: Mapping[str, str] | None = None,
) -> int:
    """Write record batches as they come, then read the file back: GDAL does not report every write that failed.

    What ``records`` raises is raised here as it is.

    Args:
        records: Batches of the schema, the geometry as WKB in their last column.
        schema: Fields, `WKB_FIELD` last.
        path: Scratch path of the file.
        format: How GDAL writes it.
        name: Name of the layer.
        crs: CRS as WKT, or None.
        dataset_options: Further dataset creation options.
        layer_options: Further layer creation options.

    Returns:
        Number of features.

    Raises:
        OutputError: The file cannot be written, or is not whole.
    """
    import pyogrio
    from pyogrio import errors

    failures = (
        errors.DataSourceError,
        errors.DataLayerError,
        errors.CRSError,
        errors.FeatureError,
        errors.FieldError,
        errors.GeometryError,
        pa.ArrowException,
        RuntimeError,
    )
    stream = _Stream(records)
    options = {**format.layer_options, **({} if crs else format.unreferenced), **(layer_options or {})}
    with warnings.catch_warnings(record=True) as told, writing(path, *failures):
        warnings.filterwarnings("always", module="pyogrio")
        warnings.filterwarnings("ignore", "'crs' was not provided")  # a map without georeference is no mistake
        try:
            pyogrio.write_arrow(
                pa.RecordBatchReader.from_batches(schema, iter(stream)),
                path,
                layer=name,
                driver=format.driver,
                geometry_name=GEOMETRY,
                geometry_type=format.geometry_type,
                crs=crs,
                encoding=format.encoding,
                dataset_options={**format.dataset_options, **(dataset_options or {})},
                layer_options=options,
            )
        except BaseException:
            if stream.error is not None:
                raise stream.error from None
            raise
        if format.is_exact:
            _read_back(path, stream)
    for message in dict.fromkeys(str(warning.message) for warning in told if "pyogrio" in warning.filename):
        _log.warning("%s: %s", path.name, message)
    return stream.count


def _read_back(path: Path, written: _Stream) -> None:
    """See that a file holds the geometries that were written, in any order.

    Raises:
        OSError: It does not: the disk was full for what GDAL wrote last.
    """
    import pyogrio

    found = _Stream(())
    with pyogrio.open_arrow(path, columns=[], batch_size=BATCH_FEATURES) as (info, stream):
        geometry = info["geometry_name"] or "wkb_geometry"
        for batch in pa.RecordBatchReader.from_stream(stream):
            found.add(batch.column(geometry))
    if (found.count, found.sum) != (written.count, written.sum):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class _Stream:
    """Record batches as GDAL asks for them; keeps the error that it would turn into "no more batches".

    Attributes:
        count: Number of features so far.
        sum: Sum of all bytes of their geometries, which does not depend on the order of features or vertices.
        error: What the source raised.
    """

    def __init__(self, records: Iterable[pa.RecordBatch]) -> None:
        self._records = records
        self.count = 0
        self.sum = 0
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        try:
            for batch in self._records:
                yield batch
                self.add(batch.column(batch.num_columns - 1))
        except (Exception, KeyboardInterrupt) as error:
            self.error = error
            raise

    def add(self, wkb: pa.Array) -> None:
        """Count geometries."""
        ends = np.frombuffer(wkb.buffers()[1], np.int32, len(wkb) + 1, 4 * wkb.offset)
        data = np.frombuffer(wkb.buffers()[2] or b"", np.uint8)
        self.count += len(wkb)
        self.sum += int(data[ends[0] : ends[-1]].sum(dtype=np.int64))
