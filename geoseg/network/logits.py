"""A network's logits at its own stride: what overlapping windows are blended in."""

from __future__ import annotations

from torch import Tensor, nn

from geoseg.network.stored_model import logits_stride


def logits_of(network: nn.Module, x: Tensor) -> Tensor:
    """Windows (N, B, H, W) to logits (N, K, H / s, W / s), not upsampled where the network has them smaller."""
    out: Tensor = network.forward_logits(x) if logits_stride(network) > 1 else network(x)  # type: ignore[operator]
    return out


class Logits(nn.Module):
    """`logits_of` a network as a module's output, as exporters and compilers want it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Windows (N, B, H, W) to logits (N, K, H / s, W / s)."""
        return logits_of(self.network, x)
