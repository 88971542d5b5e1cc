"""A model as a host runs it: one window of pixels in, one value per pixel out, both at the window's size.

What a host feeds is stated in one of three words, and everything that describes the file follows from the word:

- ``pixel / 255``: byte imagery, 0 … 1, what Deepness feeds and what most image pipelines do with bytes.
- ``pixel``: values as they are in the file, for every other data type.
- ``(pixel * scale - mean) / std``: the network's own input, with the contract's numbers, where the host normalises.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geoseg.contract import Contract
from geoseg.network.logits import logits_of
from geoseg.network.stored_model import logits_stride

Feed: TypeAlias = Literal["pixel / 255", "pixel", "(pixel * scale - mean) / std"]
Result: TypeAlias = Literal["probabilities", "logits", "classes"]

BYTE = 255.0


def find_feed(contract: Contract, *, normalize: bool) -> Feed:
    """What a host feeds, where normalisation is part of the file or left to the host."""
    if not normalize:
        return "(pixel * scale - mean) / std"
    return "pixel / 255" if contract.dtype == "uint8" else "pixel"


def pixel_statistics(contract: Contract, feed: Feed) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of what a host feeds, per band: what is left to subtract and to divide by."""
    if feed == "(pixel * scale - mean) / std":
        return [0.0] * len(contract.bands), [1.0] * len(contract.bands)
    unit = contract.scale * BYTE if feed == "pixel / 255" else contract.scale
    return [band.mean / unit for band in contract.bands], [band.std / unit for band in contract.bands]


def feed_values(pixels: npt.NDArray[np.generic], contract: Contract, feed: Feed) -> npt.NDArray[np.float32]:
    """Pixels (N, B, H, W) as in a file to what a host feeds, float32: the convention, written out once more."""
    values = pixels.astype(np.float64)
    if feed == "pixel / 255":
        values = values / BYTE
    elif feed == "(pixel * scale - mean) / std":
        mean, std = (np.array([getattr(b, name) for b in contract.bands])[:, None, None] for name in ("mean", "std"))
        values = (values * contract.scale - mean) / std
    return values.astype(np.float32)


class HostModel(nn.Module):
    """Normalisation, network, upsampling and softmax as one module.

    Args:
        network: SMP network, or its inference form; logits at its ``logits_stride``.
        contract: Of the model.
        feed: What comes in.
        result: What goes out: softmax probabilities, logits, or ids of the most probable classes.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, contract: Contract, *, feed: Feed, result: Result) -> None:
        super().__init__()
        self.network = network
        self.stride = logits_stride(network)
        self.normalize = feed != "(pixel * scale - mean) / std"
        self.result = result
        mean, std = pixel_statistics(contract, feed)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, B, H, W) float32 to (N, K, H, W) float32, or to class ids (N, H, W) uint8."""
        size = x.shape[2:]
        if self.normalize:
            x = (x - self.mean) / self.std
        logits = logits_of(self.network, x)
        if self.stride > 1:
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        if self.result == "classes":
            return logits.argmax(dim=1).to(torch.uint8)
        return logits.softmax(dim=1) if self.result == "probabilities" else logits
