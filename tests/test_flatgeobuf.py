from __future__ import annotations

import numpy as np
import pyogrio
import pytest
import shapely
from affine import Affine

from geoseg.errors import OutputError, SceneError
from geoseg.export.arrow import portions
from geoseg.export.flatgeobuf import write_flatgeobuf
from geoseg.export.wkb import polygon_wkb
from geoseg.polygons.batch import PolygonBatch
from support.coverages import TABLE, UTM, batch, coverage, pieces

FIELDS = ["class_id", "class_name", "area_m2", "perim_m", "conf_mean", "conf_min", "source"]
PLACES = [
    (UTM, Affine(10, 0, 5e5, 0, -10, 5e6)),
    ("EPSG:4326", Affine(1e-4, 0, 15, 0, -1e-4, 47)),
    (None, Affine.scale(1, -1)),
]


def in_one_order(frame):
    """Rows sorted by the middle of their geometry: formats with an index have an order of their own."""
    bounds = frame.geometry.bounds
    return frame.iloc[np.lexsort([bounds.maxy, bounds.maxx, bounds.miny, bounds.minx])].reset_index(drop=True)


def assert_same(frame, polygons, layer):
    """Geometries and attributes are those of a batch, in any order."""
    geometries = polygons.geometries()
    left, bottom, right, top = shapely.bounds(geometries).T
    order = np.lexsort([top, right, bottom, left])
    frame = in_one_order(frame)
    assert shapely.equals_exact(frame.geometry.to_numpy(), geometries[order]).all()
    assert list(frame.class_id) == list(polygons.class_id[order])
    assert list(frame.class_name) == [TABLE[i].name for i in polygons.class_id[order]]
    for name, values in polygons.columns.items():
        np.testing.assert_array_equal(frame[name], values[order])
        assert frame[name].dtype == values.dtype
    assert set(frame.source) == {layer.source}


@pytest.mark.parametrize(("crs", "transform"), PLACES)
@pytest.mark.filterwarnings("error")
def test_polygons_and_attributes_come_back(tmp_path, crs, transform):
    polygons, layer = coverage(crs=crs, transform=transform)
    path = tmp_path / "Karte é.fgb"
    assert write_flatgeobuf(pieces(polygons, 4), path, layer) == len(polygons)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    info = pyogrio.read_info(path)
    assert list(info["fields"]) == FIELDS
    assert list(info["dtypes"]) == ["int32", "object", "float64", "float64", "float32", "float32", "object"]
    assert (info["geometry_type"], info["layer_name"], info["crs"]) == ("Polygon", "land cover", crs)
    assert info["capabilities"]["fast_spatial_filter"]
    assert_same(pyogrio.read_dataframe(path), polygons, layer)


def test_a_window_reads_what_touches_it(tmp_path):
    polygons, layer = coverage()
    path = tmp_path / "map.fgb"
    write_flatgeobuf([polygons], path, layer)
    left, bottom, right, top = shapely.total_bounds(polygons.geometries())
    window = left, bottom, left + 0.3 * (right - left), bottom + 0.2 * (top - bottom)
    hits = shapely.intersects(shapely.box(*shapely.bounds(polygons.geometries()).T), shapely.box(*window))
    assert len(pyogrio.read_dataframe(path, bbox=window)) == hits.sum() < len(polygons)


@pytest.mark.parametrize("crs", [UTM, None])
def test_a_layer_without_polygons_has_its_fields(tmp_path, crs):
    _, layer = coverage(crs=crs)
    for name, batches, fields in (
        ("empty", [batch([], [])], FIELDS),
        ("nothing", [], ["class_id", "class_name", "source"]),
    ):
        path = tmp_path / f"{name}.fgb"
        assert write_flatgeobuf(batches, path, layer) == 0
        info = pyogrio.read_info(path, force_feature_count=True)
        assert (list(info["fields"]), info["features"], info["geometry_type"]) == (fields, 0, "Polygon")


def test_an_error_of_the_source_is_passed_on(tmp_path):
    polygons, layer = coverage()

    def broken():
        yield polygons
        raise SceneError("scene.tif ends early")

    with pytest.raises(SceneError, match="ends early"):
        write_flatgeobuf(broken(), tmp_path / "map.fgb", layer)


def test_without_a_source_there_is_no_such_field(tmp_path):
    polygons, layer = coverage(source=None)
    write_flatgeobuf([polygons], tmp_path / "map.fgb", layer)
    assert list(pyogrio.read_info(tmp_path / "map.fgb")["fields"]) == FIELDS[:-1]


@pytest.mark.parametrize(("features", "size"), [(10**9, 10**9), (7, 10**9), (10**9, 2_000), (1, 1), (20, 3_000)])
def test_batches_are_cut_into_portions_of_bounded_size(features, size):
    polygons, _ = coverage()
    parts = list(portions(polygons, features=features, size=size))
    for part in parts:
        data, _ = polygon_wkb(part)
        assert len(part) == 1 or (len(part) <= features and len(data) <= size)
    assert np.concatenate([part.columns["area_m2"] for part in parts]).tolist() == polygons.columns["area_m2"].tolist()
    whole = b"".join(shapely.to_wkb(polygons.geometries(), byte_order=1))
    assert b"".join(polygon_wkb(part)[0].tobytes() for part in parts) == whole


def test_a_polygon_of_more_than_2_gib_is_refused():
    vertices = np.zeros((1, 2), dtype=np.float64)
    huge = PolygonBatch(np.array([3], np.uint8), vertices, np.array([0, 2**27]), np.array([0, 1]))
    with pytest.raises(OutputError, match="class 3 has more than 2 GiB"):
        list(portions(huge))
