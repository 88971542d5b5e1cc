"""Backend "openvino": any network on a CPU, in float32 or bfloat16. Needs no torch if the network is cached."""

import sys
import threading
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from geoseg.arrays import Float32Array
from geoseg.errors import ConfigError, ModelError
from geoseg.network.converted import converted
from geoseg.network.forward import Forward, Request, does_not_run
from geoseg.network.stored_model import StoredModel

_TELEMETRY = "openvino_telemetry"


def is_installed() -> bool:
    """Whether OpenVINO is installed; there is no wheel for some systems."""
    try:
        return find_spec("openvino") is not None
    except ValueError:  # a stand-in without a spec, or None
        return False


@cache
def core() -> Any:
    """OpenVINO's core, kept until the process ends; a `ConfigError` if it, or a library that it needs, is missing.

    The core's CPU plugin gives the thread that loads it a stack for signals, and frees that stack with the core
    (OpenVINO 2026.4). If another thread dropped the core, the next signal, such as Ctrl-C, would end the process.
    """
    if not is_installed():
        raise ConfigError("backend openvino needs OpenVINO", hint="pip install openvino, or --backend torch")
    # Without this package OpenVINO's converter cannot report its use to the vendor over the network.
    hidden = _TELEMETRY not in sys.modules
    if hidden:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        import openvino as ov
    except ImportError as error:
        raise ConfigError(f"OpenVINO cannot be imported: {error}", hint="--backend torch") from error
    finally:
        if hidden:
            sys.modules.pop(_TELEMETRY, None)
    # The bindings import numpy at the first array, where two threads at once would wait for each other forever.
    ov.Tensor(np.zeros(1, dtype=np.float32))
    return ov.Core()


def multiplies_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 according to OpenVINO; False if that is not installed."""
    return is_installed() and "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _refuse_endless(graph: Any) -> None:
    """Refuse what OpenVINO 2026.4 never finishes compiling in bfloat16: long depthwise rows of up to 16 channels.

    The narrowest published SegNeXt has 32 channels.
    """
    for operation in graph.get_ops():
        if operation.get_type_name() == "GroupConvolution":
            shape = operation.input(1).get_shape()
            if shape[0] <= 16 and shape[-1] > 11:
                raise ModelError(
                    f"OpenVINO does not run depthwise convolutions of {shape[0]} channels and {shape[-1]} columns in "
                    "bfloat16",
                    hint="--precision float32",
                )


def compiled(model: StoredModel, shape: tuple[int, ...], request: Request) -> Any:
    """A network as ``openvino.CompiledModel`` for windows of one shape, (N, B, H, W), or a `ModelError`."""
    graph = converted(model, shape, core())
    if request.reduced:
        _refuse_endless(graph)
    config = {
        "INFERENCE_PRECISION_HINT": "bf16" if request.reduced else "f32",
        "NUM_STREAMS": str(request.at_once),
        "INFERENCE_NUM_THREADS": str(request.at_once * request.threads),
    }
    try:
        return core().compile_model(graph, "CPU", config)
    except RuntimeError as error:
        raise does_not_run("OpenVINO", error) from error


def load(model: StoredModel, request: Request) -> Forward:
    """The network in OpenVINO, compiled for the foreseen shape of windows, and for others when they come.

    Each window runs in a stream of its own, so what is computed beside it does not change its bits. A `ConfigError` if
    OpenVINO is missing or broken, a `ModelError` if it cannot run the network.
    """
    core()  # refuses where OpenVINO is missing
    import openvino as ov

    models: dict[tuple[int, ...], Any] = {}
    making = threading.Lock()
    requests = threading.local()  # an infer request serves one thread

    def infer_request(shape: tuple[int, ...]) -> Any:
        own: dict[tuple[int, ...], Any] = vars(requests).setdefault("by_shape", {})
        if shape not in own:
            with making:
                if shape not in models:
                    models[shape] = compiled(model, shape, request)
            own[shape] = models[shape].create_infer_request()
        return own[shape]

    if request.size is not None:
        infer_request((1, request.bands, *request.size))

    def run(x: Float32Array) -> Float32Array:
        found = infer_request(x.shape)
        found.infer({0: np.ascontiguousarray(x)}, share_inputs=True)
        return np.array(found.get_output_tensor(0).data, dtype=np.float32)

    identity = f"openvino {ov.__version__.split('-')[0]}, {request.precision}"
    return Forward(run, "openvino", identity, model.stride, takes_arrays=True)
