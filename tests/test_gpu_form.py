"""Which way SegNeXt runs on a GPU, what the benchmark predicts of it, and what kernels become; none of it needs one.

The kernels' numbers are tested in `test_triton_kernels.py`.
"""

from __future__ import annotations

import functools
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from torch import nn

from geoseg.inference.folding import FoldedSegNeXt, fold
from geoseg.inference.gpu import Graphs, candidate_paths, gpu_form, probe
from geoseg.models import SegNeXt

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

import bench_gpu
import gpu_kernels

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")


def folded_network() -> FoldedSegNeXt:
    torch.manual_seed(0)
    network = SegNeXt("tu-mscan_tiny", classes=5, **TINY).eval()
    nn.init.normal_(network.segmentation_head.weight)
    folded = fold(network)
    assert folded is not None
    return folded


@pytest.mark.parametrize(
    ("device", "triton", "capability", "paths"),
    [
        (CUDA, True, (9, 0), ("triton", "compile", "eager")),
        (CUDA, True, (8, 0), ("triton", "compile", "eager")),
        (CUDA, True, (7, 5), ("compile", "eager")),
        (CUDA, False, (9, 0), ("compile", "eager")),
        (CPU, True, None, ("eager",)),
        (torch.device("mps"), False, None, ("eager",)),
    ],
)
def test_paths(
    device: torch.device,
    triton: bool,
    capability: tuple[int, int] | None,
    paths: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert candidate_paths(device, triton=triton, capability=capability) == paths


def test_without_a_gpu_it_is_plain_torch_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    folded = folded_network()
    network = gpu_form(folded, dtype=torch.float32)
    assert network.description == "undecided"
    with caplog.at_level(logging.INFO, "geoseg.inference.gpu"):
        assert network.prepare(CPU, bands=3, size=(32, 32)) == "plain torch, float32"
    assert network.path == "eager"
    assert [record.message for record in caplog.records] == ["SegNeXt runs on cpu as plain torch, float32"]
    x = torch.randn(2, 3, 40, 33)
    found = network.forward_logits(x)
    assert torch.allclose(found, folded.forward_logits(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(found, network.forward_logits(x))
    assert network.logits_stride == 8


def test_reduced_precision_gives_float32_logits_near_the_networks() -> None:
    folded = folded_network()
    x = torch.randn(1, 3, 64, 64)
    found = gpu_form(folded).forward_logits(x)
    wanted = folded.forward_logits(x)
    assert found.dtype == torch.float32
    assert not torch.equal(found, wanted)
    assert (found - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_the_last_way_left_raises_its_own_error() -> None:
    with pytest.raises(RuntimeError, match=r"expected input.*to have 3 channels, but got 5"):
        gpu_form(folded_network()).forward_logits(torch.zeros(1, 5, 32, 32))


def test_probe_takes_rounding_and_refuses_mistakes_and_nan() -> None:
    folded = folded_network()

    def rounded(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return folded.forward_logits(x).float()

    probe(folded, rounded, CPU)
    with pytest.raises(ArithmeticError, match="of their own size off"):
        probe(folded, lambda x: folded.forward_logits(x).flip(3), CPU)
    with pytest.raises(ArithmeticError, match="nan"):
        probe(folded, lambda x: folded.forward_logits(x) * torch.nan, CPU)


def test_it_is_imported_without_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"  # as if it were not installed
        "import torch\n"
        "from geoseg.inference.gpu import GpuSegNeXt, candidate_paths, _has_triton\n"
        "assert not _has_triton()\n"
        "assert 'geoseg.inference.triton.launch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_graphs_call_the_function_where_nothing_can_be_recorded(caplog: pytest.LogCaptureFixture) -> None:
    graphs = Graphs(torch.neg)
    for _ in range(2):
        assert torch.equal(graphs(torch.ones(2)), -torch.ones(2))
    assert not graphs.recording
    assert len(caplog.records) == 1
    assert "cpu" in caplog.text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_kernels_run_in_a_graph_with_the_same_bytes_each_time() -> None:
    folded = folded_network().cuda()
    network, direct = gpu_form(folded), gpu_form(folded, graphs=False)
    for shape in ((2, 3, 64, 96), (1, 3, 33, 50), (2, 3, 64, 96)):
        x = torch.randn(shape, device="cuda")
        first = network.forward_logits(x)
        network.forward_logits(torch.randn(shape, device="cuda"))  # overwrites what the graph wrote
        assert torch.equal(first, network.forward_logits(x))
        assert torch.equal(first, direct.forward_logits(x))
    assert network.path == "triton"


# --- what the benchmark counts, predicts and prints


@pytest.mark.parametrize("size", ["T", "B"])
def test_traffic_is_what_was_counted_by_hand(size: str) -> None:
    # MB per 10⁶ px of the official code and of five kernels for each block, traced once with other tools; without the
    # final upsampling, which is 33, and without what LayerNorm and reshapes copy on the side.
    counted = {"T": (3107 - 33, 931), "B": (7831 - 33, 2222)}[size]
    pytest.importorskip("triton")
    found = bench_gpu.traffics(size, 1024, 1024)
    megabytes = {name: traffic.features / 1024**2 for name, traffic in found.items()}
    assert 0.95 < megabytes["official"] / counted[0] < 1.0
    assert 1.0 < megabytes["kernels"] / counted[1] < 1.2
    order = [megabytes[name] for name in bench_gpu.STEPS]
    assert order == sorted(order, reverse=True)
    assert found["kernels"].kernels < found["folded"].kernels / 2
    assert found["graph"].kernels == 1


def test_a_block_moves_what_its_kernels_read_and_write() -> None:
    pytest.importorskip("triton")
    from geoseg.inference.folding import FoldedBlock
    from geoseg.inference.triton.network import TritonBlock

    with torch.device("meta"):
        block = TritonBlock(FoldedBlock(64, 512), torch.bfloat16)
    traffic, fixed = gpu_kernels.Traffic(), gpu_kernels.fixed_tensors(block)

    def count(kernel: Any, args: tuple[Any, ...], grid: tuple[int, ...], options: dict[str, Any]) -> None:
        traffic.add(kernel.__name__, gpu_kernels.tensors_in(args), fixed)

    n, height, width, c = 2, 40, 50, 64
    with gpu_kernels.intercepted(count):
        block(torch.empty(n, height, width, c, device="meta", dtype=torch.bfloat16))
    margin = width / (56 + 20)  # ten columns left and right of whole tiles of eight
    passes = {
        "linear_kernel": 1 + 1 + 1 + 8,
        "depthwise_kernel": 1 + 1 / margin,
        "strips_kernel": 1 / margin + 1,
        "gate_project_kernel": 4,
        "depthwise_project_kernel": 8 + 1 + 1,
    }
    assert traffic.of == {name: round(k * n * height * width * c * 2) for name, k in passes.items()}
    assert traffic.kernels == 6
    hidden = 512
    weights = 2 * (3 * c * c + 2 * c * hidden) + 4 * (3 * c + hidden + c) + 4 * (26 * c + 82 * c + 10 * hidden)
    assert traffic.weights == weights


def test_predictions_are_the_longest_of_three_times() -> None:
    traffic = gpu_kernels.Traffic(features=10**9, weights=10**8, kernels=10)
    of = {"batch": 4, "gmac": 1.0, "copy": 1000.0, "matmul": 1e6}
    assert bench_gpu.predicted_seconds(traffic, **of) == pytest.approx(4.1e-3)
    assert bench_gpu.predicted_seconds(traffic, **{**of, "gmac": 2000.0}) == pytest.approx(16e-3)
    traffic.kernels = 2000
    assert bench_gpu.predicted_seconds(traffic, **of) == pytest.approx(10e-3)
    five, roof = bench_gpu.bound_seconds("T", 10**6, {"copy": 4300.0, "bf16": 790e3})
    assert (1 / five, 1 / roof) == (pytest.approx(4621, rel=1e-3), pytest.approx(16500, rel=2e-3))


def test_steps_are_built_measured_and_printed() -> None:
    folded = folded_network()
    torch.manual_seed(0)
    trained = SegNeXt("tu-mscan_tiny", classes=5, **TINY).eval()
    nn.init.normal_(trained.segmentation_head.weight)
    x = torch.randn(1, 3, 32, 32)
    reference = trained.forward_logits(x).argmax(1)

    def failing() -> Any:
        raise RuntimeError("a long story\nno kernel image")

    makers = {
        **{
            name: functools.partial(bench_gpu.build, name, trained, trained, folded, CPU)
            for name in ("official", "channels-last", "folded")
        },
        "graph": failing,
    }
    found = bench_gpu.measure(makers, x, reference=reference, rounds=2, forwards=1)
    for name in ("official", "channels-last", "folded"):
        assert len(found[name].seconds) == 2
        assert found[name].differing is not None and found[name].differing <= 0.2
    predicted = dict.fromkeys(makers, 0.001)
    found["official"].seconds, found["folded"].seconds = [0.004, 0.004], [0.002, 0.002]
    found["channels-last"].left_out = "not today"
    lines = bench_gpu.table(found, predicted, megapixels=0.001, bounds=(0.001, 0.0005))
    assert len({len(line) for line in lines if "left out" not in line}) == 1
    rows = {line.split()[0]: line.split() for line in lines[1:]}
    assert rows["official"][1:4] == ["4.00", "0.2", "1.00"]
    # ms, Mpx/s, × the rival, × the step before that ran, the same as predicted, ms predicted, measured over predicted
    assert rows["folded"][1:8] == ["2.00", "0.5", "2.00", "2.00", "1.00", "1.00", "2.00"]
    assert rows["folded"][9:] == ["50.0", "25.0"]
    assert "not today" in lines[2]
    assert "no kernel image" in lines[4]


def test_a_variant_is_measured_from_weights_to_table(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("triton")
    best = {"copy": 100.0, "bf16": 1e3}
    names = ("official", "channels-last", "folded")
    bench_gpu.run("T", 64, 96, 1, rounds=1, forwards=1, best=best, device=CPU, names=names)
    title, _, *lines, last = capsys.readouterr().out.strip().splitlines()
    assert title == "SegNeXt-T, 64 × 96 px, batch 1, 16 classes"
    assert [line.split()[0] for line in lines] == list(names)
    # All three are the same network, in bfloat16.
    assert all(float(line.split()[-3]) < 15 for line in lines)
    assert last.startswith("folded: ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a CUDA device is what this is about")
def test_the_benchmark_refuses_without_a_gpu() -> None:
    script = Path(__file__).parent / "benchmarks" / "bench_gpu.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: bench_gpu.py times a CUDA device, and torch finds none\nhint: ")
