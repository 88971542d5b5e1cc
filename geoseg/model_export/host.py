"""A model as a host runs it: a window of pixels in, a value per pixel out, both of the window's size.

What a host feeds has one of three names, from which everything that describes the file follows:

- ``pixel / 255``: byte imagery scaled to [0, 1], as Deepness and most image pipelines feed it.
- ``pixel``: values as in the file, for every other data type.
- ``(pixel * scale - mean) / std``: the network's own input, if the host normalises.
"""

from typing import Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geoseg.arrays import AnyArray, Float32Array
from geoseg.contract import Contract
from geoseg.network.folding import logits_of
from geoseg.network.stored_model import logits_stride
from geoseg.tiling.tensors import mapped_logits

Feed: TypeAlias = Literal["pixel / 255", "pixel", "(pixel * scale - mean) / std"]
Result: TypeAlias = Literal["probabilities", "logits", "classes"]

NORMALIZED: Feed = "(pixel * scale - mean) / std"
BYTE = 255.0
INPUT = "pixels"  # name of the graph's input; its output is named after the result


def find_feed(contract: Contract, *, normalize: bool) -> Feed:
    """What a host feeds to a file that normalises, or to one that leaves this to the host."""
    if not normalize:
        return NORMALIZED
    return "pixel / 255" if contract.dtype == "uint8" else "pixel"


def scaled_statistics(contract: Contract, unit: float) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per band of pixels divided by ``unit``."""
    mean, std = (contract.statistics / (contract.scale * unit)).tolist()
    return mean, std


def feed_values(pixels: AnyArray, contract: Contract, feed: Feed) -> Float32Array:
    """Pixels (N, B, H, W) as in a file to what a host feeds, independently of `HostModel`."""
    values = pixels.astype(np.float64)
    if feed == "pixel / 255":
        values = values / BYTE
    elif feed == NORMALIZED:
        mean, std = contract.statistics[..., None, None]
        values = (values * contract.scale - mean) / std
    return values.astype(np.float32)


class HostModel(nn.Module):
    """Normalisation, a network or its inference form, upsampling and softmax as one module.

    ``feed`` is what comes in; out go softmax probabilities, logits, or ids of the most probable classes.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, contract: Contract, *, feed: Feed, result: Result) -> None:
        super().__init__()
        self.network = network
        self.stride = logits_stride(network)
        self.normalize = feed != NORMALIZED
        self.result = result
        self.channels = contract.class_table.channels
        bands, unit = len(contract.bands), BYTE if feed == "pixel / 255" else 1.0
        mean, std = scaled_statistics(contract, unit) if self.normalize else ([0.0] * bands, [1.0] * bands)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, B, H, W) float32 to (N, K, H, W) float32, or to class ids (N, H, W) uint8."""
        size = x.shape[2:]
        if self.normalize:
            x = (x - self.mean) / self.std
        logits = mapped_logits(logits_of(self.network, x), self.channels)
        if self.stride > 1:
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        if self.result == "classes":
            return logits.argmax(dim=1).to(torch.uint8)
        return logits.softmax(dim=1) if self.result == "probabilities" else logits
