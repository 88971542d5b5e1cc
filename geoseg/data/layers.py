"""Features of a vector layer near a scene, in the scene's CRS: polygons, and points and lines widened to areas.

A file with a spatial index is asked for the scene's bounds. Any other is read whole, once for all scenes that are
opened within `whole_layers`.
"""

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import geopandas
import numpy as np
import pandas as pd
import shapely

from geoseg.arrays import BoolArray, FloatArray, Geometries, IntArray
from geoseg.data.labels import no_transformation
from geoseg.data.problems import Problem, error, raise_first
from geoseg.errors import LabelError, quoted
from geoseg.georeference import AnyCRS, are_apart, pyproj_crs
from geoseg.grid import Grid, crs_hint, ground_steps
from geoseg.paths import InputPath
from geoseg.scene.vector_files import (
    Bounds,
    VectorLayer,
    bounds_in,
    meets,
    open_layer,
    polygon_layer,
    polygons_of,
    reading,
    single_parts,
)
from geoseg.words import count, first_lines, nearest

T = TypeVar("T")
Buffer = float | str | None  # metres, the field that holds them, or None if points and lines have no width
_PIECE_M = 1000  # longer lines are widened piece by piece, as the scale of a CRS changes along them
_LOCATED = 3  # features without a distance that are named

_lock = threading.Lock()
_kept: list[dict[tuple[object, ...], Any]] = []
"""What was read of layers: one dictionary, listed once for each block of `whole_layers` that has begun."""


@contextmanager
def whole_layers() -> Iterator[None]:
    """Keep layers that had to be read whole until the block ends."""
    with _lock:
        _kept.append(_kept[0] if _kept else {})
    try:
        yield
    finally:
        with _lock:
            _kept.pop()


def _once(read: Callable[[], T], *key: object) -> T:
    """What ``read`` gives, read once for a key within `whole_layers`."""
    with _lock:
        if _kept:
            if key not in _kept[0]:
                _kept[0][key] = read()
            found: T = _kept[0][key]
            return found
    return read()


def has_features(path: InputPath, buffer: Buffer = None) -> bool:
    """Whether a file of labels has any feature, near a scene or not."""
    return _layer(path, buffer).features > 0


def read_layer(
    path: InputPath, grid: Grid, column: str | None = None, *, scene: InputPath, buffer: Buffer = None
) -> geopandas.GeoDataFrame:
    """The features of a file's only layer of polygons whose bounds meet a scene, in the order of the file.

    With ``buffer``, as ``buffer_m`` of a scene, points and lines count too. Polygons, perhaps none, are in the grid's
    CRS, with the field ``column``; features without a polygon are left out. A `LabelError` if the file cannot be read,
    has several such layers, points or lines without a width, or see `layer_problems`.
    """
    layer = _layer(path, buffer)
    if not layer.features:
        return geopandas.GeoDataFrame(geometry=[], crs=grid.crs)
    raise_first(layer_problems(path, layer, fields_read(column, buffer), {scene: grid}))
    with reading("labels", path, LabelError):
        frame = _near(layer, grid, fields_read(column, buffer), buffer)
    thin = thin_features(frame.geometry.to_numpy())
    if thin.any():
        raise_first(distance_problems(path, frame, buffer, thin))
        raise_first([] if grid.is_metric else [no_metres(path, scene, grid)])
    frame = frame.set_geometry(label_areas(frame, buffer), crs=frame.crs)
    if grid.is_georeferenced and frame.crs != pyproj_crs(grid.crs):
        frame = frame.to_crs(grid.crs)
    # What was read around the scene in the layer's CRS covers more than the scene.
    return frame[meets(frame.geometry.to_numpy(), grid.bounds)].reset_index(drop=True)


def fields_read(column: str | None, buffer: Buffer) -> list[str]:
    """The fields of labels that are read: that of the classes and that of the widths."""
    return list(dict.fromkeys(field for field in (column, buffer) if isinstance(field, str)))


def layer_problems(
    path: InputPath, layer: VectorLayer, columns: Sequence[str], grids: Mapping[InputPath, Grid | None]
) -> Iterator[Problem]:
    """Fields that do not exist, and a CRS that does not lead to that of every scene; ``grids`` is by scene."""
    for column in columns:
        if column in layer.fields:
            continue
        near = nearest(column, layer.fields)
        hint = f"{f'did you mean {near}? ' if near else ''}its fields: {', '.join(layer.fields)}"
        yield error(path, f"{path} has no field {column}", hint)
    placed = {scene: grid for scene, grid in grids.items() if grid is not None and grid.is_georeferenced}
    if placed and layer.crs is None:
        yield error(path, f"labels {path} have no CRS", assign_crs(path))
    for scene, grid in placed.items():
        if layer.crs is not None and are_apart(layer.crs, grid.crs):
            yield no_transformation("labels", path, layer.crs, scene, grid.crs, assign=assign_crs(path))
            return


def assign_crs(path: InputPath) -> str:
    """The command that assigns a CRS to a vector file."""
    return f"assign its CRS: ogr2ogr -a_srs EPSG:… out.gpkg {quoted(path)}"


def _layer(path: InputPath, buffer: Buffer) -> VectorLayer:
    """The layer of polygons in a file of labels, its features counted; of any geometries if they have a width."""
    any_kind = buffer is not None

    def counted() -> VectorLayer:
        layer = polygon_layer(path, "labels", LabelError, any_kind=any_kind)
        return layer if layer.features >= 0 else open_layer(path, layer.name, count=True)

    return _once(counted, "layer", str(path), any_kind)


def reach(layer: VectorLayer, bounds: Bounds, buffer: Buffer) -> Bounds | None:
    """Bounds, in the CRS of a layer, within which features lie whose width reaches into others; None if unknown."""
    widest = buffer or 0.0
    if isinstance(buffer, str):
        metres = _once(lambda: distances(layer.table([buffer]), buffer), "widths", layer.path, buffer)
        widest = float(metres[np.isfinite(metres)].max(initial=0))
    return bounds if not widest or layer.crs is None else widened_bounds(bounds, float(widest), layer.crs)


def _near(layer: VectorLayer, grid: Grid, columns: list[str], buffer: Buffer) -> geopandas.GeoDataFrame:
    """Features near a scene in the layer's own CRS; perhaps some more."""
    bounds = bounds_in(layer.crs, grid)
    if bounds is not None and grid.is_metric:
        bounds = reach(layer, bounds, buffer)
    if layer.has_index:
        return layer.read(columns, bounds)
    frame = _once(lambda: layer.read(columns), "features", layer.path, *columns)
    return frame if bounds is None else frame[meets(frame.geometry.to_numpy(), bounds)]


# --- points and lines


def thin_features(geometries: Geometries) -> BoolArray:
    """Features (n,) that are points or lines, with no polygon beside them."""
    nothing = shapely.is_missing(geometries) | shapely.is_empty(geometries)
    return np.asarray(~nothing & shapely.is_empty(polygons_of(geometries)))


def label_areas(frame: geopandas.GeoDataFrame, buffer: Buffer) -> Geometries:
    """The ground that each feature labels, (n,): its polygons; of a point or line what lies within its distance.

    Empty polygons for features without a geometry, and for points and lines without a valid distance.
    """
    geometries = frame.geometry.to_numpy()
    areas = polygons_of(geometries)
    metres = distances(frame, buffer)
    usable = np.flatnonzero(thin_features(geometries) & (metres > 0) & np.isfinite(metres))
    if usable.size and frame.crs is not None:
        areas[usable] = widened(geometries[usable], metres[usable], frame.crs)
    return areas


def distances(frame: pd.DataFrame, buffer: Buffer) -> FloatArray:
    """Metres by which features are widened, (n,); NaN where there is no number."""
    if isinstance(buffer, str):
        return pd.to_numeric(frame[buffer], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    return np.full(len(frame), np.nan if buffer is None else buffer)


def widened(geometries: Geometries, metres: FloatArray, crs: AnyCRS) -> Geometries:
    """What lies within distances (n,) in metres of points and lines (n,); the ends of lines are round.

    Every point, and every kilometre of a line, is widened in its own local plane, so the distance holds in any CRS. The
    polygons are in the same CRS, and empty where it has no place on the ground.
    """
    out = np.full(len(geometries), shapely.Polygon(), dtype=object)
    pieces, owner = _pieces(geometries, crs)
    steps, middle = _frames(pieces, crs)
    determinant = np.linalg.det(steps)
    usable = np.isfinite(determinant) & (determinant != 0)
    pieces, owner, steps, middle = pieces[usable], owner[usable], steps[usable], middle[usable]
    if not pieces.size:
        return out
    xy, index = shapely.get_coordinates(pieces, return_index=True)
    plane = np.einsum("nij,nj->ni", steps[index], xy - middle[index])
    areas = shapely.buffer(shapely.set_coordinates(pieces, plane), metres[owner])
    xy, index = shapely.get_coordinates(areas, return_index=True)
    back = np.linalg.inv(steps)
    areas = shapely.set_coordinates(areas, np.einsum("nij,nj->ni", back[index], xy) + middle[index])
    begin = np.searchsorted(owner, np.arange(len(geometries) + 1))
    number = np.diff(begin)
    out[number == 1] = areas[begin[:-1][number == 1]]
    for i in np.flatnonzero(number > 1):
        out[i] = shapely.union_all(areas[begin[i] : begin[i + 1]])
    return out


def widened_bounds(bounds: Bounds, metres: float, crs: AnyCRS) -> Bounds | None:
    """Bounds and some metres around them; None if the CRS has no place on the ground there."""
    corners = shapely.points([(x, y) for x in bounds[::2] for y in bounds[1::2]])
    areas = widened(corners, np.full(4, metres), crs)
    if shapely.is_empty(areas).any():
        return None
    left, bottom, right, top = shapely.total_bounds(areas).tolist()
    return left, bottom, right, top


def _pieces(geometries: Geometries, crs: AnyCRS) -> tuple[Geometries, IntArray]:
    """Single points and lines of at most about `_PIECE_M`, and the feature of each, (m,)."""
    parts, owner = single_parts(geometries)
    kept = ~shapely.is_empty(parts)
    parts, owner = parts[kept], owner[kept]
    steps, _ = _frames(parts, crs)
    metres_per_unit = np.linalg.norm(steps, axis=(1, 2))
    long = np.isfinite(metres_per_unit) & (shapely.length(parts) * metres_per_unit > 2 * _PIECE_M)
    if not long.any():
        return parts, owner
    lengths = np.where(long, _PIECE_M / metres_per_unit, np.inf)
    cut = [_cut(*each) if np.isfinite(each[1]) else [each[0]] for each in zip(parts, lengths, strict=True)]
    return np.array([p for each in cut for p in each], dtype=object), np.repeat(owner, [len(each) for each in cut])


def _cut(line: shapely.LineString, length: float) -> list[shapely.LineString]:
    """A line as pieces of about some length, map units."""
    xy = shapely.get_coordinates(shapely.segmentize(line, length))
    along = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(xy, axis=0).T))])
    ends = np.flatnonzero(np.diff(np.floor(along / length))) + 1
    cuts = np.unique(np.concatenate([[0], ends, [len(xy) - 1]]))
    return [shapely.LineString(xy[a : b + 1]) for a, b in itertools.pairwise(cuts)]


def _frames(geometries: Geometries, crs: AnyCRS) -> tuple[FloatArray, FloatArray]:
    """The local planes of geometries: steps in metres (n, 2, 2) as `ground_steps`, and where they touch, (n, 2)."""
    bounds = shapely.bounds(geometries)
    middle = (bounds[:, :2] + bounds[:, 2:]) / 2
    return ground_steps(pyproj_crs(crs), *middle.T), middle


def no_metres(path: InputPath, scene: InputPath, grid: Grid) -> Problem:
    """The problem that a scene on unknown ground has labels whose width is in metres."""
    return error(
        scene,
        f"labels {path} have a buffer_m, but scene {scene} {grid.place_note}, so its metres are not known",
        crs_hint(grid) if not grid.is_georeferenced else "draw the labels as polygons",
    )


def distance_problems(
    path: InputPath, frame: geopandas.GeoDataFrame, buffer: Buffer, used: BoolArray
) -> Iterator[Problem]:
    """Points and lines (n,) among the features that are used which have no distance, or none above 0."""
    geometries = frame.geometry.to_numpy()
    thin = thin_features(geometries) & used
    if not thin.any():
        return
    if buffer is None:
        kinds = Counter(geometry.geom_type for geometry in geometries[thin])
        number = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
        yield error(
            path,
            f"labels {path} have {number}: points and lines cover no ground without a width",
            "give them one: buffer_m: 1.5 (metres, or a field that holds them) in the scene's entry; or delete them",
        )
        return
    metres = distances(frame, buffer)
    wrong = np.flatnonzero(thin & ~((metres > 0) & np.isfinite(metres)))
    if wrong.size and isinstance(buffer, str):
        values = [f"feature {frame.index[i]}: {frame[buffer].iloc[i]}" for i in wrong[:_LOCATED]]
        yield error(
            path,
            f"field {buffer} of {path} is not a number of metres above 0 in {wrong.size} of "
            f"{count(int(thin.sum()), 'point or line', 'points and lines')} "
            f"({'; '.join(first_lines(values, _LOCATED, total=wrong.size))})",
            "give each of them a distance in this field, or delete it",
        )
