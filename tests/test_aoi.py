from __future__ import annotations

from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.features import rasterize
from shapely.geometry import LineString, MultiPolygon, Point, Polygon, box
from shapely.geometry.base import BaseGeometry

from geoseg.errors import SceneError
from geoseg.grid import Grid
from geoseg.options import Imagery
from geoseg.scene import open_scene
from geoseg.scene.aoi import Aoi, load_aoi
from geoseg.windows import Window
from support.scenes import PLACES, MadeScene, MakeScene, Orientation

pytestmark = pytest.mark.filterwarnings("ignore:'crs' was not provided")


def write(path: Path, geometries: list[BaseGeometry], crs: str | None, **options: str) -> Path:
    geopandas.GeoDataFrame(geometry=geometries, crs=crs).to_file(path, **options)
    return path


def in_place(made: MadeScene, polygon: BaseGeometry) -> BaseGeometry:
    """A polygon in pixels of a scene, in its CRS."""
    t = made.transform
    return shapely.transform(polygon, lambda p: p @ np.array([[t.a, t.d], [t.b, t.e]]) + [t.c, t.f])


def random_polygons(seed: int, count: int, size: int) -> list[Polygon]:
    """Stars with a hole each, anywhere in and around a square of this side; they overlap."""
    rng = np.random.default_rng(seed)
    stars = []
    for _ in range(count):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
        radii, centre = rng.uniform(0.3, 1, 9) * size / 2, rng.uniform(0, size, 2)
        ring = centre + np.column_stack([np.cos(angles), np.sin(angles)]) * radii[:, None]
        star = Polygon(ring).buffer(0)
        stars += list(shapely.get_parts(star.difference(star.centroid.buffer(size / 20))))
    return [s for s in stars if isinstance(s, Polygon)]


@given(
    st.integers(0, 10_000),
    st.integers(1, 5),
    st.integers(-30, 70),
    st.integers(-30, 70),
    st.integers(1, 60),
    st.integers(1, 60),
)
def test_a_mask_of_a_window_is_what_gdal_burns(
    seed: int, count: int, row: int, col: int, height: int, width: int
) -> None:
    polygons = random_polygons(seed, count, 48)
    window = Window(row, col, height, width)
    got = Aoi(np.array(polygons), "").mask(window)
    burnt = rasterize(polygons, out_shape=(height, width), transform=Affine.translation(col, row)) > 0
    np.testing.assert_array_equal(got, burnt)


@given(st.integers(0, 10_000), st.integers(0, 30), st.integers(0, 30), st.integers(1, 30), st.integers(1, 30))
def test_edges_through_pixel_centres_fall_alike_in_every_window(
    seed: int, row: int, col: int, height: int, width: int
) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 60, (4, 2)) / 2 + rng.choice([0, 0.5])
    hull = shapely.convex_hull(shapely.MultiPoint(corners))
    if not isinstance(hull, Polygon):
        return
    aoi = Aoi(np.array([hull]), "")
    whole = aoi.mask(Window(0, 0, 60, 60))
    got = aoi.mask(Window(row, col, height, width))
    np.testing.assert_array_equal(got, whole[row : row + height, col : col + width])


def test_adjacent_parcels_have_no_gap_and_no_double_pixels() -> None:
    rng = np.random.default_rng(0)
    cells = shapely.get_parts(shapely.voronoi_polygons(shapely.MultiPoint(rng.uniform(0, 40, (60, 2)))))
    window = Window(0, 0, 40, 40)
    each = sum(Aoi(np.array([cell]), "").mask(window).astype(int) for cell in cells)
    np.testing.assert_array_equal(each, np.ones((40, 40)))
    assert Aoi(np.asarray(cells), "").mask(window).all()


@given(st.integers(0, 10_000), st.integers(-40, 80), st.integers(-40, 80), st.integers(1, 40), st.integers(1, 40))
def test_what_is_not_touched_holds_nothing(seed: int, row: int, col: int, height: int, width: int) -> None:
    aoi, window = Aoi(np.array(random_polygons(seed, 1, 24)), ""), Window(row, col, height, width)
    assert aoi.touches(window) or not aoi.mask(window).any()


@pytest.mark.parametrize("crs", [c for c in PLACES if c])
@pytest.mark.parametrize("orientation", ["north", "south", "rotated"])
@pytest.mark.parametrize("kind", ["aoi.gpkg", "aoi.shp", "aoi.geojson"])
def test_polygons_of_any_file_and_crs_lie_in_the_same_place(
    make_scene: MakeScene, tmp_path: Path, crs: str, orientation: Orientation, kind: str
) -> None:
    made = make_scene(crs=crs, orientation=orientation, size=(64, 80))
    shape = Polygon([(10.2, 5.1), (70.7, 12.3), (40.9, 60.2), (30.3, 30.8)])
    frame = geopandas.GeoDataFrame(geometry=[in_place(made, shape)], crs=crs).to_crs("EPSG:4326")
    frame.to_file(tmp_path / kind)
    with open_scene(made.path, Imagery(aoi=tmp_path / kind)) as scene:
        valid = scene.read(Window(0, 0, 64, 80))[1]
    # A millimetre, or seven decimals of a degree, may tip a centre that lies on an edge.
    wrong = np.argwhere(valid != rasterize([shape], out_shape=(64, 80)).astype(bool))
    assert all(shape.boundary.distance(Point(c + 0.5, r + 0.5)) < 0.05 for r, c in wrong)
    assert valid.sum() == pytest.approx(shape.area, rel=0.05)


def test_long_edges_stay_straight_where_they_were_drawn(tmp_path: Path) -> None:
    """A box in longitude and latitude, 200 km wide: its northern edge is a parallel, bent by 400 m in UTM."""
    left, bottom, right, top = 13.7, 60.0, 16.3, 61.0
    grid = Grid(150, 160, Affine(1000, 0, 420_000, 0, -1000, 6_780_000), CRS.from_epsg(32633))
    path = write(tmp_path / "aoi.geojson", [box(left, bottom, right, top)], "EPSG:4326")
    mask = load_aoi(path, grid).mask(Window(0, 0, *grid.shape))
    rows, cols = np.mgrid[0 : grid.height, 0 : grid.width] + 0.5
    points = [grid.transform @ (c, r) for r, c in zip(rows.ravel(), cols.ravel(), strict=True)]
    lonlat = geopandas.GeoSeries([Point(p) for p in points], crs=grid.crs).to_crs("EPSG:4326")
    inside = (lonlat.x > left) & (lonlat.x < right) & (lonlat.y > bottom) & (lonlat.y < top)
    np.testing.assert_array_equal(mask.ravel(), inside.to_numpy())


def test_the_whole_world_as_aoi_is_no_aoi(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene(nodata="value")
    world = write(tmp_path / "world.geojson", [box(-180, -90, 180, 90)], "EPSG:4326")
    with open_scene(made.path, Imagery(aoi=world)) as scene:
        np.testing.assert_array_equal(scene.read(Window(0, 0, 96, 80))[1], made.valid)


def test_any_window_of_a_clipped_scene_is_the_crop_of_the_whole(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene(size=(120, 140), nodata="value")
    shapes = [in_place(made, s) for s in (box(20, 10, 50, 40), box(100.5, 70.5, 130.5, 110.5))]
    path = write(tmp_path / "aoi.gpkg", [MultiPolygon(shapes)], made.crs)
    inside = np.zeros((120, 140), dtype=bool)
    inside[10:40, 20:50] = True
    with open_scene(made.path, Imagery(aoi=path)) as scene, open_scene(made.path) as plain:
        whole_pixels, whole = scene.read(Window(0, 0, 120, 140))
        np.testing.assert_array_equal(whole[:60], (made.valid & inside)[:60])
        assert made.valid[70:111, 100:131].all() and whole[70:111, 100:131].sum() == 40 * 30
        np.testing.assert_array_equal(whole_pixels[:, whole], made.pixels[:, whole])
        for window in [Window(0, 0, 32, 32), Window(13, 22, 90, 100), Window(-20, -10, 60, 70), Window(90, 90, 64, 64)]:
            pixels, valid = scene.read(window, reflect_valid=True)
            bigger = np.pad(made.pixels, ((0, 0), (64, 64), (64, 64)), mode="reflect")
            bigger_valid = np.pad(whole, 64, mode="reflect")
            cut = slice(window.row + 64, window.row_stop + 64), slice(window.col + 64, window.col_stop + 64)
            np.testing.assert_array_equal(valid, bigger_valid[cut])
            np.testing.assert_array_equal(pixels[:, valid], bigger[:, *cut][:, valid])
            # A network may look across the border, and the map is cut there.
            for got, wanted in zip(
                scene.read(window, reflect_valid=True, clip=False), plain.read(window, reflect_valid=True), strict=True
            ):
                np.testing.assert_array_equal(got, wanted)
            seen = scene.read(window, clip=False)[1]
            np.testing.assert_array_equal(seen & scene.inside(window), scene.read(window)[1])
            assert scene.may_be_valid(window) or not scene.read(window)[1].any()
        assert not scene.may_be_valid(Window(60, 0, 20, 90)) and scene.may_be_valid(Window(60, 90, 20, 20))
        assert plain.may_be_valid(Window(60, 0, 20, 90)) and not plain.may_be_valid(Window(120, 0, 20, 20))


def test_a_small_area_reads_only_the_blocks_it_needs(make_scene: MakeScene, tmp_path: Path) -> None:
    """Every block outside is ruined: reading one of them would be an error."""
    made = make_scene(size=(320, 320), compress="deflate")
    spoilt = bytearray(made.path.read_bytes())
    with rasterio.open(made.path) as file:
        for row in range(10):
            for col in range(10):
                if (row, col) not in ((4, 2), (4, 8)):
                    offset = int(file.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=1))
                    spoilt[offset : offset + 8] = b"\xff" * 8
    made.path.write_bytes(spoilt)
    with open_scene(made.path) as scene, pytest.raises(SceneError):
        scene.read(Window(0, 0, 320, 320))
    shapes = [in_place(made, s) for s in (box(70, 130, 90, 150), box(260, 135, 280, 155))]
    path = write(tmp_path / "aoi.gpkg", shapes, made.crs)
    with open_scene(made.path, Imagery(aoi=path)) as scene:
        pixels, valid = scene.read(Window(0, 0, 320, 320))
    assert valid.sum() == 800
    np.testing.assert_array_equal(pixels[:, valid], made.pixels[:, valid])


def test_what_is_no_area_of_interest(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene()
    here = in_place(made, box(10, 10, 40, 40))
    several = write(tmp_path / "two.gpkg", [here], made.crs, layer="fields")
    write(several, [here], made.crs, layer="woods")
    (tmp_path / "text.gpkg").write_text("hello")
    for path, complaint in [
        (tmp_path / "nowhere.gpkg", "no such area of interest"),
        (tmp_path / "text.gpkg", "cannot be read"),
        (several, "several layers of polygons: fields, woods"),
        (write(tmp_path / "line.gpkg", [LineString([(0, 0), (1, 1)])], made.crs), "holds no polygons"),
        (write(tmp_path / "empty.gpkg", [Polygon()], made.crs), "holds no polygons"),
        (write(tmp_path / "crs.shp", [here], None), "area of interest has no CRS, but the scene has one"),
        (write(tmp_path / "far.gpkg", [box(0, 0, 1, 1)], "EPSG:4326"), "touches the scene"),
        (write(tmp_path / "lonlat.gpkg", [here], "EPSG:4326"), "touches the scene"),
    ]:
        with pytest.raises(SceneError, match=complaint) as error:
            open_scene(made.path, Imagery(aoi=path))
        assert path.name in str(error.value) and error.value.hint
    pixels = make_scene(crs=None)
    with pytest.raises(SceneError, match="the scene has no CRS"):
        open_scene(pixels.path, Imagery(aoi=write(tmp_path / "utm.gpkg", [here], made.crs)))
    with open_scene(pixels.path, Imagery(aoi=write(tmp_path / "px.shp", [box(10, 10, 40, 40)], None))) as scene:
        assert scene.read(Window(0, 0, 96, 80))[1].sum() == 900


def test_coordinates_of_a_site_are_nowhere_else(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene()
    site = CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')
    grid = Grid(*made.pixels.shape[1:], made.transform, site)
    path = write(tmp_path / "aoi.gpkg", [in_place(made, box(10, 10, 40, 40))], made.crs)
    with pytest.raises(SceneError, match="no way is known from the CRS of the area of interest") as error:
        load_aoi(path, grid)
    assert error.value.hint


def test_a_polygon_that_crosses_itself_is_repaired(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene()
    bow = in_place(made, Polygon([(10, 10), (50, 50), (50, 10), (10, 50)]))
    with open_scene(made.path, Imagery(aoi=write(tmp_path / "bow.gpkg", [bow], made.crs))) as scene:
        assert scene.read(Window(0, 0, 96, 80))[1].sum() == pytest.approx(800, abs=45)


def test_the_digest_is_that_of_the_polygons(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene()
    one, other = in_place(made, box(10, 10, 40, 40)), in_place(made, box(10, 10, 40, 41))
    digests = []
    for name, polygon in [("a.gpkg", one), ("b.gpkg", one), ("c.gpkg", other)]:
        with open_scene(made.path, Imagery(aoi=write(tmp_path / name, [polygon], made.crs))) as scene:
            digests.append(scene.fingerprint()["aoi"])
    assert digests[0] == digests[1] != digests[2]
