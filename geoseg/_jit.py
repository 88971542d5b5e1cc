"""numba as this package uses it: kernels that Python calls, and helpers that only kernels call.

Compiling takes most of a new user's first minute, so both are kept to what they need: wrappers, for calls from Python and
from C, are a third to a half of the time of a small function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba
from numba.extending import register_jitable

P = ParamSpec("P")
R = TypeVar("R")


def njit(function: Callable[P, R]) -> Callable[P, R]:
    """A kernel: compiled at first use, kept on disk, and run without the GIL; type checkers see its own signature."""
    return cast(Callable[P, R], numba.njit(cache=True, nogil=True, no_cfunc_wrapper=True)(function))


def helper(function: Callable[P, R]) -> Callable[P, R]:
    """A function that kernels may call; compiled as a part of them, and plain Python to everyone else."""
    return cast(Callable[P, R], register_jitable(no_cfunc_wrapper=True)(function))
