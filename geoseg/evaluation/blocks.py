"""Confusion matrices of blocks, the areas they tell, and the best and worst blocks, from rows as they come."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse, special

from geoseg.arrays import ByteArray, FloatArray, IntArray
from geoseg.classes import NODATA
from geoseg.evaluation.result import AreaEstimate
from geoseg.network.metrics import ratio
from geoseg.runtime.jit import njit
from geoseg.windows import Window

BLOCK_PX = 256  # side of the blocks, px

_BOTH_TAILS_95 = 0.975  # quantile at which a symmetric 95 % interval ends
_M2_PER_HA = 1e4


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """Confusion matrices of N blocks, row = truth."""

    row: IntArray  # first row of each block, px, (N,)
    col: IntArray  # first column of each block, px, (N,)
    pixel_m2: FloatArray  # ground area of its pixels, m², (N,)
    counts: sparse.csr_array  # its matrix in a row, px, (N, K²)

    @property
    def matrix(self) -> IntArray:
        """Confusion matrix (K, K) of all blocks, px."""
        return _square(self.counts)

    @property
    def labelled(self) -> IntArray:
        """Pixels counted in each block, (N,)."""
        return np.asarray(self.counts.sum(axis=1))


def _square(counts: sparse.csr_array) -> IntArray:
    """The sum (K, K) of matrices that are rows, (N, K²)."""
    total = np.asarray(counts.sum(axis=0))
    return total.reshape(round(total.size**0.5), -1)


def join_blocks(parts: Sequence[Blocks]) -> Blocks:
    """The blocks of several scenes as those of one."""
    row, col, pixel_m2 = (np.concatenate([getattr(p, name) for p in parts]) for name in ("row", "col", "pixel_m2"))
    return Blocks(row, col, pixel_m2, sparse.vstack([p.counts for p in parts], format="csr"))


def estimate_areas(blocks: Blocks, mapped_m2: FloatArray) -> AreaEstimate:
    """Areas of all classes from a map and a labelled sample of it, stratified by mapped class.

    With A_i the area mapped as class i and p_ij the share of it that is class j in the sample, class j covers
    Σ_i A_i p_ij. Neighbouring pixels are wrong together, so blocks are the sampling units: p_ij is a ratio of sums
    over blocks, and its variance is that of the blocks' deviations from it (Taylor linearisation). With single
    pixels as blocks that is equation 10 of Olofsson et al. but for n − 1. The interval is Student's.

    ``mapped_m2`` is the area of each class in the whole map, (K,).

    Returns:
        Areas in ha; NaN if a class is mapped and the sample has none of it. Margins are NaN below three blocks.

    References:
        Olofsson et al. 2014 (see `AreaEstimate`); Cochran, Sampling Techniques, 3rd ed. 1977, sections 6 and 9.
    """
    ground = sparse.diags_array(blocks.pixel_m2) @ blocks.counts  # m², (N, K²)
    sample = _square(ground)
    in_stratum = sample.sum(axis=0)
    share = ratio(sample, in_stratum).T  # (mapped, true)
    present = mapped_m2 > 0
    estimated = mapped_m2[present] @ share[present]
    grown = np.nan_to_num(ratio(mapped_m2, in_stratum))[:, None]
    each = np.eye(len(mapped_m2))
    own = ground @ np.tile(each, (len(each), 1))  # of each mapped class, (N, K)
    deviation = ground @ np.kron(each, grown) - own @ (grown * np.nan_to_num(share))
    used = int((own.sum(axis=1) > 0).sum())
    margin = np.full(len(each), np.nan)
    if used >= 3:
        error = np.sqrt(used / (used - 1) * (deviation**2).sum(axis=0))
        margin = np.where(np.isnan(estimated), np.nan, special.stdtrit(used - 1, _BOTH_TAILS_95) * error)
    return AreaEstimate(mapped_m2 / _M2_PER_HA, estimated / _M2_PER_HA, margin / _M2_PER_HA)


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A block that may be shown."""

    scene: int  # number of its scene
    window: Window
    error: float  # share of its labelled pixels that are wrong
    labelled: int  # labelled pixels
    kinds: int  # classes among them
    mapped: ByteArray  # its map, (h, w)


class CaseFinder:
    """Keeps the ``most`` worst and the ``most`` best of all blocks it is offered.

    Of blocks with the same error, those with more labels and classes go first, then those offered first.
    """

    def __init__(self, most: int) -> None:
        self._most, self._offered = most, 0
        self._worst: list[Candidate] = []
        self._best: list[Candidate] = []

    def offer(self, scene: int, window: Window, matrix: IntArray, mapped: ByteArray) -> None:
        """Consider a block with its confusion matrix (K, K) and its map (h, w), if a quarter of it is labelled."""
        labelled = int(matrix.sum())
        if not self._most or labelled < 0.25 * window.height * window.width:
            return
        self._offered += 1
        error = 1 - int(np.trace(matrix)) / labelled
        new = Candidate(scene, window, error, labelled, int((matrix.sum(axis=1) > 0).sum()), mapped.copy())
        self._worst = heapq.nsmallest(self._most, [*self._worst, new], key=lambda c: (-c.error, -c.labelled))
        self._best = heapq.nsmallest(self._most, [*self._best, new], key=lambda c: (c.error, -c.kinds, -c.labelled))

    def cases(self) -> tuple[list[Candidate], list[Candidate]]:
        """The worst, the worst first, and the best, the best first; no block is in both."""
        most = min(self._most, max(self._offered // 2, 1))
        worst = [c for c in self._worst if c.error > 0][:most]
        return worst, [c for c in self._best if c not in worst][:most]


class BlockMeasure:
    """Counts pairs of truth and map in each block of a scene from rows as they come.

    ``pixel_m2`` is the ground area of the pixels of each row, (H,). The ``finder`` gets every finished block with the
    number of the scene. Blocks at the right and lower edge may be smaller than ``side`` px.
    """

    def __init__(
        self,
        classes: int,
        pixel_m2: FloatArray,
        width: int,
        *,
        scene: int = 0,
        finder: CaseFinder | None = None,
        side: int = BLOCK_PX,
    ) -> None:
        self._pixel_m2, self._width, self._side = pixel_m2, width, side
        self._scene, self._finder = scene, finder or CaseFinder(0)
        self._row = 0
        self._counts = np.zeros((-(-width // side), classes, classes), dtype=np.int64)
        self._map: list[ByteArray] = []
        self._done: list[Blocks] = []

    def feed(self, truth: ByteArray, mapped: ByteArray) -> None:
        """Take the next rows of truth and map, each (h, W); 255 does not count."""
        while len(truth):
            first = self._row // self._side * self._side
            stop = min(first + self._side, len(self._pixel_m2))
            here = min(stop - self._row, len(truth))
            _count_blocks(truth[:here], mapped[:here], self._counts, self._side)
            self._map.append(mapped[:here].copy())
            self._row += here
            truth, mapped = truth[here:], mapped[here:]
            if self._row == stop:
                self._close(first, stop)

    def result(self) -> Blocks:
        """The blocks of the scene, after its last row."""
        assert self._row == len(self._pixel_m2), "rows of the scene are missing"
        return join_blocks(self._done)

    def _close(self, first: int, stop: int) -> None:
        number = len(self._counts)
        col = np.arange(number, dtype=np.int64) * self._side
        pixel_m2 = np.full(number, self._pixel_m2[first:stop].mean())
        counts = sparse.csr_array(self._counts.reshape(number, -1))
        self._done.append(Blocks(np.full(number, first), col, pixel_m2, counts))
        rows = np.concatenate(self._map)
        for matrix, left in zip(self._counts, col.tolist(), strict=True):
            window = Window(first, left, stop - first, min(self._side, self._width - left))
            self._finder.offer(self._scene, window, matrix, rows[:, left : window.col_stop])
        self._counts[:] = 0
        self._map = []


@njit
def _count_blocks(truth: ByteArray, mapped: ByteArray, counts: IntArray, side: int) -> None:
    """Add the pairs of rows (h, W) to the matrices (N, K, K) of blocks side by side."""
    for y in range(truth.shape[0]):
        for x in range(truth.shape[1]):
            if truth[y, x] != NODATA and mapped[y, x] != NODATA:
                counts[x // side, truth[y, x], mapped[y, x]] += 1
