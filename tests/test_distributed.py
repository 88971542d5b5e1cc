"""Several processes on a CPU train as one does, and end as one."""

from __future__ import annotations

import csv
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from timm.layers import BatchNormAct2d, SyncBatchNormAct, convert_sync_batchnorm
from torch import Tensor, nn

from geoseg.config.settings import RunConfig
from geoseg.contract import Band, ClassEntry, Contract
from geoseg.errors import ConfigError, DeviceError
from geoseg.options import TrainOptions
from geoseg.programs.train import _build, train
from geoseg.training.callbacks import Checkpoints, NormsOfFirst
from geoseg.training.failures import RunStopped
from geoseg.training.processes import PeerEnded, Place, Team, count_devices, find_place, launch
from geoseg.training.task import SegmentationTask
from support.commands import succeed
from support.processes import fresh_processes
from support.training import experiment, settings, write_config

NO_BATCH_NORMS = {
    "architecture": "unet",
    "encoder": "tu-convnext_atto",
    "options": {"encoder_depth": 4, "decoder_channels": [32, 16, 16, 8], "decoder_use_norm": "identity"},
}
RECIPE = {"learning_rate": 1e-4, "decoder_lr_factor": 1, "warmup_iterations": 0, "iterations": 4, "val_every": 2}


# --- a run


def test_two_processes_train_what_one_does(landscapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 × 4 windows a step equal 1 × 8, through losses, sampler and scores."""
    one = experiment(landscapes, tmp_path / "one", model=NO_BATCH_NORMS, train={**RECIPE, "batch_size": 8})
    two = settings(landscapes, tmp_path / "two", model=NO_BATCH_NORMS, train={**RECIPE, "batch_size": 4})
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config = write_config(tmp_path / "two.yaml", two)
    assert succeed("train", "--device", "cpu", "--devices", 2, config) == f"{tmp_path / 'two/model'}\n"
    trained = (
        load_file(train(one, device="cpu") / "model.safetensors"),
        load_file(tmp_path / "two/model/model.safetensors"),
    )

    logs = [list(csv.DictReader((tmp_path / n / "logs/metrics.csv").open())) for n in ("one", "two")]
    for key, tolerance in (("loss", 1e-5), ("val_miou", 1e-3)):
        values = [[float(row[key]) for row in rows if row[key]] for rows in logs]
        assert len(values[0]) == 2
        np.testing.assert_allclose(*values, rtol=tolerance)

    changes: list[Tensor] = []
    differences: list[Tensor] = []
    lightning.seed_everything(one.seed, verbose=False)
    start = _build(one)[0].state_dict()
    assert trained[0].keys() == trained[1].keys() == start.keys()
    for key, value in start.items():
        if value.is_floating_point():
            changes.append((trained[0][key] - value).flatten())
            differences.append((trained[0][key] - trained[1][key]).flatten())
    change, difference = torch.cat(changes).norm(), torch.cat(differences).norm()
    assert change > 0.1
    assert difference < 0.02 * change
    assert (tmp_path / "two/environment.json").read_text().count('"processes": 2') == 1


KILLED = """
import os, signal, time
if os.environ["RANK"] == "1":
    while not os.path.exists(HERE):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
from geoseg.training.processes import PeerEnded, assignment
with assignment():
    open(HERE, "w").close()
    raise PeerEnded("another process is gone")
"""


def test_a_killed_process_is_reported_not_its_consequences(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="process 1 of the run was killed by SIGKILL") as caught:
        launch({}, f"HERE = {str(tmp_path / 'here')!r}\n{KILLED}", devices=2)
    assert "--resume" in str(caught.value.hint)


def test_a_signal_before_the_first_step_is_no_failure(tmp_path: Path) -> None:
    """As where SLURM stops a run that still checks its labels, and wants it in the queue again."""
    here = tmp_path / "here"

    def stop() -> None:
        while not here.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(RunStopped, match="stopped by a signal before the first iteration"):
        launch({}, f"import time; open({str(here)!r}, 'w').close(); time.sleep(600)", devices=2)


FAILING = """
import os, time
if os.environ["RANK"] == "0":
    time.sleep(600)
from geoseg.errors import ConfigError
from geoseg.training.processes import assignment
with assignment() as task:
    raise ConfigError(task["message"], hint="another one")
"""


def test_a_failure_of_one_process_ends_all_and_is_reported() -> None:
    begin = time.monotonic()
    with pytest.raises(ConfigError, match="no such thing") as caught:
        launch({"message": "no such thing"}, FAILING, devices=2)
    assert caught.value.hint == "another one"
    assert time.monotonic() - begin < 300


def agree(team: Team, rank: int) -> None:
    with team.same_fate():
        pass
    assert team.from_first(lambda: f"made by {rank}") == "made by 0"
    assert team.worst(rank + 3) == 4
    for failing, kind in ((1, (PeerEnded, ConfigError)[rank]), (0, (ConfigError, PeerEnded)[rank])):
        with pytest.raises(kind) as caught, team.same_fate():
            if rank == failing:
                raise ConfigError("wrong")
        assert str(caught.value) == ("wrong" if rank == failing else f"process {failing} of the run ended: wrong")
    with pytest.raises(ConfigError if rank == 0 else PeerEnded), team.same_fate():
        raise ConfigError("wrong in both")


def share(team: Team, rank: int, folder: Path) -> None:
    recipe = RunConfig()
    bands = (Band(name="grey", mean=0.5, std=0.25),)
    classes = (ClassEntry(name="a", color="#000000"), ClassEntry(name="b", color="#ffffff"))
    contract = Contract(name="x", bands=bands, dtype="uint8", scale=1 / 255, classes=classes)
    task = SegmentationTask(nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)), contract, recipe)
    norm: Any = task.network[0]
    norm.running_mean.fill_(rank + 1.0)
    norm.running_var.fill_(rank + 3.0)
    none: Any = None
    NormsOfFirst().on_train_batch_end(none, task, none, none, 0)
    assert norm.running_mean.tolist() == [1, 1] and norm.running_var.tolist() == [3, 3]

    # A loss that is no number in the second process is reported by the second one.
    checkpoints = Checkpoints(folder, recipe, team)
    assert checkpoints._agree(task, all_of_them=True) is False
    batch = {"pixels": torch.ones(1, 1, 2, 2), "valid": torch.ones(1, 2, 2, dtype=torch.bool)}
    task.watch.note(torch.tensor(float("nan") if rank else 1.0), batch, 5, 0.1)
    with pytest.raises(ConfigError if rank else PeerEnded) as caught:
        checkpoints._agree(task, all_of_them=True)
    assert ("became nan at iteration 5" if rank else "process 1 of the run") in str(caught.value)
    # A signal to one is a signal to all.
    checkpoints.on_train_batch_start(none, task, none, 0)
    if rank == 1:
        checkpoints._note(15, None)
    assert checkpoints._agree(task, all_of_them=True) is True


def test_processes_share_statistics_failures_and_signals(tmp_path: Path) -> None:
    fresh = fresh_processes()
    processes = [fresh.Process(target=one_of_two, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0


def one_of_two(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    team = Team(torch.device("cpu"), place(rank, 2), dist.group.WORLD)
    agree(team, rank)
    share(team, rank, folder)
    dist.destroy_process_group()
    # Threads of gloo may outlive their group by a moment, and an interpreter that ends then aborts.
    sys.stdout.flush()
    os._exit(0)


# --- norms


class Norms(nn.Module):
    """Batch norms of every kind that is replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 5, 3)
        self.norm = nn.BatchNorm2d(5)
        self.acting = BatchNormAct2d(5, act_layer=nn.SiLU)
        self.last = nn.Sequential(nn.Conv2d(5, 4, 1), nn.BatchNorm2d(4, momentum=None, affine=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.acting(self.norm(self.first(x))))


def test_converted_norms_are_the_same_network() -> None:
    torch.manual_seed(3)
    network = Norms()
    network(torch.randn(6, 3, 9, 7) * 3 + 20)  # statistics
    network.eval()
    keys, x = list(network.state_dict()), torch.randn(2, 3, 9, 7)
    before = network(x)
    convert_sync_batchnorm(network)
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert [type(norm) for norm in norms] == [nn.SyncBatchNorm, SyncBatchNormAct, nn.SyncBatchNorm]
    assert list(network.state_dict()) == keys
    assert torch.equal(network(x), before)
    Norms().load_state_dict(network.state_dict())


# --- places


def place(rank: int, size: int) -> Place:
    return Place(rank, size, rank, size, "127.0.0.1", 1)


def test_batches_of_all_processes_follow_each_other() -> None:
    shares = [Team(torch.device("cpu"), place(rank, 3)).share(24) for rank in range(3)]
    steps = [[list(share)[s * 2 : s * 2 + 2] for share in shares] for s in range(4)]
    assert [sorted(i for batch in step for i in batch) for step in steps] == [
        list(range(s * 6, s * 6 + 6)) for s in range(4)
    ]
    # Of 7 validation windows none is repeated and none left out.
    shares = [Team(torch.device("cpu"), place(rank, 3)).share(7) for rank in range(3)]
    assert sorted(i for share in shares for i in share) == list(range(7))


def test_the_place_is_what_the_launcher_says() -> None:
    assert find_place({}) is None
    assert find_place({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) is None  # the batch script itself, before srun
    torchrun = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert find_place({**torchrun, "MASTER_ADDR": "n1", "MASTER_PORT": "29400"}) == Place(5, 8, 1, 4, "n1", 29400)
    slurm = {
        "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_PROCID": "6",
        "SLURM_LOCALID": "2",
        "SLURM_JOB_ID": "1234567",
        "SLURM_STEP_NODELIST": "gpu[03-04,9],other",
    }
    assert find_place(slurm) == Place(6, 8, 2, 4, "gpu03", 24567)
    assert find_place({**slurm, "MASTER_ADDR": "n1", "MASTER_PORT": "1"}) == Place(6, 8, 2, 4, "n1", 1)
    with pytest.raises(ConfigError, match="8 processes on 3 machines"):
        find_place({**slurm, "SLURM_STEP_NUM_NODES": "3"})


@pytest.mark.parametrize("devices", ["two", "0", -1, "1.5"])
def test_what_is_no_number_of_devices_is_refused(devices: Any) -> None:
    with pytest.raises(ConfigError, match="is not a number of devices"):
        TrainOptions(devices=devices)


def test_devices_are_counted() -> None:
    assert count_devices("cpu", "auto") == 1
    assert count_devices("cpu", "3") == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_several_machines_need_their_addresses(
    landscapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ConfigError, match="--nodes 2 needs MASTER_ADDR, MASTER_PORT, NODE_RANK"):
        train(experiment(landscapes, tmp_path / "run"), device="cpu", nodes=2)
    with pytest.raises(DeviceError):
        train(experiment(landscapes, tmp_path / "run"), device="cuda", devices=2)
