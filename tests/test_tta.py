from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from geoseg.errors import ConfigError
from geoseg.network.model_folder import load_model
from geoseg.network.tta import D4, FLIPS, IDENTITY, TTA, Symmetry, Tta, augmented, find_tta


def windows(n: int = 2, bands: int = 3, height: int = 64, width: int = 96, seed: int = 0) -> Tensor:
    return torch.randn(n, bands, height, width, generator=torch.Generator().manual_seed(seed))


def pooled(x: Tensor) -> Tensor:
    """A network of stride 8 that returns its input, averaged over each logit's square."""
    return F.avg_pool2d(x, 8)


@pytest.mark.parametrize("symmetry", D4)
def test_undoing_a_symmetry_gives_the_same_pixels(symmetry: Symmetry) -> None:
    x = windows()
    turned = symmetry.apply(x)
    assert turned.shape[-2:] in ((64, 96), (96, 64))
    torch.testing.assert_close(symmetry.undo(turned), x, rtol=0, atol=0)


def test_the_eight_symmetries_of_a_square_are_distinct() -> None:
    square = torch.arange(9).reshape(1, 1, 3, 3)
    images = {tuple(s.apply(square).flatten().tolist()) for s in D4}
    assert len(images) == 8
    for a, b in itertools.product(D4, D4):  # one after another is one of them again
        assert tuple(b.apply(a.apply(square)).flatten().tolist()) in images


@pytest.mark.parametrize("name", ["flips", "d4"])
@pytest.mark.parametrize("shape", [(64, 64), (32, 96)])
def test_a_network_that_returns_its_input_comes_back(name: str, shape: tuple[int, int]) -> None:
    x = windows(height=shape[0], width=shape[1])
    torch.testing.assert_close(augmented(pooled, x, TTA[name]), F.log_softmax(pooled(x), 1), rtol=0, atol=2e-6)


def test_nothing_is_touched_without_augmentation() -> None:
    x = windows()
    assert augmented(lambda w: w, x, TTA["none"]) is x


def smooth(height: int, width: int) -> Tensor:
    """A slow wave of three bands over an image: (1, 3, H, W)."""
    rows, cols = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
    )
    return torch.stack([torch.sin(3 * rows + 1), torch.cos(2 * cols), rows * cols])[None]


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.25, 1.75])
def test_scales_come_back_in_place(scale: float) -> None:
    x = smooth(256, 320)
    expected, got = F.log_softmax(pooled(x), 1), augmented(pooled, x, Tta(scales=(scale,)))
    assert got.shape == expected.shape
    # A shift by half a logit would be 0.03 here. The outermost cells have no neighbours to be interpolated from.
    inner = (..., slice(2, -2), slice(2, -2))
    torch.testing.assert_close(got[inner], expected[inner], rtol=0, atol=4e-3)
    torch.testing.assert_close(got, expected, rtol=0, atol=6e-2)


@pytest.mark.parametrize("name", ["flips", "d4"])
def test_a_window_turned_is_a_map_turned(name: str) -> None:
    """Whatever the network prefers, the mean over a group of symmetries prefers none of them."""
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 4, 11, padding=5)  # far from symmetric

    @torch.no_grad()
    def network(w: Tensor) -> Tensor:
        return F.avg_pool2d(conv(w), 8)

    x = windows(height=64, width=64)
    mean = augmented(network, x, TTA[name])
    assert (network(x) - network(x.flip(-1)).flip(-1)).abs().max() > 0.1
    for symmetry in TTA[name].symmetries:
        torch.testing.assert_close(augmented(network, symmetry.apply(x), TTA[name]), symmetry.apply(mean))


def test_probabilities_are_averaged() -> None:
    x = windows(n=1)
    answers = iter([windows(1, 5, 8, 12, seed=1), windows(1, 5, 8, 12, seed=2)])
    given_out: list[Tensor] = []

    def network(w: Tensor) -> Tensor:
        given_out.append(next(answers))
        return given_out[-1]

    got = augmented(network, x, Tta(FLIPS[:2])).exp()
    expected = (given_out[0].softmax(1) + given_out[1].flip(-1).softmax(1)) / 2
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(got.sum(1), torch.ones(1, 8, 12))


def test_a_network_that_is_very_sure_does_not_end_in_infinity() -> None:
    x = 1000 * windows()
    assert augmented(pooled, x, TTA["scales+flips"]).isfinite().all()


@given(st.integers(1, 3), st.sampled_from(list(TTA)))
def test_a_window_does_not_depend_on_its_batch(n: int, name: str) -> None:
    x = windows(n, height=64, width=32)
    whole = augmented(pooled, x, TTA[name])
    for i in range(n):
        torch.testing.assert_close(augmented(pooled, x[i : i + 1], TTA[name]), whole[i : i + 1], rtol=0, atol=0)
    assert torch.equal(augmented(pooled, x, TTA[name]), whole)


@pytest.mark.parametrize("name", list(TTA))
def test_the_network_sees_multiples_of_32(name: str) -> None:
    seen: list[tuple[int, int]] = []

    def network(w: Tensor) -> Tensor:
        seen.append((w.shape[-2], w.shape[-1]))
        return pooled(w)

    out = augmented(network, windows(n=1, height=512, width=384), TTA[name])
    assert out.shape[-2:] == (64, 48)
    assert all(h % 32 == 0 and w % 32 == 0 for h, w in seen)
    tta = TTA[name]
    pixels = sum(h * w for h, w in seen) / (512 * 384)
    assert pixels == pytest.approx(len(tta.symmetries) * sum(s * s for s in tta.scales), rel=0.05)


def test_the_papers_testing_is_six_scales_and_flips() -> None:
    tta = find_tta("scales+flips")
    assert tta.scales == (0.5, 0.75, 1, 1.25, 1.5, 1.75)
    assert tta.symmetries[0] == IDENTITY and len(tta.symmetries) == 2
    assert len(D4) == 8


def test_an_unknown_name_gets_the_list() -> None:
    with pytest.raises(ConfigError, match="'flip'") as error:
        find_tta("flip")
    assert "flips, d4, scales" in (error.value.hint or "")


def test_a_shipped_network_takes_every_augmentation() -> None:
    trained = load_model("landscape-tiny")
    network = trained.network.eval()
    x = windows(1, len(trained.contract.bands), 64, 96)
    with torch.inference_mode():
        plain = network.forward_logits(x)  # type: ignore[operator]
        for tta in TTA.values():
            out = augmented(network.forward_logits, x, tta)  # type: ignore[arg-type]
            assert out.shape == plain.shape and out.isfinite().all()
