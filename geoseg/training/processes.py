"""The processes of a training run, one per device: their places, what they agree on, and how all end when one fails.

torchrun, SLURM or `geoseg.training.launch` starts them; each finds its place in its environment. Devices communicate
over torch's default group, the processes themselves over a second group on the CPU with a long timeout.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from geoseg.errors import ConfigError, DeviceError, GeosegError, in_one_line
from geoseg.runtime.machine import resolve_device

T = TypeVar("T")

PATIENCE = timedelta(days=2)
"""How long processes wait for the one that checks labels or counts classes."""

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed", "NCCL")
"""Texts of torch's errors when another process is gone."""


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

    Raises:
        ConfigError: SLURM starts unequal numbers of processes on its machines.
    """
    if all(key in environ for key in TORCHRUN):
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
        """A failure in one process ends all.

        Raises:
            PeerEnded: This process has not failed, or is not the first that did.
        """
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
    """This process as one of the run's.

    Raises:
        DeviceError: No such device, or a numbered one for several processes.
    """
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
        if any(words in str(error) for words in GONE):
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
