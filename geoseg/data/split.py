"""A scene cut into blocks, some of which validate, and where training windows may lie.

Whole blocks validate, and a strip around each is not trained on (spatial block cross-validation; Roberts et al. 2017,
doi:10.1111/ecog.02881), because neighbouring pixels look alike.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from geoseg.arrays import BoolArray, IntArray
from geoseg.config.settings import SplitConfig
from geoseg.grid import Grid
from geoseg.scene.raster import reflected
from geoseg.windows import Window

UNUSED, TRAIN, VAL = 0, 1, 2  # roles of blocks; unused ones have no pixel that is valid and labelled
_CANDIDATES = 64  # random choices of blocks, of which the one that shares the classes most evenly is taken


@dataclass(frozen=True, slots=True, eq=False)
class SceneSplit:
    """The blocks of one scene and the role of each."""

    row_edges: IntArray  # first rows of the blocks, then the scene's height, px
    col_edges: IntArray  # the same for columns
    roles: npt.NDArray[np.int8]  # UNUSED, TRAIN or VAL of each block (rows, cols)
    buffer: int  # strip around validation blocks that no training window may touch, px

    @property
    def validation(self) -> tuple[Window, ...]:
        """The blocks that validate, row by row."""
        return tuple(window for _, _, window, role in self.blocks() if role == VAL)

    def blocks(self) -> Iterator[tuple[int, int, Window, int]]:
        """Row and column of every block among the blocks, its window and its role."""
        for i, j in np.ndindex(*self.roles.shape):
            yield i, j, block_window(self.row_edges, self.col_edges, i, j), int(self.roles[i, j])

    def allows(self, window: Window) -> bool:
        """Whether a training window is at least ``buffer`` px from every validation block.

        Beyond the scene's edge a window shows the scene reflected, which counts where it comes from.
        """
        rows = _near(self.row_edges, *_seen(window.row, window.row_stop, int(self.row_edges[-1])), self.buffer)
        cols = _near(self.col_edges, *_seen(window.col, window.col_stop, int(self.col_edges[-1])), self.buffer)
        return not (self.roles[slice(*rows), slice(*cols)] == VAL).any()

    def covers(self, split: str, window: Window) -> BoolArray:
        """Pixels (H, W) of a window that belong to a split: "val", or "train" for those ``buffer`` px away from it."""
        margin = 0 if split == "val" else self.buffer
        rows = _near(self.row_edges, window.row, window.row_stop, margin)
        cols = _near(self.col_edges, window.col, window.col_stop, margin)
        near = np.zeros((window.height, window.width), dtype=bool)
        for i, j in np.argwhere(self.roles[slice(*rows), slice(*cols)] == VAL).tolist():
            block = block_window(self.row_edges, self.col_edges, rows[0] + i, cols[0] + j)
            row, col = block.row - margin - window.row, block.col - margin - window.col
            stops = max(row + block.height + 2 * margin, 0), max(col + block.width + 2 * margin, 0)
            near[max(row, 0) : stops[0], max(col, 0) : stops[1]] = True
        return near if split == "val" else ~near

    def draw(self, rng: np.random.Generator, height: int, width: int) -> Window | None:
        """A random training window, uniform over the places that `allows` accepts; None if there are none.

        Along each axis windows lie inside the scene if they fit, and around it otherwise.
        """
        rows, cols, areas = self._places(height, width)
        ends = np.cumsum(areas.ravel())
        if not ends[-1]:
            return None
        pick = int(rng.integers(ends[-1]))
        cell = int(np.searchsorted(ends, pick, side="right"))
        within = pick - (int(ends[cell]) - int(areas.ravel()[cell]))
        i, j = divmod(cell, len(cols) - 1)
        row, col = divmod(within, int(cols[j + 1] - cols[j]))
        return Window(int(rows[i]) + row, int(cols[j]) + col, height, width)

    def fraction(self, height: int, width: int) -> float:
        """Share of the places of a window where it may train, in [0, 1]."""
        rows, cols, areas = self._places(height, width)
        return float(areas.sum() / (int(rows[-1] - rows[0]) * int(cols[-1] - cols[0])))

    def _places(self, height: int, width: int) -> tuple[IntArray, IntArray, IntArray]:
        """Edges of cells of rows and columns where windows may begin, and places in each cell; 0 where forbidden."""
        rows, first_row, stop_row = _cells(self.row_edges, height, self.buffer)
        cols, first_col, stop_col = _cells(self.col_edges, width, self.buffer)
        # Validation blocks above and left of each corner; four corners give the number in any rectangle of blocks.
        counts = np.pad(np.cumsum(np.cumsum(self.roles == VAL, axis=0), axis=1), ((1, 0), (1, 0)))
        a, b, c, d = first_row[:, None], stop_row[:, None], first_col, stop_col
        met = counts[b, d] - counts[a, d] - counts[b, c] + counts[a, c]
        areas = np.diff(rows)[:, None] * np.diff(cols)
        return rows, cols, np.where(met == 0, areas, 0).astype(np.int64)


def scene_split(
    grid: Grid, config: SplitConfig, *, seed: int, index: int, count: Callable[[Window], IntArray]
) -> SceneSplit:
    """The blocks of a scene, and a seeded choice of those that validate.

    The choice is the one of several random ones whose share of every class is most equal. In a scene with two blocks
    or more, at least one trains, and at least one validates if it is the first scene or its share is half a block or
    more. The rest of the configured share is spread over the scenes.

    ``index`` is the position of the scene in the configuration, ``count`` gives the valid, labelled pixels of each
    class (K,) in a block. Blocks without any are unused.
    """
    row_edges, col_edges = block_edges(grid.height, config.block), block_edges(grid.width, config.block)
    roles = np.full((len(row_edges) - 1, len(col_edges) - 1), UNUSED, dtype=np.int8)
    counts = np.array([count(block_window(row_edges, col_edges, i, j)) for i, j in np.ndindex(*roles.shape)])
    usable = np.flatnonzero(counts.sum(axis=1))
    roles.flat[usable] = TRAIN
    # Multiples of the golden ratio spread evenly, so all scenes together come close to the share.
    offset = (float(np.random.default_rng(seed).random()) + index * 0.6180339887498949) % 1
    number = int(len(usable) * config.val_share + offset)
    if len(usable) > 1:
        number = min(max(number, int(index == 0 or len(usable) * config.val_share >= 0.5)), len(usable) - 1)
    if number:
        rng = np.random.default_rng((seed, index))
        roles.flat[usable[_fairest(counts[usable], number, rng)]] = VAL
    return SceneSplit(row_edges, col_edges, roles, config.buffer)


def block_edges(length: int, block: int) -> IntArray:
    """First pixels of the blocks along an axis, then its length; a rest of half a block or less joins the last block.

    So a validation window reflected at the scene's edge shows its own block only.
    """
    edges = list(range(0, length, block))
    if len(edges) > 1 and 2 * (length - edges[-1]) <= block:
        edges.pop()
    return np.array([*edges, length], dtype=np.int64)


def block_window(row_edges: IntArray, col_edges: IntArray, row: int, col: int) -> Window:
    """The window of a block."""
    (top, bottom), (left, right) = row_edges[row : row + 2].tolist(), col_edges[col : col + 2].tolist()
    return Window(top, left, bottom - top, right - left)


def _seen(start: int, stop: int, length: int) -> tuple[int, int]:
    """First and one past the last pixel of an axis that a window shows, reflected ones included."""
    shown = reflected(np.arange(start, stop), length)
    return int(shown.min()), int(shown.max()) + 1


def _near(edges: IntArray, start: Any, stop: Any, buffer: int) -> tuple[Any, Any]:
    """First and one past the last block less than ``buffer`` px from ``start … stop``, or in it."""
    return (
        np.searchsorted(edges[1:], np.asarray(start) - buffer, side="right"),
        np.searchsorted(edges[:-1], np.asarray(stop) + buffer, side="left"),
    )


def _cells(edges: IntArray, size: int, buffer: int) -> tuple[IntArray, IntArray, IntArray]:
    """Starts of windows along an axis in runs that meet the same blocks: edges of the runs, first and stop block."""
    length = int(edges[-1])
    low, high = min(0, length - size), max(0, length - size) + 1
    turns = np.concatenate([[low, high], edges[:-1] - buffer - size + 1, edges[1:] + buffer])
    runs = np.unique(turns[(turns >= low) & (turns <= high)])
    starts = runs[:-1]
    if size > length:
        # It shows the whole axis wherever it begins.
        return runs, np.zeros_like(starts), np.full_like(starts, len(edges) - 1)
    first, stop = _near(edges, starts, starts + size, buffer)
    return runs, first, stop


def _fairest(counts: IntArray, number: int, rng: np.random.Generator) -> IntArray:
    """The random choice of ``number`` blocks, of pixels (N, K), with the most equal share of every class."""
    total = counts.sum(axis=0)
    shares = counts[:, total > 0] / total[total > 0]
    choices = [np.sort(rng.choice(len(counts), number, replace=False)) for _ in range(_CANDIDATES)]
    unfair = [float(np.abs(shares[choice].sum(axis=0) - number / len(counts)).sum()) for choice in choices]
    return choices[int(np.argmin(unfair))]
