from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import pyproj
import pytest
import shapely
from shapely.geometry import GeometryCollection, LineString, MultiPoint, Point, box
from shapely.geometry.base import BaseGeometry

from geoseg.classes import ClassTable
from geoseg.config import parse_config
from geoseg.config.scenes import expand_scenes
from geoseg.config.settings import SceneConfig
from geoseg.data.checks.dataset import check_data
from geoseg.data.labels import Labels
from geoseg.data.layers import widened
from geoseg.data.problems import Problem
from geoseg.errors import ConfigError, LabelError
from geoseg.georeference import transformer
from geoseg.windows import Window
from support.labels import open_labels
from support.places import grid_of, on_ground
from support.scenes import MadeScene, MakeScene

CLASSES = ClassTable.from_names(["other", "tree"], ["#000000", "#00ff00"])
GEOD = pyproj.Geod(ellps="WGS84")

PLACES = ["EPSG:32633", "EPSG:3857", "EPSG:4326", "EPSG:2263"]


def write(
    path: Path, made: MadeScene, shapes: Sequence[BaseGeometry], crs: str | None = None, **fields: Sequence[Any]
) -> Path:
    """A file of labels; the shapes are in pixels of a scene."""
    frame = geopandas.GeoDataFrame(fields, geometry=[on_ground(made, s) for s in shapes], crs=made.crs)
    (frame if crs is None else frame.to_crs(crs)).to_file(path)
    return path


def entry(made: MadeScene, labels: Path, **more: Any) -> SceneConfig:
    return SceneConfig(scene=made.path, labels=labels, **{"class_name": "tree", "outside": "other", **more})


def opened(made: MadeScene, labels: Path, **more: Any) -> Labels:
    return open_labels(entry(made, labels, **more), grid_of(made), CLASSES)


def burnt(made: MadeScene, labels: Path, **more: Any) -> npt.NDArray[np.uint8]:
    grid = grid_of(made)
    return opened(made, labels, **more).read(Window(0, 0, *grid.shape))


def problems(made: MadeScene, labels: Path, **more: Any) -> list[Problem]:
    one = entry(made, labels, **more).model_dump()
    classes = [{"name": c.name, "color": "#000000"} for c in CLASSES]
    data = {"train": [one], "val": [one], "leakage": "warn"}
    return check_data(
        parse_config({"name": "t", "output": "r", "classes": classes, "data": data, "train": {"size": 64}}, source="t")
    )


def distance_m(made: MadeScene, points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Geodesic distance of every pixel's centre from the nearest of some points (n, 2) in pixels, (H, W)."""
    grid = grid_of(made)
    way = transformer(grid.crs, "EPSG:4326")
    assert way is not None

    def lonlat(col: Any, row: Any) -> Any:
        return way.transform(*(grid.transform @ (col, row)))

    rows, cols = np.mgrid[0 : grid.height, 0 : grid.width] + 0.5
    lon, lat = lonlat(cols.ravel(), rows.ravel())
    least = np.full(lon.size, np.inf)
    for col, row in points:
        x, y = lonlat(col, row)
        least = np.minimum(least, GEOD.inv(lon, lat, np.full(lon.size, x), np.full(lon.size, y))[2])
    return least.reshape(grid.shape)


def assert_within(found: npt.NDArray[np.uint8], far: npt.NDArray[np.float64], metres: float) -> None:
    """Pixels are labelled up to a distance, which the outline of a circle keeps to 0.5 %."""
    assert (found[far < metres * 0.995] == 1).all()
    assert (found[far > metres * 1.001] == 0).all()


# --- areas


@pytest.mark.parametrize("orientation", ["north", "rotated"])
@pytest.mark.parametrize("crs", PLACES)
def test_points_become_discs_of_metres_on_the_ground(
    make_scene: MakeScene, tmp_path: Path, crs: str, orientation: str
) -> None:
    made = make_scene(crs=crs, orientation=orientation)
    points = np.array([(20.3, 30.7), (70.1, 50.2), (-5.0, 60.0)])  # the last one lies outside, its disc reaches in
    path = write(tmp_path / "trees.gpkg", made, [Point(points[0]), MultiPoint(points[1:])])
    found = burnt(made, path, buffer_m=6)
    assert_within(found, distance_m(made, points), 6)
    elsewhere = write(tmp_path / "degrees.geojson", made, [Point(p) for p in points], crs="EPSG:4326")
    assert (burnt(made, elsewhere, buffer_m=6) != found).sum() <= 1
    pixels = grid_of(made).pixel_area_m2().mean() * (found[:46, :57] == 1).sum()
    assert pixels == pytest.approx(np.pi * 36, rel=0.03)


@pytest.mark.parametrize("crs", PLACES)
def test_lines_have_half_their_width_on_both_sides(make_scene: MakeScene, tmp_path: Path, crs: str) -> None:
    made = make_scene(crs=crs)
    line = LineString([(10, 10), (60, 40), (30, 120)])  # leaves the scene
    dense = shapely.get_coordinates(shapely.segmentize(line, 0.5))
    found = burnt(made, write(tmp_path / "roads.gpkg", made, [line]), buffer_m=2.5)
    far = distance_m(made, dense)
    assert (found[far < 2.45] == 1).all()
    assert (found[far > 2.51] == 0).all()


def test_a_long_line_keeps_its_width_where_the_scale_changes() -> None:
    to_mercator = transformer("EPSG:4326", "EPSG:3857")
    assert to_mercator is not None
    line = LineString(np.column_stack(to_mercator.transform([10.0, 11.0], [60.0, 66.0])))
    area = widened(np.array([line], dtype=object), np.array([50.0]), "EPSG:3857")[0]
    assert area.is_valid and area.geom_type == "Polygon"
    lonlat = [np.array(to_mercator.transform(*shapely.get_coordinates(shape).T, direction="INVERSE"))
              for shape in (area, shapely.segmentize(line, 1000))]  # fmt: skip
    ground = abs(GEOD.polygon_area_perimeter(*lonlat[0])[0])
    assert ground == pytest.approx(100 * GEOD.line_length(*lonlat[1]) + np.pi * 50**2, rel=1e-3)


def test_any_window_is_the_crop_of_the_whole(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene(crs="EPSG:3857", orientation="rotated")
    rng = np.random.default_rng(0)
    shapes = [Point(p) for p in rng.uniform(-5, 100, (40, 2))] + [LineString(rng.uniform(0, 90, (5, 2)))]
    labels = opened(made, write(tmp_path / "l.gpkg", made, shapes), buffer_m=1.7)
    whole = labels.read(Window(0, 0, 96, 80))
    assert 0 < (whole == 1).mean() < 0.6
    for row, col, height, width in rng.integers((0, 0, 1, 1), (90, 70, 60, 60), (30, 4)).tolist():
        part = labels.read(Window(row, col, height, width))
        np.testing.assert_array_equal(part[: 96 - row, : 80 - col], whole[row : row + height, col : col + width])


def test_every_feature_has_the_width_of_its_field(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene()
    shapes = [Point(20, 20), Point(50, 50), Point(-25, 70), box(60, 5, 70, 15)]
    widths = [3.1, 7.2, 16.3, None]  # the third lies far outside the scene; polygons need no width
    found = burnt(made, write(tmp_path / "crowns.gpkg", made, shapes, crown=widths), buffer_m="crown")
    wanted = np.zeros((96, 80), dtype=np.uint8)
    for shape, metres in zip(shapes[:3], widths, strict=False):
        wanted |= distance_m(made, np.array(shape.coords)) < metres
    wanted[5:15, 60:70] = 1
    assert wanted[:, 0].any()
    assert (found != wanted).sum() <= 4


def test_polygons_beside_points_stay_as_they_are(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene()
    mixed = GeometryCollection([box(40, 10, 50, 20), LineString([(0, 80), (60, 80)])])
    found = burnt(made, write(tmp_path / "l.gpkg", made, [box(10, 10, 20, 20), mixed, Point(30, 60)]), buffer_m=2)
    assert (found[10:20, 10:20] == 1).all() and (found[10:20, 40:50] == 1).all()
    disc = (distance_m(made, np.array([(30, 60)])) < 2).sum()
    assert (found == 1).sum() == 200 + disc  # nothing along the line, which belongs to a polygon


# --- what is refused


@pytest.mark.parametrize("shape", [Point(30, 40), LineString([(10, 10), (50, 60)])])
def test_points_and_lines_without_a_width_are_refused(
    make_scene: MakeScene, tmp_path: Path, shape: BaseGeometry
) -> None:
    made = make_scene()
    path = write(tmp_path / "l.gpkg", made, [box(10, 10, 20, 20), shape])
    with pytest.raises(LabelError, match=f"1 {shape.geom_type}: points and lines cover no ground") as caught:
        opened(made, path)
    assert "buffer_m: 1.5" in str(caught.value.hint)
    (problem,) = [p for p in problems(made, path) if p.severity == "error"]
    assert problem.message == caught.value.message


@pytest.mark.parametrize("width", [0, -1.5, float("nan"), float("inf"), True, "-2", "nan"])
def test_a_width_must_be_above_0(width: Any) -> None:
    data = {"train": [{"scene": "a.tif", "labels": "a.gpkg", "buffer_m": width}], "val": []}
    classes = [{"name": "other", "color": "#000000"}]
    with pytest.raises(ConfigError, match=r"buffer_m.*must be metres above 0 or the name of a field"):
        parse_config({"name": "t", "output": "r", "classes": classes, "data": data}, source="t")


def test_wrong_widths_in_a_field_are_listed(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene()
    shapes = [Point(10 * i + 5, 50) for i in range(5)] + [Point(900, 50)]
    path = write(tmp_path / "l.gpkg", made, shapes, crown=[1.0, -1.0, 0.0, None, 2.0, None], kind=["oak"] * 6)
    (problem,) = [p for p in problems(made, path, buffer_m="crown") if p.severity == "error"]
    assert "field crown of" in problem.message and "above 0 in 3 of 5 points and lines" in problem.message
    assert "feature 2: -1.0; feature 3: 0.0; feature 4: nan" in problem.message
    with pytest.raises(LabelError, match="field crown of"):
        opened(made, path, buffer_m="crown")
    with pytest.raises(LabelError, match="field kind of"):
        opened(made, path, buffer_m="kind")
    with pytest.raises(LabelError, match="has no field crowns") as caught:
        opened(made, path, buffer_m="crowns")
    assert "did you mean crown?" in str(caught.value.hint)
    assert any("has no field crowns" in p.message for p in problems(made, path, buffer_m="crowns"))


def test_metres_need_a_known_ground(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene(crs=None)
    path = write(tmp_path / "l.shp", made, [Point(30, 40)])
    with pytest.raises(LabelError, match="its metres are not known"):
        opened(made, path, buffer_m=2)
    assert any("its metres are not known" in p.message for p in problems(made, path, buffer_m=2))


def test_a_width_for_polygons_only_is_reported(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene()
    path = write(tmp_path / "l.gpkg", made, [box(10, 10, 20, 20)])
    assert (burnt(made, path, buffer_m=2) == 1).sum() == 100
    (problem,) = [p for p in problems(made, path, buffer_m=2) if "buffer_m" in p.message]
    assert problem.severity == "warning" and "polygons only" in problem.message


def test_layers_of_points_and_of_polygons_are_a_choice(make_scene: MakeScene, tmp_path: Path) -> None:
    made, path = make_scene(), tmp_path / "l.gpkg"
    for layer, shape in (("parks", box(10, 10, 20, 20)), ("trees", Point(50, 50))):
        geopandas.GeoDataFrame(geometry=[on_ground(made, shape)], crs=made.crs).to_file(path, layer=layer)
    assert (burnt(made, path) == 1).sum() == 100
    with pytest.raises(LabelError, match="several layers: parks, trees"):
        opened(made, path, buffer_m=2)


# --- the rest of the path


def test_points_near_scenes_are_found_by_check_and_catalogue(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene()
    path = write(tmp_path / "l.gpkg", made, [Point(-2, 50), Point(5000, 50)])  # beside the scene, and far away
    found = problems(made, path, buffer_m=3)
    assert [p.severity for p in found if "touches scene" in p.message] == []
    assert any("1 of 2 features" in p.message and "outside all its scenes" in p.message for p in found)
    assert any("no feature of" in p.message for p in problems(made, path, buffer_m=0.5))
    (tmp_path / "c.csv").write_text(f"scene,labels,buffer_m\n{made.path},l.gpkg,3\n{made.path},l.gpkg,crown\n")
    data: dict[str, Any] = {"train": [{"catalogue": "c.csv", "class_name": "tree", "outside": "other"}]}
    expand_scenes(data, tmp_path)
    assert [SceneConfig(**one).buffer_m for one in data["train"]] == [3.0, "crown"]
