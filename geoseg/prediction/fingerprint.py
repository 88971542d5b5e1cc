"""What a map depends on, so that finished work is used again only for the same map."""

from __future__ import annotations

import hashlib
from typing import Any

from geoseg.network.stored_model import StoredModel
from geoseg.options import PredictOptions
from geoseg.scene import Raster
from geoseg.tiling.plan import Plan
from geoseg.version import __version__


def fingerprint(
    model: StoredModel, scene: Raster, plan: Plan, options: PredictOptions, *, precision: str
) -> dict[str, Any]:
    """What a class map depends on wherever it is made, under names that a user understands.

    The model's record of what bfloat16 costs is left out: what counts is the ``precision`` chosen by it.
    """
    contract = model.contract.model_copy(update={"precision": None})
    return {
        "the scene": {**scene.fingerprint(), **({"alpha": True} if options.imagery.alpha else {})},
        "the model": [model.digest, _digest(contract.model_dump_json().encode())],
        "the window size": [plan.window_height, plan.window_width],
        "the overlap": plan.overlap,
        "the blend": _digest(b"".join(taper.tobytes() for taper in plan.tapers)),
        "the test-time augmentation": options.tiling.tta,
        "the layers": list(options.layers.names),
        "the precision": precision,
        "geoseg": __version__,
    }


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
