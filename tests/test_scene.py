from __future__ import annotations

import itertools
import json
import os
import pickle
import threading
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.enums import ColorInterp

from geoseg.errors import SceneError
from geoseg.options import Imagery
from geoseg.scene import Scene, open_scene
from geoseg.scene.open_files import OpenFiles
from geoseg.scene.raster import Raster
from geoseg.windows import Window, window_grid
from support.scenes import PLACES, MadeScene, MakeScene, NodataKind, Orientation, write_scene


def whole(scene: Raster) -> Window:
    return Window(0, 0, *scene.grid.shape)


@pytest.fixture(scope="module")
def shared_scene(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[int, int], NodataKind], MadeScene]:
    """One file for all examples of a property."""
    folder = tmp_path_factory.mktemp("shared")
    return cache(lambda size, nodata: write_scene(folder / f"{size}{nodata}.tif", size=size, nodata=nodata, bands=2))


@given(
    st.sampled_from([(40, 33), (1, 20), (20, 1), (1, 1), (2, 5)]),
    st.sampled_from(["none", "value", "mask"]),
    st.integers(-120, 120),
    st.integers(-120, 120),
    st.integers(1, 100),
    st.integers(1, 100),
)
def test_any_window_is_the_crop_of_the_reflected_scene(
    shared_scene: Callable[[tuple[int, int], NodataKind], MadeScene],
    size: tuple[int, int],
    nodata: NodataKind,
    row: int,
    col: int,
    height: int,
    width: int,
) -> None:
    made = shared_scene(size, nodata)
    margin = 120 + 100  # wider than the scene: np.pad turns round several times
    pixels = np.pad(made.pixels, ((0, 0), (margin, margin), (margin, margin)), mode="reflect")
    valid = np.pad(made.valid, margin)
    crop = slice(margin + row, margin + row + height), slice(margin + col, margin + col + width)
    with Scene(made.path) as scene:
        got, got_valid = scene.read(Window(row, col, height, width))
    np.testing.assert_array_equal(got, pixels[:, *crop])
    np.testing.assert_array_equal(got_valid, valid[crop])


@pytest.mark.parametrize("crs", PLACES)
@pytest.mark.parametrize("orientation", ["north", "south", "rotated"])
def test_the_grid_is_the_files(make_scene: MakeScene, crs: str | None, orientation: Orientation) -> None:
    made = make_scene(crs=crs, orientation=orientation, size=(40, 50))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Scene(made.path) as scene:
            assert scene.grid.shape == (40, 50)
            assert scene.grid.crs == (CRS.from_string(crs) if crs else None)
            assert tuple(scene.grid.transform) == pytest.approx(tuple(made.transform), rel=1e-12, abs=1e-12)
            np.testing.assert_array_equal(scene.read(whole(scene))[0], made.pixels)


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [
        *[("uint8", kind) for kind in ("none", "value", "mask", "alpha")],
        *[("uint16", kind) for kind in ("none", "value", "mask", "alpha")],
        *[("int16", kind) for kind in ("none", "value")],
        *[("float32", kind) for kind in ("none", "value", "mask", "nan")],
    ],
)
@pytest.mark.parametrize("bands", [1, 4])
def test_validity_is_exact_for_every_nodata_kind(
    make_scene: MakeScene, dtype: str, nodata: NodataKind, bands: int
) -> None:
    made = make_scene(dtype=dtype, nodata=nodata, bands=bands)
    with Scene(made.path, alpha=nodata == "alpha") as scene:
        assert scene.dtype == np.dtype(dtype)
        assert scene.bands == tuple(range(1, bands + 1))
        pixels, valid = scene.read(whole(scene))
    np.testing.assert_array_equal(pixels, made.pixels)
    np.testing.assert_array_equal(valid, made.valid)


def test_windows_put_together_are_the_scene(make_scene: MakeScene) -> None:
    made = make_scene(nodata="mask", size=(97, 61))
    pixels, valid = np.zeros_like(made.pixels), np.zeros_like(made.valid)
    with Scene(made.path) as scene:
        assert scene.block_shape == (32, 32)
        for w in window_grid(97, 61, size=32, overlap=16):
            place = slice(w.row, w.row_stop), slice(w.col, w.col_stop)
            pixels[:, *place], valid[place] = scene.read(w)
    np.testing.assert_array_equal(pixels, made.pixels)
    np.testing.assert_array_equal(valid, made.valid)


def test_a_black_pixel_in_one_band_is_no_nodata(make_scene: MakeScene) -> None:
    made = make_scene(bands=3)
    with rasterio.open(made.path, "r+") as file:
        file.nodata = 0
        dark = made.pixels.copy()
        dark[1, 5:9, 5:9] = 0
        file.write(dark)
    with Scene(made.path) as scene:
        assert scene.read(whole(scene))[1].all()
    with Scene(made.path, bands=[2]) as scene:
        assert (~scene.read(whole(scene))[1]).sum() == 16


def test_a_near_infrared_tagged_as_alpha_is_a_band(make_scene: MakeScene) -> None:
    made = make_scene(bands=3, nodata="alpha")
    with Scene(made.path) as scene:
        assert (scene.bands, scene.alpha_band) == ((1, 2, 3, 4), 4)
        assert scene.read(whole(scene))[1].all()
    with Scene(made.path, alpha=True) as scene:
        assert (scene.bands, scene.file_bands) == ((1, 2, 3), 4)


def test_nodata_given_overrides_the_files(make_scene: MakeScene) -> None:
    made = make_scene(nodata="value", dtype="int16")
    with Scene(made.path, nodata=-1) as scene:
        assert scene.nodata == -1
        assert scene.read(whole(scene))[1].all()
    with pytest.raises(SceneError, match=r"nodata 1e\+06 does not fit the int16"):
        Scene(made.path, nodata=1e6)


def test_an_impossible_nodata_value_is_ignored(make_scene: MakeScene) -> None:
    vrt = make_scene(dtype="uint8").path.with_suffix(".vrt")
    with rasterio.open(vrt.with_suffix(".tif")) as file:
        band = (
            '<VRTRasterBand dataType="Byte" band="1"><NoDataValue>-9999</NoDataValue><SimpleSource>'
            f'<SourceFilename relativeToVRT="1">{Path(file.name).name}</SourceFilename></SimpleSource></VRTRasterBand>'
        )
        vrt.write_text(f'<VRTDataset rasterXSize="{file.width}" rasterYSize="{file.height}">{band}</VRTDataset>')
    with Scene(vrt) as scene:
        assert scene.read(whole(scene))[1].all()


def test_bands_come_in_the_order_asked_for_and_by_name(make_scene: MakeScene) -> None:
    made = make_scene(bands=4, photometric="RGB")
    with rasterio.open(made.path, "r+") as file:
        file.set_band_description(4, "nir")
        file.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.undefined]
    with Scene(made.path, bands=[4, 3, 3]) as scene:
        assert scene.band_names == ("nir", "blue", "blue")
        np.testing.assert_array_equal(scene.read(whole(scene))[0], made.pixels[[3, 2, 2]])
    with Scene(make_scene(bands=1).path) as scene:
        assert scene.band_names == ("band 1",)


def test_threads_may_share_a_scene(make_scene: MakeScene) -> None:
    made = make_scene(size=(200, 160), nodata="mask")
    windows = window_grid(200, 160, size=48, overlap=16)
    got: dict[Window, np.ndarray] = {}
    with Scene(made.path) as scene:
        threads = [
            threading.Thread(target=lambda part: got.update((w, scene.read(w)[0]) for w in part), args=(windows[i::4],))
            for i in range(4)
        ]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert len(got) == len(windows)
    for w, pixels in got.items():
        np.testing.assert_array_equal(pixels, made.pixels[:, w.row : w.row_stop, w.col : w.col_stop])


def test_threads_have_datasets_of_their_own_and_give_them_back(make_scene: MakeScene) -> None:
    made = make_scene(size=(200, 160))
    start = threading.Barrier(3)

    def read() -> None:
        start.wait()
        for w in window_grid(200, 160, size=48, overlap=16):
            scene.read(w)

    files = OpenFiles(max_idle=2)
    with Scene(made.path, files=files) as scene:
        threads = [threading.Thread(target=read) for _ in range(3)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert 1 <= files.idle <= 2
        with files.borrow(scene.path) as one, files.borrow(scene.path) as other:
            assert one is not other
        scene.read(whole(scene))
    assert files.idle == 0
    with pytest.raises(ValueError, match="is closed"):
        scene.read(whole(scene))


def test_a_scene_travels_to_another_process_and_reads_the_same(make_scene: MakeScene, tmp_path: Path) -> None:
    paths = [make_scene(nodata="mask").path, make_scene(shift=(50, 30)).path]
    with open_scene(paths) as mosaic:
        travelled = pickle.loads(pickle.dumps(mosaic))
        with travelled:
            for got, wanted in zip(travelled.read(whole(mosaic)), mosaic.read(whole(mosaic)), strict=True):
                np.testing.assert_array_equal(got, wanted)


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts bytes as Linux does")
@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize(("rows", "cache_mb", "times"), [(512, 8, 1), (1024, 8, 1), (384, 8, 2), (384, "enough", 1)])
def test_strips_decode_each_block_once(
    tmp_path: Path, interleave: str, rows: int, cache_mb: int | str, times: int
) -> None:
    path, size = tmp_path / "scene.tif", (1536, 8192)
    noise = np.random.default_rng(0).integers(0, 255, (3, *size), dtype=np.uint8)
    with rasterio.open(
        path, "w", driver="GTiff", height=size[0], width=size[1], count=3, dtype="uint8", interleave=interleave,
        tiled=True, blockxsize=512, blockysize=512, compress="deflate", zlevel=1, transform=Affine.scale(2),
    ) as file:  # fmt: skip
        file.write(noise)
    with Scene(path) as scene:
        assert scene.row_of_blocks_bytes == 3 * 512 * (size[1] + 512) * (1 if interleave == "pixel" else 2)
        cache = scene.row_of_blocks_bytes if cache_mb == "enough" else int(cache_mb) << 20
        with rasterio.Env(GDAL_CACHEMAX=cache):
            before = _bytes_read()
            for row in range(0, size[0], rows):
                scene.read(Window(row, 0, min(rows, size[0] - row), size[1]))
            assert (_bytes_read() - before) / path.stat().st_size == pytest.approx(times, abs=0.05)


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_fingerprint_changes_with_all_that_pixels_depend_on(make_scene: MakeScene) -> None:
    made = make_scene(nodata="value", bands=4)

    def fingerprint(**options: Any) -> dict[str, Any]:
        with open_scene(made.path, Imagery(**options)) as scene:
            found = scene.fingerprint()
        assert json.loads(json.dumps(found)) == found
        return found

    plain = fingerprint()
    assert plain == fingerprint()
    others = [fingerprint(bands=[1, 2, 3]), fingerprint(nodata=3), fingerprint(gsd=1.0), fingerprint(gsd=0.8)]
    os.utime(made.path, ns=(0, 0))
    others.append(fingerprint())
    assert others[-1]["files"][0]["bytes"] == made.path.stat().st_size
    assert all(a != b for a, b in itertools.combinations([plain, *others], 2))


def test_a_fingerprint_sees_the_sources_of_a_vrt(make_scene: MakeScene, tmp_path: Path) -> None:
    made, vrt = make_scene(size=(96, 80)), tmp_path / "all.vrt"
    source = f"<SimpleSource><SourceFilename>{made.path}</SourceFilename></SimpleSource>"
    band = f'<VRTRasterBand dataType="Byte" band="1">{source}</VRTRasterBand>'
    vrt.write_text(f'<VRTDataset rasterXSize="80" rasterYSize="96">{band}</VRTDataset>')
    with Scene(vrt) as scene:
        before = scene.fingerprint()
        np.testing.assert_array_equal(scene.read(whole(scene))[0], made.pixels[:1])
        os.utime(made.path, ns=(0, 0))
        assert scene.fingerprint() != before


@pytest.mark.parametrize("compress", ["deflate", "jpeg", "none"])
def test_a_truncated_file_names_the_rows(make_scene: MakeScene, compress: str) -> None:
    made = make_scene(size=(256, 256), compress=compress)
    content = made.path.read_bytes()
    made.path.write_bytes(content[: len(content) // 2])
    with Scene(made.path) as scene, pytest.raises(SceneError, match=r"in rows 223 … 255, columns 0 … 255: .*") as error:
        scene.read(Window(224, 0, 64, 256))
    assert "scene0.tif" in str(error.value) and "previous exception" not in str(error.value)
    assert "gdalinfo -checksum" in (error.value.hint or "")


def test_a_corrupt_block_spoils_only_its_rows(make_scene: MakeScene) -> None:
    made = make_scene(size=(256, 256), compress="deflate")
    content = bytearray(made.path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = b"\xff" * 4000  # more than one block, so its header too
    made.path.write_bytes(content)
    with Scene(made.path) as scene:
        np.testing.assert_array_equal(scene.read(Window(0, 0, 32, 256))[0], made.pixels[:, :32])
        with pytest.raises(SceneError, match="cannot be read in rows 0 … 255"):
            scene.read(whole(scene))


def test_paths_that_are_no_scene(tmp_path: Path) -> None:
    (tmp_path / "text.tif").write_text("hello")
    (tmp_path / "empty.tif").touch()
    for path, complaint in [
        (tmp_path / "nowhere.tif", "no such scene: .*nowhere.tif"),
        (tmp_path / "text.tif", r"text\.tif is not a raster that GDAL can read: not recognized"),
        (tmp_path / "empty.tif", "is not a raster that GDAL can read"),
        (tmp_path / "text.tif" / "a.tif", "no such scene|not a raster"),
        (tmp_path, "is a folder"),
        ("", "is empty"),
        ("/vsicurl/http://127.0.0.1:9/x.tif", "127.0.0.1:9/x.tif is not a raster that GDAL can read"),
        ("http://127.0.0.1:9/x.tif", "is not a raster that GDAL can read"),
    ]:
        with pytest.raises(SceneError, match=complaint) as error:
            open_scene(path)
        assert error.value.hint


def test_bands_that_are_not_there_or_do_not_go_together(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene()
    with pytest.raises(SceneError, match="has bands 1 … 3, but band 4"):
        Scene(made.path, bands=[1, 4])
    with pytest.raises(SceneError, match="no band"):
        Scene(made.path, bands=[])
    with pytest.raises(SceneError, match="no alpha band"):
        Scene(made.path, alpha=True)
    with pytest.raises(SceneError, match="complex64"):
        Scene(_complex_raster(tmp_path))
    mixed = tmp_path / "mixed.vrt"
    source = f"<SimpleSource><SourceFilename>{made.path}</SourceFilename></SimpleSource>"
    mixed.write_text(
        '<VRTDataset rasterXSize="80" rasterYSize="96">'
        f'<VRTRasterBand dataType="Byte" band="1">{source}</VRTRasterBand>'
        f'<VRTRasterBand dataType="UInt16" band="2">{source}</VRTRasterBand></VRTDataset>'
    )
    with pytest.raises(SceneError, match="several dtypes: uint8, uint16"):
        Scene(mixed)
    with Scene(mixed, bands=[2]) as scene:
        assert scene.dtype == np.uint16


def _complex_raster(folder: Path) -> Path:
    with rasterio.open(
        folder / "radar.tif",
        "w",
        driver="GTiff",
        height=4,
        width=4,
        count=1,
        dtype="complex64",
        transform=Affine.scale(2),
    ) as file:
        file.write(np.ones((1, 4, 4), dtype="complex64"))
    return folder / "radar.tif"


@pytest.mark.real_data
def test_real_drone_scenes_read_as_gdal_reads_them(real_data: Path) -> None:
    path = real_data / "hot_buildings" / "val" / "images" / "zanzibar_b.tif"
    with Scene(path) as scene, rasterio.open(path) as file:
        assert scene.grid.gsd_m() == pytest.approx(0.1485, abs=2e-3)
        pixels, valid = scene.read(Window(500, 3400, 300, 184))
        np.testing.assert_array_equal(pixels, file.read(window=((500, 800), (3400, 3584))))
        assert valid.all()


def test_reflected_validity_is_that_of_the_reflected_pixel(make_scene: Callable[..., MadeScene]) -> None:
    made = make_scene(nodata="value", size=(21, 17))
    with Scene(made.path) as scene:
        _, whole = scene.read(Window(0, 0, 21, 17))
        assert not whole.all(), "without a hole this says nothing"
        window = Window(-4, 10, 30, 20)
        pixels, valid = scene.read(window, reflect_valid=True)
        expected = np.pad(whole, ((4, 5), (0, 13)), mode="reflect")[:, 10:]
        np.testing.assert_array_equal(valid, expected)
        np.testing.assert_array_equal(pixels, scene.read(window)[0])


@pytest.mark.parametrize("pixel", [0.0, float("nan")])
def test_a_transform_without_area_is_refused(tmp_path: Path, pixel: float) -> None:
    profile = {"driver": "GTiff", "count": 1, "height": 8, "width": 8, "dtype": "uint8"}
    with rasterio.open(tmp_path / "a.tif", "w", **profile, transform=Affine(pixel, 0, 5e5, 0, -pixel, 5e6)):
        pass
    with pytest.raises(SceneError, match="have no area"):
        open_scene(tmp_path / "a.tif")
