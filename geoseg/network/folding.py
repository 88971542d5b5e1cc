"""SegNeXt in its inference form: the same function, with everything folded that a trained network keeps apart.

What is gone, and where it went:

- Batch norms of the stem and of the down-sampling: into the convolution before them.
- Batch norms before a 1×1 (``norm1`` before ``proj_1``, ``norm2`` before ``fc1``): into that 1×1.
- The inner shortcut and both layer scales. An attention branch is ``x + ls·(proj_2(g) + αx + β)`` with the batch norm
  ``αx + β``, that is ``(1 + ls·α)·x`` and a 1×1. The factor is taken out of the network by keeping the stage's features
  as ``y = x / d`` with ``d`` the product of the factors so far: residuals become plain additions, ``d`` goes into the
  1×1 that read and write ``y``, and comes back once, before the stage's LayerNorm.
- The decoder's concatenation. A 1×1 and an upsampling commute, so each stage is squeezed at its own size, then
  upsampled and added: a quarter of the arithmetic.
- ``ham_out`` and its group norm. The factorization gives ``C Wᵀ`` of rank R, so its 1×1 is one of R rows rather than D,
  and the group norm's mean and variance follow from the R × R matrix CᵀC: one matrix product is left of all three.

References:
    SegNeXt: arXiv 2209.08575. Folding a batch norm into a neighbour is usual (Jacob et al., CVPR 2018); the rescaled
    residual and the low-rank group norm are derived here.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geoseg.models import MSCAN, SegNeXt
from geoseg.models.hamburger import EVAL_STEPS, NMF_EPS, Hamburger, HamburgerDecoder, NMF2d
from geoseg.models.mscan import Attention, Block, Downsample, Mlp, MultiScaleGate, Stem

MAX_SCALE = 1e12
"""Largest product of a channel's residual factors, and the inverse of the smallest: features divided by it keep all
their digits, as floating-point numbers do at any scale, but float32 ends at 1e±38."""


class FoldedBlock(nn.Module):
    """One block of MSCAN on rescaled features ``y`` (N, C, H, W); see the module's text.

    Attributes:
        proj_1, conv3, proj_2, fc1, fc2: 1×1 convolutions with bias.
        conv0: 5×5 depthwise.
        strips: Three pairs of depthwise strips, 1×k then k×1.
        dwconv: 3×3 depthwise.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.proj_1 = nn.Conv2d(channels, channels, 1)
        self.conv0 = _depthwise(channels, 5, 5)
        self.strips = nn.ModuleList(
            nn.Sequential(_depthwise(channels, 1, k), _depthwise(channels, k, 1)) for k in (7, 11, 21)
        )
        self.conv3 = nn.Conv2d(channels, channels, 1)
        self.proj_2 = nn.Conv2d(channels, channels, 1)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.dwconv = _depthwise(hidden, 3, 3)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def core(self, u: Tensor) -> Tensor:
        """The 5×5 of ``u``, its three strip pairs, and their sum."""
        local = self.conv0(u)
        out: Tensor = local
        for pair in self.strips:
            out = out + pair(local)
        return out

    def forward(self, y: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        u = F.gelu(self.proj_1(y))
        y = y + self.proj_2(self.conv3(self.core(u)) * u)
        out: Tensor = y + self.fc2(F.gelu(self.dwconv(self.fc1(y))))
        return out


class FoldedStage(nn.Module):
    """Down-sampling, blocks, LayerNorm.

    Attributes:
        embed: Convolutions of the down-sampling.
        blocks: The stage's blocks.
        scale: (C,) what brings ``y`` back to the network's own features.
        norm: LayerNorm over channels.
    """

    scale: Tensor

    def __init__(self, embed: nn.Sequential, blocks: Sequence[FoldedBlock], channels: int, eps: float) -> None:
        super().__init__()
        self.embed = embed
        self.blocks = nn.ModuleList(blocks)
        self.register_buffer("scale", torch.ones(channels))
        self.norm = nn.LayerNorm(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Features of the stage before, (N, C', H, W), to (N, C, H / 2, W / 2); of an image to a quarter."""
        y = self.embed(x)
        for block in self.blocks:
            y = block(y)
        # Channels-last features are (N, H, W, C) in memory: no copy on the way there and back.
        normed: Tensor = self.norm(y.permute(0, 2, 3, 1) * self.scale)
        return normed.permute(0, 3, 1, 2)


class FoldedDecoder(nn.Module):
    """Stages 2, 3, 4 to logits at stride 8.

    Attributes:
        squeeze: A 1×1 without bias for each stage.
        squeeze_norm: Group norm of their sum.
        ham_in: 1×1 with bias, before the ReLU.
        bases: (1, D, R) normalised bases that the factorization starts from, float32.
        ham_out: (D, D) the 1×1 after the factorization, output channels first.
        ham_norm: Group norm after it.
        align, align_norm: The last 1×1 of the decoder and its group norm.
        classifier: 1×1 to K classes.
        steps: Rounds of the factorization.
    """

    bases: Tensor
    ham_out: Tensor

    def __init__(self, encoder_channels: Sequence[int], channels: int, classes: int, rank: int, groups: int) -> None:
        super().__init__()
        self.squeeze = nn.ModuleList(nn.Conv2d(c, channels, 1, bias=False) for c in encoder_channels)
        self.squeeze_norm = nn.GroupNorm(groups, channels)
        self.ham_in = nn.Conv2d(channels, channels, 1)
        self.register_buffer("bases", torch.empty(1, channels, rank))
        self.register_buffer("ham_out", torch.empty(channels, channels))
        self.ham_norm = nn.GroupNorm(groups, channels)
        self.align = nn.Conv2d(channels, channels, 1, bias=False)
        self.align_norm = nn.GroupNorm(groups, channels)
        self.classifier = nn.Conv2d(channels, classes, 1)
        self.steps = EVAL_STEPS

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
        """ReLU of ``x`` (N, D, H, W) and its low-rank context."""
        n, d, h, w = x.shape
        with torch.autocast(x.device.type, enabled=False):
            pixels = F.relu(self.ham_in(x.float())).permute(0, 2, 3, 1).reshape(n, h * w, d)
            codes, bases = self.factorize(pixels)
            rows, shift = self.context(codes.transpose(-1, -2) @ codes, codes.sum(dim=1, keepdim=True), bases, h * w)
            context = (codes @ rows + shift).view(n, h, w, d).permute(0, 3, 1, 2)
        return F.relu(x + context.to(x.dtype))

    def factorize(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Codes C (N, H·W, R) and bases W (N, D, R) of pixels (N, H·W, D), all ≥ 0; see `geoseg.models.NMF2d`."""
        bases = self.bases.expand(pixels.shape[0], -1, -1)
        numerator = pixels @ bases
        codes = numerator.softmax(dim=-1)
        for _ in range(self.steps):
            codes = codes * numerator / (codes @ (bases.transpose(-1, -2) @ bases) + NMF_EPS)
            bases = bases * (pixels.transpose(-1, -2) @ codes) / (bases @ (codes.transpose(-1, -2) @ codes) + NMF_EPS)
            numerator = pixels @ bases
        return codes * numerator / (codes @ (bases.transpose(-1, -2) @ bases) + NMF_EPS), bases

    def context(self, gram: Tensor, total: Tensor, bases: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
        """``ham_out`` and its group norm as rows (N, R, D) and shift (N, 1, D): normalised context = C · rows + shift.

        Args:
            gram: (N, R, R) CᵀC.
            total: (N, 1, R) sum of C over the pixels.
            bases: (N, D, R) W.
            pixels: H·W.
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
    """SegNeXt in its inference form: image (N, B, H, W) to logits.

    Attributes:
        stages: The four stages of the encoder.
        decoder: Everything after them.
        activation: What the network puts on its upsampled logits.
        classification_head: Its scores of the whole image, or None.
    """

    logits_stride = HamburgerDecoder.stride

    def __init__(
        self,
        stages: Sequence[FoldedStage],
        decoder: FoldedDecoder,
        activation: nn.Module,
        classification_head: nn.Module | None,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.decoder = decoder
        self.activation = activation
        self.classification_head = classification_head

    def features(self, x: Tensor) -> list[Tensor]:
        """Features of the four stages, (N, C, H/4, W/4) to (N, C, H/32, W/32)."""
        out = []
        for stage in self.stages:
            x = stage(x)
            out.append(x)
        return out

    def forward_logits(self, x: Tensor) -> Tensor:
        """Logits (N, K, ceil(H/8), ceil(W/8))."""
        logits: Tensor = self.decoder(self.features(x)[1:])
        return logits

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (N, K, H, W), upsampled with ``align_corners=False``; what `SegNeXt` gives beside them too."""
        features = self.features(x)
        logits = F.interpolate(self.decoder(features[1:]), size=x.shape[2:], mode="bilinear", align_corners=False)
        masks: Tensor = self.activation(logits)
        if self.classification_head is not None:
            return masks, self.classification_head(features[-1])
        return masks


def deployed(network: nn.Module) -> nn.Module:
    """A trained network in its inference form; other networks than SegNeXt's main path come back as they are.

    The result shares no memory with the network, and gives its logits within 1e-4 of their largest, float32.

    Args:
        network: Any SMP network in evaluation mode.
    """
    folded = fold(network) if isinstance(network, SegNeXt) and is_main_path(network) else None
    return (folded or network).eval()


def is_main_path(network: nn.Module) -> bool:
    """Whether a network is SegNeXt as the paper ends up with it: encoder, decoder and context, none of its studies."""
    if type(network) is not SegNeXt:
        return False
    encoder = getattr(getattr(network.encoder, "model", None), "model", None)
    if type(encoder) is not MSCAN or type(network.decoder) is not HamburgerDecoder:
        return False
    if type(network.decoder.hamburger) is not Hamburger or type(network.decoder.hamburger.ham) is not NMF2d:
        return False
    blocks = [block for i in range(1, 5) for block in getattr(encoder, f"block{i}")]
    return all(
        type(b) is Block
        and type(b.attn) is Attention
        and type(b.attn.spatial_gating_unit) is MultiScaleGate
        and type(b.mlp) is Mlp
        for b in blocks
    )


@torch.no_grad()
def fold(network: SegNeXt) -> FoldedSegNeXt | None:
    """The inference form of a SegNeXt of the main path, or None where a residual factor is 0: none divides by that."""
    encoder: MSCAN = network.encoder.model.model
    stages = []
    for i in range(1, 5):
        stage = _fold_stage(
            getattr(encoder, f"patch_embed{i}"), list(getattr(encoder, f"block{i}")), getattr(encoder, f"norm{i}")
        )
        if stage is None:
            return None
        stages.append(stage)
    widths = [stage.norm.normalized_shape[0] for stage in stages[1:]]
    folded = FoldedSegNeXt(
        stages,
        _fold_decoder(network.decoder, network.segmentation_head, widths),
        copy.deepcopy(network.activation),
        copy.deepcopy(network.classification_head),
    )
    return folded.eval().requires_grad_(False)


def _depthwise(channels: int, height: int, width: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, (height, width), padding=(height // 2, width // 2), groups=channels)


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Factor and shift (C,) float64 of a batch norm in evaluation."""
    assert norm.running_mean is not None and norm.running_var is not None
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return factor, norm.bias.double() - factor * norm.running_mean.double()


def _set(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None = None) -> None:
    """Fill a convolution; values are computed in float64 and rounded once."""
    conv.weight.copy_(weight.reshape(conv.weight.shape))
    if bias is not None:
        assert conv.bias is not None
        conv.bias.copy_(bias)


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias.double()


def _before_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A convolution and the batch norm after it as one convolution."""
    factor, shift = _affine(norm)
    folded = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        stride=conv.stride,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
    )
    _set(folded, conv.weight.double() * factor[:, None, None, None], _bias(conv) * factor + shift)
    return folded


def _fold_stage(embed: Stem | Downsample, blocks: list[Block], norm: nn.Module) -> FoldedStage | None:
    if isinstance(embed, Stem):
        proj: list[Any] = list(embed.proj)
        conv_1, norm_1, _, conv_2, norm_2 = proj
        convs = nn.Sequential(_before_norm(conv_1, norm_1), nn.GELU(), _before_norm(conv_2, norm_2))
    else:
        convs = nn.Sequential(_before_norm(embed.proj, embed.norm))
    channels = norm.weight.numel()  # type: ignore[operator]
    scale = torch.ones(channels, dtype=torch.float64)
    folded = []
    for block in blocks:
        one, scale = _fold_block(block, scale)
        if not bool(((scale.abs() >= 1 / MAX_SCALE) & (scale.abs() <= MAX_SCALE)).all()):
            return None
        folded.append(one)
    stage = FoldedStage(convs, folded, channels, norm.eps)  # type: ignore[arg-type]
    stage.scale.copy_(scale)
    stage.norm.weight.copy_(norm.weight)  # type: ignore[arg-type]
    stage.norm.bias.copy_(norm.bias)  # type: ignore[arg-type]
    return stage


def _fold_block(block: Block, scale: Tensor) -> tuple[FoldedBlock, Tensor]:
    """A block that reads features divided by ``scale`` (C,), and what its own output is divided by."""
    gate, mlp = block.attn.spatial_gating_unit, block.mlp
    folded = FoldedBlock(block.norm1.num_features, mlp.fc1.out_channels)

    factor, shift = _affine(block.norm1)
    layer_scale = block.layer_scale_1.double()
    weight = block.attn.proj_1.weight.double().flatten(1)
    _set(folded.proj_1, weight * (factor * scale), _bias(block.attn.proj_1) + weight @ shift)
    pairs = ((gate.conv0_1, gate.conv0_2), (gate.conv1_1, gate.conv1_2), (gate.conv2_1, gate.conv2_2))
    for strip, pair in zip(cast(list[nn.Sequential], list(folded.strips)), pairs, strict=True):
        for new, old in zip(cast(list[nn.Conv2d], list(strip)), pair, strict=True):
            _set(new, old.weight, old.bias)
    for new, old in ((folded.conv0, gate.conv0), (folded.conv3, gate.conv3), (folded.dwconv, mlp.dwconv)):
        _set(new, old.weight, old.bias)
    after = scale * (1 + layer_scale * factor)
    weight = block.attn.proj_2.weight.double().flatten(1)
    rate = layer_scale / after
    _set(folded.proj_2, weight * rate[:, None], (_bias(block.attn.proj_2) + shift) * rate)

    factor, shift = _affine(block.norm2)
    weight = mlp.fc1.weight.double().flatten(1)
    _set(folded.fc1, weight * (factor * after), _bias(mlp.fc1) + weight @ shift)
    rate = block.layer_scale_2.double() / after
    _set(folded.fc2, mlp.fc2.weight.double().flatten(1) * rate[:, None], _bias(mlp.fc2) * rate)
    return folded, after


def _fold_decoder(decoder: HamburgerDecoder, head: nn.Conv2d, widths: Sequence[int]) -> FoldedDecoder:
    """The decoder for stages of the given widths."""
    squeeze, burger, align = decoder.squeeze, decoder.hamburger, decoder.align
    groups, rank = cast(nn.GroupNorm, squeeze.gn).num_groups, burger.ham.bases.shape[2]
    folded = FoldedDecoder(widths, head.in_channels, head.out_channels, rank, groups)
    weights = torch.split(squeeze.conv.weight, list(widths), dim=1)
    for new, weight in zip(cast(list[nn.Conv2d], list(folded.squeeze)), weights, strict=True):
        _set(new, weight)
    _set(folded.ham_in, burger.ham_in.conv.weight, burger.ham_in.conv.bias)
    folded.bases.copy_(F.normalize(burger.ham.bases.float(), dim=1))
    folded.ham_out.copy_(burger.ham_out.conv.weight.flatten(1))
    _set(folded.align, align.conv.weight)
    _set(folded.classifier, head.weight, head.bias)
    for norm, old in (
        (folded.squeeze_norm, squeeze.gn),
        (folded.ham_norm, burger.ham_out.gn),
        (folded.align_norm, align.gn),
    ):
        norm.load_state_dict(old.state_dict())
    return folded
