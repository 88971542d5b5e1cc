"""Counts of truth and map block by block, and the blocks worth looking at, from rows as they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from geoseg.arrays import ByteArray
from geoseg.classes import NODATA
from geoseg.evaluation.result import Counts, Values
from geoseg.runtime.jit import njit
from geoseg.windows import Window

BLOCK_PX = 256
"""Side of the blocks."""

_LABELLED_SHARE = 0.25
"""A block is worth looking at where so much of it is labelled."""


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """Confusion matrices of N blocks, of which most entries are 0 and not kept.

    Attributes:
        row: First row of each block, px, (N,).
        col: First column of each block, px, (N,).
        pixel_m2: Ground that a pixel of it covers, m², (N,).
        block: Number of the block that an entry belongs to, (M,).
        cell: Its place in the matrix, true class times K plus mapped class, (M,).
        pixels: Its value, px, (M,).
        classes: K.
    """

    row: Counts
    col: Counts
    pixel_m2: Values
    block: Counts
    cell: Counts
    pixels: Counts
    classes: int

    @property
    def matrix(self) -> Counts:
        """The confusion matrix (K, K) of all blocks, row = truth, px."""
        total = np.zeros(self.classes**2, dtype=np.int64)
        np.add.at(total, self.cell, self.pixels)
        return total.reshape(self.classes, self.classes)

    @property
    def labelled(self) -> Counts:
        """Pixels of each block that count, (N,)."""
        total = np.zeros(len(self.row), dtype=np.int64)
        np.add.at(total, self.block, self.pixels)
        return total

    def area_matrix(self) -> Values:
        """The confusion matrix (K, K) of all blocks in m² of ground."""
        total = np.zeros(self.classes**2)
        np.add.at(total, self.cell, self.pixels * self.pixel_m2[self.block])
        return total.reshape(self.classes, self.classes)


def join_blocks(parts: Sequence[Blocks]) -> Blocks:
    """The blocks of several scenes as those of one."""
    first = np.cumsum([0, *(len(part.row) for part in parts)])
    return Blocks(
        np.concatenate([part.row for part in parts]),
        np.concatenate([part.col for part in parts]),
        np.concatenate([part.pixel_m2 for part in parts]),
        np.concatenate([part.block + start for part, start in zip(parts, first, strict=False)]),
        np.concatenate([part.cell for part in parts]),
        np.concatenate([part.pixels for part in parts]),
        parts[0].classes,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A block that may be worth looking at.

    Attributes:
        scene: Number of its scene.
        window: Where it lies.
        error: Share of its labelled pixels that are mapped wrong.
        labelled: Pixels that are labelled.
        kinds: True classes in it.
        mapped: Class ids of the map (h, w).
    """

    scene: int
    window: Window
    error: float
    labelled: int
    kinds: int
    mapped: ByteArray


class CaseFinder:
    """Keeps the worst and the best of all blocks it is offered, so many of each.

    Args:
        most: How many.
    """

    def __init__(self, most: int) -> None:
        self._most, self._offered = most, 0
        self._worst: list[Candidate] = []
        self._best: list[Candidate] = []

    def offer(self, scene: int, window: Window, matrix: Counts, mapped: ByteArray) -> None:
        """Look at a block with its confusion matrix (K, K) and its map (h, w)."""
        labelled = int(matrix.sum())
        if not self._most or labelled < _LABELLED_SHARE * window.height * window.width:
            return
        self._offered += 1
        error = 1 - int(np.trace(matrix)) / labelled
        found = Candidate(scene, window, error, labelled, int((matrix.sum(axis=1) > 0).sum()), mapped.copy())
        # Of blocks with the same error the one that shows more goes first: more labels, more classes.
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
    """Counts pairs of truth and map in each block of a scene, while rows come.

    Args:
        classes: K.
        pixel_m2: Ground that a pixel of each row covers, m², (H,).
        width: Width of the scene, px.
        scene: Number of the scene, for ``finder``.
        finder: Is offered every block that is done.
        side: Side of the blocks, px; those at the right and lower edge may be smaller.
    """

    def __init__(
        self,
        classes: int,
        pixel_m2: Values,
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
        self._done: list[tuple[Counts, ...]] = []
        self._areas: list[Values] = []
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
        """The blocks of the whole scene, once all its rows are fed."""
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
def _count_blocks(truth: ByteArray, mapped: ByteArray, counts: npt.NDArray[np.int64], side: int) -> None:
    """Add the pairs of rows (h, W) to the matrices (N, K, K) of the blocks side by side that they lie in."""
    for y in range(truth.shape[0]):
        for x in range(truth.shape[1]):
            if truth[y, x] != NODATA and mapped[y, x] != NODATA:
                counts[x // side, truth[y, x], mapped[y, x]] += 1
