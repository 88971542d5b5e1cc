from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import geoseg.stitch
from geoseg.plan import Plan, plan_prediction
from geoseg.stitch import Stitcher, sine_squared
from geoseg.windows import Window


def planned(height: int, width: int, *, size: int, overlap: int, stride: int, classes: int = 3) -> Plan:
    return plan_prediction(
        height, width, size=size, overlap=overlap, stride=stride, classes=classes, pixel_bytes=3, batch_size=1
    )


def scene_logits(plan: Plan, classes: int = 3, seed: int = 0) -> Tensor:
    """Random logits of the whole padded scene at the plan's stride; class margins are far above rounding."""
    rows = plan.rows[-1] + plan.window_height
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(classes, rows // plan.stride, plan.padded_width // plan.stride, generator=generator)


def stitcher(plan: Plan, classes: int = 3) -> Stitcher:
    return Stitcher(
        height=plan.height,
        width=plan.width,
        classes=classes,
        stride=plan.stride,
        window_height=plan.window_height,
        window_width=plan.window_width,
        padded_width=plan.padded_width,
        device=torch.device("cpu"),
    )


def stitch(plan: Plan, logits: Tensor) -> list[Tensor]:
    """Cut scene-wide logits into the plan's windows, as a network without context would give them, and stitch."""
    state, s, rows = stitcher(plan, logits.shape[0]), plan.stride, []
    for i, row in enumerate(plan.rows):
        for col in plan.cols:
            window = Window(row, col, plan.window_height, plan.window_width)
            part = logits[:, row // s : window.row_stop // s, col // s : window.col_stop // s]
            state.add(window, part)
        rows += state.finish(plan.rows[i + 1] if i + 1 < len(plan.rows) else None)
    return rows


def whole(plan: Plan, logits: Tensor) -> Tensor:
    """Upsampled logits (K, H, W) of the whole scene at once."""
    size = logits.shape[1] * plan.stride, logits.shape[2] * plan.stride
    full = (
        F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0] if plan.stride > 1 else logits
    )
    return full[:, : plan.height, : plan.width]


def assert_same_classes(found: Tensor, full: Tensor) -> None:
    """The classes of the full logits, except where the two best are equal within rounding."""
    assert found.dtype == torch.uint8
    best = full.topk(2, dim=0).values
    decided = best[0] - best[1] > 1e-4
    assert (~decided).sum() <= 2 + 0.01 * decided.numel()
    assert torch.equal(found.long()[decided], full.argmax(0)[decided])


@dataclass(frozen=True)
class Case:
    height: int
    width: int
    size: int
    overlap: int
    stride: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    blocks = draw(st.integers(1, 4))
    return Case(
        draw(st.integers(1, 300)),
        draw(st.integers(1, 200)),
        32 * blocks,
        32 * draw(st.integers(0, blocks - 1)),
        draw(st.sampled_from([1, 8])),
    )


@settings(max_examples=60)
@given(cases(), st.integers(0, 99))
def test_an_identity_network_stitches_back_the_whole_scene(case: Case, seed: int) -> None:
    plan = planned(case.height, case.width, size=case.size, overlap=case.overlap, stride=case.stride)
    logits = scene_logits(plan, seed=seed)
    rows = stitch(plan, logits)
    assert all(r.shape[1] == case.width for r in rows)
    assert_same_classes(torch.cat(rows), whole(plan, logits))


@pytest.mark.parametrize("stride", [1, 8])
def test_rows_finished_in_small_chunks_are_the_same(stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(205, 130, size=96, overlap=32, stride=stride)
    logits = scene_logits(plan)
    at_once = torch.cat(stitch(plan, logits))
    monkeypatch.setattr(geoseg.stitch, "CHUNK_VALUES", 1)
    chunks = stitch(plan, logits)
    assert max(len(c) for c in chunks) <= stride
    assert_same_classes(torch.cat(chunks), whole(plan, logits))
    assert (torch.cat(chunks) != at_once).float().mean() < 1e-3


@settings(max_examples=20)
@given(cases())
def test_blending_a_constant_gives_the_constant(case: Case) -> None:
    plan = planned(case.height, case.width, size=case.size, overlap=case.overlap, stride=case.stride)
    # The margin is tiny: any wrong weight of one class against the other would flip it.
    logits = torch.tensor([1.0, 1.001, -5.0])[:, None, None].expand_as(scene_logits(plan))
    assert (torch.cat(stitch(plan, logits)) == 1).all()


def test_overlapping_windows_that_disagree_are_blended_by_the_taper() -> None:
    plan = planned(32, 96, size=64, overlap=32, stride=8)
    assert plan.cols == (0, 32)
    state = stitcher(plan, 2)
    for col, sure in ((0, 0), (32, 1)):
        logits = torch.zeros(2, 4, 8)
        logits[sure] = 1
        state.add(Window(0, col, 32, 64), logits)
    (ids,) = state.finish(None)
    # Weights of the two windows are mirror images, so they change places in the middle of the scene.
    assert (ids[:, :47] == 0).all()
    assert (ids[:, 49:] == 1).all()


def test_rows_come_as_soon_as_no_window_can_touch_them() -> None:
    plan = planned(256, 64, size=64, overlap=32, stride=8)
    state, done = stitcher(plan), 0
    for i, row in enumerate(plan.rows):
        state.add(Window(row, 0, 64, 64), torch.zeros(3, 8, 8))
        next_row = plan.rows[i + 1] if i + 1 < len(plan.rows) else None
        done += sum(len(r) for r in state.finish(next_row))
        # all but half a logit, which the row below is interpolated with
        assert done == (256 if next_row is None else next_row - 4)


def test_rows_without_a_window_are_still_given() -> None:
    plan = planned(96, 64, size=64, overlap=32, stride=8)
    state = stitcher(plan)
    rows = state.finish(32)
    state.add(Window(32, 0, 64, 64), torch.ones(3, 8, 8))
    rows += state.finish(None)
    assert torch.cat(rows).shape == (96, 64)


def test_windows_out_of_turn_are_our_own_mistake() -> None:
    state = stitcher(planned(96, 64, size=64, overlap=32, stride=8))
    with pytest.raises(AssertionError, match="row by row"):
        state.add(Window(32, 0, 64, 64), torch.zeros(3, 8, 8))


@pytest.mark.parametrize("length", [1, 2, 7, 64, 512])
def test_the_taper_is_positive_symmetric_and_halves_add_up(length: int) -> None:
    taper = sine_squared(length)
    assert (taper > 0).all()
    torch.testing.assert_close(taper, taper.flip(0))
    if length % 2 == 0:
        torch.testing.assert_close(taper[: length // 2] + taper[length // 2 :], torch.ones(length // 2))


def test_half_precision_logits_are_summed_in_float32() -> None:
    plan = planned(64, 160, size=64, overlap=32, stride=8)
    logits = scene_logits(plan).bfloat16()
    assert_same_classes(torch.cat(stitch(plan, logits)), whole(plan, logits.float()))
