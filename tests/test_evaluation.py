"""Measures of a map against the truth, each against a plain computation on the whole map at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage, sparse

from geoseg.classes import NODATA
from geoseg.evaluation.blocks import BlockMeasure, Blocks, CaseFinder, estimate_areas, join_blocks
from geoseg.evaluation.boundary import BoundaryMeasure
from geoseg.evaluation.calibration import calibration, choose_blocks, count_levels, find_temper
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


def test_borders_of_a_perfect_map_and_of_a_single_class() -> None:
    truth = np.repeat(np.array([[0, 0, 0, 1, 1, 255]], dtype=np.uint8), 5, axis=0)
    measure = BoundaryMeasure(3, 6, distance_px=1)
    measure.feed(truth, truth)
    np.testing.assert_array_equal(measure.result().iou, [1, 1, np.nan])
    np.testing.assert_array_equal(measure.result().union, [5, 5, 0])


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


# --- blocks, and the ones to look at


@given(st.one_of(blobs(), noise()), st.integers(1, 7), st.data())
def test_blocks_hold_the_pairs_of_their_pixels(pair: tuple[Ids, Ids], side: int, data: st.DataObject) -> None:
    truth, mapped = pair
    height, width = truth.shape
    pixel_m2 = np.arange(1.0, height + 1)
    measure = BlockMeasure(CLASSES, pixel_m2, width, side=side)
    for rows in pieces(data, height):
        measure.feed(truth[rows], mapped[rows])
    found = measure.result()
    wanted = []
    for row in range(0, height, side):
        for col in range(0, width, side):
            t, m = (a[row : row + side, col : col + side] for a in pair)
            use = (t != NODATA) & (m != NODATA)
            wanted.append((row, col, use.sum(), pixel_m2[row : row + side].mean()))
    np.testing.assert_allclose(np.array([found.row, found.col, found.labelled, found.pixel_m2]).T, wanted)
    for t in range(CLASSES):
        for m in range(CLASSES):
            assert found.matrix[t, m] == ((truth == t) & (mapped == m)).sum()
    twice = join_blocks([found, found])
    np.testing.assert_array_equal(twice.matrix, 2 * found.matrix)
    np.testing.assert_array_equal(twice.labelled, np.tile(found.labelled, 2))


@given(st.integers(0, 2**31), st.integers(0, 5), st.data())
def test_worst_and_best_blocks_are_those_of_the_whole_map(seed: int, most: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    truth = np.kron(rng.choice([0, 1, NODATA], size=(5, 4)), np.ones((4, 4), dtype=int)).astype(np.uint8)
    shares = np.kron(rng.choice([0, 0.1, 0.5], size=(5, 4)), np.ones((4, 4)))
    mapped = np.where(rng.random(truth.shape) < shares, 2, np.where(truth == NODATA, 0, truth)).astype(np.uint8)
    finder = CaseFinder(most)
    measure = BlockMeasure(3, np.ones(20), 16, finder=finder, side=4)
    for rows in pieces(data, 20):
        measure.feed(truth[rows], mapped[rows])
    worst, best = finder.cases()
    errors = {}
    for row in range(0, 20, 4):
        for col in range(0, 16, 4):
            t, m = truth[row : row + 4, col : col + 4], mapped[row : row + 4, col : col + 4]
            if (t != NODATA).any():
                errors[row, col] = (t != m).mean()
    number = min(most, max(len(errors) // 2, 1))
    assert [c.error for c in worst] == sorted((e for e in errors.values() if e > 0), reverse=True)[:number]
    assert len(best) <= number
    assert [c.error for c in best] == sorted(c.error for c in best)
    assert not {(c.window.row, c.window.col) for c in worst} & {(c.window.row, c.window.col) for c in best}
    for c in (*worst, *best):
        assert errors[c.window.row, c.window.col] == pytest.approx(c.error)
        np.testing.assert_array_equal(
            c.mapped, mapped[c.window.row : c.window.row + 4, c.window.col : c.window.col + 4]
        )


# --- areas


def one_block_a_pixel(sample: npt.NDArray[np.int64]) -> Blocks:
    """Pixels drawn one by one; ``sample`` counts them, rows = truth."""
    counts = np.repeat(np.eye(sample.size, dtype=np.int64), sample.ravel(), axis=0)
    zeros = np.zeros(len(counts), dtype=np.int64)
    return Blocks(zeros, zeros, np.ones(len(counts)), sparse.csr_array(counts))


def test_areas_are_those_of_the_published_example() -> None:
    """Olofsson et al. 2014, section 5: deforestation, gain of forest, stable forest, stable other land; 30 m pixels."""
    sample = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]]).T  # there rows are the map
    mapped_m2 = np.array([200_000, 150_000, 3_200_000, 6_450_000]) * 900.0
    found = estimate_areas(one_block_a_pixel(sample), mapped_m2)
    np.testing.assert_allclose(found.estimated_ha, [21_158, 11_686, 285_770, 581_386], atol=1)
    # Theirs divides by n - 1 in each stratum, 75 pixels in the smallest.
    np.testing.assert_allclose(found.margin_ha, [6_158, 3_756, 15_510, 16_282], rtol=0.01)


def test_where_everything_is_labelled_the_estimate_is_the_truth() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 3, size=(40, 30)).astype(np.uint8)
    mapped = np.where(rng.random(truth.shape) < 0.3, 0, truth).astype(np.uint8)
    measure = BlockMeasure(3, np.full(40, 2.0), 30, side=8)
    measure.feed(truth, mapped)
    found = estimate_areas(measure.result(), np.bincount(mapped.ravel(), minlength=3) * 2.0)
    np.testing.assert_allclose(found.estimated_ha * 1e4, np.bincount(truth.ravel(), minlength=3) * 2.0)
    np.testing.assert_allclose(found.mapped_ha.sum(), found.estimated_ha.sum())


def test_areas_are_unknown_if_a_mapped_class_has_no_labels() -> None:
    sample = np.array([[5, 1, 0], [1, 5, 0], [0, 0, 0]])
    found = estimate_areas(one_block_a_pixel(sample), np.array([100.0, 100.0, 10.0]))
    assert np.isnan(found.estimated_ha).all() and np.isnan(found.margin_ha).all()
    np.testing.assert_allclose(found.mapped_ha, [0.01, 0.01, 0.001])


def test_two_blocks_have_no_interval() -> None:
    measure = BlockMeasure(2, np.ones(4), 8, side=4)
    truth = np.tile(np.array([0, 0, 0, 1], dtype=np.uint8), (4, 2))
    measure.feed(truth, np.zeros_like(truth))
    found = estimate_areas(measure.result(), np.array([32.0, 0]))
    np.testing.assert_allclose(found.estimated_ha * 1e4, [24, 8])
    assert np.isnan(found.margin_ha).all()


def test_intervals_cover_the_truth_when_errors_are_clustered() -> None:
    """Blocks drawn from a map whose errors differ from block to block; pixels alone would promise too much."""
    rng = np.random.default_rng(5)
    population, drawn, pixels = 4000, 30, 400
    one = rng.beta(0.6, 2, size=population)  # share of each block that is class 1
    missed, extra = rng.beta(1, 3, size=population), rng.beta(1, 8, size=population)
    per_block = np.zeros((population, 2, 2), dtype=np.int64)  # row = truth
    per_block[:, 1, 0] = pixels * one * missed
    per_block[:, 1, 1] = pixels * one - per_block[:, 1, 0]
    per_block[:, 0, 1] = pixels * (1 - one) * extra
    per_block[:, 0, 0] = pixels - per_block.sum(axis=(1, 2))
    whole = per_block.sum(axis=0)
    true, mapped = whole.sum(axis=1), whole.sum(axis=0)
    hits = hits_of_pixels = 0
    for _ in range(400):
        chosen = per_block[rng.choice(population, drawn, replace=False)].reshape(drawn, 4)
        zeros = np.zeros(drawn, dtype=np.int64)
        blocks = Blocks(zeros, zeros, np.ones(drawn), sparse.csr_array(chosen))
        found = estimate_areas(blocks, mapped * 1e4)
        off = abs(found.estimated_ha[1] - true[1])
        hits += off < found.margin_ha[1]
        share = blocks.matrix[1] / blocks.matrix.sum(axis=0)
        variance = (mapped**2 * share * (1 - share) / (blocks.matrix.sum(axis=0) - 1)).sum()  # equation 10
        hits_of_pixels += off < 1.96 * np.sqrt(variance)
    assert 0.9 < hits / 400 < 0.98
    assert hits_of_pixels / 400 < 0.5


# --- calibration


def classified(rng: np.random.Generator, count: int, classes: int) -> tuple[npt.NDArray[np.float32], Ids]:
    """Logits that are right as they are, and classes drawn from them."""
    logits = 3 * rng.standard_normal((count, classes))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = (shares.cumsum(axis=1) > rng.random((count, 1))).argmax(axis=1)
    return logits.astype(np.float32), truth.astype(np.uint8)


@pytest.mark.parametrize("classes", [2, 6])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7, 4.0])
def test_a_known_temperature_is_found(temperature: float, classes: int) -> None:
    logits, truth = classified(np.random.default_rng(classes), 40_000, classes)
    assert find_temper(logits * np.float32(temperature), truth)[0] == pytest.approx(temperature, rel=0.03)


def test_the_temperature_has_the_least_loss() -> None:
    logits, truth = classified(np.random.default_rng(3), 2000, 4)
    logits *= np.float32(2.3)

    def loss(temperature: float) -> float:
        z = logits.astype(np.float64) / temperature
        return float((np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), truth]).mean())

    found, _ = find_temper(logits, truth)
    assert loss(found) < min(loss(found * 1.01), loss(found / 1.01))
    assert find_temper(logits + 100, truth)[0] == pytest.approx(found, rel=1e-3)


def test_the_error_falls_with_the_temperature() -> None:
    logits, truth = classified(np.random.default_rng(5), 20_000, 5)
    temperature, error = find_temper(logits * np.float32(3), truth)
    assert temperature == pytest.approx(3, rel=0.03)
    assert error < 0.02  # drawn from these very probabilities
    sharp = 1 / np.exp(3 * (logits - logits.max(axis=1, keepdims=True))).sum(axis=1)
    before = float(abs(sharp.mean() - (logits.argmax(1) == truth).mean()))
    assert before > 0.1  # the least that the error can be without it
    assert np.isnan(find_temper(logits[:0], truth[:0])).all()


def test_temperature_of_a_perfect_model_and_of_no_pixels() -> None:
    logits = np.eye(3, dtype=np.float32)
    assert find_temper(logits, np.arange(3, dtype=np.uint8))[0] == pytest.approx(0.05, rel=1e-3)
    assert np.isnan(find_temper(logits[:0], np.zeros(0, dtype=np.uint8))).all()


@given(st.integers(0, 2**31), st.data())
def test_reliability_counts_pixels_by_their_confidence(seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    truth, mapped = (rng.choice([0, 1, NODATA], size=(12, 9)).astype(np.uint8) for _ in range(2))
    confidence = np.where(mapped == NODATA, 255, rng.integers(0, 255, size=(12, 9))).astype(np.uint8)
    halves = np.zeros((2, 255, 2), dtype=np.int64)
    for i, rows in enumerate(pieces(data, 12)):
        count_levels(truth[rows], mapped[rows], confidence[rows], halves[i % 2])
    found = calibration(halves.sum(axis=0), 1.5, 0.25)
    use = (truth != NODATA) & (mapped != NODATA)
    sure, right = confidence[use] / 254, (truth == mapped)[use]
    count, edges = np.histogram(sure, bins=20, range=(0, 1))
    np.testing.assert_array_equal(found.count, count)
    for i in range(20):
        here = (sure >= edges[i]) & ((sure < edges[i + 1]) | (i == 19))
        assert found.correct[i] == right[here].sum()
        assert found.confidence[i] == pytest.approx(sure[here].sum())
    assert (found.temperature, found.tempered_error) == (1.5, 0.25)


def test_the_sample_of_blocks_is_fixed_and_bounded() -> None:
    def scene(side: int) -> Blocks:
        measure = BlockMeasure(2, np.ones(side), side, side=8)
        truth = np.zeros((side, side), dtype=np.uint8)
        truth[:8] = NODATA
        measure.feed(truth, np.zeros_like(truth))
        return measure.result()

    scenes = [scene(64), scene(16), scene(96)]
    chosen = choose_blocks(scenes)
    assert chosen == choose_blocks(scenes)
    assert sum(map(len, chosen)) == 64 and all(chosen[i] for i in (0, 2))
    assert all(window.row >= 8 for windows in chosen for window in windows)
    assert [len(windows) for windows in choose_blocks([scene(16), scene(8)])] == [2, 0]
