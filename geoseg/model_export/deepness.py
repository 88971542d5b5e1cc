"""What the QGIS plugin Deepness reads in an ONNX file, so that it runs there without a setting made by hand.

Read in the plugin's source (Apache-2.0), versions 0.6.3 to 0.7:

- Values of ``metadata_props`` are JSON. Its documentation names the key ``tiles_size``, its code reads ``tile_size``.
- It feeds ``(byte / 255 - standardization_mean) / standardization_std`` whatever the imagery is, so a model for
  16-bit imagery would be fed nonsense. Versions before 0.6 know no standardization.
- It sets values below ``seg_thresh`` to 0 and takes the largest channel. Even the threshold 0 turns negative logits
  into 0, so it must be given probabilities. A single channel is taken for a sigmoid.
- It takes the tile's side from the input's shape, which must be fixed and square; the batch may be free.
- Its ``resolution`` counts in hundredths of a map unit, cm where that is a ground metre. It is rounded to three
  digits: a figure that is not quite the layer's own, such as the median of a training's scenes, makes it resample every
  tile.
- It pins ONNX Runtime to 1.12.1 … 1.17.0.
"""

from __future__ import annotations

import json

from geoseg.contract import Contract
from geoseg.model_export.host import BYTE, Feed, Result


def why_not(contract: Contract, result: Result) -> str | None:
    """Why the plugin would misread a file, or None where it reads it right."""
    if contract.dtype != "uint8":
        return f"the plugin divides pixels by 255, and the model takes {contract.dtype} imagery"
    if len(contract.classes) == 1:
        return "the plugin takes a single class for a yes or no"
    if result != "probabilities":
        return f"the plugin takes probabilities, and the file gives {result}"
    return None


def deepness_entries(contract: Contract, feed: Feed, *, size: int, overlap: int) -> dict[str, str]:
    """Metadata of an ONNX file in the plugin's keys, values as JSON.

    Args:
        contract: Of the model; uint8 imagery.
        feed: What the file takes.
        size: Side of a tile, px.
        overlap: Strip shared by neighbouring tiles, px.
    """
    bands = contract.bands
    mean, std = [0.0] * len(bands), [1.0] * len(bands)
    if feed == "(pixel * scale - mean) / std":
        unit = contract.scale * BYTE
        mean, std = [band.mean / unit for band in bands], [band.std / unit for band in bands]
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
