"""The graph of regions, whole arcs and nodes that is still needed while bands are added below."""

from __future__ import annotations

import numpy as np

from geoseg.polygons.rings import keep_points
from geoseg.polygons.trace.chains import WholeArcs
from geoseg.polygons.trace.compaction import compact
from geoseg.polygons.trace.cracks import NODATA, OUTSIDE, ByteArray, Int32Array, Int64Array, ValueArray
from geoseg.polygons.trace.labels import BandRegions
from geoseg.polygons.trace.tables import ABSENT, UNFINISHED, Arcs, Nodes, Points, Regions, grown, row_bytes
from geoseg.runtime.forest import find_root
from geoseg.runtime.jit import int64, njit


class Graph:
    """Regions, whole arcs, nodes and finished points of all bands so far, less what has been dropped.

    Args:
        width: Width of the map, px.
    """

    def __init__(self, width: int) -> None:
        self.regions = Regions(*(np.empty(0, t) for t in ("i4", "i2", "i8", "i8", "i4", "i8", "u1", "i4", "i4")))
        self.arcs = Arcs(
            np.empty((0, 2), np.int32),
            np.empty((0, 2), np.int32),
            np.empty((0, 2), np.int64),
            np.empty(0, np.int64),
            np.empty(0, np.int32),
            np.empty((0, 2), np.int64),
            np.empty((0, 2), np.int32),
            np.empty(0, np.uint8),
        )
        self.nodes = Nodes(np.empty((0, 4), np.int32))
        self.points = Points(np.empty((0, 2), np.int32))
        self._region_count, self._arc_count, self._node_count, self._point_count = 1, 0, 0, 0
        self.regions = grown(self.regions, 0, 1)
        self.regions.parent[0], self.regions.value[0] = 0, OUTSIDE
        self.regions.tail[0], self.regions.halves[0] = -1, 0
        self._above = np.zeros(width, dtype=np.int32)  # region of each pixel over the seam
        self._open = np.zeros(0, dtype=np.int64)  # roots of the regions over the seam

    def add_regions(self, new: BandRegions) -> int:
        """Add the regions of a band, joined with those over the seam; the number of its region 1."""
        before = self._region_count
        self._region_count += len(new.value) - 1
        regions = self.regions = grown(self.regions, before, self._region_count)
        added = slice(before, self._region_count)
        for field in ("value", "pixels", "first", "last", "confidence_sum", "confidence_min"):
            getattr(regions, field)[added] = getattr(new, field)[1:]
        regions.parent[added] = np.arange(before, self._region_count)
        regions.halves[added], regions.tail[added] = 0, -1
        if new.top.any():
            _join_over_seam(regions, self.arcs.follower, self._above, np.where(new.top, new.top + (before - 1), 0))
        self._above = np.where(new.bottom, new.bottom + (before - 1), 0)
        return before

    def add_nodes(self, cracks: ByteArray) -> int:
        """Add nodes, given the bits of their cracks; the number of the first."""
        before = self._node_count
        self._node_count += len(cracks)
        self.nodes = grown(self.nodes, before, self._node_count)
        is_crack = cracks[:, None] >> np.arange(4, dtype=np.uint8) & 1
        self.nodes.halves[before : self._node_count] = np.where(is_crack, UNFINISHED, ABSENT)
        return before

    def add_arcs(self, new: WholeArcs) -> int:
        """Add whole arcs, without their points; the number of the first."""
        before = self._arc_count
        self._arc_count += len(new.area)
        regions, arcs = self.regions, grown(self.arcs, before, self._arc_count)
        self.arcs = arcs
        added = slice(before, self._arc_count)
        arcs.area[added], arcs.lowest[added] = new.area, new.extent[:, 1]
        arcs.keys[added], arcs.nodes[added] = new.keys, new.nodes
        arcs.done[added], arcs.span[added] = 0, 0
        for end in range(2):
            at_node = np.flatnonzero(new.nodes[:, end] >= 0)
            place = new.nodes[at_node, end], new.keys[at_node, end] & 3
            self.nodes.halves[place] = 2 * (before + at_node) + end
        _list_arcs(
            arcs.sides,
            arcs.follower,
            arcs.done,
            regions.parent,
            regions.value,
            regions.tail,
            regions.halves,
            new.sides,
            before,
        )
        return before

    def keep_points(self, points: Int32Array, offsets: Int64Array, first_arc: int) -> None:
        """Keep the finished points of those new arcs that open regions will need."""
        self.points = grown(self.points, self._point_count, self._point_count + len(points))
        self._point_count = keep_points(self.arcs, self.points.xy, self._point_count, points, offsets, first_arc)

    def take_closed(self, first_new: int) -> Int64Array:
        """Roots of the regions that the last band has closed, by (last row, first pixel) of those that become polygons.

        Args:
            first_new: Number of the first region of that band.
        """
        regions, older = self.regions, self._open
        self._open = _roots(regions.parent, np.unique(self._above))
        older = older[(regions.parent[older] == older) & ~np.isin(older, self._open)]
        older = older[np.argsort(regions.first[older])]
        # New roots are numbered by their first pixel, and older regions have earlier ones.
        new = np.arange(first_new, self._region_count)
        is_root = regions.parent[first_new : self._region_count] == new
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
        counts = self._region_count, self._arc_count, self._node_count, self._point_count
        tables = self.regions, self.arcs, self.nodes, self.points
        return sum(count * row_bytes(table) for count, table in zip(counts, tables, strict=True))

    def compact(self, piece_sides: Int32Array, piece_nodes: Int32Array) -> None:
        """Drop what is not needed any more, and renumber the rest, also where open pieces refer to it.

        Args:
            piece_sides: Regions of the open pieces, (p, 2).
            piece_nodes: Nodes of the open pieces, (p, 2).
        """
        counts = self._arc_count, self._region_count, self._node_count
        self._arc_count, self._region_count, self._node_count, self._point_count = compact(
            self.arcs, self.regions, self.nodes, self.points.xy, counts, self._above, piece_sides, piece_nodes
        )
        self._open = np.unique(self._above).astype(np.int64)


def _roots(parent: Int32Array, numbers: Int32Array) -> Int64Array:
    """The different roots of some regions."""
    while not np.array_equal(above := np.unique(parent[numbers]), numbers):
        numbers = above
    return numbers.astype(np.int64)


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
def _list_arcs(
    sides: Int32Array,
    follower: Int32Array,
    done: ByteArray,
    parent: Int32Array,
    value: ValueArray,
    tail: Int32Array,
    halves: Int32Array,
    new_sides: Int32Array,
    count: int,
) -> None:
    """Enter new arcs in the lists of the regions on both sides.

    Args:
        sides: Columns of `Arcs`.
        follower: The same.
        done: The same.
        parent: Columns of `Regions`.
        value: The same.
        tail: The same.
        halves: The same.
        new_sides: Sides of the new arcs, (n, 2).
        count: Number of arcs before.
    """
    for k in range(len(new_sides)):
        arc = count + k
        for side in range(2):
            region = find_root(parent, int64(new_sides[k, side]))
            sides[arc, side] = region
            if region == 0 or value[region] >= NODATA:  # never becomes a polygon
                done[arc] |= 1 << side
                continue
            half, last = 2 * arc + side, int64(tail[region])
            follower[arc, side] = half
            if last >= 0:
                follower[arc, side] = follower[last >> 1, last & 1]
                follower[last >> 1, last & 1] = half
            tail[region] = half
            halves[region] += 1
