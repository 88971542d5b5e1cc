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
from typing import NamedTuple

import numpy as np

from geoseg.arrays import BoolArray, ByteArray, FloatArray, Int32Array, IntArray
from geoseg.map_rows import CONFIDENCE_SCALE, CUT_EAST, CUT_SOUTH, MapRows, join_rows
from geoseg.options import CONTACT_SHARE
from geoseg.polygons.rules.small_regions import fixed_point, in_turns
from geoseg.runtime.forest import find_root, join
from geoseg.runtime.jit import helper, int64, njit

REACH_PX = 64
"""The most steps from a strip pixel to its core."""

TALL_PX = 2048
"""Cores of more rows are all one: their pixels leave before it is known where they end."""

_REST = 1  # label of the objects that are not told apart
_STRIP, _QUEUED = -1, -2
_UNDECIDED, _CORE, _TALL, _SPECK = range(4)


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
    are tall. Memory: some 10 bytes for each pixel of the rows that wait.

    Args:
        rows: Classes and contact, any number of rows at once; other layers are carried along.
        width: Width of the map, px.
        row_areas: Area of a pixel in each row of the map, (H,), any unit; `Grid.pixel_area_m2`.
        rule: What is told apart.
        band_rows: New rows to look at together.

    Raises:
        ValueError: Rows without contact, or not as many as ``row_areas``.
    """
    return in_turns(_Objects(width, row_areas, rule), rows, len(row_areas), band_rows)


class _Cores(NamedTuple):
    """Cores of some rows, (n,) each; those that continue from above come first."""

    first_row: Int32Array  # -1 for those from above
    last_row: Int32Array
    area: IntArray  # fixed point, in these rows
    value: ByteArray  # class
    kind: ByteArray


class _Objects:
    """Rows that wait, below those that have left but may still reach into them."""

    def __init__(self, width: int, row_areas: FloatArray, rule: Separation) -> None:
        self._rule = rule
        self._wanted = np.zeros(256, dtype=bool)
        self._wanted[list(rule.classes)] = True
        self._pixel_area, self._limit = fixed_point(row_areas, width, rule.limit)
        self._first_row = self._left = 0  # of the rows here: the first in the map, and how many have left
        self._above = np.full(width, -1, dtype=np.int32)  # core of each pixel over the first row; -1 for none
        self._kind, self._value = np.empty(0, dtype=np.uint8), np.empty(0, dtype=np.uint8)  # of these cores
        self.waiting = MapRows(np.empty((0, width), dtype=np.uint8))

    def decide(self, new: list[MapRows], *, last: bool = False) -> Iterator[MapRows]:
        """Tell the objects of all rows apart that no row to come can change; these rows leave."""
        if any(part.contact is None for part in new):
            raise ValueError("objects are told apart by their contact, which these rows lack")
        rows = join_rows([self.waiting, *new] if len(self.waiting) else new, axis=-2)
        labels, cores = self._cores(rows, last)
        reach = self._rule.reach_px
        known = min(int(cores.first_row[cores.kind == _UNDECIDED].min(initial=len(rows))), len(rows))
        leaving = len(rows) if last else max(known - reach - 1, self._left)
        if leaving > self._left:
            here = slice(0, leaving + reach + 1)
            names = np.arange(_REST + 1, _REST + 1 + len(cores.kind), dtype=np.int32)
            names[cores.kind == _TALL], names[cores.kind == _SPECK] = _REST, _STRIP
            objects = np.concatenate([np.zeros(1, dtype=np.int32), names, np.array([_STRIP], dtype=np.int32)])
            objects = objects[labels[here]]
            _share_out(rows.classes[here], objects, reach)
            cuts = _cuts(rows.classes[here], objects)[self._left : leaving]
            yield replace(rows[self._left : leaving], contact=None, cuts=cuts)
        top = max(leaving - reach, 0)
        if top:
            above = labels[top - 1] - 1
            present, number = np.unique(above[above >= 0], return_inverse=True)
            self._above = np.full(len(above), -1, dtype=np.int32)
            self._above[above >= 0] = number
            self._kind, self._value = cores.kind[present], cores.value[present]
        self.waiting = rows[top:]
        self._first_row += top
        self._left = leaving - top

    def _cores(self, rows: MapRows, last: bool) -> tuple[Int32Array, _Cores]:
        """Cores: the number of each pixel's, from 1, (h, W), with 0 outside the classes and -1 in the strip."""
        assert rows.contact is not None
        threshold = max(round(self._rule.contact * CONFIDENCE_SCALE), 1)
        contact = np.ascontiguousarray(rows.contact)
        labels, roots = _label_cores(rows.classes, contact, self._wanted, threshold, self._above, self._value)
        count = int(roots.max(initial=0))
        first_row, last_row = np.full(count, len(rows), np.int32), np.full(count, -1, np.int32)
        area, value = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.uint8)
        _measure(rows.classes, labels, roots, self._pixel_area[self._first_row :], first_row, last_row, area, value)
        kind = np.full(count, _UNDECIDED, dtype=np.uint8)
        closed = last_row < len(rows) - (not last)
        kind[closed] = np.where(area[closed] < self._limit, _SPECK, _CORE)
        kind[last_row - first_row >= self._rule.tall_px] = _TALL
        from_above = roots[1 : 1 + len(self._kind)] - 1
        kind[from_above], first_row[from_above], value[from_above] = self._kind, -1, self._value
        # Two tall cores that met further down are one number now; its kind is the same.
        return labels, _Cores(first_row, last_row, area, value, kind)


@njit
def _label_cores(
    classes: ByteArray, contact: ByteArray, wanted: BoolArray, threshold: int, above: Int32Array, above_value: ByteArray
) -> tuple[Int32Array, Int32Array]:
    """Provisional labels (h, W), 0 outside the wanted classes and -1 in the strip, and the core of each label, from 1.

    The first labels are the cores over the first row, whose classes are ``above_value``.
    """
    height, width = classes.shape
    bound = 1 + len(above_value)
    for y in range(height):
        for x in range(width):
            if wanted[classes[y, x]] and contact[y, x] < threshold:
                bound += x == 0 or classes[y, x] != classes[y, x - 1] or contact[y, x - 1] >= threshold
    parent = np.arange(bound).astype(np.int32)
    labels = np.zeros((height, width), dtype=np.int32)
    count = 1 + len(above_value)
    for y in range(height):
        for x in range(width):
            value = classes[y, x]
            if not wanted[value]:
                continue
            if contact[y, x] >= threshold:
                labels[y, x] = _STRIP
                continue
            left = labels[y, x - 1] if x > 0 and classes[y, x - 1] == value else 0
            over = 0
            if y > 0:
                over = labels[y - 1, x] if classes[y - 1, x] == value else 0
            elif above[x] >= 0 and above_value[above[x]] == value:
                over = above[x] + 1
            if left > 0 and over > 0 and left != over:
                join(parent, int64(left), int64(over))
            if left > 0 or over > 0:
                labels[y, x] = left if left > 0 else over
            else:
                labels[y, x] = count
                count += 1
    number = 0
    roots = np.zeros(count, dtype=np.int32)
    for label in range(1, count):  # a root is the smallest label of its core
        if parent[label] == label:
            number += 1
            roots[label] = number
        else:
            roots[label] = roots[find_root(parent, label)]
    return labels, roots


@njit
def _measure(
    classes: ByteArray,
    labels: Int32Array,
    roots: Int32Array,
    pixel_area: IntArray,
    first_row: Int32Array,
    last_row: Int32Array,
    area: IntArray,
    value: ByteArray,
) -> None:
    """Make labels the numbers of cores, and fill what is known of these."""
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            if labels[y, x] > 0:
                core = roots[labels[y, x]]
                labels[y, x] = core
                first_row[core - 1] = min(first_row[core - 1], y)
                last_row[core - 1] = y
                area[core - 1] += pixel_area[y]
                value[core - 1] = classes[y, x]


@helper
def _nearest(classes: ByteArray, objects: Int32Array, y: int, x: int) -> int:
    """The object of the first neighbour to the north, west, east, south that has one; 0 if none has."""
    value = classes[y, x]
    if y > 0 and objects[y - 1, x] > 0 and classes[y - 1, x] == value:
        return int64(objects[y - 1, x])
    if x > 0 and objects[y, x - 1] > 0 and classes[y, x - 1] == value:
        return int64(objects[y, x - 1])
    if x + 1 < objects.shape[1] and objects[y, x + 1] > 0 and classes[y, x + 1] == value:
        return int64(objects[y, x + 1])
    if y + 1 < objects.shape[0] and objects[y + 1, x] > 0 and classes[y + 1, x] == value:
        return int64(objects[y + 1, x])
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


@njit
def _cuts(classes: ByteArray, objects: Int32Array) -> ByteArray:
    """Where neighbours of a class belong to different objects, see `MapRows.cuts`; none below the last row."""
    height, width = objects.shape
    cuts = np.zeros((height, width), dtype=np.uint8)
    for y in range(height):
        for x in range(width):
            if objects[y, x]:
                if x + 1 < width and classes[y, x] == classes[y, x + 1] and objects[y, x] != objects[y, x + 1]:
                    cuts[y, x] |= CUT_EAST
                if y + 1 < height and classes[y, x] == classes[y + 1, x] and objects[y, x] != objects[y + 1, x]:
                    cuts[y, x] |= CUT_SOUTH
    return cuts
