"""What is advised for scenes with other bands, another data type or scaled values than a model takes."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp

from geoseg.contract import Contract
from geoseg.errors import SceneError
from geoseg.options import Imagery
from geoseg.prediction.imagery import check_scene
from geoseg.programs.info import describe
from geoseg.scene import open_scene
from geoseg.scene.advice import bands_named, order_of
from support.imagery import RGB, contract, write

needs_gdal = pytest.mark.skipif(shutil.which("gdal_translate") is None, reason="needs GDAL's programs")


def shades(bands: int, dtype: str = "uint8", low: int = 0, high: int = 256) -> npt.NDArray[Any]:
    return np.random.default_rng(0).integers(low, high, (bands, 64, 64)).astype(dtype)


def refusal(*paths: Path, of: Contract, **options: Any) -> SceneError:
    with open_scene(list(paths), Imagery(**options)) as scene, pytest.raises(SceneError) as caught:
        check_scene(of, scene)
    return caught.value


# Bands


def test_bands_are_offered_by_what_the_file_calls_them(tmp_path: Path) -> None:
    for number, (descriptions, wanted, found) in enumerate(
        [
            (("B1", "B2", "B3", "B4"), RGB, None),  # coastal, blue, green: but that is the user's to know
            (("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A"), RGB, (4, 3, 2)),  # Sentinel-2 alone has a B8A
            (("B01", "B02", "B03", "B04", "B08", "B8A"), (*RGB, "nir"), (4, 3, 2, 5)),
            (("blue", "green", "red", "Near-Infrared"), RGB, (3, 2, 1)),
            (("Red edge", "Band Red", "Band Green", "Band Blue"), RGB, (2, 3, 4)),
            (("B2 (490 nm)", "B3 (560 nm)", "B4 (665 nm)", "B8 (0.842 um)"), ("nir", "red"), (4, 3)),
            (("one", "two", "three", "four"), RGB, None),
            ((), ("height",), None),
        ]
    ):
        path = write(tmp_path / f"{number}.tif", shades(max(len(descriptions), 4), "uint16"), descriptions=descriptions)
        assert bands_named(str(path), wanted) == found, descriptions


def test_wavelengths_in_tags_tell_bands(tmp_path: Path) -> None:
    path = write(tmp_path / "cube.tif", shades(4, "uint16"))
    with rasterio.open(path, "r+") as file:
        for band, length in enumerate(("443", "0.49", "560", "665"), start=1):
            file.update_tags(band, wavelength=length)
    assert bands_named(str(path), RGB) == (4, 3, 2)


def test_colour_interpretation_tells_where_nothing_is_described(tmp_path: Path) -> None:
    path = write(tmp_path / "bgrn.tif", shades(4))
    with rasterio.open(path, "r+") as file:
        file.colorinterp = [ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.undefined]
    assert bands_named(str(path), RGB) == (3, 2, 1)
    # GDAL calls the first bands of bytes red, green, blue, whatever they are.
    described = write(tmp_path / "b123.tif", shades(4), photometric="RGB", descriptions=("B1", "B2", "B3", "B4"))
    assert bands_named(str(described), RGB) is None


def test_no_order_is_offered_that_the_file_does_not_tell(tmp_path: Path) -> None:
    path = write(tmp_path / "s2.tif", shades(4), descriptions=("B1", "B2", "B3", "B4"))
    error = refusal(path, of=contract())
    assert "has 4 bands" in error.message and "--bands 1,2,3" not in str(error.hint)
    assert "say with --bands which of them are red, green, blue, in this order" in str(error.hint)
    known = write(tmp_path / "known.tif", shades(4), descriptions=("blue", "green", "red", "nir"))
    assert "--bands 3,2,1" in str(refusal(known, of=contract()).hint)


def test_bands_in_another_order_are_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert order_of(("blue", "green", "red"), RGB) == (3, 2, 1)
    assert order_of(("band 1", "band 2", "band 3"), RGB) is None
    path = write(tmp_path / "bgr.tif", shades(3), descriptions=("blue", "green", "red"))
    with open_scene(path) as scene:
        check_scene(contract(), scene)
    assert "--bands 3,2,1" in caplog.text
    caplog.clear()
    with open_scene(path, Imagery(bands=(3, 2, 1))) as scene:
        check_scene(contract(), scene)
    assert not caplog.records


def test_bands_as_separate_files_are_to_be_stacked(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name} x.tif", shades(1)) for name in "RGB"]
    error = refusal(*paths, of=contract())
    assert "has 1 band, but the model expects 3" in error.message
    quoted = " ".join(shlex.quote(str(path)) for path in paths)
    assert str(error.hint).endswith(f": gdalbuildvrt -separate stack.vrt {quoted}")
    beside = write(tmp_path / "beside.tif", shades(1), transform=Affine(0.5, 0, 5e5 + 32, 0, -0.5, 5e6))
    assert f"geoseg info {shlex.quote(str(paths[0]))}" in str(refusal(paths[0], beside, of=contract()).hint)


def test_a_palette_is_expanded_and_not_taken_for_shades(tmp_path: Path) -> None:
    path = write(tmp_path / "palette.tif", shades(1))
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {i: (i, 255 - i, i // 2, 255) for i in range(256)})
    hint = str(refusal(path, of=contract()).hint)
    assert f"gdal_translate -expand rgb {path} rgb.tif" in hint
    assert any("where it is imagery" in line and "-expand rgb" in line for line in describe(str(path)))


# Data types


@pytest.mark.parametrize("dtype", ["int16", "uint16", "float32"])
def test_bytes_in_wider_pixels_keep_their_values(dtype: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a b.tif", shades(3, dtype))
    error = refusal(path, of=contract())
    assert f"is {dtype}, but the model was trained on uint8" in error.message
    assert str(error.hint).endswith(f"fit as they are: gdal_translate -ot Byte '{path}' converted.tif")


def test_deep_pixels_are_stretched_by_their_values(tmp_path: Path) -> None:
    path = write(tmp_path / "deep.tif", shades(3, "uint16", 100, 2000))
    words = shlex.split(str(refusal(path, of=contract()).hint).partition(": ")[2])
    assert words[:4] == ["gdal_translate", "-ot", "Byte", "-scale"] and words[6:8] == ["0", "255"]
    assert 100 <= float(words[4]) < 200 and 1900 < float(words[5]) < 2000


@pytest.mark.parametrize(
    ("dtype", "low", "high", "fits"),
    [
        ("int32", 0, 256, "Byte"),
        ("float64", 0, 3000, "UInt16"),
        ("int32", -5, 9, "Int16"),
        ("uint32", 0, 99999, "Float32"),
    ],
)
def test_info_offers_the_smallest_type_that_fits(dtype: str, low: int, high: int, fits: str, tmp_path: Path) -> None:
    path = write(tmp_path / "scene.tif", shades(3, dtype, low, high))
    assert any(f"no model takes {dtype}: gdal_translate -ot {fits} " in line for line in describe(str(path)))


# Scale and offset


def tagged(path: Path, scale: float, offset: float) -> Path:
    """Reflectances of about 0.3, stored with 1e-4 and an offset of −0.1 as Sentinel-2's are."""
    write(path, shades(3, "uint16", 3800, 4200))
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = [scale] * 3, [offset] * 3
    return path


def test_scale_and_offset_tags_are_shown(tmp_path: Path) -> None:
    lines = describe(str(tagged(tmp_path / "s2.tif", 1e-4, -0.1)))
    assert sum("scale 0.0001 and offset -0.1 in its tags" in line for line in lines) == 3
    assert any("scale and offset tags are not applied" in line for line in lines)


def test_scaling_tags_are_refused_where_they_matter(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tagged(tmp_path / "s2.tif", 1e-4, -0.3)  # 0.4 as stored, 0.1 with the tags
    model = contract(dtype="uint16", scale=1e-4, mean=0.1)
    error = refusal(path, of=model)
    assert "scale and offset tags (0.0001 and -0.3), which are not applied" in error.message
    assert "gdal_translate -ot UInt16 -scale 0 10000 -3000 7000" in str(error.hint)
    with open_scene(path) as scene:
        check_scene(contract(dtype="uint16", scale=1e-4, mean=0.4), scene)
    assert "not applied" in caplog.text
    caplog.clear()
    with open_scene(tagged(tmp_path / "same.tif", 1e-4, 0)) as scene:
        check_scene(model.model_copy(update={"bands": contract(mean=0.4).bands}), scene)
    assert not caplog.records
    floats = refusal(path, of=contract(dtype="float32", scale=1))
    assert "gdal_translate -ot Float32 -unscale" in str(floats.hint)


@needs_gdal
def test_the_command_for_tags_gives_the_models_values(tmp_path: Path) -> None:
    path = tagged(tmp_path / "s2.tif", 1e-4, -0.3)
    hint = str(refusal(path, of=contract(dtype="uint16", scale=1e-4, mean=0.1)).hint)
    command = shlex.split(hint.partition(": ")[2])
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    with rasterio.open(path) as before, rasterio.open(tmp_path / "unscaled.tif") as after:
        np.testing.assert_array_equal(after.read(), before.read() - 3000)
        assert after.scales == (1, 1, 1) and after.offsets == (0, 0, 0)


# Pixel sizes


def test_each_side_of_a_pixel_must_be_near_the_models(tmp_path: Path) -> None:
    flat = write(tmp_path / "flat.tif", shades(3), transform=Affine(2, 0, 5e5, 0, -0.125, 5e6))
    error = refusal(flat, of=contract(gsd_m=0.5))
    assert "has pixels of 0.125 × 2 m, but the model was trained on 0.5 m" in error.message
    assert "--gsd model" in str(error.hint)
    with open_scene(flat, Imagery(gsd=0.5)) as scene:
        check_scene(contract(gsd_m=0.5), scene)
        assert scene.grid.pixel_size_m() == pytest.approx((0.5, 0.5), rel=0.01)


def test_nodata_of_nan_is_said_once(tmp_path: Path) -> None:
    path = write(tmp_path / "nan.tif", shades(3, "float32"), nodata=np.nan)
    assert "nodata      NaN" in describe(str(path))
