"""A run that is killed goes on as if nothing had been: the same bits at the end."""

from __future__ import annotations

import contextlib
import csv
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from geoseg.config import parse_config
from geoseg.errors import ConfigError, OutputError
from geoseg.programs.train import train
from geoseg.training.callbacks import _link
from geoseg.training.display import MetricsTable
from support.processes import Started, pause_training
from support.training import Recorder, experiment, settings, write_config

TRAIN = ["train", "--device", "cpu"]
RECIPE = {"iterations": 14, "val_every": 7, "checkpoint_every": 2, "workers": 1, "ema": 0.9, "patience": 5}


def wait_for(path: Path, run: Started) -> None:
    end = time.monotonic() + 180
    while not path.exists():
        assert run.poll() is None and time.monotonic() < end, "the run has not come so far"
        time.sleep(0.01)


def readers(run: Started | subprocess.Popen[str], count: int) -> list[int]:
    """The processes that read windows, once there are so many."""
    end = time.monotonic() + 180
    while True:
        assert run.poll() is None and time.monotonic() < end, "the run has not come so far"
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        with contextlib.suppress(FileNotFoundError):  # a child that has just ended
            found = [int(c) for c in children if b"resource_tracker" not in Path(f"/proc/{c}/cmdline").read_bytes()]
            if len(found) >= count:
                return found
        time.sleep(0.01)


def load(path: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    return checkpoint


def assert_equal(found: Any, wanted: Any, where: str) -> None:
    """The same numbers, to the bit."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), where
        for key in wanted:
            assert_equal(found[key], wanted[key], f"{where}.{key}")
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted), where
        for i, (one, other) in enumerate(zip(found, wanted, strict=True)):
            assert_equal(one, other, f"{where}.{i}")
    elif isinstance(wanted, torch.Tensor):
        assert torch.equal(found, wanted), where
    else:
        assert found == wanted or (found != found and wanted != wanted), where


def test_a_killed_run_ends_in_the_same_bits(landscapes: Path, tmp_path: Path) -> None:
    """Drop path, dropout, moving average, AdamW's moments, the best score: all as in the run that was left alone."""
    whole = experiment(landscapes, tmp_path / "whole", train=RECIPE)
    train(whole, device="cpu")

    values = settings(landscapes, tmp_path / "cut", train=RECIPE)
    last = tmp_path / "cut/checkpoints/last.ckpt"
    with Started(*TRAIN, write_config(tmp_path / "cut.yaml", values), before=partial(pause_training, 5)) as run:
        wait_for(last, run)
        run.kill()
    step = load(last)["global_step"]
    assert 0 < step < 14
    assert not (tmp_path / "cut/model").exists()
    cut = parse_config(values, source="test")
    train(cut, resume=True, device="cpu")

    models = [load_file(tmp_path / name / "model/model.safetensors") for name in ("cut", "whole")]
    assert_equal(*models, "model")
    folders = [tmp_path / name / "checkpoints" for name in ("cut", "whole")]
    lasts, bests = ([load(folder / name) for folder in folders] for name in ("last.ckpt", "best.ckpt"))
    for key in (
        *("global_step", "state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers"),
        *("callbacks", "val_scores"),
    ):
        if key == "callbacks":
            for kind in ("Checkpoints", "MovingAverage"):
                assert_equal(lasts[0][key][kind], lasts[1][key][kind], kind)
        else:
            assert_equal(lasts[0][key], lasts[1][key], key)
            assert_equal(bests[0][key], bests[1][key], key)
    # The average is another network than the weights it is the average of.
    average, weights = (
        lasts[0][key]["network.segmentation_head.weight"] for key in ("state_dict", "current_model_state")
    )
    assert not torch.allclose(average, weights, rtol=1e-3)
    # One table of the whole run; every row once.
    rows = [list(csv.DictReader((tmp_path / n / "logs/metrics.csv").open())) for n in ("cut", "whole")]
    tables = [[(row["step"], row["loss"], row["val_miou"]) for row in table] for table in rows]
    assert tables[0] == tables[1]
    assert (tmp_path / "cut/environment.json").read_text().count('"started"') == 2


def test_a_killed_reader_and_a_signal_end_the_run_in_words(landscapes: Path, tmp_path: Path) -> None:
    endless = {"iterations": 100_000, "val_every": 100_000, "checkpoint_every": 2, "workers": 1}
    path = write_config(tmp_path / "run.yaml", settings(landscapes, tmp_path / "run", train=endless))
    last = tmp_path / "run/checkpoints/last.ckpt"
    with Started(*TRAIN, path) as run:
        wait_for(last, run)
        os.kill(readers(run, 1)[0], signal.SIGKILL)
        _, complaints = run.communicate(timeout=120)
    assert run.returncode == 2, complaints
    assert complaints.count("error:") == 1 and "Traceback" not in complaints
    assert all(text in complaints for text in ("a process that reads windows was killed", "--resume", "train.workers"))
    step = load(last)["global_step"]
    assert step >= 2

    before = last.stat().st_mtime
    table = tmp_path / "run/logs/metrics.csv"
    table.unlink(missing_ok=True)
    with Started(*TRAIN, path, "--resume", "train.checkpoint_every=100000") as run:
        wait_for(table, run)  # it is written every ten iterations
        for reader in readers(run, 1):
            os.kill(reader, signal.SIGTERM)  # SLURM sends it to all processes
        time.sleep(0.5)
        run.send_signal(signal.SIGTERM)
        _, complaints = run.communicate(timeout=120)
    assert run.returncode == 143, complaints
    assert last.stat().st_mtime > before
    found = re.search(r"stopped by a signal after iteration (\d+); continue with --resume", complaints)
    assert found is not None and int(found.group(1)) == load(last)["global_step"] > step


@pytest.mark.parametrize("what", ["SIGTERM to all", "a killed reader"])
def test_an_interrupted_validation_ends_all_processes(landscapes: Path, tmp_path: Path, what: str) -> None:
    endless = {"iterations": 100_000, "val_every": 2, "checkpoint_every": 1, "workers": 2}
    path = write_config(tmp_path / "run.yaml", settings(landscapes, tmp_path / "run", train=endless))
    with Started(*TRAIN, path) as run:
        processes = readers(run, 4)  # two of the training, two of the validation that has just begun
        if what == "SIGTERM to all":
            for process in (*processes, run.pid):
                os.kill(process, signal.SIGTERM)
        else:
            os.kill(processes[0], signal.SIGKILL)
        _, complaints = run.communicate(timeout=60)  # not before the readers have ended, too: they hold the pipe
    assert run.returncode == (143 if what == "SIGTERM to all" else 2), complaints
    assert "Traceback" not in complaints
    step = load(tmp_path / "run/checkpoints/last.ckpt")["global_step"]
    assert step == 2 if what == "SIGTERM to all" else step == 1


def test_a_signal_to_all_while_readers_start_ends_the_run(landscapes: Path, tmp_path: Path) -> None:
    """Spawned ones take seconds to start."""
    endless = {"iterations": 100_000, "val_every": 100_000, "workers": 2}
    path = write_config(tmp_path / "run.yaml", settings(landscapes, tmp_path / "run", train=endless))
    program = "import multiprocessing as m; m.set_start_method('spawn'); from geoseg.cli import main; main()"
    command = [sys.executable, "-c", program, *TRAIN, str(path)]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for process in (*readers(run, 2), run.pid):
        os.kill(process, signal.SIGTERM)
    _, complaints = run.communicate(timeout=60)
    assert run.returncode == 143, complaints
    assert "stopped by a signal before the first iteration" in complaints and "Traceback" not in complaints


def test_as_many_windows_may_come_in_other_portions(landscapes: Path, tmp_path: Path) -> None:
    """What the advice after running out of memory says: half the batch, twice the forwards."""
    recipe = {"batch_size": 4, "iterations": 4, "val_every": 2, "checkpoint_every": 1}
    with pytest.MonkeyPatch.context() as patch:
        Recorder(patch, fail_at=13)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            train(experiment(landscapes, tmp_path / "run", train=recipe), device="cpu")
    last = tmp_path / "run/checkpoints/last.ckpt"
    done = load(last)["global_step"]
    assert done in (2, 3)
    config = experiment(landscapes, tmp_path / "run", train=recipe | {"batch_size": 2, "accumulate": 2})
    with pytest.MonkeyPatch.context() as patch:
        after = Recorder(patch)
        train(config, resume=True, device="cpu")
    assert after.drawn[: 16 - 4 * done] == list(range(4 * done, 16))
    assert load(last)["global_step"] == 4
    rows = list(csv.DictReader((tmp_path / "run/logs/metrics.csv").open()))
    assert [row["step"] for row in rows if row["val_miou"]] == ["1", "3"]  # after 2 and after 4 iterations
    with pytest.raises(ConfigError, match=r"began with .*: 4 windows made a step, now 8 would"):
        train(experiment(landscapes, tmp_path / "run", train=recipe | {"accumulate": 2}), resume=True, device="cpu")


def test_a_run_without_progress_ends_early_and_stays_ended(
    landscapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With no learning every validation is like the first.
    still = {"learning_rate": 1e-12, "weight_decay": 0, "iterations": 50, "val_every": 1, "patience": 1, "size": 32}
    config = experiment(landscapes, tmp_path / "run", train=still | {"ema": 0.999})
    train(config, device="cpu")
    checkpoint = load(tmp_path / "run/checkpoints/last.ckpt")
    step = checkpoint["global_step"]
    assert checkpoint["callbacks"]["Checkpoints"]["since_best"] == 1 and step < 20
    again = train(config, resume=True, device="cpu")
    assert again.exists()
    assert load(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == step


def test_a_full_disk_leaves_the_checkpoint_before(
    landscapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lightning

    config = experiment(landscapes, tmp_path / "run", train={"checkpoint_every": 1, "val_every": 6})
    save = lightning.Trainer.save_checkpoint

    def full(trainer: lightning.Trainer, path: Any, *args: Any) -> None:
        if trainer.global_step == 2:
            Path(path).write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        save(trainer, path, *args)

    monkeypatch.setattr(lightning.Trainer, "save_checkpoint", full)
    with pytest.raises(OutputError, match="No space left on device") as caught:
        train(config, device="cpu")
    assert "--resume" in str(caught.value.hint)
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == ["last.ckpt"]
    assert load(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 1


def test_a_checkpoint_has_two_names_or_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "last").write_text("new")
    (tmp_path / "best").write_text("old")
    _link(tmp_path / "last", tmp_path / "best")
    assert (tmp_path / "best").samefile(tmp_path / "last")

    def no_links(*args: Any) -> None:
        raise OSError("this disk has no links")

    monkeypatch.setattr(os, "link", no_links)
    _link(tmp_path / "last", tmp_path / "best")
    assert (tmp_path / "best").read_text() == "new" and not (tmp_path / "best").samefile(tmp_path / "last")


def test_the_table_keeps_what_was_before_the_checkpoint(tmp_path: Path) -> None:
    table = MetricsTable(tmp_path / "metrics.csv")
    for step in range(4):
        table.log_metrics({"loss": step / 2, "epoch": 0}, step)
    table.log_metrics({"val_miou": 0.5}, 3)
    again = MetricsTable(tmp_path / "metrics.csv", start=3)
    again.log_metrics({"loss": 9.0}, 3)
    again.log_metrics({"loss": 8.5}, 4)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "step,loss,val_miou",
        "0,0.0,",
        "1,0.5,",
        "2,1.0,",
        "3,9.0,",
        "4,8.5,",
    ]
    # Half a row, as a killed run leaves it
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text() + "1")
    MetricsTable(path, start=4).log_metrics({"loss": 7.0}, 4)
    assert [line.split(",")[0] for line in path.read_text().splitlines()] == ["step", "0", "1", "2", "3", "4"]


def test_what_follows_the_last_interval_is_validated_too(landscapes: Path, tmp_path: Path) -> None:
    config = experiment(landscapes, tmp_path / "run", train={"iterations": 5, "val_every": 3})
    train(config, device="cpu")
    rows = list(csv.DictReader((tmp_path / "run/logs/metrics.csv").open()))
    assert [row["step"] for row in rows if row["val_miou"]] == ["2", "4"]
    # Nothing is left to do, and the damage is reported before anything is done.
    before = (tmp_path / "run/checkpoints/last.ckpt").stat().st_mtime_ns
    train(config, device="cpu", resume=True)
    assert (tmp_path / "run/checkpoints/last.ckpt").stat().st_mtime_ns == before
    for name in ("best.ckpt", "last.ckpt"):
        path = tmp_path / "run/checkpoints" / name
        whole = path.read_bytes()
        path.unlink()  # the other name of the same file stays
        path.write_bytes(whole[:5000])
        with pytest.raises(ConfigError, match=f"checkpoint .*{name} cannot be read"):
            train(config, device="cpu", resume=True)
        path.unlink()
        path.write_bytes(whole)
    (tmp_path / "run/checkpoints/best.ckpt").unlink()
    with pytest.raises(ConfigError, match=r"best\.ckpt cannot be read: No such file"):
        train(config, device="cpu", resume=True)


def test_a_full_disk_for_the_table_is_reported(
    landscapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = experiment(landscapes, tmp_path / "run")

    def full(table: MetricsTable, metrics: dict[str, float], step: int | None = None) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MetricsTable, "log_metrics", full)
    with pytest.raises(OutputError, match=r"cannot write into run folder .*run: No space left"):
        train(config, device="cpu")
