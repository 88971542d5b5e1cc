"""Work one item ahead of whoever uses it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

_END: Any = object()


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
