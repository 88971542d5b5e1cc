"""Boundary IoU of each class, from rows of truth and map as they come."""

import cv2
import numpy as np

from geoseg.arrays import ByteArray, IntArray
from geoseg.classes import NODATA
from geoseg.evaluation.result import BoundaryScores


class BoundaryMeasure:
    """Counts pixels in the strips along the borders of each class, in memory of a few rows.

    A pixel lies in the strip of its class if another class is at most ``distance_px`` rows and columns away. Pixels of
    255 in truth or map, or outside the scene, are no other class: borders lie between known classes. Cheng et al. also
    count the picture's edge, and use 2 % of the diagonal of photographs as distance, but scenes have any size.

    References:
        Cheng et al., Boundary IoU, CVPR 2021: the strip inside a mask is what d erosions by a square of 3 px remove.
    """

    def __init__(self, classes: int, width: int, *, distance_px: int = 3) -> None:
        self._classes, self._distance = classes, distance_px
        self._counts = np.zeros((3, classes), dtype=np.int64)  # in both strips, in the truth's, in the map's
        # The last rows of truth and map; nothing is known above the scene.
        self._rows = np.full((2, distance_px, width), NODATA, dtype=np.uint8)

    def feed(self, truth: ByteArray, mapped: ByteArray) -> None:
        """Take the next rows of truth and map, each (h, W); 255 does not count."""
        block = np.concatenate([self._rows, both_known(truth, mapped)], axis=1)
        self._counts += self._count(block)
        self._rows = block[:, max(block.shape[1] - 2 * self._distance, 0) :]

    def result(self) -> BoundaryScores:
        """The scores of all rows fed so far, as if the scene ended here."""
        below = np.full((2, self._distance, self._rows.shape[2]), NODATA, dtype=np.uint8)
        both, true, found = self._counts + self._count(np.concatenate([self._rows, below], axis=1))
        return BoundaryScores(both, true + found - both, self._distance)

    def _count(self, block: ByteArray) -> IntArray:
        """Counts (3, K) of all but the first and last d rows of truth and map (2, h, W), which are their neighbours."""
        d = self._distance
        if block.shape[1] <= 2 * d:
            return np.zeros((3, self._classes), dtype=np.int64)
        square = np.ones((2 * d + 1,) * 2, dtype=np.uint8)
        strips = []
        for rows in block:
            lowest = cv2.erode(rows, square)
            highest = cv2.dilate(np.where(rows == NODATA, 0, rows).astype(np.uint8), square)
            strips.append(((lowest < highest) & (rows != NODATA))[d:-d])
        truth, mapped = block[:, d:-d]
        in_truth, in_map = strips
        both = in_truth & in_map & (truth == mapped)
        picks = (truth[both], truth[in_truth], mapped[in_map])
        return np.stack([np.bincount(p, minlength=self._classes) for p in picks])


def both_known(truth: ByteArray, mapped: ByteArray) -> ByteArray:
    """Truth and map, (2, h, W), with 255 in both where either is."""
    unknown = (truth == NODATA) | (mapped == NODATA)
    rows = np.stack([truth, mapped])
    rows[:, unknown] = NODATA
    return rows
