"""ESRI Shapefile by GDAL's writer, in numbered parts where it would grow past 2 GB."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyproj

from geoseg.arrays import IntArray
from geoseg.errors import OutputError, quoted
from geoseg.export.arrow import (
    GEOMETRY,
    attribute_schema,
    batch_slice,
    check_whole,
    portions,
    record,
    with_first,
    wkb_array,
)
from geoseg.export.gdal import BATCH_FEATURES, WKB_FIELD, Driver, write_records
from geoseg.export.layer import Layer
from geoseg.files import writing
from geoseg.georeference import Georeference, crs_name
from geoseg.grid import Grid
from geoseg.polygons.batch import PolygonBatch

log = logging.getLogger(__name__)

# The .dbf holds the date of its last change. A constant one makes the same polygons the same bytes.
DRIVER = Driver("ESRI Shapefile", encoding="UTF-8", layer_options={"DBF_DATE_LAST_UPDATE": "1995-07-26"})

MOST_BYTES = 2**31 - 1
"""Most bytes of a .shp or a .dbf: programs that seek with 32 bits read no further."""

_NAME_LENGTH = 10
_TEXT_BYTES = 254
_REAL_BYTES = 24  # of a real number in the .dbf as GDAL writes it, with up to 15 decimals
_SHP_HEADER = 100  # bytes
_MOST_SHIFT_M = 1.0  # by the .prj: ways from one datum to WGS 84 differ by some decimetres


def write_shapefile(batches: Iterable[PolygonBatch], path: Path, layer: Layer, *, limit: int = MOST_BYTES) -> int:
    """Write a shapefile, and ``name_2.shp``, ``name_3.shp``, … beside it for what does not fit.

    Each part is complete: ``.shp``, ``.shx``, ``.dbf``, a ``.cpg`` that says UTF-8, and with a CRS a ``.prj``. Field
    names longer than ten characters are shortened, and ``name.fields.txt`` lists them. Texts longer than 254 bytes are
    cut, with a warning.

    Raises:
        OutputError: A file cannot be written, or a single polygon is larger than ``limit`` bytes.
    """
    first, batches = with_first(batches, importing="pyogrio")
    fields = attribute_schema(first, layer)
    short, widths = short_names(fields.names), _widths(first, layer)
    if renamed := "".join(f"{new} = {name}\n" for name, new in short.items() if new != name):
        with writing(path):
            path.with_suffix(".fields.txt").write_text(renamed, encoding="utf-8")
    longest = max((layer.source or "", *layer.classes.names), key=_bytes)
    if _bytes(longest) > _TEXT_BYTES:
        log.warning(
            "%s: %s… is cut to the %d bytes that a text in a shapefile may have; a GeoPackage keeps it whole (-o %s)",
            path.name,
            longest[:20],
            _TEXT_BYTES,
            quoted(path.with_suffix(".gpkg").name),
        )
    schema = pa.schema([_shape_field(field, short, widths) for field in fields]).append(WKB_FIELD)
    record_bytes = 1 + sum(widths.get(name, _REAL_BYTES) for name in fields.names)
    header = 32 + 32 * len(fields) + 1
    count = 0
    for number, part in enumerate(_parts(batches, path, header, record_bytes, limit), 1):
        part_path = path if number == 1 else path.with_name(f"{path.stem}_{number}{path.suffix}")
        records = (record(portion, layer, schema, wkb_array(portion)) for portion in part)
        features = write_records(records, schema, part_path, DRIVER, name=part_path.stem, crs=layer.wkt)
        with writing(path):
            check_whole(part_path.with_suffix(".dbf").stat().st_size >= header + features * record_bytes)
        count += features
    return count


def refusal(grid: Grid) -> str | None:
    """Why a map cannot be a shapefile, if its ``.prj`` would place it more than 1 m off; else None.

    A ``.prj`` is WKT as ESRI writes it, which has no room for the shift of a datum (TOWGS84) nor for some parameters
    of oblique projections. What is lost depends on the CRS and on GDAL, so one is written and read back.
    """
    if grid.crs is None or grid.georeference is not Georeference.EARTH:
        return None
    corners = [(0, 0), (0, grid.height), (grid.width, 0), (grid.width, grid.height), (grid.width / 2, grid.height / 2)]
    shift = _shift_m(grid.crs.to_wkt(), tuple(grid.transform @ corner for corner in corners))
    if shift <= _MOST_SHIFT_M:
        return None
    lost = (
        f"the polygons would lie {shift:,.0f} m off" if np.isfinite(shift) else "the polygons would have no known CRS"
    )
    return f"a shapefile's .prj cannot hold the map's CRS, {crs_name(grid.crs)}, and {lost}"


@lru_cache(maxsize=16)
def _shift_m(wkt: str, points: tuple[tuple[float, float], ...]) -> float:
    """How far the ``.prj`` moves points, m; infinite where no CRS is read back."""
    written = _read_back(wkt)
    if written is None:
        return float("inf")
    x, y = np.array(points).T
    (lon, lat), (new_lon, new_lat) = (
        pyproj.Transformer.from_crs(crs, 4326, always_xy=True).transform(x, y)
        for crs in (pyproj.CRS.from_wkt(wkt), written)
    )
    known = np.isfinite(lon) & np.isfinite(lat)
    if not np.isfinite([new_lon[known], new_lat[known]]).all():
        return float("inf")
    shifts = pyproj.Geod(ellps="WGS84").inv(lon[known], lat[known], new_lon[known], new_lat[known])[2]
    return float(np.max(shifts, initial=0.0))


def _read_back(wkt: str) -> pyproj.CRS | None:
    """The CRS that a shapefile has after it was written with this one."""
    import pyogrio

    nothing = pa.table({GEOMETRY: pa.array([], pa.binary())})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "empty.shp"
        pyogrio.write_arrow(
            nothing, path, driver=DRIVER.name, geometry_name=GEOMETRY, geometry_type=DRIVER.geometry_type, crs=wkt
        )
        text = pyogrio.read_info(path)["crs"]
    return pyproj.CRS.from_user_input(text) if text else None


def _parts(
    batches: Iterable[PolygonBatch], path: Path, header: int, record_bytes: int, limit: int
) -> Iterator[Iterator[PolygonBatch]]:
    """What goes into each of the shapefiles; one must be read to its end before the next.

    Args:
        batches: The polygons.
        path: File that an error names.
        header: Bytes of a .dbf before its records.
        record_bytes: Bytes of one of its records.
        limit: Most bytes of a .shp or .dbf.
    """
    waiting = chain.from_iterable(portions(batch, features=BATCH_FEATURES) for batch in batches)
    rest = next(waiting, None)

    def part() -> Iterator[PolygonBatch]:
        nonlocal rest
        shp, dbf = _SHP_HEADER, header
        while rest is not None:
            shp_ends = shp + np.cumsum(_shp_record_bytes(rest))
            dbf_ends = dbf + record_bytes * np.arange(1, len(rest) + 1)
            fitting = int(np.count_nonzero((shp_ends <= limit) & (dbf_ends < limit)))
            if fitting == 0:
                if shp > _SHP_HEADER:
                    return
                hint = "simplify it with --simplify or --min-area, or write a GeoPackage: -o out.gpkg"
                raise OutputError(f"a polygon is too large for the shapefile {path.name}", hint=hint)
            yield batch_slice(rest, 0, fitting)
            shp, dbf = int(shp_ends[fitting - 1]), int(dbf_ends[fitting - 1])
            rest = batch_slice(rest, fitting, len(rest)) if fitting < len(rest) else next(waiting, None)

    yield part()
    while rest is not None:
        yield part()


def _shp_record_bytes(batch: PolygonBatch) -> IntArray:
    """Bytes of each polygon in the .shp, (n,), with the 8 of its record's header."""
    rings, vertices = np.diff(batch.polygons), np.diff(batch.rings[batch.polygons])
    return np.asarray(8 + 44 + 4 * rings + 16 * vertices, dtype=np.int64)


def short_names(names: Iterable[str]) -> dict[str, str]:
    """A field name of at most ten characters for every name, no two alike: cut, and numbered where that clashes."""
    short: dict[str, str] = {}
    for name in names:
        candidate, number = name[:_NAME_LENGTH], 1
        while candidate.lower() in {s.lower() for s in short.values()}:
            number += 1
            candidate = f"{name[: _NAME_LENGTH - 1 - len(str(number))]}_{number}"
        short[name] = candidate
    return short


def _shape_field(field: pa.Field, short: dict[str, str], widths: dict[str, int]) -> pa.Field:
    named = field.with_name(short[field.name])
    return named.with_metadata({"GDAL:OGR:width": str(widths[field.name])}) if field.name in widths else named


def _widths(first: PolygonBatch, layer: Layer) -> dict[str, int]:
    """Bytes of the fields that do not hold real numbers: as many as their largest value needs."""
    widths = {"class_id": 3, "class_name": _text_width(layer.classes.names)}
    for name, values in first.columns.items():
        if values.dtype.kind in "iu":
            limits = np.iinfo(values.dtype)
            widths[name] = max(len(str(limits.min)), len(str(limits.max)))
    if layer.source is not None:
        widths["source"] = _text_width([layer.source])
    return widths


def _text_width(texts: Iterable[str]) -> int:
    return min(_TEXT_BYTES, max(1, *map(_bytes, texts)))


def _bytes(text: str) -> int:
    return len(text.encode())
