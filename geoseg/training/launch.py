"""Start the processes of a run on this machine, wait for them, and end all when one fails.

Lightning would start the others by running the program again that is running: right for ``geoseg train``, wrong for a
notebook, a test, or a script without a guard. And where one of its processes fails, the others wait for it. Here all
processes are children of one that does nothing else: it passes signals on, and tells what the first of them that
failed had to say.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import geoseg.errors
from geoseg.devices import resolve_device
from geoseg.errors import ConfigError, DeviceError, GeosegError
from geoseg.processors import processors
from geoseg.training.failures import RunStopped
from geoseg.training.processes import PeerEnded

log = logging.getLogger(__name__)

GRACE_S = 5.0
"""How long the others have to end by themselves after one has failed."""

_STDIN = 0
# Not sys.stdin: a thread that waits in it keeps a lock that the interpreter wants at its end.

FAILURES = "GEOSEG_FAILURES"
"""Environment variable: the folder where a process leaves what it failed of."""


def count_devices(device: str, devices: int | str) -> int:
    """How many devices "auto" or a number is.

    Raises:
        ConfigError: Neither a positive number nor "auto".
        DeviceError: More GPUs than there are, or several of one.
    """
    target = torch.device(resolve_device(device))
    there = torch.cuda.device_count() if target.type == "cuda" else 1
    if devices == "auto":
        return there if target.index is None else 1
    try:
        count = int(devices)
    except ValueError:
        count = 0
    if count < 1:
        raise ConfigError(f"--devices {devices} is no number of devices", hint="--devices 2, or auto for all GPUs")
    if target.type == "cuda" and count > there:
        raise DeviceError(f"{count} GPUs were asked for, this machine has {there}", hint="--devices auto")
    if target.index is not None and count > 1:
        raise DeviceError(f"--device {device} is one GPU, --devices asks for {count}", hint="--device cuda")
    return count


def launch(task: Mapping[str, Any], program: str, *, devices: int, nodes: int = 1) -> None:
    """Run a program in several processes, and wait.

    Args:
        task: What each of them is to do, as JSON; they take it with `take_task`.
        program: Python code that each runs.
        devices: Processes on this machine.
        nodes: Machines; with more than one, each runs this and MASTER_ADDR, MASTER_PORT and NODE_RANK tell which.

    Raises:
        GeosegError: What the first process to fail failed of.
        RunStopped: The run was stopped by a signal, after a checkpoint.
        RuntimeError: A process ended with a bug of ours, whose traceback it has printed.
    """
    places = _environments(devices, nodes)
    with tempfile.TemporaryDirectory(prefix="geoseg-train-") as folder:
        children: list[subprocess.Popen[bytes]] = []
        message = json.dumps({**task, "log_level": logging.getLogger("geoseg").getEffectiveLevel()}).encode() + b"\n"
        try:
            for place in places:
                child = subprocess.Popen(
                    [sys.executable, "-c", program],
                    env={**os.environ, **place, FAILURES: folder},
                    stdin=subprocess.PIPE,
                    stdout=sys.stderr.fileno() if _has_file(sys.stderr) else None,
                )
                children.append(child)
                assert child.stdin is not None
                # It stays open for as long as we live: that is how they know.
                child.stdin.write(message)
                child.stdin.flush()
            with _passing_on(children) as passed_on:
                _wait(children)
            _tell(Path(folder), children, is_stopped=bool(passed_on))
        finally:
            for child in children:
                if child.poll() is None:
                    child.kill()
                child.wait()
                assert child.stdin is not None
                child.stdin.close()


def take_task() -> dict[str, Any]:
    """What the launcher asks this process to do; it ends when the launcher is gone."""
    message = b""
    while not message.endswith(b"\n"):
        part = os.read(_STDIN, 1 << 16)
        if not part:
            raise SystemExit("started without a task")
        message += part
    threading.Thread(target=_end_with_parent, daemon=True).start()
    task: dict[str, Any] = json.loads(message)
    level = task.pop("log_level")
    logging.basicConfig(level=logging.CRITICAL, format="%(message)s")
    logging.getLogger("geoseg").setLevel(level if os.environ["RANK"] == "0" else logging.ERROR)
    return task


@contextmanager
def leaving_word() -> Iterator[None]:
    """In a process of a launcher: an expected end is left for the launcher to tell."""
    try:
        yield
    except (GeosegError, RunStopped) as error:
        path = Path(os.environ[FAILURES]) / f"{int(os.environ['RANK']):06}.json"
        words = {"kind": type(error).__name__, "message": str(error), "hint": getattr(error, "hint", None)}
        path.with_suffix(".part").write_text(json.dumps(words), encoding="utf-8")
        path.with_suffix(".part").replace(path)
        raise SystemExit(error.exit_code) from error


def _environments(devices: int, nodes: int) -> list[dict[str, str]]:
    if nodes == 1:
        address, port, node = "127.0.0.1", str(_free_port()), 0
    else:
        lacking = [key for key in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if key not in os.environ]
        if lacking:
            raise ConfigError(
                f"--nodes {nodes} needs {', '.join(lacking)} in the environment",
                hint="on each machine: MASTER_ADDR=FIRST_MACHINE MASTER_PORT=29500 NODE_RANK=0 geoseg train …",
            )
        address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
        node = int(os.environ["NODE_RANK"])
    threads = max(processors() // devices, 1)
    return [
        {
            "RANK": str(node * devices + local),
            "LOCAL_RANK": str(local),
            "WORLD_SIZE": str(devices * nodes),
            "LOCAL_WORLD_SIZE": str(devices),
            "MASTER_ADDR": address,
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        }
        for local in range(devices)
    ]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(children: list[subprocess.Popen[bytes]]) -> None:
    """Until all have ended, or some seconds after one has failed."""
    deadline = None
    while any(child.poll() is None for child in children):
        if deadline is None and any(child.poll() for child in children):
            deadline = time.monotonic() + GRACE_S
        if deadline is not None and time.monotonic() > deadline:
            return
        time.sleep(0.05)


def _tell(folder: Path, children: list[subprocess.Popen[bytes]], *, is_stopped: bool) -> None:
    """Raise what the run ended with, if anything: the cause before what it led to."""
    words = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    for told in sorted(words, key=lambda told: told["kind"] == PeerEnded.__name__):
        if told["kind"] == RunStopped.__name__:
            raise RunStopped(told["message"])
        if told["kind"] != PeerEnded.__name__:
            raise getattr(geoseg.errors, told["kind"], GeosegError)(told["message"], hint=told["hint"])
    codes = [child.poll() for child in children]
    if is_stopped and -signal.SIGTERM in codes:
        raise RunStopped("stopped by a signal before the first iteration")
    for rank, code in enumerate(codes):
        if code is not None and code < 0:
            raise DeviceError(
                f"process {rank} of the run was killed by {signal.Signals(-code).name}",
                hint="go on from the last checkpoint with --resume; if memory ran out, lower train.batch_size or "
                "train.workers",
            )
    if any(codes) or None in codes:
        raise RuntimeError(f"the processes of the run ended with exit codes {codes}")


@contextmanager
def _passing_on(children: list[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """SIGTERM to us is SIGTERM to all, and noted in the list; Ctrl-C reaches them anyway."""
    passed_on: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield passed_on
        return

    def pass_on(number: int, frame: Any) -> None:
        passed_on.append(number)
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield passed_on
    finally:
        signal.signal(signal.SIGTERM, before)


def _end_with_parent() -> None:
    while os.read(_STDIN, 1):
        pass
    os._exit(1)


def _has_file(stream: Any) -> bool:
    try:
        stream.fileno()
    except (AttributeError, OSError, ValueError):
        return False
    return True
