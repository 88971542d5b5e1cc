"""The rings of closed regions, and their points.

Rings are walked with their region on the left. Where four cracks meet and both pixels of a diagonal belong to the
region, the walk turns right, past both on the side of the same foreign pixel. So its rings may touch but never cross,
and the only one with a positive area is the shell.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from geoseg.arrays import ByteArray, Int32Array, IntArray
from geoseg.polygons.trace.tables import ABSENT, Arcs, Nodes, Regions, ranges
from geoseg.runtime.jit import helper, int64, njit


class RingBatch(NamedTuple):
    """Rings of closed regions as half-arcs, each from the one whose arc comes first by (y, x, direction) of its start.

    The shell of a region is its first ring, holes follow in the order of that first arc.
    """

    halves: IntArray  # half-arcs of all rings in walking order, (h,)
    rings: IntArray  # where each ring begins in them, (r + 1,)
    polygons: IntArray  # where each region begins in the rings, (n + 1,)


@njit
def least_points(arcs: Arcs, nodes: Nodes, offsets: IntArray, count: int) -> ByteArray:
    """Interior points that new arcs have to keep for every ring to keep an area, (a,).

    A loop without a node keeps three points and a loop at a node two. Of two arcs that bound a region alone one keeps a
    point: the one that reaches lower; if none does, the one that has interior points at all; else the one that starts
    in the later direction. All of it is known when the lower one gets whole, whatever the bands.

    Arcs from ``count`` on are new, and ``offsets``, (a + 1,), say where the unfinished points of each begin.
    """
    least = np.zeros(len(offsets) - 1, dtype=np.uint8)
    ends, keys, lowest = arcs.nodes, arcs.keys, arcs.lowest
    for k in range(len(least)):
        arc = count + k
        if ends[arc, 0] < 0:
            least[k] = 3
        elif ends[arc, 0] == ends[arc, 1]:
            least[k] = 2
        else:
            for side in range(2):
                half = 2 * arc + side
                back = _next_left(ends, keys, nodes.halves, half)
                if back < 0 or back >> 1 == arc or _next_left(ends, keys, nodes.halves, back) != half:
                    continue
                other = back >> 1
                lower = lowest[arc] > lowest[other]
                if lowest[arc] == lowest[other]:  # then both are new
                    bends = offsets[k + 1] - offsets[k] > 2
                    other_bends = offsets[other - count + 1] - offsets[other - count] > 2
                    lower = keys[arc, 0] > keys[other, 0] if bends == other_bends else bends
                if lower:
                    least[k] = 1
    return least


@helper
def _next_left(ends: Int32Array, keys: IntArray, leaving: Int32Array, half: int) -> int:
    """The half-arc that goes on as far to the left as possible; ``UNFINISHED`` or ``DROPPED`` where it is not there."""
    arc, end = half >> 1, 1 - (half & 1)
    node, away = ends[arc, end], keys[arc, end] & 3
    for turn in range(1, 4):
        following = int64(leaving[node, (away + turn) & 3])
        if following != ABSENT:
            return following
    return ABSENT


def assemble(arcs: Arcs, regions: Regions, nodes: Nodes, closed: IntArray) -> RingBatch:
    """Rings of closed regions, given by their roots; marks their sides of the arcs as done."""
    total = int(regions.halves[closed].sum(dtype=np.int64))
    halves, rings = np.empty(total, dtype=np.int64), np.zeros(total + 1, dtype=np.int64)
    first_keys, polygons = np.empty(total, dtype=np.int64), np.zeros(len(closed) + 1, dtype=np.int64)
    count = _walk_rings(arcs, regions, nodes, closed, RingBatch(halves, rings, polygons), first_keys)
    batch = RingBatch(halves[: rings[count]], rings[: count + 1], polygons)
    _sort_rings(batch, first_keys[:count])
    return batch


def _sort_rings(batch: RingBatch, first_keys: IntArray) -> None:
    """Sort the rings of each region by their first keys, in place; most regions have a single ring."""
    disordered = np.flatnonzero(first_keys[1:] < first_keys[:-1]) + 1  # ring numbers, the first ones of regions too
    region = np.searchsorted(batch.polygons, disordered, side="right") - 1
    regions = np.unique(region[batch.polygons[region] != disordered])
    if not len(regions):
        return
    rings, owner = ranges(batch.polygons[regions], batch.polygons[regions + 1])
    order = rings[np.lexsort((first_keys[rings], owner))]
    place, _ = ranges(batch.rings[rings], batch.rings[rings + 1])
    source, _ = ranges(batch.rings[order], batch.rings[order + 1])
    sizes = batch.rings[order + 1] - batch.rings[order]
    batch.halves[place] = batch.halves[source]
    batch.rings[rings] = place[np.cumsum(sizes) - sizes]


@njit
def _walk_rings(
    arcs: Arcs, regions: Regions, nodes: Nodes, closed: IntArray, out: RingBatch, first_keys: IntArray
) -> int:
    """Fill a batch, and what its rings are sorted by; the number of rings."""
    keys, ends, follower, done, leaving = arcs.keys, arcs.nodes, arcs.follower, arcs.done, nodes.halves
    halves, count, size = out.halves, 0, 0
    for k in range(len(closed)):
        region, tail = closed[k], int64(regions.tail[closed[k]])
        listed = tail
        while True:
            listed = int64(follower[listed >> 1, listed & 1])
            if not done[listed >> 1] >> (listed & 1) & 1:
                begin, best, best_key, area = size, size, keys[listed >> 1, 0], int64(0)
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
                    half = int64(leaving[node, (away + 3) & 3])
                    goes_right = half >= 0
                    if goes_right:
                        root = arcs.sides[half >> 1, half & 1]
                        while regions.parent[root] != root:
                            root = regions.parent[root]
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
                out.rings[count] = size
            if listed == tail:
                break
        out.polygons[k + 1] = count
    return count


def gather(
    batch: RingBatch, arcs: Arcs, kept: Int32Array, new: Int32Array, new_offsets: IntArray, count: int
) -> tuple[Int32Array, IntArray]:
    """Points of rings, (v, 2), and where each ring begins, (r + 1,); a ring ends with its first point.

    The finished points of the first ``count`` arcs are ``kept``, by their span, those of the others ``new``.
    """
    xy, offsets = _gather(batch.halves, batch.rings, arcs.span, _pairs(kept), _pairs(new), new_offsets, count)
    return xy.view(np.int32).reshape(-1, 2), offsets


def _pairs(points: Int32Array) -> IntArray:
    """Points x, y as one number each, which takes half the work to copy."""
    return points.reshape(-1).view(np.int64)


@njit
def _gather(
    halves: IntArray,
    rings: IntArray,
    span: IntArray,
    kept: IntArray,
    new: IntArray,
    new_offsets: IntArray,
    count: int,
) -> tuple[IntArray, IntArray]:
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
def _append(points: IntArray, low: int, high: int, back: int, xy: IntArray, size: int) -> int:
    """Copy all points of an arc but the one where the walk leaves it; the new size."""
    for j in range(high - low - 1):
        xy[size + j] = points[high - 1 - j if back else low + j]
    return size + high - low - 1
