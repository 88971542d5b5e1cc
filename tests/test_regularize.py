import dataclasses
from functools import partial

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

from geoseg.classes import ClassTable
from geoseg.errors import ConfigError
from geoseg.grid import Grid
from geoseg.map_rows import MapRows
from geoseg.options import PolygonRules
from geoseg.polygons import coverage, polygonize, polygonize_rows
from geoseg.polygons.rules.small_regions import in_turns
from geoseg.polygons.walls import rows as walls_rows
from geoseg.polygons.walls.rows import Outlines
from geoseg.tolerance import Tolerance
from support.arcs import rectangle
from support.terraces import HOUSES, contact_of, rough_town, touching

FIELD, BUILDING, ROAD, SHED = 2, 1, 3, 4
CLASSES = ClassTable.from_names([f"class_{i}" for i in range(5)], ["#000000"] * 5, separate={"class_1"})


def town(seed, size=48):
    """Buildings of all directions on, beside and across fields, a road and the edge of the map's data."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size] + 0.5
    values = np.zeros((size, size), dtype=np.uint8)
    values[rows - size / 2 - 8 * np.sin(columns / rng.uniform(5, 20)) > 0] = FIELD
    angle = rng.uniform(0, np.pi)
    off_road = (columns - size / 2) * np.cos(angle) + (rows - size / 2) * np.sin(angle)
    values[abs(off_road) < rng.uniform(0, 5)] = ROAD
    for _ in range(rng.integers(1, 9)):
        x, y, length, width = *rng.uniform(0, size, 2), *rng.uniform(4, 22, 2)
        value = rng.choice([BUILDING, BUILDING, SHED])
        rectangle(values, x, y, length, width, rng.choice([0, 45, rng.uniform(0, 90)]), value)
    if rng.random() < 0.4:
        angle = rng.uniform(0, np.pi)
        values[(columns - size / 2) * np.cos(angle) + (rows - size / 2) * np.sin(angle) > size * 0.3] = 255
    noisy = rng.random(values.shape) < rng.choice([0, 0.02, 0.1])
    values[noisy] = np.roll(values, 1, axis=int(rng.integers(2)))[noisy]
    return values


def stripes(values):
    """Contact along stripes through the buildings."""
    rows, columns = np.indices(values.shape)
    return np.where((values == BUILDING) & ((columns + rows // 3) % 13 < 2), 254, 0).astype(np.uint8)


def regularized(values, classes=(BUILDING,), tolerance=4.0, **rules):
    names = [f"class_{i}" for i in classes]
    wanted = PolygonRules(
        regularize=names, regularize_tolerance=Tolerance(tolerance, "px"), keep=CLASSES.names, **rules
    )
    contact = stripes(values) if wanted.separate else None
    return polygonize(values, Affine.identity(), classes=CLASSES, contact=contact, rules=wanted)


def building(values, **options):
    frame = regularized(values, **options)
    (shape,) = frame.geometry[frame.class_id == BUILDING]
    return shape


def angles(shape):
    """Angles between consecutive edges of a shell, degrees."""
    ring = shapely.get_coordinates(shape.exterior)
    edges = np.diff(np.vstack([ring, ring[1:2]]), axis=0)
    direction = np.degrees(np.arctan2(edges[:, 1], edges[:, 0]))
    return np.abs((np.diff(direction) + 180) % 360 - 180)


@pytest.mark.parametrize("degrees", [0, 3, 17, 33, 45, 71, 88])
@pytest.mark.parametrize("notch", [(0, 0), (14, 9)])
def test_a_rotated_building_gets_its_corners_back(degrees, notch):
    values = rectangle(np.zeros((70, 70), dtype=np.uint8), 35.3, 34.5, 40, 24, degrees, notch=notch)
    found = building(values)
    assert len(found.exterior.coords) == (5 if notch == (0, 0) else 7)
    assert angles(found) == pytest.approx(90, abs=0.2)
    truth = shapely.box(-20, -12, 20, 12) - shapely.box(20 - notch[0], 12 - notch[1], 20, 12)
    truth = shapely.affinity.translate(shapely.affinity.rotate(truth, degrees, origin=(0, 0)), 35.3, 34.5)
    assert shapely.hausdorff_distance(found.exterior, truth.exterior) < 1.2


def test_a_rough_outline_becomes_a_rectangle():
    rng = np.random.default_rng(5)
    values = rectangle(np.zeros((80, 80), dtype=np.uint8), 40, 40, 48, 30, 20)
    clean = building(values)
    for _ in range(3):
        for axis in (0, 1):
            values = np.where(rng.random(values.shape) < 0.3, np.roll(values, 1, axis), values)
            values = np.where(rng.random(values.shape) < 0.3, np.roll(values, -1, axis), values)
    found = building(values, fill_holes_m2=50, min_area_m2=50)
    assert len(found.exterior.coords) == 5
    assert (found ^ clean).area < 0.12 * clean.area


def test_round_and_slanting_outlines_are_only_simplified():
    rows, columns = np.mgrid[:50, :50] + 0.5
    disc = (np.hypot(rows - 25, columns - 25) < 14).astype(np.uint8)
    triangle = ((columns > 8) & (rows < 42) & (columns * 0.7 + 12 < rows)).astype(np.uint8)
    for values in (disc, triangle):
        simple = polygonize(
            values, Affine.identity(), classes=CLASSES, rules=PolygonRules(Tolerance(1.5, "px"), keep=CLASSES.names)
        )
        found = regularized(values, simplify=Tolerance(1.5, "px"))
        assert found.geometry.geom_equals(simple.geometry).all()


def test_a_house_across_a_border_is_one_rectangle():
    values = np.zeros((70, 80), dtype=np.uint8)
    values[35:] = FIELD
    rectangle(values, 40, 35, 44, 26, 15)
    frame = regularized(values, simplify=Tolerance(1.5, "px"))
    (house,) = frame.geometry[frame.class_id == BUILDING]
    corners = house.exterior.simplify(0.02)
    assert len(corners.coords) == 5
    assert angles(shapely.Polygon(corners)) == pytest.approx(90, abs=0.3)
    assert shapely.coverage_is_valid(frame.geometry.to_numpy())


def test_a_courtyard_keeps_its_own_shape():
    values = rectangle(np.zeros((70, 70), dtype=np.uint8), 35.3, 34.5, 48, 36, 17)
    rows, columns = np.mgrid[:70, :70] + 0.5
    court = np.hypot(rows - 35, columns - 35) < 8
    values[court] = FIELD
    frame = regularized(values, simplify=Tolerance(1.5, "px"))
    (house,) = frame.geometry[frame.class_id == BUILDING]
    (inside,) = frame.geometry[frame.class_id == FIELD]
    assert len(house.exterior.coords) == 5
    assert angles(house) == pytest.approx(90, abs=0.2)
    assert shapely.Polygon(house.interiors[0]).equals(inside)
    assert inside.area == pytest.approx(court.sum(), rel=0.05)
    assert len(inside.exterior.coords) > 7


def test_separated_houses_share_a_wall():
    values = rectangle(np.zeros((60, 90), dtype=np.uint8), 45, 30, 60, 24, 0)
    contact = np.zeros_like(values)
    contact[18:42, 40:44] = 254
    rules = PolygonRules(regularize=["class_1"], separate=["class_1"], keep=CLASSES.names)
    frame = polygonize(values, Affine.identity(), classes=CLASSES, contact=contact, rules=rules)
    left, right = frame.geometry[frame.class_id == BUILDING]
    assert len(left.exterior.simplify(0).coords) == len(right.exterior.simplify(0).coords) == 5
    assert shapely.intersection(left, right).length == 24
    assert shapely.coverage_is_valid(frame.geometry.to_numpy())


@pytest.mark.parametrize("degrees", [0, 17, 45, 71])
@pytest.mark.parametrize("houses", sorted(HOUSES.keys() - {"four at a point"}))
def test_houses_that_touch_get_their_corners_back(houses, degrees):
    values, owner = np.zeros((100, 100), np.uint8), np.zeros((100, 100), np.int32)
    touching(values, owner, HOUSES[houses], 50.2, 49.6, degrees)
    rules = PolygonRules(regularize=["class_1"], separate=["class_1"], keep=CLASSES.names)
    outlines = Outlines()
    grid = Grid(*values.shape, Affine.identity(), None)
    rows = [MapRows(values, contact=contact_of(owner))]
    batches = list(polygonize_rows(rows, grid, CLASSES, rules=rules, outlines=outlines))
    shapes = np.concatenate([batch.geometries()[batch.class_id == BUILDING] for batch in batches])
    assert outlines.regular == outlines.total == len(shapes) == len(HOUSES[houses])
    truth = [shapely.box(*house) for house in HOUSES[houses]]
    truth = [shapely.affinity.translate(shapely.affinity.rotate(t, degrees, origin=(0, 0)), 50.2, 49.6) for t in truth]
    for shape in shapes:
        corners = shapely.Polygon(shape.exterior.simplify(0.02))
        assert len(corners.exterior.coords) == 5
        assert angles(corners) == pytest.approx(90, abs=0.3)
        assert min(shapely.hausdorff_distance(shape.exterior, t.exterior) for t in truth) < 2
    assert shapely.coverage_is_valid(shapes)


@pytest.mark.parametrize("tallest", [30, 1024])
@given(seed=st.integers(0, 2**32))
def test_every_house_that_touches_is_kept_whatever_the_bands(tallest, seed):
    values, contact = rough_town(seed)
    rules = PolygonRules(
        Tolerance(1.5, "px"), regularize=["class_1"], separate=["class_1"], keep=CLASSES.names, min_area_m2=12
    )
    grid, results = Grid(*values.shape, Affine.identity(), None), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(walls_rows, "_TALLEST", tallest)
        for rows in (5, 31, 100):
            patch.setattr(coverage, "in_turns", partial(in_turns, band_rows=rows))
            whole = MapRows(values, contact=contact)
            pieces = [whole[i : i + rows] for i in range(0, len(values), rows)]
            results.append(list(polygonize_rows(pieces, grid, CLASSES, rules=rules, band_rows=rows)))
    points = [np.concatenate([batch.xy for batch in batches]) for batches in results]
    assert all(np.array_equal(points[0], other) for other in points[1:])
    shapes = np.concatenate([batch.geometries() for batch in results[0]])
    assert shapely.is_valid(shapes).all()
    assert shapely.coverage_is_valid(shapes)
    assert shapely.area(shapes).sum() == pytest.approx(values.size)
    plain = polygonize(
        values, grid.transform, classes=CLASSES, contact=contact, rules=dataclasses.replace(rules, regularize=())
    )
    found = np.concatenate([batch.class_id for batch in results[0]])
    assert np.array_equal(np.bincount(found), np.bincount(plain.class_id))


BORDER_AT_A_CORNER = """
    ..........................
    ..........................
    ..........................
    ..........................
    ..................1.......
    ..................11......
    ................1111......
    ..............111..1......
    ................1...111...
    ....3...........1.....1...
    ................11....11..
    ....11.1........11....11..
    ....1.11........111....1..
    ....1.11........111..111..
    ....1..1........1111112...
    ....11.1........11.1..2...
    ....111111111111111.......
    .....1.1.1111.111.........
    ......11..11111...........
    ......11...111............
    ........1111..............
    ........112...............
    ........122...............
    ..........................
"""


def test_a_border_reaches_its_wall_from_outside():
    values = np.array([[".123".index(p) for p in row] for row in BORDER_AT_A_CORNER.split()], dtype=np.uint8)
    shapes = regularized(values, simplify=None).geometry.to_numpy()
    assert shapely.is_valid(shapes).all()
    assert shapely.coverage_is_valid(shapes)


options = st.sampled_from(
    [
        {},
        {"separate": ["class_1"]},
        {"separate": ["class_1"], "smooth": True, "simplify": Tolerance(1.5, "px")},
        {"simplify": Tolerance(1.5, "px")},
        {"simplify": Tolerance(6.0, "px"), "method": "dp"},
        {"smooth": True, "simplify": Tolerance(0.75, "px"), "method": "dp"},
        {"smooth": True, "simplify": Tolerance(6.0, "px")},
    ]
)


@given(st.integers(0, 2**32), options, st.sampled_from([(BUILDING,), (BUILDING, SHED)]), st.sampled_from([2.0, 4.0]))
def test_any_town_stays_a_valid_coverage_even_when_rounded(seed, options, classes, tolerance):
    values = town(seed)
    shapes = regularized(values, classes, tolerance, **options).geometry.to_numpy()
    assert shapely.is_valid(shapes).all()
    assert shapely.coverage_is_valid(shapes)
    if not (values == 255).any():  # a border on nodata may move
        assert shapely.area(shapes).sum() == pytest.approx(values.size)
    points, which = np.unique(shapely.get_coordinates(shapes), axis=0, return_inverse=True)
    shift = np.random.default_rng(seed).uniform(-0.12, 0.12, points.shape) / np.sqrt(2)
    rounded = shapely.set_coordinates(shapes.copy(), (points + shift)[which.ravel()])
    assert shapely.is_valid(rounded).all()
    assert shapely.coverage_is_valid(rounded)


@given(st.integers(0, 2**32), options)
def test_polygons_do_not_depend_on_the_height_of_bands(seed, options):
    values = town(seed, size=110)
    rules = PolygonRules(regularize=["class_1", "class_4"], keep=CLASSES.names, **options)
    grid, results = Grid(*values.shape, Affine.identity(), None), []
    for rows in (7, 40, 110):
        whole = MapRows(values, contact=stripes(values) if rules.separate else None)
        pieces = [whole[i : i + rows] for i in range(0, len(values), rows)]
        batches = list(polygonize_rows(pieces, grid, CLASSES, rules=rules, band_rows=rows))
        results.append(np.concatenate([batch.xy for batch in batches]))
    assert all(np.array_equal(results[0], other) for other in results[1:])


@given(st.integers(0, 2**32))
def test_walls_stay_near_the_raster(seed):
    values = np.zeros((80, 80), dtype=np.uint8)
    rng = np.random.default_rng(seed)
    rectangle(values, *rng.uniform(30, 50, 2), *rng.uniform(8, 40, 2), rng.uniform(0, 90))
    for axis in (0, 1):
        values = np.where(rng.random(values.shape) < 0.2, np.roll(values, 1, axis), values)
    rules = PolygonRules(min_area_m2=30, fill_holes_m2=30, keep=CLASSES.names)
    raw = polygonize(values, Affine.identity(), classes=CLASSES, rules=rules)
    found = regularized(values, tolerance=3.0, min_area_m2=30, fill_holes_m2=30)
    before = shapely.union_all(raw.geometry[raw.class_id == BUILDING].to_numpy()).boundary
    after = shapely.union_all(found.geometry[found.class_id == BUILDING].to_numpy()).boundary
    assert shapely.hausdorff_distance(before, after, densify=0.05) < 2 * 3.0 * np.sqrt(2) + 1


def test_a_comb_whose_walls_would_coincide_is_kept():
    values = np.zeros((26, 26), dtype=np.uint8)
    values[3:23, 3:8] = BUILDING
    for row in range(3, 21, 4):
        values[row : row + 2, 3:23] = BUILDING
    assert building(values).area == np.count_nonzero(values)


def test_a_tolerance_below_a_pixel_is_refused():
    with pytest.raises(ConfigError, match="walls need at least 1 px"):
        regularized(np.zeros((5, 5), np.uint8), tolerance=0.5)
    with pytest.raises(ConfigError, match="without --regularize"):
        PolygonRules(regularize_tolerance=Tolerance(2, "px"))
