"""What `geoseg.stitch` does with numbers on a CPU, compiled: one pass over the logits each, in blocks that fit a cache.

`geoseg.stitch.tensors` is the same arithmetic on a GPU, bit for bit: integers are added, and every float32 operation
is a single rounded one in a fixed order. Nothing depends on how rows or columns are grouped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

F = TypeVar("F", bound=Callable[..., Any])

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

TILE_PX = 2048


def _njit(function: F) -> F:
    return cast(F, numba.njit(cache=True, nogil=True)(function))


@_njit
def add_logits(
    logits: Floats, taper: Ints, sums: Ints, weights: Ints, low: Bytes, high: Bytes, limit: np.float32, step: np.float32
) -> None:
    """Add a window's logits (K, h, w) in fixed point times its taper (h, w); all others are views of the same cells.

    What is added is how far each class lies below the window's best, at most ``limit``, in steps of 1/``step``.
    ``low`` and ``high`` (h, w) keep the smallest and the greatest of the windows' own classes.
    """
    classes, height, width = logits.shape
    best = np.empty(width, dtype=np.float32)
    nearest = np.empty(width, dtype=np.int32)
    own = np.empty(width, dtype=np.uint8)
    for row in range(height):
        best[:] = -np.inf
        for k in range(classes):
            for col in range(width):
                if logits[k, row, col] > best[col]:
                    best[col] = logits[k, row, col]
        for k in range(classes):
            for col in range(width):
                value = logits[k, row, col]
                below = value - best[col]
                if value >= best[col]:  # where both are infinite there is no difference
                    below = np.float32(0)
                if not below > -limit:  # NaN too: a class without a score is the least likely one
                    below = -limit
                fixed = np.int32(np.rint(below * step))
                sums[k, row, col] += fixed * taper[row, col]
                if k == 0 or fixed > nearest[col]:
                    nearest[col] = fixed
                    own[col] = k
        for col in range(width):
            weights[row, col] += taper[row, col]
            low[row, col] = min(low[row, col], own[col])
            high[row, col] = max(high[row, col], own[col])


@_njit
def mean_logits(sums: Ints, weights: Ints, block: Floats, covered: Bytes) -> None:
    """Weighted means (K, n, C) of the sums, in fixed-point units; 0 and not covered where no window was."""
    classes, height, width = sums.shape
    for row in range(height):
        for col in range(width):
            covered[row, col] = weights[row, col] > 0
        for k in range(classes):
            for col in range(width):
                weight = max(weights[row, col], np.int32(1))
                block[k, row, col] = np.float32(sums[k, row, col]) / np.float32(weight)


@_njit
def upsample(
    block: Floats,
    covered: Bytes,
    top: int,
    cell_rows: int,
    left: int,
    cell_cols: int,
    stride: int,
    fractions: Floats,
    first_row: int,
    first_col: int,
    classes: Bytes,
    confidence: Bytes,
    probabilities: Bytes,
    exponentials: Floats,
    scale: np.float32,
) -> None:
    """Classes (h, w) of the pixels from (first_row, first_col) on, by bilinear interpolation of mean logits.

    Args:
        block: Means (K, n, C) of the rows of logits from ``top`` and the columns from ``left`` on.
        covered: Whether any window covered them, (n, C); a cell that none did takes its neighbour's value.
        top: Place of the block on the scene's grid of logits.
        cell_rows: Rows of that grid.
        left: See ``top``.
        cell_cols: Columns of that grid.
        stride: Pixels per logit.
        fractions: Place of a pixel between two logits, (stride,).
        first_row: First row of the output, px.
        first_col: First column of the output, px.
        classes: Output.
        confidence: Output (h, w), or empty.
        probabilities: Output (K, h, w), or empty.
        exponentials: exp(-i / 256), and 0 at its end.
        scale: 256 over the fixed-point units of one logit.
    """
    number = block.shape[0]
    height, width = classes.shape
    half = stride // 2
    reach = 0 if stride == 1 else 1
    longest = TILE_PX // stride + 3
    line = np.empty(longest, dtype=np.float32)
    seen = np.empty(longest, dtype=np.bool_)
    left_end = np.empty(longest, dtype=np.float32)
    difference = np.zeros(longest, dtype=np.float32)
    # Pixels that lie equally far between two logits stand side by side, so that all loops run over neighbours.
    best = np.empty((stride, longest), dtype=np.float32)
    winner = np.empty((stride, longest), dtype=np.int32)
    keep = confidence.size > 0 or probabilities.size > 0
    values = np.empty((number, stride, longest if keep else 0), dtype=np.float32)
    for i in range(height):
        y = first_row + i
        row = (y - half) // stride
        down = fractions[y - half - row * stride]
        above = min(max(row, 0), cell_rows - 1) - top
        below = min(max(row + reach, 0), cell_rows - 1) - top
        for start in range(0, width, TILE_PX):
            count = min(width - start, TILE_PX)
            x = first_col + start
            col = (x - half) // stride
            cells = (x + count - 1 - half) // stride - col + 1  # each with its right neighbour
            offset = x - half - col * stride
            # Columns col … col + cells of the grid; the first and the last of them may lie outside and are repeated.
            inner = max(col, 0)
            outer = min(col + cells + reach, cell_cols)
            shift = inner - col
            whole = True
            for j in range(outer - inner):
                up, low = covered[above, inner - left + j], covered[below, inner - left + j]
                seen[shift + j] = up or low
                whole = whole and up and low
            for k in range(number):
                first, second = block[k, above], block[k, below]
                for j in range(outer - inner):
                    a = first[inner - left + j]
                    b = second[inner - left + j]
                    if not whole:
                        if not covered[above, inner - left + j]:
                            a = b
                        if not covered[below, inner - left + j]:
                            b = a
                    line[shift + j] = a + (b - a) * down
                if shift:
                    line[0] = line[1]
                    seen[0] = seen[1]
                if outer < col + cells + reach:
                    line[cells] = line[cells - 1]
                    seen[cells] = seen[cells - 1]
                for j in range(cells):
                    a = line[j]
                    b = line[j + reach]
                    if not whole:
                        if not seen[j]:
                            a = b
                        if not seen[j + reach]:
                            b = a
                    left_end[j] = a
                    difference[j] = b - a
                for p in range(stride):
                    _keep_best(left_end, difference, fractions[p], k, cells, best[p], winner[p])
                    if keep:
                        kept = values[k, p]
                        for j in range(cells):
                            kept[j] = left_end[j] + difference[j] * fractions[p]
            for p in range(stride):
                found = winner[p]
                for j in range(1 if p < offset else 0, min(cells, (count + offset - 1 - p) // stride + 1)):
                    classes[i, start + j * stride + p - offset] = found[j]
            if keep:
                _shares(values, best, cells, exponentials, scale)
                for p in range(stride):
                    for j in range(1 if p < offset else 0, min(cells, (count + offset - 1 - p) // stride + 1)):
                        place = start + j * stride + p - offset
                        if confidence.size:
                            confidence[i, place] = np.uint8(np.rint(np.float32(254) / best[p, j]))
                        for k in range(number if probabilities.size else 0):
                            share = values[k, p, j] * np.float32(254)
                            probabilities[k, i, place] = np.uint8(np.rint(share / best[p, j]))


@_njit
def _keep_best(
    left: Floats, difference: Floats, fraction: np.float32, k: int, count: int, best: Floats, winner: Ints
) -> None:
    """Interpolate class ``k`` and keep the greatest value so far with its class."""
    if k == 0:
        for j in range(count):
            best[j] = left[j] + difference[j] * fraction
            winner[j] = 0
    else:
        for j in range(count):
            value = left[j] + difference[j] * fraction
            winner[j] = k if value > best[j] else winner[j]
            best[j] = value if value > best[j] else best[j]


@_njit
def _shares(values: Floats, best: Floats, count: int, exponentials: Floats, scale: np.float32) -> None:
    """Exponentials of values (K, s, n) below the best (s, n) in place of the values, and their sum of the best."""
    last = exponentials.shape[0] - 1
    for p in range(best.shape[0]):
        for j in range(count):
            total = np.float32(0)
            for k in range(values.shape[0]):
                place = min(np.int32((best[p, j] - values[k, p, j]) * scale + np.float32(0.5)), last)
                values[k, p, j] = exponentials[place]
                total += exponentials[place]
            best[p, j] = total
