"""Preview of a run: windows, steps, network, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from geoseg.config import TrainConfig
from geoseg.data.labelled import LabelledScene
from geoseg.training.task import windows_per_step
from geoseg.words import count

PROBE_PX = 128


@dataclass(frozen=True, slots=True)
class Preview:
    """A run in numbers."""

    problems: tuple[str, ...]  # errors and warnings as text
    is_fine: bool  # whether the run would start
    facts: Mapping[str, str] = field(default_factory=dict)  # by name; empty if the run would not start

    def lines(self) -> list[str]:
        """Everything as text."""
        width = max(map(len, self.facts), default=0)
        return [*self.problems, *(f"{name:<{width}}  {value}" for name, value in self.facts.items())]


def describe_run(
    config: TrainConfig,
    network: nn.Module,
    train: Sequence[LabelledScene],
    validation_windows: int,
    *,
    device: torch.device,
    devices: int,
) -> dict[str, str]:
    """What describes a run, by name."""
    recipe = config.train
    step = windows_per_step(recipe, devices)
    pixels = sum(s.grid.height * s.grid.width for s in train)
    windows, every = recipe.iterations * step, recipe.validation_interval
    passes = windows * recipe.size**2 / pixels
    passes_here = count(recipe.accumulate, "forward pass", "forward passes")
    parts = f"{recipe.batch_size} at a time, {passes_here} on {count(devices, 'device')}"
    counts = [sum(p.numel() for p in network.parameters() if p.requires_grad or all_) for all_ in (True, False)]
    ema = "" if recipe.ema is None else f", moving average of decay {recipe.ema:g}"
    return {
        "run folder": str(config.output),
        "devices": f"{devices} × {device.type}",
        "training scenes": f"{len(train)}, {pixels / 1e6:.1f} Mpx",
        "validation": f"{validation_windows} windows of {config.window.size} px every {every} iterations",
        "a step": f"{step} windows of {recipe.size} px: {parts}",
        "iterations": f"{recipe.iterations}, {windows} windows: {_short(passes)} times the scenes' area",
        "network": f"{config.model.architecture}, {config.model.encoder}: {counts[0] / 1e6:.2f} M parameters",
        "trained": f"{counts[1] / 1e6:.2f} M{ema}",
        "loss": " + ".join(f"{term.weight:g} {term.name}" for term in recipe.loss),
        "memory": f"about {_short(memory_bytes(config, network) / 2**30)} GiB on each device",
    }


def _short(number: float) -> str:
    """Two digits, or all before the decimal point."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def memory_bytes(config: TrainConfig, network: nn.Module) -> float:
    """Rough memory of training on a device: weights, gradients, AdamW's two moments, and activations.

    Activations are measured in a small forward pass and grow with the pixels; autocast halves them.
    """
    recipe = config.train
    weights = sum(p.numel() for p in network.parameters())
    copies = 4 + (recipe.ema is not None)
    side = min(recipe.size, PROBE_PX)
    kept = saved_bytes(network, len(config.imagery.bands), side)
    share = 1.0 if recipe.precision in (None, "32-true") else 0.5
    return 4.0 * weights * copies + kept * share * recipe.batch_size * (recipe.size / side) ** 2


def saved_bytes(network: nn.Module, bands: int, side: int) -> int:
    """Bytes that a forward pass of one window of ``side`` px keeps for the gradient, besides the weights."""
    held: dict[tuple[int, int], int] = {}
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[(storage.data_ptr(), tensor._version)] = storage.nbytes()
        return tensor

    # In evaluation mode norms keep as much, and their statistics do not change.
    was_training, state = network.training, torch.get_rng_state()
    network.eval()
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = network(torch.zeros(1, bands, side, side))
    finally:
        network.train(was_training)
        torch.set_rng_state(state)
    del output
    return sum(held.values())
