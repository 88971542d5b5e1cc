"""What `geoseg.stitch` does with numbers on a GPU: the arithmetic of `geoseg.stitch.kernels` in tensor operations.

Each float32 operation is one eager call, so that no compiler joins a product and a sum into one rounding: both files
give the same bits, which a test checks on a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor


def add_logits(
    logits: Tensor, taper: Tensor, sums: Tensor, weights: Tensor, low: Tensor, high: Tensor, limit: float, step: float
) -> None:
    """See `geoseg.stitch.kernels.add_logits`."""
    logits = logits.float()
    best = torch.where(logits.isnan(), -torch.inf, logits).amax(0)
    below = torch.where(logits >= best, 0.0, logits - best)
    below = torch.where(below > -limit, below, -limit)
    fixed = (below * step).round().to(torch.int32)
    sums += fixed * taper
    weights += taper
    own = fixed.argmax(0).to(torch.uint8)
    torch.minimum(low, own, out=low)
    torch.maximum(high, own, out=high)


def mean_logits(sums: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """See `geoseg.stitch.kernels.mean_logits`."""
    return sums.float() / weights.clamp(min=1).float(), weights > 0


def upsample(
    block: Tensor,
    covered: Tensor,
    *,
    top: int,
    cell_rows: int,
    left: int,
    cell_cols: int,
    stride: int,
    fractions: Tensor,
    first_row: int,
    first_col: int,
    height: int,
    width: int,
) -> Tensor:
    """Interpolated logits (K, height, width); see `geoseg.stitch.kernels.upsample`."""
    if stride == 1:
        rows, cols = slice(first_row - top, first_row - top + height), slice(first_col - left, first_col - left + width)
        return block[:, rows, cols]
    row, down = _places(first_row, height, stride, fractions)
    col, right = _places(first_col, width, stride, fractions)
    above, below = row.clamp(0, cell_rows - 1) - top, (row + 1).clamp(0, cell_rows - 1) - top
    first, second = col.clamp(0, cell_cols - 1) - left, (col + 1).clamp(0, cell_cols - 1) - left
    there_above, there_below = covered[above], covered[below]
    line = _between(block[:, above], block[:, below], there_above, there_below, down[:, None])
    seen = there_above | there_below
    return _between(line[:, :, first], line[:, :, second], seen[:, first], seen[:, second], right)


def shares(logits: Tensor, exponentials: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Exponentials (K, h, w) of the logits below the greatest, and their sum (h, w), as the compiled code adds them."""
    places = ((logits.amax(0) - logits) * scale + 0.5).to(torch.int32).clamp(max=len(exponentials) - 1)
    parts = exponentials[places]
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
