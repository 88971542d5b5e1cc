"""Outlines of scenes on the ground, and labels in a CRS that cannot be transformed to their scene's."""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely
from shapely.geometry import Polygon

from geoseg.data.problems import Problem, error
from geoseg.errors import quoted
from geoseg.georeference import AnyCRS, Georeference, crs_georeference, crs_name, transformer
from geoseg.grid import Grid
from geoseg.paths import InputPath
from geoseg.windows import Window

_PIECES = 32
"""Pieces each side of an outline is cut into before it changes CRS, where straight lines bend."""


def outline(grid: Grid, window: Window | None = None) -> Polygon:
    """Outline of a grid, or of a window of it, in the grid's CRS."""
    w = window or Window(0, 0, *grid.shape)
    corners = (w.col, w.row), (w.col_stop, w.row), (w.col_stop, w.row_stop), (w.col, w.row_stop)
    return Polygon([grid.transform @ corner for corner in corners])


def in_crs(shape: Any, crs: AnyCRS, wanted: AnyCRS) -> Any | None:
    """A shapely geometry transformed to another CRS; None if it has no finite coordinates there."""
    way = transformer(crs, wanted)
    if way is None:
        return None
    left, bottom, right, top = shape.bounds
    fine = shapely.segmentize(shape, max(right - left, top - bottom) / _PIECES)
    moved = shapely.transform(fine, lambda p: np.column_stack(way.transform(*p.T)))
    return moved if np.isfinite(shapely.get_coordinates(moved)).all() else None


def no_transformation(
    what: str, path: InputPath, crs: AnyCRS, scene: InputPath, scene_crs: AnyCRS, *, assign: str
) -> Problem:
    """The problem that PROJ knows no transformation from the CRS of labels to their scene's.

    ``what`` they are is in the plural; ``assign`` is the command that assigns another CRS to them.
    """
    places = f"{what} {path} are in {crs_name(crs)}, scene {scene} in {crs_name(scene_crs)}"
    if crs_georeference(crs) is Georeference.LOCAL:
        return error(path, f"{places}: the CRS of {what} does not say where on Earth they lie", assign)
    if crs_georeference(scene_crs) is Georeference.LOCAL:
        hint = f"assign the right CRS: gdal_edit.py -a_srs EPSG:… {quoted(scene)}"
        return error(path, f"{places}: the scene's CRS is undefined, it does not say where on Earth it lies", hint)
    return error(path, f"{places}: no transformation between them is known", "draw the labels in the scene's own CRS")
