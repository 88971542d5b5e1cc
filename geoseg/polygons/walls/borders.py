"""Straight borders between houses that touch, within the walls that were fitted around all of them.

A border becomes a line along or across the walls: that of walls or borders that it continues, else the mean of its
cracks. It ends on the nearest line across it, so that walls and borders divide the ground between the houses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import shapely

from geoseg.arrays import FloatArray, Int32Array, IntArray
from geoseg.polygons.trace.cracks import SUBPIXEL
from geoseg.polygons.walls.fit import are_near, turned

_SHORTEST = 2.0  # px; where four houses meet, two of them may share less


class _Line(NamedTuple):
    """A wall or border in the coordinates u, v of the walls."""

    label: int  # 0 along u, 1 along v
    across: float  # the other coordinate, which is constant
    begin: float
    end: float


def divide(members: Int32Array, walls: FloatArray, tolerance: float) -> list[IntArray]:
    """Walls around houses that touch, then around each of them, 1/256 px; none if borders are not straight.

    Args:
        members: House of each pixel of a window, from 1; 0 outside, (h, w).
        walls: Around all of them, as `geoseg.polygons.walls.fit.fit_walls` gives them.
        tolerance: Of the cracks of a border from its line, as there.
    """
    angle = math.atan2(*(walls[1] - walls[0])[::-1])
    which = np.arange(len(walls))
    across = turned(walls.T, angle)[1 - which % 2, which]  # the first wall is along u, the second along v
    cracks = [turned(middles, angle) for middles in _borders(members)]
    cracks = [uv for uv in cracks if np.ptp(uv, axis=1).max() >= _SHORTEST]
    lines = _walls(across) + [_mean(uv) for uv in cracks]
    at, row, count = np.array([line.across for line in lines]), np.arange(len(lines)), len(walls)
    for i, uv in enumerate(cracks, count):
        near = [k for k, line in enumerate(lines) if _continues(lines[i], line, tolerance)]
        near = [k for k in near if _fits(uv, lines[i], at[k], tolerance)]
        if not near:
            return []
        nearest = at[min(near, key=lambda k: (k == i, abs(at[k] - at[i])))]
        # What is that near to the nearest line becomes one line with it; walls say where.
        same = np.isin(row, row[[i, *(k for k in near if abs(at[k] - nearest) < _SHORTEST)]])
        row[same], at[same] = i, at[:count][same[:count]].mean() if same[:count].any() else at[same].mean()
    borders = [line._replace(across=place) for line, place in zip(lines[count:], at[count:], strict=True)]
    if not all(_fits(uv, border, border.across, tolerance) for uv, border in zip(cracks, borders, strict=True)):
        return []
    across, lines = at[:count], _walls(at[:count])
    lines += [_ended(border, lines, borders, 2 * tolerance) for border in borders]
    pieces = np.array([piece for line in lines for piece in _pieces(line, lines)])
    edges = _points(pieces.reshape(-1, 2), angle).reshape(-1, 2, 2)
    faces = shapely.get_parts(shapely.polygonize(np.asarray(shapely.linestrings(edges))))
    rings = shapely.get_exterior_ring(faces)
    rings = np.where(shapely.is_ccw(rings), shapely.reverse(rings), rings)
    before = np.roll(across, 1)
    outer = _points(np.where(which % 2, [across, before], [before, across]).T, angle)
    return [outer, *(shapely.get_coordinates(ring)[1:].astype(np.int64) for ring in rings)]


def _walls(across: FloatArray) -> list[_Line]:
    """The walls around all houses, in order, given where they are."""
    ends = zip(np.roll(across, 1), np.roll(across, -1), strict=True)
    return [_Line(i % 2, across[i], min(pair), max(pair)) for i, pair in enumerate(ends)]


def _points(uv: FloatArray, angle: float) -> IntArray:
    """Points u, v on the map, 1/256 px, (n, 2)."""
    return np.rint(SUBPIXEL * turned(uv.T, -angle)).T.astype(np.int64, order="C")


def _borders(members: Int32Array) -> Iterator[FloatArray]:
    """Middles of the cracks between two houses, (2, n), for each two that touch; longer borders first."""
    pairs, middles = [], []
    for axis in (0, 1):
        here, there = (np.moveaxis(members, axis, 0)[s] for s in (np.s_[:-1], np.s_[1:]))
        at = np.nonzero((here != there) & (here > 0) & (there > 0))
        pairs.append(np.sort([here[at], there[at]], axis=0))
        middles.append(np.array([at[1] + 0.5, at[0] + 1.0])[:: 1 - 2 * axis])
    _, which, sizes = np.unique(np.hstack(pairs), axis=1, return_inverse=True, return_counts=True)
    for i in np.argsort(-sizes, kind="stable"):
        yield np.hstack(middles)[:, which == i]


def _mean(uv: FloatArray) -> _Line:
    """The line through the middle of a border's cracks."""
    label = int(np.ptp(uv[0]) < np.ptp(uv[1]))
    return _Line(label, uv[1 - label].mean(), uv[label].min(), uv[label].max())


def _continues(border: _Line, line: _Line, tolerance: float) -> bool:
    """Whether a border goes on where a line ends, or runs along it."""
    gap = max(line.begin, border.begin) - min(line.end, border.end)
    return line.label == border.label and abs(line.across - border.across) <= tolerance and gap <= 2 * tolerance


def _fits(uv: FloatArray, border: _Line, across: float, tolerance: float) -> bool:
    """Whether a border's cracks are near enough to a place across it."""
    return are_near(abs(uv[1 - border.label] - across), tolerance)


def _ended(border: _Line, walls: list[_Line], borders: list[_Line], most: float) -> _Line:
    """A border from line to line; as it is where there is none near, so that it divides nothing."""
    crossing = [
        line.across
        for lines, slack in ((walls, 0.0), (borders, most))
        for line in lines
        if line.label != border.label and line.begin - slack <= border.across <= line.end + slack
    ]
    begin, end = (min(crossing, key=lambda at: abs(at - end), default=math.inf) for end in border[2:])
    near = max(abs(begin - border.begin), abs(end - border.end)) <= most
    return border._replace(begin=begin, end=end) if near else border


def _pieces(line: _Line, lines: list[_Line]) -> Iterator[tuple[tuple[float, float], ...]]:
    """A line from place to place where others begin or end."""
    places = {
        other.across
        for other in lines
        if other.label != line.label and line.across in other[2:] and line.begin <= other.across <= line.end
    }
    for ends in pairwise(sorted(places | {line.begin, line.end})):
        yield tuple((at, line.across) if line.label == 0 else (line.across, at) for at in ends)
