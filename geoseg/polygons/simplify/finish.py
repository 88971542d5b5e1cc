"""What becomes of the arcs of a map when they are complete: simplified, smoothed, regularized, in 1/256 px."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from geoseg.polygons.simplify.generalize import Ground, Method, Surroundings, remaining_vertices
from geoseg.polygons.simplify.ground import ROWS_AROUND
from geoseg.polygons.simplify.guard import CLEARANCE_PX, vertex_plane
from geoseg.polygons.simplify.regularize import Outlines, Regularize, regular_arcs
from geoseg.polygons.simplify.smooth import cut_corners, smoothed_vertex_plane
from geoseg.polygons.trace.cracks import SUBPIXEL, ArcBatch, Cracks
from geoseg.tolerance import LARGEST_PX

IntArray = npt.NDArray[np.int64]
PointArray = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]

Finisher = Callable[[ArcBatch, Cracks], tuple[PointArray, IntArray]]
"""Takes complete arcs to their final points in 1/256 px, (m, 2), and where each arc begins in them, (a + 1,)."""

_SHARE = 50_000  # vertices that are worth a thread
_WALL_TOLERANCE = 1.0  # px, of walls that are not regular


def rows_around(*, smooth: bool = False, regularize: Regularize | None = None) -> int:
    """Rows beyond those of an arc that a finisher has to know: the ``lookahead`` of `Tracer`."""
    return max(int(smooth), ROWS_AROUND if regularize else 0)


def arc_finisher(
    *,
    tolerance_px: float = 0.0,
    method: Method = "vw",
    smooth: bool = False,
    regularize: Regularize | None = None,
    outlines: Outlines | None = None,
    threads: int = 1,
) -> Finisher:
    """The function that simplifies, smooths and regularizes the arcs of a map.

    What it makes of an arc depends on the raster alone: neither on the other arcs of the call, nor on what became of
    them. Arcs stay clear of each other by `CLEARANCE_PX`. Simplification and smoothing do not depend on the direction
    of an arc or the start of a loop either.

    Args:
        tolerance_px: How much detail goes, px; 0 keeps all vertices (of smoothed arcs: all that are not on a line).
        method: ``vw`` removes what is up to the size of a square of this side (Visvalingam and Whyatt), ``dp`` what is
            up to this distance (Douglas and Peucker).
        smooth: Cut the corners of pixel steps first, see `cut_corners`.
        regularize: Give some classes straight walls and right angles; needs `Cracks.near` for these classes. Their arcs
            that two directions do not explain are simplified by ``dp`` with 1 px at most.
        outlines: Counts what becomes of these arcs.
        threads: Number of threads that share large batches.

    Raises:
        ValueError: A tolerance that is negative or above 10 000, or an unknown method.
    """
    if not 0 <= tolerance_px <= LARGEST_PX:
        raise ValueError(f"a tolerance is from 0 to {LARGEST_PX} px, found {tolerance_px}")
    if method not in ("vw", "dp"):
        raise ValueError(f"method is vw or dp, found {method!r}")
    scale = 2 if smooth else 1

    def finish(batch: ArcBatch, cracks: Cracks) -> tuple[PointArray, IntArray]:
        if len(batch.closed) == 0:
            return batch.points, batch.offsets
        points, offsets = cut_corners(batch.points, batch.offsets, batch.closed) if smooth else batch[:2]
        keep = np.ones(len(points), dtype=np.bool_)
        others = np.ones(len(batch.closed), dtype=np.bool_)
        regular: tuple[PointArray, IntArray] | None = None
        first_row, last_row = int(batch.points[:, 1].min()), int(batch.points[:, 1].max())
        if tolerance_px > 0 or smooth or regularize:
            around = Surroundings(
                obstacles=(smoothed_vertex_plane if smooth else vertex_plane)(cracks, first_row, last_row),
                first_row=scale * first_row,
                clearance2=(scale * CLEARANCE_PX) ** 2,
                ground=Ground(cracks, batch.points, batch.offsets, SUBPIXEL // scale) if regularize else None,
            )

            def simplify(arcs: BoolArray, tolerance_px: float, method: Method) -> None:
                def work(share: IntArray) -> None:
                    remaining_vertices(
                        points,
                        offsets,
                        closed=batch.closed,
                        least=batch.least,
                        around=around,
                        tolerance=scale * tolerance_px,
                        method=method,
                        keep=keep,
                        arcs=share,
                    )

                _in_threads(work, np.flatnonzero(arcs), offsets, threads)

            if regularize:
                walls = regularize.concerns(batch)
                regular = regular_arcs(batch, cracks, regularize)
                others = ~walls
                if outlines is not None:
                    outlines.total += int(np.count_nonzero(walls))
                    outlines.regular += int(np.count_nonzero(regular[1]))
                simplify(walls & (regular[1] == 0), min(tolerance_px or _WALL_TOLERANCE, _WALL_TOLERANCE), "dp")
            if tolerance_px > 0 or smooth:
                simplify(others, tolerance_px, method)
        points, offsets = _kept(points, offsets, batch.closed, keep)
        points = points * np.int32(SUBPIXEL // scale)
        return (points, offsets) if regular is None else _replaced(points, offsets, batch.offsets, *regular)

    return finish


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
    points: PointArray, offsets: IntArray, from_offsets: IntArray, new: PointArray, new_sizes: IntArray
) -> tuple[PointArray, IntArray]:
    """Arcs, some of them replaced: arc i by ``new_sizes[i]`` points of ``new`` from ``from_offsets[i]`` on."""
    replaced = new_sizes > 0
    sizes = np.where(replaced, new_sizes, np.diff(offsets))
    out_offsets = np.append(0, np.cumsum(sizes))
    place = np.arange(out_offsets[-1]) - np.repeat(out_offsets[:-1], sizes)  # of each point within its arc
    from_new = np.repeat(replaced, sizes)
    out = np.empty((len(place), 2), dtype=np.int32)
    out[from_new] = new[(np.repeat(from_offsets[:-1], sizes) + place)[from_new]]
    out[~from_new] = points[(np.repeat(offsets[:-1], sizes) + place)[~from_new]]
    return out, out_offsets


def _kept(points: PointArray, offsets: IntArray, closed: BoolArray, keep: BoolArray) -> tuple[PointArray, IntArray]:
    """The points that stay; a closed arc repeats the first of its own."""
    last = offsets[1:][closed] - 1
    keep[last] = True
    count = np.append(0, np.cumsum(keep))
    kept, kept_offsets = points[keep], count[offsets]
    kept[kept_offsets[1:][closed] - 1] = kept[kept_offsets[:-1][closed]]
    return kept, kept_offsets
