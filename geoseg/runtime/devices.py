"""Which device a network runs on."""

import ctypes
import re
import sys
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
