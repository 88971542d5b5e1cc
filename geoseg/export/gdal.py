"""Layers that GDAL writes through Arrow, batch by batch, and what is read back of them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from geoseg.export.arrow import GEOMETRY, attribute_schema, check_whole, portions, record, with_first, wkb_array
from geoseg.export.layer import Layer
from geoseg.files import writing
from geoseg.polygons.batch import PolygonBatch

log = logging.getLogger(__name__)

# pyogrio holds Python's lock while it writes a batch; between two of them the threads that trace go on.
BATCH_FEATURES = 4096

WKB_FIELD = pa.field(GEOMETRY, pa.binary(), metadata={"ARROW:extension:name": "ogc.wkb"})


@dataclass(frozen=True, slots=True)
class Driver:
    """How GDAL writes a format.

    Attributes:
        name: GDAL's name of the driver.
        geometry_type: Type of the layer's geometries.
        encoding: Encoding of texts, for drivers that ask for one.
        dataset_options: Dataset creation options.
        layer_options: Layer creation options.
        is_exact: Geometries read back are the ones written, vertex for vertex.
    """

    name: str
    geometry_type: str = "Polygon"
    encoding: str | None = None
    dataset_options: Mapping[str, str] = field(default_factory=dict)
    layer_options: Mapping[str, str] = field(default_factory=dict)
    is_exact: bool = True


def write_layer(batches: Iterable[PolygonBatch], path: Path, layer: Layer, driver: Driver) -> int:
    """Write a layer with the fields of `attribute_schema`, in the CRS of its grid; see `write_records`."""
    first, batches = with_first(batches, importing="pyogrio")
    schema = attribute_schema(first, layer).append(WKB_FIELD)
    records = (
        record(portion, layer, schema, wkb_array(portion))
        for batch in batches
        for portion in portions(batch, features=BATCH_FEATURES)
    )
    return write_records(records, schema, path, driver, name=layer.name, crs=layer.wkt)


def write_records(
    records: Iterable[pa.RecordBatch], schema: pa.Schema, path: Path, driver: Driver, *, name: str, crs: str | None
) -> int:
    """Write record batches as they come, then read the file back; returns the number of features.

    The geometry, `WKB_FIELD`, is the last field of the schema. What ``records`` raises passes as it is.

    Raises:
        OutputError: The file cannot be written, or is not whole.
    """
    import pyogrio
    from pyogrio import errors

    failures = [getattr(errors, f"{kind}Error") for kind in ("DataSource", "DataLayer", "CRS", "Feature", "Field")]
    failures += [errors.GeometryError, pa.ArrowException, RuntimeError]
    stream = _Stream(records)
    with warnings.catch_warnings(record=True) as caught, writing(path, *failures):
        warnings.filterwarnings("always", module="pyogrio")
        warnings.filterwarnings("ignore", "'crs' was not provided")
        try:
            pyogrio.write_arrow(
                pa.RecordBatchReader.from_batches(schema, iter(stream)),
                path,
                layer=name,
                driver=driver.name,
                geometry_name=GEOMETRY,
                geometry_type=driver.geometry_type,
                crs=crs,
                encoding=driver.encoding,
                dataset_options=dict(driver.dataset_options),
                layer_options=dict(driver.layer_options),
            )
        except BaseException:
            if stream.error is not None:
                raise stream.error from None
            raise
        if driver.is_exact:
            check_whole(_read_back(path) == stream.checksum)
    for message in dict.fromkeys(str(warning.message) for warning in caught if "pyogrio" in warning.filename):
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
    """Record batches as GDAL asks for them.

    Attributes:
        checksum: Number of features so far, and the sum of all bytes of their geometries, which does not depend on the
            order of features or vertices.
        error: What the source raised, which GDAL would take for the end of the batches.
    """

    def __init__(self, records: Iterable[pa.RecordBatch]) -> None:
        self._records = records
        self.checksum = (0, 0)
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        try:
            for batch in self._records:
                yield batch
                self.checksum = _added(self.checksum, batch.column(batch.num_columns - 1))
        except (Exception, KeyboardInterrupt) as error:
            self.error = error
            raise


def _added(checksum: tuple[int, int], wkb: pa.Array) -> tuple[int, int]:
    ends = np.frombuffer(wkb.buffers()[1], np.int32, len(wkb) + 1, 4 * wkb.offset)
    data = np.frombuffer(wkb.buffers()[2] or b"", np.uint8)
    return checksum[0] + len(wkb), checksum[1] + int(data[ends[0] : ends[-1]].sum(dtype=np.int64))
