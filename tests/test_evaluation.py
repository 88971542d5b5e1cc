"""Measures of a map against the truth, each against a plain computation on the whole map at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from geoseg.classes import NODATA
from geoseg.errors import ConfigError
from geoseg.evaluation.boundary import BoundaryMeasure
from geoseg.evaluation.objects import ObjectMeasure

Ids = npt.NDArray[np.uint8]
CLASSES = 3


@st.composite
def blobs(draw: st.DrawFn) -> tuple[Ids, Ids]:
    """Truth and map that look like one another: patches of classes, some of them unknown, and the map disturbed."""
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    coarse = rng.choice([0, 1, 2, 2, NODATA], size=(height, width))
    zoom = draw(st.integers(1, 6))
    truth = np.kron(coarse, np.ones((zoom, zoom), dtype=int))[:height, :width].astype(np.uint8)
    mapped = np.roll(truth, draw(st.integers(0, 2)), axis=draw(st.integers(0, 1)))
    noise = rng.random(truth.shape) < draw(st.sampled_from([0, 0.02, 0.2]))
    mapped = np.where(noise, rng.choice([0, 1, 2, NODATA], size=truth.shape), mapped).astype(np.uint8)
    return truth, mapped


def noise() -> st.SearchStrategy[tuple[Ids, Ids]]:
    """Truth and map without any sense, among them combs and spirals in the making."""
    shape = hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)
    ids = st.sampled_from([0, 1, NODATA])
    return shape.flatmap(lambda s: st.tuples(*[hnp.arrays(np.uint8, s, elements=ids)] * 2))


def pieces(data: st.DataObject, height: int) -> Iterator[slice]:
    """Rows in any chunks; the first is empty."""
    yield slice(0, 0)
    row = 0
    while row < height:
        stop = min(row + data.draw(st.integers(1, 5)), height)
        yield slice(row, stop)
        row = stop


def known(truth: Ids, mapped: Ids) -> tuple[Ids, Ids]:
    use = (truth != NODATA) & (mapped != NODATA)
    return tuple(np.where(use, a, NODATA).astype(np.uint8) for a in (truth, mapped))  # type: ignore[return-value]


# --- boundary IoU


@given(st.one_of(blobs(), noise()), st.integers(1, 4), st.data())
def test_boundary_iou_is_that_of_the_whole_map(pair: tuple[Ids, Ids], distance: int, data: st.DataObject) -> None:
    measure = BoundaryMeasure(CLASSES, pair[0].shape[1], distance_px=distance)
    for rows in pieces(data, len(pair[0])):
        measure.feed(pair[0][rows], pair[1][rows])
    found = measure.result()
    square = np.ones((2 * distance + 1,) * 2, dtype=bool)
    for k in range(CLASSES):
        strips = []
        for side in known(*pair):
            others = ndimage.binary_dilation((side != k) & (side != NODATA), square)
            strips.append((side == k) & others)
        assert found.intersection[k] == (strips[0] & strips[1]).sum()
        assert found.union[k] == (strips[0] | strips[1]).sum()


def test_boundary_iou_is_that_of_erosions_as_in_the_paper() -> None:
    """Cheng et al. erode the mask by a square of 3 px, d times; away from the picture's edge it is the same."""
    truth, mapped = np.zeros((2, 40, 40), dtype=np.uint8)
    truth[10:30, 8:25] = 1
    mapped[11:29, 9:30] = 1
    measure = BoundaryMeasure(2, 40, distance_px=3)
    measure.feed(truth, mapped)
    strips = [side & ~ndimage.binary_erosion(side, np.ones((3, 3)), iterations=3) for side in (truth == 1, mapped == 1)]
    assert measure.result().iou[1] == (strips[0] & strips[1]).sum() / (strips[0] | strips[1]).sum()


def test_a_perfect_map_has_perfect_borders_and_one_class_alone_has_none() -> None:
    truth = np.repeat(np.array([[0, 0, 0, 1, 1, 255]], dtype=np.uint8), 5, axis=0)
    measure = BoundaryMeasure(3, 6, distance_px=1)
    measure.feed(truth, truth)
    np.testing.assert_array_equal(measure.result().iou, [1, 1, np.nan])
    np.testing.assert_array_equal(measure.result().union, [5, 5, 0])


def test_a_strip_has_a_width() -> None:
    with pytest.raises(ConfigError, match="0 px wide"):
        BoundaryMeasure(2, 10, distance_px=0)


# --- objects


def plain_objects(truth: Ids, mapped: Ids, k: int) -> tuple[int, int, int]:
    truth, mapped = known(truth, mapped)
    (true, n), (found, m) = (ndimage.label(side == k) for side in (truth, mapped))
    matched = 0
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            both = ((true == i) & (found == j)).sum()
            matched += bool(both > 0.5 * ((true == i) | (found == j)).sum())
    return n, m, matched


@given(st.one_of(blobs(), noise()), st.data())
def test_objects_are_those_of_the_whole_map(pair: tuple[Ids, Ids], data: st.DataObject) -> None:
    measure = ObjectMeasure(CLASSES, pair[0].shape[1])
    for rows in pieces(data, len(pair[0])):
        measure.feed(pair[0][rows], pair[1][rows])
    found = measure.result()
    for k in range(CLASSES):
        assert (found.true[k], found.mapped[k], found.matched[k]) == plain_objects(*pair, k)


def test_parts_that_join_later_match_together() -> None:
    """Each prong of the map alone has too little of the region that is already closed; joined they match it."""
    truth = np.array([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=np.uint8)
    mapped = np.array([[1, 1, 0, 1, 1], [0, 1, 0, 1, 0], [0, 1, 1, 1, 0]], dtype=np.uint8)
    measure = ObjectMeasure(2, 5, of=[1])
    for row in range(3):
        measure.feed(truth[row : row + 1], mapped[row : row + 1])
    # 4 of 10 px are shared
    assert (measure.result().true[1], measure.result().mapped[1], measure.result().matched[1]) == (1, 1, 0)
    mapped[1] = [0, 0, 0, 0, 0]
    mapped[2] = 0
    truth[1, 2] = 1
    mapped[1, 2] = mapped[0, 2] = 1
    measure = ObjectMeasure(2, 5, of=[1])
    measure.feed(truth[:1], mapped[:1])
    measure.feed(truth[1:], mapped[1:])
    assert measure.result().matched[1] == 1


def test_only_the_classes_asked_for_are_objects() -> None:
    truth = np.array([[0, 1, 0, 2]], dtype=np.uint8)
    measure = ObjectMeasure(3, 4, of=[1])
    measure.feed(truth, truth)
    found = measure.result()
    np.testing.assert_array_equal([found.true, found.mapped, found.matched], [[0, 1, 0]] * 3)
    np.testing.assert_array_equal(found.f1, [np.nan, 1, np.nan])


def test_regions_held_do_not_grow_with_the_scene() -> None:
    """A sheet that runs on for ever beside many small regions, half of them found."""
    rng = np.random.default_rng(0)
    measure, held = ObjectMeasure(2, 200), []
    for _ in range(30):
        truth = np.zeros((64, 200), dtype=np.uint8)
        truth[np.kron(rng.random((8, 25)) < 0.3, np.ones((8, 8), dtype=bool))] = 1
        mapped = np.where(rng.random(truth.shape) < 0.1, 1 - truth, truth).astype(np.uint8)
        measure.feed(truth, mapped)
        held.append(measure.held)
    assert measure.result().true.sum() > 300
    assert max(held[15:]) < 1.5 * max(held[:15])
