"""From rows of a class map to the polygons of the regions that close, band by band.

The result does not depend on how the map is cut into bands: regions and arcs are joined over the seams, every arc is
brought into its canonical direction and finished once, and regions come out ordered by their last row and first pixel.
Memory follows the open objects: the arcs of regions that reach the lower seam, and one band for each thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import NamedTuple

import numpy as np

from geoseg.polygons import rings
from geoseg.polygons.trace.arcs import BandArcs, trace_band
from geoseg.polygons.trace.chains import Chains, WholeArcs
from geoseg.polygons.trace.crack_rows import CrackRows, near_pixel_rows
from geoseg.polygons.trace.cracks import (
    LEFT_OUT,
    NEAR_PX,
    OUTSIDE,
    SUBPIXEL,
    ArcBatch,
    ByteArray,
    Cracks,
    Int32Array,
    Int64Array,
    pack_cracks,
)
from geoseg.polygons.trace.graph import Graph
from geoseg.polygons.trace.labels import BandRegions

Finisher = Callable[[ArcBatch, Cracks], tuple[Int32Array, Int64Array]]


@dataclass(frozen=True, slots=True, eq=False)
class ClosedPolygons:
    """Polygons of regions that have closed, in lattice coordinates; layout as in `geoseg.polygons.batch.PolygonBatch`.

    Each ring ends with its first point, and has its region on the left as seen on the map: shells run counter-clockwise
    and holes clockwise on the map, that is, once y is flipped to point up. A transform that does not flip the
    orientation (positive determinant) therefore needs the rings reversed.

    Attributes:
        value: Value of the pixels, (n,) uint8.
        xy: Points of all rings in 1/256 px, (v, 2) int32; (0, 0) is the outer corner of the first pixel, y down.
        rings: Where each ring begins in ``xy``, (r + 1,) int64.
        polygons: Where each polygon begins in ``rings``, (n + 1,) int64; the shell is its first ring.
        pixels: Number of pixels, (n,) int64.
        first: First pixel in raster order as row · W + column, (n,) int64.
        confidence_sum: Sum of the pixels' confidence, (n,) int64; 0 where none was fed.
        confidence_min: Smallest confidence of a pixel, (n,) uint8; 255 where none was fed.
    """

    value: ByteArray
    xy: Int32Array
    rings: Int64Array
    polygons: Int64Array
    pixels: Int64Array
    first: Int64Array
    confidence_sum: Int64Array
    confidence_min: ByteArray

    def __len__(self) -> int:
        return len(self.value)


@dataclass(frozen=True, slots=True, eq=False)
class _Band:
    """Rows to trace, as they were fed."""

    first_row: int
    above: ByteArray | None  # the row over the seam, None at the top of the map
    rows: list[ByteArray]
    confidence: list[ByteArray]
    last: bool = False

    @property
    def height(self) -> int:
        return sum(map(len, self.rows)) + self.last  # below the map there is a row of the outside


class _Traced(NamedTuple):
    end_row: int
    regions: BandRegions
    arcs: BandArcs


_NO_BYTES = np.empty((0, 0), dtype=np.uint8)
_BAND_PIXELS = 1 << 22
_SLACK_BYTES = 1 << 24  # storage below this is not worth compacting


class Tracer:
    """The polygons of a class map whose rows are fed from top to bottom.

    Bands of rows are traced in threads while the caller's thread joins them, finishes arcs and gathers polygons.
    Polygons come out in the order of (last row, first pixel in raster order) of their region, and are the same, point
    for point, whatever the bands, threads, and numbers of rows fed at once.

    Args:
        width: Width of the map, px.
        finish: Turns the lattice arcs that have become whole into simplified or smoothed ones; it gets every arc of the
            map once, also those around nodata. Without it arcs stay as they are.
        lookahead: Rows below (and above) an arc that ``finish`` may look at in the crack planes; an arc or region is
            complete only once so many further rows are known.
        near_classes: Classes whose surroundings ``finish`` finds in `Cracks.near`; needs a lookahead of at least
            `NEAR_PX` rows.
        left_out: Value of pixels that are traced like any class and become no polygon; None for none.
        threads: Threads that trace bands beside the caller's own; 0 traces in the caller's thread.
        band_rows: Height of a band, px; by default about 4 Mpx.

    Raises:
        ValueError: A width below 1, or ``near_classes`` without the lookahead they need.
    """

    def __init__(
        self,
        width: int,
        *,
        finish: Finisher | None = None,
        lookahead: int = 0,
        near_classes: Sequence[int] = (),
        left_out: int | None = None,
        threads: int = 1,
        band_rows: int | None = None,
    ) -> None:
        if width < 1:
            raise ValueError(f"a map is at least 1 px wide, found {width}")
        if len(near_classes) and lookahead < NEAR_PX:
            raise ValueError(f"near_classes need a lookahead of {NEAR_PX} rows, found {lookahead}")
        self._width, self._finish, self._lookahead = width, finish, lookahead
        self._near = np.isin(np.arange(LEFT_OUT + 1), near_classes) if len(near_classes) else None
        self._left_out = left_out
        self._band_rows = band_rows or max(16, _BAND_PIXELS // width)
        self._executor = ThreadPoolExecutor(threads, "geoseg-trace") if threads else None
        self._threads = threads
        self._fed, self._with_confidence = 0, False
        self._band = _Band(0, None, [], [])
        self._tracing: deque[Future[tuple[_Traced, tuple[ByteArray, ByteArray, ByteArray]]]] = deque()
        self._traced: deque[_Traced] = deque()
        self._known_rows = 0
        self._cracks = CrackRows(width, near=self._near is not None)
        self._chains = Chains(width)
        self._graph = Graph(width)
        self._kept_bytes = 0  # in use after the last compaction
        self._closed = False

    def __enter__(self) -> Tracer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._shut_down()

    def feed(self, rows: ByteArray, confidence: ByteArray | None = None) -> list[ClosedPolygons]:
        """Take the next rows; returns polygons that have closed by now, which may lag a few bands behind.

        Args:
            rows: Class of each pixel, (h, W) uint8; 255 is nodata.
            confidence: Its confidence, (h, W) uint8; given with all rows or with none.

        Raises:
            ValueError: Rows of another width or type, or after `close`.
        """
        if self._closed:
            raise ValueError("the tracer is closed")
        if self._fed and (confidence is not None) != self._with_confidence:
            raise ValueError("confidence is given with all rows or with none")
        for name, array in (("rows", rows), ("confidence", rows if confidence is None else confidence)):
            if array.dtype != np.uint8 or array.ndim != 2 or array.shape != (len(rows), self._width):
                raise ValueError(
                    f"{name} are (h, {self._width}) uint8 for every h rows, found {array.shape} {array.dtype}"
                )
        self._with_confidence = confidence is not None
        self._fed += len(rows)
        closed: list[ClosedPolygons] = []
        done = 0
        while done < len(rows):
            count = min(self._band_rows - self._band.height, len(rows) - done)
            self._band.rows.append(rows[done : done + count].copy())
            if confidence is not None:
                self._band.confidence.append(confidence[done : done + count].copy())
            done += count
            if self._band.height == self._band_rows:
                end, above = self._band.first_row + self._band.height, self._band.rows[-1][-1]
                closed += self._send(self._band)
                self._band = _Band(end, above, [], [])
        return closed

    def close(self) -> list[ClosedPolygons]:
        """Take note that the map has ended; returns all other polygons."""
        if self._closed:
            return []
        closed: list[ClosedPolygons] = []
        if self._fed:
            closed += self._send(replace(self._band, last=True))
            while self._tracing:
                self._collect()
            self._cracks.finish()
            closed += self._join_known(end_of_map=True)
        self._shut_down()
        return closed

    def nbytes(self) -> int:
        """Bytes of the objects kept from the bands joined so far, crack rows not counted."""
        return self._graph.nbytes() + self._chains.nbytes()

    def _shut_down(self) -> None:
        self._closed = True
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def _send(self, band: _Band) -> list[ClosedPolygons]:
        """Start tracing a band, and join earlier ones once there are more than threads to trace them."""
        future: Future[tuple[_Traced, tuple[ByteArray, ByteArray, ByteArray]]]
        if self._executor is None:
            future = Future()
            future.set_result(self._trace(band))
        else:
            future = self._executor.submit(self._trace, band)
        self._tracing.append(future)
        closed: list[ClosedPolygons] = []
        while len(self._tracing) > self._threads:
            self._collect()
            closed += self._join_known(end_of_map=False)
        return closed

    def _trace(self, band: _Band) -> tuple[_Traced, tuple[ByteArray, ByteArray, ByteArray]]:
        """Trace one band, in a thread."""
        rows = np.full((band.height + 1, self._width + 2), OUTSIDE, dtype=np.int16)
        if band.above is not None:
            rows[0, 1:-1] = band.above
        at = 1
        for part in band.rows:
            rows[at : at + len(part), 1:-1] = part
            at += len(part)
        if self._left_out is not None:
            rows[rows == self._left_out] = LEFT_OUT
        horizontal = vertical = near = _NO_BYTES
        if self._finish is not None:
            horizontal, vertical = pack_cracks(rows)
            if self._near is not None:
                near = near_pixel_rows(rows[1:], self._near)
        confidence = np.concatenate(band.confidence) if band.confidence else _NO_BYTES
        regions, arcs = trace_band(rows, confidence, first_row=band.first_row)
        return _Traced(band.first_row + band.height, regions, arcs), (horizontal, vertical, near)

    def _collect(self) -> None:
        """Wait for the band that is traced next."""
        traced, planes = self._tracing.popleft().result()
        self._traced.append(traced)
        self._known_rows = traced.end_row
        if self._finish is not None:
            self._cracks.append(*planes)

    def _join_known(self, *, end_of_map: bool) -> list[ClosedPolygons]:
        """Join the traced bands below which enough rows are known."""
        closed: list[ClosedPolygons] = []
        while self._traced:
            if not end_of_map and self._known_rows < self._traced[0].end_row + self._lookahead:
                break
            polygons = self._join(self._traced.popleft())
            if len(polygons):
                closed.append(polygons)
        return closed

    def _join(self, band: _Traced) -> ClosedPolygons:
        """Add a band to the graph and take the regions that it closes out of it."""
        graph, chains = self._graph, self._chains
        regions_before, nodes_before = graph.add_regions(band.regions), graph.add_nodes(band.arcs.cracks)
        new = chains.join(band.arcs, regions_before - 1, nodes_before)
        arcs_before = graph.add_arcs(new)
        closed = graph.take_closed(regions_before)
        arcs, regions, nodes = graph.arcs, graph.regions, graph.nodes
        batch = rings.assemble(arcs, regions, nodes, closed)
        points, offsets = self._finished(new, arcs_before)
        xy, ring_offsets = rings.gather(batch, arcs, graph.points.xy, points, offsets, arcs_before)
        polygons = ClosedPolygons(
            regions.value[closed].astype(np.uint8),
            xy,
            ring_offsets,
            batch.polygons,
            regions.pixels[closed],
            regions.first[closed],
            regions.confidence_sum[closed],
            regions.confidence_min[closed],
        )
        graph.keep_points(points, offsets, arcs_before)
        if self.nbytes() > 2 * self._kept_bytes + _SLACK_BYTES:  # so that moving things costs no more than adding them
            chains.compact()
            graph.compact(*chains.references())
            self._kept_bytes = self.nbytes()
        if self._finish is not None:
            top = chains.top()
            self._cracks.drop_above((band.end_row if top is None else top) - self._lookahead - 2)
        return polygons

    def _finished(self, new: WholeArcs, arcs_before: int) -> tuple[Int32Array, Int64Array]:
        """Points in 1/256 px of the arcs that are whole now."""
        if self._finish is None:
            return new.points * np.int32(SUBPIXEL), new.offsets
        graph = self._graph
        least = rings.least_points(graph.arcs, graph.nodes, new.offsets, arcs_before)
        left, right = graph.arcs.sides[arcs_before : arcs_before + len(least)].T
        batch = ArcBatch(
            points=new.points,
            offsets=new.offsets,
            closed=new.nodes[:, 0] < 0,
            least=least,
            left=graph.regions.value[left],
            right=graph.regions.value[right],
            region_left=left.astype(np.int64),
            region_right=right.astype(np.int64),
        )
        return self._finish(batch, self._cracks.view())
