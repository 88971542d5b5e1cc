from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from scipy import ndimage, optimize
from shapely.geometry import Point, box

from geoseg.config import parse_config
from geoseg.data.labelled import LabelledScene
from geoseg.errors import ConfigError, LabelError
from geoseg.evaluation.centres import CentreMeasure
from geoseg.grid import Grid
from geoseg.options import Measures
from support.scenes import MadeScene, MakeScene

Points = npt.NDArray[np.float64]

GRID = Grid(60, 50, Affine(0.62, 0, 500_000, 0, -0.62, 5_200_000), CRS.from_epsg(32633))


def map_of(points: Points, grid: Grid, radius: float) -> npt.NDArray[np.uint8]:
    """A class map with a disc of class 1 around every point, px."""
    rows, cols = np.mgrid[0 : grid.height, 0 : grid.width] + 0.5
    near = [(cols - x) ** 2 + (rows - y) ** 2 < radius**2 for x, y in points]
    return np.any(near, axis=0).astype(np.uint8)


def measured(measure: CentreMeasure, truth: Any, mapped: Any, cuts: list[int]) -> tuple[int, int, int]:
    for a, b in zip([0, *cuts], [*cuts, len(mapped)], strict=True):
        measure.feed(truth[a:b], mapped[a:b])
    scores = measure.result()
    return int(scores.true[1]), int(scores.mapped[1]), int(scores.matched[1])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 59), max_size=5))
def test_pairs_are_as_many_as_can_be_made(seed: int, cuts: list[int]) -> None:
    rng = np.random.default_rng(seed)
    true = rng.uniform(0, 50, (30, 2)) * [1, 1.2]
    mapped = map_of(true[:20] + rng.normal(0, 2, (20, 2)), GRID, 2)
    truth = np.zeros_like(mapped)
    truth[:, :8] = 255
    metres = float(GRID.gsd_m() or 0)
    measure = CentreMeasure(2, GRID, true, np.ones(30, dtype=np.int64), within_m=2.0, of=[1])
    found = measured(measure, truth, mapped, sorted(set(cuts)))
    regions, number = ndimage.label(np.where(truth == 255, 0, mapped))
    centres = np.array(ndimage.center_of_mass(regions > 0, regions, range(1, number + 1))).reshape(-1, 2)[:, ::-1] + 0.5
    known = true[true[:, 0] >= 8]
    near = np.hypot(*(known[:, None] - centres[None]).transpose(2, 0, 1)) * metres <= 2.0
    pairs = near[optimize.linear_sum_assignment(~near)].sum() if near.size else 0
    assert found == (len(known), number, pairs)


def test_merged_crowns_are_one_object() -> None:
    true = np.array([(20.0, 20.0), (24.0, 20.0), (40.0, 40.0)])
    mapped = map_of(true, GRID, 3)
    found = measured(
        CentreMeasure(2, GRID, true, np.ones(3, dtype=np.int64), within_m=2), np.zeros_like(mapped), mapped, [21]
    )
    assert found == (3, 2, 2)


def labelled(made: MadeScene, labels: Path, **entry: Any) -> LabelledScene:
    one = {"scene": made.path, "labels": labels, "class_name": "tree", "outside": "other", **entry}
    classes = [{"name": "other", "color": "#000000"}, {"name": "tree", "color": "#00ff00"}]
    data = {"train": [one], "val": [one], "leakage": "warn"}
    config = parse_config({"name": "t", "output": "r", "classes": classes, "data": data}, source="t")
    return LabelledScene(config.data.val[0], config)


def test_points_and_polygons_of_labels_have_centres(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene(crs="EPSG:2263", orientation="rotated")
    t = made.transform
    square = box(*(t @ (40, 60)), *(t @ (40, 60))).buffer(9)
    geopandas.GeoDataFrame(geometry=[Point(t @ (20.25, 30.5)), square], crs=made.crs).to_file(tmp_path / "l.gpkg")
    scene = labelled(made, tmp_path / "l.gpkg", buffer_m=1)
    centres, ids = scene.centres()
    np.testing.assert_allclose(centres, [(20.25, 30.5), (40, 60)], atol=1e-4)
    assert ids.tolist() == [1, 1]
    measure = CentreMeasure(2, scene.grid, centres, ids, within_m=1)
    shape = scene.grid.shape
    assert measured(measure, np.zeros(shape, dtype=np.uint8), map_of(centres, scene.grid, 2), [50]) == (2, 2, 2)


def test_objects_need_a_vector_file_and_metres(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene()
    with rasterio.open(made.path) as scene:
        profile = scene.profile | {"count": 1}
    with rasterio.open(tmp_path / "labels.tif", "w", **profile) as file:
        file.write(np.zeros((1, *made.pixels.shape[1:]), dtype=np.uint8))
    raster = {"class_name": None, "outside": None}
    with pytest.raises(LabelError, match="are a raster, whose objects are not known") as caught:
        labelled(made, tmp_path / "labels.tif", **raster).centres()
    assert "--within" in str(caught.value.hint)
    with pytest.raises(ConfigError, match="--within must be metres above 0"):
        Measures(within_m=0.0)
