"""The stitcher's arrays in numpy, changed by compiled kernels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from geoseg.arrays import AnyArray
from geoseg.map_rows import MapRows
from geoseg.tiling import kernels
from geoseg.tiling.arrays import EXPONENTIALS, LOGIT_LIMIT, Array, Block, Pending, Placement, Wanted, cells_of_pixels


@dataclass(frozen=True, slots=True)
class Ready:
    """Finished rows that nobody waits for; see `geoseg.tiling.arrays.Pending`."""

    finished: MapRows

    def rows(self) -> MapRows:
        """The rows."""
        return self.finished


class HostArrays:
    """Makes and changes the stitcher's arrays: numpy here, tensors of a GPU in a subclass that gives the same bits."""

    def zeros(self, shape: tuple[int, ...]) -> Array:
        """Zeros, int32."""
        return np.zeros(shape, dtype=np.int32)

    def filled(self, shape: tuple[int, ...], value: int) -> Array:
        """One value everywhere, uint8."""
        return np.full(shape, value, dtype=np.uint8)

    def constant(self, values: AnyArray) -> Array:
        """The values on the device."""
        return values

    def copy(self, array: Array) -> Array:
        """A copy."""
        return array.copy()

    def join(self, above: Array, below: Array) -> Array:
        """Rows below other rows, along the last axis but one."""
        return np.concatenate([above, below], axis=-2)

    def flags(self, mask: Array) -> Array:
        """A mask as uint8, 0 or 1."""
        return mask.astype(np.uint8)

    def counts(self, masks: list[Array]) -> Array:
        """How many are true in each mask, int64."""
        return np.array([np.count_nonzero(mask) for mask in masks], dtype=np.int64)

    def add_logits(
        self, logits: Array, taper: Array, state: tuple[Array, Array, Array, Array], own: slice, here: slice, step: int
    ) -> None:
        """Add columns ``own`` of logits (K, h, w), any float type, to columns ``here`` of sums, weights, low and high.

        See `geoseg.tiling.kernels.add_logits`.
        """
        values = np.ascontiguousarray(logits, dtype=np.float32)
        width = own.stop - own.start
        kernels.add_logits(
            values, taper, own.start, *state, here.start, width, np.float32(LOGIT_LIMIT), np.float32(step)
        )

    def mean_logits(self, sums: Array, weights: Array, rows: slice) -> tuple[Array, Array]:
        """Weighted means of some rows, and where there are any; see `geoseg.tiling.kernels.mean_logits`."""
        height, width = rows.stop - rows.start, weights.shape[1]
        block = np.empty((len(sums), height, width), dtype=np.float32)
        covered = np.empty((height, width), dtype=np.uint8)
        kernels.mean_logits(sums, weights, rows.start, block, covered)
        return block, covered

    def finish(self, block: Block, place: Placement, wanted: Wanted) -> Pending:
        """Rows of the output from a block; see `geoseg.tiling.kernels.upsample`."""
        shape = place.height, place.width
        classes = np.empty(shape, dtype=np.uint8)
        confidence = np.empty(shape, dtype=np.uint8) if wanted.confidence else None
        every = np.empty((len(block.logits), *shape), dtype=np.uint8) if wanted.probabilities else None
        kernels.upsample(
            block.logits,
            block.covered,
            place.top,
            place.grid_rows,
            place.left,
            place.grid_cols,
            place.stride,
            place.fractions,
            place.first_row,
            place.first_col,
            classes,
            confidence,
            every,
            EXPONENTIALS if wanted.confidence or wanted.probabilities else None,
            np.float32(256 / place.step),
        )
        differs = block.differs[np.ix_(*cells_of_pixels(place))] if wanted.disagreement else None
        return Ready(MapRows(classes, confidence, every, differs))
