from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoseg.errors import ConfigError
from geoseg.tiling.plan import BLENDS, Plan
from geoseg.windows import window_grid
from support.plans import make_plan


def plan(height: int = 1000, width: int = 800, **changes: Any) -> Plan:
    values = {"size": 256, "overlap": 64, "stride": 8, "classes": 3, "pixel_bytes": 3, "batch_size": 2}
    return make_plan(height, width, **(values | changes))


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


@given(st.integers(4096, 10**6), st.integers(1, 10**6))
def test_memory_does_not_grow_with_the_height(height: int, more: int) -> None:
    assert plan(height + more, 5000).memory_bytes == plan(height, 5000).memory_bytes


def test_memory_grows_with_width_classes_layers_and_window() -> None:
    base = plan(5000, 5000).memory_bytes
    assert plan(5000, 50_000).memory_bytes > base
    assert plan(5000, 5000, classes=30).memory_bytes > base
    assert plan(5000, 5000, size=512).memory_bytes > base
    assert plan(5000, 5000, pixel_bytes=16).memory_bytes > base
    assert plan(5000, 5000, layer_bytes=2).memory_bytes > base
    # the logits at stride 1 are 64 times those at stride 8
    assert plan(5000, 5000, stride=1).memory_bytes > base


@pytest.mark.parametrize("stride", [1, 8])
@pytest.mark.parametrize("pixel_bytes", [3, 8])
def test_a_scene_of_100_000_columns_needs_less_than_2_gb(stride: int, pixel_bytes: int) -> None:
    wide = plan(100_000, 100_000, size=512, overlap=128, classes=16, stride=stride, pixel_bytes=pixel_bytes)
    assert wide.memory_bytes < 2e9
    assert stride == 8 or wide.strips > 1
    assert wide.forwards < 1.1 * wide.windows


@given(
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([1, 8]),
    st.sampled_from([0, 32, 192]),
)
def test_tasks_cover_the_scene_once_with_their_windows(
    height: int, width: int, rows: int, cols: int, stride: int, overlap: int
) -> None:
    planned = plan(height, width, stride=stride, overlap=overlap, band_rows=512 * rows, strip_cols=512 * cols)
    assert sum(t.window.height * t.window.width for t in planned.tasks) == height * width
    assert len({(t.window.row, t.window.col) for t in planned.tasks}) == len(planned.tasks)
    for task in planned.tasks:
        for span, first, stop, starts, size in (
            (
                planned.band_span(task.band),
                task.window.row,
                task.window.row_stop,
                planned.rows,
                planned.window_height,
            ),
            (
                planned.strip_span(task.strip),
                task.window.col,
                task.window.col_stop,
                planned.cols,
                planned.window_width,
            ),
        ):
            assert (span.first, span.stop) == (first, stop)
            # One row of logits more on either side, and every window that touches any of these.
            total = (starts[-1] + size) // stride
            wanted = range(max((first - stride // 2) // stride, 0), min((stop - 1 - stride // 2) // stride + 2, total))
            assert range(span.cell_first, span.cell_stop) == (wanted if stride > 1 else range(first, stop))
            seen = [s for s in starts if s // stride < span.cell_stop and (s + size) // stride > span.cell_first]
            assert list(span.starts) == seen
    assert planned.windows <= planned.forwards


def test_one_band_and_strip_computes_nothing_twice() -> None:
    whole = plan(3000, 3000)
    assert whole.strips == 1
    assert whole.forwards == whole.windows
    assert plan(3000, 3000, band_rows=512).forwards == whole.windows


def test_it_says_what_it_will_do() -> None:
    planned = plan(1000, 800, band_rows=512, strip_cols=512)
    assert str(planned).startswith("20 windows of 256 × 256 px that overlap by 64 px in 2 strips")
    text = "\n".join(planned.lines())
    for words in (
        "1000 × 800 px",
        "25, 5 of them",
        "2 bands of 512 rows × 2 strips of 512 columns",
        "in-process",
        "2 windows at once",
    ):
        assert words in text


@pytest.mark.parametrize("name", sorted(BLENDS))
@pytest.mark.parametrize("length", [1, 2, 7, 64, 512])
def test_tapers_are_symmetric_and_peak_in_the_middle(name: str, length: int) -> None:
    taper = BLENDS[name](length, length // 4)
    np.testing.assert_allclose(taper, taper[::-1])
    assert taper[length // 2] == taper.max() > 0


def test_halves_of_the_sine_add_up_and_are_never_zero() -> None:
    taper = BLENDS["sine"](64, 32)
    assert (taper > 0).all()
    np.testing.assert_allclose(taper[:32] + taper[32:], 1)


def test_a_custom_blend_is_a_function_of_length_and_overlap() -> None:
    planned = plan(1000, 800, blend=lambda length, overlap: np.full(length, overlap / 2))
    for taper in planned.tapers:
        np.testing.assert_array_equal(taper, np.ones(32))
    for wrong in (lambda n, o: np.ones(n + 1), lambda n, o: np.zeros(n), lambda n, o: -np.ones(n)):
        with pytest.raises(ConfigError, match="the blend must give 32 weights"):
            _ = plan(1000, 800, blend=wrong).tapers


@pytest.mark.parametrize(
    ("changes", "complaint", "hint"),
    [
        ({"size": 100}, "window size 100 must be a multiple of 32", "--size 128"),
        ({"size": 0}, "window size 0", "--size 32"),
        ({"size": -32}, "window size -32", "--size 32"),
        ({"overlap": 256}, "overlap 256", "--overlap 64"),
        ({"overlap": 10}, "overlap 10 must be a multiple of 32", "--overlap 64"),
        ({"overlap": -32}, "overlap -32", "--overlap 64"),
        ({"batch_size": 0}, "batch size 0 is below 1", "--batch-size 1"),
        ({"band_rows": 500}, "band_rows 500 must be a multiple of 512", "512"),
        ({"strip_cols": 0}, "strip_cols 0", "512"),
    ],
)
def test_what_cannot_be_meant_is_explained(changes: dict[str, int], complaint: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        plan(**changes)
    assert hint in str(caught.value.hint)
