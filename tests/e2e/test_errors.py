"""Whatever the user can put right ends in one message, exit code 2, and a folder as it was before."""

from __future__ import annotations

import json
import shutil
import sqlite3
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import torch
import yaml
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from shapely.geometry import box

from support.commands import Ran, files_in, run, succeed
from support.hints import commands_in, complaint, misplaced_commands, options_in, with_option, words_of
from support.model_folders import CLASSES, write_model
from support.networks import TINY
from support.scenes import MadeScene, write_scene

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

Prepare = Callable[["Place"], list[object]]


@dataclass(frozen=True)
class Place:
    """A folder with all that is needed for every verb to succeed; a case spoils one thing in it."""

    folder: Path
    scene: MadeScene
    locks: list[sqlite3.Connection] = field(default_factory=list)

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    @property
    def model(self) -> Path:
        return self / "model"

    def predict(self, *options: object, out: str = "out.tif", scene: str = "scene.tif") -> list[object]:
        return ["predict", self / scene, "-m", self.model, "-o", self / out, *options]

    def vectorize(self, *options: object, out: str = "out.gpkg", source: str = "map.tif") -> list[object]:
        return ["vectorize", self / source, "-o", self / out, *options]

    def train(self, *overrides: object, **entry: Any) -> list[object]:
        """Train with the configuration, after changes to the entry of its one training scene."""
        path = self / "config.yaml"
        if entry:
            values = yaml.safe_load(path.read_text())
            values["data"]["train"][0].update(entry)
            path.write_text(yaml.safe_dump(values))
        return ["train", path, *overrides]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all cases start from, made once: scene, model, class map, labels as a raster and as polygons, YAML."""
    folder = tmp_path_factory.mktemp("place")
    scene = write_scene(folder / "scene.tif")
    write_model(folder / "model", gsd_m=0.5)
    succeed("-q", "predict", scene.path, "-m", folder / "model", "-o", folder / "map.tif")
    write_labels(folder / "labels.tif", scene)
    write_labels(folder / "val_labels.tif", write_scene(folder / "val.tif", shift=(200, 0)))
    left, top = scene.transform @ (0, 0)
    roof = box(left + 5, top - 30, left + 20, top - 5)
    frame = geopandas.GeoDataFrame({"kind": ["roof"]}, geometry=[roof], crs=scene.crs)
    frame.to_file(folder / "labels.gpkg")
    values = {
        "name": "errors",
        "output": "run",
        "classes": [{"name": name, "color": color} for name, color in CLASSES],
        "model": {"options": TINY},
        "data": {
            "train": [{"scene": "scene.tif", "labels": "labels.tif"}],
            "val": [{"scene": "val.tif", "labels": "val_labels.tif"}],
        },
        "window": {"size": 64, "overlap": 32},
        "train": {"iterations": 1, "batch_size": 1, "size": 64, "workers": 0, "val_every": 1},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return folder


@pytest.fixture
def place(prepared: Path, tmp_path: Path) -> Place:
    folder = tmp_path / "my place"  # whose name must be quoted in whatever is to be pasted
    shutil.copytree(prepared, folder)
    return Place(folder, write_scene(folder / "scene.tif"))


def write_labels(path: Path, scene: MadeScene, *, value: int = 1, **changes: Any) -> None:
    labels = np.full(scene.valid.shape, 0, dtype=np.uint8)
    labels[20:60, 10:50] = value
    if value == 1:
        labels[70:80, 55:65] = 2  # so that every class occurs
    profile = {"height": labels.shape[0], "width": labels.shape[1], "crs": scene.crs, "transform": scene.transform}
    with (
        warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning),
        rasterio.open(path, "w", driver="GTiff", count=1, dtype="uint8", **{**profile, **changes}) as file,
    ):
        file.write(labels, 1)


def check_refusal(ran: Ran, *said: str, hint: bool = True) -> None:
    assert ran.exit_code == 2, ran.stderr
    lines = ran.stderr.splitlines()
    assert lines[0].startswith("error: ")
    assert "Traceback" not in ran.stderr
    assert ran.stdout == ""
    for text in said:
        assert text in ran.stderr
    if hint:
        assert lines[-1].startswith("hint:  ") and len(lines[-1]) > len("hint:  ")
    assert len(lines) <= 2, "one message and one hint"


def spoil(path: Path, *, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])


# Scenes


def missing_scene(place: Place) -> list[object]:
    return place.predict(scene="nowhere.tif")


def one_of_several_missing(place: Place) -> list[object]:
    return ["predict", place / "scene.tif", place / "nowhere.tif", "-m", place.model, "-o", place / "out.tif"]


def text_as_scene(place: Place) -> list[object]:
    (place / "notes.tif").write_text("no raster at all")
    return place.predict(scene="notes.tif")


def empty_scene(place: Place) -> list[object]:
    (place / "empty.tif").write_bytes(b"")
    return place.predict(scene="empty.tif")


def folder_as_scene(place: Place) -> list[object]:
    (place / "orthos").mkdir()
    return place.predict(scene="orthos")


def truncated_scene(place: Place) -> list[object]:
    spoil(write_scene(place / "cut.tif", compress="none", size=(256, 256)).path, keep=0.5)
    return place.predict(scene="cut.tif")


def truncated_scene_to_polygons(place: Place) -> list[object]:
    spoil(write_scene(place / "cut.tif", compress="none", size=(256, 256)).path, keep=0.5)
    return place.predict(scene="cut.tif", out="out.gpkg")


def corrupt_scene(place: Place) -> list[object]:
    path = write_scene(place / "corrupt.tif", size=(256, 256)).path
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4000] = bytes(4000)
    path.write_bytes(data)
    return place.predict(scene="corrupt.tif")


def too_many_bands(place: Place) -> list[object]:
    write_scene(place / "four.tif", bands=4)
    return place.predict(scene="four.tif")


def too_few_bands(place: Place) -> list[object]:
    write_scene(place / "one.tif", bands=1)
    return place.predict(scene="one.tif")


def another_dtype(place: Place) -> list[object]:
    write_scene(place / "deep.tif", dtype="uint16")
    return place.predict(scene="deep.tif")


def another_gsd(place: Place) -> list[object]:
    with rasterio.open(place / "scene.tif", "r+") as file:
        file.transform = file.transform @ file.transform.scale(4, 4)
    return place.predict()


def band_that_is_not_there(place: Place) -> list[object]:
    return place.predict("--bands", "1,2,7")


def bands_that_are_no_numbers(place: Place) -> list[object]:
    return place.predict("--bands", "red,green")


def nodata_that_does_not_fit(place: Place) -> list[object]:
    return place.predict("--nodata", "-9999")


def alpha_that_is_not_there(place: Place) -> list[object]:
    return place.predict("--alpha")


def scenes_of_two_crs(place: Place) -> list[object]:
    write_scene(place / "mercator.tif", crs="EPSG:3857")
    return ["predict", place / "scene.tif", place / "mercator.tif", "-m", place.model, "-o", place / "out.tif"]


def scenes_far_apart(place: Place) -> list[object]:
    far = write_scene(place / "far.tif", shift=(18_000_000, 0)).path
    return ["predict", place / "scene.tif", far, "-m", place.model, "-o", place / "out.tif"]


def two_scenes_of_one_output(place: Place) -> list[object]:
    (place / "north").mkdir()
    shutil.copy(place / "scene.tif", place / "north")
    return ["predict", place / "scene.tif", place / "north", "-m", place.model, "-o", f"{place / 'maps'}/"]


def strange_word_in_an_output(place: Place) -> list[object]:
    return place.predict(out="{name}.tif")


def other_crs_than_the_files(place: Place) -> list[object]:
    return place.predict("--crs", "EPSG:32634")


def crs_that_is_not_known(place: Place) -> list[object]:
    return place.predict("--crs", "EPSG:999999")


def crs_of_a_photograph(place: Place) -> list[object]:
    write_scene(place / "photo.tif", crs=None)
    return place.predict("--crs", "EPSG:32633", scene="photo.tif")


def _changed(place: Place, name: str, **changes: Any) -> Path:
    """The scene under another name, with other CRS, transform, …; None takes them away."""
    profile = {"crs": place.scene.crs, "transform": place.scene.transform, "dtype": "uint8", **changes}
    bands, height, width = place.scene.pixels.shape
    with (
        warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning),
        rasterio.open(
            place / name,
            "w",
            driver="GTiff",
            height=height,
            width=width,
            count=bands,
            **{key: value for key, value in profile.items() if value is not None},
        ) as file,
    ):
        file.write(place.scene.pixels.astype(profile["dtype"]))
    return place / name


def control_points(place: Place) -> list[object]:
    path = _changed(place, "raw photo.tif", crs=None, transform=None)
    points = [GroundControlPoint(r, c, 15 + c * 5e-6, 47 - r * 5e-6) for r in (0, 96) for c in (0, 80)]
    with rasterio.open(path, "r+") as file:
        file.gcps = points, CRS.from_epsg(4326)
    return place.predict(scene=path.name)


def another_planet_as_geojson(place: Place) -> list[object]:
    _changed(place, "mars.tif", crs=CRS.from_user_input("IAU_2015:49910"))
    return place.predict("--ignore-gsd", scene="mars.tif", out="out.geojson")


def site_grid_as_geojson(place: Place) -> list[object]:
    crs = CRS.from_wkt('LOCAL_CS["site grid",UNIT["metre",1],AXIS["x",EAST],AXIS["y",NORTH]]')
    _changed(place, "site.tif", crs=crs)
    return place.predict(scene="site.tif", out="out.geojsonl")


def gsd_without_crs(place: Place) -> list[object]:
    _changed(place, "world file.tif", crs=None)
    return place.predict("--gsd", "model", scene="world file.tif")


def area_of_interest_without_crs_of_the_scene(place: Place) -> list[object]:
    _changed(place, "world file.tif", crs=None)
    return place.predict("--aoi", place / "labels.gpkg", scene="world file.tif")


def bands_as_files(place: Place) -> list[object]:
    names = [f"{name} band.tif" for name in "RGB"]
    for name in names:
        write_scene(place / name, bands=1)
    return ["predict", *(place / name for name in names), "-m", place.model, "-o", place / "out.tif"]


def bands_of_no_known_order(place: Place) -> list[object]:
    path = write_scene(place / "S2.tif", bands=4, photometric="MINISBLACK").path
    with rasterio.open(path, "r+") as file:
        file.descriptions = ("B1", "B2", "B3", "B4")
    return place.predict(scene="S2.tif")


def palette(place: Place) -> list[object]:
    path = write_scene(place / "colours.tif", bands=1).path
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {i: (i, 255 - i, i // 2, 255) for i in range(256)})
    return place.predict(scene="colours.tif")


def bytes_in_wider_pixels(place: Place) -> list[object]:
    _changed(place, "wide.tif", dtype="int16")
    return place.predict(scene="wide.tif")


def flat_pixels(place: Place) -> list[object]:
    _changed(place, "flat.tif", transform=place.scene.transform @ place.scene.transform.scale(4, 0.25))
    return place.predict(scene="flat.tif")


def photographs_as_a_mosaic(place: Place) -> list[object]:
    names = [write_scene(place / f"photo {n}.tif", crs=None, seed=n).path for n in range(2)]
    return ["predict", *names, "-m", place.model, "-o", place / "out.tif"]


# Outputs


def unknown_suffix(place: Place) -> list[object]:
    return place.predict(out="out.dwg")


def no_suffix(place: Place) -> list[object]:
    return place.predict(out="out")


def unknown_suffix_of_polygons(place: Place) -> list[object]:
    return place.vectorize(out="out.tif")


def output_exists(place: Place) -> list[object]:
    (place / "out.tif").write_text("mine")
    return place.predict()


def polygons_exist(place: Place) -> list[object]:
    (place / "out.gpkg").write_text("mine")
    return place.vectorize()


def output_is_a_folder(place: Place) -> list[object]:
    (place / "out.tif").mkdir()
    return place.predict("--overwrite")


def locked_geopackage(place: Place) -> list[object]:
    place.locks.append(sqlite3.connect(place / "out.gpkg", isolation_level=None))
    place.locks[0].execute("CREATE TABLE edits (id)")
    place.locks[0].execute("BEGIN IMMEDIATE")
    return place.vectorize("--overwrite")


def second_part_of_a_shapefile_exists(place: Place) -> list[object]:
    (place / "out_2.shp").write_text("mine")
    return place.vectorize(out="out.shp")


def missing_folder(place: Place) -> list[object]:
    return place.predict(out="no/such/out.tif")


def missing_folder_of_polygons(place: Place) -> list[object]:
    return place.vectorize(out="no/such/out.gpkg")


def output_is_the_scene(place: Place) -> list[object]:
    return place.predict("--overwrite", out="scene.tif")


def output_is_the_map(place: Place) -> list[object]:
    shutil.copy(place / "map.tif", place / "map.gpkg")
    return place.vectorize("--overwrite", source="map.gpkg", out="map.gpkg")


def run_folder_exists(place: Place) -> list[object]:
    (place / "run").mkdir()
    return place.train()


def run_folder_is_something_else(place: Place) -> list[object]:
    (place / "run").mkdir()
    (place / "run" / "thesis.txt").write_text("three years of work")
    return place.train("--overwrite")


def evaluation_exists(place: Place) -> list[object]:
    (place / "evaluation").mkdir()
    (place / "evaluation" / "scores.csv").write_text("mine")
    return ["evaluate", place.model, place / "config.yaml", "-o", place / "evaluation"]


# Options


def unknown_device(place: Place) -> list[object]:
    return place.predict("--device", "gpu")


def window_off_the_grid(place: Place) -> list[object]:
    return place.predict("--size", 100)


def overlap_as_large_as_the_window(place: Place) -> list[object]:
    return place.predict("--size", 64, "--overlap", 64)


def negative_overlap(place: Place) -> list[object]:
    return place.predict("--overlap", -32)


def bad_tolerance(place: Place) -> list[object]:
    return place.vectorize("--simplify", "2 feet")


def bad_tolerance_of_a_prediction(place: Place) -> list[object]:
    return place.predict("--simplify", "a lot", out="out.gpkg")


def small_ones_of_no_size(place: Place) -> list[object]:
    return place.vectorize("--small", "drop")


def method_without_tolerance(place: Place) -> list[object]:
    return place.vectorize("--simplify", "none", "--simplify-method", "dp")


def class_regularized_and_left_out(place: Place) -> list[object]:
    return place.vectorize("--keep", "grass", "--regularize", "roof")


def group_left_out(place: Place) -> list[object]:
    return place.vectorize("--keep", "grass", "--dissolve", "built=roof")


def missing_names(place: Place) -> list[object]:
    return place.vectorize("--classes", place / "nowhere.yaml")


def names_for_few_classes(place: Place) -> list[object]:
    (place / "few.yaml").write_text("[grass]")
    return place.vectorize("--classes", place / "few.yaml")


def unknown_class_to_keep(place: Place) -> list[object]:
    return place.vectorize("--keep", "hose")


def unknown_class_to_regularize(place: Place) -> list[object]:
    return place.predict("--regularize", "chimney", out="out.gpkg")


def walls_that_may_not_move(place: Place) -> list[object]:
    return place.vectorize("--regularize", "roof", "--regularize-tolerance", "1mm")


def walls_nearer_than_a_pixel(place: Place) -> list[object]:
    return place.vectorize("--regularize", "roof", "--regularize-tolerance", "0.001m")


def negative_tolerance_of_walls(place: Place) -> list[object]:
    return place.vectorize("--regularize", "roof", "--regularize-tolerance=-2px")


def walls_in_metres_without_crs(place: Place) -> list[object]:
    write_scene(place / "nowhere.tif", crs=None)
    options = ("--regularize", "roof", "--regularize-tolerance", "0.6m")
    return place.predict(*options, scene="nowhere.tif", out="out.gpkg")


def tolerance_of_no_walls(place: Place) -> list[object]:
    return place.vectorize("--regularize-tolerance", "3px")


def nonsense_group(place: Place) -> list[object]:
    return place.vectorize("--dissolve", "green")


def metres_without_crs(place: Place) -> list[object]:
    write_scene(place / "nowhere.tif", crs=None)
    return place.predict("--simplify", "0.5m", scene="nowhere.tif", out="out.gpkg")


# Class maps


def missing_map(place: Place) -> list[object]:
    return place.vectorize(source="nowhere.tif")


def scene_as_map(place: Place) -> list[object]:
    return place.vectorize(source="scene.tif")


def _written(place: Place, values: np.ndarray, dtype: str) -> list[object]:
    count, height, width = values.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": count, "dtype": dtype}
    with rasterio.open(place / "other.tif", "w", **profile, crs=place.scene.crs, nodata=255) as file:
        file.write(values.astype(dtype))
    return place.vectorize(source="other.tif")


def float_map(place: Place) -> list[object]:
    return _written(place, np.ones((1, 8, 8)), "float32")


def map_of_too_many_classes(place: Place) -> list[object]:
    return _written(place, np.arange(400).reshape(1, 20, 20), "uint16")


def empty_map(place: Place) -> list[object]:
    return _written(place, np.full((1, 8, 8), 255), "uint8")


def truncated_map(place: Place) -> list[object]:
    profile = {"driver": "GTiff", "height": 256, "width": 256, "count": 1, "dtype": "uint8"}
    scene = place.scene
    with rasterio.open(place / "cut.tif", "w", **profile, crs=scene.crs, transform=scene.transform) as file:
        file.write(np.random.default_rng(0).integers(0, 3, (1, 256, 256), dtype=np.uint8))
    spoil(place / "cut.tif", keep=0.5)
    return place.vectorize(source="cut.tif")


def class_outside_the_table(place: Place) -> list[object]:
    with rasterio.open(place / "map.tif", "r+", IGNORE_COG_LAYOUT_BREAK="YES") as file:
        values = file.read()
        values[:, 3, 4] = 77
        file.write(values)
    return place.vectorize()


# Models


def unknown_model(place: Place) -> list[object]:
    return ["predict", place / "scene.tif", "-m", "bildings-tiny", "-o", place / "out.tif"]


def model_without_contract(place: Place) -> list[object]:
    (place.model / "geoseg.json").unlink()
    return place.predict()


def model_without_weights(place: Place) -> list[object]:
    (place.model / "model.safetensors").unlink()
    return place.predict()


def truncated_weights(place: Place) -> list[object]:
    spoil(place.model / "model.safetensors", keep=0.5)
    return place.predict()


def broken_contract(place: Place) -> list[object]:
    (place.model / "geoseg.json").write_text('{"version": 1, "name": ')
    return place.predict()


def contract_of_a_later_version(place: Place) -> list[object]:
    contract = json.loads((place.model / "geoseg.json").read_text())
    (place.model / "geoseg.json").write_text(json.dumps({**contract, "version": 2}))
    return place.predict()


def network_of_another_shape(place: Place) -> list[object]:
    config = json.loads((place.model / "config.json").read_text())
    (place.model / "config.json").write_text(json.dumps({**config, "classes": 5}))
    return place.predict()


def broken_network_description(place: Place) -> list[object]:
    (place.model / "config.json").write_text("{")
    return place.predict()


def contract_of_other_bands(place: Place) -> list[object]:
    contract = json.loads((place.model / "geoseg.json").read_text())
    contract["bands"] = [*contract["bands"], {"name": "nir", "mean": 0.5, "std": 0.2}]
    (place.model / "geoseg.json").write_text(json.dumps(contract))
    write_scene(place / "four.tif", bands=4)
    return place.predict(scene="four.tif")


def scene_as_model(place: Place) -> list[object]:
    return ["predict", place / "scene.tif", "-m", place / "scene.tif", "-o", place / "out.tif"]


# Configurations


def missing_configuration(place: Place) -> list[object]:
    return ["train", place / "nowhere.yaml"]


def typo(place: Place) -> list[object]:
    return place.train("train.iteratoins=5")


def typo_in_the_file(place: Place) -> list[object]:
    path = place / "config.yaml"
    path.write_text(path.read_text().replace("iterations:", "iteration:"))
    return place.train()


def broken_yaml(place: Place) -> list[object]:
    (place / "config.yaml").write_text("name: [never closed\nclasses:\n")
    return place.train()


def no_yaml(place: Place) -> list[object]:
    (place / "config.yaml").write_bytes(bytes(range(128, 256)))
    return place.train()


def empty_configuration(place: Place) -> list[object]:
    (place / "config.yaml").write_text("")
    return place.train()


def override_without_value(place: Place) -> list[object]:
    return place.train("train.iterations")


def value_of_the_wrong_kind(place: Place) -> list[object]:
    return place.train("train.iterations=many")


def unknown_architecture(place: Place) -> list[object]:
    return place.train("model.architecture=segnex")


def unknown_encoder(place: Place) -> list[object]:
    return place.train("model.encoder=tu-mscan_huge")


def nothing_to_resume(place: Place) -> list[object]:
    return place.train("--resume")


def classes_of_another_model(place: Place) -> list[object]:
    path = place / "config.yaml"
    path.write_text(path.read_text().replace("roof", "building"))
    return ["evaluate", place.model, path, "-o", place / "evaluation"]


# Labels


def missing_labels(place: Place) -> list[object]:
    return place.train(labels="nowhere.tif")


def missing_training_scene(place: Place) -> list[object]:
    return place.train(scene="nowhere.tif")


def raster_labels_without_crs(place: Place) -> list[object]:
    write_labels(place / "plain.tif", place.scene, crs=None, transform=None, height=50, width=50)
    return place.train(labels="plain.tif")


def vector_labels_without_crs(place: Place) -> list[object]:
    geopandas.read_file(place / "labels.gpkg").to_file(place / "plain.shp")
    (place / "plain.prj").unlink()
    return place.train(labels="plain.shp", attribute="kind", outside="grass")


def raster_class_outside_the_table(place: Place) -> list[object]:
    write_labels(place / "seven.tif", place.scene, value=7)
    return place.train(labels="seven.tif")


def vector_class_outside_the_table(place: Place) -> list[object]:
    geopandas.read_file(place / "labels.gpkg").assign(kind="rooof").to_file(place / "typo.gpkg")
    return place.train(labels="typo.gpkg", attribute="kind", outside="grass")


def vector_labels_elsewhere(place: Place) -> list[object]:
    frame = geopandas.read_file(place / "labels.gpkg")
    frame.set_geometry(frame.translate(50_000)).to_file(place / "far.gpkg")
    return place.train(labels="far.gpkg", attribute="kind", outside="grass")


def raster_labels_elsewhere(place: Place) -> list[object]:
    far = place.scene.transform.translation(50_000, 0) @ place.scene.transform
    write_labels(place / "far.tif", place.scene, transform=far)
    return place.train(labels="far.tif")


def unknown_attribute(place: Place) -> list[object]:
    return place.train(labels="labels.gpkg", attribute="type", outside="grass")


def attribute_not_said(place: Place) -> list[object]:
    return place.train(labels="labels.gpkg", outside="grass")


def outside_not_said(place: Place) -> list[object]:
    return place.train(labels="labels.gpkg", attribute="kind")


def unreadable_labels(place: Place) -> list[object]:
    (place / "labels.geojson").write_text("{not json")
    return place.train(labels="labels.geojson", attribute="kind", outside="grass")


def imagery_as_labels(place: Place) -> list[object]:
    return place.train(labels="scene.tif")


def labels_that_are_all_ignored(place: Place) -> list[object]:
    write_labels(place / "nothing.tif", place.scene)
    with rasterio.open(place / "nothing.tif", "r+") as file:
        file.write(np.full((1, *file.shape), 255, dtype=np.uint8))
    return place.train(labels="nothing.tif")


def names_and_numbers(place: Place) -> list[object]:
    twice = geopandas.read_file(place / "labels.gpkg").iloc[[0, 0]]
    moved = [twice.geometry.iloc[0], twice.geometry.iloc[1].buffer(-1)]
    twice.assign(kind=["1", "roof"]).set_geometry(moved, crs=twice.crs).to_file(place / "mixed.gpkg")
    return place.train(labels="mixed.gpkg", attribute="kind", outside="grass")


def no_features_and_nothing_outside(place: Place) -> list[object]:
    geopandas.read_file(place / "labels.gpkg")[:0].to_file(place / "none.gpkg")
    return place.train(labels="none.gpkg", attribute="kind", outside="ignore")


def zip_of_several_layers(place: Place) -> list[object]:
    with zipfile.ZipFile(place / "all.zip", "w") as file:
        for name in ("a b.gpkg", "b.gpkg"):
            file.write(place / "labels.gpkg", f"town/{name}")
    return ["info", place / "all.zip"]


def broken_geoparquet(place: Place) -> list[object]:
    (place / "labels.parquet").write_bytes(b"PAR1")
    return place.train(labels="labels.parquet", attribute="kind", outside="grass")


def class_name_with_a_typo(place: Place) -> list[object]:
    return place.train(labels="labels.gpkg", class_name="rooof", outside="grass")


def blocks_smaller_than_windows(place: Place) -> list[object]:
    path = place / "config.yaml"
    values = yaml.safe_load(path.read_text())
    values["data"] = {"scenes": values["data"]["train"], "split": {"block": 64}}
    path.write_text(yaml.safe_dump(values))
    return place.train()


def tabs_in_the_file(place: Place) -> list[object]:
    (place / "config.yaml").write_text("train:\n\titerations: 1\n")
    return place.train()


def training_scene_of_another_dtype(place: Place) -> list[object]:
    write_scene(place / "deep.tif", dtype="uint16")
    return place.train(scene="deep.tif")


def truncated_training_scene(place: Place) -> list[object]:
    spoil(write_scene(place / "cut.tif", compress="none").path, keep=0.5)
    return place.train(scene="cut.tif", labels="labels.tif")


# info


def nothing_to_describe(place: Place) -> list[object]:
    return ["info", place / "nowhere.tif"]


def text_to_describe(place: Place) -> list[object]:
    (place / "notes.txt").write_text("no raster at all")
    return ["info", place / "notes.txt"]


def broken_vectors_to_describe(place: Place) -> list[object]:
    (place / "labels.geojson").write_text("{not json")
    return ["info", place / "labels.geojson"]


def plan_of_a_map(place: Place) -> list[object]:
    return ["info", place / "map.tif", "-m", place.model]


CASES: dict[Prepare, tuple[str, ...]] = {
    missing_scene: ("nowhere.tif",),
    one_of_several_missing: ("nowhere.tif",),
    text_as_scene: ("notes.tif", "not a raster"),
    empty_scene: ("empty.tif",),
    folder_as_scene: ("orthos", "folder"),
    truncated_scene: ("cut.tif", "rows"),
    truncated_scene_to_polygons: ("cut.tif", "rows"),
    corrupt_scene: ("corrupt.tif", "rows"),
    too_many_bands: ("four.tif", "4 bands", "expects 3", "red, green, blue", "--bands 1,2,3"),
    too_few_bands: ("one.tif", "1 band", "expects 3", "red, green, blue"),
    another_dtype: ("deep.tif", "uint16", "uint8"),
    another_gsd: ("scene.tif", "2 m", "0.5 m", "--ignore-gsd"),
    band_that_is_not_there: ("scene.tif", "band 7"),
    bands_that_are_no_numbers: ("--bands", "red,green"),
    nodata_that_does_not_fit: ("scene.tif", "-9999", "uint8"),
    alpha_that_is_not_there: ("scene.tif", "no alpha"),
    scenes_of_two_crs: ("mercator.tif", "3857"),
    scenes_far_apart: ("2 scenes", "of the mosaic", "-o FOLDER/"),
    two_scenes_of_one_output: ("scene.tif", "would both be written to", "{parent}_{stem}.tif"),
    strange_word_in_an_output: ("{name}", "unknown placeholder", "{stem}"),
    other_crs_than_the_files: ("scene.tif", "EPSG:32633", "EPSG:32634"),
    crs_that_is_not_known: ("scene.tif", "EPSG:999999"),
    crs_of_a_photograph: ("photo.tif", "no transform"),
    control_points: ("raw photo.tif", "control points", "gdalwarp"),
    another_planet_as_geojson: ("out.geojson", "WGS 84", "out.gpkg"),
    site_grid_as_geojson: ("out.geojsonl", "WGS 84", "site grid", "out.gpkg"),
    gsd_without_crs: ("world file.tif", "no CRS", "--crs"),
    area_of_interest_without_crs_of_the_scene: ("the scene has no CRS", "--crs"),
    bands_as_files: ("1 band,", "expects 3", "gdalbuildvrt -separate"),
    bands_of_no_known_order: ("S2.tif", "4 bands", "--bands"),
    palette: ("colours.tif", "1 band,", "-expand rgb"),
    bytes_in_wider_pixels: ("wide.tif", "int16", "-ot Byte"),
    flat_pixels: ("flat.tif", "0.125 × 2 m", "--gsd model"),
    photographs_as_a_mosaic: ("photo 1.tif", "no transform"),
    unknown_suffix: ("out.dwg", ".gpkg"),
    no_suffix: ("out", ".gpkg"),
    unknown_suffix_of_polygons: ("out.tif", ".gpkg"),
    output_exists: ("out.tif", "--overwrite"),
    polygons_exist: ("out.gpkg", "--overwrite"),
    output_is_a_folder: ("out.tif", "folder"),
    locked_geopackage: ("out.gpkg", "another program", "close it"),
    second_part_of_a_shapefile_exists: ("out_2.shp", "out.shp", "--overwrite"),
    missing_folder: ("no/such", "mkdir -p"),
    missing_folder_of_polygons: ("no/such", "mkdir -p"),
    output_is_the_scene: ("scene.tif", "input"),
    output_is_the_map: ("map.gpkg", "input"),
    run_folder_exists: ("run", "--overwrite", "--resume"),
    run_folder_is_something_else: ("run", "not a run folder"),
    evaluation_exists: ("scores.csv", "--overwrite"),
    unknown_device: ("gpu", "cuda"),
    window_off_the_grid: ("100", "--size 128"),
    overlap_as_large_as_the_window: ("64", "--overlap"),
    negative_overlap: ("-32", "--overlap"),
    bad_tolerance: ("2 feet", "--simplify"),
    bad_tolerance_of_a_prediction: ("a lot", "--simplify"),
    small_ones_of_no_size: ("--small drop", "--min-area"),
    method_without_tolerance: ("--simplify-method dp", "--simplify none"),
    class_regularized_and_left_out: ("--regularize", "roof", "--keep roof"),
    group_left_out: ("--dissolve", "built", "--keep built"),
    missing_names: ("nowhere.yaml",),
    names_for_few_classes: ("map.tif", "its class table ends at 0", "--classes"),
    unknown_class_to_keep: ("hose", "--keep", "the classes are"),
    unknown_class_to_regularize: ("chimney", "--regularize"),
    walls_that_may_not_move: ("1mm", "--regularize-tolerance 0.6m"),
    walls_nearer_than_a_pixel: ("0.001m", "at least 1 px", "--regularize-tolerance 4px"),
    negative_tolerance_of_walls: ("-2px", "--regularize-tolerance 0.6m"),
    walls_in_metres_without_crs: ("nowhere.tif has no CRS", "--regularize-tolerance 4px"),
    tolerance_of_no_walls: ("--regularize-tolerance", "--regularize building"),
    nonsense_group: ("green", "NAME=CLASS", "--dissolve"),
    metres_without_crs: ("nowhere.tif", "CRS", "--simplify"),
    missing_map: ("nowhere.tif",),
    scene_as_map: ("scene.tif", "3 bands", "geoseg predict"),
    float_map: ("other.tif", "1 band of float32", "1 band of uint8", "gdal_translate"),
    map_of_too_many_classes: ("other.tif", "1 band of uint16", "1 band of uint8"),
    empty_map: ("other.tif", "all nodata", "geoseg info"),
    truncated_map: ("cut.tif",),
    class_outside_the_table: ("map.tif", "77"),
    unknown_model: ("bildings-tiny", "shipped models"),
    model_without_contract: ("model", "geoseg.json"),
    model_without_weights: ("model", "model.safetensors"),
    truncated_weights: ("model.safetensors",),
    broken_contract: ("geoseg.json",),
    contract_of_a_later_version: ("geoseg.json", "version"),
    network_of_another_shape: ("model",),
    broken_network_description: ("config.json",),
    contract_of_other_bands: ("model", "in_channels"),
    scene_as_model: ("scene.tif",),
    missing_configuration: ("nowhere.yaml",),
    typo: ("config.yaml", "train.iteratoins", "did you mean iterations?"),
    typo_in_the_file: ("config.yaml", "train.iteration", "did you mean iterations?"),
    broken_yaml: ("config.yaml", "line 2", "close every bracket"),
    tabs_in_the_file: ("config.yaml", "line 2", "not with tabs"),
    class_name_with_a_typo: ("rooof", "class_name: roof"),
    blocks_smaller_than_windows: ("64", "128 px", "data.split.block=128"),
    no_yaml: ("config.yaml",),
    empty_configuration: ("config.yaml",),
    override_without_value: ("train.iterations", "key=value"),
    value_of_the_wrong_kind: ("config.yaml", "train.iterations", "many"),
    unknown_architecture: ("segnex", "segnext"),
    unknown_encoder: ("tu-mscan_huge",),
    nothing_to_resume: ("last.ckpt",),
    classes_of_another_model: ("roof", "building"),
    missing_labels: ("nowhere.tif",),
    missing_training_scene: ("nowhere.tif",),
    raster_labels_without_crs: ("plain.tif",),
    vector_labels_without_crs: ("plain.shp", "no CRS"),
    raster_class_outside_the_table: ("seven.tif", "7 (1600 px)"),
    vector_class_outside_the_table: ("typo.gpkg", "rooof", "1 roof"),
    vector_labels_elsewhere: ("far.gpkg", "scene.tif", "CRS"),
    raster_labels_elsewhere: ("far.tif", "CRS"),
    unknown_attribute: ("labels.gpkg", "type", "kind"),
    attribute_not_said: ("labels.gpkg", "attribute"),
    outside_not_said: ("labels.gpkg", "outside"),
    unreadable_labels: ("labels.geojson",),
    names_and_numbers: ("mixed.gpkg", "roof", "1"),
    no_features_and_nothing_outside: ("none.gpkg", "outside: grass"),
    zip_of_several_layers: ("all.zip", "town/a b.gpkg", "/vsizip/"),
    broken_geoparquet: ("labels.parquet", "geoseg info"),
    imagery_as_labels: ("scene.tif", "3 bands"),
    labels_that_are_all_ignored: ("nothing.tif",),
    training_scene_of_another_dtype: ("deep.tif", "uint16", "imagery.dtype=uint16"),
    truncated_training_scene: ("cut.tif",),
    nothing_to_describe: ("nowhere.tif",),
    text_to_describe: ("notes.txt",),
    broken_vectors_to_describe: ("labels.geojson",),
    plan_of_a_map: ("map.tif",),
}


SAYS_IT_ALL = {value_of_the_wrong_kind}
"""Cases whose message leaves no room for a hint."""


@pytest.mark.parametrize("prepare", CASES, ids=lambda prepare: prepare.__name__)
def test_one_message_and_nothing_left(prepare: Prepare, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = prepare(place)
    before = {name: _content(place / name) for name in files_in(place.folder)}
    ran = run("-q", *arguments)
    check_refusal(ran, *CASES[prepare], hint=prepare not in SAYS_IT_ALL)
    assert {name: _content(place / name) for name in files_in(place.folder)} == before
    if prepare not in SAYS_IT_ALL:
        monkeypatch.chdir(place.folder)
        try_hint(place, arguments, ran)


def try_hint(place: Place, arguments: list[object], ran: Ran) -> None:
    """Type what the hint of a refusal offers: it works, or the message is another one."""
    message, hint = (line.partition(":")[2].strip() for line in ran.stderr.splitlines())
    assert not misplaced_commands(hint)
    words = {"EPSG:…": "EPSG:32633", "MODEL": place.model, "CONFIG": place / "config.yaml", "FOLDER": place / "other"}
    offers: list[list[object]] = []
    for command in commands_in(hint):
        program, *rest = words_of(command, words)
        if program == "geoseg":
            offers.append([*rest])
        else:
            assert complaint([program, *rest], place.folder) is None
    if arguments[0] in ("predict", "vectorize"):
        offers += [with_option(arguments, option) for option in options_in(hint, words)]
    for offer in offers:
        again = run("-q", *offer)
        assert again.exit_code == 0 or (again.exit_code == 2 and message not in again.stderr), offer


def test_labels_with_a_crs_blame_the_scene_that_has_none(place: Place) -> None:
    _changed(place, "world file.tif", crs=None)
    geopandas.read_file(place / "labels.gpkg").to_crs(4326).to_file(place / "degrees.gpkg")
    entry = {"scene": "world file.tif", "labels": "degrees.gpkg", "attribute": "kind", "outside": "grass"}
    ran = run(*place.train("--check", **entry))
    assert ran.exit_code == 2 and "world file.tif, which has no CRS" in ran.stdout
    assert "say which CRS the scene is in" in ran.stdout and "crs: EPSG:…" in ran.stdout
    assert run(*place.train("--check", crs="EPSG:32633")).exit_code == 0


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


@pytest.mark.parametrize("verb", ["predict", "vectorize", "evaluate", "train", "demo"])
@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that nobody may write in")
def test_a_folder_that_cannot_be_written(verb: str, place: Place) -> None:
    closed = Path("/proc/self/task")
    arguments = {
        "predict": ["predict", place / "scene.tif", "-m", place.model, "-o", closed / "out.tif"],
        "vectorize": ["vectorize", place / "map.tif", "-o", closed / "out.gpkg"],
        "evaluate": ["evaluate", place.model, place / "config.yaml", "-o", closed / "out"],
        "train": ["train", place / "config.yaml", f"output={closed / 'run'}"],
        "demo": ["demo", "-o", closed / "demo"],
    }[verb]
    check_refusal(run(*arguments), str(closed))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("verb", ["predict", "train", "evaluate"])
@pytest.mark.parametrize("device", ["cuda", "cuda:7"])
def test_a_gpu_that_is_not_there(verb: str, device: str, place: Place) -> None:
    arguments = {
        "predict": place.predict(),
        "train": place.train(),
        "evaluate": ["evaluate", place.model, place / "config.yaml", "-o", place / "evaluation"],
    }[verb]
    before = files_in(place.folder)
    check_refusal(run(*arguments, "--device", device), device, "--device cpu")
    assert files_in(place.folder) == before


def test_the_ground_under_the_cases_is_firm(place: Place) -> None:
    """Without what a case spoils every verb succeeds, so the refusals above are those of the spoilt thing."""
    succeed("-q", *place.predict())
    succeed("-q", *place.predict(out="predicted.gpkg"))
    succeed("-q", *place.vectorize())
    succeed("-q", *place.train())
    succeed("-q", *place.train(f"output={place / 'second'}", labels="labels.gpkg", attribute="kind", outside="grass"))
    succeed("-q", "evaluate", place.model, place / "config.yaml", "-o", place / "evaluation")
