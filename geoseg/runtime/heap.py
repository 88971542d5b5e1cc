"""A heap of numbered items, the least first, from which any may be taken out: what simplifying and merging both need.

An item i comes before another if its ``key[i]`` is less, or as great and its ``rank[i]`` less; ranks differ. ``heap``
has the waiting items, ``place[i]`` where item i is in it, −1 for one that does not wait. A waiting item whose key has
changed is put anew.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from geoseg.runtime.jit import helper, int64

Ints = npt.NDArray[np.integer[Any]]
Keys = npt.NDArray[np.integer[Any] | np.floating[Any]]


@helper
def put(i: int, key: Keys, rank: Ints, heap: Ints, place: Ints, waiting: int) -> int:
    """Let an item wait, or settle one that waits and has another key; the new number of those that wait."""
    at = int64(place[i])
    if at < 0:
        at = waiting
        waiting += 1
    _settle(i, at, key, rank, heap, place, waiting)
    return waiting


@helper
def take(i: int, key: Keys, rank: Ints, heap: Ints, place: Ints, waiting: int) -> int:
    """Let an item wait no longer, if it does; the new number of those that do."""
    hole = int64(place[i])
    if hole < 0:
        return waiting
    waiting -= 1
    place[i] = -1
    if hole < waiting:
        _settle(int64(heap[waiting]), hole, key, rank, heap, place, waiting)
    return waiting


@helper
def _settle(i: int, at: int, key: Keys, rank: Ints, heap: Ints, place: Ints, waiting: int) -> None:
    """Bring an item to where it belongs, from a place of the heap that it has or that is free."""
    while at > 0:
        parent = int64(heap[(at - 1) >> 1])
        if not _precedes(key, rank, i, parent):
            break
        heap[at], place[parent] = parent, at
        at = (at - 1) >> 1
    while True:
        below = 2 * at + 1
        if below >= waiting:
            break
        child = int64(heap[below])
        if below + 1 < waiting:
            other = int64(heap[below + 1])
            if _precedes(key, rank, other, child):
                child, below = other, below + 1
        if not _precedes(key, rank, child, i):
            break
        heap[at], place[child] = child, at
        at = below
    heap[at], place[i] = i, at


@helper
def _precedes(key: Keys, rank: Ints, i: int, j: int) -> bool:
    return bool(key[i] < key[j] or (key[i] == key[j] and rank[i] < rank[j]))
