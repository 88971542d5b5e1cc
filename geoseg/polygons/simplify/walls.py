"""Straight lines at right angles through the cracks of an arc: segmented least squares.

An arc along a building is a sequence of cracks, and the wall it stands for passes their middles with an error of half
a pixel at most. Two directions at right angles are estimated from the chords of the arc; then the sequence is cut into
runs that lie along the one and the other by turns, such that the squared distances of the middles from the lines
through their runs, plus a price for each line, are the least possible. Coordinates u, v are px in a `Frame`; a line
with label 0 lies along u, where v is constant, one with label 1 along v.

References:
    R. Bellman, "On the approximation of curves by line segments using dynamic programming", 1961.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from geoseg.arrays import FloatArray, Int32Array, IntArray
from geoseg.polygons.simplify.ground import path_length
from geoseg.runtime.jit import helper

_MOST_VARIANCE = 0.22  # mean squared distance of the middles from their lines, px²; 1/12 is the raster's own
_LEAST_AGREEMENT = 0.35  # of the chords' directions modulo 90°: 1 for a straight wall, 0 for a circle
_CHORD = 8  # cracks


class Frame(NamedTuple):
    """Coordinates u, v: turned by an angle (radians, from x towards y) around a point of the map, px."""

    angle: float
    x: float
    y: float


@helper
def fit_walls(
    corners: Int32Array, closed: bool, price: float, max_shift: float
) -> tuple[Frame, FloatArray, IntArray, FloatArray, int]:
    """Lines in two directions that explain an arc.

    A further line has to save ``price`` in squared distances, px²; none is farther than ``max_shift`` from the middles
    of its cracks, px.

    Returns:
        The frame; the middles of the cracks in it, (m, 2), a loop's from the middle of a wall on; where each run of
        middles begins, the end last; the constant coordinate of each line; and the label of the first one. A loop has
        a run more than lines: its last run goes on with the first one. No lines where two directions do not explain
        the arc.
    """
    middles = _middles(corners)
    frame = Frame(0.0, *_mean(middles))
    uv = _in_frame(middles, frame, 0)
    no_lines, bounds = np.empty(0), np.zeros(1, np.int64)
    reach = max(2, min(_CHORD, len(uv) // 6))
    angle, agreement = _main_direction(uv, closed, reach)
    if agreement < _LEAST_AGREEMENT:
        return frame, uv, bounds, no_lines, 0
    begin = _straightest(uv, angle, reach) if closed else 0
    for _ in range(3):
        frame = Frame(angle, frame.x, frame.y)
        uv = _in_frame(middles, frame, begin)
        bounds, label = _runs(uv, closed, reach, price)
        if len(bounds) == 1:
            return frame, uv, bounds, no_lines, label
        angle = _level(angle + _turn(uv, bounds, label), middles)
    lines = _lines(uv, bounds, label, closed)
    if not _explain(uv, bounds, label, lines, max_shift) or _is_a_stair(uv, bounds, label, price):
        lines = no_lines
    return frame, uv, bounds, lines, label


@helper
def to_map(u: float, v: float, frame: Frame) -> tuple[float, float]:
    """A point of the frame as x, y of the map, px."""
    cosine, sine = math.cos(frame.angle), math.sin(frame.angle)
    return u * cosine - v * sine + frame.x, v * cosine + u * sine + frame.y


@helper
def to_frame(x: float, y: float, frame: Frame) -> tuple[float, float]:
    """A point of the map, px, as u, v of the frame."""
    cosine, sine = math.cos(frame.angle), math.sin(frame.angle)
    x, y = x - frame.x, y - frame.y
    return x * cosine + y * sine, y * cosine - x * sine


@helper
def _middles(corners: Int32Array) -> FloatArray:
    """The middles of an arc's cracks, (m, 2)."""
    middles = np.empty((path_length(corners, 0, len(corners)), 2))
    at = 0
    for i in range(len(corners) - 1):
        x, y = float(corners[i, 0]), float(corners[i, 1])
        dx, dy = corners[i + 1, 0] - corners[i, 0], corners[i + 1, 1] - corners[i, 1]
        for k in range(abs(dx + dy)):
            middles[at, 0], middles[at, 1] = x + (k + 0.5) * np.sign(dx), y + (k + 0.5) * np.sign(dy)
            at += 1
    return middles


@helper
def _mean(points: FloatArray) -> tuple[float, float]:
    x, y = 0.0, 0.0
    for i in range(len(points)):
        x += points[i, 0]
        y += points[i, 1]
    return x / len(points), y / len(points)


@helper
def _in_frame(points: FloatArray, frame: Frame, begin: int) -> FloatArray:
    """Points of the map, px, in a frame, those from ``begin`` on first."""
    turned = np.empty_like(points)
    for i in range(len(points)):
        j = (begin + i) % len(points)
        turned[i, 0], turned[i, 1] = to_frame(points[j, 0], points[j, 1], frame)
    return turned


@helper
def _main_direction(points: FloatArray, closed: bool, reach: int) -> tuple[float, float]:
    """Angle of the chords modulo 90°, radians, and how well they agree about it, 0 … 1."""
    n = len(points)
    cosine, sine, weight = 0.0, 0.0, 0.0
    for i in range(n if closed else n - reach):
        j = (i + reach) % n
        dx, dy = points[j, 0] - points[i, 0], points[j, 1] - points[i, 1]
        length2 = dx * dx + dy * dy
        if length2 > 0:
            # The fourth power of dx + i dy has four times its angle.
            real, imaginary = dx * dx - dy * dy, 2 * dx * dy
            cosine += (real * real - imaginary * imaginary) / length2
            sine += 2 * real * imaginary / length2
            weight += length2
    if weight == 0:
        return 0.0, 0.0
    return math.atan2(sine, cosine) / 4, math.hypot(cosine, sine) / weight


@helper
def _straightest(points: FloatArray, angle: float, reach: int) -> int:
    """The crack of a loop around which it runs straightest in one of the two directions."""
    n = len(points)
    cosine, sine = math.cos(angle), math.sin(angle)
    best, most = 0, -np.inf
    for i in range(n):
        a, b = (i - reach) % n, (i + reach) % n
        dx, dy = points[b, 0] - points[a, 0], points[b, 1] - points[a, 1]
        along, across = abs(dx * cosine + dy * sine), abs(dy * cosine - dx * sine)
        straightness = max(along, across) - 3 * min(along, across)
        if straightness > most + 1e-9:
            best, most = i, straightness
    return best


@helper
def _level(angle: float, points: FloatArray) -> float:
    """The angle, or 0 if the raster cannot tell: the arc's ends would be less than half a pixel off a row or column."""
    left, right, top, bottom = np.inf, -np.inf, np.inf, -np.inf
    for i in range(len(points)):
        left, right = min(left, points[i, 0]), max(right, points[i, 0])
        top, bottom = min(top, points[i, 1]), max(bottom, points[i, 1])
    return 0.0 if abs(math.sin(angle)) * max(right - left, bottom - top) < 0.5 else angle


@helper
def _runs(uv: FloatArray, closed: bool, reach: int, price: float) -> tuple[IntArray, int]:
    """Where each run begins, the end last, and the label of the first one; a single bound if there is no solution."""
    n = len(uv)
    sums = np.zeros((n + 1, 4))  # of the coordinate across the line and of its square, for both labels
    for i in range(n):
        for label in range(2):
            across = uv[i, 1 - label]
            sums[i + 1, 2 * label] = sums[i, 2 * label] + across
            sums[i + 1, 2 * label + 1] = sums[i, 2 * label + 1] + across * across
    best = np.full((n + 1, 2), np.inf)
    before = np.zeros((n + 1, 2), dtype=np.int64)
    best[0, 0] = best[0, 1] = 0.0
    first = 0
    if closed:
        du, dv = abs(uv[reach, 0] - uv[n - reach, 0]), abs(uv[reach, 1] - uv[n - reach, 1])
        first = 0 if du > dv else 1
        best[0, first] = np.inf  # what comes before a run has the other label
    for j in range(1, n + 1):
        for label in range(2):
            for i in range(j - 1, -1, -1):
                count = j - i
                total = sums[j, 2 * label] - sums[i, 2 * label]
                cost = sums[j, 2 * label + 1] - sums[i, 2 * label + 1] - total * total / count + price
                if cost >= best[j, label]:
                    break  # a longer run fits worse still
                # A single crack is no wall, except as the beginning or end of one that goes on past a node.
                if count == 1 and i > 0 and j < n:
                    continue
                if cost + best[i, 1 - label] < best[j, label]:
                    best[j, label], before[j, label] = cost + best[i, 1 - label], i
    last = first if closed else int(best[n, 1] < best[n, 0])
    count, at, label = 0, n, last
    while at > 0 and best[n, last] < np.inf:
        at, label, count = before[at, label], 1 - label, count + 1
    bounds = np.zeros(count + 1, dtype=np.int64)
    at, label = n, last
    for k in range(count, 0, -1):
        bounds[k] = at
        at, label = before[at, label], 1 - label
    return bounds, 1 - label


@helper
def _turn(uv: FloatArray, bounds: IntArray, label: int) -> float:
    """Small angle by which the two directions fit the runs better, radians."""
    products, squares = 0.0, 0.0
    for k in range(len(bounds) - 1):
        along_u, along_v, both = _scatter(uv, bounds[k], bounds[k + 1])
        lies_along_v = (label + k) % 2
        products += -both if lies_along_v else both
        squares += along_v if lies_along_v else along_u
    return math.atan2(products, squares)


@helper
def _lines(uv: FloatArray, bounds: IntArray, label: int, closed: bool) -> FloatArray:
    """The constant coordinate of each run's line; of a loop, whose last run goes on with the first, one less."""
    count = len(bounds) - 2 if closed else len(bounds) - 1
    if closed and count < 4:
        return np.empty(0)
    lines, weights = np.zeros(count), np.zeros(count)
    for k in range(len(bounds) - 1):
        for i in range(bounds[k], bounds[k + 1]):
            lines[k % count] += uv[i, 1 - (label + k) % 2]
            weights[k % count] += 1
    for k in range(count):
        lines[k] /= weights[k]
    return lines


@helper
def _explain(uv: FloatArray, bounds: IntArray, label: int, lines: FloatArray, max_shift: float) -> bool:
    """Whether lines and the corners between them are near enough to the middles of the cracks."""
    squares = 0.0
    for k in range(len(bounds) - 1 if len(lines) > 0 else 0):
        line, along = lines[k % len(lines)], (label + k) % 2
        for i in range(bounds[k], bounds[k + 1]):
            distance = abs(uv[i, 1 - along] - line)
            if distance > max_shift:
                return False
            squares += distance * distance
        if k > 0:
            distance2, i = 0.0, bounds[k]
            for axis in range(2):
                at = line if axis == 1 - along else lines[k - 1]
                low, high = min(uv[i - 1, axis], uv[i, axis]), max(uv[i - 1, axis], uv[i, axis])
                distance2 += max(low - at, at - high, 0.0) ** 2
            if distance2 > max_shift * max_shift:
                return False
    return squares <= _MOST_VARIANCE * len(uv)


@helper
def _is_a_stair(uv: FloatArray, bounds: IntArray, label: int, price: float) -> bool:
    """Whether one slanting line explains four runs in a row better than their own lines, which are three more."""
    for k in range(len(bounds) - 4):
        own = 0.0
        for run in range(k, k + 4):
            variances = _scatter(uv, bounds[run], bounds[run + 1])
            own += variances[(label + run + 1) % 2]
        along_u, along_v, both = _scatter(uv, bounds[k], bounds[k + 4])
        across = (along_u + along_v - math.hypot(along_u - along_v, 2 * both)) / 2  # the smaller eigenvalue
        if across < own + 3 * price:
            return True
    return False


@helper
def _scatter(uv: FloatArray, begin: int, end: int) -> tuple[float, float, float]:
    """Sums of squares of u and of v around their means, and of their products."""
    mean_u, mean_v = _mean(uv[begin:end])
    squares_u, squares_v, products = 0.0, 0.0, 0.0
    for i in range(begin, end):
        du, dv = uv[i, 0] - mean_u, uv[i, 1] - mean_v
        squares_u += du * du
        squares_v += dv * dv
        products += du * dv
    return squares_u, squares_v, products
