from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import geoseg.tiling.stitcher
from geoseg.map_rows import MapRows
from geoseg.options import Layers
from geoseg.tiling.arrays import HostArrays
from geoseg.tiling.plan import BLENDS, Plan, Span
from geoseg.tiling.stitcher import FINEST_STEP, Stitcher
from geoseg.tiling.tensors import TensorArrays
from geoseg.windows import Window
from support.plans import make_plan


def planned(height: int, width: int, *, size: int, overlap: int, stride: int, classes: int = 3, **options: Any) -> Plan:
    return make_plan(
        height,
        width,
        size=size,
        overlap=overlap,
        stride=stride,
        classes=classes,
        **options,
    )


def scene_logits(plan: Plan, classes: int = 3, seed: int = 0) -> Tensor:
    """Random logits of the whole padded scene at the plan's stride; class margins are far above rounding."""
    rows = plan.rows[-1] + plan.window_height
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(classes, rows // plan.stride, plan.padded_width // plan.stride, generator=generator)


def arrays_of(plan: Plan, *, compiled: bool = True, channels: tuple[int, ...] | None = None) -> HostArrays:
    """Those of a CPU, or those of a GPU in its memory."""
    channels = channels or tuple(range(plan.classes))
    return HostArrays(channels) if compiled else TensorArrays(channels, "cpu")


def stitcher(plan: Plan, *, layers: Layers = Layers(), **options: Any) -> Stitcher:
    """Of the whole scene."""
    rows = plan.band_span(0, plan.bands - 1)
    return Stitcher(plan, rows, plan.strip_span(0), arrays_of(plan, **options), layers)


def feed(state: Stitcher, plan: Plan, logits: Tensor, rows: Span, cols: Span) -> list[MapRows]:
    """Cut scene-wide logits into windows, as a network without context would give them, and stitch."""
    s, out = plan.stride, []
    for i, row in enumerate(rows.starts):
        for col in cols.starts:
            window = Window(row, col, plan.window_height, plan.window_width)
            state.add(window, logits[:, row // s : window.row_stop // s, col // s : window.col_stop // s])
        out += state.finish(rows.starts[i + 1] if i + 1 < len(rows.starts) else None)
    return [pending() for pending in out]


def stitch(plan: Plan, logits: Tensor, **options: Any) -> list[MapRows]:
    return feed(stitcher(plan, **options), plan, logits, plan.band_span(0, plan.bands - 1), plan.strip_span(0))


def classes(rows: list[MapRows]) -> Tensor:
    return torch.from_numpy(np.concatenate([r.classes for r in rows]))


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
    decided = best[0] - best[1] > 1.1 / FINEST_STEP  # each is rounded to half a step
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


@given(cases(), st.integers(0, 99))
def test_an_identity_network_stitches_back_the_whole_scene(case: Case, seed: int) -> None:
    plan = planned(case.height, case.width, size=case.size, overlap=case.overlap, stride=case.stride)
    logits = scene_logits(plan, seed=seed)
    rows = stitch(plan, logits)
    assert all(r.classes.shape[1] == case.width for r in rows)
    assert_same_classes(classes(rows), whole(plan, logits))


# --- the same bytes, however it is done


LAYERS = Layers(confidence=True, probabilities=True, disagreement=True)


def window_logits(plan: Plan, seed: int = 0) -> dict[tuple[int, int], Tensor]:
    """Logits of every window, each of its own: overlapping windows differ."""
    generator = torch.Generator().manual_seed(seed)
    shape = plan.classes, plan.window_height // plan.stride, plan.window_width // plan.stride
    return {(r, c): 4 * torch.randn(shape, generator=generator) for r in plan.rows for c in plan.cols}


def stitch_windows(
    plan: Plan,
    logits: dict[tuple[int, int], Tensor],
    *,
    bands: tuple[int, int] | None = None,
    layers: Layers = LAYERS,
    **options: Any,
) -> dict[str, Any]:
    """All layers of some bands, strip by strip; windows that ``logits`` lacks are skipped."""
    rows = plan.band_span(*(bands or (0, plan.bands - 1)))
    columns = []
    for strip in range(plan.strips):
        cols = plan.strip_span(strip)
        state, out = Stitcher(plan, rows, cols, arrays_of(plan, **options), layers), []
        for i, row in enumerate(rows.starts):
            for col in cols.starts:
                if (row, col) in logits:
                    state.add(Window(row, col, plan.window_height, plan.window_width), logits[row, col])
            out += state.finish(rows.starts[i + 1] if i + 1 < len(rows.starts) else None)
        columns.append(join([pending().layers for pending in out], -2))
    return join(columns, -1)


def join(pieces: list[dict[str, Any]], axis: int) -> dict[str, Any]:
    made = [name for name, layer in pieces[0].items() if layer is not None]
    return {name: np.concatenate([piece[name] for piece in pieces], axis) for name in made}


def assert_equal(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.parametrize("stride", [1, 8])
@pytest.mark.parametrize(("height", "width", "overlap"), [(1100, 1300, 64), (530, 520, 96), (1025, 40, 0)])
def test_bands_and_strips_are_byte_equal_to_the_whole(stride: int, height: int, width: int, overlap: int) -> None:
    whole_plan = planned(height, width, size=128, overlap=overlap, stride=stride, band_rows=2048, strip_cols=2048)
    logits = window_logits(whole_plan)
    wanted = stitch_windows(whole_plan, logits)
    assert wanted["classes"].shape == (height, width)
    plan = planned(height, width, size=128, overlap=overlap, stride=stride, band_rows=512, strip_cols=512)
    parts = [stitch_windows(plan, logits, bands=(band, band)) for band in range(plan.bands)]
    assert_equal(join(parts, -2), wanted)
    two = [stitch_windows(plan, logits, bands=b) for b in ((0, 0), (1, plan.bands - 1)) if b[1] >= b[0]]
    assert_equal(join(two, -2), wanted)


@given(cases(), st.sampled_from(sorted(BLENDS)), st.randoms(use_true_random=False))
def test_window_order_and_piece_size_do_not_matter(case: Case, blend: str, random: Any) -> None:
    plan = planned(case.height, case.width, size=case.size, overlap=case.overlap, stride=case.stride, blend=blend)
    logits = window_logits(plan)
    wanted = stitch_windows(plan, logits)
    rows, cols = plan.band_span(0, plan.bands - 1), plan.strip_span(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geoseg.tiling.stitcher, "PIECE_BYTES", 1)
        state, out = stitcher(plan, layers=LAYERS), []
        for i, row in enumerate(rows.starts):
            for col in random.sample(cols.starts, len(cols.starts)):
                state.add(Window(row, col, plan.window_height, plan.window_width), logits[row, col])
            out += state.finish(rows.starts[i + 1] if i + 1 < len(rows.starts) else None)
    assert_equal(join([pending().layers for pending in out], -2), wanted)


@given(cases(), st.sets(st.tuples(st.integers(0, 9), st.integers(0, 9))))
def test_compiled_code_and_tensors_give_the_same_bytes(case: Case, skipped: set[tuple[int, int]]) -> None:
    plan = planned(case.height, case.width, size=case.size, overlap=case.overlap, stride=case.stride)
    logits = window_logits(plan)
    for i, place in enumerate(list(logits)):
        if (i // 10 % 10, i % 10) in skipped:
            del logits[place]
    assert_equal(stitch_windows(plan, logits, compiled=False), stitch_windows(plan, logits, compiled=True))


# --- what blending means


@given(cases(), st.sampled_from(sorted(BLENDS)))
def test_blending_a_constant_gives_the_constant(case: Case, blend: str) -> None:
    plan = planned(case.height, case.width, size=case.size, overlap=case.overlap, stride=case.stride, blend=blend)
    # The margin is tiny: any wrong weight of one class against the other would flip it.
    logits = torch.tensor([1.0, 1.001, -5.0])[:, None, None].expand_as(scene_logits(plan))
    assert (classes(stitch(plan, logits)) == 1).all()


@pytest.mark.parametrize("overlap", [480, 32])
def test_sums_do_not_overflow_at_any_overlap(overlap: int) -> None:
    plan = planned(700, 90, size=512, overlap=overlap, stride=8)
    logits = torch.tensor([1e30, 200.0, float("nan")])[:, None, None].expand_as(scene_logits(plan))
    assert (classes(stitch(plan, logits)) == 0).all()
    assert (classes(stitch(plan, -logits)) == 1).all()


def test_disagreeing_windows_are_blended_by_the_taper() -> None:
    plan = planned(32, 96, size=64, overlap=32, stride=8, classes=2)
    assert plan.cols == (0, 32)
    state = stitcher(plan, layers=Layers(disagreement=True))
    for col, sure in ((0, 0), (32, 1)):
        logits = torch.zeros(2, 4, 8)
        logits[sure] = 1
        state.add(Window(0, col, 32, 64), logits)
    (pending,) = state.finish(None)
    rows = pending()
    # Weights of the two windows are mirror images, so they change places in the middle of the scene.
    assert (rows.classes[:, :47] == 0).all()
    assert (rows.classes[:, 49:] == 1).all()
    assert rows.disagreement is not None
    np.testing.assert_array_equal(rows.disagreement, np.tile((np.arange(96) // 32) == 1, (32, 1)))
    seams = state.seams.of(0)
    # 4 × 4 logits lie in both windows, all within 16 px of a border
    assert (seams.border, seams.border_differs, seams.inside) == (16, 16, 0)


def test_windows_have_full_weight_at_the_scenes_own_edges() -> None:
    plan = planned(64, 128, size=64, overlap=32, stride=8, classes=2)
    assert plan.cols == (0, 32, 64)
    state = stitcher(plan, layers=Layers(confidence=True))
    # The first window is sure of class 1 where the second, in the middle, has nothing to say.
    for col, value in ((0, 4.0), (32, 0.0), (64, 4.0)):
        logits = torch.zeros(2, 8, 8)
        logits[1] = value
        state.add(Window(0, col, 64, 64), logits)
    (pending,) = state.finish(None)
    confidence = pending().confidence
    assert confidence is not None
    sure = round(254 / (1 + np.exp(-4)))
    # The outer 32 columns belong to one window alone; next to them the edge window still weighs most.
    np.testing.assert_array_equal(confidence[:, :28], sure)
    np.testing.assert_array_equal(confidence[:, -28:], sure)
    assert (confidence[0] == confidence[-1]).all()


def test_a_skipped_window_leaves_its_neighbours_alone() -> None:
    plan = planned(64, 192, size=64, overlap=0, stride=8, classes=2)
    logits = {(0, c): torch.tensor([0.0, -3.0])[:, None, None].expand(2, 8, 8) for c in (0, 128)}
    found = stitch_windows(plan, logits)
    # Interpolated with the nothing of the middle window, the pixels beside it would be less sure.
    sure = round(254 / (1 + np.exp(-3)))
    for cols in (slice(0, 64), slice(128, 192)):
        np.testing.assert_array_equal(found["classes"][:, cols], 0)
        np.testing.assert_array_equal(found["confidence"][:, cols], sure)


def test_the_layers_are_the_softmax_of_the_blended_logits() -> None:
    plan = planned(100, 90, size=64, overlap=32, stride=8, classes=5)
    logits = 3 * scene_logits(plan, 5)
    found = join([rows.layers for rows in stitch(plan, logits, layers=LAYERS)], -2)
    shares = 254 * whole(plan, logits).softmax(0).numpy()
    assert np.abs(found["probabilities"] - shares).max() < 1
    winner = np.take_along_axis(found["probabilities"], found["classes"][None].astype(int), 0)[0]
    np.testing.assert_array_equal(found["confidence"], winner)
    assert (found["disagreement"] == 0).all()


def test_rows_come_as_soon_as_no_window_can_touch_them() -> None:
    plan = planned(256, 64, size=64, overlap=32, stride=8)
    state, done = stitcher(plan), 0
    for i, row in enumerate(plan.rows):
        state.add(Window(row, 0, 64, 64), torch.zeros(3, 8, 8))
        next_row = plan.rows[i + 1] if i + 1 < len(plan.rows) else None
        done += sum(len(pending()) for pending in state.finish(next_row))
        # all but half a logit, which the row below is interpolated with
        assert done == (256 if next_row is None else next_row - 4)


def test_rows_without_a_window_are_still_given() -> None:
    plan = planned(96, 64, size=64, overlap=32, stride=8)
    state = stitcher(plan)
    rows = state.finish(32)
    state.add(Window(32, 0, 64, 64), torch.ones(3, 8, 8))
    rows += state.finish(None)
    assert classes([pending() for pending in rows]).shape == (96, 64)


def test_windows_out_of_turn_are_our_own_mistake() -> None:
    state = stitcher(planned(96, 64, size=64, overlap=32, stride=8))
    with pytest.raises(AssertionError, match="row by row"):
        state.add(Window(32, 0, 64, 64), torch.zeros(3, 8, 8))


def test_half_precision_logits_are_summed_like_others() -> None:
    plan = planned(64, 160, size=64, overlap=32, stride=8)
    logits = scene_logits(plan).bfloat16()
    assert_same_classes(classes(stitch(plan, logits, compiled=False)), whole(plan, logits.float()))
    half = logits.float().half()
    assert_same_classes(classes(stitch(plan, half)), whole(plan, half.float()))


CHANNELS = (0, 1, 2, 1, 2)  # classes 1 and 2 have a contact


@pytest.mark.parametrize("stride", [1, 8])
def test_contacts_count_as_their_class_and_are_a_layer(stride: int) -> None:
    plan = planned(70, 90, size=64, overlap=32, stride=stride, classes=5)
    logits = window_logits(plan)
    layers = Layers(confidence=True, probabilities=True, disagreement=True, contact=True)
    options: dict[str, Any] = {"layers": layers, "channels": CHANNELS}
    found = stitch_windows(plan, logits, **options)
    assert_equal(stitch_windows(plan, logits, **options, compiled=False), found)
    assert found["probabilities"].shape[0] == 3
    alone = stitch_windows(plan, logits, layers=Layers(), channels=CHANNELS)
    np.testing.assert_array_equal(found["classes"], alone["classes"])
    assert (found["contact"][found["classes"] == 0] == 0).all()
    one = dict(list(logits.items())[:1])
    assert not stitch_windows(plan, one, **options)["disagreement"].any()
    folded = {
        place: torch.stack([values[0], values[[1, 3]].amax(0), values[[2, 4]].amax(0)]) for place, values in one.items()
    }
    three = planned(70, 90, size=64, overlap=32, stride=stride, classes=3)
    np.testing.assert_array_equal(
        stitch_windows(plan, one, **options)["classes"], stitch_windows(three, folded)["classes"]
    )
    pair = {place: values[[1, 3]] for place, values in one.items()}
    two = planned(70, 90, size=64, overlap=32, stride=stride, classes=2)
    shares, layers = stitch_windows(two, pair)["probabilities"][1], stitch_windows(plan, one, **options)
    here = layers["classes"] == 1
    assert here.any()
    assert np.abs(layers["contact"][here].astype(int) - shares[here]).max() <= 1
