"""SegNeXt as the official code computes it: a plain eager network, the rival and the reference of the benchmarks.

Paper: Guo et al., NeurIPS 2022, arXiv 2209.08575. Original code: github.com/Visual-Attention-Network/SegNeXt,
Apache-2.0. Written anew, with that code's names of parameters and its order of operations, costs included: tensors in
NCHW memory, features flattened to (N, H·W, C) between blocks and LayerNorm on them, shortcuts copied, batch norms and
layer scales as operations of their own, all three stages of the head resized, X^T W computed once more than needed.
What differs: the bases of the factorization are stored and not drawn at every forward, so that outputs can be
compared, and it runs without CUDA. Stochastic depth and dropout are left out: for evaluation only.

`tests/test_official_form.py` holds it to outputs of the original, to its keys, and to its count of launched kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MLP_RATIOS = (8, 8, 4, 4)
EVAL_STEPS = 7
NMF_EPS = 1e-6
INV_T = 1  # a product by 1: the official code has it
STRIPS = (7, 11, 21)


@dataclass(frozen=True, slots=True)
class Variant:
    """Widths and depths of the four stages, width of the head, rank of the factorization."""

    dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    channels: int
    rank: int


VARIANTS = {
    "T": Variant((32, 64, 160, 256), (3, 3, 5, 2), 256, 16),
    "S": Variant((64, 128, 320, 512), (2, 2, 4, 2), 256, 16),
    "B": Variant((64, 128, 320, 512), (3, 3, 12, 3), 512, 64),
    "L": Variant((64, 128, 320, 512), (3, 5, 27, 3), 1024, 64),
}
"""The four sizes as the official repository has them."""


def depthwise(channels: int, height: int, width: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, (height, width), padding=(height // 2, width // 2), groups=channels)


def flattened(x: Tensor) -> Tensor:
    """(N, C, H, W) to (N, H·W, C)."""
    return x.flatten(2).transpose(1, 2)


class SpatialGatingUnit(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv0 = depthwise(channels, 5, 5)
        for i, k in enumerate(STRIPS):
            setattr(self, f"conv{i}_1", depthwise(channels, 1, k))
            setattr(self, f"conv{i}_2", depthwise(channels, k, 1))
        self.conv3 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        u = x.clone()
        a = self.conv0(x)
        a_7 = self.conv0_2(self.conv0_1(a))
        a_11 = self.conv1_2(self.conv1_1(a))
        a_21 = self.conv2_2(self.conv2_1(a))
        out: Tensor = self.conv3(a + a_7 + a_11 + a_21) * u
        return out


class Attention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj_1 = nn.Conv2d(channels, channels, 1)
        self.spatial_gating_unit = SpatialGatingUnit(channels)
        self.proj_2 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x.clone()
        out: Tensor = self.proj_2(self.spatial_gating_unit(F.gelu(self.proj_1(x)))) + shortcut
        return out


class HiddenConv(nn.Module):
    """The 3×3 of the MLP: a module of its own, as its keys tell."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = depthwise(channels, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dwconv(x)
        return out


class Mlp(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.dwconv = HiddenConv(hidden)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.dwconv(self.fc1(x))))
        return out


class Block(nn.Module):
    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        # before the modules, as the official list of keys has them
        self.layer_scale_1 = nn.Parameter(torch.full((channels,), 0.01))
        self.layer_scale_2 = nn.Parameter(torch.full((channels,), 0.01))
        self.norm1 = nn.BatchNorm2d(channels)
        self.attn = Attention(channels)
        self.norm2 = nn.BatchNorm2d(channels)
        self.mlp = Mlp(channels, ratio * channels)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """(N, H·W, C) to the same shape."""
        n, pixels, channels = x.shape
        x = x.permute(0, 2, 1).view(n, channels, height, width)
        x = x + self.layer_scale_1[:, None, None] * self.attn(self.norm1(x))
        x = x + self.layer_scale_2[:, None, None] * self.mlp(self.norm2(x))
        return x.view(n, channels, pixels).permute(0, 2, 1)


class Stem(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Conv2d(3, channels // 2, 3, stride=2, padding=1),
            nn.BatchNorm2d(channels // 2),
            nn.GELU(),
            nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        x = self.proj(x)
        return flattened(x), x.shape[2], x.shape[3]


class PatchEmbed(nn.Module):
    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        x = self.norm(self.proj(x))
        return flattened(x), x.shape[2], x.shape[3]


class Backbone(nn.Module):
    def __init__(self, dims: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        for i, (channels, depth, ratio) in enumerate(zip(dims, depths, MLP_RATIOS, strict=True), start=1):
            embed = Stem(channels) if i == 1 else PatchEmbed(dims[i - 2], channels)
            setattr(self, f"patch_embed{i}", embed)
            setattr(self, f"block{i}", nn.ModuleList(Block(channels, ratio) for _ in range(depth)))
            setattr(self, f"norm{i}", nn.LayerNorm(channels))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features of the four stages, (N, C, H/4, W/4) to (N, C, H/32, W/32)."""
        stages = []
        for i in (1, 2, 3, 4):
            x, height, width = getattr(self, f"patch_embed{i}")(x)
            for block in getattr(self, f"block{i}"):
                x = block(x, height, width)
            x = getattr(self, f"norm{i}")(x)
            x = x.reshape(len(x), height, width, -1).permute(0, 3, 1, 2).contiguous()
            stages.append(x)
        return stages


class Factorization(nn.Module):
    """Non-negative matrix factorization with the official order of products."""

    bases: Tensor

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        generator = torch.Generator(device="cpu").manual_seed(0)
        bases = torch.rand(1, channels, rank, generator=generator, device="cpu")
        # no checkpoint has them
        self.register_buffer("bases", bases, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        x = x.view(n, channels, height * width)  # X (N, D, H·W)
        bases = F.normalize(self.bases.repeat(n, 1, 1), dim=1)  # W (N, D, R)
        codes = F.softmax(INV_T * torch.bmm(x.transpose(1, 2), bases), dim=-1)  # C (N, H·W, R)
        for _ in range(EVAL_STEPS):
            codes = self.next_codes(x, bases, codes)
            numerator = torch.bmm(x, codes)
            denominator = bases.bmm(codes.transpose(1, 2).bmm(codes))
            bases = bases * numerator / (denominator + NMF_EPS)
        codes = self.next_codes(x, bases, codes)
        return torch.bmm(bases, codes.transpose(1, 2)).view(n, channels, height, width)

    @staticmethod
    def next_codes(x: Tensor, bases: Tensor, codes: Tensor) -> Tensor:
        numerator = torch.bmm(x.transpose(1, 2), bases)
        denominator = codes.bmm(bases.transpose(1, 2).bmm(bases))
        return codes * numerator / (denominator + NMF_EPS)


class ConvNorm(nn.Module):
    """1×1 convolution with a bias, or group norm after it; ReLU where asked for."""

    def __init__(self, in_channels: int, channels: int, *, groups: int | None, activation: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 1, bias=groups is None)
        if groups is not None:
            self.gn = nn.GroupNorm(groups, channels)
        self.normalized, self.activation = groups is not None, activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.normalized:
            x = self.gn(x)
        return F.relu(x, inplace=True) if self.activation else x


class Hamburger(nn.Module):
    def __init__(self, channels: int, rank: int, groups: int) -> None:
        super().__init__()
        self.ham_in = ConvNorm(channels, channels, groups=None, activation=False)
        self.ham = Factorization(channels, rank)
        self.ham_out = ConvNorm(channels, channels, groups=groups, activation=False)

    def forward(self, x: Tensor) -> Tensor:
        enjoyed = self.ham_out(self.ham(F.relu(self.ham_in(x), inplace=True)))
        return F.relu(x + enjoyed, inplace=True)


class Head(nn.Module):
    def __init__(self, in_channels: int, channels: int, *, rank: int, classes: int, groups: int) -> None:
        super().__init__()
        self.conv_seg = nn.Conv2d(channels, classes, 1)
        self.squeeze = ConvNorm(in_channels, channels, groups=groups, activation=True)
        self.hamburger = Hamburger(channels, rank, groups)
        self.align = ConvNorm(channels, channels, groups=groups, activation=True)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Logits (N, K, H/8, W/8) of the four stages."""
        used = stages[1:]
        size = used[0].shape[2:]
        joined = torch.cat([F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in used], dim=1)
        out: Tensor = self.conv_seg(self.align(self.hamburger(self.squeeze(joined))))
        return out


class OfficialForm(nn.Module):
    """Image (N, 3, H, W) to logits (N, K, H, W), in the official form; in evaluation mode from the start.

    Args:
        variant: Widths, depths and rank: one of `VARIANTS`, or another.
        classes: Classes K.
        groups: Groups of the head's group norms.
    """

    def __init__(self, variant: Variant, *, classes: int, groups: int = 32) -> None:
        super().__init__()
        self.backbone = Backbone(variant.dims, variant.depths)
        self.decode_head = Head(
            sum(variant.dims[1:]), variant.channels, rank=variant.rank, classes=classes, groups=groups
        )
        self.eval()

    def forward_logits(self, x: Tensor) -> Tensor:
        """Logits (N, K, ceil(H/8), ceil(W/8)), before the upsampling."""
        logits: Tensor = self.decode_head(self.backbone(x))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K, H, W)."""
        return F.interpolate(self.forward_logits(x), size=x.shape[2:], mode="bilinear", align_corners=False)
