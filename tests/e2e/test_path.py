"""The path as a user walks it: train → predict → vectorize → evaluate → info, each file opened by other programs."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio
import yaml
from PIL import Image
from rasterio.crs import CRS

from geoseg.classes import NODATA, format_color
from geoseg.landscape import LANDSCAPE_CLASSES, Landscape, write_landscape
from geoseg.network.model_folder import load_model
from support.commands import burn, files_in, read_map, run, succeed
from support.networks import TINY
from support.processes import from_shell
from support.scenes import MadeScene, write_scene

SIDE = 256
ITERATIONS = 40
SUFFIXES = [".geojson", ".gpkg", ".shp", ".fgb", ".parquet"]
NAMES = LANDSCAPE_CLASSES.names


@dataclass(frozen=True)
class Trained:
    """What ``geoseg train`` and ``geoseg predict`` left in a folder."""

    folder: Path
    config: Path
    model: Path
    scene: Path
    truth: Path
    map: Path
    said: dict[str, str]


def write_config(folder: Path, **train: Any) -> Path:
    """Two landscapes with raster labels, one with polygons in another CRS, and a YAML file that names them by name."""
    for name, seed in (("a", 1), ("b", 2), ("val", 3)):
        landscape = Landscape(SIDE, SIDE, seed=seed, nodata=0)
        write_landscape(landscape, folder / f"{name}.tif", labels_path=folder / f"{name}_labels.tif")
    geopandas.read_file(_truth(folder, seed=2)).to_crs(3857).to_file(folder / "b_labels.gpkg", layer="truth")
    values = {
        "name": "e2e",
        "output": "run",
        "classes": [{"name": c.name, "color": format_color(c.color)} for c in LANDSCAPE_CLASSES],
        "model": {"options": TINY},
        "data": {
            "train": [
                {"scene": "a.tif", "labels": "a_labels.tif"},
                {"scene": "b.tif", "labels": "b_labels.gpkg", "attribute": "class_name", "outside": "ignore"},
            ],
            "val": [{"scene": "val.tif", "labels": "val_labels.tif"}],
            "leakage": "warn",  # all landscapes lie at one place
        },
        "window": {"size": 128, "overlap": 32},
        "train": {
            "iterations": ITERATIONS,
            "batch_size": 2,
            "size": 64,
            "learning_rate": 2e-2,
            "decoder_lr_factor": 1,
            "warmup_iterations": 5,
            "measure_precision": False,
            "workers": 0,
            "val_every": ITERATIONS // 2,
            "class_weights": "balanced",
            **train,
        },
    }
    path = folder / "e2e.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def _truth(folder: Path, *, seed: int) -> Path:
    path = folder / f"truth{seed}.gpkg"
    Landscape(SIDE, SIDE, seed=seed, nodata=0).truth().to_file(path, layer="truth")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("path")
    config = write_config(folder)
    said = {"train": succeed("train", config)}
    model, scene, out = folder / "run" / "model", folder / "val.tif", folder / "map.tif"
    said["predict"] = succeed("predict", scene, "-m", model, "-o", out)
    return Trained(folder, config, model, scene, folder / "val_labels.tif", out, said)


# train


def test_training_leaves_a_run_folder_and_prints_its_model(trained: Trained) -> None:
    assert trained.said["train"].strip() == str(trained.model)
    run_folder = trained.folder / "run"
    assert {"config.json", "geoseg.json", "model.safetensors"} <= {p.name for p in trained.model.iterdir()}
    assert {p.name for p in (run_folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert list(run_folder.rglob("events.out.tfevents.*")), "a TensorBoard log"
    with next(run_folder.rglob("metrics.csv")).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert sum(bool(row.get("val_miou")) for row in rows) == 2
    contract = load_model(trained.model).contract
    assert contract.class_table == LANDSCAPE_CLASSES
    assert contract.gsd_m == pytest.approx(0.5, rel=2e-3)
    assert contract.training["iterations"] == ITERATIONS


def test_the_resolved_configuration_trains_again(trained: Trained) -> None:
    again = trained.folder / "again"
    config = trained.folder / "run" / "config.yaml"
    ran = run("train", config, f"output={again}", "train.iterations=1", "train.val_every=1")
    assert ran.exit_code == 0, ran.stderr
    assert ran.stdout.strip() == str(again / "model")
    saved = yaml.safe_load((again / "config.yaml").read_text(encoding="utf-8"))
    assert (saved["train"]["iterations"], saved["train"]["batch_size"]) == (1, 2)


def test_a_run_that_was_stopped_goes_on(trained: Trained, tmp_path: Path) -> None:
    output = tmp_path / "stopped"
    words = [trained.config, f"output={output}", "train.iterations=8", "train.val_every=4"]
    before = "from support.processes import pause_training; pause_training(6)"
    stopped = from_shell("train", *words, before=before)
    last = output / "checkpoints" / "last.ckpt"
    while not last.exists():
        assert stopped.poll() is None, "the training ended before it could be stopped"
        time.sleep(0.05)
    stopped.send_signal(signal.SIGINT)
    _, stderr = stopped.communicate(timeout=60)
    assert stopped.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert not (output / "model").exists()

    refused = run("train", *words)
    assert refused.exit_code == 2 and "--resume" in refused.stderr
    said = succeed("-q", "train", *words, "--resume")
    assert said.strip() == str(output / "model")
    assert load_model(output / "model").contract.training["iterations"] == 8


# predict


def test_the_class_map_is_the_scenes_in_every_gis(trained: Trained) -> None:
    values, profile = read_map(trained.map)
    with rasterio.open(trained.scene) as scene, rasterio.open(trained.truth) as labels:
        assert (profile["crs"], profile["transform"]) == (scene.crs, scene.transform)
        assert values.shape == scene.shape
        invalid = (scene.read() == 0).all(axis=0)
        truth_invalid = labels.read(1) == NODATA
    assert 0 < invalid.sum() < invalid.size / 2
    assert len(np.unique(values)) > 3, "a map of one class would prove little here and below"
    assert np.array_equal(values == NODATA, invalid) and np.array_equal(invalid, truth_invalid)
    assert profile["dtype"] == "uint8" and profile["nodata"] == NODATA and profile["tiled"]
    assert {i: profile["colors"][i][:3] for i in range(len(NAMES))} == {c.id: c.color for c in LANDSCAPE_CLASSES}
    assert [c["name"] for c in json.loads(profile["tags"]["GEOSEG_CLASSES"])] == list(NAMES)
    assert profile["tags"]["GEOSEG_MODEL"] == "e2e"
    assert all(name in (trained.map.parent / "map.tif.aux.xml").read_text(encoding="utf-8") for name in NAMES)


def test_the_areas_printed_are_those_of_the_map(trained: Trained) -> None:
    values, _ = read_map(trained.map)
    lines = [line.split() for line in trained.said["predict"].splitlines()[1:]]
    assert lines[-1] == ["look", "at", "it:", "geoseg", "view", str(trained.scene), str(trained.map)]
    printed = {words[0]: float(words[1].replace(",", "")) for words in lines if words[0] in NAMES}
    assert printed.keys() == set(NAMES)
    for c in LANDSCAPE_CLASSES:
        assert printed[c.name] == pytest.approx((values == c.id).sum() * 0.25e-4, abs=0.0051)


def test_the_same_scene_twice_gives_the_same_bytes(trained: Trained, tmp_path: Path) -> None:
    again = tmp_path / "again" / "map.tif"
    again.parent.mkdir()
    # A process of its own: nothing can be left over from the first time.
    command = [sys.executable, "-m", "geoseg", "predict", trained.scene, "-m", trained.model, "-o", again]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == str(again)
    assert "Mpx/s" in done.stdout and "predict" in done.stderr  # the progress bar
    assert again.read_bytes() == trained.map.read_bytes()
    assert files_in(again.parent) == ["map.qml", "map.tif", "map.tif.aux.xml"]


def test_windows_and_batches_are_the_users_choice(trained: Trained, tmp_path: Path) -> None:
    maps = []
    for batch in (1, 3):
        out = tmp_path / f"{batch}.tif"
        options = ["--size", 96, "--overlap", 64, "--batch-size", batch]
        stdout = succeed("predict", trained.scene, "-m", trained.model, "-o", out, *options)
        assert "96 × 96 px that overlap by 64 px" in stdout
        maps.append(read_map(out)[0])
    # Sums in another order may tip a tie, no more.
    assert (maps[0] != maps[1]).mean() < 1e-3


def test_an_output_is_replaced_only_on_request(trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "map.tif"
    out.write_text("mine")
    refused = run("predict", trained.scene, "-m", trained.model, "-o", out)
    assert refused.exit_code == 2 and "--overwrite" in refused.stderr
    assert out.read_text() == "mine"
    succeed("predict", trained.scene, "-m", trained.model, "-o", out, "--overwrite")
    assert out.read_bytes() == trained.map.read_bytes()


def test_a_scene_without_georeference_says_so(trained: Trained, tmp_path: Path) -> None:
    landscape = Landscape(96, 128, seed=3, crs=None)
    write_landscape(landscape, tmp_path / "scene.tif")
    ran = run("predict", tmp_path / "scene.tif", "-m", trained.model, "-o", tmp_path / "map.tif")
    assert ran.exit_code == 0, ran.stderr
    assert "warning:" in ran.stderr and "no CRS" in ran.stderr
    assert "no CRS" in ran.stdout and " ha " not in ran.stdout
    _, profile = read_map(tmp_path / "map.tif")
    assert profile["crs"] is None and profile["transform"].is_identity
    said = succeed("vectorize", tmp_path / "map.tif", "-o", tmp_path / "map.fgb")
    assert " px" in said and " ha" not in said
    assert pyogrio.read_info(tmp_path / "map.fgb")["crs"] is None


# vectorize


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_polygons_open_in_every_format(trained: Trained, suffix: str, tmp_path: Path) -> None:
    out = tmp_path / f"polygons{suffix}"
    said = succeed("vectorize", trained.map, "-o", out, "--simplify", "none")
    assert said.splitlines()[0] == str(out)
    frame = geopandas.read_parquet(out) if suffix == ".parquet" else geopandas.read_file(out, **_layer(out))
    values, profile = read_map(trained.map)
    assert frame.crs == CRS.from_epsg(4326 if suffix == ".geojson" else 32633)
    assert set(frame.columns) == {"class_id", "class_name", "area_m2", "perim_m", "source", "geometry"}
    assert all(NAMES[i] == name for i, name in zip(frame.class_id, frame.class_name, strict=True))
    areas = frame.groupby("class_name").area_m2.sum()
    for c in LANDSCAPE_CLASSES:
        pixels = int((values == c.id).sum())
        # The scene lies in the middle of a UTM zone, where a square metre of the map is 1.0008 on the ground.
        assert areas.get(c.name, 0) == pytest.approx(0.25 * pixels, rel=2e-3)
        assert (c.name in said) == (pixels > 0)
    if suffix != ".geojson":
        assert np.array_equal(burn(frame, values.shape, profile["transform"]), values)


def _layer(path: Path) -> dict[str, str]:
    return {"layer": path.stem} if path.suffix == ".gpkg" else {}


def test_predict_to_polygons_is_predict_then_vectorize(trained: Trained, tmp_path: Path) -> None:
    direct, by_hand = tmp_path / "direct.gpkg", tmp_path / "by_hand.gpkg"
    options = ["--simplify", "1px", "--min-area", "3"]
    said = succeed("predict", trained.scene, "-m", trained.model, "-o", direct, *options)
    succeed("vectorize", trained.map, "-o", by_hand, *options)
    one, two = (geopandas.read_file(p, layer=p.stem) for p in (direct, by_hand))
    assert one.drop(columns="geometry").equals(two.drop(columns="geometry"))
    assert one.geometry.geom_equals_exact(two.geometry, tolerance=0).all()
    assert one.area_m2.min() > 2  # 3 m² before lines were simplified; a pixel has 0.25 m²
    assert f"{len(one)} polygon" in said
    assert files_in(tmp_path) == ["by_hand.gpkg", "direct.gpkg"]


# evaluate


def test_evaluation_tells_what_the_map_is_worth(trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "evaluation"
    said = succeed("evaluate", trained.model, trained.config, "-o", out)
    values = read_map(trained.map)[0]
    with rasterio.open(trained.truth) as file:
        truth = file.read(1)
    use = truth != NODATA
    matrix = np.zeros((len(NAMES), len(NAMES)), dtype=int)
    np.add.at(matrix, (truth[use], values[use]), 1)
    with (out / "confusion.csv").open(encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header[1:] == list(NAMES) == [row[0] for row in rows]
    assert np.array_equal(np.array([row[1:] for row in rows], dtype=int), matrix)
    with (out / "scores.csv").open(encoding="utf-8") as file:
        scores = {row["class"]: row for row in csv.DictReader(file) if row["scene"] == "all"}
    for c in LANDSCAPE_CLASSES:
        union = matrix[c.id].sum() + matrix[:, c.id].sum() - matrix[c.id, c.id]
        if union:
            assert float(scores[c.name]["iou"]) == pytest.approx(matrix[c.id, c.id] / union, abs=1e-6)
    accuracy = matrix.trace() / matrix.sum()
    assert float(scores["overall"]["accuracy"]) == pytest.approx(accuracy, abs=1e-6)
    assert f"accuracy {accuracy:.4f}" in said and said.splitlines()[-1] == str(out)
    with Image.open(out / "confusion.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 1
    assert run("evaluate", trained.model, trained.config, "-o", out).exit_code == 2


# info


def test_every_file_of_the_path_is_described(trained: Trained, tmp_path: Path) -> None:
    scene = succeed("info", trained.scene, "-m", trained.model)
    assert "EPSG:32633" in scene and "256 × 256 px" in scene and "with e2e" in scene and "warning" not in scene
    class_map = succeed("info", trained.map)
    assert all(name in class_map for name in NAMES)
    assert "truth" in succeed("info", trained.folder / "b_labels.gpkg")
    model = succeed("info", trained.model)
    assert "e2e" in model and all(name in model for name in NAMES) and "tu-mscan_tiny" in model
    polygons = tmp_path / "polygons.geojson"
    succeed("vectorize", trained.map, "-o", polygons)
    assert "EPSG:4326" in succeed("info", polygons)


def test_a_model_is_described_without_torch(trained: Trained) -> None:
    code = (
        "import sys; from geoseg.programs.info import describe\n"
        f"describe({str(trained.model)!r})\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_model_says_what_it_has_against_a_scene(trained: Trained, tmp_path: Path) -> None:
    other: MadeScene = write_scene(tmp_path / "other.tif", bands=4)
    described = succeed("info", other.path, "-m", trained.model)
    assert "has 4 bands, but the model expects 3" in described
