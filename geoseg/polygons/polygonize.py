"""Class map → polygons that share their borders vertex by vertex.

GDAL traces each region on its own and leaves out the vertex on the straight side of a T, where three regions meet.
Without it neighbours have different vertices along one border, and every later step that moves vertices (simplify,
reproject, round) opens slivers there. So these junctions, corners around which the label changes three times or
more, are put into every ring that passes them.
"""

from __future__ import annotations

from array import array
from itertools import chain
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from affine import Affine
from rasterio import features
from rasterio.crs import CRS

from geoseg.classes import NODATA, ClassTable
from geoseg.errors import LabelError
from geoseg.grid import Grid
from geoseg.polygons.area import area_m2
from geoseg.polygons.regions import merge_small_regions
from geoseg.polygons.simplify import Tolerance, simplify_coverage

ClassValues = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def polygonize(
    values: ClassValues,
    transform: Affine,
    *,
    crs: Any = None,
    classes: ClassTable | None = None,
    nodata: int = NODATA,
    simplify: Tolerance | None = None,
    min_area_m2: float = 0.0,
) -> geopandas.GeoDataFrame:
    """Polygons of a class map: a valid coverage, one row per 4-connected region of a class, none for nodata.

    Args:
        values: Class map, (H, W) uint8.
        transform: Affine pixel → CRS; rotated and south-up ones too.
        crs: Anything that rasterio takes as a CRS, or None.
        classes: Names of the ids; None gives ``class_0``, ``class_1``, …
        nodata: Value that becomes no polygon.
        simplify: Tolerance of a simplification that keeps shared borders shared; None keeps every pixel step.
        min_area_m2: Regions below this area (m²; without CRS: square units of the coordinates) are merged into the
            neighbour with the longest common border before tracing, or dropped where all around is nodata.

    Returns:
        Columns class_id (int32), class_name (str), area_m2 (float, true ground area, see `area_m2`) and geometry,
        valid polygons with counter-clockwise exteriors, in the CRS.

    Raises:
        LabelError: A value that the class table does not have.
        ConfigError: A tolerance in metres, and no CRS.
    """
    height, width = values.shape
    grid = Grid(height, width, transform, None if crs is None else CRS.from_user_input(crs))
    tolerance_px = simplify.in_pixels(grid) if simplify else 0.0
    if classes is not None:
        _check_values(values, classes, nodata)
    if min_area_m2 > 0:
        values = merge_small_regions(values, grid.pixel_area_m2(), min_area=min_area_m2, nodata=nodata)
    polygons, ids = _trace(values, nodata)
    polygons = simplify_coverage(polygons, tolerance_px)
    kept = ~shapely.is_empty(polygons)
    polygons, ids = _place(polygons[kept], transform), ids[kept]
    names = np.array([classes[i].name if classes and i < len(classes) else f"class_{i}" for i in range(256)], object)
    columns = {
        "class_id": ids.astype(np.int32),
        "class_name": pd.Series(names[ids], dtype="str"),
        "area_m2": area_m2(polygons, grid.crs and grid.crs.to_wkt()),
    }
    return geopandas.GeoDataFrame(columns, geometry=polygons, crs=grid.crs and grid.crs.to_wkt())


def _check_values(values: ClassValues, classes: ClassTable, nodata: int) -> None:
    present = np.flatnonzero(np.bincount(values.ravel(), minlength=256))
    unknown = [int(v) for v in present if v >= len(classes) and v != nodata]
    if unknown:
        raise LabelError(f"the class map holds the value {unknown[0]}, but its class table ends at {len(classes) - 1}")


def _trace(values: ClassValues, nodata: int) -> tuple[npt.NDArray[Any], IntArray]:
    """Polygons in pixel coordinates with every junction a vertex, and their class ids."""
    coordinates, ring_ends, polygon_ends, ids = array("d"), [0], [0], array("q")
    for shape, value in features.shapes(values, mask=values != nodata, connectivity=4):
        for ring in shape["coordinates"]:
            coordinates.extend(chain.from_iterable(ring))
            ring_ends.append(len(coordinates) // 2)
        polygon_ends.append(len(ring_ends) - 1)
        ids.append(int(value))
    if not ids:
        return np.empty(0, dtype=object), np.empty(0, dtype=np.int64)
    xy = np.frombuffer(coordinates).reshape(-1, 2).astype(np.int64)
    xy, rings = _insert_junctions(xy, np.array(ring_ends), values)
    offsets = rings, np.array(polygon_ends)
    polygons = shapely.from_ragged_array(shapely.GeometryType.POLYGON, xy.astype(np.float64), offsets)
    return polygons, np.frombuffer(ids, dtype=np.int64)


def _insert_junctions(xy: IntArray, rings: IntArray, values: ClassValues) -> tuple[IntArray, IntArray]:
    """Ring vertices (n, 2) and ring offsets with the junctions that lie inside straight segments put in."""
    height, width = values.shape
    rows, cols = _junctions(values)
    # One number per corner, counted along rows for horizontal segments and along columns for vertical ones:
    # the junctions inside a segment are then the numbers between those of its two ends.
    along_rows = rows * (width + 1) + cols
    along_cols = np.sort(cols * (height + 1) + rows)
    x, y = xy.T
    horizontal = np.append(y[1:] == y[:-1], False)
    here = np.where(horizontal, y * (width + 1) + x, x * (height + 1) + y)
    there_x, there_y = np.append(x[1:], 0), np.append(y[1:], 0)
    there = np.where(horizontal, there_y * (width + 1) + there_x, there_x * (height + 1) + there_y)
    there[rings[1:] - 1] = here[rings[1:] - 1]  # from the end of a ring to the next ring is no segment
    low, high = np.minimum(here, there), np.maximum(here, there)
    begin = np.where(horizontal, np.searchsorted(along_rows, low, "right"), np.searchsorted(along_cols, low, "right"))
    end = np.where(horizontal, np.searchsorted(along_rows, high), np.searchsorted(along_cols, high))
    extra = np.maximum(end - begin, 0)
    position = np.arange(len(xy)) + np.append(0, np.cumsum(extra)[:-1])  # of the old vertices among the new
    out = np.empty((len(xy) + int(extra.sum()), 2), dtype=np.int64)
    out[position] = xy
    segment = np.repeat(np.arange(len(xy)), extra)
    k = np.arange(len(segment)) - np.repeat(np.cumsum(extra) - extra, extra)  # 0, 1, … within each segment
    forward = (there > here)[segment]
    which = np.where(forward, begin[segment] + k, end[segment] - 1 - k)
    inserted = np.empty((len(segment), 2), dtype=np.int64)
    flat = horizontal[segment]
    key = along_rows[which[flat]]
    inserted[flat] = np.column_stack([key % (width + 1), key // (width + 1)])
    key = along_cols[which[~flat]]
    inserted[~flat] = np.column_stack([key // (height + 1), key % (height + 1)])
    out[position[segment] + 1 + k] = inserted
    return out, rings + np.append(0, np.cumsum(extra))[rings]


def _junctions(values: ClassValues) -> tuple[IntArray, IntArray]:
    """Rows and columns of the corners around which the label changes three times or more, in row-major order."""
    padded = np.pad(values.astype(np.int16), 1, constant_values=-1)  # outside is a label of its own
    a, b, c, d = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    changes = (a != b).astype(np.int8) + (b != d) + (d != c) + (c != a)
    rows, cols = np.nonzero(changes >= 3)
    return rows, cols


def _place(polygons: npt.NDArray[Any], transform: Affine) -> npt.NDArray[Any]:
    """Polygons from pixel to CRS coordinates; a shared vertex gives the same floats in every ring."""
    a, b, c, d, e, f = transform[:6]

    def to_crs(xy: FloatArray) -> FloatArray:
        x, y = xy.T
        return np.column_stack([a * x + b * y + c, d * x + e * y + f])

    return np.asarray(shapely.orient_polygons(shapely.transform(polygons, to_crs)))
