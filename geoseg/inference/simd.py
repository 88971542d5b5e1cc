"""Depthwise convolution and GELU on 16 channels at a time, as vector instructions for numba's compiled code.

numba turns loops into vector code where it can prove enough about them; a convolution with its accumulators in
registers is beyond that. `taps` therefore writes the instructions itself (LLVM vectors of 16 floats, which LLVM maps
to AVX-512, to pairs of AVX2 or to NEON registers). Activations are float32, or bfloat16 stored as uint16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
"""Channels of one vector: a cache line of float32."""

GELU_LIMIT = 5.0
"""Beyond it GELU is 0 or its input, to 3e-7 of the latter."""

GELU_COEFFICIENTS = (
    0.14136378467, -0.07029665262, 0.05152142048, -0.04043294862, 0.03142622858, -0.02333673090, 0.01649765670,
    -0.01097323187, 0.00616542855, -0.00291567342, 0.00200186227, -0.00151415355, 0.00049296877,
)  # fmt: skip
"""(Φ(x) - 1/2) / x as a polynomial in 2x²/25 - 1, Φ the normal distribution: GELU to 1.5e-6 (minimax, by Lawson)."""

_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_WORDS = ir.VectorType(ir.IntType(32), LANES)
_HALVES = ir.VectorType(ir.IntType(16), LANES)
_FUSE = ("contract",)  # a product and a sum may become one instruction


def _intrinsic(function: Callable[..., Any]) -> Callable[..., None]:
    """A function of compiled code that writes its own instructions; numba alone passes the first argument."""
    return cast(Callable[..., None], intrinsic(prefer_literal=True)(function))


def _splat(value: float) -> ir.Constant:
    return ir.Constant(_FLOATS, [ir.Constant(ir.FloatType(), float(np.float32(value)))] * LANES)


def _words(value: int) -> ir.Constant:
    return ir.Constant(_WORDS, [ir.Constant(ir.IntType(32), value)] * LANES)


class _Array:
    """Vectors in a flat array of float32 or of bfloat16 as uint16."""

    def __init__(self, context: Any, builder: Any, kind: Any, value: Any) -> None:
        self.builder = builder
        self.half = kind.dtype == types.uint16
        assert self.half or kind.dtype == types.float32, kind
        data = context.make_array(kind)(context, builder, value).data
        self.base = builder.ptrtoint(data, ir.IntType(64))

    def _pointer(self, offset: Any) -> tuple[Any, Any]:
        kind = _HALVES if self.half else _FLOATS
        size = ir.Constant(ir.IntType(64), 2 if self.half else 4)
        address = self.builder.add(self.base, self.builder.mul(offset, size))
        return self.builder.inttoptr(address, kind.as_pointer()), kind

    def load(self, offset: Any) -> Any:
        pointer, kind = self._pointer(offset)
        value = self.builder.load(pointer, align=2 if self.half else 4, typ=kind)
        if self.half:
            wide = self.builder.shl(self.builder.zext(value, _WORDS), _words(16))
            value = self.builder.bitcast(wide, _FLOATS)
        return value

    def scalar(self, offset: Any) -> Any:
        assert not self.half
        address = self.builder.add(self.base, self.builder.mul(offset, ir.Constant(ir.IntType(64), 4)))
        pointer = self.builder.inttoptr(address, ir.FloatType().as_pointer())
        return self.builder.load(pointer, align=4, typ=ir.FloatType())

    def store(self, value: Any, offset: Any) -> None:
        b = self.builder
        pointer, _ = self._pointer(offset)
        if self.half:  # round to nearest, ties to even
            bits = b.bitcast(value, _WORDS)
            odd = b.and_(b.lshr(bits, _words(16)), _words(1))
            bits = b.add(bits, b.add(odd, _words(0x7FFF)))
            value = b.trunc(b.lshr(bits, _words(16)), _HALVES)
        b.store(value, pointer, align=2 if self.half else 4)


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return builder.fadd(builder.fmul(a, b, flags=_FUSE), c, flags=_FUSE)


def _broadcast(builder: Any, value: Any) -> Any:
    lane = ir.Constant(ir.IntType(32), 0)
    first = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), value, lane)
    return builder.shuffle_vector(first, ir.Constant(_FLOATS, ir.Undefined), ir.Constant(_WORDS, [lane] * LANES))


def _register(builder: Any) -> Any:
    """Room for one vector that LLVM keeps in a register."""
    return cgutils.alloca_once(builder, _FLOATS)  # type: ignore[no-untyped-call]


def _gelu(builder: Any, x: Any) -> Any:
    b = builder
    limit = _splat(GELU_LIMIT)
    low = _splat(-GELU_LIMIT)
    clipped = b.select(b.fcmp_ordered("<", x, limit), x, limit)
    clipped = b.select(b.fcmp_ordered(">", clipped, low), clipped, low)
    s = _fma(b, b.fmul(clipped, clipped), _splat(2 / GELU_LIMIT**2), _splat(-1))
    total = _splat(GELU_COEFFICIENTS[-1])
    for coefficient in GELU_COEFFICIENTS[-2::-1]:
        total = _fma(b, total, s, _splat(coefficient))
    return b.fmul(x, _fma(b, clipped, total, _splat(0.5)))


def _index(builder: Any, base: Any, *terms: tuple[Any, int]) -> Any:
    """``base`` plus strides times constants."""
    for stride, times in terms:
        if times:
            base = builder.add(base, builder.mul(stride, ir.Constant(ir.IntType(64), times)))
    return base


def _literals(*values: Any) -> tuple[int, ...] | None:
    if all(isinstance(value, types.IntegerLiteral) for value in values):
        return tuple(value.literal_value for value in values)
    return None


@_intrinsic
def taps(
    typingctx: Any,
    out: Any,
    out_at: Any,
    twin: Any,
    bias: Any,
    bias_at: Any,
    x: Any,
    x_at: Any,
    x_row: Any,
    w: Any,
    w_at: Any,
    rows: Any,
    cols: Any,
    pixels: Any,
) -> Any:
    """``out[p] = bias + Σ w[i, j] · x[i, p + j]`` for ``pixels`` neighbours p, 16 channels each.

    All arrays are flat and float32, pixels follow each other every 16 elements; ``…_at`` is where the first vector
    begins, and ``x_row`` how far the next row's is.

    Args:
        typingctx: numba's.
        out, out_at: Where the results go, and ``twin`` elements further once more.
        twin: 0 stores them once.
        bias, bias_at: A vector that the sums begin with.
        x, x_at, x_row: The input at the first tap of the first pixel.
        w, w_at: Weights, a vector for each tap.
        rows, cols: Taps; literal integers.
        pixels: Pixels computed together, as many as the registers hold; a literal integer.
    """
    sizes = _literals(rows, cols, pixels)
    if sizes is None:
        return None
    height, width, count = sizes
    at = types.intp

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        outputs, biases, inputs, weights = (_Array(context, builder, sig.args[i], args[i]) for i in (0, 3, 5, 8))
        out_at, twin, bias_at, x_at, x_row, w_at = (args[i] for i in (1, 2, 4, 6, 7, 9))
        lane = ir.Constant(ir.IntType(64), LANES)
        sums = [biases.load(bias_at)] * count
        for i in range(height):
            # each input vector is loaded once for all pixels that it is a tap of
            line = [inputs.load(_index(builder, x_at, (x_row, i), (lane, j))) for j in range(width + count - 1)]
            for j in range(width):
                weight = weights.load(_index(builder, w_at, (lane, i * width + j)))
                for p in range(count):
                    sums[p] = _fma(builder, weight, line[j + p], sums[p])
        for p in range(count):
            where = _index(builder, out_at, (lane, p))
            outputs.store(sums[p], where)
            outputs.store(sums[p], builder.add(where, twin))
        return context.get_dummy_value()

    return types.void(out, at, at, bias, at, x, at, at, w, at, rows, cols, pixels), generate


@_intrinsic
def taps_down(
    typingctx: Any,
    out: Any,
    out_at: Any,
    out_row: Any,
    start: Any,
    start_at: Any,
    start_rows: Any,
    x: Any,
    x_at: Any,
    x_row: Any,
    w: Any,
    w_at: Any,
    count: Any,
    rows: Any,
    cols: Any,
) -> Any:
    """``out[r, c] = start[r, c] + Σ w[t] · x[r + t, c]``: a strip across the rows, for some rows and columns at once.

    An input row is loaded once for all the rows that it is a tap of: they come from a slower cache than the weights.
    All arrays are flat and float32, columns follow each other every 16 elements.

    Args:
        typingctx: numba's.
        out, out_at, out_row: Where the results go, and how far the next row of them is.
        start, start_at: What the sums begin with.
        start_rows: A tuple with how far each row of ``start`` is from ``start_at``.
        x, x_at, x_row: The input at the first tap of the first row.
        w, w_at: Weights, a vector for each tap.
        count: Taps; a literal integer.
        rows, cols: Rows and columns computed together; literal integers.
    """
    sizes = _literals(count, rows, cols)
    if sizes is None:
        return None
    length, height, width = sizes
    at = types.intp

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        outputs, starts, inputs, weights = (_Array(context, builder, sig.args[i], args[i]) for i in (0, 3, 6, 9))
        out_at, out_row, start_at, x_at, x_row, w_at = (args[i] for i in (1, 2, 4, 7, 8, 10))
        lane = ir.Constant(ir.IntType(64), LANES)
        sums = []
        for r in range(height):
            first = builder.add(start_at, builder.extract_value(args[5], r))
            sums.append([starts.load(_index(builder, first, (lane, c))) for c in range(width)])
        for t in range(length + height - 1):
            line = [inputs.load(_index(builder, x_at, (x_row, t), (lane, c))) for c in range(width)]
            for r in range(height):
                if 0 <= t - r < length:
                    weight = weights.load(_index(builder, w_at, (lane, t - r)))
                    for c in range(width):
                        sums[r][c] = _fma(builder, weight, line[c], sums[r][c])
        for r in range(height):
            for c in range(width):
                outputs.store(sums[r][c], _index(builder, out_at, (out_row, r), (lane, c)))
        return context.get_dummy_value()

    return types.void(out, at, at, start, at, start_rows, x, at, at, w, at, count, rows, cols), generate


@_intrinsic
def taps_3x3(
    typingctx: Any,
    out: Any,
    out_at: Any,
    above: Any,
    above_at: Any,
    x: Any,
    x_at: Any,
    below: Any,
    below_at: Any,
    step: Any,
    w: Any,
    w_at: Any,
    bias: Any,
    bias_at: Any,
    first: Any,
    cols: Any,
    pixels: Any,
) -> Any:
    """GELU of a 3×3 depthwise convolution for ``pixels`` neighbours, 16 channels each; every row in its own array.

    Args:
        typingctx: numba's.
        out, out_at: Where the results go; float32 or uint16.
        above, above_at, x, x_at, below, below_at: The three rows, each at the leftmost tap that is used.
        step: How far the next pixel is, in input and output, in elements.
        w, w_at: Nine weights, a vector for each tap, float32.
        bias, bias_at: A vector, float32.
        first: Column of the weights that the leftmost tap belongs to: 1 at the image's left edge, else 0; literal.
        cols: Columns of taps: 2 at an edge, 1 where the image is one pixel wide, else 3; literal.
        pixels: Pixels computed together; literal.
    """
    sizes = _literals(first, cols, pixels)
    if sizes is None:
        return None
    left, width, count = sizes
    at = types.intp

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        outputs, weights, biases = (_Array(context, builder, sig.args[i], args[i]) for i in (0, 9, 11))
        rows = [(_Array(context, builder, sig.args[i], args[i]), args[i + 1]) for i in (2, 4, 6)]
        out_at, step, w_at, bias_at = (args[i] for i in (1, 8, 10, 12))
        lane = ir.Constant(ir.IntType(64), LANES)
        sums = [biases.load(bias_at)] * count
        for i, (row, row_at) in enumerate(rows):
            line = [row.load(_index(builder, row_at, (step, j))) for j in range(width + count - 1)]
            for j in range(width):
                weight = weights.load(_index(builder, w_at, (lane, 3 * i + left + j)))
                for p in range(count):
                    sums[p] = _fma(builder, weight, line[j + p], sums[p])
        for p in range(count):
            outputs.store(_gelu(builder, sums[p]), _index(builder, out_at, (step, p)))
        return context.get_dummy_value()

    return types.void(out, at, above, at, x, at, below, at, at, w, at, bias, at, first, cols, pixels), generate


@_intrinsic
def gelu_to(typingctx: Any, out: Any, out_at: Any, also: Any, also_at: Any, twin: Any, x: Any, x_at: Any) -> Any:
    """GELU of 16 channels of ``x`` to ``out``, to ``also``, and ``twin`` elements further there; all arrays flat."""
    at = types.intp

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        outputs, others, inputs = (_Array(context, builder, sig.args[i], args[i]) for i in (0, 2, 5))
        value = _gelu(builder, inputs.load(args[6]))
        outputs.store(value, args[1])
        others.store(value, args[3])
        others.store(value, builder.add(args[3], args[4]))
        return context.get_dummy_value()

    return types.void(out, at, also, at, at, x, at), generate


@_intrinsic
def store(typingctx: Any, out: Any, out_at: Any, x: Any, x_at: Any) -> Any:
    """16 channels of ``x``, in the type of ``out``; both arrays flat."""
    at = types.intp

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        outputs, inputs = (_Array(context, builder, sig.args[i], args[i]) for i in (0, 2))
        outputs.store(inputs.load(args[3]), args[1])
        return context.get_dummy_value()

    return types.void(out, at, x, at), generate


@_intrinsic
def product_to(typingctx: Any, out: Any, out_at: Any, x: Any, x_at: Any, factor: Any, factor_at: Any) -> Any:
    """16 channels of ``x`` times those of ``factor``."""
    at = types.intp

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        outputs, inputs, factors = (_Array(context, builder, sig.args[i], args[i]) for i in (0, 2, 4))
        outputs.store(builder.fmul(inputs.load(args[3]), factors.load(args[5])), args[1])
        return context.get_dummy_value()

    return types.void(out, at, x, at, factor, at), generate


@_intrinsic
def scaled_relu(typingctx: Any, x: Any, x_at: Any, scale: Any, shift: Any, at: Any) -> Any:
    """``max(x · scale + shift, 0)`` of 16 channels, in place."""
    place = types.intp

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        values, scales, shifts = (_Array(context, builder, sig.args[i], args[i]) for i in (0, 2, 3))
        total = _fma(builder, values.load(args[1]), scales.load(args[4]), shifts.load(args[4]))
        zero = _splat(0)
        values.store(builder.select(builder.fcmp_ordered(">", total, zero), total, zero), args[1])
        return context.get_dummy_value()

    return types.void(x, place, scale, shift, place), generate


@_intrinsic
def add_moments(typingctx: Any, sums: Any, sum_at: Any, square_at: Any, x: Any, x_at: Any) -> Any:
    """Add 16 channels of ``x`` and their squares to two places of ``sums``."""
    at = types.intp

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        totals, inputs = (_Array(context, builder, sig.args[i], args[i]) for i in (0, 3))
        value = inputs.load(args[4])
        totals.store(builder.fadd(totals.load(args[1]), value), args[1])
        totals.store(_fma(builder, value, value, totals.load(args[2])), args[2])
        return context.get_dummy_value()

    return types.void(sums, at, at, x, at), generate


@_intrinsic
def blend_to(
    typingctx: Any,
    out: Any,
    out_at: Any,
    x: Any,
    at_a: Any,
    a: Any,
    at_b: Any,
    b: Any,
    at_c: Any,
    c: Any,
    at_d: Any,
    d: Any,
) -> Any:
    """Add four neighbours' 16 channels of ``x``, times their float32 weights a, b, c, d, to ``out``."""
    at, weight = types.intp, types.float32

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        outputs, inputs = (_Array(context, builder, sig.args[i], args[i]) for i in (0, 2))
        total = outputs.load(args[1])
        for i in (3, 5, 7, 9):
            total = _fma(builder, _broadcast(builder, args[i + 1]), inputs.load(args[i]), total)
        outputs.store(total, args[1])
        return context.get_dummy_value()

    return types.void(out, at, x, at, weight, at, weight, at, weight, at, weight), generate


@_intrinsic
def products(
    typingctx: Any,
    out: Any,
    out_at: Any,
    out_row: Any,
    a: Any,
    a_at: Any,
    a_row: Any,
    a_step: Any,
    b: Any,
    b_at: Any,
    b_row: Any,
    length: Any,
    rows: Any,
    vectors: Any,
) -> Any:
    """``out[i, :] += Σ_k a[i, k] · b[k, :]``, a few rows of a matrix product whose result is narrow.

    All arrays are flat float32; rows of ``out`` and ``b`` are ``vectors`` times 16 numbers.

    Args:
        typingctx: numba's.
        out, out_at, out_row: Where the results go, and how far the next row is.
        a, a_at, a_row, a_step: The left matrix; ``a_step`` is how far the next k is, so it may lie either way.
        b, b_at, b_row: The right one.
        length: Number of k.
        rows, vectors: Sums that are kept in registers; literal integers.
    """
    sizes = _literals(rows, vectors)
    if sizes is None:
        return None
    height, width = sizes
    at = types.intp

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        outputs, left, right = (_Array(context, builder, sig.args[i], args[i]) for i in (0, 3, 7))
        out_at, out_row, a_at, a_row, a_step, b_at, b_row, length = (args[i] for i in (1, 2, 4, 5, 6, 8, 9, 10))
        lane = ir.Constant(ir.IntType(64), LANES)
        places = [_index(builder, out_at, (out_row, i)) for i in range(height)]
        sums = [[_register(builder) for _ in range(width)] for _ in range(height)]
        for i in range(height):
            for j in range(width):
                builder.store(outputs.load(_index(builder, places[i], (lane, j))), sums[i][j])
        with cgutils.for_range(builder, length) as loop:
            b_start = builder.add(b_at, builder.mul(loop.index, b_row))
            a_start = builder.add(a_at, builder.mul(loop.index, a_step))
            line = [right.load(_index(builder, b_start, (lane, j))) for j in range(width)]
            for i in range(height):
                factor = _broadcast(builder, left.scalar(_index(builder, a_start, (a_row, i))))
                for j in range(width):
                    total = builder.load(sums[i][j], typ=_FLOATS)
                    builder.store(_fma(builder, factor, line[j], total), sums[i][j])
        for i in range(height):
            for j in range(width):
                outputs.store(builder.load(sums[i][j], typ=_FLOATS), _index(builder, places[i], (lane, j)))
        return context.get_dummy_value()

    signature = types.void(out, at, at, a, at, at, at, b, at, at, at, rows, vectors)
    return signature, generate


@_intrinsic
def updated(
    typingctx: Any, out: Any, out_at: Any, factor: Any, factor_at: Any, over: Any, over_at: Any, eps: Any
) -> Any:
    """``out · factor / (over + eps)`` of 16 numbers, in place; all arrays flat float32."""
    at = types.intp

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        values, factors, divisors = (_Array(context, builder, sig.args[i], args[i]) for i in (0, 2, 4))
        product = builder.fmul(values.load(args[1]), factors.load(args[3]))
        divisor = builder.fadd(divisors.load(args[5]), _broadcast(builder, args[6]))
        values.store(builder.fdiv(product, divisor), args[1])
        return context.get_dummy_value()

    return types.void(out, at, factor, at, over, at, types.float32), generate
