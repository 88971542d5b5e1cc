"""Which way SegNeXt runs on a GPU, what the benchmark predicts of it, and what kernels become; none of it needs one.

The kernels' numbers are tested in `test_triton_kernels.py`.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY
from torch import nn

from geoseg.inference.folding import FoldedSegNeXt, fold
from geoseg.inference.gpu import Graphs, candidate_paths, gpu_form, probe
from geoseg.models import SegNeXt

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

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
