"""Polygons of different classes that lie over each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import shapely

from geoseg.arrays import AnyArray, IntArray
from geoseg.classes import ClassTable
from geoseg.data.problems import Problem, listed, warning
from geoseg.paths import InputPath
from geoseg.words import count

MIN_SHARE = 0.01  # overlap below this share of the area of all polygons is not reported
INSIDE = 0.95  # a polygon lies within another one if this share of it does
MAX_PAIRS = 20_000  # pairs whose overlap is measured; of more, as many are drawn at random, and shares are estimates


def check_overlaps(path: InputPath, geometries: AnyArray, ids: IntArray, classes: ClassTable) -> Iterator[Problem]:
    """Warnings about polygons that a later one of another class covers, and about those that overlap in part.

    A polygon within an earlier one, such as houses drawn on a town, is intended.
    """
    valid = shapely.is_valid(geometries)
    geometries, ids = geometries[valid], ids[valid]
    area = shapely.area(geometries)
    earlier, later, of_all = _pairs(geometries, ids)
    shared = shapely.area(shapely.intersection(geometries[earlier], geometries[later]))
    under, over = shared >= INSIDE * area[earlier], shared >= INSIDE * area[later]
    hidden = np.unique(earlier[under])
    if hidden.size:
        about, lie = "" if of_all == 1 else "at least ", "lies" if hidden.size == 1 else "lie"
        each = [f"{n} of {classes[i].name}" for i, n in enumerate(np.bincount(ids[hidden]).tolist()) if n]
        yield warning(
            path,
            f"{about}{count(int(hidden.size), 'polygon')} of {path} {lie} under later ones of another class and "
            f"cannot be seen: {listed(each, 5)}",
            "order the features so that small ones come last",
        )
    part = ~under & ~over
    share = float(shared[part].sum() / of_all / area.sum()) if area.sum() else 0.0
    if share >= MIN_SHARE:
        sums: Counter[tuple[int, int]] = Counter()
        pairs = np.sort(np.stack([ids[earlier[part]], ids[later[part]]]), axis=0)
        for a, b, size in zip(*pairs.tolist(), shared[part].tolist(), strict=True):
            sums[a, b] += size
        names = [f"{classes[a].name} and {classes[b].name}" for (a, b), _ in sums.most_common()]
        yield warning(
            path,
            f"polygons of different classes in {path} overlap on {share:.0%} of their area, {listed(names, 3)}; "
            "there the later feature counts",
            "cut them at their common borders, or order them as they should lie",
        )


def _pairs(geometries: AnyArray, ids: IntArray) -> tuple[IntArray, IntArray, float]:
    """Pairs of different classes that may overlap, the earlier first, and their share of all such pairs."""
    first, second = shapely.STRtree(geometries).query(geometries)
    ordered = (first < second) & (ids[first] != ids[second])
    first, second = first[ordered], second[ordered]
    of_all = 1.0
    if first.size > MAX_PAIRS:
        chosen = np.sort(np.random.default_rng(0).choice(first.size, MAX_PAIRS, replace=False))
        of_all = MAX_PAIRS / first.size
        first, second = first[chosen], second[chosen]
    return first.astype(np.int64), second.astype(np.int64), of_all
