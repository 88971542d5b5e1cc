"""Polygons → GIS file, by suffix. Imports no torch.

Each exporter is a function ``(batches, path, layer)`` that writes one file (and what belongs to its format beside it)
from batches as they come, and knows nothing of overwriting; `write_polygons` adds the QGIS style and publishes all of
it together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from math import isfinite
from os import PathLike
from pathlib import Path

from geoseg.errors import OutputError, quoted
from geoseg.export.gdal import write_flatgeobuf
from geoseg.export.geojson import write_geojson, write_geojson_lines
from geoseg.export.geopackage import write_geopackage
from geoseg.export.geoparquet import write_geoparquet
from geoseg.export.layer import Layer, noting
from geoseg.export.pmtiles import write_pmtiles
from geoseg.export.qml import style_qml, write_style
from geoseg.export.shapefile import shift_m, write_shapefile
from geoseg.files import atomic_output, has_style
from geoseg.georeference import Georeference, crs_name
from geoseg.grid import Grid
from geoseg.polygons.batch import PolygonBatch

log = logging.getLogger(__name__)

Exporter = Callable[[Iterable[PolygonBatch], Path, Layer], int]

EXPORTERS: dict[str, Exporter] = {
    ".gpkg": write_geopackage,
    ".fgb": write_flatgeobuf,
    ".parquet": write_geoparquet,
    ".geojson": write_geojson,
    ".geojsonl": write_geojson_lines,
    ".ndjson": write_geojson_lines,
    ".shp": write_shapefile,
    ".pmtiles": write_pmtiles,
}

_ASTRAY = (Georeference.BODY, Georeference.LOCAL, Georeference.ASTRAY)
# GeoJSON may hold coordinates of no known place; tiles are squares of the Earth.
_WITHOUT_WGS84 = {
    **dict.fromkeys((".geojson", ".geojsonl", ".ndjson"), ("GeoJSON", _ASTRAY)),
    ".pmtiles": ("PMTiles", tuple(kind for kind in Georeference if kind is not Georeference.EARTH)),
}
"""Names of the formats in WGS 84, and the kinds of georeference that they cannot hold."""

_MOST_SHIFT_M = 1.0
"""How far a ``.prj`` may move the polygons: ways from one datum to WGS 84 differ by some decimetres."""

__all__ = ["EXPORTERS", "Exporter", "Layer", "check_format", "exporter_for", "style_qml", "write_polygons"]


def exporter_for(path: str | PathLike[str]) -> Exporter:
    """The exporter of a file's suffix, in any case; to be called before any work.

    Raises:
        OutputError: No exporter writes that suffix.
    """
    suffix = Path(path).suffix
    try:
        return EXPORTERS[suffix.lower()]
    except KeyError:
        found = f"the suffix {suffix}" if suffix else "no suffix"
        raise OutputError(
            f"output {path} has {found}, wanted one of {' '.join(EXPORTERS)}",
            hint=f"write for example -o {quoted(Path(path).with_suffix('.gpkg'))}",
        ) from None


def check_format(path: str | PathLike[str], grid: Grid) -> None:
    """Refuse a format that cannot hold a map's coordinates, before any work.

    Args:
        path: Output file.
        grid: Grid of the map.

    Raises:
        OutputError: GeoJSON or PMTiles, and no way leads from the map's CRS to the longitude and latitude that they
            hold; PMTiles, and the map has no CRS; a shapefile, and its ``.prj`` would place the map elsewhere.
    """
    path = Path(path)
    name, refused = _WITHOUT_WGS84.get(path.suffix.lower(), ("", ()))
    if grid.georeference in refused:
        raise OutputError(
            f"{path} cannot be written: {name} is WGS 84, and the map {grid.place_note}",
            hint=f"a GeoPackage keeps the map's CRS: -o {quoted(path.with_suffix('.gpkg'))}",
        )
    if path.suffix.lower() == ".shp" and (shift := shift_m(grid)) > _MOST_SHIFT_M:
        lost = (
            f"the polygons would lie {shift:,.0f} m off" if isfinite(shift) else "the polygons would have no known CRS"
        )
        raise OutputError(
            f"{path} cannot be written: a shapefile's .prj cannot hold the map's CRS, {crs_name(grid.crs)}, and {lost}",
            hint=f"a GeoPackage keeps the map's CRS: -o {quoted(path.with_suffix('.gpkg'))}",
        )


def write_polygons(batches: Iterable[PolygonBatch], path: str | PathLike[str], layer: Layer) -> int:
    """Write polygons in the format of the suffix, with a QGIS style ``.qml`` beside it; all of it or nothing.

    A GeoPackage holds its style, and gets no ``.qml``.

    What is there under that name is replaced (call `geoseg.files.check_output` before the work).

    Args:
        batches: Polygons in the layer's CRS, all batches with the same columns.
        path: Output file.
        layer: Name, grid, classes and source.

    Returns:
        Number of polygons.

    Raises:
        OutputError: Unknown suffix, a format that cannot hold the layer, a folder that cannot be written, a full disk.
    """
    exporter, path = exporter_for(path), Path(path)
    check_format(path, layer.grid)
    with atomic_output(path) as scratch:
        present: set[int] = set()
        count = exporter(noting(batches, present), scratch, layer)
        parts = sorted(scratch.parent.glob(f"*{scratch.suffix}"))  # a large layer is several shapefiles
        for part in parts:
            if has_style(part):
                write_style(
                    style_qml(layer.classes, present=present, units=layer.units), part, path.with_name(part.name)
                )
    stale = path.with_name(f"{path.stem}_{len(parts) + 1}{path.suffix}")
    if path.suffix.lower() == ".shp" and stale.exists():
        log.warning("%s is not part of this layer; it may be left over from a larger one", stale)
    return count
