"""Classes whose touching objects are separated, from labels through training to evaluated maps and polygons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from rasterio.crs import CRS
from shapely.geometry import box

from geoseg.class_map.writing import MapFileWriter
from geoseg.classes import ClassTable
from geoseg.config import TrainConfig, parse_config
from geoseg.contract import load_contract
from geoseg.data.checks.dataset import check_data
from geoseg.data.labelled import LabelledScene
from geoseg.errors import ConfigError, LabelError, SceneError
from geoseg.map_rows import CUT_EAST, MapRows
from geoseg.options import PolygonRules
from geoseg.programs.evaluate import evaluate
from geoseg.programs.train import train
from geoseg.programs.vectorize import vectorize
from geoseg.tiling.arrays import mapped_logits
from geoseg.windows import Window
from support.commands import read_map, run, succeed
from support.map_files import grid_of
from support.terraces import GSD_M, write_terraces
from support.training import UNET, settings

HOUSE: dict[str, Any] = {"name": "house", "color": "#aa2222", "separate": True}
CONTACT = 2


def values(folder: Path, house: dict[str, Any] = HOUSE, **changes: Any) -> dict[str, Any]:
    """An experiment on two terraces, ``a`` to train and ``b`` to validate."""
    data = {
        split: [
            {
                "scene": str(folder / f"{name}.tif"),
                "labels": str(folder / f"{name}.gpkg"),
                "class_name": "house",
                "outside": "ground",
            }
        ]
        for split, name in (("train", "a"), ("val", "b"))
    }
    ground = {"name": "ground", "color": "#dddddd", "background": True}
    changes = {"model": UNET, "augment": {"scale": [1, 1]}, "data": data} | changes
    output = changes.pop("output", folder / "run")
    return settings(folder, output, classes=[ground, house], **changes)


def experiment(folder: Path, house: dict[str, Any] = HOUSE, **changes: Any) -> TrainConfig:
    return parse_config(values(folder, house, **changes), source="test")


@pytest.fixture(scope="module")
def terraces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("terraces")
    for seed, name in enumerate("ab"):
        write_terraces(folder, name, seed=seed)
    return folder


@pytest.fixture(scope="module")
def config(terraces: Path) -> TrainConfig:
    recipe = {"iterations": 50, "batch_size": 4, "learning_rate": 2e-3, "decoder_lr_factor": 1, "val_every": 1000}
    return experiment(terraces, train=recipe)


@pytest.fixture(scope="module")
def model(config: TrainConfig) -> Path:
    return train(config)


def scene_of(folder: Path, *houses: Any, width_m: float = 1.0, crs: str | None = "EPSG:32633") -> LabelledScene:
    """A scene of 40 × 40 px of 0.5 m, and its labels."""
    transform = Affine(GSD_M, 0, 0, 0, -GSD_M, 20) if crs else Affine.identity()
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": 40, "width": 40, "transform": transform}
    for name in "ab":
        with rasterio.open(folder / f"{name}.tif", "w", **profile, crs=crs and CRS.from_string(crs)) as out:
            out.write(np.full((3, 40, 40), 9, np.uint8))
        geopandas.GeoDataFrame(geometry=list(houses), crs=crs).to_file(folder / f"{name}.gpkg")
    settings = experiment(folder, {**HOUSE, "contact_m": width_m})
    return LabelledScene(settings.data.train[0], settings)


def test_pixels_near_another_house_are_contact(tmp_path: Path) -> None:
    labelled = scene_of(tmp_path, box(1, 1, 5, 9), box(5, 1, 9, 9), box(9.5, 1, 12, 9), box(15, 1, 18, 9))
    assert labelled.touching is not None
    window = Window(0, 0, 40, 40)
    marked = labelled.touching.mark(labelled.labels.read(window), window)
    row = "".join("·hC"[value] for value in marked[30])
    # The first two touch, the third is 0.5 m away, the last one far.
    assert row == "··" + "hhhhhhCC" + "CChhhhhC" + "·" + "Chhhh" + "······" + "hhhhhh" + "····"
    whole, part = marked[5:35, 3:33], Window(5, 3, 30, 30)
    np.testing.assert_array_equal(labelled.touching.mark(labelled.labels.read(part), part), whole)
    assert not (marked[labelled.labels.read(window) == 0] == CONTACT).any(), "a gap stays ground"


def test_labels_are_cut_between_houses(tmp_path: Path) -> None:
    labelled = scene_of(tmp_path, box(1, 1, 5, 9), box(5, 1, 9, 9))
    assert labelled.touching is not None
    cuts = labelled.touching.cuts(labelled.labels, Window(0, 0, 40, 40))
    expected = np.zeros_like(cuts)
    expected[22:38, 9] = CUT_EAST
    np.testing.assert_array_equal(cuts, expected)


def test_two_drawings_of_one_house_have_no_contact(tmp_path: Path) -> None:
    labelled = scene_of(tmp_path, box(1, 1, 9, 9), box(1, 1, 9, 8.8))
    assert labelled.touching is not None
    assert labelled.touching.pairs == 0


def test_a_contact_of_unknown_or_no_width_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"less than a pixel of scene .* \(0\.5 m\)"):
        scene_of(tmp_path, box(1, 1, 5, 9), width_m=0.3)
    with pytest.raises(LabelError, match="no CRS"):
        scene_of(tmp_path, box(1, 1, 5, 9), crs=None)


def test_labels_that_do_not_show_contacts_are_refused(terraces: Path, tmp_path: Path) -> None:
    given = values(terraces)
    with rasterio.open(terraces / "a.tif") as file:
        profile = file.profile | {"count": 1}
    with rasterio.open(tmp_path / "labels.tif", "w", **profile) as out:
        out.write(np.indices((256, 256)).sum(0)[None].astype(np.uint8) % 2)
    entry = {"scene": given["data"]["train"][0]["scene"], "labels": str(tmp_path / "labels.tif")}
    raster = parse_config(given | {"data": given["data"] | {"train": [entry]}}, source="test")
    assert any("are a raster, which does not show" in problem.message for problem in check_data(raster))
    frame = geopandas.read_file(terraces / "a.gpkg")
    frame.geometry = frame.geometry.buffer(-1)
    frame.to_file(tmp_path / "apart.gpkg")
    entry = given["data"]["train"][0] | {"labels": str(tmp_path / "apart.gpkg")}
    apart = parse_config(given | {"data": given["data"] | {"train": [entry]}}, source="test")
    (problem,) = [p for p in check_data(apart) if p.severity == "error"]
    assert "no two polygons of house in the training scenes are within 1 m" in problem.message


def test_keys_without_effect_are_refused(terraces: Path) -> None:
    for house in ({**HOUSE, "separate": False, "contact_m": 1.0}, {**HOUSE, "background": True}):
        with pytest.raises(ConfigError):
            experiment(terraces, house)


def test_a_contact_counts_as_its_class() -> None:
    table = ClassTable.from_names("abc", ["#000000"] * 3, separate={"b"})
    assert table.channels == (0, 1, 2, 1)
    logits = torch.tensor([1.0, 0.0, 2.0, 3.0]).view(1, 4, 1, 1)
    assert mapped_logits(logits, table.channels, torch).flatten().tolist() == [1, 3, 2]
    plain = torch.zeros(1, 3, 1, 1)
    assert mapped_logits(plain, (0, 1, 2), torch) is plain


def test_touching_houses_come_apart(model: Path, config: TrainConfig, tmp_path: Path) -> None:
    found = evaluate(str(model), config, output=tmp_path / "scores")
    assert found.total.scores.matrix.shape == (2, 2), "the contact is no class of the map"
    assert found.total.scores.iou[1] > 0.8
    assert found.total.objects is not None
    assert found.total.objects.f1[1] > 0.8
    (merged,) = found.facts["objects, if those that touch are one"]
    assert float(merged.rpartition(" ")[2]) < 0.5, "most houses touch another one"


def test_the_model_knows_its_contact(model: Path) -> None:
    contract = load_contract(model)
    assert contract.class_table.channel_names == ("ground", "house", "contact of house")
    assert contract.classes[1].separate
    assert "touching objects can be separated" in succeed("info", model)


def test_polygons_are_those_of_the_map(model: Path, terraces: Path, tmp_path: Path) -> None:
    scene, options = terraces / "b.tif", ("--separate", "house", "--min-area", 4)
    succeed("predict", scene, "-m", model, "-o", tmp_path / "map.tif")
    succeed("predict", scene, "-m", model, "-o", tmp_path / "plain.tif", "--no-contact")
    assert not (tmp_path / "plain_contact.tif").exists()
    np.testing.assert_array_equal(read_map(tmp_path / "map.tif")[0], read_map(tmp_path / "plain.tif")[0])
    assert read_map(tmp_path / "map.tif")[0].max() == 1, "the contact is no class of the map"
    succeed("predict", scene, "-m", model, "-o", tmp_path / "direct.gpkg", *options)
    succeed("vectorize", tmp_path / "map.tif", "-o", tmp_path / "later.gpkg", *options)
    succeed("vectorize", tmp_path / "map.tif", "-o", tmp_path / "merged.gpkg", "--min-area", 4)
    direct, later, merged = (geopandas.read_file(tmp_path / f"{n}.gpkg") for n in ("direct", "later", "merged"))
    assert direct.geometry.to_wkb().tolist() == later.geometry.to_wkb().tolist()
    assert len(direct) > 2 * len(merged)
    assert direct.area.sum() == pytest.approx(merged.area.sum(), rel=1e-3)


def test_the_contact_of_another_map_is_refused_as_such(tmp_path: Path) -> None:
    names = ClassTable.from_names(["ground", "house"], ["#000000", "#aa2222"], separate={"house"})
    for name, value in (("a", 0), ("b", 1)):
        values = np.full((4, 4), value, np.uint8)
        with MapFileWriter(tmp_path / f"{name}.tif", grid_of(4, 4), names, layers=("classes", "contact")) as out:
            out.write(MapRows(values, contact=np.zeros_like(values)))
    (tmp_path / "a_contact.tif").replace(tmp_path / "b_contact.tif")
    for name, why in (("a", "no .*a_contact.tif beside the map"), ("b", "b_contact.tif was not written with .*b.tif")):
        with pytest.raises(SceneError, match=why):
            vectorize(tmp_path / f"{name}.tif", tmp_path / "out.gpkg", rules=PolygonRules(separate=["house"]))


def test_an_exported_model_gives_the_classes_of_the_map(model: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    succeed("export", model, "-o", tmp_path / "m.onnx", "--size", 64)
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    (given,) = session.get_inputs()
    (shares,) = session.run(None, {given.name: np.full((1, 3, 64, 64), 0.5, np.float32)})
    assert shares.shape == (1, 2, 64, 64)
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)


def test_a_model_without_contact_has_none_to_write(terraces: Path, tmp_path: Path) -> None:
    scene = terraces / "b.tif"
    for output, option in (("map.tif", ["--contact"]), ("map.gpkg", ["--separate", "building"])):
        ran = run("predict", scene, "-m", "landscape-tiny", "-o", tmp_path / output, "--ignore-gsd", *option)
        assert ran.exit_code == 2
        assert "hint:" in ran.stderr
        assert "separate: true" in ran.stderr


def test_training_goes_on_from_a_model_without_contact(terraces: Path, model: Path, tmp_path: Path) -> None:
    recipe = {"iterations": 1, "batch_size": 2, "warmup_iterations": 0}
    changes = {"train": recipe, "model": UNET | {"start_from": str(model)}}
    plain = train(experiment(terraces, {"name": "house", "color": "#aa2222"}, **changes, output=tmp_path / "plain"))
    assert load_contract(plain).class_table.channels == (0, 1)
    changes["model"] = UNET | {"start_from": str(plain)}
    again = train(experiment(terraces, **changes, output=tmp_path / "again"))
    assert load_contract(again).class_table.channels == (0, 1, 1)
