"""Scores of a class map against the truth, all from one confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from geoseg.arrays import ByteArray, FloatArray, IntArray
from geoseg.classes import NODATA

if TYPE_CHECKING:
    from torch import Tensor


def confusion_matrix(labels: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """Counts (K, K) int64 on the inputs' device: row = truth, column = prediction; without pixels that are 255 in one.

    ``labels`` and ``predictions`` are class ids of any one shape.
    """
    labels, predictions = labels.flatten().long(), predictions.flatten().long()
    counted = (labels != NODATA) & (predictions != NODATA)
    index = labels[counted] * classes + predictions[counted]
    return index.bincount(minlength=classes**2).view(classes, classes)


def count_pixels(truth: ByteArray, mapped: ByteArray, classes: int) -> IntArray:
    """`confusion_matrix` of arrays."""
    counted = (truth != NODATA) & (mapped != NODATA)
    index = truth[counted] * np.int64(classes) + mapped[counted]
    return np.bincount(index, minlength=classes**2).reshape(classes, classes)


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of one confusion matrix (K, K), rows = truth; NaN for classes in neither truth nor map."""

    matrix: IntArray  # the counts, px

    @property
    def iou(self) -> FloatArray:
        """Intersection over union per class, (K,) in [0, 1]."""
        hits = np.diag(self.matrix)
        return ratio(hits, self.matrix.sum(0) + self.matrix.sum(1) - hits)

    @property
    def precision(self) -> FloatArray:
        """Share of a class's mapped pixels that are correct, (K,) in [0, 1]."""
        return ratio(np.diag(self.matrix), self.matrix.sum(0))

    @property
    def recall(self) -> FloatArray:
        """Share of a class's true pixels that are mapped as such, (K,) in [0, 1]; mmsegmentation's "Acc"."""
        return ratio(np.diag(self.matrix), self.matrix.sum(1))

    @property
    def f1(self) -> FloatArray:
        """Harmonic mean of precision and recall (the Dice coefficient) per class, (K,) in [0, 1]."""
        return ratio(2 * np.diag(self.matrix), self.matrix.sum(0) + self.matrix.sum(1))

    @property
    def miou(self) -> float:
        """Mean IoU over the classes in truth or map; NaN for fewer than two, because for one it is always 1."""
        return known_mean(self.iou, least=2)

    @property
    def frequency_weighted_iou(self) -> float:
        """Mean IoU weighted by each class's share of the true pixels; NaN if nothing was counted.

        References:
            Long et al., Fully convolutional networks for semantic segmentation, CVPR 2015.
        """
        true = self.matrix.sum(1)
        return float(ratio((true * np.nan_to_num(self.iou)).sum(), true.sum()))

    @property
    def mean_accuracy(self) -> float:
        """Mean recall over the classes in the truth (mmsegmentation's "mAcc"); NaN if there is none."""
        return known_mean(self.recall)

    @property
    def mean_f1(self) -> float:
        """Mean F1 over the classes in truth or map; NaN for fewer than two."""
        return known_mean(self.f1, least=2)

    @property
    def accuracy(self) -> float:
        """Share of pixels that are mapped correctly; NaN if nothing was counted."""
        return float(ratio(np.trace(self.matrix), self.matrix.sum()))


def ratio(part: npt.ArrayLike, whole: npt.ArrayLike) -> FloatArray:
    """Part over whole, elementwise; NaN if the whole is 0."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    ratio = np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan)
    np.divide(part, whole, out=ratio, where=whole > 0)
    return ratio


def known_mean(values: npt.NDArray[Any], least: int = 1) -> float:
    """Mean of the values that are not NaN; NaN of fewer than ``least``."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size >= least else float("nan")
