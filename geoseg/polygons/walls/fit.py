"""Straight lines at right angles through the cracks of a ring: segmented least squares.

A building's outline is a ring of cracks, and the walls it stands for pass near their middles. One direction modulo 90°
is taken from the chords of the ring; then the ring is cut into runs that lie along it and across it by turns, such that
the squared distances of the middles from the lines through their runs, plus a price for each line, are the least
possible. Corners are where consecutive lines meet. Coordinates u, v are px along and across the direction; a line with
label 0 lies along u, where v is constant, one with label 1 along v.

References:
    R. Bellman, "On the approximation of curves by line segments using dynamic programming", 1961;
    R. Killick, P. Fearnhead, I. A. Eckley, "Optimal detection of changepoints with a linear computational cost", 2012,
    for why it is enough to look at few beginnings.
"""

from __future__ import annotations

import math

import numpy as np

from geoseg.arrays import FloatArray, IntArray
from geoseg.runtime.jit import helper

_LEAST_AGREEMENT = 0.15  # of the chords' directions modulo 90°: 1 for straight walls, 0 for a circle
_LONGEST_CHORD = 16  # cracks
_PRICES = (1.0, 2.0, 4.0, 8.0, 16.0)  # of a line, in squares of the tolerance: what it saves in squared distances
_RASTER = 1 / 12  # mean squared distance of the middles from a straight wall, px²
_BEYOND = 0.1  # of the middles at most may be farther than the tolerance from their lines, up to twice as far
_VARIANCES = (0.06, 0.22)  # around their lines at most, in squares of the tolerance; the first that can be met


@helper
def fit_walls(ring: IntArray, tolerance: float) -> FloatArray:
    """Corners of walls that explain a ring within a tolerance, (k, 2) px; none where two directions do not.

    Args:
        ring: Lattice corners in the order of a walk from crack to crack, (n, 2).
        tolerance: Distance of the middles of cracks from their walls, px; a tenth of them, and corners, may be up to
            twice as far.
    """
    middles, centre = np.empty(ring.shape), np.zeros(2)
    for axis in range(2):
        centre[axis] = ring[:, axis].mean()
        for i in range(len(ring)):
            middles[i, axis] = (ring[i, axis] + ring[(i + 1) % len(ring), axis]) / 2 - centre[axis]
    reach = min(max(2, len(ring) // 10), _LONGEST_CHORD)
    angle, agreement = _main_direction(middles, reach)
    found, least = np.empty((0, 2)), np.inf
    if agreement < _LEAST_AGREEMENT:
        return found
    for price in _PRICES:
        price = max(price * tolerance * tolerance, 2.5)
        corners, variance = _walls(middles, angle, reach, price, tolerance)
        if variance > _VARIANCES[1] or (variance > _VARIANCES[0] and least <= _VARIANCES[0]):
            break  # fewer lines fit worse still
        if len(corners) > 0:
            found, least = corners, variance
    for axis in range(2):
        found[:, axis] += centre[axis]
    return found


@helper
def _walls(middles: FloatArray, angle: float, reach: int, price: float, tolerance: float) -> tuple[FloatArray, float]:
    """Corners for one price, none where they are stairs, and the variance of the middles around their walls."""
    begin = _straightest(middles, angle, reach)
    uv, bounds, label = middles, np.empty(0, np.int64), 0
    for _ in range(3):
        uv = _turned(middles, angle, begin)
        bounds, label = _runs(uv, reach, price)
        if len(bounds) < 6:  # four lines, the last run goes on with the first
            return np.empty((0, 2)), np.inf
        angle = _level(angle + _turn(uv, bounds, label), middles)
    uv = _turned(middles, angle, begin)
    lines = _lines(uv, bounds, label)
    variance = _variance(uv, bounds, label, lines, tolerance)
    if variance > _VARIANCES[1] or _is_a_stair(uv, bounds, label, tolerance * tolerance):
        return np.empty((0, 2)), variance
    corners = np.empty((len(lines), 2))
    for k in range(len(lines)):
        across = (label + k) % 2
        corners[k, 1 - across], corners[k, across] = lines[k], lines[(k + 1) % len(lines)]
    return _turned(corners, -angle, 0), variance


@helper
def _turned(points: FloatArray, angle: float, begin: int) -> FloatArray:
    """Coordinates u, v of the points of a ring, from one on, in a frame that is turned by an angle, radians."""
    cosine, sine = math.cos(angle), math.sin(angle)
    turned = np.empty(points.shape)
    for i in range(len(points)):
        x, y = points[(begin + i) % len(points)]
        turned[i, 0], turned[i, 1] = x * cosine + y * sine, y * cosine - x * sine
    return turned


@helper
def _main_direction(middles: FloatArray, reach: int) -> tuple[float, float]:
    """The angle at which the chords are shortest in |u| + |v|, radians, and how well they agree about it, 0 … 1."""
    n = len(middles)
    length, shortest, best = 0.0, np.inf, 0.0
    for degrees in range(90):
        cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        total = 0.0
        for i in range(n):
            j = (i + reach) % n
            dx, dy = middles[j, 0] - middles[i, 0], middles[j, 1] - middles[i, 1]
            total += abs(dx * cosine + dy * sine) + abs(dy * cosine - dx * sine)
            if degrees == 0:
                length += math.hypot(dx, dy)
        if total < shortest - 1e-9:
            shortest, best = total, math.radians(degrees)
    return best, (4 / math.pi - shortest / length) / (4 / math.pi - 1)


@helper
def _straightest(middles: FloatArray, angle: float, reach: int) -> int:
    """The crack around which the ring runs straightest in one of the two directions."""
    n = len(middles)
    uv = _turned(middles, angle, 0)
    best, most = 0, -np.inf
    for i in range(n):
        a, b = (i - reach) % n, (i + reach) % n
        du, dv = abs(uv[b, 0] - uv[a, 0]), abs(uv[b, 1] - uv[a, 1])
        straightness = max(du, dv) - 3 * min(du, dv)
        if straightness > most + 1e-9:
            best, most = i, straightness
    return best


@helper
def _level(angle: float, middles: FloatArray) -> float:
    """The angle, or that of rows and columns if the raster cannot tell them apart over the ring's extent."""
    extent = max(middles[:, 0].max() - middles[:, 0].min(), middles[:, 1].max() - middles[:, 1].min())
    level = math.pi / 2 * round(2 * angle / math.pi)
    return level if abs(math.sin(angle - level)) * extent < 0.5 else angle


@helper
def _runs(uv: FloatArray, reach: int, price: float) -> tuple[IntArray, int]:
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
    first = 0 if abs(uv[reach, 0] - uv[n - reach, 0]) > abs(uv[reach, 1] - uv[n - reach, 1]) else 1
    best[0, 1 - first] = 0.0  # what comes before a run has the other label
    # Where a run of a label may still begin: a beginning that costs more than the end of a run there never pays again,
    # except for a run that would then be a single crack, which is no wall.
    begins, spent = np.empty((2, n + 1), np.int64), np.empty((2, n + 1))
    pointless, count = np.zeros((2, n + 1), np.bool_), np.zeros(2, np.int64)
    for j in range(n + 1):
        for label in range(2):
            for k in range(count[label]):
                i = begins[label, k]
                total = sums[j, 2 * label] - sums[i, 2 * label]
                squares = sums[j, 2 * label + 1] - sums[i, 2 * label + 1] - total * total / (j - i)
                spent[label, k] = best[i, 1 - label] + squares
                if j - i > 1 and spent[label, k] + price <= best[j, label]:
                    best[j, label], before[j, label] = spent[label, k] + price, i
        for label in range(2):
            left = 0
            for k in range(count[label]):
                if not pointless[label, k]:
                    begins[label, left], pointless[label, left] = (
                        begins[label, k],
                        spent[label, k] >= best[j, 1 - label],
                    )
                    left += 1
            if best[j, 1 - label] < np.inf:
                begins[label, left], pointless[label, left] = j, False
                left += 1
            count[label] = left
    reverse = [n]
    at, label = n, first
    while at > 0 and best[n, first] < np.inf:
        at, label = before[at, label], 1 - label
        reverse.append(at)
    return np.array(reverse[::-1]), 1 - label


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
def _lines(uv: FloatArray, bounds: IntArray, label: int) -> FloatArray:
    """The constant coordinate of each line; the last run belongs to the first one."""
    count = len(bounds) - 2
    lines, weights = np.zeros(count), np.zeros(count)
    for k in range(len(bounds) - 1):
        for i in range(bounds[k], bounds[k + 1]):
            lines[k % count] += uv[i, 1 - (label + k) % 2]
            weights[k % count] += 1
    return lines / weights


@helper
def _variance(uv: FloatArray, bounds: IntArray, label: int, lines: FloatArray, tolerance: float) -> float:
    """Variance of the middles around their lines, beyond the raster's, in squares of the tolerance.

    Infinite if too many of them, or corners between the lines, are too far.
    """
    squares, beyond = 0.0, 0
    for k in range(len(bounds) - 1):
        line, along = lines[k % len(lines)], (label + k) % 2
        for i in range(bounds[k], bounds[k + 1]):
            distance = abs(uv[i, 1 - along] - line)
            if distance > 2 * tolerance:
                return np.inf
            beyond += distance > tolerance
            squares += distance * distance
        if k > 0:
            distance2, i = 0.0, bounds[k]
            for axis in range(2):
                at = line if axis == 1 - along else lines[k - 1]
                low, high = min(uv[i - 1, axis], uv[i, axis]), max(uv[i - 1, axis], uv[i, axis])
                distance2 += max(low - at, at - high, 0.0) ** 2
            if distance2 > 4 * tolerance * tolerance:
                return np.inf
    if beyond > _BEYOND * len(uv):
        return np.inf
    return (squares / len(uv) - 2 * _RASTER) / (tolerance * tolerance)


@helper
def _is_a_stair(uv: FloatArray, bounds: IntArray, label: int, price: float) -> bool:
    """Whether one slanting line explains four runs in a row better than their own lines, which are three more."""
    for k in range(len(bounds) - 4):
        own = 0.0
        for run in range(k, k + 4):
            along_u, along_v, _ = _scatter(uv, bounds[run], bounds[run + 1])
            own += along_u if (label + run) % 2 else along_v
        along_u, along_v, both = _scatter(uv, bounds[k], bounds[k + 4])
        across = (along_u + along_v - math.hypot(along_u - along_v, 2 * both)) / 2  # the smaller eigenvalue
        if across < own + 3 * price:
            return True
    return False


@helper
def _scatter(uv: FloatArray, begin: int, end: int) -> tuple[float, float, float]:
    """Sums of squares of u and of v around their means, and of their products."""
    mean_u, mean_v = uv[begin:end, 0].mean(), uv[begin:end, 1].mean()
    along_u, along_v, both = 0.0, 0.0, 0.0
    for i in range(begin, end):
        u, v = uv[i, 0] - mean_u, uv[i, 1] - mean_v
        along_u, along_v, both = along_u + u * u, along_v + v * v, both + u * v
    return along_u, along_v, both
