"""What SMP, timm, torch and ONNX Runtime expect of a network, over every variant that `geoseg models` lists.

The main path's own contract is in test_models.py; here each study keeps it too, and each size where it is about sizes.
"""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn
from torch.export import Dim

from count_variants import VARIANTS
from geoseg.models import SegNeXt
from support.networks import MSCAN_SMALL, SIZES, TINY, segnext

NETWORKS = {v.name: dict(v.options) for v in VARIANTS if v.encoder == "mscan_tiny" and not v.classifier}

# What torch.export, torch.compile and ONNX have to get through, in few networks of one block: these steps take seconds.
ONE_BLOCK = {"depths": (0, 0, 0, 1)}
TRACED: dict[str, dict[str, Any]] = {
    "SegNeXt": {},
    "encoder studies, (a)": {"branches": (7,), "channel_mixing": False, "attention": False, "decoder": "mlp"},
    "(b)": {"decoder": "conv"},
    "stage 1, EMA": {"stage1": True, "context": "ema"},
    "non-local": {"context": "non_local"},
    "CC": {"context": "cc"},
}


def assert_same(found: Tensor, wanted: Tensor) -> None:
    """Equal but for the order of sums: 1e-5 of the largest value, as single values may be near 0."""
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> SegNeXt:
    return copy.deepcopy(built(request.param))


@cache
def built(name: str) -> SegNeXt:
    return segnext(classes=3, drop_path_rate=0.0, **NETWORKS[name])


@pytest.fixture(params=TRACED)
def traced(request: pytest.FixtureRequest) -> Iterator[nn.Module]:
    """Pixels to logits of a network, as a module of its own."""
    yield Logits(segnext(classes=3, **TRACED[request.param], **ONE_BLOCK)).eval()
    torch._dynamo.reset()


class Logits(nn.Module):
    def __init__(self, network: SegNeXt) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.forward_logits(x)


def images(*size: int, seed: int = 1) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


# --- every study


def test_all_studies_are_here() -> None:
    options = {key for options in NETWORKS.values() for key in options}
    assert options == {"branches", "channel_mixing", "attention", "decoder", "stage1", "context"}
    assert options <= {key for options in TRACED.values() for key in options}


@pytest.mark.parametrize("size", [(64, 96), (33, 47), (1, 1), (7, 130)])
@torch.no_grad()
def test_any_size_in_is_the_size_out(network: SegNeXt, size: tuple[int, int]) -> None:
    out = network(images(2, 3, *size))
    assert out.shape == (2, 3, *size)
    assert torch.isfinite(out).all()
    coarse = network.forward_logits(images(2, 3, *size))
    assert coarse.shape == (2, 3, *(-(-side // network.logits_stride) for side in size))


@torch.no_grad()
def test_logits_at_the_stride_upsampled_are_the_output(network: SegNeXt) -> None:
    x = images(1, 3, 64, 96)
    upsampled = nn.functional.interpolate(network.forward_logits(x), (64, 96), mode="bilinear", align_corners=False)
    assert torch.equal(network(x), upsampled)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_four_bands(name: str) -> None:
    """The stem is the same for all; other numbers are tried on the main path."""
    network = segnext(in_channels=4, classes=2, **NETWORKS[name])
    assert network(images(1, 4, 64, 32)).shape == (1, 2, 64, 32)


def test_every_parameter_gets_a_gradient(network: SegNeXt) -> None:
    network.train()
    network(images(2, 3, 64, 64)).square().mean().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@torch.no_grad()
def test_a_step_of_training_leaves_nothing_random(network: SegNeXt) -> None:
    x = images(2, 3, 64, 64)
    first = network(x)
    torch.manual_seed(99)
    assert torch.equal(network(x), first)
    network.train()(images(2, 3, 64, 64, seed=2))  # statistics of batch norms move
    moved = network.eval()(x)
    assert torch.equal(network(x), moved)


@torch.no_grad()
def test_images_of_a_batch_do_not_know_each_other(network: SegNeXt) -> None:
    x = images(3, 3, 64, 64)
    together = network(x)
    alone = torch.cat([network(image[None]) for image in x])
    assert_same(together, alone)
    assert_same(network(x.flip(0)).flip(0), together)


@torch.no_grad()
def test_saved_and_loaded_it_is_the_same_network(network: SegNeXt, tmp_path: Path) -> None:
    network.save_pretrained(tmp_path)
    again = smp.from_pretrained(str(tmp_path), strict=True).eval()
    assert type(again.decoder) is type(network.decoder)
    assert again.logits_stride == network.logits_stride
    x = images(1, 3, 33, 47)
    assert torch.equal(again(x), network(x))


@torch.no_grad()
def test_channels_last_and_bfloat16_are_near(network: SegNeXt) -> None:
    x = images(1, 3, 64, 64)
    full = network(x)
    assert_same(network(x.contiguous(memory_format=torch.channels_last)), full)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = network(x).float()
    assert (rough - full).abs().max() < 0.1 * full.abs().max()


# --- every size


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("image", [(64, 96), (33, 47)])
def test_features_stand_at_smps_strides(size: str, image: tuple[int, int]) -> None:
    with torch.device("meta"):
        network = smp.create_model("segnext", encoder_name=f"tu-mscan_{size}", encoder_weights=None, in_channels=4)
    network = network.to("meta").eval()  # the bases, which are made on the CPU
    encoder, x = network.encoder, torch.empty(2, 4, *image, device="meta")
    features = encoder(x)
    assert [f.shape[1] for f in features] == list(encoder.out_channels)
    assert list(encoder.out_channels[:2]) == [4, 0]  # the image itself, and nothing at stride 2
    for exponent, feature in list(enumerate(features))[2:]:
        assert feature.shape[2:] == tuple(-(-side // 2**exponent) for side in image)
    assert network(x).shape == (2, 1, *image)


@pytest.mark.parametrize("size", SIZES)
def test_widths_of_every_size_get_gradients(size: str) -> None:
    """One block a stage: what differs beyond is how often it is repeated."""
    torch.manual_seed(0)
    network = smp.create_model(
        "segnext",
        encoder_name=f"tu-mscan_{size}",
        encoder_weights=None,
        classes=2,
        depths=(1, 1, 1, 1),
        drop_path_rate=0.0,
    )
    network(images(2, 3, 32, 64)).square().mean().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("size", SIZES)
def test_timm_finds_what_its_configuration_names(size: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(f"mscan_{size}")
        config = network.pretrained_cfg
        state = network.state_dict()
        assert f"{config['first_conv']}.weight" in state
        assert f"{config['classifier']}.weight" in state
        assert network.get_classifier() is network.get_submodule(config["classifier"])
        assert network.num_features == network.head_hidden_size == network.get_classifier().in_features
        features = network.forward_features(torch.empty(1, *config["input_size"]))
    assert features.shape[2:] == config["pool_size"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """An ImageNet-style checkpoint of a small MSCAN."""
    torch.manual_seed(0)
    state = timm.create_model("mscan_tiny", **MSCAN_SMALL).state_dict()
    path = tmp_path_factory.mktemp("weights") / "mscan.pth"
    torch.save({"state_dict": state}, path)
    return path, state


@pytest.mark.parametrize("bands", [1, 3, 4, 8])
def test_pretrained_weights_fit_any_number_of_bands(checkpoint: tuple[Path, dict[str, Tensor]], bands: int) -> None:
    """timm's rule: repeat the three bands and scale, so that the sum over bands stays about what it was."""
    path, state = checkpoint
    wanted = {1: lambda w: w.sum(1, keepdim=True), 3: lambda w: w}.get(
        bands, lambda w: w.repeat(1, 3, 1, 1)[:, :bands] * (3 / bands)
    )(state["patch_embed1.proj.0.weight"])
    overlay = {"file": str(path)}
    alone = timm.create_model(
        "mscan_tiny", pretrained=True, pretrained_cfg_overlay=overlay, in_chans=bands, **MSCAN_SMALL
    )
    inside = smp.create_model(
        "segnext",
        encoder_name="tu-mscan_tiny",
        encoder_weights=True,
        in_channels=bands,
        pretrained_cfg_overlay=overlay,
        **TINY,
    )
    for encoder in (alone, inside.encoder.model.model):
        found = encoder.state_dict()
        torch.testing.assert_close(found["patch_embed1.proj.0.weight"], wanted)
        assert torch.equal(found["block4.0.mlp.fc1.weight"], state["block4.0.mlp.fc1.weight"])


# --- torch's and others' compilers


@torch.no_grad()
def test_torch_compile_traces_it_without_a_break(traced: nn.Module) -> None:
    x = images(1, 3, 64, 96)
    compiled = torch.compile(traced, backend="eager", fullgraph=True)
    assert_same(compiled(x), traced(x))


@pytest.mark.slow
@torch.no_grad()
def test_compiled_code_computes_the_same() -> None:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None or subprocess.run([compiler, "--version"], capture_output=True).returncode:
        pytest.skip(f"torch.compile needs a C++ compiler, and there is no {compiler}")
    network = Logits(segnext(classes=3, **ONE_BLOCK)).eval()
    x = images(1, 3, 64, 96)
    assert_same(torch.compile(network)(x), network(x))
    torch._dynamo.reset()


@torch.no_grad()
def test_an_exported_network_takes_other_batches_and_sizes(traced: nn.Module, tmp_path: Path) -> None:
    dynamic = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    program = torch.export.export(traced, (images(2, 3, 64, 96),), dynamic_shapes=({**dynamic},))
    others = [images(2, 3, 96, 64), images(1, 3, 64, 64), images(2, 3, 70, 131)]
    for x in others:
        assert_same(program.module()(x), traced(x))

    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    file = tmp_path / "network.onnx"
    torch.onnx.export(program, f=file, verbose=False, external_data=False, optimize=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    for x in others:
        wanted = traced(x)
        found = session.run(None, {name: x.numpy()})[0]
        assert_same(torch.from_numpy(found), wanted)
