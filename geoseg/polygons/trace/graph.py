"""The graph of regions, whole arcs and nodes that is still needed while bands are added below."""

from __future__ import annotations

import numpy as np

from geoseg.arrays import ByteArray, Int32Array, IntArray
from geoseg.classes import NODATA
from geoseg.polygons.trace.chains import WholeArcs
from geoseg.polygons.trace.cracks import OUTSIDE
from geoseg.polygons.trace.labels import BandRegions
from geoseg.polygons.trace.tables import (
    ABSENT,
    DROPPED,
    UNFINISHED,
    Arcs,
    Nodes,
    Points,
    Regions,
    Table,
    new_numbers,
    ranges,
    renumber,
    spans,
)
from geoseg.runtime.forest import find_root
from geoseg.runtime.jit import int64, njit


class Graph:
    """Regions, whole arcs, nodes and finished points of all bands so far, less what has been dropped."""

    def __init__(self, width: int) -> None:
        self.regions = Table(Regions, *((t, 0) for t in ("i4", "i2", "i8", "i8", "i4", "i8", "u1", "i4", "i4")))
        self.arcs = Table(Arcs, ("i4", 2), ("i4", 2), ("i8", 2), ("i8", 0), ("i4", 0), ("i8", 2), ("i4", 2), ("u1", 0))
        self.nodes = Table(Nodes, ("i4", 4))
        self.points = Table(Points, ("i4", 2))
        self.regions.add(1)
        outside = self.regions.rows
        outside.parent[0], outside.value[0], outside.tail[0], outside.halves[0] = 0, OUTSIDE, -1, 0
        self._above = np.zeros(width, dtype=np.int32)  # region of each pixel over the seam
        self._open = np.zeros(0, dtype=np.int64)  # roots of the regions over the seam

    def add_regions(self, new: BandRegions) -> int:
        """Add the regions of a band, joined with those over the seam; the number of its region 1."""
        added = self.regions.add(len(new.value) - 1)
        regions, before = self.regions.rows, added.start
        for field in ("value", "pixels", "first", "last", "confidence_sum", "confidence_min"):
            getattr(regions, field)[added] = getattr(new, field)[1:]
        regions.parent[added] = np.arange(before, added.stop)
        regions.halves[added], regions.tail[added] = 0, -1
        if new.top.any():
            below = np.where(new.top, new.top + (before - 1), 0)
            _join_over_seam(regions, self.arcs.rows.follower, self._above, below)
        self._above = np.where(new.bottom, new.bottom + (before - 1), 0)
        return int(before)

    def add_nodes(self, cracks: ByteArray) -> int:
        """Add nodes, given the bits of their cracks; the number of the first."""
        added = self.nodes.add(len(cracks))
        is_crack = cracks[:, None] >> np.arange(4, dtype=np.uint8) & 1
        self.nodes.rows.halves[added] = np.where(is_crack, UNFINISHED, ABSENT)
        return int(added.start)

    def add_arcs(self, new: WholeArcs) -> int:
        """Add whole arcs, without their points; the number of the first."""
        added = self.arcs.add(len(new.area))
        arcs, before = self.arcs.rows, added.start
        arcs.area[added], arcs.lowest[added] = new.area, new.extent[:, 1]
        arcs.keys[added], arcs.nodes[added] = new.keys, new.nodes
        arcs.done[added], arcs.span[added] = 0, 0
        for end in range(2):
            at_node = np.flatnonzero(new.nodes[:, end] >= 0)
            place = new.nodes[at_node, end], new.keys[at_node, end] & 3
            self.nodes.rows.halves[place] = 2 * (before + at_node) + end
        _list_arcs(arcs, self.regions.rows, new.sides, before)
        return int(before)

    def keep_points(self, points: Int32Array, offsets: IntArray, first_arc: int) -> None:
        """Keep the finished points of those new arcs that open regions will need."""
        needed = np.flatnonzero(self.arcs.rows.done[first_arc : self.arcs.count] != 3)
        begin, end = offsets[needed], offsets[needed + 1]
        source, _ = ranges(begin, end)
        added = self.points.add(len(source))
        self.points.rows.xy[added] = points[source]
        self.arcs.rows.span[first_arc + needed] = added.start + spans(end - begin)

    def take_closed(self, first_new: int) -> IntArray:
        """Roots of the regions that the last band has closed and that become polygons, by (last row, first pixel).

        ``first_new`` is the number of the first region of that band.
        """
        regions, older = self.regions.rows, self._open
        self._open = np.unique(_roots(regions.parent, np.unique(self._above))).astype(np.int64)
        older = older[(regions.parent[older] == older) & ~np.isin(older, self._open)]
        older = older[np.argsort(regions.first[older])]
        # New roots are numbered by their first pixel, and older regions have earlier ones.
        new = np.arange(first_new, self.regions.count)
        is_root = regions.parent[new] == new
        is_root[self._open[self._open >= first_new] - first_new] = False
        closed = np.concatenate([older, new[is_root]])
        closed = closed[(regions.value[closed] != OUTSIDE) & (regions.value[closed] < NODATA)]
        last = regions.last[closed]
        if len(last):
            last = last - last.min()
            if last.max() <= np.iinfo(np.uint16).max:
                last = last.astype(np.uint16)  # sorted by radix
        return np.asarray(closed[np.argsort(last, kind="stable")])

    def nbytes(self) -> int:
        """Bytes in use, garbage included."""
        return self.regions.nbytes() + self.arcs.nbytes() + self.nodes.nbytes() + self.points.nbytes()

    def compact(self, piece_sides: Int32Array, piece_nodes: Int32Array) -> None:
        """Drop all that no open region, open piece or unfinished node needs, and renumber the rest.

        Regions and nodes of the open pieces, (p, 2), are renumbered in place. An arc that both sides are done with
        stays while a node at one of its ends has an unfinished arc: the two may turn out to bound a region alone.
        """
        arcs, halves, parent = self.arcs.used(), self.nodes.used().halves, self.regions.used().parent
        root = _roots(parent, parent)
        used = np.zeros(len(root), dtype=bool)
        used[0] = used[root[self._above]] = True
        number = np.maximum(new_numbers(used), 0)[root]  # of what is dropped: the outside
        for sides in (self._above, piece_sides, arcs.sides):
            sides[:] = number[sides]
        self.regions.keep(used)

        unfinished = np.append((halves == UNFINISHED).any(axis=1), False)  # index −1 stands for no node
        needed = arcs.done != 3
        kept = needed | unfinished[arcs.nodes].any(axis=1)
        self.points.keep(np.repeat(needed, np.diff(arcs.span).ravel()))
        arcs.span[:] = spans(np.diff(arcs.span).ravel() * needed)
        ends = np.concatenate([piece_nodes.ravel(), arcs.nodes[kept].ravel()])
        node_kept = np.zeros(len(halves), dtype=bool)
        node_kept[ends[ends >= 0]] = True
        arc_number, node_number = new_numbers(kept), new_numbers(node_kept)
        halves[:] = np.where((halves >= 0) & (arc_number[halves >> 1] < 0), DROPPED, renumber(halves, arc_number))
        self.nodes.keep(node_kept)
        for nodes in (piece_nodes, arcs.nodes):
            nodes[:] = node_number[nodes]
        listed = arcs.done[:, None] >> np.arange(2, dtype=np.uint8) & 1 == 0  # in the list of an open region
        arcs.follower[listed] = renumber(arcs.follower[listed], arc_number)
        self.arcs.keep(kept)
        regions = self.regions.used()
        regions.parent[:] = np.arange(self.regions.count)
        regions.tail[:] = renumber(regions.tail, arc_number)
        self._open = np.unique(self._above).astype(np.int64)


def _roots(parent: Int32Array, numbers: Int32Array) -> Int32Array:
    """The root of each of some regions."""
    while not np.array_equal(above := parent[numbers], numbers):
        numbers = above
    return numbers


@njit
def _join_over_seam(regions: Regions, follower: Int32Array, above: Int32Array, below: Int32Array) -> None:
    """Join the regions of pixels over a seam with those below it, (W,) each; 0 where that is outside."""
    for x in range(len(above)):
        if below[x] == 0 or (x and below[x] == below[x - 1] and above[x] == above[x - 1]):
            continue
        a, b = find_root(regions.parent, int64(above[x])), find_root(regions.parent, int64(below[x]))
        if a == b:
            continue
        a, b = min(a, b), max(a, b)
        regions.parent[b] = a
        regions.pixels[a] += regions.pixels[b]
        regions.first[a] = min(regions.first[a], regions.first[b])
        regions.last[a] = max(regions.last[a], regions.last[b])
        regions.confidence_sum[a] += regions.confidence_sum[b]
        regions.confidence_min[a] = min(regions.confidence_min[a], regions.confidence_min[b])
        regions.halves[a] += regions.halves[b]
        one, other = int64(regions.tail[a]), int64(regions.tail[b])
        if one < 0:
            regions.tail[a] = other
        elif other >= 0:  # two circles become one by exchanging where they go on
            head = follower[one >> 1, one & 1]
            follower[one >> 1, one & 1] = follower[other >> 1, other & 1]
            follower[other >> 1, other & 1] = head


@njit
def _list_arcs(arcs: Arcs, regions: Regions, new_sides: Int32Array, count: int) -> None:
    """Enter new arcs, whose sides are ``new_sides``, (n, 2), in the lists of the regions on both sides."""
    for k in range(len(new_sides)):
        arc = count + k
        for side in range(2):
            region = find_root(regions.parent, int64(new_sides[k, side]))
            arcs.sides[arc, side] = region
            if region == 0 or regions.value[region] >= NODATA:  # never becomes a polygon
                arcs.done[arc] |= 1 << side
                continue
            half, last = 2 * arc + side, int64(regions.tail[region])
            arcs.follower[arc, side] = half
            if last >= 0:
                arcs.follower[arc, side] = arcs.follower[last >> 1, last & 1]
                arcs.follower[last >> 1, last & 1] = half
            regions.tail[region] = half
            regions.halves[region] += 1
