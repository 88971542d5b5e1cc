from __future__ import annotations

import csv
import logging
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from torch import nn

from geoseg.config import load_config
from geoseg.config.settings import RunConfig, TrainConfig
from geoseg.contract import Band, ClassEntry, Contract
from geoseg.errors import ConfigError, LabelError, ModelError, OutputError
from geoseg.network.backends.openvino import multiplies_bfloat16
from geoseg.network.model_folder import Normalize, build_network, load_model, save_model
from geoseg.programs.predict import predict
from geoseg.programs.train import check, train
from geoseg.scene import Scene
from geoseg.training.task import SegmentationTask, lr_factor, parameter_groups
from geoseg.windows import Window
from support.networks import FEW_LAYERS, TINY
from support.training import ITERATIONS, UNET, Recorder, experiment


@pytest.fixture(scope="module")
def run(landscapes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, Path]:
    """One finished run, and the model folder it gave."""
    config = experiment(landscapes, tmp_path_factory.mktemp("runs") / "done")
    return config, train(config, device="cpu")


# --- what a run leaves


def test_a_run_folder_holds_everything(run: tuple[TrainConfig, Path]) -> None:
    config, model = run
    assert model == config.output / "model"
    assert {p.name for p in config.output.iterdir()} == {
        "config.yaml",
        "environment.json",
        "checkpoints",
        "logs",
        "model",
    }
    assert {p.name for p in (config.output / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert load_config(config.output / "config.yaml") == config
    assert any(p.name.startswith("events") for p in (config.output / "logs").iterdir())
    with (config.output / "logs/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    scores = [float(row["val_miou"]) for row in rows if row.get("val_miou")]
    assert len(scores) == 2  # after 3 and after 6 iterations
    assert all(0 <= score <= 1 for score in scores)
    assert sum(bool(row.get("loss")) for row in rows) >= 1


def test_the_contract_tells_how_the_model_was_made(run: tuple[TrainConfig, Path], landscapes: Path) -> None:
    contract = load_model(run[1]).contract
    with Scene(landscapes / "a.tif") as scene:
        pixels, valid = scene.read(Window(0, 0, 256, 256))
        gsd = scene.grid.gsd_m()
    values = pixels[:, valid] / 255
    np.testing.assert_allclose([b.mean for b in contract.bands], values.mean(1), rtol=1e-4)
    np.testing.assert_allclose([b.std for b in contract.bands], values.std(1), rtol=1e-4)
    assert [b.name for b in contract.bands] == ["red", "green", "blue"]
    assert contract.gsd_m == pytest.approx(gsd, abs=1e-3)
    assert contract.window.size == 128
    recorded = contract.training
    assert recorded["iterations"] == ITERATIONS
    assert recorded["scenes"] == ["a.tif"] and recorded["validation_scenes"] == ["b.tif"]
    assert recorded["license"] == "none"
    assert 1 <= recorded["best_iteration"] <= ITERATIONS
    assert 0 <= recorded["val_miou"] <= 1
    assert set(recorded["val_iou"]) == set(contract.class_table.names)


def test_the_model_predicts(run: tuple[TrainConfig, Path], landscapes: Path, tmp_path: Path) -> None:
    report = predict([str(landscapes / "b.tif")], str(run[1]), tmp_path / "map.tif", device="cpu")
    assert report.grid.shape == (256, 256)
    assert report.plan.window_height == 128  # the contract's


def test_the_model_is_the_best_checkpoints_network(run: tuple[TrainConfig, Path]) -> None:
    config, model = run
    best = torch.load(config.output / "checkpoints/best.ckpt", weights_only=True, map_location="cpu")
    network = load_model(model).network
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, best["state_dict"][f"network.{name}"]), name
    assert load_model(model).contract.training["val_miou"] == pytest.approx(best["val_scores"]["val_miou"], abs=1e-4)


def test_the_same_seed_trains_the_same_network(run: tuple[TrainConfig, Path], tmp_path: Path, landscapes: Path) -> None:
    again = train(experiment(landscapes, tmp_path / "again"), device="cpu")
    first, second = (load_model(m).network.state_dict() for m in (run[1], again))
    for name in first:
        torch.testing.assert_close(first[name], second[name], msg=name)


def test_training_lowers_the_loss(landscapes: Path, tmp_path: Path) -> None:
    config = experiment(
        landscapes,
        tmp_path / "run",
        train={"iterations": 40, "val_every": 40, "learning_rate": 3e-3, "decoder_lr_factor": 1},
    )
    train(config, device="cpu")
    with (config.output / "logs/metrics.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file) if row.get("loss")]
    # A network that knows nothing has the logarithm of the number of classes; the first row is from iteration 10.
    assert np.mean(losses[-2:]) < 0.9 * np.log(len(config.classes))


def test_polygon_labels_train_too(landscapes: Path, tmp_path: Path) -> None:
    entry = {"scene": str(landscapes / "a.tif"), "labels": str(landscapes / "a_truth.gpkg")}
    entry |= {"attribute": "class_id", "outside": "ignore"}
    config = experiment(
        landscapes,
        tmp_path / "run",
        data={"train": [entry], "val": [entry], "leakage": "warn"},
        train={"iterations": 1, "val_every": 1},
    )
    assert load_model(train(config, device="cpu")).contract.training["iterations"] == 1


def test_any_smp_architecture_trains(landscapes: Path, tmp_path: Path) -> None:
    config = experiment(
        landscapes,
        tmp_path / "run",
        model={"architecture": "fpn", "encoder": "resnet18"},
        train={"iterations": 1, "val_every": 1, "measure_precision": True},
    )
    contract = load_model(train(config, device="cpu")).contract
    assert contract.training["architecture"] == "fpn"
    assert (contract.precision is not None) == multiplies_bfloat16()


# --- what a run says of itself


def val_scores(run: Path) -> dict[str, float]:
    """Validation mIoU by step."""
    with (run / "logs/metrics.csv").open() as file:
        return {row["step"]: float(row["val_miou"]) for row in csv.DictReader(file) if row.get("val_miou")}


def test_a_short_run_validates_four_times(landscapes: Path, tmp_path: Path) -> None:
    config = experiment(landscapes, tmp_path / "run", train={"iterations": 7, "val_every": None})
    train(config, device="cpu")
    assert list(val_scores(config.output)) == ["1", "3", "5", "6"]
    assert [RunConfig(iterations=n).validation_interval for n in (1, 1000, 1001)] == [1, 250, 1000]


@pytest.mark.parametrize("every", [7, 1000])
def test_a_run_validates_only_as_often_as_asked(landscapes: Path, tmp_path: Path, every: int) -> None:
    config = experiment(landscapes, tmp_path / "run", train={"iterations": 7, "val_every": every})
    train(config, device="cpu")
    assert list(val_scores(config.output)) == ["6"]


def test_a_model_worse_than_its_start_brings_a_warning(
    run: tuple[TrainConfig, Path], landscapes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ruin = {"iterations": 2, "val_every": 1, "learning_rate": 10.0, "warmup_iterations": 0, "ema": 0.5}
    config = experiment(landscapes, tmp_path / "worse", model={"options": TINY, "start_from": str(run[1])}, train=ruin)
    with caplog.at_level(logging.WARNING, "geoseg.training"):
        model = train(config, device="cpu")
    recorded = load_model(model).contract.training
    before = load_model(run[1]).contract.training["val_miou"]
    # As iteration 0: what the run before ended with, on the same windows.
    assert recorded["val_miou_at_start"] == before
    assert val_scores(config.output)["-1"] == pytest.approx(before, abs=1e-4)
    assert recorded["val_miou"] < before
    (record,) = [r for r in caplog.records if "the model it started from" in r.message]
    assert f"has mIoU {recorded['val_miou']:.4f}; the model it started from had {before:.4f}" in record.message
    # A run that goes on, or has nothing left to do, says the same.
    caplog.clear()
    with caplog.at_level(logging.WARNING, "geoseg.training"):
        train(config, resume=True, device="cpu")
    assert record.message in [r.message for r in caplog.records]
    assert len(val_scores(config.output)) == 3


def test_a_model_as_good_as_before_brings_no_warning(
    run: tuple[TrainConfig, Path], landscapes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    still = {"iterations": 1, "learning_rate": 1e-12, "weight_decay": 0}
    config = experiment(
        landscapes,
        tmp_path / "run",
        model={"options": TINY, "start_from": str(run[1]), "freeze": ["encoder"]},
        train=still,
    )
    with caplog.at_level(logging.WARNING, "geoseg.training"):
        recorded = load_model(train(config, device="cpu")).contract.training
    assert recorded["val_miou_at_start"] == pytest.approx(recorded["val_miou"], abs=2e-3)
    if recorded["val_miou"] >= recorded["val_miou_at_start"]:
        assert not [r for r in caplog.records if "the model it started from" in r.message]


def test_one_line_tells_how_the_run_goes(
    landscapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("geoseg.training.display.REFRESH_S", 0)
    train(experiment(landscapes, tmp_path / "run"), device="cpu", progress=True)
    out, progress = capfd.readouterr()
    assert out == ""
    lines = [line for line in re.split(r"[\r\n]+", progress) if line.strip()]
    assert all(re.match(r"(train|validate): +\d+%\|.*\| \d/6 \[", line) for line in lines), progress
    assert re.search(r"6/6 \[\d+:\d+<00:00, .*, loss=\d\.\d+, lr=\S+, mIoU=0\.\d+, best=0\.\d+\]", lines[-1]), progress


def test_an_interrupted_run_names_its_last_checkpoint(landscapes: Path, tmp_path: Path) -> None:
    config = experiment(landscapes, tmp_path / "run", train={"iterations": 9})
    with pytest.MonkeyPatch.context() as patch:
        Recorder(patch, fail_at=3)
        with pytest.raises(KeyboardInterrupt, match="before the first checkpoint: nothing is kept"):
            train(config, device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        Recorder(patch, fail_at=9)
        with pytest.raises(KeyboardInterrupt) as caught:
            train(config, overwrite=True, device="cpu")
    last = config.output / "checkpoints/last.ckpt"
    assert str(caught.value) == f"interrupted; {last} is of iteration 3: continue from there with --resume"
    assert torch.load(last, weights_only=True)["global_step"] == 3
    # Interrupted again before another one: the same is left.
    with pytest.MonkeyPatch.context() as patch:
        Recorder(patch, fail_at=7)
        with pytest.raises(KeyboardInterrupt, match="is of iteration 3: continue"):
            train(config, resume=True, device="cpu")


def test_without_a_score_the_last_network_is_kept(landscapes: Path, tmp_path: Path) -> None:
    """Validation of one class: mIoU would be 1 for a network that maps nothing else."""
    with rasterio.open(landscapes / "b_labels.tif") as file:
        profile, ids = file.profile, file.read()
    with rasterio.open(tmp_path / "single.tif", "w", **profile) as file:
        file.write(np.where(ids == 1, 1, 255).astype(np.uint8))
    entries = [{"scene": str(landscapes / f"{n}.tif"), "labels": str(p)} for n, p in
               (("a", landscapes / "a_labels.tif"), ("b", tmp_path / "single.tif"))]  # fmt: skip
    config = experiment(landscapes, tmp_path / "run", data={"train": entries[:1], "val": entries[1:]})
    recorded = load_model(train(config, device="cpu")).contract.training
    assert recorded["val_miou"] is None and recorded["val_iou"]["grass"] is not None
    best = torch.load(config.output / "checkpoints/best.ckpt", weights_only=True)
    assert best["global_step"] == ITERATIONS


# --- going on


def test_a_resumed_run_draws_the_windows_that_were_left(landscapes: Path, tmp_path: Path) -> None:
    config = experiment(landscapes, tmp_path / "run", train={"iterations": 9})
    # Cut off in iteration 7 (windows 12 and 13), after the checkpoint of iteration 6: less is left than was done.
    with pytest.MonkeyPatch.context() as patch:
        before = Recorder(patch, fail_at=13)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            train(config, device="cpu")
    assert before.drawn[:12] == list(range(12))
    assert not (config.output / "model").exists()
    with pytest.MonkeyPatch.context() as patch:
        after = Recorder(patch)
        model = train(config, resume=True, device="cpu")
    assert after.drawn[:6] == list(range(12, 18))
    assert load_model(model).contract.training["iterations"] == 9
    last = torch.load(config.output / "checkpoints/last.ckpt", weights_only=True, map_location="cpu")
    assert last["global_step"] == 9
    assert [group["lr"] for group in last["optimizer_states"][0]["param_groups"]] == [0] * 4  # the decay's end


def test_a_resumed_run_ends_in_the_same_weights(landscapes: Path, tmp_path: Path) -> None:
    ends = []
    for name, fail_at in (("whole", None), ("cut", 9)):
        config = experiment(landscapes, tmp_path / name, model=UNET | {"options": FEW_LAYERS})
        if fail_at is not None:
            with pytest.MonkeyPatch.context() as patch:
                Recorder(patch, fail_at=fail_at)
                with pytest.raises((KeyboardInterrupt, SystemExit)):
                    train(config, device="cpu")
        train(config, resume=fail_at is not None, device="cpu")
        ends.append(torch.load(config.output / "checkpoints/last.ckpt", weights_only=True)["state_dict"])
    for key, value in ends[0].items():
        torch.testing.assert_close(ends[1][key], value, rtol=1e-4, atol=1e-6, msg=key)


def test_what_cannot_be_resumed_is_explained(run: tuple[TrainConfig, Path], landscapes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to resume"):
        train(experiment(landscapes, tmp_path / "new"), resume=True, device="cpu")
    done = run[0].output
    other = experiment(landscapes, done, train={"batch_size": 4})
    with pytest.raises(ConfigError, match=r"train\.batch_size 2, now it is 4"):
        train(other, resume=True, device="cpu")
    with pytest.raises(ConfigError, match="seed 0, now it is 1"):
        train(experiment(landscapes, done, seed=1), resume=True, device="cpu")


# --- refusals


def test_an_existing_run_folder_is_kept_unless_overwritten(
    run: tuple[TrainConfig, Path], landscapes: Path, tmp_path: Path
) -> None:
    config = run[0]
    with pytest.raises(OutputError, match=r"run folder .* exists") as caught:
        train(config, device="cpu")
    assert "--resume" in str(caught.value.hint)
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "thesis.tex").write_text("x")
    with pytest.raises(OutputError, match="is not a run folder"):
        train(experiment(landscapes, precious), overwrite=True, device="cpu")
    assert (precious / "thesis.tex").exists()


def test_a_run_folder_is_replaced_when_asked(landscapes: Path, tmp_path: Path) -> None:
    config = experiment(landscapes, tmp_path / "run", train={"iterations": 1, "val_every": 1})
    for _ in range(2):
        train(config, overwrite=True, device="cpu")
        assert not (config.output / "old.txt").exists()
        (config.output / "old.txt").write_text("old")


@pytest.mark.parametrize(
    ("changes", "kind", "complaint"),
    [
        ({"model": {"architecture": "segnxt"}}, ConfigError, "segnxt"),
        ({"model": {"options": {"strip_width": 3}}}, ConfigError, "strip_width"),
        ({"model": {"start_from": "/nowhere/model"}}, ModelError, "no model folder"),
        ({"imagery": {"dtype": "uint16"}}, LabelError, "is uint8, the configuration says uint16"),
        ({"imagery": {"bands": ["a", "b", "c", "d"]}}, LabelError, "band 4"),
        ({"classes": [{"name": "a", "color": "#000000"}]}, LabelError, "2 errors in the data"),
    ],
)
def test_mistakes_are_refused_before_the_run_folder_is_made(
    landscapes: Path, tmp_path: Path, changes: dict[str, Any], kind: type[Exception], complaint: str
) -> None:
    with pytest.raises(kind, match=complaint):
        train(experiment(landscapes, tmp_path / "run", **changes), device="cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("begin", [train, check])
def test_an_impossible_network_is_refused_before_data_is_read(
    begin: Callable[..., object], landscapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading all labels of a large data set takes minutes, after which weights would be missing."""
    monkeypatch.setattr("geoseg.programs.train.check_data", lambda config: pytest.fail("the data was read"))
    config = experiment(landscapes, tmp_path / "run", model={"options": TINY, "start_from": "/nowhere/model"})
    with pytest.raises(ModelError, match="no model folder"):
        begin(config, device="cpu")


def test_a_loss_that_is_no_number_ends_the_run_with_advice(landscapes: Path, tmp_path: Path) -> None:
    # A network that starts from a model whose weights are broken gives it at once.
    config = experiment(landscapes, tmp_path / "run")
    torch.manual_seed(0)
    network = build_network(
        "segnext",
        "tu-mscan_tiny",
        encoder_weights=None,
        in_channels=3,
        classes=len(config.classes),
        **config.model.options,
    )
    with torch.no_grad():
        head: Any = network.segmentation_head
        head.bias.fill_(float("nan"))
    bands = tuple(Band(name=name, mean=0.5, std=0.25) for name in config.imagery.bands)
    save_model(tmp_path / "broken", network, contract(bands=bands, classes=config.classes))
    config = experiment(landscapes, tmp_path / "run", model={"options": TINY, "start_from": str(tmp_path / "broken")})
    with pytest.raises(ConfigError, match="the loss became nan at iteration 0 with learning rate 1e-09") as caught:
        train(config, device="cpu")
    assert "train.learning_rate (now 0.001)" in str(caught.value.hint)
    # Which windows, and whether it is they.
    assert str(caught.value).count(f"{landscapes / 'a.tif'} rows ") == config.train.batch_size
    assert "all its pixels are finite" in str(caught.value)


def test_training_starts_from_a_models_weights(run: tuple[TrainConfig, Path], landscapes: Path, tmp_path: Path) -> None:
    still = {"iterations": 1, "val_every": 1, "learning_rate": 1e-12, "weight_decay": 0}
    config = experiment(landscapes, tmp_path / "run", model={"options": TINY, "start_from": str(run[1])}, train=still)
    after, before = load_model(train(config, device="cpu")), load_model(run[1])
    started = dict(after.network.named_parameters())
    for name, parameter in before.network.named_parameters():
        torch.testing.assert_close(started[name], parameter, msg=name)
    recorded = after.contract.training
    assert (recorded["started_from"], recorded["iterations"]) == (before.contract.name, 1)
    assert recorded["iterations_before"] == before.contract.training["best_iteration"]
    other = experiment(
        landscapes, tmp_path / "other", model={"options": TINY | {"nmf_rank": 8}, "start_from": str(run[1])}
    )
    with pytest.raises(ConfigError, match="another network"):
        train(other, device="cpu")


# --- the recipe


def recipe(**changes: Any) -> RunConfig:
    return RunConfig(**changes)


def test_the_learning_rate_warms_up_on_top_of_the_decay() -> None:
    r = recipe()  # SegNeXt's: 160k iterations, 1500 of warm-up
    assert lr_factor(0, r) == pytest.approx(1e-6)
    assert lr_factor(750, r) == pytest.approx((1 - 750 / 160_000) * (1 - 0.5 * (1 - 1e-6)))
    assert lr_factor(1500, r) == pytest.approx(1 - 1500 / 160_000)
    assert lr_factor(80_000, r) == pytest.approx(0.5)
    assert lr_factor(160_000, r) == 0
    assert lr_factor(160_001, r) == 0
    factors = [lr_factor(step, r) for step in range(0, 160_000, 100)]
    peak = int(np.argmax(factors))
    assert peak == 15
    assert all(a < b for a, b in pairwise(factors[: peak + 1]))
    assert all(a > b for a, b in pairwise(factors[peak:]))


def test_the_power_and_no_warmup() -> None:
    assert lr_factor(0, recipe(warmup_iterations=0)) == 1
    assert lr_factor(40_000, recipe(poly_power=2, warmup_iterations=0)) == pytest.approx(0.75**2)
    assert lr_factor(159_999, recipe(poly_power=0, warmup_iterations=0)) == 1


def test_norms_have_no_decay_and_the_decoder_ten_times_the_rate() -> None:
    network = build_network("segnext", "tu-mscan_tiny", encoder_weights=None, in_channels=3, classes=4, **TINY)
    names = {id(p): n for n, p in network.named_parameters()}
    groups = parameter_groups(network, recipe(learning_rate=1e-4, weight_decay=0.05))
    seen: dict[str, tuple[float, float]] = {}
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert name not in seen
            seen[name] = group["lr"], group["weight_decay"]
    assert set(seen) == set(names.values())
    encoder = "encoder.model.model."
    for name, wanted in {
        f"{encoder}patch_embed1.proj.0.weight": (1e-4, 0.05),
        f"{encoder}patch_embed1.proj.1.weight": (1e-4, 0.0),
        f"{encoder}block1.0.norm1.bias": (1e-4, 0.0),
        f"{encoder}block1.0.layer_scale_1": (1e-4, 0.05),
        f"{encoder}norm4.weight": (1e-4, 0.0),
        "decoder.squeeze.conv.weight": (1e-3, 0.05),
        "decoder.squeeze.gn.weight": (1e-3, 0.0),
        "segmentation_head.weight": (1e-3, 0.05),
    }.items():
        assert seen[name] == pytest.approx(wanted), name


def contract(**changes: Any) -> Contract:
    values: dict[str, Any] = {
        "name": "x",
        "bands": tuple(Band(name=n, mean=0.5, std=0.25) for n in "rgb"),
        "dtype": "uint8",
        "scale": 1 / 255,
        "classes": tuple(ClassEntry(name=f"c{i}", color="#000000") for i in range(2)),
    }
    return Contract(**(values | changes))


def test_training_and_prediction_show_the_network_the_same() -> None:
    """Scaled windows of training and raw pixels of prediction, both 0 after normalisation where invalid."""
    raw = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    valid = torch.rand(2, 8, 8) < 0.7
    task = SegmentationTask(nn.Identity(), contract(), recipe())
    torch.testing.assert_close(task(raw.float() / 255, valid), Normalize(contract())(raw, valid))
