"""Regions of truth and map matched with each other, from rows as they come."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy import sparse

from geoseg.arrays import BoolArray, ByteArray, Int32Array, IntArray
from geoseg.classes import NODATA
from geoseg.evaluation.boundary import both_known
from geoseg.evaluation.result import ObjectScores
from geoseg.map_rows import CUT_EAST, CUT_SOUTH
from geoseg.runtime.forest import find_root, join
from geoseg.runtime.jit import njit


class Regions(NamedTuple):
    """Regions of truth or map that may still matter, 4-connected and of one class; number 0 is no region."""

    value: ByteArray  # class of each, (n,)
    pixels: IntArray  # size so far, px, (n,)
    counted: BoolArray  # whether it is closed and counted, (n,)
    last_row: Int32Array  # region of each pixel of the last row, (W,)
    last_value: ByteArray  # class of each pixel of the last row, (W,)
    last_cuts: ByteArray  # its cuts, (W,)

    @property
    def closed(self) -> BoolArray:
        """Those that do not reach the last row, (n,); number 0 among them."""
        closed = ~np.isin(np.arange(len(self.value)), self.last_row)
        closed[0] = True
        return closed


class _Pairs(NamedTuple):
    """Regions of truth and map that share pixels, and how many, each (m,)."""

    true: IntArray
    found: IntArray
    shared: IntArray


class ObjectMeasure:
    """Counts regions of truth and map, and pairs of them with an IoU above one half, from rows as they come.

    A region is a 4-connected set of pixels of one class without cuts, ``of`` the ids given or of all. Pixels that are
    255 in truth or map belong to none, so of a region that they cut only the known part counts. Only regions that reach
    the last row are kept, and closed ones that may still match one of those.
    """

    def __init__(self, classes: int, width: int, *, of: Iterable[int] | None = None) -> None:
        self._wanted = np.full(256, NODATA, dtype=np.uint8)
        ids = np.arange(classes) if of is None else np.array(sorted(of), dtype=np.int64)
        self._wanted[ids] = ids
        self._sides = (no_regions(width), no_regions(width))
        self._pairs = _Pairs(*(np.zeros(0, dtype=np.int64) for _ in range(3)))
        self._counts = np.zeros((3, classes), dtype=np.int64)  # regions of the truth, of the map, matched pairs

    @property
    def held(self) -> int:
        """Regions in memory."""
        return sum(len(side.value) - 1 for side in self._sides)

    def feed(
        self, truth: ByteArray, mapped: ByteArray, cuts: tuple[ByteArray | None, ByteArray | None] = (None, None)
    ) -> None:
        """Take the next rows of truth and map, each (h, W); 255 does not count.

        ``cuts`` part the objects of truth and map that touch; see `geoseg.map_rows.MapRows`.
        """
        if len(truth):
            self._counts += self._advance(self._wanted[both_known(truth, mapped)], cuts)

    def result(self) -> ObjectScores:
        """The scores of all rows fed so far, as if the scene ended here."""
        before = self._sides, self._pairs
        ended = np.full((2, 1, len(self._sides[0].last_row)), NODATA, dtype=np.uint8)
        true, mapped, matched = self._counts + self._advance(ended, (None, None))
        self._sides, self._pairs = before
        return ObjectScores(true, mapped, matched)

    def _advance(self, rows: ByteArray, cuts: tuple[ByteArray | None, ByteArray | None]) -> IntArray:
        """Join rows (2, h, W) to the open regions; counts (3, K) of the regions and pairs that this closes."""
        after = [grown(side, values, cut) for side, values, cut in zip(self._sides, rows, cuts, strict=True)]
        sides, labels, renamed = (list(column) for column in zip(*after, strict=True))
        old = _Pairs(renamed[0][self._pairs.true], renamed[1][self._pairs.found], self._pairs.shared)
        new = _shared(labels[0], labels[1], (rows[0] == rows[1]) & (rows[0] != NODATA))
        true, found, pixels = (np.concatenate(columns) for columns in zip(old, new, strict=True))
        # Each pair once, with the sum of its pixels.
        table = sparse.coo_array((pixels, (true, found)), shape=tuple(len(side.value) for side in sides))
        table.sum_duplicates()
        pairs = _Pairs(*(column.astype(np.int64) for column in (*table.coords, table.data)))
        counts = np.zeros_like(self._counts)
        for i, side in enumerate(sides):
            closed = side.closed
            counts[i] += np.bincount(side.value[closed & ~side.counted], minlength=counts.shape[1])
            sides[i] = side._replace(counted=side.counted | closed)
        truth, mapped = sides
        both = truth.counted[pairs.true] & mapped.counted[pairs.found]
        alike = 3 * pairs.shared > truth.pixels[pairs.true] + mapped.pixels[pairs.found]
        counts[2] += np.bincount(truth.value[pairs.true[both & alike]], minlength=counts.shape[1])
        pairs = _Pairs(*(column[~both] for column in pairs))
        pairs = _Pairs(*(column[_may_match(pairs, truth, mapped)] for column in pairs))
        kept, first = without_the_finished(truth, pairs.true)
        others, second = without_the_finished(mapped, pairs.found)
        self._sides, self._pairs = (kept, others), _Pairs(first[pairs.true], second[pairs.found], pairs.shared)
        return counts


def _may_match(pairs: _Pairs, true: Regions, found: Regions) -> BoolArray:
    """Pairs (m,), one region at least open, that can still reach an IoU above one half.

    A closed region of A px and an open one of B px that share I px match if 3 I > A + B. Open regions may join later,
    which adds up their I and B; so A is compared with the sum of all positive 3 I − B.
    """
    keep = np.ones(len(pairs.shared), dtype=bool)
    for side, own, other, partner in ((true, pairs.true, found, pairs.found), (found, pairs.found, true, pairs.true)):
        gain = np.maximum(3 * pairs.shared - other.pixels[partner], 0)
        best = np.zeros(len(side.value), dtype=np.int64)
        np.add.at(best, own, gain)
        keep &= ~side.counted[own] | (best[own] > side.pixels[own])
    return keep


def no_regions(width: int) -> Regions:
    """The regions above the first row."""
    return Regions(
        np.full(1, NODATA, dtype=np.uint8),
        np.zeros(1, dtype=np.int64),
        np.ones(1, dtype=bool),
        np.zeros(width, dtype=np.int32),
        np.full(width, NODATA, dtype=np.uint8),
        np.zeros(width, dtype=np.uint8),
    )


def grown(side: Regions, values: ByteArray, cuts: ByteArray | None) -> tuple[Regions, Int32Array, IntArray]:
    """Regions after new rows (h, W), the region of each of their pixels (h, W), and the new numbers of the old ones."""
    cut = np.zeros_like(values) if cuts is None else np.ascontiguousarray(cuts)
    labels, names = _label_regions(np.ascontiguousarray(values), cut, side)
    count = int(names.max(initial=0)) + 1
    pixels, value = np.bincount(labels.ravel(), minlength=count), np.full(count, NODATA, dtype=np.uint8)
    value[labels] = values
    old = names[: len(side.value)].astype(np.int64)
    np.add.at(pixels, old, side.pixels)
    pixels[0] = 0
    value[old] = side.value
    value[0] = NODATA
    counted = np.zeros(count, dtype=bool)
    counted[old] = side.counted  # a closed region joins no other
    counted[0] = True
    return Regions(value, pixels, counted, labels[-1].copy(), values[-1].copy(), cut[-1].copy()), labels, old


def without_the_finished(side: Regions, paired: IntArray) -> tuple[Regions, IntArray]:
    """The regions that are open or in a pair, and the new numbers of all."""
    keep = ~side.counted
    keep[paired] = True
    keep[0] = True
    numbers = np.cumsum(keep) - 1
    last_row = numbers[side.last_row].astype(np.int32)
    kept = side._replace(value=side.value[keep], pixels=side.pixels[keep], counted=side.counted[keep])
    return kept._replace(last_row=last_row), numbers


def _shared(true: Int32Array, found: Int32Array, here: BoolArray) -> _Pairs:
    """Pairs of regions (h, W) that share pixels, one for each run of pixels along the rows; a pair may repeat."""
    width = int(found.max(initial=0)) + 1
    keys = np.where(here, true.astype(np.int64) * width + found, -1).ravel()
    starts = np.flatnonzero(np.diff(keys, prepend=-2))
    length = np.diff(starts, append=keys.size)
    is_pair = keys[starts] >= 0
    keys = keys[starts[is_pair]]
    return _Pairs(keys // width, keys % width, length[is_pair])


@njit
def _label_regions(values: ByteArray, cuts: ByteArray, above: Regions) -> tuple[Int32Array, Int32Array]:
    """Regions (h, W) of rows, joined to those above, and the number of every provisional label.

    The first labels are the old regions; numbers follow the order of labels, 0 stays 0.
    """
    height, width = values.shape
    known = bound = len(above.value)
    for y in range(height):
        for x in range(width):
            if values[y, x] != NODATA and (x == 0 or values[y, x] != values[y, x - 1] or cuts[y, x - 1] & CUT_EAST):
                bound += 1
    parent = np.arange(bound).astype(np.int32)
    labels = np.zeros((height, width), dtype=np.int32)
    count = known
    for y in range(height):
        over_values = above.last_value if y == 0 else values[y - 1]
        over_labels = above.last_row if y == 0 else labels[y - 1]
        over_cuts = above.last_cuts if y == 0 else cuts[y - 1]
        for x in range(width):
            value = values[y, x]
            if value == NODATA:
                continue
            left = labels[y, x - 1] if x > 0 and values[y, x - 1] == value and not cuts[y, x - 1] & CUT_EAST else 0
            over = over_labels[x] if over_values[x] == value and not over_cuts[x] & CUT_SOUTH else 0
            if left and over and left != over:
                join(parent, int(left), int(over))
            if left:
                labels[y, x] = left
            elif over:
                labels[y, x] = over
            else:
                labels[y, x] = count
                count += 1
    names = np.zeros(count, dtype=np.int32)
    number = 1
    for label in range(1, count):  # a root is the smallest label of its region
        if parent[label] == label:
            names[label] = number
            number += 1
        else:
            names[label] = names[find_root(parent, label)]
    for y in range(height):
        for x in range(width):
            labels[y, x] = names[labels[y, x]]
    return labels, names
