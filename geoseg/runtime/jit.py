"""numba as this package uses it: kernels that Python calls, and helpers that only kernels call.

A third of the compile time of a small function goes into its wrapper for calls from Python, which helpers go without.
For each combination of argument types a function is compiled anew: helpers get int64 numbers, and None for what few
users need, a type whose branches go away.
"""

import hashlib
import logging
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import ParamSpec, SupportsInt, TypeVar, cast

import numba
import numpy as np
from numba.core import event
from numba.extending import register_jitable

log = logging.getLogger(__name__)

PATIENCE_S = 2.0  # how long kernels are compiled before a message says so

P = ParamSpec("P")
R = TypeVar("R")

_HERE = Path(__file__).parent

int64 = cast(Callable[[SupportsInt], int], np.int64)  # A number of an array of int32 as helpers take it


def njit(function: Callable[P, R]) -> Callable[P, R]:
    """A kernel: compiled at first use, kept on disk, and run without the GIL; type checkers see its own signature.

    Helpers of a kernel must lie in its own package (``geoseg/polygons``, say) or beside this module.
    """
    # numba keeps machine code under the qualified name, until the kernel's own file changes; helpers lie in others.
    function.__qualname__ += f"_{_digest(Path(function.__code__.co_filename).parent)}"
    try:
        return cast(Callable[P, R], numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:  # no folder to keep it in
        return cast(Callable[P, R], numba.njit(nogil=True)(function))


def helper(function: Callable[P, R]) -> Callable[P, R]:
    """A function that kernels may call; compiled as a part of them, and plain Python to everyone else."""
    return register_jitable(function)


@cache
def _digest(folder: Path) -> str:
    """Of the modules that kernels in a folder may be compiled from: those of its package, or of itself elsewhere."""
    package = next((f for f in (folder, *folder.parents) if f.parent == _HERE.parent), None)
    modules = sorted({*(package.rglob("*.py") if package else folder.glob("*.py")), *_HERE.glob("*.py")})
    return hashlib.sha256(b"\0".join(module.read_bytes() for module in modules)).hexdigest()[:8]


class _Watch(event.Listener):
    """Says once what a first run waits for."""

    def __init__(self) -> None:
        self._depth, self._begin, self._seconds, self._said = 0, 0.0, 0.0, False

    def on_start(self, event: event.Event) -> None:
        """Note when a kernel's turn begins: numba compiles one at a time, and its helpers within."""
        if self._depth == 0:
            self._begin = time.perf_counter()
            if self._seconds > PATIENCE_S and not self._said:
                self._said = True
                log.info("compiling kernels, once; about 10 s")
        self._depth += 1

    def on_end(self, event: event.Event) -> None:
        """Add up the kernels' times."""
        self._depth -= 1
        if self._depth == 0:
            self._seconds += time.perf_counter() - self._begin


_watch = _Watch()
event.register("numba:compile", _watch)  # type: ignore[no-untyped-call]
