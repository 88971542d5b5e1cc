"""What runs a network: torch as it is installed, or a compiler or runtime that is faster for some networks.

A backend is a function in `BACKENDS`; what it gives is a `Forward`, called with normalised windows. Each window's
logits are the same bits whatever is computed beside it, as long as the windows have one size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import nn

from geoseg.errors import ConfigError, ModelError
from geoseg.inference.backends import compiled, eager, onnx, openvino
from geoseg.inference.backends.forward import Forward, Request
from geoseg.inference.cpu import multiplies_bfloat16, runs_here
from geoseg.inference.folding import is_main_path

log = logging.getLogger(__name__)

BACKENDS: dict[str, Callable[[nn.Module, Request], Forward]] = {
    "torch": eager.load,
    "compile": compiled.load,
    "onnx": onnx.load,
    "openvino": openvino.load,
}
"""Loaders by name. torch comes with geoseg; onnx and openvino are extras; compile needs a C++ compiler."""

EXTRAS = {"openvino": openvino, "onnx": onnx}
"""Those that are installed apart and run on CPUs alone, the fastest first."""

PRECISIONS: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}

__all__ = ["BACKENDS", "PRECISIONS", "Forward", "choose_backends", "choose_precision", "load_backend"]


def load_backend(
    network: nn.Module,
    *,
    backend: str = "auto",
    precision: str = "auto",
    device: torch.device | None = None,
    bands: int = 3,
    threads: int = 1,
    at_once: int = 1,
    size: tuple[int, int] | None = None,
) -> Forward:
    """A trained network, ready to run.

    Args:
        network: SMP network in evaluation mode, on the CPU.
        backend: A key of `BACKENDS`, or "auto"; see `choose_backends`.
        precision: "float32", "bfloat16", or "auto": float32 on a CPU, bfloat16 on a GPU.
        device: Where it runs; None is the CPU.
        bands: B of the windows.
        threads: Threads for one window, on a CPU. 1 is for callers that run several windows in threads of their own.
        at_once: Windows that run at once: side by side on a CPU, in one batch on a GPU.
        size: Height and width of most windows, px: what can be made ready for them is; None leaves that to the first.

    Raises:
        ConfigError: No such backend or precision, or one that does not run here; the hint says what to install.
        ModelError: The network cannot be written in the backend's format.
    """
    device = device or torch.device("cpu")
    names = choose_backends(network, backend, device)
    request = Request(choose_precision(precision, device), device, bands, threads, at_once, size)
    for name, following in zip(names, [*names[1:], None], strict=True):
        try:
            forward = BACKENDS[name](network, request)
        except (ConfigError, ModelError) as error:
            if following is None:
                raise
            log.warning("backend %s is passed over for %s: %s", name, following, error)
        else:
            log.info("the network runs as: %s", forward.identity)
            return forward
    raise AssertionError("names are never empty")


def choose_backends(network: nn.Module, backend: str, device: torch.device) -> list[str]:
    """The backend of a name; of "auto" those to try, the fastest first, by a rule and not by a clock.

    On a GPU that is torch.compile, then plain torch. On a CPU whose instructions oneDNN knows, SegNeXt has a form of
    its own in "torch"; for every other network it is OpenVINO, then ONNX Runtime, where they are installed.

    Raises:
        ConfigError: No such backend, or one that does not run on the device.
    """
    if backend not in ("auto", *BACKENDS):
        raise ConfigError(f"unknown backend {backend!r}", hint=f"--backend auto, {', '.join(BACKENDS)}")
    if device.type != "cpu":
        if backend in EXTRAS:
            raise ConfigError(
                f"backend {backend} runs on a CPU, not on {device}", hint="--backend torch, or --device cpu"
            )
        return ["compile", "torch"] if backend == "auto" else [backend]
    if backend != "auto":
        if backend in EXTRAS:
            EXTRAS[backend].require()
        return [backend]
    if is_main_path(network) and runs_here():
        return ["torch"]
    return [*(name for name, module in EXTRAS.items() if module.is_installed()), "torch"]


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """The data type of a name; reduced precision on a CPU only when it is asked for.

    Raises:
        ConfigError: No such precision, or one that this CPU does not compute in.
    """
    if precision == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if precision not in PRECISIONS:
        raise ConfigError(f"unknown precision {precision!r}", hint=f"--precision auto, {', '.join(PRECISIONS)}")
    if precision == "bfloat16" and device.type == "cpu" and not multiplies_bfloat16():
        raise ConfigError("this CPU does not multiply bfloat16", hint="--precision float32")
    return PRECISIONS[precision]
