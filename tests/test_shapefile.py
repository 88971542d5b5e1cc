from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyogrio
import pyproj
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from geoseg.classes import ClassTable
from geoseg.errors import OutputError
from geoseg.export.layer import Layer
from geoseg.export.shapefile import write_shapefile
from geoseg.polygons.batch import PolygonBatch
from support.coverages import TABLE, batch, coverage, pieces
from support.formats import FIELDS, ExactContract


class TestShapefile(ExactContract):
    suffix = ".shp"
    measures_off = 0.5000001e-6
    test_a_crs_in_no_register_is_kept = None  # it is refused: test_export.py

    def files(self, stem, crs):
        return {f"{stem}.{end}" for end in ("shp", "shx", "dbf", "cpg")} | ({f"{stem}.prj"} if crs else set())

    def same_crs(self, found, wanted):
        return pyproj.CRS(found).equals(pyproj.CRS(wanted), ignore_axis_order=True) if wanted else found is None


def test_the_header_counts_bounds_and_names_the_encoding(tmp_path):
    polygons, layer = coverage()
    write_shapefile([polygons], tmp_path / "map.shp", layer)
    info = pyogrio.read_info(tmp_path / "map.shp")
    assert list(info["dtypes"]) == ["int32", "object", *["float64"] * 4, "object"]
    assert (info["geometry_type"], info["encoding"], info["features"]) == ("Polygon", "UTF-8", len(polygons))
    assert info["total_bounds"] == tuple(shapely.total_bounds(polygons.geometries()))


def with_columns(polygons, **columns):
    return PolygonBatch(polygons.class_id, polygons.xy, polygons.rings, polygons.polygons, columns)


def squares(values):
    polygons = batch(shapely.box(np.arange(len(values)), 0, np.arange(len(values)) + 0.5, 1), np.zeros(len(values)))
    return with_columns(polygons, value=np.asarray(values))


def layer_like(layer, *, classes=TABLE, source="scene é.tif"):
    return Layer(layer.name, layer.grid, classes, source)


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_the_file_is_the_one_that_gdal_writes(tmp_path):
    polygons, layer = coverage(crs=None)
    write_shapefile([polygons], tmp_path / "ours.shp", layer)
    pyogrio.write_dataframe(pyogrio.read_dataframe(tmp_path / "ours.shp"), tmp_path / "gdal.shp", encoding="UTF-8")
    for end in ("shp", "shx"):
        assert (tmp_path / f"ours.{end}").read_bytes() == (tmp_path / f"gdal.{end}").read_bytes()
    assert pyogrio.read_dataframe(tmp_path / "gdal.shp").equals(pyogrio.read_dataframe(tmp_path / "ours.shp"))


def test_shells_run_clockwise_and_holes_the_other_way(tmp_path):
    polygons, layer = coverage()
    write_shapefile([polygons], tmp_path / "map.shp", layer)
    content, at, holes = (tmp_path / "map.shp").read_bytes(), 100, 0
    while at < len(content):
        rings, points = np.frombuffer(content, "<i4", 2, at + 44)
        starts = np.append(np.frombuffer(content, "<i4", rings, at + 52), points)
        xy = np.frombuffer(content, "<f8", 2 * points, at + 52 + 4 * rings).reshape(-1, 2)
        ccw = [shapely.LinearRing(xy[a:b]).is_ccw for a, b in pairwise(starts)]
        assert ccw == [False] + [True] * (rings - 1)
        holes += rings - 1
        at += 52 + 4 * rings + 16 * points
    assert holes > 0


def test_fields_have_the_widths_that_their_numbers_need(tmp_path):
    polygons, layer = coverage()
    write_shapefile([polygons], tmp_path / "map.shp", layer)
    header = (tmp_path / "map.dbf").read_bytes()[32 : 32 + 32 * len(FIELDS)]
    fields = [header[i : i + 32] for i in range(0, len(header), 32)]
    assert [(f[:11].rstrip(b"\0").decode(), chr(f[11]), f[16], f[17]) for f in fields] == [
        ("class_id", "N", 3, 0),
        ("class_name", "C", max(len(name.encode()) for name in TABLE.names), 0),
        ("area_m2", "N", 24, 15),
        ("perim_m", "N", 24, 15),
        ("conf_mean", "N", 24, 15),
        ("conf_min", "N", 24, 15),
        ("source", "C", len("scene é.tif".encode()), 0),
    ]


@given(st.lists(st.floats(-1e17, 1e18) | st.floats(-10, 10) | st.just(np.nan), min_size=1, max_size=30))
def test_numbers_are_read_as_they_were(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("numbers") / "map.shp"
    _, layer = coverage(np.zeros((1, 1), np.uint8))
    write_shapefile([squares(values)], path, layer)
    back = pyogrio.read_dataframe(path).value.to_numpy()
    np.testing.assert_array_equal(np.isnan(back), np.isnan(values))
    np.testing.assert_allclose(back, values, rtol=1e-15, atol=0.5000001e-6)


@pytest.mark.parametrize("width", [np.uint8, np.int16, np.int32, np.uint32])
def test_integers_keep_their_extremes(tmp_path, width):
    limits = np.iinfo(width)
    _, layer = coverage(np.zeros((1, 1), np.uint8))
    write_shapefile([squares(np.array([limits.min, limits.max, 0], width))], tmp_path / "map.shp", layer)
    back = pyogrio.read_dataframe(tmp_path / "map.shp").value
    assert (list(back), back.dtype.kind) == ([limits.min, limits.max, 0], "i")


@pytest.mark.parametrize("count", [2, 5])
def test_what_does_not_fit_goes_to_numbered_parts(tmp_path, count):
    polygons, layer = coverage()
    write_shapefile([polygons], tmp_path / "whole.shp", layer)
    size = (tmp_path / "whole.shp").stat().st_size
    limit = size // 3
    path = tmp_path / "map.shp"
    assert write_shapefile(pieces(polygons, count), path, layer, limit=limit) == len(polygons)
    parts = [path, *sorted(tmp_path.glob("map_*.shp"))]
    assert [p.name for p in parts[1:]] == [f"map_{n}.shp" for n in range(2, len(parts) + 1)]
    assert len(parts) == 4
    start = 0
    for part in parts:
        assert part.stat().st_size <= limit
        assert {p.suffix for p in tmp_path.glob(f"{part.stem}.*")} == {".shp", ".shx", ".dbf", ".cpg", ".prj"}
        frame = pyogrio.read_dataframe(part)
        chosen = np.arange(start, start + len(frame))
        (piece,) = list(pieces(polygons, 2))[1:]
        expected = piece.geometries()[chosen]
        assert shapely.equals_exact(shapely.normalize(frame.geometry.to_numpy()), shapely.normalize(expected)).all()
        assert list(frame.class_id) == list(polygons.class_id[chosen])
        start += len(frame)
    assert start == len(polygons)


def test_attributes_too_can_fill_a_part(tmp_path):
    polygons, layer = coverage()
    layer = layer_like(layer, source="s" * 250)
    width = 1 + 3 + len(TABLE.names[1].encode()) + 19 * 2 + 9 * 2 + 250
    limit = 32 + 32 * 7 + 1 + 20 * width + 1
    assert write_shapefile([polygons], tmp_path / "map.shp", layer, limit=max(limit, 8_000)) == len(polygons)
    sizes = [pyogrio.read_info(p)["features"] for p in tmp_path.glob("*.shp")]
    assert sum(sizes) == len(polygons)
    assert all(p.stat().st_size <= max(limit, 8_000) for p in tmp_path.glob("*.dbf"))


def test_a_polygon_past_the_limit_is_refused(tmp_path):
    polygons, layer = coverage()
    with pytest.raises(OutputError, match=r"too large for the shapefile map\.shp") as error:
        write_shapefile([polygons], tmp_path / "map.shp", layer, limit=500)
    assert "out.gpkg" in error.value.hint


def test_long_names_are_cut_between_characters(tmp_path, caplog):
    names = ["é" * 126 + "x水", "b", "c"]
    classes = ClassTable.from_names(names, ["#000000", "#ffffff", "#ff0000"])
    polygons, layer = coverage()
    write_shapefile([polygons], tmp_path / "map.shp", layer_like(layer, classes=classes))
    assert set(pyogrio.read_dataframe(tmp_path / "map.shp").class_name) == {"é" * 126 + "x", "b", "c"}
    assert "field class_name has been truncated" in caplog.text


@pytest.mark.parametrize(("length", "warned"), [(254, False), (255, True)])
def test_a_text_that_is_cut_is_reported(tmp_path, caplog, length, warned):
    polygons, layer = coverage()
    write_shapefile([polygons], tmp_path / "map.shp", layer_like(layer, source="x" * length))
    assert ("cut to the 254 bytes" in caplog.text) is warned


def test_long_field_names_are_cut_with_a_warning(tmp_path, caplog):
    polygons, layer = coverage()
    confidence = np.full(len(polygons), 0.5)
    long = with_columns(polygons, confidence_mean=confidence, confidence_least=confidence, area_m2=confidence)
    write_shapefile([long], tmp_path / "map.shp", layer)
    fields = list(pyogrio.read_info(tmp_path / "map.shp")["fields"])
    assert fields == ["class_id", "class_name", "confidence", "confiden_1", "area_m2", "source"]
    assert "field name: 'confidence_least' to 'confiden_1'" in caplog.text
