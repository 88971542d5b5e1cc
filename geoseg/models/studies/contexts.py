"""Table 5 of the SegNeXt paper: alternatives to the Hamburger in the decoder. Off the main path.

Each maps features (N, D, H, W) to the same shape, shortcut included. Independent implementations of three papers:
expectation-maximisation attention (Li et al., ICCV 2019), non-local (Wang et al., CVPR 2018) and criss-cross attention
(Huang et al., ICCV 2019). SegNeXt's authors published no code of this study, so inner widths are those of the papers.

What differs: norms are group norms, as in the rest of the decoder. Blocks that a paper starts as the identity, with a
factor of 0 at the end, start with the factor 1, as the Hamburger does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geoseg.models.hamburger import BASES_SEED, ConvNorm, Hamburger, full_precision, init_convolutions

EM_BASES = 64
EM_STEPS = 3
EM_EPS = 1e-6
CRISS_CROSS_STEPS = 2
EMBEDDING_STD = 0.01


class ExpectationMaximization(nn.Module):
    """Expectation-maximisation attention: pixels as mixtures of a few bases, which are fitted to each image.

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
        self.register_buffer("bases", torch.randn(1, channels, EM_BASES, generator=generator, device="cpu"))

    def forward(self, x: Tensor) -> Tensor:
        """(N, D, H, W) to the same shape."""
        return F.relu(x + self.conv_out(F.relu(self._fit(self.conv_in(x)))))

    def _fit(self, x: Tensor) -> Tensor:
        with full_precision(x.device):
            n, d, h, w = x.shape
            pixels = x.float().permute(0, 2, 3, 1).reshape(n, h * w, d)
            bases = F.normalize(self.bases.float(), dim=1).expand(n, -1, -1)  # (N, D, K)
            for _ in range(EM_STEPS):
                shares = (pixels @ bases).softmax(dim=-1)  # (N, H*W, K)
                weights = shares / (shares.sum(dim=1, keepdim=True) + EM_EPS)
                bases = F.normalize(pixels.mT @ weights, dim=1)
            fitted = shares @ bases.mT
            return fitted.view(n, h, w, d).permute(0, 3, 1, 2).to(x.dtype)


class NonLocal(nn.Module):
    """Non-local block, embedded Gaussian: every pixel becomes a weighted mean of all pixels, in O(n²) time and memory.

    Embeddings have half of the channels.
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

    Queries and keys have an eighth of the channels.
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
        for _ in range(CRISS_CROSS_STEPS):
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
        nn.init.normal_(convolution.weight, std=EMBEDDING_STD)


def _hamburger(channels: int, rank: int, groups: int) -> nn.Module:
    hamburger = Hamburger(channels, rank=rank, groups=groups)
    init_convolutions(hamburger)
    return hamburger


CONTEXTS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "ham": _hamburger,
    "ema": lambda channels, rank, groups: ExpectationMaximization(channels, groups=groups),
    "non_local": lambda channels, rank, groups: NonLocal(channels, groups=groups),
    "cc": lambda channels, rank, groups: CrissCross(channels),
    "none": lambda channels, rank, groups: nn.Identity(),
}
"""Context modules by name, from the decoder's width, the rank of the factorization and the groups of its norms."""
