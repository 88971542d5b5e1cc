import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from geoseg.polygons.simplify import finish
from geoseg.polygons.simplify.finish import ArcFinisher
from geoseg.polygons.trace.cracks import SUBPIXEL
from support.arcs import (
    as_sets,
    assert_coverage,
    blobs,
    crack_planes_of,
    cracks_of,
    finished,
    maps,
    methods,
    reverse,
    rotate_loops,
    split,
    stairs,
    trace,
)

tolerances = st.sampled_from([0.75, 1.0, 1.6, 4.0, 20.0])


@given(maps, methods, tolerances, st.integers(0, 2**32))
def test_simplified_arcs_bound_a_coverage_even_if_rounded(values, method, tolerance, seed):
    batch, points, offsets = finished(values, tolerance_px=tolerance, method=method)
    assert_coverage(batch, points, offsets)
    assert_coverage(batch, points, offsets, rounding=0.12, seed=seed)
    for before, after in zip(split(batch.points, batch.offsets), split(points, offsets), strict=True):
        assert {tuple(p) for p in after // SUBPIXEL} <= {tuple(p) for p in before}
    ends = ~batch.closed
    assert (points[offsets[:-1]][ends] == batch.points[batch.offsets[:-1]][ends] * SUBPIXEL).all()
    assert (points[offsets[1:] - 1][ends] == batch.points[batch.offsets[1:] - 1][ends] * SUBPIXEL).all()
    assert (points[offsets[:-1]][batch.closed] == points[offsets[1:] - 1][batch.closed]).all()
    inner = np.diff(offsets) - 2
    assert (inner >= np.minimum(batch.least, np.diff(batch.offsets) - 2)).all()
    assert (inner[batch.closed] >= 2).all()


@given(maps, methods, tolerances, st.booleans())
def test_what_becomes_of_an_arc_depends_on_the_map_alone(values, method, tolerance, smooth):
    batch, cracks = trace(values), crack_planes_of(values)[0]
    finish = ArcFinisher(tolerance_px=tolerance, method=method, smooth=smooth)
    expected = as_sets(*finish(batch, cracks))
    assert as_sets(*finish(reverse(batch), cracks)) == expected
    assert as_sets(*finish(rotate_loops(batch, by=1), cracks)) == expected
    for i in range(len(batch.closed)):
        alone = type(batch)(*(a[i : i + 1] for a in batch))._replace(
            points=batch.points[batch.offsets[i] : batch.offsets[i + 1]],
            offsets=batch.offsets[i : i + 2] - batch.offsets[i],
        )
        # Two rows above and one below are all that an arc has to know beyond its own.
        first, last = max(int(alone.points[:, 1].min()) - 2, 0), int(alone.points[:, 1].max()) + 2
        stored = (plane.between(0, len(values)) for plane in cracks)
        rows = cracks_of(*stored, values.shape[1], rows=slice(first, last))
        assert as_sets(*finish(alone, rows)) == [expected[i]]


@pytest.mark.parametrize("method", ["vw", "dp"])
@pytest.mark.parametrize("smooth", [False, True])
def test_a_larger_tolerance_keeps_fewer_of_the_same_vertices(method, smooth):
    kept = None
    for tolerance in (0.5, 0.8, 1.0, 1.5, 3.0, 10.0):
        _, points, offsets = finished(blobs(), tolerance_px=tolerance, method=method, smooth=smooth)
        now = [{tuple(p) for p in arc} for arc in split(points, offsets)]
        if kept is not None:
            assert all(a <= b for a, b in zip(now, kept, strict=True))
        kept = now


@pytest.mark.parametrize("step", [1, 2, 3, 4, 7])
def test_a_step_goes_where_geos_lets_it_go(step):
    batch, cracks = trace(stairs(step)), crack_planes_of(stairs(step))[0]
    wall = int(np.diff(batch.offsets).argmax())
    below = shapely.Polygon([*batch.points[batch.offsets[wall] : batch.offsets[wall + 1]], (0, 90), (90, 90)])
    for tolerance in (0.7, 0.71, 0.99, 1.0, 1.22, 1.23, 1.41, 1.42, 1.87, 1.88):
        _, offsets = ArcFinisher(tolerance_px=tolerance)(batch, cracks)
        goes = np.diff(offsets)[wall] < np.diff(batch.offsets)[wall]
        (theirs,) = shapely.coverage_simplify([below], tolerance)
        assert goes == (step / 2 <= tolerance**2)
        assert goes == (len(theirs.exterior.coords) < len(below.exterior.coords))


@pytest.mark.parametrize("tolerance", [1.0, 1.5, 2.5])
def test_about_as_many_vertices_stay_as_with_geos(tolerance):
    values = blobs(size=120)
    batch, points, offsets = finished(values, tolerance_px=tolerance)
    ours = assert_coverage(batch, points, offsets)
    raw = shapely.get_parts(shapely.polygonize([shapely.LineString(p) for p in split(batch.points, batch.offsets)]))
    theirs = shapely.coverage_simplify(raw, tolerance)
    count = [shapely.get_num_coordinates(p).sum() for p in (ours, theirs)]
    assert count[0] == pytest.approx(count[1], rel=0.1)
    assert shapely.area(ours).sum() == pytest.approx(values.size)


@pytest.mark.parametrize("tolerance", [0.6, 1.0, 2.0])
def test_douglas_peucker_stays_within_its_distance(tolerance):
    rng = np.random.default_rng(3)
    heights = 30 + np.cumsum(rng.integers(-2, 3, 150))
    values = (np.arange(heights.max() + 30)[:, None] >= heights).astype(np.uint8)
    batch, points, offsets = finished(values, tolerance_px=tolerance, method="dp")
    longest = int(np.diff(batch.offsets).argmax())
    before = shapely.LineString(split(batch.points, batch.offsets)[longest])
    after = shapely.LineString(split(points / SUBPIXEL, offsets)[longest])
    assert shapely.distance(shapely.points(before.coords), after).max() <= tolerance + 1e-9
    # Shapely's has no guard, and nothing is in the way here; ties may be decided differently.
    theirs = shapely.simplify(before, tolerance, preserve_topology=False)
    assert len(after.coords) == pytest.approx(len(theirs.coords), abs=3, rel=0.05)


@pytest.mark.parametrize("method", ["vw", "dp"])
def test_walls_a_pixel_apart_stay_apart(method):
    spiral = np.zeros((31, 31), dtype=np.uint8)
    for k in range(0, 15, 2):  # frames one within the other, each joined to the next
        spiral[k : 31 - k, k : 31 - k] = 1
        spiral[k + 1 : 30 - k, k + 1 : 30 - k] = 0
        spiral[k + 1, k], spiral[k + 2, k + 1] = 0, 1
    comb = np.zeros((12, 41), dtype=np.uint8)
    comb[1:-1, 1::2], comb[-2, 1:-1] = 1, 1
    for values in (spiral, comb, comb.T, np.triu(comb[:, :12])):
        batch, points, offsets = finished(values.astype(np.uint8), tolerance_px=50.0, method=method)
        assert_coverage(batch, points, offsets, rounding=0.12)


def test_an_island_in_a_bay_keeps_the_bay_open():
    values = np.zeros((20, 20), dtype=np.uint8)
    values[10:] = 1
    values[10:14, 8:12] = 0
    empty = values.copy()
    values[11, 9] = 2
    depths = []
    for scene in (values, empty):
        batch, points, offsets = finished(scene, tolerance_px=4.1)
        assert_coverage(batch, points, offsets)
        shore = next(p for p in split(points, offsets) if (p[0] == [0, 10 * SUBPIXEL]).all() and p[-1, 0] > 0)
        depths.append(shore[:, 1].max() // SUBPIXEL)
    assert depths == [14, 10]


def test_threads_change_nothing(monkeypatch):
    monkeypatch.setattr(finish, "_SHARE", 10)
    values = blobs(classes=5)
    _, *alone = finished(values, tolerance_px=1.5)
    _, *shared = finished(values, tolerance_px=1.5, threads=4)
    assert all((a == b).all() for a, b in zip(alone, shared, strict=True))


def test_no_tolerance_only_scales():
    batch, points, offsets = finished(blobs())
    assert (points == batch.points * SUBPIXEL).all()
    assert (offsets == batch.offsets).all()
