"""What every backend takes and gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from geoseg.errors import ModelError, in_one_line
from geoseg.network.stored_model import logits_stride

if TYPE_CHECKING:
    from torch import nn

Floats = npt.NDArray[np.float32]


class Model(Protocol):
    """A trained network; `geoseg.network.stored_model.StoredModel` builds it when it is first asked for."""

    @property
    def network(self) -> nn.Module:
        """SMP network in evaluation mode, on the CPU."""

    @property
    def stride(self) -> int:
        """Pixels per logit."""


@dataclass(frozen=True, slots=True)
class InMemory:
    """A network that comes from no model folder; see `Model`."""

    network: nn.Module

    @property
    def stride(self) -> int:
        """Pixels per logit."""
        return logits_stride(self.network)


@dataclass(frozen=True, slots=True)
class Request:
    """How a network is to run; see `geoseg.network.backends.load_backend`."""

    precision: str
    device: str
    bands: int
    threads: int
    at_once: int
    size: tuple[int, int] | None = None

    @property
    def on_gpu(self) -> bool:
        """Whether the network runs on a GPU."""
        return self.device != "cpu"

    @property
    def reduced(self) -> bool:
        """Whether the precision is below float32."""
        return self.precision != "float32"


@dataclass(frozen=True, slots=True)
class Forward:
    """A network that runs: normalised windows (N, B, H, W) float32 to logits (N, K, H / s, W / s) float32.

    Attributes:
        run: What computes them.
        backend: Its name.
        identity: What the last bits of the result depend on, beside the weights and the machine: backend, its
            version, precision; for people too.
        stride: Pixels per logit s.
        takes_arrays: Whether ``run`` takes and gives numpy arrays; else torch tensors on the device.
    """

    run: Callable[[Any], Any]
    backend: str
    identity: str
    stride: int
    takes_arrays: bool = False

    def __call__(self, x: Any) -> Any:
        """Logits of windows: an array of an array, a tensor of a tensor."""
        if isinstance(x, np.ndarray) == self.takes_arrays:
            return self.run(x)
        import torch

        if self.takes_arrays:
            return torch.from_numpy(self.run(x.contiguous().numpy()))
        return self.run(torch.from_numpy(x)).numpy()


def does_not_run(runtime: str, error: Exception) -> ModelError:
    """The error of a network that a runtime refuses."""
    return ModelError(f"this network does not run in {runtime}: {in_one_line(error, 300)}", hint="--backend torch")
