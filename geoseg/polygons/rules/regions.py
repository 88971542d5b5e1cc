"""Rules on regions of a class map: small ones merge into neighbours or go, holes are filled; rows in, rows out.

A region is 4-connected pixels of one value. What becomes of a small region depends on its cluster alone, the small
regions it touches directly or through others, and on the large regions around that. So a map of any height goes
through in bands, and a row waits only until the clusters in it have ended.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt

from geoseg.polygons.rules.clusters import (
    IGNORED,
    LARGE,
    NOT_YET_ONE,
    SMALL,
    Regions,
    Runs,
    beside_large,
    fill_clusters,
    find_clusters,
    find_contacts,
    find_hosts,
    label_rows,
    merge_clusters,
    number_row,
    paint,
)

ClassValues = npt.NDArray[np.uint8]
Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Rows = tuple[ClassValues, ClassValues | None]

_AREA_BITS = 61  # of the whole map's area, so that rounding cannot carry it past 62
_ROUNDING = 1e-9  # relative; four pixels of 0.09 m² are not below 0.36 m²


def filter_regions(
    rows: Iterable[Rows],
    *,
    width: int,
    row_areas: FloatArray,
    min_area: float = 0.0,
    small: Literal["merge", "drop"] = "merge",
    fill_holes: float = 0.0,
    left_out: int | None = None,
    nodata: int = 255,
) -> Iterator[Rows]:
    """Rows of a class map with holes filled, then small regions merged or dropped; all rows, in order, some later.

    Args:
        rows: Rows of the map from top to bottom, any number at once: classes (h, W) uint8, and with each its
            confidence (h, W) uint8, which is carried along, or None.
        width: Width of the map, px.
        row_areas: Area of a pixel in each row of the map, (H,), any unit; `Grid.pixel_area_m2`.
        min_area: Smallest area of a region that stays, same unit; 0 keeps all.
        small: What becomes of smaller ones: "merge" into the neighbour with the longest border, or "drop" to nodata.
        fill_holes: Area from which on a hole stays, same unit; 0 keeps all.
        left_out: Value whose regions become no polygons: what they surround is no hole to fill, and regions that are
            dropped become part of them. None where all become polygons.
        nodata: Value that is no class.

    Raises:
        ValueError: The rows are not as many as ``row_areas``.
    """
    if fill_holes > 0:
        fill = RegionFilter(width, row_areas, rule="fill", limit=fill_holes, left_out=left_out, nodata=nodata)
        rows = _through(fill, rows)
    if min_area > 0:
        rows = _through(
            RegionFilter(width, row_areas, rule=small, limit=min_area, left_out=left_out, nodata=nodata), rows
        )
    yield from rows


def _through(region_filter: RegionFilter, rows: Iterable[Rows]) -> Iterator[Rows]:
    for classes, confidence in rows:
        out = region_filter.feed(classes, confidence)
        if len(out[0]):
            yield out
    out = region_filter.close()
    if len(out[0]):
        yield out


class RegionFilter:
    """One rule on the regions of a map whose rows come from top to bottom; they leave when they are decided.

    ``merge``: a region below the limit goes to the neighbour with which it has the longest border. Within a cluster
    the smallest region goes first (of equal ones the first in raster order). Large regions of one value count as one
    neighbour, since the absorbed region joins them all. Of equal borders the larger neighbour wins: large ones before
    small ones, among large ones the lower value, among small ones the larger area, then the first in raster order.
    Areas and borders add up, and what then touches a neighbour of its own value is one with it, until none is small.
    A region that has nothing but nodata and the map's outside around it becomes nodata. Large regions never change;
    that an absorbed region may connect two of them has no influence on others.

    ``drop``: regions below the limit become nodata, or what is left out.

    ``fill``: a hole (interior ring) of a region goes to the region if its area, with everything in it, is below the
    limit; of holes within holes the outermost such one decides. Nodata is filled like any value, and has no holes;
    nor has what is left out.

    The result does not depend on how many rows come at once. Memory: the rows that wait, a byte a pixel, and some 30 to
    120 bytes for each pixel of them that is a run of its own while they are looked at. Rows wait for the clusters in
    them; where more than about 0.6 of all pixels lie in small regions, one cluster spans the whole map, and all of it
    waits. Work: at most three times that of the map in one piece, however long rows wait.
    """

    def __init__(
        self,
        width: int,
        row_areas: FloatArray,
        *,
        rule: Literal["merge", "drop", "fill"],
        limit: float,
        left_out: int | None = None,
        nodata: int = 255,
        band_rows: int = 64,
    ) -> None:
        """Set up for one map.

        Args:
            width: Width of the map, px.
            row_areas: Area of a pixel in each row of the whole map, (H,), any unit; `Grid.pixel_area_m2`.
            rule: What is done, see above.
            limit: Area below which it is done, same unit; an area that equals it up to rounding is not below.
            left_out: Value whose regions become no polygons; see `filter_regions`.
            nodata: Value that is no class.
            band_rows: New rows to look at together.
        """
        self._rule = rule
        self._nodata, self._left_out = nodata, nodata if left_out is None else left_out
        self._band_rows = band_rows
        self._pixel_area, self._limit = _fixed_point(row_areas, width, limit)
        self._first_row = 0  # of the rows that wait, in the map
        self._settled = np.full(width, -1, dtype=np.int32)
        self._looked_at = np.empty((0, width), dtype=np.uint8)  # decided clusters are painted already
        self._new: list[ClassValues] = []
        self._confidence: list[ClassValues] = []

    @property
    def waiting_rows(self) -> int:
        """Rows that have come and not left."""
        return len(self._looked_at) + sum(map(len, self._new))

    def feed(self, classes: ClassValues, confidence: ClassValues | None = None) -> Rows:
        """The next decided rows, perhaps none, given the next rows of the map.

        Args:
            classes: (h, W) uint8.
            confidence: (h, W) uint8, carried along unchanged; given in every call or in none.

        Raises:
            ValueError: More rows than there are row areas.
        """
        if self._first_row + self.waiting_rows + len(classes) > len(self._pixel_area):
            raise ValueError(f"more than {len(self._pixel_area)} rows, which is the map's height")
        if confidence is not None:
            self._confidence.append(confidence.copy())  # the caller may use its array again
        done = [self._looked_at[:0]]
        while len(classes):
            # At least as many new rows as old ones, so that looking at the old ones again is never the larger part.
            wanted = max(self._band_rows, len(self._looked_at)) - sum(map(len, self._new))
            self._new.append(classes[:wanted].copy())
            if len(classes) >= wanted:
                done.append(self._decide(last=False))
            classes = classes[wanted:]
        return self._leave(done)

    def close(self) -> Rows:
        """The remaining rows, once all have come.

        Raises:
            ValueError: Rows are missing.
        """
        found = self._first_row + self.waiting_rows
        if found != len(self._pixel_area):
            raise ValueError(f"{found} rows came, but the map has {len(self._pixel_area)}")
        return self._leave([self._decide(last=True)] if self.waiting_rows else [self._looked_at])

    def _leave(self, done: list[ClassValues]) -> Rows:
        classes = np.concatenate(done)
        if not self._confidence:
            return classes, None
        if len(classes) == 0:
            return classes, self._confidence[0][:0]
        waiting = np.concatenate(self._confidence)
        self._confidence = [waiting[len(classes) :].copy()]
        return classes, waiting[: len(classes)]

    def _decide(self, *, last: bool) -> ClassValues:
        """Apply the rule to all clusters that have ended; the rows above the others leave.

        Clusters that are painted, but whose rows wait, are looked at again with the others. That changes nothing: what
        is left of them is large or, for ``fill``, has no small hole.
        """
        values = np.concatenate([self._looked_at, *self._new])
        self._new = []
        runs, regions = label_rows(values, self._pixel_area[self._first_row :], self._settled)
        small = (regions.area < self._limit) & ~regions.is_settled
        is_open = regions.in_last_row & (not last)
        into = np.arange(len(small), dtype=np.int32)
        if self._rule == "fill":
            into, undecided = self._fill(runs, regions, small, is_open)
            new = regions.value[into]
        elif self._rule == "merge":
            new, undecided = self._merge(runs, regions, small & (regions.value != self._nodata), is_open)
        else:
            new, undecided = np.where(small & ~is_open, np.uint8(self._left_out), regions.value), small & is_open
        paint(values, runs, regions.value, new)
        # The newest row waits for the next, to be joined to it, and one row above the undecided regions as a neighbour.
        waiting = int(regions.first_row[undecided].min(initial=len(values))) - 1
        leaving = len(values) if last else max(waiting, 0)
        if 0 < leaving < len(values):
            self._settled = number_row(runs, leaving, into)
        self._looked_at = values[leaving:].copy()
        self._first_row += leaving
        return values[:leaving]

    def _merge(
        self, runs: Runs, regions: Regions, small: BoolArray, is_open: BoolArray
    ) -> tuple[ClassValues, BoolArray]:
        """New value of each region, and which are undecided."""
        kind = np.where(small, SMALL, LARGE).astype(np.uint8)
        kind[regions.value == self._nodata] = IGNORED
        contacts = find_contacts(runs, kind)
        cluster = find_clusters(kind, contacts)
        undecided = _clusters_of(small & is_open, cluster)
        new = merge_clusters(regions, small & ~undecided, cluster, contacts, self._limit, self._nodata)
        return new, undecided

    def _fill(self, runs: Runs, regions: Regions, small: BoolArray, is_open: BoolArray) -> tuple[Int32Array, BoolArray]:
        """The region that each region becomes part of, and which are undecided."""
        kind = np.where(small, SMALL, LARGE).astype(np.uint8)
        contacts = find_contacts(runs, kind)
        cluster = find_clusters(kind, contacts)
        # What is left out has no holes, as nodata has none.
        regions = regions._replace(
            value=np.where(regions.value == self._left_out, np.uint8(self._nodata), regions.value)
        )
        at_exterior = regions.at_side | (regions.in_last_row & ~is_open)
        if self._first_row == 0:
            at_exterior |= regions.first_row == 0
        # A cluster with one large region around it is a hole of that as a whole.
        host = find_hosts(regions.value, kind, is_open, cluster, contacts, self._nodata)[cluster]
        area = np.zeros(len(small), dtype=np.int64)
        np.add.at(area, cluster[small], regions.area[small])
        inside = small & (area[cluster] < self._limit) & ~_clusters_of(at_exterior, cluster)
        undecided = _clusters_of(small & is_open, cluster) | (inside & (host == NOT_YET_ONE))
        whole = inside & ~undecided & (host >= 0)
        at_exterior |= beside_large(kind, contacts)
        active = small & ~undecided & ~whole
        into = fill_clusters(regions, active, at_exterior, contacts, self._limit, self._nodata)
        into[whole] = host[whole]
        return into, undecided


def _fixed_point(row_areas: FloatArray, width: int, limit: float) -> tuple[Int64Array, int]:
    """Areas and limit as integers, whose sums do not depend on the order."""
    total = float(row_areas.sum()) * width
    if not (math.isfinite(total) and (row_areas >= 0).all()):
        raise ValueError("areas of pixels are finite and not negative")
    scale = 2.0 ** (_AREA_BITS - math.frexp(total)[1])
    areas = np.rint(row_areas * scale).astype(np.int64)
    return areas, int(min(limit * (1 - _ROUNDING) * scale, 2.0**62))


def _clusters_of(which: BoolArray, cluster: Int32Array) -> BoolArray:
    """All regions of the clusters that have such a region."""
    found = np.zeros(len(which), dtype=bool)
    found[cluster[which]] = True
    return found[cluster]
