"""GeoJSON after RFC 7946, as one collection or one feature a line."""

import logging
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import shapely

from geoseg.arrays import AnyArray, FloatArray, Geometries
from geoseg.export.layer import Layer
from geoseg.export.lonlat import LonLat, to_wgs84
from geoseg.files import writing
from geoseg.polygons.batch import PolygonBatch

log = logging.getLogger(__name__)


def write_geojson(batches: Iterable[PolygonBatch], path: Path, layer: Layer) -> int:
    """Write a layer of polygons as they come: a FeatureCollection, with a feature a line.

    ``.geojsonl`` and ``.ndjson`` have only these lines: RFC 8142 without its record separators, as GDAL, tippecanoe
    and ``jq`` read it.

    WGS84 longitude and latitude, shells counter-clockwise, holes clockwise, cut at the antimeridian, no ``crs``.
    Coordinates have seven decimals (1 cm), more where pixels are below 9 cm (`geoseg.export.lonlat`). Each vertex is
    the same text in every polygon that has it, and long edges are split where they would bend, so borders stay shared.
    Without a CRS there is no longitude to give: coordinates stay as they are, and a warning says so.

    Numbers have as many digits as give them back; NaN is null.

    Raises:
        OutputError: The disk is full, or a vertex has no longitude and latitude.

    References:
        RFC 7946: 3.1.6 (rings), 3.1.9 (antimeridian), 4 (WGS84), 11.2 (precision).
    """
    lonlat = LonLat(layer.grid)
    if not lonlat.is_geographic:
        log.warning(
            "%s: the map has no CRS, so the GeoJSON holds its coordinates, not longitude and latitude", path.name
        )
    is_collection = path.suffix.lower() == ".geojson"
    count = 0
    with writing(path), path.open("wb") as file:
        if is_collection:
            file.write(b'{"type":"FeatureCollection","features":[')
        for batch in batches:
            for text in _features(*to_wgs84(batch, lonlat, path), layer):
                if is_collection:
                    file.write(b",\n" if count else b"\n")
                file.write(text)
                if not is_collection:
                    file.write(b"\n")
                count += 1
        if is_collection:
            file.write(b"\n]}\n")
    return count


def _features(batch: PolygonBatch, parts: dict[int, Geometries], layer: Layer) -> Iterator[bytes]:
    """The text of each feature of a batch in degrees, of which some rows are several polygons."""
    import orjson

    # numpy's own float32 become the fewest digits that give them back, Python's floats would show what lies beneath.
    columns = [list(v) if v.dtype == np.float32 else v.tolist() for v in batch.columns.values()]
    last = {} if layer.source is None else {"source": layer.source}
    polygons = batch.polygons.tolist()
    for row, (class_id, *values) in enumerate(zip(batch.class_id.tolist(), *columns, strict=True)):
        if row in parts:
            _, xy, (rings, ends) = shapely.to_ragged_array(parts[row])
            shapes = [_coordinates(xy, rings[a : b + 1]) for a, b in pairwise(ends)]
        else:
            shapes = [_coordinates(batch.xy, batch.rings[polygons[row] : polygons[row + 1] + 1])]
        is_one = len(shapes) == 1
        geometry = {"type": "Polygon" if is_one else "MultiPolygon", "coordinates": shapes[0] if is_one else shapes}
        measures = dict(zip(batch.columns, values, strict=True))
        named = {name: texts[class_id] for name, texts in layer.texts.items()}
        properties = {"class_id": class_id, **named, **measures, **last}
        feature = {"type": "Feature", "properties": properties, "geometry": geometry}
        yield orjson.dumps(feature, option=orjson.OPT_SERIALIZE_NUMPY)


def _coordinates(xy: FloatArray, rings: AnyArray) -> list[FloatArray]:
    return [xy[a:b] for a, b in pairwise(rings.tolist())]
