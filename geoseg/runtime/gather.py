"""Do the same for several items in threads, and report what is wrong with all of them at once."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from geoseg.errors import GeosegError, one_error

T = TypeVar("T")
R = TypeVar("R")


def gather(call: Callable[[T], R], items: Iterable[T], what: str, *, threads: int = 1, name: str = "gather") -> list[R]:
    """The results of a function for each item, in order; all items are tried.

    Errors of several items become one (`one_error`); ``what`` follows "2 of 3" in it, as "scenes cannot be used". The
    function is called in ``threads`` threads called "geoseg-" and ``name``.
    """

    def tried(item: T) -> tuple[list[R], list[GeosegError]]:
        try:
            return [call(item)], []
        except GeosegError as error:
            return [], [error]

    with ThreadPoolExecutor(threads, thread_name_prefix=f"geoseg-{name}") as pool:
        found = list(pool.map(tried, items))
    errors = [error for _, raised in found for error in raised]
    if errors:
        raise one_error(errors, f"{len(errors)} of {len(found)} {what}")
    return [result for results, _ in found for result in results]
