from __future__ import annotations

import json
import logging
import sqlite3
import xml.etree.ElementTree as ET

import geopandas
import numpy as np
import pyogrio
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS

from geoseg.classes import ClassTable
from geoseg.errors import ConfigError, OutputError, SceneError
from geoseg.export import EXPORTERS, exporter_for, style_qml, write_polygons
from geoseg.grid import Grid
from geoseg.map_files import MapFileWriter
from geoseg.map_rows import MapRows
from geoseg.polygons import Tolerance, area_m2, polygonize
from geoseg.vectorize import vectorize

TABLE = ClassTable.from_names(["ground", "Gebäude & <Dächer>", "水"], ["#aabbcc", "#ff0000", "#0000ff"])
UTM = "EPSG:32633"
NORTH_UP = Affine(0.3, 0, 500_000, 0, -0.3, 5_000_000)


def blobs(shape=(80, 60), seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 4, (shape[0] // 5, shape[1] // 5), dtype=np.uint8)
    values = np.kron(coarse, np.ones((5, 5), dtype=np.uint8))
    flip = rng.random(shape) < 0.05
    values[flip] = rng.integers(0, 3, flip.sum())
    return np.where(values == 3, 255, values).astype(np.uint8)


def frame_of(values=None, *, crs=UTM, transform=NORTH_UP, simplify="1px"):
    tolerance = Tolerance(1, "px") if simplify else None
    return polygonize(blobs() if values is None else values, transform, crs=crs, classes=TABLE, simplify=tolerance)


def read(path):
    if path.suffix == ".parquet":
        return geopandas.read_parquet(path)
    return geopandas.read_file(path, layer=path.stem)


def assert_same(back, frame, tolerance):
    """Same polygons with the same classes; in any order where the vertices are exactly the same."""
    assert len(back) == len(frame)
    if tolerance == 0:
        back, frame = (
            f.iloc[np.argsort(shapely.to_wkb(shapely.normalize(f.geometry.to_numpy())))] for f in (back, frame)
        )
    assert list(back.class_id) == list(frame.class_id)
    assert list(back.class_name) == list(frame.class_name)
    np.testing.assert_allclose(back.area_m2, frame.area_m2, rtol=1e-9)
    assert shapely.hausdorff_distance(back.geometry.to_numpy(), frame.geometry.to_numpy()).max() <= tolerance


@pytest.mark.parametrize("suffix", EXPORTERS)
def test_polygons_come_back_from_every_format(tmp_path, suffix):
    frame, path = frame_of(), tmp_path / f"land cover{suffix}"
    write_polygons(frame, path, TABLE)
    back = read(path)
    if suffix == ".geojson":
        assert back.crs == "EPSG:4326"
        assert_same(back.to_crs(UTM), frame, 0.01)
    else:
        assert back.crs == UTM
        assert_same(back, frame, 0)
    assert shapely.is_valid(back.geometry.to_numpy()).all()
    assert shapely.coverage_is_valid(back.geometry.to_numpy())


@pytest.mark.parametrize("suffix", EXPORTERS)
@pytest.mark.parametrize("crs", [UTM, None])
def test_a_map_of_nothing_but_nodata_gives_an_empty_layer_with_its_fields(tmp_path, suffix, crs):
    path = tmp_path / f"none{suffix}"
    write_polygons(frame_of(np.full((4, 5), 255, np.uint8), crs=crs), path, TABLE)
    assert len(read(path)) == 0
    if suffix not in (".geojson", ".parquet"):
        info = pyogrio.read_info(path, layer=path.stem)
        assert list(info["fields"]) == ["class_id", "class_name", "area_m2"]
        assert info["geometry_type"] == "Polygon"


@pytest.mark.parametrize("suffix", EXPORTERS)
@pytest.mark.filterwarnings("error")
def test_a_map_without_crs_keeps_its_coordinates(tmp_path, suffix, caplog):
    frame, path = frame_of(crs=None, transform=Affine.scale(1, -1)), tmp_path / f"pixels{suffix}"
    with caplog.at_level(logging.WARNING):
        write_polygons(frame, path, TABLE)
    assert ("no CRS" in caplog.text) == (suffix == ".geojson")
    assert_same(read(path).set_crs(None, allow_override=True), frame, 0)


@pytest.mark.parametrize("suffix", EXPORTERS)
def test_overwriting_leaves_nothing_of_the_older_file(tmp_path, suffix):
    path = tmp_path / f"map{suffix}"
    write_polygons(frame_of(), path, TABLE)
    names = sorted(p.name for p in tmp_path.iterdir())
    (tmp_path / ("map.qix" if suffix == ".shp" else f"{path.name}-wal")).write_text("old")
    write_polygons(frame_of(np.array([[1]], dtype=np.uint8)), path, TABLE)
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert len(read(path)) == 1


@pytest.mark.parametrize("suffix", EXPORTERS)
def test_nothing_is_left_of_an_export_that_fails(tmp_path, suffix):
    table = ClassTable.from_names(["ground", "\ud800", "water"], ["#aabbcc", "#ff0000", "#0000ff"])  # is no UTF-8
    with pytest.raises(UnicodeEncodeError):
        write_polygons(frame_of(), tmp_path / f"map{suffix}", table)
    assert list(tmp_path.iterdir()) == []


def test_geojson_follows_rfc_7946(tmp_path):
    write_polygons(frame_of(), tmp_path / "map.geojson", TABLE)
    text = (tmp_path / "map.geojson").read_text(encoding="utf-8")
    document = json.loads(text, parse_float=str)  # digits as written
    assert document["type"] == "FeatureCollection"
    assert "crs" not in document
    rings = [ring for f in document["features"] for ring in f["geometry"]["coordinates"]]
    assert all(len(str(v).partition(".")[2]) <= 7 for ring in rings for point in ring for v in point)
    for feature in json.loads(text)["features"]:
        exterior, *holes = (shapely.LinearRing(r) for r in feature["geometry"]["coordinates"])
        assert exterior.is_ccw
        assert not any(hole.is_ccw for hole in holes)
        assert set(feature["properties"]) == {"class_id", "class_name", "area_m2"}
    lon, lat = zip(*[[float(v) for v in point] for ring in rings for point in ring], strict=True)
    assert np.mean(lon) == pytest.approx(15, abs=0.01)
    assert np.mean(lat) == pytest.approx(45.15, abs=0.01)


def test_geojson_of_millimetre_pixels_is_still_a_valid_coverage(tmp_path):
    frame = frame_of(transform=Affine(0.004, 0, 500_000, 0, -0.004, 5_000_000))
    write_polygons(frame, tmp_path / "map.geojson", TABLE)
    back = geopandas.read_file(tmp_path / "map.geojson")
    assert len(back) == len(frame)
    assert shapely.is_valid(back.geometry.to_numpy()).all()
    assert shapely.coverage_is_valid(back.geometry.to_numpy())


def test_geojson_is_cut_at_the_antimeridian(tmp_path):
    frame = frame_of(crs="EPSG:32701", transform=Affine(500, 0, 160_000, 0, -500, 8_000_000))  # UTM 1 S, Fiji
    write_polygons(frame, tmp_path / "map.geojson", TABLE)
    back = geopandas.read_file(tmp_path / "map.geojson")
    assert (back.geom_type == "MultiPolygon").sum() > 2
    parts = shapely.get_parts(back.geometry.to_numpy())
    left, _, right, _ = shapely.bounds(parts).T
    assert (right - left).max() < 1
    assert left.min() < -179 < 179 < right.max()
    assert shapely.is_valid(parts).all()
    assert shapely.coverage_is_valid(back.geometry.to_numpy())
    assert area_m2(parts, "EPSG:4326").sum() == pytest.approx(frame.area_m2.sum(), rel=1e-4)


def test_geojson_of_a_geographic_rotated_map_keeps_its_place(tmp_path):
    transform = Affine.translation(15.2, 47.1) @ Affine.rotation(20) @ Affine.scale(1e-5, 1e-5)  # south-up, rotated
    frame = frame_of(crs="EPSG:4326", transform=transform, simplify=None)
    write_polygons(frame, tmp_path / "map.geojson", TABLE)
    assert_same(geopandas.read_file(tmp_path / "map.geojson"), frame, 1e-7)


def test_the_geopackage_has_the_style_that_qgis_reads(tmp_path):
    path = tmp_path / "land cover.gpkg"
    write_polygons(frame_of(), path, TABLE)
    connection = sqlite3.connect(path)
    columns = [row[1] for row in connection.execute("PRAGMA table_info(layer_styles)")]
    assert columns == [
        *("id", "f_table_catalog", "f_table_schema", "f_table_name", "f_geometry_column", "styleName", "styleQML"),
        *("styleSLD", "useAsDefault", "description", "owner", "ui", "update_time"),
    ]
    (table, geometry, default, qml), *more = connection.execute(
        "SELECT f_table_name, f_geometry_column, useAsDefault, styleQML FROM layer_styles"
    ).fetchall()
    assert (table, geometry, default, more) == ("land cover", "geom", 1, [])
    assert qml == style_qml(TABLE)
    assert connection.execute(
        "SELECT count(*) FROM gpkg_extensions WHERE extension_name = 'gpkg_rtree_index'"
    ).fetchone()
    connection.close()
    layers = dict(pyogrio.list_layers(path))
    assert layers == {"land cover": "Polygon", "layer_styles": None}
    assert pyogrio.read_dataframe(path, layer="layer_styles").useAsDefault.iloc[0]


def test_the_style_has_a_category_and_a_fill_for_every_class():
    root = ET.fromstring(style_qml(TABLE))
    renderer = root.find("renderer-v2[@type='categorizedSymbol'][@attr='class_id']")
    assert [(c.get("value"), c.get("label")) for c in renderer.find("categories")] == [
        (str(c.id), c.name) for c in TABLE
    ]
    fills = [o.get("value") for o in renderer.findall(".//Option[@name='color']")]
    assert [tuple(int(v) for v in f.split(",")[:3]) for f in fills] == [c.color for c in TABLE]


def test_the_shapefile_says_utf8_and_holds_long_names_and_large_areas(tmp_path):
    names = ["é" * 80, "b"]
    table = ClassTable.from_names(names, ["#000000", "#ffffff"])
    frame = polygonize(np.array([[0, 1]], np.uint8), Affine(1e6, 0, 0, 0, -1e6, 0), crs="EPSG:6933", classes=table)
    write_polygons(frame, tmp_path / "map.shp", table)
    assert (tmp_path / "map.cpg").read_text().strip() == "UTF-8"
    back = geopandas.read_file(tmp_path / "map.shp")
    assert sorted(back.class_name) == sorted(names)
    np.testing.assert_allclose(back.area_m2, frame.area_m2, rtol=1e-9)


def test_geoparquet_has_a_bounding_box_column_for_readers_to_filter_by(tmp_path):
    frame = frame_of()
    write_polygons(frame, tmp_path / "map.parquet", TABLE)
    part = geopandas.read_parquet(tmp_path / "map.parquet", bbox=(500_000, 4_999_999, 500_001, 5_000_000))
    assert 0 < len(part) < len(frame)


def test_an_unknown_suffix_lists_the_known_ones():
    with pytest.raises(OutputError, match=r"suffix \.dwg.*\.geojson \.gpkg \.shp \.fgb \.parquet") as error:
        exporter_for("out/map.dwg")
    assert "-o out/map.gpkg" in error.value.hint
    with pytest.raises(OutputError, match="no suffix"):
        exporter_for("map")
    assert exporter_for("MAP.GPKG") is EXPORTERS[".gpkg"]


@pytest.fixture
def class_map(tmp_path):
    def make(crs=UTM, transform=NORTH_UP):
        values = blobs()
        grid = Grid(*values.shape, transform, crs and CRS.from_user_input(crs))
        with MapFileWriter(tmp_path / "map.tif", grid, TABLE) as out:
            out.write(MapRows(values))
        return tmp_path / "map.tif"

    return make


@pytest.mark.parametrize("suffix", EXPORTERS)
def test_vectorize_writes_the_map_in_every_format(class_map, tmp_path, suffix):
    report = vectorize(class_map(), tmp_path / f"map{suffix}", simplify=None)
    back = read(report.path)
    pixels = np.bincount(blobs().ravel(), minlength=256)
    assert len(back) == report.polygons == sum(c.polygons for c in report.classes)
    assert [c.name for c in report.classes] == list(TABLE.names)
    np.testing.assert_allclose([c.area_m2 for c in report.classes], pixels[:3] * 0.09, rtol=1e-3)


def test_map_and_polygons_of_one_name_share_one_style(class_map, tmp_path):
    path = class_map()
    before = (tmp_path / "map.qml").read_text()
    vectorize(path, tmp_path / "map.gpkg")
    assert (tmp_path / "map.qml").read_text() == before


def test_vectorize_puts_a_map_without_georeference_where_qgis_draws_it(class_map, tmp_path):
    report = vectorize(class_map(None, Affine.identity()), tmp_path / "map.gpkg")
    assert tuple(read(report.path).total_bounds) == (0, -80, 60, 0)


def test_vectorize_checks_everything_before_it_writes(class_map, tmp_path):
    path = class_map(None, Affine.identity())
    names = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(OutputError, match="dwg"):
        vectorize(tmp_path / "none.tif", tmp_path / "map.dwg")
    with pytest.raises(SceneError, match="no such"):
        vectorize(tmp_path / "none.tif", tmp_path / "map.gpkg")
    with pytest.raises(ConfigError, match="no CRS"):
        vectorize(path, tmp_path / "map.gpkg", simplify=Tolerance(0.5, "m"))
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    vectorize(path, tmp_path / "map.gpkg")
    with pytest.raises(OutputError, match="exists"):
        vectorize(path, tmp_path / "map.gpkg")
    vectorize(path, tmp_path / "map.gpkg", overwrite=True)
