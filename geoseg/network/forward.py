"""What every backend takes and gives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from geoseg.errors import ModelError, in_one_line


@dataclass(frozen=True, slots=True)
class Request:
    """How a network is to run."""

    precision: str = "float32"  # one of `geoseg.network.backends.PRECISIONS`
    device: str = "cpu"  # by torch's name
    bands: int = 3  # of the windows
    threads: int = 1  # per window, on a CPU; 1 is for callers that run several windows in their own threads
    at_once: int = 1  # windows that run side by side on a CPU, in one batch on a GPU
    size: tuple[int, int] | None = None  # of most windows, px, to be made ready for; None leaves that to the first

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
        identity: What the last bits of the result depend on, beside the weights and the machine: backend, version,
            precision. Shown to people, too.
        stride: Pixels per logit s.
        takes_arrays: Whether ``run`` takes and returns numpy arrays; else torch tensors on the device.
    """

    run: Callable[[Any], Any]
    backend: str
    identity: str
    stride: int
    takes_arrays: bool = False

    def __call__(self, x: Any) -> Any:
        """Logits of windows: an array for an array, a tensor for a tensor.

        A `ModelError` if they have another size than the stride says: the stitcher's kernels check no index.
        """
        logits = self._logits(x)
        (height, width), found = x.shape[2:], tuple(logits.shape[2:])
        if found != (-(-height // self.stride), -(-width // self.stride)):
            raise ModelError(
                f"this network gives {found[0]} × {found[1]} logits for a window of {height} × {width} px, "
                f"expected one for every {self.stride} px",
                hint="train a network whose output is as large as its input; SMP's FPN needs encoder_depth 5",
            )
        return logits

    def _logits(self, x: Any) -> Any:
        if isinstance(x, np.ndarray) == self.takes_arrays:
            return self.run(x)
        import torch

        if self.takes_arrays:
            return torch.from_numpy(self.run(x.contiguous().numpy()))
        return self.run(torch.from_numpy(x)).numpy()


def does_not_run(runtime: str, error: Exception) -> ModelError:
    """The error for a network that a runtime refuses."""
    return ModelError(f"this network does not run in {runtime}: {in_one_line(error, 300)}", hint="--backend torch")
