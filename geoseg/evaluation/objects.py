"""Regions of truth and map matched with one another, from rows as they come."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from geoseg.arrays import ByteArray
from geoseg.classes import NODATA
from geoseg.evaluation.boundary import both_known
from geoseg.evaluation.result import ObjectScores
from geoseg.runtime.jit import helper, njit

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]


class _Regions(NamedTuple):
    """Regions of one side (truth or map) that may still matter; number 0 is no region.

    Attributes:
        value: Class of each, (n,) uint8.
        pixels: Size so far, px, (n,).
        counted: Whether it is closed, so that it was counted, (n,).
        last_row: Region of each pixel of the last row, (W,).
        last_value: Class of each pixel of the last row, (W,).
    """

    value: ByteArray
    pixels: Int64Array
    counted: npt.NDArray[np.bool_]
    last_row: Int32Array
    last_value: ByteArray


class _Pairs(NamedTuple):
    """Regions of truth and map that share pixels: their numbers and how many, each (m,)."""

    true: Int64Array
    found: Int64Array
    shared: Int64Array


class ObjectMeasure:
    """Counts regions of truth and map, and pairs of them with an IoU above one half, while rows come.

    A region is a 4-connected set of pixels of one class. What does not count (255 in truth or map) belongs to none, so
    a region that it cuts is measured by the part that is known. Only regions that reach the last row are held, and
    closed ones that may still match one of those.

    Args:
        classes: K.
        width: Width of the scene, px.
        of: Ids of the classes whose regions are objects; None for all.
    """

    def __init__(self, classes: int, width: int, *, of: Iterable[int] | None = None) -> None:
        self._wanted = np.full(256, NODATA, dtype=np.uint8)
        ids = np.arange(classes) if of is None else np.array(sorted(of), dtype=np.int64)
        self._wanted[ids] = ids
        empty = _Regions(
            np.full(1, NODATA, dtype=np.uint8),
            np.zeros(1, dtype=np.int64),
            np.ones(1, dtype=bool),
            np.zeros(width, dtype=np.int32),
            np.full(width, NODATA, dtype=np.uint8),
        )
        self._sides = (empty, empty)
        self._pairs = _Pairs(*(np.zeros(0, dtype=np.int64) for _ in range(3)))
        self._counts = np.zeros((3, classes), dtype=np.int64)  # regions of the truth, of the map, matched pairs

    @property
    def held(self) -> int:
        """Regions in memory."""
        return sum(len(side.value) - 1 for side in self._sides)

    def feed(self, truth: ByteArray, mapped: ByteArray) -> None:
        """Take the next rows of truth and map, each (h, W); 255 does not count."""
        if len(truth):
            self._counts += self._advance(self._wanted[both_known(truth, mapped)])

    def result(self) -> ObjectScores:
        """The scores of all rows fed so far, as if the scene ended here."""
        before = self._sides, self._pairs
        ended = np.full((2, 1, len(self._sides[0].last_row)), NODATA, dtype=np.uint8)
        true, mapped, matched = self._counts + self._advance(ended)
        self._sides, self._pairs = before
        return ObjectScores(true, mapped, matched)

    def _advance(self, rows: ByteArray) -> Int64Array:
        """Join rows (2, h, W) to what is open; counts (3, K) of the regions and pairs that are closed by that."""
        labels, sides, renamed = [], [], []
        for values, side in zip(rows, self._sides, strict=True):
            numbered, names = _label(np.ascontiguousarray(values), side.last_value, side.last_row, len(side.value))
            labels.append(numbered)
            sides.append(_grown(side, values, numbered, names))
            renamed.append(names[: len(side.value)])
        old = self._pairs
        runs, length = _shared_runs(labels[0], labels[1], rows[0], rows[1])
        pairs = _summed(
            np.concatenate([renamed[0][old.true], runs[:, 0]]),
            np.concatenate([renamed[1][old.found], runs[:, 1]]),
            np.concatenate([old.shared, length]),
        )
        counts = np.zeros_like(self._counts)
        for i, side in enumerate(sides):
            closed = _closed(side)
            counts[i] += np.bincount(side.value[closed & ~side.counted], minlength=counts.shape[1])
            sides[i] = side._replace(counted=side.counted | closed)
        true, found = sides
        both = true.counted[pairs.true] & found.counted[pairs.found]
        alike = 3 * pairs.shared > true.pixels[pairs.true] + found.pixels[pairs.found]
        counts[2] += np.bincount(true.value[pairs.true[both & alike]], minlength=counts.shape[1])
        pairs = _Pairs(*(column[~both] for column in pairs))
        pairs = _Pairs(*(column[_may_match(pairs, true, found)] for column in pairs))
        kept, first = _without_the_finished(true, pairs.true)
        others, second = _without_the_finished(found, pairs.found)
        self._sides, self._pairs = (kept, others), _Pairs(first[pairs.true], second[pairs.found], pairs.shared)
        return counts


def _may_match(pairs: _Pairs, true: _Regions, found: _Regions) -> npt.NDArray[np.bool_]:
    """Pairs (m,) of regions of which one at least is open that can still come to an IoU above one half.

    A closed region of A px and an open one of B px that share I px match where 3 I > A + B. Open regions may join
    to one later, which adds up their I and B; so what is compared with A is the sum of all positive 3 I − B.
    """
    keep = np.ones(len(pairs.shared), dtype=bool)
    for side, own, other, partner in ((true, pairs.true, found, pairs.found), (found, pairs.found, true, pairs.true)):
        gain = np.maximum(3 * pairs.shared - other.pixels[partner], 0)
        best = np.zeros(len(side.value), dtype=np.int64)
        np.add.at(best, own, gain)
        keep &= ~side.counted[own] | (best[own] > side.pixels[own])
    return keep


def _grown(side: _Regions, values: ByteArray, labels: Int32Array, names: Int32Array) -> _Regions:
    """Regions with the pixels of new rows; ``names`` gives the new number of the old ones and of provisional labels."""
    count = int(names.max(initial=0)) + 1
    pixels, value = _sizes(labels, values, count)
    np.add.at(pixels, names[: len(side.pixels)], side.pixels)
    pixels[0] = 0
    value[names[: len(side.value)]] = side.value
    value[0] = NODATA
    counted = np.zeros(count, dtype=bool)
    counted[names[: len(side.counted)]] = side.counted  # a closed region is joined to no other
    counted[0] = True
    return _Regions(value, pixels, counted, labels[-1].copy(), values[-1].copy())


def _closed(side: _Regions) -> npt.NDArray[np.bool_]:
    """Regions (n,) without a pixel in the last row."""
    closed = np.ones(len(side.value), dtype=bool)
    closed[side.last_row] = False
    closed[0] = True
    return closed


def _without_the_finished(side: _Regions, paired: Int64Array) -> tuple[_Regions, Int64Array]:
    """The regions that are open or in a pair, and the new number of each old one."""
    keep = ~side.counted
    keep[paired] = True
    keep[0] = True
    numbers = np.cumsum(keep) - 1
    return (
        _Regions(
            side.value[keep],
            side.pixels[keep],
            side.counted[keep],
            numbers[side.last_row].astype(np.int32),
            side.last_value,
        ),
        numbers,
    )


def _summed(true: Int64Array, found: Int64Array, shared: Int64Array) -> _Pairs:
    """Each pair once, with the sum of its pixels."""
    if not len(shared):
        return _Pairs(true, found, shared)
    width = int(found.max()) + 1
    keys, place = np.unique(true * width + found, return_inverse=True)
    total = np.zeros(len(keys), dtype=np.int64)
    np.add.at(total, place.ravel(), shared)
    return _Pairs(keys // width, keys % width, total)


@helper
def _root(parent: Int32Array, label: int) -> int:
    while parent[label] != label:
        parent[label] = parent[parent[label]]
        label = parent[label]
    return label


@njit
def _label(
    values: ByteArray, above_values: ByteArray, above_labels: Int32Array, known: int
) -> tuple[Int32Array, Int32Array]:
    """Regions (h, W) int32 of rows, joined to those above, and the final number of every provisional label.

    The first ``known`` labels are the regions there were; numbers follow the order of labels, 0 stays 0.
    """
    height, width = values.shape
    bound = known
    for y in range(height):
        for x in range(width):
            if values[y, x] != NODATA and (x == 0 or values[y, x] != values[y, x - 1]):
                bound += 1
    parent = np.arange(bound).astype(np.int32)
    labels = np.zeros((height, width), dtype=np.int32)
    count = known
    for y in range(height):
        over_values = above_values if y == 0 else values[y - 1]
        over_labels = above_labels if y == 0 else labels[y - 1]
        for x in range(width):
            value = values[y, x]
            if value == NODATA:
                continue
            left = labels[y, x - 1] if x > 0 and values[y, x - 1] == value else 0
            over = over_labels[x] if over_values[x] == value else 0
            if left and over and left != over:
                a, b = _root(parent, int(left)), _root(parent, int(over))
                if a < b:
                    parent[b] = a
                elif b < a:
                    parent[a] = b
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
            names[label] = names[_root(parent, label)]
    for y in range(height):
        for x in range(width):
            labels[y, x] = names[labels[y, x]]
    return labels, names


@njit
def _sizes(labels: Int32Array, values: ByteArray, count: int) -> tuple[Int64Array, ByteArray]:
    """Pixels and class of each region."""
    sizes = np.zeros(count, dtype=np.int64)
    value = np.full(count, np.uint8(NODATA))
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            sizes[labels[y, x]] += 1
            value[labels[y, x]] = values[y, x]
    return sizes, value


@njit
def _shared_runs(
    true: Int32Array, found: Int32Array, truth: ByteArray, mapped: ByteArray
) -> tuple[Int64Array, Int64Array]:
    """Pairs (n, 2) of regions of one class along the rows, a run of pixels at a time, and the runs' lengths."""
    height, width = true.shape
    runs = 0
    for y in range(height):
        for x in range(width):
            here = truth[y, x] != NODATA and truth[y, x] == mapped[y, x]
            if here and (x == 0 or true[y, x] != true[y, x - 1] or found[y, x] != found[y, x - 1]):
                runs += 1
    pairs, length = np.zeros((runs, 2), dtype=np.int64), np.zeros(runs, dtype=np.int64)
    run = -1
    for y in range(height):
        for x in range(width):
            if truth[y, x] != NODATA and truth[y, x] == mapped[y, x]:
                if x == 0 or true[y, x] != true[y, x - 1] or found[y, x] != found[y, x - 1]:
                    run += 1
                    pairs[run, 0], pairs[run, 1] = true[y, x], found[y, x]
                length[run] += 1
    return pairs, length
