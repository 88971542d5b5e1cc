from __future__ import annotations

import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from rasterio.features import rasterize
from rasterio.transform import rowcol

from geoseg.classes import ClassTable
from geoseg.errors import ConfigError, LabelError
from geoseg.grid import Grid
from geoseg.polygons import Tolerance, area_m2, parse_tolerance, polygonize
from geoseg.polygons.regions import label_regions, merge_small_regions

UTM = "EPSG:32633"
NORTH_UP = Affine(0.3, 0, 500_000, 0, -0.3, 5_000_000)
TRANSFORMS = {
    "north-up": NORTH_UP,
    "south-up": Affine(0.3, 0, 500_000, 0, 0.3, 5_000_000),
    "rotated": Affine.translation(500_000, 5_000_000) @ Affine.rotation(30) @ Affine.scale(0.3, -0.4),
    "identity": Affine.identity(),
}

ROWS = "3333333 3222223 3211123 3210123 3211123 3222223 3333333"
CASES = {
    "one pixel": np.zeros((1, 1)),
    "one row": np.array([[0, 0, 1, 255, 1]]),
    "all nodata": np.full((3, 4), 255),
    "checkerboard": np.indices((6, 7)).sum(0) % 2,
    "checkerboard in nodata": np.where(np.indices((6, 7)).sum(0) % 2, 255, 1),
    "nested rings": np.array([[int(c) for c in row] for row in ROWS.split()]),
    "one-pixel diagonals": np.eye(7) + 2 * np.eye(7)[::-1] * (1 - np.eye(7)),
    "diamond of diagonals": (abs(np.arange(7) - 3) + abs(np.arange(7)[:, None] - 3) == 2) * 1,
    "T junction": np.array([[0, 0, 0, 0], [1, 1, 2, 2], [1, 1, 2, 2]]),
}

# Few values make large regions with holes and diagonals, 255 among them makes gaps.
label_maps = arrays(
    np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=14), elements=st.sampled_from([0, 0, 1, 2, 255])
)


def burn(frame, shape, transform):
    shapes = zip(frame.geometry, frame.class_id, strict=True)
    if frame.empty:
        return np.full(shape, 255, dtype=np.uint8)
    return rasterize(shapes, out_shape=shape, transform=transform, fill=255, dtype="uint8")


def assert_coverage(frame):
    polygons = frame.geometry.to_numpy()
    assert shapely.is_valid(polygons).all()
    assert not shapely.is_empty(polygons).any()
    if len(polygons):
        assert shapely.coverage_is_valid(polygons)
        assert (shapely.get_type_id(polygons) == shapely.GeometryType.POLYGON).all()
        assert shapely.is_ccw(shapely.get_exterior_ring(polygons)).all()


def check_raw(values, transform):
    frame = polygonize(values, transform)
    assert_coverage(frame)
    assert len(frame) == len(np.unique(label_regions(values)[values != 255]))
    pixels = np.bincount(values[values != 255].ravel(), minlength=3)
    by_class = np.bincount(frame.class_id, weights=frame.area_m2, minlength=3)
    np.testing.assert_allclose(by_class, pixels * abs(transform.determinant), rtol=1e-6)
    np.testing.assert_array_equal(burn(frame, values.shape, transform), values)


def check_simplified(values, tolerance):
    raw, frame = polygonize(values, Affine.identity()), polygonize(values, Affine.identity(), simplify=tolerance)
    assert_coverage(frame)
    if raw.empty:
        assert frame.empty
        return
    # No overlap: the parts add up to the whole. No new gap: a hole of the whole is a hole of nodata.
    whole, raw_whole = shapely.union_all(frame.geometry), shapely.union_all(raw.geometry)
    assert frame.area_m2.sum() == pytest.approx(whole.area)
    holes = [shapely.get_num_interior_rings(shapely.get_parts(u)).sum() for u in (whole, raw_whole)]
    assert holes[0] <= holes[1]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_raw_polygons_are_a_coverage_with_the_areas_of_the_pixels_and_burn_back(case, transform):
    check_raw(CASES[case].astype(np.uint8), TRANSFORMS[transform])


@given(values=label_maps)
@settings(max_examples=150, deadline=None)
def test_raw_polygons_of_any_map(values):
    check_raw(values, NORTH_UP)


@pytest.mark.parametrize("case", CASES)
def test_simplified_polygons_are_a_coverage(case):
    check_simplified(CASES[case].astype(np.uint8), Tolerance(1.0, "px"))


@given(values=label_maps, tolerance=st.sampled_from([0.8, 1.0, 2.0, 5.0]))
@settings(max_examples=150, deadline=None)
def test_simplified_polygons_of_any_map(values, tolerance):
    check_simplified(values, Tolerance(tolerance, "px"))


def test_junctions_are_vertices_on_the_straight_side():
    frame = polygonize(CASES["T junction"].astype(np.uint8), Affine.identity())
    top = frame.geometry[frame.class_id == 0].iloc[0]
    assert (2.0, 1.0) in set(top.exterior.coords)


def test_simplification_removes_the_steps_of_a_slope_and_leaves_its_place():
    values = (np.arange(60)[:, None] > np.arange(60) * 0.5).astype(np.uint8)
    raw, frame = (polygonize(values, Affine.identity(), simplify=s) for s in (None, Tolerance(1.5, "px")))
    assert shapely.get_num_coordinates(frame.geometry).sum() < shapely.get_num_coordinates(raw.geometry).sum() / 5
    assert shapely.hausdorff_distance(raw.geometry[0].boundary, frame.geometry[0].boundary) <= 1.5


@pytest.mark.parametrize("name", ["north-up", "south-up", "rotated"])
def test_polygons_lie_where_the_pixels_lie(name):
    values = np.zeros((20, 30), dtype=np.uint8)
    values[4:7, 20:28] = 1
    frame = polygonize(values, TRANSFORMS[name], crs=UTM, simplify=Tolerance(1, "px"))
    house = frame.geometry[frame.class_id == 1].iloc[0]
    row, col = rowcol(TRANSFORMS[name], house.centroid.x, house.centroid.y, op=float)
    assert (row, col) == pytest.approx((5.5, 24.0), abs=1e-6)
    assert frame.crs == UTM


def test_classes_come_by_name_and_a_value_outside_the_table_is_refused():
    table = ClassTable.from_names(["ground", "house"], ["#000000", "#ff0000"])
    values = np.array([[0, 1, 255]], dtype=np.uint8)
    frame = polygonize(values, Affine.identity(), classes=table)
    assert dict(zip(frame.class_id, frame.class_name, strict=True)) == {0: "ground", 1: "house"}
    assert list(polygonize(values, Affine.identity()).class_name) == ["class_0", "class_1"]
    with pytest.raises(LabelError, match="value 7, but its class table ends at 1"):
        polygonize(np.array([[0, 7]], dtype=np.uint8), Affine.identity(), classes=table)


def test_columns_have_the_same_types_with_and_without_polygons():
    full = polygonize(np.zeros((2, 2), dtype=np.uint8), NORTH_UP, crs=UTM)
    empty = polygonize(np.full((2, 2), 255, dtype=np.uint8), NORTH_UP, crs=UTM, simplify=Tolerance(1, "px"))
    assert list(full.columns) == ["class_id", "class_name", "area_m2", "geometry"]
    assert full.dtypes.equals(empty.dtypes)
    assert len(empty) == 0
    assert empty.crs == full.crs


def test_nodata_of_another_value():
    frame = polygonize(np.array([[0, 1], [1, 1]], dtype=np.uint8), Affine.identity(), nodata=0)
    assert list(frame.class_id) == [1]


@given(values=label_maps, min_area=st.sampled_from([2.0, 3.5, 10.0]))
@settings(max_examples=150, deadline=None)
def test_no_region_below_the_minimum_area_is_left(values, min_area):
    merged = merge_small_regions(values, np.ones(values.shape[0]), min_area=min_area)
    labels = label_regions(merged)
    sizes = np.bincount(labels.ravel())
    assert (sizes[labels[merged != 255]] >= min_area).all()
    # Nodata never becomes a class, and a class becomes nodata only where a whole piece of land is too small.
    assert (merged[values == 255] == 255).all()
    land = label_regions(np.where(values == 255, 255, 0).astype(np.uint8))
    lost = (merged == 255) & (values != 255)
    assert (np.bincount(land.ravel())[land[lost]] < min_area).all()


def test_a_speck_goes_to_the_neighbour_with_the_longest_border():
    values = np.array([[0, 0, 0, 0, 1, 1], [0, 0, 0, 2, 1, 1], [0, 0, 0, 0, 1, 1]], dtype=np.uint8)
    merged = merge_small_regions(values, np.ones(3), min_area=2)
    assert merged[1, 3] == 0
    np.testing.assert_array_equal(np.delete(merged.ravel(), 9), np.delete(values.ravel(), 9))


def test_minimum_area_counts_square_metres():
    values = np.zeros((20, 20), dtype=np.uint8)
    values[2:4, 2:4] = 1  # 4 px of 0.09 m²
    assert set(polygonize(values, NORTH_UP, crs=UTM, min_area_m2=0.35).class_id) == {0, 1}
    assert set(polygonize(values, NORTH_UP, crs=UTM, min_area_m2=0.37).class_id) == {0}


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        (UTM, NORTH_UP),
        ("EPSG:3857", Affine(10, 0, 1_000_000, 0, -10, 6_000_000)),
        ("EPSG:2263", Affine(1, 0, 980_000, 0, -1, 200_000)),  # US survey feet
        ("EPSG:4326", Affine(1e-5, 0, 15, 0, -1e-5, 47)),
        ("EPSG:4326", Affine(0.5, 0, 170, 0, -0.5, -10)),  # across the antimeridian
    ],
)
def test_areas_are_those_of_the_grid(crs, transform):
    values = np.zeros((40, 30), dtype=np.uint8)
    values[10:20, 5:15] = 1
    frame = polygonize(values, transform, crs=crs)
    grid = Grid(40, 30, transform, crs)
    truth = [(grid.pixel_area_m2()[:, None] * (values == k)).sum() for k in (0, 1)]
    np.testing.assert_allclose(frame.sort_values("class_id").area_m2, truth, rtol=5e-5)


def test_geographic_area_is_that_of_the_ellipsoid():
    box = shapely.segmentize(shapely.box(10, 40, 10.2, 40.1), 0.001)
    geodesic = abs(pyproj.Geod(ellps="WGS84").geometry_area_perimeter(box)[0])
    assert area_m2([box], "EPSG:4326")[0] == pytest.approx(geodesic, rel=1e-7)


def test_tolerances_parse():
    assert parse_tolerance("2px") == Tolerance(2, "px")
    assert parse_tolerance(" 0.5 M ") == Tolerance(0.5, "m")
    assert parse_tolerance("none") is None
    assert parse_tolerance("0px") is None
    assert str(Tolerance(0.5, "m")) == "0.5m"
    grid = Grid(10, 10, NORTH_UP, UTM)
    assert parse_tolerance("0.6m").in_pixels(grid) == pytest.approx(2, rel=1e-3)


@pytest.mark.parametrize("text", ["", "2", "px", "-1px", "2 feet", "nan px", "1e5px", "2px 3m"])
def test_nonsense_tolerances_are_refused_with_an_example(text):
    with pytest.raises(ConfigError) as error:
        parse_tolerance(text)
    assert "--simplify 2px" in error.value.hint


def test_metres_without_georeference_are_refused():
    with pytest.raises(ConfigError, match="no CRS") as error:
        polygonize(np.zeros((2, 2), dtype=np.uint8), Affine.identity(), simplify=Tolerance(0.5, "m"))
    assert "px" in error.value.hint
