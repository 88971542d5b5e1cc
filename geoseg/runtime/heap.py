"""A heap of numbered items, the least first, from which any item may be taken.

Items are ordered by ``key[i]``, then by ``rank[i]``; ranks differ. ``heap`` holds the waiting items, ``place[i]`` the
position of item i in it, −1 if it does not wait. An item whose key has changed is put again.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from geoseg.runtime.jit import helper, int64

Ints = npt.NDArray[np.integer[Any]]
Keys = npt.NDArray[np.integer[Any] | np.floating[Any]]


@helper
def put(i: int, key: Keys, rank: Ints, heap: Ints, place: Ints, waiting: int) -> int:
    """Insert an item, or move one whose key has changed; the new number of waiting items."""
    at = int64(place[i])
    if at < 0:
        at = waiting
        waiting += 1
    _settle(i, at, key, rank, heap, place, waiting)
    return waiting


@helper
def take(i: int, key: Keys, rank: Ints, heap: Ints, place: Ints, waiting: int) -> int:
    """Remove an item if it waits; the new number of waiting items."""
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
    """Move an item to its position, from the free one ``at``."""
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
