"""Polygons in WGS84: longitude and latitude as whole multiples of the last decimal that is written.

Those across the antimeridian or around a pole are cut as RFC 7946 asks (section 3.1.9).
"""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyproj
import shapely
from affine import Affine
from shapely import affinity

from geoseg.arrays import BoolArray, FloatArray, Geometries, IntArray
from geoseg.errors import OutputError
from geoseg.grid import Grid
from geoseg.polygons.batch import PolygonBatch
from geoseg.runtime.jit import helper, njit

RFC7946_DECIMALS = 7  # what RFC 7946 calls reasonable for longitudes and latitudes: about a centimetre
LOST = np.iinfo(np.int64).min  # longitude and latitude where PROJ has no answer

_MOST_DECIMALS = 12
_PIXEL_DECIMALS = 8  # vertices are multiples of 1/256 px
# In px. Vertices keep 0.25 px from edges that are not theirs: a vertex and an edge, each rounded, and bent edges on
# either side use up less than that together.
_MOST_ROUNDING = 0.09
_MOST_BEND = 1 / 32
_SHORTEST_PART = 4.0
_SAMPLES = 9

Transform = Callable[[FloatArray], FloatArray]


class LonLat:
    """How the vertices of one map become longitudes and latitudes, known before the first polygon.

    PROJ takes 0.2 to 1 µs a vertex, more than all the rest of a GeoJSON. A projection is smooth: PROJ is asked on a
    lattice, and in between a cubic goes through its answers. The lattice is refined until the middles of its cells are
    within 1/100 of the last decimal (0.1 mm); where that fails, as around a pole, PROJ is asked for every vertex.

    Attributes:
        decimals: Decimals of the coordinates: seven, and more only where pixels are so small that rounding would come
            near the distance that vertices keep (below 9 cm eight, below 9 mm nine); eight for pixel coordinates.
        is_geographic: False for a map without a CRS, whose coordinates stay what they are.
    """

    def __init__(self, grid: Grid) -> None:
        self.decimals, self.is_geographic = _PIXEL_DECIMALS, grid.is_georeferenced
        self._longest_px = np.inf
        self._lattice: tuple[FloatArray, float, float] | None = None
        self._exact: Transform = lambda xy: xy
        if not self.is_geographic:
            return
        crs = pyproj.CRS.from_user_input(grid.crs)
        if crs.equals(pyproj.CRS.from_epsg(4326), ignore_axis_order=True):
            self.decimals, _ = _precision(grid, self._exact)
            return
        self._exact = _continuous(pyproj.Transformer.from_crs(crs, 4326, always_xy=True), grid)
        self.decimals, self._longest_px = _precision(grid, self._exact)
        self._to_pixel = np.array((~grid.transform)[:6], dtype=np.float64)
        self._find_lattice(grid)

    def _find_lattice(self, grid: Grid) -> None:
        """Keep PROJ's answers on a lattice, and width and height of its cells, px, if one is fine enough."""
        for cells in (4, 16, 64, 256, 512):
            cell = grid.width / cells, grid.height / cells
            nodes = np.arange(cells + 1, dtype=np.float64)
            answers = self._exact(map_coordinates(grid.transform, nodes * cell[0], nodes * cell[1]))
            if not np.isfinite(answers).all():
                return
            middles = (nodes[:-1] + 0.5) * cell[0], (nodes[:-1] + 0.5) * cell[1]
            xy = map_coordinates(grid.transform, *middles).reshape(-1, 2)
            scale = 10.0**self.decimals * 100  # hundredths of the last decimal
            found = _interpolate(xy, self._to_pixel, answers, *cell, scale)
            if np.abs(found - self._exact(xy) * scale).max() < 1.5:
                self._lattice = answers, *cell
                return

    def split_long_edges(self, xy: FloatArray, rings: IntArray) -> tuple[FloatArray, IntArray]:
        """Rings with vertices added where a straight edge of the map would leave its place by 1/32 px.

        Where they lie does not depend on the direction an edge is walked in: both its polygons get the same ones.
        """
        if np.isinf(self._longest_px):
            return xy, rings
        dx, dy = np.diff(xy, axis=0, append=xy[-1:]).T
        a, b, _, d, e, _ = self._to_pixel
        length = np.sqrt((a * dx + b * dy) ** 2 + (d * dx + e * dy) ** 2)
        parts = np.where(length > self._longest_px, np.ceil(length / self._longest_px), 1).astype(np.int64)
        parts[rings[1:] - 1] = 1  # the last vertex of a ring has no edge
        starts = np.concatenate([[0], np.cumsum(parts)])
        if starts[-1] == len(xy):
            return xy, rings
        edge = np.repeat(np.arange(len(xy)), parts)
        step, count = np.arange(len(edge)) - starts[edge], parts[edge]
        first, last = xy[edge], xy[np.minimum(edge + 1, len(xy) - 1)]
        backwards = (last[:, 0] < first[:, 0]) | ((last[:, 0] == first[:, 0]) & (last[:, 1] < first[:, 1]))
        share = np.where(backwards, count - step, step) / count  # from the smaller end
        low, high = (np.where(backwards[:, None], *ends) for ends in ((last, first), (first, last)))
        split = low + (high - low) * share[:, None]
        split[step == 0] = xy
        return split, starts[rings]

    def place(self, xy: FloatArray) -> IntArray:
        """Longitudes and latitudes of map coordinates, (n, 2), degrees · 10^decimals, rounded half to even.

        Longitudes are continuous over the map, so beyond the antimeridian they are above 180° or below −180°. Where
        PROJ has no answer, they are `LOST`.
        """
        scale = 10.0**self.decimals
        if self._lattice is not None:
            return _interpolate(xy, self._to_pixel, *self._lattice, scale)
        degrees = self._exact(xy)
        lost = ~np.isfinite(degrees)
        placed = np.rint(np.where(lost, 0.0, degrees) * scale).astype(np.int64)
        placed[lost] = LOST
        return placed


def to_wgs84(batch: PolygonBatch, lonlat: LonLat, path: Path) -> tuple[PolygonBatch, dict[int, Geometries]]:
    """Polygons in degrees, rounded to the decimals of ``lonlat``; each vertex alike in every polygon that has it.

    Returns the batch in degrees, and the polygons to be cut by row, each as its parts. Their rings in the batch run on
    beyond ±180°. An `OutputError` names the file of ``path`` if a vertex has no longitude and latitude.
    """
    xy, rings = lonlat.split_long_edges(np.ascontiguousarray(batch.xy, dtype=np.float64), batch.rings)
    placed = lonlat.place(xy)
    if (lost := placed.min(axis=1, initial=0) == LOST).any():
        x, y = xy[lost][0]
        raise OutputError(
            f"cannot write {path.name}: ({x}, {y}) of the map's CRS has no longitude and latitude",
            hint=f"write for example -o {path.with_suffix('.gpkg').name}, which keeps the map's CRS",
        )
    scale = 10.0**lonlat.decimals
    parts: dict[int, Geometries] = {}
    if lonlat.is_geographic:
        half = 180 * 10**lonlat.decimals
        for row in np.flatnonzero(_shift_or_cut(placed, rings, batch.polygons, half)).tolist():
            borders = itertools.pairwise(rings[batch.polygons[row] : batch.polygons[row + 1] + 1].tolist())
            pieces = _cut_polygon([placed[a:b] for a, b in borders], half)
            parts[row] = shapely.transform(pieces, lambda whole: np.rint(whole) / scale)
    return dataclasses.replace(batch, xy=placed / scale, rings=rings), parts


def _shift_or_cut(xy: IntArray, rings: IntArray, polygons: IntArray, half: int) -> BoolArray:
    """Move every polygon that lies between two antimeridians to −180° … 180°, in place, and find the others, (n,).

    Those are to be cut: they cross an antimeridian or go around a pole. ``half`` is 180° in the unit of ``xy``.
    """
    begin = rings[polygons]
    longitudes = xy[:, 0]
    low, high = (extreme.reduceat(longitudes, begin[:-1]) for extreme in (np.minimum, np.maximum))
    jumps = np.abs(np.diff(longitudes, prepend=longitudes[:1])) > half
    jumps[rings[:-1]] = False
    turns = (low + half) // (2 * half)
    cut: BoolArray = np.logical_or.reduceat(jumps, begin[:-1]) | (high > half + 2 * half * turns)
    longitudes -= 2 * half * np.repeat(np.where(cut, 0, turns), np.diff(begin))
    return cut


def _cut_polygon(rings: list[IntArray], half: int) -> Geometries:
    """One polygon as those parts of it that lie between two antimeridians, shell counter-clockwise, (parts,).

    Every edge first gets a vertex where it crosses, computed from its western end. So GEOS has nothing to intersect,
    coordinates stay whole numbers, and neighbours get the same vertices.

    Rings are shell and holes, each (v, 2), closed; ``half`` is 180° in their unit.
    """
    first, *holes = (_unrolled(ring, half) for ring in rings)
    shell: shapely.Geometry = shapely.Polygon(first)
    for hole in holes:
        for turns in (-1, 0, 1):  # each ring begins at its own longitude
            shell = shapely.difference(shell, shapely.Polygon(hole + np.array([2 * half * turns, 0])))
    left, _, right, _ = shapely.bounds(shell)
    parts = []
    for turns in range(int((left + half) // (2 * half)), int(-((half - right) // (2 * half))) + 1):
        middle = 2 * half * turns
        part = shapely.intersection(shell, shapely.box(middle - half, -half, middle + half, half))
        parts.append(affinity.translate(part, -middle))
    pieces = shapely.get_parts(shapely.get_parts(parts))
    return np.asarray(shapely.orient_polygons(pieces[shapely.area(pieces) > 0]))


def _unrolled(ring: IntArray, half: int) -> IntArray:
    """A ring whose longitudes go on beyond ± ``half``, with vertices there, and along the pole if it goes around it."""
    around = np.column_stack([np.unwrap(ring[:, 0], period=2 * half), ring[:, 1]])
    vertices = [around[:1]]
    for a, b in itertools.pairwise(around):
        west, east = (a, b) if a[0] <= b[0] else (b, a)
        meridians = range(int((west[0] + half) // (2 * half)), int((east[0] + half) // (2 * half)) + 1)
        crossed = [m for k in meridians if west[0] < (m := half * (2 * k - 1)) < east[0]]
        slope = (east[1] - west[1]) / max(east[0] - west[0], 1)
        added = [(m, west[1] + round(float(slope * (m - west[0])))) for m in crossed]
        if west is b:
            added.reverse()
        vertices.append(np.array([*added, b], dtype=np.int64).reshape(-1, 2))
    line = np.vstack(vertices)
    if line[-1, 0] == line[0, 0]:
        return _moved_west(line, half)
    # Around a pole. The line begins where the ring comes nearest to it on the antimeridian: from there to the pole and
    # back it crosses nothing.
    pole = half // 2 if ring[:, 1].mean() > 0 else -(half // 2)
    on_meridian = np.flatnonzero((line[:-1, 0] - half) % (2 * half) == 0)
    start = on_meridian[np.argmin(np.abs(line[on_meridian, 1] - pole))]
    line = np.vstack([line[start:-1], line[: start + 1] + (line[-1] - line[0])])
    return _moved_west(np.vstack([line, [line[-1, 0], pole], [line[0, 0], pole], line[:1]]), half)


def _moved_west(line: IntArray, half: int) -> IntArray:
    """The same ring, turned around the earth until its westernmost vertex is between − ``half`` and ``half``."""
    turned: IntArray = line - np.array([2 * half * ((line[:, 0].min() + half) // (2 * half)), 0])
    return turned


def _continuous(transformer: pyproj.Transformer, grid: Grid) -> Transform:
    """Degrees of map coordinates, longitudes within 180° of the map's middle, where it goes on into itself."""
    middle, _ = transformer.transform(*(grid.transform @ (grid.width / 2, grid.height / 2)))
    if not np.isfinite(middle):
        middle = 0.0

    def transform(xy: FloatArray) -> FloatArray:
        lon, lat = transformer.transform(xy[..., 0], xy[..., 1])
        with np.errstate(invalid="ignore"):  # infinite where PROJ has no answer
            turns = np.rint((lon - middle) / 360)  # subtracting 0 turns changes no bit
            return np.stack([lon - 360 * turns, lat], axis=-1)

    return transform


def map_coordinates(t: Affine, columns: FloatArray, rows: FloatArray) -> FloatArray:
    """x and y at every column and row, (rows, columns, 2)."""
    c, r = np.meshgrid(columns, rows)
    return np.stack([t.a * c + t.b * r + t.c, t.d * c + t.e * r + t.f], axis=-1)


def _precision(grid: Grid, exact: Transform) -> tuple[int, float]:
    """Decimals that are enough for a grid's pixels, and how long a straight edge may be, px."""
    middle_columns, middle_rows = ((np.arange(_SAMPLES) + 0.5) * n / _SAMPLES for n in (grid.width, grid.height))
    at = map_coordinates(grid.transform, middle_columns, middle_rows)
    t = grid.transform

    def moved(columns: float, rows: float) -> FloatArray:
        return exact(np.add(at, (t.a * columns + t.b * rows, t.d * columns + t.e * rows)))

    def difference(to: FloatArray, of: FloatArray) -> FloatArray:
        with np.errstate(invalid="ignore"):
            change = to - of
            change[..., 0] -= 360 * np.rint(change[..., 0] / 360)
        return change

    jacobian = np.stack([difference(moved(0.5, 0), moved(-0.5, 0)), difference(moved(0, 0.5), moved(0, -0.5))], axis=-1)
    with np.errstate(invalid="ignore"):
        known = np.isfinite(jacobian).all(axis=(-2, -1)) & (np.linalg.det(jacobian) != 0)
    if not known.any():
        return RFC7946_DECIMALS, np.inf
    to_pixels = np.linalg.inv(jacobian[known])
    corners = np.array([[0.5, 0.5], [0.5, -0.5]]).T
    rounding = np.linalg.norm(to_pixels @ corners, axis=-2).max()  # px, were degrees rounded to whole ones
    decimals = int(np.ceil(np.log10(rounding / _MOST_ROUNDING)))
    # An edge of length L leaves its place by L²/8 times the second derivative along it.
    h = max(grid.shape) / (2 * _SAMPLES)
    here, bend = moved(0, 0), 0.0
    for columns, rows in ((h, 0), (0, h), (h / 2**0.5, h / 2**0.5), (h / 2**0.5, -h / 2**0.5)):
        second = difference(moved(columns, rows), here) - difference(here, moved(-columns, -rows))
        off = np.linalg.norm(to_pixels @ second[known][..., None], axis=-2)  # px at a distance of h
        bend = max(bend, float(off[np.isfinite(off)].max(initial=0)) / h**2)
    longest = max(_SHORTEST_PART, float(np.sqrt(8 * _MOST_BEND / bend))) if bend > 0 else np.inf
    return int(np.clip(decimals, RFC7946_DECIMALS, _MOST_DECIMALS)), longest


@njit
def _interpolate(
    xy: FloatArray, to_pixel: FloatArray, lattice: FloatArray, cell_width: float, cell_height: float, scale: float
) -> IntArray:
    """Longitudes and latitudes times ``scale``, rounded: Lagrange cubics through 4 × 4 points of the lattice."""
    rows, columns = lattice.shape[0], lattice.shape[1]
    placed = np.empty((len(xy), 2), np.int64)
    across, down = np.empty(4), np.empty(4)
    for v in range(len(xy)):
        x, y = xy[v, 0], xy[v, 1]
        u = (to_pixel[0] * x + to_pixel[1] * y + to_pixel[2]) / cell_width
        w = (to_pixel[3] * x + to_pixel[4] * y + to_pixel[5]) / cell_height
        left = min(max(int(np.floor(u)) - 1, 0), columns - 4)
        top = min(max(int(np.floor(w)) - 1, 0), rows - 4)
        _cubic_weights(u - left, across)
        _cubic_weights(w - top, down)
        lon, lat = 0.0, 0.0
        for i in range(4):
            lon_of_row, lat_of_row = 0.0, 0.0
            for j in range(4):
                lon_of_row += across[j] * lattice[top + i, left + j, 0]
                lat_of_row += across[j] * lattice[top + i, left + j, 1]
            lon += down[i] * lon_of_row
            lat += down[i] * lat_of_row
        placed[v, 0], placed[v, 1] = int(np.rint(lon * scale)), int(np.rint(lat * scale))
    return placed


@helper
def _cubic_weights(t: float, weights: FloatArray) -> None:
    """Lagrange weights at ``t`` of the points 0, 1, 2, 3."""
    a, b, c = t - 1, t - 2, t - 3
    weights[0] = a * b * c / -6
    weights[1] = t * b * c / 2
    weights[2] = t * a * c / -2
    weights[3] = t * a * b / 6
