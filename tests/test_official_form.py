"""The plain network that the benchmarks measure against is the official one: outputs, keys, arithmetic, launches."""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from geoseg.models import convert_official_state_dict

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

from network_worker import image, visible_weights
from official_form import VARIANTS, OfficialForm, Variant
from processes import Variant as Named
from processes import WorkerError, ask_once, measure

GOLDEN = Path(__file__).parent / "golden"
TINY = Variant((8, 16, 24, 32), (1, 1, 2, 1), channels=32, rank=8)
BASES = "decode_head.hamburger.ham.bases"
SIZES = {"T": "tiny", "S": "small", "B": "base", "L": "large"}


@cache
def golden() -> dict[str, npt.NDArray[Any]]:
    with np.load(GOLDEN / "tiny_reference.npz") as file:
        return dict(file)


def tiny() -> OfficialForm:
    """The network of the golden files, its weights loaded strictly under the official names."""
    network = OfficialForm(TINY, classes=6, groups=8)
    official = {k.removeprefix("sd/"): torch.from_numpy(v) for k, v in golden().items() if k.startswith("sd/")}
    network.load_state_dict(official, strict=True)
    network.decode_head.hamburger.ham.bases = torch.from_numpy(golden()["bases"])
    return network


def assert_golden(found: Tensor, name: str) -> None:
    np.testing.assert_allclose(found.numpy(), golden()[name], rtol=1e-4, atol=1e-5, err_msg=name)


# --- equal to the official code


@torch.no_grad()
def test_every_step_equals_the_official_code() -> None:
    network, seen = tiny(), {}
    head = network.decode_head
    for name, module in {
        "squeeze": head.squeeze,
        "ham_in": head.hamburger.ham_in.conv,
        "ham": head.hamburger.ham,
        "hamburger": head.hamburger,
        "align": head.align,
        "logits_lowres": head,
    }.items():
        # a copy: what follows ham_in is done in place
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out.clone()}))
    x = torch.from_numpy(golden()["input"])
    for stage, found in enumerate(network.backbone(x), start=1):
        assert_golden(found, f"out/stage{stage}")
    assert_golden(network(x), "out/logits")
    assert len(seen) == 6
    for name, found in seen.items():
        assert_golden(found, f"out/{name}")


@torch.no_grad()
def test_in_double_precision_it_equals_the_official_double_run() -> None:
    network = tiny().double()
    found = network(torch.from_numpy(golden()["input"]).double())
    # the bases of the golden files are normalised in float32, and normalised once more here
    np.testing.assert_allclose(found.numpy(), golden()["out64/logits"], rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_factorization_equals_the_official_one() -> None:
    found = tiny().decode_head.hamburger.ham(torch.from_numpy(golden()["nmf/input"]))
    assert_golden(found, "nmf/out_eval7")


def on_meta(size: str, classes: int) -> OfficialForm:
    with torch.device("meta"):
        network = OfficialForm(VARIANTS[size], classes=classes)
        network.decode_head.hamburger.ham.to("meta")
    return network


@pytest.mark.parametrize("size", VARIANTS)
def test_keys_and_shapes_are_the_official_ones_in_order(size: str) -> None:
    with gzip.open(GOLDEN / "official_keys.json.gz") as file:
        wanted = json.load(file)[SIZES[size]]
    found = {key: list(value.shape) for key, value in on_meta(size, 16).state_dict().items()}
    assert list(found.items()) == list(wanted.items())


class Launches(TorchDispatchMode):
    """Counts what torch launches, views aside."""

    VIEWS = ("view", "permute", "transpose", "unsqueeze", "expand", "alias", "detach")

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = str(func).split(".")[1]
        if name not in self.VIEWS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("size", "launched", "gflops"),
    [("T", 531, 12.809), ("S", 441, 31.293), ("B", 771, 69.325), ("L", 1281, 139.371)],
)
@torch.no_grad()
def test_it_does_as_much_as_the_official_code(size: str, launched: int, gflops: float) -> None:
    # counted on the official code: launches at 16 classes, convolutions and products at 150 classes and 512 × 512 px
    x, network = torch.empty(1, 3, 512, 512, device="meta"), on_meta(size, 16)
    with Launches() as launches:
        network(x)
    assert abs(launches.counts.total() - launched) <= 2
    blocks = sum(VARIANTS[size].depths)
    assert launches.counts["clone"] == 2 * blocks + 4
    assert launches.counts["bmm"] == 1 + 3 * 8 + 3 * 7 + 1
    network = on_meta(size, 150)
    with FlopCounterMode(display=False) as flops:
        network(x)
    assert flops.get_total_flops() / 1e9 == pytest.approx(gflops, abs=1e-3)


# --- the weights that the benchmarks give to it and to geoseg


@cache
def weights() -> dict[str, Tensor]:
    return visible_weights(VARIANTS["T"], 16)


def official() -> OfficialForm:
    network = OfficialForm(VARIANTS["T"], classes=16)
    state = dict(weights())
    network.decode_head.hamburger.ham.bases = state.pop(BASES)
    network.load_state_dict(state, strict=True)
    return network


@pytest.mark.parametrize("size", [(64, 96), (33, 47)])
@torch.no_grad()
def test_our_network_with_the_same_weights_is_the_same(size: tuple[int, int]) -> None:
    ours = smp.create_model("segnext", encoder_name="tu-mscan_tiny", encoder_weights=None, classes=16).eval()
    ours.load_state_dict(convert_official_state_dict(weights()), strict=True)
    x = image(*size, batch=2)
    wanted = official()(x)
    assert wanted.shape == (2, 16, *size)
    torch.testing.assert_close(ours(x), wanted, rtol=1e-4, atol=1e-4)


def test_the_weights_use_every_class_and_parameter() -> None:
    network, x = official(), image(128, 128)
    with torch.no_grad():
        logits = network.forward_logits(x)
    shares = logits.argmax(1).flatten().bincount(minlength=16) / logits[0, 0].numel()
    assert (shares > 0).sum() >= 8
    assert shares.max() < 0.5
    logits = network.forward_logits(x[:, :, :32, :32])
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    names, parameters = zip(*network.named_parameters(), strict=True)
    gradients = torch.autograd.grad((logits * noise).sum(), parameters)
    changes = [(g * (0.1 * p + 0.01)).abs().max() for g, p in zip(gradients, parameters, strict=True)]
    assert [name for name, change in zip(names, changes, strict=True) if not change > 1e-5] == []


def test_the_weights_are_the_same_in_every_process() -> None:
    again = visible_weights(VARIANTS["T"], 16)
    assert again.keys() == weights().keys()
    assert all(torch.equal(again[key], value) for key, value in weights().items())


# --- how the benchmarks measure

REQUEST = {"device": "cpu", "threads": 1, "streams": 1, "batch": 1, "classes": 16, "upsample": True, "size": "T"}


def test_names_of_variants_say_what_is_run() -> None:
    assert Named.parse("official") == Named("official", "official")
    assert Named.parse("geoseg-openvino-bf16") == Named("geoseg-openvino-bf16", "geoseg", "openvino", "bf16")
    tuned = Named.parse("segformer-b0-bf16-tuned")
    assert (tuned.architecture, tuned.precision, tuned.tuned) == ("segformer-b0", "bf16", True)
    with pytest.raises(ValueError, match="segformer-b9"):
        Named.parse("segformer-b9")


def test_networks_are_timed_in_processes_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    seen = ask_once("weights", path=str(path), **REQUEST)
    assert seen["classes"] > 8
    request = {**REQUEST, "height": 64, "width": 96, "weights": str(path)}
    variants = [Named.parse(name) for name in ("official", "geoseg-module")]
    found = measure(variants, request, rounds=2, tries=1, quiet=False, folder=tmp_path, reference="official")
    assert list(found) == ["official", "geoseg-module"]
    for result in found.values():
        assert len(result.seconds) == 2
        assert all(s > 0 for s in result.seconds)
        assert result.peak_bytes > 50e6
    # float32 in another order: no class may change but at a tie
    assert found["official"].differing == 0
    assert found["geoseg-module"].differing is not None
    assert found["geoseg-module"].differing < 1e-3


def test_a_network_that_needs_too_much_memory_is_skipped(tmp_path: Path) -> None:
    request = {**REQUEST, "height": 2048, "width": 2048, "limit_bytes": 2**30}
    found = measure(
        [Named.parse("segformer-b0")], request, rounds=1, tries=1, quiet=False, folder=tmp_path, loads_at_once=1
    )
    assert "memory" in found["segformer-b0"].left_out
    assert found["segformer-b0"].seconds == []


def test_a_worker_tells_what_went_wrong() -> None:
    with pytest.raises(WorkerError, match="KeyError: 'XXL'"):
        ask_once("weights", **(REQUEST | {"size": "XXL"}))
