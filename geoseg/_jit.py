"""numba as this package uses it: kernels that Python calls, and helpers that only kernels call.

Compiling takes most of a new user's first minute. A third of the time of a small function goes into its wrapper for
calls from Python, which helpers go without. A function is compiled anew for every combination of argument types, so
helpers are called with int64 numbers, and what few users need is None to the others, a type whose branches go away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, SupportsInt, TypeVar, cast

import numba
import numpy as np
from numba.extending import register_jitable

P = ParamSpec("P")
R = TypeVar("R")

int64 = cast(Callable[[SupportsInt], int], np.int64)
"""A number of an array of int32 as helpers take it."""


def njit(function: Callable[P, R]) -> Callable[P, R]:
    """A kernel: compiled at first use, kept on disk, and run without the GIL; type checkers see its own signature."""
    return cast(Callable[P, R], numba.njit(cache=True, nogil=True)(function))


def helper(function: Callable[P, R]) -> Callable[P, R]:
    """A function that kernels may call; compiled as a part of them, and plain Python to everyone else."""
    return register_jitable(function)
