"""Labels that a person has corrected: polygons that ``geoseg view`` saved, over the labels or the map below them."""

from __future__ import annotations

import numpy as np

from geoseg.arrays import ByteArray
from geoseg.classes import IGNORE, NODATA, RIGHT, ClassTable
from geoseg.config import SceneConfig
from geoseg.data.labels import Labels, burnt, inside
from geoseg.data.layers import has_features, read_layer
from geoseg.errors import LabelError
from geoseg.grid import Grid
from geoseg.paths import exists
from geoseg.windows import Window

CLASS_FIELD = "class"

_UNTOUCHED, _RIGHT = -1, -2


class CorrectedLabels:
    """Labels, or a predicted map, under the corrections that ``config`` names.

    A polygon's class wins, what it calls right stays, what it ignores becomes 255; later ones lie over earlier ones.

    Raises:
        LabelError: No such file, another kind of file, or a class outside the table.
    """

    def __init__(self, labels: Labels, config: SceneConfig, grid: Grid, classes: ClassTable) -> None:
        path, only = config.corrections, config.corrected_only
        assert path is not None
        if not exists(path):
            raise LabelError(f"no such corrections: {path}", hint="draw some with geoseg view, or leave the key out")
        self._labels, self._only = labels, only
        self._grid = grid.as_drawn()
        frame = read_layer(path, self._grid, CLASS_FIELD, scene=config.scene)
        if only and not has_features(path):
            raise LabelError(
                f"corrections {path} hold no polygon, and corrected_only leaves nothing else", hint="draw some first"
            )
        meanings = {c.name: c.id for c in classes} | {RIGHT: _RIGHT, IGNORE: NODATA}
        names = frame[CLASS_FIELD].astype(str).tolist() if len(frame) else []
        for name in names:
            if name not in meanings:
                raise LabelError(
                    f"corrections {path} hold the unknown class {name!r}", hint=f"classes: {', '.join(classes.names)}"
                )
        self._geometries, self._values = frame.geometry, np.array([meanings[name] for name in names], dtype=np.int64)

    def read(self, window: Window) -> ByteArray:
        """Class ids (H, W) of a window, 255 where to be ignored and outside the scene."""
        untouched = np.full((window.height, window.width), _UNTOUCHED, dtype=np.int16)
        drawn = burnt(self._geometries, self._values, self._grid.crop(window), untouched)
        below = self._labels.read(window)
        if self._only:
            below[drawn == _UNTOUCHED] = NODATA
        return np.where((drawn >= 0) & inside(window, self._grid), drawn, below).astype(np.uint8)
