"""Objects of a class that touch, told apart along the contact that the network saw between them.

A *strip* pixel is one of the class that belongs to the contact, a *core* a 4-connected set of the class's other pixels.
An object is a core with the strip pixels that are nearest to it, going through strip pixels from side to side; of
equally near ones the core that is reached first to the north, west, east, south wins. So no pixel is lost, and objects
are 4-connected. Two things bound how far a pixel's object depends on others, so that a map of any height goes through
in bands: strip pixels further than `REACH_PX` from every core, and cores taller than `TALL_PX`, are not told apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from geoseg.arrays import ByteArray, FloatArray, Int32Array
from geoseg.classes import NODATA
from geoseg.map_rows import CONFIDENCE_SCALE, MapRows, cuts_between, join_rows
from geoseg.options import CONTACT_SHARE
from geoseg.polygons.rules.runs import Regions, Runs, label_rows, number_row, painted
from geoseg.polygons.rules.small_regions import fixed_point, in_turns
from geoseg.runtime.jit import helper, int64, njit

REACH_PX = 64
"""The most steps from a strip pixel to its core."""

TALL_PX = 2048
"""Cores of more rows are all one: their pixels leave before it is known where they end."""

_REST = 1  # label of the objects that are not told apart
_STRIP, _QUEUED = -1, -2
_OUTSIDE, _UNDECIDED, _CORE, _TALL, _SPECK = range(5)  # kinds of regions: outside all cores, then kinds of cores


@dataclass(frozen=True, slots=True)
class Separation:
    """Which objects are told apart, and how.

    Attributes:
        classes: Ids of the classes.
        limit: Smallest area of a core; smaller ones belong to the strip. The unit is that of the areas of pixels.
        contact: Share of the contact, 0 … 1, from which a pixel belongs to the strip.
        reach_px: See `REACH_PX`.
        tall_px: See `TALL_PX`.
    """

    classes: tuple[int, ...]
    limit: float = 0
    contact: float = CONTACT_SHARE
    reach_px: int = REACH_PX
    tall_px: int = TALL_PX


def separate_objects(
    rows: Iterable[MapRows], width: int, row_areas: FloatArray, rule: Separation, *, band_rows: int = 64
) -> Iterator[MapRows]:
    """All rows of a class map, in order, with `MapRows.cuts` in place of the contact.

    The result does not depend on how many rows come at once. A row waits until the cores within its reach have ended or
    are tall. Memory: some 10 bytes for each pixel of the rows that wait, and 60 for each run of pixels in them.

    Takes rows with contact, and the rest like `geoseg.polygons.rules.small_regions.apply_rule`. Raises `ValueError`
    for rows without contact, or not as many as ``row_areas``.
    """
    return in_turns(_Objects(width, row_areas, rule), rows, len(row_areas), band_rows)


class _Objects:
    """Rows that wait, below those that have left but may still reach into them."""

    def __init__(self, width: int, row_areas: FloatArray, rule: Separation) -> None:
        self._rule = rule
        self._threshold = max(round(rule.contact * CONFIDENCE_SCALE), 1)
        self._table = np.full(256, NODATA, dtype=np.uint8)  # value of each class that cores have
        self._table[list(rule.classes)] = rule.classes
        self._pixel_area, self._limit = fixed_point(row_areas, width, rule.limit)
        self._first_row = self._left = 0  # of the rows here: the first in the map, and how many have left
        self._settled = np.full(width, -1, dtype=np.int32)
        self._kind = np.empty(0, dtype=np.uint8)  # of each run of the first row, if rows above it are gone
        self.waiting = MapRows(np.empty((0, width), dtype=np.uint8))

    def decide(self, new: list[MapRows], *, last: bool = False) -> Iterator[MapRows]:
        """Tell the objects of all rows apart that no row to come can change; these rows leave."""
        if any(part.contact is None for part in new):
            raise ValueError("objects are told apart by their contact, which these rows lack")
        rows = join_rows([self.waiting, *new] if len(self.waiting) else new, axis=-2)
        assert rows.contact is not None
        values = self._table.take(rows.classes)
        in_strip = (rows.contact >= self._threshold) & (values != NODATA)
        np.copyto(values, NODATA, where=in_strip)
        runs, regions = label_rows(values, self._pixel_area[self._first_row :], self._settled)
        kind = self._kinds(runs, regions, last)
        reach = self._rule.reach_px
        known = int(regions.first_row[kind == _UNDECIDED].min(initial=len(rows)))
        leaving = len(rows) if last else max(known - reach - 1, self._left)
        if leaving > self._left:
            here = slice(0, leaving + reach + 1)
            name = np.arange(_REST + 1, _REST + 1 + len(kind), dtype=np.int32)
            name[kind == _OUTSIDE], name[kind == _TALL], name[kind == _SPECK] = 0, _REST, _STRIP
            objects = painted(runs, name)[here]
            np.copyto(objects, _STRIP, where=in_strip[here])
            _share_out(rows.classes[here], objects, reach)
            cuts = cuts_between(rows.classes[here], objects)[self._left : leaving]
            yield replace(rows[self._left : leaving], contact=None, cuts=cuts)
        top = max(leaving - reach, 0)
        if 0 < top < len(rows):
            self._settled = number_row(runs, top, np.arange(len(kind), dtype=np.int32))
            self._kind = kind[runs.region[runs.offsets[top] : runs.offsets[top + 1]]]
        self.waiting = rows[top:]
        self._first_row += top
        self._left = leaving - top

    def _kinds(self, runs: Runs, regions: Regions, last: bool) -> ByteArray:
        """The kind of each region; those that continue from above keep theirs."""
        last_row = np.zeros(len(regions.value), dtype=np.int64)
        last_row[runs.region] = np.repeat(np.arange(len(runs.offsets) - 1), np.diff(runs.offsets))
        kind = np.where(regions.area < self._limit, np.uint8(_SPECK), np.uint8(_CORE))
        kind[regions.in_last_row & (not last)] = _UNDECIDED
        kind[last_row - regions.first_row >= self._rule.tall_px] = _TALL
        kind[regions.value == NODATA] = _OUTSIDE
        kind[runs.region[: len(self._kind)]] = self._kind
        return kind


@helper
def _nearest(classes: ByteArray, objects: Int32Array, y: int, x: int) -> int:
    """The object of the first neighbour to the north, west, east, south that has one; 0 if none has."""
    for k in range(4):
        b, a = y + (k == 3) - (k == 0), x + (k == 2) - (k == 1)
        is_inside = 0 <= b < objects.shape[0] and 0 <= a < objects.shape[1]
        if is_inside and objects[b, a] > 0 and classes[b, a] == classes[y, x]:
            return int64(objects[b, a])
    return int64(0)


@njit
def _share_out(classes: ByteArray, objects: Int32Array, reach: int) -> None:
    """Give the strip's pixels (-1) of ``objects``, (h, W), the object of their nearest core, in place."""
    height, width = objects.shape
    total = 0
    for y in range(height):
        for x in range(width):
            total += objects[y, x] < 0
    here, after = np.empty(total, dtype=np.int64), np.empty(total, dtype=np.int64)
    found = np.empty(total, dtype=np.int32)
    size = 0
    for y in range(height):
        for x in range(width):
            if objects[y, x] < 0 and _nearest(classes, objects, y, x):
                here[size] = y * width + x
                size += 1
    for _ in range(reach):
        for i in range(size):
            found[i] = _nearest(classes, objects, here[i] // width, here[i] % width)
        for i in range(size):
            objects[here[i] // width, here[i] % width] = found[i]
        following = 0
        for i in range(size):
            y, x = here[i] // width, here[i] % width
            for k in range(4):
                b, a = y + (k == 3) - (k == 0), x + (k == 2) - (k == 1)
                if 0 <= b < height and 0 <= a < width and objects[b, a] == _STRIP and classes[b, a] == classes[y, x]:
                    objects[b, a] = _QUEUED
                    after[following] = b * width + a
                    following += 1
        here, after, size = after, here, following
    for y in range(height):
        for x in range(width):
            if objects[y, x] < 0:
                objects[y, x] = _REST
