"""Checks of labels that are polygons: one file at a time, for all scenes that take their labels from it."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import pyogrio
import shapely
from pyogrio.errors import DataLayerError, DataSourceError

from geoseg.classes import ClassTable
from geoseg.config import SceneConfig
from geoseg.datasets.check_imagery import no_way
from geoseg.datasets.check_list import Problem, as_problem, error, listed, plural, warning
from geoseg.datasets.check_overlaps import check_overlaps
from geoseg.datasets.labels import as_text, load_labelled_area
from geoseg.datasets.layers import reason
from geoseg.errors import LabelError, quoted
from geoseg.georeference import are_apart, pyproj_crs, transformer
from geoseg.grid import Grid, crs_hint

MAX_WHOLE = 500_000
"""A layer of more features is read near its scenes alone, where it has an index."""

_NAMED = 10
_LOCATED = 3
_POLYGONS = ("Polygon", "MultiPolygon")

Bools = npt.NDArray[np.bool_]


def check_polygon_labels(
    config: SceneConfig, scenes: Sequence[tuple[Path, Grid | None]], classes: ClassTable
) -> tuple[list[Problem], list[Bools | None]]:
    """Everything that is wrong with a file of polygons.

    Args:
        config: Names the file, and how its classes are stated.
        scenes: Those it is for, and their grids; None for one that cannot be opened.
        classes: The class table.

    Returns:
        Problems, and for every scene which classes touch it (K,), None where that cannot be told. What lies outside
        the polygons is not counted.
    """
    path = config.labels
    grids = [grid for _, grid in scenes]
    unknown: list[Bools | None] = [None] * len(grids)
    problems = _check_entry(config, classes)
    if not path.exists():
        hint = "check data.root and the path in the configuration"
        return [*problems, error(path, f"no such labels: {path}", hint)], unknown
    try:
        layers = [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
        if not layers:
            hint = f"see what they hold: ogrinfo -so -al {path}"
            return [*problems, error(path, f"labels {path} hold no geometries", hint)], unknown
        if len(layers) > 1:
            message = f"labels {path} hold several layers: {', '.join(layers)}"
            hint = f"take one of them: ogr2ogr labels.gpkg {path} {layers[0]}"
            return [*problems, error(path, message, hint)], unknown
        info = pyogrio.read_info(path, layer=layers[0], force_feature_count=True)
        problems += _check_fields(config, info)
        about_crs = _check_crs(path, info["crs"], scenes)
        problems += about_crs
        outlines = [_outline(grid, info["crs"]) for grid in grids]
        columns = [config.attribute] if config.attribute is not None and config.attribute in info["fields"] else []
        frame = _read(path, layers[0], columns, info, [outline for outline in outlines if outline is not None])
    except (DataSourceError, DataLayerError, ValueError) as failed:
        return [
            *problems,
            error(path, f"labels {path} cannot be read: {reason(failed)}", f"check it with: ogrinfo {path}"),
        ], (unknown)
    if not info["features"]:
        return [*problems, error(path, f"labels {path} hold no features", f"see: ogrinfo -so -al {path}")], unknown
    geometries = np.asarray(frame.geometry.array, dtype=object)
    touched = [_touches(geometries, outline) for outline in outlines]
    if not any(p.severity == "error" for p in about_crs):
        problems += _check_place(path, scenes, touched, int(info["features"]))
    # What no scene sees does no harm; where it is not known what they see, all is looked at.
    seen = np.logical_or.reduce([t for t in touched if t is not None], axis=0) if _all_known(touched) else None
    ids, about_classes = _check_classes(frame, config, classes, seen, has_field=bool(columns))
    problems += about_classes
    problems += _check_geometries(path, geometries, frame.index.to_numpy(), seen)
    used = _polygonal(geometries) & (ids >= 0)
    if seen is not None:
        used &= seen
    problems += check_overlaps(path, geometries[used], ids[used], classes)
    present: list[Bools | None] = []
    for touches in touched:
        if touches is None or any(p.severity == "error" for p in problems):
            present.append(None)
            continue
        here = np.zeros(len(classes), dtype=bool)
        here[ids[touches & (ids >= 0)]] = True
        present.append(here)
    return problems, present


def check_labelled_area(path: Path, scene: Path, grid: Grid) -> list[Problem]:
    """Whether a labelled area can be brought to its scene, and touches it.

    Args:
        path: Vector file of the area.
        scene: What it is for.
        grid: Of the scene.
    """
    try:
        crs = pyogrio.read_info(path)["crs"] if path.exists() else None
    except (DataSourceError, DataLayerError, ValueError):
        crs = None  # what is wrong with it is said below
    if crs is not None and grid.is_georeferenced and are_apart(crs, grid.crs):
        return [no_way("polygons of labelled area", path, crs, scene, grid.crs, assign=_assign(path))]
    try:
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


def _check_fields(config: SceneConfig, info: dict[str, Any]) -> list[Problem]:
    fields = [str(field) for field in info["fields"]]
    if config.attribute is None or config.attribute in fields:
        return []
    near = _nearest(config.attribute, fields)
    hint = f"did you mean {near}? its fields: {', '.join(fields)}" if near else f"its fields: {', '.join(fields)}"
    return [error(config.labels, f"{config.labels} has no field {config.attribute}", hint)]


def _assign(path: Path) -> str:
    return f"say which one: ogr2ogr -a_srs EPSG:… out.gpkg {quoted(path)}"


def _check_crs(path: Path, crs: str | None, scenes: Sequence[tuple[Path, Grid | None]]) -> list[Problem]:
    placed = [(scene, grid) for scene, grid in scenes if grid is not None and grid.is_georeferenced]
    if not placed:
        return []
    if crs is None:
        return [error(path, f"labels {path} have no CRS", _assign(path))]
    apart = [(scene, grid) for scene, grid in placed if are_apart(crs, grid.crs)]
    return [no_way("labels", path, crs, scene, grid.crs, assign=_assign(path)) for scene, grid in apart[:1]]


def _read(
    path: Path, layer: str, columns: list[str], info: dict[str, Any], outlines: list[Any]
) -> geopandas.GeoDataFrame:
    """The features of a layer; of a very large one with an index, those near the scenes."""
    bounds = None
    if info["features"] > MAX_WHOLE and info["capabilities"]["fast_spatial_filter"] and outlines:
        bounds = tuple(shapely.total_bounds(np.array(outlines, dtype=object)).tolist())
    frame = pyogrio.read_dataframe(
        path, layer=layer, columns=columns, force_2d=True, bbox=bounds, fid_as_index=True, use_arrow=False
    )
    if not isinstance(frame, geopandas.GeoDataFrame):
        raise ValueError("it holds no geometries")
    return frame.sort_index()


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
    path: Path, scenes: Sequence[tuple[Path, Grid | None]], touched: Sequence[Bools | None], total: int
) -> list[Problem]:
    """Scenes that no feature touches, and features that touch no scene."""
    problems = [
        error(
            scene,
            f"no polygon of {path} touches scene {scene}" + ("" if grid.is_georeferenced else ", which has no CRS"),
            "check that the CRS of the labels is what it says" if grid.is_georeferenced else crs_hint(grid),
        )
        for (scene, grid), touches in zip(scenes, touched, strict=True)
        if grid is not None and touches is not None and not touches.any()
    ]
    if not _all_known(touched):
        return problems
    outside = total - int(np.logical_or.reduce([t for t in touched if t is not None], axis=0).sum())
    if 0 < outside < total:
        message = (
            f"{outside} of {plural(total, 'feature')} of {path} ({outside / total:.0%}) lie outside all its scenes"
        )
        hint = "they are left aside; if they should lie in one, check the CRS: geoseg info SCENE"
        problems.append(warning(path, message, hint))
    return problems


def _check_classes(
    frame: geopandas.GeoDataFrame,
    config: SceneConfig,
    classes: ClassTable,
    seen: Bools | None,
    *,
    has_field: bool,
) -> tuple[npt.NDArray[np.int64], list[Problem]]:
    """Class id of every feature, −1 where it has none, and what is wrong with those that a scene sees."""
    path = config.labels
    if config.class_name is not None:
        return np.full(len(frame), classes.id_of(config.class_name)), []
    if not has_field:
        return np.full(len(frame), -1), []
    known = {c.name: c.id for c in classes} | {str(c.id): c.id for c in classes}
    values = frame[config.attribute]
    missing = values.isna().to_numpy() | (values.astype(str).str.strip() == "").to_numpy()
    texts = [as_text(value) for value in values]
    ids = np.array([-1 if gone else known.get(text, -1) for gone, text in zip(missing, texts, strict=True)])
    looked_at = np.ones(len(frame), dtype=bool) if seen is None else seen
    problems = []
    without, total = int((missing & looked_at).sum()), int(looked_at.sum())
    if without:
        problems.append(
            error(
                path,
                f"field {config.attribute} of {path} is empty in {without} of {plural(total, 'feature')}",
                f'fill it, or leave them out: ogr2ogr -where "{config.attribute} IS NOT NULL" labels.gpkg {path}',
            )
        )
    unknown = Counter(texts[i] for i in np.flatnonzero((ids < 0) & ~missing & looked_at))
    if unknown:
        told = []
        for text, count in unknown.most_common():
            near = _nearest(text, classes.names)
            told.append(f"{text!r} ({count}×{f', {near}?' if near else ''})")
        problems.append(
            error(
                path,
                f"field {config.attribute} of {path} holds {plural(len(told), 'value')} that "
                f"{'is' if len(told) == 1 else 'are'} no class name or id: {listed(told, _NAMED)}",
                f"rename them, or add them to the classes, which are {', '.join(f'{c.id} {c.name}' for c in classes)}",
            )
        )
    return ids, problems


def _check_geometries(
    path: Path, geometries: npt.NDArray[Any], fids: npt.NDArray[Any], seen: Bools | None
) -> list[Problem]:
    """Missing, empty and invalid geometries, those that are no polygons, and repeated ones."""
    problems = []
    nothing = shapely.is_missing(geometries) | shapely.is_empty(geometries)
    if nothing.all():
        return [error(path, f"labels {path} hold no geometries", f"see what they hold: ogrinfo -so -al {path}")]
    if nothing.any():
        message = f"{int(nothing.sum())} of {plural(len(geometries), 'feature')} of {path} have no geometry"
        problems.append(warning(path, message, "they are left aside"))
    if seen is not None and not seen.any():
        return problems
    looked_at = ~nothing if seen is None else seen & ~nothing
    some = geometries[looked_at]
    kinds = Counter(geometry.geom_type for geometry in some)
    others = {kind: count for kind, count in sorted(kinds.items()) if kind not in _POLYGONS}
    if others:
        told = ", ".join(f"{count} {kind}" for kind, count in others.items())
        keep = f"ogr2ogr -where \"OGR_GEOMETRY LIKE '%POLYGON'\" polygons.gpkg {path}"
        if sum(others.values()) == len(some):
            problems.append(error(path, f"labels {path} hold no polygons, but {told}", "labels are areas"))
        else:
            message = f"among the polygons of {path} are {told}, which are burnt as the pixels they pass"
            problems.append(warning(path, message, f"leave them out: {keep}"))
    invalid = np.flatnonzero(~shapely.is_valid(some))
    if invalid.size:
        places = fids[looked_at][invalid[:_LOCATED]].tolist()
        reasons = [shapely.is_valid_reason(geometry) for geometry in some[invalid[:_LOCATED]]]
        told = "; ".join(f"feature {place}: {reason}" for place, reason in zip(places, reasons, strict=True))
        more = f"; and {invalid.size - _LOCATED} more" if invalid.size > _LOCATED else ""
        problems.append(
            warning(
                path,
                f"invalid geometries in {path}: {invalid.size} ({told}{more}); they are burnt all the same, but what "
                "their rings enclose twice becomes a hole",
                f"ogr2ogr -makevalid labels.gpkg {path}",
            )
        )
    polygons = some[_polygonal(some)]
    repeated = len(polygons) - len(set(shapely.to_wkb(shapely.normalize(polygons)).tolist()))
    if repeated:
        verb = "repeats" if repeated == 1 else "repeat"
        message = f"{plural(repeated, 'polygon')} of {path} {verb} another one exactly; the later one counts"
        problems.append(warning(path, message, "delete duplicate geometries, in QGIS"))
    return problems


def _polygonal(geometries: npt.NDArray[Any]) -> Bools:
    kinds = shapely.get_type_id(geometries)
    is_polygon = np.isin(kinds, (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON))
    return np.asarray(is_polygon & ~shapely.is_empty(geometries))


def _all_known(touched: Sequence[Bools | None]) -> bool:
    return bool(touched) and all(t is not None for t in touched)


def _nearest(text: str, names: Sequence[str]) -> str | None:
    """The name that a text probably means, upper and lower case aside."""
    lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(text.lower().strip(), lower, n=1, cutoff=0.6)
    return lower[near[0]] if near else None
