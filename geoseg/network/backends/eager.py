"""Backend "torch": torch's own operations, for networks that no other backend runs."""

import torch
from torch import Tensor

from geoseg.network.folding import FoldedSegNeXt, Logits, deployed
from geoseg.network.forward import Forward, Request
from geoseg.network.stored_model import StoredModel


def load(model: StoredModel, request: Request) -> Forward:
    """The network in its inference form, channels last, under autocast if the precision is reduced."""
    module = deployed(model.network)
    form = "folded" if isinstance(module, FoldedSegNeXt) else "as trained"
    logits = Logits(module).to(device=request.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    kind = torch.device(request.device).type

    def run(x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), torch.autocast(kind, torch.bfloat16, enabled=request.reduced):
            out: Tensor = logits(x).float()
        return out

    return Forward(run, "torch", f"torch {torch.__version__}, {form}, {request.precision}", model.stride)
