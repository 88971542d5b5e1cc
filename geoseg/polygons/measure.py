"""True areas and perimeters on the ellipsoid, for millions of polygons.

A step (dx, dy) of the map has a length on the ground: length² = E dx² + 2 F dx dy + G dy²; the area factor is
√(EG − F²). This metric is smooth, so it is computed once on a coarse lattice over the map, from positions in space, for
which neither poles nor the antimeridian are special, and interpolated with cubics, to 1e-8 of its value.
"""

from __future__ import annotations

import math

import numpy as np
import pyproj

from geoseg.arrays import FloatArray, IntArray
from geoseg.georeference import Georeference, crs_georeference, pyproj_crs
from geoseg.grid import Grid
from geoseg.polygons.batch import PolygonBatch
from geoseg.runtime.jit import helper, int64, njit

# Fractions of the Earth's radius.
_CELL = 1 / 128  # lattice cells of at most 50 km
_CELL_LATITUDE = 1 / 1024  # where the lattice has one dimension; keeps 1e-7 up to a tenth of a degree from a pole
_LEAST_CELL = 1 / 2000  # 3 km; differences of nodes nearer than that are rounding errors
_SMALL = 1 / 6400  # polygons within 1 km: the metric is linear there, to 1e-8
_STEP = 1 / 8000  # of the differences that stand for derivatives

# Gauss's two points on [0, 2] are 1 ± 1/√3; this is how far they lie from 1/2 and 3/2.
_GAUSS = 1 / np.sqrt(3) - 0.5

_Shapes = tuple[FloatArray, IntArray, IntArray]  # vertices, rings and polygons as in `PolygonBatch`


class Measure:
    """Measures the polygons of a map; made once, it may be used from several threads.

    Args:
        grid: The map's grid. Without a CRS, or with a local one that is tied to no ellipsoid, the areas and lengths are
            those of the coordinates: px² and px for pixel coordinates.
    """

    def __init__(self, grid: Grid) -> None:
        self._lattice = np.empty((0, 0, 5))
        self._place = np.zeros(5)  # of node (0, 0): x and y; cell width and height; largest extent of a small polygon
        self._unit = 1.0
        if not grid.is_metric:
            return
        crs = pyproj_crs(grid.crs)
        self._unit = crs.axis_info[0].unit_conversion_factor  # metres, or radians
        if crs_georeference(crs) is not Georeference.LOCAL:
            self._lattice, self._place = _metric_lattice(grid, crs, self._unit)

    def columns(self, batch: PolygonBatch) -> dict[str, FloatArray]:
        """Area and perimeter of each polygon on the ground: ``area_m2`` and ``perim_m``, (n,) float64.

        Edges are straight between their vertices in the CRS. Holes take from the area and add to the perimeter.
        """
        area, perimeter = np.empty(len(batch)), np.empty(len(batch))
        shapes = np.ascontiguousarray(batch.xy), batch.rings, batch.polygons
        if self._lattice.size:
            if _measure_small(area, perimeter, shapes, self._lattice, self._place):
                _measure_large(area, perimeter, shapes, self._lattice, self._place)
        else:
            _measure_on_map(area, perimeter, shapes)
            area *= self._unit**2
            perimeter *= self._unit
        return {"area_m2": area, "perim_m": perimeter}


def _metric_lattice(grid: Grid, crs: pyproj.CRS, unit: float) -> tuple[FloatArray, FloatArray]:
    """E, F, G, the area factor and its integral over y at lattice nodes, (ny, nx, 5), and where the nodes lie.

    One row and column of nodes lies outside the map on every side, for the cubics.
    """
    ellipsoid = crs.ellipsoid
    a = ellipsoid.semi_major_metre if ellipsoid else 6378137.0
    b = ellipsoid.semi_minor_metre if ellipsoid else 6356752.314245
    radius = 1 / unit if crs.is_geographic else a / unit  # of the Earth, in units of the CRS
    left, bottom, right, top = grid.bounds
    across, up = right - left, top - bottom
    largest = _CELL_LATITUDE if crs.is_geographic else _CELL
    width, height = (radius * min(max(d / radius / 4, _LEAST_CELL), largest) for d in (across, up))
    small = radius * _SMALL
    if crs.is_geographic:
        width = across  # nothing depends on the longitude
        small *= max(np.cos(max(abs(top), abs(bottom)) * unit), 0.0)  # and much on the latitude near a pole
    columns, rows = int(np.ceil(across / width)), int(np.ceil(up / height))
    x = left + width * np.arange(-1, columns + 2)
    y = bottom + height * np.arange(-1, rows + 2)
    metric = _metric(crs, a, b, *np.meshgrid(x, y), step=radius * _STEP)
    lattice = np.concatenate([metric, _integral_over_y(metric[..., 3], height)[..., None]], axis=-1)
    return lattice, np.array([x[0], y[0], width, height, small])


def _metric(crs: pyproj.CRS, a: float, b: float, x: FloatArray, y: FloatArray, *, step: float) -> FloatArray:
    """E, F, G and √(EG − F²) at coordinates of any shape, (…, 4); that of the plane where the CRS has no inverse.

    Derivatives are central differences of fourth order over two steps (of 800 m) to each side, good to 1e-11.
    """
    unit = crs.axis_info[0].unit_conversion_factor
    to_lonlat = None if crs.is_geographic else pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    e2 = 1 - (b / a) ** 2

    def in_space(dx: float, dy: float) -> tuple[FloatArray, FloatArray]:
        """Position in space and the direction upwards there, each (3, …)."""
        if to_lonlat is None:
            lon, lat = (x + dx) * unit, (y + dy) * unit
        else:
            lon, lat = to_lonlat.transform(x + dx, y + dy, radians=True)
        upwards = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])
        normal = a / np.sqrt(1 - e2 * np.sin(lat) ** 2)
        return np.stack([normal, normal, normal * (1 - e2)]) * upwards, upwards

    def derivative(dx: float, dy: float) -> FloatArray:
        near = in_space(dx, dy)[0] - in_space(-dx, -dy)[0]
        far = in_space(2 * dx, 2 * dy)[0] - in_space(-2 * dx, -2 * dy)[0]
        return np.asarray((8 * near - far) / (12 * step))

    with np.errstate(invalid="ignore"):  # infinite where the CRS has no inverse
        by_x, by_y = derivative(step, 0), derivative(0, step)
        # Signed, so that it is smooth past a pole, where nodes of a map of the whole Earth lie.
        factor = np.sum(np.cross(by_x, by_y, axis=0) * in_space(0, 0)[1], axis=0)
        products = [np.sum(p * q, axis=0) for p, q in ((by_x, by_x), (by_x, by_y), (by_y, by_y))]
    metric = np.stack([*products, factor * np.sign(np.nanmedian(factor))], axis=-1)
    plane = np.array([unit**2, 0, unit**2, unit**2])
    return np.where(np.isfinite(metric).all(axis=-1, keepdims=True), metric, plane)


def _integral_over_y(factor: FloatArray, height: float) -> FloatArray:
    """Integral of the area factor along each column of nodes, from its second node on, by cubics through four nodes."""
    inner = (13 * (factor[1:-2] + factor[2:-1]) - factor[:-3] - factor[3:]) / 24
    first = (9 * factor[0] + 19 * factor[1] - 5 * factor[2] + factor[3]) / 24
    last = (9 * factor[-1] + 19 * factor[-2] - 5 * factor[-3] + factor[-4]) / 24
    steps = np.concatenate([-first[None], np.zeros_like(first)[None], inner, last[None]])
    integral = np.cumsum(steps, axis=0)
    integral[0], integral[1:] = -first, integral[1:] + first
    return np.asarray(integral * height)


@helper
def _interpolate(values: FloatArray, at: int, lattice: FloatArray, place: FloatArray, x: float, y: float) -> None:
    """The lattice's values at (x, y), into ``values[at:]``: cubics through the four nearest nodes in x and in y."""
    u, v = (x - place[0]) / place[2], (y - place[1]) / place[3]
    column = min(max(int64(u) - 1, 0), lattice.shape[1] - 4)
    row = min(max(int64(v) - 1, 0), lattice.shape[0] - 4)
    u, v = u - column, v - row
    for k in range(5):
        values[at + k] = 0.0
    for node in range(16):
        i, j = node >> 2, node & 3
        weight = _weight(i, v) * _weight(j, u)
        for k in range(5):
            values[at + k] += weight * lattice[row + i, column + j, k]


@helper
def _weight(node: int, u: float) -> float:
    """Lagrange's polynomial of a node of 0, 1, 2, 3 at ``u``."""
    if node == 0:
        return -(u - 1) * (u - 2) * (u - 3) / 6
    if node == 1:
        return u * (u - 2) * (u - 3) / 2
    if node == 2:
        return -u * (u - 1) * (u - 3) / 2
    return u * (u - 1) * (u - 2) / 6


@njit
def _measure_small(
    area: FloatArray, perimeter: FloatArray, shapes: _Shapes, lattice: FloatArray, place: FloatArray
) -> int:
    """Area and perimeter of small polygons, by a metric that is linear in x and y; how many others there are.

    Others get a NaN for their area.
    """
    xy, rings, polygons = shapes
    metric = np.empty(15)  # at the lower left corner of the shell's box, and its gradients in x and y
    others = 0
    for i in range(len(area)):
        start, stop = rings[polygons[i]], rings[polygons[i] + 1]
        left = right = xy[start, 0]
        bottom = top = xy[start, 1]
        for k in range(start + 1, stop):
            left, right = min(left, xy[k, 0]), max(right, xy[k, 0])
            bottom, top = min(bottom, xy[k, 1]), max(top, xy[k, 1])
        if right - left > place[4] or top - bottom > place[4]:
            area[i] = np.nan
            others += 1
            continue
        for corner in range(3):
            _interpolate(
                metric, 5 * corner, lattice, place, right if corner == 1 else left, top if corner == 2 else bottom
            )
        for k in range(4):
            metric[5 + k] = (metric[5 + k] - metric[k]) / (right - left) if right > left else 0.0
            metric[10 + k] = (metric[10 + k] - metric[k]) / (top - bottom) if top > bottom else 0.0
        length = 0.0
        double, moment_x, moment_y = 0.0, 0.0, 0.0  # twice the area, six times its moments
        for r in range(polygons[i], polygons[i + 1]):
            x0, y0 = xy[rings[r], 0] - left, xy[rings[r], 1] - bottom
            for k in range(rings[r] + 1, rings[r + 1]):
                x1, y1 = xy[k, 0] - left, xy[k, 1] - bottom
                cross = x0 * y1 - x1 * y0
                double += cross
                moment_x += (x0 + x1) * cross
                moment_y += (y0 + y1) * cross
                dx, dy = x1 - x0, y1 - y0
                x, y = (x0 + x1) / 2, (y0 + y1) / 2
                e = metric[0] + x * metric[5] + y * metric[10]
                f = metric[1] + x * metric[6] + y * metric[11]
                g = metric[2] + x * metric[7] + y * metric[12]
                length += math.sqrt(e * dx * dx + 2 * f * dx * dy + g * dy * dy)
                x0, y0 = x1, y1
        area[i] = metric[3] * double / 2 + (metric[8] * moment_x + metric[13] * moment_y) / 6
        perimeter[i] = length
    return others


@njit
def _measure_large(
    area: FloatArray, perimeter: FloatArray, shapes: _Shapes, lattice: FloatArray, place: FloatArray
) -> None:
    """Area and perimeter of polygons whose area is NaN, edge by edge.

    Long edges are measured at Gauss's two points of each quarter of a lattice cell. The area is the line integral
    −∮ Q dx, where Q is the area factor's integral over y, from the shell's first vertex, so that what is far away does
    not cost digits.
    """
    xy, rings, polygons = shapes
    metric = np.empty(5)
    for i in range(len(area)):
        if not np.isnan(area[i]):
            continue
        start = rings[polygons[i]]
        _interpolate(metric, 0, lattice, place, xy[start, 0], xy[start, 1])
        base, total, length = metric[4], 0.0, 0.0
        for r in range(polygons[i], polygons[i + 1]):
            for k in range(rings[r], rings[r + 1] - 1):
                dx, dy = xy[k + 1, 0] - xy[k, 0], xy[k + 1, 1] - xy[k, 1]
                # Along a slanted edge Q has a curve that one point does not see; 16 m are too short for it.
                short = place[4] if dx == 0 or dy == 0 else place[4] / 64
                points = 1
                if abs(dx) > short or abs(dy) > short:
                    points = 2 + 2 * int64(4 * max(abs(dx) / place[2], abs(dy) / place[3]))
                for p in range(points):
                    at = (p + 0.5 + (_GAUSS if p % 2 else -_GAUSS) * (points > 1)) / points
                    _interpolate(metric, 0, lattice, place, xy[k, 0] + at * dx, xy[k, 1] + at * dy)
                    squared = metric[0] * dx * dx + 2 * metric[1] * dx * dy + metric[2] * dy * dy
                    length += math.sqrt(max(squared, 0.0)) / points
                    total -= (metric[4] - base) * dx / points
        area[i], perimeter[i] = total, length


@njit
def _measure_on_map(area: FloatArray, perimeter: FloatArray, shapes: _Shapes) -> None:
    """Area and perimeter of each polygon in units of its coordinates."""
    xy, rings, polygons = shapes
    for i in range(len(area)):
        area[i] = perimeter[i] = 0.0
        x, y = xy[rings[polygons[i]], 0], xy[rings[polygons[i]], 1]
        for r in range(polygons[i], polygons[i + 1]):
            for k in range(rings[r], rings[r + 1] - 1):
                dx, dy = xy[k + 1, 0] - xy[k, 0], xy[k + 1, 1] - xy[k, 1]
                area[i] += ((xy[k, 0] - x) * dy - (xy[k, 1] - y) * dx) / 2
                perimeter[i] += math.sqrt(dx * dx + dy * dy)
