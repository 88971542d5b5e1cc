from __future__ import annotations

import logging
import os
import pwd
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from shapely.geometry import box

from geoseg.classes import NODATA
from geoseg.config import TrainConfig, parse_config
from geoseg.data import histogram as module
from geoseg.data.histogram import BLOCK, Histogram, class_histogram, class_histograms, count_blocks, suggested_weights
from geoseg.data.labelled import LabelledScene
from geoseg.data.labels import process_files
from geoseg.windows import Window
from support.scenes import MadeScene, MakeScene

SIZE = (700, 530)  # three blocks by three, the last ones smaller


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "geoseg" / "histograms"


def settings(
    scene: Path, labels: Path, *, classes: int = 3, data: dict[str, Any] | None = None, **entry: Any
) -> TrainConfig:
    entries = [{"scene": str(scene), "labels": str(labels), **entry}]
    return parse_config(
        {
            "name": "test",
            "output": "run",
            "classes": [{"name": f"c{i}", "color": "#000000"} for i in range(classes)],
            "data": {"train": entries, "val": entries} if data is None else {"scenes": entries, **data},
            "train": {"size": 32},
            "window": {"size": 32, "overlap": 0},
            "augment": {"scale": [1, 1]},
        },
        source="test",
    )


def some_ids(size: tuple[int, int] = SIZE) -> npt.NDArray[np.uint8]:
    """Large regions of classes 0 and 1, a few pixels of class 2, and a corner to be ignored."""
    rng = np.random.default_rng(0)
    rows, cols = np.mgrid[0 : size[0], 0 : size[1]]
    ids = (rows // 90 + cols // 70) % 2
    ids[rng.integers(0, size[0], 9), rng.integers(0, size[1], 9)] = 2
    ids[:40, -30:] = NODATA
    return ids.astype(np.uint8)


def write_ids(path: Path, ids: npt.NDArray[np.uint8], made: MadeScene) -> Path:
    profile = {"height": ids.shape[0], "width": ids.shape[1], "count": 1, "dtype": "uint8", "compress": "deflate"}
    with rasterio.open(path, "w", driver="GTiff", crs=made.crs, transform=made.transform, **profile) as file:
        file.write(ids, 1)
    return path


def by_numpy(ids: npt.NDArray[np.uint8], value: int) -> npt.NDArray[np.int64]:
    rows, cols = (range(0, n, BLOCK) for n in ids.shape)
    return np.array([[(ids[r : r + BLOCK, c : c + BLOCK] == value).sum() for c in cols] for r in rows])


def assert_same(a: Histogram, b: Histogram) -> None:
    for key in ("counts", "ignored", "invalid"):
        np.testing.assert_array_equal(getattr(a, key), getattr(b, key))


# --- counts


def test_counts_are_numpys_in_every_block(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene(size=SIZE)
    ids = some_ids()
    config = settings(made.path, write_ids(tmp_path / "l.tif", ids, made))
    found = class_histogram(LabelledScene(config.data.train[0], config), config)
    assert found.counts.shape == (3, 3, 3) and found.counts.dtype == np.int64
    for value in range(3):
        np.testing.assert_array_equal(found.counts[:, :, value], by_numpy(ids, value))
    np.testing.assert_array_equal(found.ignored, by_numpy(ids, NODATA))
    assert not found.invalid.any()
    np.testing.assert_array_equal(found.total, np.bincount(ids.ravel())[:3])


@pytest.mark.parametrize("nodata", ["value", "mask"])
def test_pixels_without_imagery_are_counted_apart(make_scene: MakeScene, tmp_path: Path, nodata: str) -> None:
    made = make_scene(size=SIZE, nodata=nodata)
    ids = some_ids()
    config = settings(made.path, write_ids(tmp_path / "l.tif", ids, made))
    found = class_histogram(LabelledScene(config.data.train[0], config), config)
    seen = np.where(made.valid, ids, NODATA)
    for value in range(3):
        np.testing.assert_array_equal(found.counts[:, :, value], by_numpy(seen, value))
    assert found.invalid.sum() == (~made.valid & (ids != NODATA)).sum() > 1000
    assert found.ignored.sum() == (ids == NODATA).sum()


def test_polygons_count_as_the_labels_they_burn_to(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene(size=SIZE)
    left, top = made.transform.c, made.transform.f
    shapes = [box(left + 10, top - 200, left + 150, top - 20), box(left + 100, top - 330, left + 260, top - 140)]
    path = tmp_path / "l.gpkg"
    geopandas.GeoDataFrame({"kind": ["c1", "c2"]}, geometry=shapes, crs=made.crs).to_file(path)
    config = settings(made.path, path, attribute="kind", outside="c0")
    scene = LabelledScene(config.data.train[0], config)
    ids = scene.labels.read(Window(0, 0, *SIZE))
    found = class_histogram(scene, config)
    for value in range(3):
        np.testing.assert_array_equal(found.counts[:, :, value], by_numpy(ids, value))
    assert (found.total > 0).all()


def test_of_a_scene_cut_into_blocks_only_what_trains_counts(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene(size=SIZE)
    ids = some_ids()
    split = {"block": 96, "val_share": 0.3, "buffer": 10}
    config = settings(made.path, write_ids(tmp_path / "l.tif", ids, made), data={"split": split})
    scene = LabelledScene(config.data.scenes[0], config)
    assert scene.split is not None and len(scene.split.validation) > 5
    seen = ids.copy()
    for b in scene.split.validation:
        seen[max(b.row - 10, 0) : b.row_stop + 10, max(b.col - 10, 0) : b.col_stop + 10] = NODATA
    found = class_histogram(scene, config)
    np.testing.assert_array_equal(found.total, [(seen == value).sum() for value in range(3)])
    np.testing.assert_array_equal(found.ignored, by_numpy(seen, NODATA))


def test_all_ids_up_to_254_are_counted() -> None:
    labels = np.arange(256, dtype=np.uint8).repeat(4).reshape(32, 32)
    valid = labels != 7
    found = count_blocks(labels, valid, 255)
    assert found.counts[0, 0].tolist() == [4 * (value != 7) for value in range(255)]
    assert (int(found.ignored[0, 0]), int(found.invalid[0, 0])) == (4, 4)


# --- what is kept


@pytest.fixture
def kept(make_scene: MakeScene, tmp_path: Path) -> tuple[LabelledScene, TrainConfig, MadeScene]:
    made = make_scene(size=SIZE)
    config = settings(made.path, write_ids(tmp_path / "l.tif", some_ids(), made))
    return LabelledScene(config.data.train[0], config), config, made


Kept = tuple[LabelledScene, TrainConfig, MadeScene]


def test_the_second_time_nothing_is_counted(kept: Kept, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene, config, _ = kept
    first = class_histogram(scene, config)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(module, "read_labels", None)  # whoever counts now fails
    assert_same(class_histogram(scene, config), first)
    assert_same(class_histograms([scene, scene], config)[1], first)


def test_changed_labels_are_counted_anew(kept: Kept, cache: Path, tmp_path: Path) -> None:
    scene, config, made = kept
    class_histogram(scene, config)
    ids = np.zeros(SIZE, dtype=np.uint8)
    path = write_ids(tmp_path / "l.tif", ids, made)
    os.utime(path, ns=(1, 1))  # even by a clock that went back
    process_files().close(str(path))  # as another run would find it
    scene = LabelledScene(config.data.train[0], config)
    assert class_histogram(scene, config).total.tolist() == [ids.size, 0, 0]
    assert len(list(cache.iterdir())) == 2


def test_what_lies_beside_a_raster_of_labels_counts(kept: Kept, tmp_path: Path) -> None:
    scene, config, _ = kept
    assert class_histogram(scene, config).total[0]
    nothing = "<PAMDataset><PAMRasterBand band='1'><NoDataValue>0</NoDataValue></PAMRasterBand></PAMDataset>"
    (tmp_path / "l.tif.aux.xml").write_text(nothing)
    process_files().close(str(tmp_path / "l.tif"))  # as another run would find it
    scene = LabelledScene(config.data.train[0], config)
    assert class_histogram(scene, config).total[0] == 0


def test_a_folder_of_labels_changes_with_its_files(tmp_path: Path) -> None:
    (tmp_path / "labels.gdb").mkdir()
    (tmp_path / "labels.gdb" / "a0001.gdbtable").write_text("one")
    before = module._file_facts(tmp_path / "labels.gdb")
    os.utime(tmp_path / "labels.gdb" / "a0001.gdbtable", ns=(1, 1))
    assert module._file_facts(tmp_path / "labels.gdb") != before


def test_other_settings_are_other_counts(kept: Kept, cache: Path) -> None:
    scene, config, made = kept
    class_histogram(scene, config)
    more = settings(made.path, scene.config.labels, classes=4)
    assert class_histogram(LabelledScene(more.data.train[0], more), more).counts.shape[2] == 4
    first = config.model_copy(update={"data": config.data.model_copy(update={"first_label": 1})})
    shifted = class_histogram(LabelledScene(first.data.train[0], first), first)
    assert shifted.total[0] == class_histogram(scene, config).total[1]
    assert len(list(cache.iterdir())) == 3


def cut_short(path: Path, _: Histogram) -> None:
    path.write_bytes(path.read_bytes()[:200])


def of_another_program(path: Path, _: Histogram) -> None:
    path.write_bytes(b"not ours")


def with_other_counts(path: Path, found: Histogram) -> None:
    with np.load(path) as old:
        np.savez(path, key=old["key"], counts=found.counts + 1, ignored=found.ignored, invalid=found.invalid)


def of_another_scene(path: Path, found: Histogram) -> None:
    np.savez(path, key=np.array("another"), counts=found.counts, ignored=found.ignored, invalid=found.invalid)


def without_a_part(path: Path, found: Histogram) -> None:
    with np.load(path) as old:
        np.savez(path, key=old["key"], counts=found.counts)


@pytest.mark.parametrize("spoil", [cut_short, of_another_program, with_other_counts, of_another_scene, without_a_part])
def test_a_spoiled_file_is_counted_anew_and_replaced(
    kept: Kept, cache: Path, spoil: Callable[[Path, Histogram], None]
) -> None:
    scene, config, _ = kept
    first = class_histogram(scene, config)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    spoil(file, first)
    assert file.read_bytes() != whole
    assert_same(class_histogram(scene, config), first)
    assert list(cache.iterdir()) == [file]  # nothing else is left behind
    with np.load(file) as again:
        np.testing.assert_array_equal(again["counts"], first.counts)


def test_without_a_place_to_keep_it_counting_only_takes_time(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scene, config, _ = kept
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, logger="geoseg"):
        found = [class_histogram(scene, config) for _ in range(3)]
    assert found[2].total.sum() > 0
    assert len(caplog.records) == 1 and "cannot be cached" in caplog.text


def test_a_user_without_a_home_counts_all_the_same(kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene, config, _ = kept
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # as of an id that is in no list of users
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    assert class_histogram(scene, config).total.sum()
    assert len(list((tmp_path / "temporary" / "geoseg" / "histograms").iterdir())) == 1


# --- weights


def test_weights_are_the_median_frequency_over_a_classs_own() -> None:
    weights = suggested_weights([100, 200, 400, 0])
    np.testing.assert_allclose(weights[:3] / weights[1], [2, 1, 0.5])
    assert weights[:3].mean() == pytest.approx(1)
    assert weights[3] == 0


def test_a_class_of_a_few_pixels_does_not_rule() -> None:
    weights = suggested_weights([10**9, 10**6, 1])
    np.testing.assert_allclose(weights / weights[1], [0.1, 1, 10])
    assert suggested_weights([7]).tolist() == [1]
    assert suggested_weights([0, 0]).tolist() == [0, 0]
