"""A scene cut into blocks, of which some validate: which windows may train, and where the blocks lie as a GeoPackage.

Neighbouring pixels of imagery look alike, so a random choice of windows tests on what was trained on. Whole blocks
are set aside instead, and a strip around each of them trains nothing (spatial block cross-validation; Roberts et al.
2017, doi:10.1111/ecog.02881).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas
import numpy as np
import numpy.typing as npt
from shapely.geometry import Polygon

from geoseg.config import SplitConfig
from geoseg.files import atomic_output
from geoseg.grid import Grid
from geoseg.windows import Window

if TYPE_CHECKING:
    from geoseg.data.labelled import LabelledScene

UNUSED, TRAIN, VAL = 0, 1, 2
"""What a block is for; unused ones hold no pixel that is valid and labelled."""

ROLE_NAMES = ("unused", "train", "val")

IntArray = npt.NDArray[np.int64]

_CANDIDATES = 64
"""Random choices of blocks of which the one that shares the classes most evenly is taken."""


@dataclass(frozen=True, slots=True, eq=False)
class SceneSplit:
    """The blocks of one scene and what each is for.

    Attributes:
        row_edges: Rows where blocks begin, and the scene's height at the end, px.
        col_edges: Columns likewise.
        roles: UNUSED, TRAIN or VAL of each block (rows, cols).
        buffer: Strip around every validation block that no training window may touch, px.
    """

    row_edges: IntArray
    col_edges: IntArray
    roles: npt.NDArray[np.int8]
    buffer: int

    @property
    def validation(self) -> tuple[Window, ...]:
        """The blocks that validate, row by row; scene-wide px."""
        return tuple(window for _, _, window, role in self.blocks() if role == VAL)

    def blocks(self) -> Iterator[tuple[int, int, Window, int]]:
        """Row and column of every block among the blocks, its window, and what it is for."""
        rows, cols = self.row_edges.tolist(), self.col_edges.tolist()
        for i, j in np.ndindex(*self.roles.shape):
            window = Window(rows[i], cols[j], rows[i + 1] - rows[i], cols[j + 1] - cols[j])
            yield i, j, window, int(self.roles[i, j])

    def allows(self, window: Window) -> bool:
        """Whether a training window may lie there: ``buffer`` px or more from every validation block.

        What a window beyond the scene's edge shows is the scene reflected, and counts where it comes from.
        """
        rows = _near(self.row_edges, *_seen(window.row, window.row_stop, int(self.row_edges[-1])), self.buffer)
        cols = _near(self.col_edges, *_seen(window.col, window.col_stop, int(self.col_edges[-1])), self.buffer)
        return not (self.roles[slice(*rows), slice(*cols)] == VAL).any()

    def validates(self, window: Window, margin: int = 0) -> npt.NDArray[np.bool_]:
        """Which pixels of a window are in a validation block, or less than ``margin`` px from one, (H, W)."""
        rows = _near(self.row_edges, window.row, window.row_stop, margin)
        cols = _near(self.col_edges, window.col, window.col_stop, margin)
        inside = np.zeros((window.height, window.width), dtype=bool)
        for i, j in np.argwhere(self.roles[slice(*rows), slice(*cols)] == VAL).tolist():
            place = []
            for edges, block, start in (
                (self.row_edges, rows[0] + i, window.row),
                (self.col_edges, cols[0] + j, window.col),
            ):
                first, stop = int(edges[block]) - margin - start, int(edges[block + 1]) + margin - start
                place.append(slice(max(first, 0), max(stop, 0)))
            inside[tuple(place)] = True
        return inside

    def draw(self, rng: np.random.Generator, height: int, width: int) -> Window | None:
        """A training window of a size, each place that `allows` it equally likely; None where there is none.

        Windows lie inside the scene along each axis on which they fit, and around it where they do not.
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
        """Share of the places of a window of a size where it may train; 0 where it fits nowhere."""
        rows, cols, areas = self._places(height, width)
        return float(areas.sum() / (int(rows[-1] - rows[0]) * int(cols[-1] - cols[0])))

    def _places(self, height: int, width: int) -> tuple[IntArray, IntArray, IntArray]:
        """Where windows may begin: edges of cells of rows and columns, and places in each cell, 0 where forbidden."""
        rows, first_row, stop_row = _cells(self.row_edges, height, self.buffer)
        cols, first_col, stop_col = _cells(self.col_edges, width, self.buffer)
        # Validation blocks above and left of each corner: four of them count those in any rectangle of blocks.
        counts = np.pad(np.cumsum(np.cumsum(self.roles == VAL, axis=0), axis=1), ((1, 0), (1, 0)))
        a, b, c, d = first_row[:, None], stop_row[:, None], first_col, stop_col
        met = counts[b, d] - counts[a, d] - counts[b, c] + counts[a, c]
        areas = np.diff(rows)[:, None] * np.diff(cols)
        return rows, cols, np.where(met == 0, areas, 0).astype(np.int64)


def scene_split(
    grid: Grid, config: SplitConfig, *, seed: int, index: int, counts: npt.NDArray[np.int64] | None = None
) -> SceneSplit:
    """The blocks of a scene, and a seeded choice of those that validate.

    Of random choices the one is taken whose blocks hold the most equal share of every class. Where a scene has two
    blocks or more, one of them trains; one of them validates if it is the first scene or its share comes to half a
    block. What is left of the wanted share is spread over the scenes.

    Args:
        grid: The scene's grid.
        config: Size of the blocks, share that validates, buffer.
        seed: The experiment's seed.
        index: The scene's place among the configured ones.
        counts: Pixels of each class in each block (rows, cols, K) that are valid and labelled; blocks without any are
            for nothing. None takes all blocks as alike.

    Returns:
        The split; the same for the same arguments.
    """
    row_edges, col_edges = block_edges(grid.height, config.block), block_edges(grid.width, config.block)
    shape = len(row_edges) - 1, len(col_edges) - 1
    if counts is None:
        counts = np.ones((*shape, 1), dtype=np.int64)
    usable = np.flatnonzero(counts.sum(axis=2).ravel())
    roles = np.full(shape, UNUSED, dtype=np.int8)
    roles.flat[usable] = TRAIN
    number = _validating(len(usable), config.val_share, seed, index)
    if number:
        rng = np.random.default_rng((seed, index))
        per_block = counts.reshape(-1, counts.shape[2])[usable]
        roles.flat[usable[_fairest(per_block, number, rng)]] = VAL
    return SceneSplit(row_edges, col_edges, roles, config.buffer)


def block_edges(length: int, block: int) -> IntArray:
    """Where blocks begin along an axis, and its end; a rest of half a block or less joins the last one.

    So a validation window reflected at the scene's edge shows its own block and nothing of the next one.
    """
    edges = list(range(0, length, block))
    if len(edges) > 1 and 2 * (length - edges[-1]) <= block:
        edges.pop()
    return np.array([*edges, length], dtype=np.int64)


def write_split(path: Path, train: Sequence[LabelledScene], val: Sequence[LabelledScene] = ()) -> None:
    """Write where is trained and validated as a GeoPackage, in the scenes' CRS; one layer for each CRS.

    Its polygons are the blocks of scenes that are cut, and the outlines of scenes that are not. Fields: ``scene``,
    ``split`` (train, val, unused), ``block_row`` and ``block_col`` (missing for whole scenes). Scenes without CRS have
    pixel coordinates, y = -row.

    Args:
        path: The GeoPackage; one that is there is replaced.
        train: Scenes that train; those that are cut hold the blocks that validate too.
        val: Scenes that validate. A scene that is cut is written once.

    Raises:
        OutputError: The folder cannot be written.
    """
    layers: dict[str, list[dict[str, Any]]] = {}
    systems: dict[str, Any] = {}
    done = set()
    for name, scenes in (("train", train), ("val", val)):
        for labelled in scenes:
            if labelled.split is not None and labelled.index in done:
                continue
            done.add(labelled.index)
            crs = labelled.grid.as_drawn().crs
            key = crs.to_wkt() if crs is not None else ""
            systems[key] = crs
            layers.setdefault(key, []).extend(_records(labelled, name))
    with atomic_output(path) as scratch:
        for number, (key, records) in enumerate(layers.items()):
            layer = "split" if len(layers) == 1 else f"split_{number + 1}"
            frame = geopandas.GeoDataFrame(records, crs=systems[key])
            frame = frame.astype({"block_row": "Int32", "block_col": "Int32"})
            frame.to_file(scratch, driver="GPKG", layer=layer, mode="a" if number else "w")


def corners(grid: Grid, window: Window) -> Polygon:
    """The outline of a window in the CRS of a grid."""
    place = [(window.col, window.row), (window.col_stop, window.row)]
    place += [(window.col_stop, window.row_stop), (window.col, window.row_stop)]
    return Polygon([grid.transform @ point for point in place])


def _records(labelled: LabelledScene, name: str) -> Iterator[dict[str, Any]]:
    grid = labelled.grid.as_drawn()
    scene = str(labelled.config.scene)
    if labelled.split is None:
        outline = corners(grid, Window(0, 0, *grid.shape))
        yield {"scene": scene, "split": name, "block_row": None, "block_col": None, "geometry": outline}
        return
    for row, col, window, role in labelled.split.blocks():
        yield {
            "scene": scene,
            "split": ROLE_NAMES[role],
            "block_row": row,
            "block_col": col,
            "geometry": corners(grid, window),
        }


def _seen(start: int, stop: int, length: int) -> tuple[int, int]:
    """First and one past the last pixel of an axis that a window shows, with what it reflects."""
    if start >= 0 and stop <= length:
        return start, stop
    if length == 1:
        return 0, 1
    phase = np.arange(start, stop) % (2 * (length - 1))
    shown = np.minimum(phase, 2 * (length - 1) - phase)
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
        # Wherever it begins, it shows the whole axis.
        return runs, np.zeros_like(starts), np.full_like(starts, len(edges) - 1)
    first, stop = _near(edges, starts, starts + size, buffer)
    return runs, first, stop


def _validating(blocks: int, share: float, seed: int, index: int) -> int:
    """How many of a scene's usable blocks validate."""
    wanted = blocks * share
    # Multiples of the golden ratio are spread evenly, so the scenes together come close to the share.
    offset = (float(np.random.default_rng(seed).random()) + index * 0.6180339887498949) % 1
    number = int(wanted + offset)
    if blocks < 2:
        return number
    return min(max(number, int(index == 0 or wanted >= 0.5)), blocks - 1)


def _fairest(counts: IntArray, number: int, rng: np.random.Generator) -> IntArray:
    """Of random choices of ``number`` blocks, the one with the most equal share of every class.

    Args:
        counts: Pixels of each class in each block (N, K).
        number: Blocks to choose.
        rng: Source of the choices.
    """
    total = counts.sum(axis=0)
    shares = counts[:, total > 0] / total[total > 0]
    choices = [np.sort(rng.choice(len(counts), number, replace=False)) for _ in range(_CANDIDATES)]
    unfair = [float(np.abs(shares[choice].sum(axis=0) - number / len(counts)).sum()) for choice in choices]
    return choices[int(np.argmin(unfair))]
