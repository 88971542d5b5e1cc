"""The paper's design studies, checked against plain formulas; the contract they keep is in test_network_contract.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import geoseg
from geoseg.config import parse_config
from geoseg.errors import ConfigError
from geoseg.models.hamburger import Hamburger, HamburgerDecoder
from geoseg.models.mscan import MSCAN, STRIPS, MultiScaleGate
from geoseg.models.studies import (
    CONTEXTS,
    EM_STEPS,
    RATES,
    ConvDecoder,
    CrissCross,
    ExpectationMaximization,
    JoinedDecoder,
    MlpDecoder,
    NonLocal,
)
from geoseg.network.model_folder import Normalize, build_network, load_model, save_model
from support.model_folders import contract
from support.networks import MSCAN_SMALL, TINY, segnext
from support.scenes import MakeScene


def noise(*size: int, seed: int = 1) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def gates(encoder: nn.Module) -> list[MultiScaleGate]:
    return [block.attn.spatial_gating_unit for i in range(1, 5) for block in getattr(encoder, f"block{i}")]


# --- Table 6: the encoder


def gate_and_study(**options: Any) -> tuple[MultiScaleGate, MultiScaleGate]:
    """The paper's gate, and a study with the weights of it that are left."""
    torch.manual_seed(0)
    gate = MultiScaleGate(6)
    study = MultiScaleGate(6, **options)
    study.load_state_dict({key: value for key, value in gate.state_dict().items() if key in study.state_dict()})
    return gate, study


@pytest.mark.parametrize("missing", STRIPS)
@torch.no_grad()
def test_without_a_branch_is_with_a_branch_of_zeros(missing: int) -> None:
    gate, study = gate_and_study(branches=[k for k in STRIPS if k != missing])
    strip = getattr(gate, f"{STRIPS[missing]}_2")
    assert strip.kernel_size == (missing, 1)
    strip.weight.zero_()
    strip.bias.zero_()
    u = noise(2, 6, 30, 25)
    torch.testing.assert_close(study(u), gate(u))
    assert len(gate.state_dict()) - len(study.state_dict()) == 4


@torch.no_grad()
def test_without_mixing_is_with_the_identity_as_weights() -> None:
    gate, study = gate_and_study(channel_mixing=False)
    gate.conv3.weight.copy_(torch.eye(6)[:, :, None, None])
    gate.conv3.bias.zero_()
    u = noise(2, 6, 9, 11)
    torch.testing.assert_close(study(u), gate(u))


@torch.no_grad()
def test_without_attention_is_without_the_product() -> None:
    gate, study = gate_and_study(attention=False)
    u = noise(2, 6, 9, 11)
    torch.testing.assert_close(study(u) * u, gate(u))


def test_a_gate_with_nothing_left_out_is_whole() -> None:
    default = timm.create_model("mscan_tiny", branches=[21, 7, 11], channel_mixing=True, attention=True, **MSCAN_SMALL)
    assert all(g.is_whole for g in (*gates(timm.create_model("mscan_tiny", **MSCAN_SMALL)), *gates(default)))
    study = timm.create_model("mscan_tiny", branches=(11, 7), **MSCAN_SMALL)
    assert isinstance(study, MSCAN)
    assert [(g.is_whole, g.branches) for g in gates(study)] == [(False, (7, 11))] * 4
    assert study(noise(1, 3, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize("branches", [(7, 9), (7, 7), 7, "7", ("7",), (None,)])
def test_branches_the_paper_lacks_are_refused(branches: Any) -> None:
    with pytest.raises(ValueError, match="branches must be some of 7, 11, 21, each once"):
        timm.create_model("mscan_tiny", branches=branches, **MSCAN_SMALL)


# --- Table 5: the context module


def context(name: str, channels: int = 16) -> nn.Module:
    torch.manual_seed(0)
    module = CONTEXTS[name](channels, 4, 4)
    with torch.no_grad():  # random biases and wide embeddings, so that every weight shows
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return module.eval()


@torch.no_grad()
def test_non_local_is_a_weighted_mean_of_all_pixels() -> None:
    module = context("non_local")
    assert isinstance(module, NonLocal)
    x = noise(2, 16, 4, 5)
    theta, phi, g = (conv(x) for conv in (module.theta, module.phi, module.g))
    assert theta.shape[1] == phi.shape[1] == g.shape[1] == 8
    mixed = torch.zeros_like(g)
    for n, i, j in np.ndindex(2, 4, 5):
        scores = torch.stack([theta[n, :, i, j] @ phi[n, :, a, b] for a, b in np.ndindex(4, 5)])
        values = torch.stack([g[n, :, a, b] for a, b in np.ndindex(4, 5)])
        mixed[n, :, i, j] = scores.softmax(0) @ values
    torch.testing.assert_close(module(x), x + module.out(mixed))


@torch.no_grad()
def test_criss_cross_sees_row_and_column_each_pixel_once() -> None:
    module = context("cc")
    assert isinstance(module, CrissCross)

    def step(x: Tensor) -> Tensor:
        query, key, value = module.query(x), module.key(x), module.value(x)
        out = x.clone()
        for n, i, j in np.ndindex(2, 4, 5):
            seen = sorted({(i, b) for b in range(5)} | {(a, j) for a in range(4)})
            assert len(seen) == 4 + 5 - 1
            scores = torch.stack([query[n, :, i, j] @ key[n, :, a, b] for a, b in seen])
            out[n, :, i, j] += scores.softmax(0) @ torch.stack([value[n, :, a, b] for a, b in seen])
        return out

    x = 0.5 * noise(2, 16, 4, 5)
    torch.testing.assert_close(module(x), step(step(x)), rtol=1e-4, atol=1e-5)


def test_criss_cross_twice_sees_the_whole_image() -> None:
    x = noise(1, 16, 6, 7).requires_grad_()
    context("cc")(x)[0, :, 2, 3].sum().backward()
    assert x.grad is not None
    assert (x.grad.abs().sum(1) > 0).all()


@torch.no_grad()
def test_expectation_maximization_is_its_two_steps() -> None:
    module = context("ema")
    assert isinstance(module, ExpectationMaximization)
    x = noise(2, 16, 4, 5)
    inner = module.conv_in(x)
    fitted = torch.empty_like(inner)
    for n in range(2):
        pixels = inner[n].flatten(1).T.double()  # (20, 16)
        bases = module.bases[0].T.double()  # (64, 16)
        bases = bases / bases.norm(dim=1, keepdim=True)
        for _ in range(EM_STEPS):
            shares = (pixels @ bases.T).exp()
            shares = shares / shares.sum(1, keepdim=True)
            bases = torch.stack([(s[:, None] * pixels).sum(0) / s.sum() for s in shares.T])
            bases = bases / bases.norm(dim=1, keepdim=True)
        fitted[n] = (shares @ bases).T.view(16, 4, 5)
    torch.testing.assert_close(module(x), F.relu(x + module.conv_out(F.relu(fitted))), rtol=1e-3, atol=1e-4)


def test_the_bases_are_drawn_from_a_seed_of_their_own() -> None:
    a = context("ema").bases
    torch.manual_seed(5)
    assert torch.equal(a, CONTEXTS["ema"](16, 4, 4).bases)


@torch.no_grad()
@pytest.mark.parametrize("name", ["non_local", "cc"])
def test_attention_starts_wide(name: str) -> None:
    """At the start no pixel gets nearly all of the weight, so that gradients reach all of them."""
    torch.manual_seed(0)
    module = CONTEXTS[name](256, 16, 32)
    x = noise(1, 256, 8, 8).relu()
    queries, keys = (module.theta, module.phi) if isinstance(module, NonLocal) else (module.query, module.key)
    attention = (queries(x).flatten(2).mT @ keys(x).flatten(2)).softmax(-1)
    assert attention.max() < 0.2


@torch.no_grad()
def test_no_context_is_the_identity() -> None:
    network = segnext(context="none")
    x = noise(1, 32, 4, 4)
    assert torch.equal(network.decoder.context(x), x)


@pytest.mark.parametrize("name", CONTEXTS)
def test_the_context_is_the_one_asked_for(name: str) -> None:
    decoder = segnext(context=name).decoder
    if name == "ham":
        assert type(decoder) is HamburgerDecoder
    else:
        assert type(decoder) is JoinedDecoder
        assert type(decoder.context) is not Hamburger


# --- Table 7: the decoder


def features(encoder: Any, height: int, width: int) -> list[Tensor]:
    """Random features of an encoder's shapes, which take a gradient."""
    return [
        noise(1, channels, -(-height // 2**i), -(-width // 2**i), seed=i).requires_grad_()
        for i, channels in enumerate(encoder.out_channels)
    ]


@pytest.mark.parametrize(
    ("options", "stages", "stride"),
    [
        ({}, [8, 16, 32], 8),
        ({"stage1": True}, [4, 8, 16, 32], 4),
        ({"stage1": True, "context": "cc"}, [4, 8, 16, 32], 4),
        ({"decoder": "mlp"}, [4, 8, 16, 32], 4),
        ({"decoder": "conv"}, [32], 32),
    ],
    ids=str,
)
def test_each_decoder_takes_its_stages(options: dict[str, Any], stages: list[int], stride: int) -> None:
    network = segnext(**options)
    assert network.logits_stride == network.decoder.stride == stride
    given = features(network.encoder, 64, 96)
    out = network.decoder(given)
    assert out.shape == (1, 32, 64 // stride, 96 // stride)
    out.square().sum().backward()
    assert [2**i for i, f in enumerate(given) if f.grad is not None and f.grad.abs().sum() > 0] == stages


@torch.no_grad()
def test_the_mlp_is_the_same_before_and_after_resizing() -> None:
    """Both of its steps before the norm are linear in each pixel, so they may be taken at each stage's own size."""
    decoder = segnext(decoder="mlp").decoder
    assert isinstance(decoder, MlpDecoder)
    given = features(segnext().encoder, 64, 96)
    parts = decoder.fuse.conv.weight.split(32, dim=1)
    total = sum(
        F.interpolate(F.conv2d(linear(stage), part), (16, 24), mode="bilinear", align_corners=False)
        for linear, stage, part in zip(decoder.linear, given[2:], parts, strict=True)
    )
    torch.testing.assert_close(decoder(given), F.relu(decoder.fuse.gn(total)), rtol=1e-4, atol=1e-5)


def test_the_pyramid_sees_at_its_rates_and_the_whole_image() -> None:
    decoder = segnext(decoder="conv").decoder
    assert isinstance(decoder, ConvDecoder)
    given = features(segnext().encoder, 32 * 21, 32 * 23)
    for rate, branch in zip(RATES, decoder.dilated, strict=True):
        given[-1].grad = None
        branch[0](given[-1])[0, :, 10, 11].sum().backward()
        assert given[-1].grad is not None
        rows, cols = given[-1].grad[0].abs().sum(0).nonzero().T
        assert sorted(set(rows.tolist())) == [10 - rate, 10, 10 + rate]
        assert sorted(set(cols.tolist())) == [11 - rate, 11, 11 + rate]
    given[-1].grad = None
    decoder(given)[0, :, 10, 11].sum().backward()
    assert (given[-1].grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"decoder": "aspp"}, "decoder must be one of ham, mlp, conv, found 'aspp'"),
        ({"context": "non-local"}, "context must be one of ham, ema, non_local, cc, none, found 'non-local'"),
        ({"decoder": "mlp", "context": "ema"}, "'mlp' has no context module"),
        ({"decoder": "conv", "stage1": True}, "'conv' has no context module"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        segnext(**options)


@torch.no_grad()
def test_a_study_takes_another_encoder() -> None:
    for options in ({"decoder": "mlp"}, {"decoder": "conv"}, {"stage1": True}):
        network = smp.create_model(
            "segnext", encoder_name="resnet18", encoder_weights=None, decoder_channels=32, norm_groups=8, **options
        ).eval()
        assert network(noise(1, 3, 64, 64)).shape == (1, 1, 64, 64)


# --- from a configuration to a map


@torch.no_grad()
def test_options_go_through_a_configuration_and_a_model_folder(tmp_path: Path) -> None:
    options = {**TINY, "branches": [7, 21], "attention": False, "context": "cc", "stage1": True}
    config = parse_config(
        {
            "name": "study",
            "output": str(tmp_path),
            "classes": [{"name": c, "color": "#010203"} for c in "abc"],
            "model": {"options": options},
            "data": {"train": [{"scene": "a", "labels": "b"}], "val": [{"scene": "a", "labels": "b"}]},
        },
        source="study.yaml",
    ).model
    network = build_network(
        config.architecture,
        config.encoder,
        encoder_weights=config.encoder_weights,
        in_channels=3,
        classes=3,
        **config.options,
    ).eval()
    save_model(tmp_path / "model", network, contract())
    stored = json.loads((tmp_path / "model" / "config.json").read_text())
    assert {key: stored[key] for key in ("branches", "attention", "context", "stage1")} == {
        "branches": [7, 21],
        "attention": False,
        "context": "cc",
        "stage1": True,
    }
    again = load_model(tmp_path / "model").network
    x = noise(1, 3, 64, 64)
    assert torch.equal(again(x), network(x))


def test_a_wrong_option_of_a_configuration_is_explained() -> None:
    for options, complaint in (({"decoder": "aspp"}, "decoder must be"), ({"branches": [5]}, "branches must be")):
        with pytest.raises(ConfigError, match=complaint):
            build_network("segnext", "tu-mscan_tiny", encoder_weights=None, in_channels=3, classes=2, **options)


@pytest.mark.parametrize(("options", "stride"), [({"decoder": "mlp"}, 4), ({"decoder": "conv"}, 32)], ids=["4", "32"])
@torch.no_grad()
def test_maps_are_stitched_at_any_stride_of_the_logits(
    make_scene: MakeScene, tmp_path: Path, options: dict[str, Any], stride: int
) -> None:
    network = segnext(classes=3, **options)
    assert network.logits_stride == stride
    save_model(tmp_path / "model", network, contract())
    made = make_scene(size=(96, 128), nodata="none")

    geoseg.predict(made.path, tmp_path / "model", tmp_path / "map.tif", size=128, device="cpu", ignore_gsd=True)
    with rasterio.open(tmp_path / "map.tif") as file:
        one_window = file.read(1)
    pixels = torch.from_numpy(made.pixels)[None]
    whole = network(Normalize(contract())(pixels)).argmax(1)[0].numpy()
    assert len(np.unique(whole)) > 1
    assert (one_window == whole).mean() > 0.999  # logits that tie in 1/16384

    report = geoseg.predict(
        made.path, tmp_path / "model", tmp_path / "several.tif", size=64, overlap=32, device="cpu", ignore_gsd=True
    )
    assert report.plan.windows == 2 * 3
    with rasterio.open(tmp_path / "several.tif") as file:
        several = file.read(1)
    assert several.max() < 3  # no pixel is left out
