"""PMTiles: vector tiles for maps on the web, in one file, by GDAL's writer."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import shapely

from geoseg.classes import format_color
from geoseg.errors import OutputError
from geoseg.export.gdal import WKB_FIELD, write_records
from geoseg.export.layer import Layer, check_whole, portions, text_array, with_first, wkb_array
from geoseg.export.lonlat import LOST, LonLat, map_coordinates, to_wgs84
from geoseg.files import writing
from geoseg.georeference import MERCATOR_LATITUDE
from geoseg.grid import Grid
from geoseg.polygons.batch import PolygonBatch

_TILE_UNITS = 4096  # of a tile's side, to which its coordinates are rounded (GDAL's default)
_MOST_ZOOM = 22  # GDAL's limit
_UNITS_A_PIXEL = 8
_SAMPLES = 9
_HEADER_BYTES = 127


def write_pmtiles(batches: Iterable[PolygonBatch], path: Path, layer: Layer) -> int:
    """Write vector tiles from the zoom level where the map fits one tile to the one that shows its pixels.

    At the highest level a pixel of the map is at least eight units of a tile, so no border collapses; beyond it viewers
    enlarge the tiles. A tile above 500 kB gets coarser coordinates, then loses its smallest polygons. Beside the fields
    of the other formats each polygon has ``color``, ``#rrggbb``, and the layer's description in the metadata is the
    table of the classes as JSON.

    Raises:
        OutputError: A map without polygons, a vertex without longitude and latitude, or the file cannot be written.
    """
    lonlat = LonLat(layer.grid)
    first, batches = with_first((batch for batch in batches if len(batch)), importing="pyogrio")
    if not len(first):
        raise OutputError(
            f"cannot write {path.name}: there is no polygon, and tiles without any cannot be read",
            hint=f"write for example -o {path.with_suffix('.gpkg').name}",
        )
    schema = layer.schema(first).append(pa.field("color", pa.string())).append(WKB_FIELD)
    colors = [format_color(c.color) for c in layer.classes]
    table = [{"id": c.id, "name": c.name, "color": colors[c.id]} for c in layer.classes]

    def as_record(batch: PolygonBatch) -> pa.RecordBatch:
        placed, parts = to_wgs84(batch, lonlat, path)
        wkb = wkb_array(placed)
        if parts:
            geometries = wkb.to_pylist()
            for row, pieces in parts.items():
                geometries[row] = shapely.to_wkb(shapely.multipolygons(pieces))
            wkb = pa.array(geometries, pa.binary())
        return layer.record(placed, schema, text_array(colors, batch.class_id), wkb)

    low, high = zoom_levels(layer.grid)
    count = write_records(
        map(as_record, portions(batches)),
        schema,
        path,
        geometry_type="Unknown",
        is_exact=False,
        driver="PMTiles",
        layer=layer.name,
        crs="EPSG:4326",
        dataset_options={"NAME": layer.name, "MINZOOM": str(low), "MAXZOOM": str(high)},
        layer_options={"DESCRIPTION": json.dumps(table, ensure_ascii=False)},
    )
    with writing(path), path.open("rb") as file:
        header, size = file.read(_HEADER_BYTES), file.seek(0, os.SEEK_END)
        check_whole(len(header) == _HEADER_BYTES)
        # Offset and length of root directory, metadata, leaf directories and tiles
        check_whole(bool(size >= np.frombuffer(header, "<u8", 8, 8).reshape(4, 2).sum(axis=1).max()))
    return count


def zoom_levels(grid: Grid) -> tuple[int, int]:
    """The highest zoom level at which a map is no larger than a tile, and the lowest at which a pixel is eight units.

    The first is at most the second.
    """
    # Steps of less than a pixel could be as small as what degrees are rounded to.
    columns, rows = (np.linspace(0, 1, min(_SAMPLES, n + 1)) * n for n in (grid.width, grid.height))
    lonlat = LonLat(grid)
    xy = map_coordinates(grid.transform, columns, rows)
    placed = lonlat.place(xy.reshape(-1, 2)).reshape(xy.shape)
    degrees = placed / 10.0**lonlat.decimals
    lost = (placed == LOST).any(axis=-1) | (np.abs(degrees[..., 1]) > MERCATOR_LATITUDE)
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
            f"the map lies beyond {MERCATOR_LATITUDE:.2f}° north or south, where Web Mercator ends",
            hint="write a GeoPackage: -o out.gpkg",
        )
    pixel, extent = known.min(), np.nanmax(np.nanmax(world, axis=(0, 1)) - np.nanmin(world, axis=(0, 1)))
    high = int(np.clip(np.ceil(np.log2(_UNITS_A_PIXEL / (_TILE_UNITS * pixel))), 0, _MOST_ZOOM))
    return int(np.clip(np.floor(-np.log2(extent)), 0, high)), high
