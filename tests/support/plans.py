"""Plans of predictions from plain numbers."""

from __future__ import annotations

from typing import Any

from geoseg.options import Tiling
from geoseg.tiling.plan import LogitsShape, Plan, SceneShape, plan_prediction

_SCENE = ("pixel_bytes", "chunk_rows", "cache_bytes")
_LOGITS = ("stride", "classes", "layer_bytes")
_TILING = ("size", "overlap", "blend", "band_rows", "strip_cols")


def make_plan(height: int, width: int, **given: Any) -> Plan:
    """The plan for a scene; ``given`` are fields of the values that `plan_prediction` takes, and its keywords."""

    def of(names: tuple[str, ...]) -> dict[str, Any]:
        return {name: given.pop(name) for name in names if name in given}

    scene = SceneShape(height=height, width=width, **{"pixel_bytes": 3, **of(_SCENE)})
    logits, tiling = LogitsShape(**of(_LOGITS)), Tiling(**of(_TILING))
    return plan_prediction(scene, logits, tiling, **{"batch_size": 1, **given})
