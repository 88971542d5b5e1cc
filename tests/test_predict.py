from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import shapely
import torch
import torch.nn.functional as F
from torch import nn

import geoseg
from geoseg.classes import NODATA
from geoseg.errors import ConfigError, DeviceError, GeosegError, ModelError, OutputError, SceneError
from geoseg.network.model_folder import load_model
from geoseg.network.stored_model import StoredModel
from geoseg.options import Imagery, Network, PredictOptions, Tiling
from geoseg.polygons import PolygonRules, Tolerance
from geoseg.prediction.bands import predicted_rows
from geoseg.prediction.imagery import check_scene, model_nodata
from geoseg.prediction.predictor import Predictor
from geoseg.programs.dry_run import dry_run
from geoseg.programs.predict import predict
from geoseg.scene import Scene, open_scene
from geoseg.windows import Window
from support.model_folders import make_model
from support.networks import InMemory
from support.scenes import MadeScene, MakeScene, NodataKind, Orientation, write_scene

CPU = torch.device("cpu")
Ids = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_model`, each of them once."""
    made: dict[Any, Path] = {}
    folder = tmp_path_factory.mktemp("models")

    def model(**options: Any) -> Path:
        key = tuple(sorted(options.items()))
        if key not in made:
            made[key] = make_model(folder / str(len(made)), **options)
        return made[key]

    return model


Models = Callable[..., Path]


def whole_scene(model: Path, made: MadeScene) -> Ids:
    return forward_whole(load_model(model), made)


@torch.inference_mode()
def forward_whole(trained: StoredModel, made: MadeScene) -> Ids:
    """Read all, fill, reflect to a multiple of 32, one forward, upsample, argmax: no window, no strip, no stitching."""
    contract, network = trained.contract, trained.network
    mean, std = (np.array([getattr(b, k) for b in contract.bands])[:, None, None] for k in ("mean", "std"))
    with np.errstate(invalid="ignore"):
        x = (made.pixels.astype(np.float64) * contract.scale - mean) / std
    x = np.where(made.valid, x, 0)
    height, width = made.valid.shape
    x = np.pad(x, [(0, 0), (0, -height % 32), (0, -width % 32)], mode="reflect")
    logits: Any = network(torch.from_numpy(x[None]).float())
    ids = logits[0, :, :height, :width].argmax(0).numpy().astype(np.uint8)
    return np.where(made.valid, ids, NODATA).astype(np.uint8)


def read(path: Path) -> Ids:
    with rasterio.open(path) as file:
        ids: Ids = file.read(1)
    return ids


def run(made: MadeScene | Path, model: Path, output: Path, **options: Any) -> Ids:
    path = made.path if isinstance(made, MadeScene) else made
    predict([str(path)], str(model), output, device="cpu", **options)
    return read(output)


def rows_of(predictor: Predictor, scene: Any, plan: Any, **options: Any) -> Ids:
    return np.concatenate([rows.classes for rows in predicted_rows(predictor, scene, plan, **options)])


# --- equal to the whole scene at once


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(
    ("crs", "dtype", "bands", "nodata", "size", "orientation"),
    [
        ("EPSG:32633", "uint8", 3, "none", (96, 80), "north"),
        ("EPSG:32633", "uint16", 4, "value", (90, 81), "rotated"),
        ("EPSG:3857", "float32", 1, "nan", (64, 64), "south"),
        ("EPSG:4326", "int16", 8, "mask", (97, 33), "north"),
        ("EPSG:2263", "uint8", 1, "value", (40, 100), "north"),
        (None, "uint8", 4, "mask", (70, 95), "north"),
        ("EPSG:32633", "uint16", 3, "alpha", (65, 64), "south"),
    ],
)
def test_one_window_is_the_whole_scene_at_once(
    make_scene: MakeScene,
    models: Models,
    tmp_path: Path,
    crs: str | None,
    dtype: str,
    bands: int,
    nodata: NodataKind,
    size: tuple[int, int],
    orientation: Orientation,
) -> None:
    made = make_scene(crs=crs, dtype=dtype, bands=bands, nodata=nodata, size=size, orientation=orientation)
    model = models(bands=bands, dtype=dtype)
    found = run(made, model, tmp_path / "map.tif", size=128, ignore_gsd=True, alpha=nodata == "alpha")
    wanted = whole_scene(model, made)
    np.testing.assert_array_equal(found == NODATA, ~made.valid)
    assert len(np.unique(wanted[made.valid])) >= 2
    assert (found == wanted).mean() > 0.999  # rounding where two classes are equal
    with rasterio.open(made.path) as scene, rasterio.open(tmp_path / "map.tif") as class_map:
        assert class_map.crs == scene.crs
        assert class_map.transform == scene.transform
        assert class_map.shape == scene.shape
        assert class_map.dtypes == ("uint8",)
        assert class_map.nodata == NODATA


@pytest.mark.parametrize("nodata", ["none", "value"])
def test_nodata_out_is_exactly_nodata_in_under_many_windows(
    make_scene: MakeScene, models: Models, tmp_path: Path, nodata: NodataKind
) -> None:
    made = make_scene(size=(150, 170), nodata=nodata)
    found = run(made, models(), tmp_path / "map.tif")
    np.testing.assert_array_equal(found == NODATA, ~made.valid)
    assert found[made.valid].max() < 4


class ContextFree(nn.Module):
    """Four linear classifiers of the mean over each cell of ``stride`` px: its logits are the same in every window."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.logits_stride = stride
        torch.manual_seed(3)
        self.score = nn.Conv2d(3, 4, 1, bias=False)

    def forward_logits(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.score(F.avg_pool2d(x, self.logits_stride))
        return logits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(self.forward_logits(x), x.shape[2:], mode="bilinear", align_corners=False)


@pytest.mark.parametrize("stride", [1, 8])
@pytest.mark.parametrize("nodata", ["none", "value"])
@pytest.mark.parametrize("size", [(300, 170), (33, 250), (129, 31)])
@pytest.mark.parametrize(("window", "overlap", "batch"), [(64, 0, 3), (64, 32, 1), (96, 64, 16)])
def test_without_context_many_windows_are_one_whole(
    make_scene: MakeScene,
    models: Models,
    stride: int,
    nodata: NodataKind,
    size: tuple[int, int],
    window: int,
    overlap: int,
    batch: int,
) -> None:
    made = make_scene(size=size, nodata=nodata)
    contract = load_model(models()).contract
    trained = InMemory(ContextFree(stride).eval(), contract)
    predictor = Predictor(trained, CPU)
    with Scene(made.path) as scene:
        plan = predictor.plan(scene, Tiling(size=window, overlap=overlap), batch_size=batch)
        found = rows_of(predictor, scene, plan)
    assert plan.windows > 2
    wanted = forward_whole(trained, made)
    np.testing.assert_array_equal(found == NODATA, ~made.valid)
    assert (found != wanted).sum() <= 3 + 1e-3 * found.size
    assert len(np.unique(wanted)) > 2


@pytest.mark.parametrize("architecture", ["unet", "fpn"])
def test_other_architectures_go_the_same_way(
    make_scene: MakeScene, models: Models, tmp_path: Path, architecture: str
) -> None:
    made = make_scene(size=(90, 75), nodata="value")
    model = models(architecture=architecture)
    found = run(made, model, tmp_path / "map.tif", size=96)
    assert (found == whole_scene(model, made)).mean() > 0.999


# --- one result, however it is made


def test_the_same_scene_gives_the_same_bytes(make_scene: MakeScene, models: Models, tmp_path: Path) -> None:
    made = make_scene(size=(150, 100), nodata="mask")
    for name in ("a.tif", "b.tif"):
        run(made, models(), tmp_path / name)
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


@pytest.mark.parametrize("architecture", ["segnext", "fpn"])
def test_nothing_but_the_plan_decides_the_bytes(
    make_scene: MakeScene, models: Models, tmp_path: Path, architecture: str
) -> None:
    """Batch size, torch's threads, readers, bands, strips: every file of the output has the same bytes."""
    made = make_scene(size=(560, 600), nodata="value", blockxsize=128, blockysize=128)
    layers = {"confidence": True, "probabilities": True, "disagreement": True}
    ways: list[dict[str, Any]] = [
        {"batch_size": 1},
        {"batch_size": 3, "readers": 2},
        {"band_rows": 512, "batch_size": 2},
        {"band_rows": 512, "strip_cols": 512, "readers": 3},
        {"strip_cols": 512},
    ]
    found = []
    threads = torch.get_num_threads()
    for i, way in enumerate(ways):
        folder = tmp_path / str(i)
        folder.mkdir()
        torch.set_num_threads(1 + i % 2)
        predict(made.path, models(architecture=architecture), folder / "map.tif", size=128, overlap=32, **layers, **way)
        assert torch.get_num_threads() == 1 + i % 2
        found.append({p.name: p.read_bytes() for p in sorted(folder.iterdir())})
    torch.set_num_threads(threads)
    assert {"map.tif", "map_confidence.tif", "map_probabilities.tif", "map_disagreement.tif"} <= found[0].keys()
    for way, other in zip(ways[1:], found[1:], strict=True):
        assert other.keys() == found[0].keys(), way
        for name, content in other.items():
            assert content == found[0][name], (name, way)


def test_a_models_contract_and_python_give_the_same_map(make_scene: MakeScene, models: Models, tmp_path: Path) -> None:
    made = make_scene(size=(150, 200), nodata="value")
    geoseg.predict(made.path, models(), tmp_path / "map.tif", device="cpu")
    predictor = Predictor(load_model(models()), CPU)
    with Scene(made.path) as scene:
        rows = rows_of(predictor, scene, predictor.plan(scene))
        in_strips = rows_of(predictor, scene, predictor.plan(scene, Tiling(band_rows=512, strip_cols=512)))
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), rows)
    np.testing.assert_array_equal(in_strips, rows)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("most", [1, 2])
def test_out_of_memory_halves_the_batch_and_the_run_goes_on(
    make_scene: MakeScene, models: Models, caplog: pytest.LogCaptureFixture, batched: bool, most: int
) -> None:
    made = make_scene(size=(100, 300))
    network = Greedy(most)
    trained = InMemory(network.eval(), load_model(models()).contract)
    predictor = Predictor(trained, CPU, Network(backend="torch"), batched=batched)
    with Scene(made.path) as scene:
        plan = predictor.plan(scene, batch_size=8)
        found = rows_of(predictor, scene, plan)
        network.most = 99
        wanted = rows_of(predictor, scene, plan)
        network.most = 0
        with pytest.raises(DeviceError, match="out of memory with one window of 64 × 64 px"):
            rows_of(predictor, scene, plan)
    np.testing.assert_array_equal(found, wanted)
    assert "out of memory with 8 windows at once: continuing with 4" in caplog.text
    assert "continuing with 1" in caplog.text or most > 1


class Greedy(nn.Module):
    """A network that has memory for so many windows at once, in one batch or in several threads."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.inside, self.lock = most, 0, threading.Lock()
        self.inner = ContextFree(8)
        self.logits_stride = 8

    def forward_logits(self, x: torch.Tensor) -> torch.Tensor:
        with self.lock:
            self.inside += len(x)
        try:
            time.sleep(0.01)
            if self.inside > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return self.inner.forward_logits(x)
        finally:
            with self.lock:
                self.inside -= len(x)


def test_the_files_blocks_do_not_matter(models: Models, tmp_path: Path) -> None:
    layouts: list[dict[str, Any]] = [
        {},
        {"tiled": False, "blockxsize": 130, "blockysize": 7},
        {"blockxsize": 128, "blockysize": 128, "compress": "lzw"},
    ]
    maps = [
        run(write_scene(tmp_path / f"s{i}.tif", size=(140, 130), **layout), models(), tmp_path / f"m{i}.tif")
        for i, layout in enumerate(layouts)
    ]
    np.testing.assert_array_equal(maps[0], maps[1])
    np.testing.assert_array_equal(maps[0], maps[2])


def test_rows_do_not_depend_on_their_chunks(
    make_scene: MakeScene, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_scene(size=(170, 90), nodata="value")
    predictor = Predictor(load_model(models()), CPU)
    with Scene(made.path) as scene:
        plan = predictor.plan(scene)
        at_once = [r.classes for r in predicted_rows(predictor, scene, plan)]
        monkeypatch.setattr("geoseg.tiling.stitcher.PIECE_BYTES", 1)
        in_chunks = [r.classes for r in predicted_rows(predictor, scene, plan)]
    assert len(in_chunks) > len(at_once)
    np.testing.assert_array_equal(np.concatenate(in_chunks), np.concatenate(at_once))
    np.testing.assert_array_equal(np.concatenate(in_chunks) == NODATA, ~made.valid)


def test_a_scene_cut_in_parts_is_mapped_as_one(make_scene: MakeScene, models: Models, tmp_path: Path) -> None:
    made = make_scene(size=(128, 160), bands=3)
    parts = []
    for name, rows, cols in (
        ("n", slice(0, 50), slice(0, 160)),
        ("sw", slice(50, 128), slice(0, 70)),
        ("se", slice(50, 128), slice(70, 160)),
    ):
        path = tmp_path / f"{name}.tif"
        part = made.pixels[:, rows, cols]
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            count=3,
            dtype="uint8",
            height=part.shape[1],
            width=part.shape[2],
            crs=made.crs,
            transform=made.transform @ made.transform.translation(cols.start, rows.start),
        ) as file:
            file.write(part)
        parts.append(str(path))
    whole = run(made, models(), tmp_path / "whole.tif")
    predict(parts, str(models()), tmp_path / "mosaic.tif", device="cpu")
    np.testing.assert_array_equal(read(tmp_path / "mosaic.tif"), whole)
    with rasterio.open(tmp_path / "mosaic.tif") as file:
        assert file.transform.almost_equals(made.transform)


def test_chosen_bands_are_those_bands(make_scene: MakeScene, models: Models, tmp_path: Path) -> None:
    made = make_scene(bands=5)
    swapped = MadeScene(made.path, made.pixels[[3, 1, 4]], made.valid, made.transform, made.crs)
    found = run(made, models(), tmp_path / "map.tif", bands=[4, 2, 5], size=96)
    assert (found == whole_scene(models(), swapped)).mean() > 0.999


# --- what is left out


def test_wholly_invalid_windows_never_reach_the_network(models: Models, tmp_path: Path) -> None:
    made = write_scene(tmp_path / "scene.tif", size=(64, 320), nodata="value")
    with rasterio.open(made.path, "r+") as file:
        pixels = file.read()
        pixels[:, :, 100:] = 0
        file.write(pixels)
    report = predict([str(made.path)], str(models()), tmp_path / "map.tif", device="cpu")
    # windows start every 32 px: those from 128 on see nothing
    assert report.plan.cols[-1] == 256
    assert report.skipped == sum(c >= 100 for c in report.plan.cols) == 5
    assert any("5 windows without a valid pixel" in line for line in report.lines())
    assert (read(tmp_path / "map.tif")[:, 100:] == NODATA).all()


def test_a_scene_without_a_valid_pixel_becomes_an_empty_map(models: Models, tmp_path: Path) -> None:
    made = write_scene(tmp_path / "scene.tif", size=(80, 70), nodata="value")
    with rasterio.open(made.path, "r+") as file:
        file.write(np.zeros((3, 80, 70), dtype=np.uint8))
    report = predict([str(made.path)], str(models()), tmp_path / "map.tif", device="cpu")
    assert report.skipped == report.plan.windows
    assert (read(tmp_path / "map.tif") == NODATA).all()
    assert report.areas_m2.sum() == 0
    assert report.lines()[0] == str(tmp_path / "map.tif")


def test_the_reported_areas_are_the_maps(make_scene: MakeScene, models: Models, tmp_path: Path) -> None:
    made = make_scene(size=(100, 90), nodata="value", crs="EPSG:3857")
    report = predict([str(made.path)], str(models()), tmp_path / "map.tif", device="cpu", ignore_gsd=True)
    ids = read(tmp_path / "map.tif")
    pixel = report.grid.pixel_area_m2()[:, None]
    np.testing.assert_allclose(report.areas_m2, [(pixel * (ids == k)).sum() for k in range(4)])
    assert report.areas_m2.sum() < 0.6 * made.valid.sum() * 0.73**2  # Web Mercator's own areas are twice the ground's


# --- polygons


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson"])
def test_a_vector_suffix_gives_polygons_of_the_same_areas(
    make_scene: MakeScene, models: Models, tmp_path: Path, suffix: str
) -> None:
    made = make_scene(nodata="value")
    ids = run(made, models(), tmp_path / "map.tif")
    output = tmp_path / f"map{suffix}"
    report = predict([str(made.path)], str(models()), output, device="cpu", rules=PolygonRules())
    frame = geopandas.read_file(output, layer="map")
    assert report.polygons == len(frame) > 0
    assert report.path == output
    areas = frame.to_crs(made.crs).area.groupby(frame["class_id"]).sum()
    for class_id, area in areas.items():
        assert area == pytest.approx((ids == class_id).sum() * 0.25, rel=3e-3)  # GeoJSON rounds to 7 digits
    assert {p.suffix for p in tmp_path.iterdir() if p.stem.startswith(".")} == set()


# --- refusals


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(
    ("scene", "contract", "complaint", "hint"),
    [
        ({"bands": 4}, {}, "has 4 bands, but the model expects 3", "--bands 1,2,3"),
        ({"bands": 3, "nodata": "alpha"}, {}, "has 4 bands, but the model expects 3", "add --alpha if band 4"),
        ({"bands": 1}, {}, "has 1 band, but the model expects 3", "geoseg info"),
        ({"dtype": "uint16"}, {}, "is uint16, but the model was trained on uint8", "gdal_translate -ot Byte"),
        ({"dtype": "uint8"}, {"dtype": "float32"}, "trained on float32", "gdal_translate -ot Float32"),
        ({}, {"gsd_m": 1.0}, "pixels of 0.5 m, but the model was trained on 1 m", "--gsd model"),
        ({}, {"gsd_m": 0.2}, "pixels of 0.5 m, but the model was trained on 0.2 m", "--ignore-gsd"),
    ],
)
def test_imagery_that_breaks_the_contract_is_refused(
    make_scene: MakeScene,
    tmp_path: Path,
    scene: dict[str, Any],
    contract: dict[str, Any],
    complaint: str,
    hint: str,
) -> None:
    made = make_scene(**scene)
    stated = load_model(make_model(tmp_path / "model", **contract)).contract
    with open_scene([str(made.path)]) as opened, pytest.raises(SceneError, match=complaint) as caught:
        check_scene(stated, opened)
    assert str(made.path) in caught.value.message
    assert hint in str(caught.value.hint)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_another_gsd_passes_where_it_is_said_near_or_unknown(make_scene: MakeScene, models: Models) -> None:
    contract = load_model(models()).contract

    def check(made: MadeScene, changed: dict[str, Any], *, ignore_gsd: bool = False) -> None:
        with Scene(made.path) as scene:
            check_scene(contract.model_copy(update=changed), scene, ignore_gsd=ignore_gsd)

    made = make_scene()
    check(made, {"gsd_m": 5.0}, ignore_gsd=True)
    check(made, {"gsd_m": 0.6})
    check(made, {"gsd_m": 0.4})
    check(made, {"gsd_m": None})
    check(make_scene(crs=None), {"gsd_m": 5.0})
    # feet and degrees are metres on the ground
    check(make_scene(crs="EPSG:2263"), {})
    check(make_scene(crs="EPSG:4326"), {"gsd_m": 0.46})  # 0.38 × 0.56 m


def test_the_contracts_nodata_counts_unless_another_is_given(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene(nodata="none")
    with rasterio.open(made.path, "r+") as file:
        pixels = file.read()
        pixels[:, :5] = 7
        file.write(pixels)
    contract = load_model(make_model(tmp_path / "model", nodata=7.0)).contract
    for nodata, rows in ((None, 5), (200.0, 0)):
        with open_scene([made.path], Imagery(nodata=model_nodata(contract, nodata))) as scene:
            _, valid = scene.read(Window(0, 0, *scene.grid.shape))
        assert (~valid).all(1).sum() == rows


@pytest.mark.parametrize(
    ("options", "kind", "complaint"),
    [
        ({"output": "map.dwg"}, OutputError, "unknown suffix .dwg"),
        ({"output": "map"}, OutputError, "unknown suffix"),
        ({"output": "none/map.tif"}, OutputError, "does not exist"),
        ({"model": "none"}, ModelError, "no model folder none"),
        ({"scene": "none.tif"}, SceneError, "no such scene"),
        ({"size": 100}, ConfigError, "window size 100"),
        ({"size": 64, "overlap": 64}, ConfigError, "overlap 64"),
        ({"batch_size": 0}, ConfigError, "batch size 0"),
        (
            {"blend": "cosine"},
            ConfigError,
            "blend must be one of sine, linear, flat, crop or a function, found 'cosine'",
        ),
        ({"tta": "many"}, ConfigError, "tta must be one of none, flips, d4, scales"),
        ({"executor": "slurm"}, ConfigError, "executor must be one of in-process, ray, found 'slurm'"),
        ({"size": "64"}, ConfigError, "size must be a whole number or None, found '64'"),
        ({"batch_size": 1.5}, ConfigError, "batch_size must be a whole number or None, found 1.5"),
        ({"device": None}, ConfigError, "device must be text, found None"),
        ({"readers": 0}, ConfigError, "readers must be at least 1, found 0"),
        ({"bands": "123"}, ConfigError, "bands must be a list of whole numbers or None, found '123'"),
        ({"gsd": "fine"}, ConfigError, "gsd 'fine' is not a number of metres"),
        ({"output": "map.gpkg", "disagreement": True}, ConfigError, "are rasters"),
        ({"output": "map.gpkg", "rules": PolygonRules(keep=("lake",))}, ConfigError, "lake"),
        ({"rules": PolygonRules(min_area_m2=4)}, ConfigError, "no effect without polygons: .*min_area_m2"),
        ({"device": "tpu"}, DeviceError, "tpu"),
        ({"bands": [1, 2, 9]}, SceneError, "band 9"),
        ({"alpha": True}, SceneError, "no alpha band"),
    ],
)
def test_every_mistake_is_told_before_anything_is_written(
    make_scene: MakeScene,
    models: Models,
    tmp_path: Path,
    options: dict[str, Any],
    kind: type[GeosegError],
    complaint: str,
) -> None:
    made = make_scene()
    output = tmp_path / options.pop("output", "map.tif")
    model = options.pop("model", str(models()))
    scene = options.pop("scene", str(made.path))
    before = set(tmp_path.iterdir())
    with pytest.raises(kind, match=complaint):
        predict([scene], model, output, **({"device": "cpu"} | options))
    assert set(tmp_path.iterdir()) == before


def test_an_existing_output_is_kept_unless_overwritten(make_scene: MakeScene, models: Models, tmp_path: Path) -> None:
    made = make_scene()
    output = tmp_path / "map.tif"
    output.write_text("precious")
    with pytest.raises(OutputError, match="exists"):
        run(made, models(), output)
    assert output.read_text() == "precious"
    assert run(made, models(), output, overwrite=True).shape == made.valid.shape


def test_the_scene_itself_is_never_overwritten(make_scene: MakeScene, models: Models) -> None:
    made = make_scene()
    before = made.path.read_bytes()
    with pytest.raises(OutputError, match="also an input"):
        run(made, models(), made.path, overwrite=True)
    assert made.path.read_bytes() == before


@pytest.mark.parametrize("suffix", [".tif", ".gpkg"])
def test_a_corrupt_block_in_the_middle_leaves_nothing_behind(models: Models, tmp_path: Path, suffix: str) -> None:
    made = write_scene(tmp_path / "scene.tif", size=(300, 96))
    content = bytearray(made.path.read_bytes())
    middle = len(content) * 3 // 4
    content[middle : middle + 400] = bytes(400)
    made.path.write_bytes(content)
    with pytest.raises(SceneError, match="cannot be read in rows"):
        predict([str(made.path)], str(models()), tmp_path / f"map{suffix}", device="cpu")
    assert [p.name for p in tmp_path.iterdir()] == ["scene.tif"]


def test_metres_without_a_crs_are_refused(models: Models, tmp_path: Path) -> None:
    made = write_scene(tmp_path / "scene.tif", crs=None)
    rules = PolygonRules(simplify=Tolerance(1, "m"))
    with pytest.raises(ConfigError, match="CRS"):
        predict([str(made.path)], str(models()), tmp_path / "map.gpkg", device="cpu", rules=rules)
    assert [p.name for p in tmp_path.iterdir()] == ["scene.tif"]


# --- memory


def test_memory_does_not_grow_with_the_height(models: Models, tmp_path: Path) -> None:
    predictor = Predictor(load_model(models()), CPU)

    def peak(height: int) -> int:
        made = write_scene(tmp_path / f"{height}.tif", size=(height, 64))
        with Scene(made.path) as scene:
            plan = predictor.plan(scene)
            tracemalloc.start()
            rows = sum(len(r) for r in predicted_rows(predictor, scene, plan))
            _, top = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert rows == height
        return top

    peak(256)  # what is made once is made here
    low, high = peak(512), peak(4096)
    # numpy's arrays are traced; the scene's pixels alone grow by 688 KB. Windows on their way come and go.
    assert high < low + 200_000


PEAK = """
import resource, sys
from geoseg.programs.predict import predict
report = predict(*sys.argv[1:4], device="cpu", size=256, overlap=64, **eval(sys.argv[4]))
unit = 1 if sys.platform == "darwin" else 1024
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, report.plan.memory_bytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no resource module there")
@pytest.mark.parametrize(
    ("architecture", "options"),
    [("segnext", {"confidence": True}), ("unet", {"strip_cols": 2048, "probabilities": True})],
)
def test_a_wide_scene_takes_less_memory_than_planned(
    models: Models, tmp_path: Path, architecture: str, options: dict[str, Any]
) -> None:
    """Logits at 1/8 in one piece, and at full resolution in strips."""
    peaks = []
    for name, size in (("small", (256, 256)), ("wide", (300, 8_000))):
        made = write_scene(tmp_path / f"{name}.tif", size=size, blockxsize=256, blockysize=256)
        arguments = [str(made.path), str(models(architecture=architecture)), str(tmp_path / "map.tif"), repr(options)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        run = subprocess.run(
            [sys.executable, "-c", PEAK, *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        peaks.append([int(word) for word in run.stdout.split()])
        (tmp_path / "map.tif").unlink()
        for layer in tmp_path.glob("map_*.tif"):
            layer.unlink()
    (small, _), (wide, planned) = peaks
    assert wide - small < planned


def test_the_report_speaks_of_the_map(make_scene: MakeScene, models: Models, tmp_path: Path) -> None:
    made = make_scene(crs=None)
    report = predict([str(made.path)], str(models()), tmp_path / "map.tif", device="cpu")
    lines = report.lines()
    assert lines[0] == str(tmp_path / "map.tif")
    assert sum("class " in line for line in lines) == 4
    assert any(" px " in line and "96 × 80" in line for line in lines)
    assert "no CRS" in lines[-1]
    shares = [float(line.split()[-2]) for line in lines[1:5]]
    assert sum(shares) == pytest.approx(100, abs=0.3)
    assert report.mpx_per_s > 0


def test_the_report_tells_stages_seams_and_what_was_skipped(models: Models, tmp_path: Path) -> None:
    made = write_scene(tmp_path / "scene.tif", size=(150, 160))
    report = predict(made.path, models(), tmp_path / "map.tif", device="cpu", overlap=32)
    assert {"read", "network", "stitch", "write", "output"} == report.stages.keys()
    assert all(0 < share < 1 for share in report.shares.values())
    assert list(report.shares.values()) == sorted(report.shares.values(), reverse=True)
    assert sum(report.shares.values()) == pytest.approx(1)
    (told,) = [line for line in report.lines() if line.startswith("work: ")]
    assert sum(float(part.split()[-2]) for part in told.split(" · ")) == pytest.approx(100, abs=2.5)
    # 16 windows of 64 px whose neighbours share 32: all logits but those of the four corners lie in several
    assert report.seams.border + report.seams.inside > 0
    assert any("overlapping windows differ on" in line for line in report.lines())
    assert any("network" in line and " · " in line for line in report.lines())
    with rasterio.open(tmp_path / "map.tif") as file:
        tags = file.tags()
    assert tags["GEOSEG_SEAMS"].startswith("overlapping windows differ on")
    assert tags["GEOSEG_BLEND"] == "sine"
    assert tags["GEOSEG_SCENE"] == "scene.tif"


def test_a_dry_run_measures_and_writes_nothing(models: Models, tmp_path: Path) -> None:
    made = write_scene(tmp_path / "scene.tif", size=(150, 160), nodata="value")
    found = dry_run(
        made.path, models(), tmp_path / "map.tif", PredictOptions(network=Network(device="cpu", batch_size=2))
    )
    assert [p.name for p in tmp_path.iterdir()] == ["scene.tif"]
    assert found.plan.windows == 16
    assert found.window_seconds is not None
    assert found.window_seconds > 0
    text = "\n".join(found.lines())
    assert "windows    16 of 64 × 64 px" in text
    assert "Mpx/s" in text
    with pytest.raises(OutputError, match="does not exist"):
        dry_run(made.path, models(), tmp_path / "no" / "map.tif", PredictOptions())


def test_an_area_of_interest_is_mapped_as_if_it_had_no_border(models: Models, tmp_path: Path) -> None:
    made = write_scene(tmp_path / "scene.tif", size=(200, 240))
    whole = run(made, models(), tmp_path / "whole.tif")
    corners = [made.transform @ corner for corner in ((70, 60), (150, 60), (150, 120), (70, 120))]
    area = geopandas.GeoDataFrame(geometry=[shapely.Polygon(corners)], crs=made.crs)
    area.to_file(tmp_path / "area.gpkg")
    report = predict(made.path, models(), tmp_path / "part.tif", device="cpu", aoi=tmp_path / "area.gpkg")
    part = read(tmp_path / "part.tif")
    wanted = np.full_like(whole, NODATA)
    wanted[60:120, 70:150] = whole[60:120, 70:150]
    # Windows that do not touch the area are missing in the blend near its border, and nowhere else.
    np.testing.assert_array_equal(part == NODATA, wanted == NODATA)
    assert (part != wanted).mean() < 0.01
    assert report.skipped > 10


def test_the_models_pixels_can_be_made_on_the_way(models: Models, tmp_path: Path) -> None:
    made = write_scene(tmp_path / "scene.tif", size=(120, 100))
    coarse = make_model(tmp_path / "coarse", gsd_m=1.0)
    with pytest.raises(SceneError, match=r"pixels of 0.5 m, but the model was trained on 1 m"):
        predict(made.path, coarse, tmp_path / "map.tif", device="cpu")
    predict(made.path, coarse, tmp_path / "map.tif", device="cpu", gsd="model")
    assert read(tmp_path / "map.tif").shape == (60, 50)
    predict(made.path, coarse, tmp_path / "fine.tif", device="cpu", gsd=0.8)
    assert read(tmp_path / "fine.tif").shape == (75, 63)


@pytest.mark.parametrize("tta", ["flips", "d4"])
def test_augmentation_changes_little_and_not_what_is_nodata(models: Models, tmp_path: Path, tta: str) -> None:
    made = write_scene(tmp_path / "scene.tif", size=(100, 90), nodata="value")
    plain = run(made, models(), tmp_path / "plain.tif")
    found = run(made, models(), tmp_path / "tta.tif", tta=tta)
    np.testing.assert_array_equal(found == NODATA, plain == NODATA)
    assert 0 < (found != plain).mean() < 0.6
