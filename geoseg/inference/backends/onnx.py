"""Backend "onnx": ONNX Runtime, on a CPU."""

from __future__ import annotations

import threading
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from geoseg.errors import ConfigError
from geoseg.inference import onnx_graph
from geoseg.inference.backends.forward import Forward, Request, does_not_run
from geoseg.inference.folding import deployed
from geoseg.inference.logits import Logits, logits_stride
from geoseg.inference.onnx_graph import import_onnx

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def is_installed() -> bool:
    """Whether everything is there that the backend needs."""
    return all(find_spec(name) is not None for name in PACKAGES)


def require() -> None:
    """Refuse where a package is missing.

    Raises:
        ConfigError: With what to install.
    """
    if find_spec("onnxruntime") is None:
        raise ConfigError("backend onnx needs ONNX Runtime", hint='pip install "geoseg[onnx]"')
    import_onnx()


def load(network: nn.Module, request: Request) -> Forward:
    """The network in ONNX Runtime; a session for each size of windows, made when the first one comes or beforehand.

    Raises:
        ConfigError: A package is missing or broken, or bfloat16 was asked for, which ONNX Runtime's CPU kernels lack.
    """
    require()
    if request.dtype != torch.float32:
        raise ConfigError(f"backend onnx computes in float32, not {request.precision}", hint="--backend openvino")
    try:
        import onnxruntime as runtime
    except ImportError as error:  # it is there, and a library of the system's that it needs is not
        raise ConfigError(f"ONNX Runtime cannot be imported: {error}", hint="--backend torch") from error
    logits = Logits(deployed(network)).eval()
    sessions: dict[tuple[int, ...], Any] = {}
    making = threading.Lock()

    def session(x: Tensor) -> Any:
        key = tuple(x.shape)
        with making:
            if key not in sessions:
                options = runtime.SessionOptions()
                options.intra_op_num_threads = request.threads
                options.inter_op_num_threads = 1
                options.log_severity_level = 3
                model = onnx_graph.onnx_bytes(
                    logits, bands=request.bands, size=(x.shape[2], x.shape[3]), batch=x.shape[0]
                )
                try:
                    sessions[key] = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
                except Exception as error:  # the runtime's exceptions have no base class of their own
                    raise does_not_run("ONNX Runtime", error) from error
        return sessions[key]

    if request.size is not None:
        session(torch.empty(1, request.bands, *request.size))

    def run(x: Tensor) -> Tensor:
        found = session(x)
        out = found.run(None, {found.get_inputs()[0].name: x.contiguous().numpy()})[0]
        return torch.from_numpy(out)

    version = f"ONNX Runtime {runtime.__version__}"
    return Forward(run, "onnx", f"onnx, {version}, float32", logits_stride(network))
