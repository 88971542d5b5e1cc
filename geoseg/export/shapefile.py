"""ESRI Shapefile by GDAL's writer, in numbered parts where it would grow past 2 GB."""

import logging
import tempfile
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyproj

from geoseg.errors import OutputError, quoted
from geoseg.export.gdal import WKB_FIELD, write_records
from geoseg.export.layer import GEOMETRY, Layer, check_whole, part_of, portions, with_first, wkb_array
from geoseg.files import writing
from geoseg.georeference import Georeference, crs_name
from geoseg.grid import Grid
from geoseg.polygons.batch import PolygonBatch

log = logging.getLogger(__name__)

DRIVER = "ESRI Shapefile"
MOST_BYTES = 2**31 - 1  # most bytes of a .shp or a .dbf: programs that seek with 32 bits read no further

# The .dbf holds the date of its last change. A constant one makes the same polygons the same bytes.
_OPTIONS: dict[str, Any] = {"encoding": "UTF-8", "layer_options": {"DBF_DATE_LAST_UPDATE": "1995-07-26"}}
_TEXT_BYTES = 254
_REAL_BYTES = 24  # of a real number in the .dbf as GDAL writes it, with up to 15 decimals
_SHP_HEADER = 100  # bytes
_MOST_SHIFT_M = 1.0  # by the .prj: ways from one datum to WGS 84 differ by some decimetres


def write_shapefile(batches: Iterable[PolygonBatch], path: Path, layer: Layer, *, limit: int = MOST_BYTES) -> int:
    """Write a shapefile, and ``name_2.shp``, ``name_3.shp``, … beside it for what does not fit into ``limit`` bytes.

    Each part is complete: ``.shp``, ``.shx``, ``.dbf``, a ``.cpg`` that says UTF-8, and with a CRS a ``.prj``. Texts
    longer than 254 bytes and field names longer than ten characters are cut, with a warning.

    Raises:
        OutputError: A file cannot be written, or a single polygon is too large.
    """
    first, batches = with_first(batches, importing="pyogrio")
    texts = layer.texts | ({} if layer.source is None else {"source": (layer.source,)})
    longest = max((text for values in texts.values() for text in values), key=_bytes)
    if _bytes(longest) > _TEXT_BYTES:
        log.warning(
            "%s: %s… is cut to the %d bytes that a text in a shapefile may have; a GeoPackage keeps it whole (-o %s)",
            path.name,
            longest[:20],
            _TEXT_BYTES,
            quoted(path.with_suffix(".gpkg").name),
        )
    widths = {"class_id": 3} | {name: min(_TEXT_BYTES, max(1, *map(_bytes, values))) for name, values in texts.items()}
    for name, values in first.columns.items():
        if values.dtype.kind in "iu":
            limits = np.iinfo(values.dtype)
            widths[name] = max(len(str(limits.min)), len(str(limits.max)))
    fields = layer.schema(first)
    record_bytes = 1 + sum(widths.get(name, _REAL_BYTES) for name in fields.names)
    header = 32 + 32 * len(fields) + 1
    wide = [f.with_metadata({"GDAL:OGR:width": str(widths[f.name])}) if f.name in widths else f for f in fields]
    schema = pa.schema([*wide, WKB_FIELD])
    count = 0
    numbered = _numbered(chain([part_of(first, 0, 0)], portions(batches)), path, header, record_bytes, limit)
    for number, part in groupby(numbered, key=itemgetter(0)):
        part_path = path if number == 1 else path.with_name(f"{path.stem}_{number}{path.suffix}")
        records = (layer.record(batch, schema, wkb_array(batch)) for _, batch in part)
        features = write_records(
            records, schema, part_path, driver=DRIVER, layer=part_path.stem, crs=layer.wkt, **_OPTIONS
        )
        with writing(path):
            check_whole(part_path.with_suffix(".dbf").stat().st_size >= header + features * record_bytes)
        count += features
    return count


def _numbered(
    batches: Iterable[PolygonBatch], path: Path, header: int, record_bytes: int, limit: int
) -> Iterator[tuple[int, PolygonBatch]]:
    """The batches, cut where they pass from one file to the next, each with the number of its file.

    ``header`` and ``record_bytes`` are those of a .dbf, which like a .shp has at most ``limit`` bytes.
    """
    number, shp, dbf = 1, _SHP_HEADER, header
    for batch in batches:
        if not len(batch):
            yield number, batch
        while len(batch):
            rings, vertices = np.diff(batch.polygons), np.diff(batch.rings[batch.polygons])
            shp_ends = shp + np.cumsum(8 + 44 + 4 * rings + 16 * vertices)
            dbf_ends = dbf + record_bytes * np.arange(1, len(batch) + 1)
            fitting = int(np.count_nonzero((shp_ends <= limit) & (dbf_ends < limit)))
            if fitting:
                yield number, part_of(batch, 0, fitting)
                shp, dbf = int(shp_ends[fitting - 1]), int(dbf_ends[fitting - 1])
                batch = part_of(batch, fitting, len(batch))
            elif shp > _SHP_HEADER:
                number, shp, dbf = number + 1, _SHP_HEADER, header
            else:
                hint = "simplify it with --simplify or --min-area, or write a GeoPackage: -o out.gpkg"
                raise OutputError(f"a polygon is too large for the shapefile {path.name}", hint=hint)


def _bytes(text: str) -> int:
    return len(text.encode())


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
    import pyogrio

    nothing = pa.table({GEOMETRY: pa.array([], pa.binary())})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "empty.shp"
        pyogrio.write_arrow(nothing, path, driver=DRIVER, geometry_name=GEOMETRY, geometry_type="Polygon", crs=wkt)
        written = pyogrio.read_info(path)["crs"]
    if not written:
        return float("inf")
    x, y = np.array(points).T
    (lon, lat), (new_lon, new_lat) = (
        pyproj.Transformer.from_crs(crs, 4326, always_xy=True).transform(x, y) for crs in (wkt, written)
    )
    known = np.isfinite(lon) & np.isfinite(lat)
    if not np.isfinite([new_lon[known], new_lat[known]]).all():
        return float("inf")
    shifts = pyproj.Geod(ellps="WGS84").inv(lon[known], lat[known], new_lon[known], new_lat[known])[2]
    return float(np.max(shifts, initial=0.0))
