"""Table 7 of the SegNeXt paper: the decoders that it compares with its own. Off the main path.

Figure 3 shows three: (a) SegFormer's all-MLP over four stages, (b) a heavy convolutional head on the last stage, (c)
the light one of `geoseg.models.hamburger`, which the paper keeps. The paper has no code and no widths for (a) and (b);
here they have the width of (c) and its group norms. All take the encoder's list of features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from geoseg.models.hamburger import ConvNorm, HamburgerDecoder, init_convolutions, joined
from geoseg.models.studies.contexts import CONTEXTS

DECODERS = ("ham", "mlp", "conv")
RATES = (3, 6, 9)
"""Dilations of the convolutional head: half of DeepLabv3's at stride 16 (6, 12, 18)."""


class JoinedDecoder(nn.Module):
    """Decoder (c) with another context module, or with stage 1 as well.

    References:
        Table 5 for the context, Table 7 for stage 1. The paper does not name the stride at which stage 1 is joined, but
        says that it costs much: T goes from 6.6 to 12.1 GMAC at stride 4, and would stay at 6.6 at stride 8.
    """

    def __init__(
        self, encoder_channels: Sequence[int], *, context: str, stage1: bool, channels: int, rank: int, groups: int
    ) -> None:
        super().__init__()
        self.stages, self.stride = (4, 4) if stage1 else (3, 8)
        self.squeeze = ConvNorm(sum(encoder_channels[-self.stages :]), channels, groups=groups, activation=True)
        self.align = ConvNorm(channels, channels, groups=groups, activation=True)
        init_convolutions(self)
        self.context = CONTEXTS[context](channels, rank, groups)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Decoded features (N, D, H/stride, W/stride) of the encoder's list of features."""
        out: Tensor = self.align(self.context(self.squeeze(joined(features[-self.stages :]))))
        return out


class MlpDecoder(nn.Module):
    """Decoder (a), SegFormer's: four stages, each 1×1 to one width, joined at stride 4 and fused by a 1×1.

    References:
        Xie et al., "SegFormer", NeurIPS 2021, section 3.2.
    """

    stride = 4

    def __init__(self, encoder_channels: Sequence[int], *, channels: int, groups: int) -> None:
        super().__init__()
        self.linear = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in encoder_channels[-4:])
        self.fuse = ConvNorm(4 * channels, channels, groups=groups, activation=True)
        init_convolutions(self)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Decoded features (N, D, H/4, W/4) of the encoder's list of features."""
        stages = [linear(stage) for linear, stage in zip(self.linear, features[-4:], strict=True)]
        out: Tensor = self.fuse(joined(stages))
        return out


class ConvDecoder(nn.Module):
    """Decoder (b): DeepLabv3's pyramid of dilated convolutions on the last stage alone.

    The paper names ASPP, PSP and DANet as such heads. This is ASPP: a 1×1, three dense 3×3 convolutions with growing
    gaps and the image's mean, joined and fused by a 1×1.

    References:
        Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017, section 3.3.
    """

    stride = 32

    def __init__(self, encoder_channels: Sequence[int], *, channels: int, groups: int) -> None:
        super().__init__()
        width = encoder_channels[-1]
        self.point = ConvNorm(width, channels, groups=groups, activation=True)
        self.dilated = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, channels, 3, padding=rate, dilation=rate, bias=False),
                nn.GroupNorm(groups, channels),
                nn.ReLU(),
            )
            for rate in RATES
        )
        self.image = ConvNorm(width, channels, groups=None, activation=True)  # a single pixel cannot be normalised
        self.fuse = ConvNorm((len(RATES) + 2) * channels, channels, groups=groups, activation=True)
        init_convolutions(self)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Decoded features (N, D, H/32, W/32) of the encoder's list of features."""
        x = features[-1]
        image = self.image(x.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        out: Tensor = self.fuse(torch.cat([self.point(x), *(conv(x) for conv in self.dilated), image], dim=1))
        return out


def build_decoder(
    name: str,
    encoder_channels: Sequence[int],
    *,
    context: str,
    stage1: bool,
    channels: int,
    rank: int,
    groups: int,
) -> nn.Module:
    """A decoder to features (N, channels, H/stride, W/stride); its ``stride`` is an attribute.

    Args:
        name: "ham" for the paper's own (c), "mlp" for (a), "conv" for (b).
        encoder_channels: Channels of the encoder's features, as SMP lists them.
        context: Table 5: what stands in (c): "ham", "ema", "non_local", "cc", or "none".
        stage1: Table 7: let (c) join stage 1 too, at stride 4.
        channels: Width of the decoder.
        rank: Rank of the Hamburger's factorization.
        groups: Groups of the group norms.

    Raises:
        ValueError: An unknown decoder or context, or a context or stage 1 for another decoder than (c).
    """
    if name not in DECODERS:
        raise ValueError(f"decoder must be one of {', '.join(DECODERS)}, found {name!r}")
    if context not in CONTEXTS:
        raise ValueError(f"context must be one of {', '.join(CONTEXTS)}, found {context!r}")
    if name == "ham":
        if context == "ham" and not stage1:
            return HamburgerDecoder(encoder_channels, channels=channels, rank=rank, groups=groups)
        return JoinedDecoder(
            encoder_channels, context=context, stage1=stage1, channels=channels, rank=rank, groups=groups
        )
    if context != "ham" or stage1:
        raise ValueError(f"decoder {name!r} has no context module and one set of stages: leave out context and stage1")
    decoder = MlpDecoder if name == "mlp" else ConvDecoder
    return decoder(encoder_channels, channels=channels, groups=groups)
