"""Backend "compile": torch.compile, which fuses the operations between convolutions, in C++ or on a GPU in Triton."""

from __future__ import annotations

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
from geoseg.network.folding import deployed
from geoseg.network.forward import Forward, Model, Request, does_not_run
from geoseg.network.logits import Logits

OPTIONS: dict[str, Any] = {
    "freezing": True,
    # Kernels timed on the spot could be others when an interrupted run continues, and with them the last bits.
    "triton.autotune_pointwise": False,
}
"""Of torch.compile. Without CUDA graphs, which save launches: a full batch should compute for longer than it takes to
launch, and graphs are kept for each thread. `tests/benchmarks/bench_gpu.py` times both."""

GPU_SIZE = (512, 512)
"""Windows that a network is compiled for on a GPU where none are foreseen, px."""


def load(model: Model, request: Request) -> Forward:
    """The network, compiled for the batch that is foreseen (on a GPU always for one), and for others as they come.

    Each shape takes up to a minute, less where torch kept the result of an earlier run.

    Raises:
        ConfigError: There is no C++ compiler.
        ModelError: torch.compile fails for this network or on this machine; at the first window where none is foreseen.
    """
    if not request.on_gpu and not _compiler():
        raise ConfigError(
            "backend compile needs a C++ compiler, and none is on the path",
            hint=f"install {_USUAL}, or name another in the variable CXX, or --backend torch",
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
        # no_grad: compiled code is made for one mode, and freezing needs weights that are no inference tensors
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(x.device.type, torch.bfloat16, enabled=request.reduced),
        ):
            out: Tensor = compiled(x.clone() if x.is_inference() else x).float()
        return out

    def run(x: Tensor) -> Tensor:
        if x.shape not in shapes:
            with compiling:  # one thread compiles, the others find it done
                try:
                    out = forward(x)
                except torch.OutOfMemoryError:
                    raise
                except Exception as error:  # Triton's and the driver's have no base class in common with torch's
                    raise does_not_run("torch.compile", error) from error
                shapes.add(x.shape)
                return out
        return forward(x)

    size = request.size or (GPU_SIZE if request.on_gpu else None)
    if size:
        with suppress(torch.OutOfMemoryError):  # it compiles, and the caller takes smaller batches
            run(torch.zeros(request.at_once if request.on_gpu else 1, request.bands, *size, device=request.device))
    identity = f"compile, torch {torch.__version__}, {request.precision}"
    return Forward(run, "compile", identity, model.stride)


_USUAL = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
"""The one that torch takes where the variable CXX names none."""


def _compiler() -> str | None:
    words = shlex.split(os.environ.get("CXX", ""), posix=sys.platform != "win32")  # as in "ccache g++"
    return shutil.which(words[0] if words else _USUAL)
