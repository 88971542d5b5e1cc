"""The second half of a block: 1×1, 3×3 depthwise, GELU, 1×1, residual.

The first 1×1 is a kernel of its own (`linear.linear`). The rest is one, so the hidden features, 4 or 8 times as wide as
the block's, are written once and read once. Fusing the first 1×1 as well would save those two passes, but the 3×3 needs
its result at neighbours: without shared memory one can index, that is nine products instead of one. At C = 32 the
passes take 0.24 ns per pixel at 4.3 TB/s, the eight more products 0.17 ns at the tensor cores' peak, where tiles this
thin never are (docs/gpu.md).
"""

# ruff: noqa: RUF005 - Triton's compiler knows no starred expressions.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from geoseg.inference.triton.launch import below, cdiv, dot_options, exact_gelu, gelu, multiply
from geoseg.inference.triton.linear import FUSED_CHANNELS, ROW_BLOCK, linear, row_tile_columns
from geoseg.inference.triton.msca import depthwise

HIDDEN_BLOCK = 32
"""Hidden channels that are convolved, activated and multiplied at a time."""

NARROW = 64
"""Up to so many channels, tiles have 64 pixels and four warps, else 128 and eight: the same work for each thread."""


@triton.jit(do_not_specialize=["height", "width", "rows"])  # type: ignore[untyped-decorator]
def depthwise_project_kernel(  # type: ignore[no-untyped-def]
    x,  # (rows, HIDDEN), rows are N * H * W pixels
    taps,  # (9, HIDDEN) float32
    taps_bias,  # (HIDDEN,) float32
    weight,  # (HIDDEN, C)
    bias,  # (C,) float32
    y,  # (rows, C)
    out,  # (rows, C)
    height,
    width,
    rows,
    HIDDEN: tl.constexpr,
    C: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    TILES: tl.constexpr,
):
    """``y + gelu(depthwise3x3(x) + taps_bias) @ weight + bias``; all C outputs of BM pixels per program."""
    first = tl.program_id(0).to(tl.int64) * BM
    m = tl.arange(0, BM)
    there = first + m < rows
    row = (tl.program_id(0) * BM + m) // width % height
    column = (tl.program_id(0) * BM + m) % width
    x += first * HIDDEN
    totals = (tl.zeros((BM, BN), tl.float32),) * TILES
    for start in range(0, HIDDEN, BK):
        k = start + tl.arange(0, BK)
        hidden = tl.zeros((BM, BK), tl.float32)
        # Not unrolled here: else the compiler moves all nine values to the product's layout, not their sum.
        for tap in range(9):
            y_to = row + (tap // 3 - 1)
            x_to = column + (tap % 3 - 1)
            seen = there & below(y_to, height) & below(x_to, width)
            pixel = m + (tap // 3 - 1) * width + (tap % 3 - 1)
            value = tl.load(
                x + pixel[:, None] * HIDDEN + k[None, :], mask=seen[:, None] & (k < HIDDEN)[None, :], other=0.0
            )
            factor = tl.load(taps + tap * HIDDEN + k, mask=k < HIDDEN, other=0.0)
            hidden += value.to(tl.float32) * factor[None, :]
        hidden += tl.load(taps_bias + k, mask=k < HIDDEN, other=0.0)[None, :]
        active = gelu(hidden, EXACT).to(weight.dtype.element_ty)
        done = ()
        for i in tl.static_range(TILES):
            n = i * BN + tl.arange(0, BN)
            inside = (k < HIDDEN)[:, None] & (n < C)[None, :]
            b = tl.load(weight + k[:, None] * C + n[None, :], mask=inside, other=0.0)
            done = done + (multiply(active, b, totals[i], PRECISION, WIDE),)  # type: ignore[assignment]
        totals = done
    for i in tl.static_range(TILES):
        n = i * BN + tl.arange(0, BN)
        inside = there[:, None] & (n < C)[None, :]
        place = first * C + m[:, None] * C + n[None, :]
        total = totals[i] + tl.load(bias + n, mask=n < C, other=0.0)[None, :]
        total += tl.load(y + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)


def depthwise_project(x: Tensor, taps: Tensor, taps_bias: Tensor, weight: Tensor, bias: Tensor, y: Tensor) -> Tensor:
    """``y + gelu(depthwise3x3(x) + taps_bias) @ weight + bias``, with zero padding.

    One kernel up to `FUSED_CHANNELS`, two beyond: there a program could not hold all outputs of its pixels.

    Args:
        x: (N, H, W, hidden) contiguous.
        taps: (9, hidden) float32, row by row.
        taps_bias: (hidden,) float32.
        weight: (hidden, C).
        bias: (C,) float32.
        y: (N, H, W, C) residual; the result has its dtype.
    """
    n, height, width, hidden = x.shape
    c = weight.shape[1]
    if c > FUSED_CHANNELS:
        return linear(depthwise(x, taps, taps_bias, activation="gelu"), weight, bias, residual=y, dtype=y.dtype)
    rows = n * height * width
    out = torch.empty_like(y)
    bn, block = row_tile_columns(c), 64 if c <= NARROW else ROW_BLOCK
    depthwise_project_kernel[(cdiv(rows, block),)](
        x,
        taps,
        taps_bias,
        weight,
        bias,
        y,
        out,
        height,
        width,
        rows,
        HIDDEN=hidden,
        C=c,
        EXACT=exact_gelu(x.dtype),
        BM=block,
        BN=bn,
        BK=HIDDEN_BLOCK,
        TILES=cdiv(c, bn),
        num_warps=4 if c <= NARROW else 8,
        num_stages=1,
        **dot_options(weight.dtype),
    )
    return out
