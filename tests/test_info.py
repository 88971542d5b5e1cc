from __future__ import annotations

import json
import re
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.enums import ColorInterp

from geoseg.class_map.writing import MapFileWriter
from geoseg.classes import ClassTable
from geoseg.contract import Band, ClassEntry, Contract, WindowSettings, load_contract
from geoseg.errors import ConfigError, LabelError, ModelError, SceneError
from geoseg.map_rows import MapRows
from geoseg.network.model_folder import build_network, save_model
from geoseg.network.stored_model import open_model
from geoseg.prediction.predictor import Predictor
from geoseg.programs.info import describe
from geoseg.scene import Scene
from support.scenes import MakeScene


def facts(path: object, **options: str) -> dict[str, str]:
    """The last line of each name."""
    return dict(re.split(r" {2,}", line, maxsplit=1) for line in describe(str(path), **options))


def test_a_scene_says_what_it_is_and_where(make_scene: MakeScene) -> None:
    made = make_scene(size=(600, 900), photometric="RGB", nodata="value")
    found = facts(made.path)
    assert found["scene"] == str(made.path)
    assert found["size"].startswith("900 × 600 px, 0.54 Mpx, ")
    assert found["CRS"] == "EPSG:32633, WGS 84 / UTM zone 33N"
    assert found["pixel"] == "0.5 × 0.5 m on the map, 0.5002 m on the ground"
    assert found["extent"].startswith("longitude 15 … 15.0059, latitude 46.95")
    assert found["extent"].endswith(" ha")
    assert found["file"] == "GTiff, blocks of 32 × 32 px, compression DEFLATE, overviews none"
    assert found["band 3"].startswith("blue, uint8, values ")
    assert found["nodata"] == "value 0"
    assert found["prediction"].startswith("6 windows of 512 × 512 px that overlap by 128 px, ")
    assert "MiB beside the network" in found["prediction"]
    assert "warning" not in found


def test_orientation_units_and_the_lack_of_them_are_said(make_scene: MakeScene) -> None:
    assert facts(make_scene(orientation="south").path)["pixel"].endswith("on the ground, south-up")
    assert facts(make_scene(orientation="rotated").path)["pixel"].endswith("rotated by 30°")
    assert "5e-06 × 5e-06 ° on the map, 0.4598 m" in facts(make_scene(crs="EPSG:4326").path)["pixel"]
    assert "1.64 × 1.64 US survey foot on the map, 0.4999 m" in facts(make_scene(crs="EPSG:2263").path)["pixel"]
    found = facts(make_scene(crs=None).path)
    assert found["CRS"] == "none: the raster has no georeference"
    assert "no georeference" in found["warning"]


@pytest.mark.parametrize(
    ("options", "validity"),
    [
        ({}, "none: every pixel counts"),
        ({"nodata": "mask"}, "mask band"),
        ({"nodata": "nan", "dtype": "float32"}, "NaN"),
    ],
)
def test_the_rule_of_validity_is_said(make_scene: MakeScene, options: dict[str, str], validity: str) -> None:
    assert facts(make_scene(**options).path)["nodata"] == validity


def test_alpha_differs_from_near_infrared_tagged_as_alpha(make_scene: MakeScene) -> None:
    real = make_scene(bands=3, nodata="alpha", photometric="RGB").path
    assert facts(real)["warning"] == "band 4 is alpha: use it as validity with --bands 1,2,3 --alpha"
    infrared = make_scene(bands=4, photometric="RGB").path
    with rasterio.open(infrared, "r+") as file:
        file.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    assert "may be near infrared" in facts(infrared)["warning"]


def test_traps_are_pointed_out_with_what_to_type(make_scene: MakeScene) -> None:
    black = make_scene(nodata="value")
    with rasterio.open(black.path, "r+") as file:
        file.nodata = None
    assert "--nodata 0" in facts(black.path)["warning"]
    striped = make_scene(size=(3, 2100), tiled=False, blockxsize=None, blockysize=1)
    assert "TILED=YES" in facts(striped.path)["warning"]
    assert "-ot Float32" in facts(make_scene(dtype="int32").path)["warning"]


def test_a_class_map_says_its_classes_shares_and_areas(tmp_path: Path, make_scene: MakeScene) -> None:
    with Scene(make_scene(size=(40, 50)).path) as scene:
        grid = scene.grid
    values = np.zeros((40, 50), np.uint8)
    values[:10], values[30:] = 1, 255
    classes = ClassTable.from_names(["land", "water", "lava"], ["#00ff00", "#0000ff", "#ff0000"])
    with MapFileWriter(tmp_path / "map.tif", grid, classes) as writer:
        writer.write(MapRows(values))
    found = facts(tmp_path / "map.tif")
    assert found["class map"] == str(tmp_path / "map.tif")
    assert re.fullmatch(r"land: 66\.67% of the valid pixels, 0\.025\d* ha", found["class 0"])
    assert found["class 1"].startswith("water: 33.33%")
    assert found["class 2"] == "lava: 0.00% of the valid pixels"
    assert found["nodata"] == "value 255"
    with pytest.raises(ConfigError, match="only scenes are predicted"):
        describe(str(tmp_path / "map.tif"), model="buildings-tiny")


def test_foreign_label_rasters_are_class_maps_too(make_scene: MakeScene) -> None:
    labels = make_scene(bands=1, dtype="uint16")
    with rasterio.open(labels.path, "r+") as file:
        file.write(np.where(labels.pixels > 30000, 7, 255).astype("uint16"))
    found = facts(labels.path)
    assert set(found) >= {"class 7", "class 255"}
    assert "not declared as nodata" in found["warning"]
    assert "scene" in facts(make_scene(bands=1).path)


@pytest.mark.parametrize("suffix", ["geojson", "gpkg", "shp", "fgb"])
def test_a_vector_file_says_its_fields_and_class_values(tmp_path: Path, suffix: str) -> None:
    frame = geopandas.GeoDataFrame(
        {"class": ["house", "house", None, "road"], "code": [1, 2, 3, 4]},
        geometry=[shapely.box(i, 47, i + 0.5, 48) for i in range(4)],
        crs="EPSG:4326",
    )
    path = tmp_path / f"labels.{suffix}"
    frame.to_file(path)
    lines = describe(str(path))
    found = facts(path)
    assert found["layer"] == "labels: 4 features of type Polygon"
    assert found["CRS"] == "EPSG:4326, WGS 84"
    assert found["extent"] == "longitude 0 … 3.5, latitude 47 … 48"
    assert any("class: text, values house (2), road (1), empty (1)" in line for line in lines)
    assert re.fullmatch(r"code: int\d+", found["field"])  # all different: no classes


def test_a_vector_file_without_crs_is_warned_of(tmp_path: Path) -> None:
    frame = geopandas.GeoDataFrame({"class": ["a"]}, geometry=[shapely.box(0, 0, 1, 1)])
    with pytest.warns(UserWarning, match="crs"):
        frame.to_file(tmp_path / "labels.shp")
    assert "has no CRS" in facts(tmp_path / "labels.shp")["warning"]
    (tmp_path / "broken.geojson").write_text("{")
    with pytest.raises(LabelError, match=r"broken\.geojson cannot be read"):
        describe(str(tmp_path / "broken.geojson"))


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    Contract(
        name="roofs",
        bands=(Band(name="red", mean=0.4, std=0.2),),
        dtype="uint8",
        scale=1 / 255,
        gsd_m=0.15,
        classes=(ClassEntry(name="ground", color="#000000"), ClassEntry(name="roof", color="#ff0000")),
        window=WindowSettings(size=256, overlap=64),
        training={"iterations": 4000},
    ).save(folder)
    return folder


def test_a_model_folder_says_what_imagery_it_is_for(model_folder: Path) -> None:
    found = facts(model_folder)
    assert found["model"] == f"roofs, in {model_folder}"
    assert found["band"] == "red: mean 0.4, standard deviation 0.2"
    assert found["pixels"] == "uint8 × 0.003922, nodata as the file says"
    assert found["GSD"] == "0.15 m"
    assert found["class"] == "1 roof #ff0000"
    assert found["training"] == "iterations: 4000"
    assert found["warning"].startswith("model.safetensors is missing")
    (model_folder / "config.json").write_text(json.dumps({"_model_class": "SegNeXt", "encoder_name": "tu-mscan_tiny"}))
    (model_folder / "model.safetensors").write_bytes(bytes(1500))
    found = facts(model_folder)
    assert (found["network"], found["weights"]) == ("SegNeXt with tu-mscan_tiny", "model.safetensors, 1.5 kB")
    (model_folder / "geoseg.json").write_text("{}")
    with pytest.raises(ModelError, match="name"):
        describe(str(model_folder))


def test_the_training_is_described_in_words(model_folder: Path) -> None:
    contract = load_contract(model_folder)
    record = {
        "scenes": ["a.tif", "b.tif"],
        "val_miou": 0.82504,
        "val_iou": {"ground": 0.9, "roof": 0.75},
        "recipe": {"size": 384, "precision": None, "compile": False, "loss": [{"name": "dice", "weight": 1.0}]},
    }
    contract.model_copy(update={"training": record}).save(model_folder)
    assert [line.split(maxsplit=1)[1] for line in describe(str(model_folder)) if line.startswith("training")] == [
        "scenes: a.tif, b.tif",
        "val mIoU: 0.82504",
        "val IoU: ground 0.9, roof 0.75",
        "recipe: size 384, compile no, loss (name dice, weight 1)",
    ]


def test_info_plans_a_prediction_and_reports_problems(make_scene: MakeScene, model_folder: Path) -> None:
    network = build_network("segnext", "tu-mscan_tiny", encoder_weights=None, in_channels=1, classes=2)
    save_model(model_folder, network, load_contract(model_folder))
    fitting = facts(make_scene(size=(300, 300), bands=1, crs=None).path, model=str(model_folder))
    assert fitting["prediction"].startswith("4 windows of 256 × 256 px that overlap by 64 px, ")
    assert fitting["prediction"].endswith("with roofs")
    coarse = make_scene(size=(300, 300), bands=1).path
    assert "trained on 0.15 m; add --gsd model" in facts(coarse, model=str(model_folder))["warning"]


@pytest.mark.parametrize(("size_m", "models"), [(0.14, ["buildings-tiny"]), (0.5, ["landscape-tiny"]), (3, [])])
def test_without_a_model_the_shipped_ones_that_fit_are_planned(
    make_scene: MakeScene, size_m: float, models: list[str]
) -> None:
    made = make_scene(size=(600, 900))
    with rasterio.open(made.path, "r+") as file:
        file.transform = made.transform @ Affine.scale(size_m / 0.5)
    lines = [line.split(maxsplit=1)[1] for line in describe(str(made.path)) if line.startswith("prediction")]
    with Scene(made.path) as scene:
        planned = [f"{Predictor(open_model(name)).plan(scene)}, with {name}" for name in models]
    if models:
        assert lines == planned
        assert facts(made.path, model=models[0])["prediction"] == planned[0]
    else:
        assert len(lines) == 1 and "name a model with -m" in lines[0]


def test_a_shipped_model_goes_by_its_name(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geoseg.contract.SHIPPED", model_folder.parent)
    monkeypatch.chdir("/")
    assert facts("model")["model"] == f"roofs, in {model_folder}"
    with pytest.raises(SceneError, match="no such scene: models"):
        describe("models")


def test_an_unknown_model_is_refused(make_scene: MakeScene) -> None:
    with pytest.raises(ModelError, match="no model folder nothing"):
        describe(str(make_scene().path), model="nothing")


def test_what_is_nothing_of_all_this(tmp_path: Path) -> None:
    with pytest.raises(SceneError, match="no such scene"):
        describe(str(tmp_path / "nowhere.tif"))
    with pytest.raises(SceneError, match="is a folder"):
        describe(str(tmp_path))


@pytest.mark.real_data
def test_real_imagery_is_described(real_data: Path) -> None:
    found = facts(real_data / "samples_unlabelled" / "naip_palm_springs_2018_60.tif")
    assert "may be near infrared" in found["warning"]
    found = facts(real_data / "hot_buildings" / "val" / "footprints" / "zanzibar_b.geojson")
    assert found["layer"] == "zanzibar_b: 81 features of type Polygon"
    found = facts(real_data / "hot_buildings" / "val" / "masks" / "zanzibar_b.tif")
    assert "12.26%" in found["class 1"]
