"""Rows of a class map → the same rows with regular buildings painted, and the walls that replace their arcs.

A building is a 4-connected region of one of the classes asked for, without a cut in it. It is decided when it and the
rows around it are known, in the order of (last row, first pixel), and sees the map as earlier buildings have left it:
where two want the same ground the one that ends first has it.

Buildings that touch, of one class with cuts, are a *group*, and decided together at its last row. Those of a tall group
are decided one by one, each `_TALLEST` rows below its first one: by then, however many rows come at once, it is known
that the group is tall, and what touches the building has been marked as part of it.

While they wait, pixels are numbered by their *object*: their class, or a number for each region of a separated class.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from geoseg.arrays import BoolArray, ByteArray, Int32Array, IntArray
from geoseg.classes import NODATA
from geoseg.map_rows import CUT_SOUTH, NO_CUTS, MapRows, cuts_between, join_rows
from geoseg.polygons.rules.runs import Runs, label_rows, painted
from geoseg.polygons.trace.cracks import BitRows
from geoseg.polygons.walls.paint import Building
from geoseg.polygons.walls.place import DECIDED, GUARD, IN_TALL, build_walls

_MARGIN = 4  # px around a building, beside the tolerance
_TALLEST = 1024  # rows of a building; what is taller is only simplified, so that no row waits for long
_MOST_TOGETHER = 64  # buildings that touch; more are decided one by one


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
    """The walls of a map, found as its rows pass (`in_turns`), kept until the arcs they replace have been finished.

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
        guard: Corners that the edges of other arcs keep away from.
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
        self.guard = BitRows(width)
        self._first_row = 0  # of the rows that wait
        self.waiting = MapRows(np.empty((0, width), np.uint8))
        self._flags = np.empty((0, width), np.uint8)

    def decide(self, new: list[MapRows], *, last: bool = False) -> Iterator[MapRows]:
        """Decide the buildings that are known with their surroundings; rows above the others leave."""
        rows = join_rows([self.waiting, *new], axis=-2)
        values, height = rows.classes, len(rows)
        cuts = NO_CUTS if rows.cuts is None else rows.cuts
        flags = np.concatenate([self._flags, np.zeros((height - len(self._flags), self._width), np.uint8)])
        runs, regions = label_rows(values, np.ones(height, np.int64), np.full(self._width, -1, np.int32), cuts)
        row, begin = np.repeat(np.arange(height), np.diff(runs.offsets)), runs.ends - runs.widths()
        top, bottom = regions.first_row.astype(np.int64), np.zeros(len(regions.value), np.int64)
        bottom[runs.region] = row
        undecided, in_tall = self._wanted[regions.value], np.zeros(len(top), dtype=np.bool_)
        undecided[runs.region[flags[row, begin] & DECIDED > 0]] = False
        in_tall[runs.region[flags[row, begin] & IN_TALL > 0]] = True
        tall = undecided & (bottom - top >= _TALLEST)
        group, known = np.arange(len(top)), bottom  # from which row on a region can be decided
        if rows.cuts is not None:
            touching = self._separated[regions.value] & (undecided | in_tall)
            group = _groups(values, runs, (row, begin), touching)
            bottom_of, is_tall = bottom.copy(), in_tall | tall
            np.maximum.at(bottom_of, group, bottom)
            np.logical_or.at(is_tall, group, is_tall | (bottom_of[group] - top[group] >= _TALLEST))
            in_tall = is_tall[group] & touching
            known = np.where(in_tall, top + _TALLEST - 1, bottom_of[group])
            group[in_tall] = np.flatnonzero(in_tall)
        ready = undecided & ~tall & (last | (known + self._margin < height))
        flags &= ~np.uint8(IN_TALL)
        flags |= DECIDED * painted(runs, (tall | ready).astype(np.uint8))
        flags |= IN_TALL * painted(runs, (in_tall & ~ready).astype(np.uint8))
        objects: ByteArray | Int32Array = values.copy()
        class_of = np.arange(256, dtype=np.uint8)
        if rows.cuts is not None:
            number = painted(runs, np.arange(256, 256 + len(top), dtype=np.int32))
            objects = np.where(self._separated[values], number, values)
            class_of = np.append(class_of, regions.value)
        free = ~self._wanted[class_of] & (class_of != NODATA)
        which = np.flatnonzero(ready[runs.region])
        region = runs.region[which]
        order = np.lexsort((region, bottom[region], group[region], known[region]))
        which, region = which[order], region[order]
        pieces = np.column_stack([row, begin, runs.ends, runs.region])[which]
        ends = np.flatnonzero(np.diff(group[region], append=-1)) + 1
        for piece in np.split(pieces, ends[:-1]) if len(which) else []:
            self._build_all(objects, flags, free, piece)
        waiting = int(regions.first_row[undecided & ~tall & ~ready].min(initial=height)) - self._margin
        leaving = height if last else max(waiting, 0)
        guard = np.pad(flags[:leaving] & GUARD > 0, ((0, 0), (0, 1)))
        self.guard.add(np.packbits(guard, axis=1, bitorder="little"))
        values = class_of[objects]
        after = None if rows.cuts is None else cuts_between(values, objects)
        if after is not None:
            after[-1] |= cuts[-1] & CUT_SOUTH
        rows = dataclasses.replace(rows, classes=values, cuts=after)
        self.waiting, self._flags = rows[leaving:], flags[leaving:]
        self._first_row += leaving
        if leaving:
            yield rows[:leaving]

    def _build_all(self, objects: ByteArray | Int32Array, flags: ByteArray, free: BoolArray, runs: IntArray) -> None:
        """Decide a building, or some that touch: together, or else one by one."""
        members = np.split(runs, np.flatnonzero(np.diff(runs[:, 3])) + 1)
        too_many = len(members) > _MOST_TOGETHER or np.ptp(runs[:, 1:3]) >= _TALLEST
        if len(members) == 1 or too_many or not self._build(objects, flags, free, runs):
            for member in members:
                self._build(objects, flags, free, member)

    def _build(self, objects: ByteArray | Int32Array, flags: ByteArray, free: BoolArray, runs: IntArray) -> bool:
        """Decide what has some runs, given as row, begin, end, region; whether it has become regular."""
        top, left = (int(low) - self._margin for low in runs[:, :2].min(axis=0))
        bottom, right = int(runs[:, 0].max()) + self._margin + 1, int(runs[:, 2].max()) + self._margin
        top, left = max(top, 0), max(left, 0)
        window = slice(top, bottom), slice(left, right)
        values = objects[window].astype(np.int32)
        parts = np.zeros(values.shape, np.int32)
        regions, part = np.unique(runs[:, 3], return_inverse=True)
        for (row, begin, end), number in zip((runs[:, :3] - [top, left, left]).tolist(), part + 1, strict=True):
            parts[row, begin:end] = number
        building = Building(values, flags[window].copy(), parts, free, self._first_row + top, left, self._width + 1)
        found = build_walls(building, self._tolerance)
        if found is not None:
            objects[window], flags[window] = building.values, building.flags
            self._outlines.regular += len(regions)
            arcs, ends = found
            self.arcs |= arcs
            self.ends |= ends
        return found is not None


def _groups(values: ByteArray, runs: Runs, starts: tuple[IntArray, IntArray], touching: BoolArray) -> IntArray:
    """For each region the first of those that it touches, and they touch, if they are of one class and may do so.

    ``starts`` are row and first column of each run.
    """
    alone = np.full(values.shape[1], -1, np.int32)
    together, found = label_rows(
        np.where(painted(runs, touching), values, NODATA), np.ones(len(values), np.int64), alone
    )
    number = painted(together, np.arange(len(found.value), dtype=np.int32))
    group, first = np.arange(len(touching)), np.full(len(found.value), len(touching))
    of_region = np.empty(len(touching), np.int64)
    of_region[runs.region] = number[starts]
    np.minimum.at(first, of_region, group)
    return np.where(touching, first[of_region], group)
