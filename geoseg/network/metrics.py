"""Scores of a class map against the truth, all from one confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from geoseg.classes import NODATA

if TYPE_CHECKING:
    from torch import Tensor

Matrix = npt.NDArray[np.int64]


def confusion_matrix(labels: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """Counts (K, K) int64 on the inputs' device: row = truth, column = prediction.

    Pixels whose label or prediction is 255 do not count.

    Args:
        labels: Class ids of any shape, integer.
        predictions: Class ids of the same shape.
        classes: K.
    """
    labels, predictions = labels.flatten().long(), predictions.flatten().long()
    counted = (labels != NODATA) & (predictions != NODATA)
    index = labels[counted] * classes + predictions[counted]
    return index.bincount(minlength=classes**2).view(classes, classes)


def count_pixels(truth: npt.NDArray[np.uint8], mapped: npt.NDArray[np.uint8], classes: int) -> Matrix:
    """`confusion_matrix` of arrays."""
    counted = (truth != NODATA) & (mapped != NODATA)
    index = truth[counted] * np.int64(classes) + mapped[counted]
    return np.bincount(index, minlength=classes**2).reshape(classes, classes)


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of one confusion matrix (K, K), rows = truth. Classes found in neither truth nor map have NaN.

    Attributes:
        matrix: The counts, px.
    """

    matrix: Matrix

    @property
    def iou(self) -> npt.NDArray[np.float64]:
        """Intersection over union per class, (K,) in [0, 1]."""
        hits = np.diag(self.matrix)
        return ratio(hits, self.matrix.sum(0) + self.matrix.sum(1) - hits)

    @property
    def precision(self) -> npt.NDArray[np.float64]:
        """Share of the mapped pixels of a class that are right, (K,) in [0, 1]."""
        return ratio(np.diag(self.matrix), self.matrix.sum(0))

    @property
    def recall(self) -> npt.NDArray[np.float64]:
        """Share of the true pixels of a class that are mapped as such, (K,) in [0, 1]."""
        return ratio(np.diag(self.matrix), self.matrix.sum(1))

    @property
    def class_accuracy(self) -> npt.NDArray[np.float64]:
        """`recall` under the name that mmsegmentation gives it ("Acc"), (K,) in [0, 1]."""
        return self.recall

    @property
    def f1(self) -> npt.NDArray[np.float64]:
        """Harmonic mean of precision and recall (the Dice coefficient) per class, (K,) in [0, 1]."""
        return ratio(2 * np.diag(self.matrix), self.matrix.sum(0) + self.matrix.sum(1))

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur in truth or map; NaN where fewer than two do: of one it is 1 always."""
        return known_mean(self.iou, least=2)

    @property
    def frequency_weighted_iou(self) -> float:
        """Mean IoU weighted by each class's share of the true pixels; NaN where nothing was counted.

        References:
            Long et al., Fully convolutional networks for semantic segmentation, CVPR 2015.
        """
        true = self.matrix.sum(1)
        return float(ratio((true * np.nan_to_num(self.iou)).sum(), true.sum()))

    @property
    def mean_accuracy(self) -> float:
        """Mean recall over the classes that occur in the truth (mmsegmentation's "mAcc"); NaN where none does."""
        return known_mean(self.recall)

    @property
    def mean_f1(self) -> float:
        """Mean F1 over the classes that occur in truth or map; NaN where fewer than two do."""
        return known_mean(self.f1, least=2)

    @property
    def accuracy(self) -> float:
        """Share of pixels mapped right; NaN where nothing was counted."""
        return float(ratio(np.trace(self.matrix), self.matrix.sum()))


def ratio(part: npt.ArrayLike, whole: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Part over whole, elementwise; NaN where the whole is 0."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    ratio = np.full(whole.shape, np.nan)
    np.divide(part, whole, out=ratio, where=whole > 0)
    return ratio


def known_mean(values: npt.NDArray[Any], least: int = 1) -> float:
    """Mean of the values that are not NaN; NaN of fewer than ``least``."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size >= least else float("nan")
