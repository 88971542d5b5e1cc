"""What every backend takes and gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from geoseg.errors import ModelError


@dataclass(frozen=True, slots=True)
class Request:
    """How a network is to run; the words are those of `geoseg.inference.backends.load_backend`."""

    dtype: torch.dtype
    device: torch.device
    bands: int
    threads: int
    at_once: int
    size: tuple[int, int] | None = None

    @property
    def precision(self) -> str:
        """Name of the data type."""
        return str(self.dtype).removeprefix("torch.")


@dataclass(frozen=True, slots=True)
class Forward:
    """A network that runs: normalised windows (N, B, H, W) float32 to logits (N, K, H / s, W / s) float32.

    Attributes:
        run: What computes them.
        backend: Its name.
        identity: What the last bits of the result depend on, beside the weights and the machine: backend, its
            version, precision.
        description: The same for people.
        stride: Pixels per logit s.
    """

    run: Callable[[Tensor], Tensor]
    backend: str
    identity: str
    description: str
    stride: int

    def __call__(self, x: Tensor) -> Tensor:
        """Logits of windows."""
        return self.run(x)


class Logits(nn.Module):
    """A network's logits at its own stride as a module's output, as exporters and compilers want it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Windows (N, B, H, W) to logits (N, K, H / s, W / s)."""
        out: Tensor = self.network.forward_logits(x) if logits_stride(self.network) > 1 else self.network(x)  # type: ignore[operator]
        return out


def does_not_run(runtime: str, error: Exception) -> ModelError:
    """The error of a network that was exported, and that a runtime refuses."""
    return ModelError(
        f"this network does not run in {runtime}: {' '.join(str(error).split()):.300}", hint="--backend torch"
    )


def logits_stride(network: nn.Module) -> int:
    """Pixels per logit: what the network says, or 1 where it knows of none."""
    return int(getattr(network, "logits_stride", 1))
