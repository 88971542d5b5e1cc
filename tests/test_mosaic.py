from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from geoseg.errors import SceneError
from geoseg.scene import Scene, open_scene
from geoseg.scene.mosaic import Mosaic
from geoseg.scene.open_files import OpenFiles
from geoseg.scene.raster import Raster
from geoseg.windows import Window, window_grid
from support.scenes import MadeScene, MakeScene


def whole(scene: Raster) -> Window:
    return Window(0, 0, *scene.grid.shape)


def test_a_cut_scene_reads_as_one_again(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene(size=(90, 100), nodata="value", orientation="rotated")
    parts = []
    for i, (rows, cols) in enumerate([((0, 50), (0, 60)), ((40, 90), (0, 60)), ((0, 90), (55, 100))]):
        with rasterio.open(made.path) as file:
            profile = file.profile | {
                "height": rows[1] - rows[0],
                "width": cols[1] - cols[0],
                "transform": made.transform @ Affine.translation(cols[0], rows[0]),
            }
        parts.append(tmp_path / f"part{i}.tif")
        with rasterio.open(parts[-1], "w", **profile) as file:
            file.write(made.pixels[:, slice(*rows), slice(*cols)])
    with open_scene(parts[::-1]) as mosaic, open_scene(made.path) as scene:
        assert isinstance(mosaic, Mosaic)
        assert mosaic.grid.shape == scene.grid.shape
        assert tuple(mosaic.grid.transform) == pytest.approx(tuple(scene.grid.transform))
        for window in [whole(scene), Window(-20, -30, 64, 64), Window(45, 50, 32, 32), Window(80, 90, 50, 50)]:
            for got, wanted in zip(mosaic.read(window), scene.read(window), strict=True):
                np.testing.assert_array_equal(got, wanted)


def test_the_later_scene_wins_and_gaps_are_invalid(make_scene: MakeScene) -> None:
    first = make_scene(size=(60, 60), seed=1)
    second = make_scene(size=(60, 60), seed=2, nodata="mask", shift=(30, 40))
    with open_scene([first.path, second.path]) as mosaic:
        assert mosaic.grid.shape == (90, 100)
        pixels, valid = mosaic.read(whole(mosaic))
    expected, covered = np.zeros((3, 90, 100), np.uint8), np.zeros((90, 100), bool)
    expected[:, :60, :60], covered[:60, :60] = first.pixels, True
    expected[:, 30:, 40:] = np.where(second.valid, second.pixels, expected[:, 30:, 40:])
    covered[30:, 40:] |= second.valid
    np.testing.assert_array_equal(pixels, expected)
    np.testing.assert_array_equal(valid, covered)


def test_a_hundredth_of_a_pixel_is_forgiven_and_a_tenth_is_not(make_scene: MakeScene) -> None:
    first = make_scene(size=(40, 40))
    near = make_scene(size=(40, 40), shift=(40.005, -0.005))
    with open_scene([first.path, near.path]) as mosaic:
        assert mosaic.grid.shape == (80, 40)
        assert tuple(mosaic.grid.transform) == tuple(first.transform)
    off = make_scene(size=(40, 40), shift=(40.1, 0))
    with pytest.raises(SceneError, match="not on the pixel grid") as error:
        open_scene([first.path, off.path])
    assert "gdalwarp -tr 0.5 0.5" in (error.value.hint or "")


def test_scenes_that_do_not_go_together(make_scene: MakeScene) -> None:
    first = make_scene(size=(40, 40)).path
    for other, complaint in [
        ({"crs": "EPSG:3857"}, "EPSG:3857, but .* in EPSG:32633"),
        ({"crs": None}, "no CRS, but"),
        ({"orientation": "south"}, "not on the pixel grid"),
        ({"orientation": "rotated"}, "not on the pixel grid"),
        ({"dtype": "uint16"}, "3 bands of uint16"),
        ({"bands": 4}, "4 bands of uint8"),
    ]:
        with pytest.raises(SceneError, match=complaint):
            open_scene([first, make_scene(size=(40, 40), **other).path])
    with pytest.raises(SceneError, match="no scene"):
        open_scene([])


def cut(made: MadeScene, folder: Path, side: int) -> list[Path]:
    """A scene as many square files."""
    paths = []
    for w in window_grid(*made.valid.shape, size=side, overlap=0):
        paths.append(folder / f"{w.row}_{w.col}.tif")
        with rasterio.open(
            paths[-1],
            "w",
            driver="GTiff",
            height=w.height,
            width=w.width,
            count=3,
            dtype="uint8",
            crs=made.crs,
            transform=made.transform @ Affine.translation(w.col, w.row),
        ) as file:
            file.write(made.pixels[:, w.row : w.row_stop, w.col : w.col_stop])
    return paths


def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of files as rasterio opens them."""
    names: list[str] = []
    rasterio_open = rasterio.open

    def listed(path: str, *args: object, **options: object) -> object:
        names.append(Path(path).name)
        return rasterio_open(path, *args, **options)

    monkeypatch.setattr("geoseg.scene.open_files.rasterio.open", listed)
    return names


def test_hundreds_of_files_read_as_one_with_few_open(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene(size=(160, 160))
    paths = cut(made, tmp_path, 8)
    assert len(paths) == 400
    files = OpenFiles(max_idle=7)
    with Mosaic([Scene(path, files=files) for path in paths]) as mosaic:
        assert files.idle == 7
        np.testing.assert_array_equal(mosaic.read(whole(mosaic))[0], made.pixels)
        assert files.idle == 7
    assert files.idle == 0


def test_a_window_opens_only_the_files_it_meets(
    make_scene: MakeScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_scene(size=(64, 64))
    with Mosaic([Scene(path, files=OpenFiles(max_idle=1)) for path in cut(made, tmp_path, 16)]) as mosaic:
        for scene in mosaic.scenes:
            assert isinstance(scene, Scene)
            scene._files.close(scene.path)
        names = opened(monkeypatch)
        mosaic.read(Window(20, 10, 12, 12))
        assert sorted(names) == ["16_0.tif", "16_16.tif"]
        assert mosaic.may_be_valid(Window(60, 60, 30, 30)) and not mosaic.may_be_valid(Window(64, 0, 9, 9))


def test_a_gap_between_files_needs_no_reading(make_scene: MakeScene, tmp_path: Path) -> None:
    paths = cut(make_scene(size=(64, 64)), tmp_path, 16)
    with open_scene([paths[0], paths[-1]]) as mosaic:
        assert mosaic.grid.shape == (64, 64)
        assert mosaic.may_be_valid(Window(0, 0, 17, 17))
        assert not mosaic.may_be_valid(Window(16, 16, 32, 32))


def test_what_lies_below_a_valid_file_is_not_decoded(make_scene: MakeScene) -> None:
    below, above = make_scene(size=(60, 60), seed=1), make_scene(size=(60, 60), seed=2, shift=(0, 0))
    ruined = below.path.read_bytes()
    below.path.write_bytes(ruined[: len(ruined) // 3])
    with open_scene([below.path, above.path]) as mosaic:
        np.testing.assert_array_equal(mosaic.read(whole(mosaic))[0], above.pixels)
    with (
        open_scene([above.path, below.path]) as mosaic,
        pytest.raises(SceneError, match=r"scene0\.tif cannot be read in"),
    ):
        mosaic.read(whole(mosaic))


def test_what_is_wrong_with_several_files_is_said_at_once(make_scene: MakeScene, tmp_path: Path) -> None:
    good = make_scene().path
    for i in range(5):
        (tmp_path / f"bad{i}.tif").write_text("hello")
    with pytest.raises(SceneError, match=r"(?s)5 of 6 scenes cannot be used:.*bad0.*bad1.*bad2.*bad3.*bad4") as error:
        open_scene([good, *sorted(tmp_path.glob("bad*.tif"))])
    assert "gdalinfo" in str(error.value)
    others = [make_scene(crs="EPSG:3857").path, make_scene(dtype="uint16").path]
    with pytest.raises(SceneError, match=r"(?s)2 of 3 scenes cannot be used:.*EPSG:3857.*uint16"):
        open_scene([good, *others])


def test_the_cache_a_mosaic_needs_is_that_of_its_fullest_row(make_scene: MakeScene) -> None:
    first, beside, below = (make_scene(size=(64, 64), shift=shift).path for shift in ((0, 0), (10, 64), (64, 0)))
    one = 3 * 32 * (64 + 32)  # bands × rows of a block × columns and one block
    with open_scene(first) as scene:
        assert scene.row_of_blocks_bytes == one
    with open_scene([first, beside, below]) as mosaic:
        assert mosaic.row_of_blocks_bytes == 2 * one
    with open_scene([first, below]) as mosaic:
        assert mosaic.row_of_blocks_bytes == one
