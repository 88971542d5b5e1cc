"""What runs a network: OpenVINO on a CPU, torch.compile on a GPU, plain torch anywhere.

Every backend gives a `Forward`. A window's logits are the same bits whatever is computed beside it, as long as the
windows have one shape.
"""

import logging
from importlib import import_module

from geoseg.errors import ConfigError, ModelError
from geoseg.network.backends.openvino import core, is_installed, multiplies_bfloat16
from geoseg.network.forward import Forward, Request
from geoseg.network.stored_model import StoredModel
from geoseg.options import Backend, Precision

log = logging.getLogger(__name__)

BACKENDS = {
    "openvino": "geoseg.network.backends.openvino",
    "torch": "geoseg.network.backends.eager",
    "compile": "geoseg.network.backends.compiled",
}
"""Modules by name, each with a function ``load``. Imported when used, because two of them import torch."""

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")

MAX_LOSS_POINTS = 0.2  # points of mIoU that reduced precision may cost a model for "auto" to choose it on a CPU

__all__ = ["BACKENDS", "PRECISIONS", "Forward", "Request", "choose_backends", "choose_precision", "load_backend"]


def load_backend(model: StoredModel, backend: Backend, request: Request) -> Forward:
    """A trained network, ready to run in a backend, or for "auto" in the first that runs it; see `choose_backends`.

    A `ConfigError` if the backend does not run here, a `ModelError` if it cannot run the network.
    """
    names = choose_backends(backend, request.device)
    if backend == "auto" and request.reduced and not request.on_gpu:
        names = names[:1]  # plain torch is slower in bfloat16 than in float32, and hangs where OpenVINO is refused
    for name in names:
        try:
            forward: Forward = import_module(BACKENDS[name]).load(model, request)
        except (ConfigError, ModelError) as error:
            if name == names[-1]:
                raise
            log.warning("backend %s is skipped, %s is used instead: %s", name, names[names.index(name) + 1], error)
        else:
            log.info("the network runs in %s", forward.identity)
            return forward
    raise AssertionError("there is always a backend to try")


def choose_backends(backend: Backend, device: str) -> list[str]:
    """Backends to try, in order; a `ConfigError` for one that does not run on the device.

    "auto" goes by a rule and not by measured time, so that an interrupted run can resume.
    """
    if device != "cpu" and backend == "openvino":
        raise ConfigError(f"backend openvino runs on a CPU, not on {device}", hint="--backend compile, or --device cpu")
    if backend == "openvino":
        core()  # refuses if it is missing or broken
    if backend != "auto":
        return [backend]
    if device != "cpu":
        return ["compile", "torch"]
    return ["openvino", "torch"] if is_installed() else ["torch"]


def choose_precision(precision: Precision, device: str, *, loss_points: float | None) -> Precision:
    """The data type to compute in, one of `PRECISIONS`; a `ConfigError` for one that this CPU has not.

    "auto" is bfloat16 on a GPU. On a CPU it is bfloat16 if the CPU multiplies it and the model is known to lose at most
    `MAX_LOSS_POINTS` of mIoU by it, else float32; ``loss_points`` are None if not measured.
    """
    if device != "cpu":
        return "bfloat16" if precision == "auto" else precision
    if precision == "auto":
        earned = loss_points is not None and loss_points <= MAX_LOSS_POINTS
        return "bfloat16" if earned and multiplies_bfloat16() else "float32"
    if precision == "bfloat16" and not multiplies_bfloat16():
        raise ConfigError("this CPU does not multiply bfloat16", hint="--precision float32")
    return precision
