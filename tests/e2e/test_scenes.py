"""``geoseg predict`` over the scene factory: every kind of scene comes out in the right place, valid where it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS

from geoseg.classes import NODATA
from geoseg.grid import Grid
from support.commands import burn, read_map, run, succeed
from support.model_folders import CLASSES
from support.scenes import PLACES, MakeScene, write_scene

RandomModel = Callable[..., Path]

SCENES: dict[str, dict[str, Any]] = {
    "plain": {},
    "nodata value": {"nodata": "value"},
    "mask band": {"nodata": "mask"},
    "alpha": {"nodata": "alpha"},
    "4 bands": {"bands": 4},
    "4 bands with nodata": {"bands": 4, "nodata": "value"},
    "16 bit": {"dtype": "uint16", "nodata": "value"},
    "4 bands of 16 bit": {"dtype": "uint16", "bands": 4},
    "float with NaN": {"dtype": "float32", "nodata": "nan"},
    "geographic": {"crs": "EPSG:4326", "nodata": "value"},
    "web mercator": {"crs": "EPSG:3857"},
    "feet": {"crs": "EPSG:2263"},
    "south-up": {"orientation": "south", "nodata": "value"},
    "rotated": {"orientation": "rotated", "nodata": "value"},
    "rotated geographic": {"orientation": "rotated", "crs": "EPSG:4326"},
    "no CRS": {"crs": None, "nodata": "value"},
    "smaller than a window": {"size": (40, 37)},
    "1 px high": {"size": (1, 150)},
    "1 px wide": {"size": (150, 1)},
    "1 px": {"size": (1, 1)},
    "wide, off the origin": {"size": (64, 300), "nodata": "value", "shift": (3, -5)},
}


@pytest.mark.parametrize("options", SCENES.values(), ids=SCENES.keys())
def test_a_map_lies_where_its_scene_lies(
    options: dict[str, Any], make_scene: MakeScene, random_model: RandomModel, tmp_path: Path
) -> None:
    scene = make_scene(**options)
    model = random_model(bands=len(scene.pixels), dtype=str(scene.pixels.dtype))
    alpha = ["--alpha"] if options.get("nodata") == "alpha" else []
    out = tmp_path / "map.tif"
    stdout = succeed("predict", scene.path, "-m", model, *alpha, "-o", out)
    assert stdout.splitlines()[0] == str(out)
    values, profile = read_map(out)
    assert values.shape == scene.valid.shape
    assert profile["transform"] == scene.transform
    assert profile["crs"] == (None if scene.crs is None else CRS.from_user_input(scene.crs))
    assert profile["nodata"] == NODATA
    assert np.array_equal(values == NODATA, ~scene.valid)
    assert values[scene.valid].max() < len(CLASSES)
    if scene.valid.sum() > 2000:
        assert len(np.unique(values[scene.valid])) > 1, "a map of one class would prove nothing below"

    polygons = tmp_path / "map.gpkg"
    succeed("vectorize", out, "-o", polygons, "--simplify", "none")
    frame = geopandas.read_file(polygons, layer="map")
    # QGIS draws a raster without georeference with its rows running down from y = 0.
    transform = scene.transform if scene.crs else Affine.scale(1, -1)
    grid = Grid(*values.shape, transform, profile["crs"])
    assert np.array_equal(burn(frame, values.shape, transform), values)
    left, bottom, right, top = grid.bounds
    slack = 1e-9 * max(map(abs, grid.bounds))
    x0, y0, x1, y1 = frame.total_bounds
    assert left - slack <= x0 < x1 <= right + slack and bottom - slack <= y0 < y1 <= top + slack
    area = (grid.pixel_area_m2() * scene.valid.sum(axis=1)).sum()
    assert frame.area_m2.sum() == pytest.approx(area, rel=1e-6)


@pytest.fixture(scope="module")
def plain_map(random_model: RandomModel, tmp_path_factory: pytest.TempPathFactory) -> npt.NDArray[np.uint8]:
    folder = tmp_path_factory.mktemp("plain")
    plain, out = write_scene(folder / "scene.tif", nodata="value"), folder / "map.tif"
    succeed("-q", "predict", plain.path, "-m", random_model(), "-o", out)
    return read_map(out)[0]


@pytest.mark.parametrize("crs", [c for c in PLACES if c != "EPSG:32633"], ids=str)
@pytest.mark.parametrize("orientation", ["south", "rotated"])
def test_the_georeference_changes_no_pixel(
    crs: str | None,
    orientation: str,
    plain_map: npt.NDArray[np.uint8],
    make_scene: MakeScene,
    random_model: RandomModel,
    tmp_path: Path,
) -> None:
    placed, out = make_scene(nodata="value", crs=crs, orientation=orientation), tmp_path / "map.tif"
    succeed("-q", "predict", placed.path, "-m", random_model(), "-o", out)
    assert np.array_equal(read_map(out)[0], plain_map)


def test_a_scene_without_a_valid_pixel_gives_an_empty_map(
    make_scene: MakeScene, random_model: RandomModel, tmp_path: Path
) -> None:
    scene = make_scene()
    out = tmp_path / "map.tif"
    with rasterio.open(scene.path, "r+") as file:
        file.write(np.zeros_like(scene.pixels))
    stdout = succeed("predict", scene.path, "-m", random_model(), "--nodata", "0", "-o", out)
    assert (read_map(out)[0] == NODATA).all()
    assert "4 windows without a valid pixel skipped" in stdout
    refused = run("vectorize", out, "-o", tmp_path / "map.gpkg")
    assert refused.exit_code == 2
    assert "map.tif is all nodata" in refused.stderr
    assert not (tmp_path / "map.gpkg").exists()


def test_scenes_side_by_side_give_the_map_of_the_whole(
    make_scene: MakeScene, random_model: RandomModel, tmp_path: Path
) -> None:
    whole = make_scene(name="whole.tif", size=(96, 128))
    halves = [make_scene(name=f"half{i}.tif", size=(96, 64), shift=(0, 64 * i)) for i in range(2)]
    for i, half in enumerate(halves):
        with rasterio.open(half.path, "r+") as file:
            file.write(whole.pixels[:, :, 64 * i : 64 * (i + 1)])
    one, two = tmp_path / "one.tif", tmp_path / "two.tif"
    succeed("-q", "predict", whole.path, "-m", random_model(), "-o", one)
    succeed("-q", "predict", *[half.path for half in halves], "-m", random_model(), "-o", two)
    np.testing.assert_array_equal(read_map(one)[0], read_map(two)[0])  # the files name the scene they are of


def test_bands_can_be_chosen(make_scene: MakeScene, random_model: RandomModel, tmp_path: Path) -> None:
    four, three = make_scene(bands=4), make_scene(bands=3)
    with rasterio.open(three.path, "r+") as file:
        file.write(four.pixels[[3, 0, 1]])
    maps = [tmp_path / "four_map.tif", tmp_path / "three_map.tif"]
    succeed("-q", "predict", four.path, "-m", random_model(), "--bands", "4,1,2", "-o", maps[0])
    succeed("-q", "predict", three.path, "-m", random_model(), "-o", maps[1])
    np.testing.assert_array_equal(*(read_map(path)[0] for path in maps))
