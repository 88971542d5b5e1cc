from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from geoseg.runtime.ahead import Abandoned, behind


def test_items_arrive_in_order_before_the_end() -> None:
    taken: list[int] = []
    with behind(taken.extend, most=2, name="test") as put:
        for i in range(20):
            put(i)
    assert taken == list(range(20))


def test_the_caller_waits_for_a_slow_consumer() -> None:
    go, passed = threading.Event(), []

    def consume(items: Iterator[int]) -> None:
        go.wait(10)
        assert len(passed) <= 3
        list(items)

    threading.Timer(0.1, go.set).start()
    with behind(consume, most=3, name="test") as put:
        for i in range(6):
            put(i)
            passed.append(i)


def test_an_error_of_the_consumer_reaches_the_caller() -> None:
    def consume(items: Iterator[int]) -> None:
        assert next(items) == 0
        raise OSError("disk full")

    for last in (0, 100):  # at the end, and in between
        with pytest.raises(OSError, match="disk full"), behind(consume, most=2, name="test") as put:
            for i in range(last + 1):
                put(i)


def test_an_error_of_the_caller_ends_the_items() -> None:
    ended: list[BaseException] = []

    def consume(items: Iterator[int]) -> None:
        try:
            list(items)
        except Abandoned as error:
            ended.append(error)
            raise

    with pytest.raises(ZeroDivisionError), behind(consume, most=2, name="test") as put:
        put(1)
        raise ZeroDivisionError
    assert len(ended) == 1
