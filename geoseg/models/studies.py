"""Tables 5 and 7 of the SegNeXt paper: other context modules and decoders than its own. Off the main path.

Table 5 has alternatives to the Hamburger, independently implemented from their papers: each maps features (N, D, H, W)
to the same shape, shortcut included. SegNeXt's authors published no code of this study, so inner widths are those of
the papers. What differs: norms are group norms, and blocks that a paper starts as the identity, with a factor of 0 at
their end, start with 1, as the Hamburger does. Table 7 compares the decoders of Figure 3: (a) all-MLP, (b) heavy and
convolutional, (c) `geoseg.models.hamburger`, which the paper keeps. It has no widths for (a) and (b); here they have
the width of (c) and its group norms. Table 6 is in `geoseg.models.mscan.MultiScaleGate`.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geoseg.models.hamburger import (
    BASES_SEED,
    ConvNorm,
    Hamburger,
    HamburgerDecoder,
    full_precision,
    init_convolutions,
    joined,
)

EM_STEPS = 3
DECODERS = ("ham", "mlp", "conv")
RATES = (3, 6, 9)  # dilations of the convolutional head: half of DeepLabv3's at stride 16 (6, 12, 18)


class ExpectationMaximization(nn.Module):
    """Expectation-maximisation attention (Li et al., ICCV 2019): pixels as mixtures of bases fitted to each image.

    E step: responsibilities Z = softmax(X W) over the K bases. M step: each basis becomes the mean of the pixels,
    weighted with its responsibilities, at length 1. After three rounds the features are Z Wᵀ. Gradients flow through
    every round. float32 throughout, as sums over H·W overflow float16.

    The paper starts each image from a running mean of bases over the training batches. Here the bases start from the
    seeded buffer ``bases`` (1, D, K), as in `geoseg.models.hamburger.NMF2d`.
    """

    bases: Tensor

    def __init__(self, channels: int, *, groups: int) -> None:
        super().__init__()
        self.conv_in = ConvNorm(channels, channels, groups=None, activation=False)
        self.conv_out = ConvNorm(channels, channels, groups=groups, activation=False)
        init_convolutions(self)
        generator = torch.Generator(device="cpu").manual_seed(BASES_SEED)
        self.register_buffer("bases", torch.randn(1, channels, 64, generator=generator, device="cpu"))

    def forward(self, x: Tensor) -> Tensor:
        """(N, D, H, W) to the same shape."""
        features = self.conv_in(x)
        with full_precision(x.device):
            n, d, h, w = x.shape
            pixels = features.float().permute(0, 2, 3, 1).reshape(n, h * w, d)
            bases = F.normalize(self.bases.float(), dim=1).expand(n, -1, -1)  # (N, D, K)
            for _ in range(EM_STEPS):
                shares = (pixels @ bases).softmax(dim=-1)  # (N, H*W, K)
                weights = shares / (shares.sum(dim=1, keepdim=True) + 1e-6)
                bases = F.normalize(pixels.mT @ weights, dim=1)
            fitted = (shares @ bases.mT).view(n, h, w, d).permute(0, 3, 1, 2).to(features.dtype)
        return F.relu(x + self.conv_out(F.relu(fitted)))


class NonLocal(nn.Module):
    """Non-local block, embedded Gaussian: every pixel becomes a weighted mean of all pixels, in O(n²) time and memory.

    Embeddings have half of the channels (Wang et al., CVPR 2018).
    """

    def __init__(self, channels: int, *, groups: int) -> None:
        super().__init__()
        inner = max(channels // 2, 1)
        self.theta = nn.Conv2d(channels, inner, 1)
        # A bias of the keys would add the same to all products of a query, which softmax cancels.
        self.phi = nn.Conv2d(channels, inner, 1, bias=False)
        self.g = nn.Conv2d(channels, inner, 1)
        self.out = ConvNorm(inner, channels, groups=groups, activation=False)
        init_convolutions(self)
        _init_embeddings(self.theta, self.phi)

    def forward(self, x: Tensor) -> Tensor:
        """(N, D, H, W) to the same shape."""
        n, _, h, w = x.shape
        queries, keys, values = (conv(x).flatten(2) for conv in (self.theta, self.phi, self.g))  # (N, D/2, H*W)
        attention = (queries.mT @ keys).softmax(dim=-1)  # (N, H*W, H*W)
        mixed = (values @ attention.mT).view(n, -1, h, w)
        out: Tensor = x + self.out(mixed)
        return out


class CrissCross(nn.Module):
    """Criss-cross attention, twice with the same weights: each pixel sees its row and its column, then all pixels.

    Queries and keys have an eighth of the channels (Huang et al., ICCV 2019).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(channels // 8, 1)
        self.query = nn.Conv2d(channels, inner, 1)
        self.key = nn.Conv2d(channels, inner, 1, bias=False)  # see NonLocal
        self.value = nn.Conv2d(channels, channels, 1)
        init_convolutions(self)
        _init_embeddings(self.query, self.key)

    def forward(self, x: Tensor) -> Tensor:
        """(N, D, H, W) to the same shape."""
        for _ in range(2):
            x = x + self._attend(x)
        return x

    def _attend(self, x: Tensor) -> Tensor:
        query, key, value = self.query(x), self.key(x), self.value(x)
        height, width = x.shape[2:]
        across = query.permute(0, 2, 3, 1) @ key.permute(0, 2, 1, 3)  # (N, H, W, W)
        down = query.permute(0, 3, 2, 1) @ key.permute(0, 3, 1, 2)  # (N, W, H, H)
        # A pixel is in its row and in its column, but counts once.
        rows = torch.arange(height, device=x.device)
        down = down.masked_fill(rows[:, None] == rows, float("-inf"))
        attention = torch.cat([across, down.transpose(1, 2)], dim=-1).softmax(dim=-1)  # (N, H, W, W + H)
        in_row = attention[..., :width] @ value.permute(0, 2, 3, 1)  # (N, H, W, D)
        in_column = attention[..., width:].transpose(1, 2) @ value.permute(0, 3, 2, 1)  # (N, W, H, D)
        out: Tensor = (in_row + in_column.transpose(1, 2)).permute(0, 3, 1, 2)
        return out


def _init_embeddings(*convolutions: nn.Conv2d) -> None:
    """Small weights, so that attention starts wide; otherwise products over many channels saturate the softmax."""
    for convolution in convolutions:
        nn.init.normal_(convolution.weight, std=0.01)


CONTEXTS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "ham": lambda channels, rank, groups: init_convolutions(Hamburger(channels, rank=rank, groups=groups)),
    "ema": lambda channels, rank, groups: ExpectationMaximization(channels, groups=groups),
    "non_local": lambda channels, rank, groups: NonLocal(channels, groups=groups),
    "cc": lambda channels, rank, groups: CrissCross(channels),
    "none": lambda channels, rank, groups: nn.Identity(),
}
"""Context modules by name, from the decoder's width, the rank of the factorization and the groups of its norms."""


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
    name: str, encoder_channels: Sequence[int], *, context: str, stage1: bool, channels: int, rank: int, groups: int
) -> nn.Module:
    """A decoder of the encoder's features to (N, channels, H/stride, W/stride), with the attribute ``stride``.

    ``name`` is "ham" for the paper's own (c), "mlp" for (a), "conv" for (b). Table 5: ``context`` is the context module
    of (c), a key of `CONTEXTS`. Table 7: with ``stage1`` (c) joins stage 1 too, at stride 4. A ValueError for an
    unknown decoder or context, or a context or stage 1 for another decoder than (c).
    """
    if name not in DECODERS:
        raise ValueError(f"decoder must be one of {', '.join(DECODERS)}, found {name!r}")
    if context not in CONTEXTS:
        raise ValueError(f"context must be one of {', '.join(CONTEXTS)}, found {context!r}")
    is_study = context != "ham" or stage1
    if name == "ham":
        if not is_study:
            return HamburgerDecoder(encoder_channels, channels=channels, rank=rank, groups=groups)
        return JoinedDecoder(
            encoder_channels, context=context, stage1=stage1, channels=channels, rank=rank, groups=groups
        )
    if is_study:
        raise ValueError(f"decoder {name!r} has no context module and one set of stages: leave out context and stage1")
    return (MlpDecoder if name == "mlp" else ConvDecoder)(encoder_channels, channels=channels, groups=groups)
