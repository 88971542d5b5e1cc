"""Regions of a class map (4-connected pixels of one class), and merging the small ones into their neighbours."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

ClassValues = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


def label_regions(values: ClassValues) -> IntArray:
    """Number of each pixel's region, 0 … n−1, shape (H, W); regions are 4-connected pixels of one value."""
    height, width = values.shape
    starts = np.ones((height, width), dtype=bool)  # where a run of equal pixels starts in its row
    starts[:, 1:] = values[:, 1:] != values[:, :-1]
    runs = starts.ravel().cumsum().reshape(height, width) - 1
    # Two runs that touch vertically first do so at a column where one of them starts.
    touch = (values[1:] == values[:-1]) & (starts[1:] | starts[:-1])
    region_of_run = _components(int(runs[-1, -1]) + 1, runs[:-1][touch], runs[1:][touch])
    return np.asarray(region_of_run[runs])


def merge_small_regions(
    values: ClassValues, row_areas: FloatArray, *, min_area: float, nodata: int = 255
) -> ClassValues:
    """A class map in which every region is at least ``min_area``.

    Small regions go into the neighbour they share the longest border with, the smaller into the larger, and areas
    are taken anew after each round of merging. Nodata neither grows nor shrinks by it, except that a small region
    with no neighbour but nodata has nowhere to go and becomes nodata.

    Args:
        values: Class map, (H, W) uint8.
        row_areas: Area of a pixel in each row, (H,), any unit.
        min_area: Smallest area that stays, same unit.
        nodata: Value that is no class.
    """
    labels = label_regions(values)
    count = int(labels.max()) + 1
    region_class = np.zeros(count, dtype=np.uint8)
    region_class[labels] = values
    area = _sum_by(labels.ravel(), np.repeat(row_areas, values.shape[1]), count)
    first, second, border = _adjacency(labels, region_class != nodata)
    region = np.arange(count)  # the region that each of the first regions has become part of
    while True:
        target = _merge_targets(area, first, second, border, min_area=min_area)
        if (target == np.arange(len(area))).all():
            break
        # A merged region may now touch one of its own class, and both are one.
        i, j = target[first], target[second]
        same = region_class[i] == region_class[j]
        joined = _components(len(area), i[same], j[same])
        kept_class = np.zeros(int(joined.max()) + 1, dtype=np.uint8)
        roots = np.unique(target)
        kept_class[joined[roots]] = region_class[roots]
        step = joined[target]
        region, region_class = step[region], kept_class
        area = _sum_by(step, area, len(kept_class))
        first, second, border = _sum_borders(step[first], step[second], border, len(kept_class))
    alone = np.ones(len(area), dtype=bool)
    alone[first] = False
    region_class[alone & (area < min_area)] = nodata
    return region_class[region][labels]


def _adjacency(labels: IntArray, is_class: npt.NDArray[np.bool_]) -> tuple[IntArray, IntArray, IntArray]:
    """Pairs of neighbouring regions, each in both orders, and their common border in pixel sides."""
    sides = [(labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])]
    pairs = [np.stack([a[a != b], b[a != b]]) for a, b in sides]
    i, j = np.concatenate(pairs, axis=1)
    both = is_class[i] & is_class[j]
    i, j = i[both], j[both]
    ones = np.ones(2 * len(i), dtype=np.int64)
    return _sum_borders(np.concatenate([i, j]), np.concatenate([j, i]), ones, len(is_class))


def _sum_by(groups: IntArray, weights: FloatArray, count: int) -> FloatArray:
    return np.bincount(groups, weights=weights, minlength=count).astype(np.float64, copy=False)


def _sum_borders(i: IntArray, j: IntArray, border: IntArray, count: int) -> tuple[IntArray, IntArray, IntArray]:
    different = i != j
    keys, which = np.unique(i[different] * count + j[different], return_inverse=True)
    summed = np.bincount(which, weights=border[different], minlength=len(keys)).astype(np.int64)
    return keys // count, keys % count, summed


def _merge_targets(
    area: FloatArray, first: IntArray, second: IntArray, border: IntArray, *, min_area: float
) -> IntArray:
    """The region each region goes into in this round; itself where it stays."""
    order = np.lexsort((second, area[second], border, first))
    first, second = first[order], second[order]
    last = np.append(first[1:] != first[:-1], True) if len(first) else np.zeros(0, dtype=bool)
    i, j = first[last], second[last]
    # Only into a larger one (the higher number breaks a tie), so no two regions swap places.
    merges = (area[i] < min_area) & ((area[i] < area[j]) | ((area[i] == area[j]) & (i < j)))
    target = np.arange(len(area))
    target[i[merges]] = j[merges]
    while (target[target] != target).any():
        target = target[target]
    return target


def _components(count: int, i: IntArray, j: IntArray) -> IntArray:
    """Number of the connected component of each of ``count`` nodes, given edges i—j; 0 … n−1 by lowest node."""
    parent = np.arange(count)
    while True:
        a, b = parent[i], parent[j]
        open_edges = a != b
        if not open_edges.any():
            break
        i, j, a, b = i[open_edges], j[open_edges], a[open_edges], b[open_edges]
        np.minimum.at(parent, np.maximum(a, b), np.minimum(a, b))
        while (parent[parent] != parent).any():
            parent = parent[parent]
    return np.unique(parent, return_inverse=True)[1]
