from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import pyogrio
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

from geoseg.classes import NODATA
from geoseg.config import parse_config
from geoseg.config.settings import SplitConfig, TrainConfig
from geoseg.data.labelled import LabelledScene, labels_of, open_both, open_scenes, write_split
from geoseg.data.leakage import check_leakage, leakage_hint
from geoseg.data.split import TRAIN, UNUSED, VAL, SceneSplit, block_edges, scene_split
from geoseg.data.windows import CoveringWindows, RandomWindows
from geoseg.errors import ConfigError, GeosegError, SceneError
from geoseg.grid import Grid
from geoseg.windows import Window
from support.scenes import write_scene

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

NAMES = ("other", "field", "house")
FILES = Path("/proc/self/fd")


def grid(height: int, width: int) -> Grid:
    return Grid(height, width, Affine.identity(), None)


def cut(height: int, width: int, config: SplitConfig, *, seed: int = 0, index: int = 0) -> SceneSplit:
    """A scene whose blocks all hold the same class."""
    return scene_split(grid(height, width), config, seed=seed, index=index, count=lambda _: np.ones(1, dtype=np.int64))


def made_split(height: int, width: int, *, block: int, buffer: int, share: float = 0.3, seed: int = 0) -> SceneSplit:
    config = SplitConfig.model_construct(block=block, buffer=buffer, val_share=share)
    return cut(height, width, config, seed=seed)


def gap(a: Window, b: Window) -> int:
    """Pixels between two windows; 0 where they touch, negative where they overlap."""
    rows = max(a.row, b.row) - min(a.row_stop, b.row_stop)
    cols = max(a.col, b.col) - min(a.col_stop, b.col_stop)
    return max(rows, cols)


# --- blocks


def test_blocks_cover_the_scene_and_slivers_are_merged() -> None:
    assert block_edges(100, 32).tolist() == [0, 32, 64, 100]  # 4 px would be a sliver
    assert block_edges(113, 32).tolist() == [0, 32, 64, 96, 113]
    assert block_edges(112, 32).tolist() == [0, 32, 64, 112]  # half a block is not enough to be reflected in
    assert block_edges(20, 32).tolist() == [0, 20]
    split = made_split(100, 113, block=32, buffer=0)
    seen = np.zeros((100, 113), dtype=int)
    for _, _, w, _ in split.blocks():
        seen[w.row : w.row_stop, w.col : w.col_stop] += 1
    assert (seen == 1).all()


def test_a_validation_window_reflects_its_own_block_only() -> None:
    for length in range(33, 140):
        edges = block_edges(length, 32)
        start = int(edges[-2])
        seen = np.arange(start, start + 32)
        phase = seen % (2 * (length - 1))
        assert np.minimum(phase, 2 * (length - 1) - phase).min() >= start


def test_the_split_is_a_function_of_seed_and_place_of_the_scene() -> None:
    config = SplitConfig(block=32, val_share=0.25, buffer=8)
    one = cut(320, 320, config, seed=3, index=2)
    again = cut(320, 320, config, seed=3, index=2)
    assert (one.roles == again.roles).all()
    others = [cut(320, 320, config, seed=s, index=i) for s, i in ((4, 2), (3, 1))]
    assert all((one.roles != other.roles).any() for other in others)
    assert (one.roles == VAL).sum() in (25, 26) and (one.roles == TRAIN).sum() in (74, 75)


def test_many_scenes_of_one_block_validate_as_often_as_asked() -> None:
    config = SplitConfig(block=32, val_share=0.2)
    roles = [int(cut(32, 32, config, seed=5, index=i).roles[0, 0]) for i in range(200)]
    assert 38 <= roles.count(VAL) <= 42 and roles.count(TRAIN) == 200 - roles.count(VAL)


@pytest.mark.parametrize("seed", range(8))
def test_one_scene_of_two_blocks_does_both(seed: int) -> None:
    for share in (0.05, 0.95):
        split = cut(32, 64, SplitConfig(block=32, val_share=share), seed=seed)
        assert sorted(split.roles.ravel().tolist()) == [TRAIN, VAL]


def test_rare_classes_are_shared_and_empty_blocks_unused() -> None:
    counts = np.zeros((10, 10, 3), dtype=np.int64)
    counts[:, :, 0] = 1000
    counts[3, [1, 4, 7, 9], 1] = 50  # in four blocks alone
    counts[0] = 0
    config = SplitConfig(block=32, val_share=0.25)
    for seed in range(5):
        split = scene_split(
            grid(320, 320), config, seed=seed, index=0, count=lambda block: counts[block.row // 32, block.col // 32]
        )
        assert (split.roles[0] == UNUSED).all() and (split.roles[1:] != UNUSED).all()
        rare = split.roles[3, [1, 4, 7, 9]]
        assert (rare == VAL).sum() == 1


# --- windows that may train


@given(data=st.data())
def test_windows_that_may_train_are_exactly_those_a_buffer_away(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 90))
    split = made_split(
        height,
        width,
        block=data.draw(st.sampled_from([8, 16, 32])),
        buffer=data.draw(st.integers(0, 20)),
        seed=data.draw(st.integers(0, 99)),
    )
    h, w = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    allowed = []
    for row in range(min(0, height - h), max(0, height - h) + 1):
        for col in range(min(0, width - w), max(0, width - w) + 1):
            window = Window(row, col, h, w)
            # A window larger than the scene shows all of it along that axis.
            top, left = (0 if h > height else row), (0 if w > width else col)
            shown = Window(top, left, min(h, height), min(w, width))
            wanted = all(gap(shown, block) >= split.buffer for block in split.validation)
            assert split.allows(window) is wanted
            if wanted:
                allowed.append(window)
    places = (abs(height - h) + 1) * (abs(width - w) + 1)
    assert split.fraction(h, w) == pytest.approx(len(allowed) / places)
    rng = np.random.default_rng(0)
    drawn = [split.draw(rng, h, w) for _ in range(20)]
    assert all(window in allowed for window in drawn) if allowed else drawn == [None] * 20


def test_reflected_windows_count_where_they_come_from() -> None:
    split = made_split(64, 32, block=32, buffer=0, share=0.5)
    (block,) = split.validation
    assert block in (Window(0, 0, 32, 32), Window(32, 0, 32, 32))
    below = block.row == 32
    # 40 rows from the end away from the block show 32 of the other block at most; 80 rows reach into it.
    assert split.allows(Window(-20 if below else 52, 0, 32, 32))
    assert not split.allows(Window(-34 if below else 65, 0, 66 if below else 34, 32))


def test_every_place_that_may_train_is_drawn_equally_often() -> None:
    split = made_split(20, 24, block=8, buffer=1)
    rng = np.random.default_rng(1)
    counts: dict[Window, int] = {}
    for _ in range(20_000):
        window = split.draw(rng, 5, 3)
        assert window is not None
        counts[window] = counts.get(window, 0) + 1
    expected = 20_000 / (split.fraction(5, 3) * 16 * 22)
    assert len(counts) == round(split.fraction(5, 3) * 16 * 22)
    assert max(abs(n - expected) for n in counts.values()) < 6 * expected**0.5


# --- scenes of a configuration


def write_pair(folder: Path, name: str, labels: npt.NDArray[np.uint8] | None = None, **options: Any) -> dict[str, str]:
    made = write_scene(folder / f"{name}.tif", **options)
    if labels is None:
        rows, cols = np.indices(made.valid.shape)
        labels = ((rows // 8 + cols // 8) % 3).astype(np.uint8)
    with rasterio.open(made.path) as scene:
        profile = scene.profile
    profile.update(count=1, dtype="uint8", nodata=None)
    with rasterio.open(folder / f"{name}_labels.tif", "w", **profile) as file:
        file.write(labels, 1)
    return {"scene": str(made.path), "labels": str(folder / f"{name}_labels.tif")}


def settings(data: dict[str, Any], **changes: Any) -> TrainConfig:
    tables: dict[str, Any] = {
        "name": "test",
        "output": "run",
        "classes": [{"name": name, "color": "#000000"} for name in NAMES],
        "data": data,
        "train": {"size": 32},
        "augment": {"scale": [1, 1]},
        "window": {"size": 32, "overlap": 0},
    }
    return parse_config(tables | changes, source="test")


def blocks(*entries: dict[str, str], **split: Any) -> dict[str, Any]:
    return {"scenes": list(entries), "split": {"block": 32, "buffer": 8, "val_share": 0.3, **split}}


def test_scenes_open_with_their_blocks_and_travel(tmp_path: Path) -> None:
    entries = [write_pair(tmp_path, n, size=(160, 160), nodata="value", seed=i) for i, n in enumerate("abc")]
    config = settings(blocks(*entries))
    train, val = open_both(config)
    assert [[s.index for s in open_scenes(config, split)] for split in ("train", "val")] == [
        [s.index for s in scenes] for scenes in (train, val)
    ]
    assert [s.index for s in train] == [0, 1, 2] and all(s in train for s in val)
    for scene in train:
        assert scene.split is not None
        same = LabelledScene(scene.config, config, index=scene.index)
        assert same.split is not None and (same.split.roles == scene.split.roles).all()
        travelled = pickle.loads(pickle.dumps(scene))
        assert travelled.split.validation == scene.split.validation
        assert all((scene.labels.read(w) != NODATA).any() for w in scene.split.validation)
    assert {s.index for s in val} == {s.index for s in train if s.split is not None and s.split.validation}


def test_blocks_without_valid_labels_are_unused(tmp_path: Path) -> None:
    labels = np.full((160, 160), NODATA, dtype=np.uint8)
    labels[:64], labels[64, 159] = 1, 2
    entry = write_pair(tmp_path, "a", labels, size=(160, 160))
    with rasterio.open(entry["scene"], "r+") as file:
        file.nodata = 0
        pixels = file.read()
        pixels[:, :32, :96] = 0
        pixels[:, 5, 95] = 9  # one valid pixel is enough
        file.write(pixels)
    (scene,) = open_scenes(settings(blocks(entry)), "train")
    assert scene.split is not None
    used = scene.split.roles != UNUSED
    wanted = np.zeros((5, 5), dtype=bool)
    wanted[:2] = True
    wanted[0, :2] = False
    wanted[2, 4] = True
    assert (used == wanted).all()


def test_labels_of_a_part_are_ignored_elsewhere(tmp_path: Path) -> None:
    entry = write_pair(tmp_path, "a", size=(120, 140))
    (scene,) = open_scenes(settings(blocks(entry)), "val")
    assert scene.split is not None
    whole = Window(0, 0, 120, 140)
    everything = scene.labels.read(whole)
    inside = np.zeros((120, 140), dtype=bool)
    near = inside.copy()
    for w in scene.split.validation:
        inside[w.row : w.row_stop, w.col : w.col_stop] = True
        near[max(w.row - 8, 0) : w.row_stop + 8, max(w.col - 8, 0) : w.col_stop + 8] = True
    assert (labels_of(scene, "val").read(whole) == np.where(inside, everything, NODATA)).all()
    assert (labels_of(scene, "train").read(whole) == np.where(near, NODATA, everything)).all()
    for window in (Window(20, 30, 50, 60), Window(-5, 100, 30, 60)):
        padded = np.pad(np.where(inside, everything, NODATA), 60, constant_values=NODATA)
        part = padded[window.row + 60 : window.row_stop + 60, window.col + 60 : window.col_stop + 60]
        assert (labels_of(scene, "val").read(window) == part).all()
    plain = settings({"train": [entry], "val": [entry]})
    assert (labels_of(LabelledScene(plain.data.train[0], plain), "val").read(whole) == everything).all()


def test_a_split_without_room_names_what_works(tmp_path: Path) -> None:
    entry = write_pair(tmp_path, "a", size=(160, 160))
    wide = write_pair(tmp_path, "b", size=(64, 128))
    small = write_pair(tmp_path, "c", size=(32, 32))
    with pytest.raises(ConfigError, match="no training window of 32 px fits") as caught:
        open_scenes(settings(blocks(entry, buffer=200)), "train")
    key, _, number = str(caught.value.hint).partition("=")
    assert key == "data.split.buffer" and 0 < int(number) < 200
    assert open_scenes(settings(blocks(entry, buffer=int(number))), "train")
    # Of this seed the one block of the one scene trains.
    with pytest.raises(ConfigError, match="none of the 1 labelled blocks of 128 px validates") as caught:
        open_scenes(settings(blocks(wide, block=128, val_share=0.01)), "val")
    assert caught.value.hint == "data.split.block=64"
    assert open_scenes(settings(blocks(wide, block=64, val_share=0.01)), "val")
    with pytest.raises(ConfigError, match="none of the 1 labelled blocks of 32 px validates") as caught:
        open_scenes(settings(blocks(small, val_share=0.01)), "val")
    assert "data.train and data.val" in str(caught.value.hint)


def test_all_scenes_that_cannot_be_used_are_named_at_once(tmp_path: Path) -> None:
    good = write_pair(tmp_path, "a")
    lost = {"scene": str(tmp_path / "lost.tif"), "labels": good["labels"]}
    bare = {"scene": good["scene"], "labels": str(tmp_path / "bare.tif")}
    config = settings({"train": [good, lost, bare], "val": [good, lost]})
    with pytest.raises(GeosegError, match="2 of 3 scenes cannot be used") as caught:
        open_scenes(config, "train")
    assert "no such scene" in caught.value.message and "no such labels" in caught.value.message
    with pytest.raises(SceneError, match=r"^no such scene: .*lost\.tif$"):
        open_scenes(config, "val")
    assert len(open_scenes(settings({"train": [good] * 3, "val": [good]}), "train")) == 3


@pytest.mark.skipif(not FILES.exists(), reason="open files are counted as Linux does")
def test_few_files_stay_open_however_many_scenes_there_are(tmp_path: Path) -> None:
    entry = write_pair(tmp_path, "a", size=(32, 32))
    entries = []
    for i in range(150):
        copy = {key: str(Path(value).with_name(f"{i}_{Path(value).name}")) for key, value in entry.items()}
        for key, value in entry.items():
            os.link(value, copy[key])
        entries.append(copy)
    before = len(list(FILES.iterdir()))
    scenes = open_scenes(settings({"train": entries, "val": entries[:1]}), "train")
    for scene in scenes:
        scene.read(Window(0, 0, 32, 32))
    assert len(list(FILES.iterdir())) - before <= 130


@pytest.mark.parametrize("seed", range(3))
def test_training_windows_stay_a_buffer_from_validation(tmp_path: Path, seed: int) -> None:
    entries = [
        write_pair(tmp_path, n, size=size, seed=i) for i, (n, size) in enumerate((("a", (200, 170)), ("b", (64, 90))))
    ]
    config = settings(blocks(*entries, block=64), seed=seed, augment={"scale": [0.5, 2]})
    train = RandomWindows(open_scenes(config, "train"), config, length=60)
    val = CoveringWindows(open_scenes(config, "val"), config)
    places = [val.place(i) for i in range(len(val))]
    assert places
    for i in range(len(train)):
        scene, window = train.place(i)
        assert all(gap(window, other) >= 8 for name, other in places if name == scene)
    labelled = sum(int((val[i]["labels"] != NODATA).sum()) for i in range(len(val)))
    scenes = open_scenes(config, "val")
    assert labelled == sum(w.height * w.width for s in scenes if s.split is not None for w in s.split.validation)


# --- as a GeoPackage


def test_the_split_is_written_in_the_scenes_crs(tmp_path: Path) -> None:
    a = write_pair(tmp_path, "a", size=(100, 130))
    b = write_pair(tmp_path, "b", size=(64, 64), crs="EPSG:3857", orientation="rotated")
    config = settings(blocks(a, b))
    path = tmp_path / "split.gpkg"
    write_split(path, open_scenes(config, "train"), open_scenes(config, "val"))
    layers = [str(name) for name, _ in pyogrio.list_layers(path)]
    assert layers == ["split_1", "split_2"]
    frames = [geopandas.read_file(path, layer=name) for name in layers]
    assert [frame.crs.to_epsg() for frame in frames] == [32633, 3857]
    with rasterio.open(a["scene"]) as scene:
        assert frames[0].total_bounds == pytest.approx(tuple(scene.bounds))
        transform = scene.transform
    assert frames[0].area.sum() == pytest.approx(100 * 130 * 0.25)
    split = LabelledScene(config.data.scenes[0], config).split
    assert split is not None
    assert len(frames[0]) == split.roles.size and set(frames[0]["scene"]) == {a["scene"]}
    for record in frames[0].itertuples():
        role = ("unused", "train", "val")[split.roles[record.block_row, record.block_col]]
        assert record.split == role
        corner = transform @ (split.col_edges[record.block_col], split.row_edges[record.block_row])
        assert any(corner == pytest.approx(point) for point in record.geometry.exterior.coords)


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_whole_scenes_are_written_too(tmp_path: Path) -> None:
    a, b = (write_pair(tmp_path, n, crs=None, size=(40, 50), seed=i) for i, n in enumerate("ab"))
    config = settings({"train": [a], "val": [b]})
    write_split(tmp_path / "s.gpkg", open_scenes(config, "train"), open_scenes(config, "val"))
    frame = geopandas.read_file(tmp_path / "s.gpkg")
    assert frame.crs is None and frame["split"].tolist() == ["train", "val"]
    assert frame["block_row"].isna().all()
    assert frame.total_bounds.tolist() == [0, -40, 50, 0]


# --- leakage


def leaks(data: dict[str, Any]) -> list[str]:
    config = settings(data)
    return check_leakage(open_scenes(config, "train"), open_scenes(config, "val"), split=config.data.split)


def test_scenes_apart_do_not_leak(tmp_path: Path) -> None:
    a = write_pair(tmp_path, "a")
    b = write_pair(tmp_path, "b", shift=(97, 0))
    assert leaks({"train": [a], "val": [b]}) == []
    c = write_pair(tmp_path, "c", crs="EPSG:4326")
    assert leaks({"train": [a], "val": [c]}) == []


def test_scenes_that_are_folders_are_compared_by_place(tmp_path: Path) -> None:
    pairs = write_pair(tmp_path, "a"), write_pair(tmp_path, "b", shift=(97, 0))
    for pair in pairs:
        folder = Path(pair["scene"]).with_suffix(".zarr")
        rasterio.shutil.copy(pair["scene"], folder, driver="Zarr")
        pair["scene"] = str(folder)
    assert leaks({"train": [pairs[0]], "val": [pairs[1]]}) == []


def test_scenes_that_overlap_are_named_with_their_common_area(tmp_path: Path) -> None:
    a = write_pair(tmp_path, "a")  # 96 × 80 px of 0.5 m
    b = write_pair(tmp_path, "b", shift=(90, 40))
    far = write_pair(tmp_path, "far", shift=(1000, 0))
    (message,) = leaks({"train": [far, a], "val": [b]})
    assert message == f"training scene {a['scene']} and validation scene {b['scene']} overlap by 60 m²"
    assert "data.split" in leakage_hint(None) and "data.leakage=warn" in leakage_hint(None)


@pytest.mark.parametrize(
    ("shift", "reported"),
    [((96, 10), "touch along 35 m"), ((0, 80), "touch along 48 m"), ((96, 80), "touch at a corner")],
)
@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:2263"])
def test_scenes_that_touch_are_named_with_their_common_edge(
    tmp_path: Path, shift: tuple[float, float], reported: str, crs: str
) -> None:
    a = write_pair(tmp_path, "a", crs=crs)
    b = write_pair(tmp_path, "b", crs=crs, shift=shift)
    (message,) = leaks({"train": [a], "val": [b]})
    assert message.endswith(reported)


def test_a_scene_in_coordinates_of_its_own_lies_nowhere(tmp_path: Path) -> None:
    site = write_pair(tmp_path, "site")
    for path in site.values():
        with rasterio.open(path, "r+") as file:
            file.crs = rasterio.crs.CRS.from_wkt('LOCAL_CS["site grid",UNIT["metre",1]]')
    a = write_pair(tmp_path, "a", seed=1)
    assert leaks({"train": [site], "val": [a]}) == []
    assert leaks({"train": [a], "val": [site]}) == []


def test_scenes_in_two_crs_are_compared_on_the_ground(tmp_path: Path) -> None:
    a = write_pair(tmp_path, "a", crs="EPSG:32633")
    b = write_pair(tmp_path, "b", crs="EPSG:32633", shift=(48, 0))
    with rasterio.open(b["scene"]) as file:
        bounds = rasterio.warp.transform_bounds(file.crs, "EPSG:3857", *file.bounds)
        profile = file.profile
    wide, high = bounds[2] - bounds[0], bounds[3] - bounds[1]
    profile |= {"crs": "EPSG:3857", "transform": Affine(wide / 80, 0, bounds[0], 0, -high / 96, bounds[3])}
    for key in ("scene", "labels"):
        with rasterio.open(b[key]) as file:
            values = file.read()
        with rasterio.open(b[key], "w", **profile | {"count": len(values)}) as file:
            file.write(values)
    (message,) = leaks({"train": [a], "val": [b]})
    area = float(message.rsplit("overlap by ", 1)[1].removesuffix(" m²").replace(",", ""))
    assert area == pytest.approx(48 * 80 * 0.25, rel=0.02)


def test_files_that_are_the_same_leak_without_any_georeference(tmp_path: Path) -> None:
    a, b = (write_pair(tmp_path, n, crs=None, seed=i) for i, n in enumerate("ab"))
    assert leaks({"train": [a], "val": [b]}) == []
    (message,) = leaks({"train": [a, b], "val": [b]})
    assert message == f"{b['scene']} trains and validates"
    link, copy = tmp_path / "link.tif", tmp_path / "copy.tif"
    os.link(a["scene"], link)
    copy.write_bytes(Path(a["scene"]).read_bytes())
    assert leaks({"train": [a], "val": [a | {"scene": str(link)}]}) == [f"{a['scene']} trains and validates, as {link}"]
    (message,) = leaks({"train": [a], "val": [a | {"scene": str(copy)}]})
    assert "byte for byte" in message
    # With georeference it is reported once.
    c = write_pair(tmp_path, "c")
    assert leaks({"train": [c], "val": [c]}) == [f"{c['scene']} trains and validates"]


def test_blocks_do_not_leak_where_they_have_a_buffer(tmp_path: Path) -> None:
    a = write_pair(tmp_path, "a", size=(160, 160))
    b = write_pair(tmp_path, "b", size=(160, 160), shift=(400, 0))
    assert leaks(blocks(a, b)) == []
    (message,) = leaks(blocks(a, b, buffer=0))
    assert "data.split.buffer is 0" in message
    assert "data.split.buffer=64" in leakage_hint(SplitConfig())


def test_blocks_on_another_scenes_training_part_leak(tmp_path: Path) -> None:
    a = write_pair(tmp_path, "a", size=(160, 160))
    b = write_pair(tmp_path, "b", size=(160, 160), shift=(0, 60))
    messages = leaks(blocks(a, b))
    assert 1 <= len(messages) <= 2 and all("overlap by" in message for message in messages)
    assert messages[0].startswith("blocks of ") and a["scene"] in messages[0] and b["scene"] in messages[0]
    assert leaks(blocks(a, b, a))[0] == f"{a['scene']} is listed 2 times, and each time other blocks validate"
    copy = tmp_path / "copy.tif"
    copy.write_bytes(Path(a["scene"]).read_bytes())
    (message,) = leaks(blocks(a, a | {"scene": str(copy)}))
    assert "byte for byte" in message
