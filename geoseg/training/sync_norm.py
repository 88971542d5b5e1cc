"""Batch norms that count over all processes, as if the windows of all devices were one batch.

torch's own does so on GPUs and refuses tensors on a CPU, so for these there is one here. Both hold the parameters and
buffers of the batch norm they stand for, under the same names.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d, SyncBatchNormAct
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Swaps = list[tuple[nn.Module, str, nn.Module]]

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)
"""What is replaced; a kind of norm that does something else stays as it is."""


class _SumOverProcesses(torch.autograd.Function):
    """Sum over the processes; so is the gradient, as each process's loss depends on what all have given."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone()
        dist.all_reduce(total)
        return total


class ProcessBatchNorm(_BatchNorm):
    """Batch norm over the batches of all processes, on a CPU; in evaluation the same as any other.

    What timm's norms with an activation do after the norm, it does too.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.drop: nn.Module = nn.Identity()
        self.act: nn.Module = nn.Identity()

    def _check_input_dim(self, input: Tensor) -> None:
        """Takes (N, C, …)."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, …) normalised per channel over all processes."""
        y: Tensor = self.act(self.drop(self._normalize(x)))
        return y

    def _normalize(self, x: Tensor) -> Tensor:
        use_running = not self.training and self.running_mean is not None
        if use_running:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        shape = (1, -1) + (1,) * (x.ndim - 2)
        dims = [d for d in range(x.ndim) if d != 1]
        # Two passes, mean before variance: a mean of squares less a square of means loses half the digits.
        here = x.new_tensor([x.numel() / x.shape[1]], dtype=torch.float64)
        dist.all_reduce(here)
        count = here.item()
        wide = x if x.dtype == torch.float64 else x.float()
        mean = _SumOverProcesses.apply(wide.sum(dims)) / count
        centred = wide - mean.view(shape)
        variance = _SumOverProcesses.apply((centred**2).sum(dims)) / count
        y = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        self._track(mean.detach(), variance.detach() * (count / max(count - 1, 1)))
        normalized: Tensor = y.to(x.dtype)
        return normalized

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if not self.training or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), momentum)


def synchronize_norms(network: nn.Module, *, on_gpu: bool) -> Swaps:
    """Put a synchronised one in the place of every batch norm.

    Returns:
        What stood there, for `restore_norms`.
    """
    swaps: Swaps = []
    made: dict[int, nn.Module] = {}
    for parent in list(network.modules()):
        for name, module in list(parent.named_children()):
            if type(module) not in PLAIN:
                continue
            if id(module) not in made:
                made[id(module)] = _synchronized(cast(_BatchNorm, module), on_gpu=on_gpu)
            setattr(parent, name, made[id(module)])
            swaps.append((parent, name, module))
    return swaps


def restore_norms(swaps: Swaps) -> None:
    """Put the batch norms back that stood there, with what has become of their parameters and buffers."""
    for parent, name, module in swaps:
        trained = getattr(parent, name)
        for key in module._parameters:
            module._parameters[key] = trained._parameters[key]
        for key in module._buffers:
            module._buffers[key] = trained._buffers[key]
        module.train(trained.training)
        setattr(parent, name, module)


def _synchronized(module: _BatchNorm, *, on_gpu: bool) -> nn.Module:
    after = {key: module._modules[key] for key in ("drop", "act") if key in module._modules}
    kinds = (SyncBatchNormAct if after else nn.SyncBatchNorm) if on_gpu else ProcessBatchNorm
    made = kinds(module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats)
    for key, value in module._parameters.items():
        made._parameters[key] = value
    for key, buffer in module._buffers.items():
        made._buffers[key] = buffer
    for key, part in after.items():
        setattr(made, key, part)
    made.train(module.training)
    return made
