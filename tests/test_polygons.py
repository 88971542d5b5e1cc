from __future__ import annotations

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pandas.testing import assert_frame_equal
from rasterio.crs import CRS
from rasterio.features import rasterize
from rasterio.transform import rowcol
from scipy import ndimage

from geoseg.classes import ClassTable
from geoseg.errors import ConfigError, LabelError
from geoseg.grid import Grid
from geoseg.map_rows import MapRows
from geoseg.polygons import PolygonRules, Tolerance, parse_tolerance, polygonize, polygonize_rows, to_frame

UTM = "EPSG:32633"
NUMBERED = ClassTable.from_names([f"class_{i}" for i in range(4)], ["#000000"] * 4)
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
    assert len(frame) == sum(ndimage.label(values == k)[1] for k in np.unique(values[values != 255]))
    pixels = np.bincount(values[values != 255].ravel(), minlength=3)
    by_class = np.bincount(frame.class_id, weights=frame.area_m2, minlength=3)
    np.testing.assert_allclose(by_class, pixels * abs(transform.determinant), rtol=1e-6)
    np.testing.assert_array_equal(burn(frame, values.shape, transform), values)


def check_simplified(values, rules):
    raw, frame = polygonize(values, Affine.identity()), polygonize(values, Affine.identity(), rules=rules)
    assert_coverage(frame)
    assert len(frame) == len(raw)
    if raw.empty:
        assert frame.empty
        return
    rounding = frame.geometry.to_numpy()
    rounding = shapely.transform(rounding, lambda xy: np.round(xy * 5) / 5)  # moves vertices by up to 0.1 px
    assert shapely.is_valid(rounding).all()
    assert shapely.coverage_is_valid(rounding)
    # No overlap: the parts add up to the whole. No new gap: a hole of the whole is a hole of nodata.
    whole, raw_whole = shapely.union_all(frame.geometry), shapely.union_all(raw.geometry)
    assert frame.area_m2.sum() == pytest.approx(whole.area)
    holes = [shapely.get_num_interior_rings(shapely.get_parts(u)).sum() for u in (whole, raw_whole)]
    assert holes[0] <= holes[1]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_raw_polygons_are_a_coverage_and_burn_back(case, transform):
    check_raw(CASES[case].astype(np.uint8), TRANSFORMS[transform])


@given(values=label_maps)
def test_raw_polygons_of_any_map(values):
    check_raw(values, NORTH_UP)


WAYS = {
    "vw": PolygonRules(simplify=Tolerance(1.0, "px")),
    "vw far": PolygonRules(simplify=Tolerance(5.0, "px")),
    "dp": PolygonRules(simplify=Tolerance(1.0, "px"), method="dp"),
    "smooth": PolygonRules(smooth=True),
    "smooth vw": PolygonRules(smooth=True, simplify=Tolerance(1.0, "px")),
    "regularize": PolygonRules(simplify=Tolerance(1.0, "px"), regularize=["class_0"]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", WAYS)
def test_simplified_polygons_are_a_coverage(case, way):
    check_simplified(CASES[case].astype(np.uint8), WAYS[way])


@given(values=label_maps, way=st.sampled_from(sorted(WAYS)))
def test_simplified_polygons_of_any_map(values, way):
    check_simplified(values, WAYS[way])


@given(
    values=label_maps,
    heights=st.lists(st.integers(1, 6), min_size=14, max_size=14),
    way=st.sampled_from([*WAYS, "raw"]),
)
def test_polygons_do_not_depend_on_how_the_rows_arrive(values, heights, way):
    rules = WAYS.get(way, PolygonRules())
    whole = polygonize(values, NORTH_UP, crs=UTM, classes=NUMBERED, rules=rules)
    stops = np.minimum(np.cumsum(heights), len(values))
    rows = (MapRows(values[a:b]) for a, b in zip([0, *stops[:-1]], stops, strict=True))
    grid = Grid(*values.shape, NORTH_UP, CRS.from_user_input(UTM))
    parts = to_frame(list(polygonize_rows(rows, grid, NUMBERED, rules=rules, band_rows=2)), grid, NUMBERED)
    assert_frame_equal(parts.drop(columns="geometry"), whole.drop(columns="geometry"))
    assert shapely.equals_identical(parts.geometry.to_numpy(), whole.geometry.to_numpy()).all()


@pytest.mark.parametrize("way", [*WAYS, "raw"])
@pytest.mark.parametrize("gsd", [0.1, 0.3, 10.0])
def test_polygons_stay_a_coverage_with_seven_decimals(way, gsd):
    rng = np.random.default_rng(5)
    values = np.kron(rng.integers(0, 4, (9, 11)), np.ones((7, 6), dtype=np.uint8)).astype(np.uint8)
    specks = rng.random(values.shape) < 0.03
    values[specks] = rng.integers(0, 4, specks.sum())
    values[values == 3] = 255
    transform = Affine.translation(500_000, 5_000_000) @ Affine.rotation(20) @ Affine.scale(gsd, -gsd)
    frame = polygonize(values, transform, crs=UTM, rules=WAYS.get(way, PolygonRules())).to_crs(4326)
    polygons = shapely.transform(frame.geometry.to_numpy(), lambda degrees: np.round(degrees, 7))
    assert shapely.is_valid(polygons).all()
    assert shapely.coverage_is_valid(polygons)


def test_junctions_are_vertices_on_the_straight_side():
    frame = polygonize(CASES["T junction"].astype(np.uint8), Affine.identity())
    top = frame.geometry[frame.class_id == 0].iloc[0]
    assert (2.0, 1.0) in set(top.exterior.coords)


def test_simplification_straightens_a_slope_in_its_place():
    values = (np.arange(60)[:, None] > np.arange(60) * 0.5).astype(np.uint8)
    raw, frame = (
        polygonize(values, Affine.identity(), rules=PolygonRules(simplify=s)) for s in (None, Tolerance(1.5, "px"))
    )
    assert shapely.get_num_coordinates(frame.geometry).sum() < shapely.get_num_coordinates(raw.geometry).sum() / 5
    assert shapely.hausdorff_distance(raw.geometry[0].boundary, frame.geometry[0].boundary) <= 1.5


@pytest.mark.parametrize("name", ["north-up", "south-up", "rotated"])
def test_polygons_lie_where_the_pixels_lie(name):
    values = np.zeros((20, 30), dtype=np.uint8)
    values[4:7, 20:28] = 1
    frame = polygonize(values, TRANSFORMS[name], crs=UTM, rules=WAYS["vw"])
    house = frame.geometry[frame.class_id == 1].iloc[0]
    row, col = rowcol(TRANSFORMS[name], house.centroid.x, house.centroid.y, op=float)
    assert (row, col) == pytest.approx((5.5, 24.0), abs=1e-6)
    assert frame.crs == UTM


def test_values_outside_the_class_table_are_refused():
    table = ClassTable.from_names(["ground", "house"], ["#000000", "#ff0000"])
    values = np.array([[0, 1, 255]], dtype=np.uint8)
    frame = polygonize(values, Affine.identity(), classes=table)
    assert dict(zip(frame.class_id, frame.class_name, strict=True)) == {0: "ground", 1: "house"}
    assert list(polygonize(values, Affine.identity()).class_name) == ["class_0", "class_1"]
    with pytest.raises(LabelError, match="value 7, but its class table ends at 1"):
        polygonize(np.array([[0, 7]], dtype=np.uint8), Affine.identity(), classes=table)


def test_columns_have_the_same_types_with_and_without_polygons():
    full = polygonize(np.zeros((2, 2), dtype=np.uint8), NORTH_UP, crs=UTM)
    empty = polygonize(np.full((2, 2), 255, dtype=np.uint8), NORTH_UP, crs=UTM, rules=WAYS["vw"])
    assert list(full.columns) == ["class_id", "class_name", "area_m2", "perim_m", "geometry"]
    assert full.dtypes.equals(empty.dtypes)
    assert len(empty) == 0
    assert empty.crs == full.crs


def test_nodata_of_another_value():
    frame = polygonize(np.array([[0, 1], [1, 1]], dtype=np.uint8), Affine.identity(), nodata=0)
    assert list(frame.class_id) == [1]


def test_minimum_area_counts_square_metres():
    values = np.zeros((20, 20), dtype=np.uint8)
    values[2:4, 2:4] = 1  # 4 px of 0.09 m²
    for limit, expected in (0.35, {0, 1}), (0.37, {0}):
        frame = polygonize(values, NORTH_UP, crs=UTM, rules=PolygonRules(min_area_m2=limit))
        assert set(frame.class_id) == expected
        assert frame.area_m2.sum() == pytest.approx(400 * 0.09, rel=1e-3)
    dropped = polygonize(values, NORTH_UP, crs=UTM, rules=PolygonRules(min_area_m2=0.37, small="drop"))
    assert dropped.area_m2.sum() == pytest.approx(396 * 0.09, rel=1e-3)
    filled = polygonize(values, NORTH_UP, crs=UTM, rules=PolygonRules(fill_holes_m2=0.37))
    assert len(filled) == 1


def test_classes_are_dissolved_and_kept_by_name():
    table = ClassTable.from_names(["grass", "house", "tree"], ["#00ff00", "#ff0000", "#008800"])
    values = np.array([[0, 2, 1, 255, 2]], dtype=np.uint8)
    rules = PolygonRules(dissolve={"green": ["grass", "tree"]})
    frame = polygonize(values, Affine.identity(), classes=table, rules=rules)
    assert sorted(zip(frame.class_name, frame.area_m2, strict=True)) == [("green", 1.0), ("green", 2.0), ("house", 1.0)]
    rules = PolygonRules(dissolve={"green": ["grass", "tree"]}, keep=["green"])
    assert set(polygonize(values, Affine.identity(), classes=table, rules=rules).class_name) == {"green"}
    rules = PolygonRules(dissolve={"tree": ["grass", "tree"]})
    assert set(polygonize(values, Affine.identity(), classes=table, rules=rules).class_name) == {"tree", "house"}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (PolygonRules(keep=["hose"]), "--keep names the class hose"),
        (PolygonRules(regularize=["roof"]), "--regularize names the class roof"),
        (PolygonRules(dissolve={"green": ["gras"]}), "--dissolve names the class gras"),
        (PolygonRules(dissolve={"a": ["grass"], "b": ["grass"]}), "grass is in two groups, a and b"),
        (PolygonRules(dissolve={"house": ["grass"]}), "the group house has the name of a class outside it"),
        (PolygonRules(dissolve={"house": []}), "--dissolve house names no class"),
    ],
)
def test_rules_about_unknown_classes_are_refused(rules, message):
    table = ClassTable.from_names(["grass", "house"], ["#00ff00", "#ff0000"])
    with pytest.raises(ConfigError, match=message) as error:
        polygonize(np.zeros((1, 1), dtype=np.uint8), Affine.identity(), classes=table, rules=rules)
    assert error.value.hint


def test_confidence_is_that_of_the_pixels():
    values = np.array([[0, 0, 1], [0, 1, 1]], dtype=np.uint8)
    confidence = np.array([[254, 127, 0], [254, 254, 127]], dtype=np.uint8)
    frame = polygonize(values, Affine.identity(), confidence=confidence).set_index("class_id")
    np.testing.assert_allclose(frame.conf_mean, [635 / 3 / 254, 381 / 3 / 254], rtol=1e-6)
    np.testing.assert_allclose(frame.conf_min, [0.5, 0.0])


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
    assert "--simplify 1.5px" in error.value.hint


def test_metres_without_georeference_are_refused():
    with pytest.raises(ConfigError, match="no CRS") as error:
        polygonize(
            np.zeros((2, 2), dtype=np.uint8), Affine.identity(), rules=PolygonRules(simplify=Tolerance(0.5, "m"))
        )
    assert "px" in error.value.hint
