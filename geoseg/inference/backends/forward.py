"""What every backend takes and gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from geoseg.errors import ModelError, in_one_line


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
            version, precision; for people too.
        stride: Pixels per logit s.
    """

    run: Callable[[Tensor], Tensor]
    backend: str
    identity: str
    stride: int

    def __call__(self, x: Tensor) -> Tensor:
        """Logits of windows."""
        return self.run(x)


def does_not_run(runtime: str, error: Exception) -> ModelError:
    """The error of a network that was exported, and that a runtime refuses."""
    return ModelError(f"this network does not run in {runtime}: {in_one_line(error, 300)}", hint="--backend torch")
