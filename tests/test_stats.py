from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import yaml

from geoseg.classes import NODATA
from geoseg.config import TrainConfig, load_config, parse_config
from geoseg.data import statistics as module
from geoseg.data.histogram import suggested_weights
from geoseg.data.labelled import LabelledScene
from geoseg.data.statistics import Moments, ValueCounts, band_statistics
from geoseg.errors import ConfigError, SceneError
from geoseg.programs.stats import scene_stats
from geoseg.scene import Scene
from support import commands
from support.scenes import MadeScene, MakeScene

CLASSES = ("other", "field", "house", "none")
SIZES = [(600, 340), (270, 530)]


def write_ids(path: Path, ids: npt.NDArray[np.uint8], made: MadeScene) -> Path:
    profile = {"height": ids.shape[0], "width": ids.shape[1], "count": 1, "dtype": "uint8", "compress": "deflate"}
    with rasterio.open(path, "w", driver="GTiff", crs=made.crs, transform=made.transform, **profile) as file:
        file.write(ids, 1)
    return path


def some_ids(size: tuple[int, int], seed: int) -> npt.NDArray[np.uint8]:
    rows, cols = np.mgrid[0 : size[0], 0 : size[1]]
    ids = ((rows // 40 + cols // 50) % 2).astype(np.uint8)
    if seed:
        ids[200:203, 230:233] = 2  # one scene alone has houses
    ids[:, -20:] = NODATA
    return ids


def settings(
    mades: list[MadeScene], folder: Path, *, bands: int, dtype: str, data: dict[str, Any] | None = None, **more: Any
) -> tuple[TrainConfig, list[npt.NDArray[np.uint8]]]:
    ids = [some_ids(m.valid.shape, n) for n, m in enumerate(mades)]
    entries = [
        {"scene": str(m.path), "labels": str(write_ids(folder / f"ids{n}.tif", i, m))}
        for n, (m, i) in enumerate(zip(mades, ids, strict=True))
    ]
    config = {
        "name": "test",
        "output": "run",
        "classes": [{"name": n, "color": "#000000"} for n in CLASSES],
        "imagery": {"bands": [f"b{i}" for i in range(bands)], "dtype": dtype},
        "data": {"train": entries[:1], "val": entries[1:]} if data is None else {"scenes": entries, **data},
        "train": {"size": 32},
        "augment": {"scale": [1, 1]},
        "window": {"size": 32, "overlap": 0},
        **more,
    }
    if data is None and len(entries) > 1:
        config["data"] = {"train": entries, "val": entries}
    return parse_config(config, source="test"), ids


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:4326", None])
@pytest.mark.parametrize(
    ("dtype", "bands", "nodata"),
    [("uint8", 3, "mask"), ("uint16", 4, "value"), ("int16", 1, "none"), ("float32", 2, "nan")],
)
def test_everything_is_numpys(
    make_scene: MakeScene, tmp_path: Path, dtype: str, bands: int, nodata: str, crs: str | None
) -> None:
    mades = [make_scene(dtype=dtype, bands=bands, nodata=nodata, size=s, seed=n, crs=crs) for n, s in enumerate(SIZES)]
    config, ids = settings(mades, tmp_path, bands=bands, dtype=dtype)
    found = scene_stats(config)
    known = [np.where(m.valid, i, NODATA) for m, i in zip(mades, ids, strict=True)]
    pixels = sum(i.size for i in ids)
    total = np.array([sum(int((k == c).sum()) for k in known) for c in range(4)])
    assert (found.split, found.scenes, found.pixels, found.blocks) == ("train", 2, pixels, 6 + 6)
    assert found.class_pixels.tolist() == total.tolist()
    np.testing.assert_allclose(found.shares, total / total.sum())
    assert found.nodata == sum(int((~m.valid).sum()) for m in mades) / pixels
    assert (
        found.ignored == sum(int((m.valid & (k == NODATA)).sum()) for m, k in zip(mades, known, strict=True)) / pixels
    )
    assert found.class_scenes.tolist() == [2, 2, 1, 0]
    blocks = [
        sum(
            (k[r : r + 256, c : c + 256] == value).any()
            for k in known
            for r in range(0, k.shape[0], 256)
            for c in range(0, k.shape[1], 256)
        )
        for value in range(4)
    ]
    assert found.class_blocks.tolist() == blocks
    np.testing.assert_allclose(found.weights, suggested_weights(total))
    if crs is None:
        assert found.hectares is None
    else:
        areas = [Scene(m.path).grid.pixel_area_m2()[:, None] / 1e4 for m in mades]
        wanted = [sum(float(((k == c) * a).sum()) for k, a in zip(known, areas, strict=True)) for c in range(4)]
        np.testing.assert_allclose(found.hectares, wanted, rtol=1e-12)
    values = np.concatenate([m.pixels[:, m.valid] for m in mades], axis=1)
    exact = values.astype(np.float64)
    np.testing.assert_array_equal([found.minimum, found.maximum], [values.min(axis=1), values.max(axis=1)])
    for share, column in (2, found.low), (98, found.high):
        np.testing.assert_array_equal(column, np.percentile(values, share, axis=1, method="inverted_cdf"))
    np.testing.assert_allclose(found.moments.mean, exact.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(found.moments.std, exact.std(axis=1), rtol=1e-12)


def test_of_scenes_cut_into_blocks_each_split_counts_its_own(make_scene: MakeScene, tmp_path: Path) -> None:
    mades = [make_scene(size=(600, 340), nodata="mask", bands=1)]
    data = {"split": {"block": 96, "val_share": 0.3, "buffer": 12}}
    config, (ids,) = settings(mades, tmp_path, bands=1, dtype="uint8", data=data)
    split = LabelledScene(config.data.scenes[0], config).split
    assert split is not None
    validates, near = np.zeros((2, 600, 340), dtype=bool)
    for b in split.validation:
        validates[b.row : b.row_stop, b.col : b.col_stop] = True
        near[max(b.row - 12, 0) : b.row_stop + 12, max(b.col - 12, 0) : b.col_stop + 12] = True
    for name, part in (("train", ~near), ("val", validates)):
        found, seen = scene_stats(config, name), part & mades[0].valid
        assert found.pixels == part.sum() and 0 < part.mean() < 0.8
        assert found.class_pixels.tolist() == [int((seen & (ids == c)).sum()) for c in range(4)]
        assert found.nodata == (part & ~mades[0].valid).sum() / part.sum()
        assert found.moments.mean[0] == pytest.approx(mades[0].pixels[0][seen].mean(), rel=1e-12)
    mean, _ = band_statistics([LabelledScene(config.data.scenes[0], config)], 1.0)
    assert mean[0] == pytest.approx(mades[0].pixels[0][~near & mades[0].valid].mean(), abs=1e-5)


# --- means


def test_a_large_offset_costs_no_digits(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene(dtype="float32", bands=1, nodata="nan", size=(600, 340))
    rng = np.random.default_rng(0)
    pixels = np.where(made.valid, 2e6 + rng.normal(0, 1, (600, 340)), np.nan).astype(np.float32)
    with rasterio.open(made.path, "r+") as file:
        file.write(pixels[None])
    config, _ = settings([made], tmp_path, bands=1, dtype="float32", data={"split": {"block": 32, "val_share": 0.01}})
    scene = LabelledScene(config.data.scenes[0], config)
    scene.split = None
    mean, std = band_statistics([scene] * 3, 1.0)
    exact = pixels[made.valid].astype(np.float64)
    assert mean[0] == pytest.approx(exact.mean(), rel=1e-12)
    assert std[0] == pytest.approx(exact.std(), rel=1e-6)
    naive = np.sqrt(abs((pixels[made.valid] ** 2).mean() - pixels[made.valid].mean() ** 2))
    assert abs(naive - exact.std()) > 0.1  # what is avoided


def test_moments_of_parts_add_up_in_any_cut() -> None:
    rng = np.random.default_rng(1)
    values = 1e7 + rng.normal(0, 3, (2, 1000))
    for cuts in ([], [1], [10, 10, 500], range(0, 1000, 7)):
        parts = np.split(values, list(cuts), axis=1)
        found = Moments.none(2)
        for part in parts:
            found += Moments.of(part)
        assert found.count == 1000
        np.testing.assert_allclose(found.mean, values.mean(1), rtol=1e-14)
        np.testing.assert_allclose(found.std, values.std(1), rtol=1e-9)
    assert Moments.none(2).std.tolist() == [0, 0]


def test_infinite_values_are_reported(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene(dtype="float32", bands=1, size=(64, 64))
    with rasterio.open(made.path, "r+") as file:
        file.write(np.full((1, 1, 1), np.inf, dtype=np.float32), window=((3, 4), (5, 6)))
    config, _ = settings([made, made], tmp_path, bands=1, dtype="float32")
    for count in (
        lambda: scene_stats(config),
        lambda: band_statistics([LabelledScene(config.data.train[0], config)], 1),
    ):
        with pytest.raises(SceneError, match="infinite values") as caught:
            count()
        assert str(made.path) in caught.value.message


def test_without_a_valid_pixel_there_is_nothing_to_tell(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene(nodata="value", bands=1, size=(64, 64))
    with rasterio.open(made.path, "r+") as file:
        file.write(np.zeros((1, 64, 64), dtype=np.uint8))
    config, _ = settings([made, made], tmp_path, bands=1, dtype="uint8")
    scenes = [LabelledScene(entry, config) for entry in config.data.train]
    for count in (lambda: scene_stats(config), lambda: band_statistics(scenes, 1)):
        with pytest.raises(SceneError, match="no pixel is valid in 2 scenes") as caught:
            count()
        assert str(made.path) in caught.value.message and "imagery.nodata" in str(caught.value.hint)


def test_a_constant_band_is_suggested_as_training_measures_it(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene(bands=2, size=(64, 64))
    with rasterio.open(made.path, "r+") as file:
        file.write(np.full((64, 64), 7, dtype=np.uint8), 2)
    config, _ = settings([made], tmp_path, bands=2, dtype="uint8", data={"split": {"block": 32, "buffer": 0}})
    _, std = band_statistics([LabelledScene(entry, config) for entry in config.data.scenes], 1 / 255)
    assert std[1] == 1
    first, second = scene_stats(config).overrides[-1].removeprefix("imagery.std=[").removesuffix("]").split(",")
    assert float(first) == pytest.approx(std[0], rel=1e-4) and second == "1"


def test_of_very_many_scenes_some_are_read(
    make_scene: MakeScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mades = [make_scene(size=(40, 40), bands=1, seed=n) for n in range(9)]
    config, _ = settings(mades, tmp_path, bands=1, dtype="uint8")
    monkeypatch.setattr(module, "MAX_SCENES", 3)
    mean, _ = band_statistics([LabelledScene(entry, config) for entry in config.data.train], 1.0)
    assert mean[0] == pytest.approx(np.mean([mades[n].pixels.mean() for n in (0, 4, 8)]), abs=1e-5)


# --- percentiles


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_percentiles_are_exact_order_statistics(dtype: str) -> None:
    rng = np.random.default_rng(2)
    spread = rng.normal(0, 1, (2, 999)) * [[20], [3]] + [[90], [-7]]
    if dtype == "float32":
        spread[0] = np.concatenate([1e6 + rng.normal(0, 1e-1, 500), -np.exp(rng.normal(0, 9, 498)), [-0.0]])
    values = np.clip(spread, *((0, 250) if dtype[0] == "u" else (-1e30, 1e30))).astype(dtype)
    counts, shares = ValueCounts(np.dtype(dtype), 2), (0.0, 0.001, 0.02, 0.5, 0.98, 1.0)
    for part in np.split(values, [3, 500], axis=1):
        counts.add(part)
    if not counts.is_exact:
        counts.refine(shares)
        for part in np.split(values, [700], axis=1):
            counts.add_fine(part)
    for share in shares:
        wanted = np.percentile(values, 100 * share, axis=1, method="inverted_cdf")
        np.testing.assert_array_equal(counts.percentile(share), wanted.astype(np.float64))


def test_without_a_pixel_there_is_no_percentile() -> None:
    assert np.isnan(ValueCounts(np.dtype("uint8"), 2).percentile(0.5)).all()


# --- the verb


def test_the_verb_prints_tables_and_settings_that_train_takes(make_scene: MakeScene, tmp_path: Path) -> None:
    mades = [make_scene(size=s, seed=n, nodata="mask") for n, s in enumerate(SIZES)]
    config, _ = settings(mades, tmp_path, bands=3, dtype="uint8")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    result = commands.run("stats", str(path))
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("train: 2 scenes, 0.3471 Mpx, 12 blocks of 256 px; ")
    house = next(line.split() for line in lines if line.startswith("2 house"))
    assert house[2] == "9" and house[5:7] == ["1", "1"]
    assert [line.split()[0] for line in lines if line.startswith("b") and "min" not in line] == ["b0", "b1", "b2"]
    found = scene_stats(config)
    assert house[3] == f"{found.shares[2]:.3%}"
    fixed = load_config(path, shlex.split(lines[-1]))
    assert fixed.train.class_weights == pytest.approx(found.weights, rel=1e-4)
    assert fixed.imagery.mean == pytest.approx(found.moments.mean / 255, rel=1e-4)
    assert fixed.imagery.std == pytest.approx(found.moments.std / 255, rel=1e-4)
    assert "to train" not in commands.run("stats", str(path), "--split", "val").stdout
    wrong = commands.run("stats", str(path), "--split", "test")
    assert wrong.exit_code == 2 and "'val', 'train'" in wrong.stderr


def test_another_split_is_refused(make_scene: MakeScene, tmp_path: Path) -> None:
    mades = [make_scene(size=(64, 64))]
    config, _ = settings([*mades, *mades], tmp_path, bands=3, dtype="uint8")
    with pytest.raises(ConfigError, match="unknown split 'test'"):
        scene_stats(config, "test")
