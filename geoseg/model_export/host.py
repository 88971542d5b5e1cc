"""A model as a host runs it: pixels of a window in, a value per pixel out; and the check that a file does the same.

What a host feeds has one of three names, from which everything that describes the file follows:

- ``pixel / 255``: byte imagery scaled to [0, 1], as Deepness and most image pipelines feed it.
- ``pixel``: values as in the file, for every other data type.
- ``(pixel * scale - mean) / std``: the network's own input, if the host normalises.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geoseg.arrays import AnyArray, Float32Array
from geoseg.contract import Contract
from geoseg.errors import ModelError, in_one_line
from geoseg.landscape import Landscape
from geoseg.network.folding import logits_of
from geoseg.network.model_folder import Normalize
from geoseg.network.stored_model import StoredModel, logits_stride
from geoseg.tiling.arrays import mapped_logits
from geoseg.windows import Window

Feed: TypeAlias = Literal["pixel / 255", "pixel", "(pixel * scale - mean) / std"]
Result: TypeAlias = Literal["probabilities", "logits", "classes"]

NORMALIZED: Feed = "(pixel * scale - mean) / std"
BYTE = 255.0
INPUT = "pixels"  # name of the graph's input; its output is named after the result

TOLERANCE = 1e-3  # largest difference of a probability or a logit
AGREEMENT = 0.999  # smallest share of pixels with the same class

_OTHER = "another version of onnxruntime, or --opset 18"


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
        mean, std = scaled_statistics(contract, BYTE if feed == "pixel / 255" else 1.0)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, B, H, W) float32 to (N, K, H, W) float32, or to class ids (N, H, W) uint8."""
        size = x.shape[2:]
        if self.normalize:
            x = (x - self.mean) / self.std
        logits: Tensor = mapped_logits(logits_of(self.network, x), self.channels, torch)
        if self.stride > 1:
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        if self.result == "classes":
            return logits.argmax(dim=1).to(torch.uint8)
        return logits.softmax(dim=1) if self.result == "probabilities" else logits


# --- check


@dataclass(frozen=True, slots=True)
class Agreement:
    """How a file's result compares with torch's."""

    runtime: str  # version of ONNX Runtime
    difference: float  # the largest of a value; 0 for class ids
    agreement: float  # share of pixels with the same class

    def __str__(self) -> str:
        return (
            f"ONNX Runtime {self.runtime} against torch: largest difference {self.difference:.1e}, "
            f"same class on {self.agreement:.3%} of the pixels"
        )


def check_file(
    path: Path, model: StoredModel, *, feed: Feed, result: Result, sizes: list[tuple[int, int]]
) -> Agreement | None:
    """Compare a file (with a free batch) with the network as it was trained, on two windows of each size (H, W), px.

    None if ONNX Runtime is not installed; a `ModelError` if the file does not run, or gives another result.
    """
    try:
        import onnxruntime
    except ImportError:
        return None
    contract = model.contract
    batches = [sample_windows(contract, height, width) for height, width in sizes]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised, too
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        found = [session.run(None, {name: feed_values(pixels, contract, feed)})[0] for pixels in batches]
    except Exception as error:  # its exceptions have no common base
        raise ModelError(
            f"the ONNX file of {model.folder} does not run in ONNX Runtime {onnxruntime.__version__}: "
            f"{in_one_line(error)}",
            hint=f"leave out --dynamic; or {_OTHER}",
        ) from error
    compared = [_compare(f, reference(model, p, result), result) for f, p in zip(found, batches, strict=True)]
    differences, agreements = zip(*compared, strict=True)
    agreed = Agreement(onnxruntime.__version__, max(differences), min(agreements))
    if not agreed.difference <= TOLERANCE or not agreed.agreement >= AGREEMENT:
        raise ModelError(
            f"the ONNX file of {model.folder} does not match the model: values differ by {agreed.difference:.2g}, "
            f"classes agree on {agreed.agreement:.3%} of the pixels",
            hint=_OTHER,
        )
    return agreed


def sample_windows(contract: Contract, height: int, width: int) -> AnyArray:
    """Noise and a landscape (2, B, H, W) in the model's data type, with the mean and spread of its bands."""
    noise = np.random.default_rng(0).standard_normal((len(contract.bands), height, width))
    landscape, _ = Landscape(height, width, seed=0).read(Window(0, 0, height, width))
    shades = landscape[np.arange(len(contract.bands)) % len(landscape)].astype(np.float64)
    shades = (shades - shades.mean((1, 2), keepdims=True)) / shades.std((1, 2), keepdims=True)
    mean, std = contract.statistics[..., None, None]
    pixels: AnyArray = (np.stack([noise, shades]) * std + mean) / contract.scale
    if contract.dtype != "float32":
        limits = np.iinfo(contract.dtype)
        pixels = pixels.round().clip(limits.min, limits.max)
    return pixels.astype(np.dtype(contract.dtype), copy=False)


@torch.inference_mode()
def reference(model: StoredModel, pixels: AnyArray, result: Result) -> AnyArray:
    """What the network as it was trained makes of pixels (N, B, H, W)."""
    normalize = Normalize(model.contract)
    host = HostModel(model.network, model.contract, feed=NORMALIZED, result=result)
    values: AnyArray = host(normalize(torch.from_numpy(pixels.astype(np.float32)))).numpy()
    return values


def _compare(found: AnyArray, wanted: AnyArray, result: Result) -> tuple[float, float]:
    """Largest difference and share of equal classes; infinity and 0 for results of different shapes."""
    if found.shape != wanted.shape:
        return math.inf, 0.0
    if result == "classes":
        return 0.0, float((found == wanted).mean())
    return float(np.abs(found - wanted).max()), float((found.argmax(1) == wanted.argmax(1)).mean())
