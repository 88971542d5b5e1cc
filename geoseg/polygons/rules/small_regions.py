"""Small regions of a class map merge into neighbours or are dropped, and holes are filled: rows in, rows out.

A region is 4-connected pixels of one value. What becomes of a small region depends on its cluster alone, the small
regions it touches directly or through others, and on the large regions around that. So a map of any height goes
through in bands, and a row waits only until the clusters in it have ended.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Protocol

import numpy as np

from geoseg.arrays import BoolArray, ByteArray, FloatArray, Int32Array, IntArray
from geoseg.classes import NODATA
from geoseg.map_rows import MapRows, join_rows
from geoseg.polygons.rules.clusters import (
    IGNORED,
    LARGE,
    NOT_YET_ONE,
    SMALL,
    beside_large,
    fill_clusters,
    find_clusters,
    find_contacts,
    find_hosts,
    merge_clusters,
)
from geoseg.polygons.rules.options import RegionRule
from geoseg.polygons.rules.runs import Regions, Runs, label_rows, number_row, painted

_AREA_BITS = 61  # of the whole map's area, so that rounding cannot carry it past 62
_ROUNDING = 1e-9  # relative; four pixels of 0.09 m² are not below 0.36 m²


def apply_rule(
    rows: Iterable[MapRows], width: int, row_areas: FloatArray, rule: RegionRule, *, band_rows: int = 64
) -> Iterator[MapRows]:
    """All rows of a class map after a rule, in order; they leave when they are decided.

    The result does not depend on how many rows come at once. Memory: the rows that wait, a byte a pixel, and some 30 to
    120 bytes for each pixel of them that is a run of its own while they are looked at. Where more than about 0.6 of all
    pixels lie in small regions, one cluster spans the whole map, and all of it waits. Work: at most three times that of
    the map in one piece, however long rows wait.

    Args:
        rows: Classes and confidence, any number of rows at once; the confidence is carried along.
        width: Width of the map, px.
        row_areas: Area of a pixel in each row of the map, (H,), any unit; `Grid.pixel_area_m2`.
        rule: What is done with regions below an area of the same unit.
        band_rows: New rows to look at together.

    Raises:
        ValueError: The rows are not as many as ``row_areas``, or areas are negative or not finite.
    """
    return in_turns(_Decisions(width, row_areas, rule), rows, len(row_areas), band_rows)


class Decisions(Protocol):
    """What becomes of the rows of a map, decided as they come."""

    waiting: MapRows  # for others

    def decide(self, new: list[MapRows], *, last: bool = False) -> Iterator[MapRows]:
        """The rows that are decided, after new ones have come."""


def in_turns(decisions: Decisions, rows: Iterable[MapRows], height: int, band_rows: int = 64) -> Iterator[MapRows]:
    """All rows of a map of a given height, decided some new ones at a time.

    Raises:
        ValueError: More rows, or fewer.
    """
    new: list[MapRows] = []
    count = 0
    for part in rows:
        count += len(part)
        if count > height:
            break
        while len(part):
            # At least as many new rows as old ones, so that looking at the old ones again is never the larger part.
            missing = max(band_rows, len(decisions.waiting)) - sum(map(len, new))
            new.append(part[:missing])
            if len(part) >= missing:
                yield from decisions.decide(new)
                new = []
            part = part[missing:]
    if count != height:
        raise ValueError(f"{count} rows came, but the map has {height}")
    if count:
        yield from decisions.decide(new, last=True)


class _Decisions:
    """The rows of a map that wait; decided clusters in them are painted already."""

    def __init__(self, width: int, row_areas: FloatArray, rule: RegionRule) -> None:
        self._action, self._left_out = rule.action, rule.left_out
        self._pixel_area, self._limit = fixed_point(row_areas, width, rule.limit)
        self._first_row = 0  # of the rows that wait, in the map
        self._settled = np.full(width, -1, dtype=np.int32)
        self.waiting = MapRows(np.empty((0, width), dtype=np.uint8))

    def decide(self, new: list[MapRows], *, last: bool = False) -> Iterator[MapRows]:
        """Apply the rule to all clusters that have ended; the rows above the others leave.

        Clusters that are painted, but whose rows wait, are looked at again with the others. That changes nothing: what
        is left of them is large or, for ``fill``, has no small hole.
        """
        rows = join_rows([self.waiting, *new] if len(self.waiting) else new, axis=-2) if new else self.waiting
        runs, regions = label_rows(rows.classes, self._pixel_area[self._first_row :], self._settled)
        small = (regions.area < self._limit) & ~regions.is_settled
        is_open = regions.in_last_row & (not last)
        into = np.arange(len(small), dtype=np.int32)
        if self._action == "fill":
            into, undecided = self._fill(runs, regions, small, is_open)
            value = regions.value[into]
        elif self._action == "merge":
            value, undecided = self._merge(runs, regions, small & (regions.value != NODATA), is_open)
        else:
            value, undecided = np.where(small & ~is_open, np.uint8(self._left_out), regions.value), small & is_open
        # The newest row waits for the next, to be joined to it, and one row above the undecided regions as a neighbour.
        waiting = int(regions.first_row[undecided].min(initial=len(rows))) - 1
        leaving = len(rows) if last else max(waiting, 0)
        if 0 < leaving < len(rows):
            self._settled = number_row(runs, leaving, into)
        rows = replace(rows, classes=painted(runs, value))
        self.waiting = rows[leaving:]
        self._first_row += leaving
        if leaving:
            yield rows[:leaving]

    def _merge(self, runs: Runs, regions: Regions, small: BoolArray, is_open: BoolArray) -> tuple[ByteArray, BoolArray]:
        """New value of each region, and which are undecided."""
        kind = np.where(small, SMALL, LARGE).astype(np.uint8)
        kind[regions.value == NODATA] = IGNORED
        contacts = find_contacts(runs, kind)
        cluster = find_clusters(kind, contacts)
        undecided = _clusters_of(small & is_open, cluster)
        new = merge_clusters(regions, small & ~undecided, cluster, contacts, self._limit)
        return new, undecided

    def _fill(self, runs: Runs, regions: Regions, small: BoolArray, is_open: BoolArray) -> tuple[Int32Array, BoolArray]:
        """The region that each region becomes part of, and which are undecided."""
        kind = np.where(small, SMALL, LARGE).astype(np.uint8)
        contacts = find_contacts(runs, kind)
        cluster = find_clusters(kind, contacts)
        # What is left out has no holes, as nodata has none.
        regions = regions._replace(value=np.where(regions.value == self._left_out, np.uint8(NODATA), regions.value))
        at_exterior = regions.at_side | (regions.in_last_row & ~is_open)
        if self._first_row == 0:
            at_exterior |= regions.first_row == 0
        # A cluster with one large region around it is a hole of that as a whole.
        host = find_hosts(regions.value, kind, is_open, cluster, contacts)[cluster]
        area = np.zeros(len(small), dtype=np.int64)
        np.add.at(area, cluster[small], regions.area[small])
        inside = small & (area[cluster] < self._limit) & ~_clusters_of(at_exterior, cluster)
        undecided = _clusters_of(small & is_open, cluster) | (inside & (host == NOT_YET_ONE))
        whole = inside & ~undecided & (host >= 0)
        at_exterior |= beside_large(kind, contacts)
        active = small & ~undecided & ~whole
        into = fill_clusters(regions, active, at_exterior, contacts, self._limit)
        into[whole] = host[whole]
        return into, undecided


def fixed_point(row_areas: FloatArray, width: int, limit: float) -> tuple[IntArray, int]:
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
