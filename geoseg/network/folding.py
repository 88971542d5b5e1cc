"""Logits at a network's own stride, and SegNeXt in its inference form: the same function with fewer operations.

- The batch norms of the stem and of the down-sampling are folded into the convolution before them.
- The batch norms before a 1×1 (``norm1`` before ``proj_1``, ``norm2`` before ``fc1``) are folded into that 1×1.
- The inner shortcut and both layer scales disappear. An attention branch is ``x + ls·(proj_2(g) + αx + β)`` with the
  batch norm ``αx + β``, that is ``(1 + ls·α)·x`` plus a 1×1. A stage keeps its features as ``y = x / d``, with the
  product ``d`` of these factors so far: residuals become plain additions, the 1×1 that read and write ``y`` absorb
  ``d``, and one multiplication by ``d`` remains, before the stage's LayerNorm.
- The decoder no longer concatenates. A 1×1 and an upsampling commute, so each stage is squeezed at its own size, then
  upsampled and added: a quarter of the arithmetic.
- ``ham_out`` and its group norm follow from small matrices. The factorization gives ``C Wᵀ`` of rank R, so the 1×1
  has R rows rather than D, and the mean and variance of the group norm come from the R × R matrix CᵀC.

References:
    SegNeXt: arXiv 2209.08575. Folding a batch norm into its neighbour: Jacob et al., CVPR 2018. The rescaled residual
    and the low-rank group norm are derived here.
"""

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from geoseg.models import MSCAN, SegNeXt
from geoseg.models.hamburger import EVAL_STEPS, ConvNorm, Hamburger, HamburgerDecoder, NMF2d, factorize
from geoseg.models.mscan import Attention, Block, Downsample, Mlp, MultiScaleGate, Stem
from geoseg.network.stored_model import logits_stride

MAX_SCALE = 1e12
"""Largest product of a channel's residual factors; its inverse is the smallest. float32 itself ends at 1e±38."""

_MAIN_PATH = {
    *(MSCAN, Stem, Downsample, Block, Attention, MultiScaleGate, Mlp, LayerNorm2d, DropPath),
    *(HamburgerDecoder, Hamburger, NMF2d, ConvNorm),
    *(nn.Conv2d, nn.BatchNorm2d, nn.GroupNorm, nn.GELU, nn.ReLU, nn.Linear, nn.Identity, nn.Sequential, nn.ModuleList),
}


def logits_of(network: nn.Module, x: Tensor) -> Tensor:
    """Windows (N, B, H, W) to logits (N, K, H / s, W / s), not upsampled where the network has them smaller."""
    out: Tensor = network.forward_logits(x) if logits_stride(network) > 1 else network(x)  # type: ignore[operator]
    return out


class Logits(nn.Module):
    """`logits_of` a network as a module's output, as exporters and compilers want it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Windows (N, B, H, W) to logits (N, K, H / s, W / s)."""
        return logits_of(self.network, x)


def deployed(network: nn.Module) -> nn.Module:
    """The inference form of a SegNeXt of the main path, in evaluation mode; any other network itself.

    The inference form shares no memory with the network. Its float32 logits differ by at most 1e-4 of the largest.
    """
    if is_main_path(network):
        try:
            return FoldedSegNeXt(cast(SegNeXt, network)).eval().requires_grad_(False)
        except ArithmeticError:
            pass
    return network.eval()


def is_main_path(network: nn.Module) -> bool:
    """Whether a network is the paper's final SegNeXt: none of its studies, and no part replaced."""
    encoder = _mscan(network)
    if type(network) is not SegNeXt or encoder is None:
        return False
    parts = [part for whole in (encoder, cast(nn.Module, network.decoder)) for part in whole.modules()]
    return {type(part) for part in parts} <= _MAIN_PATH and all(getattr(part, "is_whole", True) for part in parts)


def _mscan(network: nn.Module) -> MSCAN | None:
    return next((part for part in network.modules() if type(part) is MSCAN), None)


class FoldedBlock(nn.Module):
    """One block of MSCAN on features divided by ``before`` (C,) float64 when they come in, by ``after`` going out."""

    def __init__(self, block: Block, before: Tensor, after: Tensor) -> None:
        super().__init__()
        attention, gate, mlp = block.attn, block.attn.spatial_gating_unit, block.mlp
        factor, shift = _affine(block.norm1)
        weight, bias = _values(attention.proj_1)
        self.proj_1 = _conv(attention.proj_1, weight * (factor * before), bias + weight @ shift)
        self.conv0 = copy.deepcopy(gate.conv0)
        self.strips = nn.ModuleList(nn.Sequential(*copy.deepcopy(pair)) for pair in gate.strips())
        self.conv3 = copy.deepcopy(gate.conv3)
        weight, bias = _values(attention.proj_2)
        rate = block.layer_scale_1.double() / after
        self.proj_2 = _conv(attention.proj_2, weight * rate[:, None], (bias + shift) * rate)
        factor, shift = _affine(block.norm2)
        weight, bias = _values(mlp.fc1)
        self.fc1 = _conv(mlp.fc1, weight * (factor * after), bias + weight @ shift)
        self.dwconv = copy.deepcopy(mlp.dwconv)
        weight, bias = _values(mlp.fc2)
        rate = block.layer_scale_2.double() / after
        self.fc2 = _conv(mlp.fc2, weight * rate[:, None], bias * rate)

    def forward(self, y: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        u = F.gelu(self.proj_1(y))
        local = self.conv0(u)
        total = local
        for pair in self.strips:
            total = total + pair(local)
        y = y + self.proj_2(self.conv3(total) * u)
        out: Tensor = y + self.fc2(F.gelu(self.dwconv(self.fc1(y))))
        return out


class FoldedStage(nn.Module):
    """Down-sampling, blocks and LayerNorm of one stage; ``scale`` (C,) turns ``y`` back into the network's features.

    An ArithmeticError if a product of residual factors is 0 or beyond `MAX_SCALE`: nothing can be divided by it.
    """

    scale: Tensor

    def __init__(self, embed: Stem | Downsample, blocks: Sequence[Block], norm: nn.LayerNorm) -> None:
        super().__init__()
        if isinstance(embed, Stem):
            conv_1, norm_1, _, conv_2, norm_2 = cast(Any, embed.proj)
            self.embed = nn.Sequential(_with_norm(conv_1, norm_1), nn.GELU(), _with_norm(conv_2, norm_2))
        else:
            self.embed = nn.Sequential(_with_norm(embed.proj, embed.norm))
        scales = [torch.ones(norm.weight.numel(), dtype=torch.float64)]
        for block in blocks:
            scales.append(scales[-1] * (1 + block.layer_scale_1.double() * _affine(block.norm1)[0]))
        if not all(bool(((s.abs() >= 1 / MAX_SCALE) & (s.abs() <= MAX_SCALE)).all()) for s in scales):
            raise ArithmeticError("features cannot be divided by the products of these residual factors")
        self.blocks = nn.ModuleList(map(FoldedBlock, blocks, scales, scales[1:]))
        self.register_buffer("scale", scales[-1].to(torch.get_default_dtype()))
        self.norm = nn.LayerNorm(norm.weight.numel(), eps=norm.eps)
        self.norm.load_state_dict(norm.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        """Features of the stage before, (N, C', H, W), to (N, C, H / 2, W / 2); of an image to a quarter."""
        y = self.embed(x)
        for block in self.blocks:
            y = block(y)
        # Channels-last features are (N, H, W, C) in memory: no copy on the way there and back.
        normed: Tensor = self.norm(y.permute(0, 2, 3, 1) * self.scale)
        return normed.permute(0, 3, 1, 2)


class FoldedDecoder(nn.Module):
    """Stages 2, 3 and 4 to logits at stride 8; float64 in `context`, float32 elsewhere in the factorization."""

    bases: Tensor  # (1, D, R), normalised, that the factorization starts from
    ham_out: Tensor  # (D, D), the 1×1 after the factorization, output channels first

    def __init__(self, decoder: HamburgerDecoder, classifier: nn.Conv2d, widths: Sequence[int]) -> None:
        super().__init__()
        squeeze, burger, align = decoder.squeeze, decoder.hamburger, decoder.align
        weights = torch.split(squeeze.conv.weight, list(widths), dim=1)
        self.squeeze = nn.ModuleList(_conv(squeeze.conv, weight) for weight in weights)
        self.squeeze_norm = copy.deepcopy(squeeze.gn)
        self.ham_in = copy.deepcopy(burger.ham_in.conv)
        self.register_buffer("bases", F.normalize(burger.ham.bases.float(), dim=1).to(torch.get_default_dtype()))
        self.register_buffer("ham_out", burger.ham_out.conv.weight.detach().flatten(1).clone())
        self.ham_norm = cast(nn.GroupNorm, copy.deepcopy(burger.ham_out.gn))
        self.align = copy.deepcopy(align.conv)
        self.align_norm = copy.deepcopy(align.gn)
        self.classifier = copy.deepcopy(classifier)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Logits (N, K, H/8, W/8) of the features of stages 2, 3 and 4."""
        size = stages[0].shape[2:]
        x = self.squeeze[0](stages[0])
        for conv, stage in zip(list(self.squeeze)[1:], stages[1:], strict=True):
            x = x + F.interpolate(conv(stage), size=size, mode="bilinear", align_corners=False)
        x = F.relu(self.squeeze_norm(x))
        x = self.hamburger(x)
        x = F.relu(self.align_norm(self.align(x)))
        logits: Tensor = self.classifier(x)
        return logits

    def hamburger(self, x: Tensor) -> Tensor:
        """ReLU of ``x`` (N, D, H, W) plus its low-rank context."""
        n, d, h, w = x.shape
        with torch.autocast(x.device.type, enabled=False):
            pixels = F.relu(self.ham_in(x.float())).permute(0, 2, 3, 1).reshape(n, h * w, d)
            codes, bases = factorize(pixels, self.bases, EVAL_STEPS)
            rows, shift = self.context(codes.transpose(-1, -2) @ codes, codes.sum(dim=1, keepdim=True), bases, h * w)
            context = (codes @ rows + shift).view(n, h, w, d).permute(0, 3, 1, 2)
        return F.relu(x + context.to(x.dtype))

    def context(self, gram: Tensor, total: Tensor, bases: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
        """``ham_out`` and its group norm as rows (N, R, D) and shift (N, 1, D): normalised context = C · rows + shift.

        ``gram`` is CᵀC (N, R, R), ``total`` the sum of C over the H·W ``pixels`` (N, 1, R), ``bases`` W (N, D, R).
        """
        rows = (self.ham_out @ bases).transpose(-1, -2)  # (N, R, D): one pixel's output is its code times these
        # In float64: a variance as a difference of two means would lose digits. These are small matrices.
        wide = rows.double()
        mean = (total.double() @ wide) / pixels  # (N, 1, D)
        # Divided before the sum: OpenVINO 2026.4 gives wrong values for batches where a sum is divided.
        square = (wide * ((gram.double() / pixels) @ wide)).sum(dim=1, keepdim=True)
        norm = self.ham_norm
        groups = norm.num_groups
        n, _, d = mean.shape
        group_mean = mean.view(n, groups, d // groups).mean(-1, keepdim=True)
        variance = square.view(n, groups, d // groups).mean(-1, keepdim=True) - group_mean.square()
        rate = (variance.clamp(min=0) + norm.eps).rsqrt()
        rate = rate.expand(n, groups, d // groups).reshape(n, 1, d) * norm.weight.double()
        group_mean = group_mean.expand(n, groups, d // groups).reshape(n, 1, d)
        shift = norm.bias.double() - group_mean * rate
        return (wide * rate).to(rows.dtype), shift.to(rows.dtype)


class FoldedSegNeXt(nn.Module):
    """A SegNeXt of the main path in its inference form, which gives logits alone; errors as `FoldedStage`."""

    logits_stride = HamburgerDecoder.stride

    @torch.no_grad()
    def __init__(self, network: SegNeXt) -> None:
        super().__init__()
        encoder = cast(Any, _mscan(network))
        parts = [[getattr(encoder, f"{part}{i}") for part in ("patch_embed", "block", "norm")] for i in range(1, 5)]
        self.stages = nn.ModuleList(FoldedStage(*part) for part in parts)
        widths = [norm.weight.numel() for _, _, norm in parts[1:]]
        self.decoder = FoldedDecoder(network.decoder, network.segmentation_head, widths)

    def forward_logits(self, x: Tensor) -> Tensor:
        """Logits (N, K, ceil(H/8), ceil(W/8)) of an image (N, B, H, W)."""
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        logits: Tensor = self.decoder(features[1:])
        return logits


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Factor and shift (C,) float64 of a batch norm in evaluation."""
    assert norm.running_mean is not None and norm.running_var is not None
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return factor, norm.bias.double() - factor * norm.running_mean.double()


def _values(conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight, its axes after the first flattened, and bias of a convolution, float64."""
    assert conv.bias is not None
    return conv.weight.double().flatten(1), conv.bias.double()


def _conv(like: nn.Conv2d, weight: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    """A dense convolution of another's geometry with values of its own, rounded here once."""
    weight = weight.reshape(len(weight), -1, *like.kernel_size)
    out, width, *kernel = weight.shape
    options: Any = {"stride": like.stride, "padding": like.padding, "bias": bias is not None}
    new = nn.Conv2d(width, out, tuple(kernel), **options)  # type: ignore[arg-type]
    new.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    return new


def _with_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A convolution and the batch norm after it as one convolution."""
    (weight, bias), (factor, shift) = _values(conv), _affine(norm)
    return _conv(conv, weight * factor[:, None], bias * factor + shift)
