"""The configurations of published data sets load, and have the numbers of the paper and of its official code."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from geoseg.class_tables import KNOWN
from geoseg.config import TrainConfig, load_config
from geoseg.models import RECIPES
from support import commands
from support.networks import TINY

CONFIGS = Path(__file__).parents[1] / "configs"
SETS = ("isaid", "ade20k", "cityscapes", "voc12aug", "pascal_context", "coco_stuff")
SIZES = {"t": "tiny", "s": "small", "b": "base", "l": "large"}
ALL = [(name, size) for name in SETS for size in SIZES]

# Numbers of the paper's appendix and of the official configurations: iterations, batch, crop, classes, longer and
# shorter side that a picture is fitted in, first value of a label, windows of a prediction.
RECIPE: dict[str, tuple[int, int, int, int, tuple[int, int] | None, int, tuple[int, int]]] = {
    "isaid": (160_000, 16, 896, 16, None, 0, (896, 384)),
    "ade20k": (160_000, 16, 512, 150, (2048, 512), 1, (512, 128)),
    "cityscapes": (160_000, 8, 1024, 19, (2048, 1024), 0, (1024, 1024 - 768)),
    "voc12aug": (80_000, 16, 512, 21, (2048, 512), 0, (512, 128)),
    "pascal_context": (80_000, 16, 480, 60, (2048, 512), 0, (480, 160)),
    "coco_stuff": (80_000, 16, 512, 171, (2048, 512), 0, (512, 128)),
}
# Decoder width and rank of the factorization; stochastic depth on all sets but iSAID, and on iSAID.
NETWORK = {
    "t": (256, 16, 0.1, 0.1),
    "s": (256, 16, 0.1, 0.1),
    "b": (512, 64, 0.1, 0.2),
    "l": (1024, 64, 0.3, 0.3),
}


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def catalogue(folder: Path, name: str, rows: Sequence[tuple[str, str]]) -> None:
    (folder / name).write_text("\n".join(["scene,labels", *(",".join(row) for row in rows)]) + "\n")
    for row in rows:
        touch(folder, *row)


def write_layout(name: str, root: Path) -> dict[str, list[tuple[str, str]]]:
    """Empty files as the data set has them, of two pictures to train on and one to validate on; which they are."""
    if name == "isaid":
        pairs = {
            "train": [(f"train/scenes/{i}.tif", f"train/labels/{i}.tif") for i in ("P0000", "P0001")],
            "val": [("val/scenes/P0003.tif", "val/labels/P0003.tif")],
        }
        lists = {"train": "train.csv", "val": "val.csv"}
    elif name == "ade20k":
        pairs = {
            split: [
                (f"images/{folder}/ADE_{folder}_{i}.jpg", f"annotations/{folder}/ADE_{folder}_{i}.png")
                for i in range(1, n + 1)
            ]
            for split, folder, n in (("train", "training", 2), ("val", "validation", 1))
        }
        lists = {}
    elif name == "cityscapes":
        pairs = {
            split: [
                (
                    f"leftImg8bit/{split}/{city}/{city}_000000_000019_leftImg8bit.png",
                    f"gtFine/{split}/{city}/{city}_000000_000019_gtFine_labelTrainIds.png",
                )
                for city in cities
            ]
            for split, cities in (("train", ("aachen", "bochum")), ("val", ("lindau",)))
        }
        touch(root, "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png")
        lists = {}
    elif name == "coco_stuff":
        pairs = {
            split: [
                (f"images/{split}2017/{i:012}.jpg", f"annotations/{split}2017/{i:012}_labelTrainIds.png") for i in ids
            ]
            for split, ids in (("train", (9, 25)), ("val", (139,)))
        }
        touch(root, "annotations/train2017/000000000009.png")
        lists = {}
    else:
        labels = "SegmentationClassAug" if name == "voc12aug" else "SegmentationClassContext"
        pairs = {
            split: [(f"JPEGImages/{i}.jpg", f"{labels}/{i}.png") for i in ids]
            for split, ids in (("train", ("2008_000002", "2008_000003")), ("val", ("2007_000033",)))
        }
        lists = {"train": "train_aug.csv" if name == "voc12aug" else "train.csv", "val": "val.csv"}
    for split, rows in pairs.items():
        for row in rows:
            touch(root, *row)
        if split in lists:
            catalogue(root, lists[split], rows)
    return pairs


def load(name: str, size: str, root: Path) -> tuple[TrainConfig, dict[str, list[tuple[str, str]]]]:
    pairs = write_layout(name, root)
    return load_config(CONFIGS / name / f"segnext_{size}.yaml", [f"data.root={root}"]), pairs


def test_every_published_configuration_is_checked_here() -> None:
    found = {(path.parent.name, path.stem) for path in CONFIGS.glob("*/*.yaml")}
    assert found == {(name, f"segnext_{size}") for name, size in ALL}


@pytest.mark.parametrize(("name", "size"), ALL)
def test_numbers_are_the_published_ones(name: str, size: str, tmp_path: Path) -> None:
    config, _ = load(name, size, tmp_path)
    iterations, batch, crop, classes, base, first_label, window = RECIPE[name]
    width, rank, depth, depth_isaid = NETWORK[size]

    run = config.train
    assert (run.iterations, run.batch_size, run.accumulate, run.size) == (iterations, batch, 1, crop)
    assert (run.learning_rate, run.decoder_lr_factor, run.weight_decay) == (6e-5, 10, 0.01)
    assert (run.warmup_iterations, run.poly_power, run.max_class_share) == (1500, 1.0, 0.75)
    assert (run.sync_norm, run.ema, run.patience, run.class_weights, run.class_shares) == (True, None, None, None, None)
    assert [(term.name, term.weight) for term in run.loss] == [("cross_entropy", 1.0)]
    assert run.draw == ("pixels" if name == "isaid" else "scenes")
    assert run.precision == "32-true"
    assert iterations % run.val_every == 0

    assert (config.model.architecture, config.model.encoder) == ("segnext", f"tu-mscan_{SIZES[size]}")
    assert config.model.encoder_weights == "imagenet"
    assert config.model.options == {
        "decoder_channels": width,
        "nmf_rank": rank,
        "drop_path_rate": depth_isaid if name == "isaid" else depth,
    }

    augment = config.augment
    # JSeg's patches of 800 px are brought to 896 px before they are zoomed; other sets are fitted in their base size.
    assert augment.scale == (0.5, 2.0)
    assert augment.base_zoom == pytest.approx(896 / 800 if name == "isaid" else 1)
    assert augment.scale_sampling == "uniform"
    assert augment.base_size == base
    assert (augment.horizontal_flip, augment.dihedral, augment.distortion) == (True, False, True)
    assert [
        augment.brightness,
        augment.contrast,
        augment.hue,
        augment.saturation,
        augment.noise,
        augment.band_gain,
    ] == [0] * 6

    assert config.imagery.mean == pytest.approx([value / 255 for value in (123.675, 116.28, 103.53)])
    assert config.imagery.std == pytest.approx([value / 255 for value in (58.395, 57.12, 57.375)])
    assert config.imagery.effective_scale == 1 / 255

    table = {"isaid": "iSAID", "ade20k": "ADE20K", "cityscapes": "Cityscapes", "coco_stuff": "COCO-Stuff"}
    table |= {"voc12aug": "Pascal-VOC", "pascal_context": "Pascal-Context"}
    assert config.class_table == KNOWN[table[name]] and len(config.classes) == classes
    assert config.data.first_label == first_label
    assert (config.window.size, config.window.overlap) == window


@pytest.mark.parametrize("name", SETS)
def test_scenes_and_labels_are_found_in_the_documented_layout(name: str, tmp_path: Path) -> None:
    config, pairs = load(name, "t", tmp_path)
    for split, rows in pairs.items():
        found = [(entry.scene, entry.labels) for entry in config.data.entries(split)]
        assert found == [(tmp_path / scene, tmp_path / labels) for scene, labels in rows]


@pytest.mark.parametrize("name", SETS)
def test_sizes_of_one_set_differ_in_the_network_alone(name: str) -> None:
    def plain(size: str) -> dict[str, Any]:
        values: dict[str, Any] = yaml.safe_load((CONFIGS / name / f"segnext_{size}.yaml").read_text(encoding="utf-8"))
        return {k: v for k, v in values.items() if k not in ("name", "output", "model")}

    assert all(plain(size) == plain("t") for size in SIZES)
    names = {yaml.safe_load((CONFIGS / name / f"segnext_{size}.yaml").read_text())["name"] for size in SIZES}
    assert len(names) == len(SIZES)


@pytest.mark.parametrize("size", SIZES)
def test_widths_and_ranks_are_those_the_network_takes_by_itself(size: str) -> None:
    recipe = RECIPES[f"tu-mscan_{SIZES[size]}"]
    assert (recipe.decoder_channels, recipe.nmf_rank, recipe.drop_path_rate) == NETWORK[size][:3]


def test_the_licence_of_isaid_stands_in_its_configurations() -> None:
    for size in SIZES:
        text = (CONFIGS / "isaid" / f"segnext_{size}.yaml").read_text(encoding="utf-8")
        assert "prohibit any commercial use" in text
        assert "commercial" in yaml.safe_load(text)["card"]["licence"]


def test_a_photograph_recipe_trains_and_tests_on_whole_images(tmp_path: Path) -> None:
    """One small step on three pictures in ADE20K's layout, whose labels count from 1, and the test of its numbers."""
    rng = np.random.default_rng(0)
    for rows in write_layout("ade20k", tmp_path).values():
        for image, labels in rows:
            Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(tmp_path / image)
            ids = np.kron(rng.integers(0, 151, (6, 8)), np.ones((10, 10), int)).astype(np.uint8)
            ids[:10] = 0
            Image.fromarray(ids).save(tmp_path / labels)

    small = ["augment.base_size=[128, 64]", f"model.options={json.dumps(TINY)}", "window={size: 64, overlap: 32}"]
    run = ["train.iterations=1", "train.val_every=1", "train.batch_size=2", "train.size=64", "train.workers=0"]
    config, root = CONFIGS / "ade20k/segnext_t.yaml", f"data.root={tmp_path}"
    output = f"output={tmp_path / 'run'}"
    printed = commands.succeed(
        "-q", "train", config, root, output, "model.encoder_weights=null", *small, *run, "--device", "cpu"
    )
    model = printed.splitlines()[-1]
    large = commands.succeed(
        "-q", "train", config, root, output, "model.encoder_weights=null", *small, "train.batch_size=4000", "--check"
    )
    assert "memory           about 1" in large and "e+" not in large  # hundreds of GiB are printed in digits
    commands.succeed(
        "-q", "evaluate", model, config, root, *small, "--protocol", "whole", "-o", tmp_path / "test", "--device", "cpu"
    )
    with (tmp_path / "test/confusion.csv").open(newline="") as file:
        counts = np.array([[int(value) for value in row[1:151]] for row in list(csv.reader(file))[1:151]])
    with Image.open(tmp_path / "annotations/validation/ADE_validation_1.png") as labels:
        wanted = np.bincount(np.asarray(labels).ravel(), minlength=151)
    np.testing.assert_array_equal(counts.sum(1), wanted[1:])
