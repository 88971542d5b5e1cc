"""Products over channels: a 1×1 convolution with what follows it, the gate of MSCA, strided 3×3 convolutions.

Features are rows of pixels, (…, C) contiguous, so a 1×1 convolution is ``x @ weight`` with ``weight`` (C_in, C_out).
What comes after it, bias, activation, product with the gate, residual, is done before the tile leaves the registers.
"""

# ruff: noqa: RUF005 - Triton's compiler knows no starred expressions.

from __future__ import annotations

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from geoseg.inference.triton.launch import (
    below,
    cdiv,
    column_block,
    dot_options,
    exact_gelu,
    gelu,
    multiply,
    reduce_block,
)

Activation = Literal["none", "gelu", "relu"]

ROW_BLOCK = 128
"""Pixels of a tile."""

FUSED_CHANNELS = 320
"""Up to so many channels, a program holds all outputs of its pixels, and two products can follow each other in it."""


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def linear_kernel(  # type: ignore[no-untyped-def]
    x,  # (rows, K)
    weight,  # (K, N)
    bias,  # (N,) float32, or anything where not HAS_BIAS
    gate,  # (rows, N)
    residual,  # (rows, N)
    out,  # (rows, N)
    rows,
    K: tl.constexpr,
    N: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """``activation(x @ weight + bias) * gate + residual``, a tile of BM pixels and BN channels per program."""
    column_tiles: tl.constexpr = (N + BN - 1) // BN
    first = (tl.program_id(0) // column_tiles).to(tl.int64) * BM
    m = tl.arange(0, BM)
    n = (tl.program_id(0) % column_tiles) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    there = (first + m < rows)[:, None]
    inside = (n < N)[None, :]
    x += first * K
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BK):
        a = tl.load(x + m[:, None] * K + (start + k)[None, :], mask=there & (start + k < K)[None, :], other=0.0)
        b = tl.load(weight + (start + k)[:, None] * N + n[None, :], mask=(start + k < K)[:, None] & inside, other=0.0)
        total = multiply(a.to(weight.dtype.element_ty), b, total, PRECISION, WIDE)
    if HAS_BIAS:
        total += tl.load(bias + n, mask=n < N, other=0.0)[None, :]
    if ACTIVATION == "gelu":
        total = gelu(total, EXACT)
    if ACTIVATION == "relu":
        total = tl.maximum(total, 0.0)
    place = m[:, None] * N + n[None, :]
    if HAS_GATE:
        total *= tl.load(gate + first * N + place, mask=there & inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        total += tl.load(residual + first * N + place, mask=there & inside, other=0.0).to(tl.float32)
    tl.store(out + first * N + place, total.to(out.dtype.element_ty), mask=there & inside)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Activation = "none",
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``activation(x @ weight + bias) * gate + residual``, summed in float32.

    Args:
        x: (…, K) contiguous.
        weight: (K, N) contiguous; its dtype is the one that is multiplied in.
        bias: (N,) float32.
        activation: After the bias.
        gate: (…, N), multiplied after the activation.
        residual: (…, N), added last.
        dtype: Of the result; None takes that of the weight.
    """
    k, n = weight.shape
    rows = x.numel() // k
    out = torch.empty((*x.shape[:-1], n), dtype=dtype or weight.dtype, device=x.device)
    bn = column_block(n)
    linear_kernel[(cdiv(rows, ROW_BLOCK) * cdiv(n, bn),)](
        x,
        weight,
        weight if bias is None else bias,
        x if gate is None else gate,
        x if residual is None else residual,
        out,
        rows,
        K=k,
        N=n,
        ACTIVATION=activation,
        HAS_BIAS=bias is not None,
        HAS_GATE=gate is not None,
        HAS_RESIDUAL=residual is not None,
        EXACT=exact_gelu(weight.dtype),
        BM=ROW_BLOCK,
        BN=bn,
        BK=reduce_block(k),
        num_warps=8 if bn == 128 else 4,
        **dot_options(weight.dtype),
    )
    return out


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def gate_project_kernel(  # type: ignore[no-untyped-def]
    s,  # (rows, C)
    u,  # (rows, C)
    y,  # (rows, C)
    weight_3,  # (C, C)
    bias_3,  # (C,) float32
    weight_2,  # (C, C)
    bias_2,  # (C,) float32
    out,  # (rows, C)
    rows,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    TILES: tl.constexpr,
):
    """``y + ((s @ weight_3 + bias_3) * u) @ weight_2 + bias_2``; all C outputs of BM pixels per program."""
    first = tl.program_id(0).to(tl.int64) * BM
    m = tl.arange(0, BM)
    k = tl.arange(0, BK)
    there = (first + m < rows)[:, None]
    s += first * C
    u += first * C
    totals = (tl.zeros((BM, BN), tl.float32),) * TILES
    for tile in range(TILES):
        n = tile * BN + tl.arange(0, BN)
        attention = tl.zeros((BM, BN), tl.float32)
        for start in range(0, C, BK):
            a = tl.load(s + m[:, None] * C + (start + k)[None, :], mask=there & (start + k < C)[None, :], other=0.0)
            inside = (start + k < C)[:, None] & (n < C)[None, :]
            b = tl.load(weight_3 + (start + k)[:, None] * C + n[None, :], mask=inside, other=0.0)
            attention = multiply(a, b, attention, PRECISION, WIDE)
        attention += tl.load(bias_3 + n, mask=n < C, other=0.0)[None, :]
        factor = tl.load(u + m[:, None] * C + n[None, :], mask=there & (n < C)[None, :], other=0.0)
        gated = (attention * factor.to(tl.float32)).to(weight_2.dtype.element_ty)
        done = ()
        for i in tl.static_range(TILES):
            columns = i * BN + tl.arange(0, BN)
            inside = (n < C)[:, None] & (columns < C)[None, :]
            b = tl.load(weight_2 + n[:, None] * C + columns[None, :], mask=inside, other=0.0)
            done = done + (multiply(gated, b, totals[i], PRECISION, WIDE),)  # type: ignore[assignment]
        totals = done
    for i in tl.static_range(TILES):
        columns = i * BN + tl.arange(0, BN)
        inside = there & (columns < C)[None, :]
        place = first * C + m[:, None] * C + columns[None, :]
        total = totals[i] + tl.load(bias_2 + columns, mask=columns < C, other=0.0)[None, :]
        total += tl.load(y + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)


def gate_project(
    s: Tensor, u: Tensor, y: Tensor, weight_3: Tensor, bias_3: Tensor, weight_2: Tensor, bias_2: Tensor
) -> Tensor:
    """The end of the attention branch, ``y + ((s @ weight_3 + bias_3) * u) @ weight_2 + bias_2``.

    One kernel up to `FUSED_CHANNELS`, two beyond; the gated features are rounded to the weights' dtype in both.

    Args:
        s: (…, C) sum of the multi-scale core, contiguous.
        u: (…, C) what the core was given.
        y: (…, C) residual; the result has its dtype.
        weight_3: (C, C) inputs first.
        bias_3: (C,) float32.
        weight_2: (C, C) inputs first.
        bias_2: (C,) float32.
    """
    c = weight_3.shape[0]
    if c > FUSED_CHANNELS:
        gated = linear(s, weight_3, bias_3, gate=u)
        return linear(gated, weight_2, bias_2, residual=y, dtype=y.dtype)
    rows = s.numel() // c
    out = torch.empty_like(y)
    bn = row_tile_columns(c)
    gate_project_kernel[(cdiv(rows, ROW_BLOCK),)](
        s,
        u,
        y,
        weight_3,
        bias_3,
        weight_2,
        bias_2,
        out,
        rows,
        C=c,
        BM=ROW_BLOCK,
        BN=bn,
        BK=reduce_block(c),
        TILES=cdiv(c, bn),
        num_warps=8 if c > 64 else 4,
        **dot_options(weight_3.dtype),
    )
    return out


def row_tile_columns(channels: int) -> int:
    """Columns of the tiles that together hold all channels of a pixel: they should divide them."""
    return next((block for block in (64, 32, 16) if channels % block == 0), 32)


@triton.jit(do_not_specialize=["sn", "sh", "sw", "sc", "height", "width", "out_height", "out_width", "rows"])  # type: ignore[untyped-decorator]
def conv3x3_kernel(  # type: ignore[no-untyped-def]
    x,  # (N, H, W, C) of any strides
    weight,  # (9 * C, N), tap by tap
    bias,  # (N,) float32
    out,  # (rows, N)
    sn,
    sh,
    sw,
    sc,
    height,
    width,
    out_height,
    out_width,
    rows,
    C: tl.constexpr,
    N: tl.constexpr,
    GELU: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    FEW: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """3×3 convolution of stride 2 and padding 1, with bias, a GELU after it where asked for.

    A product over 9 C, tap by tap, channels innermost in memory; or, for a FEW channels, 9 C outer products in plain
    multiply-adds, which read an image as it lies.
    """
    column_tiles: tl.constexpr = (N + BN - 1) // BN
    m = (tl.program_id(0) // column_tiles) * BM + tl.arange(0, BM)
    n = (tl.program_id(0) % column_tiles) * BN + tl.arange(0, BN)
    there = m < rows
    x += (m // (out_height * out_width)).to(tl.int64) * sn
    row = (m // out_width) % out_height * 2 - 1
    column = m % out_width * 2 - 1
    total = tl.zeros((BM, BN), tl.float32)
    if FEW:
        for tap in tl.static_range(9):
            seen = there & below(row + tap // 3, height) & below(column + tap % 3, width)
            pixel = x + (row + tap // 3).to(tl.int64) * sh + (column + tap % 3).to(tl.int64) * sw
            for c in tl.static_range(C):
                a = tl.load(pixel + c * sc, mask=seen, other=0.0).to(weight.dtype.element_ty).to(tl.float32)
                b = tl.load(weight + (tap * C + c) * N + n, mask=n < N, other=0.0).to(tl.float32)
                total += a[:, None] * b[None, :]
    else:
        pieces: tl.constexpr = (C + BK - 1) // BK
        for piece in range(9 * pieces):
            y = row + piece // pieces // 3
            z = column + piece // pieces % 3
            c = piece % pieces * BK + tl.arange(0, BK)
            seen = there & below(y, height) & below(z, width)
            pixel = x + y.to(tl.int64) * sh + z.to(tl.int64) * sw
            a = tl.load(pixel[:, None] + c[None, :], mask=seen[:, None] & (c < C)[None, :], other=0.0)
            place = (piece // pieces * C + c)[:, None] * N + n[None, :]
            b = tl.load(weight + place, mask=(c < C)[:, None] & (n < N)[None, :], other=0.0)
            total = multiply(a.to(weight.dtype.element_ty), b, total, PRECISION, WIDE)
    total += tl.load(bias + n, mask=n < N, other=0.0)[None, :]
    if GELU:
        total = gelu(total, EXACT)
    place = m.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=there[:, None] & (n < N)[None, :])


FEW_CHANNELS = 8
"""Up to so many channels, an image's bands, a convolution is no product for tensor cores."""


def conv3x3_stride_2(
    x: Tensor, weight: Tensor, bias: Tensor, *, activation: Activation = "none", dtype: torch.dtype | None = None
) -> Tensor:
    """A 3×3 convolution of stride 2 and padding 1: (N, H, W, C) to (N, ceil(H/2), ceil(W/2), C_out).

    Args:
        x: Of any dtype, rounded to the weight's as it is read; contiguous unless C is below `FEW_CHANNELS`.
        weight: (9 * C, C_out), tap by tap (`pack_conv3x3`).
        bias: (C_out,) float32.
        activation: "none" or "gelu".
        dtype: Of the result; None takes that of the weight.
    """
    n, height, width, c = x.shape
    out_height, out_width = cdiv(height, 2), cdiv(width, 2)
    columns = weight.shape[1]
    out = torch.empty((n, out_height, out_width, columns), dtype=dtype or weight.dtype, device=x.device)
    few = c <= FEW_CHANNELS
    rows, bn = n * out_height * out_width, min(32, column_block(columns)) if few else column_block(columns)
    sn, sh, sw, sc = x.stride()
    conv3x3_kernel[(cdiv(rows, ROW_BLOCK) * cdiv(columns, bn),)](
        x,
        weight,
        bias,
        out,
        sn,
        sh,
        sw,
        sc,
        height,
        width,
        out_height,
        out_width,
        rows,
        C=c,
        N=columns,
        GELU=activation == "gelu",
        EXACT=exact_gelu(weight.dtype),
        FEW=few,
        BM=ROW_BLOCK,
        BN=bn,
        BK=reduce_block(c),
        num_warps=8 if bn == 128 else 4,
        **dot_options(weight.dtype),
    )
    return out


def pack_conv3x3(weight: Tensor) -> Tensor:
    """(C_out, C, 3, 3) as (9 * C, C_out): rows are taps, channels within them."""
    return weight.permute(2, 3, 1, 0).reshape(-1, weight.shape[0]).contiguous()
