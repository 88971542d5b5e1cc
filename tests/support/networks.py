"""Small networks with seeded weights, and the official one of the golden files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from geoseg.contract import Contract
from geoseg.models import SegNeXt, convert_official_state_dict
from geoseg.network.stored_model import logits_stride

# Options of a SegNeXt that runs in milliseconds.
TINY: dict[str, Any] = {
    "decoder_channels": 32,
    "nmf_rank": 4,
    "norm_groups": 8,
    "embed_dims": [8, 16, 24, 32],
    "depths": [1, 1, 1, 1],
}

# The same, wide enough for OpenVINO in bfloat16.
WIDE: dict[str, Any] = {
    "decoder_channels": 32,
    "nmf_rank": 16,
    "norm_groups": 8,
    "embed_dims": [32, 32, 48, 64],
    "depths": [1, 1, 1, 1],
}

# The same with a block in its last stage alone: for converters, which take seconds for every block.
SHALLOW: dict[str, Any] = TINY | {"depths": [0, 0, 0, 1]}

# A U-Net of few layers: exporters to ONNX take 6 s for the smallest SegNeXt and 12 if its size is free, and the last
# two stages of a ResNet hold nine tenths of its weights.
FEW_LAYERS: dict[str, Any] = {"encoder_depth": 3, "decoder_channels": [16, 8, 8]}

GOLDEN = Path(__file__).parents[1] / "golden"
SIZES = ("tiny", "small", "base", "large")


def segnext(**options: Any) -> SegNeXt:
    """A small SegNeXt with seeded random weights, in evaluation mode; its classes differ visibly."""
    torch.manual_seed(0)
    network = smp.create_model("segnext", encoder_name="tu-mscan_tiny", encoder_weights=None, **(TINY | options))
    assert isinstance(network, SegNeXt)
    nn.init.normal_(network.segmentation_head.weight)
    return network.eval()


def load(name: str) -> dict[str, npt.NDArray[Any]]:
    with np.load(GOLDEN / name) as file:
        return dict(file)


@cache
def golden() -> dict[str, npt.NDArray[Any]]:
    return load("tiny_reference.npz")


def official_tiny() -> SegNeXt:
    """The network of the golden files with the official weights, loaded strictly."""
    network = segnext(classes=6, nmf_rank=8, depths=(1, 1, 2, 1), drop_path_rate=0.0)
    official = {k.removeprefix("sd/"): torch.from_numpy(v) for k, v in golden().items() if k.startswith("sd/")}
    state = convert_official_state_dict(official)
    state["decoder.hamburger.ham.bases"] = torch.from_numpy(golden()["bases"])
    network.load_state_dict(state, strict=True)
    return network


@dataclass(frozen=True)
class InMemory:
    """A network of no model folder in the place of a `geoseg.network.stored_model.StoredModel`."""

    network: nn.Module
    contract: Contract | None = None
    digest: str = "0" * 16
    folder: Path = Path("in memory")
    key: None = None

    @property
    def stride(self) -> int:
        return logits_stride(self.network)


N = TypeVar("N", bound=nn.Module)

MSCAN_SMALL: dict[str, Any] = {name: TINY[name] for name in ("embed_dims", "depths")}


def images(*size: int, seed: int = 1) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def visible(network: N, *, seed: int = 1) -> N:
    """A network in which every parameter shows: all moved, then batch norms calibrated and their statistics moved."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(like.shape, generator=generator)

    for name, parameter in network.named_parameters():
        if "layer_scale" in name:
            parameter.copy_(uniform(parameter, 0.1, 0.5) * uniform(parameter, -1, 1).sign())
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm):
            module.weight.copy_(uniform(module.weight, 0.5, 1.5))
            module.bias.copy_(uniform(module.bias, -0.5, 0.5))
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            module.bias += uniform(module.bias, -0.3, 0.3)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the statistics of one batch
        norm.reset_running_stats()
    network.train()(images(2, network.encoder._in_channels, 64, 96, seed=seed))  # type: ignore[union-attr]
    for norm in norms:
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean += norm.running_var.sqrt() * uniform(norm.running_mean, -0.3, 0.3)
        norm.running_var *= uniform(norm.running_var, 0.7, 1.4)
    return network.eval()


def difference(found: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest value."""
    assert found.shape == wanted.shape
    assert torch.isfinite(wanted).all()
    return float((found - wanted).abs().max() / wanted.abs().max())
