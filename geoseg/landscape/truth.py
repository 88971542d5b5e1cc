"""The exact vector truth: from overlapping objects in painter's order to a disjoint coverage."""

from __future__ import annotations

import numpy as np
import shapely
from shapely.geometry import Polygon, box

from geoseg.arrays import Geometries, IntArray
from geoseg.landscape.features import BUILDING, FIELD, GRASS, LANDSCAPE_CLASSES, SOIL, Features

# Lines closer than this are merged: far less than a pixel, far more than the rounding of coordinates in a window.
_SNAP_PX = 2.0**-27


def coverage(features: Features, height: int, width: int, *, without: list[Polygon]) -> tuple[IntArray, Geometries]:
    """Cut a rectangle along all outlines and give each face to the topmost object.

    All faces come from one noded set of lines, so neighbours share their borders vertex by vertex.

    Args:
        features: Objects in painter's order, in pixel coordinates of the rectangle.
        height: Of the rectangle, px.
        width: Of the rectangle, px.
        without: Areas to leave out.

    Returns:
        Class ids (n,) and polygons (n,) in pixel coordinates.
    """
    frame = box(0, 0, width, height)
    polygons = np.concatenate([features.polygons, np.array(without, dtype=object)])
    lines = shapely.union_all([*shapely.boundary(polygons), frame.exterior], grid_size=_SNAP_PX)
    faces = shapely.get_parts(shapely.polygonize(shapely.get_parts(lines)))
    inner = shapely.point_on_surface(faces)
    faces, inner = faces[shapely.contains(frame, inner)], inner[shapely.contains(frame, inner)]
    face, index = shapely.STRtree(polygons).query(inner, predicate="within")
    top = np.full(len(faces), -1)
    np.maximum.at(top, face, index)
    class_of = np.concatenate([features.classes, [GRASS]]).astype(np.int64)
    kept = top < len(features)
    faces, top = faces[kept], top[kept]
    classes = class_of[top]
    # Fields, plots and buildings stay apart; other classes are merged.
    apart = np.isin(classes, (SOIL, FIELD, BUILDING))
    group = np.where(apart, top + len(LANDSCAPE_CLASSES), classes)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    parts, ids = [], []
    for members in np.split(order, starts[1:]) if len(order) else []:
        joined = shapely.get_parts(shapely.coverage_union_all(faces[members]))
        parts.append(joined)
        ids.append(np.full(len(joined), classes[members[0]]))
    class_id = np.concatenate(ids) if ids else np.zeros(0, dtype=np.int64)
    geometry = np.concatenate(parts) if parts else np.zeros(0, dtype=object)
    return class_id, geometry
