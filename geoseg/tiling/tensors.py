"""The stitcher's arrays on a GPU: the arithmetic of `geoseg.tiling.kernels` in tensor operations.

Each float32 operation is one eager call, so that no compiler joins a product and a sum into one rounding: both files
give the same bits, which a test checks on a CPU.
"""

import torch
from torch import Tensor

from geoseg.arrays import AnyArray
from geoseg.map_rows import CONFIDENCE_SCALE, MapRows
from geoseg.tiling.arrays import EXPONENTIALS, LOGIT_LIMIT, Array, Block, HostArrays, Pending, fractions
from geoseg.tiling.kernels import Placement, Sums


class TensorArrays(HostArrays):
    """The stitcher's arrays as tensors of a device; see `HostArrays` for the methods."""

    library = torch

    def __init__(self, channels: tuple[int, ...], device: str) -> None:
        self._device = torch.device(device)
        super().__init__(channels)
        self._exponentials = torch.from_numpy(EXPONENTIALS).to(self._device)

    def constant(self, values: AnyArray) -> Tensor:
        """The values on the device."""
        return torch.from_numpy(values).to(self._device)

    def copy(self, array: Array) -> Tensor:
        """A copy."""
        return torch.clone(array)

    def add_logits(self, logits: Array, taper: Array, sums: Sums, own: slice, here: slice, step: int) -> None:
        """Add columns of a window's logits."""
        total, weights, low, high = (array[..., here] for array in sums)
        logits, taper = logits[..., own].float(), taper[:, own]
        best = torch.where(logits.isnan(), -torch.inf, logits).amax(0)
        below = torch.where(logits >= best, 0.0, logits - best)
        below = torch.where(below > -LOGIT_LIMIT, below, -LOGIT_LIMIT)
        fixed = (below * step).round().to(torch.int32)
        total += fixed * taper
        weights += taper
        winner = self.mapped[fixed.argmax(0)].to(torch.uint8)
        torch.minimum(low, winner, out=low)
        torch.maximum(high, winner, out=high)

    def mean_logits(self, sums: Sums, rows: slice) -> tuple[Tensor, Tensor]:
        """Weighted means, and where there are any."""
        weights = sums.weights[rows]
        return sums.logits[:, rows].float() / weights.clamp(min=1).float(), weights > 0

    def upsample(
        self, logits: Array, block: Block, place: Placement, *, confidence: bool = False, probabilities: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Classes, and their probability and that of every class where wanted."""
        fine = self._interpolated(logits, block.covered.bool(), place)
        sure = every = None
        if confidence or probabilities:
            parts, total = self._shares(fine, 256 / place.step)
            # Not the number over a tensor: torch would multiply by its reciprocal.
            sure = (torch.full_like(total, CONFIDENCE_SCALE) / total).round().to(torch.uint8) if confidence else None
            every = (parts * CONFIDENCE_SCALE / total).round().to(torch.uint8) if probabilities else None
        return fine.argmax(0).to(torch.uint8), sure, every

    def pending(self, *layers: Tensor | None) -> Pending:
        """Layers of rows being copied to the host."""
        copied = [None if layer is None else layer.to("cpu", non_blocking=True) for layer in layers]
        arrived = None
        if self._device.type == "cuda":
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()

        def rows() -> MapRows:
            if arrived is not None:
                arrived.synchronize()
            return MapRows(*(None if layer is None else layer.numpy() for layer in copied))  # type: ignore[arg-type]

        return rows

    def _interpolated(self, block: Tensor, covered: Tensor, place: Placement) -> Tensor:
        """Interpolated logits (K, height, width)."""
        if place.stride == 1:
            row, col = place.first_row - place.top, place.first_col - place.left
            return block[:, row : row + place.height, col : col + place.width]
        between = self.constant(fractions(place.stride))
        cell_row, down = _places(place.first_row, place.height, place.stride, between)
        cell_col, right = _places(place.first_col, place.width, place.stride, between)
        last_row, last_col = place.grid_rows - 1, place.grid_cols - 1
        above, below = ((cell_row + i).clamp(0, last_row) - place.top for i in (0, 1))
        first, second = ((cell_col + i).clamp(0, last_col) - place.left for i in (0, 1))
        there_above, there_below = covered[above], covered[below]
        line = _between(block[:, above], block[:, below], there_above, there_below, down[:, None])
        seen = there_above | there_below
        return _between(line[:, :, first], line[:, :, second], seen[:, first], seen[:, second], right)

    def _shares(self, logits: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Exponentials (K, h, w) of the logits below the greatest, and their sum (h, w), as the kernels add them."""
        places = ((logits.amax(0) - logits) * scale + 0.5).to(torch.int32).clamp(max=len(self._exponentials) - 1)
        parts = self._exponentials[places]
        total = torch.zeros_like(parts[0])
        for part in parts:  # in the order of the classes: a sum of many floats depends on it
            total = total + part
        return parts, total


def _places(first: int, count: int, stride: int, fractions: Tensor) -> tuple[Tensor, Tensor]:
    moved = torch.arange(first, first + count, device=fractions.device) - stride // 2
    cell = torch.div(moved, stride, rounding_mode="floor")
    return cell, fractions[moved - cell * stride]


def _between(a: Tensor, b: Tensor, there_a: Tensor, there_b: Tensor, fraction: Tensor) -> Tensor:
    a = torch.where(there_a, a, b)
    b = torch.where(there_b, b, a)
    return a + (b - a) * fraction
