"""Boundary IoU of each class, from rows of truth and map as they come."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from geoseg.arrays import ByteArray
from geoseg.classes import NODATA
from geoseg.evaluation.result import BoundaryScores

DISTANCE_PX = 3
"""Width of the strips. Cheng et al. take 2 % of the diagonal of photographs; scenes have any size."""


class BoundaryMeasure:
    """Counts pixels in the strips along the borders of each class, in memory of a few rows.

    A pixel lies in the strip of its class where another class is at most ``distance_px`` rows and columns away. What
    does not count (255 in truth or map) is no other class, nor is what lies past the scene's edge: only a change from
    one known class to another is a border. Cheng et al. also take the picture's edge for one.

    Args:
        classes: K.
        width: Width of the scene, px.
        distance_px: Width of the strips, px; at least 1.

    References:
        Cheng et al., Boundary IoU, CVPR 2021: the strip inside a mask is what d erosions by a square of 3 px remove.
    """

    def __init__(self, classes: int, width: int, *, distance_px: int = DISTANCE_PX) -> None:
        self._classes, self._distance = classes, distance_px
        self._counts = np.zeros((3, classes), dtype=np.int64)  # in both strips, in the truth's, in the map's
        # The rows seen last of truth and map; nothing is known above the scene.
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

    def _count(self, block: ByteArray) -> npt.NDArray[np.int64]:
        """Counts (3, K) of all but the first and last d rows of truth and map (2, h, W), which are their neighbours."""
        d = self._distance
        if block.shape[1] <= 2 * d:
            return np.zeros((3, self._classes), dtype=np.int64)
        truth, mapped = block[:, d:-d]
        in_truth, in_map = (near_other_class(side, d) for side in block)
        both = in_truth & in_map & (truth == mapped)
        picks = (truth[both], truth[in_truth], mapped[in_map])
        return np.stack([np.bincount(p, minlength=self._classes) for p in picks])


def both_known(truth: ByteArray, mapped: ByteArray) -> ByteArray:
    """Truth and map, (2, h, W), with 255 in both where either is."""
    unknown = (truth == NODATA) | (mapped == NODATA)
    rows = np.stack([truth, mapped])
    rows[:, unknown] = NODATA
    return rows


def near_other_class(rows: ByteArray, distance: int) -> npt.NDArray[np.bool_]:
    """Where a known pixel has another known class within a distance, of all but the first and last ``distance`` rows.

    Args:
        rows: Class ids (h, W), 255 for unknown.
        distance: In rows and columns, px.

    Returns:
        (h − 2 · distance, W).
    """
    padded = np.pad(rows, ((0, 0), (distance, distance)), constant_values=NODATA)
    lowest = _extreme(padded, distance, np.minimum)
    highest = _extreme(np.where(padded == NODATA, 0, padded).astype(np.uint8), distance, np.maximum)
    differs: npt.NDArray[np.bool_] = (lowest < highest) & (rows[distance : len(rows) - distance] != NODATA)
    return differs


def _extreme(values: ByteArray, distance: int, extreme: np.ufunc) -> ByteArray:
    """The least or greatest value of each square of 2 · distance + 1 px."""
    for axis in (0, 1):
        values = np.moveaxis(values, axis, 0)
        size, reach = 2 * distance + 1, 1
        wanted = len(values) - size + 1
        while reach < size:  # what a value stands for doubles, then fills up
            step = min(reach, size - reach)
            values = extreme(values[: len(values) - step], values[step:])
            reach += step
        values = np.moveaxis(values[:wanted], 0, axis)
    return values
