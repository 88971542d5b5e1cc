"""Tasks on a Ray cluster: a worker per GPU or per up to 16 processors, and a folder of parts that all nodes share."""

import logging
import math
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

from geoseg.errors import ConfigError, DeviceError, GeosegError, OutputError, in_one_line
from geoseg.network.stored_model import open_model
from geoseg.prediction.parts import JOURNAL
from geoseg.prediction.predictor import Predictor
from geoseg.prediction.tasks import Job, OpenJob, make_parts
from geoseg.tiling.plan import MAX_CPU_WINDOWS, Task
from geoseg.version import __version__
from geoseg.words import count

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
except ModuleNotFoundError as missing:
    raise ConfigError(
        "the executor ray needs Ray, which is not installed", hint='pip install "geoseg[ray]"'
    ) from missing

log = logging.getLogger(__name__)

POLL_S = 0.5
VISIBLE_S = 90.0
"""How long a part written on another node may stay invisible here: NFS caches for up to 60 s that a file is missing."""

PATIENCE_S = 60.0  # after this time without a worker, a warning says what the run waits for

OBJECT_STORE_BYTES = 128 << 20
"""Ray's object store holds next to nothing here; its default size is a third of the memory."""

_SHARE = "put the output into a folder that all nodes share"

Actor: TypeAlias = Any


class Worker:
    """One process of the cluster, with the model loaded once; a `GeosegError` is returned, not raised."""

    def start(self, job: Job, folder: str) -> dict[str, str] | GeosegError:
        """Load the model and open the scene, relative names from ``folder``; what the bits of a forward depend on."""
        with suppress(OSError):  # nothing is lost where all names are absolute
            os.chdir(folder)
        try:
            self._job, self._scene = job, job.source.open()
            device = "cuda" if ray.get_gpu_ids() else "cpu"
            self._predictor = Predictor(open_model(job.model), device, job.network, tta=job.tta)
        except GeosegError as error:
            return _here(error)
        return {**_versions(self._predictor), **self._predictor.hardware, "node": socket.gethostname()}

    def make(self, tasks: Sequence[Task]) -> dict[str, float] | GeosegError:
        """Do tasks; the seconds of each stage."""
        parts, work = self._job.parts, OpenJob(self._job, self._predictor, self._scene)
        if not (parts.folder / JOURNAL).exists():
            return _here(OutputError(f"folder {parts.folder} does not exist", hint=_SHARE))
        try:
            make_parts(work, [task for task in tasks if not parts.has(task)])
        except GeosegError as error:
            return _here(error)
        return work.stages.seconds


def _here(error: GeosegError) -> GeosegError:
    error.message += f" (on node {socket.gethostname()})"
    return error


def _versions(predictor: Predictor) -> dict[str, str]:
    return {"geoseg": __version__, "torch": version("torch"), "model": predictor.digest}


@dataclass(frozen=True, slots=True)
class Crew:
    """Number of workers, and the processors and GPUs (0 or 1) of each."""

    workers: int
    cpus: int
    gpus: int


def plan_crew(nodes: Sequence[dict[str, float]], device: str) -> Crew:
    """Workers for the nodes of a cluster, whose resources have Ray's names: one per GPU, else per up to 16 processors.

    A `DeviceError` if the cluster has no such device.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"device {device} cannot be chosen: Ray assigns the GPUs", hint="--device cuda, cpu or auto")
    with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1]
    if device != "cpu" and with_gpu:
        cpus = min(int(node.get("CPU", 0) // node["GPU"]) for node in with_gpu)
        return Crew(sum(int(node["GPU"]) for node in with_gpu), min(cpus, MAX_CPU_WINDOWS), 1)
    if device == "cuda":
        raise DeviceError("the Ray cluster has no GPU for --device cuda", hint="--device cpu, or leave it out")
    with_cpu = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    if not with_cpu:
        raise DeviceError("the Ray cluster has neither processors nor GPUs", hint="ray status")
    cpus = min(*with_cpu, MAX_CPU_WINDOWS)
    return Crew(sum(node // cpus for node in with_cpu), cpus, 0)


class RayExecutor:
    """See `geoseg.prediction.executors.Executor`; needs a connection to Ray."""

    def __init__(self, crew: Crew) -> None:
        self.device = "cpu"  # the GPUs belong to the workers
        self.batched = crew.gpus > 0
        self.batch_size = None if self.batched else crew.cpus
        self.readers = max(min(8, crew.cpus), 1) if self.batched else 1
        self._crew = crew
        self._actors: list[Actor] = []
        self._idle: list[Actor] = []
        self._calls: dict[Any, tuple[Actor, list[Task] | None]] = {}
        self._facts: dict[str, str] = {}
        self._deaths = 0

    def hardware(self, job: Job, predictor: Predictor) -> dict[str, str]:
        """That of the first worker; a `ConfigError` if others have another geoseg, torch or model."""
        self._job, self._own = job, _versions(predictor)
        for _ in range(min(self._crew.workers, len(job.plan.tasks))):
            self._hire()
        since, warned = time.monotonic(), False
        while not self._idle:
            self._settle()
            if not warned and time.monotonic() > since + PATIENCE_S:
                warned = True
                log.warning(
                    "waiting for a worker with %s and %d GPUs; ray status shows what is free",
                    count(self._crew.cpus, "processor"),
                    self._crew.gpus,
                )
        return {key: value for key, value in self._facts.items() if key not in self._own}

    def run(self, work: OpenJob, tasks: Sequence[Task]) -> None:
        """Do the tasks.

        A `DeviceError` if workers die again and again, an `OutputError` if the nodes do not share the folder of parts.
        """
        parts = work.job.parts
        left = {(task.band, task.strip): task for task in tasks}
        deadlines: dict[Task, float] = {}  # of tasks in work (none), and of finished ones not visible here yet
        while left or deadlines:
            while left and self._idle:
                run = _next_run(left, math.ceil(len(left) / (2 * self._crew.workers)))
                deadlines |= dict.fromkeys(run, math.inf)
                worker = self._idle.pop()
                self._calls[worker.make.remote(run)] = worker, run
            for run, result in self._settle():
                if result is None:
                    for task in run:
                        if not parts.has(task):
                            del deadlines[task]
                            left[task.band, task.strip] = task
                else:
                    deadlines |= {task: time.monotonic() + VISIBLE_S for task in run if task in deadlines}
                    for stage, seconds in result.items():
                        work.stages.add(stage, seconds / len(self._actors))
            for task, deadline in list(deadlines.items()):
                if parts.has(task):
                    del deadlines[task]
                    self._deaths = 0
                    work.on_rows(task.window.height * task.window.width)
                    work.on_part(task)
                elif time.monotonic() > deadline:
                    raise OutputError(
                        f"{parts.path(task)} was written on another node and is not visible here", hint=_SHARE
                    )

    def close(self) -> None:
        """Stop the workers at once; what they have half written never becomes a part."""
        for actor in self._actors:
            with suppress(RayError):
                ray.kill(actor)

    def _hire(self) -> None:
        options: dict[str, Any] = {"num_cpus": self._crew.cpus, "num_gpus": self._crew.gpus}
        checkout = Path(__file__).parents[3]
        if checkout.name not in ("site-packages", "dist-packages"):
            path = os.pathsep.join(filter(None, (str(checkout), os.environ.get("PYTHONPATH"))))
            options["runtime_env"] = {"env_vars": {"PYTHONPATH": path}}
        actor: Actor = ray.remote(Worker).options(**options).remote()
        self._actors.append(actor)
        self._calls[actor.start.remote(self._job, str(Path.cwd()))] = actor, None

    def _settle(self) -> list[tuple[list[Task], dict[str, float] | None]]:
        """Wait a little; the tasks of calls that ended, with seconds by stage, or None where the worker died."""
        if not self._calls:
            time.sleep(POLL_S)  # what is left are parts that are not visible here yet
            return []
        ended: list[tuple[list[Task], dict[str, float] | None]] = []
        for call in ray.wait(list(self._calls), timeout=POLL_S)[0]:
            actor, tasks = self._calls.pop(call)
            try:
                result = ray.get(call)
            except RayTaskError:
                raise
            except RayError as error:
                self._replace(actor, error)
                result = None
            if isinstance(result, GeosegError):
                raise result
            if tasks is not None:
                ended.append((tasks, result))
            elif result is not None:
                self._check(result)
            if result is not None:
                self._idle.append(actor)
        return ended

    def _replace(self, actor: Actor, error: RayError) -> None:
        """Hire a worker in place of a dead one; Ray starts it as soon as there is room."""
        self._deaths += 1
        if self._deaths > len(self._actors) + 3:
            raise DeviceError(
                f"{self._deaths} workers died without finishing a part: {in_one_line(error, 300)}",
                hint="see ray logs on the node, or use a smaller --size or --batch-size to need less memory",
            ) from error
        log.warning("a worker died; a new one gets its unfinished tasks")
        log.info("%s", error)
        self._actors.remove(actor)
        with suppress(RayError):
            ray.kill(actor)  # it may be alive but out of reach
        self._hire()

    def _check(self, facts: dict[str, str]) -> None:
        node = facts.pop("node")
        for key, value in {**facts, **self._own, **self._facts}.items():
            if facts[key] != value:
                raise ConfigError(
                    f"node {node} has {key} {facts[key]}, another has {value}: their results would differ",
                    hint="use nodes of one kind with the same environment",
                )
        self._facts = facts


def _next_run(left: dict[tuple[int, int], Task], length: int) -> list[Task]:
    """Take the topmost task and up to ``length`` in all below it in its strip: they share windows where they meet."""
    band, strip = min(left)
    run: list[Task] = []
    while len(run) < length and (band, strip) in left:
        run.append(left.pop((band, strip)))
        band += 1
    return run


@contextmanager
def connect(device: str, address: str | None) -> Iterator[RayExecutor]:
    """The executor on the cluster at the address, else at RAY_ADDRESS, else on this machine alone.

    An existing connection of this process to Ray is used as it is. A `ConfigError` if no cluster answers.
    """
    own = not ray.is_initialized()
    if own:
        _init(address or os.environ.get("RAY_ADDRESS"))
    try:
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        executor = RayExecutor(plan_crew([node["Resources"] for node in nodes if node["Alive"]], device))
        try:
            yield executor
        finally:
            executor.close()
    finally:
        if own:
            ray.shutdown()


def _init(address: str | None) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            "local",
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",  # or it would listen to the network
            **quiet,
        )
        return
    try:
        host, _, port = address.rpartition(":")
        if host and port.isdigit():  # Ray itself tries for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"no Ray cluster can be reached at {address}: {in_one_line(error, 300)}",
            hint="--address HOST:6379, as printed by ray start --head",
        ) from error
