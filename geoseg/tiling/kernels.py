"""What the stitcher does with numbers on a CPU, compiled; `geoseg.tiling.tensors` does the same on a GPU.

For equal bits integers are added, and every float32 operation is a single rounded one in a fixed order.
"""

from typing import Any, NamedTuple

import numpy as np

from geoseg.arrays import ByteArray, Float32Array, Int32Array
from geoseg.runtime.jit import helper, njit

TILE_PX = 2048
NO_LOGIT = -(2**31)  # less than any in fixed point


class Sums(NamedTuple):
    """Logits that were added up on some rows of the grid, and what is known of the windows that they are of."""

    logits: Any  # in fixed point, times the windows' tapers, (K, h, C) int32
    weights: Any  # sum of the tapers, (h, C) int32
    low: Any  # the smallest and the greatest of the windows' own classes, (h, C) uint8
    high: Any


class Placement(NamedTuple):
    """Where a block of mean logits lies on the scene's grid of logits, and which pixels are wanted of it."""

    top: int  # first row and column of the block, in logits
    left: int
    grid_rows: int  # size of the scene's grid of logits
    grid_cols: int
    stride: int  # pixels per logit
    first_row: int  # first row and column of the output, px
    first_col: int
    height: int  # size of the output, px
    width: int
    step: int  # fixed-point units of one logit


@njit
def add_logits(
    logits: Float32Array,
    taper: Int32Array,
    first: int,
    sums: Sums,
    mapped: Int32Array,
    left: int,
    width: int,
    limit: np.float32,
    step: np.float32,
) -> None:
    """Add ``width`` columns of a window's logits in fixed point times its taper.

    What is added is how far each class lies below the window's best, at most ``limit``, in steps of 1/``step``.

    Args:
        logits: (K, h, w).
        taper: (h, w).
        first: The first of the columns.
        sums: What is added to.
        mapped: The class of each logit channel, (K,).
        left: Column of the sums that the first one belongs to.
    """
    total, weights, low, high = sums
    classes, height, _ = logits.shape
    best = np.empty(width, dtype=np.float32)
    nearest = np.empty(width, dtype=np.int32)
    own = np.empty(width, dtype=np.int32)
    # Sums of signed numbers could be negative and count from the end, for which loops would not be vectorized.
    begin, place, columns = np.uint64(first), np.uint64(left), range(np.uint64(width))
    for row in range(height):
        for col in columns:
            best[col] = -np.inf
            nearest[col] = NO_LOGIT
            own[col] = 0
        for k in range(classes):
            for col in columns:
                if logits[k, row, begin + col] > best[col]:
                    best[col] = logits[k, row, begin + col]
        for k in range(classes):
            for col in columns:
                value = logits[k, row, begin + col]
                below = value - best[col]
                if value >= best[col]:  # where both are infinite there is no difference
                    below = np.float32(0)
                if not below > -limit:  # NaN too: a class without a score is the least likely one
                    below = -limit
                fixed = np.int32(np.rint(below * step))
                total[k, row, place + col] += fixed * taper[row, begin + col]
                if fixed > nearest[col]:
                    nearest[col] = fixed
                    own[col] = mapped[k]
        for col in columns:
            weights[row, place + col] += taper[row, begin + col]
            low[row, place + col] = min(low[row, place + col], own[col])
            high[row, place + col] = max(high[row, place + col], own[col])


@njit
def mean_logits(sums: Sums, first: int, stop: int) -> tuple[Float32Array, ByteArray]:
    """Means (K, n, C), in fixed-point units, of some rows of sums by their weights.

    Where there was no window the mean is 0, and the second output (n, C), too.
    """
    total, weights, _, _ = sums
    classes, _, width = total.shape
    block = np.empty((classes, stop - first, width), dtype=np.float32)
    covered = np.empty((stop - first, width), dtype=np.uint8)
    for row in range(stop - first):
        for col in range(width):
            covered[row, col] = weights[first + row, col] > 0
        for k in range(classes):
            for col in range(width):
                weight = max(weights[first + row, col], np.int32(1))
                block[k, row, col] = np.float32(total[k, first + row, col]) / np.float32(weight)
    return block, covered


@njit
def upsample(
    block: Float32Array,
    covered: ByteArray,
    place: Placement,
    fractions: Float32Array,
    classes: ByteArray,
    confidence: ByteArray | None,
    probabilities: ByteArray | None,
    exponentials: Float32Array | None,
) -> None:
    """Classes (h, w) by bilinear interpolation of mean logits.

    Args:
        block: Means (K, n, C).
        covered: Whether any window covered them, (n, C); a cell that none did takes its neighbour's value.
        place: Where the block lies, and which pixels are wanted.
        fractions: Place of a pixel between two logits, (stride,).
        classes, confidence, probabilities: Outputs, (h, w), (h, w) or None, (K, h, w) or None.
        exponentials: exp(-i / 256), and 0 at its end; None where neither confidence nor probabilities are wanted.
    """
    number = block.shape[0]
    height, width = classes.shape
    stride, left, scale = place.stride, place.left, np.float32(256 / place.step)
    half = stride // 2
    reach = 0 if stride == 1 else 1
    longest = TILE_PX // stride + 3
    line = np.empty(longest, dtype=np.float32)
    seen = np.empty(longest, dtype=np.bool_)
    left_end = np.empty(longest, dtype=np.float32)
    difference = np.empty(longest, dtype=np.float32)
    # Pixels that lie equally far between two logits stand side by side, so that all loops run over neighbours.
    best = np.empty((stride, longest), dtype=np.float32)
    winner = np.empty((stride, longest), dtype=np.int32)
    if exponentials is not None:
        values = np.empty((number, stride, longest), dtype=np.float32)
    for i in range(height):
        y = place.first_row + i
        row = (y - half) // stride
        down = fractions[y - half - row * stride]
        above = min(max(row, 0), place.grid_rows - 1) - place.top
        below = min(max(row + reach, 0), place.grid_rows - 1) - place.top
        for start in range(0, width, TILE_PX):
            count = min(width - start, TILE_PX)
            x = place.first_col + start
            col = (x - half) // stride
            cells = (x + count - 1 - half) // stride - col + 1  # each with its right neighbour
            offset = x - half - col * stride
            # Columns col … col + cells of the grid; the first and the last of them may lie outside and are repeated.
            inner = max(col, 0)
            outer = min(col + cells + reach, place.grid_cols)
            shift = inner - col
            whole = True
            for j in range(outer - inner):
                up, low = covered[above, inner - left + j], covered[below, inner - left + j]
                seen[shift + j] = up or low
                whole = whole and up and low
            for p in range(stride):
                for j in range(cells):
                    best[p, j] = -np.inf
                    winner[p, j] = 0
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
                    fraction = fractions[p]
                    for j in range(cells):
                        value = left_end[j] + difference[j] * fraction
                        winner[p, j] = k if value > best[p, j] else winner[p, j]
                        best[p, j] = value if value > best[p, j] else best[p, j]
                        if exponentials is not None:
                            values[k, p, j] = value
            for p in range(stride):
                for j in range(1 if p < offset else 0, min(cells, (count + offset - 1 - p) // stride + 1)):
                    classes[i, start + j * stride + p - offset] = winner[p, j]
            if exponentials is not None:
                _shares(values, best, cells, exponentials, scale)
                for p in range(stride):
                    for j in range(1 if p < offset else 0, min(cells, (count + offset - 1 - p) // stride + 1)):
                        pixel = start + j * stride + p - offset
                        if confidence is not None:
                            confidence[i, pixel] = np.uint8(np.rint(np.float32(254) / best[p, j]))
                        if probabilities is not None:
                            for k in range(number):
                                share = values[k, p, j] * np.float32(254)
                                probabilities[k, i, pixel] = np.uint8(np.rint(share / best[p, j]))


@helper
def _shares(
    values: Float32Array, best: Float32Array, count: int, exponentials: Float32Array, scale: np.float32
) -> None:
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
