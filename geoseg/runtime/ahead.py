"""Work in threads beside the caller's: one item ahead of it, some items behind it, or several at once."""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import Queue
from typing import Any, TypeVar

from geoseg.errors import GeosegError, one_error

T = TypeVar("T")
R = TypeVar("R")

_END: Any = object()
_ABANDONED: Any = object()


class Abandoned(Exception):
    """The items end early because of an exception elsewhere, which is reported."""


def ahead(items: Iterable[T], *, name: str = "geoseg-ahead") -> Iterator[T]:
    """The items, the next one being made in a thread while this one is used.

    Worth it if both release the GIL: decoding, compiled kernels, SQLite. An exception is raised in its item's place.
    """
    iterator = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix=name) as thread:
        coming = thread.submit(next, iterator, _END)
        while (item := coming.result()) is not _END:
            coming = thread.submit(next, iterator, _END)
            yield item


@contextmanager
def behind(consume: Callable[[Iterator[T]], None], *, most: int, name: str) -> Iterator[Callable[[T], None]]:
    """A function that passes items to ``consume``, which takes them in a thread, at most ``most`` of them behind.

    An exception in ``consume`` is raised by the next call, or at the end. After an exception in the caller the items
    end with `Abandoned`.
    """
    waiting: Queue[T] = Queue()
    room = threading.Semaphore(most)

    def items() -> Iterator[T]:
        while (item := waiting.get()) is not _END:
            if item is _ABANDONED:
                raise Abandoned
            yield item
            room.release()

    def put(item: T) -> None:
        room.acquire()
        if done.done():
            done.result()
        waiting.put(item)

    with ThreadPoolExecutor(1, thread_name_prefix=name) as thread:
        done = thread.submit(consume, items())
        try:
            done.add_done_callback(lambda _: room.release())  # or the caller would wait for it forever
            yield put
        except BaseException:
            waiting.put(_ABANDONED)
            raise
        waiting.put(_END)
        done.result()


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
