"""Predicted maps as labels, of which only the confident part counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geoseg.config.settings import SceneConfig
from geoseg.errors import LabelError
from geoseg.windows import Window
from support.labels import open_labels
from support.map_files import TABLE, grid_of, random_rows, write

ROWS = random_rows(96, 130)
GRID = grid_of(96, 130)


def labels(path: Path, **keys: Any) -> Any:
    return open_labels(SceneConfig(scene=path.with_name("scene.tif"), labels=path, **keys), GRID, TABLE)


@pytest.mark.parametrize("least", [0.45, 0.55])
def test_less_confident_pixels_are_ignored(tmp_path: Path, least: float) -> None:
    path = write(tmp_path / "map.tif", ROWS)
    read = labels(path, min_confidence=least).read(Window(0, 0, 96, 130))
    sure = (ROWS.confidence != 255) & (ROWS.confidence / 254 >= least)
    np.testing.assert_array_equal(read, np.where(sure, ROWS.classes, 255))
    assert 0.05 < sure.mean() < 0.95


def test_a_window_is_the_crop_of_the_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "map.tif", ROWS)
    opened = labels(path, min_confidence=0.6)
    whole = opened.read(Window(0, 0, 96, 130))
    part = opened.read(Window(-7, 101, 40, 40))
    np.testing.assert_array_equal(part[7:, :29], whole[:33, 101:])
    assert (part[:7] == 255).all() and (part[:, 29:] == 255).all()


def test_a_map_without_confidence_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "map.tif", ROWS, layers=("classes",))
    with pytest.raises(LabelError, match="no confidence beside them") as raised:
        labels(path, min_confidence=0.6)
    assert "geoseg predict" in str(raised.value.hint) and "--confidence" in str(raised.value.hint)


def test_a_map_on_another_grid_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "map.tif", random_rows(90, 130))
    with pytest.raises(LabelError, match="not on the pixel grid"):
        labels(path, min_confidence=0.6)


def test_polygons_have_no_confidence(tmp_path: Path) -> None:
    (tmp_path / "map.gpkg").touch()
    with pytest.raises(LabelError, match="are polygons, and min_confidence needs a class map"):
        labels(tmp_path / "map.gpkg", min_confidence=0.6)


@pytest.mark.parametrize("least", [0, 1.5, -1])
def test_confidence_is_a_share(tmp_path: Path, least: float) -> None:
    with pytest.raises(ValueError, match="min_confidence"):
        SceneConfig(scene=tmp_path / "a.tif", labels=tmp_path / "b.tif", min_confidence=least)
