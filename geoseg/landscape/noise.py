"""Counter-based noise: every value is a function of a seed and integer coordinates, never of the window.

Only integer hashing and elementwise IEEE arithmetic are used (no sine, no BLAS, no reduction), so a pixel has the same
bits in every window.
"""

import numpy as np
import numpy.typing as npt

from geoseg.arrays import Float32Array, FloatArray, IntArray

UInt32 = npt.NDArray[np.uint32]
Rng = np.random.Generator


def hash_grid(rows: IntArray, cols: IntArray, seed: int) -> UInt32:
    """Well mixed 32-bit integers for every pair of a row and a column, shape (rows, cols).

    References:
        The finaliser is "lowbias32" of C. Wellons, Prospecting for Hash Functions (2018), public domain.
    """
    start = np.uint32((seed * 0x9E3779B1 + 0x7F4A7C15) & 0xFFFFFFFF)
    row_part = _mix(rows.astype(np.uint32) * np.uint32(0x85EBCA6B) + start)
    col_part = cols.astype(np.uint32) * np.uint32(0xC2B2AE35)
    return _mix(row_part[:, None] + col_part[None, :])


def _mix(h: UInt32) -> UInt32:
    h ^= h >> np.uint32(16)
    h *= np.uint32(0x7FEB352D)
    h ^= h >> np.uint32(15)
    h *= np.uint32(0x846CA68B)
    h ^= h >> np.uint32(16)
    return h


def value_noise(y: FloatArray, x: FloatArray, *, spacing: float, seed: int) -> Float32Array:
    """Smooth noise in [-1, 1] at the grid of coordinates ``y`` × ``x``, shape (len(y), len(x)).

    Hashed values on a square lattice, interpolated between neighbours with a smoothstep along each axis. ``spacing`` is
    the distance of lattice points; features are about twice as large. Seeds give independent fields.
    """
    row, row_weight = _lattice(y, spacing)
    col, col_weight = _lattice(x, spacing)
    hashed = hash_grid(np.arange(row[0], row[-1] + 2), np.arange(col[0], col[-1] + 2), seed)
    lattice = hashed.astype(np.float32) * np.float32(2.0**-31) - np.float32(1)
    left = lattice[:, col - col[0]]
    along = left + (lattice[:, col - col[0] + 1] - left) * col_weight
    upper, lower = along[row - row[0]], along[row - row[0] + 1]
    lower -= upper
    lower *= row_weight[:, None]
    lower += upper
    return np.asarray(lower)


def _lattice(coordinates: FloatArray, spacing: float) -> tuple[IntArray, Float32Array]:
    scaled = coordinates / spacing
    index = np.floor(scaled)
    fraction = scaled - index
    return index.astype(np.int64), (fraction * fraction * (3 - 2 * fraction)).astype(np.float32)


def generator(seed: int, *key: int) -> np.random.Generator:
    """A generator that depends only on the seed and the integers of the key, which may be negative."""
    return np.random.default_rng([k & 0xFFFFFFFF for k in (seed, *key)])
