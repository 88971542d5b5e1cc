"""True areas of polygons on the ground."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyproj
import shapely

from geoseg.grid import ground_area_m2

FloatArray = npt.NDArray[np.float64]


def area_m2(geometries: npt.NDArray[Any] | Sequence[shapely.Geometry], crs: Any) -> FloatArray:
    """Area of each polygon on the ground, m², shape (n,).

    Geographic CRS: the vertices go to the cylindrical equal-area projection of the CRS's ellipsoid, where edges
    along meridians and parallels stay straight, so the area of an unsimplified polygon is exact. Projected CRS: the
    planar area times the true area of a map unit at the polygon's centroid (Web Mercator exaggerates areas by 2 at
    45° latitude). Without a CRS the planar area in the units of the coordinates: px² for pixel coordinates.

    Args:
        geometries: Shapely polygons or multipolygons, x and y in the order of GIS files (longitude first).
        crs: Anything pyproj takes, or None.
    """
    shapes = np.asarray(geometries, dtype=object)
    planar = np.asarray(shapely.area(shapes), dtype=np.float64)
    if crs is None or len(shapes) == 0:
        return planar
    crs = pyproj.CRS.from_user_input(crs)
    if crs.is_geographic:
        return np.asarray(shapely.area(_to_equal_area(shapes, crs)), dtype=np.float64)
    centroids = shapely.centroid(shapes)
    return planar * ground_area_m2(crs, shapely.get_x(centroids), shapely.get_y(centroids))


def _to_equal_area(shapes: npt.NDArray[Any], crs: pyproj.CRS) -> npt.NDArray[Any]:
    left, _, right, _ = shapely.total_bounds(shapes)
    unit = np.degrees(crs.axis_info[0].unit_conversion_factor)  # 1 for degrees
    ellipsoid = crs.ellipsoid
    a = ellipsoid.semi_major_metre if ellipsoid else 6378137.0
    b = ellipsoid.semi_minor_metre if ellipsoid else 6356752.314245
    # A meridian of its own in the middle keeps a map across the antimeridian in one piece.
    project = pyproj.Proj(proj="cea", lat_ts=0, lon_0=(left + right) / 2 * unit, a=a, b=b)
    return np.asarray(shapely.transform(shapes, lambda xy: np.column_stack(project(xy[:, 0] * unit, xy[:, 1] * unit))))
