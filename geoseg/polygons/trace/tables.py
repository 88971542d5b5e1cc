"""Tables of the objects that are too many to be Python objects: named tuples of equally long arrays that grow.

Half-arc 2 · arc is an arc walked from start to end, 2 · arc + 1 the same arc walked back; a half-arc belongs to the
region on its left. Each region lists its half-arcs, and each node those that leave it.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar, cast

import numpy as np

from geoseg.polygons.trace.cracks import ByteArray, Int32Array, Int64Array, ValueArray

ABSENT = -1  # no crack in this direction of a node
UNFINISHED = -2  # the arc is not whole yet
DROPPED = -3  # the arc was whole and is not needed any more


class Regions(NamedTuple):
    """One row per region; numbers are joined by ``parent``, and the row of the root counts."""

    parent: Int32Array
    value: ValueArray
    pixels: Int64Array
    first: Int64Array
    last: Int32Array
    confidence_sum: Int64Array
    confidence_min: ByteArray
    halves: Int32Array  # number of its half-arcs
    tail: Int32Array  # the last of them in a circular list, −1 without any


class Arcs(NamedTuple):
    """One row per whole arc; columns of two are for the left and right side, or for start and end."""

    sides: Int32Array
    nodes: Int32Array  # −1 for a loop without a node
    keys: Int64Array
    area: Int64Array
    lowest: Int32Array
    span: Int64Array  # where its finished points begin and end
    follower: Int32Array  # next half-arc in the region's list, by side
    done: ByteArray  # bit 0 and 1: the left and right side need it no more


class Nodes(NamedTuple):
    """One row per node: the half-arcs that leave it to the east, south, west and north."""

    halves: Int32Array


class Points(NamedTuple):
    """One row per point."""

    xy: Int32Array


Table = TypeVar("Table", bound=tuple[object, ...])


def grown(table: Table, used: int, wanted: int) -> Table:
    """A table (named tuple of arrays of equal length) with room for ``wanted`` rows; its first ``used`` are kept.

    At least doubles the room it has, so that growing by small steps copies each row a bounded number of times.
    """
    arrays = cast(tuple[np.ndarray, ...], table)
    room = len(arrays[0])
    if wanted <= room:
        return table
    larger = []
    for array in arrays:
        new = np.empty((max(wanted, 2 * room), *array.shape[1:]), dtype=array.dtype)
        new[:used] = array[:used]
        larger.append(new)
    return type(table)(*larger)


def row_bytes(table: tuple[object, ...]) -> int:
    """Bytes of one row of a table."""
    return sum(array[:1].nbytes for array in cast(tuple[np.ndarray, ...], table))
