from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoseg.errors import ConfigError
from geoseg.plan import Plan, plan_prediction
from geoseg.windows import window_grid


def plan(height: int = 1000, width: int = 800, **changes: Any) -> Plan:
    values = {"size": 256, "overlap": 64, "stride": 8, "classes": 3, "pixel_bytes": 3, "batch_size": 2}
    return plan_prediction(height, width, **(values | changes))


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 8), st.data())
def test_the_windows_are_those_of_the_grid(height: int, width: int, blocks: int, data: st.DataObject) -> None:
    overlap = 32 * data.draw(st.integers(0, blocks - 1))
    planned = plan(height, width, size=32 * blocks, overlap=overlap)
    windows = window_grid(height, width, size=32 * blocks, overlap=overlap, align=32)
    assert planned.windows == len(windows)
    assert [(r, c) for r in planned.rows for c in planned.cols] == [(w.row, w.col) for w in windows]
    assert {(planned.window_height, planned.window_width)} == {(w.height, w.width) for w in windows}
    assert width <= planned.padded_width < width + 32
    assert height <= planned.rows[-1] + planned.window_height < height + 32


@given(st.integers(512, 10**6), st.integers(1, 10**6))
def test_memory_does_not_grow_with_the_height(height: int, more: int) -> None:
    assert plan(height + more, 5000).memory_bytes == plan(height, 5000).memory_bytes


def test_memory_grows_with_width_classes_and_window() -> None:
    base = plan(5000, 5000).memory_bytes
    assert plan(5000, 50_000).memory_bytes > base
    assert plan(5000, 5000, classes=30).memory_bytes > base
    assert plan(5000, 5000, size=512).memory_bytes > base
    assert plan(5000, 5000, pixel_bytes=16).memory_bytes > base
    # the logits at stride 1 are 64 times those at stride 8
    assert plan(5000, 5000, stride=1).memory_bytes > base


def test_a_scene_of_a_hundred_thousand_columns_stays_below_two_gigabytes() -> None:
    assert plan(100_000, 100_000, size=512, overlap=128, classes=16).memory_bytes < 2e9


def test_it_says_what_it_will_do() -> None:
    assert str(plan(1000, 800)).startswith("20 windows of 256 × 256 px that overlap by 64 px")


@pytest.mark.parametrize(
    ("changes", "complaint", "hint"),
    [
        ({"size": 100}, "window size 100 is no multiple of 32", "--size 128"),
        ({"size": 0}, "window size 0", "--size 32"),
        ({"size": -32}, "window size -32", "--size 32"),
        ({"overlap": 256}, "overlap 256", "--overlap 64"),
        ({"overlap": 10}, "overlap 10 is no multiple of 32", "--overlap 64"),
        ({"overlap": -32}, "overlap -32", "--overlap 64"),
        ({"batch_size": 0}, "batch size 0 is below 1", "--batch-size 1"),
    ],
)
def test_what_cannot_be_meant_is_explained(changes: dict[str, int], complaint: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        plan(**changes)
    assert caught.value.hint == hint
