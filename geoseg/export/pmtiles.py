"""PMTiles: vector tiles for maps on the web, in one file, by GDAL's writer."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import shapely

from geoseg.arrays import Geometries
from geoseg.classes import format_color
from geoseg.errors import OutputError
from geoseg.export.antimeridian import to_wgs84
from geoseg.export.arrow import attribute_schema, check_whole, portions, record, text_array, with_first, wkb_array
from geoseg.export.gdal import BATCH_FEATURES, WKB_FIELD, Driver, write_records
from geoseg.export.layer import Layer
from geoseg.export.lonlat import lonlat_of, map_coordinates
from geoseg.files import writing
from geoseg.grid import Grid
from geoseg.polygons.batch import PolygonBatch

DRIVER = Driver("PMTiles", geometry_type="Unknown", is_exact=False)

_TILE_UNITS = 4096  # of a tile's side, to which its coordinates are rounded (GDAL's default)
_MOST_ZOOM = 22  # GDAL's limit
_MOST_LATITUDE = 85.0511287  # where Web Mercator's square ends, degrees
_UNITS_A_PIXEL = 8
_SAMPLES = 9
_HEADER_BYTES = 127


def write_pmtiles(batches: Iterable[PolygonBatch], path: Path, layer: Layer) -> int:
    """Write vector tiles from the zoom level where the map fits one tile to the one that shows its pixels.

    At the highest level a pixel of the map is at least eight units of a tile, so no border collapses; viewers enlarge
    its tiles beyond. A tile above 500 kB gets coarser coordinates, then loses its smallest polygons. Beside the fields
    of the other formats each polygon has ``color``, ``#rrggbb``, and the layer's description in the metadata is the
    table of the classes as JSON.

    Raises:
        OutputError: A map without polygons, a vertex without longitude and latitude, or the file cannot be written.
    """
    lonlat = lonlat_of(layer.grid)
    first, batches = with_first((batch for batch in batches if len(batch)), importing="pyogrio")
    if not len(first):
        raise OutputError(
            f"cannot write {path.name}: there is no polygon, and tiles without any cannot be read",
            hint=f"write for example -o {path.with_suffix('.gpkg').name}",
        )
    low, high = zoom_levels(layer.grid)
    schema = attribute_schema(first, layer).append(pa.field("color", pa.string())).append(WKB_FIELD)
    colors = [format_color(c.color) for c in layer.classes]

    def records() -> Iterator[pa.RecordBatch]:
        for batch in batches:
            placed, parts = to_wgs84(batch, lonlat, path)
            start = 0
            for portion in portions(placed, features=BATCH_FEATURES):
                stop = start + len(portion)
                cut = {row - start: pieces for row, pieces in parts.items() if start <= row < stop}
                color = text_array(colors, portion.class_id)
                yield record(portion, layer, schema, color, _geometries(portion, cut))
                start = stop

    table = [{"id": c.id, "name": c.name, "color": format_color(c.color)} for c in layer.classes]
    driver = dataclasses.replace(
        DRIVER,
        dataset_options={"NAME": layer.name, "MINZOOM": str(low), "MAXZOOM": str(high)},
        layer_options={"DESCRIPTION": json.dumps(table, ensure_ascii=False)},
    )
    count = write_records(records(), schema, path, driver, name=layer.name, crs="EPSG:4326")
    with writing(path):
        check_whole(_is_whole(path))
    return count


def zoom_levels(grid: Grid) -> tuple[int, int]:
    """The highest zoom level at which a map is no larger than a tile, and the lowest at which a pixel is eight units.

    The first is at most the second.
    """
    # Steps of less than a pixel could be as small as what degrees are rounded to.
    columns, rows = (np.linspace(0, 1, min(_SAMPLES, n + 1)) * n for n in (grid.width, grid.height))
    lonlat = lonlat_of(grid)
    xy = map_coordinates(grid.transform, columns, rows)
    placed = lonlat.place(xy.reshape(-1, 2)).reshape(xy.shape)
    degrees = placed / 10.0**lonlat.decimals
    lost = (placed == np.iinfo(np.int64).min).any(axis=-1) | (np.abs(degrees[..., 1]) > _MOST_LATITUDE)
    # Web Mercator with the width of the world as its unit
    world = np.stack([degrees[..., 0] / 360, np.arcsinh(np.tan(np.radians(degrees[..., 1]))) / (2 * np.pi)], axis=-1)
    world[lost] = np.nan
    sides = [
        np.linalg.norm(np.diff(world, axis=axis), axis=-1).ravel() * (len(steps) - 1) / length
        for axis, (steps, length) in enumerate(zip((rows, columns), grid.shape, strict=True))
    ]
    known = np.concatenate(sides)
    known = known[np.isfinite(known)]
    if not len(known):
        raise OutputError(
            f"the map lies beyond {_MOST_LATITUDE:.2f}° north or south, where Web Mercator ends",
            hint="write a GeoPackage: -o out.gpkg",
        )
    pixel, extent = known.min(), np.nanmax(np.nanmax(world, axis=(0, 1)) - np.nanmin(world, axis=(0, 1)))
    high = int(np.clip(np.ceil(np.log2(_UNITS_A_PIXEL / (_TILE_UNITS * pixel))), 0, _MOST_ZOOM))
    return int(np.clip(np.floor(-np.log2(extent)), 0, high)), high


def _geometries(batch: PolygonBatch, cut: dict[int, Geometries]) -> pa.Array:
    """The polygons of a batch as WKB, some rows as several parts."""
    whole = wkb_array(batch)
    if not cut:
        return whole
    wkb = whole.to_pylist()
    for row, pieces in cut.items():
        wkb[row] = shapely.to_wkb(shapely.multipolygons(pieces))
    return pa.array(wkb, pa.binary())


def _is_whole(path: Path) -> bool:
    """Whether a file is as long as its header says."""
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
        size = file.seek(0, os.SEEK_END)
    if len(header) < _HEADER_BYTES:
        return False
    # Offset and length of root directory, metadata, leaf directories and tiles
    return bool(size >= np.frombuffer(header, "<u8", 8, 8).reshape(4, 2).sum(axis=1).max())
