"""Polygons → GIS file, in the format of the suffix. Imports no torch."""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from geoseg.errors import OutputError, quoted
from geoseg.export import shapefile
from geoseg.export.gdal import write_layer
from geoseg.export.geojson import write_geojson
from geoseg.export.geopackage import add_layer_style, write_geopackage
from geoseg.export.geoparquet import write_geoparquet
from geoseg.export.layer import Layer
from geoseg.export.pmtiles import write_pmtiles
from geoseg.export.styles import style_qml, write_style
from geoseg.files import atomic_output, has_style
from geoseg.georeference import Georeference
from geoseg.grid import Grid
from geoseg.options import AnyPath
from geoseg.polygons.batch import PolygonBatch

__all__ = ["EXPORTERS", "Exporter", "Layer", "check_format", "exporter_for", "style_qml", "write_polygons"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Exporter:
    """One format.

    Attributes:
        write: Writes the polygons of a layer, in the map's CRS and in batches with the same columns, to a scratch path
            as they come; returns how many there are. Raises `OutputError` where the file cannot be written.
        refusal: Why the format cannot hold a map, or None if it can.
    """

    write: Callable[[Iterable[PolygonBatch], Path, Layer], int]
    refusal: Callable[[Grid], str | None] = lambda grid: None


def _in_wgs84(name: str, *refused: Georeference) -> Callable[[Grid], str | None]:
    """Refuses the maps of some kinds of georeference, for a format whose coordinates are longitude and latitude."""
    return lambda grid: f"{name} is WGS 84, and the map {grid.place_note}" if grid.georeference in refused else None


# GeoJSON may hold coordinates of no known place; tiles are squares of the Earth.
_geojson = _in_wgs84("GeoJSON", Georeference.BODY, Georeference.LOCAL, Georeference.ASTRAY)
_pmtiles = _in_wgs84("PMTiles", *(kind for kind in Georeference if kind is not Georeference.EARTH))

EXPORTERS = {
    ".gpkg": Exporter(write_geopackage),
    # GDAL keeps some 90 bytes of each feature in memory, and copies them in the order of the index at the end.
    ".fgb": Exporter(partial(write_layer, driver="FlatGeobuf", layer_options={"SPATIAL_INDEX": "YES"})),
    ".parquet": Exporter(write_geoparquet),
    ".geojson": Exporter(write_geojson, _geojson),
    ".geojsonl": Exporter(write_geojson, _geojson),
    ".ndjson": Exporter(write_geojson, _geojson),
    ".shp": Exporter(shapefile.write_shapefile, shapefile.refusal),
    ".pmtiles": Exporter(write_pmtiles, _pmtiles),
}


def exporter_for(path: AnyPath) -> Exporter:
    """The exporter of a file's suffix, in any case, or an `OutputError`; to be called before any work."""
    suffix = Path(path).suffix
    try:
        return EXPORTERS[suffix.lower()]
    except KeyError:
        found = f"the suffix {suffix}" if suffix else "no suffix"
        raise OutputError(
            f"output {path} has {found}, expected one of {' '.join(EXPORTERS)}",
            hint=f"write for example -o {quoted(Path(path).with_suffix('.gpkg'))}",
        ) from None


def check_format(path: AnyPath, grid: Grid) -> None:
    """Refuse a format that cannot hold a map's coordinates, before any work.

    Raises:
        OutputError: GeoJSON or PMTiles, and no way leads from the map's CRS to longitude and latitude; PMTiles, and the
            map has no CRS; a shapefile whose ``.prj`` would place the map elsewhere; or an unknown suffix.
    """
    if (reason := exporter_for(path).refusal(grid)) is not None:
        hint = f"a GeoPackage keeps the map's CRS: -o {quoted(Path(path).with_suffix('.gpkg'))}"
        raise OutputError(f"{path} cannot be written: {reason}", hint=hint)


def write_polygons(batches: Iterable[PolygonBatch], path: AnyPath, layer: Layer) -> int:
    """Write polygons in the format of the suffix, with a QGIS style: all of it or nothing.

    The style has the classes that are present. A GeoPackage holds it, other formats get a ``.qml`` beside the file.
    An existing file is replaced (call `geoseg.files.check_output` before the work).

    Args:
        batches: Polygons in the layer's CRS, all batches with the same columns.
        path: Output file.
        layer: Name, grid, classes and source.

    Returns:
        Number of polygons.

    Raises:
        OutputError: Unknown suffix, a format that cannot hold the layer, a folder that cannot be written, a full disk.
    """
    path = Path(path)
    check_format(path, layer.grid)
    present: set[int] = set()

    def noted() -> Iterator[PolygonBatch]:
        for batch in batches:
            present.update(np.unique(batch.class_id).tolist())
            yield batch

    with atomic_output(path) as scratch:
        count = exporter_for(path).write(noted(), scratch, layer)
        if has_style(path):
            _write_styles(scratch, path, layer, present)
        else:
            add_layer_style(scratch, layer, present)
    return count


def _write_styles(scratch: Path, path: Path, layer: Layer, present: Collection[int]) -> None:
    """Write a style beside the file, and beside each part of a shapefile that is too large for one."""
    style = style_qml(layer.classes, present=present, units=layer.units)
    parts = sorted(scratch.parent.glob(f"*{scratch.suffix}"))
    for part in parts:
        write_style(style, part, path.with_name(part.name))
    stale = path.with_name(f"{path.stem}_{len(parts) + 1}{path.suffix}")
    if path.suffix.lower() == ".shp" and stale.exists():
        log.warning("%s is not part of this layer; it may be left over from a larger one", stale)
