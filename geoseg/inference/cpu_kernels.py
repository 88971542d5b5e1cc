"""What SegNeXt's blocks do beside matrix products, compiled for a CPU: each a single pass that stays in the cache.

Features are (H, W, C) in memory, float32 or bfloat16 (as uint16), given as flat arrays; C is a multiple of 16.
Depthwise convolutions go 16 channels at a time, so no channel knows of another and any division of the work over
threads gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from geoseg._jit import njit
from geoseg.inference.simd import (
    LANES,
    add_moments,
    blend_to,
    gelu_to,
    product_to,
    products,
    scaled_relu,
    store,
    taps,
    taps_3x3,
    taps_down,
    updated,
)

Floats = npt.NDArray[np.float32]
Features = npt.NDArray[Any]

PIXELS = 96
"""Pixels whose features stay in the cache while both products of the factorization read them."""

DEPTH = 96
"""Rows of the right matrix of a product at a time."""

TILE = 64
"""Columns done together: what is kept of 21 rows of them fits a core's own cache."""


@njit
def _row_5(
    out: Floats, at: int, bias: Floats, x: Floats, first: int, row: int, w: Floats, w_at: int, cols: int
) -> None:
    for col in range(0, cols - 7, 8):
        taps(out, at + col * LANES, 0, bias, 0, x, first + col * LANES, row, w, w_at, 5, 5, 8)
    for col in range(cols // 8 * 8, cols):
        taps(out, at + col * LANES, 0, bias, 0, x, first + col * LANES, row, w, w_at, 5, 5, 1)


def _strip(taps_along: int) -> Callable[[Floats, int, int, Floats, Floats, int, Floats, int, int], None]:
    """A strip along the rows: the number of taps must be a constant where it is compiled."""

    @njit
    def row(
        out: Floats, at: int, twin: int, bias: Floats, x: Floats, first: int, w: Floats, w_at: int, cols: int
    ) -> None:
        for col in range(0, cols - 7, 8):
            taps(out, at + col * LANES, twin, bias, 0, x, first + col * LANES, 0, w, w_at, 1, taps_along, 8)
        for col in range(cols // 8 * 8, cols):
            taps(out, at + col * LANES, twin, bias, 0, x, first + col * LANES, 0, w, w_at, 1, taps_along, 1)

    return row


_row_7, _row_11, _row_21 = _strip(7), _strip(11), _strip(21)


@njit
def multi_scale(
    p: tuple[Features, ...],
    piece: int,
    u: Features,
    s: Features,
    height: int,
    width: int,
    channels: int,
    block: int,
    begin: int,
    end: int,
    w5: Floats,
    b5: Floats,
    w7: Floats,
    b7: Floats,
    w11: Floats,
    b11: Floats,
    w21: Floats,
    b21: Floats,
) -> None:
    """The core of multi-scale attention for 16 channels: ``u = gelu(p)``, and ``s`` the 5×5 of u and its strips' sum.

    Rows go through it four at a time. A row of the 5×5 waits until the strips around it are there: those along the
    rows are computed as the row that they reach to comes in, and kept as many rows as the strip across is high and
    three more, so that four rows across read each of them once.

    Args:
        p: Input before the GELU, in four pieces of ``piece`` rows (the last ones may have fewer, or none).
        piece: See there.
        u: Gets its GELU.
        s: Gets ``a + strips(a)`` with ``a`` the 5×5 of u; without the second strips' biases.
        height: H.
        width: W.
        channels: C.
        block: Which 16 channels, from 0.
        begin: First row of ``u`` and ``s`` that is wanted.
        end: Row after the last one.
        w5: Weights (C / 16, 25, 16).
        b5: Bias (C / 16, 16).
        w7: Weights (C / 16, 2, 7, 16): along the rows, across.
        b7: Bias (C / 16, 16) of the strip along the rows; likewise the others.
        w11: (C / 16, 2, 11, 16).
        b11: (C / 16, 16).
        w21: (C / 16, 2, 21, 16).
        b21: (C / 16, 16).
    """
    f5, f7, f11, f21 = w5.ravel(), w7.ravel(), w11.ravel(), w21.ravel()
    at5, at7, at11, at21 = block * 25 * LANES, block * 14 * LANES, block * 22 * LANES, block * 42 * LANES
    bias5, bias7, bias11, bias21 = b5[block], b7[block], b11[block], b21[block]
    tile = min(width, TILE)
    # A few columns more than needed: rows a multiple of 4096 bytes apart would drive each other out of the cache.
    grow, arow, hrow = (tile + 25) * LANES, (tile + 21) * LANES, (tile + 5) * LANES
    # Rings of rows. Where several rows are read at once each row is kept twice, so that they always lie in order.
    g = np.empty(2 * 8 * grow, dtype=np.float32)
    a = np.empty(16 * arow, dtype=np.float32)
    h7 = np.empty(2 * 12 * hrow, dtype=np.float32)
    h11 = np.empty(2 * 16 * hrow, dtype=np.float32)
    h21 = np.empty(2 * 24 * hrow, dtype=np.float32)
    sums = np.empty(4 * hrow, dtype=np.float32)
    near_rows = max(begin - 10, 0)
    straight = (0, hrow, 2 * hrow, 3 * hrow)
    for left in range(0, width, tile):
        cols = min(tile, width - left)
        g[:] = 0
        a[:] = 0
        h7[:] = 0
        h11[:] = 0
        h21[:] = 0
        first, last = max(left - 12, 0), min(left + cols + 12, width)  # columns of u that are read
        near, far = max(left - 10, 0), min(left + cols + 10, width)  # columns of a that are read
        for n in range(begin - 12, end + 12, 4):  # rows n - 12 … n - 9 come out as rows n … n + 3 come in
            for i in range(n, n + 4):
                slot = (i % 8) * grow
                if 0 <= i < height:
                    source, top = p[i // piece], i // piece * piece
                    for col in range(first, last):
                        at = (i * width + col) * channels + block * LANES
                        from_at = at - top * width * channels
                        to = slot + (col - left + 12) * LANES
                        if begin <= i < end and left <= col < left + cols:
                            gelu_to(u, at, g, to, 8 * grow, source, from_at)
                        else:  # another part's
                            gelu_to(g, to, g, to, 8 * grow, source, from_at)
                else:
                    g[slot : slot + grow] = 0
                    g[slot + 8 * grow : slot + 9 * grow] = 0
            for i in range(max(n - 2, near_rows), min(n + 2, height)):
                at = ((i - 2) % 8) * grow + (near - left + 10) * LANES
                _row_5(a, (i % 16) * arow + (near - left + 10) * LANES, bias5, g, at, grow, f5, at5, far - near)
            r = n - 12
            for i in range(max(r + 10, near_rows), r + 14):
                slot = (i % 24) * hrow
                if i < height:
                    _row_21(h21, slot, 24 * hrow, bias21, a, (i % 16) * arow, f21, at21, cols)
                else:
                    h21[slot : slot + hrow] = 0
                    h21[slot + 24 * hrow : slot + 25 * hrow] = 0
            for i in range(max(r + 5, begin - 5, 0), r + 9):
                slot = (i % 16) * hrow
                if i < height:
                    _row_11(h11, slot, 16 * hrow, bias11, a, (i % 16) * arow + 5 * LANES, f11, at11, cols)
                else:
                    h11[slot : slot + hrow] = 0
                    h11[slot + 16 * hrow : slot + 17 * hrow] = 0
            for i in range(max(r + 3, begin - 3, 0), r + 7):
                slot = (i % 12) * hrow
                if i < height:
                    _row_7(h7, slot, 12 * hrow, bias7, a, (i % 16) * arow + 7 * LANES, f7, at7, cols)
                else:
                    h7[slot : slot + hrow] = 0
                    h7[slot + 12 * hrow : slot + 13 * hrow] = 0
            if r >= begin:
                centre = (
                    (r % 16) * arow,
                    ((r + 1) % 16) * arow,
                    ((r + 2) % 16) * arow,
                    ((r + 3) % 16) * arow,
                )
                at_7, at_11, at_21 = ((r - 3) % 12) * hrow, ((r - 5) % 16) * hrow, ((r - 10) % 24) * hrow
                w_7, w_11, w_21 = at7 + 7 * LANES, at11 + 11 * LANES, at21 + 21 * LANES
                for col in range(0, cols - 1, 2):
                    o = col * LANES
                    taps_down(sums, o, hrow, a, o + 10 * LANES, centre, h7, at_7 + o, hrow, f7, w_7, 7, 4, 2)
                    taps_down(sums, o, hrow, sums, o, straight, h11, at_11 + o, hrow, f11, w_11, 11, 4, 2)
                    taps_down(sums, o, hrow, sums, o, straight, h21, at_21 + o, hrow, f21, w_21, 21, 4, 2)
                for col in range(cols // 2 * 2, cols):
                    o = col * LANES
                    taps_down(sums, o, hrow, a, o + 10 * LANES, centre, h7, at_7 + o, hrow, f7, w_7, 7, 4, 1)
                    taps_down(sums, o, hrow, sums, o, straight, h11, at_11 + o, hrow, f11, w_11, 11, 4, 1)
                    taps_down(sums, o, hrow, sums, o, straight, h21, at_21 + o, hrow, f21, w_21, 21, 4, 1)
                for i in range(r, min(r + 4, end)):
                    for col in range(cols):
                        at = (i * width + left + col) * channels + block * LANES
                        store(s, at, sums, (i - r) * hrow + col * LANES)


@njit
def _depthwise_row(
    out: Features,
    out_at: int,
    above: Features,
    above_at: int,
    x: Features,
    x_at: int,
    below: Features,
    below_at: int,
    width: int,
    channels: int,
    w: Floats,
    bias: Floats,
) -> None:
    """One row of `depthwise_gelu`, each of the rows it reads in an array of its own."""
    blocks, nine = channels // LANES, 9 * LANES
    for k in range(blocks):  # the left edge has no taps to its left
        o = k * LANES
        if width == 1:
            taps_3x3(
                out, out_at + o, above, above_at + o, x, x_at + o, below, below_at + o, channels,
                w, k * nine, bias, o, 1, 1, 1,
            )  # fmt: skip
        else:
            taps_3x3(
                out, out_at + o, above, above_at + o, x, x_at + o, below, below_at + o, channels,
                w, k * nine, bias, o, 1, 2, 1,
            )  # fmt: skip
    quads = max(width - 2, 0) // 4
    for quad in range(quads):
        for k in range(blocks):
            i = 4 * quad * channels + k * LANES
            o = i + channels
            taps_3x3(
                out, out_at + o, above, above_at + i, x, x_at + i, below, below_at + i, channels,
                w, k * nine, bias, k * LANES, 0, 3, 4,
            )  # fmt: skip
    for col in range(4 * quads, width - 2):
        for k in range(blocks):
            i = col * channels + k * LANES
            o = i + channels
            taps_3x3(
                out, out_at + o, above, above_at + i, x, x_at + i, below, below_at + i, channels,
                w, k * nine, bias, k * LANES, 0, 3, 1,
            )  # fmt: skip
    if width > 1:
        for k in range(blocks):
            i = (width - 2) * channels + k * LANES
            o = i + channels
            taps_3x3(
                out, out_at + o, above, above_at + i, x, x_at + i, below, below_at + i, channels,
                w, k * nine, bias, k * LANES, 0, 2, 1,
            )  # fmt: skip


@njit
def depthwise_gelu(
    out: Features,
    before: Features,
    before_at: int,
    x: Features,
    rows: int,
    after: Features,
    first: int,
    last: int,
    width: int,
    channels: int,
    w: Floats,
    bias: Floats,
) -> None:
    """GELU of a 3×3 depthwise convolution of some rows of an image that comes piece by piece.

    Args:
        out: Gets rows ``first`` to ``last`` - 1, from its beginning.
        before: What came before the piece: its row -1 lies at ``before_at``, row -2 right before that; zeros above
            the image.
        before_at: See there, in elements.
        x: The piece, rows 0 to ``rows`` - 1.
        rows: Rows of the piece.
        after: Row ``rows``, read where ``last`` is ``rows`` only; zeros below the image.
        first: First row wanted, -1 or 0.
        last: Row after the last one wanted.
        width: W.
        channels: C.
        w: Weights (C / 16, 9, 16).
        bias: (C / 16, 16).
    """
    weights, biases = w.ravel(), bias.ravel()
    row = width * channels
    for t in range(first, last):
        above, above_at = (x, (t - 1) * row) if t >= 1 else (before, before_at + t * row)
        centre, centre_at = (x, t * row) if t >= 0 else (before, before_at)
        below, below_at = (x, (t + 1) * row) if t + 1 < rows else (after, 0)
        _depthwise_row(
            out,
            (t - first) * row,
            above,
            above_at,
            centre,
            centre_at,
            below,
            below_at,
            width,
            channels,
            weights,
            biases,
        )


@njit
def add_upsampled(
    out: Features, first: int, last: int, height: int, width: int, x: Features, rows: int, cols: int, channels: int
) -> None:
    """Add features, bilinearly upsampled with ``align_corners=False``, to rows of larger ones.

    Args:
        out: Rows ``first`` to ``last`` - 1 of features of ``height`` × ``width``, flat.
        first: See there.
        last: See there.
        height: See there.
        width: See there.
        x: Features of ``rows`` × ``cols``, flat.
        rows: See there.
        cols: See there.
        channels: C of both.
    """
    rate_y, rate_x = np.float32(rows / height), np.float32(cols / width)
    half, one, zero = np.float32(0.5), np.float32(1), np.float32(0)
    for row in range(first, last):
        y = max((np.float32(row) + half) * rate_y - half, zero)
        y0 = min(int(y), rows - 1)
        y1 = min(y0 + 1, rows - 1)
        down = y - np.float32(y0)
        for col in range(width):
            at_x = max((np.float32(col) + half) * rate_x - half, zero)
            x0 = min(int(at_x), cols - 1)
            x1 = min(x0 + 1, cols - 1)
            right = at_x - np.float32(x0)
            a, b = (one - down) * (one - right), (one - down) * right
            c, d = down * (one - right), down * right
            o = ((row - first) * width + col) * channels
            at_a, at_b = (y0 * cols + x0) * channels, (y0 * cols + x1) * channels
            at_c, at_d = (y1 * cols + x0) * channels, (y1 * cols + x1) * channels
            for k in range(0, channels, LANES):
                blend_to(out, o + k, x, at_a + k, a, at_b + k, b, at_c + k, c, at_d + k, d)


@njit
def channel_sums(x: Features, pixels: int, channels: int, sums: npt.NDArray[np.float64]) -> None:
    """Sum and sum of squares of each channel of ``x`` (pixels·C), into ``sums`` (2, C)."""
    part = np.empty(2 * channels, dtype=np.float32)
    sums[:] = 0
    for top in range(0, pixels, 64):  # float32 within a few pixels, float64 between
        part[:] = 0
        for i in range(top, min(top + 64, pixels)):
            for k in range(0, channels, LANES):
                add_moments(part, k, channels + k, x, i * channels + k)
        for k in range(channels):
            sums[0, k] += part[k]
            sums[1, k] += part[channels + k]


@njit
def scale_shift_relu(x: Features, pixels: int, channels: int, scale: Floats, shift: Floats) -> None:
    """``max(x · scale + shift, 0)`` channel by channel, in place."""
    for i in range(pixels):
        for k in range(0, channels, LANES):
            scaled_relu(x, i * channels + k, scale, shift, k)


@njit
def layer_norm(
    out: Features, x: Features, pixels: int, channels: int, scale: Floats, weight: Floats, bias: Floats, eps: float
) -> None:
    """LayerNorm over the channels of ``x`` · ``scale``, pixel by pixel."""
    line = np.empty(channels, dtype=np.float32)
    for i in range(pixels):
        at = i * channels
        for k in range(0, channels, LANES):
            product_to(line, k, x, at + k, scale, k)
        total = np.float32(0)
        for k in range(channels):
            total += line[k]
        mean = total / np.float32(channels)
        square = np.float32(0)
        for k in range(channels):
            square += (line[k] - mean) * (line[k] - mean)
        rate = np.float32(1) / np.sqrt(square / np.float32(channels) + np.float32(eps))
        for k in range(channels):
            line[k] = (line[k] - mean) * rate * weight[k] + bias[k]
        for k in range(0, channels, LANES):
            store(out, at + k, line, k)


@njit
def _times(
    out: Floats, a: Floats, a_at: int, a_row: int, a_step: int, b: Floats, length: int, rows: int, rank: int
) -> None:
    """``out`` (rows·R) += a (rows × length, lying either way) times b (length·R)."""
    for start in range(0, length, DEPTH):  # so much of b stays in the fastest cache while all rows go over it
        depth = min(DEPTH, length - start)
        first, b_at = a_at + start * a_step, start * rank
        for left in range(0, rank // 64 * 64, 64):
            for i in range(0, rows - 5, 6):
                products(
                    out, i * rank + left, rank, a, first + i * a_row, a_row, a_step, b, b_at + left, rank, depth, 6, 4
                )
            for i in range(rows // 6 * 6, rows):
                products(
                    out, i * rank + left, rank, a, first + i * a_row, a_row, a_step, b, b_at + left, rank, depth, 1, 4
                )
        for left in range(rank // 64 * 64, rank, LANES):
            for i in range(0, rows - 15, 16):
                products(
                    out, i * rank + left, rank, a, first + i * a_row, a_row, a_step, b, b_at + left, rank, depth, 16, 1
                )
            for i in range(rows // 16 * 16, rows):
                products(
                    out, i * rank + left, rank, a, first + i * a_row, a_row, a_step, b, b_at + left, rank, depth, 1, 1
                )


@njit
def factorization_round(
    x: Floats,
    codes: Floats,
    pixels: int,
    channels: int,
    rank: int,
    bases: Floats,
    gram: Floats,
    first: bool,
    eps: np.float32,
    product: Floats,
    codes_gram: Floats,
) -> None:
    """New codes of some pixels, and what the bases need of them, in one pass over the features.

    ``C ← C · XW / (C WᵀW + eps)``, where C begins as ``softmax(XW)``; then ``XᵀC`` and ``CᵀC``. R is a multiple of 16.

    Args:
        x: Features X (pixels·D), flat.
        codes: C (pixels·R), flat; read unless ``first``, then overwritten.
        pixels: Their number.
        channels: D.
        rank: R.
        bases: W (D·R), flat.
        gram: WᵀW (R·R), flat.
        first: Whether the codes begin here.
        eps: See there.
        product: Gets XᵀC (D·R).
        codes_gram: Gets CᵀC (R·R).
    """
    numerator = np.empty(PIXELS * rank, dtype=np.float32)
    divisor = np.empty(PIXELS * rank, dtype=np.float32)
    block = np.empty(PIXELS * rank, dtype=np.float32)
    product[:] = 0
    codes_gram[:] = 0
    for top in range(0, pixels, PIXELS):
        count = min(PIXELS, pixels - top)
        numerator[:] = 0
        divisor[:] = 0
        _times(numerator, x, top * channels, channels, 1, bases, channels, count, rank)
        if first:
            for i in range(count):
                at = i * rank
                best = numerator[at]
                for j in range(1, rank):
                    best = max(best, numerator[at + j])
                total = np.float32(0)
                for j in range(rank):
                    block[at + j] = np.exp(numerator[at + j] - best)
                    total += block[at + j]
                for j in range(rank):
                    block[at + j] /= total
        else:
            block[: count * rank] = codes[top * rank : (top + count) * rank]
        _times(divisor, block, 0, rank, 1, gram, rank, count, rank)
        for i in range(0, count * rank, LANES):
            updated(block, i, numerator, i, divisor, i, eps)
        codes[top * rank : (top + count) * rank] = block[: count * rank]
        _times(product, x, top * channels, 1, channels, block, count, channels, rank)
        _times(codes_gram, block, 0, 1, rank, block, count, rank, rank)
