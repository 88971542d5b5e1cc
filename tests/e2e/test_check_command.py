"""Bad scenes and labels of every kind in one configuration: all of it is reported at once, and nothing is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import yaml
from affine import Affine
from shapely.geometry import Polygon, box

from geoseg.landscape import Landscape, write_landscape
from support.commands import files_in, run
from support.model_folders import CLASSES
from support.networks import TINY
from support.scenes import MadeScene, write_scene

pytestmark = pytest.mark.filterwarnings("ignore:'crs' was not provided")

SHAPE = (96, 80)


def write_labels(path: Path, scene: MadeScene, ids: npt.NDArray[Any], **changes: Any) -> None:
    profile = {"crs": scene.crs, "transform": scene.transform, "dtype": ids.dtype, **changes}
    with rasterio.open(path, "w", driver="GTiff", count=1, height=ids.shape[0], width=ids.shape[1], **profile) as file:
        file.write(ids, 1)


def write_config(folder: Path, train: list[dict[str, Any]], val: list[dict[str, Any]]) -> Path:
    values = {
        "name": "checks",
        "output": "run",
        "classes": [{"name": name, "color": color} for name, color in CLASSES],
        "model": {"options": TINY},
        "data": {"train": train, "val": val},
        "window": {"size": 64, "overlap": 32},
        "train": {"iterations": 1, "batch_size": 1, "size": 64, "workers": 0, "val_every": 1},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture
def spoilt(tmp_path: Path) -> tuple[Path, list[str]]:
    """A configuration in which everything is wrong, and what must be said of it."""
    scene = write_scene(tmp_path / "scene.tif")
    write_scene(tmp_path / "deep.tif", dtype="uint16", shift=(0, 400))
    write_scene(tmp_path / "two.tif", bands=2, shift=(0, 800))
    write_scene(tmp_path / "bare.tif", crs=None)
    (tmp_path / "text.tif").write_text("no raster", encoding="utf-8")
    good = np.indices(SHAPE).sum(axis=0) // 8 % 3
    write_labels(tmp_path / "good.tif", scene, good.astype(np.uint8))
    write_labels(tmp_path / "ids.tif", scene, np.where(good == 2, 9, good).astype(np.uint8))
    write_labels(tmp_path / "empty.tif", scene, np.full(SHAPE, 255, np.uint8))
    write_labels(tmp_path / "floats.tif", scene, good.astype(np.float32))
    write_labels(tmp_path / "small.tif", scene, good[:50].astype(np.uint8), crs=None, transform=Affine.scale(2))
    write_labels(
        tmp_path / "away.tif", scene, good.astype(np.uint8), transform=Affine.translation(9e5, 1) @ Affine.scale(1, -1)
    )
    left, top = scene.transform @ (0, 0)
    roof, bow = box(left + 5, top - 30, left + 20, top - 5), [(5, 5), (20, 20), (20, 5), (5, 20)]
    shapes = [roof, Polygon([(left + x, top - y) for x, y in bow])]
    for name, kinds, crs in (
        ("typing.gpkg", ["rof", "grass"], scene.crs),
        ("no_crs.gpkg", ["roof", "grass"], None),
        ("far.gpkg", ["roof", "grass"], "EPSG:32634"),
    ):
        geopandas.GeoDataFrame({"kind": kinds}, geometry=shapes, crs=crs).to_file(tmp_path / name)
    polygons = {"attribute": "kind", "outside": "grass"}
    train: list[dict[str, Any]] = [
        {"scene": "scene.tif", "labels": f"{name}.tif"} for name in ("ids", "empty", "floats", "small", "away")
    ]
    train += [
        {"scene": "scene.tif", "labels": "typing.gpkg", **polygons},
        {"scene": "scene.tif", "labels": "no_crs.gpkg", **polygons},
        {"scene": "scene.tif", "labels": "far.gpkg", **polygons},
        {"scene": "scene.tif", "labels": "typing.gpkg", "attribute": "sort", "outside": "grass"},
        {"scene": "scene.tif", "labels": "typing.gpkg"},
        {"scene": "scene.tif", "labels": "none.gpkg", **polygons},
        {"scene": "scene.tif", "labels": "good.tif", "labelled_area": "no_area.gpkg"},
        {"scene": "deep.tif", "labels": "good.tif"},
        {"scene": "two.tif", "labels": "good.tif"},
        {"scene": "text.tif", "labels": "good.tif"},
        {"scene": "none.tif", "labels": "good.tif"},
    ]
    said = [
        "ids.tif contain values outside the classes 0 … 2: 9 (",
        "empty.tif are empty",
        "floats.tif have 1 band of float32",
        "small.tif have 50 × 80 px, scene ",
        "away.tif do not touch scene",
        "'rof' (1×, roof?)",
        "no_crs.gpkg have no CRS",
        "no feature of",
        "typing.gpkg has no field sort",
        "the class outside the polygons is not given",
        "the class of the polygons is not given",
        "no such labels:",
        "no such labelled area:",
        "deep.tif is uint16, the configuration says uint8",
        "two.tif has bands 1 … 2, but band 3 was asked for",
        "text.tif is not a raster",
        "no such scene:",
    ]
    return write_config(tmp_path, train, [{"scene": "scene.tif", "labels": "good.tif"}]), said


def test_training_refuses_with_the_whole_list(spoilt: tuple[Path, list[str]]) -> None:
    config, said = spoilt
    before = files_in(config.parent)
    ran = run("train", config)
    assert ran.exit_code == 2, ran.stderr
    assert "Traceback" not in ran.stderr and ran.stdout == ""
    lines = ran.stderr.splitlines()
    assert lines[0].startswith("error: ") and "errors" in lines[0] and "in the data of this configuration" in lines[0]
    for words in said:
        assert any(words in line for line in lines[1:-1]), words
    assert "Self-intersection" in ran.stderr, "warnings stand in the same list"
    assert lines[-1].startswith("hint:  begin with: ")
    assert files_in(config.parent) == before


def test_check_prints_the_list_and_trains_nothing(spoilt: tuple[Path, list[str]]) -> None:
    config, said = spoilt
    before = files_in(config.parent)
    ran = run("train", config, "--check")
    assert ran.exit_code == 2, ran.stderr
    for words in said:
        assert words in ran.stdout
    assert ran.stdout.count("hint: ") >= len(said)
    assert files_in(config.parent) == before


def test_check_finds_labels_that_lie_beside_the_imagery(tmp_path: Path) -> None:
    side = 512
    for seed, name in enumerate(("train", "val")):
        place = Affine.translation(500_000 + 9000 * seed, 5_200_000) @ Affine.scale(0.5, -0.5)
        landscape = Landscape(side, side, seed=seed, transform=place)
        write_landscape(landscape, tmp_path / f"{name}.tif", labels_path=tmp_path / f"{name}_labels.tif")
    with rasterio.open(tmp_path / "train_labels.tif", "r+") as labels:
        labels.transform = labels.transform @ Affine.translation(-6, 4)
    entries = [{"scene": f"{name}.tif", "labels": f"{name}_labels.tif"} for name in ("train", "val")]
    config = write_config(tmp_path, entries[:1], entries[1:])
    values = yaml.safe_load(config.read_text(encoding="utf-8"))
    values["classes"] = [{"name": f"class {i}", "color": "#000000"} for i in range(7)]
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    before = files_in(tmp_path)
    ran = run("train", config, "--check")
    assert ran.exit_code == 0, ran.stderr + ran.stdout
    (line,) = [line for line in ran.stdout.splitlines() if "seem to lie" in line]
    assert "train_labels.tif" in line and "too far south and west" in line and "7.2 px (3.6 m)" in line
    assert files_in(tmp_path) == before
