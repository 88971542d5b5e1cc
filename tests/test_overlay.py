from __future__ import annotations

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine
from PIL import Image

from geoseg.classes import ClassTable
from geoseg.errors import OutputError
from geoseg.export.overlay import write_overlay
from geoseg.polygons import polygonize

TABLE = ClassTable.from_names(["ground", "house"], ["#c0c0c0", "#ff0000"])


def scene(height=60, width=90):
    values = np.zeros((height, width), dtype=np.uint8)
    values[height // 6 : height // 2, width // 6 : width // 2] = 1
    values[height // 4 : height // 3, width // 4 : width // 3] = 0  # a yard in the house
    values[-height // 6 :] = 255
    return np.full((3, height, width), 200, dtype=np.uint8), values


def panels(path, panel_px, ratio):
    """The three panels: found from the right lower layout arithmetic of the picture's own size."""
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    gap = (picture.shape[1] - 3 * panel_px - 48) // 2
    top = 24 + 34
    rows = slice(top, top + round(panel_px * ratio))
    return [picture[rows, 24 + i * (panel_px + gap) :][:, :panel_px] for i in range(3)]


def is_red(rgb):
    return rgb[0] - max(rgb[1], rgb[2]) > 30


@pytest.mark.parametrize("transform", [None, Affine(0.3, 0, 500_000, 0, -0.3, 5_000_000)])
def test_classes_and_polygons_are_drawn_where_they_are(tmp_path, transform):
    pixels, values = scene()
    frame = polygonize(values, transform or Affine.identity(), classes=TABLE)
    write_overlay(tmp_path / "o.png", pixels, values, TABLE, frame, transform=transform, panel_px=450)
    imagery, classes, polygons = panels(tmp_path / "o.png", 450, 60 / 90)
    at = {"house": (12, 40), "yard": (17, 26), "ground": (40, 70)}  # row, column of the map
    for name, (row, col) in at.items():
        spot = round((row + 0.5) * 5), round((col + 0.5) * 5)
        assert not is_red(imagery[spot])
        assert is_red(classes[spot]) == (name == "house")
        assert is_red(polygons[spot]) == (name == "house")


def test_a_reduced_picture_keeps_every_class(tmp_path):
    pixels, values = scene(3000, 2000)
    frame = polygonize(values, Affine.identity(), classes=TABLE)
    write_overlay(tmp_path / "o.png", pixels, values, TABLE, frame, title="large", panel_px=300)
    width, height = Image.open(tmp_path / "o.png").size
    assert width == 3 * 200 + 2 * 16 + 2 * 24
    assert 300 < height < 500


def test_imagery_and_map_may_differ_in_size(tmp_path):
    pixels, values = scene()
    write_overlay(tmp_path / "o.png", pixels[:, ::3, ::3], values, TABLE, polygonize(values, Affine.identity()))
    assert (tmp_path / "o.png").stat().st_size > 10_000


def test_a_map_without_polygons_still_gives_a_picture(tmp_path):
    pixels, values = scene()
    values[:] = 255
    frame = geopandas.GeoDataFrame({"class_id": np.zeros(0, np.int32)}, geometry=[])
    write_overlay(tmp_path / "o.png", pixels, values, TABLE, frame)
    assert Image.open(tmp_path / "o.png").size[0] > 900


def test_pictures_are_reproducible_and_leave_pyplot_alone(tmp_path):
    pixels, values = scene()
    frame = geopandas.GeoDataFrame({"class_id": [1]}, geometry=[shapely.box(10, 10, 40, 30)])
    for name in ("a.png", "b.png"):
        write_overlay(tmp_path / name, pixels, values, TABLE, frame, panel_px=200)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_wrong_shapes_and_missing_folders_are_refused(tmp_path):
    pixels, values = scene()
    frame = polygonize(values, Affine.identity())
    with pytest.raises(ValueError, match=r"\(3, H, W\)"):
        write_overlay(tmp_path / "o.png", np.moveaxis(pixels, 0, -1), values, TABLE, frame)
    with pytest.raises(OutputError):
        write_overlay(tmp_path / "none" / "o.png", pixels, values, TABLE, frame)
    assert list(tmp_path.iterdir()) == []
