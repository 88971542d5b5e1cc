"""Labels in vector files: checked one file at a time, and burnt into windows of a scene."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import geopandas
import numpy as np
import shapely
from rasterio.features import rasterize

from geoseg.arrays import BoolArray, ByteArray, Geometries
from geoseg.classes import NODATA, ClassTable
from geoseg.config import SceneConfig
from geoseg.data.buffers import Buffer, distance_problems, label_areas, no_metres, thin_features
from geoseg.data.class_ids import MISSING, MIXED, UNKNOWN, FieldClasses, field_classes
from geoseg.data.labels import LabelFacts, inside
from geoseg.data.layers import fields_read, has_features, layer_problems, reach, read_layer
from geoseg.data.overlaps import check_overlaps
from geoseg.data.places import in_crs, outline
from geoseg.data.problems import Problem, as_problem, error, has_error, listed, raise_first, warning
from geoseg.data.raster_labels import missing_labels
from geoseg.errors import LabelError, quoted
from geoseg.georeference import pyproj_crs
from geoseg.grid import Grid, crs_hint
from geoseg.paths import InputPath, exists, opened_name
from geoseg.scene.vector_files import VectorLayer, polygon_layer, reading
from geoseg.windows import Window
from geoseg.words import count, nearest

MAX_WHOLE = 500_000
"""A layer of more features is read near its scenes only, if it has an index."""

_NAMED = 10
_LOCATED = 3


class PolygonLabels:
    """Polygons with a class, burnt into a window by the pixel-centre rule; later polygons cover earlier ones.

    Points and lines become polygons by their width on the ground, where one is given.

    Only the polygons near the scene are read, once, and travel to worker processes, which read no file. In a file
    without features the whole scene is what ``outside`` says.
    """

    def __init__(self, config: SceneConfig, grid: Grid, classes: ClassTable, *, first_label: int = 0) -> None:
        path = config.labels
        raise_first(_entry_problems(config, classes))
        frame = read_layer(path, grid, config.attribute, scene=config.scene, buffer=config.buffer_m)
        if frame.empty:
            problem = no_polygons(path, config.scene, grid)
            raise_first(
                [problem if has_features(path, config.buffer_m) else _empty_problem(config, config.scene, classes)]
            )
        if config.class_name is not None:
            ids = np.full(len(frame), classes.id_of(config.class_name))
        elif frame.empty:
            ids = np.zeros(0)
        else:
            found = field_classes(frame[config.attribute], classes, first_label)
            raise_first(_class_problems(config, found, classes, first_label))
            ids = found.ids
        self._geometries, self._ids = frame.geometry, ids.astype(np.uint8)
        self._outside = NODATA if config.outside == "ignore" else classes.id_of(str(config.outside))
        self._grid = grid

    def read(self, window: Window) -> ByteArray:
        """Class ids (H, W) of a window; the class outside polygons elsewhere, 255 outside the scene."""
        part = self._grid.crop(window)
        hits = np.sort(self._geometries.sindex.query(shapely.box(*part.bounds)))
        labels = np.full(part.shape, self._outside, dtype=np.uint8)
        if hits.size:
            shapes = zip(self._geometries.iloc[hits], self._ids[hits].tolist(), strict=True)
            labels = rasterize(shapes, out=labels, transform=part.transform)
        labels[~inside(window, self._grid)] = NODATA
        return labels


@dataclass(frozen=True, slots=True, eq=False)
class _Features:
    """Features of a file of labels."""

    frame: geopandas.GeoDataFrame  # as read
    geometries: Geometries  # their geometries, (n,)
    areas: Geometries  # the ground that each labels, empty if it has none, (n,)
    touched: dict[InputPath, BoolArray | None]  # by scene, the features that touch it (n,); None if unknown
    seen: BoolArray | None  # features that touch any scene, (n,); None if unknown


def check_polygon_labels(
    config: SceneConfig, grids: Mapping[InputPath, Grid | None], classes: ClassTable, *, first_label: int = 0
) -> tuple[list[Problem], dict[InputPath, LabelFacts]]:
    """All problems of a file of polygons, or of points and lines, and what it contains for each scene.

    ``grids`` are those of the scenes it belongs to, None for a scene that cannot be opened.
    """
    path = config.labels
    unknown = dict.fromkeys(grids, LabelFacts())
    problems = list(_entry_problems(config, classes))
    if not exists(path):
        return [*problems, missing_labels(path)], unknown
    try:
        opened_name(path, kind=LabelError)
        layer = polygon_layer(path, "labels", LabelError, count=True, any_kind=config.buffer_m is not None)
        if not layer.features:
            problems += [_empty_problem(config, scene, classes) for scene in grids]
            return problems, dict.fromkeys(grids, LabelFacts(np.zeros(len(classes), dtype=bool)))
        wanted = fields_read(config.attribute, config.buffer_m)
        problems += layer_problems(path, layer, wanted, grids)
        columns = [field for field in wanted if field in layer.fields]
        if isinstance(config.buffer_m, str) and config.buffer_m not in layer.fields:
            return problems, unknown  # where the features reach is not known
        with reading("labels", path, LabelError):
            features = _read(layer, columns, grids, config.buffer_m)
    except LabelError as failed:
        return [*problems, as_problem(path, failed)], unknown
    problems += _place_problems(path, grids, features.touched, layer.features)
    # Features that no scene sees do no harm. If it is unknown what they see, all are checked.
    used = ~shapely.is_empty(features.areas)
    if features.seen is not None:
        used &= features.seen
    ids, numbers = np.full(len(used), UNKNOWN), frozenset[int]()
    if config.class_name is not None:
        ids[:] = classes.id_of(config.class_name)
    elif config.attribute in columns:
        found = field_classes(features.frame[config.attribute][used], classes, first_label)
        ids[used], numbers = found.ids, found.numbers
        problems += _class_problems(config, found, classes, first_label)
    problems += _geometry_problems(path, features)
    problems += _width_problems(config, grids, features)
    used &= (ids >= 0) & (ids != NODATA)
    problems += check_overlaps(path, features.areas[used], ids[used], classes)
    present: dict[InputPath, LabelFacts] = {}
    for scene, touches in features.touched.items():
        here = None
        if touches is not None and not has_error(problems):
            here = np.isin(np.arange(len(classes)), ids[touches & used])
        present[scene] = LabelFacts(here, numbers)
    return problems, present


def no_polygons(path: InputPath, scene: InputPath, grid: Grid) -> Problem:
    """The problem that no feature touches a scene."""
    without = "" if grid.is_georeferenced else ", which has no CRS"
    hint = "check that the CRS of the labels is right; a scene without objects takes a file without features"
    hint = hint if grid.is_georeferenced else crs_hint(grid)
    return error(scene, f"no feature of {path} touches scene {scene}{without}", hint)


def _entry_problems(config: SceneConfig, classes: ClassTable) -> Iterator[Problem]:
    """Keys that the entry of a scene lacks."""
    path = config.labels
    if config.outside is None:
        hint = f"add outside: {classes.names[0]} to the scene's entry (or outside: ignore)"
        yield error(path, f"{path}: the class outside the polygons is not given", hint)
    if config.attribute is None and config.class_name is None:
        hint = "add attribute: FIELD (a class name or id) or class_name: NAME to the scene's entry"
        yield error(path, f"{path}: the class of the polygons is not given", hint)


def _empty_problem(config: SceneConfig, scene: InputPath, classes: ClassTable) -> Problem:
    """What a file without features means for a scene."""
    path = config.labels
    if config.outside in (None, "ignore"):
        hint = f"if the scene has no objects, give it a class: outside: {classes.names[0]}"
        return error(path, f"labels {path} have no features, so no pixel of scene {scene} has a class", hint)
    return warning(path, f"labels {path} have no features: the whole of scene {scene} is {config.outside!r}")


def _read(layer: VectorLayer, columns: list[str], grids: Mapping[InputPath, Grid | None], buffer: Buffer) -> _Features:
    """The features of a layer; of a very large one with an index, those near the scenes."""
    outlines = {scene: _outline(grid, layer.crs) for scene, grid in grids.items()}
    known = [shape for shape in outlines.values() if shape is not None]
    bounds = None
    if layer.features > MAX_WHOLE and layer.has_index and known:
        left, bottom, right, top = shapely.total_bounds(np.array(known, dtype=object)).tolist()
        bounds = reach(layer, (left, bottom, right, top), buffer)
    frame = layer.read(columns, bounds)
    geometries, areas = frame.geometry.to_numpy(), label_areas(frame, buffer)
    shapes = np.where(shapely.is_empty(areas), geometries, areas)
    touched = {scene: None if shape is None else _touches(shapes, shape) for scene, shape in outlines.items()}
    each = [touches for touches in touched.values() if touches is not None]
    seen = np.logical_or.reduce(each, axis=0) if each and len(each) == len(touched) else None
    return _Features(frame, geometries, areas, touched, seen)


def _outline(grid: Grid | None, crs: str | None) -> Any | None:
    """The outline of a scene in the CRS of the labels; None if unknown."""
    if grid is None or (crs is None and grid.is_georeferenced):
        return None
    if crs is None or not grid.is_georeferenced or pyproj_crs(grid.crs) == pyproj_crs(crs):
        return outline(grid)
    assert grid.crs is not None
    moved = in_crs(outline(grid), grid.crs, crs)
    return moved if moved is not None and moved.is_valid else None


def _touches(geometries: Geometries, shape: Any) -> BoolArray:
    """Features that touch a scene's outline, (n,)."""
    touches = np.zeros(len(geometries), dtype=bool)
    hits = np.sort(shapely.STRtree(geometries).query(shape))
    # GEOS does not compare invalid polygons: of these the bounds must do.
    valid = shapely.is_valid(geometries[hits])
    touches[hits[~valid]] = True
    touches[hits[valid]] = shapely.intersects(geometries[hits[valid]], shape)
    return touches


def _place_problems(
    path: InputPath, grids: Mapping[InputPath, Grid | None], touched: Mapping[InputPath, BoolArray | None], total: int
) -> Iterator[Problem]:
    """Scenes that no feature touches, and features that touch no scene."""
    for scene, grid in grids.items():
        touches = touched[scene]
        if grid is not None and touches is not None and not touches.any():
            yield no_polygons(path, scene, grid)
    each = [touches for touches in touched.values() if touches is not None]
    outside = total - int(np.logical_or.reduce(each, axis=0).sum()) if len(each) == len(touched) else 0
    if 0 < outside < total:
        message = f"{outside} of {count(total, 'feature')} of {path} ({outside / total:.0%}) lie outside all its scenes"
        hint = f"they are skipped; if they should lie in one, check the CRS: geoseg info {quoted(next(iter(grids)))}"
        yield warning(path, message, hint)


def _class_problems(
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
            f"{field} has {len(values)} {are} no class name or id: {listed(values, _NAMED)}",
            f"rename them, or add them to the classes; {hint}",
        )
    if found.mixed is not None and (found.ids == MIXED).any():
        name, number = found.mixed
        message = f"{field} has names of classes ({name}) and numbers ({number})"
        yield error(path, message, "use names for all classes, or numbers for all")


def _width_problems(
    config: SceneConfig, grids: Mapping[InputPath, Grid | None], features: _Features
) -> Iterator[Problem]:
    """Points and lines without a width, on ground without metres, or a width for nothing."""
    path, thin = config.labels, thin_features(features.geometries)
    seen = np.ones(len(thin), dtype=bool) if features.seen is None else features.seen
    yield from distance_problems(path, features.frame, config.buffer_m, seen)
    if config.buffer_m is not None and not thin.any():
        yield warning(path, f"buffer_m does nothing: {path} has polygons only, which are not widened")
    elif config.buffer_m is not None:
        for scene, grid in grids.items():
            if grid is not None and not grid.is_metric:
                yield no_metres(path, scene, grid)


def _geometry_problems(path: InputPath, features: _Features) -> Iterator[Problem]:
    """Geometries that are missing, empty, invalid or repeated."""
    geometries, seen = features.geometries, features.seen
    nothing = shapely.is_missing(geometries) | shapely.is_empty(geometries)
    if nothing.all():
        yield error(path, f"labels {path} have no geometries", f"see what they hold: geoseg info {quoted(path)}")
        return
    if nothing.any():
        message = f"{int(nothing.sum())} of {count(len(geometries), 'feature')} of {path} have no geometry"
        yield warning(path, message, "they are skipped")
    looked_at = ~nothing if seen is None else seen & ~nothing
    if not looked_at.any():
        return
    used = looked_at & ~shapely.is_empty(features.areas)
    lost = shapely.get_num_coordinates(geometries) > shapely.get_num_coordinates(features.areas)
    if partly := int((lost & used & ~thin_features(geometries)).sum()):
        yield warning(path, f"lines and points beside the polygons in {count(partly, 'feature')} of {path} are skipped")
    polygons, fids = features.areas[used], features.frame.index.to_numpy()[used]
    invalid = np.flatnonzero(~shapely.is_valid(polygons))
    if invalid.size:
        reasons = [f"feature {fids[i]}: {shapely.is_valid_reason(polygons[i])}" for i in invalid[:_LOCATED]]
        more = f"; and {invalid.size - _LOCATED} more" if invalid.size > _LOCATED else ""
        yield warning(
            path,
            f"invalid geometries in {path}: {invalid.size} ({'; '.join(reasons)}{more}); they are burnt, but what "
            "their rings enclose twice becomes a hole",
            f"ogr2ogr -makevalid labels.gpkg {quoted(path)}",
        )
    repeated = len(polygons) - len(set(shapely.to_wkb(shapely.normalize(polygons)).tolist()))
    if repeated:
        verb = "repeats" if repeated == 1 else "repeat"
        message = f"{count(repeated, 'feature')} of {path} {verb} another one exactly; the later one counts"
        yield warning(path, message, "delete duplicate geometries, in QGIS")
