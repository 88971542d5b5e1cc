"""The light Hamburger decoder of SegNeXt: three stages joined at stride 8, one matrix decomposition over all of them.

Papers: Geng et al., ICLR 2021 (the Hamburger); Guo et al., SegNeXt, NeurIPS 2022, arXiv 2209.08575, Figure 3c and Table
5 (its place in the decoder). Original code Apache-2.0; independent implementation, module names after the original's
state dict. The original draws new bases at every forward, also in evaluation (SegNeXt issues 52, 66, 69).
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BASES_SEED = 0
NMF_EPS = 1e-6
EVAL_STEPS = 7


class NMF2d(nn.Module):
    """Low-rank reconstruction of each image's features by non-negative matrix factorization, see `factorize`.

    Every image starts from ``bases``, a buffer (1, D, R) in [0, 1) drawn from a fixed seed; any other may be set.
    Gradients flow through every update, as in the code behind the published results. float32 throughout, also under
    autocast, because sums over H·W overflow float16.
    """

    bases: Tensor

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        # On the CPU and from its own generator: the same on every device, and no global state is touched.
        generator = torch.Generator(device="cpu").manual_seed(BASES_SEED)
        self.register_buffer("bases", torch.rand(1, channels, rank, generator=generator, device="cpu"))

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction (N, D, H, W) of non-negative features (N, D, H, W)."""
        with full_precision(x.device):
            n, d, h, w = x.shape
            # (N, H*W, D), which is how channels-last tensors lie in memory
            pixels = x.float().permute(0, 2, 3, 1).reshape(n, h * w, d)
            steps = 6 if self.training else EVAL_STEPS
            codes, bases = factorize(pixels, F.normalize(self.bases.float(), dim=1), steps)
            return (codes @ bases.transpose(-1, -2)).view(n, h, w, d).permute(0, 3, 1, 2).to(x.dtype)


def factorize(pixels: Tensor, bases: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Codes C (N, H·W, R) and bases W (N, D, R) such that C Wᵀ is near the pixels (N, H·W, D); all of them are ≥ 0.

    Multiplicative updates (Lee and Seung, 2001), so many ``steps`` from bases (1, D, R) of length 1 on, the codes once
    more at the end.
    """
    bases = bases.expand(pixels.shape[0], -1, -1)
    numerator = pixels @ bases  # (N, H·W, R); the first update shares it with the initialisation
    codes = numerator.softmax(dim=-1)
    for _ in range(steps):
        codes = codes * numerator / (codes @ (bases.transpose(-1, -2) @ bases) + NMF_EPS)
        bases = bases * (pixels.transpose(-1, -2) @ codes) / (bases @ (codes.transpose(-1, -2) @ codes) + NMF_EPS)
        numerator = pixels @ bases
    return codes * numerator / (codes @ (bases.transpose(-1, -2) @ bases) + NMF_EPS), bases


class ConvNorm(nn.Module):
    """1×1 convolution, then optionally group norm and ReLU."""

    def __init__(self, in_channels: int, channels: int, *, groups: int | None, activation: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 1, bias=groups is None)
        self.gn = nn.GroupNorm(groups, channels) if groups is not None else nn.Identity()
        self.activation = nn.ReLU() if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C, H, W)."""
        out: Tensor = self.activation(self.gn(self.conv(x)))
        return out


class Hamburger(nn.Module):
    """1×1 and ReLU, the factorization, 1×1 and group norm, a shortcut around them, ReLU."""

    def __init__(self, channels: int, *, rank: int, groups: int) -> None:
        super().__init__()
        self.ham_in = ConvNorm(channels, channels, groups=None, activation=True)
        self.ham = NMF2d(channels, rank)
        self.ham_out = ConvNorm(channels, channels, groups=groups, activation=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, D, H, W) to the same shape."""
        return F.relu(x + self.ham_out(self.ham(self.ham_in(x))))


class HamburgerDecoder(nn.Module):
    """The last three of the encoder's features to decoded features of width ``channels`` at stride 8.

    References:
        Figure 3c and Table 7 of the SegNeXt paper: stage 1 costs much and gains nothing.
    """

    stride = 8

    def __init__(self, encoder_channels: Sequence[int], *, channels: int, rank: int, groups: int) -> None:
        super().__init__()
        self.squeeze = ConvNorm(sum(encoder_channels[-3:]), channels, groups=groups, activation=True)
        self.hamburger = Hamburger(channels, rank=rank, groups=groups)
        self.align = ConvNorm(channels, channels, groups=groups, activation=True)
        init_convolutions(self)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Decoded features (N, D, H/8, W/8) of the encoder's list of features."""
        out: Tensor = self.align(self.hamburger(self.squeeze(joined(features[-3:]))))
        return out


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Turn autocast off; the meta device, where costs are counted, has none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def joined(stages: Sequence[Tensor]) -> Tensor:
    """Features of all stages (N, C₁ + … + Cₖ, H, W) at the size of the first."""
    size = stages[0].shape[2:]
    others = [F.interpolate(stage, size=size, mode="bilinear", align_corners=False) for stage in stages[1:]]
    return torch.cat([stages[0], *others], dim=1)


def init_convolutions(module: nn.Module) -> nn.Module:
    """The module with Kaiming-normal weights (fan-out, ReLU) and zero biases, as in the original decoder."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    return module
