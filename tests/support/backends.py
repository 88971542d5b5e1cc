"""What every backend keeps: a test class inherits it and names its backend."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, ClassVar

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from geoseg.contract import Band, ClassEntry, Contract, WindowSettings
from geoseg.network import backends
from geoseg.network.backends import Forward, Request
from geoseg.network.backends import openvino as openvino_backend
from geoseg.network.backends.openvino import multiplies_bfloat16
from geoseg.network.tta import TTA, augmented
from geoseg.options import Network
from geoseg.prediction.predictor import Predictor, WindowPixels
from geoseg.windows import Window
from support.networks import FEW_LAYERS, WIDE, InMemory, difference, images, segnext, visible

SIZE = (64, 96)


def load_backend(model: InMemory, *, backend: str = "auto", **how: Any) -> Forward:
    return backends.load_backend(model, backend, Request(**how))  # type: ignore[arg-type]


def without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if OpenVINO were not installed, and had never been loaded.

    Its core stays: dropped, it would take away the stack that this process uses for signals.
    """
    monkeypatch.setitem(sys.modules, "openvino", None)
    load_core_anew(monkeypatch)


def load_core_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for OpenVINO again at the next use; see `without_openvino`."""
    fresh = cache(openvino_backend.core.__wrapped__)
    for module in (backends, openvino_backend):
        monkeypatch.setattr(module, "core", fresh)


@cache
def wide() -> nn.Module:
    """A SegNeXt of four classes in which every parameter shows."""
    return visible(segnext(**WIDE, classes=4))


@torch.inference_mode()
def wanted(network: nn.Module, x: Tensor) -> Tensor:
    """The network's own logits."""
    out: Tensor = network.forward_logits(x) if hasattr(network, "forward_logits") else network(x)  # type: ignore[operator]
    return out


def trained(network: nn.Module) -> InMemory:
    """A network and its contract, in memory."""
    contract = Contract(
        name="wide",
        bands=tuple(Band(name=name, mean=0.5, std=0.2) for name in ("red", "green", "blue")),
        dtype="uint8",
        scale=1 / 255,
        gsd_m=0.5,
        classes=tuple(ClassEntry(name=f"class {i}", color=f"#{60 * i:02x}8000") for i in range(4)),
        window=WindowSettings(size=64, overlap=32),
    )
    return InMemory(network, contract)


def side_by_side(forward: Callable[[Tensor], Tensor], windows: list[Tensor], threads: int) -> list[Tensor]:
    """Results of windows in several threads that start together, as the predictor's do."""
    start = threading.Barrier(threads)

    def prepare() -> None:
        torch.set_num_threads(1)
        start.wait()

    with ThreadPoolExecutor(threads, initializer=prepare) as pool:
        return list(pool.map(torch.inference_mode()(forward), windows))


class BackendContract:
    """Tests of one backend on a CPU."""

    backend: ClassVar[str]

    @pytest.fixture(scope="class")
    @classmethod
    def forward(cls, network: nn.Module) -> Forward:
        return cls.load(network, size=SIZE)

    @classmethod
    def load(cls, network: nn.Module, *, size: tuple[int, int] | None = None, precision: str = "float32") -> Forward:
        return load_backend(InMemory(network), backend=cls.backend, precision=precision, at_once=4, size=size)

    def test_it_gives_the_networks_logits(self, network: nn.Module, forward: Forward) -> None:
        assert (forward.backend, forward.stride) == (self.backend, 8)
        x = images(1, 3, *SIZE)
        found = forward(x)
        assert found.dtype == torch.float32
        assert difference(found, wanted(network, x)) < 1e-4

    def test_sizes_and_batches_may_change(self, network: nn.Module, forward: Forward) -> None:
        """Those that were not foreseen come first in a worker's thread, under its inference mode."""
        for shape in ((2, 3, 96, 64), (1, 3, *SIZE), (2, 3, 96, 64)):
            x = images(*shape, seed=shape[0])
            (found,) = side_by_side(forward, [x], 1)
            assert difference(found, wanted(network, x)) < 1e-4

    def test_a_batch_is_its_windows(self, forward: Forward) -> None:
        x = images(2, 3, 96, 64)
        assert difference(forward(x.flip(0)).flip(0), forward(x)) < 1e-5

    @pytest.mark.parametrize("foreseen", [True, False], ids=["foreseen size", "first of its size"])
    def test_a_window_is_the_same_bits_in_any_company(
        self, foreseen: bool, network: nn.Module, forward: Forward
    ) -> None:
        windows = [images(1, 3, *SIZE, seed=seed) for seed in range(12)]
        alone = [forward(x) for x in windows]
        together = forward if foreseen else self.load(network)
        for found, one in zip(side_by_side(together, windows, 4), alone, strict=True):
            assert torch.equal(found, one)

    def test_the_result_is_a_plain_tensor_of_its_own(self, forward: Forward) -> None:
        """Under inference mode and outside of it, of channels-last windows too; no later window changes it."""
        x, other = images(1, 3, *SIZE), images(1, 3, *SIZE, seed=2)
        outside = forward(x)
        assert not outside.requires_grad
        before = outside.clone()
        forward(other)
        assert torch.equal(outside, before)
        with torch.inference_mode():
            inside = forward(x.contiguous(memory_format=torch.channels_last))
        assert torch.equal(inside, outside)

    def test_the_network_itself_is_left_as_it_is(self, network: nn.Module, forward: Forward) -> None:
        before = {key: value.clone() for key, value in network.state_dict().items()}
        forward(images(1, 3, *SIZE))
        after = network.state_dict()
        assert all(torch.equal(after[key], value) for key, value in before.items())
        assert all(parameter.requires_grad for parameter in network.parameters())
        assert not network.training

    def test_bfloat16_is_near(self, network: nn.Module, forward: Forward) -> None:
        if not multiplies_bfloat16():
            pytest.skip("this CPU does not multiply bfloat16")
        rounded = self.load(network, size=SIZE, precision="bfloat16")
        assert rounded.identity.endswith("bfloat16")
        x = images(1, 3, *SIZE)
        found = rounded(x)
        assert found.dtype == torch.float32
        assert not torch.equal(found, forward(x))
        assert difference(found, wanted(network, x)) < 4e-2  # autocast rounds the residuals too

    def test_the_identity_names_backend_version_and_precision(self, forward: Forward) -> None:
        version = sys.modules[self.backend].__version__.split("-")[0]
        assert version in forward.identity
        assert forward.identity.endswith("float32")
        assert forward.identity.startswith(self.backend)

    def test_scaled_windows_go_through_one_forward(self, network: nn.Module, forward: Forward) -> None:
        """Six scales of a window of 32 px are windows of 32 and of 64 px."""
        x, scales = images(1, 3, 32, 32), TTA["scales"]
        with torch.inference_mode():
            found = augmented(forward, x, scales)
        assert difference(found, augmented(lambda scaled: wanted(network, scaled), x, scales)) < 1e-4

    def test_logits_at_full_resolution(self) -> None:
        torch.manual_seed(2)
        unet = smp.create_model("unet", encoder_name="resnet18", encoder_weights=None, classes=4, **FEW_LAYERS).eval()
        forward = self.load(unet, size=(64, 64))
        x = images(1, 3, 64, 64)
        assert forward.stride == 1
        found = forward(x)
        assert not found.requires_grad
        assert difference(found, wanted(unet, x)) < 1e-4

    def test_the_predictor_without_a_plan(self, network: nn.Module) -> None:
        """The first window's thread makes the network ready, while others wait for it."""
        pixels = np.random.default_rng(0).integers(0, 255, (5, 3, *SIZE), dtype=np.uint8)
        valid = np.ones(SIZE, dtype=bool)
        items = [WindowPixels(Window(0, 0, *SIZE), one, valid) for one in pixels]
        predictor = Predictor(trained(network), torch.device("cpu"), Network(backend=self.backend))
        found = [logits for _, logits in predictor.run_windows(items, batch_size=3)]
        x = (torch.from_numpy(pixels).float() / 255 - 0.5) / 0.2
        for one, logits in zip(x, found, strict=True):
            assert difference(torch.from_numpy(logits)[None], wanted(network, one[None])) < 1e-4
