"""Small experiments on generated landscapes, for the tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from affine import Affine

from geoseg.classes import format_color
from geoseg.config import TrainConfig, parse_config
from geoseg.data.windows import RandomWindows
from geoseg.landscape import LANDSCAPE_CLASSES, Landscape, write_landscape
from support.networks import TINY

UNET: dict[str, Any] = {
    "architecture": "unet",
    "encoder": "resnet18",
    "options": {"decoder_channels": [16, 16, 8, 8, 8]},
}

ITERATIONS = 6
CLASSES = [{"name": c.name, "color": format_color(c.color)} for c in LANDSCAPE_CLASSES]


def write_scenes(folder: Path) -> Path:
    """Two generated scenes side by side, with raster labels and with true polygons."""
    for seed, name in enumerate(("a", "b")):
        write_landscape(
            Landscape(256, 256, seed=seed, nodata=0.0, transform=Affine(0.5, 0, 5e5 + 1000 * seed, 0, -0.5, 5.2e6)),
            folder / f"{name}.tif",
            labels_path=folder / f"{name}_labels.tif",
            truth_path=folder / f"{name}_truth.gpkg",
            block=64,
        )
    return folder


def settings(landscapes: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """The values of an experiment of seconds; those of ``train`` are changed one by one, others as a whole."""
    values: dict[str, Any] = {
        "name": "tiny",
        "output": str(output),
        "classes": CLASSES,
        "model": {"options": TINY},
        "data": {
            split: [{"scene": str(landscapes / f"{n}.tif"), "labels": str(landscapes / f"{n}_labels.tif")}]
            for split, n in (("train", "a"), ("val", "b"))
        },
        "window": {"size": 128, "overlap": 32},
        "card": {"license": "none"},
    }
    recipe = {
        "iterations": ITERATIONS,
        "batch_size": 2,
        "size": 64,
        "learning_rate": 1e-3,
        "warmup_iterations": 2,
        "measure_precision": False,
        "workers": 0,
        "val_every": 3,
        "precision": "32-true",
    }
    return values | {"train": recipe | changes.pop("train", {})} | changes


def experiment(landscapes: Path, output: Path, **changes: Any) -> TrainConfig:
    """The experiment of `settings`."""
    return parse_config(settings(landscapes, output, **changes), source="test")


def write_config(path: Path, values: dict[str, Any]) -> Path:
    """The YAML file of an experiment."""
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


class Recorder:
    """Keeps the place in the run of every window that was drawn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fail_at: int | None = None) -> None:
        self.drawn: list[int] = []
        draw = RandomWindows.__getitem__

        def recorded(dataset: RandomWindows, index: int) -> Any:
            place = dataset._start + index
            if place == fail_at:
                raise KeyboardInterrupt
            self.drawn.append(place)
            return draw(dataset, index)

        monkeypatch.setattr(RandomWindows, "__getitem__", recorded)
