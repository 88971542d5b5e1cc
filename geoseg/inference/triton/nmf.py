"""The factorization of the Hamburger: one pass over the features for each of its rounds.

A round is two kernels. The first reads a chunk of pixels X, and with the bases W of their image computes the new codes
``C · XᵀW / (C WᵀW + ε)`` and the chunk's shares of ``XᵀC`` and ``CᵀC``; the second adds the chunks' shares up, in their
order, and makes the new bases. Chunks have a fixed length, so neither the batch nor the device changes a sum.
Everything is float32, whatever X is stored as.

Bases of rank 64 leave a program no registers for the shares: there two more kernels make them, and features are read
twice. `factorize` launches 2 · steps + 1 kernels, 15 for SegNeXt's 7 steps, and 30 at rank 64.
"""

# ruff: noqa: RUF005 - Triton's compiler knows no starred expressions.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from geoseg.inference.triton.launch import INTERPRETED, cdiv, multiply, power_of_two

EPS = 1e-6
"""Added to denominators, as `geoseg.models.NMF2d` does."""

PIXEL_BLOCK = 64
"""Pixels of a tile."""

CHUNK = 512
"""Pixels of a chunk, at least: what one program sums up."""

CHANNEL_BLOCK = 64
"""Channels of a tile."""

FUSED_VALUES = 512 * 16
"""Up to so many values of bases, channels × rank, a program can sum up XᵀC in registers beside the codes."""


@triton.jit  # type: ignore[untyped-decorator]
def times(x, w, total, PRECISION: tl.constexpr, WIDE: tl.constexpr, SPLIT: tl.constexpr):  # type: ignore[no-untyped-def]
    """``x @ w + total`` of features as they are stored and a float32 tile, as exact as float32.

    SPLIT, for bfloat16 features: ``w`` as three bfloat16 tiles that sum to it but for a last bit, and three products.
    """
    if SPLIT:
        high = w.to(x.dtype)
        rest = w - high.to(tl.float32)
        middle = rest.to(x.dtype)
        low = (rest - middle.to(tl.float32)).to(x.dtype)
        total = multiply(x, low, total, PRECISION, WIDE)
        total = multiply(x, middle, total, PRECISION, WIDE)
        return multiply(x, high, total, PRECISION, WIDE)
    return tl.dot(x.to(tl.float32), w, total, input_precision=PRECISION)


@triton.jit(do_not_specialize=["pixels", "chunks"])  # type: ignore[untyped-decorator]
def codes_kernel(  # type: ignore[no-untyped-def]
    x,  # (N, pixels, D)
    bases,  # (N, D, RP), or (1, D, RP) where SHARED
    codes,  # (N, pixels, RP) float32
    products,  # (N, chunks, D, RP) float32: XᵀC of each chunk; where ACCUMULATE
    grams,  # (N, chunks, RP, RP) float32: CᵀC
    sums,  # (N, chunks, RP) float32: sum of C; where LAST
    pixels,
    chunks,
    eps,
    D: tl.constexpr,
    R: tl.constexpr,
    RP: tl.constexpr,
    SHARED: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    GRAM: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    BLOCKS: tl.constexpr,
    BP: tl.constexpr,
    BD: tl.constexpr,
    TILES: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """New codes of a chunk of pixels; see the module's text. R codes are padded to RP with zeros, which stay zero."""
    chunk = tl.program_id(0)
    n = tl.program_id(1).to(tl.int64)
    x += n * pixels * D
    codes += n * pixels * RP
    if not SHARED:
        bases += n * D * RP
    r = tl.arange(0, RP)
    d = tl.arange(0, BD)
    p = tl.arange(0, BP)
    gram_of_bases = tl.zeros((RP, RP), tl.float32)
    for tile in range(TILES):
        w = tl.load(bases + (tile * BD + d)[:, None] * RP + r[None, :], mask=(tile * BD + d < D)[:, None], other=0.0)
        gram_of_bases = tl.dot(tl.trans(w), w, gram_of_bases, input_precision=PRECISION)
    shares = (tl.zeros((BD, RP), tl.float32),) * TILES
    gram = tl.zeros((RP, RP), tl.float32)
    total = tl.zeros((RP,), tl.float32)
    for block in range(BLOCKS):
        pixel = (chunk * BLOCKS + block) * BP + p
        there = (pixel < pixels)[:, None]
        rows = pixel.to(tl.int64)[:, None]
        numerator = tl.zeros((BP, RP), tl.float32)
        for tile in range(TILES):
            inside = tile * BD + d < D
            v = tl.load(x + rows * D + (tile * BD + d)[None, :], mask=there & inside[None, :], other=0.0)
            w = tl.load(bases + (tile * BD + d)[:, None] * RP + r[None, :], mask=inside[:, None], other=0.0)
            numerator = times(v, w, numerator, PRECISION, WIDE, SPLIT)
        if FIRST:
            shifted = tl.where((r < R)[None, :], numerator, float("-inf"))
            code = tl.exp(shifted - tl.max(shifted, axis=1)[:, None])
            code = code / tl.sum(code, axis=1)[:, None]
        else:
            code = tl.load(codes + rows * RP + r[None, :], mask=there, other=0.0)
        denominator = tl.dot(code, gram_of_bases, input_precision=PRECISION) + eps
        code = code * numerator / denominator
        tl.store(codes + rows * RP + r[None, :], code, mask=there)
        if GRAM:
            gram = tl.dot(tl.trans(code), code, gram, input_precision=PRECISION)
        if LAST:
            total += tl.sum(code, axis=0)
        if ACCUMULATE:
            done = ()
            for i in tl.static_range(TILES):
                inside = there & (i * BD + d < D)[None, :]
                v = tl.load(x + rows * D + (i * BD + d)[None, :], mask=inside, other=0.0)
                done = done + (times(tl.trans(v), code, shares[i], PRECISION, WIDE, SPLIT),)  # type: ignore[assignment]
            shares = done
    slot = n * chunks + chunk
    if GRAM:
        tl.store(grams + slot * RP * RP + r[:, None] * RP + r[None, :], gram)
    if LAST:
        tl.store(sums + slot * RP + r, total)
    if ACCUMULATE:
        for i in tl.static_range(TILES):
            place = slot * D * RP + (i * BD + d)[:, None] * RP + r[None, :]
            tl.store(products + place, shares[i], mask=(i * BD + d < D)[:, None])


@triton.jit(do_not_specialize=["pixels", "chunks"])  # type: ignore[untyped-decorator]
def products_kernel(  # type: ignore[no-untyped-def]
    x,  # (N, pixels, D)
    codes,  # (N, pixels, RP) float32
    products,  # (N, chunks, D, RP) float32
    pixels,
    chunks,
    D: tl.constexpr,
    RP: tl.constexpr,
    BLOCKS: tl.constexpr,
    BP: tl.constexpr,
    BD: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """``XᵀC`` of a chunk and of BD channels, where `codes_kernel` has no registers left for it; CᵀC with codes as X."""
    n = tl.program_id(2).to(tl.int64)
    r = tl.arange(0, RP)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    p = tl.arange(0, BP)
    x += n * pixels * D
    codes += n * pixels * RP
    share = tl.zeros((BD, RP), tl.float32)
    for block in range(BLOCKS):
        pixel = (tl.program_id(0) * BLOCKS + block) * BP + p
        there = (pixel < pixels)[:, None]
        rows = pixel.to(tl.int64)[:, None]
        v = tl.load(x + rows * D + d[None, :], mask=there & (d < D)[None, :], other=0.0)
        code = tl.load(codes + rows * RP + r[None, :], mask=there, other=0.0)
        share = times(tl.trans(v), code, share, PRECISION, WIDE, SPLIT)
    slot = n * chunks + tl.program_id(0)
    tl.store(products + slot * D * RP + d[:, None] * RP + r[None, :], share, mask=(d < D)[:, None])


@triton.jit(do_not_specialize=["chunks"])  # type: ignore[untyped-decorator]
def bases_kernel(  # type: ignore[no-untyped-def]
    bases,  # (N, D, RP), or (1, D, RP) where SHARED
    products,  # (N, chunks, D, RP)
    grams,  # (N, chunks, RP, RP)
    out,  # (N, D, RP); it may be ``bases``
    chunks,
    eps,
    D: tl.constexpr,
    RP: tl.constexpr,
    SHARED: tl.constexpr,
    BD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """New bases ``W · XᵀC / (W CᵀC + ε)`` of BD channels, from the shares of all chunks in their order."""
    n = tl.program_id(1).to(tl.int64)
    r = tl.arange(0, RP)
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    inside = (d < D)[:, None]
    place = d[:, None] * RP + r[None, :]
    product = tl.zeros((BD, RP), tl.float32)
    gram = tl.zeros((RP, RP), tl.float32)
    for chunk in range(chunks):
        slot = n * chunks + chunk
        product += tl.load(products + slot * D * RP + place, mask=inside, other=0.0)
        gram += tl.load(grams + slot * RP * RP + r[:, None] * RP + r[None, :])
    if SHARED:
        w = tl.load(bases + place, mask=inside, other=0.0)
    else:
        w = tl.load(bases + n * D * RP + place, mask=inside, other=0.0)
    w = w * product / (tl.dot(w, gram, input_precision=PRECISION) + eps)
    tl.store(out + n * D * RP + place, w, mask=inside)


@triton.jit(do_not_specialize=["pixels", "chunks"])  # type: ignore[untyped-decorator]
def context_kernel(  # type: ignore[no-untyped-def]
    bases,  # (N, D, RP)
    ham_out,  # (D, D) float32, inputs first
    norm_weight,  # (D,) float32
    norm_bias,  # (D,) float32
    grams,  # (N, chunks, RP, RP)
    sums,  # (N, chunks, RP)
    rows,  # (N, RP, D) float32
    shift,  # (N, D) float32
    pixels,
    chunks,
    eps,
    D: tl.constexpr,
    RP: tl.constexpr,
    GROUP: tl.constexpr,
    BG: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``ham_out`` and its group norm as a product with the codes, for one group of channels of one image.

    A channel's values over the image are ``C v`` with ``v = (ham_out W)ᵀ`` of it, so their mean is ``mean(C) v`` and
    their variance ``vᵀ cov(C) v``: neither takes a pass over pixels. The covariance is a difference of large numbers
    and is taken in float64.
    """
    n = tl.program_id(1).to(tl.int64)
    r = tl.arange(0, RP)
    column = tl.arange(0, BG)
    own = column < GROUP
    d = tl.program_id(0) * GROUP + column
    k = tl.arange(0, BK)
    v = tl.zeros((RP, BG), tl.float32)
    for start in range(0, D, BK):
        inside = start + k < D
        w = tl.load(bases + n * D * RP + (start + k)[:, None] * RP + r[None, :], mask=inside[:, None], other=0.0)
        h = tl.load(ham_out + (start + k)[:, None] * D + d[None, :], mask=inside[:, None] & own[None, :], other=0.0)
        v = tl.dot(tl.trans(w), h, v, input_precision=PRECISION)
    gram = tl.zeros((RP, RP), tl.float64)
    mean = tl.zeros((RP,), tl.float64)
    for chunk in range(chunks):
        slot = n * chunks + chunk
        gram += tl.load(grams + slot * RP * RP + r[:, None] * RP + r[None, :]).to(tl.float64)
        mean += tl.load(sums + slot * RP + r).to(tl.float64)
    count = pixels.to(tl.float64)
    mean = mean / count
    covariance = (gram / count - mean[:, None] * mean[None, :]).to(tl.float32)
    spread = tl.sum(v * tl.dot(covariance, v, input_precision=PRECISION), axis=0)
    means = tl.sum(v * mean.to(tl.float32)[:, None], axis=0)
    group_mean = tl.sum(tl.where(own, means, 0.0), axis=0) / GROUP
    off = tl.where(own, means - group_mean, 0.0)
    variance = tl.sum(tl.where(own, tl.maximum(spread, 0.0), 0.0) + off * off, axis=0) / GROUP
    rate = tl.load(norm_weight + d, mask=own, other=0.0) / tl.sqrt(variance + eps)
    tl.store(rows + n * RP * D + r[:, None] * D + d[None, :], v * rate[None, :], mask=own[None, :])
    tl.store(shift + n * D + d, tl.load(norm_bias + d, mask=own, other=0.0) - group_mean * rate, mask=own)


@triton.jit(do_not_specialize=["pixels"])  # type: ignore[untyped-decorator]
def add_context_kernel(  # type: ignore[no-untyped-def]
    x,  # (N, pixels, D)
    codes,  # (N, pixels, RP)
    rows,  # (N, RP, D)
    shift,  # (N, D)
    out,  # (N, pixels, D)
    pixels,
    D: tl.constexpr,
    RP: tl.constexpr,
    BP: tl.constexpr,
    BD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``relu(x + C rows + shift)``."""
    n = tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(0).to(tl.int64) * BP + tl.arange(0, BP)
    r = tl.arange(0, RP)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    inside = (d < D)[None, :]
    there = (pixel < pixels)[:, None]
    code = tl.load(codes + n * pixels * RP + pixel[:, None] * RP + r[None, :], mask=there, other=0.0)
    v = tl.load(rows + n * RP * D + r[:, None] * D + d[None, :], mask=inside, other=0.0)
    total = tl.dot(code, v, input_precision=PRECISION)
    total += tl.load(shift + n * D + d, mask=d < D, other=0.0)[None, :]
    place = n * pixels * D + pixel[:, None] * D + d[None, :]
    total += tl.load(x + place, mask=there & inside, other=0.0).to(tl.float32)
    tl.store(out + place, tl.maximum(total, 0.0).to(out.dtype.element_ty), mask=there & inside)


class Factors:
    """What `factorize` leaves: codes, bases, and sums over the codes that come with them.

    Attributes:
        codes: (N, pixels, RP) float32 C; columns from the rank on are zero.
        bases: (N, D, RP) float32 W, likewise.
        grams: (N, chunks, RP, RP) float32, CᵀC of each chunk of pixels.
        sums: (N, chunks, RP) float32, the sum of C.
    """

    def __init__(self, codes: Tensor, bases: Tensor, grams: Tensor, sums: Tensor) -> None:
        self.codes, self.bases, self.grams, self.sums = codes, bases, grams, sums


def pack_bases(bases: Tensor) -> Tensor:
    """Initial bases (1, D, R), normalised, with zeros up to a power of two that a product takes: (1, D, RP) float32."""
    padded = max(16, power_of_two(bases.shape[2]))
    return torch.nn.functional.pad(bases.float(), (0, padded - bases.shape[2])).contiguous()


def float32_options(dtype: torch.dtype, padded_rank: int) -> dict[str, object]:
    """How float32 tiles are multiplied where features are stored as ``dtype``.

    Three products of TF32 are float32 but for the last bits, on tensor cores; small ranks need none. Features that are
    stored as float32 were asked for exactly.
    """
    wide = INTERPRETED and dtype == torch.bfloat16
    exact = dtype == torch.float32 or INTERPRETED or padded_rank <= 16
    return {"PRECISION": "ieee" if exact else "tf32x3", "WIDE": wide, "SPLIT": dtype == torch.bfloat16}


def factorize(x: Tensor, bases: Tensor, rank: int, steps: int) -> Factors:
    """Multiplicative updates of `geoseg.models.NMF2d` in evaluation.

    Args:
        x: (N, pixels, D) non-negative features, contiguous.
        bases: (1, D, RP) of `pack_bases`.
        rank: R.
        steps: Rounds of codes and bases; one more update of the codes follows.
    """
    n, pixels, d = x.shape
    rp = bases.shape[2]
    blocks = cdiv(CHUNK, PIXEL_BLOCK)
    chunks = cdiv(pixels, blocks * PIXEL_BLOCK)
    fused = d * rp <= FUSED_VALUES
    # Beside the products of a large rank, half a tile and twice the warps leave registers enough.
    block, warps = (CHANNEL_BLOCK, 4) if fused else (CHANNEL_BLOCK // 2, 8)

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=x.device)

    codes, grams, sums = empty(n, pixels, rp), empty(n, chunks, rp, rp), empty(n, chunks, rp)
    products, current = empty(n, chunks, d, rp), empty(n, d, rp)
    options = float32_options(x.dtype, rp)
    for step in range(steps + 1):
        first, last = step == 0, step == steps
        w = bases if first else current
        codes_kernel[(chunks, n)](
            x,
            w,
            codes,
            products,
            grams,
            sums,
            pixels,
            chunks,
            EPS,
            D=d,
            R=rank,
            RP=rp,
            SHARED=first,
            FIRST=first,
            LAST=last,
            GRAM=fused,
            ACCUMULATE=fused and not last,
            BLOCKS=blocks,
            BP=PIXEL_BLOCK,
            BD=block,
            TILES=cdiv(d, block),
            **options,
            num_warps=warps,
            num_stages=2,
        )
        if not fused:
            _chunk_products(codes, codes, grams)
            if not last:
                _chunk_products(x, codes, products)
        if last:
            break
        bases_kernel[(cdiv(d, 16), n)](
            w, products, grams, current, chunks, EPS, D=d, RP=rp, SHARED=first, BD=16, PRECISION="ieee", num_warps=4
        )
    return Factors(codes, current if steps else bases.expand(n, -1, -1).contiguous(), grams, sums)


def _chunk_products(x: Tensor, codes: Tensor, out: Tensor) -> None:
    """``xᵀ @ codes`` of each chunk of pixels into ``out`` (N, chunks, columns of x, RP)."""
    n, pixels, d = x.shape
    chunks, rp = out.shape[1], codes.shape[2]
    products_kernel[(chunks, cdiv(d, CHANNEL_BLOCK), n)](
        x,
        codes,
        out,
        pixels,
        chunks,
        D=d,
        RP=rp,
        BLOCKS=cdiv(CHUNK, PIXEL_BLOCK),
        BP=PIXEL_BLOCK,
        BD=CHANNEL_BLOCK,
        num_warps=4,
        num_stages=2,
        **float32_options(x.dtype, rp),
    )


def add_context(
    x: Tensor, factors: Factors, ham_out: Tensor, norm_weight: Tensor, norm_bias: Tensor, *, groups: int, eps: float
) -> Tensor:
    """``relu(x + group_norm(ham_out(W Cᵀ)))`` without ever forming the D × D product: two kernels.

    Args:
        x: (N, pixels, D) what goes around the factorization; the result has its dtype.
        factors: Of `factorize`.
        ham_out: (D, D) float32, inputs first.
        norm_weight: (D,) float32.
        norm_bias: (D,) float32.
        groups: Groups of the group norm.
        eps: Of the group norm.
    """
    n, pixels, d = x.shape
    rp, chunks = factors.codes.shape[2], factors.grams.shape[1]
    rows = torch.empty((n, rp, d), dtype=torch.float32, device=x.device)
    shift = torch.empty((n, d), dtype=torch.float32, device=x.device)
    group = d // groups
    context_kernel[(groups, n)](
        factors.bases,
        ham_out,
        norm_weight,
        norm_bias,
        factors.grams,
        factors.sums,
        rows,
        shift,
        pixels,
        chunks,
        eps,
        D=d,
        RP=rp,
        GROUP=group,
        BG=max(16, power_of_two(group)),
        BK=32,
        PRECISION="ieee",
        num_warps=4,
    )
    out = torch.empty_like(x)
    precision = float32_options(x.dtype, rp)["PRECISION"]
    bp, bd = 64, min(128 if rp <= 16 else 64, max(16, power_of_two(d)))
    add_context_kernel[(cdiv(pixels, bp), cdiv(d, bd), n)](
        x, factors.codes, rows, shift, out, pixels, D=d, RP=rp, BP=bp, BD=bd, PRECISION=precision, num_warps=4
    )
    return out
