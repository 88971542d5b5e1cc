"""MSCAN, the convolutional-attention encoder of SegNeXt, registered in timm as ``mscan_tiny/small/base/large``.

Paper: Guo et al., NeurIPS 2022, arXiv 2209.08575. Original code: github.com/Visual-Attention-Network/SegNeXt,
Apache-2.0 (its README asks commercial users to contact the authors). Independent implementation, module names after
the original's state dict. In the original code but not in the paper: the stem is two stride-2 convolutions with a GELU
between; the next stage takes the output of a stage's LayerNorm; an inner shortcut around the attention adds the
batch-normalised input.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from timm.layers.drop import DropPath
from timm.layers.norm import LayerNorm2d
from timm.models import build_model_with_cfg, register_model
from timm.models._features import feature_take_indices
from timm.models._registry import generate_default_cfgs
from torch import Tensor, nn

from geoseg.models.checkpoints import encoder_state, load_encoder
from geoseg.pretrained import PRETRAINED, encoder_file

NORM_EPS = 1e-5
LAYER_SCALE_INIT = 1e-2

SIZES = {
    "mscan_tiny": ((32, 64, 160, 256), (3, 3, 5, 2)),
    "mscan_small": ((64, 128, 320, 512), (2, 2, 4, 2)),
    "mscan_base": ((64, 128, 320, 512), (3, 3, 12, 3)),
    "mscan_large": ((64, 128, 320, 512), (3, 5, 27, 3)),
}
"""Channels and blocks of the four stages: Table 2 of the paper. 4.2, 14.0, 26.8 and 45.2 M parameters with the head."""
MLP_RATIOS = (8, 8, 4, 4)

STRIPS = {7: "conv0", 11: "conv1", 21: "conv2"}
"""Kernel sizes of the gate's strip branches and the names of their convolutions in checkpoints."""


def _depthwise(channels: int, kernel: tuple[int, int]) -> nn.Conv2d:
    """Depthwise convolution whose output has the size of its input."""
    padding = kernel[0] // 2, kernel[1] // 2
    return nn.Conv2d(channels, channels, kernel, padding=padding, groups=channels)


class MultiScaleGate(nn.Module):
    """Multi-scale convolutional attention of Figure 2c: 5×5, three pairs of strips (1×k, k×1), 1×1, product.

    Args:
        channels: C.
        branches: Table 6: kernel sizes of the strips that remain, of 7, 11 and 21; else a ValueError.
        channel_mixing: Table 6: keep the 1×1 convolution after the sum.
        attention: Table 6: multiply the input by the result; False returns the result itself.
    """

    def __init__(
        self,
        channels: int,
        *,
        branches: Sequence[int] = tuple(STRIPS),
        channel_mixing: bool = True,
        attention: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(branches, Sequence) or sorted(set(STRIPS) & set(branches)) != sorted(branches):
            raise ValueError(f"branches must be some of {', '.join(map(str, STRIPS))}, each once, found {branches!r}")
        self.branches, self.attention = tuple(sorted(branches)), attention
        self.conv0 = _depthwise(channels, (5, 5))
        for k in self.branches:
            self.add_module(f"{STRIPS[k]}_1", _depthwise(channels, (1, k)))
            self.add_module(f"{STRIPS[k]}_2", _depthwise(channels, (k, 1)))
        self.conv3 = nn.Conv2d(channels, channels, 1) if channel_mixing else nn.Identity()
        self.is_whole = self.branches == tuple(STRIPS) and channel_mixing and attention

    def strips(self) -> list[tuple[nn.Module, nn.Module]]:
        """Both convolutions of each strip branch."""
        return [(getattr(self, f"{STRIPS[k]}_1"), getattr(self, f"{STRIPS[k]}_2")) for k in self.branches]

    def forward(self, u: Tensor) -> Tensor:
        """Gated features (N, C, H, W) of ``u`` (N, C, H, W)."""
        local = self.conv0(u)
        total = local
        for first, second in self.strips():
            total = total + second(first(local))
        mixed: Tensor = self.conv3(total)
        return mixed * u if self.attention else mixed


class Attention(nn.Module):
    """1×1, GELU, multi-scale gate, 1×1, and a shortcut around them."""

    def __init__(self, channels: int, gate: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.proj_1 = nn.Conv2d(channels, channels, 1)
        self.activation = nn.GELU()
        self.spatial_gating_unit: Any = gate(channels)
        self.proj_2 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        out: Tensor = self.proj_2(self.spatial_gating_unit(self.activation(self.proj_1(x)))) + x
        return out


class Mlp(nn.Module):
    """1×1 to the hidden width, 3×3 depthwise, GELU, 1×1 back."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.dwconv = _depthwise(hidden, (3, 3))
        self.activation = nn.GELU()
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        out: Tensor = self.fc2(self.activation(self.dwconv(self.fc1(x))))
        return out


class Block(nn.Module):
    """Attention and MLP, each with batch norm before, a per-channel scale and stochastic depth after."""

    def __init__(self, channels: int, *, mlp_ratio: float, drop_path: float, gate: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels, eps=NORM_EPS)
        self.attn = Attention(channels, gate)
        self.norm2 = nn.BatchNorm2d(channels, eps=NORM_EPS)
        self.mlp = Mlp(channels, int(channels * mlp_ratio))
        self.layer_scale_1 = nn.Parameter(torch.full((channels,), LAYER_SCALE_INIT))
        self.layer_scale_2 = nn.Parameter(torch.full((channels,), LAYER_SCALE_INIT))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        x = x + self.drop_path(self.layer_scale_1[:, None, None] * self.attn(self.norm1(x)))
        out: Tensor = x + self.drop_path(self.layer_scale_2[:, None, None] * self.mlp(self.norm2(x)))
        return out


class Stem(nn.Module):
    """Two stride-2 3×3 convolutions, each with batch norm, a GELU between: (N, in, H, W) to (N, C, H/4, W/4)."""

    def __init__(self, in_chans: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Conv2d(in_chans, channels // 2, 3, stride=2, padding=1),
            nn.BatchNorm2d(channels // 2, eps=NORM_EPS),
            nn.GELU(),
            nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1),
            nn.BatchNorm2d(channels, eps=NORM_EPS),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Image to features at stride 4."""
        out: Tensor = self.proj(x)
        return out


class Downsample(nn.Module):
    """A stride-2 3×3 convolution and batch norm: sizes become ``ceil(size / 2)``."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C, H/2, W/2)."""
        out: Tensor = self.norm(self.proj(x))
        return out


class MSCAN(nn.Module):
    """Multi-scale convolutional attention network: image to features at strides 4, 8, 16 and 32, or to class scores.

    Args:
        in_chans: Bands of the image.
        num_classes: Classes of the ImageNet-style head; 0 for none.
        embed_dims, depths: Channels and blocks of the four stages.
        mlp_ratios: Hidden width of the MLPs relative to the stage's channels.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0 over all blocks.
        global_pool: "avg" for the mean over the last stage before the head, or "" for none; else a ValueError.
        **study: Options of `MultiScaleGate` (Table 6); none for the final design.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dims: Sequence[int] = SIZES["mscan_tiny"][0],
        depths: Sequence[int] = SIZES["mscan_tiny"][1],
        mlp_ratios: Sequence[float] = MLP_RATIOS,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
        **study: Any,
    ) -> None:
        super().__init__()
        if global_pool not in ("avg", ""):
            raise ValueError(f"global_pool must be 'avg' or '', found {global_pool!r}")
        self.num_features = self.head_hidden_size = embed_dims[-1]
        self.feature_info = [
            {"num_chs": channels, "reduction": 4 * 2**i, "module": f"norm{i + 1}"}
            for i, channels in enumerate(embed_dims)
        ]
        self.num_stages = len(embed_dims)
        gate = partial(MultiScaleGate, **study)
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        for i, (channels, depth, ratio) in enumerate(zip(embed_dims, depths, mlp_ratios, strict=True), start=1):
            embed = Stem(in_chans, channels) if i == 1 else Downsample(embed_dims[i - 2], channels)
            blocks = nn.ModuleList(
                Block(channels, mlp_ratio=ratio, drop_path=next(rates), gate=gate) for _ in range(depth)
            )
            setattr(self, f"patch_embed{i}", embed)
            setattr(self, f"block{i}", blocks)
            setattr(self, f"norm{i}", LayerNorm2d(channels, eps=NORM_EPS))
        self.reset_classifier(num_classes, global_pool)
        self.apply(_init_weights)

    def _stage(self, x: Tensor, i: int) -> Tensor:
        """Normalised features of stage ``i`` (1 … 4) from those of the stage before."""
        x = getattr(self, f"patch_embed{i}")(x)
        for block in getattr(self, f"block{i}"):
            x = block(x)
        out: Tensor = getattr(self, f"norm{i}")(x)
        return out

    def forward_features(self, x: Tensor) -> Tensor:
        """Image (N, B, H, W) to the last stage's features (N, C, H/32, W/32)."""
        for i in range(1, self.num_stages + 1):
            x = self._stage(x, i)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Last features to class scores (N, num_classes), or to the pooled features if ``pre_logits``."""
        if self.global_pool == "avg":
            x = x.mean(dim=(2, 3))
        if pre_logits:
            return x
        out: Tensor = self.head(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Image (N, B, H, W) to class scores (N, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Features (NCHW) of the stages wanted, 0 … 3, with timm's interface; all are normalised."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', found {output_fmt!r}")
        wanted, last = feature_take_indices(self.num_stages, indices)
        stages = min(self.num_stages, last + 1) if stop_early or intermediates_only else self.num_stages
        features = []
        for i in range(stages):
            x = self._stage(x, i + 1)
            if i in wanted:
                features.append(x)
        return features if intermediates_only else (x, features)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the wanted stages do not need, the later stages and the head; the wanted stages are returned."""
        wanted, last = feature_take_indices(self.num_stages, indices)
        for i in range(last + 2, self.num_stages + 1):
            for part in (f"patch_embed{i}", f"block{i}", f"norm{i}"):
                delattr(self, part)
        self.num_stages = last + 1
        if prune_head:
            self.reset_classifier(0, "")
        return list(wanted)

    def get_classifier(self) -> nn.Module:
        """The classification head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a fresh one for ``num_classes``; 0 for none."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = global_pool
        self.head = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()


def _init_weights(module: nn.Module) -> None:
    """Convolutions N(0, sqrt(2 / fan-out)), the head N(0, 0.02), zero biases, norms 1 and 0, as in the original."""
    if any(parameter.is_meta for parameter in module.parameters(recurse=False)):
        return  # SMP first builds every encoder without memory, where random numbers take longest
    if isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


default_cfgs = generate_default_cfgs(
    {
        variant: {
            "url": PRETRAINED[variant].url,
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "pool_size": (7, 7),
            "crop_pct": 0.9,
            "interpolation": "bicubic",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "first_conv": "patch_embed1.proj.0",
            "classifier": "head",
            "license": "apache-2.0",
            "paper_ids": "arXiv:2209.08575",
        }
        for variant in SIZES
    }
)


def _register(variant: str) -> None:
    """Make a variant known to timm."""

    def create(pretrained: bool = False, **kwargs: Any) -> MSCAN:
        # Files are read and compared here, more strictly than timm does; any other source is left to timm.
        file, features_only = None, kwargs.get("features_only", False)
        if pretrained:
            config, overlay = kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay")
            file = encoder_file(variant, config=config, overlay=overlay, folder=kwargs.get("cache_dir"))

        def build(**args: Any) -> MSCAN:
            network = MSCAN(**args)
            return network if file is None else load_encoder(network, file, features_only=features_only)

        def renamed(state_dict: dict[str, Any], network: nn.Module) -> dict[str, Tensor]:
            return encoder_state(state_dict.get("state_dict", state_dict), network, "the pretrained file")

        embed_dims, depths = SIZES[variant]
        model: MSCAN = build_model_with_cfg(
            build,
            variant,
            pretrained and file is None,
            pretrained_filter_fn=renamed,
            feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
            **({"embed_dims": embed_dims, "depths": depths} | kwargs),
        )
        return model

    create.__name__ = variant
    register_model(create)


for _variant in SIZES:
    _register(_variant)
