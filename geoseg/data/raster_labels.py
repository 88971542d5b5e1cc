"""Labels that are rasters of class ids: checked, and read on their scene's grid, or the confident part of a map."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np
import rasterio
from affine import Affine
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from shapely.geometry import box

from geoseg.arrays import AnyArray, ByteArray, Int32Array, Valid
from geoseg.class_map.reading import ClassMapReader
from geoseg.classes import NODATA, ClassTable
from geoseg.config.settings import SceneConfig
from geoseg.data.labels import LabelFacts, SceneHere, inside, no_transformation, outline, process_files
from geoseg.data.problems import Problem, as_problem, error, raise_first, warning
from geoseg.errors import LabelError, SceneError, quoted
from geoseg.georeference import crs_name, transformer
from geoseg.grid import Grid, crs_hint
from geoseg.map_rows import CONFIDENCE_SCALE
from geoseg.paths import InputPath, exists, file_behind
from geoseg.scene import Scene
from geoseg.windows import Window, pieces
from geoseg.words import count, listed

MIN_COVERED_SHARE = 0.5
_OFF_GRID_PX = 0.1
_ROWS = 512
_NOTHING = -(2**31)  # fill value of a warped raster: with 255, GDAL would turn labels of 255 into 254

_sound: set[tuple[object, ...]] = set()
"""Rasters this process has checked: file, its state, grid, first label, number of classes."""


class RasterLabels:
    """Class ids in a raster: read as they are on the scene's grid, otherwise resampled to it (nearest neighbour).

    The file's own nodata value, 255, and values below ``first_label`` are ignored. Labels without a CRS lie on the
    pixels of the scene's ``own`` grid.
    """

    def __init__(self, config: SceneConfig, grid: Grid, classes: ClassTable, *, own: Grid, first_label: int) -> None:
        path = config.labels
        with Scene(path) as labels:
            raise_first(_band_problems(path, labels))
            found, rows = labels.grid, max(labels.block_shape[0], _ROWS)
            self._path = labels.path
        comparable = found.is_georeferenced and grid.is_georeferenced
        raise_first(_place_problems(path, found, config.scene, grid if comparable else own))
        self._place: dict[str, object] = {} if comparable else {"src_crs": own.crs, "src_transform": own.transform}
        self._aligned = found.shape == grid.shape and (
            not comparable or (found.crs == grid.crs and _same_transform(found, grid))
        )
        self._grid, self._first = grid, first_label
        self._labels = SceneHere(partial(Scene, self._path))
        # Training opens its scenes several times, and reading thousands of label files takes minutes.
        file = file_behind(path)
        state = file.stat() if file is not None else None
        key = (self._path, state and (state.st_size, state.st_mtime_ns), grid, own, first_label, len(classes))
        if key not in _sound:
            process_files().close(self._path)  # perhaps opened before the file changed
            parts = (self._read_values(window) for window in pieces(*grid.shape, rows, grid.width))
            counts = _value_counts(values[valid] for values, valid in parts)
            raise_first(_value_problems(path, counts, None, classes, first_label))
            _sound.add(key)

    def read(self, window: Window) -> ByteArray:
        """Class ids (H, W) of a window; 255 to be ignored, also outside the scene."""
        values, valid = self._read_values(window)
        is_class = valid & (values != NODATA)
        if self._first:
            is_class &= values >= self._first
            values = values - values.dtype.type(self._first)
        return np.where(is_class, values, NODATA).astype(np.uint8)

    def _read_values(self, window: Window) -> tuple[AnyArray, Valid]:
        """Values of the file on the scene's grid, and where there are any."""
        if self._aligned:
            values, valid = self._labels.get().read(window)
            return values[0], valid
        part = self._grid.crop(window)
        target = {"crs": part.crs, "transform": part.transform, "height": part.height, "width": part.width}
        target |= {"nodata": _NOTHING, "dtype": "int32"}
        try:
            with (
                rasterio.open(self._path) as source,
                WarpedVRT(source, src_nodata=source.nodata, **self._place, **target) as warped,
            ):
                warped_values: Int32Array = warped.read(1)
        except RasterioError as error:
            raise LabelError(f"labels {self._path} cannot be resampled to the scene's grid: {error}") from error
        return warped_values, inside(window, self._grid) & (warped_values != _NOTHING)


class ConfidentPart:
    """Where the class map that ``config`` names, with its confidence beside it, is sure enough of its class.

    A `LabelError` if it is no class map, has no confidence, or is on another grid than the scene, whose ``own`` grid is
    another one if it is resampled.
    """

    def __init__(self, config: SceneConfig, grid: Grid, own: Grid) -> None:
        assert config.min_confidence is not None
        path = quoted(config.labels)
        try:
            with ClassMapReader(config.labels) as reader:
                confidence, found = reader.confidence_path, reader.grid
        except SceneError as error:
            raise LabelError(f"min_confidence needs a class map: {error}", hint=error.hint) from error
        if confidence is None:
            hint = f"predict it once more: geoseg predict {quoted(config.scene)} -o {path} --confidence --overwrite"
            raise LabelError(f"labels {config.labels} have no confidence beside them", hint=hint)
        if found != grid:
            of = "without --gsd" if grid == own else "with --gsd and the value of imagery.gsd_m"
            raise LabelError(
                f"labels {config.labels} are not on the pixel grid of scene {config.scene}, so their confidence is not",
                hint=f"min_confidence needs a map that geoseg predict made of this scene, {of}",
            )
        self._confidence = SceneHere(partial(Scene, confidence))
        self._least = math.ceil(config.min_confidence * CONFIDENCE_SCALE)

    def __call__(self, window: Window) -> Valid:
        """Pixels (H, W) of a window with at least that confidence."""
        values, valid = self._confidence.get().read(window)
        return np.asarray(valid & (values[0] >= self._least))


def check_raster_labels(
    config: SceneConfig, grid: Grid | None, classes: ClassTable, *, first_label: int, is_resampled: bool
) -> tuple[list[Problem], LabelFacts]:
    """All problems of a raster of class ids, and what it contains.

    ``grid`` is the scene's own, None if that is broken; if the scene is resampled, labels need not be on its pixels.
    """
    path = config.labels
    if not exists(path):
        return [missing_labels(path)], LabelFacts()
    try:
        with Scene(path) as labels:
            problems = list(_band_problems(path, labels))
            if problems:
                return problems, LabelFacts()
            if grid is not None:
                problems += _place_problems(path, labels.grid, config.scene, grid, is_resampled=is_resampled)
            nodata = labels.nodata
            height, width = labels.grid.shape
            parts = (labels.read(w) for w in pieces(height, width, max(labels.block_shape[0], _ROWS), width))
            counts = _value_counts(values[0][valid | (values[0] == nodata)] for values, valid in parts)
    except SceneError as raised:
        return [as_problem(path, raised)], LabelFacts()
    problems += _value_problems(path, counts, nodata, classes, first_label)
    present = np.array([c.id + first_label in counts and c.id + first_label != nodata for c in classes])
    return problems, LabelFacts(present, frozenset(v for v in counts if v not in (NODATA, nodata)))


def missing_labels(path: InputPath) -> Problem:
    """The problem that a file of labels does not exist."""
    return error(path, f"no such labels: {path}", "check data.root and the path in the configuration")


def _band_problems(path: InputPath, labels: Scene) -> Iterator[Problem]:
    if len(labels.bands) != 1 or labels.dtype.kind not in "iu":
        found = f"{count(len(labels.bands), 'band')} of {labels.dtype}"
        message = f"labels {path} have {found}, expected one band of class ids"
        yield error(path, message, "a raster of labels holds the class id of each pixel")


def _same_transform(own: Grid, grid: Grid) -> bool:
    tolerance = 1e-6 * max(abs(grid.transform.a), abs(grid.transform.b))
    return bool(own.transform.almost_equals(grid.transform, precision=tolerance))


def _place_problems(
    path: InputPath, own: Grid, scene: InputPath, grid: Grid, *, is_resampled: bool = False
) -> Iterator[Problem]:
    """Labels whose grid does not fit their scene's."""
    if not (own.is_georeferenced and grid.is_georeferenced):
        if own.shape != grid.shape:
            yield error(
                path,
                f"labels {path} have {own.height} × {own.width} px, scene {scene} has {grid.height} × {grid.width}",
                crs_hint(grid) if own.is_georeferenced else "without a CRS, labels must have the scene's size",
            )
        elif own.has_transform and grid.has_transform and not _same_transform(own, grid):
            yield error(
                path,
                f"labels {path} have another transform than scene {scene}, and not both have a CRS",
                f"give both their CRS, the labels with: gdal_edit.py -a_srs EPSG:… {quoted(path)}",
            )
        return
    # In the scene's own CRS the outline is exact; in another one only bounds are known.
    ground, bounds = outline(grid), own.bounds
    covered = outline(own)
    if own.crs != grid.crs:
        way = transformer(own.crs, grid.crs)
        if way is None:
            assign = f"assign the right CRS: gdal_edit.py -a_srs {quoted(crs_name(grid.crs))} {quoted(path)}"
            yield no_transformation("labels", path, own.crs, scene, grid.crs, assign=assign)
            return
        bounds = way.transform_bounds(*own.bounds)
        covered = box(*bounds)
    if not np.isfinite(bounds).all() or not covered.intersects(ground):
        hint = f"check that both files have the right CRS: geoseg info {quoted(path)}"
        yield error(path, f"labels {path} do not touch scene {scene}", hint)
        return
    share = covered.intersection(ground).area / ground.area
    if share < MIN_COVERED_SHARE:
        yield warning(path, f"labels {path} cover {share:.0%} of scene {scene}; the rest of it is ignored")
    if not is_resampled and not _on_grid(own, grid):
        yield warning(
            path,
            f"labels {path} are not on the pixel grid of scene {scene} ({_described(own)}; {_described(grid)}): "
            "each pixel takes the nearest label",
            f"rasterize them on the scene's grid, or: gdalwarp -r mode -t_srs {quoted(crs_name(grid.crs))} "
            f"-tr {abs(grid.transform.a):.9g} {abs(grid.transform.e):.9g} -te "
            f"{' '.join(f'{v:.9g}' for v in grid.bounds)} {quoted(path)} on_grid.tif",
        )


def _on_grid(own: Grid, grid: Grid) -> bool:
    """Whether label pixels are scene pixels, wherever the label raster begins and ends."""
    if own.crs != grid.crs:
        return False
    to_scene: Affine = ~grid.transform @ own.transform
    corners = [(0, 0), (own.width, 0), (own.width, own.height), (0, own.height)]
    places = np.array([to_scene @ corner for corner in corners])
    return bool(np.abs(places - np.rint(places[0]) - corners).max() <= _OFF_GRID_PX)


def _described(grid: Grid) -> str:
    side = abs(grid.transform.determinant) ** 0.5
    return f"{grid.height} × {grid.width} px of {side:.6g} in {crs_name(grid.crs)}"


def _value_counts(parts: Iterable[AnyArray]) -> Counter[int]:
    """Pixels of every value."""
    counts: Counter[int] = Counter()
    for values in parts:
        if values.dtype == np.uint8:
            number = np.bincount(values.ravel(), minlength=256)
            counts.update({v: int(number[v]) for v in np.flatnonzero(number).tolist()})
        else:
            found, number = np.unique(values, return_counts=True)
            counts.update(dict(zip(found.tolist(), number.tolist(), strict=True)))
    return counts


def _value_problems(
    path: InputPath, counts: Counter[int], nodata: float | None, classes: ClassTable, first: int
) -> Iterator[Problem]:
    """Values that are no class, or no value that is one, and classes hidden by nodata."""
    last = first + len(classes) - 1
    lowest = 0 if first == 0 else min(counts, default=0)  # all values below the first class are ignored, if any
    wrong = sorted(v for v in counts if (v < lowest or v > last) and v not in (NODATA, nodata))
    if wrong:
        hint = "add them to the configuration's classes, or set those pixels to 255 (ignore)"
        if first == 0 and wrong == [last + 1]:
            hint = "set data.first_label=1 if 1 is the first class"
            hint += "" if 0 not in counts else " and 0 is to be ignored, or add the class"
        found = listed([f"{v} ({counts[v]} px)" for v in wrong], 12)
        yield error(path, f"labels {path} contain values outside the classes {first} … {last}: {found}", hint)
    elif not any(first <= v <= last and v != nodata for v in counts):
        below = f" or below {first}" if first else ""
        message = f"labels {path} are empty: every pixel is nodata or {NODATA}{below}"
        yield error(path, message, f"see what they hold with: geoseg info {quoted(path)}")
    if nodata is not None and first <= nodata <= last and nodata in counts:
        share = counts[int(nodata)] / sum(counts.values())
        yield warning(
            path,
            f"{nodata:g} is class {classes[int(nodata) - first].name!r} and the nodata value of labels {path}: "
            f"{share:.0%} of their pixels are ignored",
            f"if it is a class: gdal_edit.py -unsetnodata {quoted(path)}",
        )
    if len(classes) == 2 and set(counts) == {0, NODATA} and nodata != NODATA and first == 0:
        yield warning(
            path,
            f"labels {path} contain only 0 and {NODATA}, which is ignored, so class {classes[1].name!r} never occurs",
            f"if {NODATA} stands for it: gdal_calc.py -A {quoted(path)} --calc='A==255' --outfile=labels.tif",
        )
