from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import geopandas
import pyogrio
import pytest
import yaml
from shapely.geometry import Point

from geoseg.class_tables import KNOWN
from geoseg.config import load_config, save_config
from geoseg.config.settings import SceneConfig, SplitConfig, TrainConfig
from geoseg.errors import ConfigError

OTHER = {"scene": "/elsewhere/o.tif", "labels": "/elsewhere/o_labels.tif"}


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def load(folder: Path, *train: Any, val: Any = OTHER, root: str | None = None, **more: Any) -> TrainConfig:
    values = {
        "name": "fields",
        "output": "run",
        "classes": [{"name": "other", "color": "#000000"}, {"name": "field", "color": "#00ff00"}],
        "data": {"train": list(train), "val": [val]} | ({"root": root} if root else {}),
    }
    (folder / "fields.yaml").write_text(yaml.safe_dump(values | more), encoding="utf-8")
    return load_config(folder / "fields.yaml")


def refused(folder: Path, *train: Any, **more: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(folder, *train, **more)
    return caught.value


def pairs(entries: tuple[SceneConfig, ...], folder: Path) -> list[tuple[str, str]]:
    return [(str(e.scene.relative_to(folder)), str(e.labels.relative_to(folder))) for e in entries]


# --- patterns


def test_a_pattern_becomes_one_entry_for_each_scene_in_order(tmp_path: Path) -> None:
    touch(tmp_path, "orthos/b.tif", "orthos/a.tif", "orthos/a.png", "labels/a.tif", "labels/b.tif", "orthos/.b.tif")
    (tmp_path / "orthos" / "folder.tif").mkdir()
    config = load(tmp_path, {"scene": "orthos/*.tif", "labels": "labels/{stem}.tif", "outside": "ignore"}, OTHER)
    assert pairs(config.data.train[:2], tmp_path) == [
        ("orthos/a.tif", "labels/a.tif"),
        ("orthos/b.tif", "labels/b.tif"),
    ]
    assert [entry.outside for entry in config.data.train] == ["ignore", "ignore", None]
    assert config.data.train[2].scene == Path(OTHER["scene"])


def test_one_file_of_labels_may_serve_all_scenes(tmp_path: Path) -> None:
    touch(tmp_path, "in/2019/x.tif", "in/2020/x.tif", "in/y.tif", "in/.hidden/z.tif", "fields.gpkg", "area.gpkg")
    entry = {"scene": "**/*.tif", "labels": "../fields.gpkg", "labelled_area": "../area.gpkg", "class_name": "field"}
    config = load(tmp_path, entry, root="in")
    assert [str(e.scene.relative_to(tmp_path)) for e in config.data.train] == [
        "in/2019/x.tif",
        "in/2020/x.tif",
        "in/y.tif",
    ]
    assert {e.labels.resolve() for e in config.data.train} == {tmp_path / "fields.gpkg"}
    assert all(e.labelled_area is not None and e.labelled_area.exists() for e in config.data.train)


def test_cityscapes_can_be_said(tmp_path: Path) -> None:
    for city, frame in (("aachen", "aachen_000001_000019"), ("bochum", "bochum_000000_000313")):
        touch(tmp_path, f"leftImg8bit/train/{city}/{frame}_leftImg8bit.png")
        touch(tmp_path, f"gtFine/train/{city}/{frame}_gtFine_labelTrainIds.png")
    entry = {
        "scene": "leftImg8bit/train/*/*_leftImg8bit.png",
        "labels": "gtFine/train/{parent}/{name}_gtFine_labelTrainIds.png",
    }
    config = load(tmp_path, entry)
    assert [e.labels.exists() for e in config.data.train] == [True, True]
    assert [e.scene.parent.name for e in config.data.train] == [e.labels.parent.name for e in config.data.train]


def test_a_file_with_brackets_in_its_name_is_no_pattern(tmp_path: Path) -> None:
    touch(tmp_path, "field[1].tif", "field1.tif")
    config = load(tmp_path, {"scene": "field[1].tif", "labels": "{stem}.tif"})
    assert pairs(config.data.train, tmp_path) == [("field[1].tif", "{stem}.tif")]


def test_a_folder_with_brackets_in_its_name_is_no_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "flight [2] {b}"
    touch(folder, "or thos/ä[1].tif", "or thos/q{2}.tif", "labels/ä[1].tif", "labels/q{2}.tif")
    config = load(folder, {"scene": "or thos/*.tif", "labels": "labels/{stem}.tif"})
    found = [("or thos/q{2}.tif", "labels/q{2}.tif"), ("or thos/ä[1].tif", "labels/ä[1].tif")]
    assert pairs(config.data.train, folder) == found
    assert pairs(load(folder, {"scene": "lost.tif", "labels": "l"}).data.train, folder) == [("lost.tif", "l")]
    lost = {"scene": str(folder / "lost.tif"), "labels": OTHER["labels"]}
    assert [str(entry.scene) for entry in load(tmp_path, lost).data.train] == [lost["scene"]]
    touch(tmp_path, "l.gpkg")
    config = load(tmp_path, {"scene": f"{folder}/o*/q*.tif", "labels": "l.gpkg"})
    assert pairs(config.data.train, tmp_path) == [("flight [2] {b}/or thos/q{2}.tif", "l.gpkg")]


def test_patterns_lead_through_links_and_around_no_circle(tmp_path: Path) -> None:
    touch(tmp_path, "disk/orthos/a.tif", "disk/orthos/z.tif", "l.gpkg")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "linked").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "orthos" / "back").symlink_to(tmp_path / "disk")
    for pattern in ("here/**/*.tif", "here/**/orthos/**/**.tif"):
        config = load(tmp_path, {"scene": pattern, "labels": "l.gpkg"})
        found = [scene for scene, _ in pairs(config.data.train, tmp_path)]
        assert found == ["here/linked/orthos/a.tif", "here/linked/orthos/z.tif"]


def test_a_pattern_that_finds_nothing_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "orthos/a.png")
    error = refused(tmp_path, OTHER, {"scene": "orthos/*.tif", "labels": "l.gpkg"})
    assert error.message == f"data.train.1: no file matches {tmp_path}/orthos/*.tif"


def test_all_scenes_without_labels_are_listed(tmp_path: Path) -> None:
    touch(tmp_path, *(f"orthos/{n}.tif" for n in "abc"), "labels/b.tif", *(f"val/{i}.tif" for i in range(60)))
    train = {"scene": "orthos/*.tif", "labels": "labels/{stem}.tif"}
    error = refused(tmp_path, train)
    assert error.message.splitlines() == [
        "2 files of the scenes are missing:",
        *(f"  {tmp_path}/labels/{n}.tif, labels of {tmp_path}/orthos/{n}.tif" for n in "ac"),
    ]
    error = refused(tmp_path, train, val={"scene": "val/*.tif", "labels": "none/{stem}.tif"})
    assert error.message.startswith("62 files") and error.message.endswith("and 12 more")


@pytest.mark.parametrize(
    ("scene", "labels", "complaint"),
    [
        ("orthos/*.tif", "labels/{stm}.tif", "an unknown placeholder {stm}"),
        ("orthos/*_*.tif", "labels/{name}.tif", "none or several"),
        ("ortho?/a_b.tif", "labels/{name}.tif", "none or several"),
    ],
)
def test_placeholders_that_stand_for_nothing_are_explained(
    tmp_path: Path, scene: str, labels: str, complaint: str
) -> None:
    touch(tmp_path, "orthos/a_b.tif")
    error = refused(tmp_path, {"scene": scene, "labels": labels})
    assert complaint in error.message and "{stem}" in str(error.hint)


def test_a_typo_beside_a_pattern_gets_the_nearest_key(tmp_path: Path) -> None:
    touch(tmp_path, "orthos/a.tif", "l.gpkg")
    error = refused(tmp_path, {"scene": "orthos/*.tif", "labels": "l.gpkg", "outsid": "ignore"})
    assert "unknown key data.train.0.outsid" in error.message and error.hint == "did you mean outside?"


# --- catalogues


def write_catalogue(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_csv_names_scenes_of_both_splits(tmp_path: Path, delimiter: str) -> None:
    touch(tmp_path, *(f"sets/{n}.tif" for n in "abc"), *(f"sets/{n}.gpkg" for n in "abc"), "sets/area.gpkg")
    rows = [
        ("scene", "labels", "outside", "labelled_area", "split"),
        ("a.tif", "a.gpkg", "", "area.gpkg", "train"),
        ("b.tif", "b.gpkg", "ignore", "", "val"),
        (str(tmp_path / "sets/c.tif"), "c.gpkg", "", "", "train"),
    ]
    write_catalogue(tmp_path / "sets/all.csv", *(delimiter.join(row) for row in rows), "")
    entry = {"catalogue": "sets/all.csv", "class_name": "field", "outside": "other"}
    config = load(tmp_path, entry, val=entry)
    assert pairs(config.data.train, tmp_path) == [("sets/a.tif", "sets/a.gpkg"), ("sets/c.tif", "sets/c.gpkg")]
    assert pairs(config.data.val, tmp_path) == [("sets/b.tif", "sets/b.gpkg")]
    assert [e.outside for e in (*config.data.train, *config.data.val)] == ["other", "other", "ignore"]
    assert config.data.train[0].labelled_area == tmp_path / "sets/area.gpkg"
    assert config.data.train[1].labelled_area is None


@pytest.mark.parametrize("name", ["scenes.gpkg", "scenes.geojson"])
def test_a_vector_file_of_outlines_is_a_catalogue(tmp_path: Path, name: str) -> None:
    touch(tmp_path, *(f"sets/{n}.tif" for n in "ab"), "labels.gpkg")
    frame = geopandas.GeoDataFrame(
        {"scene": ["a.tif", "b.tif"], "outside": [None, "ignore"]}, geometry=[Point(0, 0)] * 2, crs="EPSG:4326"
    )
    frame.to_file(tmp_path / "sets" / name)
    entry = {"catalogue": f"sets/{name}", "labels": "labels.gpkg", "attribute": "kind", "outside": "other"}
    config = load(tmp_path, entry)
    assert pairs(config.data.train, tmp_path) == [("sets/a.tif", "labels.gpkg"), ("sets/b.tif", "labels.gpkg")]
    assert [e.outside for e in config.data.train] == ["other", "ignore"]


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_a_plain_table_is_a_catalogue_several_layers_are_not(tmp_path: Path) -> None:
    touch(tmp_path, "a.tif", "a.gpkg")
    frame = geopandas.GeoDataFrame({"scene": ["a.tif"], "labels": ["a.gpkg"]})
    pyogrio.write_dataframe(frame, tmp_path / "c.gpkg", layer="scenes")
    assert pairs(load(tmp_path, {"catalogue": "c.gpkg"}).data.train, tmp_path) == [("a.tif", "a.gpkg")]
    pyogrio.write_dataframe(frame, tmp_path / "c.gpkg", layer="more", append=True)
    error = refused(tmp_path, {"catalogue": "c.gpkg"})
    assert "holds 2 layers" in error.message and "scenes, more" in error.message


@pytest.mark.parametrize(
    ("lines", "complaint", "hint"),
    [
        (["scene,label", "a.tif,a.gpkg"], "unknown columns: label; it lacks columns: labels", "did you mean labels?"),
        (["scene,labels,colour,x", "a,b,c,d"], "unknown columns: colour, x", "labelled_area"),
        (["labels", "a.gpkg"], "lacks columns: scene", "its columns may be"),
        (["scene,labels"], "has no rows", "its columns may be"),
        ([""], "has no rows", "its columns may be"),
        (["scene,labels,scene", "a,b,c"], "has duplicate columns: scene", None),
        ([",scene,labels,", "0,a,b,"], "has a value in line 2 in a column without a name", "its columns may be"),
        (["scene,labels", "a.tif,a,b.gpkg"], "has 3 cells in line 2, but 2 columns", "quotes"),
        (["scene,labels", 'a.tif,"a'], "is not a CSV file", "UTF-8"),
        (
            ["scene,labels", "a.tif,", ",b.gpkg", "c.tif"],
            "row 2 has no labels\n  row 3 has no scene\n  row 4 has no",
            "",
        ),
        (["scene,labels,split", "a,b,train", "c,d,test", "e,f,"], "row 3 has the split 'test', expected train or", ""),
        (["scene,labels,split", "a.tif,b,val"], "has no row of split train", "leave it out of data.train"),
    ],
)
def test_catalogues_that_cannot_be_meant_are_explained(
    tmp_path: Path, lines: list[str], complaint: str, hint: str | None
) -> None:
    path = write_catalogue(tmp_path / "c.csv", *lines)
    error = refused(tmp_path, {"catalogue": "c.csv"})
    assert complaint in error.message and str(path) in error.message
    assert hint is None or hint in str(error.hint)


def test_empty_columns_of_a_spreadsheet_are_nothing(tmp_path: Path) -> None:
    touch(tmp_path, "a.tif", "a.gpkg")
    write_catalogue(tmp_path / "c.csv", "scene;labels;;", "a.tif;a.gpkg;;", ";;;")
    assert pairs(load(tmp_path, {"catalogue": "c.csv"}).data.train, tmp_path) == [("a.tif", "a.gpkg")]


def test_invalid_catalogue_entries_are_explained(tmp_path: Path) -> None:
    touch(tmp_path, "a.tif", "a.gpkg")
    write_catalogue(tmp_path / "c.csv", "scene,labels", "a.tif,a.gpkg")
    assert "no such catalogue" in refused(tmp_path, {"catalogue": "d.csv"}).message
    assert "no such catalogue" in refused(tmp_path, {"catalogue": "d.gpkg"}).message
    assert "cannot be read" in refused(tmp_path, {"catalogue": "a.gpkg"}).message
    assert "must name a file" in refused(tmp_path, {"catalogue": 3}).message
    assert "a scene and a catalogue" in refused(tmp_path, {"catalogue": "c.csv", "scene": "a.tif"}).message
    error = refused(tmp_path, {"catalogue": "c.csv", "outsde": "other"})
    assert error.hint == "did you mean outside?"
    write_catalogue(tmp_path / "s.csv", "scene,labels,split", "a.tif,a.gpkg,train")
    split = {"data": {"scenes": [{"catalogue": "s.csv"}], "split": {"block": 2048}}}
    assert "has a column split" in refused(tmp_path, **split).message


def test_files_that_a_catalogue_names_must_be_there(tmp_path: Path) -> None:
    touch(tmp_path, "a.tif", "b.gpkg")
    write_catalogue(tmp_path / "c.csv", "scene,labels,labelled_area", "a.tif,a.gpkg,", "b.tif,b.gpkg,area.gpkg")
    assert refused(tmp_path, {"catalogue": "c.csv"}).message.splitlines() == [
        "3 files of the scenes are missing:",
        f"  {tmp_path}/a.gpkg, labels of {tmp_path}/a.tif",
        f"  {tmp_path}/b.tif",
        f"  {tmp_path}/area.gpkg, labelled area of {tmp_path}/b.tif",
    ]


# --- what becomes of them


def test_what_is_saved_names_every_scene(tmp_path: Path) -> None:
    touch(tmp_path, "o/a.tif", "o/b.tif", "l/a.tif", "l/b.tif")
    write_catalogue(tmp_path / "c.csv", "scene,labels", "o/b.tif,l/b.tif")
    data = {
        "scenes": [{"scene": "o/*.tif", "labels": "l/{stem}.tif"}, {"catalogue": "c.csv"}],
        "split": {"block": 2048},
    }
    config = load(tmp_path, data=data, classes="cityscapes")
    assert [e.scene.name for e in config.data.scenes] == ["a.tif", "b.tif", "b.tif"]
    (tmp_path / "run").mkdir()
    save_config(config, tmp_path / "run/config.yaml")
    touch(tmp_path, "o/c.tif", "l/c.tif")
    assert load_config(tmp_path / "run/config.yaml") == config


def test_classes_may_be_a_known_table(tmp_path: Path) -> None:
    assert load(tmp_path, OTHER, classes="iSAID").class_table == KNOWN["iSAID"]
    error = refused(tmp_path, OTHER, classes="isad")
    assert "no class table 'isad'" in error.message and "iSAID, Cityscapes" in str(error.hint)


def test_the_examples_of_the_docs_load(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs/howto/data.md").read_text(encoding="utf-8")
    blocks = re.findall("```yaml\n(.*?)```", text, re.DOTALL)
    first, cityscapes, points, cut = (yaml.safe_load(block) for block in blocks)
    (catalogue,) = re.findall("```\n(scene,.*?)```", text, re.DOTALL)
    touch(tmp_path, "other_town/a.tif", "other_town/b.tif", "other_town/labels/a.tif", "other_town/labels/b.tif")
    first["data"]["root"] = str(tmp_path)
    config = load(tmp_path, **first)
    assert [entry.labels.name for entry in config.data.val] == ["a.tif", "b.tif"]
    touch(tmp_path, "leftImg8bit/train/ulm/x_leftImg8bit.png", "gtFine/train/ulm/x_gtFine_labelTrainIds.png")
    assert len(load(tmp_path, *cityscapes).data.train) == 1
    assert SceneConfig.model_validate(points[0]).buffer_m == 1.5
    assert load(tmp_path, **cut, train={"size": 512}).data.split == SplitConfig()
    touch(tmp_path, *(f"{n}.{end}" for n in ("a", "b", "a_fields", "b_fields", "a_area") for end in ("tif", "gpkg")))
    write_catalogue(tmp_path / "scenes.csv", *catalogue.splitlines())
    entry = {"catalogue": "scenes.csv"}
    config = load(tmp_path, entry, val=entry)
    assert config.data.train[0].labelled_area == tmp_path / "a_area.gpkg"
    assert [e.labels.name for e in config.data.val] == ["b_fields.gpkg"]


def test_a_configuration_loads_without_vector_libraries(tmp_path: Path) -> None:
    touch(tmp_path, "a.tif", "a.gpkg")
    write_catalogue(tmp_path / "c.csv", "scene,labels", "a.tif,a.gpkg")
    load(tmp_path, {"catalogue": "c.csv"})
    program = (
        "import sys; from geoseg.config import load_config; load_config(sys.argv[1]);"
        "sys.exit(' '.join({'pyogrio', 'pandas', 'geopandas', 'rasterio', 'torch'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "fields.yaml")]
    assert subprocess.run(command, capture_output=True, text=True, check=False).stderr.strip() == ""
