from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp

from geoseg.errors import OutputError, SceneError
from geoseg.programs.prepare_scenes import prepare_scenes
from geoseg.scene import Scene
from geoseg.windows import Window
from support import commands
from support.scenes import MakeScene

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

STRIPED: dict[str, Any] = {"tiled": False, "blockxsize": 1100, "blockysize": 4, "size": (70, 1100)}


def tags(path: Path) -> dict[str, Any]:
    with rasterio.open(path) as file:
        names = (
            "crs",
            "transform",
            "nodatavals",
            "descriptions",
            "colorinterp",
            "scales",
            "offsets",
            "units",
            "dtypes",
        )
        return {name: getattr(file, name) for name in names}


@pytest.mark.parametrize(
    ("dtype", "bands", "nodata"),
    [("uint8", 3, "mask"), ("uint8", 3, "alpha"), ("uint16", 6, "value"), ("float32", 2, "nan"), ("int16", 1, "none")],
)
def test_copies_are_tiled_and_equal(make_scene: MakeScene, tmp_path: Path, dtype: str, bands: int, nodata: str) -> None:
    made = make_scene(dtype=dtype, bands=bands, nodata=nodata, orientation="rotated", name="s.tif", **STRIPED)
    with rasterio.open(made.path, "r+") as file:
        file.descriptions = [f"band {i} of many" for i in file.indexes]
        file.scales, file.offsets = [0.5] * file.count, [2.0] * file.count
        file.units = ["W"] * file.count
        file.update_tags(flown="2024-05-01")
    report = prepare_scenes([made.path], tmp_path / "out")
    (done,) = report.scenes
    assert done.target == tmp_path / "out/s.tif" and done.source == made.path
    np.testing.assert_equal(tags(done.target), tags(made.path))
    alpha = nodata == "alpha"
    with Scene(made.path, alpha=alpha) as before, Scene(done.target, alpha=alpha) as after:
        whole = Window(0, 0, *made.valid.shape)
        for a, b in zip(before.read(whole), after.read(whole), strict=True):
            np.testing.assert_array_equal(a, b)
        assert after.block_shape == (256, 256)
    with rasterio.open(done.target) as file:
        structure = file.tags(ns="IMAGE_STRUCTURE")
        assert structure["COMPRESSION"] == "ZSTD" and structure["PREDICTOR"] == ("3" if dtype == "float32" else "2")
        assert structure["INTERLEAVE"] == ("PIXEL" if 1 < bands <= 4 else "BAND")
        assert file.tags()["flown"] == "2024-05-01"
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["s.tif"]


def test_photographs_palettes_and_control_points_are_kept(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene(crs=None, name="photo.tif")
    jpg, png = tmp_path / "photo.jpg", tmp_path / "classes.png"
    with rasterio.open(jpg, "w", driver="JPEG", width=80, height=96, count=3, dtype="uint8") as file:
        file.write(made.pixels)
    with rasterio.open(png, "w", driver="PNG", width=80, height=96, count=1, dtype="uint8") as file:
        file.write(made.pixels[0] % 3, 1)
        file.write_colormap(1, {0: (0, 0, 0, 255), 1: (9, 8, 7, 255), 2: (250, 0, 1, 255)})
    points = [GroundControlPoint(r, c, 15 + c / 1e4, 47 - r / 1e4) for r, c in ((0, 0), (0, 80), (96, 0), (96, 80))]
    tilted = tmp_path / "tilted.png"
    with rasterio.open(tilted, "w", driver="PNG", width=80, height=96, count=3, dtype="uint8") as file:
        file.write(made.pixels)
        file.gcps = points, "EPSG:4326"
    report = prepare_scenes([jpg, png, tilted], tmp_path / "out")
    for done in report.scenes:
        assert done.target is not None
        with rasterio.open(done.source) as before, rasterio.open(done.target) as after:
            np.testing.assert_array_equal(before.read(), after.read())
            assert before.colorinterp == after.colorinterp and before.crs == after.crs
            if done.source == png:
                assert after.colorinterp == (ColorInterp.palette,)
                assert before.colormap(1).items() <= after.colormap(1).items()
            if done.source == tilted:
                assert [(p.row, p.col, p.x, p.y) for p in after.gcps[0]] == [(p.row, p.col, p.x, p.y) for p in points]
                assert after.gcps[1].to_epsg() == 4326


def test_masks_of_one_bit_and_complex_numbers_are_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    bits, waves = tmp_path / "bits.tif", tmp_path / "waves.tif"
    place = {
        "driver": "GTiff",
        "width": 1200,
        "height": 60,
        "count": 1,
        "crs": "EPSG:32633",
        "transform": Affine.scale(2),
    }
    with rasterio.open(bits, "w", dtype="uint8", nbits=1, **place) as file:
        file.write(rng.integers(0, 2, (1, 60, 1200), dtype="uint8"))
    with rasterio.open(waves, "w", dtype="complex64", **place) as file:
        file.write(rng.normal(size=(1, 60, 1200)).astype("complex64"))
    for done in prepare_scenes([bits, waves], tmp_path / "out").scenes:
        assert done.target is not None
        with rasterio.open(done.source) as before, rasterio.open(done.target) as after:
            np.testing.assert_array_equal(before.read(), after.read())
            assert "NBITS" in after.tags(1, ns="IMAGE_STRUCTURE") or done.source == waves


def test_what_is_fast_is_left_alone_unless_asked(make_scene: MakeScene, tmp_path: Path) -> None:
    tiled = make_scene(name="tiled.tif").path
    narrow = make_scene(name="narrow.tif", tiled=False, blockxsize=80, blockysize=4).path
    wide = make_scene(name="wide.tif", **STRIPED).path
    jpeg = make_scene(name="jpeg.tif", compress="jpeg").path
    first = prepare_scenes([tiled, narrow, wide, jpeg], tmp_path / "out")
    assert [scene.target is None for scene in first.scenes] == [True, True, False, False]
    text = "\n".join(first.lines())
    assert f"{tiled}  left alone: tiles of 32 × 32 px, deflate already" in text
    assert "strips of 4 rows, deflate, " in text and "tiles of 32 × 32 px, jpeg, " in text
    assert "2 copied" in text and "2 left alone" in text
    assert not prepare_scenes([tiled], tmp_path / "not needed").folder.exists()
    again = prepare_scenes([tiled, narrow, wide, jpeg], tmp_path / "out", overwrite=True)
    assert all(scene.target is not None and scene.target.exists() for scene in again.scenes)


@pytest.mark.parametrize("colors", [None, "undefined"])
def test_a_vrt_becomes_one_file(make_scene: MakeScene, tmp_path: Path, colors: str | None) -> None:
    made = make_scene(name="a.tif", bands=4)
    vrt = tmp_path / "part.vrt"
    rasterio.shutil.copy(made.path, vrt, driver="VRT")
    if colors:
        vrt.write_text(re.sub("<ColorInterp>.*?</ColorInterp>", "", vrt.read_text()))
    (done,) = prepare_scenes([vrt], tmp_path / "out").scenes
    assert done.target is not None
    made.path.unlink()
    with rasterio.open(done.target) as file:
        np.testing.assert_array_equal(file.read(), made.pixels)
        assert (ColorInterp.alpha in file.colorinterp) is (colors is None)  # GDAL's default writing of a fourth band


def write_vrt(path: Path, *bands: str) -> Path:
    """Two bands of one file, each with a data type and nodata of its own."""
    file = '<SourceFilename relativeToVRT="1">a.tif</SourceFilename><SourceBand>1</SourceBand>'
    source = f"<SimpleSource>{file}</SimpleSource></VRTRasterBand>"
    inner = "".join(f"<VRTRasterBand {band}{source}" for band in bands)
    path.write_text(f'<VRTDataset rasterXSize="80" rasterYSize="96">{inner}</VRTDataset>')
    return path


def test_what_a_geotiff_cannot_hold_is_beside_it_or_refused(make_scene: MakeScene, tmp_path: Path) -> None:
    make_scene(name="a.tif", nodata="value")
    first = 'dataType="Byte" band="1"><NoDataValue>0</NoDataValue>'
    nodata = write_vrt(tmp_path / "nodata.vrt", first, 'dataType="Byte" band="2"><NoDataValue>7</NoDataValue>')
    (done,) = prepare_scenes([nodata], tmp_path / "out").scenes
    assert done.target is not None
    with rasterio.open(done.target) as file:
        assert file.nodatavals == (0, 7)
    kept = {path.name for path in (tmp_path / "out").iterdir()}
    types = write_vrt(tmp_path / "types.vrt", first, 'dataType="UInt16" band="2">')
    with pytest.raises(SceneError, match="different datatypes per different bands") as caught:
        prepare_scenes([types], tmp_path / "out")
    assert "gdalinfo" in str(caught.value.hint)
    assert {path.name for path in (tmp_path / "out").iterdir()} == kept


def test_clashing_names_and_existing_copies_are_refused_first(make_scene: MakeScene, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    a = make_scene(name="a.tif", **STRIPED).path
    b = make_scene(name="one/A.tif", **STRIPED).path
    with pytest.raises(OutputError, match=r"a\.tif and .*A\.tif would both be"):
        prepare_scenes([a, b], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(OutputError, match="is also an input"):
        prepare_scenes([a], tmp_path, overwrite=True)
    assert len(prepare_scenes([a, a], tmp_path / "out").scenes) == 1
    c = make_scene(name="c.tif", **STRIPED).path
    with pytest.raises(OutputError, match=r"out/a\.tif exists"):
        prepare_scenes([a, c], tmp_path / "out")
    assert not (tmp_path / "out/c.tif").exists()


def test_broken_files_are_listed_and_the_others_copied(make_scene: MakeScene, tmp_path: Path) -> None:
    good = make_scene(name="good.tif", **STRIPED).path
    cut = [make_scene(name=f"cut{i}.tif", compress="none", **STRIPED).path for i in range(2)]
    for path in cut:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SceneError, match="2 of 3 files cannot be copied") as caught:
        prepare_scenes([cut[0], good, cut[1]], tmp_path / "out")
    assert all(str(path) in caught.value.message for path in cut)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["good.tif"]
    with pytest.raises(SceneError, match=r"2 of 2 files.*\n.*no such scene.*\n.*not a raster"):
        (tmp_path / "text.tif").write_text("no raster")
        prepare_scenes([tmp_path / "lost.tif", tmp_path / "text.tif"], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_verb_copies_and_tells(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene(name="a.tif", **STRIPED)
    command = ["prepare", "scenes", str(made.path), "-o", str(tmp_path / "new/out")]
    done = commands.run(*command)
    assert done.exit_code == 0, done.stderr
    assert "1 copied" in done.stdout and done.stdout.splitlines()[-1] == str(tmp_path / "new/out")
    with rasterio.open(tmp_path / "new/out/a.tif") as file:
        np.testing.assert_array_equal(file.read(), made.pixels)
