"""The benchmark for a GPU, as far as it runs without one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from support.networks import TINY, segnext

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

import bench_gpu


def test_predict_is_timed_end_to_end() -> None:
    network = segnext(classes=bench_gpu.CLASSES, **TINY)
    assert bench_gpu.end_to_end(network, side=64, size=64, batch=1, device="cpu") > 0


def test_all_forms_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without compiling, which takes minutes."""
    monkeypatch.setattr(torch, "compile", lambda module, **options: module)
    monkeypatch.setattr(bench_gpu, "seconds_of", lambda run, x, forwards: float(run(x).abs().mean()))
    x = bench_gpu.image(64, 64, 1)
    found = bench_gpu.forms(segnext(classes=bench_gpu.CLASSES, **TINY), x, rounds=1, forwards=1)
    assert list(found) == ["eager", "compile", "compile, graphs"]
    assert found == pytest.approx(dict.fromkeys(found, found["eager"]), rel=0.05)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_gpu.py"])
    with pytest.raises(SystemExit, match=r"error: bench_gpu\.py needs a CUDA device"):
        bench_gpu.main()
