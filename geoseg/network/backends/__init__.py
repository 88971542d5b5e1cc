"""What runs a network: OpenVINO on a CPU, torch.compile on a GPU, plain torch anywhere.

What a backend gives is a `Forward`, called with normalised windows. Each window's logits are the same bits whatever is
computed beside it, as long as the windows have one shape.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib import import_module
from typing import cast

from geoseg.errors import ConfigError, ModelError
from geoseg.network.backends.openvino import is_installed, multiplies_bfloat16, require
from geoseg.network.forward import Forward, Model, Request

log = logging.getLogger(__name__)

BACKENDS = {
    "openvino": "geoseg.network.backends.openvino",
    "torch": "geoseg.network.backends.eager",
    "compile": "geoseg.network.backends.compiled",
}
"""Modules by name, each with a function ``load``; imported when used, since two of them import torch."""

PRECISIONS = ("float32", "bfloat16")

MAX_LOSS_POINTS = 0.2
"""Points of mIoU that reduced precision may cost a model for "auto" to take it on a CPU."""

__all__ = ["BACKENDS", "PRECISIONS", "Forward", "choose_backends", "choose_precision", "load_backend"]


def load_backend(
    model: Model,
    *,
    backend: str = "auto",
    precision: str = "float32",
    device: str = "cpu",
    bands: int = 3,
    threads: int = 1,
    at_once: int = 1,
    size: tuple[int, int] | None = None,
) -> Forward:
    """A trained network, ready to run.

    Args:
        model: A model whose network is in evaluation mode, on the CPU.
        backend: A key of `BACKENDS`, or "auto"; see `choose_backends`.
        precision: One of `PRECISIONS`; see `choose_precision`.
        device: Where it runs, by torch's name.
        bands: B of the windows.
        threads: Threads for one window, on a CPU. 1 is for callers that run several windows in threads of their own.
        at_once: Windows that run at once: side by side on a CPU, in one batch on a GPU.
        size: Height and width of most windows, px: what can be made ready for them is; None leaves that to the first.

    Raises:
        ConfigError: The backend does not run here; the hint says what to install.
        ModelError: The backend cannot run the network.
    """
    names = choose_backends(backend, device)
    if device == "cpu" and precision == "bfloat16" and backend == "auto":
        names = names[:1]  # plain torch is slower in it than in float32, and hangs where OpenVINO is refused
    request = Request(precision, device, bands, threads, at_once, size)
    for name, following in zip(names, [*names[1:], None], strict=True):
        load = cast(Callable[[Model, Request], Forward], import_module(BACKENDS[name]).load)
        try:
            forward = load(model, request)
        except (ConfigError, ModelError) as error:
            if following is None:
                raise
            log.warning("backend %s is skipped, %s is used instead: %s", name, following, error)
        else:
            log.info("the network runs in %s", forward.identity)
            return forward
    raise AssertionError("names are never empty")


def choose_backends(backend: str, device: str) -> list[str]:
    """The backend of a name; of "auto" those to try, in order: by a rule and not by a clock, so that a run can resume.

    Raises:
        ConfigError: No such backend, or one that does not run on the device.
    """
    if backend not in ("auto", *BACKENDS):
        raise ConfigError(f"unknown backend {backend!r}", hint=f"--backend auto, {', '.join(BACKENDS)}")
    if device != "cpu":
        if backend == "openvino":
            raise ConfigError(
                f"backend openvino runs on a CPU, not on {device}", hint="--backend compile, or --device cpu"
            )
        return ["compile", "torch"] if backend == "auto" else [backend]
    if backend == "openvino":
        require()
    if backend == "auto":
        return ["openvino", "torch"] if is_installed() else ["torch"]
    return [backend]


def choose_precision(precision: str, device: str, *, loss_points: float | None) -> str:
    """The data type of a name.

    "auto" is bfloat16 on a GPU. On a CPU it is bfloat16 where the CPU multiplies it and the model is known to lose at
    most `MAX_LOSS_POINTS` by it, else float32.

    Args:
        precision: One of `PRECISIONS`, or "auto".
        device: Where the network runs.
        loss_points: What bfloat16 costs the model, points of mIoU; None where that was not measured.

    Raises:
        ConfigError: No such precision, or one that this CPU does not compute in.
    """
    if precision not in ("auto", *PRECISIONS):
        raise ConfigError(f"unknown precision {precision!r}", hint=f"--precision auto, {', '.join(PRECISIONS)}")
    if device != "cpu":
        return "bfloat16" if precision == "auto" else precision
    if precision == "auto":
        earned = loss_points is not None and loss_points <= MAX_LOSS_POINTS
        return "bfloat16" if earned and multiplies_bfloat16() else "float32"
    if precision == "bfloat16" and not multiplies_bfloat16():
        raise ConfigError("this CPU does not multiply bfloat16", hint="--precision float32")
    return precision
