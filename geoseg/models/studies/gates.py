"""Table 6 of the SegNeXt paper: multi-scale convolutional attention with parts left out. Off the main path.

Submodules are named as in `geoseg.models.mscan.MultiScaleGate`, so the parts that remain have the same keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

STRIPS = {7: "conv0", 11: "conv1", 21: "conv2"}
"""Kernel sizes of the strip branches and the names of their convolutions in checkpoints."""


class MultiScaleGateStudy(nn.Module):
    """The gate of Figure 2c without some of its strip branches, its 1×1 convolution or its product; see `find_gate`."""

    def __init__(self, channels: int, *, branches: Sequence[int], channel_mixing: bool, attention: bool) -> None:
        super().__init__()
        self.branches = tuple(branches)
        self.attention = attention
        self.conv0 = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        for k in self.branches:
            name, pad = STRIPS[k], k // 2
            self.add_module(f"{name}_1", nn.Conv2d(channels, channels, (1, k), padding=(0, pad), groups=channels))
            self.add_module(f"{name}_2", nn.Conv2d(channels, channels, (k, 1), padding=(pad, 0), groups=channels))
        self.conv3 = nn.Conv2d(channels, channels, 1) if channel_mixing else nn.Identity()

    def forward(self, u: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        local: Tensor = self.conv0(u)
        total = local
        for k in self.branches:
            name = STRIPS[k]
            total = total + self.get_submodule(f"{name}_2")(self.get_submodule(f"{name}_1")(local))
        mixed: Tensor = self.conv3(total)
        return mixed * u if self.attention else mixed


def find_gate(
    whole: Callable[[int], nn.Module],
    *,
    branches: Sequence[int] = tuple(STRIPS),
    channel_mixing: bool = True,
    attention: bool = True,
) -> Callable[[int], nn.Module]:
    """What builds a gate from its number of channels: ``whole`` if nothing is left out, else a study.

    Args:
        whole: The paper's gate.
        branches: Kernel sizes of the strip branches that remain, of 7, 11 and 21; the 5×5 before them always does.
        channel_mixing: Keep the 1×1 convolution after the sum.
        attention: Multiply the input by the result; False returns the result itself.

    Raises:
        ValueError: ``branches`` are not some of 7, 11 and 21, each once.
    """
    if not isinstance(branches, Sequence) or sorted(set(STRIPS) & set(branches)) != sorted(branches):
        raise ValueError(f"branches must be some of {', '.join(map(str, STRIPS))}, each once, found {branches!r}")
    branches = sorted(branches)
    if branches == list(STRIPS) and channel_mixing and attention:
        return whole
    return partial(MultiScaleGateStudy, branches=branches, channel_mixing=channel_mixing, attention=attention)
