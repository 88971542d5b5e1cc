"""Corrections drawn in the viewer, as labels: they win over what lies below, and change a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
from rasterio.crs import CRS
from safetensors.numpy import load_file
from shapely.geometry import box

pytest.importorskip("starlette")

from geoseg.classes import IGNORE, NODATA, RIGHT, ClassTable
from geoseg.config.settings import SceneConfig
from geoseg.errors import ConfigError, LabelError
from geoseg.grid import Grid
from geoseg.programs.early import check_files
from geoseg.programs.train import train
from geoseg.view.program import open_session
from geoseg.windows import Window
from support.labels import open_labels
from support.scenes import place_transform, write_scene
from support.training import experiment, write_scenes
from support.views import CLASSES, SIDE, write_map


def draw(path: Path, squares: list[tuple[int, int, int, int, str]], crs: str | None = "EPSG:32633") -> None:
    """Correct a map through the viewer, each square as (row, column, height, width, class)."""
    session = open_session([path])
    place = place_transform(crs, "north") if crs is not None else Grid(1, 1, place_transform(None, "north"), None)
    transform = place.as_drawn().transform if isinstance(place, Grid) else place
    shapes = []
    for row, col, height, width, _ in squares:
        (left, top), (right, bottom) = transform @ (col, row), transform @ (col + width, row + height)
        shapes.append(box(left, bottom, right, top))
    frame = geopandas.GeoSeries(shapes, crs=crs or "EPSG:3857").to_crs(4326)
    features = [
        {"type": "Feature", "geometry": shape.__geo_interface__, "properties": {"class": square[-1]}}
        for shape, square in zip(frame, squares, strict=True)
    ]
    session.correct(0, features, session.corrections(0)[1])


def labels(folder: Path, crs: str | None = "EPSG:32633", classes: ClassTable = CLASSES, **keys: Any) -> Any:
    entry = SceneConfig(
        scene=folder / "scene.tif",
        labels=folder / "map.tif",
        corrections=folder / "map.corrections.gpkg",
        **keys,
    )
    known = None if crs is None else CRS.from_user_input(crs)
    return open_labels(entry, Grid(SIDE, SIDE, place_transform(crs, "north"), known), classes)


@pytest.mark.parametrize("crs", ["EPSG:32633", None])
@pytest.mark.parametrize("only", [False, True])
def test_corrections_win_over_the_map(tmp_path: Path, crs: str | None, only: bool) -> None:
    ids = write_map(tmp_path / "map.tif", crs=crs)
    write_scene(tmp_path / "scene.tif", crs=crs, size=(SIDE, SIDE))
    squares = [(8, 16, 24, 32, "house"), (40, 40, 16, 16, RIGHT), (64, 8, 16, 24, IGNORE), (16, 24, 8, 8, "grass")]
    draw(tmp_path / "map.tif", squares, crs)
    wanted = np.full_like(ids, NODATA) if only else ids.copy()
    wanted[40:56, 40:56] = ids[40:56, 40:56]
    wanted[8:32, 16:48] = 2
    wanted[64:80, 8:32] = NODATA
    wanted[16:24, 24:32] = 0
    found = labels(tmp_path, crs, corrected_only=only)
    assert (found.read(Window(0, 0, SIDE, SIDE)) == wanted).all()
    beyond = found.read(Window(-8, 10, 40, 50))
    assert (beyond[:8] == NODATA).all()
    assert (beyond[8:] == wanted[:32, 10:60]).all()


def test_corrections_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write_map(tmp_path / "map.tif")
    write_scene(tmp_path / "scene.tif", size=(SIDE, SIDE))
    with pytest.raises(LabelError, match="no such corrections"):
        labels(tmp_path)
    draw(tmp_path / "map.tif", [(8, 8, 8, 8, "house")])
    with pytest.raises(LabelError, match="unknown class 'house'"):
        labels(tmp_path, classes=ClassTable.from_names(["a", "b", "c"], ["#000000"] * 3))
    draw(tmp_path / "map.tif", [])
    labels(tmp_path)
    with pytest.raises(LabelError, match="hold no polygon"):
        labels(tmp_path, corrected_only=True)
    with pytest.raises(ValueError, match="corrected_only needs corrections"):
        SceneConfig(scene=tmp_path / "a.tif", labels=tmp_path / "b.tif", corrected_only=True)


def test_a_correction_changes_a_training(tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path)
    squares = [(0, 0, 128, 256, "water")]
    draw(scenes / "a_labels.tif", squares)
    val = [{"scene": str(scenes / "b.tif"), "labels": str(scenes / "b_labels.tif")}]
    entry = {"scene": str(scenes / "a.tif"), "labels": str(scenes / "a_labels.tif")}
    corrected = entry | {"corrections": str(scenes / "a_labels.corrections.gpkg")}
    weights = {}
    for name, first in (("plain", entry), ("again", entry), ("corrected", corrected)):
        data = {"train": [first], "val": val}
        folder = train(experiment(scenes, tmp_path / name, data=data, train={"iterations": 3}), device="cpu")
        weights[name] = load_file(folder / "model.safetensors")
    assert all((weights["plain"][key] == weights["again"][key]).all() for key in weights["plain"])
    assert any((weights["plain"][key] != weights["corrected"][key]).any() for key in weights["plain"])
    with pytest.raises(ConfigError, match="no such corrections"):
        missing = entry | {"corrections": str(tmp_path / "none.gpkg")}
        check_files(experiment(scenes, tmp_path / "x", data={"train": [missing], "val": val}), ["train"])
