"""The Triton kernels: their numbers in Triton's interpreter, and that they compile for GPUs that are not here.

What an interpreter cannot show is whether the compiler takes a kernel, and whether it fits a GPU; ptxas, which comes
with Triton, tells both without one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import geoseg.inference

pytest.importorskip("triton")

CASES = Path(__file__).with_name("triton_cases.py")
BENCHMARKS = Path(__file__).parent / "benchmarks"
SMALLEST_SHARED = 99 << 10
"""Shared memory that a program may have where there is least of it: compute capability 8.6, 8.9 and 12.0."""

COMPILE = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import gpu_kernels
from official_form import VARIANTS, Variant
from geoseg.inference.triton import msca, nmf
from geoseg.inference.triton.network import TritonSegNeXt

# One width for all stages, as each takes kernels of its own; what only wider networks launch is called alone.
VARIANTS["small"] = Variant((32, 32, 32, 32), (1, 1, 1, 1), 64, 16)
network = TritonSegNeXt(gpu_kernels.folded("small"))
meta = dict(device="meta", dtype=torch.bfloat16)

def run():
    network.forward_logits(torch.empty(2, 3, 64, 96, device="meta"))
    taps, bias = torch.empty(9, 64, device="meta"), torch.empty(64, device="meta")
    msca.depthwise(torch.empty(1, 8, 8, 64, **meta), taps, bias, activation="gelu")
    nmf.factorize(torch.empty(1, 600, 512, **meta), torch.empty(1, 512, 64, device="meta"), 64, 2)

for kernel in gpu_kernels.compiled(run, int(sys.argv[2])):
    print(kernel.name, kernel.registers, kernel.stack, kernel.shared)
"""


def in_process(*command: object, **environment: str) -> str:
    """Standard output of a Python process; Triton decides at its first import whether it interprets."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        env={**{k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}, **environment},
        timeout=1800,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


@pytest.mark.slow
def test_numbers_in_the_interpreter() -> None:
    out = in_process(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", CASES, TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES=""
    )
    assert " passed" in out
    assert "skipped" not in out


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_numbers_on_the_gpu() -> None:
    assert " passed" in in_process("-m", "pytest", "-q", "-p", "no:cacheprovider", CASES)


@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler for NVIDIA GPUs comes with its Linux packages")
@pytest.mark.parametrize("capability", [80, 90])
def test_every_kernel_compiles_and_fits(capability: int) -> None:
    lines = in_process("-c", COMPILE, BENCHMARKS, capability).splitlines()
    found = {name: list(map(int, numbers)) for name, *numbers in map(str.split, lines)}
    kernels = {
        line.split("(")[0].removeprefix("def ")
        for path in (Path(geoseg.inference.__file__).parent / "triton").glob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("def ") and "_kernel(" in line
    }
    assert set(found) == kernels
    for name, (registers, stack, shared) in found.items():
        assert registers <= 255, name
        assert stack <= 512, f"{name} spills {stack} bytes"
        assert shared <= SMALLEST_SHARED, f"{name} needs {shared} bytes of shared memory"
