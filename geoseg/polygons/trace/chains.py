"""Pieces of arcs that cross the seams between bands, linked until an arc is whole.

Each piece has two ends, numbered 2 · piece (start) and 2 · piece + 1. An end lies at a node, or crosses a seam and is
linked to the end on the other side. The two outermost ends of a chain of linked pieces know each other, so a chain
grows at either end, or joins another one, in constant time however often it has crossed seams before.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from geoseg.polygons.trace.arcs import BandArcs
from geoseg.polygons.trace.cracks import Int32Array, Int64Array
from geoseg.polygons.trace.tables import Points, grown, row_bytes
from geoseg.runtime.jit import helper, int64, njit


class _Pieces(NamedTuple):
    """One row per piece; columns of two are for its start and end."""

    sides: Int32Array  # region on the left and right
    nodes: Int32Array  # −1 where the piece crosses a seam
    keys: Int64Array
    span: Int64Array  # where its points begin and end
    link: Int32Array  # the end that continues it beyond the seam; −1 none yet
    far: Int32Array  # of an outermost end: the other outermost end of the chain
    top: Int32Array  # of an outermost end: smallest y of the chain
    whole: npt.NDArray[np.bool_]  # handed out as part of a whole arc


class WholeArcs(NamedTuple):
    """Arcs without loose ends in canonical direction; fields as in `BandArcs`."""

    points: Int32Array
    offsets: Int64Array
    sides: Int32Array
    nodes: Int32Array
    keys: Int64Array
    area: Int64Array
    extent: Int32Array


class Chains:
    """Open pieces of all bands so far, and the ends that wait at the lower seam."""

    def __init__(self, width: int) -> None:
        self._pieces = _Pieces(
            np.empty((0, 2), np.int32),
            np.empty((0, 2), np.int32),
            np.empty((0, 2), np.int64),
            np.empty((0, 2), np.int64),
            np.empty((0, 2), np.int32),
            np.empty((0, 2), np.int32),
            np.empty((0, 2), np.int32),
            np.empty(0, np.bool_),
        )
        self._points = Points(np.empty((0, 2), np.int32))
        self._piece_count = self._point_count = 0
        self._waiting = np.full(width + 1, -1, dtype=np.int32)

    def join(self, arcs: BandArcs, region_shift: int, node_shift: int) -> WholeArcs:
        """Link the open pieces of the next band; returns all arcs that are whole now, those within the band last.

        Args:
            arcs: Arcs of the band.
            region_shift: What to add to the band's numbers of regions, except 0, the outside.
            node_shift: What to add to its numbers of nodes.
        """
        np.add(arcs.sides, region_shift, out=arcs.sides, where=arcs.sides > 0)
        np.add(arcs.nodes, node_shift, out=arcs.nodes, where=arcs.nodes >= 0)
        if not arcs.open_pieces and not self._piece_count:  # a map of one band
            return WholeArcs(arcs.points, arcs.offsets, arcs.sides, arcs.nodes, arcs.keys, arcs.area, arcs.extent)
        count, size = arcs.open_pieces, int(arcs.offsets[arcs.open_pieces])
        self._pieces = grown(self._pieces, self._piece_count, self._piece_count + count)
        self._points = grown(self._points, self._point_count, self._point_count + size)
        self._points.xy[self._point_count : self._point_count + size] = arcs.points[:size]
        starts = _link(self._pieces, self._waiting, arcs, self._piece_count, self._point_count)
        self._waiting = np.where(arcs.bottom < 0, -1, arcs.bottom + 2 * self._piece_count).astype(np.int32)
        self._piece_count += count
        self._point_count += size
        joined = _whole_arcs(self._pieces, self._points.xy, starts, len(self._waiting))
        return WholeArcs(
            np.concatenate([joined.points, arcs.points[size:]]),
            np.concatenate([joined.offsets, arcs.offsets[count + 1 :] - size + joined.offsets[-1]]),
            np.concatenate([joined.sides, arcs.sides[count:]]),
            np.concatenate([joined.nodes, arcs.nodes[count:]]),
            np.concatenate([joined.keys, arcs.keys[count:]]),
            np.concatenate([joined.area, arcs.area[count:]]),
            np.concatenate([joined.extent, arcs.extent[count:]]),
        )

    def top(self) -> int | None:
        """Smallest y of the open chains, or None without any."""
        waiting = self._waiting[self._waiting >= 0]
        return int(self._pieces.top.reshape(-1)[waiting].min()) if len(waiting) else None

    def nbytes(self) -> int:
        """Bytes in use, pieces of whole arcs included."""
        return self._piece_count * row_bytes(self._pieces) + self._point_count * 8

    def references(self) -> tuple[Int32Array, Int32Array]:
        """Sides (p, 2) and nodes (p, 2) of all pieces that are left; views, to be renumbered in place."""
        return self._pieces.sides[: self._piece_count], self._pieces.nodes[: self._piece_count]

    def compact(self) -> None:
        """Drop the pieces of whole arcs."""
        self._piece_count, self._point_count = _compact(self._pieces, self._points.xy, self._waiting, self._piece_count)


@njit
def _link(pieces: _Pieces, waiting: Int32Array, arcs: BandArcs, count: int, size: int) -> Int64Array:
    """Append a band's open pieces and link them; the ends at which whole arcs begin, −1 − end for a loop."""
    for k in range(arcs.open_pieces):
        piece = count + k
        for side in range(2):
            pieces.sides[piece, side] = arcs.sides[k, side]
            pieces.nodes[piece, side] = arcs.nodes[k, side]
            pieces.keys[piece, side] = arcs.keys[k, side]
            pieces.span[piece, side] = size + arcs.offsets[k + side]
            pieces.link[piece, side] = -1
            pieces.far[piece, side] = 2 * piece + 1 - side
            pieces.top[piece, side] = arcs.extent[k, 0]
        pieces.whole[piece] = False
    starts = np.empty(len(waiting), dtype=np.int64)
    found = 0
    for x in range(len(waiting)):
        if arcs.top[x] < 0:
            continue
        upper, lower = int64(waiting[x]), int64(arcs.top[x] + 2 * count)
        pieces.link[upper >> 1, upper & 1] = lower
        pieces.link[lower >> 1, lower & 1] = upper
        one, other = int64(pieces.far[upper >> 1, upper & 1]), int64(pieces.far[lower >> 1, lower & 1])
        if one == lower:
            starts[found] = -1 - upper
            found += 1
            continue
        top = min(pieces.top[one >> 1, one & 1], pieces.top[other >> 1, other & 1])
        pieces.top[one >> 1, one & 1] = pieces.top[other >> 1, other & 1] = top
        pieces.far[one >> 1, one & 1], pieces.far[other >> 1, other & 1] = other, one
        if pieces.nodes[one >> 1, one & 1] >= 0 and pieces.nodes[other >> 1, other & 1] >= 0:
            first = pieces.keys[one >> 1, one & 1] < pieces.keys[other >> 1, other & 1]
            starts[found] = one if first else other
            found += 1
    return starts[:found]


@njit
def _whole_arcs(pieces: _Pieces, xy: Int32Array, starts: Int64Array, stride: int) -> WholeArcs:
    """Gather the points of chains that have become whole arcs, and turn loops so that they begin where they should."""
    count = len(starts)
    offsets = np.zeros(count + 1, dtype=np.int64)
    for k in range(count):
        begin = starts[k] if starts[k] >= 0 else -1 - starts[k]
        end, size = begin, int64(0)
        while True:
            piece = end >> 1
            pieces.whole[piece] = True
            size += pieces.span[piece, 1] - pieces.span[piece, 0]
            end = int64(pieces.link[piece, 1 - (end & 1)])
            if end < 0 or end == begin:
                break
        offsets[k + 1] = offsets[k] + size + (starts[k] < 0)
    points = np.empty((offsets[count], 2), dtype=np.int32)
    sides = np.empty((count, 2), dtype=np.int32)
    nodes = np.full((count, 2), np.int32(-1))
    keys = np.empty((count, 2), dtype=np.int64)
    area = np.zeros(count, dtype=np.int64)
    extent = np.empty((count, 2), dtype=np.int32)
    for k in range(count):
        begin = starts[k] if starts[k] >= 0 else -1 - starts[k]
        turned = begin & 1
        sides[k, 0], sides[k, 1] = pieces.sides[begin >> 1, turned], pieces.sides[begin >> 1, 1 - turned]
        end, last, size = begin, begin, offsets[k]
        while True:
            piece = end >> 1
            low, high = pieces.span[piece, 0], pieces.span[piece, 1]
            for i in range(high - low):
                source = low + i if end & 1 == 0 else high - 1 - i
                points[size, 0], points[size, 1] = xy[source, 0], xy[source, 1]
                size += 1
            last = 2 * piece + 1 - (end & 1)
            end = int64(pieces.link[piece, 1 - (end & 1)])
            if end < 0 or end == begin:
                break
        part = points[offsets[k] : offsets[k + 1]]
        if starts[k] >= 0:
            for side in range(2):
                place = last if side else begin
                nodes[k, side] = pieces.nodes[place >> 1, place & 1]
                keys[k, side] = pieces.keys[place >> 1, place & 1]
        else:
            if _turn_loop(part):
                sides[k, 0], sides[k, 1] = sides[k, 1], sides[k, 0]
            keys[k, 0] = keys[k, 1] = 4 * (int64(part[0, 1]) * stride + part[0, 0]) + 1
        extent[k, 0] = extent[k, 1] = part[0, 1]
        for i in range(1, len(part)):
            extent[k, 0], extent[k, 1] = min(extent[k, 0], part[i, 1]), max(extent[k, 1], part[i, 1])
            area[k] += int64(part[i - 1, 0]) * part[i, 1] - int64(part[i, 0]) * part[i - 1, 1]
    return WholeArcs(points, offsets, sides, nodes, keys, area, extent)


@helper
def _turn_loop(points: Int32Array) -> bool:
    """Let a loop begin at its topmost, there leftmost corner and go south; the last row is free for the first point.

    Returns:
        Whether the direction was reversed.
    """
    count = len(points) - 1
    first = 0
    for i in range(1, count):
        higher, level = points[i, 1] < points[first, 1], points[i, 1] == points[first, 1]
        if higher or (level and points[i, 0] < points[first, 0]):
            first = i
    reverse = bool(points[(first + 1) % count, 0] != points[first, 0])
    loop = points[:count].copy()
    for i in range(count + 1):
        source = (first - i if reverse else first + i) % count
        points[i, 0], points[i, 1] = loop[source, 0], loop[source, 1]
    return reverse


@njit
def _compact(pieces: _Pieces, xy: Int32Array, waiting: Int32Array, count: int) -> tuple[int, int]:
    """Drop whole pieces and their points; the numbers of pieces and points left."""
    number = np.full(count, np.int32(-1))
    left, size = 0, int64(0)
    for piece in range(count):
        if pieces.whole[piece]:
            continue
        number[piece] = left
        for side in range(2):
            pieces.sides[left, side] = pieces.sides[piece, side]
            pieces.nodes[left, side] = pieces.nodes[piece, side]
            pieces.keys[left, side] = pieces.keys[piece, side]
            pieces.link[left, side] = pieces.link[piece, side]
            pieces.far[left, side] = pieces.far[piece, side]
            pieces.top[left, side] = pieces.top[piece, side]
        pieces.whole[left] = False
        low, high = pieces.span[piece, 0], pieces.span[piece, 1]
        for i in range(low, high):  # points move towards the front only
            xy[size + i - low, 0], xy[size + i - low, 1] = xy[i, 0], xy[i, 1]
        pieces.span[left, 0], pieces.span[left, 1] = size, size + high - low
        size += high - low
        left += 1
    for piece in range(left):
        for side in range(2):
            link, far = pieces.link[piece, side], pieces.far[piece, side]
            if link >= 0:
                pieces.link[piece, side] = 2 * number[link >> 1] + (link & 1)
            # An end inside a chain may still name a far end of former times that is gone.
            pieces.far[piece, side] = 2 * number[far >> 1] + (far & 1)
    for x in range(len(waiting)):
        if waiting[x] >= 0:
            waiting[x] = 2 * number[waiting[x] >> 1] + (waiting[x] & 1)
    return left, int(size)
