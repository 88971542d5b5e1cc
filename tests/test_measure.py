from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS

from geoseg.grid import Grid
from geoseg.polygons.batch import PolygonBatch
from geoseg.polygons.measure import Measure

PLACES = {
    "utm": ("EPSG:32633", Affine(10, 0, 380_000, 0, -10, 5_200_000)),
    "utm-south-up": ("EPSG:32733", Affine(10, 0, 380_000, 0, 10, 5_200_000)),
    "web-mercator": ("EPSG:3857", Affine(10, 0, 1_600_000, 0, -10, 9_000_000)),
    "laea": ("EPSG:3035", Affine(10, 0, 5_900_000, 0, -10, 1_700_000)),
    "polar": ("EPSG:3413", Affine(100, 0, -60_000, 0, -100, 50_000)),
    "feet": ("EPSG:2263", Affine(30, 0, 980_000, 0, -30, 200_000)),
    "degrees": ("EPSG:4326", Affine(1e-4, 0, 15, 0, -1e-4, 47)),
    "degrees-far-north": ("EPSG:4326", Affine(1e-3, 0, 15, 0, -1e-4, 85)),
    "antimeridian": ("EPSG:4326", Affine(1e-4, 0, 179.95, 0, -1e-4, -16)),
    "utm-antimeridian": ("EPSG:32701", Affine(10, 0, 160_000, 0, -10, 8_000_000)),
    "rotated": ("EPSG:32633", Affine.translation(380_000, 5_200_000) @ Affine.rotation(30) @ Affine.scale(10, -10)),
}


def grid_of(crs, transform, size=(1000, 1000)):
    return Grid(*size, transform, crs and CRS.from_user_input(crs))


def batch_of(polygons, class_id=None):
    polygons = shapely.orient_polygons(np.asarray(polygons, dtype=object))
    _, xy, (rings, parts) = shapely.to_ragged_array(polygons)
    ids = np.zeros(len(polygons), np.uint8) if class_id is None else np.asarray(class_id, np.uint8)
    return PolygonBatch(ids, np.ascontiguousarray(xy), rings.astype(np.int64), parts.astype(np.int64))


def stars(transform, rng, *, n=40, size=(1000, 1000), reach=(0.5, 8.0)):
    """Ring polygons with a hole each, of some pixels' size, anywhere inside the map."""
    polygons = []
    for _ in range(n):
        centre, angle = rng.uniform(0.02, 0.98, 2) * size[::-1], np.sort(rng.uniform(0, 2 * np.pi, 9))
        radius = min(np.exp(rng.uniform(*np.log(reach))), *centre, *(size[::-1] - centre))
        shell, hole = (
            centre + radius * r * np.column_stack([np.cos(a), np.sin(a)])
            for r, a in ((rng.uniform(0.8, 1, (9, 1)), angle), (rng.uniform(0.1, 0.3, (5, 1)), angle[::2]))
        )
        x, y = transform @ shell.T
        u, v = transform @ hole.T
        polygons.append(shapely.Polygon(np.column_stack([x, y]), [np.column_stack([u, v])]))
    return np.array(polygons, dtype=object)


def geodesic(polygons, crs, *, pieces=1):
    """Area and perimeter by GeographicLib, with each edge cut into pieces that follow the CRS's straight line."""
    crs = pyproj.CRS.from_user_input(crs)
    transform = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True).transform
    geod, areas, lengths = crs.get_geod(), [], []
    for polygon in polygons:
        results = []
        for ring in (polygon.exterior, *polygon.interiors):
            xy = shapely.get_coordinates(ring)
            at = np.arange(pieces)[:, None] / pieces
            xy = np.concatenate([a + at * (b - a) for a, b in pairwise(xy)])
            area, length = geod.polygon_area_perimeter(*transform(xy[:, 0], xy[:, 1]))
            results.append((abs(area), length))
        areas.append(results[0][0] - sum(r[0] for r in results[1:]))
        lengths.append(sum(r[1] for r in results))
    return np.array(areas), np.array(lengths)


@pytest.mark.parametrize("place", PLACES)
def test_small_polygons_measure_as_in_geographiclib(place):
    crs, transform = PLACES[place]
    polygons = stars(transform, np.random.default_rng(1))
    columns = Measure(grid_of(crs, transform)).columns(batch_of(polygons))
    assert list(columns) == ["area_m2", "perim_m"]
    area, length = geodesic(polygons, crs, pieces=32)
    np.testing.assert_allclose(columns["perim_m"], length, rtol=2e-8)
    # GeographicLib subtracts sums over the whole Earth: a few cm² are lost with each ring.
    np.testing.assert_allclose(columns["area_m2"], area, rtol=5e-8, atol=5e-3)


@pytest.mark.parametrize("place", [p for p, (crs, _) in PLACES.items() if crs != "EPSG:4326"])
def test_polygons_of_half_a_map_are_measured_along_their_edges(place):
    crs, transform = PLACES[place]
    transform = transform @ Affine.scale(10)
    polygons = stars(transform, np.random.default_rng(2), n=6, reach=(40, 500))
    columns = Measure(grid_of(crs, transform)).columns(batch_of(polygons))
    area, length = geodesic(polygons, crs, pieces=400)
    np.testing.assert_allclose(columns["perim_m"], length, rtol=1e-7)
    np.testing.assert_allclose(columns["area_m2"], area, rtol=1e-7)


def equal_area_m2(polygons):
    """Areas in degrees by the cylindrical equal-area projection, where meridians and parallels stay straight."""
    left, _, right, _ = shapely.total_bounds(polygons)
    project = pyproj.Proj(proj="cea", lat_ts=0, lon_0=(left + right) / 2, ellps="WGS84")
    return shapely.area(shapely.transform(polygons, lambda xy: np.column_stack(project(xy[:, 0], xy[:, 1]))))


@pytest.mark.parametrize(
    ("west", "north", "gsd"), [(15, 47, 1e-4), (-180, 90, 0.18), (179.9, 60, 1e-3), (0, 0.1, 1e-6)]
)
def test_areas_in_degrees_match_an_equal_area_projection(west, north, gsd):
    transform = Affine(gsd, 0, west, 0, -gsd, north)
    rng = np.random.default_rng(3)
    row, col = rng.integers(0, 900, (2, 200))
    height, width = np.exp(rng.uniform(0, np.log(100), (2, 200))).astype(int)
    x, y = transform @ (np.array([col, col + width]), np.array([row + height, row]))
    boxes = shapely.box(x[0], y[0], x[1], y[1])
    area = Measure(grid_of("EPSG:4326", transform)).columns(batch_of(boxes))["area_m2"]
    # The projection itself has 1e-16 of the Earth's area to lose.
    np.testing.assert_allclose(area, equal_area_m2(boxes), rtol=1e-8, atol=area.max() * 1e-10 + 1e-6)


def test_the_whole_earth_has_the_area_of_the_ellipsoid():
    grid = grid_of("EPSG:4326", Affine(0.5, 0, -180, 0, -0.5, 90), (360, 720))
    columns = Measure(grid).columns(batch_of([shapely.box(-180, -90, 180, 90), shapely.box(10, -90, 11, 90)]))
    np.testing.assert_allclose(columns["area_m2"], np.array([1, 1 / 360]) * 510_065_621.724e6, rtol=1e-9)
    meridian = pyproj.Geod(ellps="WGS84").line_length([0, 0], [0, 90])
    np.testing.assert_allclose(columns["perim_m"], 4 * meridian, rtol=1e-7)


def test_areas_of_small_and_large_polygons_add_up():
    crs, transform = PLACES["utm"]
    edges = np.array([0, 1, 3, 10, 40, 150, 400, 1000])
    columns, rows = np.meshgrid(edges, edges)
    x, y = transform @ (columns.astype(float), rows.astype(float))
    boxes = shapely.box(x[1:, :-1], y[1:, :-1], x[1:, 1:], y[:-1, 1:]).ravel()
    whole = shapely.union_all(boxes)
    measure = Measure(grid_of(crs, transform))
    (expected,) = measure.columns(batch_of([whole]))["area_m2"]
    assert measure.columns(batch_of(boxes))["area_m2"].sum() == pytest.approx(expected, rel=1e-9)
    assert grid_of(crs, transform).pixel_area_m2().sum() * 1000 == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("crs", [None, 'LOCAL_CS["site",UNIT["foot",0.3048]]'])
def test_without_a_crs_measures_are_planar(crs):
    polygons = stars(Affine.scale(1, -1), np.random.default_rng(4))
    columns = Measure(grid_of(crs, Affine.scale(1, -1))).columns(batch_of(polygons))
    unit = 0.3048 if crs else 1
    np.testing.assert_allclose(columns["area_m2"], shapely.area(polygons) * unit**2, rtol=1e-12)
    np.testing.assert_allclose(columns["perim_m"], shapely.length(polygons) * unit, rtol=1e-12)


def test_one_pixel_maps_and_no_polygons_are_measured_too():
    crs, _ = PLACES["utm"]
    measure = Measure(grid_of(crs, Affine(0.1, 0, 500_000, 0, -0.1, 5_000_000), (1, 1)))
    pixel = shapely.box(500_000, 4_999_999.9, 500_000.1, 5_000_000)
    columns = measure.columns(batch_of([pixel]))
    np.testing.assert_allclose(columns["area_m2"], 0.01 / 0.9996**2, rtol=1e-7)
    np.testing.assert_allclose(columns["perim_m"], 0.4 / 0.9996, rtol=1e-7)
    empty = PolygonBatch(np.empty(0, np.uint8), np.empty((0, 2)), np.zeros(1, np.int64), np.zeros(1, np.int64))
    assert [len(c) for c in measure.columns(empty).values()] == [0, 0]


def test_100_000_polygons_are_measured_in_a_second():
    crs, transform = PLACES["utm"]
    batch = batch_of(stars(transform, np.random.default_rng(5), n=2000))
    measure = Measure(grid_of(crs, transform))
    measure.columns(batch)
    started = time.perf_counter()
    for _ in range(5):
        measure.columns(batch)
    assert 10_000 / (time.perf_counter() - started) > 100_000  # polygons/s; ten times that on an idle core
