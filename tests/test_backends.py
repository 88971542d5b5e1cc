"""Backends: every one gives the network's logits, the same bits in any company, or says what is missing."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import geoseg
from geoseg.errors import ConfigError, ModelError
from geoseg.network import backends
from geoseg.network.backends import BACKENDS, PRECISIONS, choose_backends, choose_precision, compiled
from geoseg.network.backends import openvino as openvino_backend
from geoseg.network.backends.openvino import multiplies_bfloat16
from geoseg.options import Network
from geoseg.prediction.predictor import Predictor
from support.backends import (
    SIZE,
    BackendContract,
    load_backend,
    load_core_anew,
    side_by_side,
    trained,
    wanted,
    wide,
    without_openvino,
)
from support.networks import InMemory, difference, images

CPU, CUDA = "cpu", "cuda:0"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in the threads that windows go through."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return wide()


# --- the network's logits


class TestTorch(BackendContract):
    backend = "torch"


class TestOpenVINO(BackendContract):
    backend = "openvino"


def test_torch_runs_segnext_folded(network: nn.Module) -> None:
    assert "folded" in load_backend(InMemory(network), backend="torch").identity


@pytest.mark.slow
@pytest.mark.skipif(compiled._compiler() is None, reason="torch.compile needs a C++ compiler, and none is here")
def test_compiled(network: nn.Module) -> None:
    """All of the above in one test: compiling takes a minute.

    What loads the network is a worker's thread under inference mode, as where no plan was made before.
    """
    windows = [images(1, 3, *SIZE, seed=seed) for seed in range(6)]
    with torch.inference_mode():
        forward = load_backend(InMemory(network), backend="compile", size=SIZE)
    found = side_by_side(forward, windows, 3)
    for x, one in zip(windows, found, strict=True):
        assert difference(one, wanted(network, x)) < 1e-4
        outside = forward(x)
        assert not outside.requires_grad
        assert torch.equal(outside, one)
    assert forward.identity.startswith(f"compile, torch {torch.__version__}")
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_logits_of_another_size_are_refused(backend: str) -> None:
    """They would be written past the end of the stitcher's arrays; SMP's FPN of three stages gives such."""
    forward = load_backend(InMemory(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Upsample(scale_factor=4))), backend=backend)
    with pytest.raises(ModelError, match="gives 128 × 256 logits for a window of 32 × 64 px, expected one for every 1"):
        forward(images(1, 3, 32, 64))


# --- which backend


def test_a_cpu_runs_openvino_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_backends("auto", CPU) == ["openvino", "torch"]
    monkeypatch.setattr(backends, "is_installed", lambda: False)
    assert choose_backends("auto", CPU) == ["torch"]
    without_openvino(monkeypatch)
    assert not openvino_backend.is_installed()


def test_a_gpu_runs_compiled_networks() -> None:
    assert choose_backends("auto", CUDA) == ["compile", "torch"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_name_is_taken_at_its_word(backend: str) -> None:
    assert choose_backends(backend, CPU) == [backend]


def test_openvino_is_refused_on_a_gpu() -> None:
    with pytest.raises(ConfigError, match="backend openvino runs on a CPU, not on cuda:0") as caught:
        choose_backends("openvino", CUDA)
    assert caught.value.hint == "--backend compile, or --device cpu"
    assert choose_backends("compile", CUDA) == ["compile"]


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"backend must be one of .*, found 'tensorrt'") as caught:
        Network(backend="tensorrt")  # type: ignore[arg-type]
    assert caught.value.hint == f"--backend auto, {', '.join(BACKENDS)}"
    with pytest.raises(ConfigError, match=r"precision must be one of .*, found 'int8'") as caught:
        Network(precision="int8")  # type: ignore[arg-type]
    assert caught.value.hint == f"--precision auto, {', '.join(PRECISIONS)}"


@pytest.mark.parametrize(
    ("loss_points", "chosen"), [(None, "float32"), (0.2, "bfloat16"), (-0.1, "bfloat16"), (0.21, "float32")]
)
def test_reduced_precision_is_earned(monkeypatch: pytest.MonkeyPatch, loss_points: float | None, chosen: str) -> None:
    monkeypatch.setattr(backends, "multiplies_bfloat16", lambda: True)
    assert choose_precision("auto", CPU, loss_points=loss_points) == chosen
    assert choose_precision("bfloat16", CPU, loss_points=loss_points) == "bfloat16"
    assert choose_precision("float32", CPU, loss_points=loss_points) == "float32"
    monkeypatch.setattr(backends, "multiplies_bfloat16", lambda: False)
    assert choose_precision("auto", CPU, loss_points=loss_points) == "float32"
    with pytest.raises(ConfigError, match="this CPU does not multiply bfloat16") as caught:
        choose_precision("bfloat16", CPU, loss_points=loss_points)
    assert caught.value.hint == "--precision float32"
    assert choose_precision("auto", CUDA, loss_points=loss_points) == "bfloat16"
    assert choose_precision("float32", CUDA, loss_points=loss_points) == "float32"


def test_a_missing_package_is_named(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    without_openvino(monkeypatch)
    with pytest.raises(ConfigError, match="backend openvino needs OpenVINO") as caught:
        load_backend(InMemory(network), backend="openvino", size=SIZE)
    assert caught.value.hint == "pip install openvino, or --backend torch"


def test_without_a_compiler(network: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler") as caught:
        load_backend(InMemory(network), backend="compile")
    assert "CXX" in str(caught.value.hint)
    assert "--backend torch" in str(caught.value.hint)
    compiler = tmp_path / "my-compiler"
    compiler.touch(mode=0o755)
    for named in (str(compiler), f"{compiler} -pipe"):
        monkeypatch.setenv("CXX", named)
        assert compiled._compiler() == str(compiler)


@pytest.fixture
def broken_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A C++ compiler that is there and fails."""
    if sys.platform == "win32":
        pytest.skip("the compiler here is a shell script")
    compiler = tmp_path / "broken"
    compiler.write_text('#!/bin/sh\ncase "$*" in *--version*) echo g++ 12;; *) echo out of order >&2; exit 1;; esac\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    # read from CXX when torch is imported; monkeypatch would not bring it back
    with torch._inductor.config.patch({"cpp.cxx": (None, str(compiler))}):
        yield


@pytest.mark.usefixtures("broken_compiler")
@pytest.mark.parametrize("size", [None, (40, 24)], ids=["at the first window", "at once"])
def test_a_compiler_that_fails_is_reported(size: tuple[int, int] | None) -> None:
    small = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GELU()).eval()
    with pytest.raises(ModelError, match=r"this network does not run in torch\.compile: ") as caught:
        load_backend(InMemory(small), backend="compile", size=size)(images(1, 3, 40, 24))
    assert caught.value.hint == "--backend torch"


@pytest.mark.usefixtures("broken_compiler")
def test_a_gpus_choice_without_a_compiler_is_plain_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GELU()).eval()
    names = choose_backends("auto", CUDA)
    monkeypatch.setattr(backends, "choose_backends", lambda *_: names)
    forward = load_backend(InMemory(small), size=(40, 24))
    assert forward.backend == "torch"
    assert forward.identity.startswith("torch")
    ours = [record for record in caplog.records if record.name.startswith("geoseg")]
    (warning,) = [record.getMessage() for record in ours if record.levelno >= logging.WARNING]
    assert warning.startswith(
        "backend compile is skipped, torch is used instead: this network does not run in torch.compile: "
    )
    x = images(1, 3, 40, 24)
    assert torch.equal(forward(x), wanted(small, x))


# --- what cannot be exported


class Brightening(nn.Module):
    """Python decides by the values, which no exporter can write down."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.score(x)
        return scores * 2 if float(scores.mean()) > 0 else scores


class Unlike(nn.Module):
    """Its logits are others each time, so that no conversion can give them."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Conv2d(3, 4, 1)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        scores: Tensor = self.score(x) * self.calls
        return scores


@pytest.mark.parametrize("kind", [Brightening, Unlike])
def test_auto_skips_what_does_not_give_the_logits(kind: type[nn.Module], caplog: pytest.LogCaptureFixture) -> None:
    network = kind().eval()
    if kind is Brightening:
        nn.init.constant_(network.score.weight, 1.0)  # type: ignore[union-attr, arg-type]
    with caplog.at_level(logging.INFO, "geoseg"):
        forward = load_backend(InMemory(network), size=(32, 32))
    assert forward.backend == "torch"
    assert "backend openvino is skipped, torch is used instead: this network does not run in OpenVINO: " in caplog.text
    assert "the network runs in torch" in caplog.text


def test_who_names_a_backend_reads_why_it_fails() -> None:
    with pytest.raises(
        ModelError, match=r"this network does not run in OpenVINO: .*differ by .* from torch's"
    ) as caught:
        load_backend(InMemory(Unlike().eval()), backend="openvino", size=(32, 32))
    assert caught.value.hint == "--backend torch"


def test_networks_that_hang_in_bfloat16_are_refused() -> None:
    """OpenVINO 2026.4 compiles this convolution for ever."""
    if not multiplies_bfloat16():
        pytest.skip("this CPU does not multiply bfloat16")
    narrow = nn.Conv2d(16, 16, (1, 21), padding=(0, 10), groups=16).eval()
    with pytest.raises(ModelError, match="depthwise convolutions of 16 channels and 21 columns") as caught:
        load_backend(InMemory(narrow), backend="openvino", precision="bfloat16", bands=16, size=(32, 32))
    assert caught.value.hint == "--precision float32"
    with pytest.raises(ModelError):  # in plain torch it would hang as well
        load_backend(InMemory(narrow), precision="bfloat16", bands=16, size=(32, 32))


def test_a_runtime_that_cannot_be_imported_is_skipped(
    network: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is installed, and a library of the system's that it needs is not."""
    (tmp_path / "openvino.py").write_text("raise ImportError('libgomp.so.1: cannot open shared object file')")
    monkeypatch.delitem(sys.modules, "openvino", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    load_core_anew(monkeypatch)
    with pytest.raises(ConfigError, match=r"cannot be imported: libgomp\.so\.1") as caught:
        load_backend(InMemory(network), backend="openvino")
    assert caught.value.hint == "--backend torch"
    assert load_backend(InMemory(network)).backend == "torch"
    assert "backend openvino is skipped, torch is used instead: " in caplog.text


# --- the predictor


def test_the_predictor_refuses_what_cannot_be_before_it_is_used(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained(network)
    monkeypatch.setattr(backends, "multiplies_bfloat16", lambda: False)
    with pytest.raises(ConfigError, match="bfloat16"):
        Predictor(model, CPU, Network(precision="bfloat16"))
    without_openvino(monkeypatch)
    with pytest.raises(ConfigError, match="backend openvino needs"):
        Predictor(model, CPU, Network(backend="openvino"))


SIGNALS = """
import gc, os, signal, threading
import torch
from torch import nn
from types import SimpleNamespace
from geoseg.network.backends import Request, load_backend

found = []
signal.signal(signal.SIGUSR1, lambda *_: found.append(1))
model = SimpleNamespace(network=nn.Conv2d(3, 4, 1).eval(), stride=1, key=None)
forward = load_backend(model, "openvino", Request())
forward(torch.zeros(1, 3, 32, 32))

def drop():
    global forward
    del forward
    gc.collect()

thread = threading.Thread(target=drop)
thread.start()
thread.join()
for _ in range(3):
    os.kill(os.getpid(), signal.SIGUSR1)
assert found
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals differ there")
def test_signals_are_survived_after_openvino_was_used() -> None:
    """Its plugin gives threads a stack for signals; freed by another thread, the next Ctrl-C would be the end."""
    folder = str(Path(geoseg.__file__).parents[1])
    ran = subprocess.run([sys.executable, "-c", SIGNALS], capture_output=True, text=True, cwd=folder, check=False)
    assert ran.returncode == 0, ran.stderr


FIRST_ARRAY = """
import numpy as np
from numpy.lib import NumpyVersion
from geoseg.network.backends.openvino import core

seen, make = [], NumpyVersion.__init__

def noted(self, version):
    seen.append(version)
    make(self, version)

NumpyVersion.__init__ = noted
core()
assert seen, "numpy is looked up later, by whichever threads bring the first arrays"
"""


def test_openvino_meets_numpy_before_threads_do() -> None:
    """Where two threads brought the first arrays at once, they were seen to wait for each other for ever."""
    folder = str(Path(geoseg.__file__).parents[1])
    ran = subprocess.run([sys.executable, "-c", FIRST_ARRAY], capture_output=True, text=True, cwd=folder, check=False)
    assert ran.returncode == 0, ran.stderr
