from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import torch
from affine import Affine
from rasterio._env import get_gdal_config
from torch.utils.data import DataLoader

from geoseg.classes import NODATA, format_color
from geoseg.config import parse_config
from geoseg.config.settings import SceneConfig, TrainConfig
from geoseg.data.labelled import LabelledScene, open_scenes
from geoseg.data.labels import process_files
from geoseg.data.sampling import Sampler, _snapped, base_factor
from geoseg.data.split import TRAIN, VAL, SceneSplit
from geoseg.data.windows import CoveringWindows, RandomWindows
from geoseg.errors import ConfigError
from geoseg.grid import Grid
from geoseg.landscape import LANDSCAPE_CLASSES, Landscape, write_landscape
from geoseg.windows import Window
from support.scenes import MadeScene, MakeScene

STILL = {"scale": [1, 1], "brightness": 0, "contrast": 0, "hue": 0, "saturation": 0}
RARE = 2


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def settings(*entries: SceneConfig, data: dict[str, Any] | None = None, **changes: Any) -> TrainConfig:
    dumped = [e.model_dump() for e in entries]
    tables: dict[str, Any] = {
        "name": "test",
        "output": "run",
        "classes": [{"name": n, "color": "#000000"} for n in ("other", "field", "rare")],
        "data": {"train": dumped, "val": dumped} if data is None else {"scenes": dumped, **data},
        "augment": STILL,
        "window": {"size": 64, "overlap": 0},
    }
    train = {"size": 32, "max_class_share": 1.0} | changes.pop("train", {})
    return parse_config(tables | {"train": train} | changes, source="test")


def write_ids(path: Path, ids: npt.NDArray[np.uint8], made: MadeScene) -> Path:
    profile = {"height": ids.shape[0], "width": ids.shape[1], "count": 1, "dtype": "uint8", "compress": "deflate"}
    with rasterio.open(path, "w", driver="GTiff", crs=made.crs, transform=made.transform, **profile) as file:
        file.write(ids, 1)
    return path


def with_rare_spots(size: tuple[int, int], spots: list[tuple[int, int]]) -> npt.NDArray[np.uint8]:
    """Two classes in large fields, and the rare one in spots of 3 × 3 px."""
    rows, cols = np.mgrid[0 : size[0], 0 : size[1]]
    ids = ((rows // 64 + cols // 64) % 2).astype(np.uint8)
    for row, col in spots:
        ids[row : row + 3, col : col + 3] = RARE
    return ids


@pytest.fixture
def rare_entries(make_scene: MakeScene, tmp_path: Path) -> list[SceneConfig]:
    """Two scenes of 0.27 Mpx with 27 and 9 pixels of a rare class, some of it at the very edge."""
    entries = []
    for n, spots in enumerate([[(0, 0), (597, 300), (300, 447)], [(290, 290)]]):
        made = make_scene(size=(600, 450), seed=n)
        entries.append(
            SceneConfig(
                scene=made.path,
                labels=write_ids(tmp_path / f"ids{n}.tif", with_rare_spots((600, 450), spots), made),
            )
        )
    return entries


def places(dataset: RandomWindows, count: int) -> list[tuple[str, Window]]:
    return [dataset.place(i) for i in range(count)]


# --- windows around a class


@pytest.mark.parametrize("share", [0.2, 0.6, 1.0])
def test_a_rare_class_is_seen_as_often_as_asked(rare_entries: list[SceneConfig], share: float) -> None:
    def seen(**train: Any) -> float:
        config = settings(*rare_entries, train=train)
        dataset = RandomWindows(open_scenes(config, "train"), config, length=200)
        return sum(bool((dataset[i]["labels"] == RARE).any()) for i in range(200)) / 200

    # Drawn anywhere, one window of a hundred sees it: the 36 pixels lie in 4 spots.
    assert seen() < 0.06
    found = seen(class_shares={"rare": share})
    noise = 3 * np.sqrt(share * (1 - share) / 200)
    assert share - noise <= found <= share + noise + 0.06


def test_balanced_windows_see_every_class_alike(rare_entries: list[SceneConfig]) -> None:
    config = settings(*rare_entries, train={"class_shares": "balanced"})
    sampler = Sampler(open_scenes(config, "train"), config)
    chosen = np.bincount([sampler._choose_class(np.random.default_rng(i)) for i in range(3000)], minlength=3)
    assert (np.abs(chosen / 3000 - 1 / 3) < 0.03).all()


def test_every_pixel_of_the_class_is_as_likely(rare_entries: list[SceneConfig]) -> None:
    config = settings(*rare_entries, train={"class_shares": {"rare": 1.0}})
    drawn = [name for name, _ in places(RandomWindows(open_scenes(config, "train"), config, length=400), 400)]
    assert abs(drawn.count(str(rare_entries[0].scene)) / 400 - 27 / 36) < 0.08
    config = settings(*rare_entries, train={"class_shares": {"rare": 1.0}, "draw": "scenes"})
    drawn = [name for name, _ in places(RandomWindows(open_scenes(config, "train"), config, length=400), 400)]
    assert abs(drawn.count(str(rare_entries[0].scene)) / 400 - 1 / 2) < 0.08


@pytest.mark.parametrize("align", [False, True])
def test_the_class_lies_in_the_middle_half_of_its_window(make_scene: MakeScene, tmp_path: Path, align: bool) -> None:
    made = make_scene(size=(600, 450), blockxsize=16, blockysize=16)
    spot = (303, 211)
    labels = write_ids(tmp_path / "ids.tif", with_rare_spots((600, 450), []), made)
    with rasterio.open(labels, "r+") as file:
        file.write(np.full((1, 1), RARE, dtype=np.uint8), 1, window=((spot[0], spot[0] + 1), (spot[1], spot[1] + 1)))
    entry = SceneConfig(scene=made.path, labels=labels)
    config = settings(entry, train={"size": 64, "class_shares": {"rare": 1.0}, "align_blocks": align})
    dataset = RandomWindows(open_scenes(config, "train"), config, length=200)
    offsets = np.array([(spot[0] - w.row, spot[1] - w.col) for _, w in places(dataset, 200)])
    assert offsets.min() >= (8 if align else 16) and offsets.max() < (56 if align else 48)
    if not align:
        assert all(len(np.unique(axis)) > 25 for axis in offsets.T)  # of 32 places


def test_a_dominated_window_is_redrawn_with_its_class(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene(size=(600, 450))
    ids = np.zeros((600, 450), dtype=np.uint8)
    ids[:, 300:] = RARE  # windows of 32 px are pure but for those on the border
    entry = SceneConfig(scene=made.path, labels=write_ids(tmp_path / "ids.tif", ids, made))

    def windows(most: float) -> list[torch.Tensor]:
        config = settings(entry, train={"class_shares": {"rare": 1.0}, "max_class_share": most})
        dataset = RandomWindows(open_scenes(config, "train"), config, length=100)
        return [dataset[i]["labels"] for i in range(100)]

    asked, free = windows(0.75), windows(1.0)
    assert all((labels == RARE).any() for labels in asked + free)
    mixed = [sum(len(labels.unique()) > 1 for labels in found) for found in (asked, free)]
    assert mixed[0] > 2 * mixed[1] > 0


def test_classes_that_occur_nowhere_are_named(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene(size=(96, 80))
    labels = write_ids(tmp_path / "ids.tif", np.zeros((96, 80), dtype=np.uint8), made)
    entry = SceneConfig(scene=made.path, labels=labels)
    for shares in ("balanced", {"rare": 0.1, "field": 0.1, "other": 0.1}):
        config = settings(entry, train={"class_shares": shares})
        with pytest.raises(ConfigError) as caught:
            RandomWindows(open_scenes(config, "train"), config, length=1)
        assert {"rare", "field"} <= set(caught.value.message.replace(",", "").split())
        assert "of other" in str(caught.value.hint)


def test_invalid_pixels_of_a_class_are_not_looked_for(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene(size=(600, 450), nodata="mask")
    assert not made.valid[5, 5] and made.valid[500, 400]
    labels = write_ids(tmp_path / "ids.tif", with_rare_spots((600, 450), [(5, 5), (50, 30), (500, 400)]), made)
    entry = SceneConfig(scene=made.path, labels=labels)
    config = settings(entry, train={"class_shares": {"rare": 1.0}})
    dataset = RandomWindows(open_scenes(config, "train"), config, length=30)
    assert all(w.row < 503 <= w.row_stop + 3 for _, w in places(dataset, 30))
    assert all((dataset[i]["labels"] == RARE).any() for i in range(30))


def test_where_only_an_area_is_labelled_windows_lie_there(make_scene: MakeScene, tmp_path: Path) -> None:
    import geopandas
    from shapely.geometry import box

    made = make_scene(size=(600, 450))
    labels = write_ids(tmp_path / "ids.tif", with_rare_spots((600, 450), [(300, 200)]), made)
    left, top = made.transform @ (200, 300)
    frame = geopandas.GeoDataFrame(geometry=[box(left, top - 20, left + 20, top)], crs=made.crs)  # 40 × 40 px
    frame.to_file(tmp_path / "area.gpkg")
    entry = SceneConfig(scene=made.path, labels=labels, labelled_area=tmp_path / "area.gpkg")
    config = settings(entry)
    dataset = RandomWindows(open_scenes(config, "train"), config, length=40)
    known = [int((dataset[i]["labels"] != NODATA).sum()) for i in range(40)]
    assert min(known) > 0 and np.mean(known) > 0.5 * 32 * 32
    assert len(set(places(dataset, 40))) > 35


# --- a function of the seed and the place in the run alone


@pytest.mark.parametrize("train", [{"class_shares": {"rare": 0.5}, "max_class_share": 0.75}, {"draw": "scenes"}])
def test_windows_depend_on_seed_and_place_alone(rare_entries: list[SceneConfig], train: dict[str, Any]) -> None:
    config = settings(*rare_entries, train=train)
    scenes = open_scenes(config, "train")
    whole = RandomWindows(scenes, config, length=20)
    resumed = RandomWindows(open_scenes(config, "train"), config, length=20, start=7)
    for i in (4, 0, 11):  # in any order
        assert all(torch.equal(whole[7 + i][key], value) for key, value in resumed[i].items())
        assert whole.place(7 + i) == resumed.place(int(resumed[i]["index"]))
    # Forked after files were read here: the workers must open their own.
    for n, batch in enumerate(DataLoader(whole, batch_size=5, num_workers=2, multiprocessing_context="fork")):
        for k in range(5):
            assert all(torch.equal(batch[key][k], value) for key, value in whole[5 * n + k].items())


def test_an_item_tells_where_it_lies(rare_entries: list[SceneConfig]) -> None:
    config = settings(*rare_entries, augment=STILL | {"dihedral": False})
    scenes = {str(s.config.scene): s for s in open_scenes(config, "train")}
    random = RandomWindows(list(scenes.values()), config, length=9)
    for dataset in (random, CoveringWindows(list(scenes.values()), config)):
        item = dataset[8]
        name, window = dataset.place(int(item["index"]))
        pixels, valid, _ = scenes[name].read(window)
        np.testing.assert_allclose(item["pixels"], pixels / 255, atol=1e-6)
        np.testing.assert_array_equal(item["valid"], valid)


def test_bytes_times_the_scale_are_the_pixels(rare_entries: list[SceneConfig]) -> None:
    config = settings(*rare_entries, augment={})
    scenes = open_scenes(config, "train")
    for make in (
        lambda **o: RandomWindows(scenes, config, length=3, **o),
        lambda **o: CoveringWindows(scenes, config, **o),
    ):
        for i in range(3):
            scaled, raw = make()[i], make(as_bytes=True)[i]
            assert raw["pixels"].dtype == torch.uint8
            assert torch.equal(raw["pixels"] * config.imagery.effective_scale, scaled["pixels"])
            assert torch.equal(raw["labels"], scaled["labels"])


# --- zoom


def sides(entry: SceneConfig, **augment: Any) -> npt.NDArray[np.int64]:
    config = settings(entry, augment=STILL | augment, train={"size": 64})
    dataset = RandomWindows(open_scenes(config, "train"), config, length=600)
    return np.array([w.height for _, w in places(dataset, 600)])


def test_zooms_are_spread_over_ratios_or_differences(rare_entries: list[SceneConfig]) -> None:
    by_ratio = 64 / sides(rare_entries[0], scale=[0.5, 2.0])
    by_difference = 64 / sides(rare_entries[0], scale=[0.5, 2.0], scale_sampling="uniform")
    assert abs((by_ratio < 1).mean() - 1 / 2) < 0.08
    assert abs((by_difference < 1).mean() - 1 / 3) < 0.08
    for zooms in (by_ratio, by_difference):
        assert zooms.min() < 0.55 and zooms.max() > 1.9


@pytest.mark.parametrize("size", [(300, 450), (450, 300), (600, 610)])
def test_a_base_size_fits_the_whole_image_first(make_scene: MakeScene, tmp_path: Path, size: tuple[int, int]) -> None:
    made = make_scene(size=size)
    entry = SceneConfig(scene=made.path, labels=write_ids(tmp_path / "ids.tif", with_rare_spots(size, []), made))
    # As mmsegmentation's Resize does: both sides by the factor with which the image just fits.
    long, short = 512, 128
    factor = min(long / max(size), short / min(size))
    assert base_factor(Grid(*size, Affine.identity(), None), settings(entry).augment) == 1
    assert set(sides(entry, base_size=[long, short])) == {round(64 / factor)}
    assert set(sides(entry, base_size=[long, short], base_zoom=0.5)) == {round(64 / (factor / 2))}
    assert set(sides(entry, base_zoom=1.25)) == {round(64 / 1.25)}
    assert min(size) * factor == pytest.approx(short) or max(size) * factor == pytest.approx(long)


# --- blocks of the file


def touched(window: Window, block: tuple[int, int]) -> int:
    rows = (window.row_stop - 1) // block[0] - window.row // block[0] + 1
    return rows * ((window.col_stop - 1) // block[1] - window.col // block[1] + 1)


@pytest.mark.parametrize(
    ("layout", "aligned"),
    [
        ({"blockxsize": 16, "blockysize": 16}, (True, True)),
        ({"blockxsize": 32, "blockysize": 16}, (True, True)),
        ({"blockxsize": 64, "blockysize": 64}, (False, False)),  # as large as the window: too few places
        ({"tiled": False, "blockxsize": None, "blockysize": 8}, (True, False)),  # strips
    ],
)
def test_windows_begin_where_small_blocks_do(
    make_scene: MakeScene, tmp_path: Path, layout: dict[str, Any], aligned: tuple[bool, bool]
) -> None:
    layout = {key: value for key, value in layout.items() if value is not None}
    if not layout.get("tiled", True):
        layout["blockxsize"] = 450  # one strip is a row of the file
    made = make_scene(size=(600, 450), **layout)
    entry = SceneConfig(scene=made.path, labels=write_ids(tmp_path / "i.tif", with_rare_spots((600, 450), []), made))

    def drawn(align: bool) -> list[Window]:
        config = settings(entry, train={"size": 64, "align_blocks": align})
        return [w for _, w in places(RandomWindows(open_scenes(config, "train"), config, length=300), 300)]

    with rasterio.open(made.path) as file:
        block = file.block_shapes[0]
    starts = np.array([(w.row, w.col) for w in drawn(True)])
    for axis, length in enumerate((600, 450)):
        on_block = (starts[:, axis] % block[axis] == 0) | (starts[:, axis] == length - 64)
        assert on_block.all() == aligned[axis]
        assert len(np.unique(starts[:, axis])) > 5
        assert starts[:, axis].min() >= 0 and starts[:, axis].max() <= length - 64
    if all(aligned):
        with_and_without = [np.mean([touched(w, block) for w in drawn(a)]) for a in (True, False)]
        assert with_and_without[0] < 0.8 * with_and_without[1]


@pytest.mark.parametrize("length", [33, 70, 96, 107])
def test_aligned_windows_reach_both_ends_by_half_blocks(length: int) -> None:
    last = length - 32
    moved = {start: _snapped(start, 32, length, 16) for start in range(last + 1)}
    assert moved[0] == 0 and moved[last] == last
    assert all(abs(start - to) <= 8 for start, to in moved.items())
    assert set(moved.values()) == {*range(0, last + 1, 16), last}
    assert all(_snapped(start, 31, length, 16) == start for start in range(last))  # blocks above half a window


def test_gdal_keeps_no_more_than_its_limit(rare_entries: list[SceneConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(*rare_entries, train={"cache_mb": 3})
    dataset = RandomWindows(open_scenes(config, "train"), config, length=3)
    limits: list[Any] = []
    read = LabelledScene.read

    def noting(scene: LabelledScene, *args: Any) -> Any:
        limits.append(int(get_gdal_config("GDAL_CACHEMAX")))
        return read(scene, *args)

    monkeypatch.setattr(LabelledScene, "read", noting)
    before = get_gdal_config("GDAL_CACHEMAX")
    for dataset_ in (dataset, CoveringWindows(dataset.scenes, config)):
        dataset_[0]
    assert limits == [3 << 20, 3 << 20]
    assert get_gdal_config("GDAL_CACHEMAX") == before


# --- scenes cut into blocks


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A generated landscape cut into blocks, of which a third validates."""
    folder = tmp_path_factory.mktemp("cut")
    write_landscape(Landscape(640, 500, seed=3), folder / "s.tif", labels_path=folder / "l.tif", block=16)
    return parse_config(
        {
            "name": "test",
            "output": "run",
            "classes": [{"name": c.name, "color": format_color(c.color)} for c in LANDSCAPE_CLASSES],
            "data": {
                "scenes": [{"scene": str(folder / "s.tif"), "labels": str(folder / "l.tif")}],
                "split": {"block": 128, "val_share": 0.3, "buffer": 8},
            },
            "augment": STILL | {"scale": [0.5, 2.0]},
            "train": {"size": 64, "max_class_share": 0.75},
            "window": {"size": 64, "overlap": 0},
        },
        source="test",
    )


@pytest.mark.parametrize("shares", [None, "most"])
def test_no_training_window_comes_near_a_validation_block(cut: TrainConfig, shares: str | None) -> None:
    if shares is not None:
        scenes = open_scenes(cut, "train")
        here = RandomWindows(scenes, cut, length=1)._sampler.scenes[0].labels.read(Window(0, 0, 640, 500))
        common = [c.name for c in LANDSCAPE_CLASSES if (here == c.id).mean() > 0.02]
        train = cut.train.model_copy(update={"class_shares": {name: 0.9 / len(common) for name in common}})
        cut = cut.model_copy(update={"train": train})
    scenes = open_scenes(cut, "train")
    split = scenes[0].split
    assert split is not None and len(split.validation) >= 4
    dataset = RandomWindows(scenes, cut, length=150)
    taken = np.zeros((640, 500), dtype=bool)
    for b in split.validation:
        taken[max(b.row - 8, 0) : b.row_stop + 8, max(b.col - 8, 0) : b.col_stop + 8] = True
    for _, w in places(dataset, 150):
        assert split.allows(w)
        assert not taken[w.row : w.row_stop, w.col : w.col_stop].any()
    assert len({w for _, w in places(dataset, 150)}) > 100


def test_a_class_that_no_window_can_hold_is_named(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene(size=(320, 288))
    # Between two validation blocks 96 px apart, strips of 24 px of which train nothing: 48 px, and windows have 64.
    edges, roles = np.array([0, 96, 192, 288]), np.full((3, 3), TRAIN, dtype=np.int8)
    roles[0, [0, 2]] = VAL
    split = SceneSplit(np.array([0, 96, 192, 320]), edges, roles, 24)

    def windows(spot: tuple[int, int]) -> RandomWindows:
        labels = write_ids(tmp_path / f"{spot[0]}.tif", with_rare_spots((320, 288), [spot]), made)
        entry = SceneConfig(scene=made.path, labels=labels)
        train = {"size": 64, "class_shares": {"rare": 1.0}}
        config = settings(entry, data={"split": {"block": 96, "val_share": 0.2, "buffer": 24}}, train=train)
        scene = LabelledScene(entry, config)
        scene.split = split
        return RandomWindows([scene], config, length=50)

    assert split.covers("train", Window(3, 140, 3, 3)).all()
    with pytest.raises(ConfigError, match="that contains class rare"):
        windows((3, 140))
    # Just below them it is seen, though only at the upper edge of windows.
    dataset = windows((125, 140))
    assert all((dataset[i]["labels"] == RARE).any() for i in range(50))
    assert {w.row for _, w in places(dataset, 50)} <= set(range(120, 128))


def test_validation_windows_cover_validation_blocks_alone(cut: TrainConfig) -> None:
    scenes = open_scenes(cut, "val")
    split = scenes[0].split
    assert split is not None
    dataset = CoveringWindows(scenes, cut)
    counted = np.zeros((640, 500), dtype=int)
    for i in range(len(dataset)):
        item, (_, w) = dataset[i], dataset.place(i)
        assert item["pixels"].shape == (3, 64, 64) and int(item["index"]) == i
        rows, cols = np.nonzero(item["labels"].numpy() != NODATA)
        counted[rows + w.row, cols + w.col] += 1
    wanted = np.zeros((640, 500), dtype=int)
    for b in split.validation:
        wanted[b.row : b.row_stop, b.col : b.col_stop] = 1
    wanted[scenes[0].labels.read(Window(0, 0, 640, 500)) == NODATA] = 0
    np.testing.assert_array_equal(counted, wanted)


# --- many scenes


@dataclass
class Photograph:
    """What the data set asks of a labelled scene before it reads."""

    grid: Grid
    config: SceneConfig = field(default_factory=lambda: SceneConfig(scene=Path("a.jpg"), labels=Path("a.png")))
    split: None = None


def test_a_data_set_of_20_000_scenes_is_made_at_once(rare_entries: list[SceneConfig]) -> None:
    scenes: list[Any] = [Photograph(Grid(400 + i % 100, 500, Affine.identity(), None)) for i in range(20_000)]
    start = time.perf_counter()
    dataset = RandomWindows(scenes, settings(*rare_entries, train={"align_blocks": False}), length=1)
    assert time.perf_counter() - start < 2  # 0.03 s on a quiet machine
    drawn = [dataset._sampler._anywhere(np.random.default_rng(i))[0] for i in range(500)]
    assert len(set(drawn)) > 450 and max(drawn) > 19_000


def test_few_files_stay_open_however_many_scenes(make_scene: MakeScene, tmp_path: Path) -> None:
    entries = []
    for n in range(140):
        made = make_scene(size=(40, 40), seed=n)
        labels = write_ids(tmp_path / f"i{n}.tif", with_rare_spots((40, 40), [(n % 30, 3)]), made)
        entries.append(SceneConfig(scene=made.path, labels=labels))
    config = settings(*entries, train={"draw": "scenes"})
    dataset = RandomWindows(open_scenes(config, "train"), config, length=300)
    for i in range(300):
        dataset._sampler.draw(np.random.default_rng(i))
    for scene in dataset.scenes:
        scene.read(Window(0, 0, 8, 8))
    assert process_files().idle <= 128
    open_now = [p for p in Path("/proc/self/fd").iterdir() if str(tmp_path) in str(p.resolve())]
    assert len(open_now) <= 128
