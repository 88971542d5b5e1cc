"""The processes of a training run, one per device: their places, what they agree on, and how all end when one fails.

torchrun, SLURM or `launch` starts them; each finds its place in its environment. Devices communicate over torch's
default group, the processes themselves over a second group on the CPU with a long timeout.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import geoseg.errors
from geoseg.errors import ConfigError, DeviceError, GeosegError, in_one_line
from geoseg.runtime.machine import processors, resolve_device
from geoseg.training.failures import GO_ON, NOT_BEGUN, RunStopped

T = TypeVar("T")

PATIENCE = timedelta(days=2)
"""How long processes wait for the one that checks labels or counts classes."""

GRACE_S = 2.0
"""How long a process whose peer has failed waits, so that the peer can report why before the launcher ends all."""

_OPTIONS: dict[str, Any] = {
    "signals_to_handle": "SIGTERM,SIGINT",  # torch 2.9; before, SIGHUP ends a run in spite of nohup
    "shutdown_timeout": int(PATIENCE.total_seconds()),  # torch 2.12; before, a checkpoint must be written in 30 s
}
_TASK = "task.json"


class PeerEnded(DeviceError):
    """Another process of the run has failed, and reports why itself."""


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a process in the run."""

    rank: int  # its number, from 0
    size: int  # number of processes
    local_rank: int  # its number on its machine
    local_size: int  # number of processes on its machine
    address: str  # machine of the first process
    port: int  # port it listens on


def find_place(environ: Mapping[str, str] = os.environ) -> Place | None:
    """The place that torchrun, SLURM's srun or our launcher gave this process; None for a single process.

    A `ConfigError` if SLURM starts unequal numbers of processes on its machines.
    """
    if all(key in environ for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")):  # torchrun's
        size, local = int(environ["WORLD_SIZE"]), int(environ["LOCAL_RANK"])
        local_size = int(environ.get("LOCAL_WORLD_SIZE", size))
        address, port = environ["MASTER_ADDR"], int(environ["MASTER_PORT"])
        return Place(int(environ["RANK"]), size, local, local_size, address, port)
    size = int(environ.get("SLURM_STEP_NUM_TASKS", 1))
    if size == 1:
        return None
    nodes = int(environ.get("SLURM_STEP_NUM_NODES", 1))
    if size % nodes:
        raise ConfigError(
            f"SLURM starts {size} processes on {nodes} machines", hint="give --ntasks-per-node, one for each GPU"
        )
    # Lightning takes 3 s to load, which the launcher and what it starts first do without.
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    first = SLURMEnvironment.resolve_root_node_address(environ.get("SLURM_STEP_NODELIST", "127.0.0.1"))
    port = 20_000 + int(environ.get("SLURM_JOB_ID", 0)) % 10_000
    return Place(
        int(environ["SLURM_PROCID"]),
        size,
        int(environ["SLURM_LOCALID"]),
        size // nodes,
        environ.get("MASTER_ADDR", first),
        int(environ.get("MASTER_PORT", port)),
    )


class Team:
    """This process among those of the run; a single one has no place, and agrees with itself."""

    def __init__(self, device: torch.device, place: Place | None = None, control: Any = None) -> None:
        self.device, self.place, self._control = device, place, control
        self.rank, self.size = (place.rank, place.size) if place is not None else (0, 1)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def share(self, windows: int) -> range:
        """Every n-th window, from this process's own number: the batches of all processes follow each other."""
        return range(self.rank, windows, self.size)

    @contextmanager
    def same_fate(self) -> Iterator[None]:
        """A failure in one process ends all: a `PeerEnded` in those that did not fail first."""
        error: Exception | None = None
        try:
            yield
        except Exception as own:
            error = own
        texts = [None if error is None else str(error) or type(error).__name__]
        if self._control is not None:
            mine, texts = texts[0], [None] * self.size
            dist.all_gather_object(texts, mine, group=self._control)
        failed = [(rank, text) for rank, text in enumerate(texts) if text is not None]
        if not failed:
            return
        if error is not None and (failed[0][0] == self.rank or not isinstance(error, GeosegError)):
            raise error
        raise PeerEnded(f"process {failed[0][0]} of the run ended: {failed[0][1]}") from error

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, given to all."""
        made: list[Any] = [None]
        with self.same_fate():
            if self.is_first:
                made = [make()]
        if self._control is not None:
            dist.broadcast_object_list(made, src=0, group=self._control)
        value: T = made[0]
        return value

    def worst(self, state: int) -> int:
        """The largest of the processes' numbers."""
        if self._control is None:
            return state
        largest = torch.tensor([state])
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self._control)
        return int(largest)


@contextmanager
def joined(device: str, place: Place | None) -> Iterator[Team]:
    """This process as one of the run's; a `DeviceError` for no such device, or a numbered one for several processes."""
    if place is None or place.size == 1:
        yield Team(torch.device(resolve_device(device)))
        return
    target = local_device(device, place)
    # As torchrun does; Lightning reads these.
    os.environ |= {
        "MASTER_ADDR": place.address,
        "MASTER_PORT": str(place.port),
        "WORLD_SIZE": str(place.size),
        "RANK": str(place.rank),
        "LOCAL_RANK": str(place.local_rank),
        "GROUP_RANK": str(place.rank // place.local_size),
    }
    backend = "gloo" if target.type == "cpu" else "nccl"
    dist.init_process_group(backend, init_method="env://", rank=place.rank, world_size=place.size)
    try:
        yield Team(target, place, dist.new_group(backend="gloo", timeout=PATIENCE))
    except RuntimeError as error:
        gone = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed", "NCCL")
        if any(words in str(error) for words in gone):
            raise PeerEnded(f"another process of the run is gone: {in_one_line(error)}") from error
        raise
    finally:
        dist.destroy_process_group()


def local_device(device: str, place: Place) -> torch.device:
    """The device of one of several processes of a machine: each has its own GPU."""
    target = torch.device(resolve_device(device))
    if target.type == "cpu":
        return target
    if target.index is not None:
        raise DeviceError(f"--device {device} is one GPU for several processes", hint="--device cuda")
    if torch.cuda.device_count() < place.local_size:
        raise DeviceError(
            f"{place.local_size} processes of this machine see {torch.cuda.device_count()} GPUs",
            hint="start one process for each GPU; under SLURM each must see all of them: srun --gpu-bind=none",
        )
    torch.cuda.set_device(place.local_rank)
    return torch.device("cuda", place.local_rank)


# --- started here


def count_devices(device: str, devices: int | str) -> int:
    """Number of devices that "auto" or a number means; a `DeviceError` for more GPUs than there are or are named."""
    target = torch.device(resolve_device(device))
    there = torch.cuda.device_count() if target.type == "cuda" else 1
    if devices == "auto":
        return there if target.index is None else 1
    count = int(devices)
    if target.type == "cuda" and count > there:
        raise DeviceError(f"{count} GPUs requested, this machine has {there}", hint="--devices auto")
    if target.index is not None and count > 1:
        raise DeviceError(f"--device {device} is one GPU, --devices asks for {count}", hint="--device cuda")
    return count


def launch(task: Mapping[str, Any], program: str, *, devices: int, nodes: int = 1) -> None:
    """Run Python code in several processes on this machine and wait for them; `assignment` gives them the task.

    With several nodes, each calls this, with MASTER_ADDR, MASTER_PORT and NODE_RANK set.

    Raises:
        GeosegError: The error of the first process that failed.
        RunStopped: A signal stopped the run after a checkpoint.
        KeyboardInterrupt: Ctrl-C.
        RuntimeError: A process ended with a bug of ours, whose traceback it has printed.
    """
    known = {field.name for field in fields(LaunchConfig)}
    options = {key: value for key, value in _OPTIONS.items() if key in known} | _meeting(nodes)
    level = logging.getLogger("geoseg").getEffectiveLevel()
    with tempfile.TemporaryDirectory(prefix="geoseg-train-") as name, _as_before():
        folder = Path(name)
        (folder / _TASK).write_text(json.dumps({**task, "log_level": level, "launcher": os.getpid()}), encoding="utf-8")
        config = LaunchConfig(
            nodes, nodes, devices, run_id="geoseg", max_restarts=0, logs_specs=DefaultLogsSpecs(name), **options
        )
        try:
            elastic_launch(config, sys.executable)("-c", program, name)
        except ChildFailedError as error:
            _report(folder, {rank: failure.exitcode for rank, failure in error.failures.items()})
        except SignalException as error:
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from error
            _report(folder, {0: -signal.SIGTERM})


@contextmanager
def assignment() -> Iterator[dict[str, Any]]:
    """In a process of `launch`: its task. It ends with the launcher, which reports expected errors."""
    folder = Path(sys.argv[1])
    task: dict[str, Any] = json.loads((folder / _TASK).read_text(encoding="utf-8"))
    threading.Thread(target=_end_with, args=(task.pop("launcher"),), daemon=True).start()
    os.dup2(2, 1)  # standard output belongs to the launcher
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(processors() // int(os.environ["LOCAL_WORLD_SIZE"]), 1))
    level = task.pop("log_level")
    logging.basicConfig(level=logging.CRITICAL, format="%(message)s")
    logging.getLogger("geoseg").setLevel(level if os.environ["RANK"] == "0" else logging.ERROR)
    try:
        yield task
    except (GeosegError, RunStopped) as error:
        if isinstance(error, PeerEnded):
            time.sleep(GRACE_S)
        words = {"kind": type(error).__name__, "message": str(error), "hint": getattr(error, "hint", None)}
        path = folder / f"{int(os.environ['RANK']):06}.word"
        path.with_suffix(".part").write_text(json.dumps(words), encoding="utf-8")
        path.with_suffix(".part").replace(path)
        raise SystemExit(error.exit_code) from error
    except KeyboardInterrupt as error:
        raise SystemExit(128 + signal.SIGINT) from error


def _meeting(nodes: int) -> dict[str, Any]:
    """Options for the rendezvous of all machines' launchers."""
    if nodes == 1:
        return {"rdzv_backend": "c10d", "rdzv_endpoint": "127.0.0.1:0", "local_addr": "127.0.0.1"}
    lacking = [key for key in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if key not in os.environ]
    if lacking:
        raise ConfigError(
            f"--nodes {nodes} needs {', '.join(lacking)} in the environment",
            hint="on each machine: MASTER_ADDR=FIRST_MACHINE MASTER_PORT=29500 NODE_RANK=0 geoseg train …",
        )
    endpoint = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    rank = int(os.environ["NODE_RANK"])
    return {"rdzv_backend": "static", "rdzv_endpoint": endpoint, "rdzv_configs": {"rank": rank}}


@contextmanager
def _as_before() -> Iterator[None]:
    """Restore signal handlers after torch's launcher, and silence its log of what we report."""
    elastic = logging.getLogger("torch.distributed.elastic")
    elastic.addHandler(logging.NullHandler())
    elastic.propagate = False
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]
    handlers = [signal.getsignal(number) for number in numbers]
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in zip(numbers, handlers, strict=True):
                signal.signal(number, handler)


def _report(folder: Path, codes: Mapping[int, int]) -> None:
    """Raise the cause of a run's end; ``codes`` are the exit codes of its failed processes, the first to fail first."""
    words = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.word"))]
    for word in words:
        if word["kind"] == RunStopped.__name__:
            raise RunStopped(word["message"])
        if word["kind"] != PeerEnded.__name__:
            raise getattr(geoseg.errors, word["kind"], GeosegError)(word["message"], hint=word["hint"])
    if next(iter(codes.values())) == -signal.SIGTERM:
        raise RunStopped(NOT_BEGUN)
    for rank, code in codes.items():
        if code < 0 and code != -signal.SIGTERM:  # which the launcher sends to the others
            raise DeviceError(
                f"process {rank} of the run was killed by {signal.Signals(-code).name}",
                hint=f"{GO_ON}; if memory ran out, lower train.batch_size or train.workers",
            )
    raise RuntimeError(f"the processes of the run ended with exit codes {dict(codes)}")


def _end_with(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(1)
    os._exit(1)
