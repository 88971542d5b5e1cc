from __future__ import annotations

from dataclasses import fields
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio import features
from scipy import ndimage

from geoseg.map_rows import MapRows
from geoseg.polygons.trace.cracks import SUBPIXEL, ArcBatch, Cracks
from geoseg.polygons.trace.joining import ClosedPolygons, Joiner, _trace, closed_polygons, cut_bands
from support.arcs import has_horizontal, has_vertical
from support.class_maps import framed, maps

Values = npt.NDArray[np.uint8]


def trace(values: Values, *, feed: int | None = None, confidence: Values | None = None, **options: Any) -> Any:
    """All polygons of a map as one value, fed some rows at a time."""
    options.setdefault("threads", 0)
    step = feed or len(values)
    rows = MapRows(values, confidence)
    pieces = (rows[row : row + step] for row in range(0, len(values), step))
    return joined(list(closed_polygons(pieces, values.shape[1], **options)))


def joined(parts: list[ClosedPolygons]) -> ClosedPolygons:
    columns = {}
    for field in fields(ClosedPolygons):
        arrays = [getattr(part, field.name) for part in parts if getattr(part, field.name) is not None]
        if field.name in ("rings", "polygons"):
            starts = np.cumsum([0] + [array[-1] for array in arrays])
            arrays = [array[1:] + start for array, start in zip(arrays, starts, strict=False)]
            arrays.insert(0, np.zeros(1, np.int64))
        columns[field.name] = np.concatenate(arrays) if arrays else np.empty((0, 2) if field.name == "xy" else 0, int)
    return ClosedPolygons(**columns)


def geometries(polygons: ClosedPolygons) -> npt.NDArray[Any]:
    if len(polygons) == 0:
        return np.empty(0, object)
    offsets = polygons.rings, polygons.polygons
    return np.asarray(
        shapely.from_ragged_array(shapely.GeometryType.POLYGON, polygons.xy / SUBPIXEL, offsets), dtype=object
    )


def assert_same(one: ClosedPolygons, other: ClosedPolygons) -> None:
    for field in fields(ClosedPolygons):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name), field.name)


def spiral(size: int) -> Values:
    values = np.zeros((size, size), np.uint8)
    x = y = heading = 0
    values[0, 0] = 1
    while True:
        for turn in (heading, (heading + 1) % 4):
            dx, dy = ((1, 0), (0, 1), (-1, 0), (0, -1))[turn]
            ahead = [(x + k * dx, y + k * dy) for k in (1, 2)]
            inside = [0 <= i < size and 0 <= j < size for i, j in ahead]
            if inside[0] and not values[ahead[0][1], ahead[0][0]] and not (
                inside[1] and values[ahead[1][1], ahead[1][0]]
            ):  # fmt: skip
                break
        else:
            return values
        heading, (x, y) = turn, ahead[0]
        values[y, x] = 1


def nested(size: int) -> Values:
    y, x = np.mgrid[:size, :size]
    return np.asarray(np.minimum.reduce([x, y, size - 1 - x, size - 1 - y]) % 3, np.uint8)


def diagonals(size: int) -> Values:
    y, x = np.mgrid[:size, :size]
    return np.asarray(((x + y) % 5 == 0) + 2 * ((x - y) % 7 == 0), np.uint8)


def comb(size: int) -> Values:
    """Teeth that hang from a bar below: one region open at many places of a seam, and nodata between."""
    values = np.full((size, size), 255, np.uint8)
    values[:, ::2] = 3
    values[-1] = 3
    return values


PATTERNS = {
    "checkerboard": np.indices((17, 18)).sum(axis=0).astype(np.uint8) % 2,
    "all distinct": np.arange(15 * 16, dtype=np.uint8).reshape(15, 16),
    "spiral": spiral(23),
    "nested rings": nested(21),
    "diagonals": diagonals(24),
    "comb": comb(20),
    "comb upside down": comb(20)[::-1].copy(),
    "one pixel": np.full((1, 1), 7, np.uint8),
    "nodata": np.full((5, 4), 255, np.uint8),
}


def without_collinear(ring: npt.NDArray[Any]) -> npt.NDArray[Any]:
    points = ring[:-1]
    before, after = np.roll(points, 1, axis=0), np.roll(points, -1, axis=0)
    points = points[~np.any((before == points) & (points == after), axis=1)]
    return np.vstack([points, points[:1]])


def simplest(polygon: shapely.Polygon) -> bytes:
    shell, *holes = (
        without_collinear(shapely.get_coordinates(ring)) for ring in (polygon.exterior, *polygon.interiors)
    )
    return bytes(shapely.to_wkb(shapely.normalize(shapely.Polygon(shell, holes))))


def check_against_raster(values: Values, polygons: ClosedPolygons) -> None:
    shapes = geometries(polygons)
    assert 255 not in polygons.value
    for value in np.unique(values[values != 255]):
        mine = polygons.value == value
        assert mine.sum() == ndimage.label(values == value)[1]
        assert polygons.pixels[mine].sum() == (values == value).sum()
    assert (shapely.area(shapes) == polygons.pixels).all()
    assert (values.ravel()[polygons.first] == polygons.value).all()
    assert shapely.is_valid(shapes).all()
    assert shapely.coverage_is_valid(shapes)
    flipped = shapely.transform(shapes, lambda xy: xy * (1, -1))
    assert (shapely.orient_polygons(flipped) == flipped).all(), "shells run counter-clockwise once y points up"
    burnt = np.full(values.shape, 255, np.uint8)
    if len(shapes):
        features.rasterize(zip(shapes, polygons.value.tolist(), strict=True), out=burnt, transform=Affine.identity())
    np.testing.assert_array_equal(burnt, values)
    theirs = [
        (value, simplest(shapely.geometry.shape(shape)))
        for shape, value in features.shapes(values, mask=values != 255, connectivity=4)
    ]
    ours = [(value, simplest(shape)) for value, shape in zip(polygons.value, shapes, strict=True)]
    assert sorted(ours) == sorted(theirs)


@given(maps())
def test_polygons_are_the_regions_of_the_map(values: Values) -> None:
    check_against_raster(values, trace(values))


@pytest.mark.parametrize("name", PATTERNS)
def test_polygons_of_patterns(name: str) -> None:
    values = PATTERNS[name]
    polygons = trace(values)
    check_against_raster(values, polygons)
    for band_rows in (1, 2, 3, 7):
        assert_same(trace(values, band_rows=band_rows), polygons)


@given(maps(), st.integers(1, 25), st.integers(1, 25), st.integers(0, 3), st.integers(0, 6))
def test_bands_feeds_threads_and_lookahead_change_nothing(
    values: Values, band_rows: int, feed: int, threads: int, lookahead: int
) -> None:
    confidence = np.random.default_rng(values.size).integers(0, 255, values.shape).astype(np.uint8)
    expected = trace(values, confidence=confidence)
    found = trace(
        values, confidence=confidence, band_rows=band_rows, feed=feed, threads=threads,
        finish=Unchanged(lookahead),
    )  # fmt: skip
    assert_same(found, expected)


@given(maps(), st.integers(1, 9))
def test_polygons_come_by_their_last_row_and_first_pixel(values: Values, band_rows: int) -> None:
    polygons = trace(values, band_rows=band_rows)
    last_rows = shapely.bounds(geometries(polygons))[:, 3] if len(polygons) else np.empty(0)
    assert (np.lexsort((polygons.first, last_rows)) == np.arange(len(polygons))).all()


@given(maps())
def test_confidence_is_that_of_the_pixels(values: Values) -> None:
    confidence = np.random.default_rng(values.size).integers(0, 255, values.shape).astype(np.uint8)
    polygons = trace(values, confidence=confidence, band_rows=3)
    for k, first in enumerate(polygons.first):
        labels = ndimage.label(values == polygons.value[k])[0]
        inside = confidence[labels == labels.ravel()[first]]
        assert polygons.confidence_sum[k] == inside.sum(dtype=int)
        assert polygons.confidence_min[k] == inside.min()


class Unchanged:
    """A finisher that changes nothing."""

    def __init__(self, lookahead: int = 0) -> None:
        self.lookahead = lookahead

    def drop_above(self, row: int) -> None:
        """Nothing is kept."""

    def __call__(self, arcs: ArcBatch, cracks: Cracks) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        return arcs.points * np.int32(SUBPIXEL), arcs.offsets


@given(maps(), st.integers(1, 9))
def test_compacting_all_the_time_changes_nothing(values: Values, band_rows: int) -> None:
    expected = trace(values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("geoseg.polygons.trace.joining._SLACK_BYTES", -(1 << 40))
        assert_same(trace(values, band_rows=band_rows), expected)


class Watcher(Unchanged):
    """A finisher that changes nothing and keeps what it was given."""

    def __init__(self, values: Values, lookahead: int = 0) -> None:
        super().__init__(lookahead)
        self.rows = framed(values)
        self.seen: list[tuple[Any, ...]] = []

    def __call__(self, arcs: ArcBatch, cracks: Cracks) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        for k in range(len(arcs.least)):
            points = arcs.points[arcs.offsets[k] : arcs.offsets[k + 1]]
            stride = self.rows.shape[1] - 1
            assert [key >> 2 for key in arcs.keys[k].tolist()] == [y * stride + x for x, y in points[[0, -1]].tolist()]
            self.seen.append((points.tolist(), bool(arcs.closed[k]), int(arcs.least[k])))
        if len(arcs.points):
            y = arcs.points[:, 1]
            self.check_cracks(y.min() - self.lookahead, y.max() + self.lookahead, cracks)
        return super().__call__(arcs, cracks)

    def check_cracks(self, first: int, last: int, cracks: Cracks) -> None:
        for y in range(max(first, 0), min(last, len(self.rows) - 2) + 1):
            above, below = self.rows[y], self.rows[y + 1]
            for x in range(len(above) - 1):
                assert has_horizontal(cracks, x, y) == (above[x + 1] != below[x + 1])
                assert has_vertical(cracks, x, y) == (below[x] != below[x + 1])


@given(maps(12), st.integers(1, 5), st.sampled_from([0, 3, 6]))
def test_each_arc_is_finished_once_with_the_cracks_around_it(values: Values, band_rows: int, lookahead: int) -> None:
    whole, banded = Watcher(values, lookahead), Watcher(values, lookahead)
    for watcher, rows in ((whole, None), (banded, band_rows)):
        trace(values, finish=watcher, band_rows=rows)
    assert sorted(whole.seen) == sorted(banded.seen), "the points to keep included"
    for points, closed, least in whole.seen:
        assert least == 3 if closed else least <= len(points) - 2
        assert closed or (least == 2) == (points[0] == points[-1])


def ends(points: list[list[int]]) -> set[tuple[int, ...]]:
    return {tuple(points[0]), tuple(points[-1])}


def test_the_lower_of_two_arcs_around_a_region_keeps_a_point() -> None:
    values = np.zeros((6, 8), np.uint8)
    values[3:] = 1
    values[2:5, 2:5] = 2  # between 0 above and 1 below, wholly bounded by an arc with either
    watcher = Watcher(values)
    trace(values, finish=watcher)
    arcs = [(points, least) for points, _, least in watcher.seen if ends(points) == {(2, 3), (5, 3)}]
    around = {max(y for _, y in points): least for points, least in arcs}
    assert around == {3: 0, 5: 1}


def test_of_two_arcs_the_straight_one_cannot_keep_a_point() -> None:
    values = np.zeros((6, 8), np.uint8)
    values[3:] = 1
    values[1:3, 2:5] = 2  # stands on the straight border of 1
    watcher = Watcher(values)
    trace(values, finish=watcher)
    around = [(least, len(points)) for points, _, least in watcher.seen if ends(points) == {(2, 3), (5, 3)}]
    assert sorted(around) == [(0, 2), (1, 4)]


def test_rows_are_checked() -> None:
    def polygons(*rows: MapRows, **options: Any) -> list[ClosedPolygons]:
        return list(closed_polygons(rows, 5, **options))

    with pytest.raises(ValueError, match=r"\(h, 5\) uint8"):
        polygons(MapRows(np.zeros((2, 4), np.uint8)))
    with pytest.raises(ValueError, match=r"found .* int64"):
        polygons(MapRows(np.zeros((2, 5), np.int64)))  # type: ignore[arg-type]
    zeros = np.zeros((2, 5), np.uint8)
    with pytest.raises(ValueError, match="confidence"):
        polygons(MapRows(zeros), MapRows(zeros, zeros))
    assert [len(part) for part in polygons(MapRows(zeros))] == [1]
    with pytest.raises(ValueError, match="1 px wide"):
        list(closed_polygons([], 0))
    assert polygons() == []


def test_memory_follows_what_is_open() -> None:
    generator = np.random.default_rng(1)
    joiner = Joiner(256)
    rows = (MapRows(generator.integers(0, 3, (64, 256)).astype(np.uint8)) for _ in range(40))
    sizes = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("geoseg.polygons.trace.joining._SLACK_BYTES", 0)
        for band in islice(cut_bands(rows, 256, 64), 40):
            joiner.join(_trace(False, None, band))
            sizes.append(joiner.nbytes())
    assert max(sizes[20:]) < 1.5 * max(sizes[5:20])
