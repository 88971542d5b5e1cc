"""Polygons of different classes that lie over each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from geoseg.classes import ClassTable
from geoseg.data.checks.problems import Problem, listed, warning
from geoseg.paths import InputPath
from geoseg.words import count

MIN_SHARE = 0.01
"""Overlap below this share of the area of all polygons is not told."""

INSIDE = 0.95
"""A polygon of which this share lies in another one lies within it."""

MAX_PAIRS = 20_000
"""Pairs whose overlap is measured; of more, as many at random, and shares become estimates."""

Ids = npt.NDArray[np.int64]


def check_overlaps(path: InputPath, geometries: npt.NDArray[Any], ids: Ids, classes: ClassTable) -> list[Problem]:
    """Warnings about polygons that a later one of another class hides, and about those that overlap in part.

    A polygon within an earlier one is layering, as houses drawn on a town: it is seen, and nothing is said.

    Args:
        path: Of the labels.
        geometries: Polygons in the order they are burnt.
        ids: Their classes.
        classes: The class table.
    """
    valid = shapely.is_valid(geometries)
    geometries, ids = geometries[valid], ids[valid]
    if not len(geometries):
        return []
    area = shapely.area(geometries)
    earlier, later, of_all = _pairs(geometries, ids)
    if not earlier.size:
        return []
    shared = shapely.area(shapely.intersection(geometries[earlier], geometries[later]))
    under = shared >= INSIDE * area[earlier]
    over = shared >= INSIDE * area[later]
    problems = []
    hidden = np.unique(earlier[under])
    if hidden.size:
        about = "" if of_all == 1 else "at least "
        told = [f"{count} of {classes[i].name}" for i, count in enumerate(np.bincount(ids[hidden])) if count]
        problems.append(
            warning(
                path,
                f"{about}{count(int(hidden.size), 'polygon')} of {path} "
                f"{'lies' if hidden.size == 1 else 'lie'} under later ones of another class, not seen: "
                f"{listed(told, 5)}",
                "order the features so that small ones come last",
            )
        )
    part = ~under & ~over
    share = float(shared[part].sum() / of_all / area.sum()) if area.sum() else 0.0
    if share >= MIN_SHARE:
        pairs = np.sort(np.stack([ids[earlier[part]], ids[later[part]]]), axis=0)
        sums: dict[tuple[int, int], float] = {}
        for a, b, size in zip(*pairs.tolist(), shared[part].tolist(), strict=True):
            sums[a, b] = sums.get((a, b), 0.0) + size
        worst = sorted(sums, key=lambda pair: -sums[pair])
        told = [f"{classes[a].name} and {classes[b].name}" for a, b in worst]
        problems.append(
            warning(
                path,
                f"polygons of different classes in {path} overlap on {share:.0%} of their area, "
                f"{listed(told, 3)}; there the later feature counts",
                "cut them at their common borders, or order them as they should lie",
            )
        )
    return problems


def _pairs(geometries: npt.NDArray[Any], ids: Ids) -> tuple[Ids, Ids, float]:
    """Pairs of different classes that overlap, the earlier first, and which share of all such pairs they are."""
    first, second = shapely.STRtree(geometries).query(geometries)
    ordered = (first < second) & (ids[first] != ids[second])
    first, second = first[ordered], second[ordered]
    # Neighbours of a coverage meet in their bounds too; so do most of them in truth, along a line.
    of_all = 1.0
    if first.size > MAX_PAIRS:
        chosen = np.sort(np.random.default_rng(0).choice(first.size, MAX_PAIRS, replace=False))
        of_all = MAX_PAIRS / first.size
        first, second = first[chosen], second[chosen]
    return first.astype(np.int64), second.astype(np.int64), of_all
