"""Each Triton kernel against plain torch in float64, on fresh random inputs; the network they make, likewise.

`test_triton_kernels.py` runs this file in a process of its own, with TRITON_INTERPRET=1 where there is no GPU: Triton
decides at its first import whether kernels are interpreted. By hand:

    TRITON_INTERPRET=1 pytest tests/triton_cases.py
"""

from __future__ import annotations

import logging
import os
import random
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY
from torch import Tensor, nn

from geoseg.inference.folding import FoldedSegNeXt, fold
from geoseg.inference.gpu import gpu_form
from geoseg.inference.triton import ffn, launch, linear, msca, nmf, norms
from geoseg.inference.triton.network import TritonSegNeXt
from geoseg.models import SegNeXt

DEVICE = "cpu" if launch.INTERPRETED else "cuda"
SEED = int(os.environ.get("GEOSEG_TEST_SEED") or random.SystemRandom().randrange(10**6))

# Largest error over the largest value, for a result that was rounded once to the dtype. The interpreter cuts bfloat16
# off where hardware rounds to the nearest.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-7 if launch.INTERPRETED else 2**-8, torch.float16: 2**-10}
DTYPES = list(TOLERANCE)


@pytest.fixture(autouse=True)
def seed(request: pytest.FixtureRequest) -> Iterator[random.Random]:
    """Fresh inputs each run; a failure prints the seed, GEOSEG_TEST_SEED repeats it."""
    print(f"GEOSEG_TEST_SEED={SEED}")  # noqa: T201
    torch.manual_seed(SEED + zlib.crc32(request.node.name.encode()))
    yield random.Random(f"{SEED} {request.node.name}")


def draw(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape) * scale).to(DEVICE, dtype)


def wide(x: Tensor) -> Tensor:
    return x.cpu().double()


def nchw(x: Tensor) -> Tensor:
    return wide(x).permute(0, 3, 1, 2)


def nhwc(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def check(found: Tensor, wanted: Tensor, dtype: torch.dtype, *, times: float = 1.0) -> None:
    assert found.shape == wanted.shape
    assert found.dtype == dtype
    error = (wide(found) - wanted).abs().max() / wanted.abs().max()
    assert error <= times * TOLERANCE[dtype], f"largest error {error:.2e}"


# Higher than one program's rows; lower and narrower than the strips; wider than its columns, and more channels.
CORE_SIZES = {"high": ((33, 37), (3, 9), 8), "small": ((1, 20), (1, 20), 24), "wide": ((1, 9), (17, 24), 40)}


@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.float32, size) for size in CORE_SIZES] + [(d, "small") for d in DTYPES[1:]]
)
def test_core(dtype: torch.dtype, size: str, seed: random.Random) -> None:
    rows, columns, c = CORE_SIZES[size]
    n, height, width = 1 + (size == "small"), seed.randint(*rows), seed.randint(*columns)
    u = draw(n, height, width, c, dtype=dtype)
    shapes = {"local": (5, 5), **{f"h{k}": (1, k) for k in (7, 11, 21)}, **{f"v{k}": (k, 1) for k in (7, 11, 21)}}
    weights = {name: draw(c, 1, *shape, scale=(shape[0] * shape[1]) ** -0.5) for name, shape in shapes.items()}
    biases = {name: draw(c) for name in shapes}
    found = msca.multi_scale(
        u,
        (msca.pack_depthwise(weights["local"]), biases["local"]),
        msca.pack_strips(
            [(weights[f"h{k}"], biases[f"h{k}"]) for k in (7, 11, 21)],
            [(weights[f"v{k}"], biases[f"v{k}"]) for k in (7, 11, 21)],
        ),
    )

    def conv(x: Tensor, name: str) -> Tensor:
        weight, bias = wide(weights[name]), wide(biases[name])
        return F.conv2d(x, weight, bias, padding=(weight.shape[2] // 2, weight.shape[3] // 2), groups=c)

    a = conv(nchw(u), "local")
    wanted = a + sum(conv(conv(a, f"h{k}"), f"v{k}") for k in (7, 11, 21))
    # Twice: the 5x5 is stored in between.
    check(found, nhwc(wanted), dtype, times=2)


@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_depthwise(activation: str, seed: random.Random) -> None:
    n, height, width, c = 2, seed.randint(1, 40), seed.randint(1, 20), seed.choice((5, 33))
    x, weight, bias = draw(n, height, width, c), draw(c, 1, 3, 3), draw(c)
    found = msca.depthwise(x, msca.pack_depthwise(weight), bias, activation=activation)
    wanted = F.conv2d(nchw(x), wide(weight), wide(bias), padding=1, groups=c)
    check(found, nhwc(F.gelu(wanted) if activation == "gelu" else wanted), torch.float32)


def test_depthwise_margin_is_zero(seed: random.Random) -> None:
    x, weight, bias = draw(2, 3, 9, 4), draw(4, 1, 5, 5), draw(4)
    plain = msca.depthwise(x, msca.pack_depthwise(weight), bias)
    wider = msca.depthwise(x, msca.pack_depthwise(weight), bias, margin=msca.HALO)
    assert wider.shape[2] >= 9 + 2 * msca.HALO
    assert torch.equal(wider[:, :, msca.HALO : msca.HALO + 9], plain)
    assert not wider[:, :, : msca.HALO].any() and not wider[:, :, msca.HALO + 9 :].any()


def test_rows_of_a_program_change_no_byte(seed: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    u, weight, bias = draw(1, 37, 5, 8), draw(25, 8), draw(8)
    strips = draw(78, 8), draw(4, 8)
    results = []
    for rows in (64, 16):
        monkeypatch.setattr(msca, "COLUMN_ROWS", (rows,))
        results.append(msca.multi_scale(u, (weight, bias), strips))
    assert torch.equal(results[0], results[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["none", "gelu", "relu"])
def test_linear(dtype: torch.dtype, activation: linear.Activation, seed: random.Random) -> None:
    k, n, shape = seed.choice((3, 24, 40, 64)), seed.choice((5, 40, 150)), (2, seed.randint(1, 9), seed.randint(1, 9))
    x, weight, bias = draw(*shape, k, dtype=dtype), draw(k, n, dtype=dtype, scale=k**-0.5), draw(n)
    gate, residual = draw(*shape, n, dtype=dtype), draw(*shape, n, dtype=dtype)
    wanted = wide(x) @ wide(weight)
    check(linear.linear(x, weight), wanted, dtype)
    wanted = {"none": lambda v: v, "gelu": F.gelu, "relu": F.relu}[activation](wanted + wide(bias))
    check(linear.linear(x, weight, bias, activation=activation, dtype=torch.float32), wanted, torch.float32, times=2)
    found = linear.linear(x, weight, bias, activation=activation, gate=gate, residual=residual)
    check(found, wanted * wide(gate) + wide(residual), dtype)


def test_quick_gelu_is_right_to_a_few_1e_7() -> None:
    x = torch.linspace(-9, 9, 6001).to(DEVICE, torch.float32)[:, None]
    one = torch.ones(1, 1, device=DEVICE)
    found = torch.empty(6001, 1, device=DEVICE)
    without = {"HAS_BIAS": False, "HAS_GATE": False, "HAS_RESIDUAL": False, "EXACT": False}
    options = {"K": 1, "N": 1, "ACTIVATION": "gelu", "BM": 512, "BN": 16, "BK": 16, **without}
    linear.linear_kernel[(launch.cdiv(6001, 512),)](
        x, one, one, x, x, found, 6001, **options, **launch.dot_options(torch.float32)
    )
    assert (wide(found) - F.gelu(wide(x))).abs().max() < 5e-7


@pytest.mark.parametrize("c", [24, 64, 336])
def test_gate_project(c: int, seed: random.Random) -> None:
    dtype = seed.choice(DTYPES)
    shape = 2, seed.randint(1, 12), seed.randint(1, 12)
    s, u, y = (draw(*shape, c, dtype=dtype) for _ in range(3))
    w3, w2 = (draw(c, c, dtype=dtype, scale=c**-0.5) for _ in range(2))
    b3, b2 = draw(c), draw(c)
    wanted = wide(y) + ((wide(s) @ wide(w3) + wide(b3)) * wide(u)) @ wide(w2) + wide(b2)
    # The gated features are rounded in between.
    check(linear.gate_project(s, u, y, w3, b3, w2, b2), wanted, dtype, times=2)


@pytest.mark.parametrize("c", [8, 24, 321])
@pytest.mark.parametrize("dtype", DTYPES)
def test_depthwise_project(c: int, dtype: torch.dtype, seed: random.Random) -> None:
    n, height, width = seed.randint(2, 3), seed.randint(1, 7), seed.randint(1, 9)
    hidden = seed.choice((40, 64)) if c < 200 else 20
    x, y = draw(n, height, width, hidden, dtype=dtype), draw(n, height, width, c, dtype=dtype)
    taps, taps_bias = draw(hidden, 1, 3, 3, scale=1 / 3), draw(hidden)
    weight, bias = draw(hidden, c, dtype=dtype, scale=hidden**-0.5), draw(c)
    active = F.gelu(F.conv2d(nchw(x), wide(taps), wide(taps_bias), padding=1, groups=hidden))
    wanted = wide(y) + nhwc(active) @ wide(weight) + wide(bias)
    found = ffn.depthwise_project(x, msca.pack_depthwise(taps), taps_bias, weight, bias, y)
    check(found, wanted, dtype, times=2)


def test_no_tap_crosses_an_edge(seed: random.Random) -> None:
    # Images lie behind each other in memory, and so do rows: what is next to an edge there is no neighbour.
    x, hidden, c = torch.zeros(2, 3, 4, 16, device=DEVICE), 16, 8
    x[0, -1, -1] = x[1, 0, 0] = 1000.0
    taps, weight = torch.ones(9, hidden, device=DEVICE), torch.ones(hidden, c, device=DEVICE)
    zero, y = torch.zeros(hidden, device=DEVICE), torch.zeros(2, 3, 4, c, device=DEVICE)
    found = ffn.depthwise_project(x, taps, zero, weight, zero[:c].contiguous(), y)
    touched = found.abs().amax(dim=3) > 0
    wanted = torch.zeros(2, 3, 4, dtype=torch.bool)
    wanted[0, 1:, 2:] = wanted[1, :2, :2] = True
    assert torch.equal(touched.cpu(), wanted)


@pytest.mark.parametrize("c", [3, 4, 12, 24])
def test_conv3x3_stride_2(c: int, seed: random.Random) -> None:
    n, height, width, columns = 2, seed.randint(1, 12), seed.randint(1, 13), seed.choice((4, 40))
    dtype = seed.choice(DTYPES)
    weight, bias = draw(columns, c, 3, 3, dtype=dtype, scale=(9 * c) ** -0.5), draw(columns)
    image = draw(n, c, height, width, dtype=dtype)
    x = nhwc(image) if c <= linear.FEW_CHANNELS else nhwc(image).contiguous()
    wanted = F.gelu(F.conv2d(wide(image), wide(weight), wide(bias), stride=2, padding=1))
    found = linear.conv3x3_stride_2(x, linear.pack_conv3x3(weight), bias, activation="gelu")
    check(found, nhwc(wanted), dtype)
    plain = linear.conv3x3_stride_2(x, linear.pack_conv3x3(weight), bias, dtype=torch.float32)
    wanted = F.conv2d(wide(image), wide(weight), wide(bias), stride=2, padding=1)
    check(plain, nhwc(wanted), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm(dtype: torch.dtype, seed: random.Random) -> None:
    c = seed.choice((8, 24, 160))
    x = draw(2, seed.randint(1, 9), seed.randint(1, 9), c, dtype=dtype) + 3
    scale, weight, bias = draw(c), draw(c), draw(c)
    wanted = F.layer_norm(wide(x) * wide(scale), (c,), wide(weight), wide(bias), 1e-5)
    check(norms.layer_norm(x, scale, weight, bias, eps=1e-5), wanted, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_group_norm(dtype: torch.dtype, seed: random.Random) -> None:
    groups = seed.choice((2, 8))
    c, height, width = groups * seed.choice((1, 3, 20)), seed.randint(1, 40), seed.randint(1, 30)
    x = draw(2, height, width, c, dtype=dtype) + 5  # a mean far off zero: sums of squares would lose digits
    weight, bias = draw(c), draw(c)
    wanted = F.relu(F.group_norm(nchw(x), groups, wide(weight), wide(bias), 1e-5))
    found = norms.group_norm_relu(x, weight, bias, groups=groups, eps=1e-5)
    check(found, nhwc(wanted), dtype, times=2)


def test_upsample_add(seed: random.Random) -> None:
    dtype = seed.choice(DTYPES)
    n, c, height, width = 2, seed.choice((8, 24)), seed.randint(1, 17), seed.randint(1, 17)
    sizes = [(height, width), ((height + 1) // 2, (width + 1) // 2), ((height + 3) // 4, (width + 3) // 4)]
    x, x_2, x_3 = (draw(n, *size, c, dtype=dtype) for size in sizes)
    wanted = nchw(x) + sum(
        F.interpolate(nchw(small), size=(height, width), mode="bilinear", align_corners=False) for small in (x_2, x_3)
    )
    check(norms.upsample_add(x, x_2, x_3), nhwc(wanted), dtype)


def reference_factors(x: Tensor, bases: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    numerator = x @ bases
    codes = numerator.softmax(dim=-1)
    for _ in range(steps):
        codes = codes * numerator / (codes @ (bases.mT @ bases) + nmf.EPS)
        bases = bases * (x.mT @ codes) / (bases @ (codes.mT @ codes) + nmf.EPS)
        numerator = x @ bases
    return codes * numerator / (codes @ (bases.mT @ bases) + nmf.EPS), bases


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_factorization(dtype: torch.dtype, fused: bool, seed: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fused:
        monkeypatch.setattr(nmf, "FUSED_VALUES", 0)
    n, d, rank, steps = 2, seed.choice((24, 70)), seed.choice((1, 5, 17)), seed.choice((0, 3))
    pixels = seed.choice((seed.randint(1, 60), seed.randint(520, 700)))  # less than a tile, more than a chunk
    x = draw(n, pixels, d).relu().to(dtype)
    bases = F.normalize(torch.rand(1, d, rank), dim=1).to(DEVICE)
    codes, w = reference_factors(wide(x), wide(bases), steps)
    factors = nmf.factorize(x, nmf.pack_bases(bases), rank, steps)
    # float32 whatever the features are stored as; three rounds amplify its rounding a little.
    check(factors.codes[..., :rank], codes, torch.float32, times=20)
    check(factors.bases[..., :rank], w.expand(n, -1, -1), torch.float32, times=20)
    assert not factors.codes[..., rank:].any() and not factors.bases[..., rank:].any()
    check(factors.grams.sum(1)[..., :rank, :rank], codes.mT @ codes, torch.float32, times=20)
    check(factors.sums.sum(1)[..., :rank], codes.sum(1), torch.float32, times=20)


@pytest.mark.parametrize("dtype", DTYPES)
def test_context(dtype: torch.dtype, seed: random.Random) -> None:
    n, groups, rank = 2, 4, 5
    d, pixels = groups * seed.choice((2, 5, 9)), seed.randint(2, 200)
    x, features = draw(n, pixels, d, dtype=dtype), draw(n, pixels, d).relu().to(dtype)
    bases = F.normalize(torch.rand(1, d, rank), dim=1).to(DEVICE)
    ham_out, weight, bias = draw(d, d, scale=d**-0.5), draw(d), draw(d)
    factors = nmf.factorize(features, nmf.pack_bases(bases), rank, 2)
    found = nmf.add_context(x, factors, ham_out.T.contiguous(), weight, bias, groups=groups, eps=1e-5)
    codes, w = reference_factors(wide(features), wide(bases), 2)
    mapped = (codes @ w.mT) @ wide(ham_out).T  # (N, pixels, D)
    normed = F.group_norm(mapped.mT, groups, wide(weight), wide(bias), 1e-5).mT
    wanted = F.relu(wide(x) + normed)
    # Few values in a group can lie close together: then the norm amplifies.
    check(found, wanted, dtype, times=20 if dtype == torch.float32 else 2)


def test_images_do_not_see_each_other(seed: random.Random) -> None:
    x, bases = draw(3, 530, 16).relu(), nmf.pack_bases(torch.rand(1, 16, 4).to(DEVICE))
    together = nmf.factorize(x, bases, 4, 2)
    alone = nmf.factorize(x[1:2].contiguous(), bases, 4, 2)
    assert torch.equal(together.codes[1], alone.codes[0]) and torch.equal(together.bases[1], alone.bases[0])
    weight, bias = draw(16), draw(16)
    normed = norms.group_norm_relu(x[:, :, None], weight, bias, groups=4, eps=1e-5)
    assert torch.equal(normed[1:2], norms.group_norm_relu(x[1:2, :, None], weight, bias, groups=4, eps=1e-5))


# --- the network of these kernels


def folded_network(scales: tuple[float, float] = (0.1, 0.5), **options: object) -> FoldedSegNeXt:
    """A small folded network in which every parameter shows.

    Trained networks have layer scales of 0.02 to 0.06. With larger ones a mistake shows more, and so does rounding.
    """
    network = SegNeXt("tu-mscan_tiny", classes=5, **{**TINY, **options}).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.2)
    for name, parameter in network.named_parameters():
        if "layer_scale" in name:
            nn.init.uniform_(parameter, *scales)
    nn.init.normal_(network.segmentation_head.weight)
    folded = fold(network)
    assert folded is not None
    return folded.to(DEVICE)


@pytest.mark.parametrize(
    ("dtype", "residual", "largest"),
    [
        (torch.float32, None, 1e-5),
        (torch.bfloat16, None, 0.05),
        (torch.bfloat16, torch.float32, 0.05),
        (torch.float16, None, 0.01),
    ],
)
def test_network(dtype: torch.dtype, residual: torch.dtype | None, largest: float, seed: random.Random) -> None:
    folded = folded_network((0.1, 0.5) if dtype == torch.float32 else (0.02, 0.06))
    x = draw(2, 3, seed.randint(9, 34), seed.randint(9, 50))
    wanted = folded.forward_logits(x)
    found = TritonSegNeXt(folded, dtype, residual).to(DEVICE).forward_logits(x)
    assert found.shape == wanted.shape
    assert found.dtype == torch.float32
    assert (found - wanted).abs().max() <= largest * wanted.abs().max()


def test_network_of_one_pixel_and_channels_last(seed: random.Random) -> None:
    folded = folded_network(in_channels=4)
    network = TritonSegNeXt(folded, torch.float32).to(DEVICE)
    x = draw(1, 4, 1, 1)
    assert torch.allclose(network.forward_logits(x), folded.forward_logits(x), rtol=1e-4, atol=1e-4)
    x = draw(1, 4, 17, 9)
    assert torch.equal(
        network.forward_logits(x), network.forward_logits(x.contiguous(memory_format=torch.channels_last))
    )


@pytest.fixture
def steady_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of the interpreter that do not depend on where a row lies in its tile, as those of hardware do not.

    The BLAS that numpy calls sums rows at a tile's end in another order. Sums in float64 are rounded alike.
    """
    if not launch.INTERPRETED:
        return
    from triton.runtime import interpreter

    def create_dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        product = np.matmul(a.data.astype(np.float64), b.data.astype(np.float64)) + d.data
        return interpreter.TensorHandle(product.astype(d.data.dtype), d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


@pytest.mark.usefixtures("steady_products")
def test_a_window_has_the_same_bytes_alone_and_in_a_batch_and_twice(seed: random.Random) -> None:
    network = TritonSegNeXt(folded_network(), torch.float32).to(DEVICE)
    x = draw(2, 3, 17, 24)
    together = network.forward_logits(x)
    assert torch.equal(together[1:2], network.forward_logits(x[1:2]))
    assert torch.equal(together, network.forward_logits(x))


def test_gpu_form_takes_the_kernels_and_says_so(seed: random.Random, caplog: pytest.LogCaptureFixture) -> None:
    folded = folded_network()
    network = gpu_form(folded, dtype=torch.float32)
    x = draw(1, 3, 17, 24)
    with caplog.at_level(logging.INFO, "geoseg.inference.gpu"):
        found = network.forward_logits(x)
    assert network.path == "triton"
    assert torch.allclose(found, folded.forward_logits(x), rtol=1e-4, atol=1e-4)
    assert torch.equal(found, network.forward_logits(x))
    assert f"SegNeXt runs on {x.device} as Triton kernels, float32" in caplog.text
    # Without a GPU no graph can be recorded; the kernels run all the same.
    assert ("launched as one CUDA graph" in caplog.text) == (DEVICE == "cuda")
    assert ("no CUDA graph could be recorded" in caplog.text) == (DEVICE == "cpu")


def test_a_kernel_that_does_not_compile_is_left(
    seed: random.Random, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(linear, "ROW_BLOCK", 100)  # tiles have powers of two
    folded = folded_network()
    network = gpu_form(folded, dtype=torch.float32)
    x = draw(1, 3, 17, 24)
    found = network.forward_logits(x)
    assert network.path != "triton"
    assert torch.allclose(found, folded.forward_logits(x), rtol=1e-4, atol=1e-4)
    assert "triton is not used" in caplog.text and "power of 2" in caplog.text


def test_a_kernel_that_is_wrong_is_left(
    seed: random.Random, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(msca, "HALO", 9)  # strips begin one column too late
    network = gpu_form(folded_network(), graphs=False)
    network.forward_logits(draw(1, 3, 17, 24))
    assert network.path != "triton"
    assert "triton is not used" in caplog.text and "of their own size off" in caplog.text
