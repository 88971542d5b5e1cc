"""What bfloat16 costs a model: measured by evaluate and train, recorded in the model folder, obeyed by predict."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml

from geoseg.config import load_config
from geoseg.contract import SHIPPED, load_contract
from geoseg.data.labelled import open_scenes
from geoseg.landscape import Landscape, write_landscape
from geoseg.network.backends.openvino import multiplies_bfloat16
from geoseg.network.metrics import Scores
from geoseg.network.stored_model import open_model
from geoseg.prediction import precision
from geoseg.prediction.precision import measure_precision, record_precision
from support.commands import read_map, succeed
from support.model_folders import write_model

pytestmark = pytest.mark.skipif(not multiplies_bfloat16(), reason="this CPU does not multiply bfloat16")

NAME = "landscape-tiny"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled landscape, a configuration, and a model folder that has no record yet."""
    folder = tmp_path_factory.mktemp("precision")
    write_landscape(Landscape(256, 320, seed=7), folder / "scene.tif", labels_path=folder / "labels.tif", block=256)
    contract = load_contract(SHIPPED / NAME)
    entry = {"scene": "scene.tif", "labels": "labels.tif"}
    values = {
        "name": "made",
        "output": "run",
        "classes": [{"name": c.name, "color": c.color} for c in contract.classes],
        "data": {"train": [entry], "val": [entry]},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    shutil.copytree(SHIPPED / NAME, folder / "model")
    window = contract.window.model_copy(update={"size": 256, "overlap": 64})
    contract.model_copy(update={"precision": None, "window": window}).save(folder / "model")
    return folder


def network_of(path: Path) -> str:
    with rasterio.open(path) as file:
        tag: str = file.tags()["GEOSEG_NETWORK"]
    return tag


def test_evaluate_records_what_predict_obeys(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "model", tmp_path / "model")
    words = [place / "scene.tif", "-m", tmp_path / "model", "--device", "cpu"]
    succeed("-q", "predict", *words, "-o", tmp_path / "before.tif")
    assert network_of(tmp_path / "before.tif").endswith("float32")
    succeed(
        *("-q", "evaluate", tmp_path / "model", place / "config.yaml"), *("-o", tmp_path / "scores", "--device", "cpu")
    )
    record = load_contract(tmp_path / "model").precision
    assert record is not None
    assert record.measured_on == "made"
    assert record.loss_points < 0.2
    assert "bfloat16" in (tmp_path / "scores" / "scores.json").read_text()
    succeed("-q", "predict", *words, "-o", tmp_path / "after.tif")
    assert network_of(tmp_path / "after.tif").endswith("bfloat16")


def test_the_record_is_that_of_the_maps(place: Path, tmp_path: Path) -> None:
    model, config = open_model(place / "model"), load_config(place / "config.yaml")
    record = measure_precision(model, open_scenes(config, "val"), data="made")
    assert record is not None
    truth, _ = read_map(place / "labels.tif")
    maps = []
    for name in ("float32", "bfloat16"):
        words = [place / "scene.tif", "-m", place / "model", "-o", tmp_path / f"{name}.tif"]
        succeed("-q", "predict", *words, "--precision", name, "--device", "cpu")
        maps.append(read_map(tmp_path / f"{name}.tif")[0])
    assert record.bfloat16.agreement == pytest.approx((maps[0] == maps[1]).mean(), abs=1e-5)
    for score, found in zip((record.float32, record.bfloat16), maps, strict=True):
        counts = np.zeros((len(model.contract.classes),) * 2, dtype=np.int64)
        np.add.at(counts, (truth.ravel(), found.ravel()), 1)
        assert score.miou == pytest.approx(Scores(counts).miou, abs=1e-4)


def test_shipped_models_keep_their_record(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "measure_precision", None)
    for name in (NAME, "buildings-tiny"):
        model = open_model(name)
        assert model.contract.precision is not None
        assert record_precision(model, [], data="nothing") is model.contract.precision


def test_a_network_that_has_no_bfloat16_gets_no_record(place: Path, tmp_path: Path) -> None:
    """Its depthwise convolutions are so narrow that OpenVINO does not run them in bfloat16."""
    narrow = open_model(write_model(tmp_path / "narrow"))
    before = (narrow.folder / "geoseg.json").read_bytes()
    scenes = open_scenes(load_config(place / "config.yaml"), "val")
    assert record_precision(narrow, scenes, data="made") is None
    assert (narrow.folder / "geoseg.json").read_bytes() == before


def test_a_folder_that_cannot_be_written_is_no_failure(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(open_model(NAME).contract), "save", refuse)
    scenes = open_scenes(load_config(place / "config.yaml"), "val")
    assert record_precision(open_model(place / "model"), scenes, data="made") is not None
    assert "cannot be recorded" in caplog.text
