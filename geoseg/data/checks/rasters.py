"""Checks of labels that are rasters: place, class ids, nodata."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from affine import Affine
from shapely.geometry import Polygon, box

from geoseg.classes import NODATA, ClassTable
from geoseg.data.checks.imagery import no_way
from geoseg.data.checks.problems import Problem, as_problem, error, listed, warning
from geoseg.errors import SceneError, quoted
from geoseg.georeference import crs_name, transformer
from geoseg.grid import Grid, crs_hint
from geoseg.paths import InputPath, exists
from geoseg.scene import Scene
from geoseg.windows import Window
from geoseg.words import count

MIN_COVERED_SHARE = 0.5
_OFF_GRID_PX = 0.1
_ROWS = 512


def check_raster_labels(
    path: InputPath, scene: InputPath, grid: Grid | None, classes: ClassTable, *, first_label: int
) -> tuple[list[Problem], npt.NDArray[np.bool_] | None, frozenset[int]]:
    """Everything that is wrong with a raster of class ids.

    Args:
        path: Of the raster.
        scene: What it is for.
        grid: Of the scene; None where it cannot be opened.
        classes: The class table.
        first_label: Value of the first class; smaller ones are ignored.

    Returns:
        Problems, which classes occur (K,), None where the file does not tell, and the values that mean something.
    """
    if not exists(path):
        hint = "check data.root and the path in the configuration"
        return [error(path, f"no such labels: {path}", hint)], None, frozenset()
    try:
        with Scene(path) as labels:
            if len(labels.bands) != 1 or labels.dtype.kind not in "iu":
                found = f"{count(len(labels.bands), 'band')} of {labels.dtype}"
                message = f"labels {path} have {found}, wanted one band of class ids"
                return [error(path, message, "a raster of labels holds the class id of each pixel")], None, frozenset()
            problems = _check_place(path, labels.grid, scene, grid) if grid is not None else []
            counts = _value_counts(labels)
            nodata = labels.nodata
    except SceneError as raised:
        return [as_problem(path, raised)], None, frozenset()
    about_values, present = _check_values(path, counts, nodata, classes, first_label)
    return [*problems, *about_values], present, frozenset(v for v in counts if v not in (NODATA, nodata))


def _check_place(path: InputPath, own: Grid, scene: InputPath, grid: Grid) -> list[Problem]:
    """Where labels lie against their scene."""
    if not (own.is_georeferenced and grid.is_georeferenced):
        tolerance = 1e-6 * max(abs(grid.transform.a), abs(grid.transform.b))
        is_elsewhere = own.has_transform and grid.has_transform
        is_elsewhere &= not own.transform.almost_equals(grid.transform, precision=tolerance)
        if own.shape == grid.shape and not is_elsewhere:
            return []
        if own.shape == grid.shape:
            message = f"labels {path} have another transform than scene {scene}, and no CRS that says where both lie"
            return [
                error(path, message, f"give both their CRS, the labels with: gdal_edit.py -a_srs EPSG:… {quoted(path)}")
            ]
        return [
            error(
                path,
                f"labels {path} have {own.height} × {own.width} px, scene {scene} has {grid.height} × {grid.width}",
                crs_hint(grid) if own.is_georeferenced else "without a CRS, labels must have the scene's size",
            )
        ]
    bounds = own.bounds
    if own.crs != grid.crs:
        way = transformer(own.crs, grid.crs)
        if way is None:
            assign = f"say which one it is: gdal_edit.py -a_srs {quoted(crs_name(grid.crs))} {quoted(path)}"
            return [no_way("labels", path, own.crs, scene, grid.crs, assign=assign)]
        bounds = way.transform_bounds(*own.bounds)
    outline = _outline(grid)
    # In the scene's own CRS the outline is exact; through another one bounds are all that is known.
    covered = _outline(own) if own.crs == grid.crs else box(*bounds)
    if not np.isfinite(bounds).all() or not covered.intersects(outline):
        return [
            error(
                path,
                f"labels {path} do not touch scene {scene}",
                f"check that both files have the right CRS: geoseg info {quoted(path)}",
            )
        ]
    problems = []
    share = covered.intersection(outline).area / outline.area
    if share < MIN_COVERED_SHARE:
        problems.append(warning(path, f"labels {path} cover {share:.0%} of scene {scene}; the rest of it is ignored"))
    if not _on_grid(own, grid):
        problems.append(
            warning(
                path,
                f"labels {path} are not on the pixels of scene {scene} ({_described(own)}; {_described(grid)}): "
                "each pixel gets the nearest label",
                f"burn them on the scene's own grid, or: gdalwarp -r mode -t_srs {quoted(crs_name(grid.crs))} "
                f"-tr {abs(grid.transform.a):.9g} {abs(grid.transform.e):.9g} -te "
                f"{' '.join(f'{v:.9g}' for v in grid.bounds)} {quoted(path)} on_grid.tif",
            )
        )
    return problems


def _outline(grid: Grid) -> Polygon:
    return Polygon([grid.transform @ (c, r) for c, r in _corners(grid)])


def _corners(grid: Grid) -> list[tuple[int, int]]:
    return [(0, 0), (grid.width, 0), (grid.width, grid.height), (0, grid.height)]


def _on_grid(own: Grid, grid: Grid) -> bool:
    """Whether label pixels are scene pixels, wherever the label raster begins and ends."""
    if own.crs != grid.crs:
        return False
    to_scene: Affine = ~grid.transform @ own.transform
    col, row = to_scene @ (0, 0)
    start = np.array([round(col), round(row)])
    return all(np.abs(np.array(to_scene @ c) - start - c).max() <= _OFF_GRID_PX for c in _corners(own))


def _described(grid: Grid) -> str:
    side = abs(grid.transform.determinant) ** 0.5
    return f"{grid.height} × {grid.width} px of {side:.6g} in {crs_name(grid.crs)}"


def _value_counts(labels: Scene) -> dict[int, int]:
    """Pixels of every value of the file that no mask hides, in one pass; those of its nodata value too."""
    counts: dict[int, int] = {}
    height, width = labels.grid.shape
    rows = max(labels.block_shape[0], _ROWS)
    for row in range(0, height, rows):
        (values,), valid = labels.read(Window(row, 0, min(rows, height - row), width))
        if not valid.all():
            values = values[valid | (values == labels.nodata)]
        if values.dtype == np.uint8:
            number = np.bincount(values.ravel(), minlength=256)
            found = np.flatnonzero(number)
            pairs = zip(found.tolist(), number[found].tolist(), strict=True)
        else:
            unique, number = np.unique(values, return_counts=True)
            pairs = zip(unique.tolist(), number.tolist(), strict=True)
        for value, times in pairs:
            counts[value] = counts.get(value, 0) + times
    return counts


def _check_values(
    path: InputPath, counts: dict[int, int], nodata: float | None, classes: ClassTable, first: int
) -> tuple[list[Problem], npt.NDArray[np.bool_]]:
    last = first + len(classes) - 1
    total = max(sum(counts.values()), 1)
    present = np.zeros(len(classes), dtype=bool)
    for value in counts:
        if first <= value <= last and value != nodata:
            present[value - first] = True
    problems = []
    # Below the first class all is ignored, where there is anything below.
    lowest = 0 if first == 0 else min(counts, default=0)
    wrong = sorted(v for v in counts if (v < lowest or v > last) and v not in (NODATA, nodata))
    if wrong:
        told = listed([f"{v} ({counts[v]} px)" for v in wrong], 12)
        hint = "add them to the configuration's classes, or set those pixels to 255 (ignore)"
        if first == 0 and wrong == [last + 1] and 0 not in counts:
            hint = "set data.first_label=1 where 1 stands for the first class"
        elif first == 0 and wrong == [last + 1]:
            hint = "set data.first_label=1 where 1 stands for the first class and 0 is ignored, or add the class"
        problems.append(error(path, f"labels {path} hold ids that are no class, which end at {last}: {told}", hint))
    if not present.any() and not wrong:
        below = f" or below {first}" if first else ""
        problems.append(
            error(
                path,
                f"labels {path} are empty: every pixel is nodata or {NODATA}{below}",
                f"see what they hold with: geoseg info {quoted(path)}",
            )
        )
    if nodata is not None and first <= nodata <= last and nodata in counts:
        name = classes[int(nodata) - first].name
        problems.append(
            warning(
                path,
                f"{nodata:g} is class {name!r} and the nodata value of labels {path}: "
                f"{counts[int(nodata)] / total:.0%} of their pixels are ignored",
                f"where it is a class: gdal_edit.py -unsetnodata {quoted(path)}",
            )
        )
    if len(classes) == 2 and set(counts) == {0, NODATA} and nodata != NODATA and first == 0:
        problems.append(
            warning(
                path,
                f"labels {path} hold only 0 and {NODATA}, which is ignored, so class {classes[1].name!r} never occurs",
                f"where {NODATA} stands for it: gdal_calc.py -A {quoted(path)} --calc='A==255' --outfile=labels.tif",
            )
        )
    return problems, present
