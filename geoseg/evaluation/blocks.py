"""Confusion matrices of blocks, and the best and worst blocks, from rows as they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from geoseg.arrays import ByteArray, FloatArray, IntArray
from geoseg.classes import NODATA
from geoseg.runtime.jit import njit
from geoseg.windows import Window

BLOCK_PX = 256
"""Side of the blocks, px."""

_LABELLED_SHARE = 0.25
"""Share of a block that must be labelled for it to be shown."""


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """Confusion matrices of N blocks, stored as their M entries that are not 0."""

    row: IntArray  # first row of each block, px, (N,)
    col: IntArray  # first column of each block, px, (N,)
    pixel_m2: FloatArray  # ground area of its pixels, m², (N,)
    block: IntArray  # block of each entry, (M,)
    cell: IntArray  # its place in the matrix, true class times K plus mapped class, (M,)
    pixels: IntArray  # its value, px, (M,)
    classes: int  # K

    @property
    def matrix(self) -> IntArray:
        """Confusion matrix (K, K) of all blocks, row = truth, px."""
        total = np.zeros(self.classes**2, dtype=np.int64)
        np.add.at(total, self.cell, self.pixels)
        return total.reshape(self.classes, self.classes)

    @property
    def labelled(self) -> IntArray:
        """Pixels counted in each block, (N,)."""
        total = np.zeros(len(self.row), dtype=np.int64)
        np.add.at(total, self.block, self.pixels)
        return total

    def area_matrix(self) -> FloatArray:
        """Confusion matrix (K, K) of all blocks, m²."""
        total = np.zeros(self.classes**2)
        np.add.at(total, self.cell, self.pixels * self.pixel_m2[self.block])
        return total.reshape(self.classes, self.classes)


def join_blocks(parts: Sequence[Blocks]) -> Blocks:
    """The blocks of several scenes as those of one."""
    first = np.cumsum([0, *(len(part.row) for part in parts)])
    columns = [
        (p.row, p.col, p.pixel_m2, p.block + start, p.cell, p.pixels) for p, start in zip(parts, first, strict=False)
    ]
    row, col, pixel_m2, block, cell, pixels = (np.concatenate(column) for column in zip(*columns, strict=True))
    return Blocks(row, col, pixel_m2, block, cell, pixels, parts[0].classes)


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A block that may be shown: its scene's number, window, share of wrong pixels, labelled pixels, number of true
    classes, and map (h, w).
    """

    scene: int
    window: Window
    error: float
    labelled: int
    kinds: int
    mapped: ByteArray


class CaseFinder:
    """Keeps the ``most`` worst and the ``most`` best of all blocks it is offered."""

    def __init__(self, most: int) -> None:
        self._most, self._offered = most, 0
        self._worst: list[Candidate] = []
        self._best: list[Candidate] = []

    def offer(self, scene: int, window: Window, matrix: IntArray, mapped: ByteArray) -> None:
        """Consider a block with its confusion matrix (K, K) and its map (h, w)."""
        labelled = int(matrix.sum())
        if not self._most or labelled < _LABELLED_SHARE * window.height * window.width:
            return
        self._offered += 1
        error = 1 - int(np.trace(matrix)) / labelled
        found = Candidate(scene, window, error, labelled, int((matrix.sum(axis=1) > 0).sum()), mapped.copy())
        # Of blocks with the same error, those with more labels and classes go first.
        for kept, key in ((self._worst, _badness), (self._best, _goodness)):
            kept.append(found)
            kept.sort(key=key)
            del kept[self._most :]

    def cases(self) -> tuple[list[Candidate], list[Candidate]]:
        """The worst, the worst first, and the best, the best first; no block is in both."""
        most = min(self._most, max(self._offered // 2, 1))
        worst = [c for c in self._worst if c.error > 0][:most]
        return worst, [c for c in self._best if c not in worst][:most]


def _badness(c: Candidate) -> tuple[float, ...]:
    return (-c.error, -c.labelled, c.scene, c.window.row, c.window.col)


def _goodness(c: Candidate) -> tuple[float, ...]:
    return (c.error, -c.kinds, -c.labelled, c.scene, c.window.row, c.window.col)


class BlockMeasure:
    """Counts pairs of truth and map in each block of a scene from rows as they come.

    Args:
        classes: K.
        pixel_m2: Ground area of the pixels of each row, m², (H,).
        width: Width of the scene, px.
        scene: Number of the scene, for ``finder``.
        finder: Gets every finished block.
        side: Side of the blocks, px; those at the right and lower edge may be smaller.
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
        self._classes, self._pixel_m2, self._width, self._side = classes, pixel_m2, width, side
        self._scene, self._finder = scene, finder
        self._row = 0
        self._counts = np.zeros((-(-width // side), classes, classes), dtype=np.int64)
        self._map: list[ByteArray] = []
        self._done: list[tuple[IntArray, ...]] = []
        self._areas: list[FloatArray] = []
        self._number = 0

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
        row, col, block, cell, pixels = (np.concatenate(column) for column in zip(*self._done, strict=True))
        return Blocks(row, col, np.concatenate(self._areas), block, cell, pixels, self._classes)

    def _close(self, first: int, stop: int) -> None:
        number = len(self._counts)
        flat = self._counts.reshape(number, -1)
        block, cell = np.nonzero(flat)
        col = np.arange(number, dtype=np.int64) * self._side
        self._done.append((np.full(number, first), col, block + self._number, cell, flat[block, cell]))
        self._areas.append(np.full(number, self._pixel_m2[first:stop].mean()))
        self._number += number
        if self._finder is not None:
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
