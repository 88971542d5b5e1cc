"""Pieces of arcs that cross the seams between bands, linked until an arc is whole.

Each piece has two ends, numbered 2 · piece (start) and 2 · piece + 1. An end lies at a node, or crosses a seam and is
linked to the end on the other side. The two outermost ends of a chain of linked pieces know each other, so a chain
grows at either end, or joins another one, in constant time however often it has crossed seams before.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from geoseg.arrays import BoolArray, Int32Array, IntArray
from geoseg.polygons.trace.arcs import BandArcs
from geoseg.polygons.trace.tables import Points, Table, new_numbers, renumber, spans
from geoseg.runtime.jit import helper, int64, njit


class _Pieces(NamedTuple):
    """One row per piece; columns of two are for its start and end."""

    sides: Int32Array  # region on the left and right
    nodes: Int32Array  # −1 where the piece crosses a seam
    keys: IntArray
    span: IntArray  # where its points begin and end
    link: Int32Array  # the end that continues it beyond the seam; −1 none yet
    far: Int32Array  # of an outermost end: the other outermost end of the chain
    top: Int32Array  # of an outermost end: smallest y of the chain
    whole: BoolArray  # handed out as part of a whole arc


class WholeArcs(NamedTuple):
    """Arcs without loose ends in canonical direction; fields as in `BandArcs`."""

    points: Int32Array
    offsets: IntArray
    sides: Int32Array
    nodes: Int32Array
    keys: IntArray
    area: IntArray
    extent: Int32Array


class Chains:
    """Open pieces of all bands so far, and the ends that wait at the lower seam."""

    def __init__(self, width: int) -> None:
        columns = ("i4", 2), ("i4", 2), ("i8", 2), ("i8", 2), ("i4", 2), ("i4", 2), ("i4", 2), ("?", 0)
        self._pieces = Table(_Pieces, *columns)
        self._points = Table(Points, ("i4", 2))
        self._waiting = np.full(width + 1, -1, dtype=np.int32)

    def join(self, arcs: BandArcs, region_shift: int, node_shift: int) -> WholeArcs:
        """Link the open pieces of the next band; returns all arcs that are whole now, those within the band last.

        The shifts are added to the band's numbers of nodes and of regions except 0, the outside.
        """
        np.add(arcs.sides, region_shift, out=arcs.sides, where=arcs.sides > 0)
        np.add(arcs.nodes, node_shift, out=arcs.nodes, where=arcs.nodes >= 0)
        count, size = arcs.open_pieces, int(arcs.offsets[arcs.open_pieces])
        if not count and not self._pieces.count:  # a map of one band
            return WholeArcs(arcs.points, arcs.offsets, arcs.sides, arcs.nodes, arcs.keys, arcs.area, arcs.extent)
        pieces, points = self._pieces.add(count), self._points.add(size)
        self._points.rows.xy[points] = arcs.points[:size]
        rows, first = self._pieces.rows, 2 * pieces.start
        for name in ("sides", "nodes", "keys"):
            getattr(rows, name)[pieces] = getattr(arcs, name)[:count]
        rows.span[pieces] = points.start + spans(np.diff(arcs.offsets[: count + 1]))
        rows.far[pieces] = np.arange(first, first + 2 * count).reshape(-1, 2)[:, ::-1]
        rows.link[pieces], rows.top[pieces], rows.whole[pieces] = -1, arcs.extent[:count, :1], False
        starts = _link(rows, self._waiting, np.where(arcs.top < 0, -1, arcs.top + first))
        self._waiting = np.where(arcs.bottom < 0, -1, arcs.bottom + first).astype(np.int32)
        joined = _whole_arcs(rows, self._points.rows.xy, starts, len(self._waiting))
        columns = ("sides", "nodes", "keys", "area", "extent")
        return WholeArcs(
            np.concatenate([joined.points, arcs.points[size:]]),
            np.concatenate([joined.offsets, arcs.offsets[count + 1 :] - size + joined.offsets[-1]]),
            *(np.concatenate([getattr(joined, name), getattr(arcs, name)[count:]]) for name in columns),
        )

    def top(self) -> int | None:
        """Smallest y of the open chains, or None without any."""
        waiting = self._waiting[self._waiting >= 0]
        return int(self._pieces.rows.top.reshape(-1)[waiting].min()) if len(waiting) else None

    def nbytes(self) -> int:
        """Bytes in use, pieces of whole arcs included."""
        return self._pieces.nbytes() + self._points.nbytes()

    def compact(self) -> tuple[Int32Array, Int32Array]:
        """Drop the pieces of whole arcs; sides (p, 2) and nodes (p, 2) of the others, to be renumbered in place."""
        pieces = self._pieces.used()
        kept, sizes = ~pieces.whole, np.diff(pieces.span).ravel()
        number = new_numbers(kept)
        self._points.keep(np.repeat(kept, sizes))
        self._pieces.keep(kept)
        pieces = self._pieces.used()
        pieces.span[:] = spans(sizes[kept])
        # An end inside a chain may still name an earlier far end that is gone.
        for ends in (pieces.link, pieces.far, self._waiting):
            ends[:] = renumber(ends, number)
        return pieces.sides, pieces.nodes


@njit
def _link(pieces: _Pieces, waiting: Int32Array, below: Int32Array) -> IntArray:
    """Link the ends over and under a seam, (W + 1,) each, −1 for none; where whole arcs begin, −1 − end for a loop."""
    starts = np.empty(len(waiting), dtype=np.int64)
    found = 0
    for x in range(len(waiting)):
        if below[x] < 0:
            continue
        upper, lower = int64(waiting[x]), int64(below[x])
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
def _whole_arcs(pieces: _Pieces, xy: Int32Array, starts: IntArray, stride: int) -> WholeArcs:
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
    """Let a loop begin at its topmost, there leftmost corner and go south; whether its direction was reversed.

    The last row is free for the first point.
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
