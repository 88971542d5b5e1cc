"""A written file beside the network it came from: ONNX Runtime against torch, on noise and on a generated landscape."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from geoseg.contract import Contract
from geoseg.errors import ModelError, in_one_line
from geoseg.landscape import Landscape
from geoseg.model_export.host import Feed, Result, feed_values
from geoseg.network.logits import logits_of
from geoseg.network.model_folder import Normalize, TrainedModel
from geoseg.windows import Window

TOLERANCE = 1e-3
"""Largest difference of a probability or a logit."""

AGREEMENT = 0.999
"""Smallest share of pixels with the same class."""

SEED = 0

_OTHER = "another version of onnxruntime, or --opset 18"


@dataclass(frozen=True, slots=True)
class Agreement:
    """How a file's result compares with torch's.

    Attributes:
        runtime: Version of ONNX Runtime.
        difference: Largest difference of a value; 0 where the file gives class ids.
        agreement: Share of pixels with the same class.
    """

    runtime: str
    difference: float
    agreement: float


def check_file(
    path: Path, trained: TrainedModel, *, feed: Feed, result: Result, sizes: list[tuple[int, int]]
) -> Agreement | None:
    """Run a file beside the network as it was trained, two windows of each size in one batch.

    Args:
        path: ONNX file with a free batch.
        trained: The model it was made from.
        feed: What the file takes.
        result: What it gives.
        sizes: Heights and widths, px.

    Returns:
        How they compare, or None where ONNX Runtime is not installed.

    Raises:
        ModelError: The file does not run, or gives something else.
    """
    try:
        import onnxruntime
    except ImportError:
        return None
    contract = trained.contract
    batches = [sample_windows(contract, height, width) for height, width in sizes]
    wanted = [reference(trained, pixels, result) for pixels in batches]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised as well
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        found = [session.run(None, {name: feed_values(pixels, contract, feed)})[0] for pixels in batches]
    except Exception as error:  # its exceptions have no common base
        raise ModelError(
            f"the ONNX file of {trained.folder} does not run in ONNX Runtime {onnxruntime.__version__}: "
            f"{in_one_line(error)}",
            hint=f"leave out --dynamic; or {_OTHER}",
        ) from error
    compared = [_compare(f, w, result) for f, w in zip(found, wanted, strict=True)]
    differences, agreements = zip(*compared, strict=True)
    agreed = Agreement(onnxruntime.__version__, max(differences), min(agreements))
    if not agreed.difference <= TOLERANCE or not agreed.agreement >= AGREEMENT:
        raise ModelError(
            f"the ONNX file of {trained.folder} is not the model: values differ by {agreed.difference:.2g}, "
            f"classes agree on {agreed.agreement:.3%} of the pixels",
            hint=_OTHER,
        )
    return agreed


def sample_windows(contract: Contract, height: int, width: int) -> npt.NDArray[Any]:
    """Noise and a landscape (2, B, H, W) in the model's data type, each band spread as the model knows it."""
    noise = np.random.default_rng(SEED).standard_normal((len(contract.bands), height, width))
    landscape, _ = Landscape(height, width, seed=SEED).read(Window(0, 0, height, width))
    shades = landscape[np.arange(len(contract.bands)) % len(landscape)].astype(np.float64)
    shades = (shades - shades.mean((1, 2), keepdims=True)) / shades.std((1, 2), keepdims=True)
    mean, std = (np.array([getattr(b, name) for b in contract.bands])[:, None, None] for name in ("mean", "std"))
    pixels: npt.NDArray[Any] = (np.stack([noise, shades]) * std + mean) / contract.scale
    if contract.dtype != "float32":
        limits = np.iinfo(contract.dtype)
        pixels = pixels.round().clip(limits.min, limits.max)
    return pixels.astype(np.dtype(contract.dtype), copy=False)


@torch.inference_mode()
def reference(trained: TrainedModel, pixels: npt.NDArray[Any], result: Result) -> npt.NDArray[Any]:
    """What the network as it was trained makes of pixels (N, B, H, W) in the file's values."""
    x = Normalize(trained.contract)(torch.from_numpy(pixels.astype(np.float32)))
    logits = logits_of(trained.network, x)
    if logits.shape[2:] != x.shape[2:]:
        logits = F.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=False)
    if result == "classes":
        logits = logits.argmax(dim=1).to(torch.uint8)
    elif result == "probabilities":
        logits = logits.softmax(dim=1)
    values: npt.NDArray[Any] = logits.numpy()
    return values


def _compare(found: npt.NDArray[Any], wanted: npt.NDArray[Any], result: Result) -> tuple[float, float]:
    """Largest difference and share of equal classes; infinity and 0 for results of other shapes."""
    if found.shape != wanted.shape:
        return math.inf, 0.0
    if result == "classes":
        return 0.0, float((found == wanted).mean())
    return float(np.abs(found - wanted).max()), float((found.argmax(1) == wanted.argmax(1)).mean())
