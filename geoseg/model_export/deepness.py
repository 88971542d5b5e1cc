"""Metadata that lets the QGIS plugin Deepness run an ONNX file without manual settings.

From the plugin's source (Apache-2.0), versions 0.6.3 to 0.7:

- Values of ``metadata_props`` are JSON. Its documentation has the key ``tiles_size``, its code reads ``tile_size``.
- It feeds ``(byte / 255 - standardization_mean) / standardization_std`` for any imagery, so it cannot run models for
  other than 8-bit imagery. Versions before 0.6 ignore the standardization.
- It sets values below ``seg_thresh`` to 0 and takes the largest channel. Since even the threshold 0 turns negative
  logits into 0, it needs probabilities. It reads a single channel as a sigmoid.
- It takes the tile's side from the input's shape, which must be fixed and square; the batch may be free.
- ``resolution`` is in hundredths of a map unit, so cm for a ground metre. It is rounded to three digits, because the
  plugin resamples every tile if it differs from the layer's own, as the median of a training's scenes does.
- It pins ONNX Runtime to 1.12.1 … 1.17.0.
"""

import json

from geoseg.contract import Contract
from geoseg.model_export.host import BYTE, NORMALIZED, Result, find_feed, scaled_statistics
from geoseg.options import ExportOptions


def why_not(contract: Contract, result: Result) -> str | None:
    """Why the plugin would misread a file, or None."""
    if contract.dtype != "uint8":
        return f"the plugin divides pixels by 255, and the model takes {contract.dtype} imagery"
    if len(contract.classes) == 1:
        return "the plugin reads a single class as yes or no"
    if result != "probabilities":
        return f"the plugin needs probabilities, and the file gives {result}"
    return None


def deepness_entries(contract: Contract, options: ExportOptions, *, size: int, overlap: int) -> dict[str, str]:
    """Metadata of an ONNX file for uint8 imagery in the plugin's keys, values as JSON."""
    mean, std = [0.0] * len(contract.bands), [1.0] * len(contract.bands)
    if find_feed(contract, normalize=options.normalize) == NORMALIZED:
        mean, std = scaled_statistics(contract, BYTE)
    values: dict[str, object] = {
        "model_type": "Segmentor",
        "class_names": {str(i): entry.name for i, entry in enumerate(contract.classes)},
        "tile_size": size,
        "tiles_size": size,
        "tiles_overlap": round(100 * overlap / size),
        "standardization_mean": mean,
        "standardization_std": std,
        "seg_thresh": 0.0,  # the largest probability decides
        "seg_small_segment": 0,  # no median filter
    }
    if contract.gsd_m is not None:
        values["resolution"] = float(f"{100 * contract.gsd_m:.3g}")
    return {key: json.dumps(value) for key, value in values.items()}
