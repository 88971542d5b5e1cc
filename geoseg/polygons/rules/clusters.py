"""Who touches whom among regions, and what becomes of the small ones: kernels of `geoseg.polygons.rules.small_regions`.

A *cluster* is a maximal set of small regions that touch; around it lie large regions, the map's outside, and nothing
else. A cluster has the number of its first region in raster order.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from geoseg.arrays import BoolArray, ByteArray, Int32Array, IntArray
from geoseg.classes import NODATA
from geoseg.polygons.rules.runs import Regions, Runs
from geoseg.runtime.forest import find_root, join
from geoseg.runtime.heap import put, take
from geoseg.runtime.jit import helper, int64, njit

IGNORED, LARGE, SMALL = 0, 1, 2  # kinds of regions; only contacts that count add up to more than SMALL
NO_HOST, NOT_YET_ONE = -1, -2  # in `find_hosts`, where no single large region is around a cluster
_INFINITE = 1 << 62  # area of anything large; fixed-point areas are below


class Contacts(NamedTuple):
    """Common borders of regions, one entry per pair of runs that touch; pairs come several times, in either order."""

    first: Int32Array
    second: Int32Array
    length: Int32Array  # pixel sides


@njit
def find_contacts(runs: Runs, kind: ByteArray) -> Contacts:
    """Borders between two regions of which at least one is SMALL and none IGNORED, in raster order."""
    offsets, ends, region = runs
    most = 3 * len(ends)  # one to the right of each run; between two rows fewer than these have runs
    first, second, length = np.empty(most, np.int32), np.empty(most, np.int32), np.empty(most, np.int32)
    width, n = ends[offsets[1] - 1], 0
    for y in range(len(offsets) - 1):
        for run in range(offsets[y], offsets[y + 1] - 1):
            i, j = region[run], region[run + 1]
            if kind[i] + kind[j] > SMALL:
                first[n], second[n], length[n] = i, j, 1
                n += 1
        if y == 0:
            continue
        a, b, x = offsets[y - 1], offsets[y], 0
        while x < width:
            end = min(ends[a], ends[b])
            i, j = region[a], region[b]
            if i != j and kind[i] + kind[j] > SMALL:
                first[n], second[n], length[n] = i, j, end - x
                n += 1
            a, b, x = a + (ends[a] == end), b + (ends[b] == end), end
    return Contacts(first[:n], second[:n], length[:n])


@njit
def find_clusters(kind: ByteArray, contacts: Contacts) -> Int32Array:
    """Number of each region's cluster: that of its first region; large regions are alone."""
    cluster = np.empty(len(kind), np.int32)
    for i in range(len(kind)):
        cluster[i] = i
    for k in range(len(contacts.first)):
        i, j = int64(contacts.first[k]), int64(contacts.second[k])
        if kind[i] == SMALL and kind[j] == SMALL:
            join(cluster, i, j)
    for i in range(len(kind)):
        cluster[i] = cluster[cluster[i]]  # parents come first
    return cluster


@njit
def find_hosts(
    value: ByteArray, kind: ByteArray, is_open: BoolArray, cluster: Int32Array, contacts: Contacts
) -> Int32Array:
    """The only large region around each cluster, by the cluster's number.

    NO_HOST where there are several or none, or it is nodata; NOT_YET_ONE where there are several, but all of one value
    and open, so that they may turn out to be one.
    """
    host, first_host = np.full(len(kind), NO_HOST, np.int32), np.full(len(kind), -1, np.int32)
    for k in range(len(contacts.first)):
        i, j = contacts.first[k], contacts.second[k]
        if kind[i] == SMALL and kind[j] == SMALL:
            continue
        small, large = (i, j) if kind[i] == SMALL else (j, i)
        c = cluster[small]
        first = first_host[c]
        if first < 0:
            first_host[c] = large
            host[c] = large if value[large] != NODATA else NO_HOST
        elif first != large and host[c] != NO_HOST:
            may_join = is_open[large] and is_open[first] and value[large] == value[first]
            host[c] = NOT_YET_ONE if may_join else NO_HOST
    return host


def beside_large(kind: ByteArray, contacts: Contacts) -> BoolArray:
    """Whether each small region touches a large one."""
    beside = np.zeros(len(kind), np.bool_)
    beside[contacts.second[kind[contacts.first] != SMALL]] = True
    beside[contacts.first[kind[contacts.second] != SMALL]] = True
    return beside


@helper
def _neighbours(contacts: Contacts, active: BoolArray) -> tuple[IntArray, Int32Array, Int32Array]:
    """Contacts by region: those of i are entries ``begin[i]:begin[i + 1]`` of the other two, neighbour and length."""
    begin = np.zeros(len(active) + 1, np.int64)
    for k in range(len(contacts.first)):
        i, j = contacts.first[k], contacts.second[k]
        if active[i]:
            begin[i + 1] += 1
        if active[j]:
            begin[j + 1] += 1
    for i in range(len(active)):
        begin[i + 1] += begin[i]
    place = begin[:-1].copy()
    neighbour, length = np.empty(begin[-1], np.int32), np.empty(begin[-1], np.int32)
    for k in range(len(contacts.first)):
        i, j = contacts.first[k], contacts.second[k]
        if active[i]:
            neighbour[place[i]], length[place[i]] = j, contacts.length[k]
            place[i] += 1
        if active[j]:
            neighbour[place[j]], length[place[j]] = i, contacts.length[k]
            place[j] += 1
    return begin, neighbour, length


@njit
def merge_clusters(
    regions: Regions, active: BoolArray, cluster: Int32Array, contacts: Contacts, min_area: int
) -> ByteArray:
    """New value of each region after the small ones have been merged; see `small_regions.RegionRule` for the rule.

    A pixel side is looked at once for each time the region around it has at least doubled its area, since a region
    goes into one that is no smaller: contacts · log(min_area / pixel) steps.

    Only ``active`` ones change, small regions of clusters that can be decided. Contacts are without those to nodata,
    ``min_area`` is in fixed point.
    """
    n = len(active)
    begin, neighbour, length = _neighbours(contacts, active)
    # Nodes n … n + 255 are all large regions of one value.
    value, area = np.empty(n + 256, np.uint8), np.empty(n + 256, np.int64)
    parent, border, touched = np.empty(n + 256, np.int32), np.empty(n + 256, np.int64), np.empty(n + 256, np.int32)
    next_member, last_member = np.empty(n, np.int32), np.empty(n, np.int32)  # of joined regions
    next_in_cluster, last_in_cluster = np.empty(n, np.int32), np.empty(n, np.int32)
    heap, place = np.empty(n, np.int32), np.empty(n, np.int32)  # undecided regions, the smallest first
    number = np.empty(n, np.int32)
    for i in range(n + 256):
        parent[i], border[i] = i, 0
        value[i], area[i] = (regions.value[i], regions.area[i]) if i < n else (i - n, _INFINITE)
    for i in range(n):
        place[i] = next_member[i] = next_in_cluster[i] = -1
        last_member[i] = last_in_cluster[i] = number[i] = i
    for i in range(n):
        if active[i] and cluster[i] != i:
            _append(next_in_cluster, last_in_cluster, cluster[i], i)
    for first in range(n):
        if not active[first] or cluster[first] != first:
            continue
        waiting, i = 0, first
        while i >= 0:
            waiting = put(i, area, number, heap, place, waiting)
            i = int64(next_in_cluster[i])
        while waiting > 0:
            x = int64(heap[0])
            waiting = take(x, area, number, heap, place, waiting)
            count, member = 0, x
            while member >= 0:
                for k in range(begin[member], begin[member + 1]):
                    i = int64(neighbour[k])
                    node = find_root(parent, i) if active[i] else n + int64(value[i])
                    if node != x:
                        if border[node] == 0:
                            touched[count] = node
                            count += 1
                        border[node] += length[k]
                member = int64(next_member[member])
            if count == 0:
                value[x] = NODATA
                continue
            best = int64(touched[0])
            for k in range(1, count):
                node = int64(touched[k])
                longer, larger = border[node] - border[best], area[node] - area[best]
                if longer > 0 or (longer == 0 and (larger > 0 or (larger == 0 and node < best))):
                    best = node
            root = x  # of all that become one: the large regions, or the first in raster order
            for k in range(count):
                node = int64(touched[k])
                border[node] = 0
                if value[node] == value[best] and (node >= n or (root < n and node < root)):
                    root = node
            value[root] = value[best]
            touched[count] = x
            for k in range(count + 1):
                node = int64(touched[k])
                if node != root and (node == x or value[node] == value[best]):
                    parent[node] = root
                    waiting = take(node, area, number, heap, place, waiting)
                    if root < n:
                        area[root] += area[node]
                        _append(next_member, last_member, root, node)
            if area[root] < min_area:
                waiting = put(root, area, number, heap, place, waiting)
            elif root < n:
                waiting = take(root, area, number, heap, place, waiting)
    out = np.empty(n, np.uint8)
    for i in range(n):
        out[i] = value[find_root(parent, i)] if active[i] else regions.value[i]
    return out


@helper
def _append(following: Int32Array, last: Int32Array, i: int, j: int) -> None:
    """Put the chain that begins with j behind the one that begins with i."""
    following[last[i]] = j
    last[i] = last[j]


@njit
def fill_clusters(
    regions: Regions, active: BoolArray, at_exterior: BoolArray, contacts: Contacts, limit: int
) -> Int32Array:
    """The region that each region becomes part of, as part of a hole of it; itself for most.

    A hole of region x is what x alone separates from the exterior: in a depth-first search from there, the subtree of
    a child of x from which no edge leads above x (Hopcroft and Tarjan, "Efficient algorithms for graph manipulation",
    1973). Holes lie one within another or apart, so the outermost one below the limit is unique.

    Only ``active`` ones change, small regions of clusters that can be decided; regions of nodata have no holes.
    ``at_exterior`` are those that touch a large one or the map's outside, and holes are below ``limit``, fixed point.
    """
    n = len(active)
    begin, neighbour, _ = _neighbours(contacts, active)
    place = begin[:-1].copy()  # next entry to follow
    order, visited = np.empty(n, np.int32), 0  # regions as they are reached
    reached = np.zeros(n, np.int32)  # 1, 2, …; 0 not yet, and the exterior's
    lowest = np.zeros(n, np.int32)  # earliest reached from the subtree, by one edge off the tree
    parent, hole_area = np.full(n, -1, np.int32), regions.area.copy()
    into = np.arange(n).astype(np.int32)
    for start in range(n):
        if not active[start] or not at_exterior[start] or reached[start]:
            continue
        i = start
        while i >= 0:
            if reached[i] == 0:
                order[visited] = i
                visited += 1
                reached[i] = visited
                lowest[i] = 0 if at_exterior[i] else visited
            if place[i] < begin[i + 1]:
                j = neighbour[place[i]]
                place[i] += 1
                if not active[j]:
                    continue
                if reached[j] == 0:
                    parent[j] = i
                    i = j
                elif j != parent[i]:
                    lowest[i] = min(lowest[i], reached[j])
                continue
            up = parent[i]
            if up >= 0:
                lowest[up] = min(lowest[up], lowest[i])
                hole_area[up] += hole_area[i]
                if lowest[i] >= reached[up] and hole_area[i] < limit and regions.value[up] != NODATA:
                    into[i] = up
            i = up
    for i in order[:visited]:  # parents come first, and what holds for them holds for all below
        if parent[i] >= 0 and into[parent[i]] != parent[i]:
            into[i] = into[parent[i]]
    return into
