"""Backend "torch": what the plain installation has. SegNeXt in a form of its own, other networks as they are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from geoseg.inference.backends.forward import Forward, Request
from geoseg.inference.cpu import CpuSegNeXt, fits, runs_here
from geoseg.inference.folding import FoldedSegNeXt, deployed
from geoseg.inference.logits import Logits, logits_stride
from geoseg.inference.memory import keep_memory

_Run = Callable[[Tensor], Tensor]


def load(network: nn.Module, request: Request) -> Forward:
    """The network in torch."""
    stride = logits_stride(network)
    module = deployed(network)
    if request.device.type == "cpu":
        run, form = _on_cpu(module, request)
    else:
        run, form = _plain(module, request), "folded" if isinstance(module, FoldedSegNeXt) else "as trained"
    identity = f"torch {torch.__version__}, {form}, {request.precision}"
    return Forward(run, "torch", identity, stride)


def _on_cpu(module: nn.Module, request: Request) -> tuple[_Run, str]:
    keep_memory()  # every window takes tensors of the same sizes
    if isinstance(module, FoldedSegNeXt) and fits(module) and runs_here():
        return CpuSegNeXt(module, dtype=request.dtype, threads=request.threads), "SegNeXt's form for CPUs"
    return _plain(module, request), "folded" if isinstance(module, FoldedSegNeXt) else "as trained"


def _plain(module: nn.Module, request: Request) -> _Run:
    """A network in torch's own operations, channels-last, under autocast where the precision is reduced."""
    logits = Logits(module).to(device=request.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    half = request.dtype == torch.bfloat16

    def run(x: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(request.device.type, torch.bfloat16, enabled=half):
            out: Tensor = logits(x).float()
        return out

    return run
