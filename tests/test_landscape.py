from __future__ import annotations

import itertools
import math
from functools import cache

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.enums import ColorInterp
from rasterio.features import rasterize
from shapely.geometry import box

from geoseg.classes import NODATA
from geoseg.errors import ConfigError, OutputError
from geoseg.landscape import LANDSCAPE_CLASSES, Landscape, write_landscape
from geoseg.landscape.cover import cell_features
from geoseg.landscape.features import BUILDING, MAX_HEIGHT_M, ROAD, WATER, Features
from geoseg.scene import Scene
from geoseg.windows import Window

RGBN = ("red", "green", "blue", "nir")
HEIGHT, WIDTH = 300, 340
SCENES = [
    Landscape(HEIGHT, WIDTH, seed=1, nodata=0),
    Landscape(HEIGHT, WIDTH, seed=2, gsd_m=0.2, bands=("nir", "red"), dtype="uint16"),
    Landscape(HEIGHT, WIDTH, seed=3, gsd_m=1.7, bands=RGBN, dtype="float32", nodata=math.nan, crs=None),
]


@cache
def made(n: int) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.uint8]]:
    """Pixels and labels of a whole scene; not at import, which each worker does."""
    return SCENES[n].read(whole(SCENES[n]))


def whole(scene: Landscape) -> Window:
    return Window(0, 0, scene.height, scene.width)


def burn(frame: gpd.GeoDataFrame, window: Window, transform: Affine) -> npt.NDArray[np.uint8]:
    shape = (window.height, window.width)
    shapes = zip(frame.geometry, frame.class_id, strict=True)
    return rasterize(shapes, out_shape=shape, transform=transform, fill=NODATA, dtype="uint8")


@st.composite
def windows(draw: st.DrawFn) -> Window:
    row, col = draw(st.integers(0, HEIGHT - 1)), draw(st.integers(0, WIDTH - 1))
    return Window(row, col, draw(st.integers(1, HEIGHT - row)), draw(st.integers(1, WIDTH - col)))


@given(windows(), st.sampled_from(range(len(SCENES))))
def test_a_window_is_the_crop_of_the_whole(window: Window, n: int) -> None:
    pixels, labels = SCENES[n].read(window)
    inside = slice(window.row, window.row_stop), slice(window.col, window.col_stop)
    assert pixels.tobytes() == np.ascontiguousarray(made(n)[0][:, *inside]).tobytes()
    assert np.array_equal(labels, made(n)[1][inside])


@given(windows(), st.sampled_from(range(len(SCENES))))
def test_truth_of_a_window_burns_to_its_labels(window: Window, n: int) -> None:
    frame = SCENES[n].truth(window)
    labels = made(n)[1][window.row : window.row_stop, window.col : window.col_stop]
    assert np.array_equal(burn(frame, window, SCENES[n].grid.crop(window).transform), labels)


def test_far_from_the_origin_a_window_is_still_a_crop() -> None:
    scene = Landscape(2_000_000, 1_000_000, seed=4, gsd_m=0.4)
    window = Window(1_999_000, 998_765, 150, 160)
    pixels, labels = scene.read(window)
    part, part_labels = scene.read(Window(1_999_041, 998_800, 60, 70))
    assert np.array_equal(part, pixels[:, 41:101, 35:105])
    assert np.array_equal(part_labels, labels[41:101, 35:105])
    assert np.array_equal(burn(scene.truth(window), window, scene.grid.crop(window).transform), labels)


@pytest.mark.parametrize("seed", range(4))
def test_every_class_is_in_1024_px_at_half_a_metre(seed: int) -> None:
    labels = Landscape(1024, 1024, seed=seed).read(Window(0, 0, 1024, 1024))[1]
    shares = np.bincount(labels.ravel(), minlength=len(LANDSCAPE_CLASSES)) / labels.size
    assert len(shares) == len(LANDSCAPE_CLASSES)
    assert shares.min() > 0.003
    assert shares.max() < 0.7


def test_the_seed_decides_everything() -> None:
    first = Landscape(80, 90, seed=5).read(Window(0, 0, 80, 90))
    again = Landscape(80, 90, seed=5).read(Window(0, 0, 80, 90))
    other = Landscape(80, 90, seed=6).read(Window(0, 0, 80, 90))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert (first[0] != other[0]).mean() > 0.5
    assert (first[1] != other[1]).mean() > 0.1


@pytest.mark.parametrize("nodata", [None, 0])
def test_truth_is_a_coverage_of_the_valid_area(nodata: float | None) -> None:
    scene = Landscape(500, 600, seed=7, nodata=nodata)
    frame = scene.truth()
    polygons = frame.geometry.to_numpy()
    pixel_area = scene.gsd_m**2
    assert frame.is_valid.all()
    assert (frame.geom_type == "Polygon").all()
    assert shapely.coverage_is_valid(polygons)
    assert frame.area.sum() == pytest.approx(shapely.union_all(polygons).area, rel=1e-9)
    invalid = sum(shapely.intersection(g, box(0, 0, 600, 500)).area for g in scene._invalid(whole(scene)))
    assert frame.area.sum() == pytest.approx((500 * 600 - invalid) * pixel_area, rel=1e-9)
    labels = scene.read(whole(scene))[1]
    assert np.array_equal(burn(frame, whole(scene), scene.grid.transform), labels)
    assert [LANDSCAPE_CLASSES.id_of(n) for n in frame.class_name] == frame.class_id.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_buildings_stand_apart_from_roads_water_and_each_other(seed: int) -> None:
    frame = Landscape(1024, 1024, seed=seed).frame
    things = Features.join(cell_features(frame, i, j) for i in range(-1, 3) for j in range(-1, 3))
    classes = things.classes
    bodies = things.polygons[classes == BUILDING]
    assert len(bodies) > 30
    houses = shapely.get_parts(shapely.union_all(bodies))
    assert shapely.distance(houses, shapely.union_all(things.polygons[classes == ROAD])).min() > 1
    assert shapely.distance(houses, shapely.union_all(things.polygons[classes == WATER])).min() > 0
    # A house has one roof colour, and an L-shape two bodies; more in one heap would be houses that grew together.
    tree = shapely.STRtree(bodies)
    first, second = tree.query(bodies, predicate="intersects")
    colors = things.table["color"][classes == BUILDING]
    assert np.array_equal(colors[first], colors[second])
    assert things.table["height"].max() <= MAX_HEIGHT_M


def test_objects_reach_no_further_than_their_cells_are_searched() -> None:
    frame = Landscape(64, 64, seed=8).frame
    for i, j in [(0, 0), (3, -2), (5, 7), (-4, 3), (2, 4)]:
        for left, top, right, bottom in shapely.bounds(cell_features(frame, i, j).polygons):
            assert (i, j) in frame.cells_near(left, top, right, bottom)
            for x, y in [(left, top), (right, top), (left, bottom), (right, bottom)]:
                assert (i, j) in frame.cells_near(x, y, x + 0.1, y + 0.1)


@pytest.mark.parametrize("bands", [("red", "green", "blue"), RGBN, ("nir",)])
@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [
        ("uint8", None),
        ("uint8", 0),
        ("uint8", 255),
        ("uint8", 130),
        ("uint16", 65535),
        ("float32", math.nan),
        ("float32", -9999.0),
    ],
)
@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:4326", None])
def test_files_hold_the_landscape(tmp_path, bands, dtype, nodata, crs) -> None:
    scene = Landscape(70, 90, seed=9, bands=bands, dtype=dtype, nodata=nodata, crs=crs)
    pixels_path, labels_path = tmp_path / "s.tif", tmp_path / "y.tif"
    write_landscape(scene, pixels_path, labels_path=labels_path, block=64)
    pixels, labels = scene.read(whole(scene))
    assert pixels.dtype == dtype
    with Scene(pixels_path) as opened:
        stored, valid = opened.read(whole(scene))
        assert opened.grid == scene.grid
        assert opened.band_names == bands
        assert opened.alpha_band is None
    assert np.array_equal(stored, pixels, equal_nan=dtype == "float32")
    assert np.array_equal(valid, labels != NODATA)
    assert (nodata is None) == bool(valid.all())
    with rasterio.open(labels_path) as opened:
        assert np.array_equal(opened.read(1), labels)
        assert opened.nodata == NODATA


def test_files_have_overviews_down_to_one_tile(tmp_path) -> None:
    scene = Landscape(200, 260, seed=9)
    pixels_path, labels_path = tmp_path / "s.tif", tmp_path / "y.tif"
    write_landscape(scene, pixels_path, labels_path=labels_path, block=64)
    pixels, labels = scene.read(whole(scene))
    for path, level in itertools.product((pixels_path, labels_path), range(3)):
        with rasterio.open(path, overview_level=level) as opened:
            assert opened.shape == (-(-200 // 2 ** (level + 1)), -(-260 // 2 ** (level + 1)))
    with pytest.raises(rasterio.errors.RasterioIOError), rasterio.open(pixels_path, overview_level=3):
        pass
    with rasterio.open(pixels_path, overview_level=0) as opened:
        mean = pixels.reshape(3, 100, 2, 130, 2).mean(axis=(2, 4))
        assert np.abs(opened.read() - mean).max() <= 0.5
    with rasterio.open(labels_path, overview_level=2) as opened:
        assert set(np.unique(opened.read(1))) <= set(np.unique(labels))


def test_infrared_is_no_alpha_and_tells_plants_from_water(tmp_path) -> None:
    scene = Landscape(512, 512, seed=0, bands=RGBN)
    pixels, labels = scene.read(whole(scene))
    nir = [pixels[3][labels == LANDSCAPE_CLASSES.id_of(n)].mean() for n in ("water", "road", "grass")]
    assert nir[0] + 20 < nir[1] and nir[1] + 20 < nir[2]
    write_landscape(scene, tmp_path / "s.tif")
    with rasterio.open(tmp_path / "s.tif") as opened:
        assert opened.colorinterp == (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.undefined)


@pytest.mark.parametrize(
    "transform",
    [
        Affine(0.5, 0, 4e5, 0, 0.5, 5e6),
        Affine.translation(4e5, 5e6) @ Affine.rotation(33) @ Affine.scale(0.5, -0.5),
        None,
    ],
)
@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:3857", "EPSG:2263", "EPSG:4326"])
def test_georeference_moves_the_truth_and_leaves_the_pixels(transform: Affine | None, crs: str) -> None:
    if transform is not None and crs == "EPSG:4326":
        transform = Affine.translation(15, 48) @ Affine.rotation(20) @ Affine.scale(4e-6, 4e-6)
    scene = Landscape(150, 160, seed=10, crs=crs, transform=transform)
    plain = Landscape(150, 160, seed=10, crs=None)
    pixels, labels = scene.read(whole(scene))
    assert np.array_equal(pixels, plain.read(whole(plain))[0])
    frame = scene.truth()
    assert frame.crs == crs
    assert frame.is_valid.all()
    assert np.array_equal(burn(frame, whole(scene), scene.grid.transform), labels)


def test_degrees_and_feet_keep_the_ground_sample_distance() -> None:
    for crs, tolerance in [("EPSG:4326", 0.01), ("EPSG:2263", 0.001), ("EPSG:32633", 0.001)]:
        assert Landscape(64, 64, gsd_m=0.3, crs=crs).grid.gsd_m() == pytest.approx(0.3, rel=tolerance)


def test_written_truth_reads_back_and_larger_scenes_are_cut(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("geoseg.landscape.scenery._TRUTH_PX", 128)
    scene = Landscape(200, 150, seed=11, nodata=0)
    write_landscape(scene, tmp_path / "s.tif", truth_path=tmp_path / "t.gpkg", block=64)
    frame = gpd.read_file(tmp_path / "t.gpkg")
    assert frame.crs == scene.grid.crs
    assert frame.area.sum() == pytest.approx(scene.truth().area.sum(), rel=1e-9)
    assert np.array_equal(burn(frame, whole(scene), scene.grid.transform), scene.read(whole(scene))[1])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.tif", "t.gpkg"]


def test_progress_sees_every_window_and_existing_files_stay(tmp_path) -> None:
    seen: list[Window] = []

    def watch(windows):
        for window in windows:
            seen.append(window)
            yield window

    scene = Landscape(100, 300, seed=12)
    write_landscape(scene, tmp_path / "s.tif", block=64, progress=watch)
    assert sum(w.height * w.width for w in seen) == 100 * 300
    before = (tmp_path / "s.tif").read_bytes()
    with pytest.raises(OutputError, match=r"s\.tif exists"):
        write_landscape(Landscape(100, 300, seed=13), tmp_path / "s.tif", labels_path=tmp_path / "y.tif")
    assert (tmp_path / "s.tif").read_bytes() == before
    write_landscape(scene, tmp_path / "s.tif", block=64, overwrite=True)
    assert (tmp_path / "s.tif").read_bytes() == before


def test_one_pixel_and_huge_pixels_are_scenes_too() -> None:
    assert Landscape(1, 1, seed=1, nodata=0).read(Window(0, 0, 1, 1))[0].shape == (3, 1, 1)
    pixels, labels = Landscape(40, 30, seed=1, gsd_m=10.0, dtype="float32").read(Window(0, 0, 40, 30))
    assert np.isfinite(pixels).all() and labels.max() < len(LANDSCAPE_CLASSES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 0}, "at least 1"),
        ({"gsd_m": 0.0}, "gsd_m"),
        ({"seed": -1}, "seed"),
        ({"bands": ("red", "swir")}, "bands"),
        ({"bands": ()}, "bands"),
        ({"dtype": "int8"}, "dtype"),
        ({"nodata": 256}, "nodata"),
        ({"nodata": math.nan}, "nodata"),
        ({"crs": "EPSG:1"}, "CRS"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Landscape(**{"height": 10, "width": 10, **arguments})


def test_windows_must_lie_inside() -> None:
    scene = Landscape(20, 20)
    for window in (Window(-1, 0, 5, 5), Window(0, 16, 5, 5), Window(0, 0, 0, 5)):
        with pytest.raises(ValueError, match="not inside"):
            scene.read(window)
