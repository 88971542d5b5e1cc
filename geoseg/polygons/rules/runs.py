"""Runs and regions of some rows of a class map.

A *run* is a maximal piece of one value in a row, a *region* a maximal set of 4-connected pixels of one value; neither
has a cut in it (see `geoseg.map_rows.MapRows`). Both are numbered in raster order of their first pixel.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from geoseg.arrays import AnyArray, BoolArray, ByteArray, Int32Array, IntArray
from geoseg.map_rows import CUT_EAST, CUT_SOUTH, NO_CUTS
from geoseg.runtime.forest import join
from geoseg.runtime.jit import njit


class Runs(NamedTuple):
    """Runs of some rows: those of row y are ``offsets[y]:offsets[y + 1]``, each begins where the one before ends."""

    offsets: IntArray  # (rows + 1,)
    ends: Int32Array  # column after the last pixel, (runs,)
    region: Int32Array  # (runs,)

    def widths(self) -> Int32Array:
        """Pixels of each run."""
        widths = np.diff(self.ends, prepend=np.int32(0))
        first = self.offsets[:-1]
        widths[first] = self.ends[first]
        return widths


class Regions(NamedTuple):
    """Regions of some rows."""

    value: ByteArray
    area: IntArray  # fixed point; only what lies in these rows
    first_row: Int32Array
    is_settled: BoolArray  # was decided before, or is large
    in_last_row: BoolArray
    at_side: BoolArray  # touches the map's left or right edge


def label_rows(
    values: ByteArray, pixel_area: IntArray, settled: Int32Array, cuts: ByteArray = NO_CUTS
) -> tuple[Runs, Regions]:
    """Runs and regions of some rows.

    Args:
        values: (rows, W).
        pixel_area: Area of a pixel in each row, fixed point, (rows,) or more.
        settled: For each pixel of the first row the number (below W) of the region that it belongs to if that has been
            decided before; -1 where not. Equal numbers are one region, also where only rows above connect it. (W,)
        cuts: Cuts between the pixels, (rows, W), or an empty array.
    """
    is_end = np.ones(values.shape, dtype=bool)
    is_end[:, :-1] = values[:, :-1] != values[:, 1:]
    if cuts.size:
        is_end |= cuts & CUT_EAST > 0
    row, last = np.nonzero(is_end)
    ends = (last + 1).astype(np.int32)
    offsets = np.searchsorted(row, np.arange(len(values) + 1))
    value = values[row, last]
    region = np.arange(len(ends), dtype=np.int32)
    count = _label_runs(offsets, ends, value, settled, cuts, region)
    runs = Runs(offsets, ends, region)
    first_run = np.empty(count, dtype=np.int64)
    first_run[region[::-1]] = np.arange(len(ends))[::-1]  # of equal places the one that is set last stays
    area = np.zeros(count, dtype=np.int64)
    np.add.at(area, region, runs.widths() * pixel_area[row])
    is_settled, in_last_row, at_side = (np.zeros(count, dtype=bool) for _ in range(3))
    is_settled[region[np.searchsorted(ends[: offsets[1]], np.flatnonzero(settled >= 0), side="right")]] = True
    in_last_row[region[offsets[-2] :]] = True
    at_side[region[offsets[:-1]]] = at_side[region[offsets[1:] - 1]] = True
    return runs, Regions(value[first_run], area, row[first_run].astype(np.int32), is_settled, in_last_row, at_side)


@njit
def _label_runs(
    offsets: IntArray, ends: Int32Array, value: ByteArray, settled: Int32Array, cuts: ByteArray, region: Int32Array
) -> int:
    """Make ``region`` the number of each run's region; how many there are."""
    width = len(settled)
    first_with = np.empty(width, np.int64)
    first_with[:] = -1
    run = 0
    for x in range(width):
        if x == ends[run]:
            run += 1
        if settled[x] >= 0:
            if first_with[settled[x]] < 0:
                first_with[settled[x]] = run
            join(region, first_with[settled[x]], run)
    for y in range(1, len(offsets) - 1):
        a, b, x = offsets[y - 1], offsets[y], 0
        while x < width:
            x = min(ends[a], ends[b])
            if value[a] == value[b] and not (cuts.size and cuts[y - 1, x - 1] & CUT_SOUTH):
                join(region, a, b)
            a, b = a + (ends[a] == x), b + (ends[b] == x)
    count = 0
    for run in range(len(ends)):  # parents come first
        if region[run] == run:
            region[run] = count
            count += 1
        else:
            region[run] = region[region[run]]
    return count


def painted(runs: Runs, value: AnyArray) -> AnyArray:
    """The rows, (rows, W), given the value of each region."""
    return np.repeat(value[runs.region], runs.widths()).reshape(len(runs.offsets) - 1, -1)


def number_row(runs: Runs, row: int, region: Int32Array) -> Int32Array:
    """What `label_rows` takes as ``settled`` when this row is the first, (W,).

    ``region`` is the region that each region has become part of.
    """
    here = slice(runs.offsets[row], runs.offsets[row + 1])
    widths = runs.widths()[here]
    _, first, member = np.unique(region[runs.region[here]], return_index=True, return_inverse=True)
    return np.asarray(np.repeat((runs.ends[here] - widths)[first[member]], widths), dtype=np.int32)
