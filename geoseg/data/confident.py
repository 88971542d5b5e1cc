"""Labels of which only the confident part counts: a predicted class map teaches another network (self-training)."""

from __future__ import annotations

import math
from functools import partial

from geoseg.arrays import Valid
from geoseg.class_map.reading import ClassMapReader
from geoseg.config import SceneConfig
from geoseg.data.labels import SceneHere
from geoseg.errors import LabelError, SceneError, quoted
from geoseg.grid import Grid
from geoseg.map_rows import CONFIDENCE_SCALE
from geoseg.scene import Scene
from geoseg.windows import Window


class ConfidentPart:
    """Where the class map that ``config`` names, with its confidence beside it, is sure enough of its class.

    Raises:
        LabelError: No class map, a map without its confidence, or a map on another grid.
    """

    def __init__(self, config: SceneConfig, grid: Grid) -> None:
        assert config.min_confidence is not None
        path = quoted(config.labels)
        try:
            with ClassMapReader(config.labels) as reader:
                confidence, own = reader.confidence_path, reader.grid
        except SceneError as error:
            raise LabelError(f"min_confidence needs a class map: {error}", hint=error.hint) from error
        if confidence is None:
            hint = f"predict it once more: geoseg predict {quoted(config.scene)} -o {path} --confidence --overwrite"
            raise LabelError(f"labels {config.labels} have no confidence beside them", hint=hint)
        if own != grid:
            raise LabelError(
                f"labels {config.labels} are not on the pixel grid of scene {config.scene}, so their confidence is not",
                hint="min_confidence needs a map that geoseg predict made of this scene, without --gsd",
            )
        self._confidence = SceneHere(partial(Scene, confidence))
        self._least = math.ceil(config.min_confidence * CONFIDENCE_SCALE)

    def __call__(self, window: Window) -> Valid:
        """Pixels (H, W) of a window with at least that confidence."""
        values, valid = self._confidence.get().read(window)
        confident: Valid = valid & (values[0] >= self._least)
        return confident
