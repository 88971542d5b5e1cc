"""numba's ``njit`` as this package uses it: compiled at first use, kept on disk, and without the GIL."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba

P = ParamSpec("P")
R = TypeVar("R")


def njit(function: Callable[P, R]) -> Callable[P, R]:
    """A compiled function that type checkers still see with its own signature."""
    return cast(Callable[P, R], numba.njit(cache=True, nogil=True)(function))
