"""The inference form on a CPU: kernels against torch, all of it against the folded network, the same bytes always."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from conftest import WIDE
from test_folding import difference, folded, images, visible
from test_models import segnext
from torch import Tensor, nn

from geoseg.inference import cpu
from geoseg.inference.cpu import CpuSegNeXt, fits
from geoseg.inference.cpu_kernels import (
    TILE,
    add_upsampled,
    channel_sums,
    depthwise_gelu,
    factorization_round,
    layer_norm,
    multi_scale,
    scale_shift_relu,
)
from geoseg.inference.folding import FoldedSegNeXt
from geoseg.inference.simd import GELU_LIMIT, LANES, store
from geoseg.model_folder import load_model
from geoseg.models.hamburger import NMF_EPS

SMALL: dict[str, Any] = WIDE | {"embed_dims": (32, 32, 48, 64), "drop_path_rate": 0.0}
DTYPES = [torch.float32, torch.bfloat16]

Flat = npt.NDArray[Any]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """torch's own threads at one, as those have it that call the form."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small images go through the blocks in as many pieces as large ones."""
    monkeypatch.setattr(cpu, "PIECE_OPERATIONS", 0)


def flat(x: Tensor) -> Flat:
    """Features (1, C, H, W) as the kernels take them: pixel by pixel, bfloat16 as uint16; a copy."""
    rows = x.permute(0, 2, 3, 1).reshape(-1).clone()
    return rows.view(torch.int16).numpy().view(np.uint16) if x.dtype == torch.bfloat16 else rows.numpy()


def tensor(x: Flat, channels: int, height: int, width: int) -> Tensor:
    """`flat` undone, float32."""
    rows = (
        torch.from_numpy(x.view(np.int16)).view(torch.bfloat16).float() if x.dtype == np.uint16 else torch.from_numpy(x)
    )
    return rows.view(1, height, width, channels).permute(0, 3, 1, 2)


def blank(x: Flat) -> Flat:
    """As many numbers that no kernel gives: NaN."""
    return np.full_like(x, 0x7FC1 if x.dtype == np.uint16 else np.nan)


def packed(weight: Tensor) -> npt.NDArray[np.float32]:
    """Weights (C, taps) as (C / 16, taps, 16)."""
    return np.ascontiguousarray(weight.view(-1, LANES, weight.shape[1]).transpose(1, 2).numpy())


def assert_near(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    """Equal to float32's rounding of some sums, or to one rounding to bfloat16."""
    tolerance = {"rtol": 1e-5, "atol": 5e-6} if dtype == torch.float32 else {"rtol": 2**-8, "atol": 1e-5}
    torch.testing.assert_close(found, wanted, **tolerance)


# --- the kernels


class Core:
    """Random weights of a multi-scale core, for torch and for the kernel."""

    def __init__(self, channels: int) -> None:
        torch.manual_seed(3)
        self.channels = channels
        self.local = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.strips = [
            (
                nn.Conv2d(channels, channels, (1, k), padding=(0, k // 2), groups=channels),
                nn.Conv2d(channels, channels, (k, 1), padding=(k // 2, 0), groups=channels, bias=False),
            )
            for k in (7, 11, 21)
        ]
        weights = [packed(self.local.weight.detach().flatten(1)), self.bias(self.local)]
        for along, across in self.strips:
            both = [packed(conv.weight.detach().flatten(1)) for conv in (along, across)]
            weights += [np.stack(both, axis=1), self.bias(along)]
        self.weights = weights

    def bias(self, conv: nn.Conv2d) -> npt.NDArray[np.float32]:
        assert conv.bias is not None
        return conv.bias.detach().view(-1, LANES).numpy()

    @torch.no_grad()
    def wanted(self, p: Tensor) -> tuple[Tensor, Tensor]:
        u = F.gelu(p.float())
        local = self.local(u)
        return u, local + sum(across(along(local)) for along, across in self.strips)

    def run(self, p: Tensor, u: Flat, s: Flat, *, piece: int, begin: int, end: int) -> None:
        _, channels, height, width = p.shape
        parts = [flat(p[:, :, top : top + piece]) for top in range(0, height, piece)]
        assert len(parts) <= 4
        parts += [parts[0]] * (4 - len(parts))
        for block in range(channels // LANES):
            multi_scale(tuple(parts), piece, u, s, height, width, channels, block, begin, end, *self.weights)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "size", [(1, 1), (2, 3), (5, 8), (23, 10), (12, TILE), (40, TILE + 1), (9, 2 * TILE + 7)], ids=str
)
def test_the_core_of_the_attention(size: tuple[int, int], dtype: torch.dtype) -> None:
    height, width = size
    core, p = Core(32), 2 * images(1, 32, height, width).to(dtype)
    u = blank(flat(p))
    s = blank(u)
    core.run(p, u, s, piece=-(-height // 4), begin=0, end=height)
    wanted_u, wanted_s = core.wanted(p)
    assert_near(tensor(u, 32, height, width), wanted_u, dtype)
    assert_near(tensor(s, 32, height, width), wanted_s, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_the_core_are_the_same_whoever_computes_them(dtype: torch.dtype) -> None:
    height, width = 31, 6
    core, p = Core(16), images(1, 16, height, width).to(dtype)
    u = blank(flat(p))
    s = blank(u)
    core.run(p, u, s, piece=height, begin=0, end=height)
    row = 16 * width
    ranges = [(0, k) for k in range(1, height)] + [(k, height) for k in range(1, height)]
    ranges += [(k, k + 1) for k in range(height)] + [(k, min(k + 7, height)) for k in range(3, height, 4)]
    for begin, end in ranges:
        part_u = blank(u)
        part_s = blank(u)
        core.run(p, part_u, part_s, piece=8, begin=begin, end=end)
        for part, whole in ((part_u, u), (part_s, s)):
            lines = slice(begin * row, end * row)
            assert part[lines].tobytes() == whole[lines].tobytes(), (begin, end)
            part[lines] = blank(part[lines])
            assert part.tobytes() == blank(part).tobytes(), f"rows beside {begin} … {end} were written"


@cache
def depthwise() -> nn.Conv2d:
    torch.manual_seed(4)
    return nn.Conv2d(32, 32, 3, padding=1, groups=32).requires_grad_(False)


def depthwise_weights() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    conv = depthwise()
    assert conv.bias is not None
    return packed(conv.weight.flatten(1)), conv.bias.view(-1, LANES).numpy()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 2, 3, 4, 6, 7, 13])
def test_the_3x3_and_its_gelu_in_pieces_of_every_height(width: int, dtype: torch.dtype) -> None:
    height, row = 6, width * 32
    image = 2 * images(1, 32, height, width).to(dtype)
    wanted = F.gelu(depthwise()(image.float()))
    x = flat(image)
    padded = np.concatenate([np.zeros(2 * row, x.dtype), x, np.zeros(row, x.dtype)])  # two rows above, one below
    whole = blank(x)
    depthwise_gelu(whole, padded[: 2 * row], row, x, height, padded[-row:], 0, height, width, 32, *depthwise_weights())
    assert_near(tensor(whole, 32, height, width), wanted, dtype)
    for top in range(height):
        for rows in range(1, height - top + 1):
            piece = x[top * row : (top + rows) * row].copy()
            before = padded[: (top + 2) * row].copy()
            after = padded[(top + rows + 2) * row : (top + rows + 3) * row].copy()
            for first in (-1, 0) if top else (0,):
                for last in (rows - 1, rows):
                    if last <= first:
                        continue
                    out = blank(x)
                    # Row ``rows`` is not there yet where the last row is left for later.
                    below = after if last == rows else blank(after)
                    depthwise_gelu(
                        out, before, (top + 1) * row, piece, rows, below, first, last, width, 32, *depthwise_weights()
                    )
                    count = (last - first) * row
                    start = (top + first) * row
                    assert out[:count].tobytes() == whole[start : start + count].tobytes(), (top, rows, first, last)
                    assert out[count:].tobytes() == blank(out[count:]).tobytes()


def gelu(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The kernels' GELU: a 3×3 whose weights are 1 in the middle, else 0."""
    weights = np.zeros((1, 9, LANES), np.float32)
    weights[:, 4] = 1
    out, zeros = np.empty_like(x), np.zeros_like(x)
    depthwise_gelu(out, zeros, 0, x, 1, zeros, 0, 1, x.size // LANES, LANES, weights, np.zeros((1, LANES), np.float32))
    return out


def test_gelu_is_exact_to_float32() -> None:
    x = np.linspace(-12, 12, 1 << 18).astype(np.float32)
    error = np.abs(gelu(x) - F.gelu(torch.from_numpy(x).double()).numpy())
    assert error[np.abs(x) <= GELU_LIMIT].max() < 1.5e-6
    assert (error[np.abs(x) > GELU_LIMIT] < 3e-7 * np.abs(x[np.abs(x) > GELU_LIMIT])).all()  # some last digits
    far = np.array([-3e38, -1e10, -100, -0.0, 0.0, 1e-30, 100, 1e10, 3e38] + [1.0] * 7, np.float32)
    found = gelu(far)
    assert np.isfinite(found).all()
    assert (np.abs(found - np.maximum(far, 0)) <= 3e-7 * np.abs(far) + (far == 1) + 1e-30).all()
    assert (found[3:5] == 0).all()


@numba.njit
def stored(out: Flat, x: npt.NDArray[np.float32]) -> None:
    for k in range(0, x.size, LANES):
        store(out, k, x, k)


def test_bfloat16_is_rounded_as_torch_does() -> None:
    rng = np.random.default_rng(0)
    high = rng.integers(0, 0x7F80, 4096, dtype=np.uint32) << 16  # finite, of every magnitude
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)  # 0x8000 is halfway
    bits = (high[:, None] | low).ravel()
    edges = np.array([0x7F7FFFFF, 0x7F800000, 0x00000001, 0x00008000, 0x00018000, 0x7FC00000, 0, 0x3F808000], np.uint32)
    bits = np.concatenate([bits, bits | 0x80000000, edges, edges | 0x80000000])
    x = bits.view(np.float32)
    assert x.size % LANES == 0
    out = np.empty(x.size, np.uint16)
    stored(out, x)
    wanted = torch.from_numpy(x).bfloat16().view(torch.int16).numpy().view(np.uint16)
    numbers = ~np.isnan(x)
    assert (out[numbers] == wanted[numbers]).all()
    assert torch.from_numpy(out[~numbers].view(np.int16)).view(torch.bfloat16).isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layer_norm(dtype: torch.dtype) -> None:
    x = (3 * images(1, 48, 5, 7) + 1).to(dtype)
    scale, weight, bias = (images(48, seed=seed) for seed in (2, 3, 4))
    out = blank(flat(x))
    layer_norm(out, flat(x), 35, 48, scale.numpy(), weight.numpy(), bias.numpy(), 1e-5)
    wanted = F.layer_norm(x.float().permute(0, 2, 3, 1) * scale, (48,), weight, bias, 1e-5).permute(0, 3, 1, 2)
    assert_near(tensor(out, 48, 5, 7), wanted, dtype)
    # One value in all channels has no variance.
    flat_line = torch.full((1, 48, 1, 1), 2.0).to(dtype)
    out = blank(flat(flat_line))
    layer_norm(out, flat(flat_line), 1, 48, np.ones(48, np.float32), weight.numpy(), bias.numpy(), 1e-5)
    assert_near(tensor(out, 48, 1, 1).flatten(), bias, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("large", [(9, 13), (1, 1), (8, 2)], ids=str)
def test_adding_upsampled_features(large: tuple[int, int], dtype: torch.dtype) -> None:
    height, width = large
    onto = images(1, 32, height, width).to(dtype)
    smaller = {tuple(-(-side // factor) for side in large) for factor in (1, 2, 4, 8)} | {(3, 2), (1, 5)}
    for rows, cols in sorted(smaller):
        x = images(1, 32, rows, cols, seed=2).to(dtype)
        upsampled = F.interpolate(x.float(), large, mode="bilinear", align_corners=False)
        whole = flat(onto)
        add_upsampled(whole, 0, height, height, width, flat(x), rows, cols, 32)
        assert_near(tensor(whole, 32, height, width), onto.float() + upsampled, dtype)
        for first in range(height):
            part = flat(onto[:, :, first : first + 2])
            add_upsampled(part, first, min(first + 2, height), height, width, flat(x), rows, cols, 32)
            start = first * width * 32
            assert part.tobytes() == whole[start : start + part.size].tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pixels", [1, 63, 64, 65, 200])
def test_sums_of_channels(pixels: int, dtype: torch.dtype) -> None:
    x = (images(1, 48, 1, pixels) + 2).to(dtype)
    sums = np.full((2, 48), np.nan)
    channel_sums(flat(x), pixels, 48, sums)
    wide = x.double()[0, :, 0]
    wanted = torch.stack([wide.sum(1), wide.square().sum(1)])
    torch.testing.assert_close(torch.from_numpy(sums), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scale_shift_relu(dtype: torch.dtype) -> None:
    x = images(1, 48, 3, 5).to(dtype)
    scale, shift = images(48, seed=2), images(48, seed=3)
    out = flat(x)
    scale_shift_relu(out, 15, 48, scale.numpy(), shift.numpy())
    wanted = F.relu(x.float() * scale[:, None, None] + shift[:, None, None])
    assert (wanted == 0).any()
    assert_near(tensor(out, 48, 3, 5), wanted, dtype)


@pytest.mark.parametrize("rank", [16, 32, 64, 80])
@pytest.mark.parametrize(("pixels", "channels"), [(1, 16), (95, 48), (96, 112), (97, 256), (200, 32)])
def test_a_round_of_the_factorization(rank: int, pixels: int, channels: int) -> None:
    x = images(pixels, channels).relu()
    w = F.normalize(images(channels, rank, seed=2).abs(), dim=0)
    gram = w.T @ w
    c = torch.full((pixels, rank), torch.nan)
    wide_x, wide_w = x.double(), w.double()
    wanted = (wide_x @ wide_w).softmax(-1)
    for first in (True, False, False):  # the codes go on from one round to the next
        product, codes_gram = torch.full((channels, rank), torch.nan), torch.full((rank, rank), torch.nan)
        factorization_round(
            x.numpy().ravel(), c.numpy().ravel(), pixels, channels, rank, w.numpy().ravel(), gram.numpy().ravel(),
            first, NMF_EPS, product.numpy().ravel(), codes_gram.numpy().ravel(),
        )  # fmt: skip
        wanted = wanted * (wide_x @ wide_w) / (wanted @ (wide_w.T @ wide_w) + NMF_EPS)
        assert difference(c.double(), wanted) < 2e-5
        assert difference(product.double(), wide_x.T @ wanted) < 2e-5
        assert difference(codes_gram.double(), wanted.T @ wanted) < 2e-5


def test_the_factorization_of_zeros_is_zero() -> None:
    x, w = torch.zeros(5, 16), F.normalize(torch.rand(16, 16), dim=0)
    c, product, codes_gram = torch.empty(5, 16), torch.empty(16, 16), torch.empty(16, 16)
    arrays = [t.numpy().ravel() for t in (x, c, w, w.T @ w, product, codes_gram)]
    factorization_round(arrays[0], arrays[1], 5, 16, 16, arrays[2], arrays[3], True, NMF_EPS, arrays[4], arrays[5])
    assert all((t == 0).all() for t in (c, product, codes_gram))


# --- the whole form

needs_onednn = pytest.mark.skipif(not cpu.runs_here(), reason="oneDNN's fused operations do not run here")
needs_bfloat16 = pytest.mark.skipif(not cpu.multiplies_bfloat16(), reason="no bfloat16 in this processor")


@cache
def small(**options: Any) -> FoldedSegNeXt:
    return folded(visible(segnext(classes=5, **(SMALL | options))))


@cache
def form(threads: int = 1, dtype: torch.dtype = torch.float32) -> CpuSegNeXt:
    return CpuSegNeXt(small(), dtype=dtype, threads=threads)


SIZES = [(1, 1), (8, 8), (33, 47), (7, 130), (65, 32), (70, 301), (273, 70), (259, 263)]


@needs_onednn
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_form_gives_the_networks_logits(size: tuple[int, int], threads: int) -> None:
    x = images(2, 3, *size)
    found, wanted = form(threads)(x), small().forward_logits(x)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    assert difference(found, wanted) < 1e-4
    assert form(threads).logits_stride == small().logits_stride


def test_one_of_the_sizes_is_wider_than_a_tile_of_the_core() -> None:
    assert any(-(-width // 4) > TILE for _, width in SIZES)
    assert any(-(-height // 4) >= 64 for height, _ in SIZES)  # from there on, stage 1 is halved for two threads


@needs_onednn
@needs_bfloat16
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_bfloat16_is_near(size: tuple[int, int]) -> None:
    """8 bits: every value is off by up to 0.4 %, and those of these random weights amplify it."""
    x = images(2, 3, *size)
    found, wanted = form(dtype=torch.bfloat16)(x), small().forward_logits(x)
    assert found.dtype == torch.float32
    assert difference(found, wanted) < 0.1
    top = wanted.topk(2, dim=1).values
    clear = top[:, 0] - top[:, 1] > 0.1 * wanted.abs().max()
    assert (found.argmax(1) == wanted.argmax(1))[clear].all()


@needs_onednn
@needs_bfloat16
def test_bfloat16_maps_what_float32_maps() -> None:
    x = images(1, 3, 384, 384)
    found, wanted = form(dtype=torch.bfloat16)(x).argmax(1), form()(x).argmax(1)
    assert len(wanted.unique()) > 2
    assert (found == wanted).float().mean() > 0.97


@needs_onednn
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bytes_whoever_computes_what_beside_it(dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and not cpu.multiplies_bfloat16():
        pytest.skip("no bfloat16 in this processor")
    for size in ((1, 1), (33, 47), (259, 70)):
        x = images(3, 3, *size)
        wanted = form(dtype=dtype)(x)
        alone = [form(dtype=dtype)(image[None]) for image in x]
        assert torch.equal(torch.cat(alone), wanted)
        for threads in (1, 2, 3):
            one = form(threads, dtype)
            assert torch.equal(one(x), wanted)
            assert torch.equal(one(x.flip(0)), wanted.flip(0))
            assert torch.equal(one(x.contiguous(memory_format=torch.channels_last)), wanted)


@needs_onednn
@pytest.mark.parametrize("threads", [1, 2])
def test_several_callers_at_once(threads: int) -> None:
    sizes = [(33, 47), (64, 96), (40, 40), (33, 47)] * 3
    given = [images(2, 3, *size, seed=i) for i, size in enumerate(sizes)]
    wanted = [form()(x) for x in given]
    fresh = CpuSegNeXt(small(), threads=threads)  # which knows no size yet

    def call(x: Tensor) -> Tensor:
        torch.set_num_threads(1)
        return fresh(x)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(call, given))
    assert all(torch.equal(f, w) for f, w in zip(found, wanted, strict=True))


@needs_onednn
def test_hidden_rows_may_go_through_the_mlp_in_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    x = images(1, 3, 150, 90)
    wanted = form()(x)
    for size in (1, 50_000, 200_000):
        monkeypatch.setattr(cpu, "HIDDEN_BYTES", size)
        assert difference(form()(x), wanted) < 1e-5


@needs_onednn
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pieces_change_nothing(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """One, two and four of them, by the size of the stage; bfloat16 may round another way only."""
    if dtype == torch.bfloat16 and not cpu.multiplies_bfloat16():
        pytest.skip("no bfloat16 in this processor")
    counts: set[int] = set()
    given = cpu._pieces

    def counted(height: int, *count: int) -> list[tuple[int, int]]:
        counts.update(count)
        return given(height, *count)

    monkeypatch.setattr(cpu, "_pieces", counted)
    for size in ((40, 72), (259, 70)):
        x = images(1, 3, *size)
        found = []
        for operations in (0, 1e6, 1e12):
            monkeypatch.setattr(cpu, "PIECE_OPERATIONS", operations)
            found.append(form(dtype=dtype)(x))
        for other in found[1:]:
            assert difference(other, found[0]) < (1e-5 if dtype == torch.float32 else 0.05)
    assert counts == {1, 2, 4}


OTHERS: dict[str, Callable[[], dict[str, Any]]] = {
    "1 band": lambda: {"in_channels": 1},
    "4 bands": lambda: {"in_channels": 4},
    "8 bands": lambda: {"in_channels": 8},
    "2 classes": lambda: {"classes": 2},
    "a narrow stem": lambda: {"embed_dims": (16, 32, 48, 64)},
    "stages without blocks": lambda: {"depths": (0, 1, 0, 1)},
    "several blocks": lambda: {"depths": (2, 1, 3, 2)},
    "rank 64": lambda: {"nmf_rank": 64, "decoder_channels": 128},
    "rank 80": lambda: {"nmf_rank": 80},
    "T": lambda: {"embed_dims": (32, 64, 160, 256), "decoder_channels": 256, "norm_groups": 32},
}


@needs_onednn
@pytest.mark.parametrize("name", OTHERS)
def test_other_networks(name: str) -> None:
    options = {"classes": 5, **SMALL, **OTHERS[name]()}
    network = folded(visible(segnext(**options)))
    x = images(1, options.get("in_channels", 3), 70, 101)
    assert difference(CpuSegNeXt(network, threads=2)(x), network.forward_logits(x)) < 1e-4


@needs_onednn
def test_the_rounds_of_the_factorization_are_the_networks() -> None:
    network = folded(visible(segnext(classes=5, **SMALL)))
    x = images(1, 3, 64, 96)
    seven = network.forward_logits(x)
    for steps in (0, 1, 3):
        network.decoder.steps = steps
        wanted = network.forward_logits(x)
        assert difference(wanted, seven) > 1e-3
        assert difference(CpuSegNeXt(network)(x), wanted) < 1e-4


@needs_onednn
def test_a_shipped_model_maps_the_same() -> None:
    network = folded(load_model("landscape-tiny").network)
    x = images(1, network.stages[0].embed[0].in_channels, 160, 224)  # type: ignore[index, union-attr]
    wanted = network.forward_logits(x)
    assert difference(CpuSegNeXt(network)(x), wanted) < 1e-4
    if cpu.multiplies_bfloat16():
        assert difference(CpuSegNeXt(network, dtype=torch.bfloat16)(x), wanted) < 0.03


@needs_onednn
def test_features_of_nothing_but_zeros_give_numbers() -> None:
    network = visible(segnext(classes=5, **SMALL))
    with torch.no_grad():
        network.decoder.hamburger.ham_in.conv.bias.fill_(-1e4)
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        assert difference(CpuSegNeXt(folded(network))(x), network.forward_logits(x)) < 1e-4


@needs_onednn
def test_the_form_leaves_the_folded_network_as_it_is() -> None:
    network = folded(visible(segnext(classes=5, **SMALL)))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    x = images(1, 3, 64, 64)
    given = x.clone()
    CpuSegNeXt(network)(x)
    assert torch.equal(x, given)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("options", "fit"),
    [
        ({}, True),
        ({"embed_dims": (32, 32, 40, 64)}, False),
        ({"embed_dims": (24, 32, 48, 64)}, False),
        ({"embed_dims": (32, 32, 40, 64), "depths": (1, 1, 0, 1)}, False),
        ({"nmf_rank": 8}, False),
        ({"decoder_channels": 40, "norm_groups": 8}, False),
        ({"embed_dims": (8, 16, 24, 32), "nmf_rank": 4}, False),
    ],
    ids=str,
)
def test_widths_that_are_no_multiple_of_a_vector_do_not_fit(options: dict[str, Any], fit: bool) -> None:
    network = folded(segnext(classes=5, **(SMALL | options)))
    assert fits(network) == fit
    if not fit:
        with pytest.raises(ValueError, match="multiples of 16"):
            CpuSegNeXt(network)
