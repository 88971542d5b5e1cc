"""``geoseg demo``, the first command of the README."""

from __future__ import annotations

import re
from pathlib import Path

import geopandas
import numpy as np
import pytest
from PIL import Image

from geoseg.contract import shipped_models
from geoseg.landscape import LANDSCAPE_CLASSES
from geoseg.programs.demo import MODEL
from support.commands import files_in, read_map, run, succeed

pytestmark = pytest.mark.skipif(MODEL not in shipped_models(), reason=f"the model {MODEL} is not shipped yet")

FILES = {"scene.tif", "truth.tif", "truth.gpkg", "landcover.tif", "landcover.gpkg", "landcover.geojson", "overlay.png"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("demo") / "out"
    return folder, succeed("demo", "-o", folder)


def test_the_demo_says_what_it_made_and_how_good_it_is(demo: tuple[Path, str]) -> None:
    folder, said = demo
    assert {p.name for p in folder.iterdir()} >= FILES
    assert not [name for name in files_in(folder) if name.endswith(".partial") or name.startswith(".")]
    assert all(str(folder / name) in said for name in FILES)
    shown = " ".join(str(folder / name) for name in ("scene.tif", "landcover.tif", "landcover.gpkg"))
    assert said.splitlines()[-1] == f"look at it: geoseg view {shown}"
    for c in LANDSCAPE_CLASSES:
        assert re.search(rf"^{c.name} +[\d.,]+ ha +([\d.]+|nan)$", said, re.MULTILINE), f"{c.name} in {said}"
    miou = re.search(r"^mIoU ([\d.]+)", said, re.MULTILINE)
    assert miou is not None and float(miou[1]) > 0.5
    assert all(f"{step} " in said for step in ("landscape", "predict", "polygons", "overlay", "scores"))


def test_the_demos_map_and_polygons_agree(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    values, profile = read_map(folder / "landcover.tif")
    truth, _ = read_map(folder / "truth.tif")
    assert (values == truth).mean() > 0.7
    native = geopandas.read_file(folder / "landcover.gpkg", layer="landcover")
    wgs84 = geopandas.read_file(folder / "landcover.geojson")
    assert native.crs == profile["crs"] and wgs84.crs.to_epsg() == 4326
    assert native.area_m2.sum() == pytest.approx(wgs84.area_m2.sum(), rel=1e-6)
    assert set(native.class_name) <= set(LANDSCAPE_CLASSES.names)


def test_the_demos_picture_shows_something(demo: tuple[Path, str]) -> None:
    with Image.open(demo[0] / "overlay.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    height, width, _ = pixels.shape
    assert min(height, width) > 500
    # No third of it is plain paper: imagery, classes and polygons all drew something.
    for third in np.array_split(pixels, 3, axis=1):
        assert third.std() > 20


def test_a_second_demo_replaces_nothing_unasked(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    before = (folder / "scene.tif").stat().st_mtime_ns
    ran = run("demo", "-o", folder)
    assert ran.exit_code == 2
    assert "scene.tif exists" in ran.stderr and "--overwrite" in ran.stderr
    assert (folder / "scene.tif").stat().st_mtime_ns == before
