"""Logits of the classes of a map from those of a network that also sees where objects touch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from geoseg.tiling import arrays


def mapped_logits(logits: Tensor, channels: Sequence[int]) -> Tensor:
    """Logits (N, K, H, W) of a map's classes from those of all channels; see `geoseg.tiling.arrays.mapped_logits`."""
    if list(channels) == list(range(len(channels))):
        return logits
    found: Tensor = arrays.mapped_logits(logits.transpose(0, 1), channels, torch.maximum, torch.stack)
    return found.transpose(0, 1)
