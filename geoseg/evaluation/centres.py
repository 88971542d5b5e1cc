"""Objects matched by where their centres lie: for truth that is points, from rows as they come."""

from collections.abc import Iterable

import numpy as np
from scipy import sparse, spatial
from scipy.sparse.csgraph import maximum_bipartite_matching

from geoseg.arrays import BoolArray, ByteArray, FloatArray, IntArray
from geoseg.classes import NODATA
from geoseg.evaluation.boundary import both_known
from geoseg.evaluation.objects import Regions, grown, no_regions, without_the_finished
from geoseg.evaluation.result import ObjectScores
from geoseg.georeference import pyproj_crs
from geoseg.grid import Grid, ground_steps


class CentreMeasure:
    """Pairs each object of the truth with at most one region of the map whose centre lies near its own.

    As many pairs are made as possible. A region is a 4-connected set of pixels of one class, its centre the mean of its
    pixels' centres. Objects and pixels where truth or map is 255 do not count. Regions are held until they are
    closed, centres until the end.

    Args:
        classes: K.
        grid: The scene's grid, whose ground is known in metres.
        true: Centres of the true objects, column and row in px, (n, 2).
        ids: Their classes, (n,).
        within_m: Largest distance of a pair, m.
        of: Ids of the classes that are objects; None for all.
    """

    def __init__(
        self,
        classes: int,
        grid: Grid,
        true: FloatArray,
        ids: IntArray,
        *,
        within_m: float,
        of: Iterable[int] | None = None,
    ) -> None:
        self._classes, self._grid, self._within_m = classes, grid, within_m
        self._wanted = np.full(256, NODATA, dtype=np.uint8)
        objects = np.arange(classes) if of is None else np.array(sorted(of), dtype=np.int64)
        self._wanted[objects] = objects
        cells = np.floor(true).astype(np.int64)
        here = (cells >= 0).all(axis=1) & (cells < [grid.width, grid.height]).all(axis=1) & np.isin(ids, objects)
        self._true, self._ids, self._cells = true[here], ids[here], cells[here]
        self._counted = np.zeros(len(self._ids), dtype=bool)
        self._row = 0
        self._open = no_regions(grid.width)
        self._sums = np.zeros((1, 2), dtype=np.int64)  # columns and rows of their pixels
        self._closed: list[tuple[ByteArray, FloatArray]] = []

    def feed(
        self, truth: ByteArray, mapped: ByteArray, cuts: tuple[ByteArray | None, ByteArray | None] = (None, None)
    ) -> None:
        """Take the next rows of truth and map, each (h, W), with their cuts; 255 does not count."""
        if not len(truth):
            return
        rows = both_known(truth, mapped)
        inside = np.flatnonzero((self._cells[:, 1] >= self._row) & (self._cells[:, 1] < self._row + len(truth)))
        col, row = self._cells[inside].T
        self._counted[inside] = rows[0][row - self._row, col] != NODATA
        regions, labels, numbers = grown(self._open, self._wanted[rows[1]], cuts[1])
        sums = np.zeros((len(regions.value), 2), dtype=np.int64)
        np.add.at(sums, numbers, self._sums)
        y, x = np.indices(labels.shape)
        for i, places in enumerate((x, y + self._row)):
            sums[:, i] += np.bincount(labels.ravel(), places.ravel(), minlength=len(sums)).astype(np.int64)
        closed = regions.closed
        self._close(regions, sums, closed)
        self._open, _ = without_the_finished(regions._replace(counted=closed), np.zeros(0, dtype=np.int64))
        self._sums = np.concatenate([np.zeros((1, 2), dtype=np.int64), sums[~closed]])
        self._row += len(truth)

    def result(self) -> ObjectScores:
        """The scores, after the last row."""
        self._close(self._open, self._sums, np.ones(len(self._sums), dtype=bool))
        value = np.concatenate([v for v, _ in self._closed])
        centres = np.concatenate([c for _, c in self._closed])
        counts = np.zeros((3, self._classes), dtype=np.int64)
        for i in range(self._classes):
            true, found = self._true[self._counted & (self._ids == i)], centres[value == i]
            counts[:, i] = len(true), len(found), _pairs(true, found, self._grid, self._within_m)
        return ObjectScores(counts[0], counts[1], counts[2], within_m=self._within_m)

    def _close(self, regions: Regions, sums: IntArray, closed: BoolArray) -> None:
        ended = np.flatnonzero(closed)[1:]
        self._closed.append((regions.value[ended], sums[ended] / regions.pixels[ended, None] + 0.5))


def _pairs(true: FloatArray, found: FloatArray, grid: Grid, within_m: float) -> int:
    """The largest number of pairs, one to one, of centres in px that lie within a distance on the ground."""
    if not len(true) or not len(found):
        return 0
    t = grid.transform
    linear = np.array([[t.a, t.b], [t.d, t.e]])
    x, y = linear @ true.T + [[t.c], [t.f]]
    metres_per_px = ground_steps(pyproj_crs(grid.crs), x, y) @ linear
    reach = within_m / np.linalg.svd(metres_per_px, compute_uv=False)[:, -1]
    near = spatial.cKDTree(found).query_ball_point(true, reach)
    own = np.repeat(np.arange(len(true)), [len(each) for each in near])
    other = np.array([i for each in near for i in each], dtype=np.int64)
    step = np.einsum("nij,nj->ni", metres_per_px[own], found[other] - true[own])
    is_pair = np.hypot(*step.T) <= within_m
    own, other = own[is_pair], other[is_pair]
    graph = sparse.csr_array((np.ones(len(own), dtype=bool), (own, other)), shape=(len(true), len(found)))
    return int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())
