"""Do the same for several items in threads, and report what is wrong with all of them at once."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from geoseg.errors import GeosegError, one_error

T = TypeVar("T")
R = TypeVar("R")


def gather(call: Callable[[T], R], items: Iterable[T], what: str, *, threads: int = 1, name: str = "gather") -> list[R]:
    """The results of a function for each item, in order; all items are tried.

    Args:
        call: The function, called in the threads.
        items: Its arguments.
        what: What an error means, to follow "2 of 3": "scenes cannot be used".
        threads: Number of threads.
        name: Name of the threads, after "geoseg-".

    Raises:
        GeosegError: What the function raised; if several times, one error that lists them (`one_error`).
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
