"""An ONNX file compared with its network: ONNX Runtime against torch, on noise and on a generated landscape."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from geoseg.arrays import AnyArray
from geoseg.contract import Contract
from geoseg.errors import ModelError, in_one_line
from geoseg.landscape import Landscape
from geoseg.model_export.host import NORMALIZED, Feed, HostModel, Result, feed_values
from geoseg.network.model_folder import Normalize
from geoseg.network.stored_model import StoredModel
from geoseg.windows import Window

TOLERANCE = 1e-3  # largest difference of a probability or a logit
AGREEMENT = 0.999  # smallest share of pixels with the same class

SEED = 0

_OTHER = "another version of onnxruntime, or --opset 18"


@dataclass(frozen=True, slots=True)
class Agreement:
    """How a file's result compares with torch's."""

    runtime: str  # version of ONNX Runtime
    difference: float  # the largest of a value; 0 for class ids
    agreement: float  # share of pixels with the same class


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
    noise = np.random.default_rng(SEED).standard_normal((len(contract.bands), height, width))
    landscape, _ = Landscape(height, width, seed=SEED).read(Window(0, 0, height, width))
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
