"""The graph of regions, whole arcs and nodes that is still needed while bands are added below."""

from __future__ import annotations

import numpy as np

from geoseg._jit import njit
from geoseg.polygons.chains import WholeArcs
from geoseg.polygons.compaction import compact
from geoseg.polygons.cracks import NODATA, OUTSIDE, ByteArray, Int32Array, Int64Array
from geoseg.polygons.labels import BandRegions, find_root
from geoseg.polygons.rings import keep_points
from geoseg.polygons.tables import ABSENT, UNFINISHED, Arcs, Nodes, Points, Regions, grown, row_bytes


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
        self.regions = grown(self.regions, before, self._region_count)
        self._above = _add_regions(self.regions, self.arcs, new, before, self._above)
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
        self.arcs = grown(self.arcs, before, self._arc_count)
        _add_arcs(self.arcs, self.regions, self.nodes, new, before)
        return before

    def keep_points(self, points: Int32Array, offsets: Int64Array, first_arc: int) -> None:
        """Keep the finished points of those new arcs that open regions will need."""
        self.points = grown(self.points, self._point_count, self._point_count + len(points))
        self._point_count = keep_points(self.arcs, self.points.xy, self._point_count, points, offsets, first_arc)

    def take_closed(self, first_new: int) -> Int64Array:
        """Roots of the regions that the last band has closed, by (last row, first pixel); outside and nodata are none.

        Args:
            first_new: Number of the first region of that band.
        """
        regions, older = self.regions, self._open
        self._open = np.unique(_roots(regions, self._above)).astype(np.int64)
        older = older[(regions.parent[older] == older) & ~np.isin(older, self._open)]
        older = older[np.argsort(regions.first[older])]
        # New roots are numbered by their first pixel, and older regions have earlier ones.
        closed = np.concatenate([older, _closed(regions, first_new, self._region_count, self._open)])
        closed = closed[(regions.value[closed] != NODATA) & (regions.value[closed] != OUTSIDE)]
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


@njit
def _add_regions(regions: Regions, arcs: Arcs, new: BandRegions, count: int, above: Int32Array) -> Int32Array:
    """Append a band's regions and join them with those of the last row above the seam.

    Args:
        regions: Table with room for them.
        arcs: Arcs so far, whose lists are joined with the regions.
        new: Regions of the band.
        count: Number of regions in the table before.
        above: Region of each pixel above the seam, (W,).

    Returns:
        Region of each pixel in the band's last row, (W,).
    """
    for k in range(1, len(new.value)):
        region = count + k - 1
        regions.parent[region] = region
        regions.value[region] = new.value[k]
        regions.pixels[region] = new.pixels[k]
        regions.first[region] = new.first[k]
        regions.last[region] = new.last[k]
        regions.confidence_sum[region] = new.confidence_sum[k]
        regions.confidence_min[region] = new.confidence_min[k]
        regions.halves[region] = 0
        regions.tail[region] = -1
    bottom = np.empty(len(above), dtype=np.int32)
    for x in range(len(above)):
        bottom[x] = count + new.bottom[x] - 1 if new.bottom[x] else 0
        if new.top[x] == 0 or (x and new.top[x] == new.top[x - 1] and above[x] == above[x - 1]):
            continue
        a, b = find_root(regions.parent, above[x]), find_root(regions.parent, count + new.top[x] - 1)
        if a != b:
            _join_regions(regions, arcs, min(a, b), max(a, b))
    return bottom


@njit
def _join_regions(regions: Regions, arcs: Arcs, a: int, b: int) -> None:
    """Let region ``b`` become part of region ``a``, both roots."""
    regions.parent[b] = a
    regions.pixels[a] += regions.pixels[b]
    regions.first[a] = min(regions.first[a], regions.first[b])
    regions.last[a] = max(regions.last[a], regions.last[b])
    regions.confidence_sum[a] += regions.confidence_sum[b]
    regions.confidence_min[a] = min(regions.confidence_min[a], regions.confidence_min[b])
    regions.halves[a] += regions.halves[b]
    one, other = np.int64(regions.tail[a]), np.int64(regions.tail[b])
    if one < 0:
        regions.tail[a] = other
    elif other >= 0:  # two circles become one by exchanging where they go on
        head = arcs.follower[one >> 1, one & 1]
        arcs.follower[one >> 1, one & 1] = arcs.follower[other >> 1, other & 1]
        arcs.follower[other >> 1, other & 1] = head


@njit
def _add_arcs(arcs: Arcs, regions: Regions, nodes: Nodes, new: WholeArcs, count: int) -> None:
    """Append whole arcs, enter them at their nodes and in the lists of the regions on both sides.

    Args:
        arcs: Table with room for them.
        regions: Regions so far.
        nodes: Nodes so far.
        new: Whole arcs.
        count: Number of arcs in the table before.
    """
    for k in range(len(new.area)):
        arc = count + k
        arcs.area[arc] = new.area[k]
        arcs.lowest[arc] = new.extent[k, 1]
        arcs.done[arc] = 0
        for end in range(2):
            arcs.keys[arc, end] = new.keys[k, end]
            arcs.span[arc, end] = 0
            node = np.int64(new.nodes[k, end])
            if node >= 0:
                nodes.halves[node, new.keys[k, end] & 3] = 2 * arc + end
            arcs.nodes[arc, end] = node
        for side in range(2):
            region = find_root(regions.parent, new.sides[k, side])
            arcs.sides[arc, side] = region
            if region == 0 or regions.value[region] == NODATA:  # never becomes a polygon
                arcs.done[arc] |= 1 << side
                continue
            tail = np.int64(regions.tail[region])
            if tail < 0:
                arcs.follower[arc, side] = 2 * arc + side
            else:
                arcs.follower[arc, side] = arcs.follower[tail >> 1, tail & 1]
                arcs.follower[tail >> 1, tail & 1] = 2 * arc + side
            regions.tail[region] = 2 * arc + side
            regions.halves[region] += 1


@njit
def _roots(regions: Regions, numbers: Int32Array) -> Int32Array:
    """Roots of some regions."""
    roots = np.empty_like(numbers)
    for k in range(len(numbers)):
        roots[k] = find_root(regions.parent, numbers[k])
    return roots


@njit
def _closed(regions: Regions, first: int, end: int, still_open: Int64Array) -> Int64Array:
    """Roots among the numbers ``first`` … ``end − 1`` that are not open."""
    is_open = np.zeros(end - first, dtype=np.bool_)
    for k in range(len(still_open)):
        if still_open[k] >= first:
            is_open[still_open[k] - first] = True
    closed = np.empty(end - first, dtype=np.int64)
    count = 0
    for region in range(first, end):
        if regions.parent[region] == region and not is_open[region - first]:
            closed[count] = region
            count += 1
    return closed[:count].copy()
