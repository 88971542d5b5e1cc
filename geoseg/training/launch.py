"""The processes of a run on this machine, started by torch's elastic launcher: all end when one fails.

Lightning would start them by running the current program again, which is wrong in a notebook, a test, or a script
without a guard, and if one of them fails, the others wait for it.
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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import geoseg.errors
from geoseg.errors import ConfigError, DeviceError, GeosegError
from geoseg.runtime.machine import processors, resolve_device
from geoseg.training.failures import GO_ON, NOT_BEGUN, RunStopped
from geoseg.training.processes import PATIENCE, PeerEnded

GRACE_S = 2.0
"""How long a process whose peer has failed waits, so that the peer can report why before the launcher ends all."""

_OPTIONS: dict[str, Any] = {
    "signals_to_handle": "SIGTERM,SIGINT",  # torch 2.9; before, SIGHUP ends a run in spite of nohup
    "shutdown_timeout": int(PATIENCE.total_seconds()),  # torch 2.12; before, a checkpoint must be written in 30 s
}
_TASK = "task.json"
_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")


def count_devices(device: str, devices: int | str) -> int:
    """Number of devices that "auto" or a number means.

    Raises:
        DeviceError: More GPUs than available, or several for a numbered one.
    """
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
    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
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
