from __future__ import annotations

import gzip
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn

from geoseg.models import SegNeXt, convert_official_state_dict
from support.networks import GOLDEN, MSCAN_SMALL, SIZES, TINY, golden, load, official_tiny, segnext

# float32 against the official float32 run; both are within 1e-5 of the float64 one.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def assert_golden(found: Tensor, name: str) -> None:
    np.testing.assert_allclose(found.detach().numpy(), golden()[name], **CLOSE, err_msg=name)


# --- equal to the official code


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels_last"])
@torch.no_grad()
def test_every_step_equals_the_official_code(memory_format: torch.memory_format) -> None:
    network = official_tiny()
    x = torch.from_numpy(golden()["input"]).to(memory_format=memory_format)
    features = network.encoder(x)
    for stage in (1, 2, 3, 4):
        assert_golden(features[stage + 1], f"out/stage{stage}")
    decoder, seen = network.decoder, {}
    for name, module in {
        "squeeze": decoder.squeeze,
        "ham_in": decoder.hamburger.ham_in.conv,  # before the ReLU
        "ham": decoder.hamburger.ham,
        "hamburger": decoder.hamburger,
        "align": decoder.align,
    }.items():
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
    assert_golden(network.forward_logits(x), "out/logits_lowres")
    for name, out in seen.items():
        assert_golden(out, f"out/{name}")
    assert len(seen) == 5
    assert_golden(network(x), "out/logits")


@torch.no_grad()
def test_the_network_in_double_equals_the_official_one() -> None:
    network = official_tiny().double()
    logits = network(torch.from_numpy(golden()["input"]).double())
    # The factorization stays in float32 by design, hence not 1e-12.
    np.testing.assert_allclose(logits.numpy(), golden()["out64/logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("training", "name"), [(False, "nmf/out_eval7"), (True, "nmf/out_train6")])
@torch.no_grad()
def test_factorization_equals_the_official_one(training: bool, name: str) -> None:
    nmf = official_tiny().decoder.hamburger.ham.train(training)
    assert_golden(nmf(torch.from_numpy(golden()["nmf/input"])), name)


def test_a_training_step_equals_the_official_one() -> None:
    reference = load("tiny_train_reference.npz")
    network = official_tiny().train()
    network.dropout.p = 0.0
    logits = network(torch.from_numpy(reference["input"]))
    labels = torch.from_numpy(reference["label"]).long()
    loss = nn.functional.cross_entropy(logits, labels, ignore_index=255, reduction="sum") / labels.numel()
    loss.backward()
    assert loss.item() == pytest.approx(float(reference["loss_all_pixels"]), rel=1e-5)
    named = dict(network.named_parameters())
    gradients = {k.removeprefix("grad/"): torch.from_numpy(v) for k, v in reference.items() if k.startswith("grad/")}
    gradients = convert_official_state_dict(gradients)
    assert gradients.keys() == named.keys()
    for name, wanted in gradients.items():
        found = named[name].grad
        assert found is not None
        # a bias before batch norm has gradient 0 but for rounding, so the scale is that of the largest gradients
        np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=2e-3, atol=2e-5, err_msg=name)
    buffers = {k.removeprefix("buf_after/"): torch.from_numpy(v) for k, v in reference.items() if k[:4] == "buf_"}
    state = network.state_dict()
    for name, wanted in convert_official_state_dict(buffers).items():
        np.testing.assert_allclose(state[name].numpy(), wanted.numpy(), rtol=1e-4, atol=1e-6, err_msg=name)


# --- official checkpoints


@cache
def official_keys() -> dict[str, dict[str, list[int]]]:
    with gzip.open(GOLDEN / "official_keys.json.gz") as file:
        keys: dict[str, dict[str, list[int]]] = json.load(file)
    return keys


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("spelling", ["official", "mmsegmentation 1.x"])
def test_official_checkpoints_fit_key_by_key(size: str, spelling: str) -> None:
    rename = ("mlp.dwconv.dwconv.", "mlp.dwconv." if spelling != "official" else "mlp.dwconv.dwconv.")
    with torch.device("meta"):
        tensors = {key.replace(*rename): torch.empty(shape) for key, shape in official_keys()[size].items()}
        network = smp.create_model("segnext", encoder_name=f"tu-mscan_{size}", encoder_weights=None, classes=16)
    converted = {key: tuple(value.shape) for key, value in convert_official_state_dict(tensors).items()}
    own = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert own.pop("decoder.hamburger.ham.bases")
    assert converted == own


def test_a_key_of_another_network_is_refused() -> None:
    with pytest.raises(KeyError, match=r"auxiliary_head\.conv_seg\.weight"):
        convert_official_state_dict({"auxiliary_head.conv_seg.weight": torch.zeros(1)})


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("size", "encoder", "with_head", "by_classes"),
    [
        ("tiny", 3_903_584, 4_160_584, {150: 4_263_414, 171: 4_268_811, 21: 4_230_261, 19: 4_229_747, 16: 4_228_976}),
        (
            "small",
            13_450_176,
            13_963_176,
            {150: 13_932_886, 171: 13_938_283, 21: 13_899_733, 19: 13_899_219, 16: 13_898_448},
        ),
        (
            "base",
            26_277_824,
            26_790_824,
            {150: 27_636_310, 171: 27_647_083, 21: 27_570_133, 19: 27_569_107, 16: 27_567_568},
        ),
        (
            "large",
            44_636_864,
            45_149_864,
            {150: 48_926_550, 171: 48_948_075, 21: 48_794_325, 19: 48_792_275, 16: 48_789_200},
        ),
    ],
)
def test_parameter_counts_are_the_papers(size: str, encoder: int, with_head: int, by_classes: dict[int, int]) -> None:
    with torch.device("meta"):
        assert count(timm.create_model(f"mscan_{size}")) == with_head
        network = smp.create_model("segnext", encoder_name=f"tu-mscan_{size}", encoder_weights=None, classes=150)
    assert count(network.encoder) == encoder
    for classes, wanted in by_classes.items():
        head = nn.Conv2d(network.segmentation_head.in_channels, classes, 1)
        assert count(network) - count(network.segmentation_head) + count(head) == wanted


@pytest.mark.parametrize(("size", "rank"), [("tiny", 16), ("small", 16), ("base", 64), ("large", 64)])
def test_the_rank_is_the_official_repositorys(size: str, rank: int) -> None:
    with torch.device("meta"):
        network = smp.create_model("segnext", encoder_name=f"tu-mscan_{size}", encoder_weights=None)
    assert network.decoder.hamburger.ham.bases.shape[2] == rank


def test_stochastic_depth_grows_from_none_over_all_blocks() -> None:
    network = timm.create_model("mscan_tiny", drop_path_rate=0.1)
    rates = [getattr(b.drop_path, "drop_prob", 0.0) for i in range(1, 5) for b in getattr(network, f"block{i}")]
    np.testing.assert_allclose(rates, np.linspace(0, 0.1, 13), rtol=1e-6)


# --- in timm


def test_timm_lists_the_four_sizes() -> None:
    assert set(timm.list_models("mscan_*")) == {f"mscan_{size}" for size in SIZES}


@pytest.mark.parametrize("indices", [(0, 1, 2, 3), (1, 3), (2,), (0,)])
@torch.no_grad()
def test_timm_gives_any_stages(indices: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = timm.create_model("mscan_tiny", features_only=True, out_indices=indices, **MSCAN_SMALL).eval()
    assert network.feature_info.channels() == [MSCAN_SMALL["embed_dims"][i] for i in indices]
    assert network.feature_info.reduction() == [4 * 2**i for i in indices]
    features = network(torch.randn(2, 3, 96, 64))
    assert [tuple(f.shape) for f in features] == [
        (2, MSCAN_SMALL["embed_dims"][i], 96 // (4 * 2**i), 64 // (4 * 2**i)) for i in indices
    ]


@pytest.mark.parametrize("bands", [1, 3, 4, 8])
@torch.no_grad()
def test_the_classifier_takes_any_number_of_bands(bands: int) -> None:
    network = timm.create_model("mscan_tiny", in_chans=bands, num_classes=7, **MSCAN_SMALL).eval()
    x = torch.randn(2, bands, 64, 64)
    features = network.forward_features(x)
    assert features.shape == (2, 32, 2, 2)
    assert network.forward_head(features, pre_logits=True).shape == (2, 32)
    assert network(x).shape == (2, 7)
    torch.testing.assert_close(network.head(features.mean((2, 3))), network(x))


@torch.no_grad()
def test_the_classifier_head_is_replaced_and_removed() -> None:
    network = timm.create_model("mscan_tiny", **MSCAN_SMALL).eval()
    assert network.get_classifier().out_features == 1000
    network.reset_classifier(5)
    assert network(torch.randn(1, 3, 64, 64)).shape == (1, 5)
    network.reset_classifier(0)
    assert network(torch.randn(1, 3, 64, 64)).shape == (1, 32)


@torch.no_grad()
def test_intermediates_are_the_stages_that_the_features_end_in() -> None:
    network = timm.create_model("mscan_tiny", **MSCAN_SMALL).eval()
    x = torch.randn(1, 3, 64, 64)
    last, stages = network.forward_intermediates(x)
    assert len(stages) == 4
    torch.testing.assert_close(last, network.forward_features(x))
    torch.testing.assert_close(stages[-1], last)
    early = network.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)
    torch.testing.assert_close(early[0], stages[1])


def test_timm_refuses_an_unknown_keyword() -> None:
    with pytest.raises(TypeError, match="strip_width"):
        timm.create_model("mscan_tiny", strip_width=3)


# --- in SMP


@pytest.mark.parametrize("bands", [1, 3, 4, 8])
@torch.no_grad()
def test_segnext_takes_any_bands_and_keeps_the_image_size(bands: int) -> None:
    network = segnext(in_channels=bands, classes=5)
    x = torch.randn(2, bands, 64, 96)
    assert network(x).shape == (2, 5, 64, 96)
    assert network.forward_logits(x).shape == (2, 5, 8, 12)


@pytest.mark.parametrize("size", [(33, 47), (1, 1), (7, 130), (8, 8), (65, 32)])
@torch.no_grad()
def test_any_image_size_will_do(size: tuple[int, int]) -> None:
    network = segnext(classes=3)
    out = network(torch.randn(1, 3, *size))
    assert out.shape == (1, 3, *size)
    assert torch.isfinite(out).all()
    eighth = tuple(-(-s // 8) for s in size)
    assert network.forward_logits(torch.randn(1, 3, *size)).shape == (1, 3, *eighth)


@torch.no_grad()
def test_the_output_is_the_plain_upsampling_of_the_logits() -> None:
    network = segnext(classes=3)
    x = torch.randn(1, 3, 64, 96)
    upsampled = nn.functional.interpolate(network.forward_logits(x), (64, 96), mode="bilinear", align_corners=False)
    torch.testing.assert_close(network(x), upsampled)


@pytest.mark.parametrize("architecture", ["unet", "fpn", "upernet"])
def test_other_decoders_take_the_encoder(architecture: str) -> None:
    network = smp.create_model(
        architecture, encoder_name="tu-mscan_tiny", encoder_weights=None, in_channels=4, classes=3, **MSCAN_SMALL
    )
    out = network(torch.randn(2, 4, 64, 64))
    assert out.shape == (2, 3, 64, 64)
    out.square().sum().backward()
    assert network.encoder.model.model.patch_embed1.proj[0].weight.grad.abs().sum() > 0


@torch.no_grad()
def test_segnexts_decoder_takes_another_encoder() -> None:
    network = smp.create_model(
        "segnext", encoder_name="resnet18", encoder_weights=None, classes=3, decoder_channels=32, norm_groups=8
    ).eval()
    assert network(torch.randn(1, 3, 64, 64)).shape == (1, 3, 64, 64)
    assert network.forward_logits(torch.randn(1, 3, 64, 64)).shape == (1, 3, 8, 8)


def test_every_parameter_gets_a_gradient() -> None:
    network = segnext(classes=3, drop_path_rate=0.0).train()
    network(torch.randn(2, 3, 64, 64)).square().mean().backward()
    without = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@torch.no_grad()
def test_the_output_does_not_depend_on_the_random_state() -> None:
    network = segnext(classes=3)
    x = torch.randn(1, 3, 64, 64)
    first = network(x)
    torch.manual_seed(99)
    assert torch.equal(network(x), first)


def test_building_a_network_draws_nothing_for_the_bases() -> None:
    a, b = (segnext(classes=2).decoder.hamburger.ham.bases for _ in range(2))
    torch.manual_seed(5)
    other = smp.create_model("segnext", encoder_name="tu-mscan_tiny", encoder_weights=None, **TINY)
    assert torch.equal(a, b)
    assert torch.equal(a, other.decoder.hamburger.ham.bases)


@torch.no_grad()
def test_images_of_a_batch_do_not_know_each_other() -> None:
    network = segnext(classes=3)
    x = torch.randn(4, 3, 64, 64)
    together = network(x)
    alone = torch.cat([network(image[None]) for image in x])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network(x.flip(0)).flip(0), together, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_bases_are_a_stored_buffer_that_may_be_set() -> None:
    network = segnext(classes=3)
    x = torch.randn(1, 3, 64, 64)
    before = network(x)
    name = "decoder.hamburger.ham.bases"
    assert name in dict(network.named_buffers())
    state = network.state_dict()
    network.load_state_dict(state | {name: torch.rand_like(state[name])})
    assert not torch.allclose(network(x), before)
    network.load_state_dict(state)


@torch.no_grad()
def test_the_factorization_scales_with_its_input() -> None:
    nmf = segnext(nmf_rank=4).decoder.hamburger.ham
    x = torch.rand(1, 32, 6, 5)
    out = nmf(x)
    assert (out >= 0).all()
    # seven rounds fit better than the zeros that a broken update would give
    assert (out - x).square().mean() < 0.5 * x.square().mean()
    assert torch.equal(nmf(torch.zeros_like(x)), torch.zeros_like(x))


@torch.no_grad()
def test_under_autocast_the_factorization_stays_finite_and_near() -> None:
    network = segnext(classes=3)
    x = torch.randn(1, 3, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = network(x)
    assert torch.isfinite(out).all()
    full = network(x)
    assert (out.float() - full).abs().max() < 0.1 * full.abs().max()


def test_an_unknown_keyword_is_refused() -> None:
    with pytest.raises(TypeError, match="strip_width"):
        segnext(strip_width=3)


def test_another_depth_is_refused() -> None:
    with pytest.raises(ValueError, match="encoder_depth must be 5"):
        smp.create_model("segnext", encoder_name="tu-mscan_tiny", encoder_weights=None, encoder_depth=4)


@torch.no_grad()
def test_a_classification_head_and_an_activation_are_smps() -> None:
    network = segnext(classes=3, aux_params={"classes": 2}, activation="softmax2d")
    masks, scores = network(torch.randn(2, 3, 64, 64))
    torch.testing.assert_close(masks.sum(1), torch.ones(2, 64, 64))
    assert scores.shape == (2, 2)


@torch.no_grad()
def test_saved_and_loaded_it_is_the_same_network(tmp_path: Path) -> None:
    network = segnext(classes=3, in_channels=4)
    network.save_pretrained(tmp_path)
    again = smp.from_pretrained(str(tmp_path)).eval()
    assert isinstance(again, SegNeXt)
    x = torch.randn(1, 4, 33, 47)
    assert torch.equal(again(x), network(x))


# --- import order, each in an interpreter of its own

CREATE_SMP = "smp.create_model('segnext', encoder_name='tu-mscan_tiny', encoder_weights=None)"
CREATE_TIMM = "timm.create_model('mscan_tiny')"


def python(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


ORDERS = [
    f"import geoseg.models; import segmentation_models_pytorch as smp; {CREATE_SMP}",
    f"import segmentation_models_pytorch as smp; import geoseg.models; {CREATE_SMP}",
    f"import timm, geoseg.models; {CREATE_TIMM}",
    "import geoseg; geoseg.create_model(encoder_name='tu-mscan_tiny', encoder_weights=None)",
]
IN_FORKS = f"""
import os, torch, torchvision  # what all orders load, and nothing that registers networks
for order in {ORDERS!r}:
    child = os.fork()
    if child == 0:
        exec(order)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, order
"""


def test_models_register_in_any_import_order() -> None:
    python(IN_FORKS)


def test_importing_geoseg_imports_neither_torch_nor_gdal() -> None:
    python(
        "import sys, geoseg\n"
        "heavy = {'torch', 'timm', 'segmentation_models_pytorch', 'rasterio', 'geopandas', 'lightning'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()"
    )


def test_names_of_the_package_are_found_when_asked_for() -> None:
    import geoseg

    for name in geoseg.__all__:
        assert getattr(geoseg, name)
    with pytest.raises(AttributeError, match="no attribute 'segment'"):
        geoseg.segment  # noqa: B018
