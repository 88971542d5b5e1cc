"""Backend "compile": torch.compile, which fuses what lies between convolutions into C++, or on a GPU Triton."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import threading
from collections.abc import Callable

import torch
from torch import Tensor, nn

from geoseg.errors import ConfigError
from geoseg.inference.backends.forward import Forward, Request, does_not_run
from geoseg.inference.folding import deployed
from geoseg.inference.logits import Logits, logits_stride
from geoseg.inference.memory import keep_memory


def load(network: nn.Module, request: Request) -> Forward:
    """The network compiled; the first window of each size takes a minute, less where torch kept it from an earlier run.

    Raises:
        ConfigError: There is no C++ compiler.
        ModelError: torch.compile does not work with this Python; from a window, that it cannot compile the network.
    """
    if request.device.type == "cpu" and not _compiler():
        raise ConfigError(
            "backend compile needs a C++ compiler, and none is on the path",
            hint=f"install {_USUAL}, or name another in the variable CXX, or --backend torch",
        )
    stride = logits_stride(network)
    logits = Logits(deployed(network)).requires_grad_(False)
    logits = logits.to(device=request.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if request.device.type == "cpu":
        keep_memory()
    try:
        compiled: Callable[[Tensor], Tensor] = torch.compile(logits, dynamic=False, options={"freezing": True})
    except RuntimeError as error:
        raise does_not_run("torch.compile", error) from error
    from torch._dynamo.exc import TorchDynamoException  # slow to import, and here it is imported anyway

    half = request.dtype == torch.bfloat16
    shapes: set[torch.Size] = set()
    compiling = threading.Lock()

    def forward(x: Tensor) -> Tensor:
        # no_grad: compiled code is made for one mode, and freezing needs weights that are no inference tensors
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16, enabled=half):
            out: Tensor = compiled(x.clone() if x.is_inference() else x).float()
        return out

    def run(x: Tensor) -> Tensor:
        if x.shape not in shapes:
            with compiling:  # one thread compiles, the others find it done
                try:
                    out = forward(x)
                except TorchDynamoException as error:
                    raise does_not_run("torch.compile", error) from error
                shapes.add(x.shape)
                return out
        return forward(x)

    identity = f"compile, torch {torch.__version__}, {request.precision}"
    return Forward(run, "compile", identity, stride)


_USUAL = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
"""The one that torch takes where the variable CXX names none."""


def _compiler() -> str | None:
    words = shlex.split(os.environ.get("CXX", ""), posix=sys.platform != "win32")  # as in "ccache g++"
    return shutil.which(words[0] if words else _USUAL)
