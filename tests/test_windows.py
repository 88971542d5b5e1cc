from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoseg.windows import Window, round_up, window_grid, window_starts


@st.composite
def plans(draw: st.DrawFn) -> dict[str, int]:
    align = draw(st.sampled_from([1, 2, 8, 32]))
    size = draw(st.integers(1, 6)) * align
    overlap = draw(st.integers(0, size // align - 1)) * align
    return {
        "height": draw(st.integers(1, 200)),
        "width": draw(st.integers(1, 200)),
        "size": size,
        "overlap": overlap,
        "align": align,
    }


@given(plans())
def test_windows_cover_the_padded_scene_and_never_leave_it(plan: dict[str, int]) -> None:
    align = plan["align"]
    padded = round_up(plan["height"], align), round_up(plan["width"], align)
    seen = np.zeros(padded, dtype=int)
    windows = window_grid(**plan)
    for w in windows:
        assert min(w.row, w.col) >= 0
        assert w.row_stop <= padded[0] and w.col_stop <= padded[1]
        seen[w.row : w.row_stop, w.col : w.col_stop] += 1
    assert seen.min() >= 1


@given(plans())
def test_windows_are_unique_of_one_shape_and_on_the_grid(plan: dict[str, int]) -> None:
    windows = window_grid(**plan)
    assert len(set(windows)) == len(windows)
    assert windows == sorted(windows)
    assert len({(w.height, w.width) for w in windows}) == 1
    assert all(v % plan["align"] == 0 for w in windows for v in (w.row, w.col, w.height, w.width))


@given(plans())
def test_neighbouring_windows_share_at_least_the_overlap(plan: dict[str, int]) -> None:
    starts = window_starts(plan["height"], size=plan["size"], overlap=plan["overlap"], align=plan["align"])
    assert all(0 < b - a <= plan["size"] - plan["overlap"] for a, b in pairwise(starts))


@given(plans())
def test_no_window_could_be_left_out(plan: dict[str, int]) -> None:
    starts = window_starts(plan["height"], size=plan["size"], overlap=plan["overlap"], align=plan["align"])
    stride = plan["size"] - plan["overlap"]
    beyond_first = max(round_up(plan["height"], plan["align"]) - plan["size"], 0)
    assert len(starts) == 1 + -(-beyond_first // stride)


def test_a_small_scene_gets_one_window_of_its_padded_size() -> None:
    assert window_grid(50, 700, size=512, overlap=128, align=32)[0] == Window(0, 0, 64, 512)
    assert window_grid(1, 1, size=512, overlap=128, align=32) == [Window(0, 0, 32, 32)]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"length": 0, "size": 8, "overlap": 0}, "length"),
        ({"length": 9, "size": 8, "overlap": 8}, "overlap"),
        ({"length": 9, "size": 8, "overlap": -1}, "overlap"),
        ({"length": 9, "size": 8, "overlap": 4, "align": 3}, "multiples of 3"),
        ({"length": 9, "size": 8, "overlap": 4, "align": 0}, "align"),
    ],
)
def test_impossible_plans_are_refused(arguments: dict[str, int], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        window_starts(arguments.pop("length"), **arguments)
