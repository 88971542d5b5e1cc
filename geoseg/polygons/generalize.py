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

from geoseg._jit import njit
from geoseg.polygons.cracks import Cracks
from geoseg.polygons.ground import fill_path, path_length, path_table_size, strays
from geoseg.polygons.guard import GONE, LINEAR_SEARCH, fill_table, is_blocked, scatter

Method = Literal["vw", "dp"]

BoolArray = npt.NDArray[np.bool_]
ByteArray = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
IndexArray = npt.NDArray[np.int32]
PointArray = npt.NDArray[np.int32]

_ON_A_LINE = 1e-12  # less than any squared distance and area of lattice points that are not on one line


class Surroundings(NamedTuple):
    """What is around the arcs that are simplified.

    Attributes:
        obstacles: All vertices of all arcs, those to be simplified included; a bit per lattice point, x from 0.
        first_row: Lattice row of ``obstacles[0]``; the plane covers the rows of all arcs.
        clearance2: Square of the distance that new edges keep from vertices, lattice units, below 1.
        cracks: The raster's cracks; with a plane ``near`` new edges stay on their arc's own ground there.
        corners: The arcs as they were traced, corners of the raster x, y, (c, 2); for their ground.
        corner_offsets: Where each arc begins in ``corners``, (a + 1,).
        unit: Lattice unit of the arcs, 1/256 px.
    """

    obstacles: ByteArray
    first_row: int
    clearance2: float
    cracks: Cracks
    corners: PointArray
    corner_offsets: IntArray
    unit: int


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
    if method == "vw":
        limit = math.floor(2 * limit) + 1.0
    _simplify_arcs(points, offsets, closed, least, around, limit, method == "dp", keep, arcs)


@njit
def _simplify_arcs(
    points: PointArray,
    offsets: IntArray,
    closed: BoolArray,
    least: ByteArray,
    around: Surroundings,
    limit: float,
    by_distance: bool,
    keep: BoolArray,
    arcs: IntArray,
) -> None:
    """`remaining_vertices`, one arc after the other with the same scratch arrays."""
    confined = len(around.cracks.near) > 0
    longest, farthest = 0, 0
    for arc in arcs:
        longest = max(longest, offsets[arc + 1] - offsets[arc])
        if confined:
            length = path_length(around.corners, around.corner_offsets[arc], around.corner_offsets[arc + 1])
            farthest = max(farthest, length)
    x, y = np.empty(longest, np.int64), np.empty(longest, np.int64)
    previous, following = np.empty(longest, np.int32), np.empty(longest, np.int32)
    heap, place = np.empty(longest, np.int32), np.empty(longest, np.int32)
    key = np.empty(longest, np.float64)
    stack = np.empty((longest + 2 if by_distance else 0, 2), np.int64)
    table_size = 4
    while table_size < 2 * longest:
        table_size *= 2
    table = np.empty(table_size, np.int32)
    path = np.empty(path_table_size(farthest) if confined else 0, np.int64)
    for arc in arcs:
        start = offsets[arc]
        size = offsets[arc + 1] - start
        if closed[arc]:
            size -= 1
        turn = 0  # the vertex that comes first in the scratch arrays
        for i in range(size):
            x[i], y[i] = points[start + i, 0], points[start + i, 1]
        if by_distance:
            if closed[arc]:
                turn = _farthest_from_centre(x, y, size)
                for i in range(size):
                    j = start + (turn + i) % size
                    x[i], y[i] = points[j, 0], points[j, 1]
                x[size], y[size] = x[0], y[0]
                middle = _farthest_from(x, y, 0, size)
                key[0], key[middle], key[size] = np.inf, np.inf, np.inf
                _distance_keys(x, y, 0, middle, key, stack)
                _distance_keys(x, y, middle, size, key, stack)
            else:
                key[0], key[size - 1] = np.inf, np.inf
                _distance_keys(x, y, 0, size - 1, key, stack)
        used = 0  # size of the hash table; 0: too short an arc for one
        if size > LINEAR_SEARCH:
            used = 64
            while used < 2 * size:
                used *= 2
            fill_table(x, y, size, table, used)
        passed = 0  # size of the hash table of the corners that the arc passes
        if confined:
            corners = around.corners[around.corner_offsets[arc] : around.corner_offsets[arc + 1]]
            passed = fill_path(corners, closed[arc], path)
        left = size - 2
        fewest = int(least[arc])
        for i in range(size):
            previous[i], following[i], place[i] = i - 1, i + 1, -1
        if closed[arc]:
            previous[0], following[size - 1] = size - 1, 0
            left, fewest = size, max(fewest, 3)
        waiting = 0
        for i in range(size):
            if closed[arc] or 0 < i < size - 1:
                if not by_distance:
                    key[i] = _area_key(x, y, previous[i], i, following[i])
                if key[i] < limit:
                    waiting = _push(i, x, y, key, heap, place, waiting)
        while waiting > 0 and left > fewest:
            v = heap[0]
            waiting = _remove(v, x, y, key, heap, place, waiting)
            a, b = previous[v], following[v]
            if is_blocked(
                a, v, b, x, y, size, following, table, used, around.obstacles, around.first_row, around.clearance2
            ) or (
                confined and _strays(a, b, x, y, size, closed[arc], around.unit, around.cracks, corners, path, passed)
            ):
                continue  # until one of its neighbours goes
            following[a], previous[b], following[v] = b, a, GONE
            left -= 1
            for side in range(2):
                i = b if side else a
                if not closed[arc] and (i == 0 or i == size - 1):
                    continue
                if not by_distance:
                    key[i] = _area_key(x, y, previous[i], i, following[i])
                if key[i] >= limit:
                    waiting = _remove(i, x, y, key, heap, place, waiting)
                elif place[i] < 0:
                    waiting = _push(i, x, y, key, heap, place, waiting)
                elif not by_distance:
                    _rise(place[i], x, y, key, heap, place)
                    _sink(place[i], x, y, key, heap, place, waiting)
        for i in range(size):
            keep[start + (turn + i) % size] = following[i] != GONE


@njit
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


@njit
def _area_key(x: IntArray, y: IntArray, a: int, v: int, b: int) -> float:
    """Twice the area of the triangle a, v, b, an integer, plus a fraction that decides between equal areas.

    The fraction is scattered, because an order along the arc would grow a single edge step by step, and each step would
    look at all that is beside it.
    """
    double_area = abs((x[v] - x[a]) * (y[b] - y[a]) - (y[v] - y[a]) * (x[b] - x[a]))
    return float(double_area + ((scatter(x[v], y[v]) >> 32) & 0xFFFFFFFF) / 4294967296.0)


@njit
def _squared_distance(x: IntArray, y: IntArray, i: int, j: int, v: int) -> float:
    """Squared distance of v from the segment i–j, the same for j–i to the last bit."""
    dx, dy, px, py = x[j] - x[i], y[j] - y[i], x[v] - x[i], y[v] - y[i]
    length2 = dx * dx + dy * dy
    along = px * dx + py * dy
    if along <= 0:
        return float(px * px + py * py)
    if along >= length2:
        qx, qy = x[v] - x[j], y[v] - y[j]
        return float(qx * qx + qy * qy)
    across = float(px * dy - py * dx)
    return float(across * across / length2)


@njit
def _distance_keys(x: IntArray, y: IntArray, begin: int, end: int, key: FloatArray, stack: IntArray) -> None:
    """Importance after Douglas and Peucker of the vertices between two that stay: the squared tolerance they need.

    A vertex never counts for more than the one whose choice made it an end of its range.
    """
    stack[0, 0], stack[0, 1] = begin, end
    depth = 1
    while depth > 0:
        depth -= 1
        i, j = stack[depth, 0], stack[depth, 1]
        if j - i < 2:
            continue
        farthest, most = i + 1, -1.0
        for v in range(i + 1, j):
            distance2 = _squared_distance(x, y, i, j, v)
            if distance2 > most or (distance2 == most and _precedes(x, y, v, farthest)):
                farthest, most = v, distance2
        key[farthest] = min(most, key[i], key[j])
        stack[depth, 0], stack[depth, 1] = i, farthest
        stack[depth + 1, 0], stack[depth + 1, 1] = farthest, j
        depth += 2


@njit
def _farthest_from_centre(x: IntArray, y: IntArray, size: int) -> int:
    """The vertex farthest from the mean of all vertices of a loop."""
    sum_x, sum_y = 0, 0
    for i in range(size):
        sum_x += x[i]
        sum_y += y[i]
    best, most = 0, -1.0
    for i in range(size):
        dx, dy = float(size * x[i] - sum_x), float(size * y[i] - sum_y)
        distance2 = dx * dx + dy * dy
        if distance2 > most or (distance2 == most and _precedes(x, y, i, best)):
            best, most = i, distance2
    return best


@njit
def _farthest_from(x: IntArray, y: IntArray, origin: int, size: int) -> int:
    """The vertex of a loop that is farthest from one of them."""
    best, most = origin, -1.0
    for i in range(size):
        dx, dy = x[i] - x[origin], y[i] - y[origin]
        distance2 = float(dx * dx + dy * dy)
        if distance2 > most or (distance2 == most and _precedes(x, y, i, best)):
            best, most = i, distance2
    return best


@njit
def _precedes(x: IntArray, y: IntArray, i: int, j: int) -> bool:
    """Which of two equally important vertices comes first: a matter of their places, not of the arc's direction."""
    first, second = scatter(x[i], y[i]), scatter(x[j], y[j])
    if first != second:
        return first < second
    return bool(y[i] < y[j] or (y[i] == y[j] and x[i] < x[j]))


@njit
def _goes_before(x: IntArray, y: IntArray, key: FloatArray, i: int, j: int) -> bool:
    if key[i] != key[j]:
        return bool(key[i] < key[j])
    return _precedes(x, y, i, j)


@njit
def _push(i: int, x: IntArray, y: IntArray, key: FloatArray, heap: IndexArray, place: IndexArray, waiting: int) -> int:
    """Put vertex i into the heap; the new number of vertices in it."""
    heap[waiting] = i
    place[i] = waiting
    _rise(waiting, x, y, key, heap, place)
    return waiting + 1


@njit
def _remove(
    i: int, x: IntArray, y: IntArray, key: FloatArray, heap: IndexArray, place: IndexArray, waiting: int
) -> int:
    """Take vertex i out of the heap if it is there; the new number of vertices in it."""
    hole = place[i]
    if hole < 0:
        return waiting
    waiting -= 1
    place[i] = -1
    if hole == waiting:
        return waiting
    last = heap[waiting]
    heap[hole] = last
    place[last] = hole
    _rise(hole, x, y, key, heap, place)
    _sink(place[last], x, y, key, heap, place, waiting)
    return waiting


@njit
def _rise(at: int, x: IntArray, y: IntArray, key: FloatArray, heap: IndexArray, place: IndexArray) -> None:
    i = heap[at]
    while at > 0:
        parent = (at - 1) >> 1
        j = heap[parent]
        if not _goes_before(x, y, key, i, j):
            break
        heap[at] = j
        place[j] = at
        at = parent
    heap[at] = i
    place[i] = at


@njit
def _sink(
    at: int, x: IntArray, y: IntArray, key: FloatArray, heap: IndexArray, place: IndexArray, waiting: int
) -> None:
    i = heap[at]
    while True:
        child = 2 * at + 1
        if child >= waiting:
            break
        if child + 1 < waiting and _goes_before(x, y, key, heap[child + 1], heap[child]):
            child += 1
        j = heap[child]
        if not _goes_before(x, y, key, j, i):
            break
        heap[at] = j
        place[j] = at
        at = child
    heap[at] = i
    place[i] = at
