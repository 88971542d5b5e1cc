"""What becomes of the arcs of a map when they are complete: simplified, smoothed, replaced by walls, in 1/256 px."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from geoseg.arrays import Int32Array, IntArray
from geoseg.options import Method
from geoseg.polygons.simplify.generalize import remaining_vertices
from geoseg.polygons.simplify.guard import CLEARANCE_PX, Surroundings, vertex_plane
from geoseg.polygons.simplify.smooth import cut_corners, guard_of_halves, smoothed_vertex_plane
from geoseg.polygons.trace.cracks import SUBPIXEL, ArcBatch, Cracks
from geoseg.polygons.trace.tables import ranges
from geoseg.polygons.walls.rows import Walls

_SHARE = 50_000  # vertices that are worth a thread


@dataclass(frozen=True, slots=True)
class ArcFinisher:
    """Simplifies and smooths the arcs of a map, and puts walls in their place where there are any.

    What it makes of an arc depends on the raster alone, not on its direction, nor on the other arcs of the call.

    Attributes:
        tolerance_px: How much detail goes, px; 0 keeps all vertices (of smoothed arcs: all that are not on a line).
        method: ``vw`` removes what is up to the size of a square of this side (Visvalingam and Whyatt), ``dp`` what is
            up to this distance (Douglas and Peucker).
        smooth: Cut the corners of pixel steps first, see `cut_corners`.
        walls: What arcs of regular buildings are replaced by; each is taken once.
        threads: Number of threads that share large batches.
    """

    tolerance_px: float = 0.0
    method: Method = "vw"
    smooth: bool = False
    walls: Walls | None = None
    threads: int = 1

    @property
    def lookahead(self) -> int:
        """Rows beyond those of an arc that have to be known."""
        return int(self.smooth)

    def drop_above(self, row: int) -> None:
        """Nothing above a row will be asked for again."""
        if self.walls is not None:
            self.walls.guard.drop_above(row)

    def __call__(self, batch: ArcBatch, cracks: Cracks) -> tuple[Int32Array, IntArray]:
        """The final points of complete arcs in 1/256 px, (m, 2), and where each arc begins in them, (a + 1,)."""
        if len(batch.closed) == 0:
            return batch.points, batch.offsets
        lines, unit = batch, SUBPIXEL
        if self.smooth:
            points, offsets = cut_corners(batch.points, batch.offsets, batch.closed)
            lines, unit = batch._replace(points=points, offsets=offsets), SUBPIXEL // 2
        ends = None
        if self.walls is not None:
            lines, ends = _at_walls(lines, self.walls, unit)
        if self.tolerance_px > 0 or self.smooth:
            scale, first_row, last_row = SUBPIXEL // unit, int(batch.points[:, 1].min()), int(batch.points[:, 1].max())
            plane = (smoothed_vertex_plane if self.smooth else vertex_plane)(cracks, first_row, last_row)
            guard = None if self.walls is None else self.walls.guard.between(first_row, last_row)
            if guard is not None and self.smooth:
                guard = guard_of_halves(guard)
            around = Surroundings(plane, scale * first_row, (scale * CLEARANCE_PX) ** 2, guard)
            others = np.ones(len(batch.closed), dtype=np.bool_)
            if ends is not None:
                others[list(ends.final)] = False
            lines = self._simplified(lines, around, np.flatnonzero(others), scale * self.tolerance_px)
        points, offsets = lines.points * np.int32(unit), lines.offsets
        return (points, offsets) if ends is None else _replaced(points, offsets, ends.join(points, offsets))

    def _simplified(self, lines: ArcBatch, around: Surroundings, arcs: IntArray, tolerance: float) -> ArcBatch:
        """Arcs with the vertices that stay, in threads that share about as many each."""
        keep = np.ones(len(lines.points), dtype=np.bool_)

        def work(share: IntArray) -> None:
            remaining_vertices(lines, around, tolerance=tolerance, method=self.method, keep=keep, arcs=share)

        weight = np.cumsum(lines.offsets[arcs + 1] - lines.offsets[arcs])
        count = max(min(self.threads, int(weight[-1]) // _SHARE), 1) if len(arcs) else 1
        if count == 1:
            work(arcs)
        else:
            shares = np.split(arcs, np.searchsorted(weight, np.linspace(0, weight[-1], count + 1)[1:-1]))
            with ThreadPoolExecutor(count) as pool:
                list(pool.map(work, shares))
        closed = lines.closed
        keep[lines.offsets[1:][closed] - 1] = True
        offsets = np.append(0, np.cumsum(keep))[lines.offsets]
        points = lines.points[keep]
        points[offsets[1:][closed] - 1] = points[offsets[:-1][closed]]  # closed arcs repeat the first that is left
        return lines._replace(points=points, offsets=offsets)


class _Ends(NamedTuple):
    """What walls make of arcs, by their numbers: points in 1/256 px."""

    final: dict[int, Int32Array]  # whole arcs
    starts: dict[int, Int32Array]  # what comes before the others
    stops: dict[int, Int32Array]  # and after them

    def join(self, points: Int32Array, offsets: IntArray) -> dict[int, Int32Array]:
        """All arcs at walls, given the arcs between their feet."""
        joined, nothing = dict(self.final), points[:0]
        for i in self.starts.keys() | self.stops.keys():
            between = points[offsets[i] : offsets[i + 1]]
            joined[i] = np.concatenate([self.starts.get(i, nothing), between, self.stops.get(i, nothing)])
        return joined


def _at_walls(lines: ArcBatch, walls: Walls, unit: int) -> tuple[ArcBatch, _Ends]:
    """Arcs without their ends at walls, in ``unit``, and what belongs there."""
    ends, trimmed = _Ends({}, {}, {}), dict[int, Int32Array]()
    for i, keys in enumerate(lines.keys.tolist()):
        if keys[0] in walls.arcs:
            ends.final[i] = walls.arcs.pop(keys[0])
            continue
        for key, beyond, step in zip(keys, (ends.starts, ends.stops), (1, -1), strict=True):
            if key in walls.ends:
                end = walls.ends.pop(key)
                points = trimmed.get(i, lines.points[lines.offsets[i] : lines.offsets[i + 1]])[::step]
                rest = points[_count_on(points * unit, end[1:]) :]
                trimmed[i], beyond[i] = np.concatenate([end[-1:] // unit, rest])[::step], end[:1]
        if i in trimmed and len(trimmed[i]) == 1:  # the foot is the node at the other end
            foot = trimmed.pop(i) * unit
            ends.final[i] = np.concatenate([ends.starts.pop(i, foot[:0]), foot, ends.stops.pop(i, foot[:0])])
    points, offsets = _replaced(lines.points, lines.offsets, trimmed)
    return lines._replace(points=points, offsets=offsets), ends


def _count_on(points: Int32Array, path: Int32Array) -> int:
    """How many points, from the first on, lie on a path from crack to crack, 1/256 px."""
    to_corners = abs(points[: 2 * len(path) + 1, None] - path).sum(axis=2)
    on_path = (to_corners[:, :-1] + to_corners[:, 1:] == SUBPIXEL).any(axis=1)
    return int(np.argmin(np.append(on_path, False)))


def _replaced(points: Int32Array, offsets: IntArray, new: dict[int, Int32Array]) -> tuple[Int32Array, IntArray]:
    """Arcs, some of them replaced."""
    if not new:
        return points, offsets
    sizes, begin, which = np.diff(offsets), offsets[:-1].copy(), list(new)
    sizes[which] = [len(arc) for arc in new.values()]
    begin[which] = len(points) + np.cumsum(sizes[which]) - sizes[which]
    source, _ = ranges(begin, begin + sizes)
    return np.concatenate([points, *new.values()])[source], np.append(0, np.cumsum(sizes))
