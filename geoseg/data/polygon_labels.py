"""Labels that are polygons, or points and lines with a width: read near a scene, and burnt into its windows."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import shapely
from affine import Affine

from geoseg.arrays import ByteArray, FloatArray, Geometries, IntArray
from geoseg.classes import IGNORE, NODATA, RIGHT, ClassTable
from geoseg.config.settings import SceneConfig
from geoseg.data.labels import Labels, burnt, inside
from geoseg.data.layers import has_features, read_layer
from geoseg.data.problems import Problem, error, raise_first, warning
from geoseg.errors import LabelError, quoted
from geoseg.grid import Grid, crs_hint
from geoseg.map_rows import cuts_between
from geoseg.paths import InputPath, exists
from geoseg.windows import Window
from geoseg.words import count, listed, nearest

UNKNOWN, MISSING, MIXED = -1, -2, -3

CLASS_FIELD = "class"  # of corrections
_UNTOUCHED, _RIGHT = -1, -2

_UNIT = 2  # of a pixel: rasterio warns of coordinates that are those of pixels
_SAME = 0.5  # two polygons that share more than this part of the smaller one are drawings of one object


class PolygonLabels:
    """Polygons with a class, burnt into a window by the pixel-centre rule; later polygons cover earlier ones.

    Points and lines become polygons by their width on the ground, where one is given. Only what lies near the scene is
    read, once, and travels to worker processes, which read no file. In a file without features the whole scene is what
    ``outside`` says.
    """

    def __init__(self, config: SceneConfig, grid: Grid, classes: ClassTable, *, first_label: int = 0) -> None:
        path = config.labels
        raise_first(entry_problems(config, classes))
        frame = read_layer(path, grid, config.attribute, scene=config.scene, buffer=config.buffer_m)
        if frame.empty and has_features(path, config.buffer_m):
            raise_first([no_polygons(path, config.scene, grid)])
        elif frame.empty:
            raise_first([empty_problem(config, config.scene, classes)])
        if config.class_name is not None:
            self._ids = np.full(len(frame), classes.id_of(config.class_name))
        else:
            found = field_classes(frame[config.attribute] if len(frame) else (), classes, first_label)
            raise_first(class_problems(config, found, classes, first_label))
            self._ids = found.ids
        self._geometries = frame.geometry
        self._outside = NODATA if config.outside == "ignore" else classes.id_of(str(config.outside))
        self._grid = grid

    @property
    def polygons(self) -> tuple[Geometries, ByteArray]:
        """The polygons near the scene in its CRS, and their class ids, (n,) each."""
        return self._geometries.to_numpy(), self._ids

    def read(self, window: Window) -> ByteArray:
        """Class ids (H, W) of a window; the class outside polygons elsewhere, 255 outside the scene."""
        labels = np.full((window.height, window.width), self._outside, dtype=np.uint8)
        labels = burnt(self._geometries, self._ids, self._grid.crop(window), labels)
        labels[~inside(window, self._grid)] = NODATA
        return labels

    def centres(self) -> tuple[FloatArray, IntArray]:
        """Centres of the single polygons, column and row in px (n, 2), and their class ids (n,)."""
        parts, owner = shapely.get_parts(self._geometries.to_numpy(), return_index=True)
        x, y = shapely.get_coordinates(shapely.centroid(parts)).T
        return np.column_stack(~self._grid.transform @ (x, y)), self._ids[owner].astype(np.int64)


class CorrectedLabels:
    """Labels, or a predicted map, under the corrections that ``config`` names.

    A polygon's class wins, what it calls right stays, what it ignores becomes 255; later ones lie over earlier ones.
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
            message = f"corrections {path} hold no polygon, and corrected_only leaves nothing else"
            raise LabelError(message, hint="draw some first")
        meanings = {c.name: c.id for c in classes} | {RIGHT: _RIGHT, IGNORE: NODATA}
        names = frame[CLASS_FIELD].astype(str).tolist() if len(frame) else []
        unknown = next((name for name in names if name not in meanings), None)
        if unknown is not None:
            message = f"corrections {path} hold the unknown class {unknown!r}"
            raise LabelError(message, hint=f"classes: {', '.join(classes.names)}")
        self._geometries, self._values = frame.geometry, np.array([meanings[name] for name in names], dtype=np.int64)

    def read(self, window: Window) -> ByteArray:
        """Class ids (H, W) of a window, 255 where to be ignored and outside the scene."""
        untouched = np.full((window.height, window.width), _UNTOUCHED, dtype=np.int16)
        drawn = burnt(self._geometries, self._values, self._grid.crop(window), untouched)
        below = self._labels.read(window)
        if self._only:
            below[drawn == _UNTOUCHED] = NODATA
        return np.where((drawn >= 0) & inside(window, self._grid), drawn, below).astype(np.uint8)


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
        self._grid = Grid(*grid.shape, Affine.scale(_UNIT, -_UNIT), None)  # coordinates in half pixels, y up
        objects = _moved(geometries[wanted], self._grid.transform @ ~grid.transform)
        self._objects, self._ids = geopandas.GeoSeries(objects), ids[wanted]
        metres = Affine.scale(size[1] / _UNIT, size[0] / _UNIT)
        strips, channels = [], []
        for channel, i in enumerate(classes.channels[len(classes) :], start=len(classes)):
            found = _strips(_moved(objects[self._ids == i], metres), widths_m[i])
            strips.append(_moved(found, ~metres))
            channels.append(np.full(len(found), channel))
        self._strips, self._channels = geopandas.GeoSeries(np.concatenate(strips)), np.concatenate(channels)
        self._classes = np.array(classes.channels)
        self.pairs = len(self._strips)  # objects that lie so near to another one, counted for each of the others

    def mark(self, labels: ByteArray, window: Window) -> ByteArray:
        """Labels of a window (H, W) with the logit channel of the contact where another object is near."""
        contact = burnt(self._strips, self._channels, self._grid.crop(window), np.zeros(labels.shape, dtype=np.int32))
        is_near = (contact > 0) & (labels == self._classes[contact])
        return np.where(is_near, contact, labels).astype(np.uint8) if is_near.any() else labels

    def cuts(self, labels: Labels, window: Window) -> ByteArray:
        """Where neighbouring pixels of a window belong to different objects; see `MapRows.cuts`."""
        wide = Window(window.row, window.col, window.height + 1, window.width + 1)
        ids = labels.read(wide)
        numbers, nothing = np.arange(1, len(self._objects) + 1), np.zeros(ids.shape, dtype=np.int32)
        objects = burnt(self._objects, numbers, self._grid.crop(wide), nothing)
        objects[~np.isin(ids, self._ids)] = 0
        return cuts_between(ids, objects)[:-1, :-1].copy()


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


@dataclass(frozen=True, slots=True, eq=False)
class FieldClasses:
    """What the values of a field mean."""

    ids: IntArray  # class id of each value, (n,): 255 to be ignored, UNKNOWN, MISSING, or MIXED: a number among names
    texts: tuple[str, ...]  # the values as text, (n,)
    numbers: frozenset[int]  # the different numbers, if values are numbers
    mixed: tuple[str, str] | None  # one name and one number, if the field has both


def field_classes(values: Iterable[Any], classes: ClassTable, first_label: int = 0) -> FieldClasses:
    """Class ids of the values of a field: all by name if any is the name of a class, otherwise all by number.

    Numbers mean the same as in a raster of labels: ``first_label`` is the first class; smaller numbers and 255 are
    ignored. Missing values are None, NaN or empty.
    """
    texts = tuple(_text(value) for value in values)
    numbers = {text: _number(text) for text in set(texts)}
    by_name = {c.name: c.id for c in classes}
    by_number = dict.fromkeys(numbers, UNKNOWN)
    for text, number in numbers.items():
        if number is not None and (number < first_label or number == NODATA):
            by_number[text] = NODATA
        if number is not None and first_label <= number < first_label + len(classes):
            by_number[text] = number - first_label
    names = sorted(by_name.keys() & numbers.keys())
    known = by_name if names else by_number
    other = sorted(t for t in numbers if t not in by_name and by_number[t] != UNKNOWN) if names else []
    special = {"": MISSING} | dict.fromkeys(other, MIXED)
    return FieldClasses(
        ids=np.array([special.get(text, known.get(text, UNKNOWN)) for text in texts], dtype=np.int64),
        texts=texts,
        numbers=frozenset() if names else frozenset(n for n in numbers.values() if n is not None),
        mixed=(names[0], other[0]) if other else None,
    )


def _text(value: Any) -> str:
    """A value as text: "3" for 3 and 3.0, empty if missing."""
    if pd.isna(value):
        return ""
    # Integer fields with a missing value are read as floats.
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _number(text: str) -> int | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number >= 0 and number.is_integer() else None


def class_problems(
    config: SceneConfig, found: FieldClasses, classes: ClassTable, first_label: int
) -> Iterator[Problem]:
    """Values of a field that are missing or no class."""
    path, field = config.labels, f"field {config.attribute} of {config.labels}"
    missing = int((found.ids == MISSING).sum())
    if missing:
        fix = f'ogr2ogr -where "{config.attribute} IS NOT NULL" labels.gpkg {quoted(path)}'
        message = f"{field} is empty in {missing} of {count(len(found.ids), 'feature')}"
        yield error(path, message, f"fill it, or leave them out: {fix}")
    unknown = Counter(found.texts[i] for i in np.flatnonzero(found.ids == UNKNOWN))
    if unknown:
        values = []
        for text, times in unknown.most_common():
            near = nearest(text, classes.names)
            values.append(f"{text!r} ({times}×{f', {near}?' if near else ''})")
        are = "value that is" if len(values) == 1 else "values that are"
        if unknown.keys() == {str(first_label + len(classes))} and not first_label:
            hint = "set data.first_label=1 if 1 is the first class, or add the class to the table"
        else:
            hint = f"classes: {', '.join(f'{c.id + first_label} {c.name}' for c in classes)}"
        yield error(
            path,
            f"{field} has {len(values)} {are} no class name or id: {listed(values, 10)}",
            f"rename them, or add them to the classes; {hint}",
        )
    if found.mixed is not None and (found.ids == MIXED).any():
        name, number = found.mixed
        message = f"{field} has names of classes ({name}) and numbers ({number})"
        yield error(path, message, "use names for all classes, or numbers for all")


def no_polygons(path: InputPath, scene: InputPath, grid: Grid) -> Problem:
    """The problem that no feature touches a scene."""
    without = "" if grid.is_georeferenced else ", which has no CRS"
    hint = "check that the CRS of the labels is right; a scene without objects takes a file without features"
    hint = hint if grid.is_georeferenced else crs_hint(grid)
    return error(scene, f"no feature of {path} touches scene {scene}{without}", hint)


def entry_problems(config: SceneConfig, classes: ClassTable) -> Iterator[Problem]:
    """Keys that the entry of a scene lacks."""
    path = config.labels
    if config.outside is None:
        hint = f"add outside: {classes.names[0]} to the scene's entry (or outside: ignore)"
        yield error(path, f"{path}: the class outside the polygons is not given", hint)
    if config.attribute is None and config.class_name is None:
        hint = "add attribute: FIELD (a class name or id) or class_name: NAME to the scene's entry"
        yield error(path, f"{path}: the class of the polygons is not given", hint)


def empty_problem(config: SceneConfig, scene: InputPath, classes: ClassTable) -> Problem:
    """What a file without features means for a scene."""
    path = config.labels
    if config.outside in (None, "ignore"):
        hint = f"if the scene has no objects, give it a class: outside: {classes.names[0]}"
        return error(path, f"labels {path} have no features, so no pixel of scene {scene} has a class", hint)
    return warning(path, f"labels {path} have no features: the whole of scene {scene} is {config.outside!r}")
