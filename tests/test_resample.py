from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import box

from geoseg.errors import SceneError
from geoseg.options import Imagery
from geoseg.scene import Scene, open_scene
from geoseg.scene.raster import Raster
from geoseg.scene.resample import Resampled
from geoseg.windows import Window
from support.scenes import PLACES, MadeScene, MakeScene, NodataKind, Orientation, write_scene


def whole(scene: Raster) -> Window:
    return Window(0, 0, *scene.grid.shape)


@pytest.fixture(scope="module")
def shared_scene(tmp_path_factory: pytest.TempPathFactory) -> Callable[[NodataKind, str], MadeScene]:
    folder = tmp_path_factory.mktemp("shared")
    return cache(
        lambda nodata, dtype: write_scene(
            folder / f"{nodata}{dtype}.tif", size=(75, 61), nodata=nodata, bands=2, dtype=dtype
        )
    )


@given(
    st.sampled_from([("none", "uint8"), ("value", "uint8"), ("mask", "uint16"), ("nan", "float32")]),
    st.sampled_from([0.2, 0.37, 0.55, 0.8, 1.0, 1.7, 6.0]),
    st.integers(-30, 150),
    st.integers(-30, 150),
    st.integers(1, 90),
    st.integers(1, 90),
)
def test_any_window_is_the_crop_of_the_whole_bit_for_bit(
    shared_scene: Callable[[str, str], MadeScene],
    kind: tuple[str, str],
    gsd_m: float,
    row: int,
    col: int,
    height: int,
    width: int,
) -> None:
    with open_scene(shared_scene(*kind).path, Imagery(gsd=gsd_m)) as scene:
        pixels, valid = scene.read(whole(scene))
        got, got_valid = scene.read(Window(row, col, height, width), reflect_valid=True)
    margin = 250
    pixels = np.pad(pixels, ((0, 0), (margin, margin), (margin, margin)), mode="reflect")
    crop = slice(margin + row, margin + row + height), slice(margin + col, margin + col + width)
    np.testing.assert_array_equal(got, pixels[:, *crop])
    np.testing.assert_array_equal(got_valid, np.pad(valid, margin, mode="reflect")[crop])


def test_small_pieces_give_the_same_as_large_ones(make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_scene(size=(200, 170), nodata="value").path
    for gsd_m in (0.41, 1.3):
        with open_scene(path, Imagery(gsd=gsd_m)) as scene:
            once = scene.read(whole(scene))
            with monkeypatch.context() as patch:
                patch.setattr("geoseg.scene.resample._SOURCE_BYTES", 1)
                patch.setattr("geoseg.scene.resample._CHUNK_PX", 300)
                pieces = scene.read(whole(scene))
        for a, b in zip(once, pieces, strict=True):
            np.testing.assert_array_equal(a, b)


def resampled_to(path: Path, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A scene read at a size given in px, whatever that is on the ground."""
    scene = Resampled(Scene(path), 1.0)
    scene.grid = type(scene.grid)(height, width, scene.grid.transform, scene.grid.crs)
    with scene:
        return scene.read(whole(scene))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_twice_the_size_is_the_mean_of_four_pixels(make_scene: MakeScene, dtype: str) -> None:
    made = make_scene(size=(60, 80), dtype=dtype)
    pixels, valid = resampled_to(made.path, 30, 40)
    mean = made.pixels.reshape(3, 30, 2, 40, 2).astype(float).mean(axis=(2, 4))
    assert valid.all()
    np.testing.assert_allclose(pixels, np.rint(mean) if dtype == "uint8" else mean, rtol=1e-6)


@pytest.mark.parametrize("size", [(23, 31), (7, 40), (1, 1)])
def test_the_mean_of_the_scene_is_kept(make_scene: MakeScene, size: tuple[int, int]) -> None:
    """Each source pixel goes where it lies, and nowhere twice: the mean over equal areas stays."""
    made = make_scene(size=(60, 80), dtype="float32")
    pixels, _ = resampled_to(made.path, *size)
    np.testing.assert_allclose(pixels.mean(axis=(1, 2)), made.pixels.mean(axis=(1, 2)), rtol=1e-5)


@pytest.mark.parametrize("size", [(23, 31), (60, 200), (90, 20), (177, 161)])
def test_a_slope_stays_where_it_is(make_scene: MakeScene, size: tuple[int, int]) -> None:
    """A linear ramp has the value of its place at every pixel's centre: nothing moves by a part of a pixel."""
    made = make_scene(size=(60, 80), dtype="float32", bands=2)
    rows, cols = np.mgrid[0:60, 0:80] + 0.5
    with rasterio.open(made.path, "r+") as file:
        file.write(np.stack([rows, cols]).astype("float32"))
    pixels, _ = resampled_to(made.path, *size)
    expected = np.mgrid[0 : size[0], 0 : size[1]] + 0.5
    inner = slice(size[0] // 40 + 3, -size[0] // 40 - 3), slice(size[1] // 40 + 3, -size[1] // 40 - 3)
    # Pixels are squares of one value: what covers a part of one takes it for the whole, 0.04 px off at most here.
    np.testing.assert_allclose(pixels[0][inner], (expected[0] * 60 / size[0])[inner], atol=0.05)
    np.testing.assert_allclose(pixels[1][inner], (expected[1] * 80 / size[1])[inner], atol=0.05)


@pytest.mark.parametrize("size", [(30, 40), (60, 80), (90, 130), (33, 61), (60, 41)])
@pytest.mark.parametrize(("nodata", "dtype"), [("value", "uint8"), ("mask", "uint16"), ("nan", "float32")])
def test_invalid_pixels_give_neither_values_nor_area(
    make_scene: MakeScene, size: tuple[int, int], nodata: NodataKind, dtype: str
) -> None:
    made = make_scene(size=(60, 80), nodata=nodata, dtype=dtype, bands=1)
    pixels, valid = resampled_to(made.path, *size)
    assert valid.mean() == pytest.approx(made.valid.mean(), abs=0.02)
    low, high = made.pixels[:, made.valid].min(), made.pixels[:, made.valid].max()
    assert (pixels[:, valid] >= low).all() and (pixels[:, valid] <= high).all()  # the hole's 0 would be below
    # Where half or more of what a pixel covers is valid, it is; looked at in 20 × 20 parts of each.
    rows = (np.arange(size[0] * 20) + 0.5) / 20 / size[0] * 60
    cols = (np.arange(size[1] * 20) + 0.5) / 20 / size[1] * 80
    fine = made.valid[rows.astype(int)[:, None], cols.astype(int)]
    share = fine.reshape(size[0], 20, size[1], 20).mean(axis=(1, 3))
    clear = np.abs(share - 0.5) > (0.1 if size[0] <= 60 and size[1] <= 80 else 0.45)
    np.testing.assert_array_equal(valid[clear], (share > 0.5)[clear])


@pytest.mark.parametrize("crs", [c for c in PLACES if c])
@pytest.mark.parametrize("orientation", ["north", "south", "rotated"])
def test_pixels_are_square_on_the_same_ground(make_scene: MakeScene, crs: str, orientation: Orientation) -> None:
    made = make_scene(crs=crs, orientation=orientation, size=(300, 400))
    with open_scene(made.path) as plain, open_scene(made.path, Imagery(gsd=1.25)) as scene:
        assert scene.grid.pixel_size_m() == pytest.approx((1.25, 1.25), rel=0.01)
        # A rotation in degrees shears pixels on the ground: their sides are as asked for, but at no right angle.
        if not (crs == "EPSG:4326" and orientation == "rotated"):
            assert scene.grid.gsd_m() == pytest.approx(1.25, rel=0.01)
        assert scene.grid.bounds == pytest.approx(plain.grid.bounds, rel=1e-12)
        assert scene.read(whole(scene))[0].mean() == pytest.approx(made.pixels.mean(), abs=0.6)


def test_a_size_that_is_the_scenes_own_leaves_it_alone(make_scene: MakeScene) -> None:
    made = make_scene(nodata="value")
    with open_scene(made.path, Imagery(gsd=0.505)) as scene:
        for got, wanted in zip(scene.read(whole(scene)), (made.pixels, made.valid), strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_a_mosaic_with_an_aoi_is_resampled_across_files(make_scene: MakeScene, tmp_path: Path) -> None:
    left, right = make_scene(size=(80, 50), seed=1), make_scene(size=(80, 50), seed=2, shift=(0, 50))
    both = np.concatenate([left.pixels, right.pixels], axis=2)
    (x, y), (x2, y2) = left.transform @ (20, 20), left.transform @ (80, 60)
    geopandas.GeoDataFrame(geometry=[box(x, y2, x2, y)], crs=left.crs).to_file(tmp_path / "aoi.gpkg")
    with open_scene([left.path, right.path], Imagery(gsd=1.0, aoi=tmp_path / "aoi.gpkg")) as scene:
        assert scene.grid.shape == (40, 50)
        pixels, valid = scene.read(whole(scene))
        assert not scene.may_be_valid(Window(0, 0, 9, 50)) and scene.may_be_valid(Window(0, 0, 11, 50))
    expected = np.rint(both.reshape(3, 40, 2, 50, 2).mean(axis=(2, 4)))
    assert valid[10:30, 10:40].all() and valid.sum() == 600
    np.testing.assert_array_equal(pixels[:, valid], expected[:, valid])


def test_sizes_that_cannot_be_meant(make_scene: MakeScene) -> None:
    path = make_scene().path
    for gsd_m in (0.0, -1.0, 100.0, 0.001, float("nan")):
        with pytest.raises(SceneError, match=r"cannot be resampled") as error:
            open_scene(path, Imagery(gsd=gsd_m))
        assert "--gsd" in (error.value.hint or "")
    with pytest.raises(SceneError, match="has no CRS, so its pixels have no size"):
        open_scene(make_scene(crs=None).path, Imagery(gsd=1.0))
