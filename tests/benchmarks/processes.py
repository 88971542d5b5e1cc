"""Networks timed against each other: each in a process of its own, all of them in every round.

Used by `bench_network.py` and `bench_area.py`. Loads no torch, so that its own memory does not count as a worker's.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

TUNED = {
    "MALLOC_MMAP_THRESHOLD_": "2147483648",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
}
"""glibc keeps freed memory: large activations are not mapped, faulted in and unmapped at every operation."""

RIVALS = ("segformer-b0", "segformer-b2", "unet-r34")
SAMPLE_SECONDS = 0.25
"""A faster forward is run several times in a row, or the clock of the processors would be too coarse."""
OTHERS = 0.10
"""Share of one core that other processes may use during a sample."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A network, how it is run, and in which precision.

    Attributes:
        architecture: "official", "geoseg", or one of `RIVALS`.
        backend: One of geoseg's, or "module" for its network as it was trained.
        precision: "float32" or "bf16".
        tuned: Whether glibc keeps freed memory.
    """

    name: str
    architecture: str
    backend: str = ""
    precision: str = "float32"
    tuned: bool = False

    @classmethod
    def parse(cls, name: str) -> Variant:
        """``official``, ``geoseg-BACKEND`` or a rival's name, then ``-bf16``, then ``-tuned``.

        Raises:
            ValueError: Any other name.
        """
        rest = name.removesuffix("-tuned")
        network = rest.removesuffix("-bf16")
        options = {"precision": "bf16" if network != rest else "float32", "tuned": rest != name}
        if network == "official" or network in RIVALS:
            return cls(name, network, **options)
        if network.startswith("geoseg-"):
            return cls(name, "geoseg", network.removeprefix("geoseg-"), **options)
        raise ValueError(f"{name!r} is not official, geoseg-BACKEND or one of {', '.join(RIVALS)}")


class WorkerError(RuntimeError):
    """A worker could not do what it was asked for."""


class Worker:
    """A process that holds one network; `ask` waits for its answer."""

    def __init__(self, *, tuned: bool = False, log: Path | None = None) -> None:
        environment = {k: v for k, v in os.environ.items() if k not in TUNED} | (TUNED if tuned else {})
        script = Path(__file__).with_name("network_worker.py")
        with (log or Path(os.devnull)).open("ab") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
                text=True,
            )

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Answer to a request.

        Raises:
            WorkerError: It failed, or the process ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"its process ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def ask_once(do: str, **request: Any) -> dict[str, Any]:
    """Answer of a fresh worker."""
    worker = Worker()
    try:
        return worker.ask(do, **request)
    finally:
        worker.stop()


@dataclass
class Result:
    """What was measured of one variant on one image.

    Attributes:
        seconds: Per forward (of the whole batch), one value a round.
        disturbed: Rounds kept although other processes were busy.
        left_out: Why there are no seconds.
    """

    variant: Variant
    seconds: list[float] = field(default_factory=list)
    disturbed: int = 0
    peak_bytes: int = 0
    load_seconds: float = 0.0
    differing: float | None = None
    left_out: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def busy_seconds() -> float | None:
    """Seconds that all processors were busy since the start of the system; None where it does not tell."""
    try:
        first = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(v) for v in first[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def timed(worker: Worker, forwards: int, *, tries: int, quiet: bool) -> tuple[float, bool]:
    """Seconds per forward, and whether other processes were busy in every one of the tries; the calmest counts."""
    best = math.inf, math.inf
    for attempt in range(tries if quiet else 1):
        if attempt:
            time.sleep(1)
        before, clock = busy_seconds(), time.perf_counter()
        answer = worker.ask("run", forwards=forwards)
        wall, after = time.perf_counter() - clock, busy_seconds()
        if before is None or after is None or not quiet:
            return answer["seconds"], False
        others = after - before - answer["cpu"]
        # the clock ticks once in 10 ms on most systems, on each processor
        if others <= OTHERS * wall + 0.02:
            return answer["seconds"], False
        best = min(best, (others / wall, answer["seconds"]))
    return best[1], True


def measure(
    variants: Iterable[Variant],
    request: Mapping[str, Any],
    *,
    rounds: int,
    tries: int,
    quiet: bool,
    folder: Path,
    reference: str | None = None,
    loads_at_once: int = 2,
) -> dict[str, Result]:
    """Time all variants on one image, all of them in every round.

    Args:
        variants: What is compared. One that cannot be loaded is left out and says why.
        request: What all of them are given: size, weights, image, threads, device.
        rounds: Samples of each.
        tries: Times a sample is repeated when other processes were busy.
        quiet: Whether that is looked at.
        folder: For class maps and the workers' logs.
        reference: Variant that the class maps are compared with; None compares none.
        loads_at_once: Networks loaded at a time.

    Returns:
        Results by name, in the given order.
    """
    results = {variant.name: Result(variant) for variant in variants}
    workers: dict[str, Worker] = {}

    def load(result: Result) -> None:
        variant = result.variant
        worker = workers[variant.name] = Worker(tuned=variant.tuned, log=folder / f"{variant.name}.log")
        network = {"architecture": variant.architecture, "backend": variant.backend, "precision": variant.precision}
        try:
            result.load_seconds = worker.ask("load", **request, **network)["seconds"]
        except WorkerError as error:
            leave_out(result, error)

    def leave_out(result: Result, error: WorkerError) -> None:
        result.left_out, result.seconds = str(error).splitlines()[0], []
        workers.pop(result.variant.name).stop()
        note(f"{result.variant.name} is left out: {error}")

    try:
        with ThreadPoolExecutor(loads_at_once) as pool:
            list(pool.map(load, results.values()))
        check_memory()
        forwards = {name: forwards_of(worker) for name, worker in workers.items()}
        for turn in range(rounds):
            names = list(workers)
            # each begins a round once, and has other neighbours
            shift = turn % max(1, len(names))
            for name in names[shift:] + names[:shift]:
                result = results[name]
                try:
                    seconds, disturbed = timed(workers[name], forwards[name], tries=tries, quiet=quiet)
                except WorkerError as error:
                    leave_out(result, error)
                    continue
                result.seconds.append(seconds)
                result.disturbed += disturbed
            note(f"round {turn + 1} of {rounds}")
        # before the class maps, whose argmax takes memory too
        for name, worker in workers.items():
            results[name].peak_bytes = worker.ask("peak")["bytes"]
        if reference in workers:
            maps = {}
            for name, worker in workers.items():
                if results[name].variant.architecture in ("official", "geoseg"):
                    path = folder / f"{name}.npy"
                    worker.ask("classes", path=str(path))
                    maps[name] = np.load(path)
                    path.unlink()
            for name, found in maps.items():
                results[name].differing = float(np.mean(found != maps[reference]))
    finally:
        for worker in workers.values():
            worker.stop()
    return results


def forwards_of(worker: Worker) -> int:
    """Forwards of a sample."""
    return max(1, math.ceil(SAMPLE_SECONDS / worker.ask("run", forwards=1)["seconds"]))


def available_bytes() -> int | None:
    """Memory that may still be used; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def check_memory() -> None:
    """Stop where the loaded networks leave too little memory: times of a machine that swaps say nothing."""
    free = available_bytes()
    if free is not None and free < 2**29:
        sys.exit(f"all networks at once leave {free / 2**20:.0f} MiB of memory: choose fewer with --variants")


def ratios(rival: Result, result: Result) -> list[float]:
    """How many times faster a result is than the rival, round by round."""
    return [a / b for a, b in zip(rival.seconds, result.seconds, strict=True)]


def spread(values: Sequence[float], form: str) -> str:
    """Median, and the range in brackets."""
    low, middle, high = (format(v, form) for v in (min(values), statistics.median(values), max(values)))
    return f"{middle} [{low}-{high}]"


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def processor() -> str:
    """Name of the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "CPU"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")
