"""From rows of a class map to the polygons of the regions that close, band by band.

Regions and arcs are joined over the seams, and every arc is brought into its canonical direction and finished once.
Memory follows the open objects: the arcs of regions that reach the lower seam, and one band for each thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np

from geoseg.arrays import ByteArray, Int16Array, Int32Array, IntArray
from geoseg.map_rows import NO_CUTS, MapRows, join_rows
from geoseg.polygons import rings
from geoseg.polygons.trace.arcs import BandArcs, trace_band
from geoseg.polygons.trace.chains import Chains, WholeArcs
from geoseg.polygons.trace.cracks import LEFT_OUT, OUTSIDE, SUBPIXEL, ArcBatch, BitRows, Cracks, pack_cracks
from geoseg.polygons.trace.graph import Graph
from geoseg.polygons.trace.labels import BandRegions

_BAND_PIXELS = 1 << 22
_SLACK_BYTES = 1 << 24  # storage below this is not worth compacting


class Finisher(Protocol):
    """Turns lattice arcs that have become whole into final ones; gets every arc once, also those around nodata."""

    @property
    def lookahead(self) -> int:
        """Rows below (and above) an arc that it looks at: an arc is complete only once so many further are known."""

    def __call__(self, batch: ArcBatch, cracks: Cracks, /) -> tuple[Int32Array, IntArray]:
        """Points in 1/256 px, (m, 2), and where each arc begins in them, (a + 1,)."""

    def drop_above(self, row: int, /) -> None:
        """Nothing above a row will be asked for again."""


@dataclass(frozen=True, slots=True, eq=False)
class ClosedPolygons:
    """Polygons of regions that have closed, in lattice coordinates; layout as in `geoseg.polygons.batch.PolygonBatch`.

    Shells run counter-clockwise and holes clockwise as seen on the map, where y points down; a transform with a
    positive determinant needs the rings reversed.
    """

    value: ByteArray  # of the pixels, (n,)
    xy: Int32Array  # points of all rings in 1/256 px, (v, 2); (0, 0) is the outer corner of the first pixel, y down
    rings: IntArray  # where each ring begins in the points, (r + 1,)
    polygons: IntArray  # where each polygon begins in the rings, (n + 1,); the shell is its first ring
    pixels: IntArray  # how many, (n,)
    first: IntArray  # first pixel in raster order as row · W + column, (n,)
    confidence_sum: IntArray | None  # of the pixels, (n,); None if the rows had none
    confidence_min: ByteArray  # (n,)

    def __len__(self) -> int:
        return len(self.value)


class Band(NamedTuple):
    """Rows to trace."""

    first_row: int  # pixel row of ``rows[1]`` in the map
    rows: Int16Array  # see `trace_band`
    confidence: ByteArray  # of the band's own rows, (h, W); without rows and columns if there is none
    cuts: ByteArray  # of all ``rows``, (h + 1, W); without rows and columns if there are none


class TracedBand(NamedTuple):
    """Regions and arcs of a band, before they are joined with others."""

    end_row: int
    regions: BandRegions
    arcs: BandArcs
    planes: tuple[ByteArray, ByteArray] | None  # of `Cracks`, where arcs are finished
    has_confidence: bool


def closed_polygons(
    rows: Iterable[MapRows],
    width: int,
    *,
    finish: Finisher | None = None,
    left_out: int | None = None,
    threads: int = 1,
    band_rows: int | None = None,
) -> Iterator[ClosedPolygons]:
    """The polygons of a class map, as they close, which may lag a few bands behind the rows.

    Bands of rows are traced in threads while the caller's thread joins them, finishes arcs and gathers polygons. These
    come in the order of (last row, first pixel) of their region, and are the same, point for point, whatever the bands,
    threads, and numbers of rows at once.

    Args:
        rows: The map from top to bottom; with confidence in all of them or in none.
        width: Width of the map, px.
        finish: What becomes of arcs; without it they stay as they are.
        left_out: Value of pixels that are traced like any class and become no polygon; None for none.
        threads: Threads that trace bands beside the caller's own; 0 traces in the caller's thread.
        band_rows: Height of a band, px; by default about 4 Mpx.

    Yields:
        The polygons that each band closes, perhaps none.

    Raises:
        ValueError: Rows of another width or type, or confidence in some of them only.
    """
    joiner = Joiner(width, finish)
    trace = partial(_trace, finish is not None, left_out)
    waiting: deque[TracedBand] = deque()
    for band in _in_threads(trace, cut_bands(rows, width, band_rows or max(16, _BAND_PIXELS // width)), threads):
        joiner.learn(band)
        waiting.append(band)
        while waiting and waiting[0].end_row + joiner.lookahead <= band.end_row:
            yield joiner.join(waiting.popleft())
    yield from map(joiner.join, waiting)


def cut_bands(parts: Iterable[MapRows], width: int, height: int) -> Iterator[Band]:
    """The rows of a map in bands of ``height`` rows; the last one has fewer, and the row of `OUTSIDE` below the map."""
    first_row = count = 0
    pieces: list[MapRows] = []  # from the last row of the band above on
    has_confidence: bool | None = None

    def band(last: bool) -> Band:
        known, top = join_rows(pieces, axis=-2), int(first_row == 0)
        rows = np.full((top + len(known) + last, width + 2), OUTSIDE, dtype=np.int16)
        rows[top : top + len(known), 1:-1] = known.classes
        cuts = NO_CUTS if known.cuts is None else np.pad(known.cuts, ((top, last), (0, 0)))
        confidence = np.empty((0, 0), np.uint8) if known.confidence is None else known.confidence[1 - top :]
        return Band(first_row, rows, confidence, cuts)

    for part in parts:
        if has_confidence not in (None, part.confidence is not None):
            raise ValueError("confidence is given with all rows or with none")
        has_confidence = part.confidence is not None
        for array in (part.classes, part.classes if part.confidence is None else part.confidence):
            if array.dtype != np.uint8 or array.shape != (len(part), width):
                raise ValueError(f"rows are (h, {width}) uint8, found {array.shape} {array.dtype}")
        while len(part):
            missing = height - count
            pieces.append(part[:missing])
            count += len(pieces[-1])
            part = part[missing:]
            if count == height:
                yield band(last=False)
                first_row, count, pieces = first_row + height, 0, [pieces[-1][-1:]]
    if pieces:
        yield band(last=True)


def _trace(finishing: bool, left_out: int | None, band: Band) -> TracedBand:
    """Trace one band, in a thread."""
    first_row, rows, confidence, cuts = band
    if left_out is not None:
        rows[rows == left_out] = LEFT_OUT
    planes = pack_cracks(rows, cuts) if finishing else None
    regions, arcs = trace_band(rows, confidence, first_row=first_row, cuts=cuts)
    return TracedBand(first_row + len(rows) - 1, regions, arcs, planes, confidence.shape[1] > 0)


def _in_threads(work: Callable[[Band], TracedBand], bands: Iterable[Band], threads: int) -> Iterator[TracedBand]:
    """The work on each band in order, done by some threads a few bands ahead."""
    if not threads:
        yield from map(work, bands)
        return
    pool = ThreadPoolExecutor(threads, "geoseg-trace")
    try:
        working: deque[Future[TracedBand]] = deque()
        for band in bands:
            working.append(pool.submit(work, band))
            if len(working) > threads:
                yield working.popleft().result()
        while working:
            yield working.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class Joiner:
    """What is open of the bands of a map that have been joined so far; for the parameters see `closed_polygons`."""

    def __init__(self, width: int, finish: Finisher | None = None) -> None:
        if width < 1:
            raise ValueError(f"a map is at least 1 px wide, found {width}")
        self.lookahead = finish.lookahead if finish else 0
        self._finish = finish
        self._cracks = Cracks(BitRows(width), BitRows(width))
        self._chains = Chains(width)
        self._graph = Graph(width)
        self._kept_bytes = 0  # in use after the last compaction

    def learn(self, band: TracedBand) -> None:
        """Know the cracks of the next band; it may be joined once enough further rows are known."""
        if band.planes is not None:
            for plane, rows in zip(self._cracks, band.planes, strict=True):
                plane.add(rows)

    def nbytes(self) -> int:
        """Bytes of the objects kept from the bands joined so far, crack rows not counted."""
        return self._graph.nbytes() + self._chains.nbytes()

    def join(self, band: TracedBand) -> ClosedPolygons:
        """Add a band to the graph and take the regions that it closes out of it."""
        graph, chains = self._graph, self._chains
        regions_before, nodes_before = graph.add_regions(band.regions), graph.add_nodes(band.arcs.cracks)
        new = chains.join(band.arcs, regions_before - 1, nodes_before)
        arcs_before = graph.add_arcs(new)
        closed = graph.take_closed(regions_before)
        arcs, regions = graph.arcs.rows, graph.regions.rows
        batch = rings.assemble(arcs, regions, graph.nodes.rows, closed)
        points, offsets = self._finished(new, arcs_before)
        xy, ring_offsets = rings.gather(batch, arcs, graph.points.rows.xy, points, offsets, arcs_before)
        polygons = ClosedPolygons(
            regions.value[closed].astype(np.uint8),
            xy,
            ring_offsets,
            batch.polygons,
            regions.pixels[closed],
            regions.first[closed],
            regions.confidence_sum[closed] if band.has_confidence else None,
            regions.confidence_min[closed],
        )
        graph.keep_points(points, offsets, arcs_before)
        if self.nbytes() > 2 * self._kept_bytes + _SLACK_BYTES:  # so that moving things costs no more than adding them
            graph.compact(*chains.compact())
            self._kept_bytes = self.nbytes()
        if self._finish is not None:
            top = chains.top()
            unneeded = (band.end_row if top is None else top) - self.lookahead - 2
            for kept in (*self._cracks, self._finish):
                kept.drop_above(unneeded)
        return polygons

    def _finished(self, new: WholeArcs, arcs_before: int) -> tuple[Int32Array, IntArray]:
        """Points in 1/256 px of the arcs that are whole now."""
        if self._finish is None:
            return new.points * np.int32(SUBPIXEL), new.offsets
        least = rings.least_points(self._graph.arcs.rows, self._graph.nodes.rows, new.offsets, arcs_before)
        batch = ArcBatch(new.points, new.offsets, new.nodes[:, 0] < 0, least, new.keys)
        return self._finish(batch, self._cracks)
