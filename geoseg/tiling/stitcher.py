"""Overlapping logits to finished rows of one class map, in memory that does not grow with the scene's height.

Windows add their logits, weighted by a taper, on one scene-wide grid of the network's stride. What is added is how far
each class lies below the window's best, as integers (1/16384), so no order or grouping of windows changes the sums.
"""

from __future__ import annotations

import operator
from dataclasses import astuple, dataclass, replace

import numpy as np

from geoseg.arrays import BoolArray, FloatArray, Int32Array
from geoseg.options import Layers
from geoseg.tiling.arrays import LOGIT_LIMIT, Array, Block, HostArrays, Pending
from geoseg.tiling.kernels import Placement, Sums
from geoseg.tiling.plan import PIECE_BYTES, Plan, Span
from geoseg.windows import Window

FINEST_STEP = 1 << 14
FULL_WEIGHT = 256
SMALLEST_FULL_WEIGHT = 16
MAX_SUM = 2**31 - 1

_MEASURED, _SMALL_PX = 8, 1 << 24
"""Of so many pieces one has its confidence though it is not wanted, for the mean over the map to be known; of a map of
so few pixels all have it."""

SEAM_PX = 16  # windows' borders are so wide where seams are counted


@dataclass(frozen=True, slots=True)
class SeamCounts:
    """Logits that at least two windows saw, and those of them where the windows' own classes differ."""

    border: int = 0  # those within 16 px of a window's border
    border_differs: int = 0
    inside: int = 0  # the others
    inside_differs: int = 0

    def __add__(self, other: SeamCounts) -> SeamCounts:
        return SeamCounts(*map(operator.add, astuple(self), astuple(other)))

    @property
    def border_share(self) -> float:
        """Share of the logits near windows' borders where the windows differ; 0 where there are none."""
        return self.border_differs / max(self.border, 1)

    @property
    def inside_share(self) -> float:
        """The same of the other logits that several windows saw."""
        return self.inside_differs / max(self.inside, 1)


class Stitcher:
    """Running state of one strip of a scene: give it windows row by row, get finished rows.

    Args:
        plan: That of the scene.
        rows, cols: Rows and columns of the output; see `Plan.band_span` and `Plan.strip_span`.
        arrays: Those of the device that the logits are on; see `geoseg.tiling.arrays.arrays_on`.
        layers: Layers beside the classes; some pieces have confidence all the same, see `_MEASURED`.
    """

    def __init__(self, plan: Plan, rows: Span, cols: Span, arrays: HostArrays, layers: Layers = Layers()) -> None:
        self._plan, self._rows, self._cols, self._arrays, self._layers = plan, rows, cols, arrays, layers
        self._tapers = _Tapers(plan, arrays)
        cells = plan.window_height // plan.stride, cols.cell_stop - cols.cell_first
        # Rows self._first … of the scene-wide grid of logits.
        constant = arrays.constant
        self._sums = Sums(
            constant(np.zeros((plan.classes, *cells), dtype=np.int32)),
            constant(np.zeros(cells, dtype=np.int32)),
            low=constant(np.full(cells, 255, dtype=np.uint8)),
            high=constant(np.zeros(cells, dtype=np.uint8)),
        )
        self._first = rows.starts[0] // plan.stride
        self._above: Block | None = None
        self._rows_out = rows.first
        self._pieces, self._every = 0, _MEASURED if plan.height * plan.width > _SMALL_PX else 1
        self.seams = _SeamCounter(plan, rows, cols, arrays)

    def add(self, window: Window, logits: Array) -> None:
        """Add the logits of a window of the row of windows being worked on; see `finish`.

        They are (K, window height / stride, window width / stride), of any float type; on a GPU a tensor.
        """
        s = self._plan.stride
        assert window.row // s == self._first, "windows come row by row, each row after finish()"
        first, stop = max(window.col // s, self._cols.cell_first), min(window.col_stop // s, self._cols.cell_stop)
        own = slice(first - window.col // s, stop - window.col // s)
        here = slice(first - self._cols.cell_first, stop - self._cols.cell_first)
        self._arrays.add_logits(logits, self._tapers.of(window), self._sums, own, here, self._tapers.step)

    def finish(self, next_row: int | None) -> list[Pending]:
        """The rows that no further window touches, in pieces from top to bottom that continue those returned before.

        ``next_row`` is the first row of the next row of windows, px; None after the last one.
        """
        classes, total, width = self._sums.logits.shape
        done = total if next_row is None else next_row // self._plan.stride - self._first
        low, high = (min(max(i - self._first, 0), done) for i in (self._rows.cell_first, self._rows.cell_stop))
        piece = max(PIECE_BYTES // (4 * classes * width), 1)
        out = []
        for first in range(low, high, piece):
            out += self._upsample(slice(first, min(first + piece, high)))
        for sums, empty in zip(self._sums, (0, 0, 255, 0), strict=True):
            kept = self._arrays.copy(sums[..., done:, :])
            sums[..., : total - done, :] = kept
            sums[..., total - done :, :] = empty
        self._first += done
        return out

    def _upsample(self, rows: slice) -> list[Pending]:
        """Pixels from the middle of the row of logits before these to that of the last; to the scene's own ends."""
        plan, s = self._plan, self._plan.stride
        low = self._sums.low[rows]
        differs = self._sums.high[rows] > low  # no window: 0 < 255
        self.seams.add(self._first + rows.start, differs, low)
        block = Block(*self._arrays.mean_logits(self._sums, rows), differs)
        # The last row waits for the row after it, to be interpolated with. A copy, so that the block is let go.
        last = Block(*(self._arrays.copy(part[..., -1:, :]) for part in block))
        if self._above is not None:
            block = Block(*map(self._arrays.join, self._above, block))
        self._above = last
        top, stop = self._first + rows.stop - len(block.covered), self._first + rows.stop
        at_end = stop == plan.padded_height // s
        y = self._rows.stop if at_end else min(stop * s - s // 2, self._rows.stop)
        if y <= self._rows_out:
            return []
        place = Placement(
            top=top,
            left=self._cols.cell_first,
            grid_rows=plan.padded_height // s,
            grid_cols=plan.padded_width // s,
            stride=s,
            first_row=self._rows_out,
            first_col=self._cols.first,
            height=y - self._rows_out,
            width=self._cols.stop - self._cols.first,
            step=self._tapers.step,
        )
        self._rows_out = y
        layers = self._layers if self._pieces % self._every else replace(self._layers, confidence=True)
        self._pieces += 1
        return [self._arrays.finish(block, place, layers)]


class _Tapers:
    """Integer weights of windows: fading towards other windows, full at the scene's own edges.

    They are never 0, so that a window beside a skipped one leaves no hole; with `step`, the fixed-point units of one
    logit, the sums of all windows stay in 32 bits.
    """

    def __init__(self, plan: Plan, arrays: HostArrays) -> None:
        self._plan, self._arrays = plan, arrays
        (rows, row_sum, row_count), (cols, col_sum, col_count) = (
            _axis(taper, starts, plan.stride) for taper, starts in zip(plan.tapers, (plan.rows, plan.cols), strict=True)
        )
        self._axes = rows, cols
        most = MAX_SUM / (LOGIT_LIMIT + 1) / FINEST_STEP
        every = row_count * col_count  # a window adds at most 1 by rounding up
        self._full = max(min(FULL_WEIGHT, int((most - every) / (row_sum * col_sum))), SMALLEST_FULL_WEIGHT)
        self.step = FINEST_STEP
        while (LOGIT_LIMIT + 1) * self.step * (self._full * row_sum * col_sum + every) > MAX_SUM:
            self.step //= 2
        self._made: dict[tuple[bool, ...], Array] = {}

    def of(self, window: Window) -> Array:
        """Weights (h, w) int32 of a window of the grid."""
        plan = self._plan
        ends = window.row == 0, window.row == plan.rows[-1], window.col == 0, window.col == plan.cols[-1]
        if ends not in self._made:
            rows, cols = self._axes[0][ends[:2]], self._axes[1][ends[2:]]
            weights = np.maximum(np.rint(self._full * rows[:, None] * cols), 1).astype(np.int32)
            self._made[ends] = self._arrays.constant(weights)
        return self._made[ends]


def _axis(
    taper: FloatArray, starts: tuple[int, ...], stride: int
) -> tuple[dict[tuple[bool, ...], FloatArray], float, int]:
    """Tapers of first, middle and last windows along an axis; the greatest sum of weights, and number of windows."""
    place, half, ends = np.arange(len(taper)), len(taper) // 2, (False, True)
    before, after = place < half, place >= len(taper) - half
    tapers: dict[tuple[bool, ...], FloatArray] = {
        (first, last): np.where(first & before | last & after, taper.max(), taper) for first in ends for last in ends
    }
    length = starts[-1] // stride + len(taper)
    total, number = np.zeros(length), np.zeros(length, dtype=np.int64)
    for start in starts:
        own = slice(start // stride, start // stride + len(taper))
        total[own] += tapers[start == 0, start == starts[-1]]
        number[own] += 1
    return tapers, float(total.max()), int(number.max())


class _SeamCounter:
    """Counts logits where windows differ, near windows' borders and elsewhere, by band; each in one task."""

    def __init__(self, plan: Plan, rows: Span, cols: Span, arrays: HostArrays) -> None:
        s = plan.stride
        self._band_cells = -(-plan.band_rows // s)
        # A logit belongs to the output that holds its first pixel, so that tasks count each once.
        self._first, self._stop = -(-rows.first // s), -(-rows.stop // s)
        first, stop = -(-cols.first // s), -(-cols.stop // s)
        self._own = slice(first - cols.cell_first, stop - cols.cell_first)
        self._looks_row, self._near_row = map(arrays.constant, _looks(plan.rows, plan.window_height, s))
        looks, near = _looks(plan.cols, plan.window_width, s)
        self._looks_col, self._near_col = arrays.constant(looks[first:stop]), arrays.constant(near[first:stop])
        self._counts: dict[int, list[Array]] = {}  # on a GPU not waited for before the end

    def add(self, first: int, differs: Array, low: Array) -> None:
        """Count rows of logits from ``first`` on: whether windows differ, and the lowest class, 255 for no window."""
        row, stop = max(first, self._first), min(first + len(differs), self._stop)
        while row < stop:
            band = row // self._band_cells
            end = min((band + 1) * self._band_cells, stop)
            here = slice(row - first, end - first)
            several = self._looks_row[row:end, None] * self._looks_col > 1
            several &= low[here, self._own] < 255
            near = self._near_row[row:end, None] | self._near_col
            border, inside, different = several & near, several & ~near, differs[here, self._own]
            found = [mask.sum() for mask in (border, border & different, inside, inside & different)]
            self._counts[band] = [a + b for a, b in zip(found, self._counts.get(band, (0, 0, 0, 0)), strict=True)]
            row = end

    def of(self, band: int) -> SeamCounts:
        """The counts of a band, once all its rows are finished."""
        return SeamCounts(*map(int, self._counts.get(band, ())))


def _looks(starts: tuple[int, ...], size: int, stride: int) -> tuple[Int32Array, BoolArray]:
    """How many windows see each row of logits, and whether it lies near a border that is not the scene's own."""
    length, stop = (starts[-1] + size) // stride, starts[-1] + size
    looks, near = np.zeros(length, dtype=np.int32), np.zeros(length, dtype=bool)
    margin = max(SEAM_PX // stride, 1)
    for start in starts:
        looks[start // stride : (start + size) // stride] += 1
        for border in {start, start + size} - {0, stop}:
            near[max(border // stride - margin, 0) : border // stride + margin] = True
    return looks, near
