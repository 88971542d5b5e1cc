from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from geoseg.config import TrainConfig, load_config, parse_config, save_config
from geoseg.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def values(**changes: Any) -> dict[str, Any]:
    return {
        "name": "fields",
        "output": "runs/fields",
        "classes": [{"name": "other", "color": "#000000"}, {"name": "field", "color": "#00ff00"}],
        "data": {
            "train": [{"scene": "a.tif", "labels": "a_labels.tif"}],
            "val": [{"scene": "b.tif", "labels": "/elsewhere/b.gpkg", "class_name": "field", "outside": "other"}],
        },
    } | changes


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "experiments" / "fields.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(values()), encoding="utf-8")
    return path


def test_yamls_own_floats_become_numbers(file: Path) -> None:
    # PyYAML takes 6e-5, without a dot, for a string
    text = file.read_text(encoding="utf-8") + "train: {learning_rate: 6e-5, weight_decay: 1e-2}\n"
    assert yaml.safe_load(text)["train"]["learning_rate"] == "6e-5"
    file.write_text(text, encoding="utf-8")
    recipe = load_config(file).train
    assert (recipe.learning_rate, recipe.weight_decay) == (6e-5, 1e-2)


def test_overrides_reach_into_the_tree_and_make_missing_tables(file: Path) -> None:
    config = load_config(file, ["train.iterations=500", "train.learning_rate=1e-3", "seed=7", "imagery.bands=[nir]"])
    assert (config.train.iterations, config.train.learning_rate) == (500, 1e-3)
    assert (config.seed, config.imagery.bands) == (7, ("nir",))
    assert config.train.batch_size == 16  # untouched


@pytest.mark.parametrize(
    ("override", "complaint", "hint"),
    [
        ("train.iteration=5", "unknown key train.iteration", "did you mean iterations?"),
        ("trian.iterations=5", "unknown key trian", "did you mean train?"),
        ("imagery.band=[red]", "unknown key imagery.band", "did you mean bands?"),
        ("window.zzz=1", "unknown key window.zzz", "valid keys there: overlap, size"),
        ("train.iterations", "not of the form key=value", "train.iterations=500"),
        ("=5", "not of the form key=value", None),
        ("name.first=5", "name holds no keys", None),
        ("data.train.0.scene=a.tif", "data.train.0 holds no keys", None),
        ("seed=[1", "not valid YAML", "close every bracket"),
        ("train.iterations=0", "train.iterations", None),
        ("train.size=100", "train.size", None),
        ("train.precision=double", "train.precision", None),
        ("window.overlap=512", "overlap 512 must be below size 512", None),
        ("imagery.mean=[0.5, 0.5]", "mean has 2 entries for 3 bands", None),
        ("imagery.indexes=[1]", "indexes has 1 entry for 3 bands", None),
        ("imagery.std=[1, 1, 1]", "both mean and std", None),
        ("augment.scale=[2, 1]", "scale must be a range", None),
        ("augment.scale=[1, .inf]", "augment.scale.1: Input should be a finite number", None),
        ("augment.base_size=[0, 512]", "base_size must be 1 px or more", None),
        ("train.class_shares={field: .nan}", "train.class_shares.field: Input should be a finite number", None),
        ("train.class_weights=[1, .nan]", "train.class_weights.1: Input should be a finite number", None),
        ("train.class_weights=3", "train.class_weights: Input should be 'balanced' or a valid tuple, found 3", None),
        ("imagery.nodata=x", "imagery.nodata: Input should be 'file' or a valid number, unable to", None),
        ("train.learning_rate=.inf", "train.learning_rate: Input should be a finite number", None),
        ("imagery={mean: [0, 0, 0], std: [1, 0, 1]}", "imagery.std.1: Input should be greater than 0", None),
        ("imagery.scale=.inf", "imagery.scale: Input should be a finite number", None),
        ("imagery.bands=[]", "imagery.bands", None),
        ("seed=-1", "seed", None),
        ("seed=99999999999", "seed", None),
        ("name=2024-02-30", "not valid YAML", None),
        ("train={size: 64, size: 96}", "duplicate key size in line 1", None),
        ("data.val=[]", "val names no scene", None),
        ("classes=[]", "classes", None),
        ("classes=[{name: a, color: red}]", "#rrggbb", None),
    ],
)
def test_what_cannot_be_meant_is_explained(file: Path, override: str, complaint: str, hint: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(file, [override])
    assert complaint in caught.value.message
    if hint is not None:
        assert hint in str(caught.value.hint)


def test_a_typo_inside_a_scenes_entry_gets_the_nearest_key() -> None:
    entry = {"scene": "a", "labels": "b"}
    data = {"train": [entry | {"outsid": "ignore"}], "val": [entry]}
    with pytest.raises(ConfigError, match=r"unknown key data\.train\.0\.outsid") as caught:
        parse_config(values(data=data), source="x")
    assert caught.value.hint == "did you mean outside?"


@pytest.mark.parametrize(
    ("entry", "complaint", "hint"),
    [
        (
            {"class_name": "forest"},
            "class_name 'forest' of l.gpkg is none of other, field",
            "class_name: other or field",
        ),
        ({"class_name": "Fields"}, "class_name 'Fields' of l.gpkg is none of other, field", "class_name: field"),
        ({"outside": "sea"}, "outside 'sea' of l.gpkg is none of other, field, ignore", "outside: other or field or"),
        ({"outside": "others"}, "outside 'others' of l.gpkg is none of", "outside: other"),
        ({"class_name": "field", "attribute": "kind"}, "give attribute or class_name, not both", "None"),
    ],
)
def test_classes_of_a_scene_must_be_known(entry: dict[str, str], complaint: str, hint: str) -> None:
    scene = {"scene": "s.tif", "labels": "l.gpkg", **entry}
    with pytest.raises(ConfigError, match=complaint) as caught:
        parse_config(values(data={"train": [scene], "val": [scene]}), source="x")
    assert str(caught.value.hint).startswith(hint)


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"train": {"size": 512}, "augment": {"scale": [0.5, 2]}}, "data.split.block=1024"),
        ({"train": {"size": 32}, "augment": {"scale": [1, 1]}, "window": {"size": 96, "overlap": 32}}, "…=96"),
        ({"train": {"size": 64}, "augment": {"scale": [0.7, 1]}, "window": {"size": 32, "overlap": 0}}, "…=96"),
    ],
)
def test_blocks_below_the_window_get_the_number_that_works(changes: dict[str, Any], hint: str) -> None:
    data: dict[str, Any] = {"scenes": [{"scene": "a", "labels": "b"}], "split": {"block": 32}}
    with pytest.raises(ConfigError, match=r"data\.split\.block 32 is smaller than the largest window of") as caught:
        parse_config(values(data=data, **changes), source="x")
    found = str(caught.value.hint)
    assert found == hint.replace("…", "data.split.block")
    block = int(found.partition("=")[2])
    parse_config(values(data=data | {"split": {"block": block}}, **changes), source="x")
    if block > 32:  # and none smaller does
        with pytest.raises(ConfigError, match="smaller than the largest window"):
            parse_config(values(data=data | {"split": {"block": block - 32}}, **changes), source="x")


def test_shares_and_weights_of_classes_say_what_they_want() -> None:
    for train, hint in (
        ({"class_shares": {"feild": 0.5}}, "did you mean field?"),
        ({"class_weights": [1, 2, 3]}, "one number for each of other, field, or train.class_weights=balanced"),
    ):
        with pytest.raises(ConfigError) as caught:
            parse_config(values(train=train), source="x")
        assert hint in str(caught.value.hint)


def test_a_missing_key_is_named() -> None:
    incomplete = values()
    del incomplete["name"]
    with pytest.raises(ConfigError, match="x lacks name") as caught:
        parse_config(incomplete, source="x")
    assert "name=…" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "complaint", "hint"),
    [
        ("", "holds no keys", "configs/"),
        ("[1, 2]", "holds no keys", "configs/"),
        ("a: [", "not valid YAML", "close every bracket"),
        ("\x00", "YAML", "plain text in UTF-8"),
        ("name: 2024-02-30", "put text that looks like a date into quotes", "single quotes"),
        ("a: 1\nb: {c: 1, c: 2}", "duplicate key c", "remove one of them; line 2 is 'b: {c: 1, c: 2}'"),
        ("a:\n\tb: 1", "line 2, column 1", "indent with spaces, not with tabs; line 2 is 'b: 1'"),
        ("name: x: y", "line 1, column 8", "quote values that contain a colon"),
        ("name fields\nseed: 1", "line 2, column 5", "check that the line before has one"),
        ("seed: 1\nname fields\n", "line 3, column 1", "a colon and a space between a key and its value"),
        ("a:\n  b: 1\n c: 2", "line 3, column 2", "the same indentation; line 3 is 'c: 2'"),
        ("a: 'x\n", "end of stream", "close the quotes"),
        ("a: @x", "'@' that cannot start", "into single quotes"),
        ("a: 1\n---\nb: 2", "another document", "remove lines of ---"),
    ],
)
def test_broken_files_are_explained(tmp_path: Path, text: str, complaint: str, hint: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=complaint) as caught:
        load_config(path)
    assert hint in str(caught.value.hint)


def test_shares_add_up_to_one_as_people_count() -> None:
    shares = {"c0": 0.33, "c1": 0.56, "c2": 0.11}
    assert sum(shares.values()) > 1
    classes = [{"name": name, "color": "#000000"} for name in shares]
    data = {"train": [{"scene": "a", "labels": "b"}], "val": [{"scene": "c", "labels": "d"}]}
    assert parse_config(values(classes=classes, data=data, train={"class_shares": shares}), source="x")


def test_keys_may_be_merged_and_said_again(file: Path) -> None:
    text = (
        "train: &a {size: 64, batch_size: 2}\nwindow: {size: 64, overlap: 0}\ncard: {<<: *a, size: 1, more: {<<: *a}}\n"
    )
    file.write_text(file.read_text(encoding="utf-8") + text, encoding="utf-8")
    assert load_config(file).card == {"size": 1, "batch_size": 2, "more": {"size": 64, "batch_size": 2}}


def test_a_missing_file_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such configuration"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


# --- paths


def test_paths_count_from_the_files_folder(file: Path) -> None:
    config = load_config(file)
    folder = file.parent
    assert config.output == folder / "runs/fields"
    assert (config.data.train[0].scene, config.data.train[0].labels) == (folder / "a.tif", folder / "a_labels.tif")
    assert config.data.val[0].labels == Path("/elsewhere/b.gpkg")


def test_scenes_count_from_the_root_and_the_root_from_the_file(file: Path) -> None:
    raw = values()
    raw["data"]["root"] = "orthos"
    file.write_text(yaml.safe_dump(raw), encoding="utf-8")
    config = load_config(file)
    assert config.data.root == file.parent / "orthos"
    assert config.data.train[0].scene == file.parent / "orthos/a.tif"
    assert config.output == file.parent / "runs/fields"


def test_command_line_paths_start_at_the_working_folder(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(file, ["data.root=mine", "output=here"])
    assert config.output == tmp_path / "here"
    assert config.data.train[0].scene == tmp_path / "mine/a.tif"
    assert load_config(file, ["data.root=/mnt/x"]).data.train[0].scene == Path("/mnt/x/a.tif")


def test_the_home_folder_may_be_a_tilde(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert load_config(file, ["data.root=~/orthos"]).data.train[0].scene == Path("/home/someone/orthos/a.tif")


def test_saved_and_loaded_elsewhere_it_is_equal(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = ["output=here", "data.root=mine", "imagery.nodata=0", "model.options={nmf_rank: 4}", "name=Äcker"]
    config = load_config(file, overrides)
    (tmp_path / "run").mkdir()
    save_config(config, tmp_path / "run/config.yaml")
    assert load_config(tmp_path / "run/config.yaml") == config
    assert "Äcker" in (tmp_path / "run/config.yaml").read_text(encoding="utf-8")


# --- values


def test_the_scale_follows_the_dtype_unless_it_is_given(file: Path) -> None:
    for dtype, scale in {"uint8": 1 / 255, "uint16": 1e-4, "int16": 1e-4, "float32": 1.0}.items():
        assert load_config(file, [f"imagery.dtype={dtype}"]).imagery.effective_scale == scale
    assert load_config(file, ["imagery.scale=0.5"]).imagery.effective_scale == 0.5


def test_bands_are_the_files_first_unless_they_are_given(file: Path) -> None:
    assert load_config(file).imagery.band_indexes == (1, 2, 3)
    assert load_config(file, ["imagery.indexes=[4, 3, 2]"]).imagery.band_indexes == (4, 3, 2)


def test_nothing_changes_after_validation(file: Path) -> None:
    config = load_config(file)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1
    assert hash(config.train) == hash(load_config(file).train)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_configuration_of_the_repository_parses(path: Path, tmp_path: Path) -> None:
    data = yaml.safe_load(path.read_text(encoding="utf-8"))["data"]
    for entry in (*data["train"], *data["val"]):
        for name in entry["scene"], entry["labels"]:  # patterns need files
            file = tmp_path / name.replace("*", "1").format(stem="1")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    config = load_config(path, [f"data.root={tmp_path}"])
    assert isinstance(config, TrainConfig)
    assert path.stem.startswith(config.name)
    assert all(entry.scene.is_absolute() for entry in (*config.data.train, *config.data.val))


def test_there_are_configurations() -> None:
    assert len(CONFIGS) >= 2
