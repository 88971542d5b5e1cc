"""Backend "openvino": OpenVINO, on a CPU; the fastest for most networks, also in bfloat16."""

from __future__ import annotations

import threading
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from geoseg.errors import ConfigError
from geoseg.inference import onnx_graph
from geoseg.inference.backends.forward import Forward, Request, does_not_run
from geoseg.inference.folding import deployed
from geoseg.inference.logits import Logits, logits_stride
from geoseg.inference.onnx_graph import import_onnx

PACKAGES = ("onnx", "onnxscript", "openvino")


def is_installed() -> bool:
    """Whether everything is there that the backend needs."""
    return all(find_spec(name) is not None for name in PACKAGES)


def require() -> None:
    """Refuse where a package is missing.

    Raises:
        ConfigError: With what to install.
    """
    if find_spec("openvino") is None:
        raise ConfigError("backend openvino needs OpenVINO", hint='pip install "geoseg[openvino]"')
    import_onnx()


@cache
def _core(ov: Any) -> Any:
    """OpenVINO's core, one for the life of the process.

    With the core goes its CPU plugin, and with that the stack for signals that it gave to the thread that loaded it
    (seen in OpenVINO 2026.4). Where another thread drops the core, the first thread keeps a stack that is no longer
    there, and the next signal, Ctrl-C for one, ends the process.
    """
    return ov.Core()


def load(network: nn.Module, request: Request) -> Forward:
    """The network in OpenVINO; compiled for each size of windows, when the first one comes or beforehand.

    Raises:
        ConfigError: A package is missing or broken, or bfloat16 was asked for on a CPU that does not multiply it.
    """
    require()
    try:
        import openvino as ov
    except ImportError as error:  # it is there, and a library of the system's that it needs is not
        raise ConfigError(f"OpenVINO cannot be imported: {error}", hint="--backend torch") from error
    core = _core(ov)
    if request.dtype == torch.bfloat16 and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ConfigError("this CPU does not multiply bfloat16", hint="--precision float32")
    config = {
        "INFERENCE_PRECISION_HINT": "bf16" if request.dtype == torch.bfloat16 else "f32",
        "NUM_STREAMS": str(request.at_once),
        "INFERENCE_NUM_THREADS": str(request.at_once * request.threads),
    }
    logits = Logits(deployed(network)).eval()
    models: dict[tuple[int, ...], Any] = {}
    making = threading.Lock()
    requests = threading.local()  # an infer request serves one thread at a time

    def infer_request(x: Tensor) -> Any:
        key = tuple(x.shape)
        own: dict[tuple[int, ...], Any] = vars(requests).setdefault("by_shape", {})
        if key not in own:
            with making:
                if key not in models:
                    size = x.shape[2], x.shape[3]
                    graph = onnx_graph.onnx_bytes(logits, bands=request.bands, size=size, batch=x.shape[0])
                    try:
                        models[key] = core.compile_model(core.read_model(graph), "CPU", config)
                    except RuntimeError as error:
                        raise does_not_run("OpenVINO", error) from error
            own[key] = models[key].create_infer_request()
        return own[key]

    if request.size is not None:
        infer_request(torch.empty(1, request.bands, *request.size))

    def run(x: Tensor) -> Tensor:
        found = infer_request(x)
        found.infer({0: x.contiguous().numpy()}, share_inputs=True)
        return torch.from_numpy(np.array(found.get_output_tensor(0).data, dtype=np.float32))

    version = f"OpenVINO {ov.__version__.split('-')[0]}"
    identity = f"openvino, {version}, {request.precision}"
    return Forward(run, "openvino", identity, logits_stride(network))
