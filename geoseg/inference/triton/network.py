"""A folded SegNeXt as a chain of Triton kernels: channels-last, one dtype for features, float32 inside each kernel.

Nothing of cuDNN or cuBLAS is called, so no library chooses an algorithm by shape or batch: a window's bytes depend on
the window.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geoseg.inference.folding import FoldedBlock, FoldedDecoder, FoldedSegNeXt, FoldedStage
from geoseg.inference.triton.ffn import depthwise_project
from geoseg.inference.triton.linear import conv3x3_stride_2, gate_project, linear, pack_conv3x3
from geoseg.inference.triton.msca import multi_scale, pack_depthwise, pack_strips
from geoseg.inference.triton.nmf import add_context, factorize, pack_bases
from geoseg.inference.triton.norms import group_norm_relu, layer_norm, upsample_add


class Packed(nn.Module):
    """Weights as a kernel takes them, in buffers that move with the module."""

    def keep(self, name: str, value: Tensor) -> None:
        """Register a buffer."""
        self.register_buffer(name, value.detach().contiguous())

    def keep_linear(self, name: str, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        """A 1×1 convolution as ``name_weight`` (C_in, C_out) of ``dtype``, and ``name_bias`` float32 if it has one."""
        self.keep(f"{name}_weight", conv.weight.flatten(1).T.to(dtype))
        if conv.bias is not None:
            self.keep(f"{name}_bias", conv.bias.float())

    def keep_depthwise(self, name: str, conv: nn.Conv2d) -> None:
        """A depthwise convolution as ``name_weight`` (taps, C) and ``name_bias`` (C,), float32."""
        weight, bias = _weights(conv)
        self.keep(f"{name}_weight", pack_depthwise(weight))
        self.keep(f"{name}_bias", bias.float())

    def keep_norm(self, name: str, norm: nn.GroupNorm | nn.LayerNorm) -> None:
        """Weight and bias of a norm, float32."""
        self.keep(f"{name}_weight", norm.weight.float())
        self.keep(f"{name}_bias", norm.bias.float())


class TritonBlock(Packed):
    """One block: six kernels, or eight where it is wider than `linear.FUSED_CHANNELS`."""

    proj_1_weight: Tensor
    proj_1_bias: Tensor
    conv0_weight: Tensor
    conv0_bias: Tensor
    strips_weight: Tensor
    strips_bias: Tensor
    conv3_weight: Tensor
    conv3_bias: Tensor
    proj_2_weight: Tensor
    proj_2_bias: Tensor
    fc1_weight: Tensor
    fc1_bias: Tensor
    dwconv_weight: Tensor
    dwconv_bias: Tensor
    fc2_weight: Tensor
    fc2_bias: Tensor

    def __init__(self, block: FoldedBlock, dtype: torch.dtype) -> None:
        super().__init__()
        for name in ("proj_1", "conv3", "proj_2", "fc1", "fc2"):
            self.keep_linear(name, getattr(block, name), dtype)
        self.keep_depthwise("conv0", block.conv0)
        self.keep_depthwise("dwconv", block.dwconv)
        pairs = [(_weights(pair[0]), _weights(pair[1])) for pair in block.strips]  # type: ignore[index]
        weight, bias = pack_strips([horizontal for horizontal, _ in pairs], [vertical for _, vertical in pairs])
        self.keep("strips_weight", weight)
        self.keep("strips_bias", bias)

    def forward(self, y: Tensor) -> Tensor:
        """(N, H, W, C) to the same shape and dtype."""
        u = linear(y, self.proj_1_weight, self.proj_1_bias, activation="gelu")
        s = multi_scale(u, (self.conv0_weight, self.conv0_bias), (self.strips_weight, self.strips_bias))
        y = gate_project(s, u, y, self.conv3_weight, self.conv3_bias, self.proj_2_weight, self.proj_2_bias)
        hidden = linear(y, self.fc1_weight, self.fc1_bias)
        return depthwise_project(hidden, self.dwconv_weight, self.dwconv_bias, self.fc2_weight, self.fc2_bias, y)


class TritonStage(Packed):
    """Down-sampling, blocks, LayerNorm; see `folding.FoldedStage`."""

    scale: Tensor
    norm_weight: Tensor
    norm_bias: Tensor

    def __init__(self, stage: FoldedStage, dtype: torch.dtype, residual: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.residual = dtype, residual
        convs = [module for module in stage.embed if isinstance(module, nn.Conv2d)]
        self.convs = len(convs)
        for i, conv in enumerate(convs):
            weight, bias = _weights(conv)
            self.keep(f"embed_{i}_weight", pack_conv3x3(weight).to(dtype))
            self.keep(f"embed_{i}_bias", bias.float())
        self.blocks = nn.ModuleList(TritonBlock(block, dtype) for block in stage.blocks)  # type: ignore[arg-type]
        self.keep("scale", stage.scale.float())
        self.keep_norm("norm", stage.norm)
        self.eps = stage.norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C') to (N, H / 2, W / 2, C), of an image to a quarter."""
        for i in range(self.convs):
            last = i == self.convs - 1
            x = conv3x3_stride_2(
                x,
                getattr(self, f"embed_{i}_weight"),
                getattr(self, f"embed_{i}_bias"),
                activation="none" if last else "gelu",
                dtype=self.residual if last else self.dtype,
            )
        for block in self.blocks:
            x = block(x)
        return layer_norm(x, self.scale, self.norm_weight, self.norm_bias, eps=self.eps, dtype=self.dtype)


class TritonDecoder(Packed):
    """Stages 2, 3, 4 to logits; see `folding.FoldedDecoder`."""

    squeeze_norm_weight: Tensor
    squeeze_norm_bias: Tensor
    ham_in_weight: Tensor
    ham_in_bias: Tensor
    bases: Tensor
    ham_out: Tensor
    ham_norm_weight: Tensor
    ham_norm_bias: Tensor
    align_weight: Tensor
    align_norm_weight: Tensor
    align_norm_bias: Tensor
    classifier_weight: Tensor
    classifier_bias: Tensor

    def __init__(self, decoder: FoldedDecoder, dtype: torch.dtype) -> None:
        super().__init__()
        for i, conv in enumerate(decoder.squeeze):
            self.keep_linear(f"squeeze_{i}", conv, dtype)  # type: ignore[arg-type]
        for name in ("ham_in", "align", "classifier"):
            self.keep_linear(name, getattr(decoder, name), dtype)
        for name in ("squeeze_norm", "ham_norm", "align_norm"):
            self.keep_norm(name, getattr(decoder, name))
        self.keep("bases", pack_bases(decoder.bases))
        self.keep("ham_out", decoder.ham_out.float().T)
        self.rank, self.steps = decoder.bases.shape[2], decoder.steps
        self.groups, self.eps = decoder.squeeze_norm.num_groups, decoder.squeeze_norm.eps

    def forward(self, stages: list[Tensor]) -> Tensor:
        """Logits (N, H/8, W/8, K) float32 of the features (N, h, w, C) of stages 2, 3 and 4."""
        x = upsample_add(*(linear(stage, getattr(self, f"squeeze_{i}_weight")) for i, stage in enumerate(stages)))
        x = group_norm_relu(x, self.squeeze_norm_weight, self.squeeze_norm_bias, groups=self.groups, eps=self.eps)
        features = linear(x, self.ham_in_weight, self.ham_in_bias, activation="relu")
        factors = factorize(features.flatten(1, 2), self.bases, self.rank, self.steps)
        context = add_context(
            x.flatten(1, 2),
            factors,
            self.ham_out,
            self.ham_norm_weight,
            self.ham_norm_bias,
            groups=self.groups,
            eps=self.eps,
        )
        x = linear(context.view_as(x), self.align_weight)
        x = group_norm_relu(x, self.align_norm_weight, self.align_norm_bias, groups=self.groups, eps=self.eps)
        return linear(x, self.classifier_weight, self.classifier_bias, dtype=torch.float32)


class TritonSegNeXt(nn.Module):
    """A folded SegNeXt in Triton kernels: image (N, B, H, W) to logits at stride 8.

    Args:
        folded: The network; it is not changed, and no memory is shared with it.
        dtype: Features and 1×1 weights are stored and multiplied in it, and summed in float32: torch.bfloat16,
            torch.float16 or torch.float32.
        residual: Dtype of the blocks' residual stream; None takes ``dtype``. torch.float32 costs a fifth more bytes.
    """

    logits_stride = FoldedSegNeXt.logits_stride

    def __init__(
        self, folded: FoldedSegNeXt, dtype: torch.dtype = torch.bfloat16, residual: torch.dtype | None = None
    ) -> None:
        super().__init__()
        stages = [TritonStage(stage, dtype, residual or dtype) for stage in folded.stages]  # type: ignore[arg-type]
        self.stages = nn.ModuleList(stages)
        self.decoder = TritonDecoder(folded.decoder, dtype)

    @torch.no_grad()
    def forward_logits(self, x: Tensor) -> Tensor:
        """Logits (N, K, ceil(H/8), ceil(W/8)) float32, channels last in memory, of an image (N, B, H, W) float32."""
        x = x.permute(0, 2, 3, 1)  # the stem reads any memory format
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        logits: Tensor = self.decoder(features[1:])
        return logits.permute(0, 3, 1, 2)


def _weights(conv: nn.Module) -> tuple[Tensor, Tensor]:
    assert isinstance(conv, nn.Conv2d) and conv.bias is not None
    return conv.weight, conv.bias
