import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from geoseg.map_rows import MapRows
from geoseg.polygons.simplify.finish import ArcFinisher
from geoseg.polygons.simplify.regularize import Regularize, regular_arcs
from geoseg.polygons.trace.cracks import NEAR_PX, SUBPIXEL
from geoseg.polygons.trace.joining import closed_polygons
from support.arcs import as_sets, assert_coverage, crack_planes_of, rectangle, split, trace

BUILDING, FIELD, ROAD, SHED = 1, 2, 3, 4


def near_corners(values, classes):
    """Corners with a pixel of the classes in columns x − 4 … x + 3 and rows y − 4 … y + 3."""
    wanted = np.pad(np.isin(values, classes), NEAR_PX)
    windows = np.lib.stride_tricks.sliding_window_view(wanted, (2 * NEAR_PX, 2 * NEAR_PX))
    return windows.any(axis=(2, 3))


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


def regularized(values, classes=(BUILDING,), **options):
    batch, cracks = trace(values), crack_planes_of(values, near_corners(values, classes))[0]
    return batch, *ArcFinisher(regularize=Regularize(classes), **options)(batch, cracks)


def loop_of(values, **options):
    batch, points, offsets = regularized(values, **options)
    (loop,) = np.flatnonzero(batch.closed)
    return split(points / SUBPIXEL, offsets)[loop]


def angles(ring):
    """Angles between consecutive edges of a closed ring, degrees."""
    edges = np.diff(np.vstack([ring, ring[1:2]]), axis=0)
    direction = np.degrees(np.arctan2(edges[:, 1], edges[:, 0]))
    return np.abs((np.diff(direction) + 180) % 360 - 180)


@pytest.mark.parametrize("degrees", [0, 3, 10, 17, 26.6, 33, 45, 58, 71, 88])
@pytest.mark.parametrize("notch", [(0, 0), (10, 8)])
def test_a_rotated_building_gets_its_corners_back(degrees, notch):
    for shift in (0.0, 0.3, 0.6):
        values = rectangle(np.zeros((60, 60), dtype=np.uint8), 30 + shift, 29.5, 30, 19, degrees, notch=notch)
        ring = loop_of(values)
        assert len(ring) == (5 if notch == (0, 0) else 7)
        assert angles(ring) == pytest.approx(90, abs=0.2)
        truth = shapely.box(-15, -9.5, 15, 9.5) - shapely.box(15 - notch[0], 9.5 - notch[1], 15, 9.5)
        truth = shapely.affinity.rotate(truth, degrees, origin=(0, 0))
        truth = shapely.affinity.translate(truth, 30 + shift, 29.5)
        found = shapely.Polygon(ring)
        assert shapely.hausdorff_distance(found.exterior, truth.exterior) < 1.0
        raster = shapely.union_all([shapely.box(x, y, x + 1, y + 1) for y, x in zip(*np.nonzero(values), strict=True)])
        # At 45° all steps of a wall are equal and say nothing about where within them it runs.
        assert (found ^ truth).area < (1.0 if degrees in (0, 45) else 0.6) * (raster ^ truth).area + 1e-9


def test_noise_on_the_walls_is_taken_for_noise():
    rng = np.random.default_rng(5)
    values = rectangle(np.zeros((60, 60), dtype=np.uint8), 30, 30, 36, 22, 20)
    clean = shapely.Polygon(loop_of(values))
    for axis in (0, 1):
        bumps = (np.roll(values, 1, axis) != values) & (rng.random(values.shape) < 0.15)
        bumps &= ~np.roll(bumps, 1, 0) & ~np.roll(bumps, 1, 1)
        values = np.where(bumps, np.roll(values, 1, axis), values)
    batch = trace(values)
    if batch.closed.sum() == 1:
        ring = loop_of(values)
        assert len(ring) == 5
        assert (shapely.Polygon(ring) ^ clean).area < 0.08 * clean.area


def test_round_and_slanting_outlines_are_only_simplified():
    rows, columns = np.mgrid[:50, :50] + 0.5
    disc = (np.hypot(rows - 25, columns - 25) < 14).astype(np.uint8)
    triangle = ((columns > 8) & (rows < 42) & (columns * 0.7 + 12 < rows)).astype(np.uint8)
    for values in (disc, triangle):
        batch = trace(values)
        cracks = crack_planes_of(values, near_corners(values, (BUILDING,)))[0]
        assert (regular_arcs(batch, cracks, Regularize((BUILDING,)))[1] == 0).all()
        ring = loop_of(values)
        assert 4 <= len(ring) < 20
        assert shapely.Polygon(ring).area == pytest.approx(values.sum(), rel=0.05)


def test_a_house_beside_a_field_is_straight_on_both_sides():
    values = np.zeros((60, 70), dtype=np.uint8)
    values[30:] = FIELD
    rectangle(values, 35, 30, 40, 24, 15)
    batch, points, offsets = regularized(values)
    assert_coverage(batch, points, offsets, rounding=0.12)
    arcs = split(points, offsets)
    sides = [a for i, a in enumerate(arcs) if BUILDING in (batch.left[i], batch.right[i])]
    assert len(sides) == 2
    directions = []
    for side in sides:
        assert len(side) <= 8
        edges = np.diff(side, axis=0) / SUBPIXEL
        long = edges[np.hypot(*edges.T) > 8]
        directions += (np.degrees(np.arctan2(long[:, 1], long[:, 0])) % 90).tolist()
    assert np.ptp(directions) < 2
    assert np.mean(directions) == pytest.approx(15, abs=2)


options = st.sampled_from(
    [
        {},
        {"tolerance_px": 1.5},
        {"tolerance_px": 6.0, "method": "dp"},
        {"smooth": True, "tolerance_px": 0.75, "method": "dp"},
        {"smooth": True, "tolerance_px": 6.0},
    ]
)


@given(st.integers(0, 2**32), options, st.sampled_from([(BUILDING,), (BUILDING, SHED)]))
def test_any_town_stays_a_valid_coverage_even_when_rounded(seed, options, classes):
    batch, points, offsets = regularized(town(seed), classes, **options)
    assert_coverage(batch, points, offsets)
    assert_coverage(batch, points, offsets, rounding=0.12, seed=seed)


@given(st.integers(0, 2**32), options)
def test_walls_stay_near_the_raster(seed, options):
    values = town(seed)
    batch, cracks = trace(values), crack_planes_of(values, near_corners(values, (BUILDING,)))[0]
    points, sizes = regular_arcs(batch, cracks, Regularize((BUILDING,), max_shift_px=1.2))
    for i in np.flatnonzero(sizes):
        begin, end = batch.offsets[i : i + 2]
        raster = shapely.LineString(batch.points[begin:end])
        walls = shapely.segmentize(shapely.LineString(points[begin : begin + sizes[i]] / SUBPIXEL), 0.25)
        # The other way round it may be farther: a spike one pixel wide has no wall of its own.
        assert shapely.distance(raster, shapely.points(shapely.get_coordinates(walls))).max() < 1.2 + 0.71


@given(st.integers(0, 2**32), options)
def test_an_arc_alone_among_the_rows_around_it_becomes_the_same(seed, options):
    values = town(seed, size=36)
    batch, cracks = trace(values), crack_planes_of(values, near_corners(values, (BUILDING,)))[0]
    rule = Regularize((BUILDING,))
    finish, around = ArcFinisher(regularize=rule, **options), ArcFinisher(smooth=True, regularize=rule).lookahead
    expected = as_sets(*finish(batch, cracks))
    for i in range(len(batch.closed)):
        alone = type(batch)(*(a[i : i + 1] for a in batch))._replace(
            points=batch.points[batch.offsets[i] : batch.offsets[i + 1]],
            offsets=batch.offsets[i : i + 2] - batch.offsets[i],
        )
        first, last = max(int(alone.points[:, 1].min()) - around, 0), int(alone.points[:, 1].max()) + around
        planes = {name: getattr(cracks, name)[first:last] for name in ("horizontal", "vertical", "near")}
        assert as_sets(*finish(alone, cracks._replace(first_row=first, **planes))) == [expected[i]]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("smooth", [False, True])
def test_polygons_do_not_depend_on_the_height_of_bands(seed, smooth):
    values, rule = town(seed, size=70), Regularize((BUILDING, SHED))
    finish = ArcFinisher(tolerance_px=1.5, smooth=smooth, regularize=rule)
    results = []
    for band_rows in (3, 16, 100):
        batches = list(closed_polygons([MapRows(values)], values.shape[1], finish=finish, band_rows=band_rows))
        results.append(np.concatenate([b.xy for b in batches]))
        rings = [r for b in batches for r in np.split(b.xy / SUBPIXEL, b.rings[1:-1])]
        assert all(shapely.Polygon(r).is_valid for r in rings)
    assert all(np.array_equal(results[0], other) for other in results[1:])


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="no class"):
        Regularize(())
    with pytest.raises(ValueError, match=r"at most 1\.5"):
        Regularize((1,), max_shift_px=3)
