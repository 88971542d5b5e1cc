"""Rows of a class map → the same rows with regular buildings painted, and the walls that replace their arcs.

A building is a 4-connected region of one of the classes asked for, without a cut in it. It is decided when it and the
rows around it are known, in the order of (last row, first pixel), and sees the map as earlier buildings have left it.
So the result does not depend on how many rows come at once, and where two buildings want the same ground the one that
ends first has it.

While they wait, pixels are numbered by their *object*: their class, or a number of their own for each region of a class
whose objects are separated.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from geoseg.arrays import BoolArray, ByteArray, Int32Array, IntArray
from geoseg.classes import NODATA
from geoseg.map_rows import CUT_EAST, CUT_SOUTH, NO_CUTS, MapRows, join_rows
from geoseg.polygons.rules.runs import label_rows
from geoseg.polygons.trace.crack_rows import Plane
from geoseg.polygons.walls.place import DECIDED, GUARD, Building, build_walls

_MARGIN = 4  # px around a building, beside the tolerance
_TALLEST = 1024  # rows of a building; what is taller is only simplified, so that no row waits for long
_BAND_ROWS = 64


@dataclass(slots=True)
class Outlines:
    """What became of the outlines of the classes to regularize.

    Attributes:
        regular: Those with straight walls and right angles.
        total: All of them; the others are simplified.
    """

    regular: int = 0
    total: int = 0

    def __str__(self) -> str:
        rest = self.total - self.regular
        return f"{self.regular} of {self.total} outlines regularized, {rest} of {self.total} simplified"


class Walls:
    """The walls of a map, found as its rows pass, kept until the arcs they replace have been finished.

    Args:
        width: Width of the map, px.
        classes: Classes whose regions are made regular where possible.
        tolerance_px: See `geoseg.polygons.walls.fit.fit_walls`, 1 or more.
        outlines: Counts the regular ones.
        separated: Classes with cuts between their objects.

    Attributes:
        arcs: Points of whole arcs in 1/256 px, by the smaller key of their ends (`BandArcs`).
        ends: Of arcs that end at walls, by the key of that end: the point of the wall, then the corners of the raster
            from the node that it replaces to the first one off the guard; 1/256 px.
    """

    def __init__(
        self,
        width: int,
        classes: tuple[int, ...],
        tolerance_px: float,
        outlines: Outlines,
        separated: tuple[int, ...] = (),
    ) -> None:
        self.arcs: dict[int, Int32Array] = {}
        self.ends: dict[int, Int32Array] = {}
        self._width, self._tolerance, self._outlines = width, tolerance_px, outlines
        self._margin = math.ceil(tolerance_px) + _MARGIN
        self._wanted, self._separated = np.isin(np.arange(256), classes), np.isin(np.arange(256), separated)
        self._first_row = self._guard_row = 0  # of the rows that wait, and of the guard
        self._waiting = MapRows(np.empty((0, width), np.uint8))
        self._flags = np.empty((0, width), np.uint8)
        self._guard = Plane((width + 8) // 8)

    def build(self, rows: Iterable[MapRows]) -> Iterator[MapRows]:
        """All rows in order, with buildings painted; they leave when nothing can change them any more."""
        new: list[MapRows] = []
        for part in rows:
            new.append(part)
            # At least as many new rows as old ones, so that looking at the old ones again is never the larger part.
            if sum(map(len, new)) >= max(_BAND_ROWS, len(self._waiting)):
                yield from self._decide(new)
                new = []
        yield from self._decide(new, last=True)

    def guard(self, first_row: int, last_row: int) -> ByteArray:
        """Corners of some rows that the edges of other arcs keep away from, a bit each, packed like `Cracks`."""
        rows = self._guard.rows
        begin, end = first_row - self._guard_row, last_row + 1 - self._guard_row
        stored = slice(max(begin, 0), max(min(end, len(rows)), 0))
        return np.pad(rows[stored], ((stored.start - begin, end - max(stored.stop, stored.start)), (0, 0)))

    def drop_above(self, row: int) -> None:
        """Forget the guard above a row."""
        dropped = min(max(row - self._guard_row, 0), len(self._guard.rows))
        self._guard_row += dropped
        self._guard.drop(dropped)

    def _decide(self, new: list[MapRows], *, last: bool = False) -> Iterator[MapRows]:
        """Decide the buildings that are known with their surroundings; rows above the others leave."""
        rows = join_rows([self._waiting, *new], axis=-2)
        values, height = rows.classes, len(rows)
        cuts = NO_CUTS if rows.cuts is None else rows.cuts
        flags = np.concatenate([self._flags, np.zeros((height - len(self._flags), self._width), np.uint8)])
        runs, regions = label_rows(values, np.ones(height, np.int64), np.full(self._width, -1, np.int32), cuts)
        row, begin = np.repeat(np.arange(height), np.diff(runs.offsets)), runs.ends - runs.widths()
        bottom = np.zeros(len(regions.value), np.int64)
        bottom[runs.region] = row
        undecided = self._wanted[regions.value]
        undecided[runs.region[flags[row, begin] & DECIDED > 0]] = False
        tall = undecided & (bottom - regions.first_row >= _TALLEST)
        ready = undecided & ~tall & (last | (bottom + self._margin < height))
        flags |= np.uint8(DECIDED) * np.repeat((tall | ready)[runs.region], runs.widths()).reshape(flags.shape)
        objects: ByteArray | Int32Array = values.copy()
        class_of = np.arange(256, dtype=np.uint8)
        if rows.cuts is not None:
            number = np.repeat(runs.region + np.int32(256), runs.widths()).reshape(values.shape)
            objects = np.where(self._separated[values], number, values)
            class_of = np.append(class_of, regions.value)
        free = ~self._wanted[class_of] & (class_of != NODATA)
        which = np.flatnonzero(ready[runs.region])
        which = which[np.lexsort((runs.region[which], bottom[runs.region[which]]))]
        pieces = np.column_stack([row, begin, runs.ends])[which]
        ends = np.flatnonzero(np.diff(runs.region[which], append=-1)) + 1
        for piece in np.split(pieces, ends[:-1]) if len(which) else []:
            self._build(objects, flags, free, piece)
        waiting = int(regions.first_row[undecided & ~tall & ~ready].min(initial=height)) - self._margin
        leaving = height if last else max(waiting, 0)
        guard = np.pad(flags[:leaving] & GUARD > 0, ((0, 0), (0, 1)))
        self._guard.add(np.packbits(guard, axis=1, bitorder="little"))
        values = class_of[objects]
        rows = dataclasses.replace(rows, classes=values, cuts=_cuts(objects, values, rows.cuts))
        self._waiting, self._flags = rows[leaving:], flags[leaving:]
        self._first_row += leaving
        if leaving:
            yield rows[:leaving]

    def _build(self, objects: ByteArray | Int32Array, flags: ByteArray, free: BoolArray, runs: IntArray) -> None:
        """Decide one building, given its runs as row, begin, end."""
        top, left = (int(low) - self._margin for low in runs[:, :2].min(axis=0))
        bottom, right = int(runs[-1, 0]) + self._margin + 1, int(runs[:, 2].max()) + self._margin
        top, left = max(top, 0), max(left, 0)
        window = slice(top, bottom), slice(left, right)
        building = Building(
            objects[window].astype(np.int32),
            flags[window].copy(),
            runs - np.array([top, left, left]),
            free,
            self._first_row + top,
            left,
            self._width + 1,
        )
        found = build_walls(building, self._tolerance)
        if found is not None:
            objects[window], flags[window] = building.values, building.flags
            self._outlines.regular += 1
            self.arcs |= found.arcs
            self.ends |= found.ends


def _cuts(objects: ByteArray | Int32Array, values: ByteArray, before: ByteArray | None) -> ByteArray | None:
    """Cuts between different objects of a class; those below the last row as they were."""
    if before is None:
        return None
    cuts = np.zeros_like(before)
    cuts[:, :-1] = np.uint8(CUT_EAST) * ((objects[:, :-1] != objects[:, 1:]) & (values[:, :-1] == values[:, 1:]))
    cuts[:-1] |= np.uint8(CUT_SOUTH) * ((objects[:-1] != objects[1:]) & (values[:-1] == values[1:]))
    cuts[-1] |= before[-1] & CUT_SOUTH
    return cuts
