from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rasterio import features
from scipy import ndimage

from geoseg.map_rows import MapRows, join_rows
from geoseg.polygons import PolygonRules
from geoseg.polygons.rules.options import RegionRule, region_rules
from geoseg.polygons.rules.small_regions import apply_rule

NODATA = 255
RULES = ["merge", "drop", "fill"]
SIDES = [(0, 1), (1, 0), (0, -1), (-1, 0)]


def picture(text):
    return np.array([[255 if c == "." else int(c) for c in row] for row in text.split()], dtype=np.uint8)


SPIRAL = picture("1111111 0000001 0111101 0100101 0101101 0100001 0111111")
RINGS = picture("333333333 322222223 321111123 321000123 321040123 321000123 321111123 322222223 333333333")
DIAGONAL = np.where(np.eye(12), 2, 1).astype(np.uint8)  # two halves that never meet
CASES = {
    "one pixel": picture("0"),
    "one row": picture("001.11"),
    "one column": picture("0 0 1 . 1"),
    "all nodata": picture("... ..."),
    "checkerboard": (np.indices((8, 9)).sum(0) % 2).astype(np.uint8),
    "checkerboard in nodata": np.where(np.indices((8, 9)).sum(0) % 2, 255, 1).astype(np.uint8),
    "spiral": SPIRAL,
    "nested rings": RINGS,
    "nested rings in nodata": np.pad(RINGS, 1, constant_values=255),
    "rings around nodata": np.where(RINGS == 1, 255, RINGS),
    "one-pixel diagonal": DIAGONAL,
    "diagonal that ends": np.vstack([DIAGONAL, np.ones((2, 12), np.uint8)]),
    "diagonal from the top": np.vstack([np.ones((2, 12), np.uint8), DIAGONAL]),
    "holes that touch in a point": picture("11111 10111 11011 11111"),
    "hole open to the map's edge": picture("11101 10111 11111"),
    "island in a lake in an island": picture("00000000 01111110 01222210 01233210 01222210 01111110 00000000"),
}


@st.composite
def maps(draw):
    """Small maps: noise of few values, blown up in part so that regions have all kinds of size and shape."""
    values = st.sampled_from(
        draw(st.sampled_from([[0, 1], [0, 0, 0, 1, 2], [0, 1, 2, 3], [0, 0, 1, 2, 255], [1, 255]]))
    )
    coarse = draw(arrays(np.uint8, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=values))
    fine = np.repeat(np.repeat(coarse, draw(st.integers(1, 3)), axis=0), draw(st.integers(1, 2)), axis=1)
    noise = draw(arrays(np.uint8, fine.shape, elements=st.one_of(st.just(9), st.just(9), values)))
    return np.where(noise == 9, fine, noise)


def run(values, row_areas=None, *, heights=None, confidence=None, band_rows=64, **rule):
    """The filtered map, fed in blocks of these heights; rows of confidence come out in step."""
    row_areas = np.ones(len(values)) if row_areas is None else np.asarray(row_areas, dtype=float)
    rows = MapRows(values, confidence)
    ends = np.cumsum((heights or [len(values)]) * len(values))
    pieces = (rows[start:end] for start, end in pairwise([0, *ends[ends < len(values)], len(values)]))
    out = join_rows(
        list(apply_rule(pieces, values.shape[1], row_areas, RegionRule(**rule), band_rows=band_rows)), axis=-2
    )
    if confidence is not None:
        np.testing.assert_array_equal(out.confidence, confidence)
    return out.classes


# The same definitions once more, with sets of pixels and no thought of speed.


def beside(pixels, shape):
    """Pixels across each side of a set of pixels, None for the map's outside."""
    for y, x in pixels:
        for dy, dx in SIDES:
            if (y + dy, x + dx) not in pixels:
                inside = 0 <= y + dy < shape[0] and 0 <= x + dx < shape[1]
                yield (y + dy, x + dx) if inside else None


def components(pixels, connected):
    """Sets of 4-connected pixels, ordered by first pixel."""
    left, found = set(pixels), []
    for start in sorted(pixels):
        if start in left:
            left.remove(start)
            piece, edge = {start}, [start]
            while edge:
                y, x = edge.pop()
                for p in [(y + dy, x + dx) for dy, dx in SIDES]:
                    if p in left and connected((y, x), p):
                        left.remove(p)
                        piece.add(p)
                        edge.append(p)
            found.append(piece)
    return found


def all_regions(values):
    return components(list(np.ndindex(values.shape)), lambda p, q: values[p] == values[q])


def area_of(pixels, row_areas):
    return sum(row_areas[y] for y, _ in pixels)


def merged_by_definition(values, row_areas, limit):
    out = values.astype(int)
    small = [r for r in all_regions(values) if values[min(r)] != NODATA and area_of(r, row_areas) < limit]
    for cluster in components(set().union(*small), lambda p, q: True):
        groups = [r for r in small if r <= cluster]
        while True:
            groups.sort(key=lambda g: (area_of(g, row_areas), min(g)))
            if not groups or area_of(groups[0], row_areas) >= limit:
                break
            group = groups.pop(0)
            borders = {}
            for p in beside(group, values.shape):
                if p is not None and values[p] != NODATA:
                    i = next((i for i, g in enumerate(groups) if p in g), None)
                    neighbour = ("large", out[p]) if i is None else ("small", i)
                    borders[neighbour] = borders.get(neighbour, 0) + 1

            def rank(neighbour, borders=borders, groups=groups):
                kind, which = neighbour
                if kind == "large":
                    return borders[neighbour], 1, -which
                return borders[neighbour], 0, area_of(groups[which], row_areas), [-c for c in min(groups[which])]

            if not borders:
                value = NODATA
            else:
                kind, which = max(borders, key=rank)
                value = which if kind == "large" else out[min(groups[which])]
            joined = [n for n in borders if (n[1] if n[0] == "large" else out[min(groups[n[1]])]) == value]
            gone = [i for kind, i in joined if kind == "small"]
            group = group.union(*(groups[i] for i in gone))
            groups = [g for i, g in enumerate(groups) if i not in gone]
            for p in group:
                out[p] = value
            if borders and ("large", value) not in joined:
                groups.append(group)
    return out


def filled_by_definition(values, row_areas, limit):
    everything = set(np.ndindex(values.shape))
    holes = []
    for region in all_regions(values):
        value = values[min(region)]
        if value != NODATA:
            for piece in components(everything - region, lambda p, q: True):
                if None not in beside(piece, values.shape) and area_of(piece, row_areas) < limit:
                    holes.append((len(piece), value, piece))
    out = values.copy()
    for _, value, piece in sorted(holes, key=lambda h: h[0]):  # an outer one is larger than what it holds
        for p in piece:
            out[p] = value
    return out


def dropped_by_definition(values, row_areas, limit):
    out = values.copy()
    for region in all_regions(values):
        if area_of(region, row_areas) < limit:
            for p in region:
                out[p] = NODATA
    return out


BY_DEFINITION = {"merge": merged_by_definition, "drop": dropped_by_definition, "fill": filled_by_definition}


@pytest.mark.parametrize("rule", RULES)
@given(data=st.data(), values=maps(), limit=st.sampled_from([2, 3, 5, 9, 14, 30, 1000]))
def test_any_map_is_as_defined_for_any_piece_height(rule, data, values, limit):
    row_areas = data.draw(st.lists(st.integers(1, 3), min_size=len(values), max_size=len(values)))
    heights = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    confidence = np.arange(values.size, dtype=np.uint8).reshape(values.shape)
    expected = BY_DEFINITION[rule](values, row_areas, limit)
    for band_rows in (256, data.draw(st.integers(1, 5))):
        pieces = {"heights": heights, "band_rows": band_rows, "confidence": confidence}
        np.testing.assert_array_equal(run(values, row_areas, action=rule, limit=limit, **pieces), expected)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", CASES)
def test_odd_maps_are_as_defined_for_any_piece_height(rule, case):
    values = CASES[case]
    for limit in (2, 5, 17, 60, 1000):
        expected = BY_DEFINITION[rule](values, np.ones(len(values), dtype=int), limit)
        for height in range(1, len(values) + 1):
            out = run(values, heights=[height], band_rows=height, action=rule, limit=limit)
            np.testing.assert_array_equal(out, expected)


@given(values=maps(), limit=st.sampled_from([2, 4, 10]), band_rows=st.integers(1, 4))
def test_filled_holes_are_the_interior_rings_of_polygons(values, limit, band_rows):
    holes = []
    for shape, value in features.shapes(values, mask=values != NODATA, connectivity=4):
        holes += [(shapely.Polygon(ring), value) for ring in shape["coordinates"][1:]]
    expected = values.copy()
    y, x = np.indices(values.shape) + 0.5
    for hole, value in sorted(holes, key=lambda h: h[0].area):
        if hole.area < limit:
            expected[shapely.contains_xy(hole, x, y)] = value
    np.testing.assert_array_equal(run(values, action="fill", limit=limit, band_rows=band_rows), expected)


def label_regions(values):
    """Number of each pixel's region, by scipy."""
    labels = np.zeros(values.shape, dtype=np.int64)
    for value in np.unique(values):
        found, count = ndimage.label(values == value)
        labels[found > 0] = found[found > 0] + labels.max()
        assert count == found.max()
    return labels


@given(values=maps(), limit=st.sampled_from([2, 5, 12]), band_rows=st.integers(1, 4))
def test_merging_leaves_nothing_small_and_keeps_the_whole(values, limit, band_rows):
    merged = run(values, action="merge", limit=limit, band_rows=band_rows)
    labels = label_regions(merged)
    assert (np.bincount(labels.ravel())[labels[merged != NODATA]] >= limit).all()
    # What gets lost is a whole piece of land, and too small.
    assert (merged[values == NODATA] == NODATA).all()
    land = label_regions(np.where(values == NODATA, NODATA, 0).astype(np.uint8))
    lost = np.unique(land[(merged == NODATA) & (values != NODATA)])
    assert (np.bincount(land.ravel())[lost] < limit).all()
    # Large regions stay as they were.
    before = label_regions(values)
    large = (np.bincount(before.ravel()) >= limit)[before]
    np.testing.assert_array_equal(merged[large], values[large])
    np.testing.assert_array_equal(run(merged, action="merge", limit=limit), merged)


def test_a_speck_goes_where_its_border_is_longest():
    speck_in_zero = picture("000011 000211 000011")
    np.testing.assert_array_equal(run(speck_in_zero, action="merge", limit=2), picture("000011 000011 000011"))
    # Two large regions of one value are one neighbour: 2 + 2 sides against 3.
    between = picture("1113333 1112333 1112333 1111333".replace("3", "0"))
    between[:, 3] = [1, 2, 2, 1]
    assert (run(between, action="merge", limit=3)[1:3, 3] == 1).all()


def test_the_smallest_region_is_merged_first():
    values = picture("00000000 02320000 02220000 00000000")
    assert (run(values, action="merge", limit=6) == np.where(values == 3, 2, values)).all()
    assert (run(values, action="merge", limit=7) == 0).all()


def test_filling_takes_the_outermost_hole_that_is_small_enough():
    lake = CASES["island in a lake in an island"]
    filled = {limit: run(lake, action="fill", limit=limit) for limit in (2, 3, 13, 31)}
    assert (filled[2] == lake).all()
    assert (filled[3] == np.where(lake == 3, 2, lake)).all()
    assert (filled[13] == np.where(lake >= 2, 1, lake)).all()
    assert (filled[31] == 0).all()


def test_holes_are_filled_before_small_regions_merge():
    values = picture("0000000 0111000 0121000 0111000 0000000")
    rules = PolygonRules(min_area_m2=9, small="drop", fill_holes_m2=2)
    for some, expected in (
        (rules, np.where(values == 2, 1, values)),
        (dataclasses.replace(rules, fill_holes_m2=0), np.where(values == 0, 0, NODATA)),
    ):
        found = [MapRows(values)]
        for rule in region_rules(some):
            found = apply_rule(found, 7, np.ones(5), rule)
        np.testing.assert_array_equal(join_rows(list(found), axis=-2).classes, expected)


def test_an_area_equal_to_the_limit_is_not_below_it():
    values = np.zeros((20, 20), dtype=np.uint8)
    values[2:5, 2:3] = 1
    for pixel in (0.09, 0.3**2, 1 / 3, 7e-7, 1e9):
        areas = np.full(20, pixel)
        assert (run(values, areas, action="merge", limit=3 * pixel) == values).all()
        assert (run(values, areas, action="merge", limit=3.01 * pixel) == 0).all()


def test_area_counts_row_by_row():
    values = picture("0000 0110 0000 0110 0000")
    out = run(values, [1, 1, 1, 2, 1], action="merge", limit=4)
    np.testing.assert_array_equal(out, picture("0000 0000 0000 0110 0000"))


@pytest.mark.parametrize("rule", RULES)
def test_a_long_noisy_map_waits_for_few_rows(rule):
    rng = np.random.default_rng(1)
    height, width = 6000, 200
    values = np.tile((np.arange(width) // 50).astype(np.uint8), (height, 1))
    noise = rng.random(values.shape) < 0.2
    values[noise] = rng.integers(0, 8, noise.sum())
    fed, left, waiting = 0, [], []

    def rows():
        nonlocal fed
        for y in range(0, height, 50):
            waiting.append(fed - sum(map(len, left)))
            fed += 50
            yield MapRows(values[y : y + 50])

    for out in apply_rule(rows(), width, np.ones(height), RegionRule(rule, 20)):
        left.append(out)
    assert max(waiting) < 200
    expected = run(values, action=rule, limit=20, band_rows=height)
    np.testing.assert_array_equal(join_rows(left, axis=-2).classes, expected)


def test_rows_too_many_or_too_few_are_refused():
    rule, rows = RegionRule("merge", 2), MapRows(np.zeros((3, 3), dtype=np.uint8))
    for heights, count in ((4, 3), (5, 6)):
        with pytest.raises(ValueError, match=f"{count} rows came, but the map has {heights}"):
            list(apply_rule([rows] * (count // 3), 3, np.ones(heights), rule))
    with pytest.raises(ValueError, match="finite"):
        list(apply_rule([rows], 3, np.array([1.0, 2.0, np.nan]), rule))
