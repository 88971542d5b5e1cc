from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

from geoseg.classes import NODATA
from geoseg.config import TrainConfig, parse_config
from geoseg.data.checks.alignment import REACH, Offset, direction, edge_correlation, label_offset, offset_of
from geoseg.data.checks.dataset import check_data
from geoseg.data.labelled import LabelledScene
from geoseg.landscape import LANDSCAPE_CLASSES, Landscape, write_landscape

SIDE = 640
GSD = 0.5


def experiment(scene: Path, labels: Path, *, dtype: str = "uint8", **entry: Any) -> TrainConfig:
    values = {
        "name": "test",
        "output": "run",
        "classes": [{"name": c.name, "color": "#000000"} for c in LANDSCAPE_CLASSES],
        "imagery": {"dtype": dtype},
        "data": {
            "train": [{"scene": str(scene), "labels": str(labels), **entry}],
            "val": [{"scene": str(scene), "labels": str(labels), **entry}],
            "leakage": "warn",
        },
    }
    return parse_config(values, source="test")


def moved_copy(path: Path, target: Path, rows: float, cols: float) -> Path:
    """The same raster, so many pixels further down and right on the ground."""
    with rasterio.open(path) as file:
        transform = file.transform @ Affine.translation(cols, rows)
        with rasterio.open(target, "w", **{**file.profile, "transform": transform}) as other:
            other.write(file.read())
    return target


def made(folder: Path, seed: int, **options: Any) -> tuple[Path, Path]:
    landscape = Landscape(SIDE, SIDE, seed=seed, gsd_m=GSD, **options)
    scene, labels = folder / f"scene{seed}.tif", folder / f"labels{seed}.tif"
    write_landscape(landscape, scene, labels_path=labels)
    return scene, labels


def measured(config: TrainConfig) -> Offset:
    offset = label_offset(LabelledScene(config.data.train[0], config))
    assert offset is not None
    return offset


@pytest.mark.parametrize(
    ("seed", "shift", "options"),
    [
        (0, (5, -3), {}),
        (1, (-12, 0), {"dtype": "uint16", "nodata": 0}),
        (2, (0, 4), {"nodata": 0}),
        (3, (-7, 9), {"dtype": "float32"}),
        (4, (3, 0), {}),
    ],
)
def test_a_shift_of_the_labels_comes_back(
    seed: int, shift: tuple[int, int], options: dict[str, Any], tmp_path: Path
) -> None:
    scene, labels = made(tmp_path, seed, **options)
    dtype = options.get("dtype", "uint8")
    before = measured(experiment(scene, labels, dtype=dtype))
    assert (before.rows, before.cols) == (0, 0) and not before.is_clear and before.gain == 1
    moved = moved_copy(labels, tmp_path / "moved.tif", *shift)
    after = measured(experiment(scene, moved, dtype=dtype))
    assert after.is_clear
    assert abs(after.rows - shift[0]) <= 1 and abs(after.cols - shift[1]) <= 1


def test_the_shift_is_given_in_pixels_metres_and_direction(tmp_path: Path) -> None:
    scene, _ = made(tmp_path, 5)
    landscape = Landscape(SIDE, SIDE, seed=5, gsd_m=GSD)
    # South-west by 6 and 8 px.
    truth = landscape.truth().translate(-8 * GSD, -6 * GSD)
    frame = geopandas.GeoDataFrame({"class": landscape.truth().class_name}, geometry=truth, crs=landscape.crs)
    frame.to_file(tmp_path / "moved.gpkg")
    config = experiment(scene, tmp_path / "moved.gpkg", attribute="class", outside="ignore")
    (problem,) = [p for p in check_data(config) if "seem to lie" in p.message]
    assert problem.severity == "warning" and problem.where == str(tmp_path / "moved.gpkg")
    assert "10.0 px (5 m) too far south and west" in problem.message and "+6 rows, -8 columns" in problem.message
    assert problem.hint is not None and "4 in x and 3 in y (EPSG:32633)" in problem.hint


def test_nothing_is_reported_for_labels_in_place(tmp_path: Path) -> None:
    scene, labels = made(tmp_path, 6)
    assert [p for p in check_data(experiment(scene, labels)) if "seem to lie" in p.message] == []


def test_imagery_without_edges_says_nothing(tmp_path: Path) -> None:
    scene, labels = made(tmp_path, 7)
    with rasterio.open(scene, "r+") as file:
        noise = np.random.default_rng(0).integers(0, 255, (file.count, SIDE, SIDE))
        file.write(noise.astype(np.uint8))
    assert not measured(experiment(scene, labels)).is_clear


@pytest.mark.parametrize("side", [64, 200])
def test_a_scene_too_small_for_four_windows_is_not_measured(side: int, tmp_path: Path) -> None:
    scene, labels = tmp_path / "s.tif", tmp_path / "l.tif"
    write_landscape(Landscape(side, side, seed=1), scene, labels_path=labels)
    config = experiment(scene, labels)
    assert label_offset(LabelledScene(config.data.train[0], config)) is None


def test_windows_that_disagree_are_not_clear() -> None:
    def bump(row: int, col: int) -> npt.NDArray[np.float64]:
        surface = np.random.default_rng(row + 50).normal(0, 10, (2 * REACH + 1, 2 * REACH + 1))
        surface[REACH + row, REACH + col] += 400
        return surface

    alike = offset_of([bump(-4, 6)] * 4, [100] * 4)
    assert alike.is_clear and (alike.rows, alike.cols) == (4, -6) and alike.agreeing == 4
    apart = offset_of([bump(-4, 6), bump(10, 0), bump(0, -9), bump(15, 15)], [100] * 4)
    assert apart.agreeing == 1 and not apart.is_clear
    near = offset_of([bump(1, -1)] * 4, [100] * 4)
    assert not near.is_clear, "less than 2 px is within what labels are drawn to"
    rim = offset_of([bump(REACH, 0)] * 4, [100] * 4)
    assert not rim.is_clear, "the best shift may lie beyond those that were tried"


@given(seed=st.integers(0, 1000))
def test_correlation_equals_the_plain_sum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    reach, side = 3, 24
    pixels = rng.integers(0, 200, (2, side, side)).astype(np.uint8)
    labels = rng.integers(0, 2, (side, side)).astype(np.uint8)
    labels[:, :5] = NODATA
    valid = rng.random((side, side)) > 0.05
    labels[~valid] = NODATA  # as they are read
    found, borders = edge_correlation(pixels, valid, labels, reach=reach)

    # One band after another, one shift after another.
    padded = np.pad(pixels.astype(float), ((0, 0), (1, 1), (1, 1)), mode="edge")
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    smooth = sum(kernel[i, j] * padded[:, i : i + side, j : j + side] for i in range(3) for j in range(3))
    smooth = smooth / pixels[:, valid].astype(float).std(axis=1)[:, None, None]
    wanted, count = np.zeros_like(found), 0
    for turn in (lambda a: a, lambda a: np.swapaxes(a, -1, -2)):
        image, ids, use = turn(smooth), turn(labels), turn(valid)
        both = use[1:] & use[:-1]
        edges = np.abs(image[:, 1:] - image[:, :-1]).sum(axis=0)
        edges = np.minimum(edges, np.percentile(edges[both], 95))
        edges = np.where(both, (edges - edges[both].mean()) / edges[both].std(), 0)
        surface = np.zeros_like(found)
        for r in range(reach, edges.shape[0] - reach):
            for c in range(reach, edges.shape[1] - reach):
                if ids[r, c] != ids[r + 1, c] and NODATA not in (ids[r, c], ids[r + 1, c]):
                    surface += edges[r - reach : r + reach + 1, c - reach : c + reach + 1]
                    count += 1
        wanted += turn(surface)
    assert borders == count
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("rows", "cols", "words"),
    [(5, 0, "down"), (-5, 0, "up"), (0, 3, "right"), (0, -3, "left"), (4, -4, "down and left"), (-9, 2, "up")],
)
def test_directions_in_words(rows: int, cols: int, words: str) -> None:
    assert direction(rows, cols) == words


@pytest.mark.real_data
@pytest.mark.parametrize("scene", ["train/images/zanzibar_a", "val/images/banepa_b"])
def test_footprints_of_real_roofs(scene: str, real_data: Path, tmp_path: Path) -> None:
    imagery = real_data / "hot_buildings" / f"{scene}.tif"
    masks = Path(str(imagery).replace("/images/", "/masks/"))
    for shift in ((0, 0), (-6, 7)):
        moved = moved_copy(masks, tmp_path / f"{shift[0]}.tif", *shift)
        offset = measured(experiment(imagery, moved))
        assert offset.is_clear == (shift != (0, 0))
        assert abs(offset.rows - shift[0]) <= 1 and abs(offset.cols - shift[1]) <= 1
