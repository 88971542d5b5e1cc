"""Tables of the objects that are too many to be Python objects: arrays of equal length that grow.

Half-arc 2 · arc is an arc walked from start to end, 2 · arc + 1 the same arc walked back; a half-arc belongs to the
region on its left. Each region lists its half-arcs, and each node those that leave it.
"""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from geoseg.arrays import AnyArray, BoolArray, ByteArray, Int16Array, Int32Array, IntArray

ABSENT = -1  # no crack in this direction of a node
UNFINISHED = -2  # the arc is not whole yet
DROPPED = -3  # the arc was whole and is not needed any more


class Regions(NamedTuple):
    """One row per region; numbers are joined by ``parent``, and the row of the root counts."""

    parent: Int32Array
    value: Int16Array
    pixels: IntArray
    first: IntArray
    last: Int32Array
    confidence_sum: IntArray
    confidence_min: ByteArray
    halves: Int32Array  # number of its half-arcs
    tail: Int32Array  # the last of them in a circular list, −1 without any


class Arcs(NamedTuple):
    """One row per whole arc; columns of two are for the left and right side, or for start and end."""

    sides: Int32Array
    nodes: Int32Array  # −1 for a loop without a node
    keys: IntArray
    area: IntArray
    lowest: Int32Array
    span: IntArray  # where its finished points begin and end
    follower: Int32Array  # next half-arc in the region's list, by side
    done: ByteArray  # bit 0 and 1: the left and right side need it no more


class Nodes(NamedTuple):
    """One row per node: the half-arcs that leave it to the east, south, west and north."""

    halves: Int32Array


class Points(NamedTuple):
    """One row per point."""

    xy: Int32Array


Rows = TypeVar("Rows", bound=tuple[Any, ...])


class Table(Generic[Rows]):
    """A named tuple of arrays with room for more rows than there are.

    Attributes:
        rows: The arrays; new ones after `add`, so they must not be kept.
        count: How many rows are in use.
    """

    def __init__(self, kind: type[Rows], *columns: tuple[str, int]) -> None:
        """Without rows yet; ``columns`` are the data type of each array and its width, 0 for one dimension."""
        self.rows = kind(*(np.empty((0, width) if width else 0, dtype) for dtype, width in columns))
        self.count = 0

    def add(self, count: int) -> slice:
        """Where further rows are, whose values are to be set; earlier rows are copied a bounded number of times."""
        before, self.count = self.count, self.count + count
        room = len(self.rows[0])
        if self.count > room:
            larger = [np.empty((max(self.count, 2 * room), *a.shape[1:]), a.dtype) for a in self.rows]
            for new, old in zip(larger, self.rows, strict=True):
                new[:before] = old[:before]
            self.rows = type(self.rows)(*larger)
        return slice(before, self.count)

    def keep(self, kept: BoolArray) -> None:
        """Drop the rows that are not ``kept``, (count,)."""
        left = int(np.count_nonzero(kept))
        for array in self.rows:
            array[:left] = array[: self.count][kept]
        self.count = left

    def used(self) -> Rows:
        """The rows in use, as views."""
        return type(self.rows)(*(array[: self.count] for array in self.rows))

    def nbytes(self) -> int:
        """Bytes of the rows in use."""
        return sum(array.nbytes for array in self.used())


def new_numbers(kept: BoolArray) -> Int32Array:
    """Number of each row once others are dropped, −1 for those; index −1 gives −1 as well."""
    return np.append(np.where(kept, np.cumsum(kept) - 1, -1), [-1, -1]).astype(np.int32)


def renumber(halves: Int32Array, number: Int32Array) -> Int32Array:
    """Half-arcs, or ends of pieces, after their arcs were renumbered; negative ones stay."""
    return np.where(halves < 0, halves, 2 * number[halves >> 1] + (halves & 1))


def spans(sizes: IntArray) -> IntArray:
    """Begin and end of pieces that lie one after the other, (n, 2)."""
    ends = np.cumsum(sizes)
    return np.column_stack([ends - sizes, ends])


def ranges(begin: AnyArray, end: AnyArray) -> tuple[IntArray, IntArray]:
    """The numbers of several ranges one after the other, and the index of the range that each is from."""
    sizes = end - begin
    owner = np.repeat(np.arange(len(sizes)), sizes)
    return np.arange(len(owner)) + (begin - np.cumsum(sizes) + sizes)[owner], owner
