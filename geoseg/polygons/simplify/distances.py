"""How far the vertices of arcs lie from the lines that would replace them, after Douglas and Peucker."""

from __future__ import annotations

import numpy as np

from geoseg.arrays import FloatArray, IntArray
from geoseg.polygons.simplify.guard import scatter
from geoseg.polygons.trace.cracks import ArcBatch
from geoseg.runtime.jit import helper, njit


@njit
def distance_keys(lines: ArcBatch, arcs: IntArray, keys: FloatArray) -> None:
    """Write for each vertex of some arcs the squared tolerance from which on it goes.

    A vertex never counts for more than the one whose choice made it an end of its range. The ends of an arc are
    infinitely important, and so are two vertices of a loop: the one farthest from its centre, and the one farthest from
    that.

    For each point of the arcs with these numbers; not set for the last one of a closed arc.
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
