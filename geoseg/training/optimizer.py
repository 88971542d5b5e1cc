"""Groups of parameters and the learning rate of SegNeXt's training."""

from __future__ import annotations

from typing import Any

from torch import nn

from geoseg.config import RunConfig
from geoseg.errors import ConfigError

WARMUP_START = 1e-6


def parameter_groups(network: nn.Module, recipe: RunConfig) -> list[dict[str, Any]]:
    """Trained parameters of encoder and decoder, each split into norms (without weight decay) and others.

    References:
        SegNeXt's ``custom_keys``: norms without decay, ten times the learning rate outside the encoder. By its names
        the stem's two batch norms and the decoder's group norms have decay; here no norm has.
    """
    norms = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for module_name, module in network.named_modules():
        in_encoder = module_name == "encoder" or module_name.startswith("encoder.")
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad:
                groups.setdefault((in_encoder, isinstance(module, norms)), []).append(parameter)
    if not groups:
        raise ConfigError("model.freeze leaves nothing to train", hint="shorten the list")
    return [
        {
            "params": parameters,
            "lr": recipe.learning_rate * (1 if in_encoder else recipe.decoder_lr_factor),
            "weight_decay": 0.0 if is_norm else recipe.weight_decay,
        }
        for (in_encoder, is_norm), parameters in groups.items()
    ]


def lr_factor(step: int, recipe: RunConfig) -> float:
    """Learning rate at a step relative to its peak: polynomial decay to 0, times a linear warm-up.

    References:
        mmcv 1.x's ``poly`` policy with linear warm-up, which SegNeXt was trained with.
    """
    decay = (1 - min(step / recipe.iterations, 1)) ** recipe.poly_power
    if step >= recipe.warmup_iterations:
        return float(decay)
    return float(decay * (1 - (1 - step / recipe.warmup_iterations) * (1 - WARMUP_START)))
