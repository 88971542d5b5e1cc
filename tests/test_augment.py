from __future__ import annotations

import colorsys
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

import geoseg
from geoseg.config import parse_config
from geoseg.config.settings import AugmentConfig, SceneConfig
from geoseg.data.augment import Augmenter, Changes, Photometric, distort, draw_changes, resize_window
from geoseg.data.labelled import LabelledScene
from geoseg.errors import ConfigError
from geoseg.windows import Window
from support.scenes import MadeScene

STILL = AugmentConfig(dihedral=False, brightness=0, contrast=0, hue=0, saturation=0)
DIHEDRAL = STILL.model_copy(update={"dihedral": True})
LIVELY = AugmentConfig(brightness=0.3, contrast=0.3, hue=20, saturation=60, band_gain=0.2, noise=0.1)
BANDS = [1, 3, 4, 5, 8, 13]
# The greatest number of channels that OpenCV takes was 512 and is 128 since its fifth version.
MANY_BANDS = 200


def only(**changes: Any) -> AugmentConfig:
    return STILL.model_copy(update=changes)


def window(bands: int = 3, dtype: str = "uint8", side: int = 32) -> tuple[npt.NDArray[Any], Any, npt.NDArray[np.uint8]]:
    """Pixels, valid and labels that say the same: the first band is 40 per class, invalid pixels are 0 and ignored."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, (side, side), dtype=np.uint8)
    valid = rng.random((side, side)) < 0.8
    labels[~valid] = 255
    pixels = rng.integers(1, 255, (bands, side, side)).astype(dtype)
    pixels[0] = 40 * labels
    pixels[:, ~valid] = 0
    return (pixels / np.float32(255) if dtype == "float32" else pixels), valid, labels


def reflectances(bands: int, side: int = 32) -> tuple[npt.NDArray[np.float32], Any, npt.NDArray[np.uint8]]:
    """A window as 16-bit reflectances come: each band with a mean and a spread of its own, some above 1."""
    rng = np.random.default_rng(1)
    mean = np.linspace(0.05, 1.2, bands)[:, None, None]
    _, valid, labels = window(1, side=side)
    pixels = (mean * (1 + 0.2 * rng.standard_normal((bands, side, side)))).astype(np.float32)
    return np.where(valid, pixels, np.float32(0)), valid, labels


# --- any window


@pytest.mark.parametrize("bands", [*BANDS, MANY_BANDS])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("side", [32, 48, 70])
def test_any_bands_keep_their_dtype_and_get_the_size(bands: int, dtype: str, side: int) -> None:
    augment = Augmenter(LIVELY, size=48, colors=bands == 3 and dtype == "uint8")
    for seed in range(4):
        pixels, valid, labels = augment(*window(bands, dtype, side), seed=seed)
        assert (pixels.shape, pixels.dtype) == ((bands, 48, 48), np.dtype(dtype))
        assert (valid.shape, valid.dtype) == ((48, 48), np.dtype(bool))
        assert (labels.shape, labels.dtype) == ((48, 48), np.dtype(np.uint8))
        assert all(a.flags.c_contiguous for a in (pixels, valid, labels))
        assert np.isfinite(pixels).all()
        assert (pixels[:, ~valid] == 0).all() and 0.6 < valid.mean() < 0.95


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_the_seed_decides_everything(dtype: str) -> None:
    augment = Augmenter(LIVELY, size=32, colors=dtype == "uint8")
    first = augment(*window(dtype=dtype), seed=3)
    augment(*window(dtype=dtype), seed=4)  # what came between leaves no trace
    again = Augmenter(LIVELY, size=32, colors=dtype == "uint8")(*window(dtype=dtype), seed=3)
    for a, b, c in zip(first, augment(*window(dtype=dtype), seed=3), again, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    others = [augment(*window(dtype=dtype), seed=s)[0] for s in range(10, 16)]
    assert len({o.tobytes() for o in others}) == 6


@pytest.mark.parametrize("side", [32, 50])
@pytest.mark.parametrize("config", [LIVELY, only(distortion=True)], ids=["all", "distortion"])
def test_what_lies_under_invalid_pixels_changes_nothing(config: AugmentConfig, side: int) -> None:
    for dtype in ("uint8", "float32"):
        if dtype == "float32" and config.distortion:
            continue
        pixels, valid, labels = window(dtype=dtype, side=side)
        other = np.where(valid, pixels, pixels.dtype.type(200))
        if dtype == "float32":
            other[:, ~valid] = np.nan
        augment = Augmenter(config, size=32, colors=dtype == "uint8")
        for seed in range(8):
            one, two = augment(pixels, valid, labels, seed=seed), augment(other, valid, labels, seed=seed)
            for a, b in zip(one, two, strict=True):
                np.testing.assert_array_equal(a, b)


def test_a_window_without_a_valid_pixel_is_no_trouble() -> None:
    for dtype, colors in (("uint8", True), ("float32", False)):
        pixels, valid, labels = (
            np.zeros((3, 20, 20), dtype),
            np.zeros((20, 20), dtype=bool),
            np.full((20, 20), 255, "u1"),
        )
        for seed in range(6):
            found = Augmenter(LIVELY, size=32, colors=colors)(pixels, valid, labels, seed=seed)
            assert not found[0].any() and not found[1].any() and (found[2] == 255).all()


def test_nothing_asked_for_changes_nothing() -> None:
    window_ = window()
    for before, after in zip(window_, Augmenter(STILL, size=32, colors=True)(*window_, seed=1), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("config", [LIVELY, only(distortion=True), STILL], ids=["all", "distortion", "still"])
def test_the_arguments_are_not_written_to(config: AugmentConfig) -> None:
    for dtype in ("uint8", "float32"):
        given = window(dtype=dtype)
        copies = [a.copy() for a in given]
        for seed in range(4):
            colors = dtype == "uint8"
            Augmenter(config if colors else LIVELY, size=32, colors=colors)(*given, seed=seed)
        for a, b in zip(given, copies, strict=True):
            np.testing.assert_array_equal(a, b)


# --- flips and turns


@pytest.mark.parametrize("bands", BANDS)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_flips_and_turns_move_every_pixel_with_its_label(bands: int, dtype: str) -> None:
    augment = Augmenter(DIHEDRAL, size=32, colors=False)
    pixels, valid, labels = window(bands, dtype)
    layers = np.concatenate([pixels, valid[None], labels[None]])
    dihedral = {np.rot90(f, k, (1, 2)).tobytes() for f in (layers, layers[:, :, ::-1]) for k in range(4)}
    assert len(dihedral) == 8
    found = set()
    for seed in range(60):
        moved = augment(pixels, valid, labels, seed=seed)
        found.add(np.concatenate([moved[0], moved[1][None], moved[2][None]]).astype(layers.dtype).tobytes())
    assert found == dihedral  # each of the eight, and nothing else


@pytest.mark.parametrize("bands", BANDS)
def test_a_flip_alone_is_every_other_window_left_to_right(bands: int) -> None:
    augment = Augmenter(only(horizontal_flip=True), size=32, colors=False)
    given = window(bands)
    flips = 0
    for seed in range(100):
        found = augment(*given, seed=seed)
        flipped = not np.array_equal(found[0], given[0])
        for before, after in zip(given, found, strict=True):
            np.testing.assert_array_equal(after, before[..., ::-1] if flipped else before)
        flips += flipped
    assert 30 < flips < 70


# --- another size


@pytest.mark.parametrize("side", [20, 64])
def test_resizing_invents_no_class(side: int) -> None:
    pixels, valid, labels = Augmenter(STILL, size=32, colors=False)(*window(side=side), seed=0)
    assert pixels.shape == (3, 32, 32)
    assert set(np.unique(labels)) <= {0, 1, 2, 3, 4, 255}
    np.testing.assert_array_equal(labels == 255, ~valid)


@pytest.mark.parametrize("side", [17, 23, 45, 64, 100])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_hole_does_not_darken_its_edge(side: int, dtype: str) -> None:
    _, valid, labels = window(side=side)
    valid[:, : side // 3] = False
    pixels = np.where(valid, np.array([200, 100, 50, 7]).astype(dtype)[:, None, None], np.array(0, dtype))
    resized, new_valid, _ = resize_window(pixels, valid, labels, 32)
    assert 0.2 < new_valid.mean() < 0.8
    for band, value in zip(resized, (200, 100, 50, 7), strict=True):
        np.testing.assert_allclose(band[new_valid], value, rtol=1e-6)
        assert (band[~new_valid] == 0).all()


@pytest.mark.parametrize("side", [20, 27, 50, 63, 77])
def test_labels_and_validity_stay_with_the_imagery(side: int) -> None:
    """An edge lies at the same place in the labels as in the pixels, to half a pixel and without a bias."""
    offsets = []
    for edge in range(4, side - 4):
        labels = (np.arange(side) >= edge).astype(np.uint8)[None].repeat(side, 0)
        pixels = labels[None].astype(np.float32)
        resized, _, found = resize_window(pixels, np.ones((side, side), dtype=bool), labels, 32)
        halfway = edge * 32 / side  # of the edge between two pixels, in the new ones
        np.testing.assert_array_equal(found[16] == 1, np.arange(32) + 0.5 >= halfway)
        offsets.append(32 - float(resized[0, 16].sum()) - (32 - int(found[16].sum())))
    assert abs(np.mean(offsets)) < 0.1 and np.abs(offsets).max() <= 0.51


@pytest.mark.parametrize("bands", [1, 5, MANY_BANDS])
@pytest.mark.parametrize("side", [20, 45])
def test_bands_are_resized_as_each_alone(bands: int, side: int) -> None:
    pixels, valid, labels = window(bands, "float32", side)
    for mask in (valid, np.ones_like(valid)):
        together = resize_window(pixels, mask, labels, 32)[0]
        for band, alone in zip(together, pixels, strict=True):
            np.testing.assert_array_equal(resize_window(alone[None], mask, labels, 32)[0][0], band)


# --- brightness, contrast, gain and noise


class Still(np.random.Generator):
    """A generator that takes every other step that is asked for, and draws the upper end of every range."""

    def __init__(self, act: Callable[[int], bool] = lambda _: True) -> None:
        super().__init__(np.random.PCG64(0))
        self._steps, self._act = 0, act

    def random(self, *_: Any, **__: Any) -> Any:
        self._steps += 1
        return 0.0 if self._act(self._steps) else 1.0

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        return high if size is None else np.full(size, high)


@pytest.mark.parametrize("bands", BANDS)
def test_brightness_adds_a_share_of_each_bands_spread(bands: int) -> None:
    pixels, valid, _ = reflectances(bands)
    found = Photometric(only(brightness=0.3), colors=False)(pixels, valid, Still())
    spread = 2 * pixels[:, valid].astype(np.float64).std(1)
    np.testing.assert_allclose((found - pixels)[:, valid], np.broadcast_to(0.3 * spread[:, None], (bands, valid.sum())),
                               rtol=1e-3, atol=1e-6)  # fmt: skip
    given = np.linspace(0.1, 0.4, bands)
    found = Photometric(only(brightness=0.3), colors=False, std=list(given))(pixels, valid, Still())
    np.testing.assert_allclose((found - pixels)[:, valid].mean(1), 0.6 * given, rtol=1e-4)


@pytest.mark.parametrize("bands", BANDS)
def test_contrast_turns_about_the_mean_of_the_valid_pixels(bands: int) -> None:
    pixels, valid, _ = reflectances(bands)
    found = Photometric(only(contrast=0.5), colors=False)(pixels, valid, Still())
    mean = pixels[:, valid].mean(1, dtype=np.float64)
    np.testing.assert_allclose(found[:, valid].mean(1, dtype=np.float64), mean, rtol=1e-5)
    np.testing.assert_allclose(found[:, valid].std(1), 1.5 * pixels[:, valid].std(1), rtol=1e-4)
    assert (found[:, ~valid] == 0).all()


def test_gain_multiplies_each_band_by_its_own_number() -> None:
    pixels, valid, labels = reflectances(8)
    factors = set()
    for seed in range(40):
        found, *_ = Augmenter(only(band_gain=0.3), size=32, colors=False)(pixels, valid, labels, seed=seed)
        ratio = found[:, valid] / pixels[:, valid]
        np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1], ratio.shape), rtol=1e-5)
        assert (np.abs(ratio - 1) <= 0.3 + 1e-5).all()
        if ratio[0, 0] != 1:
            assert len(np.unique(ratio[:, 0].round(6))) == 8
            factors.add(round(float(ratio[0, 0]), 6))
    assert 10 < len(factors) < 30
    assert min(factors) < 0.9 and max(factors) > 1.1


@pytest.mark.parametrize("bands", BANDS)
def test_noise_is_normal_and_as_strong_as_said(bands: int) -> None:
    pixels, valid, _ = reflectances(bands, side=96)
    noise = Photometric(only(noise=0.2), colors=False)(pixels, valid, Still()) - pixels
    strength = noise[:, valid].std(1) / (2 * pixels[:, valid].std(1))
    np.testing.assert_allclose(strength, 0.2, rtol=0.06)
    assert np.abs(noise[:, valid].mean(1) / noise[:, valid].std(1)).max() < 0.06
    if bands > 1:
        correlation = np.corrcoef(noise[:, valid])
        assert np.abs(correlation - np.eye(bands)).max() < 0.06


def test_reflectances_above_one_are_not_cut() -> None:
    pixels, valid, labels = reflectances(5)
    assert pixels.max() > 1.4
    config = only(brightness=0.5, contrast=0.5, noise=0.05)
    for seed in range(12):
        found, *_ = Augmenter(config, size=32, colors=False)(pixels, valid, labels, seed=seed)
        assert len(np.unique(found[4, valid])) > 0.98 * valid.sum()  # an end of the range would hold many
    brightest = Photometric(config, colors=False)(pixels, valid, Still())
    assert brightest.max() > 2


def test_bytes_are_cut_to_their_range_and_rounded() -> None:
    pixels, valid, _ = window()
    found = Photometric(only(brightness=1, contrast=1), colors=True, std=[60] * 3)(pixels, valid, Still())
    mean = pixels[:, valid].mean(1)[:, None]
    wanted = np.clip(np.rint(2.0 * pixels[:, valid] - mean + 2 * 60), 0, 255)
    np.testing.assert_array_equal(found[:, valid], wanted)
    assert (wanted == 255).mean() > 0.1


@pytest.mark.parametrize("factor", [1e-4, 0.37, 1e4])
def test_the_unit_of_the_values_does_not_matter(factor: float) -> None:
    """The same seed does to reflectances what it does to the same in per mille: no range is assumed."""
    config = only(brightness=0.4, contrast=0.4, band_gain=0.2, noise=0.1)
    pixels, valid, labels = reflectances(4)
    for seed in range(6):
        one, *_ = Augmenter(config, size=32, colors=False)(pixels, valid, labels, seed=seed)
        other, *_ = Augmenter(config, size=32, colors=False)(pixels * np.float32(factor), valid, labels, seed=seed)
        np.testing.assert_allclose(other / factor, one, rtol=2e-3, atol=2e-4)


def test_negative_values_and_a_mean_of_zero_still_change() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.normal(0, 3, (2, 32, 32)).astype(np.float32)  # heights above a mean, or decibels
    changed = Photometric(only(brightness=0.2), colors=False)(pixels, np.ones((32, 32), dtype=bool), Still())
    np.testing.assert_allclose(changed - pixels, 0.2 * 2 * 3, rtol=0.1)


def test_each_change_happens_to_every_other_window() -> None:
    pixels, valid, labels = reflectances(2, side=8)
    for name in ("brightness", "contrast", "band_gain", "noise"):
        augment = Augmenter(only(**{name: 0.3}), size=8, colors=False)
        acted = sum(not np.array_equal(augment(pixels, valid, labels, seed=s)[0], pixels) for s in range(300))
        assert 115 < acted < 185, name


def test_colours_change_without_moving_anything() -> None:
    config = AugmentConfig(dihedral=False, brightness=0.3, contrast=0, hue=0, saturation=0)
    pixels, valid, labels = window()
    results = [Augmenter(config, size=32, colors=True)(pixels, valid, labels, seed=s) for s in range(12)]
    assert any(not np.array_equal(r[0], pixels) for r in results)
    for result in results:
        np.testing.assert_array_equal(result[1], valid)
        np.testing.assert_array_equal(result[2], labels)


def test_hue_is_left_alone_where_the_bands_are_no_colours() -> None:
    config = AugmentConfig(dihedral=False, brightness=0, contrast=0, hue=90, saturation=200)
    pixels, valid, labels = window()
    for seed in range(6):
        result, *_ = Augmenter(config, size=32, colors=False)(pixels, valid, labels, seed=seed)
        np.testing.assert_array_equal(result, pixels)


def test_hue_turns_and_grey_stays_grey() -> None:
    pixels = np.zeros((3, 2, 2), dtype=np.uint8)
    pixels[:, 0, 0] = 200, 40, 40  # red
    pixels[:, 1] = 90  # grey
    valid = np.ones((2, 2), dtype=bool)
    turned = Photometric(only(hue=90), colors=True)(pixels, valid, Still())
    hue, _, value = colorsys.rgb_to_hsv(*(turned[:, 0, 0] / 255))
    assert abs(hue * 360 - 90) < 3 and round(value * 255) == 200
    np.testing.assert_array_equal(turned[:, 1], pixels[:, 1])
    paler = Photometric(only(saturation=255), colors=True)(pixels, valid, Still())
    assert (paler[1:, 0, 0] == 0).all() and paler[0, 0, 0] == 200
    np.testing.assert_array_equal(paler[:, 1], pixels[:, 1])


# --- SegNeXt's distortion


def plain_distortion(pixels: npt.NDArray[np.uint8], changes: Changes) -> npt.NDArray[np.uint8]:
    """The same from its description, pixel values as floats and OpenCV's conversion of whole images."""

    def cut(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        return np.floor(np.minimum(np.maximum(values, 0), 255)).astype(np.uint8)

    image = pixels.transpose(1, 2, 0).copy()
    if changes.brightness is not None:
        image = cut(image.astype(np.float32) + np.float32(changes.brightness))
    if changes.contrast is not None and changes.contrast_first:
        image = cut(image.astype(np.float32) * np.float32(changes.contrast))
    if changes.saturation is not None:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 1] = cut(hsv[..., 1].astype(np.float32) * np.float32(changes.saturation))
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if changes.hue is not None:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = np.mod(hsv[..., 0].astype(np.int64) + changes.hue, 180)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if changes.contrast is not None and not changes.contrast_first:
        image = cut(image.astype(np.float32) * np.float32(changes.contrast))
    return image.transpose(2, 0, 1)


STEPS: list[Changes] = [
    Changes(),
    Changes(brightness=-31.4),
    Changes(brightness=27.9),
    Changes(contrast=0.501),
    Changes(contrast=1.499, contrast_first=True),
    Changes(saturation=0.5),
    Changes(saturation=1.49),
    Changes(hue=-18),
    Changes(hue=17),
    Changes(hue=0),  # not nothing: a turn of 0 goes through HSV of 8 bit all the same
    Changes(brightness=12.3, contrast=1.3, contrast_first=True, saturation=0.8, hue=9),
    Changes(brightness=12.3, contrast=1.3, contrast_first=False, saturation=0.8, hue=9),
]


@pytest.mark.parametrize("changes", STEPS)
def test_each_step_of_the_distortion_is_as_described(changes: Changes) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8)
    found = distort(pixels, changes)
    np.testing.assert_array_equal(found, plain_distortion(pixels, changes))
    assert np.array_equal(found, pixels) == (changes == Changes())
    assert found is not pixels and found.dtype == np.uint8


def test_the_order_of_the_distortion_tells() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    first, last = (distort(pixels, Changes(contrast=1.4, saturation=1.4, contrast_first=f)) for f in (True, False))
    assert not np.array_equal(first, last)
    # Brightness before contrast: (250 + 20 cut to 255) × 0.5, not 250 × 0.5 + 20
    bright = np.full((3, 1, 1), 250, dtype=np.uint8)
    assert (distort(bright, Changes(brightness=20.0, contrast=0.5)) == 127).all()


def test_values_of_the_distortion_are_truncated() -> None:
    three = np.full((3, 1, 1), 3, dtype=np.uint8)
    assert (distort(three, Changes(contrast=0.99)) == 2).all()
    assert (distort(three, Changes(brightness=0.99)) == 3).all()
    assert (distort(three, Changes(brightness=-3.5)) == 0).all()


def test_the_distortion_draws_as_described() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_changes(rng) for _ in range(4000)]
    for name in ("brightness", "contrast", "saturation", "hue"):
        assert 0.47 < np.mean([getattr(d, name) is not None for d in drawn]) < 0.53, name
    assert 0.47 < np.mean([d.contrast_first for d in drawn]) < 0.53

    def values(name: str) -> npt.NDArray[np.float64]:
        return np.array([getattr(d, name) for d in drawn if getattr(d, name) is not None])

    for name, low, high in (("brightness", -32, 32), ("contrast", 0.5, 1.5), ("saturation", 0.5, 1.5)):
        found, tenth = values(name), (high - low) / 10
        assert low <= found.min() < low + tenth / 10 and high - tenth / 10 < found.max() <= high
        np.testing.assert_allclose(np.histogram(found, 10, (low, high))[0] / len(found), 0.1, atol=0.03)
    hues = values("hue")
    assert set(hues) == set(range(-18, 18))
    # Each step is drawn on its own
    acts = np.array(
        [[getattr(d, n) is not None for n in ("brightness", "contrast", "saturation", "hue")] for d in drawn]
    )
    assert np.abs(np.corrcoef(acts.T) - np.eye(4)).max() < 0.06


def test_the_distortion_of_a_window_keeps_its_holes() -> None:
    pixels, valid, labels = window()
    augment = Augmenter(only(distortion=True), size=32, colors=True)
    changed = 0
    for seed in range(64):
        found, found_valid, found_labels = augment(pixels, valid, labels, seed=seed)
        assert (found[:, ~valid] == 0).all()
        np.testing.assert_array_equal(found_valid, valid)
        np.testing.assert_array_equal(found_labels, labels)
        changed += not np.array_equal(found, pixels)
    assert 52 < changed <= 64  # 15/16 of 64


def test_the_distortion_of_other_imagery_is_refused() -> None:
    with pytest.raises(ConfigError, match="red, green and blue in 8 bit") as caught:
        Augmenter(only(distortion=True), size=32, colors=False)
    assert "augment.distortion=false" in str(caught.value.hint)


FORK = """
import cv2, numpy as np
from torch.utils.data import DataLoader
from geoseg.data.augment import one_thread_each

def work(_):
    one_thread_each()
    cv2.GaussianBlur(np.zeros((1000, 1000, 3), np.uint8), (31, 31), 5)

cv2.setNumThreads(4)
cv2.GaussianBlur(np.zeros((4000, 4000, 3), np.uint8), (31, 31), 5)
one_thread_each()
loader = DataLoader(range(4), num_workers=1, worker_init_fn=work, multiprocessing_context="fork")
print(len(list(loader)), cv2.getNumThreads())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that forks")
def test_a_loader_process_runs_opencv_in_one_thread() -> None:
    """Forked from a process in which OpenCV has had several threads: these are not there in the fork."""
    folder = str(Path(geoseg.__file__).parents[1])
    ran = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=100, cwd=folder)
    assert ran.stdout.split() == ["4", "1"], ran.stderr


# --- from files of any depth


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("bands", [1, 5])
@pytest.mark.parametrize("zoomed", [False, True])
def test_scenes_of_any_depth_are_changed_alike(
    make_scene: Callable[..., MadeScene], tmp_path: Path, dtype: str, bands: int, zoomed: bool
) -> None:
    made = make_scene(dtype=dtype, bands=bands, nodata="value")
    labels = make_scene(dtype="uint8", bands=1, name="labels.tif")
    entry = SceneConfig(scene=made.path, labels=labels.path)
    settings = parse_config(
        {
            "name": "x",
            "output": "run",
            "classes": [{"name": f"c{i}", "color": "#000000"} for i in range(255)],
            "imagery": {"bands": [f"b{i}" for i in range(bands)], "dtype": dtype},
            "data": {split: [entry.model_dump()] for split in ("train", "val")},
        },
        source="test",
    )
    read = LabelledScene(entry, settings).read(Window(0, 0, 80, 80))
    assert read[0].dtype == (np.uint8 if dtype == "uint8" else np.float32)
    assert not read[1].all()
    augment = Augmenter(LIVELY.model_copy(update={"dihedral": False}), size=48 if zoomed else 80, colors=False)
    still = Augmenter(STILL, size=48 if zoomed else 80, colors=False)(*read, seed=0)
    spread = 2 * still[0][:, still[1]].astype(float).std(1)
    moved = []
    for seed in range(12):
        pixels, valid, _ = augment(*read, seed=seed)
        np.testing.assert_array_equal(valid, still[1])
        assert (pixels[:, ~valid] == 0).all()
        moved.append(np.abs(pixels[:, valid].astype(float) - still[0][:, valid]).mean(1) / spread)
    assert 0.03 < np.mean(moved) < 0.5  # of the spread, whatever the unit
