from __future__ import annotations

import pickle

import numpy as np
import pyproj
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.crs import CRS

from geoseg.grid import Grid
from geoseg.windows import Window

WGS84 = pyproj.Geod(ellps="WGS84")

# CRS on WGS84 and a coarse grid in it, so that a pixel is 100 … 1000 m and rows differ.
PLACES = {
    "EPSG:4326": Affine(0.01, 0, 15, 0, -0.01, 47.5),
    "EPSG:4326 south-up": Affine(0.01, 0, 15, 0, 0.01, -33.5),
    "EPSG:3857": Affine(500, 0, 1_600_000, 0, -500, 9_000_000),
    "EPSG:3857 equator": Affine(500, 0, 4_000_000, 0, -500, 10_000),
    "EPSG:3857 antimeridian": Affine(500, 0, 20_037_508 - 2000, 0, -500, 5_000_000),
    "EPSG:32633": Affine(500, 0, 690_000, 0, -500, 5_300_000),
    "EPSG:32633 rotated": Affine.translation(400_000, 5_300_000) @ Affine.rotation(30) @ Affine.scale(500, -500),
    "EPSG:3413": Affine(500, 0, -200_000, 0, -500, -1_500_000),  # polar stereographic
    "EPSG:6933": Affine(500, 0, 1_000_000, 0, -500, 5_000_000),  # equal area
}


def true_area_m2(grid: Grid) -> float:
    """Area on the ellipsoid of the grid's outline, its sides cut fine enough to follow curved map edges."""
    height, width = grid.shape
    t = np.linspace(0, 1, 200, endpoint=False)
    cols = np.concatenate([t * width, np.full(200, width), (1 - t) * width, np.zeros(200)])
    rows = np.concatenate([np.zeros(200), t * height, np.full(200, height), (1 - t) * height])
    a = grid.transform
    x, y = a.a * cols + a.b * rows + a.c, a.d * cols + a.e * rows + a.f
    lon, lat = pyproj.Transformer.from_crs(grid.crs.to_wkt(), 4326, always_xy=True).transform(x, y)
    return abs(WGS84.polygon_area_perimeter(lon, lat)[0])


@pytest.mark.parametrize("place", PLACES)
def test_pixel_areas_sum_to_the_true_area(place: str) -> None:
    grid = Grid(60, 8, PLACES[place], CRS.from_string(place.split()[0]))
    area = grid.pixel_area_m2()
    assert area.shape == (60,)
    # A row takes the scale of its middle; a parallel is no geodesic. Both matter less than 1e-5 at this size.
    assert area.sum() * grid.width == pytest.approx(true_area_m2(grid), rel=1e-5)


def test_a_foot_is_not_a_metre() -> None:
    feet = Grid(4, 4, Affine(1, 0, 980_000, 0, -1, 200_000), CRS.from_epsg(2263))
    assert feet.pixel_area_m2() == pytest.approx([0.3048006**2] * 4, rel=2e-4)
    assert feet.gsd_m() == pytest.approx(0.3048, rel=1e-3)


def test_web_mercator_pixels_are_smaller_than_they_say() -> None:
    equator = Grid(2, 2, Affine(0.149, 0, 0, 0, -0.149, 0), CRS.from_epsg(3857))
    banepa = Grid(2, 2, Affine(0.149, 0, 9_520_000, 0, -0.149, 3_205_000), CRS.from_epsg(3857))
    assert equator.gsd_m() == pytest.approx(0.149, rel=5e-3)
    assert banepa.gsd_m() == pytest.approx(0.149 * np.cos(np.radians(27.65)), rel=5e-3)


def test_a_local_crs_has_planar_areas_and_no_crs_has_no_gsd() -> None:
    local = CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1],AXIS["x",EAST],AXIS["y",NORTH]]')
    assert Grid(3, 3, Affine.scale(0.5, -0.5), local).pixel_area_m2() == pytest.approx([0.25] * 3)
    pixels = Grid(3, 3, Affine.identity(), None)
    assert pixels.pixel_area_m2() == pytest.approx([1] * 3)
    assert pixels.gsd_m() is None
    assert not pixels.is_georeferenced


def test_rows_past_the_pole_have_no_area() -> None:
    assert Grid(1, 1, Affine(1, 0, 0, 0, -1, 92), CRS.from_epsg(4326)).pixel_area_m2() == [0]


transforms = st.builds(
    lambda x, y, size, turn, flip: Affine.translation(x, y) @ Affine.rotation(turn) @ Affine.scale(size, size * flip),
    st.integers(-1000, 1000),
    st.integers(-1000, 1000),
    st.floats(0.1, 10),
    st.floats(0, 360),
    st.sampled_from([-1, 1]),
)
windows = st.builds(Window, *[st.integers(-50, 50)] * 2, *[st.integers(1, 50)] * 2)


@given(transforms, windows, st.tuples(*[st.floats(-20, 20)] * 2))
def test_a_crop_has_the_same_ground_under_its_pixels(
    transform: Affine, window: Window, point: tuple[float, float]
) -> None:
    grid = Grid(40, 30, transform, None)
    cropped = grid.crop(window)
    assert cropped.shape == (window.height, window.width)
    row, col = point
    assert cropped.transform @ (col, row) == pytest.approx(transform @ (window.col + col, window.row + row), abs=1e-8)


@given(transforms, windows)
def test_cropping_back_is_the_grid_itself(transform: Affine, window: Window) -> None:
    grid = Grid(40, 30, transform, None)
    back = grid.crop(window).crop(Window(-window.row, -window.col, 40, 30))
    assert back.shape == grid.shape
    assert tuple(back.transform) == pytest.approx(tuple(transform), abs=1e-8)


@given(transforms)
def test_bounds_hold_every_corner_tightly(transform: Affine) -> None:
    grid = Grid(40, 30, transform, None)
    left, bottom, right, top = grid.bounds
    corners = np.array([transform @ c for c in [(0, 0), (30, 0), (0, 40), (30, 40)]])
    assert (left, bottom) == tuple(corners.min(axis=0))
    assert (right, top) == tuple(corners.max(axis=0))


def test_grids_compare_hash_and_travel_to_workers() -> None:
    grid = Grid(4, 5, Affine(1, 0, 2, 0, -1, 3), CRS.from_epsg(32633))
    assert pickle.loads(pickle.dumps(grid)) == grid
    assert len({grid, Grid(4, 5, Affine(1, 0, 2, 0, -1, 3), CRS.from_epsg(32633))}) == 1
