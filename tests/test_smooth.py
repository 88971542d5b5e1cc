import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from geoseg.polygons.simplify.smooth import cut_corners, smoothed_vertex_plane
from geoseg.polygons.trace.cracks import SUBPIXEL
from support.arcs import assert_coverage, blobs, crack_planes_of, finished, maps, methods, split, stairs, trace


def vertices_in(plane):
    return {(int(x), int(y)) for y, x in zip(*np.nonzero(np.unpackbits(plane, axis=1, bitorder="little")), strict=True)}


@given(maps)
def test_the_plane_shows_the_vertices_of_all_smoothed_arcs(values):
    batch = trace(values)
    points, _ = cut_corners(batch.points, batch.offsets, batch.closed)
    height, width = values.shape
    plane = vertices_in(smoothed_vertex_plane(crack_planes_of(values)[0], 0, height))
    # The outer corners of the map look like steps where a node is next to them; the outline has no others to lose.
    corners = {(x, y) for x in (0, 2 * width) for y in (0, 2 * height)}
    beside = {(abs(x - dx), abs(y - dy)) for x, y in corners for dx, dy in ((1, 0), (0, 1))}
    assert {(int(x), int(y)) for x, y in points} - corners == plane - corners - beside


@given(maps, methods, st.sampled_from([0.0, 0.5, 1.0, 3.0, 20.0]), st.integers(0, 2**32))
def test_smoothed_arcs_bound_a_valid_coverage_even_when_rounded(values, method, tolerance, seed):
    batch, points, offsets = finished(values, tolerance_px=tolerance, method=method, smooth=True)
    assert_coverage(batch, points, offsets)
    assert_coverage(batch, points, offsets, rounding=0.12, seed=seed)


def test_a_45_degree_stair_becomes_one_line():
    values = np.zeros((20, 20), dtype=np.uint8)
    y, x = np.mgrid[:20, :20]
    values[(abs(x - 9) + abs(y - 9)) <= 6] = 1
    batch, points, offsets = finished(values, smooth=True)
    loop = split(points, offsets)[int(np.flatnonzero(batch.closed)[0])] / SUBPIXEL
    assert len(loop) == 5  # the pixel at a tip ends in a point
    area = shapely.Polygon(loop).area
    assert area == pytest.approx((values == 1).sum(), rel=0.03)


def test_walls_and_corners_of_the_ground_stay_where_they_are():
    values = np.zeros((30, 60), dtype=np.uint8)
    values[5:20, 5:50] = 1
    values[10:20, 40:50] = 0
    for options in ({}, {"tolerance_px": 1.0}, {"tolerance_px": 0.75, "method": "dp"}):
        batch, points, offsets = finished(values, smooth=True, **options)
        loop = int(np.flatnonzero(batch.closed)[0])
        before = {tuple(p) for p in split(batch.points, batch.offsets)[loop] * SUBPIXEL}
        assert {tuple(p) for p in split(points, offsets)[loop]} == before


def test_a_step_in_a_long_wall_moves_nothing_else():
    values = np.vstack([np.zeros((5, 60), dtype=np.uint8), stairs(30, count=2)])
    batch, points, offsets = finished(values, smooth=True)
    wall = split(points / SUBPIXEL, offsets)[np.diff(batch.offsets).argmax()]
    assert {tuple(p) for p in wall} == {(0, 5), (29.5, 5), (30.5, 6), (60, 6)}


@pytest.mark.parametrize("slope", [0.1, 0.37, 0.62, 0.9])
def test_a_slanted_border_is_nearer_to_the_truth(slope):
    y, x = np.mgrid[:80, :80] + 0.5
    values = (y - 10 > slope * x).astype(np.uint8)

    def error(**options):
        batch, points, offsets = finished(values, **options)
        border = split(points / SUBPIXEL, offsets)[np.diff(batch.offsets).argmax()]
        dense = shapely.segmentize(shapely.LineString(border), 0.2)
        xy = shapely.get_coordinates(dense)
        return np.abs((xy[:, 1] - 10 - slope * xy[:, 0]) / np.hypot(1, slope)).mean()

    assert error(smooth=True) < 0.9 * error()
    assert error(smooth=True, tolerance_px=0.75, method="dp") < error()


def test_smoothing_keeps_areas():
    values = blobs()
    batch, points, offsets = finished(values, smooth=True)
    polygons = assert_coverage(batch, points, offsets)
    inside = shapely.point_on_surface(polygons)
    x, y = np.clip(shapely.get_coordinates(inside).T.astype(int), 0, 59)
    areas = np.bincount(values[y, x], weights=shapely.area(polygons))
    assert areas == pytest.approx(np.bincount(values.ravel()), rel=0.02)
