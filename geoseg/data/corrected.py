"""Labels that a person has corrected: polygons that ``geoseg view`` saved, over the labels or the map below them."""

from __future__ import annotations

import numpy as np
from rasterio.features import rasterize
from shapely.geometry import box

from geoseg.arrays import ByteArray
from geoseg.classes import IGNORE, NODATA, RIGHT, ClassTable
from geoseg.config import SceneConfig
from geoseg.data.labels import Labels
from geoseg.data.layers import has_features, read_layer
from geoseg.errors import LabelError
from geoseg.grid import Grid
from geoseg.paths import exists
from geoseg.windows import Window

CLASS_FIELD = "class"

_UNTOUCHED, _RIGHT = -1, -2


class CorrectedLabels:
    """Labels under corrections: a polygon's class wins, what it calls right stays, what it ignores becomes 255.

    Args:
        labels: The labels, or the predicted map, that was corrected.
        config: Names the corrections, of which later polygons lie over earlier ones.
        grid: The scene's grid.
        classes: The class table.

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
        self._geometries, self._values = frame.geometry, np.array([meanings[name] for name in names], dtype=np.int16)

    def read(self, window: Window) -> ByteArray:
        """Class ids (H, W) of a window, 255 where to be ignored and outside the scene."""
        part = self._grid.crop(window)
        hits = np.sort(self._geometries.sindex.query(box(*part.bounds)))
        drawn = np.full(part.shape, _UNTOUCHED, dtype=np.int16)
        if hits.size:
            shapes = zip(self._geometries.iloc[hits], self._values[hits].tolist(), strict=True)
            drawn = rasterize(shapes, out=drawn, transform=part.transform)
        below = self._labels.read(window)
        if self._only:
            below[drawn == _UNTOUCHED] = NODATA
        rows, cols = np.arange(window.row, window.row_stop), np.arange(window.col, window.col_stop)
        inside = ((rows >= 0) & (rows < self._grid.height))[:, None] & (cols >= 0) & (cols < self._grid.width)
        return np.where((drawn >= 0) & inside, drawn, below).astype(np.uint8)
