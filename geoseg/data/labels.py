"""What all labels have in common: class ids on a scene's grid, read window by window, and where they lie."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import geopandas
import numpy as np
import shapely
from rasterio.features import rasterize
from shapely.geometry import Polygon

from geoseg.arrays import AnyArray, BoolArray, ByteArray, IntArray, Valid
from geoseg.classes import NODATA
from geoseg.data.problems import Problem, error
from geoseg.errors import quoted
from geoseg.georeference import AnyCRS, Georeference, crs_georeference, crs_name, transformer
from geoseg.grid import Grid
from geoseg.paths import InputPath
from geoseg.scene.open_files import OpenFiles
from geoseg.scene.raster import Raster
from geoseg.windows import Window

_PIECES = 32  # pieces each side of an outline is cut into before it changes CRS, where straight lines bend


class Labels(Protocol):
    """Labels of one scene."""

    def read(self, window: Window) -> ByteArray:
        """Class ids (H, W) of a window; 255 to be ignored, also outside the scene."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class LabelFacts:
    """What the labels of a scene contain."""

    present: BoolArray | None = None  # which classes occur (K,), but the one outside polygons; None if unknown
    numbers: frozenset[int] = frozenset()  # numbers that stand for classes; none if a field names them


class MaskedLabels:
    """Labels of a part of a scene; 255 elsewhere."""

    def __init__(self, labels: Labels, inside: Callable[[Window], Valid]) -> None:
        self._labels, self._inside = labels, inside

    def read(self, window: Window) -> ByteArray:
        """Class ids (H, W) of a window; 255 to be ignored, also outside the part and the scene."""
        inside = self._inside(window)
        return np.where(inside, self._labels.read(window) if inside.any() else NODATA, NODATA).astype(np.uint8)


class SceneHere:
    """A scene that each process opens for itself, so that objects holding it can travel to worker processes."""

    def __init__(self, opened: Callable[..., Raster]) -> None:
        self._opened = opened
        self._here: tuple[OpenFiles, Raster] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_opened": self._opened, "_here": None}

    def get(self) -> Raster:
        """The scene, open in this process."""
        files = process_files()
        if self._here is None or self._here[0] is not files:
            self._here = files, self._opened(files=files)
        return self._here[1]


_of_process: dict[int, OpenFiles] = {}


def process_files() -> OpenFiles:
    """The few files of imagery and labels that this process keeps open, none inherited in a fork.

    Two processes that read through one inherited file move each other's position in it.
    """
    return _of_process.setdefault(os.getpid(), OpenFiles())


def inside(window: Window, grid: Grid) -> Valid:
    """Pixels (H, W) of a window that lie inside the scene."""
    rows, cols = np.arange(window.row, window.row_stop), np.arange(window.col, window.col_stop)
    return np.asarray(((rows >= 0) & (rows < grid.height))[:, None] & (cols >= 0) & (cols < grid.width))


def burnt(shapes: geopandas.GeoSeries, values: IntArray, part: Grid, out: AnyArray) -> AnyArray:
    """``out`` (H, W) of a part of a scene with polygons (n,) burnt in by the pixel-centre rule, later ones on top."""
    hits = np.sort(shapes.sindex.query(shapely.box(*part.bounds)))
    if not hits.size:
        return out
    pairs = zip(shapes.to_numpy()[hits], values[hits].tolist(), strict=True)
    return np.asarray(rasterize(pairs, out=out, transform=part.transform))


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
