"""Training on any number of bands of any depth, with holes: nothing under them has a say."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import timm
import torch
from affine import Affine
from rasterio.enums import ColorInterp
from torch import Tensor

from geoseg.config import TrainConfig, parse_config
from geoseg.contract import DEFAULT_SCALE
from geoseg.data.labelled import LabelledScene
from geoseg.data.statistics import band_statistics
from geoseg.data.windows import CoveringWindows, RandomWindows
from geoseg.landscape import BANDS, LANDSCAPE_CLASSES, Landscape
from geoseg.network.model_folder import load_model
from geoseg.programs.train import build_contract, train
from geoseg.windows import Window
from support.networks import TINY

SIZE = 128
Hole = Literal["nodata", "alpha", "mask", "nan"]
Pixels = npt.NDArray[Any]

# dtype, bands, how the holes are said
KINDS: list[tuple[str, int, Hole]] = [
    ("uint8", 1, "alpha"),
    ("uint8", 4, "mask"),
    ("uint8", 8, "nodata"),
    ("uint16", 1, "nodata"),
    ("uint16", 4, "alpha"),
    ("uint16", 8, "mask"),
    ("float32", 1, "nan"),
    ("float32", 4, "nodata"),
    ("float32", 8, "alpha"),
]
TRAINED = [KINDS[i] for i in (2, 4, 6)]
"""One of each type of pixels."""


def stack(dtype: str, bands: int, seed: int) -> tuple[Pixels, npt.NDArray[np.uint8]]:
    """A landscape's pixels in a number of bands, and its labels; more than four bands are those of a second date."""
    dates = [Landscape(SIZE, SIZE, seed=seed, bands=BANDS, dtype=dtype).read(Window(0, 0, SIZE, SIZE))]
    pixels = dates[0][0]
    if bands > len(BANDS):
        later = (pixels[:, ::-1] * 0.7).astype(dtype) if dtype == "float32" else pixels[:, ::-1] // 2 + 3
        pixels = np.concatenate([pixels, later])
    return pixels[-bands:] if bands == 1 else pixels[:bands], dates[0][1]


def hole(seed: int) -> npt.NDArray[np.bool_]:
    """False in a slanted corner, in a hole, and at lone pixels."""
    rows, cols = np.mgrid[0:SIZE, 0:SIZE]
    valid = (rows + 2 * cols > 60) & ((rows - 80) ** 2 + (cols - 60 - 5 * seed) ** 2 > 15**2)
    valid[3::17, 5::13] = False
    return valid


def write(folder: Path, name: str, *, dtype: str, bands: int, kind: Hole, seed: int, under: float) -> dict[str, str]:
    """Scene and labels as files; ``under`` is what stands under the holes, and decides the labels there."""
    pixels, labels = stack(dtype, bands, seed)
    valid = hole(seed)
    nodata = {"nodata": under, "nan": np.nan}.get(kind)
    pixels[:, ~valid] = np.nan if kind == "nan" else under
    labels[~valid] = int(under) % len(LANDSCAPE_CLASSES)
    transform = Affine.translation(500_000 + 10_000 * seed, 5_200_000) @ Affine.scale(0.5, -0.5)
    common = {"driver": "GTiff", "height": SIZE, "width": SIZE, "crs": "EPSG:32633", "transform": transform}
    tiles = {"tiled": True, "blockxsize": 64, "blockysize": 64}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            folder / f"{name}.tif",
            "w",
            count=bands + (kind == "alpha"),
            dtype=dtype,
            nodata=nodata,
            **common,
            **tiles,
        ) as file,
    ):
        file.write(pixels, list(range(1, bands + 1)))
        if kind == "mask":
            file.write_mask(valid)
        if kind == "alpha":
            opaque = 1 if dtype == "float32" else np.iinfo(dtype).max
            file.write((valid * opaque).astype(dtype), bands + 1)
            file.colorinterp = [ColorInterp.gray] + [ColorInterp.undefined] * (bands - 1) + [ColorInterp.alpha]
    with rasterio.open(folder / f"{name}_labels.tif", "w", count=1, dtype="uint8", **common) as file:
        file.write(labels, 1)
    return {"scene": str(folder / f"{name}.tif"), "labels": str(folder / f"{name}_labels.tif")}


def experiment(folder: Path, *, dtype: str, bands: int, kind: Hole, under: float, **changes: Any) -> TrainConfig:
    folder.mkdir()
    entries = [
        write(folder, name, dtype=dtype, bands=bands, kind=kind, seed=seed, under=under)
        for seed, name in enumerate(("a", "b"))
    ]
    values: dict[str, Any] = {
        "name": "bands",
        "output": str(folder / "run"),
        "classes": [{"name": c.name, "color": "#000000"} for c in LANDSCAPE_CLASSES],
        "model": {"options": TINY},
        "imagery": {"bands": [f"b{i}" for i in range(bands)], "dtype": dtype, "alpha": kind == "alpha"},
        "data": {"train": entries[:1], "val": entries[1:]},
        "window": {"size": 64, "overlap": 0},
        "augment": {"band_gain": 0.1, "noise": 0.05},
        "train": {
            "iterations": 3,
            "batch_size": 2,
            "size": 64,
            "learning_rate": 1e-3,
            "warmup_iterations": 0,
            "measure_precision": False,
            "workers": 0,
            "val_every": 3,
            "precision": "32-true",
            "max_class_share": 1,
        },
    }
    return parse_config(values | changes, source="test")


def weights_of(model: Path) -> dict[str, Tensor]:
    return dict(load_model(model).network.state_dict())


@pytest.mark.parametrize(("dtype", "bands", "kind"), KINDS, ids=[f"{d}-{b}-{k}" for d, b, k in KINDS])
def test_what_lies_under_holes_is_in_no_sample(tmp_path: Path, dtype: str, bands: int, kind: Hole) -> None:
    """All that a training sees of two files that differ under their holes, and in the labels there, is the same."""
    options = {"dtype": dtype, "bands": bands, "kind": kind}
    one, other = (experiment(tmp_path / str(under), under=under, **options) for under in (0, 250))  # type: ignore[arg-type]
    scenes, others = ([LabelledScene(entry, s) for entry in s.data.train] for s in (one, other))
    contract = build_contract(one, scenes)
    assert contract.bands == build_contract(other, others).bands
    std = [band.std for band in contract.bands]
    for windows, same in (
        (RandomWindows(scenes, one, length=12, std=std), RandomWindows(others, other, length=12, std=std)),
        (CoveringWindows(scenes, one), CoveringWindows(others, other)),
    ):
        for i in range(len(windows)):
            for key in ("pixels", "valid", "labels"):
                assert torch.equal(windows[i][key], same[i][key]), (i, key)


@pytest.mark.parametrize(("dtype", "bands", "kind"), TRAINED, ids=[f"{d}-{b}-{k}" for d, b, k in TRAINED])
def test_what_lies_under_holes_trains_nothing(tmp_path: Path, dtype: str, bands: int, kind: Hole) -> None:
    """Two files that differ under their holes, and in the labels there, give the same network."""
    options = {"dtype": dtype, "bands": bands, "kind": kind}
    one, other = (
        train(experiment(tmp_path / name, under=under, **options), device="cpu")  # type: ignore[arg-type]
        for name, under in (("one", 0), ("other", 250))
    )
    weights, others = weights_of(one), weights_of(other)
    for name, tensor in weights.items():
        assert torch.isfinite(tensor).all(), name
        assert torch.equal(tensor, others[name]), name
    contract, of_other = (load_model(model).contract for model in (one, other))
    assert contract.bands == of_other.bands and len(contract.bands) == bands
    assert contract.training["val_miou"] == of_other.training["val_miou"]
    pixels, _ = stack(dtype, bands, 0)
    values = pixels[:, hole(0)].astype(np.float64) * DEFAULT_SCALE[dtype]  # type: ignore[index]
    np.testing.assert_allclose([b.mean for b in contract.bands], values.mean(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose([b.std for b in contract.bands], values.std(1), rtol=1e-3, atol=1e-5)
    stem = weights["encoder.model.model.patch_embed1.proj.0.weight"]
    assert stem.shape[1] == bands


@pytest.mark.parametrize(("dtype", "bands", "kind"), KINDS, ids=[f"{d}-{b}-{k}" for d, b, k in KINDS])
def test_what_lies_under_holes_is_in_no_window(tmp_path: Path, dtype: str, bands: int, kind: Hole) -> None:
    """Drawn and covering windows: 0 and no label under holes, what was said to lie there nowhere beside them."""
    settings = experiment(tmp_path / "x", dtype=dtype, bands=bands, kind=kind, under=250)
    scenes = [LabelledScene(entry, settings) for entry in settings.data.train]
    scale = DEFAULT_SCALE[dtype]  # type: ignore[index]
    _, std = band_statistics(scenes, scale)
    values = stack(dtype, bands, 0)[0][:, hole(0)] * scale
    low, high = values.min(1)[:, None], values.max(1)[:, None]
    for windows in (RandomWindows(scenes, settings, length=12, std=std), CoveringWindows(scenes, settings)):
        holes = 0
        for i in range(len(windows)):
            sample = windows[i]
            pixels, valid, labels = (sample[key].numpy() for key in ("pixels", "valid", "labels"))
            assert pixels.dtype == np.float32 and np.isfinite(pixels).all()
            assert (pixels[:, ~valid] == 0).all() and (labels[~valid] == 255).all()
            holes += int((~valid).sum())
            inside = pixels[:, valid]
            if isinstance(windows, CoveringWindows):
                assert (inside >= low - 1e-6).all() and (inside <= high + 1e-6).all()
            else:  # changed by no more than brightness, contrast, gain and noise can
                reach = (high - low) * 0.5 + 0.15 * high
                assert (inside >= low - reach).all() and (inside <= high + reach).all()
        assert holes > 100


@pytest.mark.parametrize("bands", [1, 4, 8])
def test_training_adapts_a_pretrained_stem_to_its_bands(tmp_path: Path, bands: int) -> None:
    torch.manual_seed(0)
    encoder = {"embed_dims": TINY["embed_dims"], "depths": TINY["depths"]}
    pretrained = timm.create_model("mscan_tiny", **encoder).state_dict()
    torch.save({"state_dict": pretrained}, tmp_path / "mscan.pth")
    options = TINY | {"pretrained_cfg_overlay": {"file": str(tmp_path / "mscan.pth")}}
    settings = experiment(
        tmp_path / "x",
        dtype="uint16",
        bands=bands,
        kind="nodata",
        under=0,
        model={"encoder_weights": "imagenet", "options": options},
    )
    still = settings.train.model_copy(update={"iterations": 1, "learning_rate": 1e-12, "weight_decay": 0})
    found = weights_of(train(settings.model_copy(update={"train": still}), device="cpu"))
    stem = pretrained["patch_embed1.proj.0.weight"]
    adapted = stem.sum(1, keepdim=True) if bands == 1 else torch.cat([stem] * 3, 1)[:, :bands] * 3 / bands
    torch.testing.assert_close(found["encoder.model.model.patch_embed1.proj.0.weight"], adapted)
    mlp = "block4.0.mlp.fc1.weight"
    torch.testing.assert_close(found[f"encoder.model.model.{mlp}"], pretrained[mlp])


@pytest.mark.parametrize(("dtype", "step"), [("uint8", 1 / 255), ("uint16", 0), ("float32", 0)])
def test_brightness_is_measured_by_the_spread_of_the_data_set(tmp_path: Path, dtype: str, step: float) -> None:
    """Scaled values move by at most 0.3 of two standard deviations as given, whatever the files' type."""
    still = {"dihedral": False, "brightness": 0, "contrast": 0, "hue": 0, "saturation": 0}
    options: dict[str, Any] = {"dtype": dtype, "bands": 4, "kind": "nodata", "under": 0}
    without = experiment(tmp_path / "still", augment=still, **options)
    bright = without.model_copy(update={"augment": without.augment.model_copy(update={"brightness": 0.3})})
    scenes = [LabelledScene(entry, without) for entry in without.data.train]
    std = np.array([0.02, 0.05, 0.01, 0.03])
    before, after = (RandomWindows(scenes, s, length=40, std=list(std)) for s in (without, bright))
    shifts = []
    for i in range(40):
        valid = before[i]["valid"].numpy()
        moved = (after[i]["pixels"].numpy() - before[i]["pixels"].numpy())[:, valid]
        share = np.median(moved, axis=1) / (2 * std)
        np.testing.assert_allclose(share, share.mean(), atol=step / std.min() / 2 + 1e-3)
        shifts.append(share.mean())
    assert 0.2 < np.abs(shifts).max() <= 0.3 + step / std.min() / 2 + 1e-3
    assert 8 < np.count_nonzero(np.round(shifts, 3)) < 32
