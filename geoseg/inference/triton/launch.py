"""What the kernels share: how a tile is multiplied, the GELU, sizes of tiles.

Every kernel is written so that the bytes it writes do not depend on the batch, on the tile a pixel falls into, or on
the device: tiles along the reduced axis are a function of the layer alone, sums are taken in one order, nothing is
added atomically, and no configuration is chosen by timing.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels run in Triton's interpreter on the CPU: TRITON_INTERPRET was 1 when this module was imported."""


def power_of_two(value: int) -> int:
    """The smallest power of two that is not below ``value``."""
    return 1 << max(value - 1, 0).bit_length()


def cdiv(value: int, by: int) -> int:
    """``value / by``, rounded up."""
    return -(-value // by)


def reduce_block(size: int) -> int:
    """Length of the pieces that an axis of ``size`` is reduced in: one that divides it where there is one."""
    return next((block for block in (64, 32, 16) if size % block == 0), 32)


def column_block(columns: int) -> int:
    """Columns of a tile of a product with so many columns: little padding, and rows that are read few times."""
    return min((128, 64, 32, 16), key=lambda block: (cdiv(columns, block) * (block + 16), -block))


def dot_options(dtype: torch.dtype) -> dict[str, object]:
    """How ``multiply`` treats tiles of a dtype.

    float32 is multiplied as such, since TF32 would keep three digits. The interpreter holds bfloat16 as integers and
    multiplies those, so there tiles are widened first, which changes no product.
    """
    return {"PRECISION": "ieee", "WIDE": INTERPRETED and dtype == torch.bfloat16}


def exact_gelu(dtype: torch.dtype) -> bool:
    """Whether the GELU of this dtype takes the library's erf, or one that is right to 2e-7."""
    return dtype == torch.float32


def channels_last(x: Tensor) -> Tensor:
    """(N, C, H, W) of any memory format as (N, H, W, C), contiguous; no copy of a channels-last tensor."""
    return x.permute(0, 2, 3, 1).contiguous()


@triton.jit  # type: ignore[untyped-decorator]
def multiply(a, b, c, PRECISION: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """``a @ b + c`` in float32."""
    if WIDE:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), c, input_precision=PRECISION)
    return tl.dot(a, b, c, input_precision=PRECISION)


@triton.jit  # type: ignore[untyped-decorator]
def gelu(x, EXACT: tl.constexpr):  # type: ignore[no-untyped-def]
    """``x · Φ(x)`` of a float32 tile, as ``relu(x) - |x| Φ(-|x|)``.

    Φ after Abramowitz and Stegun 7.1.26 where not EXACT, with an absolute error below 1e-7: far below what rounding to
    16 bits costs. 14 instructions, where the library's erf takes about 30. The reciprocal is taken as a root of a
    square's, since a division would be scaled into and out of range.
    """
    if EXACT:
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    z = tl.abs(x)
    q = 1.0 + 0.23164188 * z  # 1 + 0.3275911 |x| / sqrt(2)
    t = tl.rsqrt(q * q)
    poly = t * (0.127414796 + t * (-0.142248368 + t * (0.7107068705 + t * (-0.7265760135 + t * 0.5307027145))))
    return tl.maximum(x, 0.0) - z * (poly * tl.exp2(x * x * -0.7213475204444817))


@triton.jit
def below(value, limit):  # type: ignore[no-untyped-def]
    """Whether ``0 <= value < limit``, in one comparison: negative numbers are large as unsigned ones."""
    return value.to(tl.uint32) < limit.to(tl.uint32)
