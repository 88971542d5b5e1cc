"""Norms and the upsampling of the decoder: each reads its input as seldom as can be, and sums in one order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from geoseg.inference.triton.launch import cdiv, power_of_two

PIXEL_BLOCK = 64
"""Pixels of a tile."""

CHUNK_BLOCKS = 8
"""Tiles whose statistics one program gathers."""


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def layer_norm_kernel(  # type: ignore[no-untyped-def]
    x,  # (rows, C)
    scale,  # (C,) float32
    weight,  # (C,) float32
    bias,  # (C,) float32
    out,  # (rows, C)
    rows,
    eps,
    C: tl.constexpr,
    BM: tl.constexpr,
    CP: tl.constexpr,
):
    """LayerNorm over channels of ``x * scale``; mean before variance, both from registers."""
    m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    c = tl.arange(0, CP)
    inside = c < C
    mask = (m < rows)[:, None] & inside[None, :]
    place = m[:, None] * C + c[None, :]
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    value *= tl.load(scale + c, mask=inside, other=0.0)[None, :]
    mean = tl.sum(value, axis=1) / C
    off = tl.where(inside[None, :], value - mean[:, None], 0.0)
    rate = 1.0 / tl.sqrt(tl.sum(off * off, axis=1) / C + eps)
    value = off * rate[:, None] * tl.load(weight + c, mask=inside, other=0.0)[None, :]
    value += tl.load(bias + c, mask=inside, other=0.0)[None, :]
    tl.store(out + place, value.to(out.dtype.element_ty), mask=mask)


def layer_norm(
    x: Tensor, scale: Tensor, weight: Tensor, bias: Tensor, *, eps: float, dtype: torch.dtype | None = None
) -> Tensor:
    """LayerNorm over the last axis of ``x * scale``: one read, one write.

    Args:
        x: (…, C) contiguous.
        scale: (C,) float32, before the norm.
        weight: (C,) float32.
        bias: (C,) float32.
        eps: Added to the variance.
        dtype: Of the result; None takes that of ``x``.
    """
    c = x.shape[-1]
    rows, padded = x.numel() // c, power_of_two(c)
    out = torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device)
    block = max(1, 4096 // padded)
    layer_norm_kernel[(cdiv(rows, block),)](
        x, scale, weight, bias, out, rows, eps, C=c, BM=block, CP=padded, num_warps=4
    )
    return out


@triton.jit(do_not_specialize=["pixels", "chunks"])  # type: ignore[untyped-decorator]
def moments_kernel(  # type: ignore[no-untyped-def]
    x,  # (N, pixels, C)
    moments,  # (N, chunks, 2, C) float32: mean, and sum of squares about it
    pixels,
    chunks,
    C: tl.constexpr,
    BLOCKS: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    """Mean and squares of each channel over a chunk of pixels, tile by tile (Chan, Golub and LeVeque, 1979)."""
    chunk = tl.program_id(0)
    n = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = c < C
    x += n * pixels * C
    mean = tl.zeros((BC,), tl.float32)
    squares = tl.zeros((BC,), tl.float32)
    seen = 0.0
    for block in range(BLOCKS):
        pixel = (chunk * BLOCKS + block) * BP + tl.arange(0, BP)
        there = (pixel < pixels)[:, None] & inside[None, :]
        value = tl.load(x + pixel.to(tl.int64)[:, None] * C + c[None, :], mask=there, other=0.0).to(tl.float32)
        count = tl.minimum(tl.maximum(pixels - (chunk * BLOCKS + block) * BP, 0), BP).to(tl.float32)
        tile_mean = tl.sum(value, axis=0) / tl.maximum(count, 1.0)
        off = tl.where(there, value - tile_mean[None, :], 0.0)
        together = tl.maximum(seen + count, 1.0)
        gap = tile_mean - mean
        squares += tl.sum(off * off, axis=0) + gap * gap * (seen * count / together)
        mean += gap * (count / together)
        seen += count
    slot = moments + (n * chunks + chunk) * 2 * C + c
    tl.store(slot, mean, mask=inside)
    tl.store(slot + C, squares, mask=inside)


@triton.jit(do_not_specialize=["pixels", "chunks"])  # type: ignore[untyped-decorator]
def group_affine_kernel(  # type: ignore[no-untyped-def]
    moments,  # (N, chunks, 2, C)
    weight,  # (C,) float32
    bias,  # (C,) float32
    affine,  # (N, 2, C) float32: factor, shift
    pixels,
    chunks,
    eps,
    C: tl.constexpr,
    GROUP: tl.constexpr,
    BG: tl.constexpr,
    CHUNK: tl.constexpr,
    BH: tl.constexpr,
):
    """A group norm as a factor and a shift of each channel, for one group of one image."""
    n = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BG)
    own = column < GROUP
    c = tl.program_id(0) * GROUP + column
    h = tl.arange(0, BH)
    moments += n * chunks * 2 * C
    total = tl.zeros((BG,), tl.float32)
    for start in range(0, chunks, BH):
        chunk = start + h
        count = tl.minimum(tl.maximum(pixels - chunk * CHUNK, 0), CHUNK).to(tl.float32)
        mask = (chunk < chunks)[:, None] & own[None, :]
        mean = tl.load(moments + chunk[:, None] * 2 * C + c[None, :], mask=mask, other=0.0)
        total += tl.sum(mean * count[:, None], axis=0)
    values = pixels.to(tl.float32) * GROUP
    group_mean = tl.sum(total, axis=0) / values
    squares = tl.zeros((BG,), tl.float32)
    for start in range(0, chunks, BH):
        chunk = start + h
        count = tl.minimum(tl.maximum(pixels - chunk * CHUNK, 0), CHUNK).to(tl.float32)
        mask = (chunk < chunks)[:, None] & own[None, :]
        mean = tl.load(moments + chunk[:, None] * 2 * C + c[None, :], mask=mask, other=0.0)
        square = tl.load(moments + chunk[:, None] * 2 * C + C + c[None, :], mask=mask, other=0.0)
        off = tl.where(mask, mean - group_mean, 0.0)
        squares += tl.sum(square + off * off * count[:, None], axis=0)
    rate = tl.load(weight + c, mask=own, other=0.0) / tl.sqrt(tl.sum(squares, axis=0) / values + eps)
    tl.store(affine + n * 2 * C + c, rate, mask=own)
    tl.store(affine + n * 2 * C + C + c, tl.load(bias + c, mask=own, other=0.0) - group_mean * rate, mask=own)


@triton.jit(do_not_specialize=["pixels"])  # type: ignore[untyped-decorator]
def affine_relu_kernel(  # type: ignore[no-untyped-def]
    x,  # (N, pixels, C)
    affine,  # (N, 2, C)
    out,  # (N, pixels, C)
    pixels,
    C: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    """``relu(x * factor + shift)`` with the factors and shifts of each image."""
    n = tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(0).to(tl.int64) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    mask = (pixel < pixels)[:, None] & (c < C)[None, :]
    place = n * pixels * C + pixel[:, None] * C + c[None, :]
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    value *= tl.load(affine + n * 2 * C + c, mask=c < C, other=0.0)[None, :]
    value += tl.load(affine + n * 2 * C + C + c, mask=c < C, other=0.0)[None, :]
    tl.store(out + place, tl.maximum(value, 0.0).to(out.dtype.element_ty), mask=mask)


def group_norm_relu(x: Tensor, weight: Tensor, bias: Tensor, *, groups: int, eps: float) -> Tensor:
    """``relu(group_norm(x))`` of (N, H, W, C): two reads, one write, three kernels.

    Args:
        x: Contiguous; the result has its dtype.
        weight: (C,) float32.
        bias: (C,) float32.
        groups: Groups of the norm.
        eps: Added to the variance.
    """
    n, c = x.shape[0], x.shape[-1]
    pixels = x.numel() // (n * c)
    group, block = c // groups, min(128, power_of_two(c))
    chunk = PIXEL_BLOCK * CHUNK_BLOCKS
    chunks = cdiv(pixels, chunk)
    moments = torch.empty((n, chunks, 2, c), dtype=torch.float32, device=x.device)
    affine = torch.empty((n, 2, c), dtype=torch.float32, device=x.device)
    out = torch.empty_like(x)
    tiles = cdiv(c, block)
    moments_kernel[(chunks, tiles, n)](
        x, moments, pixels, chunks, C=c, BLOCKS=CHUNK_BLOCKS, BP=PIXEL_BLOCK, BC=block, num_warps=4
    )
    group_affine_kernel[(groups, n)](
        moments,
        weight,
        bias,
        affine,
        pixels,
        chunks,
        eps,
        C=c,
        GROUP=group,
        BG=power_of_two(group),
        CHUNK=chunk,
        BH=32,
        num_warps=1,
    )
    affine_relu_kernel[(cdiv(pixels, PIXEL_BLOCK), tiles, n)](
        x, affine, out, pixels, C=c, BP=PIXEL_BLOCK, BC=block, num_warps=4
    )
    return out


@triton.jit  # type: ignore[untyped-decorator]
def sample(x, row, column, c, mask, height, width, out_height, out_width, C: tl.constexpr):  # type: ignore[no-untyped-def]
    """Bilinear values of ``x`` (height, width, C) at pixels of a larger grid, ``align_corners=False``."""
    y = tl.maximum((row.to(tl.float32) + 0.5) * (height.to(tl.float32) / out_height) - 0.5, 0.0)
    z = tl.maximum((column.to(tl.float32) + 0.5) * (width.to(tl.float32) / out_width) - 0.5, 0.0)
    top = y.to(tl.int32)
    left = z.to(tl.int32)
    down = (y - top.to(tl.float32))[:, None]
    right = (z - left.to(tl.float32))[:, None]
    below = tl.minimum(top + 1, height - 1)
    beside = tl.minimum(left + 1, width - 1)
    a = tl.load(x + (top * width + left)[:, None] * C + c[None, :], mask=mask, other=0.0).to(tl.float32)
    b = tl.load(x + (top * width + beside)[:, None] * C + c[None, :], mask=mask, other=0.0).to(tl.float32)
    e = tl.load(x + (below * width + left)[:, None] * C + c[None, :], mask=mask, other=0.0).to(tl.float32)
    f = tl.load(x + (below * width + beside)[:, None] * C + c[None, :], mask=mask, other=0.0).to(tl.float32)
    return (1.0 - down) * ((1.0 - right) * a + right * b) + down * ((1.0 - right) * e + right * f)


@triton.jit(do_not_specialize=["height", "width", "height_2", "width_2", "height_3", "width_3"])  # type: ignore[untyped-decorator]
def upsample_add_kernel(  # type: ignore[no-untyped-def]
    x,  # (N, height, width, C)
    x_2,  # (N, height_2, width_2, C)
    x_3,  # (N, height_3, width_3, C)
    out,  # (N, height, width, C)
    height,
    width,
    height_2,
    width_2,
    height_3,
    width_3,
    C: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    """``x`` and two smaller ones brought to its size, summed."""
    n = tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    mask = (pixel < height * width)[:, None] & (c < C)[None, :]
    row = pixel // width
    column = pixel % width
    place = n * height * width * C + pixel[:, None] * C + c[None, :]
    total = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    small = x_2 + n * height_2 * width_2 * C
    total += sample(small, row, column, c, mask, height_2, width_2, height, width, C)
    small = x_3 + n * height_3 * width_3 * C
    total += sample(small, row, column, c, mask, height_3, width_3, height, width, C)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=mask)


def upsample_add(x: Tensor, x_2: Tensor, x_3: Tensor) -> Tensor:
    """Three feature maps (N, H, W, C) of falling size, summed at the size of the first; bilinear between pixels.

    Args:
        x: The largest, contiguous; the result has its dtype.
        x_2: Contiguous, same N and C.
        x_3: Likewise.
    """
    n, height, width, c = x.shape
    out = torch.empty_like(x)
    block = min(128, power_of_two(c))
    upsample_add_kernel[(cdiv(height * width, PIXEL_BLOCK), cdiv(c, block), n)](
        x,
        x_2,
        x_3,
        out,
        height,
        width,
        x_2.shape[1],
        x_2.shape[2],
        x_3.shape[1],
        x_3.shape[2],
        C=c,
        BP=PIXEL_BLOCK,
        BC=block,
        num_warps=4,
    )
    return out
