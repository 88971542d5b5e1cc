from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from geoseg.network.metrics import Scores, confusion_matrix

Ids = npt.NDArray[np.uint8]
CLASSES = 4


def maps() -> st.SearchStrategy[tuple[Ids, Ids]]:
    ids = st.sampled_from([0, 1, 2, 3, 255])
    shape = hnp.array_shapes(min_dims=2, max_dims=2, max_side=8)
    return shape.flatmap(lambda s: st.tuples(*[hnp.arrays(np.uint8, s, elements=ids)] * 2))


@given(maps())
def test_the_matrix_counts_pairs_of_truth_and_map(pair: tuple[Ids, Ids]) -> None:
    truth, mapped = pair
    matrix = confusion_matrix(torch.from_numpy(truth), torch.from_numpy(mapped), CLASSES)
    assert matrix.dtype == torch.int64
    for t in range(CLASSES):
        for m in range(CLASSES):
            assert matrix[t, m] == ((truth == t) & (mapped == m)).sum()


@given(maps(), maps())
def test_matrices_of_parts_add_up(a: tuple[Ids, Ids], b: tuple[Ids, Ids]) -> None:
    def matrix(truth: Ids, mapped: Ids) -> torch.Tensor:
        return confusion_matrix(torch.from_numpy(truth), torch.from_numpy(mapped), CLASSES)

    together = matrix(*(np.concatenate([x.ravel(), y.ravel()]) for x, y in zip(a, b, strict=True)))
    assert torch.equal(matrix(*a) + matrix(*b), together)


@given(maps())
def test_scores_are_those_of_sets_of_pixels(pair: tuple[Ids, Ids]) -> None:
    truth, mapped = pair
    matrix = confusion_matrix(torch.from_numpy(truth), torch.from_numpy(mapped), CLASSES)
    scores = Scores(matrix.numpy())
    counted = (truth != 255) & (mapped != 255)
    for k in range(CLASSES):
        t, m = (truth == k) & counted, (mapped == k) & counted
        both, either = (t & m).sum(), (t | m).sum()
        for found, part, whole in (
            (scores.iou[k], both, either),
            (scores.precision[k], both, m.sum()),
            (scores.recall[k], both, t.sum()),
            (scores.f1[k], 2 * both, t.sum() + m.sum()),
        ):
            np.testing.assert_allclose(found, part / whole if whole else np.nan)
    present = [k for k in range(CLASSES) if not np.isnan(scores.iou[k])]
    # A mean over one class is 1 whatever that class is: it says nothing.
    several = len(present) > 1
    np.testing.assert_allclose(scores.miou, scores.iou[present].mean() if several else np.nan)
    np.testing.assert_allclose(scores.mean_f1, scores.f1[present].mean() if several else np.nan)
    np.testing.assert_allclose(
        scores.accuracy, (truth == mapped)[counted].mean() if counted.any() else np.nan, equal_nan=True
    )


@given(maps())
def test_f1_is_the_harmonic_mean_and_follows_from_the_iou(pair: tuple[Ids, Ids]) -> None:
    scores = Scores(confusion_matrix(*(torch.from_numpy(a) for a in pair), CLASSES).numpy())
    np.testing.assert_allclose(scores.f1, 2 * scores.iou / (1 + scores.iou))
    p, r = scores.precision, scores.recall
    known = (p + r) > 0
    np.testing.assert_allclose(scores.f1[known], (2 * p * r / np.where(known, p + r, 1))[known])


def test_a_perfect_map_scores_one_and_an_empty_count_nan() -> None:
    truth = torch.tensor([0, 1, 2, 255])
    perfect = Scores(confusion_matrix(truth, truth, 3).numpy())
    assert (perfect.miou, perfect.accuracy, perfect.mean_f1) == (1, 1, 1)
    nothing = Scores(np.zeros((3, 3), dtype=np.int64))
    assert np.isnan([nothing.miou, nothing.accuracy, nothing.mean_f1]).all()


def test_one_class_alone_has_no_mean_score() -> None:
    """Labels and map are all of class 1 of 2: IoU 1, and nothing was distinguished."""
    scores = Scores(np.array([[0, 0], [0, 9]]))
    np.testing.assert_array_equal(scores.iou, [np.nan, 1])
    assert np.isnan([scores.miou, scores.mean_f1]).all()
    assert scores.accuracy == 1
    assert Scores(np.array([[0, 0], [1, 8]])).miou == pytest.approx((0 + 8 / 9) / 2)


def test_an_absent_class_does_not_lower_the_mean() -> None:
    scores = Scores(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
    assert np.isnan(scores.iou[2])
    assert scores.miou == pytest.approx((3 / 4 + 4 / 5) / 2)


@given(maps())
def test_weighted_iou_and_mean_accuracy_by_their_formulas(pair: tuple[Ids, Ids]) -> None:
    truth, mapped = pair
    scores = Scores(confusion_matrix(*(torch.from_numpy(a) for a in pair), CLASSES).numpy())
    counted = (truth != 255) & (mapped != 255)
    present = [k for k in range(CLASSES) if (truth[counted] == k).any()]
    if not present:
        assert np.isnan([scores.frequency_weighted_iou, scores.mean_accuracy]).all()
        return
    # Each true pixel brings the IoU of its class.
    assert scores.frequency_weighted_iou == pytest.approx(np.mean([scores.iou[k] for k in truth[counted]]))
    shares = [(mapped[counted & (truth == k)] == k).mean() for k in present]
    assert scores.mean_accuracy == pytest.approx(np.mean(shares))
