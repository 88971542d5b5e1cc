"""The inference form against the network it comes from: same logits, nothing of the network changed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geoseg.models.hamburger import EVAL_STEPS, NMF_EPS, factorize, joined
from geoseg.network.folding import FoldedSegNeXt, Logits, deployed, is_main_path
from support.networks import MSCAN_SMALL, difference, golden, images, official_tiny, segnext, visible

# One block a stage (two in stage 3): what differs beyond is how often it is repeated.
WIDTHS: dict[str, dict[str, Any]] = {
    "T": {"embed_dims": (32, 64, 160, 256), "decoder_channels": 256, "nmf_rank": 16},
    "S": {"embed_dims": (64, 128, 320, 512), "decoder_channels": 256, "nmf_rank": 16},
    "B": {"embed_dims": (64, 128, 320, 512), "decoder_channels": 512, "nmf_rank": 64},
    "L": {"embed_dims": (64, 128, 320, 512), "decoder_channels": 1024, "nmf_rank": 64},
}
SHALLOW: dict[str, Any] = {"depths": (1, 1, 2, 1), "norm_groups": 32, "drop_path_rate": 0.0}


def folded(network: nn.Module) -> FoldedSegNeXt:
    out = deployed(network)
    assert isinstance(out, FoldedSegNeXt)
    return out


# --- the same logits


@pytest.mark.parametrize("size", WIDTHS)
@torch.no_grad()
def test_every_size_gives_the_networks_logits(size: str) -> None:
    network = visible(segnext(classes=5, **SHALLOW, **WIDTHS[size]))
    form = folded(network)
    assert form.logits_stride == network.logits_stride
    x = images(2, 3, 70, 131)
    wanted = network.forward_logits(x)
    assert difference(form.forward_logits(x), wanted) < 1e-4
    assert wanted.argmax(1).unique().numel() > 1


@torch.no_grad()
def test_every_part_that_is_folded_shows_in_the_logits() -> None:
    """What the other tests rely on: none of them could pass with a norm or a scale forgotten."""
    network = visible(segnext(classes=5, drop_path_rate=0.0))
    x = images(1, 3, 64, 64)
    form, wanted = folded(network), network.forward_logits(x)
    for name, tensor in network.state_dict().items():
        if tensor.dtype != torch.float32:
            continue
        before = tensor.clone()
        tensor.mul_(1.1).add_(0.01)
        assert difference(form.forward_logits(x), network.forward_logits(x)) > 1e-4, name
        tensor.copy_(before)
    assert torch.equal(network.forward_logits(x), wanted)


def factors(block: nn.Module) -> Tensor:
    """What an attention's shortcut multiplies with: the batch norm's factor."""
    norm: Any = block.norm1
    return norm.weight / (norm.running_var + norm.eps).sqrt()


@pytest.mark.parametrize("left", [0.1, 1e-3, 1e-5, -0.8])
@torch.no_grad()
def test_a_residual_factor_near_zero_costs_no_digits(left: float) -> None:
    network = visible(segnext(classes=3, depths=(1, 1, 2, 1), drop_path_rate=0.0))
    for block in network.encoder.model.model.block3:
        block.layer_scale_1[::3] = ((left - 1) / factors(block))[::3]
    form, x = folded(network), images(1, 3, 64, 96)
    assert form.stages[2].scale[0] == pytest.approx(left**2, rel=0.02)
    assert difference(form.forward_logits(x), network.forward_logits(x)) < 1e-4


@pytest.mark.parametrize("bands", [1, 4, 8])
@torch.no_grad()
def test_any_number_of_bands(bands: int) -> None:
    network = visible(segnext(in_channels=bands, classes=2))
    x = images(2, bands, 64, 96)
    assert difference(folded(network).forward_logits(x), network.forward_logits(x)) < 1e-4


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (33, 47), (7, 130), (65, 32)])
@torch.no_grad()
def test_any_image_size(size: tuple[int, int]) -> None:
    network = visible(segnext(classes=3))
    form, x = folded(network), images(2, 3, *size)
    assert difference(form.forward_logits(x), network.forward_logits(x)) < 1e-4
    rows = x.contiguous(memory_format=torch.channels_last)
    assert difference(form.forward_logits(rows), network.forward_logits(x)) < 1e-4


@torch.no_grad()
def test_the_official_weights_give_the_official_logits() -> None:
    form = folded(official_tiny())
    x = torch.from_numpy(golden()["input"])
    wanted = torch.from_numpy(golden()["out/logits_lowres"])
    torch.testing.assert_close(form.forward_logits(x), wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_images_of_a_batch_do_not_know_each_other() -> None:
    form = folded(visible(segnext(classes=3)))
    x = images(3, 3, 64, 64)
    assert difference(form.forward_logits(x), torch.cat([form.forward_logits(image[None]) for image in x])) < 1e-5


@torch.no_grad()
def test_under_autocast_it_is_near() -> None:
    network = visible(segnext(classes=3))
    form, x = folded(network), images(1, 3, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = form.forward_logits(x).float()
    assert difference(rough, network.forward_logits(x)) < 0.1


# --- each fold, in float64


@pytest.fixture
def double() -> Iterator[None]:
    """New modules hold float64, so that nothing is rounded to float32 on the way."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@torch.no_grad()
def test_the_encoder_is_exact(double: None) -> None:
    network = visible(segnext(classes=3, depths=(2, 1, 3, 1), drop_path_rate=0.0))
    assert network.segmentation_head.weight.dtype == torch.float64
    form = folded(network)
    found = wanted = images(2, 3, 70, 131).double()
    for stage, features in zip(form.stages, network.encoder(wanted)[2:], strict=True):
        found = stage(found)
        assert difference(found, features) < 1e-12


@torch.no_grad()
def test_the_residual_factors_of_many_blocks_multiply(double: None) -> None:
    """Stage 3 of L has 27 blocks: channels come to be divided by 0.7²⁷ and by 1.3²⁷.

    Such a network multiplies float32's own error by thousands, so this is in float64.
    """
    network = visible(segnext(classes=5, depths=(3, 5, 27, 3), drop_path_rate=0.0))
    x = images(1, 3, 64, 96).double()

    def prepare(block: Any, given: tuple[Tensor]) -> None:
        for norm in (block.norm1, block.norm2):  # as wide as the features are by now
            norm.running_mean.copy_(given[0].mean((0, 2, 3)))
            norm.running_var.copy_(given[0].var((0, 2, 3)))
        for first, factor in ((0, 0.7), (1, 1.3)):
            block.layer_scale_1[first::3] = ((factor - 1) / factors(block))[first::3]

    hooks = [block.register_forward_pre_hook(prepare) for block in network.encoder.model.model.block3]
    network(x)
    for hook in hooks:
        hook.remove()
    form = folded(network)
    scale = form.stages[2].scale
    assert scale.max() / scale.min() > 1e7
    features = network.encoder(x)
    assert difference(form.stages[2](features[3]), features[4]) < 1e-9


@torch.no_grad()
def test_squeezing_before_upsampling_is_exact(double: None) -> None:
    network = visible(segnext(classes=3))
    form = folded(network).decoder
    stages = network.encoder(images(2, 3, 70, 131).double())[3:]
    first, *others = (conv(stage) for conv, stage in zip(form.squeeze, stages, strict=True))
    found = first + sum(F.interpolate(o, first.shape[2:], mode="bilinear", align_corners=False) for o in others)
    assert difference(found, network.decoder.squeeze.conv(joined(stages))) < 1e-12


@pytest.mark.parametrize("rank", [16, 64])
@torch.no_grad()
def test_the_factorization_is_the_published_rule(rank: int, double: None) -> None:
    """Seven rounds of Lee and Seung's updates from C = softmax(XᵀW), then the codes once more."""
    form = folded(visible(segnext(classes=3, nmf_rank=rank))).decoder
    pixels = images(2, 60, 32).double().relu()
    codes, bases = factorize(pixels, form.bases, EVAL_STEPS)
    for n in range(2):
        x, w = pixels[n].T, form.bases[0]  # (D, H·W), (D, R)
        assert torch.allclose(w.norm(dim=0), torch.ones(rank), atol=1e-6)  # the bases are normalised in float32
        c = (x.T @ w).softmax(-1)
        for _ in range(7):
            c = c * (x.T @ w) / (c @ (w.T @ w) + NMF_EPS)
            w = w * (x @ c) / (w @ (c.T @ c) + NMF_EPS)
        c = c * (x.T @ w) / (c @ (w.T @ w) + NMF_EPS)
        assert difference(codes[n], c) < 1e-10
        assert difference(bases[n], w) < 1e-10


@pytest.mark.parametrize("groups", [1, 8, 32])
@torch.no_grad()
def test_the_context_is_the_1x1_and_its_group_norm(groups: int, double: None) -> None:
    network = visible(segnext(classes=3, nmf_rank=16, norm_groups=groups))
    form = folded(network).decoder
    codes, bases = images(2, 5 * 7, 16).double().abs(), images(2, 32, 16, seed=2).double().abs()
    rows, shift = form.context(codes.mT @ codes, codes.sum(dim=1, keepdim=True), bases, 5 * 7)
    reconstruction = (codes @ bases.mT).view(2, 5, 7, 32).permute(0, 3, 1, 2)
    wanted = network.decoder.hamburger.ham_out(reconstruction)
    assert difference((codes @ rows + shift).view(2, 5, 7, 32).permute(0, 3, 1, 2), wanted) < 1e-10


@torch.no_grad()
def test_features_of_nothing_but_zeros_have_no_variance() -> None:
    """After the ReLU all may be 0, on a window without data: 0 / 0 must not come of it."""
    network = visible(segnext(classes=3))
    network.decoder.hamburger.ham_in.conv.bias.fill_(-1e4)
    x = images(1, 3, 64, 64)
    assert difference(folded(network).forward_logits(x), network.forward_logits(x)) < 1e-4


# --- what is not folded


@torch.no_grad()
def test_a_factor_of_zero_is_left_in_the_network() -> None:
    network = visible(segnext(classes=3))
    x = images(1, 3, 64, 64)
    block = network.encoder.model.model.block3[0]
    block.norm1.running_var[5], block.norm1.eps = 1.0, 0.0
    block.norm1.weight[5], block.layer_scale_1[5] = 1.0, -1.0  # 1 + ls · α = 0
    assert is_main_path(network)
    wanted = network(x)
    assert deployed(network) is network
    assert torch.equal(network(x), wanted)
    block.layer_scale_1[5] = 1e13  # and one that is too large for float32
    assert deployed(network) is network


STUDIES: list[dict[str, Any]] = [
    {"branches": (7, 11)},
    {"channel_mixing": False},
    {"attention": False},
    {"context": "ema"},
    {"context": "non_local"},
    {"context": "cc"},
    {"context": "none"},
    {"decoder": "mlp"},
    {"decoder": "conv"},
    {"stage1": True},
]


def others() -> dict[str, nn.Module]:
    """Networks that are none of SegNeXt's main path."""
    torch.manual_seed(0)
    networks = {str(options): segnext(classes=3, **options) for options in STUDIES}
    networks["SegNeXt on ResNet"] = smp.create_model(
        "segnext", encoder_name="resnet18", encoder_weights=None, classes=3, decoder_channels=32, norm_groups=8
    )
    networks["FPN on MSCAN"] = smp.create_model(
        "fpn", encoder_name="tu-mscan_tiny", encoder_weights=None, classes=3, **MSCAN_SMALL
    )
    networks["U-Net"] = smp.create_model("unet", encoder_name="resnet18", encoder_weights=None, classes=3)
    return {name: network.eval() for name, network in networks.items()}


@torch.no_grad()
def test_other_networks_come_back_as_they_are() -> None:
    x = images(1, 3, 64, 96)
    networks = others()
    assert len(networks) == len(STUDIES) + 3
    for name, network in networks.items():
        wanted = network(x)
        assert not is_main_path(network), name
        out = deployed(network)
        assert out is network, name
        assert torch.equal(out(x), wanted), name


@torch.no_grad()
def test_what_a_user_put_in_place_of_a_part_stays() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    network = segnext(classes=3)
    network.decoder.hamburger.ham = Twice()
    assert deployed(network) is network
    network = segnext(classes=3)
    network.encoder.model.model.block2[0].attn.spatial_gating_unit = Twice()
    assert deployed(network) is network


@torch.no_grad()
def test_a_stage_without_blocks_is_folded_too() -> None:
    network = visible(segnext(classes=3, depths=(0, 1, 0, 1), drop_path_rate=0.0))
    x = images(1, 3, 64, 64)
    assert difference(folded(network).forward_logits(x), network.forward_logits(x)) < 1e-4


# --- a network of its own


def storages(network: nn.Module) -> set[int]:
    return {t.untyped_storage().data_ptr() for t in [*network.parameters(), *network.buffers()]}


def test_the_network_is_not_changed_and_shares_nothing() -> None:
    network = visible(segnext(classes=3))
    before = copy.deepcopy(network.state_dict())
    form = folded(network)
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(p.requires_grad for p in network.parameters())
    assert not storages(network) & storages(form)
    x = images(1, 3, 64, 64)
    wanted = form.forward_logits(x)
    with torch.no_grad():
        for tensor in [*network.parameters(), *network.buffers()]:
            tensor.zero_()
    assert torch.equal(form.forward_logits(x), wanted)


def test_it_is_for_inference_alone() -> None:
    form = folded(visible(segnext(classes=3)))
    assert not form.training and not any(m.training for m in form.modules())
    assert not any(p.requires_grad for p in form.parameters())
    assert not form.forward_logits(images(1, 3, 64, 64)).requires_grad
    assert not any(isinstance(m, nn.BatchNorm2d | nn.Dropout2d) for m in form.modules())


@torch.no_grad()
def test_copied_and_loaded_it_is_the_same() -> None:
    network = visible(segnext(classes=3))
    form, x = folded(network), images(1, 3, 64, 64)
    again = folded(segnext(classes=3))
    assert not torch.equal(again.forward_logits(x), form.forward_logits(x))
    again.load_state_dict(form.state_dict(), strict=True)
    assert torch.equal(again.forward_logits(x), form.forward_logits(x))
    assert torch.equal(copy.deepcopy(form).forward_logits(x), form.forward_logits(x))


# --- torch's and others' compilers


@torch.no_grad()
def test_torch_compile_traces_it_without_a_break() -> None:
    form, x = folded(visible(segnext(classes=3))), images(1, 3, 64, 96)
    compiled = torch.compile(Logits(form), backend="eager", fullgraph=True)
    assert difference(compiled(x), form.forward_logits(x)) < 1e-5
    torch._dynamo.reset()
