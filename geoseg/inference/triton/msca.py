"""The multi-scale core of MSCA: the 5×5 depthwise, the three strip pairs, their sum; and depthwise convolutions alone.

Two kernels. Triton has no shared memory one can index, so one kernel for all would have to recompute the 5×5 at 21
columns, or hand it over through memory anyway. What counts here is instructions, not bytes: the core takes 103
multiply-adds per value, at 60 TFLOP/s 3.4 ps, while the 4 bytes that a single kernel would save take 0.9 ps at 4.3 TB/s
(docs/gpu.md).

Both kernels walk down the image. A program holds a strip of columns and of channels, reads each row once (at K shifts),
and keeps the outputs that are not finished as a queue of partial sums in registers; each row of input adds to all of
them. So no row is computed twice inside a program's rows, and the queue makes the k×1 strips as cheap as they can be.
"""

# ruff: noqa: RUF005 - Triton's compiler knows no starred expressions.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from geoseg.inference.triton.launch import INTERPRETED, below, cdiv, exact_gelu, gelu

HALO = 10
"""Half of the longest strip, px."""

STEP = 4
"""Rows a program takes at a time: each weight is loaded once for all of them."""

STRIP_COLUMNS = 32 if INTERPRETED else 8
"""Columns of a program of the strips. In the interpreter an operation costs the same for any size."""

CHANNELS = 32
"""Channels of a program."""

COLUMN_ROWS = (128, 64, 32)
"""Rows that one program may walk over, as long as there are enough programs; the first rows of a walk are overhead.
Multiples of `STEP`."""

ENOUGH_PROGRAMS = 512


@triton.jit(do_not_specialize=["height", "width", "out_width", "program_rows", "column_groups"])  # type: ignore[untyped-decorator]
def depthwise_kernel(  # type: ignore[no-untyped-def]
    x,  # (N, H, W, C)
    weight,  # (K * K, C) float32
    bias,  # (C,) float32
    out,  # (N, H, out_width, C), its columns start at -MARGIN
    height,
    width,
    out_width,
    program_rows,
    column_groups,
    C: tl.constexpr,
    K: tl.constexpr,
    MARGIN: tl.constexpr,
    GELU: tl.constexpr,
    EXACT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """K×K depthwise convolution with bias and zero padding, a GELU after it where asked for; zeros in the margin."""
    HALF: tl.constexpr = K // 2
    group = tl.program_id(0)
    n = tl.program_id(2).to(tl.int64)
    left = (group % column_groups) * COLUMNS - MARGIN
    top = (group // column_groups) * program_rows
    bottom = tl.minimum(top + program_rows, height)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = c < C
    column = left + tl.arange(0, COLUMNS)
    x += n * height * width * C
    out += n * height * out_width * C
    b = tl.load(bias + c, mask=inside, other=0.0)[None, :]
    zero = tl.zeros((COLUMNS, CHANNELS), tl.float32)

    # queue[j] is the unfinished output of row (first - HALF + j)
    queue = (zero,) * (K - 1 + ROWS)
    # All programs step through the same rows at a time, or sums would depend on where a program starts.
    start = tl.maximum(top - (HALF + ROWS - 1) // ROWS * ROWS, 0)
    for step in range(tl.cdiv(bottom + HALF - start, ROWS)):
        first = start + step * ROWS
        for dx in tl.static_range(K):
            source = column + (dx - HALF)
            there = below(source, width)[:, None] & inside[None, :]
            offset = source[:, None] * C + c[None, :]
            taps = ()
            for dy in tl.static_range(K):
                taps = taps + (tl.load(weight + (dy * K + dx) * C + c, mask=inside, other=0.0)[None, :],)  # type: ignore[assignment]
            for i in tl.static_range(ROWS):
                row = first + i
                value = tl.load(x + row.to(tl.int64) * width * C + offset, mask=there & (row < height), other=0.0)
                value = value.to(tl.float32)
                for dy in tl.static_range(K):
                    # The index is written out each time: a name for it would be a number of the running kernel.
                    queue = queue[: K - 1 + i - dy] + (queue[K - 1 + i - dy] + taps[dy] * value,) + queue[K + i - dy :]
        for j in tl.static_range(ROWS):
            row = first - HALF + j
            done = queue[j] + b
            if GELU:
                done = gelu(done, EXACT)
            done = tl.where(below(column, width)[:, None], done, 0.0)
            stored = (column < out_width - MARGIN)[:, None] & inside[None, :] & (row >= top) & (row < bottom)
            place = out + row.to(tl.int64) * out_width * C + (column + MARGIN)[:, None] * C + c[None, :]
            tl.store(place, done.to(out.dtype.element_ty), mask=stored)
        queue = queue[ROWS:] + (zero,) * ROWS


@triton.jit(do_not_specialize=["height", "width", "a_width", "program_rows", "column_groups"])  # type: ignore[untyped-decorator]
def strips_kernel(  # type: ignore[no-untyped-def]
    a,  # (N, H, a_width, C), with ten columns of zeros to the left, and at least ten to the right
    weight,  # (78, C) float32: the 1×7, 1×11, 1×21, then the 7×1, 11×1, 21×1
    bias,  # (4, C) float32: of the three horizontal strips, and the sum of the vertical ones'
    out,  # (N, H, W, C)
    height,
    width,
    a_width,
    program_rows,
    column_groups,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """``a`` and its three strip pairs, summed. The result of a horizontal strip counts as zero outside the image."""
    group = tl.program_id(0)
    n = tl.program_id(2).to(tl.int64)
    left = (group % column_groups) * COLUMNS
    top = (group // column_groups) * program_rows
    bottom = tl.minimum(top + program_rows, height)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = c < C
    column = left + tl.arange(0, COLUMNS)
    offset = column[:, None] * C + c[None, :]
    a += n * height * a_width * C
    out += n * height * width * C
    b7 = tl.load(bias + c, mask=inside, other=0.0)[None, :]
    b11 = tl.load(bias + C + c, mask=inside, other=0.0)[None, :]
    b21 = tl.load(bias + 2 * C + c, mask=inside, other=0.0)[None, :]
    after = tl.load(bias + 3 * C + c, mask=inside, other=0.0)[None, :]
    zero = tl.zeros((COLUMNS, CHANNELS), tl.float32)

    # queue[j] is the unfinished output of row (first - 10 + j)
    queue = (zero,) * (20 + ROWS)
    start = tl.maximum(top - (10 + ROWS - 1) // ROWS * ROWS, 0)  # as in the kernel above
    for step in range(tl.cdiv(bottom + 10 - start, ROWS)):
        first = start + step * ROWS
        h7 = (zero,) * ROWS
        h11 = (zero,) * ROWS
        h21 = (zero,) * ROWS
        for t in tl.static_range(21):
            w21 = tl.load(weight + (18 + t) * C + c, mask=inside, other=0.0)[None, :]
            if t >= 5 and t < 16:
                w11 = tl.load(weight + (2 + t) * C + c, mask=inside, other=0.0)[None, :]
            if t >= 7 and t < 14:
                w7 = tl.load(weight + (t - 7) * C + c, mask=inside, other=0.0)[None, :]
            for i in tl.static_range(ROWS):
                # Rows below the image are read from its last one and dropped further down.
                row = tl.minimum(first + i, height - 1)
                value = tl.load(a + row.to(tl.int64) * a_width * C + t * C + offset, mask=inside[None, :], other=0.0)
                value = value.to(tl.float32)
                h21 = h21[:i] + (h21[i] + w21 * value,) + h21[i + 1 :]
                if t >= 5 and t < 16:
                    h11 = h11[:i] + (h11[i] + w11 * value,) + h11[i + 1 :]
                if t >= 7 and t < 14:
                    h7 = h7[:i] + (h7[i] + w7 * value,) + h7[i + 1 :]
                if t == 10:
                    queue = queue[: 10 + i] + (queue[10 + i] + value,) + queue[11 + i :]
        for i in tl.static_range(ROWS):
            seen = first + i < height
            h7 = h7[:i] + (tl.where(seen, h7[i] + b7, 0.0),) + h7[i + 1 :]
            h11 = h11[:i] + (tl.where(seen, h11[i] + b11, 0.0),) + h11[i + 1 :]
            h21 = h21[:i] + (tl.where(seen, h21[i] + b21, 0.0),) + h21[i + 1 :]
        for t in tl.static_range(21):
            w21 = tl.load(weight + (57 + t) * C + c, mask=inside, other=0.0)[None, :]
            if t >= 5 and t < 16:
                w11 = tl.load(weight + (41 + t) * C + c, mask=inside, other=0.0)[None, :]
            if t >= 7 and t < 14:
                w7 = tl.load(weight + (32 + t) * C + c, mask=inside, other=0.0)[None, :]
            for i in tl.static_range(ROWS):
                total = queue[20 + i - t] + w21 * h21[i]
                if t >= 5 and t < 16:
                    total += w11 * h11[i]
                if t >= 7 and t < 14:
                    total += w7 * h7[i]
                queue = queue[: 20 + i - t] + (total,) + queue[21 + i - t :]
        for j in tl.static_range(ROWS):
            row = first - 10 + j
            stored = (column < width)[:, None] & inside[None, :] & (row >= top) & (row < bottom)
            done = (queue[j] + after).to(out.dtype.element_ty)
            tl.store(out + row.to(tl.int64) * width * C + offset, done, mask=stored)
        queue = queue[ROWS:] + (zero,) * ROWS


def depthwise(x: Tensor, weight: Tensor, bias: Tensor, *, activation: str = "none", margin: int = 0) -> Tensor:
    """A depthwise convolution with bias and zero padding, (N, H, W, C) contiguous to the same dtype.

    Args:
        x: Features.
        weight: (K * K, C) float32, K odd, row by row.
        bias: (C,) float32.
        activation: "none" or "gelu".
        margin: Columns of zeros to put left of the result, and at least so many right of it; the result is
            (N, H, margin + W rounded up to whole tiles + margin, C).
    """
    n, height, width, c = x.shape
    k = round(weight.shape[0] ** 0.5)
    columns = 2 * STRIP_COLUMNS
    out_width = cdiv(width, STRIP_COLUMNS) * STRIP_COLUMNS + 2 * margin if margin else width
    out = torch.empty((n, height, out_width, c), dtype=x.dtype, device=x.device)
    groups, channel_groups = cdiv(out_width, columns), cdiv(c, CHANNELS)
    rows = program_rows(height, groups * channel_groups * n)
    depthwise_kernel[(groups * cdiv(height, rows), channel_groups, n)](
        x,
        weight,
        bias,
        out,
        height,
        width,
        out_width,
        rows,
        groups,
        C=c,
        K=k,
        MARGIN=margin,
        GELU=activation == "gelu",
        EXACT=exact_gelu(x.dtype),
        ROWS=STEP,
        COLUMNS=columns,
        CHANNELS=CHANNELS,
        num_warps=4,
    )
    return out


def multi_scale(u: Tensor, local: tuple[Tensor, Tensor], strips: tuple[Tensor, Tensor]) -> Tensor:
    """The 5×5 of ``u``, its three strip pairs, and their sum: (N, H, W, C) contiguous to the same.

    Args:
        u: Features.
        local: (25, C) and (C,) float32, weight and bias of the 5×5.
        strips: What `pack_strips` gives.
    """
    n, height, width, c = u.shape
    a = depthwise(u, *local, margin=HALO)
    out = torch.empty_like(u)
    groups, channel_groups = cdiv(width, STRIP_COLUMNS), cdiv(c, CHANNELS)
    rows = program_rows(height, groups * channel_groups * n)
    strips_kernel[(groups * cdiv(height, rows), channel_groups, n)](
        a,
        *strips,
        out,
        height,
        width,
        a.shape[2],
        rows,
        groups,
        C=c,
        ROWS=STEP,
        COLUMNS=STRIP_COLUMNS,
        CHANNELS=CHANNELS,
        num_warps=4,
    )
    return out


def program_rows(height: int, programs: int) -> int:
    """Rows one program walks over, where ``programs`` would each walk over all of them. It changes no result."""
    for rows in COLUMN_ROWS:
        if programs * cdiv(height, rows) >= ENOUGH_PROGRAMS:
            return rows
    return COLUMN_ROWS[-1]


def pack_depthwise(weight: Tensor) -> Tensor:
    """(C, 1, kh, kw) as (kh * kw, C) float32."""
    return weight.float().flatten(1).T.contiguous()


def pack_strips(
    horizontal: list[tuple[Tensor, Tensor]], vertical: list[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Weights and biases of three strip pairs as (78, C) and (4, C) float32.

    Args:
        horizontal: Weight (C, 1, 1, k) and bias (C,) for k = 7, 11, 21.
        vertical: Weight (C, 1, k, 1) and bias (C,), likewise.
    """
    weights = torch.cat([pack_depthwise(weight) for weight, _ in (*horizontal, *vertical)])
    after = sum(bias.double() for _, bias in vertical)
    assert isinstance(after, Tensor)
    return weights, torch.stack([*(bias.float() for _, bias in horizontal), after.float()])
