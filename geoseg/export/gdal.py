"""Layers that GDAL writes through Arrow, batch by batch, and what is read back of them."""

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from geoseg.export.layer import BATCH_FEATURES, GEOMETRY, Layer, check_whole, portions, with_first, wkb_array
from geoseg.files import writing
from geoseg.georeference import WARNINGS
from geoseg.polygons.batch import PolygonBatch

log = logging.getLogger(__name__)

WKB_FIELD = pa.field(GEOMETRY, pa.binary(), metadata={"ARROW:extension:name": "ogc.wkb"})


def write_layer(batches: Iterable[PolygonBatch], path: Path, layer: Layer, driver: str, **options: Any) -> int:
    """Write a layer with the fields of `Layer.schema`, in the CRS of its grid; see `write_records`."""
    first, batches = with_first(batches, importing="pyogrio")
    schema = layer.schema(first).append(WKB_FIELD)
    records = (layer.record(portion, schema, wkb_array(portion)) for portion in portions(batches))
    return write_records(records, schema, path, driver=driver, layer=layer.name, crs=layer.wkt, **options)


def write_records(
    records: Iterable[pa.RecordBatch],
    schema: pa.Schema,
    path: Path,
    *,
    geometry_type: str = "Polygon",
    is_exact: bool = True,
    **options: Any,
) -> int:
    """Write record batches as they come, then read the file back; returns the number of features.

    The last field of the schema is the geometry, `WKB_FIELD`. What ``records`` raises passes as it is. GDAL's warnings
    are logged. If it is exact, geometries read back must be the ones written, byte for byte. Further options are those
    of `pyogrio.write_arrow`. An `OutputError` if the file cannot be written, or is not whole.
    """
    import pyogrio

    with writing(path, pa.ArrowException, RuntimeError), _Stream(records) as stream:
        try:
            reader = pa.RecordBatchReader.from_batches(schema, iter(stream))
            pyogrio.write_arrow(reader, path, geometry_name=GEOMETRY, geometry_type=geometry_type, **options)
        except BaseException:
            if stream.error is not None:
                raise stream.error from None
            raise
        if is_exact:
            check_whole(_read_back(path) == stream.checksum)
    for message in stream.messages:
        log.warning("%s: %s", path.name, message)
    return stream.checksum[0]


def _read_back(path: Path) -> tuple[int, int]:
    """The checksum (see `_Stream`) of the geometries of a file."""
    import pyogrio

    found = (0, 0)
    with pyogrio.open_arrow(path, columns=[], batch_size=BATCH_FEATURES) as (info, stream):
        geometry = info["geometry_name"] or "wkb_geometry"
        for batch in pa.RecordBatchReader.from_stream(stream):
            found = _added(found, batch.column(geometry))
    return found


class _Stream:
    """Record batches as GDAL asks for them; its warnings are caught, except while the source makes the next batch.

    Attributes:
        checksum: Number of features so far, and the sum of all bytes of their geometries, which does not depend on the
            order of features or vertices.
        error: What the source raised, which GDAL would take for the end of the batches.
        messages: GDAL's warnings, each once.
    """

    def __init__(self, records: Iterable[pa.RecordBatch]) -> None:
        self._records = iter(records)
        self.checksum = (0, 0)
        self.error: BaseException | None = None
        self.messages: dict[str, None] = {}
        self._catching = ExitStack()

    def __enter__(self) -> Self:
        self._catching.enter_context(WARNINGS)
        self._caught = self._catching.enter_context(warnings.catch_warnings(record=True))
        warnings.filterwarnings("always", module="pyogrio")
        warnings.filterwarnings("ignore", "'crs' was not provided")
        return self

    def __exit__(self, *error: object) -> None:
        self._catching.close()
        self.messages |= {str(found.message): None for found in self._caught if "pyogrio" in found.filename}

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        try:
            while (batch := self._next()) is not None:
                yield batch
                self.checksum = _added(self.checksum, batch.column(batch.num_columns - 1))
        except (Exception, KeyboardInterrupt) as error:  # Ctrl-C is heard here while GDAL has control
            self.error = error
            raise

    def _next(self) -> pa.RecordBatch | None:
        """The source's next batch; warnings are not caught meanwhile."""
        self.__exit__()
        try:
            return next(self._records, None)
        finally:
            self.__enter__()


def _added(checksum: tuple[int, int], wkb: pa.Array) -> tuple[int, int]:
    ends = np.frombuffer(wkb.buffers()[1], np.int32, len(wkb) + 1, 4 * wkb.offset)
    data = np.frombuffer(wkb.buffers()[2] or b"", np.uint8)
    return checksum[0] + len(wkb), checksum[1] + int(data[ends[0] : ends[-1]].sum(dtype=np.int64))
