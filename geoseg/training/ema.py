"""A moving average of the weights, which is what is validated and saved."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Tensor


class MovingAverage(lightning.Callback):
    """Average of a network's floating-point weights and buffers over the steps.

    After step t it is ``d · average + (1 − d) · weights`` with ``d = min(decay, (1 + t) / (10 + t))``, so that the
    first steps, which are far from any good, are soon forgotten. In a validation it stands in the network.

    Args:
        decay: Decay per step once the run is long enough, below 1.
    """

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._average: dict[str, Tensor] = {}
        self._step = 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begin with the weights as they are, or go on."""
        weights = _weights(pl_module)
        if self._average:
            self._average = {key: value.to(weights[key]) for key, value in self._average.items()}
        else:
            self._average = {key: value.clone() for key, value in weights.items()}
        self._step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the step's weights in; forwards that only gather gradients are no step."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        decay = min(self._decay, (1 + self._step) / (10 + self._step))
        weights = _weights(pl_module)
        torch._foreach_lerp_(list(self._average.values()), [weights[key] for key in self._average], 1 - decay)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Put the average into the network."""
        self._swap(pl_module)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Put the weights back."""
        self._swap(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The average, for checkpoints."""
        return {"average": self._average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with a checkpoint's average."""
        self._average = dict(state_dict["average"])

    @torch.no_grad()
    def _swap(self, task: lightning.LightningModule) -> None:
        for key, value in _weights(task).items():
            weight = value.clone()
            value.copy_(self._average[key])
            self._average[key].copy_(weight)


def _weights(task: lightning.LightningModule) -> dict[str, Tensor]:
    """Floating-point weights and buffers of the network, without copying them."""
    network: Any = task.network
    return {key: value for key, value in network.state_dict().items() if value.is_floating_point()}


def average_of(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The moving average in a checkpoint; empty where the run kept none."""
    average: dict[str, Tensor] = checkpoint["callbacks"].get(MovingAverage.__qualname__, {}).get("average", {})
    return average
