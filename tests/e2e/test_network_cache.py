"""Converted networks in the cache: the same bits from it as without it, never a damaged one, and no torch when warm."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from torch import nn

import geoseg
from geoseg.network import converted
from geoseg.network.backends import Request, load_backend
from geoseg.network.folding import deployed
from geoseg.network.stored_model import open_model
from support.model_folders import write_model
from support.networks import SHALLOW, InMemory
from support.scenes import MadeScene

SIZE = (64, 64)
WINDOW = np.random.default_rng(0).standard_normal((1, 3, *SIZE), dtype=np.float32)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "geoseg" / "networks"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "model", options=SHALLOW)


@pytest.fixture(scope="module")
def converted_once(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A cache with the model in it, and the logits of the conversion."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        return folder, logits(model)


@pytest.fixture
def first(cache: Path, converted_once: tuple[Path, np.ndarray]) -> np.ndarray:
    """The logits of the conversion that this test's own cache has kept."""
    shutil.copytree(converted_once[0], cache.parents[1], dirs_exist_ok=True)
    return converted_once[1]


def logits(model: Path) -> np.ndarray:
    found: np.ndarray = load_backend(open_model(model), "openvino", Request(size=SIZE))(WINDOW)
    return found


def forbid_converting(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(converted, "_convert", refuse)


def test_a_second_load_gives_the_same_bits(
    cache: Path, model: Path, first: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [entry.suffix for entry in cache.iterdir()] == [".zip"]
    forbid_converting(monkeypatch)
    np.testing.assert_array_equal(logits(model), first)


class Fixed(nn.Module):
    """A SegNeXt that is not recognised as one, so it is converted for one shape alone."""

    logits_stride = 8

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.forward_logits = deployed(network).forward_logits


def test_one_conversion_serves_all_sizes(cache: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logits(model)
    window = np.random.default_rng(1).standard_normal((2, 3, 96, 40), dtype=np.float32)
    fixed: Any = InMemory(Fixed(open_model(model).network))
    wanted = load_backend(fixed, "openvino", Request())(window)
    forbid_converting(monkeypatch)
    np.testing.assert_array_equal(load_backend(open_model(model), "openvino", Request())(window), wanted)
    assert len(list(cache.iterdir())) == 1


@pytest.mark.usefixtures("first")
def test_other_weights_are_another_entry(cache: Path, tmp_path: Path) -> None:
    logits(write_model(tmp_path / "other", seed=1, options=SHALLOW))
    assert len(list(cache.iterdir())) == 2


def flip(entry: Path) -> None:
    content = bytearray(entry.read_bytes())
    content[len(content) // 2] ^= 0xFF
    entry.write_bytes(content)


def truncate(entry: Path) -> None:
    os.truncate(entry, 100)


def empty(entry: Path) -> None:
    entry.write_bytes(b"")


def replace_graph(entry: Path) -> None:
    with zipfile.ZipFile(entry, "w") as archive:
        archive.writestr("network.xml", "no graph")
        archive.writestr("network.bin", b"")


@pytest.mark.parametrize("damage", [flip, truncate, empty, replace_graph])
def test_a_damaged_entry_is_made_anew(
    cache: Path, model: Path, first: np.ndarray, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    (entry,) = cache.iterdir()
    damage(entry)
    np.testing.assert_array_equal(logits(model), first)
    assert list(cache.iterdir()) == [entry] and zipfile.ZipFile(entry).testzip() is None
    assert "is damaged and is made again" in caplog.text


def test_an_unwritable_cache_costs_only_time(
    tmp_path: Path, model: Path, first: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    np.testing.assert_array_equal(logits(model), first)
    assert "cannot store the converted network in" in caplog.text


@pytest.mark.usefixtures("first")
def test_entries_unused_for_longest_go_first(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (older,) = cache.iterdir()
    os.utime(older, (0, 0))
    monkeypatch.setattr(converted, "KEPT_BYTES", 1)
    logits(write_model(tmp_path / "other", seed=1))
    (left,) = cache.iterdir()
    assert left != older


def test_a_warm_prediction_loads_no_torch_and_reports_nothing(
    make_scene: Callable[..., MadeScene], model: Path, tmp_path: Path, cache: Path
) -> None:
    """OpenVINO's converter counts its uses under the home folder, and sends them, unless it is kept from it."""
    scene = make_scene(size=(96, 80)).path
    words = [
        "predict",
        str(scene),
        "-m",
        str(model),
        "-o",
        str(tmp_path / "map.tif"),
        "--size",
        "64",
        "--overlap",
        "32",
    ]
    code = (
        "import sys; from geoseg.cli import main\n"
        f"sys.argv = {['geoseg', *words, '--device', 'cpu', '--overwrite']!r}\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print(sorted({'torch', 'timm', 'segmentation_models_pytorch', 'lightning'} & sys.modules.keys()))\n"
        "assert 'openvino_telemetry' not in sys.modules"
    )
    loaded, maps = [], []
    for _ in range(2):
        ran = subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            text=True,
            cwd=Path(geoseg.__file__).parents[1],
            env=os.environ | {"HOME": str(tmp_path)},
        )
        loaded.append(ran.stdout.splitlines()[-1])
        with rasterio.open(tmp_path / "map.tif") as file:
            maps.append(file.read(1))
    assert "torch" in loaded[0]
    assert loaded[1] == "[]"
    assert not (tmp_path / "intel").exists()
    np.testing.assert_array_equal(*maps)
    shutil.rmtree(cache)
