"""What becomes of the arcs of a map when they are complete: simplified, smoothed, regularized, in 1/256 px."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from geoseg.polygons.cracks import SUBPIXEL, ArcBatch, Cracks
from geoseg.polygons.generalize import Method, remaining_vertices
from geoseg.polygons.guard import CLEARANCE_PX, vertex_plane
from geoseg.polygons.smooth import cut_corners, smoothed_vertex_plane

IntArray = npt.NDArray[np.int64]
PointArray = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]

Finisher = Callable[[ArcBatch, Cracks], tuple[PointArray, IntArray]]
"""Takes complete arcs to their final points in 1/256 px, (m, 2), and where each arc begins in them, (a + 1,)."""

_SHARE = 50_000  # vertices that are worth a thread


def arc_finisher(
    *, tolerance_px: float = 0.0, method: Method = "vw", smooth: bool = False, threads: int = 1
) -> Finisher:
    """The function that simplifies and smooths the arcs of a map.

    What it makes of an arc depends on the raster alone: neither on the other arcs of the call, nor on what became of
    them, nor on the arc's direction or the start of a loop. Arcs stay clear of each other by `CLEARANCE_PX`.

    Args:
        tolerance_px: How much detail goes, px; 0 keeps all vertices (of smoothed arcs: all that are not on a line).
        method: ``vw`` removes what is smaller than a square of this side (Visvalingam and Whyatt), ``dp`` what is
            nearer than this distance (Douglas and Peucker).
        smooth: Cut the corners of pixels first, see `cut_corners`.
        threads: Number of threads that share large batches.

    Raises:
        ValueError: A negative tolerance, or an unknown method.
    """
    if tolerance_px < 0:
        raise ValueError(f"a tolerance is not negative, found {tolerance_px}")
    if method not in ("vw", "dp"):
        raise ValueError(f"method is vw or dp, found {method!r}")
    scale = 2 if smooth else 1

    def finish(batch: ArcBatch, cracks: Cracks) -> tuple[PointArray, IntArray]:
        points, offsets = cut_corners(batch.points, batch.offsets, batch.closed) if smooth else batch[:2]
        if len(batch.closed) == 0 or (tolerance_px == 0 and not smooth):
            return points * np.int32(SUBPIXEL // scale), offsets
        first_row, last_row = int(batch.points[:, 1].min()), int(batch.points[:, 1].max())
        obstacles = (smoothed_vertex_plane if smooth else vertex_plane)(cracks, first_row, last_row)
        keep = np.ones(len(points), dtype=np.bool_)

        def work(arcs: slice) -> None:
            remaining_vertices(
                points,
                offsets,
                closed=batch.closed,
                least=batch.least,
                obstacles=obstacles,
                first_row=scale * first_row,
                tolerance=scale * tolerance_px,
                clearance=scale * CLEARANCE_PX,
                method=method,
                keep=keep,
                arcs=arcs,
            )

        shares = _shares(offsets, min(threads, len(points) // _SHARE))
        if len(shares) == 1:
            work(shares[0])
        else:
            with ThreadPoolExecutor(len(shares)) as pool:
                list(pool.map(work, shares))
        points, offsets = _kept(points, offsets, batch.closed, keep)
        return points * np.int32(SUBPIXEL // scale), offsets

    return finish


def _shares(offsets: IntArray, count: int) -> list[slice]:
    """Consecutive arcs with about the same number of vertices."""
    bounds = np.searchsorted(offsets, np.linspace(0, offsets[-1], max(count, 1) + 1)[1:-1])
    edges = [0, *bounds.tolist(), len(offsets) - 1]
    return [slice(i, j) for i, j in pairwise(edges)]


def _kept(points: PointArray, offsets: IntArray, closed: BoolArray, keep: BoolArray) -> tuple[PointArray, IntArray]:
    """The points that stay; a closed arc repeats the first of its own."""
    last = offsets[1:][closed] - 1
    keep[last] = True
    count = np.append(0, np.cumsum(keep))
    kept, kept_offsets = points[keep], count[offsets]
    kept[kept_offsets[1:][closed] - 1] = kept[kept_offsets[:-1][closed]]
    return kept, kept_offsets
