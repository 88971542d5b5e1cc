"""Where objects of a class touch, from the polygons that are its labels."""

from typing import Any

import numpy as np
import shapely
from affine import Affine
from rasterio.features import rasterize

from geoseg.arrays import ByteArray, Geometries, Int32Array, IntArray
from geoseg.classes import ClassTable
from geoseg.data.labels import Labels
from geoseg.data.polygon_labels import PolygonLabels
from geoseg.errors import LabelError
from geoseg.grid import Grid, crs_hint
from geoseg.map_rows import CUT_EAST, CUT_SOUTH
from geoseg.windows import Window

_UNIT = 2  # of a pixel: rasterio warns of coordinates that are those of pixels
_SAME = 0.5  # two polygons that share more than this part of the smaller one are drawings of one object


class Touching:
    """Polygons of classes to separate: pixels near another object of their class, and borders between objects.

    How near that is, ``widths_m`` say for each class to separate, in metres as at the centre of the scene. The regions
    near another object are found once and travel to worker processes. A `LabelError` names the ``scene`` if the size of
    its pixels in metres is not known, or exceeds a width.
    """

    def __init__(
        self, labels: PolygonLabels, classes: ClassTable, widths_m: dict[int, float], grid: Grid, *, scene: object
    ) -> None:
        size = grid.pixel_size_m()
        narrowest = min(widths_m.values())
        if size is None:
            message = f"scene {scene} has no CRS, so {narrowest:g} m between objects is of unknown size there"
            raise LabelError(message, hint=crs_hint(grid))
        if narrowest < max(size):
            message = f"contact_m {narrowest:g} is less than a pixel of scene {scene} ({max(size):.2g} m)"
            raise LabelError(message, hint=f"contact_m: {3 * max(size):.1g} or more")
        geometries, ids = labels.polygons
        wanted = np.isin(ids, list(widths_m))
        inverse = Affine.scale(_UNIT, -_UNIT) @ ~grid.transform
        self._objects = _moved(geometries[wanted], inverse)  # in half pixels, y up
        self._ids = ids[wanted]
        self._tree = shapely.STRtree(self._objects)
        metres = Affine.scale(size[1] / _UNIT, size[0] / _UNIT)
        strips, channels = [], []
        for channel, i in enumerate(classes.channels[len(classes) :], start=len(classes)):
            found = _strips(_moved(self._objects[self._ids == i], metres), widths_m[i])
            strips.append(_moved(found, ~metres))
            channels.append(np.full(len(found), channel))
        self._strips = np.concatenate(strips)
        self._channels = np.concatenate(channels)
        self._near = shapely.STRtree(self._strips)
        self._classes = np.array(classes.channels)
        self.pairs = len(self._strips)  # objects that lie so near to another one, counted for each of the others

    def mark(self, labels: ByteArray, window: Window) -> ByteArray:
        """Labels of a window (H, W) with the logit channel of the contact where another object is near."""
        contact = _burnt(self._strips, self._channels, self._near, window)
        is_near = (contact > 0) & (labels == self._classes[contact])
        return np.where(is_near, contact, labels).astype(np.uint8) if is_near.any() else labels

    def cuts(self, labels: Labels, window: Window) -> ByteArray:
        """Where neighbouring pixels of a window belong to different objects; see `MapRows.cuts`."""
        wide = Window(window.row, window.col, window.height + 1, window.width + 1)
        ids, objects = labels.read(wide), _burnt(self._objects, np.arange(1, len(self._objects) + 1), self._tree, wide)
        separate = np.isin(ids, self._ids)
        cuts = np.zeros(ids.shape, dtype=np.uint8)
        for here, there, bit in (
            (np.s_[:, :-1], np.s_[:, 1:], CUT_EAST),
            (np.s_[:-1], np.s_[1:], CUT_SOUTH),
        ):
            cuts[here] |= (separate[here] & (ids[here] == ids[there]) & (objects[here] != objects[there])) * np.uint8(
                bit
            )
        return cuts[:-1, :-1].copy()


def _moved(geometries: Geometries, transform: Any) -> Geometries:
    return np.asarray(shapely.transform(geometries, lambda xy: np.column_stack(transform @ xy.T)))


def _strips(objects: Geometries, width: float) -> Geometries:
    """The part of each object within a distance of each other one, (m,)."""
    objects = shapely.make_valid(objects)
    one, other = shapely.STRtree(objects).query(objects, predicate="dwithin", distance=width)
    one, other = one[one != other], other[one != other]
    smaller = np.minimum(shapely.area(objects[one]), shapely.area(objects[other]))
    apart = shapely.area(shapely.intersection(objects[one], objects[other])) <= _SAME * smaller
    one, other = one[apart], other[apart]
    neighbours, number = np.unique(other, return_inverse=True)
    around = shapely.buffer(objects[neighbours], width, quad_segs=4)
    strips = shapely.intersection(objects[one], around[number])
    return np.asarray(strips[shapely.area(strips) > 0])


def _burnt(shapes: Geometries, values: IntArray, tree: shapely.STRtree, window: Window) -> Int32Array:
    """Values of shapes in half pixels, y up, burnt into a window (H, W), 0 elsewhere; later ones cover earlier ones."""
    burnt = np.zeros((window.height, window.width), dtype=np.int32)
    left, bottom, right, top = (_UNIT * n for n in (window.col, -window.row_stop, window.col_stop, -window.row))
    hits = np.sort(tree.query(shapely.box(left, bottom, right, top)))
    if hits.size:
        pairs = zip(shapes[hits], values[hits].tolist(), strict=True)
        rasterize(pairs, out=burnt, transform=Affine(_UNIT, 0, left, 0, -_UNIT, top))
    return burnt
