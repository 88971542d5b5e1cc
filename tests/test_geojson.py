from __future__ import annotations

import json
import logging
from decimal import Decimal

import numpy as np
import pyogrio
import pyproj
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS

from geoseg.errors import OutputError
from geoseg.export.geojson import write_geojson
from geoseg.export.layer import Layer
from geoseg.export.lonlat import LonLat
from geoseg.grid import Grid
from geoseg.polygons.batch import PolygonBatch
from support.coverages import NORTH_UP, TABLE, UTM, batch, coverage, pieces
from support.formats import FormatContract


class TestGeoJSON(FormatContract):
    suffix = ".geojson"


class TestGeoJSONLines(FormatContract):
    suffix = ".geojsonl"


class TestNDJSON(FormatContract):
    suffix = ".ndjson"

    def read(self, path):  # GDAL knows the driver by its other suffix
        return pyogrio.read_dataframe(f"GeoJSONSeq:{path}")


def written(tmp_path, polygons, layer, name="map.geojson"):
    path = tmp_path / name
    count = write_geojson(polygons, path, layer)
    return path, count


def assert_coverage(geometries):
    assert shapely.is_valid(geometries).all(), shapely.is_valid_reason(geometries[~shapely.is_valid(geometries)])
    assert shapely.coverage_is_valid(geometries)


def grid(crs, transform, shape=(60, 50)):
    return Grid(*shape, transform, CRS.from_user_input(crs) if crs else None)


MAPS = {
    "utm 10 m": (UTM, NORTH_UP),
    "utm 5 cm": (UTM, Affine(0.05, 0, 500_000, 0, -0.05, 5_000_000)),
    "utm 4 mm": (UTM, Affine(0.004, 0, 700_000, 0, -0.004, 7_000_000)),
    "rotated": (UTM, Affine.translation(500_000, 5_000_000) @ Affine.rotation(31) @ Affine.scale(0.3, -0.3)),
    "south-up": (UTM, Affine(0.3, 0, 500_000, 0, 0.3, 5_000_000)),
    "south-up, mirrored": (UTM, Affine(-0.3, 0, 500_000, 0, 0.3, 5_000_000)),
    "mercator": ("EPSG:3857", Affine(0.6, 0, 1_690_000, 0, -0.6, 5_960_000)),
    "mercator, coarse": ("EPSG:3857", Affine(100_000, 0, -2_000_000, 0, -100_000, 8_000_000)),
    "degrees": ("EPSG:4326", Affine(1e-5, 0, 15.2, 0, -1e-5, 47.1)),
    "degrees, 5 cm at 70° north": ("EPSG:4326", Affine(1.3e-6, 0, 15.2, 0, -4.5e-7, 70)),
    "degrees, rotated": ("EPSG:4326", Affine.translation(-15.2, -47.1) @ Affine.rotation(20) @ Affine.scale(1e-4)),
    "other datum": ("EPSG:4269", Affine(1e-4, 0, -100, 0, -1e-4, 40)),
    "feet": ("EPSG:2263", Affine(1, 0, 980_000, 0, -1, 200_000)),
    "polar": ("EPSG:3413", Affine(1000, 0, 400_000, 0, -1000, -600_000)),
}


@pytest.mark.parametrize(("crs", "transform"), MAPS.values(), ids=MAPS)
def test_a_coverage_stays_one_and_in_its_place(tmp_path, crs, transform):
    polygons, layer = coverage(crs=crs, transform=transform)
    path, count = written(tmp_path, pieces(polygons, 3), layer)
    assert count == len(polygons)
    back = pyogrio.read_dataframe(path)
    assert back.crs == "EPSG:4326"
    geometries = back.geometry.to_numpy()
    assert len(back) == len(polygons)
    assert_coverage(geometries)
    transformer = pyproj.Transformer.from_crs(layer.grid.crs, 4326, always_xy=True)
    wanted = shapely.transform(polygons.geometries(), transformer.transform, interleaved=False)
    decimals = LonLat(layer.grid).decimals
    assert shapely.hausdorff_distance(geometries, wanted).max() < 0.8 * 10.0**-decimals


@pytest.mark.parametrize("name", ["utm 10 m", "utm 5 cm", "utm 4 mm", "degrees", "polar"])
def test_coordinates_are_exact_decimals(tmp_path, name):
    crs, transform = MAPS[name]
    polygons, layer = coverage(crs=crs, transform=transform)
    path, _ = written(tmp_path, [polygons], layer)
    lonlat = LonLat(layer.grid)
    features = json.loads(path.read_text("utf-8"), parse_float=Decimal, parse_int=Decimal)["features"]
    found = [point for f in features for ring in f["geometry"]["coordinates"] for point in ring]
    xy, _ = lonlat.split_long_edges(polygons.xy, polygons.rings)
    assert [[v.scaleb(lonlat.decimals) for v in point] for point in found] == lonlat.place(xy).tolist()


@pytest.mark.parametrize(("pixel", "decimals"), [(10, 7), (0.1, 7), (0.05, 8), (0.01, 8), (0.004, 9)])
def test_small_pixels_get_more_decimals(pixel, decimals):
    transform = Affine(pixel, 0, 500_000, 0, -pixel, 5_000_000)
    assert LonLat(grid(UTM, transform)).decimals == decimals
    assert LonLat(grid("EPSG:4326", Affine(pixel / 111_000, 0, 15, 0, -pixel / 111_000, 1))).decimals == decimals


def test_attributes_come_back(tmp_path):
    polygons, layer = coverage()
    path, _ = written(tmp_path, pieces(polygons, 3), layer)
    back = pyogrio.read_dataframe(path)
    assert list(back.columns) == ["class_id", "class_name", *polygons.columns, "source", "geometry"]
    assert list(back.class_id) == list(polygons.class_id)
    assert list(back.class_name) == [TABLE[i].name for i in polygons.class_id]
    assert set(back.source) == {"scene é.tif"}
    for name in ("area_m2", "perim_m"):
        assert back[name].dtype == np.float64  # 400.0 is no integer
        np.testing.assert_allclose(back[name], polygons.columns[name], rtol=1e-11)
    for name in ("conf_mean", "conf_min"):
        np.testing.assert_array_equal(back[name].to_numpy().astype(np.float32), polygons.columns[name])
    assert json.loads(path.read_text("utf-8"))["features"][0]["properties"]["conf_mean"] is None


def test_it_follows_rfc_7946(tmp_path):
    polygons, layer = coverage(transform=Affine(0.3, 0, 500_000, 0, 0.3, 5_000_000))
    path, _ = written(tmp_path, [polygons], layer)
    text = path.read_text(encoding="utf-8")
    document = json.loads(text)
    assert set(document) == {"type", "features"}
    assert len(text.splitlines()) == len(polygons) + 2
    rings = [ring for f in json.loads(text, parse_float=str)["features"] for ring in f["geometry"]["coordinates"]]
    numbers = [str(v) for ring in rings for point in ring for v in point]
    assert max(len(v.partition(".")[2]) for v in numbers) == 7
    assert not any(v.endswith("0") and not v.endswith(".0") for v in numbers)
    for feature in document["features"]:
        assert list(feature) == ["type", "properties", "geometry"]
        shell, *holes = (shapely.LinearRing(r) for r in feature["geometry"]["coordinates"])
        assert shell.is_ccw
        assert not any(hole.is_ccw for hole in holes)
    assert sum(len(f["geometry"]["coordinates"]) > 1 for f in document["features"]) > 3


def test_lines_are_the_features_of_the_collection(tmp_path):
    polygons, layer = coverage(source=None)
    path, _ = written(tmp_path, [polygons], layer)
    features = json.loads(path.read_text("utf-8"))["features"]
    lines = tmp_path / "map.geojsonl"
    assert write_geojson(pieces(polygons, 3), lines, layer) == len(polygons)
    assert [json.loads(line) for line in lines.read_text("utf-8").splitlines()] == features
    assert "source" not in features[0]["properties"]
    assert pyogrio.read_info(lines)["features"] == len(polygons)


@pytest.mark.parametrize("batches", [[], [batch([], [])]])
def test_a_layer_without_polygons(tmp_path, batches):
    layer = Layer("none", grid(UTM, NORTH_UP), TABLE)
    path, count = written(tmp_path, batches, layer)
    assert (count, json.loads(path.read_text())) == (0, {"type": "FeatureCollection", "features": []})
    assert len(pyogrio.read_dataframe(path)) == 0
    path, count = written(tmp_path, batches, layer, "map.ndjson")
    assert (count, path.read_bytes()) == (0, b"")


@pytest.mark.parametrize("transform", [Affine.scale(1, -1), Affine.identity()])
def test_a_map_without_crs_keeps_its_coordinates(tmp_path, transform, caplog):
    polygons, layer = coverage(crs=None, transform=transform)
    polygons = PolygonBatch(
        polygons.class_id, polygons.xy + 3 / 256, polygons.rings, polygons.polygons, polygons.columns
    )
    with caplog.at_level(logging.WARNING):
        path, _ = written(tmp_path, [polygons], layer)
    assert "no CRS" in caplog.text
    assert shapely.equals_exact(pyogrio.read_dataframe(path).geometry.to_numpy(), polygons.geometries()).all()


ANTIMERIDIAN = {
    "utm 1": ("EPSG:32601", Affine(500, 0, 160_000, 0, -500, 1_800_000)),
    "utm 60": ("EPSG:32660", Affine(500, 0, 815_000, 0, -500, 1_800_000)),
    "utm 60, 10 cm": ("EPSG:32660", Affine(0.1, 0, 820_679, 0, -0.1, 1_800_000)),
    "degrees to the east": ("EPSG:4326", Affine(0.01, 0, 179.75, 0, -0.01, 10)),
    "degrees to the west": ("EPSG:4326", Affine(0.01, 0, -180.253, 0, -0.01, 10)),
    "degrees 0 to 360": ("EPSG:4326", Affine(7.2, 0, 0, 0, -3, 90)),
    "pacific": ("EPSG:3832", Affine(100_000, 0, 1_000_000, 0, -100_000, 4_000_000)),
    "lambert": ("EPSG:3338", Affine(20_000, 0, -2_200_000, 0, -20_000, 1_500_000)),
}


@pytest.mark.parametrize(("crs", "transform"), ANTIMERIDIAN.values(), ids=ANTIMERIDIAN)
def test_polygons_are_cut_at_the_antimeridian(tmp_path, crs, transform):
    polygons, layer = coverage(crs=crs, transform=transform)
    path, _ = written(tmp_path, [polygons], layer)
    back = pyogrio.read_dataframe(path)
    geometries = back.geometry.to_numpy()
    assert len(back) == len(polygons)
    assert (back.geom_type == "MultiPolygon").any()
    assert_coverage(geometries)
    parts = shapely.get_parts(geometries)
    left, _, right, _ = shapely.bounds(parts).T
    assert (left >= -180).all()
    assert (right <= 180).all()
    assert (left == -180).any()
    assert (right == 180).any()
    assert list(back.class_id) == list(polygons.class_id)
    if crs == "EPSG:4326":
        np.testing.assert_allclose(shapely.area(geometries), shapely.area(polygons.geometries()), rtol=1e-5)
    else:
        assert (right - left).max() < 60
    for feature in json.loads(path.read_text("utf-8"))["features"]:
        if feature["geometry"]["type"] == "MultiPolygon":
            for shell, *holes in feature["geometry"]["coordinates"]:
                assert shapely.LinearRing(shell).is_ccw
                assert not any(shapely.LinearRing(h).is_ccw for h in holes)


@pytest.mark.parametrize(("crs", "south"), [("EPSG:3413", False), ("EPSG:3031", True)])
def test_a_map_around_a_pole_covers_all_longitudes(tmp_path, crs, south):
    values = np.ones((40, 40), np.uint8)
    values[5:9, 5:30] = 2
    values[16:24, 16:24] = 0  # around the pole, in a ring of 1
    polygons, layer = coverage(values, crs=crs, transform=Affine(50_000, 0, -1_010_000, 0, -50_000, 1_010_000))
    path, _ = written(tmp_path, [polygons], layer)
    geometries = pyogrio.read_dataframe(path).geometry.to_numpy()
    assert_coverage(geometries)
    pole = -90 if south else 90
    at_pole = geometries[polygons.class_id == 0][0]
    assert at_pole.bounds[0::2] == (-180, 180)
    assert pole in at_pole.bounds
    whole = shapely.union_all(geometries)
    lon = np.linspace(-179.99, 179.99, 101)
    assert shapely.contains_xy(whole, lon, np.full(101, pole * 85 / 90)).all()


def test_long_edges_bend_with_the_projection(tmp_path):
    """An edge of 30 000 px along a parallel of UTM leaves it by many pixels."""
    shape, transform = (1000, 30_000), Affine(10, 0, 300_000, 0, -10, 6_500_000)
    boxes = shapely.box([0, 7_000], [0, 0], [7_000, 30_000], [400, 400])
    boxes = np.append(boxes, shapely.Polygon([(0, 400), (7_000, 400), (30_000, 400), (30_000, 1000), (0, 1000)]))
    boxes = shapely.transform(boxes, lambda xy: np.column_stack(transform @ (xy[:, 0], xy[:, 1])))
    layer = Layer("map", grid(UTM, transform, shape), TABLE)
    path, _ = written(tmp_path, [batch(boxes, [0, 1, 2])], layer)
    back = pyogrio.read_dataframe(path).geometry.to_numpy()
    assert_coverage(back)
    dense = shapely.segmentize(boxes, 500)
    to_lonlat = pyproj.Transformer.from_crs(UTM, 4326, always_xy=True)
    dense = shapely.transform(dense, to_lonlat.transform, interleaved=False)
    to_map = pyproj.Transformer.from_crs(4326, UTM, always_xy=True)
    fine = shapely.transform(shapely.segmentize(back, 0.001), to_map.transform, interleaved=False)
    assert shapely.hausdorff_distance(fine, boxes).max() < 10 / 32 + 0.01
    assert shapely.get_num_coordinates(back).sum() < 1_000


@pytest.mark.parametrize(("crs", "transform"), [*MAPS.values(), *ANTIMERIDIAN.values()])
def test_the_lattice_agrees_with_proj(crs, transform):
    g = grid(crs, transform)
    lonlat = LonLat(g)
    rng = np.random.default_rng(0)
    c, r = rng.random(2000) * g.width, rng.random(2000) * g.height
    xy = np.column_stack(transform @ (c, r))
    lon, lat = pyproj.Transformer.from_crs(g.crs, 4326, always_xy=True).transform(*xy.T)
    off = lonlat.place(xy) - np.column_stack([lon, lat]) * 10.0**lonlat.decimals
    off[:, 0] -= 360 * 10.0**lonlat.decimals * np.rint(off[:, 0] / (360 * 10.0**lonlat.decimals))
    assert np.abs(off).max() < 0.53


def test_a_place_without_longitude_is_refused(tmp_path):
    square = shapely.box(-1e9, -1e9, 1e9, 1e9)
    layer = Layer("map", grid("EPSG:32631", Affine(1e8, 0, -1e9, 0, -1e8, 1e9), (20, 20)), TABLE)
    with pytest.raises(OutputError, match="no longitude") as error:
        written(tmp_path, [batch([square], [1])], layer)
    assert "map.gpkg" in error.value.hint
