"""Checks of labels in a vector file before training: fields, places, geometries, and what lies over what."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import geopandas
import numpy as np
import shapely

from geoseg.arrays import AnyArray, BoolArray, Geometries, IntArray
from geoseg.classes import NODATA, ClassTable
from geoseg.config.settings import SceneConfig
from geoseg.data.labels import LabelFacts, in_crs, outline
from geoseg.data.layers import (
    Buffer,
    distance_problems,
    fields_read,
    label_areas,
    layer_problems,
    no_metres,
    reach,
    thin_features,
)
from geoseg.data.polygon_labels import (
    UNKNOWN,
    class_problems,
    empty_problem,
    entry_problems,
    field_classes,
    no_polygons,
)
from geoseg.data.problems import Problem, as_problem, error, has_error, warning
from geoseg.data.raster_labels import missing_labels
from geoseg.errors import LabelError, quoted
from geoseg.georeference import pyproj_crs
from geoseg.grid import Grid
from geoseg.paths import InputPath, exists, opened_name
from geoseg.scene.vector_files import VectorLayer, polygon_layer, reading
from geoseg.words import count, first_lines, listed

MAX_WHOLE = 500_000  # a layer of more features is read near its scenes only, if it has an index
_LOCATED = 3  # invalid polygons that are named
_MIN_SHARE = 0.01  # overlap below this share of the area of all polygons is not reported
_INSIDE = 0.95  # a polygon lies within another one if this share of it does
_MAX_PAIRS = 20_000  # pairs whose overlap is measured; of more, as many are drawn at random, and shares are estimates


@dataclass(frozen=True, slots=True, eq=False)
class _Features:
    """Features of a file of labels."""

    frame: geopandas.GeoDataFrame  # as read
    geometries: Geometries  # their geometries, (n,)
    areas: Geometries  # the ground that each labels, empty if it has none, (n,)
    touched: dict[InputPath, BoolArray | None]  # by scene, the features that touch it (n,); None if unknown
    seen: BoolArray  # features that touch any scene, (n,); all if that is unknown


def check_polygon_labels(
    config: SceneConfig, grids: Mapping[InputPath, Grid | None], classes: ClassTable, *, first_label: int = 0
) -> tuple[list[Problem], dict[InputPath, LabelFacts]]:
    """All problems of a file of polygons, or of points and lines, and what it contains for each scene.

    ``grids`` are those of the scenes it belongs to, None for a scene that cannot be opened.
    """
    path = config.labels
    unknown = dict.fromkeys(grids, LabelFacts())
    problems = list(entry_problems(config, classes))
    if not exists(path):
        return [*problems, missing_labels(path)], unknown
    try:
        opened_name(path, kind=LabelError)
        layer = polygon_layer(path, "labels", LabelError, count=True, any_kind=config.buffer_m is not None)
        if not layer.features:
            problems += [empty_problem(config, scene, classes) for scene in grids]
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
    problems += _place_problems(path, grids, features, layer.features)
    used = features.seen & ~shapely.is_empty(features.areas)  # features that no scene sees do no harm
    ids, numbers = np.full(len(used), UNKNOWN), frozenset[int]()
    if config.class_name is not None:
        ids[:] = classes.id_of(config.class_name)
    elif config.attribute in columns:
        found = field_classes(features.frame[config.attribute][used], classes, first_label)
        ids[used], numbers = found.ids, found.numbers
        problems += class_problems(config, found, classes, first_label)
    problems += _geometry_problems(path, features)
    problems += _width_problems(config, grids, features)
    used &= (ids >= 0) & (ids != NODATA)
    problems += _overlaps(path, features.areas[used], ids[used], classes)
    present: dict[InputPath, LabelFacts] = {}
    for scene, touches in features.touched.items():
        here = None
        if touches is not None and not has_error(problems):
            here = np.isin(np.arange(len(classes)), ids[touches & used])
        present[scene] = LabelFacts(here, numbers)
    return problems, present


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
    each = [np.ones(len(frame), dtype=bool) if touches is None else touches for touches in touched.values()]
    seen = np.logical_or.reduce(each, axis=0)
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
    path: InputPath, grids: Mapping[InputPath, Grid | None], features: _Features, total: int
) -> Iterator[Problem]:
    """Scenes that no feature touches, and features that touch no scene."""
    for scene, grid in grids.items():
        touches = features.touched[scene]
        if grid is not None and touches is not None and not touches.any():
            yield no_polygons(path, scene, grid)
    is_known = all(touches is not None for touches in features.touched.values())
    outside = total - int(features.seen.sum()) if is_known else 0
    if 0 < outside < total:
        message = f"{outside} of {count(total, 'feature')} of {path} ({outside / total:.0%}) lie outside all its scenes"
        hint = f"they are skipped; if they should lie in one, check the CRS: geoseg info {quoted(next(iter(grids)))}"
        yield warning(path, message, hint)


def _width_problems(
    config: SceneConfig, grids: Mapping[InputPath, Grid | None], features: _Features
) -> Iterator[Problem]:
    """Points and lines without a width, on ground without metres, or a width for nothing."""
    path, thin = config.labels, thin_features(features.geometries)
    yield from distance_problems(path, features.frame, config.buffer_m, features.seen)
    if config.buffer_m is not None and not thin.any():
        yield warning(path, f"buffer_m does nothing: {path} has polygons only, which are not widened")
    elif config.buffer_m is not None:
        for scene, grid in grids.items():
            if grid is not None and not grid.is_metric:
                yield no_metres(path, scene, grid)


def _geometry_problems(path: InputPath, features: _Features) -> Iterator[Problem]:
    """Geometries that are missing, empty, invalid or repeated."""
    geometries = features.geometries
    nothing = shapely.is_missing(geometries) | shapely.is_empty(geometries)
    if nothing.all():
        yield error(path, f"labels {path} have no geometries", f"see what they hold: geoseg info {quoted(path)}")
        return
    if nothing.any():
        message = f"{int(nothing.sum())} of {count(len(geometries), 'feature')} of {path} have no geometry"
        yield warning(path, message, "they are skipped")
    used = features.seen & ~shapely.is_empty(features.areas)
    lost = shapely.get_num_coordinates(geometries) > shapely.get_num_coordinates(features.areas)
    if partly := int((lost & used & ~thin_features(geometries)).sum()):
        yield warning(path, f"lines and points beside the polygons in {count(partly, 'feature')} of {path} are skipped")
    polygons, fids = features.areas[used], features.frame.index.to_numpy()[used]
    invalid = np.flatnonzero(~shapely.is_valid(polygons))
    if invalid.size:
        reasons = [f"feature {fids[i]}: {shapely.is_valid_reason(polygons[i])}" for i in invalid[:_LOCATED]]
        yield warning(
            path,
            f"invalid geometries in {path}: {invalid.size} "
            f"({'; '.join(first_lines(reasons, _LOCATED, total=invalid.size))}); they are burnt, but what their rings "
            "enclose twice becomes a hole",
            f"ogr2ogr -makevalid labels.gpkg {quoted(path)}",
        )
    repeated = len(polygons) - len(set(shapely.to_wkb(shapely.normalize(polygons)).tolist()))
    if repeated:
        verb = "repeats" if repeated == 1 else "repeat"
        message = f"{count(repeated, 'feature')} of {path} {verb} another one exactly; the later one counts"
        yield warning(path, message, "delete duplicate geometries, in QGIS")


def _overlaps(path: InputPath, geometries: AnyArray, ids: IntArray, classes: ClassTable) -> Iterator[Problem]:
    """Warnings about polygons that a later one of another class covers, and about those that overlap in part.

    A polygon within an earlier one, such as houses drawn on a town, is intended.
    """
    valid = shapely.is_valid(geometries)
    geometries, ids = geometries[valid], ids[valid]
    area = shapely.area(geometries)
    earlier, later, of_all = _pairs(geometries, ids)
    shared = shapely.area(shapely.intersection(geometries[earlier], geometries[later]))
    under, over = shared >= _INSIDE * area[earlier], shared >= _INSIDE * area[later]
    hidden = np.unique(earlier[under])
    if hidden.size:
        about, lie = "" if of_all == 1 else "at least ", "lies" if hidden.size == 1 else "lie"
        each = [f"{n} of {classes[i].name}" for i, n in enumerate(np.bincount(ids[hidden]).tolist()) if n]
        yield warning(
            path,
            f"{about}{count(int(hidden.size), 'polygon')} of {path} {lie} under later ones of another class and "
            f"cannot be seen: {listed(each, 5)}",
            "order the features so that small ones come last",
        )
    part = ~under & ~over
    share = float(shared[part].sum() / of_all / area.sum()) if area.sum() else 0.0
    if share >= _MIN_SHARE:
        sums: Counter[tuple[int, int]] = Counter()
        pairs = np.sort(np.stack([ids[earlier[part]], ids[later[part]]]), axis=0)
        for a, b, size in zip(*pairs.tolist(), shared[part].tolist(), strict=True):
            sums[a, b] += size
        names = [f"{classes[a].name} and {classes[b].name}" for (a, b), _ in sums.most_common()]
        yield warning(
            path,
            f"polygons of different classes in {path} overlap on {share:.0%} of their area, {listed(names, 3)}; "
            "there the later feature counts",
            "cut them at their common borders, or order them as they should lie",
        )


def _pairs(geometries: AnyArray, ids: IntArray) -> tuple[IntArray, IntArray, float]:
    """Pairs of different classes that may overlap, the earlier first, and their share of all such pairs."""
    first, second = shapely.STRtree(geometries).query(geometries)
    ordered = (first < second) & (ids[first] != ids[second])
    first, second = first[ordered], second[ordered]
    of_all = 1.0
    if first.size > _MAX_PAIRS:
        chosen = np.sort(np.random.default_rng(0).choice(first.size, _MAX_PAIRS, replace=False))
        of_all = _MAX_PAIRS / first.size
        first, second = first[chosen], second[chosen]
    return first.astype(np.int64), second.astype(np.int64), of_all
