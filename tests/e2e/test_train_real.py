"""The small configurations on the real imagery they are for: train, go on, evaluate, predict."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml

from geoseg.config import load_config
from support.commands import read_map, run, succeed
from support.networks import TINY

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
]

CONFIGS = Path(__file__).parents[2] / "configs"

# The folder of the data, and a few of the configured scenes, chosen as the configuration chooses all.
SETS = {
    "buildings": (
        "hot_buildings",
        {
            "train": ("train/images/z*.tif", "train/masks/{stem}.tif"),
            "val": ("val/images/z*.tif", "val/masks/{stem}.tif"),
        },
    ),
    "dubai": (
        "mbrsc_dubai",
        {
            "train": ("train/images/tile5_part[12].jpg", "train/masks/{stem}.png"),
            "val": ("val/images/tile1_part[12].jpg", "val/masks/{stem}.png"),
        },
    ),
}


def overrides(name: str, real_data: Path, output: Path) -> list[str]:
    """What makes a small configuration smaller: few scenes, a tiny network, two iterations."""
    folder, splits = SETS[name]
    values = {
        "data.root": str(real_data / folder),
        "output": str(output),
        "model.options": TINY,
        "train.iterations": 2,
        "train.measure_precision": False,
        "train.val_every": 2,
        "train.batch_size": 2,
        "train.size": 64,
        "train.workers": 0,
    } | {f"data.{split}": [{"scene": scene, "labels": labels}] for split, (scene, labels) in splits.items()}
    return [f"{key}={yaml.safe_dump(value, default_flow_style=True, width=10_000)}" for key, value in values.items()]


@pytest.mark.parametrize("name", SETS)
def test_a_small_configuration_trains_and_is_evaluated(name: str, real_data: Path, tmp_path: Path) -> None:
    config, changes = CONFIGS / f"{name}-small.yaml", overrides(name, real_data, tmp_path / "run")
    model = succeed("-q", "train", config, *changes, "--device", "cpu").strip()
    assert model == str(tmp_path / "run" / "model")
    succeed("-q", "evaluate", model, config, *changes, "-o", tmp_path / "evaluation", "--device", "cpu")
    settings = load_config(config, changes)
    scores = json.loads((tmp_path / "evaluation" / "scores.json").read_text(encoding="utf-8"))
    assert scores["classes"] == list(settings.class_table.names)
    assert 0 <= scores["all"]["miou"] <= 1
    # Every labelled pixel of the held-out scenes was counted once
    labelled = 0
    for entry in settings.data.val:
        with rasterio.open(entry.labels) as labels:
            labelled += int((labels.read(1) != 255).sum())
    assert np.sum(scores["all"]["confusion"]) == labelled
    scene = settings.data.val[0].scene
    succeed("-q", "predict", scene, "-m", model, "-o", tmp_path / "map.tif", "--device", "cpu")
    with rasterio.open(scene) as file:
        assert read_map(tmp_path / "map.tif")[0].shape == file.shape
    refused = run("train", config, *changes, "--device", "cpu")
    assert refused.exit_code == 2 and "--resume" in refused.stderr


@pytest.mark.parametrize("name", SETS)
def test_the_whole_set_of_a_small_configuration_is_fine(name: str, real_data: Path) -> None:
    """All scenes of the published folder, opened and paired as configured; nothing is trained."""
    folder, _ = SETS[name]
    settings = load_config(CONFIGS / f"{name}-small.yaml", [f"data.root={real_data / folder}"])
    for split, count in {"buildings": {"train": 2, "val": 2}, "dubai": {"train": 45, "val": 18}}[name].items():
        entries = settings.data.entries(split)
        assert len(entries) == count
        assert all(entry.scene.stem == entry.labels.stem and entry.labels.exists() for entry in entries)
        for entry in entries[:: max(count // 3, 1)]:
            with rasterio.open(entry.scene) as scene, rasterio.open(entry.labels) as labels:
                assert scene.shape == labels.shape and scene.count == 3 and scene.dtypes[0] == "uint8"
                ids = set(np.unique(labels.read(1)).tolist())
            assert ids <= {*range(len(settings.classes)), 255}
