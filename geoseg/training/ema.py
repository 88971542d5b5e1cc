"""A moving average of the weights, which is what is validated and saved."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class MovingAverage(WeightAveraging):
    """Lightning's moving average of parameters and buffers, with a decay that grows.

    After step t it is ``d · average + (1 − d) · weights`` with ``d = min(decay, (1 + t) / (10 + t))``, so that the
    first steps, which are far from any good, are soon forgotten; after the first step it is the weights.

    Args:
        decay: Decay per step once the run is long enough, below 1.
    """

    def __init__(self, decay: float) -> None:
        def update(average: list[Tensor], weights: list[Tensor], steps: Any) -> None:
            """Take a step's tensors of one data type in, after as many steps as are in the average."""
            if average[0].is_floating_point():
                t = int(steps) + 1
                torch._foreach_lerp_(average, weights, 1 - min(decay, (1 + t) / (10 + t)))
            else:  # counters
                torch._foreach_copy_(average, weights)

        super().__init__(multi_avg_fn=update)
