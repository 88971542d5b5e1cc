"""The rings of closed regions, and their points.

Around a region rings are walked with the region on the left. Where four cracks meet and both pixels
of a diagonal belong to the region, the walk turns right: it passes both on the side of the same foreign pixel. So rings
of a region touch in such points but never cross, each region has exactly one shell, and the sign of the area tells
which ring that is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from geoseg._jit import njit
from geoseg.polygons.cracks import ByteArray, Int32Array, Int64Array
from geoseg.polygons.tables import ABSENT, Arcs, Nodes, Regions


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


@njit
def _next_left(arcs: Arcs, nodes: Nodes, half: int) -> int:
    """The half-arc that goes on as far to the left as possible; ``UNFINISHED`` or ``DROPPED`` where it is not there."""
    arc, end = half >> 1, 1 - (half & 1)
    node, away = arcs.nodes[arc, end], arcs.keys[arc, end] & 3
    for turn in range(1, 4):
        following = int(nodes.halves[node, (away + turn) & 3])
        if following != ABSENT:
            return following
    return ABSENT


@njit
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
    for k in range(len(least)):
        arc = count + k
        if arcs.nodes[arc, 0] < 0:
            least[k] = 3
            continue
        if arcs.nodes[arc, 0] == arcs.nodes[arc, 1]:
            least[k] = 2
            continue
        for side in range(2):
            half = 2 * arc + side
            back = _next_left(arcs, nodes, half)
            if back < 0 or back >> 1 == arc or _next_left(arcs, nodes, back) != half:
                continue
            other = back >> 1
            lower = arcs.lowest[arc] > arcs.lowest[other]
            if arcs.lowest[arc] == arcs.lowest[other]:  # then both are new
                bends = offsets[k + 1] - offsets[k] > 2
                other_bends = offsets[other - count + 1] - offsets[other - count] > 2
                lower = arcs.keys[arc, 0] > arcs.keys[other, 0] if bends == other_bends else bends
            if lower:
                least[k] = 1
    return least


@njit
def assemble(arcs: Arcs, regions: Regions, nodes: Nodes, closed: Int64Array) -> RingBatch:
    """Rings of closed regions; marks their sides of the arcs as done.

    Args:
        arcs: All arcs.
        regions: All regions.
        nodes: All nodes.
        closed: Roots of the regions, neither outside nor nodata, (n,).
    """
    # Helpers called for each half-arc would count references to all arrays of the tables: three times the time.
    keys, ends, sides, follower, done = arcs.keys, arcs.nodes, arcs.sides, arcs.follower, arcs.done
    leaving, parent = nodes.halves, regions.parent
    total = np.int64(0)
    for k in range(len(closed)):
        total += regions.halves[closed[k]]
    halves = np.empty(total, dtype=np.int64)
    rings = np.zeros(total + 1, dtype=np.int64)
    first_keys = np.empty(total, dtype=np.int64)
    polygons = np.zeros(len(closed) + 1, dtype=np.int64)
    count, size = 0, 0
    for k in range(len(closed)):
        region, region_size, region_rings = closed[k], size, count
        tail = int(regions.tail[region])
        listed = tail
        while True:
            listed = int(follower[listed >> 1, listed & 1])
            if not done[listed >> 1] >> (listed & 1) & 1:
                begin, best, best_key, area = size, size, keys[listed >> 1, 0], np.int64(0)
                half = listed
                while True:
                    arc, back = half >> 1, half & 1
                    done[arc] |= 1 << back
                    area += -arcs.area[arc] if back else arcs.area[arc]
                    halves[size] = half
                    if keys[arc, 0] < best_key:
                        best, best_key = size, keys[arc, 0]
                    size += 1
                    node = ends[arc, 1 - back]
                    if node < 0:
                        break
                    # Right first, if that side of the diagonal is the same region; otherwise as far left as possible.
                    away = keys[arc, 1 - back] & 3
                    half = int(leaving[node, (away + 3) & 3])
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
                        half = int(leaving[node, (away + turn) & 3])
                    if half == listed:
                        break
                first_keys[count] = best_key if area > 0 else -1  # the shell comes first
                if best > begin:
                    ring = halves[begin:size].copy()
                    for i in range(len(ring)):
                        halves[begin + i] = ring[(best - begin + i) % len(ring)]
                count += 1
                rings[count] = size
            if listed == tail:
                break
        if count - region_rings > 1:
            # The int() keeps numba from compiling it once more for the constants that these are at first.
            _sort_rings(halves, rings, first_keys, int(region_size), int(region_rings), count)
        polygons[k + 1] = count
    return RingBatch(halves[:size], rings[: count + 1], polygons)


@njit
def _sort_rings(halves: Int64Array, rings: Int64Array, first_keys: Int64Array, size: int, begin: int, end: int) -> None:
    """Sort the rings ``begin`` … ``end − 1`` of a region, whose half-arcs begin at ``size``, by their first keys."""
    keys = first_keys[begin:end]
    in_order = True
    for i in range(1, len(keys)):
        in_order &= keys[i - 1] < keys[i]
    if in_order:
        return
    order = np.argsort(keys)
    old_halves, old_rings = halves[size : rings[end]].copy(), rings[begin : end + 1].copy()
    for i in range(len(order)):
        for j in range(old_rings[order[i]], old_rings[order[i] + 1]):
            halves[size] = old_halves[j - old_rings[0]]
            size += 1
        rings[begin + i + 1] = size


@njit
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
    offsets = np.zeros(len(batch.rings), dtype=np.int64)
    for ring in range(len(batch.rings) - 1):
        size = np.int64(1)
        for i in range(batch.rings[ring], batch.rings[ring + 1]):
            arc = batch.halves[i] >> 1
            if arc >= count:
                size += new_offsets[arc - count + 1] - new_offsets[arc - count] - 1
            else:
                size += arcs.span[arc, 1] - arcs.span[arc, 0] - 1
        offsets[ring + 1] = offsets[ring] + size
    xy = np.empty((offsets[-1], 2), dtype=np.int32)
    for ring in range(len(batch.rings) - 1):
        size = offsets[ring]
        for i in range(batch.rings[ring], batch.rings[ring + 1]):
            arc, back = batch.halves[i] >> 1, batch.halves[i] & 1
            if arc >= count:
                low, high = new_offsets[arc - count], new_offsets[arc - count + 1]
                for j in range(high - low - 1):
                    source = high - 1 - j if back else low + j
                    xy[size, 0], xy[size, 1] = new[source, 0], new[source, 1]
                    size += 1
            else:
                low, high = arcs.span[arc, 0], arcs.span[arc, 1]
                for j in range(high - low - 1):
                    source = high - 1 - j if back else low + j
                    xy[size, 0], xy[size, 1] = kept[source, 0], kept[source, 1]
                    size += 1
        xy[size, 0], xy[size, 1] = xy[offsets[ring], 0], xy[offsets[ring], 1]
    return xy, offsets


@njit
def keep_points(arcs: Arcs, kept: Int32Array, size: int, new: Int32Array, new_offsets: Int64Array, count: int) -> int:
    """Copy the finished points of new arcs that are still needed behind the first ``size``; returns the new size."""
    for k in range(len(new_offsets) - 1):
        arc = count + k
        if arcs.done[arc] == 3:
            continue
        low, high = new_offsets[k], new_offsets[k + 1]
        arcs.span[arc, 0], arcs.span[arc, 1] = size, size + high - low
        for i in range(low, high):
            kept[size, 0], kept[size, 1] = new[i, 0], new[i, 1]
            size += 1
    return size
