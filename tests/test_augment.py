from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from geoseg.augment import Augmenter
from geoseg.config import AugmentConfig

STILL = AugmentConfig(dihedral=False, brightness=0, contrast=0, hue=0, saturation=0)
DIHEDRAL = STILL.model_copy(update={"dihedral": True})
LIVELY = AugmentConfig(brightness=0.3, contrast=0.3, hue=20, saturation=60, noise=0.1)


def window(bands: int = 3, dtype: str = "uint8", side: int = 32) -> tuple[npt.NDArray[Any], Any, npt.NDArray[np.uint8]]:
    """Pixels, valid and labels that say the same: the first band is 40 per class, invalid pixels are ignored."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, (side, side), dtype=np.uint8)
    valid = rng.random((side, side)) < 0.8
    labels[~valid] = 255
    pixels = rng.integers(1, 255, (bands, side, side)).astype(dtype)
    pixels[0] = np.where(valid, labels * 40, 255)
    return (pixels / np.float32(255) if dtype == "float32" else pixels), valid, labels


@pytest.mark.parametrize("bands", [1, 3, 4, 8])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_any_bands_keep_their_dtype_and_get_the_size(bands: int, dtype: str) -> None:
    augment = Augmenter(LIVELY, size=48, colors=bands == 3 and dtype == "uint8")
    for seed in range(4):
        pixels, valid, labels = augment(*window(bands, dtype), seed=seed)
        assert (pixels.shape, pixels.dtype) == ((bands, 48, 48), np.dtype(dtype))
        assert (valid.shape, valid.dtype) == ((48, 48), np.dtype(bool))
        assert (labels.shape, labels.dtype) == ((48, 48), np.dtype(np.uint8))
        assert all(a.flags.c_contiguous for a in (pixels, valid, labels))
        assert np.isfinite(pixels).all()


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


@pytest.mark.parametrize("bands", [1, 3, 4, 8])
def test_flips_and_turns_move_every_pixel_with_its_label(bands: int) -> None:
    augment = Augmenter(DIHEDRAL, size=32, colors=False)
    pixels, valid, labels = window(bands)
    layers = np.concatenate([pixels, valid[None], labels[None]])
    dihedral = {np.rot90(f, k, (1, 2)).tobytes() for f in (layers, layers[:, :, ::-1]) for k in range(4)}
    assert len(dihedral) == 8
    found = set()
    for seed in range(60):
        moved = augment(pixels, valid, labels, seed=seed)
        found.add(np.concatenate([moved[0], moved[1][None], moved[2][None]]).astype(np.uint8).tobytes())
    assert found == dihedral  # each of the eight, and nothing else


def test_nothing_asked_for_changes_nothing() -> None:
    window_ = window()
    for before, after in zip(window_, Augmenter(STILL, size=32, colors=True)(*window_, seed=1), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("side", [20, 64])
def test_resizing_invents_no_class(side: int) -> None:
    pixels, valid, labels = Augmenter(STILL, size=32, colors=False)(*window(side=side), seed=0)
    assert pixels.shape == (3, 32, 32)
    assert set(np.unique(labels)) <= {0, 1, 2, 3, 4, 255}
    np.testing.assert_array_equal(labels == 255, ~valid)


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


def test_the_arguments_are_not_written_to() -> None:
    given = window()
    copies = [a.copy() for a in given]
    Augmenter(LIVELY, size=32, colors=True)(*given, seed=0)
    for a, b in zip(given, copies, strict=True):
        np.testing.assert_array_equal(a, b)
