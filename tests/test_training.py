"""The parts of a training run, each by itself."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from geoseg.classes import ClassTable
from geoseg.config.settings import RunConfig
from geoseg.contract import Band, ClassEntry, Contract
from geoseg.data.labelled import open_both
from geoseg.data.windows import CoveringWindows
from geoseg.errors import ConfigError, DeviceError, SceneError
from geoseg.network.model_folder import build_network, load_model, save_model
from geoseg.programs.train import class_weights, train
from geoseg.training.callbacks import MovingAverage
from geoseg.training.display import draw_sample, stretched
from geoseg.training.failures import LossWatch, explained
from geoseg.training.preview import memory_bytes, saved_bytes
from geoseg.training.run_folder import git_state, load_best
from geoseg.training.start import freeze, leaves_unused, start_from
from geoseg.training.task import SegmentationTask, parameter_groups
from support import commands
from support.networks import FEW_LAYERS, TINY
from support.training import UNET, Recorder, experiment, settings, write_config


def network(classes: int, architecture: str = "segnext", bands: int = 3) -> nn.Module:
    encoder = "tu-mscan_tiny" if architecture == "segnext" else "resnet18"
    options = {"segnext": TINY, "unet": FEW_LAYERS, "fpn": {"encoder_depth": 3}}[architecture]
    return build_network(architecture, encoder, encoder_weights=None, in_channels=bands, classes=classes, **options)


def contract(*names: str, bands: str = "rgb") -> Contract:
    return Contract(
        name="x",
        bands=tuple(Band(name=band, mean=0.5, std=0.25) for band in bands),
        dtype="uint8",
        scale=1 / 255,
        classes=tuple(ClassEntry(name=name, color="#000000") for name in names),
    )


def classes(*names: str) -> ClassTable:
    return contract(*names).class_table


# --- fine-tuning


@pytest.mark.parametrize("architecture", ["segnext", "unet", "fpn"])
def test_classes_of_the_same_name_keep_their_rows(
    architecture: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = network(3, architecture)
    save_model(tmp_path / "model", before, contract("road", "tree", "water"))
    after = network(4, architecture)
    fresh = {key: value.clone() for key, value in after.state_dict().items()}
    with caplog.at_level("INFO", logger="geoseg"):
        start_from(after, "rgb", classes("water", "house", "road", "lawn"), str(tmp_path / "model"))
    old, new = before.state_dict(), after.state_dict()
    heads = [key for key in new if key.startswith("segmentation_head")]
    assert {new[key].ndim for key in heads} == {1, 4}
    for key in new:
        if key in heads:
            assert torch.equal(new[key][0], old[key][2]) and torch.equal(new[key][2], old[key][0])
            assert torch.equal(new[key][1], fresh[key][1]) and torch.equal(new[key][3], fresh[key][3])
        else:
            assert torch.equal(new[key], old[key]), key
    assert "keep their weights: water, road; new ones: house, lawn; left behind: tree" in caplog.text


def test_another_order_of_the_same_classes_is_another_table(tmp_path: Path) -> None:
    before, after = network(2), network(2)
    save_model(tmp_path / "model", before, contract("a", "b"))
    start_from(after, "rgb", classes("b", "a"), str(tmp_path / "model"))
    key = "segmentation_head.weight"
    assert torch.equal(after.state_dict()[key], before.state_dict()[key].flip(0))


def test_another_number_of_bands_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "model", network(2, bands=4), contract("a", "b", bands="rgbn"))
    with pytest.raises(ConfigError, match=r"takes 4 bands \(r, g, b, n\), the configuration has 3") as caught:
        start_from(network(2), "rgb", classes("a", "b"), str(tmp_path / "model"))
    assert "imagery.bands" in str(caught.value.hint)


# --- freezing


def test_frozen_parts_do_not_move(landscapes: Path, tmp_path: Path) -> None:
    frozen = ("encoder.model.model.patch_embed1", "encoder.model.model.block1", "segmentation_head.bias")
    recipe = {"iterations": 2, "val_every": 2, "learning_rate": 0.01}
    changes = {"options": TINY, "start_from": str(tmp_path / "start"), "freeze": list(frozen)}
    config = experiment(landscapes, tmp_path / "run", model=changes, train=recipe)
    names = [c.name for c in config.classes]
    save_model(tmp_path / "start", network(len(names)), contract(*names))
    before = load_model(tmp_path / "start").network.state_dict()
    after = load_model(train(config, device="cpu")).network.state_dict()
    still = {key for key in before if torch.equal(before[key], after[key])}
    for key in before:
        if key.startswith(frozen):
            assert key in still, key  # running statistics and counters of norms too
        elif key.endswith(("weight", "running_mean")):
            assert key not in still, key


def test_unknown_parts_are_named_with_those_there_are() -> None:
    net = network(2)
    with pytest.raises(ConfigError, match="no encodr") as caught:
        freeze(net, ("encodr",))
    assert "encoder, segmentation_head" in str(caught.value.hint)
    with pytest.raises(ConfigError, match=r"no encoder\.model\.model\.block9\.0") as caught:
        freeze(net, ("encoder.model.model.block9.0",))
    assert "encoder.model.model.block1" in str(caught.value.hint)
    freeze(net, ("encoder", "decoder", "segmentation_head"))
    with pytest.raises(ConfigError, match="nothing to train"):
        parameter_groups(net, RunConfig())


def test_ddp_knows_of_parameters_the_loss_does_not_reach() -> None:
    net = network(2)
    assert not leaves_unused(net, 3, 64)
    net.more = nn.Linear(2, 2)
    assert leaves_unused(net, 3, 64)
    freeze(net, ("more",))
    assert not leaves_unused(net, 3, 64)
    assert net.training


# --- moving average


class Norm(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)


def test_the_moving_average_is_that_of_the_weights() -> None:
    task, average = Norm(), MovingAverage(0.5)
    trainer: Any = SimpleNamespace(global_step=0)
    average.setup(trainer, task, "fit")
    state = task.state_dict()
    wanted: dict[str, Tensor] = {}
    for step in range(1, 12):
        for value in state.values():
            value += step
        trainer.global_step = step
        for _ in range(2):  # a second forward of the same step is no step
            average.on_train_batch_end(trainer, task, None, None, 0)
        decay = min(0.5, (1 + step) / (10 + step)) if wanted else 0
        for key, value in state.items():
            if value.is_floating_point():
                wanted[key] = decay * wanted.get(key, 0) + (1 - decay) * value.double()
            else:
                wanted[key] = value.double()
    checkpoint: dict[str, Any] = {"state_dict": state}
    average.on_save_checkpoint(trainer, task, checkpoint)
    found = checkpoint["state_dict"]
    assert found.keys() == wanted.keys() == state.keys()
    for key in wanted:
        torch.testing.assert_close(found[key].double(), wanted[key])
    weights = task.norm.weight.clone()
    average.on_validation_epoch_start(trainer, task)
    torch.testing.assert_close(task.norm.weight.double(), wanted["norm.weight"])
    average.on_validation_epoch_end(trainer, task)
    assert torch.equal(task.norm.weight, weights)


def test_the_average_is_what_is_saved(landscapes: Path, tmp_path: Path) -> None:
    config = experiment(landscapes, tmp_path / "run", train={"ema": 0.9, "iterations": 3})
    saved = load_model(train(config, device="cpu")).network.state_dict()
    best = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    for key, value in saved.items():
        assert torch.equal(best["state_dict"][f"network.{key}"], value), key
    key = "segmentation_head.weight"
    assert not torch.equal(saved[key], best["current_model_state"][f"network.{key}"])
    # The scores are the average's: what it predicts is what was counted.
    task: Any = SimpleNamespace(load_state_dict=lambda state: None)
    assert load_best(task, config.output)["val_miou"] == round(best["val_scores"]["val_miou"], 4)
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    scenes = open_both(config)[1]
    again = SegmentationTask(network(len(config.classes)), load_model(config.output / "model").contract, config.train)
    again.network.load_state_dict(saved)
    (scores,) = trainer.validate(again, DataLoader(CoveringWindows(scenes, config), batch_size=2), verbose=False)
    assert scores["val_miou"] == pytest.approx(best["val_scores"]["val_miou"])


# --- steps


def test_a_step_may_have_several_forwards(landscapes: Path, tmp_path: Path) -> None:
    config = experiment(landscapes, tmp_path / "run", train={"accumulate": 3, "iterations": 4, "val_every": 2})
    with pytest.MonkeyPatch.context() as patch:
        drawn = Recorder(patch)
        train(config, device="cpu")
    assert drawn.drawn == list(range(4 * 3 * 2))
    last = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 4
    assert last["lr_schedulers"][0]["last_epoch"] == 4
    assert len(logged(config.output, "val_miou")) == 2


def logged(run: Path, column: str) -> list[float]:
    with (run / "logs/metrics.csv").open(newline="") as file:
        return [float(row[column]) for row in csv.DictReader(file) if row[column]]


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ({"options": TINY}, {"loss": [{"name": "ohem"}, {"name": "dice", "weight": 0.5}], "class_weights": "balanced"}),
        (UNET, {"loss": [{"name": "lovasz"}, {"name": "focal"}], "precision": "bf16-mixed"}),
    ],
)
def test_every_loss_and_precision_trains(
    landscapes: Path, tmp_path: Path, model: dict[str, Any], changes: dict[str, Any]
) -> None:
    recipe = {"iterations": 1, "val_every": 1, **changes}
    config = experiment(landscapes, tmp_path / "run", model=model, train=recipe)
    train(config, device="cpu")
    (loss,) = logged(config.output, "loss")
    assert 0 < loss < 100


def test_balanced_weights_are_those_of_the_training_scenes(landscapes: Path, tmp_path: Path) -> None:
    from geoseg.data.labelled import open_scenes
    from geoseg.scene import Scene

    config = experiment(landscapes, tmp_path / "run", train={"class_weights": "balanced"})
    found = class_weights(config, open_scenes(config, "train"))
    assert found is not None
    with Scene(landscapes / "a_labels.tif") as labels:
        from geoseg.windows import Window

        values, valid = labels.read(Window(0, 0, 256, 256))
    count = np.bincount(values[0][valid], minlength=len(config.classes))[: len(config.classes)]
    present = count > 0
    assert [weight > 0 for weight in found] == present.tolist()
    order = np.argsort(count[present])
    assert (np.diff(np.array(found)[present][order]) <= 0).all()
    assert class_weights(experiment(landscapes, tmp_path / "run"), []) is None


# --- what goes wrong


class Failing(Dataset[int]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        raise SceneError("scene a.tif cannot be read: block 3 is broken")


def test_an_error_of_a_reading_process_reads_as_it_was_raised() -> None:
    with pytest.raises(SceneError) as caught, explained(RunConfig()):
        next(iter(DataLoader(Failing(), num_workers=1)))
    assert str(caught.value) == "scene a.tif cannot be read: block 3 is broken"


@pytest.mark.parametrize(
    ("error", "words", "hint"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "with 6 windows of 512 px", "batch_size=3 train.accumulate=4 "),
        (RuntimeError("[enforce fail] can't allocate memory"), "this machine is out of memory", "train.batch_size=3"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error."), "shared memory", "--shm-size"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "was killed", "--resume"),
        (ConnectionResetError(104, "Connection reset by peer"), "was killed: Connection reset by peer", "--resume"),
        (EOFError(), "was killed: EOFError", "--resume"),
    ],
)
def test_what_ran_out_is_named(error: Exception, words: str, hint: str) -> None:
    with pytest.raises(DeviceError, match=words) as caught, explained(RunConfig(batch_size=6, accumulate=2)):
        raise error
    assert hint in str(caught.value.hint)


def test_bugs_stay_bugs() -> None:
    with pytest.raises(RuntimeError, match="shape") as caught, explained(RunConfig()):
        raise RuntimeError("shape mismatch")
    assert type(caught.value) is RuntimeError


def test_a_loss_that_is_no_number_names_windows_and_inputs() -> None:
    batch = {"pixels": torch.ones(6, 3, 4, 4), "valid": torch.ones(6, 4, 4, dtype=torch.bool)}
    batch |= {"index": torch.arange(40, 46)}
    watch = LossWatch(RunConfig(), lambda index: f"window {index}")
    watch.note(torch.tensor(1.0), batch, 7, 1e-4)
    assert watch.failure(all_of_them=False) is None
    watch.note(torch.tensor(float("inf")), batch, 8, 2e-4)
    failure = watch.failure(all_of_them=False)
    assert str(failure) == (
        "the loss became inf at iteration 8 with learning rate 0.0002 on window 40; window 41; window 42; window 43 "
        "and 2 more; all its pixels are finite"
    )
    batch["pixels"][2, :, 1, 1] = float("nan")
    batch["pixels"][3, :, 2, 2] = float("nan")
    batch["valid"][3, 2, 2] = False  # nodata may be anything
    watch.note(torch.tensor(float("nan")), batch, 9, 2e-4)
    failure = watch.failure(all_of_them=False)
    assert failure is not None
    assert "3 of its values are not finite" in str(failure) and "imagery.nodata" in str(failure.hint)


# --- pictures, environment, preview


def test_a_picture_shows_imagery_labels_and_prediction() -> None:
    classes = ClassTable.from_names(["a", "b"], ["#ff0000", "#0000ff"])
    valid = torch.ones(8, 8, dtype=torch.bool)
    valid[0] = False
    pixels = torch.rand(4, 8, 8) * 0.1 + 0.2
    labels = torch.tensor([0, 1], dtype=torch.uint8).repeat(8, 4)
    labels[7] = 255
    picture = draw_sample({"pixels": pixels, "valid": valid, "labels": labels}, np.ones((8, 8), int), classes)
    assert picture.shape == (8, 24, 3) and picture.dtype == np.uint8
    imagery, truth, shown = np.split(picture, 3, axis=1)
    assert (imagery[0] == 0).all() and imagery[1:].min() < 10 and imagery[1:].max() > 245
    assert truth[1, 0].tolist() == [255, 0, 0] and truth[1, 1].tolist() == [0, 0, 255]
    assert truth[7, 0].tolist() == shown[0, 0].tolist() == [128, 128, 128]
    assert (shown[1:] == [0, 0, 255]).all()
    grey = stretched(pixels[:2].numpy(), valid.numpy())
    assert (grey[..., 0] == grey[..., 1]).all() and (grey[..., 0] == grey[..., 2]).all()


def test_pictures_reach_tensorboard(landscapes: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = experiment(landscapes, tmp_path / "run", train={"iterations": 2, "val_every": 1})
    train(config, device="cpu")
    log = EventAccumulator(str(tmp_path / "run/logs"))
    log.Reload()
    tags = log.Tags()
    assert tags["images"] == [f"window {i}" for i in range(4)]  # 2 × 2 windows of 128 px
    assert [event.step for event in log.Images("window 0")] == [1, 2]
    assert (log.Images("window 0")[0].width, log.Images("window 0")[0].height) == (3 * 128, 128)
    assert {"loss", "val_miou", "lr-AdamW/pg1"} <= set(tags["scalars"])


def test_the_environment_is_written_down(landscapes: Path, tmp_path: Path) -> None:
    config = experiment(landscapes, tmp_path / "run", train={"iterations": 1, "val_every": 1}, seed=5)
    train(config, device="cpu")
    (start,) = json.loads((tmp_path / "run/environment.json").read_text())
    assert start["seed"] == 5 and start["device"] == "cpu" and start["processes"] == 1
    assert start["versions"]["torch"] == torch.__version__.split("+")[0]
    assert start["command"] and start["python"] and start["platform"]
    assert start["git"].keys() == {"folder", "geoseg"}


def test_the_state_of_a_repository(tmp_path: Path) -> None:
    import subprocess

    assert git_state(tmp_path) is None
    who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    (tmp_path / "file").write_text("a")
    for arguments in (("init", "-q"), ("add", "file"), (*who, "commit", "-q", "-m", "one")):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)
    clean = git_state(tmp_path)
    assert clean is not None and len(clean["commit"]) == 40 and clean["changed"] is False
    (tmp_path / "file").write_text("b")
    assert git_state(tmp_path) == {**clean, "changed": True}


def test_memory_is_estimated_without_touching_the_network(landscapes: Path, tmp_path: Path) -> None:
    net = network(6)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    small, large = saved_bytes(net, 3, 64), saved_bytes(net, 3, 128)
    assert 3 < large / small < 5
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    one, two = (
        memory_bytes(experiment(landscapes, tmp_path, train={"batch_size": n, "size": 256}), net) for n in (1, 2)
    )
    assert two - one == pytest.approx(4 * large)


def test_check_tells_what_the_run_would_be(landscapes: Path, tmp_path: Path) -> None:
    values = settings(landscapes, tmp_path / "run", train={"accumulate": 2})
    done = commands.run("train", write_config(tmp_path / "run.yaml", values), "--check", "--device", "cpu")
    assert done.exit_code == 0, done.stderr
    assert "1 warning" in done.stdout and "class 'water' occurs in no training scene" in done.stdout
    assert "4 windows of 64 px: 2 at a time, 2 forward passes on 1 device" in done.stdout
    assert "4 windows of 128 px every 3 iterations" in done.stdout
    assert "GiB on each device" in done.stdout
    assert not (tmp_path / "run").exists()


def test_check_tells_all_that_is_wrong(landscapes: Path, tmp_path: Path) -> None:
    values = settings(landscapes, tmp_path / "run")
    values["data"]["train"][0]["labels"] = str(landscapes / "none.tif")
    values["data"]["val"][0]["scene"] = str(landscapes / "nothing.tif")
    path = write_config(tmp_path / "run.yaml", values)
    done = commands.run("train", str(path), "--check", "--device", "cpu")
    assert done.exit_code == 2
    assert "none.tif" in done.stdout and "nothing.tif" in done.stdout and "2 errors" in done.stdout
    refused = commands.run("train", str(path), "--device", "cpu")
    assert refused.exit_code == 2
    assert "none.tif" in refused.stderr and "nothing.tif" in refused.stderr
    assert not (tmp_path / "run").exists()
