"""Polygons in WGS84; those across the antimeridian or around a pole are cut as RFC 7946 asks (section 3.1.9)."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import shapely
from shapely import affinity

from geoseg.arrays import BoolArray, Geometries, IntArray
from geoseg.errors import OutputError
from geoseg.export.lonlat import LonLat
from geoseg.polygons.batch import PolygonBatch


def to_wgs84(batch: PolygonBatch, lonlat: LonLat, path: Path) -> tuple[PolygonBatch, dict[int, Geometries]]:
    """Polygons in degrees, rounded to the decimals of ``lonlat``; each vertex alike in every polygon that has it.

    Returns the batch in degrees, and the polygons to be cut by row, each as its parts. Their rings in the batch run on
    beyond ±180°. Errors name the file of ``path``.

    Raises:
        OutputError: A vertex has no longitude and latitude.
    """
    xy, rings = lonlat.split_long_edges(np.ascontiguousarray(batch.xy, dtype=np.float64), batch.rings)
    placed = lonlat.place(xy)
    if (lost := placed.min(axis=1, initial=0) == np.iinfo(np.int64).min).any():
        x, y = xy[lost][0]
        raise OutputError(
            f"cannot write {path.name}: ({x}, {y}) of the map's CRS has no longitude and latitude",
            hint=f"write for example -o {path.with_suffix('.gpkg').name}, which keeps the map's CRS",
        )
    scale = 10.0**lonlat.decimals
    parts: dict[int, Geometries] = {}
    if lonlat.is_geographic:
        half = 180 * 10**lonlat.decimals
        for row in np.flatnonzero(shift_or_cut(placed, rings, batch.polygons, half)).tolist():
            borders = itertools.pairwise(rings[batch.polygons[row] : batch.polygons[row + 1] + 1].tolist())
            pieces = cut_polygon([placed[a:b] for a, b in borders], half)
            parts[row] = shapely.transform(pieces, lambda whole: np.rint(whole) / scale)
    return dataclasses.replace(batch, xy=placed / scale, rings=rings), parts


def shift_or_cut(xy: IntArray, rings: IntArray, polygons: IntArray, half: int) -> BoolArray:
    """Move every polygon that lies between two antimeridians to −180° … 180°, in place, and find the others, (n,).

    Those are to be cut: they cross an antimeridian or go around a pole. ``half`` is 180° in the unit of ``xy``.
    """
    begin = rings[polygons]
    longitudes = xy[: begin[-1], 0]
    low, high = (extreme.reduceat(longitudes, begin[:-1]) for extreme in (np.minimum, np.maximum))
    jumps = np.abs(np.diff(longitudes, prepend=longitudes[:1])) > half
    jumps[rings[:-1]] = False
    turns = (low + half) // (2 * half)
    cut: BoolArray = np.logical_or.reduceat(jumps, begin[:-1]) | (high > half + 2 * half * turns)
    longitudes[begin[0] :] -= 2 * half * np.repeat(np.where(cut, 0, turns), np.diff(begin))
    return cut


def cut_polygon(rings: list[IntArray], half: int) -> Geometries:
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
    steps = np.diff(ring[:, 0])
    steps -= 2 * half * np.rint(steps / (2 * half)).astype(np.int64)
    around = np.column_stack([ring[0, 0] + np.concatenate([[0], np.cumsum(steps)]), ring[:, 1]])
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
