"""This machine: which device a network runs on, processors, threads, memory, and the user's cache folder."""

import ctypes
import os
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from geoseg.errors import DeviceError


def check_device(name: str) -> str:
    """The name of a device; a `DeviceError` if it is neither auto, cpu, cuda nor cuda:N."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise DeviceError(f"unknown device {name!r}", hint="--device auto, cpu, cuda or cuda:0")
    return name


def resolve_device(name: str) -> str:
    """torch's name of a device; "auto" is the first GPU, else the CPU. Loads torch only if there may be a GPU.

    A `DeviceError` for an invalid name, or a GPU that does not exist.
    """
    if check_device(name) == "cpu" or (name == "auto" and not _may_have_gpu()):
        return "cpu"
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if found else "cpu"
    if int(name[5:] or 0) >= found:
        raise DeviceError(
            f"device {name} was asked for, but this machine has {found} CUDA devices",
            hint="--device cpu, or leave it out",
        )
    return name


def _may_have_gpu() -> bool:
    """Whether a driver for a GPU is installed: CUDA's library, or AMD's device, which torch calls cuda as well."""
    if Path("/dev/kfd").exists():
        return True
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def processors() -> int:
    """Processors that this process may use, at least 1."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def reading_threads(name: str, most: int = 8) -> ThreadPoolExecutor:
    """Threads called "geoseg-" and ``name`` in which scenes are read side by side, at most one per processor."""
    return ThreadPoolExecutor(min(most, processors()), thread_name_prefix=f"geoseg-{name}")


def memory_bytes() -> int | None:
    """Memory of this machine or container; None if the system does not say."""
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
    try:
        return min(found, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no container, or one without a limit
        return found


def user_cache(name: str) -> Path:
    """``$XDG_CACHE_HOME/geoseg/NAME``, or ``~/.cache/geoseg/NAME``; nothing is created."""
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a user whom the machine does not know, as in many a container
        base = tempfile.gettempdir()
    return Path(base) / "geoseg" / name
