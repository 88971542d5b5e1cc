"""``geoseg predict --backend`` and ``--precision``: one map per backend, and nearly the same one from all of them."""

from __future__ import annotations

import errno
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import yaml

from geoseg.contract import PrecisionRecord, PrecisionScore, load_contract, shipped_models
from geoseg.landscape import Landscape, write_landscape
from geoseg.map_rows import MapRows
from geoseg.network.backends.openvino import multiplies_bfloat16
from geoseg.network.model_folder import build_network, save_model
from geoseg.prediction.parts import PartWriter
from support.backends import without_openvino
from support.commands import files_in, read_map, run, succeed
from support.model_folders import CLASSES, make_model, write_model
from support.networks import WIDE, segnext, visible
from support.scenes import MadeScene, write_scene

QUICK = ("torch", "openvino")
BANDS = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SegNeXt of the widths that its form for CPUs wants."""
    folder = tmp_path_factory.mktemp("models")
    contract = load_contract(write_model(folder / "narrow"))
    options = {**WIDE, "classes": len(CLASSES)}
    network = build_network("segnext", "tu-mscan_tiny", encoder_weights=None, in_channels=3, **options)
    network.load_state_dict(visible(segnext(**options)).state_dict())
    save_model(folder / "wide", network, contract)
    return folder / "wide"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> MadeScene:
    """Of three bands of 512 rows, one window wide."""
    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    return write_scene(path, size=(BANDS * 512 - 300, 120), blockxsize=256, blockysize=256, nodata="value")


@pytest.fixture
def words(scene: MadeScene, model: Path, tmp_path: Path) -> Callable[..., list[object]]:
    """The command that maps the scene into a file of this test's folder."""

    def command(name: str, *options: object) -> list[object]:
        place = ["-m", model, "-o", tmp_path / name, "--size", 128, "--overlap", 32, "--device", "cpu"]
        return ["predict", scene.path, *place, *options]

    return command


def interrupt(monkeypatch: pytest.MonkeyPatch, words: list[object]) -> None:
    """Run a command that finds the disk full when one or two of its bands are finished."""
    with monkeypatch.context() as patch:
        patch.setattr("geoseg.tiling.plan.TASK_PX", 1)  # such a small scene is one band otherwise
        write, seen = PartWriter.write, []

        def failing(self: PartWriter, rows: MapRows) -> None:
            if self not in seen:
                seen.append(self)
            if len(seen) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            write(self, rows)

        patch.setattr(PartWriter, "write", failing)
        ran = run("-q", *words)
    assert ran.exit_code == 2
    assert f"of {BANDS} bands are kept" in ran.stderr


def tags(path: Path) -> dict[str, str]:
    with rasterio.open(path) as file:
        found: dict[str, str] = file.tags()
    return found


# --- one map per backend


@pytest.mark.parametrize(
    ("backend", "precision"), [("openvino", "float32"), ("openvino", "bfloat16"), ("torch", "float32")]
)
def test_same_bytes_for_any_batch_and_after_a_stop(
    words: Callable[..., list[object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, precision: str
) -> None:
    if precision == "bfloat16" and not multiplies_bfloat16():
        pytest.skip("this CPU does not multiply bfloat16")
    way = "--backend", backend, "--precision", precision
    succeed("-q", *words("one.tif", *way, "--batch-size", 1))
    succeed("-q", *words("three.tif", *way, "--batch-size", 3))
    assert (tmp_path / "three.tif").read_bytes() == (tmp_path / "one.tif").read_bytes()
    late = words("late.tif", *way)
    interrupt(monkeypatch, late)
    monkeypatch.setattr("geoseg.tiling.plan.TASK_PX", 1)
    assert f"of {BANDS} parts taken over from an earlier run" in succeed(*late)
    assert (tmp_path / "late.tif").read_bytes() == (tmp_path / "one.tif").read_bytes()
    values, _ = read_map(tmp_path / "one.tif")
    assert len(np.unique(values)) > 2
    network = tags(tmp_path / "one.tif")["GEOSEG_NETWORK"]
    version = sys.modules[backend].__version__.split("-")[0]
    assert network.startswith(backend)
    assert version in network
    assert network.endswith(precision)


@pytest.mark.parametrize(
    "change", [("--backend", "openvino"), ("--backend", "torch", "--precision", "bfloat16")], ids=lambda c: c[-1]
)
def test_another_backend_starts_anew_and_says_so(
    words: Callable[..., list[object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: tuple[str, ...]
) -> None:
    if change[-1] == "bfloat16" and not multiplies_bfloat16():
        pytest.skip("this CPU does not multiply bfloat16")
    monkeypatch.setattr("geoseg.tiling.plan.TASK_PX", 1)
    interrupt(monkeypatch, words("map.tif", "--backend", "torch"))
    ran = run(*words("map.tif", *change))
    assert ran.exit_code == 0, ran.stderr
    assert re.search("warning: (|the precision and )the backend changed since the last run: starting anew", ran.stderr)
    assert "taken over" not in ran.stdout
    succeed("-q", *words("fresh.tif", *change))
    assert (tmp_path / "map.tif").read_bytes() == (tmp_path / "fresh.tif").read_bytes()


def test_reduced_precision_is_asked_for_and_stands_in_the_map(
    words: Callable[..., list[object]], tmp_path: Path
) -> None:
    if not multiplies_bfloat16():
        pytest.skip("this CPU does not multiply bfloat16")
    succeed("-q", *words("half.tif", "--precision", "bfloat16"))
    succeed("-q", *words("whole.tif", "--precision", "float32"))
    assert tags(tmp_path / "half.tif")["GEOSEG_NETWORK"].endswith("bfloat16")
    assert tags(tmp_path / "whole.tif")["GEOSEG_NETWORK"].endswith("float32")
    half, whole = (read_map(tmp_path / name)[0] for name in ("half.tif", "whole.tif"))
    np.testing.assert_array_equal(half == 255, whole == 255)
    assert (half == whole).mean() > 0.95  # of random weights, which decide nothing clearly


def test_augmentation_by_scales_goes_through_a_backend_too(
    tmp_path: Path, make_scene: Callable[..., MadeScene], model: Path
) -> None:
    """Windows of 32 px as foreseen, and of 64 px for the larger scales; the other backends: tests/test_backends.py."""
    small = make_scene(size=(40, 64)).path
    for name in ("openvino", "torch"):
        way = ["--size", 32, "--overlap", 0, "--tta", "scales", "--device", "cpu", "--backend", name]
        succeed("-q", "predict", small, "-m", model, "-o", tmp_path / f"{name}.tif", *way)
    found, wanted = (read_map(tmp_path / f"{name}.tif")[0] for name in ("openvino", "torch"))
    assert len(np.unique(wanted)) > 1
    assert (found == wanted).mean() > 0.998


def test_a_dry_run_takes_the_backend_too(words: Callable[..., list[object]], tmp_path: Path) -> None:
    assert "Mpx/s" in succeed("-q", *words("map.tif", "--backend", "torch", "--dry-run"))
    assert not list(tmp_path.iterdir())


# --- nearly the same map from all of them


@pytest.fixture(scope="module")
def landscape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene and its truth as the shipped model knows such; two windows of 256 px, one of them clipped."""
    if "landscape-tiny" not in shipped_models():
        pytest.skip("needs the shipped model landscape-tiny")
    folder = tmp_path_factory.mktemp("landscape")
    write_landscape(Landscape(256, 400, seed=2026), folder / "scene.tif", labels_path=folder / "labels.tif", block=256)
    return folder


@pytest.fixture(scope="module")
def shipped(landscape: Path) -> Callable[..., np.ndarray]:
    """The map of the landscape by the shipped model, made once for each way."""

    def classes(backend: str, precision: str = "float32") -> np.ndarray:
        path = landscape / f"{backend}-{precision}.tif"
        if not path.exists():
            way = ["--size", 256, "--overlap", 64, "--device", "cpu", "--backend", backend, "--precision", precision]
            succeed("-q", "predict", landscape / "scene.tif", "-m", "landscape-tiny", "-o", path, *way)
        return read_map(path)[0]

    return classes


def test_backends_agree_on_a_landscape(shipped: Callable[..., np.ndarray]) -> None:
    found, wanted = shipped("openvino"), shipped("torch")
    assert len(np.unique(wanted)) >= 4
    assert (found == wanted).mean() >= 0.999


@pytest.mark.parametrize("backend", QUICK)
def test_bfloat16_changes_few_pixels_of_a_landscape(shipped: Callable[..., np.ndarray], backend: str) -> None:
    if not multiplies_bfloat16():
        pytest.skip("this CPU does not multiply bfloat16")
    found, wanted = shipped(backend, "bfloat16"), shipped(backend)
    assert 0.99 <= (found == wanted).mean() < 1


@pytest.mark.parametrize(
    "options",
    [("--backend", "torch"), ("--backend", "openvino"), ("--precision", "bfloat16")],
    ids=lambda options: options[1],
)
def test_evaluate_takes_a_backend_too(landscape: Path, tmp_path: Path, options: tuple[str, str]) -> None:
    if options[1] == "bfloat16" and not multiplies_bfloat16():
        pytest.skip("this CPU does not multiply bfloat16")
    entry = {"scene": str(landscape / "scene.tif"), "labels": str(landscape / "labels.tif")}
    classes = load_contract(Path(shipped_folder())).classes
    values = {
        "name": "check",
        "output": "run",
        "classes": [{"name": c.name, "color": c.color} for c in classes],
        "data": {"train": [entry], "val": [entry]},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    way = ["-o", tmp_path / "scores", "--size", 256, "--overlap", 64, "--device", "cpu", *options]
    said = succeed("evaluate", "landscape-tiny", tmp_path / "config.yaml", *way)
    (accuracy,) = (float(line.split()[-1]) for line in said.splitlines() if line.startswith("mIoU"))
    assert accuracy > 0.7


def shipped_folder() -> Path:
    import geoseg

    return Path(geoseg.__file__).parent / "weights" / "landscape-tiny"


def test_without_openvino_a_network_runs_in_torch(
    make_scene: Callable[..., MadeScene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, folder = make_scene(size=(90, 64), nodata="value"), make_model(tmp_path / "unet", architecture="unet")
    maps = []
    for backend in QUICK[::-1]:
        path = tmp_path / f"{backend}.tif"
        ran = run("predict", made.path, "-m", folder, "-o", path, "--size", 64, "--overlap", 32, "--device", "cpu")
        assert ran.exit_code == 0, ran.stderr
        assert "skipped" not in ran.stderr
        assert tags(path)["GEOSEG_NETWORK"].startswith(backend)
        maps.append(read_map(path)[0])
        monkeypatch.setitem(sys.modules, "openvino", None)
    assert len(np.unique(maps[1])) > 2
    assert (maps[0] == maps[1]).mean() > 0.999


def test_a_run_continues_in_the_precision_it_began_with(
    words: Callable[..., list[object]], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record that lets "auto" choose bfloat16 is written while a run in float32 is interrupted."""
    if not multiplies_bfloat16():
        pytest.skip("this CPU does not multiply bfloat16")
    own = tmp_path / "model"
    shutil.copytree(model, own)
    arguments = [own if word == model else word for word in words("map.tif")]
    interrupt(monkeypatch, arguments)
    score = PrecisionScore(miou=0.8, agreement=1)
    record = PrecisionRecord(measured_on="made up", float32=score, bfloat16=score)
    load_contract(own).model_copy(update={"precision": record}).save(own)
    monkeypatch.setattr("geoseg.tiling.plan.TASK_PX", 1)
    assert f"of {BANDS} parts taken over from an earlier run" in succeed(*arguments)
    assert tags(tmp_path / "map.tif")["GEOSEG_NETWORK"].endswith("float32")
    fresh = [tmp_path / "fresh.tif" if word == tmp_path / "map.tif" else word for word in arguments]
    succeed("-q", *fresh)
    assert tags(tmp_path / "fresh.tif")["GEOSEG_NETWORK"].endswith("bfloat16")


# --- refusals


@pytest.mark.parametrize("verb", ["predict", "predict --dry-run", "evaluate"])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--backend", "openvino"), ("backend openvino needs OpenVINO", "pip install openvino, or --backend torch")),
    ],
    ids=["openvino"],
)
def test_one_message_and_nothing_written(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    options: tuple[str, str],
    said: tuple[str, str],
) -> None:
    without_openvino(monkeypatch)
    scene = write_scene(tmp_path / "scene.tif", size=(64, 64)).path
    if verb == "evaluate":
        with rasterio.open(tmp_path / "labels.tif", "w", **plain_profile(scene)) as file:
            file.write(np.zeros((1, 64, 64), dtype=np.uint8))
        entry = {"scene": "scene.tif", "labels": "labels.tif"}
        values = {
            "name": "check",
            "output": "run",
            "classes": [{"name": name, "color": color} for name, color in CLASSES],
            "data": {"train": [entry], "val": [entry]},
        }
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
        words: list[object] = ["evaluate", model, tmp_path / "config.yaml", "-o", tmp_path / "scores", *options]
    else:
        name, *more = verb.split()
        words = [name, scene, "-m", model, "-o", tmp_path / "map.tif", *more, *options]
    before = files_in(tmp_path)
    ran = run("-q", *words)
    assert ran.exit_code == 2, ran.stderr
    message, hint = ran.stderr.splitlines()
    assert message == f"error: {said[0]}"
    assert hint == f"hint:  {said[1]}"
    assert ran.stdout == ""
    assert files_in(tmp_path) == before


def plain_profile(scene: Path) -> dict[str, Any]:
    with rasterio.open(scene) as file:
        profile: dict[str, Any] = {"crs": file.crs, "transform": file.transform}
        return {**profile, "driver": "GTiff", "height": 64, "width": 64, "count": 1, "dtype": "uint8"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="bfloat16 is what a GPU computes in")
def test_bfloat16_on_a_cpu_that_does_not_multiply_it(
    words: Callable[..., list[object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geoseg.network.backends.multiplies_bfloat16", lambda: False)
    ran = run("-q", *words("map.tif", "--precision", "bfloat16"))
    assert ran.exit_code == 2
    assert ran.stderr.splitlines() == ["error: this CPU does not multiply bfloat16", "hint:  --precision float32"]
    assert not list(tmp_path.iterdir())
