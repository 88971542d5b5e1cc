"""The path on real imagery, which lies outside the repository (see `real_data`)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import yaml
from affine import Affine
from rasterio.windows import Window as RasterWindow

from geoseg.classes import NODATA, ClassTable
from geoseg.config.settings import SceneConfig
from geoseg.contract import shipped_models
from geoseg.scene import Scene
from geoseg.windows import Window
from support.commands import burn, files_in, read_map, run, succeed
from support.labels import open_labels
from support.model_folders import write_model
from support.networks import TINY

pytestmark = pytest.mark.real_data

MODEL = "buildings-tiny"
shipped = pytest.mark.skipif(MODEL not in shipped_models(), reason=f"the model {MODEL} is not shipped yet")
VAL = {"banepa_b": 0.74, "zanzibar_b": 0.79}
"""Held-out scenes and a guard a little under the IoU of buildings that the shipped model has there."""

BUILDINGS = ClassTable.from_names(["background", "building"], ["#000000", "#ff0000"])
SCENES = [("train", "banepa_a"), ("train", "zanzibar_a"), ("val", "banepa_b"), ("val", "zanzibar_b")]


def crop(source: Path, target: Path, *, size: int, row: int = 0, col: int = 0) -> Path:
    """A corner of a raster as a file of its own, in the place it has on the ground."""
    with rasterio.open(source) as file:
        window = RasterWindow(col, row, size, size)
        profile: dict[str, Any] = {
            "driver": "GTiff",
            "height": size,
            "width": size,
            "count": file.count,
            "dtype": file.dtypes[0],
            "crs": file.crs,
            "transform": file.transform @ Affine.translation(col, row),
            "tiled": True,
        }
        with rasterio.open(target, "w", **profile) as part:
            part.write(file.read(window=window))
    return target


# The shipped model


@shipped
@pytest.mark.parametrize("name", VAL)
def test_buildings_of_a_scene_never_seen(name: str, real_data: Path, tmp_path: Path) -> None:
    images, masks = (real_data / "hot_buildings" / "val" / kind for kind in ("images", "masks"))
    out = tmp_path / "map.tif"
    succeed("-q", "predict", images / f"{name}.tif", "-m", MODEL, "-o", out)
    values, profile = read_map(out)
    with rasterio.open(images / f"{name}.tif") as scene, rasterio.open(masks / f"{name}.tif") as mask:
        assert (profile["crs"], profile["transform"], values.shape) == (scene.crs, scene.transform, scene.shape)
        truth = mask.read(1)
    assert not (values == NODATA).any()
    iou = ((values == 1) & (truth == 1)).sum() / ((values == 1) | (truth == 1)).sum()
    assert iou >= VAL[name]

    for suffix in (".geojson", ".shp"):
        polygons = tmp_path / f"buildings{suffix}"
        succeed("vectorize", out, "-o", polygons, "--min-area", "4", "--keep", "background", "--keep", "building")
        frame = geopandas.read_file(polygons)
        buildings = frame[frame.class_name == "building"]
        assert frame.geometry.is_valid.all() and len(buildings) > 20 and buildings.area_m2.min() >= 0.9 * 4
        assert frame.crs.to_epsg() == (4326 if suffix == ".geojson" else 3857)
        burnt = burn(frame.to_crs(profile["crs"]), values.shape, profile["transform"])
        assert (burnt == values).mean() > 0.97  # simplified, and small ones dissolved


@shipped
def test_the_shipped_model_takes_other_imagery_only_on_request(real_data: Path, tmp_path: Path) -> None:
    naip = real_data / "samples_unlabelled" / "naip_chico_2020_40.tif"
    words = ["predict", naip, "-m", MODEL, "-o", tmp_path / "map.tif"]
    for options, wanted in (([], "4 bands"), (["--bands", "1,2,3"], "--ignore-gsd")):
        refused = run(*words, *options)
        assert refused.exit_code == 2 and wanted in refused.stderr
    assert files_in(tmp_path) == []
    succeed("-q", *words, "--bands", "1,2,3", "--ignore-gsd")


# Labels


@pytest.mark.parametrize(("split", "name"), SCENES, ids=[name for _, name in SCENES])
def test_footprints_burn_to_the_mask(split: str, name: str, real_data: Path) -> None:
    folder = real_data / "hot_buildings" / split
    entry = SceneConfig(
        scene=folder / "images" / f"{name}.tif",
        labels=folder / "footprints" / f"{name}.geojson",
        class_name="building",
        outside="background",
    )
    with Scene(entry.scene) as scene, rasterio.open(folder / "masks" / f"{name}.tif") as mask:
        labels = open_labels(entry, scene.grid, BUILDINGS)
        burnt = labels.read(Window(0, 0, *scene.grid.shape))
        truth = mask.read(1)
    differs = burnt != truth
    # Degrees rounded in the file move an outline by less than a pixel: only pixels on it may differ, and few of them.
    assert not (differs & ~_near_border(truth)).any()
    assert differs.mean() < 1e-3


def _near_border(labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Pixels with another label among their eight neighbours."""
    padded = np.pad(labels, 1, mode="edge")
    height, width = labels.shape
    shifted = [padded[r : r + height, c : c + width] for r in range(3) for c in range(3)]
    return np.logical_or.reduce([s != labels for s in shifted])


def test_a_training_on_real_labels(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "hot_buildings" / "train"
    scene = crop(source / "images" / "banepa_a.tif", tmp_path / "scene.tif", size=512)
    mask = crop(source / "masks" / "banepa_a.tif", tmp_path / "mask.tif", size=512)
    shutil.copy(source / "footprints" / "banepa_a.geojson", tmp_path / "footprints.geojson")
    polygons = {"labels": "footprints.geojson", "class_name": "building", "outside": "background"}
    values = {
        "name": "real",
        "output": "run",
        "classes": [{"name": "background", "color": "#000000"}, {"name": "building", "color": "#ff0000"}],
        "model": {"options": TINY},
        "data": {
            "train": [{"scene": scene.name, **polygons}],
            "val": [{"scene": scene.name, "labels": mask.name}],
            "leakage": "warn",  # the same pixels twice, with polygons and with their raster
        },
        "window": {"size": 256, "overlap": 64},
        "train": {
            "iterations": 2,
            "batch_size": 2,
            "size": 128,
            "workers": 0,
            "val_every": 2,
            "measure_precision": False,
        },
    }
    config = tmp_path / "real.yaml"
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    model = succeed("-q", "train", config).strip()
    succeed("-q", "predict", scene, "-m", model, "-o", tmp_path / "map.tif")
    assert not (read_map(tmp_path / "map.tif")[0] == NODATA).any()


# Other bands and data types


def test_every_sample_is_described(real_data: Path) -> None:
    samples = sorted((real_data / "samples_unlabelled").glob("*.tif"))
    assert len(samples) == 5
    for sample in samples:
        described = succeed("info", sample)
        assert "EPSG:32633" in described or "EPSG:2691" in described
        assert ("uint16" if "uint16" in sample.name else "uint8") in described
    palm_springs = succeed("info", real_data / "samples_unlabelled" / "naip_palm_springs_2018_60.tif")
    assert "tagged alpha" in palm_springs


def test_near_infrared_tagged_as_alpha_is_no_mask(real_data: Path, tmp_path: Path) -> None:
    scene = real_data / "samples_unlabelled" / "naip_palm_springs_2018_60.tif"
    model = write_model(tmp_path / "model", bands=4)
    succeed("-q", "predict", scene, "-m", model, "-o", tmp_path / "map.tif")
    assert not (read_map(tmp_path / "map.tif")[0] == NODATA).any()


def test_eight_bands_of_16_bit(real_data: Path, tmp_path: Path) -> None:
    scene = real_data / "samples_unlabelled" / "austria_s2_2dates_8band_uint16.tif"
    model = write_model(tmp_path / "model", bands=4, dtype="uint16")
    out = tmp_path / "map.tif"
    refused = run("predict", scene, "-m", model, "-o", out)
    assert refused.exit_code == 2 and "8 bands" in refused.stderr and "--bands" in refused.stderr
    succeed("-q", "predict", scene, "-m", model, "-o", out, "--bands", "5,6,7,8")
    values, profile = read_map(out)
    with rasterio.open(scene) as file:
        assert (profile["crs"], profile["transform"], values.shape) == (file.crs, file.transform, file.shape)
