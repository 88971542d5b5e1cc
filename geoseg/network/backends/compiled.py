"""Backend "compile": torch.compile fuses the operations between convolutions, in C++ on a CPU, in Triton on a GPU."""

import os
import shlex
import shutil
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from geoseg.errors import ConfigError
from geoseg.network.folding import Logits, deployed
from geoseg.network.forward import Forward, Request, does_not_run
from geoseg.network.stored_model import StoredModel

OPTIONS: dict[str, Any] = {
    "freezing": True,
    # Kernels chosen by timing could differ when an interrupted run continues, and with them the last bits.
    "triton.autotune_pointwise": False,
}
"""Of torch.compile. No CUDA graphs: a full batch should take longer than its launches, and graphs are kept per thread.
`tests/benchmarks/bench_gpu.py` times both."""


def load(model: StoredModel, request: Request) -> Forward:
    """The network, compiled for the requested size (on a GPU else for 512 px), and for other shapes as they come.

    Each shape takes up to a minute, less if torch cached the result of an earlier run. A `ConfigError` if there is no
    C++ compiler, a `ModelError` if torch.compile fails, at the first window if no size is requested.
    """
    if not request.on_gpu and not _compiler():
        raise ConfigError(
            "backend compile needs a C++ compiler, and none was found on PATH",
            hint=f"install {_USUAL}, or set the variable CXX to another, or --backend torch",
        )
    logits = Logits(deployed(model.network)).requires_grad_(False)
    logits = logits.to(device=request.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        compiled: Callable[[Tensor], Tensor] = torch.compile(logits, dynamic=False, options=OPTIONS)
    except RuntimeError as error:
        raise does_not_run("torch.compile", error) from error
    shapes: set[torch.Size] = set()
    compiling = threading.Lock()

    def forward(x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        # compiled code is made for one mode, and freezing does not take weights that are inference tensors
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(x.device.type, torch.bfloat16, enabled=request.reduced),
        ):
            out: Tensor = compiled(x.clone() if x.is_inference() else x).float()
        return out

    def run(x: Tensor) -> Tensor:
        if x.shape in shapes:
            return forward(x)
        with compiling:  # one thread compiles, the others wait
            try:
                out = forward(x)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # Triton's and the driver's errors share no base class with torch's
                raise does_not_run("torch.compile", error) from error
            shapes.add(x.shape)
            return out

    size = request.size or ((512, 512) if request.on_gpu else None)
    if size:
        with suppress(torch.OutOfMemoryError):  # it has been compiled, and the caller will take smaller batches
            run(torch.zeros(request.at_once if request.on_gpu else 1, request.bands, *size, device=request.device))
    return Forward(run, "compile", f"compile, torch {torch.__version__}, {request.precision}", model.stride)


_USUAL = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")  # what torch takes without the variable CXX


def _compiler() -> str | None:
    words = shlex.split(os.environ.get("CXX", ""), posix=sys.platform != "win32")  # as in "ccache g++"
    return shutil.which(words[0] if words else _USUAL)
