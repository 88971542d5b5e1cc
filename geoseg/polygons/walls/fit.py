"""Straight lines at right angles through the cracks of a ring: segmented least squares.

A building's outline is a ring of cracks, and its walls pass near their middles. The chords of the ring give one
direction, modulo 90°. Then the ring is cut into runs that lie along and across this direction by turns, so that the
squared distances of the middles from the lines of their runs, plus a price for each line, have the least sum. Corners
are where consecutive lines meet. Coordinates u, v are px along and across the direction; v is constant on a line with
label 0, u on one with label 1.

References:
    R. Bellman, "On the approximation of curves by line segments using dynamic programming", 1961;
    R. Killick, P. Fearnhead, I. A. Eckley, "Optimal detection of changepoints with a linear computational cost", 2012,
    which gives the rule by which beginnings are dropped.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from geoseg.arrays import FloatArray, IntArray
from geoseg.runtime.jit import njit

_LEAST_AGREEMENT = 0.15  # of the chords' directions modulo 90°: 1 for straight walls, 0 for a circle
_LONGEST_CHORD = 16  # cracks
_PRICES = (1.0, 2.0, 4.0, 8.0, 16.0)  # of a line, in squares of the tolerance: what it saves in squared distances
_LEAST_PRICE = 2.5  # px²
_RASTER = 1 / 12  # mean squared distance of the middles from a straight wall, px²
_BEYOND = 0.1  # of the middles at most may be farther than the tolerance from their lines, up to twice as far
_VARIANCES = (0.06, 0.22)  # around their lines at most, in squares of the tolerance; the first that can be met
_SMALL_TURN = 1e-3  # radians
_SAME = 1e-9  # sums this close are equal, so that rounding decides nothing

_NO_CORNERS: FloatArray = np.empty((2, 0))


class _Runs(NamedTuple):
    """The runs of a ring in order; the last one goes on with the first."""

    uv: FloatArray  # middles from the first run on, (2, n)
    bounds: IntArray  # where each run begins, the end last, (r + 1,)
    labels: IntArray  # (r,)
    sums: FloatArray  # of u, v, u², v², uv and 1 over each run, (6, r)


def fit_walls(ring: IntArray, tolerance: float) -> FloatArray:
    """Corners of walls that explain a ring within a tolerance, (k, 2) px; none where two directions do not.

    Args:
        ring: Lattice corners in the order of a walk from crack to crack, (n, 2).
        tolerance: Distance of the middles of cracks from their walls, px; a tenth of them, and corners, may be up to
            twice as far.
    """
    middles = (ring + np.roll(ring, -1, axis=0)).T / 2
    centre = middles.mean(axis=1, keepdims=True)
    middles -= centre
    reach = min(max(2, len(ring) // 10), _LONGEST_CHORD)
    angle, agreement = _main_direction(np.roll(middles, -reach, axis=1) - middles)
    found, least = _NO_CORNERS, math.inf
    if agreement < _LEAST_AGREEMENT:
        return found.T
    middles = np.roll(middles, -_straightest(turned(middles, angle), reach), axis=1)
    for price in _PRICES:
        corners, variance = _walls(middles, angle, reach, max(price * tolerance**2, _LEAST_PRICE), tolerance)
        if variance > _VARIANCES[1] or (variance > _VARIANCES[0] and least <= _VARIANCES[0]):
            break  # fewer lines fit worse still
        if corners.size:
            found, least = corners + centre, variance
        if corners.shape[1] == 4:
            break  # there are no fewer lines
    return found.T


def _walls(middles: FloatArray, angle: float, reach: int, price: float, tolerance: float) -> tuple[FloatArray, float]:
    """Corners for one price, none where they are stairs, and the variance of the middles around their walls."""
    for _ in range(3):
        runs = _runs(turned(middles, angle), reach, price)
        if len(runs.labels) < 5:  # four lines
            return _NO_CORNERS, math.inf
        turn = _turn(runs)
        angle = _level(angle + turn, middles)
        if abs(turn) < _SMALL_TURN:
            break
    runs = _summed(turned(middles, angle), runs.bounds, runs.labels)
    corners, variance = _corners(runs, tolerance)
    if variance > _VARIANCES[1] or _has_a_stair(runs, tolerance**2):
        return _NO_CORNERS, variance
    return turned(corners, -angle), variance


def turned(points: FloatArray, angle: float) -> FloatArray:
    """Coordinates u, v in a frame that is turned by an angle, radians."""
    (x, y), cosine, sine = points, math.cos(angle), math.sin(angle)
    return np.array([x * cosine + y * sine, y * cosine - x * sine])


def _main_direction(chords: FloatArray) -> tuple[float, float]:
    """The angle at which chords are shortest in |u| + |v|, radians, and how well they agree about it, 0 … 1."""
    angles = np.radians(np.arange(90))[:, None]
    cosine, sine, (x, y) = np.cos(angles), np.sin(angles), chords
    totals = (abs(x * cosine + y * sine) + abs(y * cosine - x * sine)).sum(axis=1)
    best = int(np.argmax(totals < totals.min() + _SAME))
    return math.radians(best), float((4 / math.pi - totals[best] / np.hypot(x, y).sum()) / (4 / math.pi - 1))


def _straightest(uv: FloatArray, reach: int) -> int:
    """The crack around which the ring runs straightest in one of the two directions."""
    chords = abs(np.roll(uv, -reach, axis=1) - np.roll(uv, reach, axis=1))
    straightness = chords.max(axis=0) - 3 * chords.min(axis=0)
    return int(np.argmax(straightness > straightness.max() - _SAME))


def _level(angle: float, middles: FloatArray) -> float:
    """The angle, or that of rows and columns if the raster cannot tell them apart over the ring's extent."""
    level = math.pi / 2 * round(2 * angle / math.pi)
    return level if abs(math.sin(angle - level)) * np.ptp(middles, axis=1).max() < 0.5 else angle


def _runs(uv: FloatArray, reach: int, price: float) -> _Runs:
    """The runs whose squared distances and prices have the least sum; a single one if there is no solution."""
    along_u, along_v = abs(uv[:, reach] - uv[:, -reach])
    at, label = uv.shape[1], int(along_u <= along_v)
    before = _cheapest(uv, label, price)
    bounds, labels = [at], list[int]()
    while at > 0:
        labels.append(label)
        at, label = int(before[at, label]), 1 - label
        bounds.append(at)
    return _summed(uv, np.array(bounds[::-1]), np.array(labels[::-1]))


@njit
def _cheapest(uv: FloatArray, first: int, price: float) -> IntArray:
    """For runs that end before each middle, by label: where the last one begins if all have the least sum, (n + 1, 2).

    The runs begin with the first middle and with label ``first``, and none is a single crack.
    """
    n = uv.shape[1]
    sums = np.zeros((n + 1, 4))  # of the coordinate across the line and of its square, for both labels
    best = np.empty((n + 1, 2))
    before = np.zeros((n + 1, 2), dtype=np.int64)
    # Where a run of a label may still begin, and what all would cost if it ended at the last middle. Beginning at that
    # middle instead is never dearer later on if it is not now; but a run of one crack would be none.
    begins, spent = np.zeros((n + 1, 2), dtype=np.int64), np.empty((n + 1, 2))
    count = np.zeros(2, dtype=np.int64)
    for j in range(n + 1):
        for label in range(2):
            best[j, label] = 0.0 if j == 0 and label != first else np.inf  # what comes before a run has the other label
            if j > 0:
                across = uv[1 - label, j - 1]
                sums[j, 2 * label] = sums[j - 1, 2 * label] + across
                sums[j, 2 * label + 1] = sums[j - 1, 2 * label + 1] + across * across
            left = 0
            for k in range(count[label]):
                i = begins[k, label]
                stays = spent[k, label] < best[j - 1, 1 - label]
                total = sums[j, 2 * label] - sums[i, 2 * label]
                squares = sums[j, 2 * label + 1] - sums[i, 2 * label + 1] - total * total / (j - i)
                cost = best[i, 1 - label] + squares
                if j - i > 1 and cost + price <= best[j, label]:
                    best[j, label], before[j, label] = cost + price, i
                if stays:
                    begins[left, label], spent[left, label] = i, cost
                    left += 1
            count[label] = left
        for label in range(2):
            if best[j, 1 - label] < np.inf:
                begins[count[label], label], spent[count[label], label] = j, -np.inf
                count[label] += 1
    return before


def _summed(uv: FloatArray, bounds: IntArray, labels: IntArray) -> _Runs:
    """Runs with their sums."""
    u, v = uv
    terms = np.array([u, v, u * u, v * v, u * v, np.ones(len(u))])
    return _Runs(uv, bounds, labels, np.add.reduceat(terms, bounds[:-1], axis=1))


def _scatter(sums: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Sums of squares of u and of v around their means, and of their products."""
    u, v, uu, vv, uv, count = sums
    return uu - u * u / count, vv - v * v / count, uv - u * v / count


def _turn(runs: _Runs) -> float:
    """Small angle by which the two directions fit the runs better, radians."""
    along_u, along_v, both = _scatter(runs.sums)
    products, squares = np.where(runs.labels, -both, both), np.where(runs.labels, along_v, along_u)
    return math.atan2(products.sum(), squares.sum())


def _corners(runs: _Runs, tolerance: float) -> tuple[FloatArray, float]:
    """Corners u, v and the variance of the middles around their lines beyond the raster's, in squares of the tolerance.

    The variance is infinite if too many of the middles, or corners between the lines, are too far.
    """
    (u, v), labels, sizes = runs.uv, runs.labels, runs.sums[5].copy()
    across = np.where(labels, runs.sums[0], runs.sums[1])
    across[0], sizes[0] = across[0] + across[-1], sizes[0] + sizes[-1]
    lines = across / sizes
    lines[-1] = lines[0]
    which = np.repeat(np.arange(len(lines)), np.diff(runs.bounds))
    distance = abs(np.where(labels[which], u, v) - lines[which])
    before, after = lines[:-1], lines[1:]
    corners = np.where(labels[1:], [after, before], [before, after])
    here, there = runs.uv[:, runs.bounds[1:-1] - 1], runs.uv[:, runs.bounds[1:-1]]
    off = np.maximum(np.minimum(here, there) - corners, corners - np.maximum(here, there)).clip(0)
    if not are_near(distance, tolerance) or np.hypot(*off).max() > 2 * tolerance:
        return corners, math.inf
    return corners, (float((distance * distance).mean()) - 2 * _RASTER) / tolerance**2


def are_near(distance: FloatArray, tolerance: float) -> bool:
    """Whether middles of cracks are near enough to their lines."""
    return bool(distance.max() <= 2 * tolerance and np.count_nonzero(distance > tolerance) <= _BEYOND * len(distance))


def _has_a_stair(runs: _Runs, price: float) -> bool:
    """Whether one slanting line explains four runs in a row better than their own lines, which are three more."""
    along_u, along_v, _ = _scatter(runs.sums)
    own = _fours(np.where(runs.labels, along_u, along_v))
    along_u, along_v, both = _scatter(_fours(runs.sums))
    across = (along_u + along_v - np.hypot(along_u - along_v, 2 * both)) / 2  # the smaller eigenvalue
    return bool((across < own + 3 * price).any())


def _fours(values: FloatArray) -> FloatArray:
    """Sums of four in a row."""
    return values[..., :-3] + values[..., 1:-2] + values[..., 2:-1] + values[..., 3:]
