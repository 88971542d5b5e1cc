"""Checks of labels that are polygons: one file at a time, for all scenes that take their labels from it."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import shapely

from geoseg.classes import NODATA, ClassTable
from geoseg.config import SceneConfig
from geoseg.data.checks.imagery import no_way
from geoseg.data.checks.overlaps import check_overlaps
from geoseg.data.checks.problems import Problem, as_problem, error, listed, warning
from geoseg.data.class_ids import MISSING, MIXED, UNKNOWN, field_classes
from geoseg.data.labels import MIXED_HINT, away_hint, load_labelled_area, mixed_message, unknown_hint
from geoseg.errors import LabelError, quoted
from geoseg.georeference import are_apart, pyproj_crs, transformer
from geoseg.grid import Grid
from geoseg.paths import InputPath, exists, opened_name
from geoseg.scene.vector_files import VectorLayer, polygon_layer, polygons_of, reading
from geoseg.words import count

MAX_WHOLE = 500_000
"""A layer of more features is read near its scenes alone, where it has an index."""

_NAMED = 10
_LOCATED = 3

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class PolygonFacts:
    """What a file of polygons holds.

    Attributes:
        present: For every scene which classes touch it (K,), None where that cannot be told. What lies outside the
            polygons is not counted.
        numbers: The different numbers of classes, where a field holds numbers.
    """

    present: list[Bools | None]
    numbers: frozenset[int] = frozenset()


def check_polygon_labels(
    config: SceneConfig,
    scenes: Sequence[tuple[InputPath, Grid | None]],
    classes: ClassTable,
    *,
    first_label: int = 0,
) -> tuple[list[Problem], PolygonFacts]:
    """Everything that is wrong with a file of polygons.

    Args:
        config: Names the file, and how its classes are stated.
        scenes: Those it is for, and their grids; None for one that cannot be opened.
        classes: The class table.
        first_label: Number of the first class.
    """
    path = config.labels
    grids = [grid for _, grid in scenes]
    unknown = PolygonFacts([None] * len(grids))
    problems = _check_entry(config, classes)
    if not exists(path):
        hint = "check data.root and the path in the configuration"
        return [*problems, error(path, f"no such labels: {path}", hint)], unknown
    try:
        opened_name(path, kind=LabelError)
        layer = polygon_layer(path, "labels", LabelError, count=True)
        if not layer.features:
            none = PolygonFacts([np.zeros(len(classes), dtype=bool) for _ in grids])
            return problems + [_told_empty(config, scene, classes) for scene, _ in scenes], none
        problems += _check_fields(config, layer)
        about_crs = _check_crs(path, layer.crs, scenes)
        problems += about_crs
        with reading("labels", path, LabelError):
            outlines = [_outline(grid, layer.crs) for grid in grids]
            columns = [config.attribute] if config.attribute in layer.fields else []
            frame = _read(layer, [c for c in columns if c], [outline for outline in outlines if outline is not None])
            geometries = frame.geometry.to_numpy()
            areas = polygons_of(geometries)
    except LabelError as failed:
        return [*problems, as_problem(path, failed)], unknown
    touched = [_touches(geometries, outline) for outline in outlines]
    if not any(p.severity == "error" for p in about_crs):
        problems += _check_place(path, scenes, touched, layer.features)
    # What no scene sees does no harm; where it is not known what they see, all is looked at.
    seen = np.logical_or.reduce([t for t in touched if t is not None], axis=0) if _all_known(touched) else None
    used = ~shapely.is_empty(areas)
    if seen is not None:
        used &= seen
    ids, numbers, about_classes = _check_classes(
        frame, config, classes, ~shapely.is_empty(areas) if seen is None else used, first_label, has_field=bool(columns)
    )
    problems += about_classes
    problems += _check_geometries(path, geometries, areas, frame.index.to_numpy(), seen)
    used &= (ids >= 0) & (ids != NODATA)
    problems += check_overlaps(path, areas[used], ids[used], classes)
    present: list[Bools | None] = []
    for touches in touched:
        if touches is None or any(p.severity == "error" for p in problems):
            present.append(None)
            continue
        here = np.zeros(len(classes), dtype=bool)
        here[ids[touches & used]] = True
        present.append(here)
    return problems, PolygonFacts(present, numbers)


def check_labelled_area(path: InputPath, scene: InputPath, grid: Grid) -> list[Problem]:
    """Whether a labelled area can be brought to its scene, and touches it.

    Args:
        path: Vector file of the area.
        scene: What it is for.
        grid: Of the scene.
    """
    try:
        crs = polygon_layer(path, "labelled area", LabelError).crs
        if crs is not None and grid.is_georeferenced and are_apart(crs, grid.crs):
            return [no_way("polygons of labelled area", path, crs, scene, grid.crs, assign=_assign(path))]
        load_labelled_area(path, grid)
    except LabelError as raised:
        return [as_problem(path, raised)]
    return []


def _check_entry(config: SceneConfig, classes: ClassTable) -> list[Problem]:
    """What the configuration leaves open."""
    path, problems = config.labels, []
    if config.outside is None:
        problems.append(
            error(
                path,
                f"{path}: what lies outside the polygons is not said",
                f"add outside: {classes.names[0]} to the scene's entry (or outside: ignore)",
            )
        )
    if config.attribute is None and config.class_name is None:
        problems.append(
            error(
                path,
                f"{path}: the class of its polygons is not said",
                "add attribute: FIELD (a class name or id) or class_name: NAME to the scene's entry",
            )
        )
    return problems


def _told_empty(config: SceneConfig, scene: InputPath, classes: ClassTable) -> Problem:
    """What a file without features means for a scene."""
    path = config.labels
    if config.outside in (None, "ignore"):
        return error(
            path,
            f"labels {path} hold no features, so no pixel of scene {scene} has a class",
            f"where the scene has no objects, say what it is instead: outside: {classes.names[0]}",
        )
    return warning(path, f"labels {path} hold no features: the whole of scene {scene} is {config.outside!r}")


def _check_fields(config: SceneConfig, layer: VectorLayer) -> list[Problem]:
    fields = list(layer.fields)
    if config.attribute is None or config.attribute in fields:
        return []
    near = _nearest(config.attribute, fields)
    hint = f"did you mean {near}? its fields: {', '.join(fields)}" if near else f"its fields: {', '.join(fields)}"
    return [error(config.labels, f"{config.labels} has no field {config.attribute}", hint)]


def _assign(path: InputPath) -> str:
    return f"say which one: ogr2ogr -a_srs EPSG:… out.gpkg {quoted(path)}"


def _check_crs(path: InputPath, crs: str | None, scenes: Sequence[tuple[InputPath, Grid | None]]) -> list[Problem]:
    placed = [(scene, grid) for scene, grid in scenes if grid is not None and grid.is_georeferenced]
    if not placed:
        return []
    if crs is None:
        return [error(path, f"labels {path} have no CRS", _assign(path))]
    apart = [(scene, grid) for scene, grid in placed if are_apart(crs, grid.crs)]
    return [no_way("labels", path, crs, scene, grid.crs, assign=_assign(path)) for scene, grid in apart[:1]]


def _read(layer: VectorLayer, columns: list[str], outlines: list[Any]) -> geopandas.GeoDataFrame:
    """The features of a layer; of a very large one with an index, those near the scenes."""
    bounds = None
    if layer.features > MAX_WHOLE and layer.has_index and outlines:
        left, bottom, right, top = shapely.total_bounds(np.array(outlines, dtype=object)).tolist()
        bounds = left, bottom, right, top
    return layer.read(columns, bounds)


def _outline(grid: Grid | None, crs: str | None) -> Any | None:
    """The outline of a scene in the CRS of the labels; None where that cannot be told."""
    if grid is None:
        return None
    corners = [(0, 0), (grid.width, 0), (grid.width, grid.height), (0, grid.height)]
    outline = shapely.Polygon([grid.transform @ corner for corner in corners])
    if crs is None or not grid.is_georeferenced:
        return None if grid.is_georeferenced else outline
    if pyproj_crs(grid.crs) == pyproj_crs(crs):
        return outline
    to_labels = transformer(grid.crs, crs)
    if to_labels is None:
        return None
    # A scene's straight sides bow in another CRS.
    outline = shapely.segmentize(outline, max(outline.length / 64, 1e-9))
    moved = shapely.transform(outline, lambda p: np.column_stack(to_labels.transform(*p.T)))
    return moved if np.isfinite(shapely.get_coordinates(moved)).all() and moved.is_valid else None


def _touches(geometries: npt.NDArray[Any], outline: Any | None) -> Bools | None:
    """Which features touch a scene's outline; None where it is not known."""
    if outline is None:
        return None
    touches = np.zeros(len(geometries), dtype=bool)
    hits = np.sort(shapely.STRtree(geometries).query(outline))
    # GEOS compares no invalid polygons: their bounds must do.
    valid = shapely.is_valid(geometries[hits])
    touches[hits[~valid]] = True
    touches[hits[valid]] = shapely.intersects(geometries[hits[valid]], outline)
    return touches


def _check_place(
    path: InputPath, scenes: Sequence[tuple[InputPath, Grid | None]], touched: Sequence[Bools | None], total: int
) -> list[Problem]:
    """Scenes that no feature touches, and features that touch no scene."""
    problems = [
        error(
            scene,
            f"no polygon of {path} touches scene {scene}" + ("" if grid.is_georeferenced else ", which has no CRS"),
            away_hint(grid),
        )
        for (scene, grid), touches in zip(scenes, touched, strict=True)
        if grid is not None and touches is not None and not touches.any()
    ]
    if not _all_known(touched):
        return problems
    outside = total - int(np.logical_or.reduce([t for t in touched if t is not None], axis=0).sum())
    if 0 < outside < total:
        message = f"{outside} of {count(total, 'feature')} of {path} ({outside / total:.0%}) lie outside all its scenes"
        hint = f"they are left aside; if they should lie in one, check the CRS: geoseg info {quoted(scenes[0][0])}"
        problems.append(warning(path, message, hint))
    return problems


def _check_classes(
    frame: geopandas.GeoDataFrame,
    config: SceneConfig,
    classes: ClassTable,
    looked_at: Bools,
    first_label: int,
    *,
    has_field: bool,
) -> tuple[npt.NDArray[np.int64], frozenset[int], list[Problem]]:
    """Class id of every feature, negative where it has none; numbers of classes; what is wrong with those looked at."""
    path = config.labels
    if config.class_name is not None:
        return np.full(len(frame), classes.id_of(config.class_name)), frozenset(), []
    if not has_field:
        return np.full(len(frame), UNKNOWN), frozenset(), []
    found = field_classes(frame[config.attribute][looked_at], classes, first_label)
    ids = np.full(len(frame), UNKNOWN)
    ids[looked_at] = found.ids
    problems = []
    without = int((found.ids == MISSING).sum())
    if without:
        problems.append(
            error(
                path,
                f"field {config.attribute} of {path} is empty in {without} of {count(len(found.ids), 'feature')}",
                "fill it, or leave them out: "
                f'ogr2ogr -where "{config.attribute} IS NOT NULL" labels.gpkg {quoted(path)}',
            )
        )
    unknown = Counter(found.texts[i] for i in np.flatnonzero(found.ids == UNKNOWN))
    if unknown:
        told = []
        for text, times in unknown.most_common():
            near = _nearest(text, classes.names)
            told.append(f"{text!r} ({times}×{f', {near}?' if near else ''})")
        problems.append(
            error(
                path,
                f"field {config.attribute} of {path} holds {count(len(told), 'value')} that "
                f"{'is' if len(told) == 1 else 'are'} no class name or id: {listed(told, _NAMED)}",
                f"rename them, or add them to the classes; {unknown_hint(set(unknown), classes, first_label)}",
            )
        )
    if (found.ids == MIXED).any() and found.mixed is not None:
        problems.append(error(path, mixed_message(config, found.mixed), MIXED_HINT))
    return ids, found.numbers, problems


def _check_geometries(
    path: InputPath,
    geometries: npt.NDArray[Any],
    areas: npt.NDArray[Any],
    fids: npt.NDArray[Any],
    seen: Bools | None,
) -> list[Problem]:
    """Missing, empty and invalid geometries, those that are no polygons, and repeated ones."""
    problems = []
    nothing = shapely.is_missing(geometries) | shapely.is_empty(geometries)
    if nothing.all():
        return [error(path, f"labels {path} hold no geometries", f"see what they hold: geoseg info {quoted(path)}")]
    if nothing.any():
        message = f"{int(nothing.sum())} of {count(len(geometries), 'feature')} of {path} have no geometry"
        problems.append(warning(path, message, "they are left aside"))
    if seen is not None and not seen.any():
        return problems
    looked_at = ~nothing if seen is None else seen & ~nothing
    is_area = ~shapely.is_empty(areas)
    others = Counter(geometry.geom_type for geometry in geometries[looked_at & ~is_area])
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
    if others and not (looked_at & is_area).any():
        problems.append(error(path, f"labels {path} hold no polygons, but {told}", "labels are areas"))
    elif others:
        problems.append(warning(path, f"among the polygons of {path} are {told}, which are left aside"))
    polygons, fids = areas[looked_at & is_area], fids[looked_at & is_area]
    lost = shapely.get_num_coordinates(geometries) > shapely.get_num_coordinates(areas)
    if partly := int((lost & looked_at & is_area).sum()):
        message = f"lines and points beside the polygons in {count(partly, 'feature')} of {path} are left aside"
        problems.append(warning(path, message))
    invalid = np.flatnonzero(~shapely.is_valid(polygons))
    if invalid.size:
        places = fids[invalid[:_LOCATED]].tolist()
        reasons = [shapely.is_valid_reason(geometry) for geometry in polygons[invalid[:_LOCATED]]]
        told = "; ".join(f"feature {place}: {reason}" for place, reason in zip(places, reasons, strict=True))
        more = f"; and {invalid.size - _LOCATED} more" if invalid.size > _LOCATED else ""
        problems.append(
            warning(
                path,
                f"invalid geometries in {path}: {invalid.size} ({told}{more}); they are burnt all the same, but what "
                "their rings enclose twice becomes a hole",
                f"ogr2ogr -makevalid labels.gpkg {quoted(path)}",
            )
        )
    repeated = len(polygons) - len(set(shapely.to_wkb(shapely.normalize(polygons)).tolist()))
    if repeated:
        verb = "repeats" if repeated == 1 else "repeat"
        message = f"{count(repeated, 'polygon')} of {path} {verb} another one exactly; the later one counts"
        problems.append(warning(path, message, "delete duplicate geometries, in QGIS"))
    return problems


def _all_known(touched: Sequence[Bools | None]) -> bool:
    return bool(touched) and all(t is not None for t in touched)


def _nearest(text: str, names: Sequence[str]) -> str | None:
    """The name that a text probably means, upper and lower case aside."""
    lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(text.lower().strip(), lower, n=1, cutoff=0.6)
    return lower[near[0]] if near else None
