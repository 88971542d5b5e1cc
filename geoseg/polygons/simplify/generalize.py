"""Arcs with fewer vertices that never cross each other: what a map's arcs become once they are complete.

Vertices of the raster are taken out one by one, the least important first: after Visvalingam and Whyatt the one whose
triangle with its two neighbours is the smallest, or after Douglas and Peucker the one nearest to the line that would
replace it. A vertex v between a and b may only go if no vertex of another arc, as it was before anything was taken out,
and no remaining one of its own arc is in the triangle a, v, b or within `CLEARANCE_PX` of the new edge a–b. So an arc
does not depend on what became of others, and vertices may be rounded by almost half of that distance.

References:
    M. Visvalingam, J. D. Whyatt, "Line generalisation by repeated elimination of points", 1993;
    D. H. Douglas, T. K. Peucker, "Algorithms for the reduction of the number of points …", 1973;
    A. Saalfeld, "Topologically consistent line simplification with the Douglas-Peucker algorithm", 1999, for why
    looking at vertices is enough.
"""

from __future__ import annotations

import math

import numpy as np

from geoseg.arrays import BoolArray, FloatArray, IntArray
from geoseg.options import Method
from geoseg.polygons.simplify.guard import GONE, Line, Surroundings, hash_vertices, is_blocked, scatter
from geoseg.polygons.trace.cracks import ArcBatch
from geoseg.runtime.heap import put, take
from geoseg.runtime.jit import helper, int64, njit

_ON_A_LINE = 1e-12  # less than any squared distance and area of lattice points that are not on one line


def remaining_vertices(
    lines: ArcBatch,
    around: Surroundings,
    *,
    tolerance: float,
    method: Method,
    keep: BoolArray,
    arcs: IntArray,
) -> None:
    """Mark the vertices of some arcs that simplification leaves.

    Args:
        lines: All arcs; points in units of the lattice. Of a closed one all vertices are alike, none is pinned.
        around: What the arcs keep clear of.
        tolerance: Side of the square (``vw``) or the distance (``dp``) up to which a vertex goes, units; 0 takes those
            on straight lines.
        method: ``vw`` or ``dp``.
        keep: The result, for each point; the last one of a closed arc is left unset.
        arcs: Numbers of the arcs to work on, so that threads can share the work.
    """
    # Areas equal to the tolerance in real numbers go too, and all vertices on a line.
    limit = max(tolerance**2 * (1 + 1e-12), _ON_A_LINE)
    keys = None
    if method == "vw":
        limit = math.floor(2 * limit) + 1.0
    else:
        keys = np.empty(len(lines.points))
        _distance_keys(lines, arcs, keys)
    _simplify_arcs(lines, around, limit, keys, keep, arcs)


@njit
def _simplify_arcs(
    lines: ArcBatch,
    around: Surroundings,
    limit: float,
    keys: FloatArray | None,
    keep: BoolArray,
    arcs: IntArray,
) -> None:
    """`remaining_vertices`, one arc after the other with the same scratch arrays."""
    points, offsets, closed = lines.points, lines.offsets, lines.closed
    longest = 0
    for arc in arcs:
        longest = max(longest, offsets[arc + 1] - offsets[arc])
    x, y = np.empty(longest, np.int64), np.empty(longest, np.int64)
    previous, following = np.empty(longest, np.int64), np.empty(longest, np.int64)
    heap, place = np.empty(longest, np.int64), np.empty(longest, np.int64)
    key, scattered = np.empty(longest, np.float64), np.empty(longest, np.int64)
    table_size = 4
    while table_size < 2 * longest:
        table_size *= 2
    table = np.empty(table_size, np.int64)
    for arc in arcs:
        start = offsets[arc]
        size = offsets[arc + 1] - start
        if closed[arc]:
            size -= 1
        for i in range(size):
            x[i], y[i] = points[start + i, 0], points[start + i, 1]
            scattered[i] = scatter(x[i], y[i])
            previous[i], following[i], place[i] = i - 1, i + 1, -1
        line = Line(x, y, following, table, hash_vertices(scattered, size, table))
        first, end, left, fewest = 1, size - 1, size - 2, int64(lines.least[arc])  # open arcs keep their ends
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
            if is_blocked(a, v, b, line, around, around.guard):
                continue  # until one of its neighbours goes
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
def _area_key(x: IntArray, y: IntArray, scattered: IntArray, a: int, v: int, b: int) -> float:
    """Twice the area of the triangle a, v, b, an integer, plus a fraction that decides between equal areas.

    The fraction is scattered, because an order along the arc would grow a single edge step by step, and each step would
    look at all that is beside it.
    """
    double_area = abs((x[v] - x[a]) * (y[b] - y[a]) - (y[v] - y[a]) * (x[b] - x[a]))
    return float(double_area + ((scattered[v] >> 32) & 0xFFFFFFFF) / 4294967296.0)


@njit
def _distance_keys(lines: ArcBatch, arcs: IntArray, keys: FloatArray) -> None:
    """Write for each vertex of some arcs the squared tolerance from which on it goes, after Douglas and Peucker.

    A vertex never counts for more than the one whose choice made it an end of its range. The ends of an arc are
    infinitely important, and so are two vertices of a loop: the one farthest from its centre, and the one farthest from
    that. Not set for the last point of a closed arc.
    """
    points, offsets, closed = lines.points, lines.offsets, lines.closed
    longest = 0
    for arc in arcs:
        longest = max(longest, offsets[arc + 1] - offsets[arc])
    x, y = np.empty(longest, np.int64), np.empty(longest, np.int64)
    key = np.empty(longest, np.float64)
    stack = np.empty((longest + 2, 2), np.int64)
    for arc in arcs:
        start, last = offsets[arc], offsets[arc + 1] - offsets[arc] - 1
        turn = 0  # the vertex that comes first in the scratch arrays
        sum_x, sum_y = 0, 0
        for i in range(last + 1):
            x[i], y[i] = points[start + i, 0], points[start + i, 1]
            sum_x, sum_y = sum_x + x[i], sum_y + y[i]
        stack[0, 0], stack[0, 1] = 0, last
        depth = 1
        if closed[arc]:
            turn = _farthest(x, y, last, last, sum_x - x[last], sum_y - y[last])
            for i in range(last + 1):
                j = start + (turn + i) % last
                x[i], y[i] = points[j, 0], points[j, 1]
            middle = _farthest(x, y, last, 1, x[0], y[0])
            key[middle] = np.inf
            stack[0, 1], stack[1, 0], stack[1, 1] = middle, middle, last
            depth = 2
        key[0], key[last] = np.inf, np.inf
        while depth > 0:
            depth -= 1
            i, j = stack[depth, 0], stack[depth, 1]
            if j - i < 2:
                continue
            farthest, most = i + 1, -1.0
            for v in range(i + 1, j):
                distance2 = _squared_distance(x, y, i, j, v)
                if distance2 > most or (distance2 == most and scatter(x[v], y[v]) < scatter(x[farthest], y[farthest])):
                    farthest, most = v, distance2
            key[farthest] = min(most, key[i], key[j])
            stack[depth, 0], stack[depth, 1] = i, farthest
            stack[depth + 1, 0], stack[depth + 1, 1] = farthest, j
            depth += 2
        for i in range(last if closed[arc] else last + 1):
            keys[start + ((turn + i) % last if closed[arc] else i)] = key[i]


@helper
def _farthest(x: IntArray, y: IntArray, size: int, scale: int, x0: int, y0: int) -> int:
    """The vertex that is farthest from the point (x0, y0) / scale."""
    best, most = 0, -1.0
    for i in range(size):
        dx, dy = float(scale * x[i] - x0), float(scale * y[i] - y0)
        distance2 = dx * dx + dy * dy
        if distance2 > most or (distance2 == most and scatter(x[i], y[i]) < scatter(x[best], y[best])):
            best, most = i, distance2
    return best


@helper
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
