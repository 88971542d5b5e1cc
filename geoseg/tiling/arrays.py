"""Values that the stitcher exchanges with its arrays, which are numpy's (`host`) or a GPU's (`tensors`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from geoseg.arrays import Float32Array, IntArray
from geoseg.map_rows import MapRows

Array: TypeAlias = Any
"""A numpy array or a torch tensor; both are sliced and compared alike."""

LOGIT_LIMIT = 64.0
"""Logits further below a window's best one count as this: e^-64 is as good as 0."""

EXPONENTIALS: Float32Array = np.append(np.exp(-np.arange(16 * 256) / 256), 0).astype(np.float32)
"""exp(-i / 256); a table, since libraries' exponentials differ in their last bit."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Some rows of mean logits (K, n, C); whether any window covers them and whether windows differ, (n, C) uint8."""

    logits: Array
    covered: Array
    differs: Array

    @property
    def parts(self) -> tuple[Array, Array, Array]:
        """The three arrays."""
        return self.logits, self.covered, self.differs


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a block lies on the scene's grid of logits, and which pixels are wanted of it.

    Attributes:
        top: First row of the block, in logits.
        left: First column of the block, in logits.
        grid_rows: Rows of the scene's grid of logits.
        grid_cols: Columns of it.
        stride: Pixels per logit.
        first_row: First row of the output, px.
        first_col: First column of the output, px.
        height: Rows of the output, px.
        width: Columns of the output, px.
        step: Fixed-point units of one logit.
    """

    top: int
    left: int
    grid_rows: int
    grid_cols: int
    stride: int
    first_row: int
    first_col: int
    height: int
    width: int
    step: int

    @property
    def fractions(self) -> Float32Array:
        """Place of a pixel between two logits, (stride,)."""
        if self.stride == 1:
            return np.zeros(1, dtype=np.float32)
        return ((np.arange(self.stride) + 0.5) / self.stride).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Layers to make beside the classes; see `geoseg.map_rows.MapRows`."""

    confidence: bool = False
    probabilities: bool = False
    disagreement: bool = False


class Pending(Protocol):
    """Finished rows on their way from the device, so that it may be given other work meanwhile."""

    def rows(self) -> MapRows:
        """Wait for the rows; invalid pixels are not marked yet."""


def cells_of_pixels(place: Placement) -> tuple[IntArray, IntArray]:
    """Rows and columns of a block that the output's pixels belong to, (height,) and (width,)."""
    rows = np.arange(place.first_row, place.first_row + place.height) // place.stride - place.top
    cols = np.arange(place.first_col, place.first_col + place.width) // place.stride - place.left
    return rows, cols
