"""What speaks against a map: imagery far from the training's, far too coarse, or a network that was unsure."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from affine import Affine
from torch import nn

from geoseg.contract import find_model, load_contract
from geoseg.network.model_folder import load_model, save_model
from geoseg.options import Imagery
from geoseg.prediction.imagery import doubts, low_confidence
from geoseg.programs.info import describe
from geoseg.programs.predict import predict
from geoseg.scene import open_scene
from support.imagery import contract, write
from support.model_folders import make_model
from support.scenes import write_scene


def normal(mean: float, std: float, size: int = 128, bands: int = 3) -> Any:
    """Bytes whose values, times 1/255, have this mean and deviation."""
    values = np.random.default_rng(1).normal(mean, std, (bands, size, size))
    return np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)


def found(path: Path, **options: Any) -> list[str]:
    with open_scene(path, Imagery(**options)) as scene:
        return list(doubts(contract(gsd_m=0.5), scene))


def test_imagery_like_the_trainings_raises_no_doubt(tmp_path: Path) -> None:
    for mean, std in ((0.5, 0.1), (0.45, 0.06), (0.58, 0.2)):
        assert found(write(tmp_path / "a.tif", normal(mean, std))) == []


@pytest.mark.parametrize(
    ("mean", "std", "words"),
    [
        (0.3, 0.1, "mean of -2.0 (red), -2.0 (green), -2.0 (blue) standard deviations"),
        (0.5, 0.02, "contrast of 0.2 (red), 0.2 (green), 0.2 (blue) times the usual"),
    ],
)
def test_imagery_far_from_the_trainings_is_reported_by_band(
    tmp_path: Path, mean: float, std: float, words: str
) -> None:
    (doubt,) = found(write(tmp_path / "a.tif", normal(mean, std)))
    assert "is unlike the imagery that the model was trained on" in doubt and words in doubt


def test_pixels_that_mean_nothing_raise_no_doubt(tmp_path: Path) -> None:
    pixels = normal(0.5, 0.1)
    pixels[:, :, :100] = 0
    assert found(write(tmp_path / "a.tif", pixels, nodata=0)) == []
    assert found(write(tmp_path / "b.tif", np.zeros_like(pixels), nodata=0)) == []


def test_far_upsampling_and_sizes_of_objects_are_reported(tmp_path: Path) -> None:
    coarse = write(tmp_path / "naip.tif", normal(0.5, 0.1), transform=Affine(2, 0, 5e5, 0, -2, 5e6))
    (doubt,) = found(coarse, gsd=0.5)
    assert "the pixels of scene" in doubt and "are 2 m, 4.0 times" in doubt and "details of 0.5 m" in doubt
    (doubt,) = found(coarse)  # as --ignore-gsd lets it pass
    assert "at pixels of 2 m, but was trained on 0.5 m" in doubt
    fine = write(tmp_path / "drone.tif", normal(0.5, 0.1), transform=Affine(0.05, 0, 5e5, 0, -0.05, 5e6))
    near = write(tmp_path / "near.tif", normal(0.5, 0.1), transform=Affine(0.9, 0, 5e5, 0, -0.9, 5e6))
    assert found(fine, gsd=0.5) == found(near, gsd=0.5) == []  # averages, and a little interpolation, are good


def test_confidence_is_low_between_chance_and_certainty() -> None:
    assert low_confidence(0.88, 2) is None  # a dense town in the shipped model's validation scenes
    assert "mean confidence 0.81" in str(low_confidence(0.81, 2))  # the same model on pixels four times larger
    assert low_confidence(0.81, 7) is None and low_confidence(0.5, 7) is not None
    assert low_confidence(None, 2) is None and low_confidence(1.0, 1) is None


def test_doubts_are_reported_before_and_after(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = make_model(tmp_path / "model")
    trained = load_model(model)
    head: Any = trained.network.segmentation_head
    with torch.no_grad():
        head.weight *= 1e-3
        nn.init.zeros_(head.bias)
    save_model(tmp_path / "unsure", trained.network, trained.contract)
    path = write(tmp_path / "dark.tif", normal(0.1, 0.03, 96))
    with caplog.at_level(logging.WARNING):
        report = predict(path, tmp_path / "unsure", tmp_path / "map.tif", device="cpu")
    assert [w for w in ("is unlike the imagery", "the model was unsure of its map") if w not in caplog.text] == []
    lines = "\n".join(report.lines())
    assert report.mean_confidence == pytest.approx(0.25, abs=0.02)
    assert "mean confidence 0.25" in lines and "is unlike the imagery" in lines
    assert any(line.startswith("warning") and "unlike" in line for line in describe(str(path), model=str(model)))


def test_mean_confidence_is_that_of_the_layer(tmp_path: Path) -> None:
    import rasterio

    made = write_scene(tmp_path / "s.tif", nodata="value", size=(200, 150))
    model = make_model(tmp_path / "model")
    means = []
    for options in ({"confidence": True}, {}, {"band_rows": 512, "strip_cols": 512}):
        report = predict(made.path, model, tmp_path / "map.tif", device="cpu", overwrite=True, **options)
        means.append(report.mean_confidence)
    with rasterio.open(tmp_path / "map_confidence.tif") as file:
        values = file.read(1)
    assert means == pytest.approx([values[values != 255].mean() / 254] * 3)


def test_the_shipped_model_knows_its_own_imagery(tmp_path: Path) -> None:
    model = load_contract(find_model("buildings-tiny"))
    rng = np.random.default_rng(0)
    pixels = np.stack([rng.normal(255 * b.mean, 255 * b.std, (128, 128)) for b in model.bands])
    path = write(
        tmp_path / "a.tif", np.clip(pixels, 0, 255).astype(np.uint8), transform=Affine(0.14, 0, 5e5, 0, -0.14, 5e6)
    )
    with open_scene(path) as scene:
        assert doubts(model, scene) == ()
