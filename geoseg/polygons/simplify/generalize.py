"""Arcs with fewer vertices that never cross each other: what a map's arcs become once they are complete.

Vertices of the raster are taken out one by one, the least important first: after Visvalingam and Whyatt the one whose
triangle with its two neighbours is the smallest, or after Douglas and Peucker the one nearest to the line that would
replace it. A vertex v between a and b may only go if nothing else is in the way: no vertex of another arc, as it was
before anything was taken out, and no remaining vertex of the own arc in the triangle a, v, b or within `CLEARANCE_PX`
of the new edge a–b. So what becomes of an arc depends on the map alone, never on what happened to other arcs before,
and every vertex of the result keeps that distance from every edge it does not belong to: vertices may be rounded by a
little less than half of it, and the polygons stay valid.

References:
    M. Visvalingam, J. D. Whyatt, "Line generalisation by repeated elimination of points", 1993;
    D. H. Douglas, T. K. Peucker, "Algorithms for the reduction of the number of points …", 1973;
    A. Saalfeld, "Topologically consistent line simplification with the Douglas-Peucker algorithm", 1999, for why
    looking at vertices is enough.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from geoseg.polygons.simplify.distances import distance_keys
from geoseg.polygons.simplify.ground import fill_path, path_length, path_table_size, strays
from geoseg.polygons.simplify.guard import GONE, LINEAR_SEARCH, fill_table, is_blocked, scatter
from geoseg.polygons.trace.cracks import Cracks
from geoseg.runtime.heap import put, take
from geoseg.runtime.jit import helper, int64, njit

Method = Literal["vw", "dp"]

BoolArray = npt.NDArray[np.bool_]
ByteArray = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
PointArray = npt.NDArray[np.int32]

_ON_A_LINE = 1e-12  # less than any squared distance and area of lattice points that are not on one line


class Ground(NamedTuple):
    """Where arcs stay on their own ground, see `geoseg.polygons.simplify.ground`.

    Attributes:
        cracks: The raster's cracks; the plane ``near`` says where.
        corners: The arcs as they were traced, corners of the raster x, y, (c, 2).
        offsets: Where each arc begins in ``corners``, (a + 1,).
        unit: Lattice unit of the arcs, 1/256 px.
    """

    cracks: Cracks
    corners: PointArray
    offsets: IntArray
    unit: int


class Surroundings(NamedTuple):
    """What is around the arcs that are simplified.

    Attributes:
        obstacles: All vertices of all arcs, those to be simplified included; a bit per lattice point, x from 0.
        first_row: Lattice row of ``obstacles[0]``; the plane covers the rows of all arcs.
        clearance2: Square of the distance that new edges keep from vertices, lattice units, below 1.
        ground: The ground that new edges stay on, or None where they may run anywhere.
    """

    obstacles: ByteArray
    first_row: int
    clearance2: float
    ground: Ground | None


def remaining_vertices(
    points: PointArray,
    offsets: IntArray,
    *,
    closed: BoolArray,
    least: ByteArray,
    around: Surroundings,
    tolerance: float,
    method: Method,
    keep: BoolArray,
    arcs: IntArray,
) -> None:
    """Mark the vertices of some arcs that simplification leaves.

    Args:
        points: Vertices x, y of all arcs in units of the lattice, (n, 2) int32; a closed arc repeats its first one.
        offsets: Where each arc begins in ``points``, (a + 1,).
        closed: The arc is a loop without a node, (a,): all its vertices are alike, none is pinned.
        least: Interior points that have to stay, (a,).
        around: What the arcs keep clear of.
        tolerance: Side of the square (``vw``) or the distance (``dp``) up to which a vertex goes, units; 0 takes those
            on straight lines.
        method: ``vw`` or ``dp``.
        keep: The result, (n,); the last vertex of a closed arc is left unset.
        arcs: Numbers of the arcs to work on; others are left alone, so that threads can share the work.
    """
    # Areas that are equal to the tolerance in real numbers shall go, and all that are on a line.
    limit = max(tolerance**2 * (1 + 1e-12), _ON_A_LINE)
    keys = None
    if method == "vw":
        limit = math.floor(2 * limit) + 1.0
    else:
        keys = np.empty(len(points))
        distance_keys(points, offsets, closed, arcs, keys)
    _simplify_arcs(
        points,
        offsets,
        closed,
        least,
        around.obstacles,
        around.first_row,
        around.clearance2,
        around.ground,
        limit,
        keys,
        keep,
        arcs,
    )


@njit
def _simplify_arcs(
    points: PointArray,
    offsets: IntArray,
    closed: BoolArray,
    least: ByteArray,
    obstacles: ByteArray,
    first_row: int,
    clearance2: float,
    ground: Ground | None,
    limit: float,
    keys: FloatArray | None,
    keep: BoolArray,
    arcs: IntArray,
) -> None:
    """`remaining_vertices`, one arc after the other with the same scratch arrays.

    What ``ground`` and ``keys`` ask for is compiled only where they are given: numba takes None for a type.
    """
    longest, farthest = 0, 0
    for arc in arcs:
        longest = max(longest, offsets[arc + 1] - offsets[arc])
        if ground is not None:
            length = path_length(ground.corners, ground.offsets[arc], ground.offsets[arc + 1])
            farthest = max(farthest, length)
    x, y = np.empty(longest, np.int64), np.empty(longest, np.int64)
    previous, following = np.empty(longest, np.int64), np.empty(longest, np.int64)
    heap, place = np.empty(longest, np.int64), np.empty(longest, np.int64)
    key, scattered = np.empty(longest, np.float64), np.empty(longest, np.int64)
    table_size = 4
    while table_size < 2 * longest:
        table_size *= 2
    table = np.empty(table_size, np.int64)
    if ground is not None:
        path = np.empty(path_table_size(farthest), np.int64)
    for arc in arcs:
        start = offsets[arc]
        size = offsets[arc + 1] - start
        if closed[arc]:
            size -= 1
        for i in range(size):
            x[i], y[i] = points[start + i, 0], points[start + i, 1]
            scattered[i] = scatter(x[i], y[i])
            previous[i], following[i], place[i] = i - 1, i + 1, -1
        used = 0  # size of the hash table; 0: too short an arc for one
        if size > LINEAR_SEARCH:
            used = 64
            while used < 2 * size:
                used *= 2
            fill_table(scattered, size, table, used)
        if ground is not None:
            corners = ground.corners[ground.offsets[arc] : ground.offsets[arc + 1]]
            passed = fill_path(corners, closed[arc], path)
        first, end, left, fewest = 1, size - 1, size - 2, int64(least[arc])  # open arcs keep their ends
        if closed[arc]:
            previous[0], following[size - 1] = size - 1, 0
            first, end, left, fewest = 0, size, size, max(fewest, 3)
        waiting = 0
        for i in range(first, end):
            key[i] = _area_key(x, y, scattered, previous[i], i, following[i]) if keys is None else keys[start + i]
            if key[i] < limit:
                waiting = put(i, key, scattered, heap, place, waiting)
        while waiting > 0 and left > fewest:
            v = heap[0]
            waiting = take(v, key, scattered, heap, place, waiting)
            a, b = previous[v], following[v]
            if is_blocked(a, v, b, x, y, size, following, table, used, obstacles, first_row, clearance2):
                continue  # until one of its neighbours goes
            if ground is not None and _strays(
                a, b, x, y, size, closed[arc], ground.unit, ground.cracks, corners, path, passed
            ):
                continue
            following[a], previous[b], following[v] = b, a, GONE
            left -= 1
            for side in range(2):
                i = b if side else a
                if i < first or i >= end:
                    continue
                if keys is None:
                    key[i] = _area_key(x, y, scattered, previous[i], i, following[i])
                if key[i] >= limit:
                    waiting = take(i, key, scattered, heap, place, waiting)
                elif keys is None or place[i] < 0:
                    waiting = put(i, key, scattered, heap, place, waiting)
        for i in range(size):
            keep[start + i] = following[i] != GONE


@helper
def _strays(
    a: int,
    b: int,
    x: IntArray,
    y: IntArray,
    size: int,
    closed: bool,
    unit: int,
    cracks: Cracks,
    corners: PointArray,
    path: IntArray,
    passed: int,
) -> bool:
    """Whether the edge a–b would leave the ground of its arc near regularized classes."""
    first_x, first_y, last_x, last_y = 0, 0, 0, 0
    if not closed and a == 0:
        first_x, first_y = corners[1, 0] - corners[0, 0], corners[1, 1] - corners[0, 1]
    if not closed and b == size - 1:
        last_x, last_y = corners[-2, 0] - corners[-1, 0], corners[-2, 1] - corners[-1, 1]
    return strays(
        unit * x[a],
        unit * y[a],
        unit * x[b],
        unit * y[b],
        int(np.sign(first_x)),
        int(np.sign(first_y)),
        int(np.sign(last_x)),
        int(np.sign(last_y)),
        False,
        cracks,
        path,
        passed,
    )


@helper
def _area_key(x: IntArray, y: IntArray, scattered: IntArray, a: int, v: int, b: int) -> float:
    """Twice the area of the triangle a, v, b, an integer, plus a fraction that decides between equal areas.

    The fraction is scattered, because an order along the arc would grow a single edge step by step, and each step would
    look at all that is beside it.
    """
    double_area = abs((x[v] - x[a]) * (y[b] - y[a]) - (y[v] - y[a]) * (x[b] - x[a]))
    return float(double_area + ((scattered[v] >> 32) & 0xFFFFFFFF) / 4294967296.0)
