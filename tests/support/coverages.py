"""Coverages for the tests of the writers, made by GDAL and GEOS instead of our own tracer."""

from __future__ import annotations

import numpy as np
import rasterio.features
import shapely
from affine import Affine
from rasterio.crs import CRS

from geoseg.classes import ClassTable
from geoseg.export.layer import Layer
from geoseg.grid import Grid
from geoseg.polygons.batch import PolygonBatch

TABLE = ClassTable.from_names(["ground", "Gebäude & <Dächer> \"'", "水"], ["#aabbcc", "#ff0000", "#0000ff"])
UTM = "EPSG:32631"
NORTH_UP = Affine(10, 0, 500_000, 0, -10, 5_000_000)


def blobs(shape=(60, 50), seed=0, block=5):
    """Blocks of 0 … 2 and 255 with single pixels strewn in."""
    rng = np.random.default_rng(seed)
    values = np.kron(rng.integers(0, 4, [n // block for n in shape]), np.ones((block, block), int))
    flip = rng.random(values.shape) < 0.05
    values[flip] = rng.integers(0, 3, flip.sum())
    return np.where(values == 3, 255, values).astype(np.uint8)


def coverage(values=None, *, crs=UTM, transform=NORTH_UP, source="scene é.tif"):
    """Polygons of a class map with a vertex at every pixel corner on a border, and the layer they belong to."""
    values = blobs() if values is None else values
    found = list(rasterio.features.shapes(values, mask=values != 255))
    shapes = shapely.segmentize([shapely.geometry.shape(g) for g, _ in found], 1)
    shapes = shapely.transform(shapes, np.rint)
    t = np.array(transform).reshape(3, 3)
    shapes = shapely.transform(shapes, lambda xy: xy @ t[:2, :2].T + t[:2, 2])
    grid = Grid(*values.shape, transform, CRS.from_user_input(crs) if crs else None)
    return batch(shapes, [int(v) for _, v in found]), Layer("land cover", grid, TABLE, source)


def batch(shapes, class_id):
    """Polygons as a batch with columns of measures and confidences, one of them unknown."""
    shapes = shapely.orient_polygons(np.asarray(shapes, dtype=object))
    conf = np.random.default_rng(1).random(len(shapes)).astype(np.float32)
    conf[:1] = np.nan
    columns = {
        "area_m2": shapely.area(shapes),
        "perim_m": shapely.length(shapes),
        "conf_mean": conf,
        "conf_min": conf / 2,
    }
    ids = np.asarray(class_id, dtype=np.uint8)
    if len(shapes) == 0:
        nothing = np.zeros(1, np.int64)
        return PolygonBatch(ids, np.empty((0, 2)), nothing, nothing, columns)
    _, xy, (rings, polygons) = shapely.to_ragged_array(shapes)
    return PolygonBatch(ids, xy, rings.astype(np.int64), polygons.astype(np.int64), columns)


def pieces(whole, count):
    """The batch in ``count`` batches, the first of them empty."""
    geometries = whole.geometries()
    parts = [np.arange(0), *np.array_split(np.arange(len(whole)), count - 1)]
    for part in parts:
        piece = batch(geometries[part], whole.class_id[part])
        yield PolygonBatch(
            piece.class_id, piece.xy, piece.rings, piece.polygons, {k: v[part] for k, v in whole.columns.items()}
        )
