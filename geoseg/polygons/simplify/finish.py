"""What becomes of the arcs of a map when they are complete: simplified, smoothed, regularized, in 1/256 px."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from geoseg.arrays import BoolArray, Int32Array, IntArray
from geoseg.options import Method
from geoseg.polygons.simplify.generalize import Ground, Surroundings, remaining_vertices
from geoseg.polygons.simplify.ground import ROWS_AROUND
from geoseg.polygons.simplify.guard import CLEARANCE_PX, vertex_plane
from geoseg.polygons.simplify.regularize import Outlines, Regularize, regular_arcs
from geoseg.polygons.simplify.smooth import cut_corners, smoothed_vertex_plane
from geoseg.polygons.trace.cracks import SUBPIXEL, ArcBatch, Cracks
from geoseg.polygons.trace.tables import ranges
from geoseg.tolerance import LARGEST_PX

_SHARE = 50_000  # vertices that are worth a thread
_WALL_TOLERANCE = 1.0  # px, of walls that are not regular


@dataclass(frozen=True, slots=True)
class ArcFinisher:
    """Simplifies, smooths and regularizes the arcs of a map.

    What it makes of an arc depends on the raster alone: neither on the other arcs of the call, nor on what became of
    them. Arcs stay clear of each other by `CLEARANCE_PX`. Simplification and smoothing do not depend on the direction
    of an arc or the start of a loop either.

    Attributes:
        tolerance_px: How much detail goes, px; 0 keeps all vertices (of smoothed arcs: all that are not on a line).
        method: ``vw`` removes what is up to the size of a square of this side (Visvalingam and Whyatt), ``dp`` what is
            up to this distance (Douglas and Peucker).
        smooth: Cut the corners of pixel steps first, see `cut_corners`.
        regularize: Give some classes straight walls and right angles; needs `Cracks.near` for these classes. Their arcs
            that two directions do not explain are simplified by ``dp`` with 1 px at most.
        outlines: Counts what becomes of these arcs.
        threads: Number of threads that share large batches.

    Raises:
        ValueError: A tolerance that is negative or above 10,000, or an unknown method.
    """

    tolerance_px: float = 0.0
    method: Method = "vw"
    smooth: bool = False
    regularize: Regularize | None = None
    outlines: Outlines | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance_px <= LARGEST_PX:
            raise ValueError(f"a tolerance is from 0 to {LARGEST_PX} px, found {self.tolerance_px}")
        if self.method not in ("vw", "dp"):
            raise ValueError(f"method is vw or dp, found {self.method!r}")

    @property
    def changes_anything(self) -> bool:
        """Whether arcs are more than scaled."""
        return self.tolerance_px > 0 or self.smooth or self.regularize is not None

    @property
    def lookahead(self) -> int:
        """Rows beyond those of an arc that have to be known."""
        return ROWS_AROUND if self.regularize else int(self.smooth)

    @property
    def near_classes(self) -> tuple[int, ...]:
        """Classes whose surroundings have to be known."""
        return self.regularize.classes if self.regularize else ()

    def __call__(self, batch: ArcBatch, cracks: Cracks) -> tuple[Int32Array, IntArray]:
        """The final points of complete arcs in 1/256 px, (m, 2), and where each arc begins in them, (a + 1,)."""
        if len(batch.closed) == 0:
            return batch.points, batch.offsets
        lines, unit = batch, SUBPIXEL
        if self.smooth:
            points, offsets = cut_corners(batch.points, batch.offsets, batch.closed)
            lines, unit = batch._replace(points=points, offsets=offsets), SUBPIXEL // 2
        if not self.changes_anything:
            return lines.points * np.int32(unit), lines.offsets
        scale, first_row, last_row = SUBPIXEL // unit, int(batch.points[:, 1].min()), int(batch.points[:, 1].max())
        plane = (smoothed_vertex_plane if self.smooth else vertex_plane)(cracks, first_row, last_row)
        around = Surroundings(plane, scale * first_row, (scale * CLEARANCE_PX) ** 2)
        ground = Ground(cracks, batch.points, batch.offsets, unit) if self.regularize else None
        keep = np.ones(len(lines.points), dtype=np.bool_)

        def simplify(arcs: BoolArray, tolerance_px: float, method: Method) -> None:
            def work(share: IntArray) -> None:
                remaining_vertices(
                    lines, around, ground, tolerance=scale * tolerance_px, method=method, keep=keep, arcs=share
                )

            _in_threads(work, np.flatnonzero(arcs), lines.offsets, self.threads)

        others = np.ones(len(batch.closed), dtype=np.bool_)
        regular: tuple[Int32Array, IntArray] | None = None
        if self.regularize:
            walls = self.regularize.concerns(batch)
            regular = regular_arcs(batch, cracks, self.regularize)
            others = ~walls
            if self.outlines is not None:
                self.outlines.total += int(np.count_nonzero(walls))
                self.outlines.regular += int(np.count_nonzero(regular[1]))
            simplify(walls & (regular[1] == 0), min(self.tolerance_px or _WALL_TOLERANCE, _WALL_TOLERANCE), "dp")
        if self.tolerance_px > 0 or self.smooth:
            simplify(others, self.tolerance_px, self.method)
        points, offsets = _kept(lines, keep)
        points = points * np.int32(unit)
        return (points, offsets) if regular is None else _replaced(points, offsets, batch.offsets, *regular)


def _in_threads(work: Callable[[IntArray], None], arcs: IntArray, offsets: IntArray, threads: int) -> None:
    """Do the work on arcs, in shares of about as many vertices each."""
    weight = np.cumsum(offsets[arcs + 1] - offsets[arcs])
    count = max(min(threads, int(weight[-1]) // _SHARE), 1) if len(arcs) else 1
    if count == 1:
        work(arcs)
        return
    shares = np.split(arcs, np.searchsorted(weight, np.linspace(0, weight[-1], count + 1)[1:-1]))
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(work, shares))


def _replaced(
    points: Int32Array, offsets: IntArray, from_offsets: IntArray, new: Int32Array, new_sizes: IntArray
) -> tuple[Int32Array, IntArray]:
    """Arcs, some of them replaced: arc i by ``new_sizes[i]`` points of ``new`` from ``from_offsets[i]`` on."""
    replaced = new_sizes > 0
    sizes = np.where(replaced, new_sizes, np.diff(offsets))
    begin = np.where(replaced, from_offsets[:-1] + len(points), offsets[:-1])
    source, _ = ranges(begin, begin + sizes)
    return np.concatenate([points, new])[source], np.append(0, np.cumsum(sizes))


def _kept(lines: ArcBatch, keep: BoolArray) -> tuple[Int32Array, IntArray]:
    """The points that stay; a closed arc repeats the first of its own."""
    closed = lines.closed
    keep[lines.offsets[1:][closed] - 1] = True
    offsets = np.append(0, np.cumsum(keep))[lines.offsets]
    points = lines.points[keep]
    points[offsets[1:][closed] - 1] = points[offsets[:-1][closed]]
    return points, offsets
