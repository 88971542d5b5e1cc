"""Disjoint sets as a forest (union-find)."""

from geoseg.arrays import Int32Array
from geoseg.runtime.jit import helper, int64


@helper
def find_root(parent: Int32Array, i: int) -> int:
    """The root of a member's set; halves the path to it."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = int64(parent[i])
    return i


@helper
def join(parent: Int32Array, i: int, j: int) -> None:
    """Make one set of two; its root is the lower of the two roots."""
    i, j = find_root(parent, i), find_root(parent, j)
    if i < j:
        parent[j] = i
    else:
        parent[i] = j
