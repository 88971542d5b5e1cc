"""The rings of closed regions, and their points.

Around a region rings are walked with the region on the left. Where four cracks meet and both pixels
of a diagonal belong to the region, the walk turns right: it passes both on the side of the same foreign pixel. So rings
of a region touch in such points but never cross, each region has exactly one shell, and the sign of the area tells
which ring that is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from geoseg.polygons.trace.cracks import ByteArray, Int32Array, Int64Array
from geoseg.polygons.trace.tables import ABSENT, Arcs, Nodes, Regions
from geoseg.runtime.jit import helper, int64, njit


class RingBatch(NamedTuple):
    """Rings of closed regions as half-arcs.

    Attributes:
        halves: Half-arcs of all rings in walking order, (h,) int64.
        rings: Where each ring begins in ``halves``, (r + 1,) int64. A ring begins with the half-arc whose arc comes
            first by (y, x, direction) of its start.
        polygons: Where each region begins in ``rings``, (n + 1,) int64; the shell is the first ring, holes follow in
            the order of that first arc.
    """

    halves: Int64Array
    rings: Int64Array
    polygons: Int64Array


def least_points(arcs: Arcs, nodes: Nodes, offsets: Int64Array, count: int) -> ByteArray:
    """Interior points that new arcs have to keep for every ring to keep an area.

    A loop without a node keeps three points and a loop at a node two. Of two arcs that bound a region alone one keeps a
    point: the one that reaches lower; if none does, the one that has interior points at all; else the one that starts
    in the later direction. All of it is known when the lower one gets whole, whatever the bands.

    Args:
        arcs: All arcs; the new ones have not been finished.
        nodes: All nodes.
        offsets: Where the unfinished points of each new arc begin, (a + 1,).
        count: Number of arcs before the new ones.
    """
    least = np.zeros(len(offsets) - 1, dtype=np.uint8)
    _find_least_points(arcs.nodes, arcs.keys, arcs.lowest, nodes.halves, offsets, count, least)
    return least


@njit
def _find_least_points(
    ends: Int32Array,
    keys: Int64Array,
    lowest: Int32Array,
    leaving: Int32Array,
    offsets: Int64Array,
    count: int,
    least: ByteArray,
) -> None:
    for k in range(len(least)):
        arc = count + k
        if ends[arc, 0] < 0:
            least[k] = 3
        elif ends[arc, 0] == ends[arc, 1]:
            least[k] = 2
        else:
            for side in range(2):
                half = 2 * arc + side
                back = _next_left(ends, keys, leaving, half)
                if back < 0 or back >> 1 == arc or _next_left(ends, keys, leaving, back) != half:
                    continue
                other = back >> 1
                lower = lowest[arc] > lowest[other]
                if lowest[arc] == lowest[other]:  # then both are new
                    bends = offsets[k + 1] - offsets[k] > 2
                    other_bends = offsets[other - count + 1] - offsets[other - count] > 2
                    lower = keys[arc, 0] > keys[other, 0] if bends == other_bends else bends
                if lower:
                    least[k] = 1


@helper
def _next_left(ends: Int32Array, keys: Int64Array, leaving: Int32Array, half: int) -> int:
    """The half-arc that goes on as far to the left as possible; ``UNFINISHED`` or ``DROPPED`` where it is not there."""
    arc, end = half >> 1, 1 - (half & 1)
    node, away = ends[arc, end], keys[arc, end] & 3
    for turn in range(1, 4):
        following = int64(leaving[node, (away + turn) & 3])
        if following != ABSENT:
            return following
    return ABSENT


def assemble(arcs: Arcs, regions: Regions, nodes: Nodes, closed: Int64Array) -> RingBatch:
    """Rings of closed regions; marks their sides of the arcs as done.

    Args:
        arcs: All arcs.
        regions: All regions.
        nodes: All nodes.
        closed: Roots of the regions, neither outside nor nodata, (n,).
    """
    total = int(regions.halves[closed].sum(dtype=np.int64))
    halves, rings = np.empty(total, dtype=np.int64), np.zeros(total + 1, dtype=np.int64)
    first_keys, polygons = np.empty(total, dtype=np.int64), np.zeros(len(closed) + 1, dtype=np.int64)
    count = _walk_rings(
        arcs.keys,
        arcs.nodes,
        arcs.sides,
        arcs.area,
        arcs.follower,
        arcs.done,
        nodes.halves,
        regions.parent,
        regions.tail,
        closed,
        halves,
        rings,
        first_keys,
        polygons,
    )
    batch = RingBatch(halves[: rings[count]], rings[: count + 1], polygons)
    _sort_rings(batch, first_keys[:count])
    return batch


def _sort_rings(batch: RingBatch, first_keys: Int64Array) -> None:
    """Sort the rings of each region by their first keys, in place; most regions have a single ring."""
    disordered = np.flatnonzero(first_keys[1:] < first_keys[:-1]) + 1  # ring numbers, the first ones of regions too
    region = np.searchsorted(batch.polygons, disordered, side="right") - 1
    regions = np.unique(region[batch.polygons[region] != disordered])
    if not len(regions):
        return
    rings, owner = _ranges(batch.polygons[regions], batch.polygons[regions + 1])
    order = rings[np.lexsort((first_keys[rings], owner))]
    place, _ = _ranges(batch.rings[rings], batch.rings[rings + 1])
    source, _ = _ranges(batch.rings[order], batch.rings[order + 1])
    sizes = batch.rings[order + 1] - batch.rings[order]
    batch.halves[place] = batch.halves[source]
    batch.rings[rings] = place[np.cumsum(sizes) - sizes]


def _ranges(begin: Int64Array, end: Int64Array) -> tuple[Int64Array, Int64Array]:
    """The numbers of several ranges one after the other, and the number of the range that each is from."""
    sizes = end - begin
    owner = np.repeat(np.arange(len(sizes)), sizes)
    return np.arange(len(owner)) + (begin - np.cumsum(sizes) + sizes)[owner], owner


@njit
def _walk_rings(
    keys: Int64Array,
    ends: Int32Array,
    sides: Int32Array,
    areas: Int64Array,
    follower: Int32Array,
    done: ByteArray,
    leaving: Int32Array,
    parent: Int32Array,
    tails: Int32Array,
    closed: Int64Array,
    halves: Int64Array,
    rings: Int64Array,
    first_keys: Int64Array,
    polygons: Int64Array,
) -> int:
    """Fill ``halves``, ``rings`` and ``polygons`` of `assemble`, and what rings are sorted by; the number of rings."""
    count, size = 0, 0
    for k in range(len(closed)):
        region, tail = closed[k], int64(tails[closed[k]])
        listed = tail
        while True:
            listed = int64(follower[listed >> 1, listed & 1])
            if not done[listed >> 1] >> (listed & 1) & 1:
                begin, best, best_key, area = size, size, keys[listed >> 1, 0], int64(0)
                half = listed
                while True:
                    arc, back = half >> 1, half & 1
                    done[arc] |= 1 << back
                    area += -areas[arc] if back else areas[arc]
                    halves[size] = half
                    if keys[arc, 0] < best_key:
                        best, best_key = size, keys[arc, 0]
                    size += 1
                    node = ends[arc, 1 - back]
                    if node < 0:
                        break
                    # Right first, if that side of the diagonal is the same region; otherwise as far left as possible.
                    away = keys[arc, 1 - back] & 3
                    half = int64(leaving[node, (away + 3) & 3])
                    goes_right = half >= 0
                    if goes_right:
                        root = sides[half >> 1, half & 1]
                        while parent[root] != root:
                            root = parent[root]
                        goes_right = root == region
                    if not goes_right:
                        turn = 1
                        while leaving[node, (away + turn) & 3] == ABSENT:
                            turn += 1
                        half = int64(leaving[node, (away + turn) & 3])
                    if half == listed:
                        break
                first_keys[count] = best_key if area > 0 else -1  # the shell comes first
                if best > begin:
                    ring = halves[begin:size].copy()
                    for i in range(size - begin):
                        halves[begin + i] = ring[(best - begin + i) % (size - begin)]
                count += 1
                rings[count] = size
            if listed == tail:
                break
        polygons[k + 1] = count
    return count


def gather(
    batch: RingBatch, arcs: Arcs, kept: Int32Array, new: Int32Array, new_offsets: Int64Array, count: int
) -> tuple[Int32Array, Int64Array]:
    """Points of rings, (v, 2), and where each ring begins, (r + 1,); a ring ends with its first point.

    Args:
        batch: The rings.
        arcs: All arcs.
        kept: Finished points of older arcs, by their span.
        new: Finished points of the new arcs.
        new_offsets: Where each new arc begins in ``new``.
        count: Number of arcs before the new ones.
    """
    xy, offsets = _gather(batch.halves, batch.rings, arcs.span, _pairs(kept), _pairs(new), new_offsets, count)
    return xy.view(np.int32).reshape(-1, 2), offsets


def keep_points(arcs: Arcs, kept: Int32Array, size: int, new: Int32Array, new_offsets: Int64Array, count: int) -> int:
    """Copy the finished points of new arcs that are still needed behind the first ``size``; returns the new size."""
    needed = np.flatnonzero(arcs.done[count : count + len(new_offsets) - 1] != 3)
    source, _ = _ranges(new_offsets[needed], new_offsets[needed + 1])
    kept[size : size + len(source)] = new[source]
    ends = size + np.cumsum(new_offsets[needed + 1] - new_offsets[needed])
    arcs.span[count + needed, 1] = ends
    arcs.span[count + needed, 0] = ends - (new_offsets[needed + 1] - new_offsets[needed])
    return size + len(source)


def _pairs(points: Int32Array) -> Int64Array:
    """Points x, y as one number each, which takes half the work to copy."""
    return points.reshape(-1).view(np.int64)


@njit
def _gather(
    halves: Int64Array,
    rings: Int64Array,
    span: Int64Array,
    kept: Int64Array,
    new: Int64Array,
    new_offsets: Int64Array,
    count: int,
) -> tuple[Int64Array, Int64Array]:
    offsets = np.empty(len(rings), dtype=np.int64)
    offsets[0] = 0
    for ring in range(len(rings) - 1):
        size = offsets[ring] + 1
        for i in range(rings[ring], rings[ring + 1]):
            arc = halves[i] >> 1
            if arc >= count:
                size += new_offsets[arc - count + 1] - new_offsets[arc - count] - 1
            else:
                size += span[arc, 1] - span[arc, 0] - 1
        offsets[ring + 1] = size
    xy = np.empty(offsets[-1], dtype=np.int64)
    for ring in range(len(rings) - 1):
        size = offsets[ring]
        for i in range(rings[ring], rings[ring + 1]):
            arc, back = halves[i] >> 1, halves[i] & 1
            if arc >= count:
                size = _append(new, new_offsets[arc - count], new_offsets[arc - count + 1], back, xy, size)
            else:
                size = _append(kept, span[arc, 0], span[arc, 1], back, xy, size)
        xy[size] = xy[offsets[ring]]
    return xy, offsets


@helper
def _append(points: Int64Array, low: int, high: int, back: int, xy: Int64Array, size: int) -> int:
    """Copy all points of an arc but the one where the walk leaves it; the new size."""
    for j in range(high - low - 1):
        xy[size + j] = points[high - 1 - j if back else low + j]
    return size + high - low - 1
