from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import pyogrio
import pytest
import rasterio
import rasterio.warp
import torch
from affine import Affine
from rasterio.features import rasterize
from rasterio.warp import reproject
from shapely.geometry import Polygon, box
from torch.utils.data import DataLoader

from geoseg.classes import NODATA, ClassTable
from geoseg.config import parse_config
from geoseg.config.settings import SceneConfig, TrainConfig
from geoseg.data.labelled import LabelledScene, open_scenes
from geoseg.data.statistics import band_statistics
from geoseg.data.windows import CoveringWindows, RandomWindows
from geoseg.errors import LabelError, SceneError
from geoseg.grid import Grid
from geoseg.options import Imagery
from geoseg.programs.train import build_contract
from geoseg.scene import open_scene
from geoseg.windows import Window
from support.labels import open_labels
from support.places import grid_of
from support.scenes import MadeScene, MakeScene

CLASSES = ClassTable.from_names(["other", "field", "house"], ["#000000", "#00ff00", "#ff0000"])


def write_labels(
    path: Path, ids: npt.NDArray[Any], transform: Affine, crs: str | None, nodata: float | None = None
) -> Path:
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=ids.shape[-2],
        width=ids.shape[-1],
        count=ids.shape[0] if ids.ndim == 3 else 1,
        dtype=ids.dtype,
        crs=crs,
        transform=transform,
        nodata=nodata,
    ) as file:
        file.write(ids if ids.ndim == 3 else ids[None])
    return path


def whole(grid: Grid) -> Window:
    return Window(0, 0, grid.height, grid.width)


def stripes(shape: tuple[int, int], side: int = 8) -> npt.NDArray[np.uint8]:
    rows, cols = np.mgrid[0 : shape[0], 0 : shape[1]]
    return ((rows // side + cols // side) % 3).astype(np.uint8)


def raster_config(made: MadeScene, labels: Path, **more: Any) -> SceneConfig:
    return SceneConfig(scene=made.path, labels=labels, **more)


def settings(*entries: SceneConfig, **changes: Any) -> TrainConfig:
    tables: dict[str, Any] = {
        "name": "test",
        "output": "run",
        "classes": [{"name": c.name, "color": "#000000"} for c in CLASSES],
        "data": {split: [e.model_dump() for e in entries] for split in ("train", "val")},
        "train": {"size": 32, "max_class_share": 1.0},
        "window": {"size": 64, "overlap": 0},
    }
    return parse_config(tables | changes, source="test")


# --- labels from a raster


def test_labels_on_the_scenes_grid_are_read_as_they_are(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene()
    ids = stripes(made.valid.shape)
    ids[3, 4] = NODATA
    ids[5, 6] = 9  # the file's own nodata
    path = write_labels(tmp_path / "l.tif", ids, made.transform, made.crs, nodata=9)
    labels = open_labels(raster_config(made, path), grid_of(made), CLASSES)
    wanted = np.where(ids == 9, NODATA, ids)
    np.testing.assert_array_equal(labels.read(whole(grid_of(made))), wanted)
    np.testing.assert_array_equal(labels.read(Window(10, 20, 30, 25)), wanted[10:40, 20:45])
    outside = labels.read(Window(-5, -7, 20, 20))
    assert (outside[:5] == NODATA).all() and (outside[:, :7] == NODATA).all()
    np.testing.assert_array_equal(outside[5:, 7:], wanted[:15, :13])


@pytest.mark.parametrize("orientation", ["north", "south", "rotated"])
def test_labels_in_another_crs_are_resampled_to_the_nearest(
    make_scene: MakeScene, tmp_path: Path, orientation: str
) -> None:
    made = make_scene(orientation=orientation)
    grid = grid_of(made)
    # A map of classes in Web Mercator, larger than the scene on the left and smaller on the right.
    other = "EPSG:3857"
    left, _, right, top = rasterio.warp.transform_bounds(grid.crs, other, *grid.bounds)
    side = (right - left) / 120
    transform = Affine.translation(left - 10 * side, top + 10 * side) @ Affine.scale(side, -side)
    ids = stripes((140, 100), side=12)
    path = write_labels(tmp_path / "l.tif", ids, transform, other)
    labels = open_labels(raster_config(made, path), grid, CLASSES)
    wanted = np.full(grid.shape, NODATA, dtype=np.uint8)
    reproject(
        ids,
        wanted,
        src_transform=transform,
        src_crs=other,
        dst_transform=grid.transform,
        dst_crs=grid.crs,
        dst_nodata=NODATA,
        init_dest_nodata=True,
    )
    found = labels.read(whole(grid))
    assert (found == wanted).mean() > 0.995  # GDAL approximates the transform a little differently per window
    assert 0.02 < (found == NODATA).mean() < 0.5
    assert (labels.read(Window(16, 8, 40, 30)) == found[16:56, 8:38]).mean() > 0.99
    around = labels.read(Window(-8, -8, grid.height + 16, grid.width + 16))
    assert (around[8:-8, 8:-8] == found).mean() > 0.99
    around[8:-8, 8:-8] = NODATA
    assert (around == NODATA).all()  # though the labels reach further than the scene


def test_labels_in_another_crs_are_not_aligned(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene()
    path = write_labels(tmp_path / "l.tif", stripes(made.valid.shape), made.transform, "EPSG:32634")
    with pytest.raises(LabelError, match="do not touch"):
        open_labels(raster_config(made, path), grid_of(made), CLASSES)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_labels_without_georeference_need_the_scenes_size(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene()
    ids = stripes(made.valid.shape)
    same = write_labels(tmp_path / "same.png.tif", ids, Affine.identity(), None)
    labels = open_labels(raster_config(made, same), grid_of(made), CLASSES)
    np.testing.assert_array_equal(labels.read(whole(grid_of(made))), ids)
    less = write_labels(tmp_path / "less.tif", ids[1:], Affine.identity(), None)
    with pytest.raises(LabelError, match=r"95 × 80 px, scene .* has 96 × 80"):
        open_labels(raster_config(made, less), grid_of(made), CLASSES)


@pytest.mark.parametrize(
    ("ids", "complaint"),
    [
        (np.full((96, 80), 3, dtype=np.uint8), ": 3 "),
        (np.full((96, 80), 256, dtype=np.int16), ": 256 "),
        (np.full((96, 80), -1, dtype=np.int16), ": -1 "),
        (np.full((96, 80), NODATA, dtype=np.uint8), "empty"),
        (np.zeros((96, 80), dtype=np.float32), "1 band of float32"),
        (np.zeros((3, 96, 80), dtype=np.uint8), "3 bands of uint8"),
    ],
)
def test_rasters_that_hold_no_class_ids_are_refused(
    make_scene: MakeScene, tmp_path: Path, ids: npt.NDArray[Any], complaint: str
) -> None:
    made = make_scene()
    path = write_labels(tmp_path / "l.tif", ids, made.transform, made.crs)
    with pytest.raises(LabelError, match=complaint) as caught:
        open_labels(raster_config(made, path), grid_of(made), CLASSES)
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_labels_are_checked_again_after_a_change(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene()
    grid, config = grid_of(made), raster_config(made, tmp_path / "l.tif")
    write_labels(config.labels, stripes(made.valid.shape), made.transform, made.crs)
    open_labels(config, grid, CLASSES)
    with pytest.raises(LabelError, match=": 2 "):
        open_labels(config, grid, ClassTable.from_names(["other", "field"], ["#000000", "#00ff00"]))
    with pytest.raises(LabelError, match="do not touch"):
        open_labels(config, grid_of(make_scene(shift=(500, 0))), CLASSES)
    write_labels(config.labels, stripes(made.valid.shape) + 1, made.transform, made.crs)
    with pytest.raises(LabelError, match=": 3 "):
        open_labels(config, grid, CLASSES)


def test_missing_labels_are_named(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene()
    with pytest.raises(LabelError, match="no such labels"):
        open_labels(raster_config(made, tmp_path / "none.tif"), grid_of(made), CLASSES)


# --- labels from polygons


def polygons(grid: Grid) -> tuple[list[Polygon], list[str]]:
    """A rectangle, a triangle over it and a thin one, in the grid's CRS, and their classes."""
    # Corners off the half pixels, so that no pixel centre lies on a border, where rounding decides.
    shapes = [
        [(10, 10), (10, 50), (60, 50), (60, 10)],
        [(30, 20), (30, 70), (80, 30)],
        [(2, 70), (2, 71), (90, 75), (90, 74)],
    ]
    return [Polygon([grid.transform @ (c + 0.137, r + 0.291) for r, c in s]) for s in shapes], [
        "field",
        "house",
        "field",
    ]


@pytest.fixture
def labelled_file(make_scene: MakeScene, tmp_path: Path) -> tuple[MadeScene, Grid, Path, npt.NDArray[np.uint8]]:
    """A scene, its grid, polygons for it in another CRS, and the burnt truth."""
    made = make_scene(orientation="rotated")
    grid = grid_of(made)
    shapes, names = polygons(grid)
    frame = geopandas.GeoDataFrame(
        {"kind": names, "code": [CLASSES.id_of(n) for n in names]}, geometry=shapes, crs=grid.crs
    ).to_crs("EPSG:4326")
    path = tmp_path / "polygons.geojson"
    frame.to_file(path)
    back = geopandas.read_file(path).to_crs(grid.crs)
    burnt = zip(back.geometry, back["code"], strict=True)
    truth: npt.NDArray[np.uint8] = rasterize(burnt, out_shape=grid.shape, transform=grid.transform, dtype="uint8")
    return made, grid, path, truth


LabelledFile = tuple[MadeScene, Grid, Path, npt.NDArray[np.uint8]]


@pytest.mark.parametrize("attribute", ["kind", "code"])
@pytest.mark.parametrize(("outside", "value"), [("other", 0), ("house", 2), ("ignore", NODATA)])
def test_polygons_in_any_crs_burn_as_rasterize_does(
    labelled_file: LabelledFile, attribute: str, outside: str, value: int
) -> None:
    made, grid, path, truth = labelled_file
    labels = open_labels(raster_config(made, path, attribute=attribute, outside=outside), grid, CLASSES)
    wanted = np.where(truth == 0, value, truth)
    assert len(np.unique(truth)) == 3
    np.testing.assert_array_equal(labels.read(whole(grid)), wanted)
    for window in (Window(5, 7, 40, 50), Window(0, 60, 96, 20), Window(95, 79, 1, 1)):
        part = wanted[window.row : window.row_stop, window.col : window.col_stop]
        np.testing.assert_array_equal(labels.read(window), part)
    beyond = labels.read(Window(-10, 70, 20, 20))
    assert (beyond[:10] == NODATA).all() and (beyond[:, 10:] == NODATA).all()
    np.testing.assert_array_equal(beyond[10:, :10], wanted[:10, 70:])


def test_one_class_for_all_polygons(labelled_file: LabelledFile) -> None:
    made, grid, path, truth = labelled_file
    labels = open_labels(raster_config(made, path, class_name="house", outside="other"), grid, CLASSES)
    np.testing.assert_array_equal(labels.read(whole(grid)), np.where(truth > 0, 2, 0))


def test_integer_codes_with_a_gap_of_floats_are_class_ids(labelled_file: LabelledFile, tmp_path: Path) -> None:
    made, grid, path, truth = labelled_file
    frame = geopandas.read_file(path)
    frame["code"] = frame["code"].astype(float)
    frame.to_file(tmp_path / "floats.gpkg")
    config = raster_config(made, tmp_path / "floats.gpkg", attribute="code", outside="other")
    np.testing.assert_array_equal(open_labels(config, grid, CLASSES).read(whole(grid)), truth)


def test_empty_geometries_are_passed_over(labelled_file: LabelledFile, tmp_path: Path) -> None:
    made, grid, path, truth = labelled_file
    frame = geopandas.read_file(path)
    frame = frame.iloc[[0, 0, 1, 2]].reset_index(drop=True)
    frame.loc[1, "geometry"] = None
    frame.to_file(tmp_path / "gaps.gpkg")
    config = raster_config(made, tmp_path / "gaps.gpkg", attribute="kind", outside="other")
    np.testing.assert_array_equal(open_labels(config, grid, CLASSES).read(whole(grid)), truth)


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_polygon_labels_that_cannot_be_meant_are_explained(labelled_file: LabelledFile, tmp_path: Path) -> None:
    made, grid, path, _ = labelled_file

    def complaint(labels: Path = path, **more: Any) -> LabelError:
        with pytest.raises(LabelError) as caught:
            open_labels(raster_config(made, labels, **more), grid, CLASSES)
        return caught.value

    assert "outside: other" in str(complaint(attribute="kind").hint)
    error = complaint(outside="other")
    assert "class of the polygons is not given" in error.message and "class_name" in str(error.hint)
    error = complaint(attribute="land", outside="other")
    assert "has no field land" in error.message and error.hint == "its fields: kind, code"
    frame = geopandas.read_file(path)
    frame.assign(kind=["field", "lake", "field"]).to_file(tmp_path / "lake.gpkg")
    error = complaint(tmp_path / "lake.gpkg", attribute="kind", outside="other")
    assert "no class name or id: 'lake'" in error.message and "1 field" in str(error.hint)
    frame.set_crs(None, allow_override=True).to_file(tmp_path / "nowhere.gpkg")
    error = complaint(tmp_path / "nowhere.gpkg", attribute="kind", outside="other")
    assert "no CRS" in error.message and "ogr2ogr -a_srs" in str(error.hint)
    frame.set_geometry(frame.translate(5, 5)).to_file(tmp_path / "away.gpkg")
    assert "touches scene" in complaint(tmp_path / "away.gpkg", attribute="kind", outside="other").message
    (tmp_path / "broken.geojson").write_text("{}")
    assert "cannot be read" in complaint(tmp_path / "broken.geojson", attribute="kind", outside="other").message


def test_a_layer_is_read_near_the_scene_alone_and_in_its_order(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene(crs="EPSG:2263", orientation="rotated")
    grid = grid_of(made)
    shapes, names = polygons(grid)
    # Many far away, one of them of no known class, before and between those of the scene.
    far = [box(*p.buffer(5).bounds) for p in geopandas.GeoSeries(shapes).translate(9000, 0)] * 200
    order = [*far[:300], shapes[0], *far[300:], shapes[1], shapes[2]]
    kinds = ["lake"] * 300 + names[:1] + ["lake"] * 300 + names[1:]
    frame = geopandas.GeoDataFrame({"kind": kinds}, geometry=order, crs=grid.crs)
    truth = rasterize(
        zip(shapes, [CLASSES.id_of(n) for n in names], strict=True), out_shape=grid.shape, transform=grid.transform
    )
    for name in ("l.gpkg", "l.fgb", "l.geojson", "l.shp"):
        frame.to_crs("EPSG:4326" if name == "l.geojson" else "EPSG:32618").to_file(tmp_path / name)
        config = raster_config(made, tmp_path / name, attribute="kind", outside="other")
        labels = open_labels(config, grid, CLASSES)
        if name != "l.fgb":  # which sorts its features by place
            np.testing.assert_array_equal(labels.read(whole(grid)), truth)
        assert len(pickle.dumps(labels)) < 10_000
    near = open_labels(raster_config(made, tmp_path / "l.gpkg", attribute="kind", outside="other"), grid, CLASSES)
    (tmp_path / "l.gpkg").unlink()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(near)).read(whole(grid)), truth)


def test_a_file_without_index_is_read_once_for_all_scenes(
    make_scene: MakeScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = [make_scene(shift=(200 * i, 0), seed=i) for i in range(3)]
    shapes = [polygons(grid_of(made)) for made in scenes]
    frame = geopandas.GeoDataFrame(
        {"kind": [n for _, names in shapes for n in names]}, geometry=[p for some, _ in shapes for p in some], crs=32633
    )
    path = tmp_path / "all.geojson"
    frame.to_crs(4326).to_file(path)
    calls = []
    read = pyogrio.read_dataframe
    monkeypatch.setattr(pyogrio, "read_dataframe", lambda *a, **k: calls.append(a) or read(*a, **k))
    entries = [raster_config(made, path, attribute="kind", outside="other") for made in scenes]
    opened = open_scenes(settings(*entries), "train")
    assert len(calls) == 1
    first = opened[0].labels.read(whole(opened[0].grid))
    assert set(np.unique(first)) == {0, 1, 2}
    assert all((scene.labels.read(whole(scene.grid)) == first).mean() > 0.999 for scene in opened)


def test_several_layers_are_refused(labelled_file: LabelledFile, tmp_path: Path) -> None:
    made, grid, path, _ = labelled_file
    frame = geopandas.read_file(path)
    frame.to_file(tmp_path / "two.gpkg", layer="fields")
    frame.to_file(tmp_path / "two.gpkg", layer="houses")
    config = raster_config(made, tmp_path / "two.gpkg", attribute="kind", outside="other")
    with pytest.raises(LabelError, match="several layers of polygons: fields, houses") as caught:
        open_labels(config, grid, CLASSES)
    assert str(caught.value.hint).startswith("take one of them: ogr2ogr")


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_the_first_class_may_have_any_value(make_scene: MakeScene, tmp_path: Path, dtype: str, aligned: bool) -> None:
    made = make_scene()
    ids = stripes(made.valid.shape)
    ids[:20, :20], ids[50, 60] = NODATA, NODATA
    values = ids.astype(dtype) + np.array(3, dtype)  # 3, 4, 5 for the classes
    values[ids == NODATA] = NODATA
    values[70:, :] = 2  # below the first
    wanted = ids.copy()
    wanted[70:, :] = NODATA
    if not aligned:  # the same pixels in a larger raster
        values = np.pad(values, 4, constant_values=1)
    corner = made.transform if aligned else made.transform @ Affine.translation(-4, -4)
    path = write_labels(tmp_path / "l.tif", values, corner, made.crs)
    config = raster_config(made, path)
    labels = open_labels(config, grid_of(made), CLASSES, first_label=3)
    np.testing.assert_array_equal(labels.read(whole(grid_of(made))), wanted)
    with pytest.raises(LabelError, match=r"outside the classes .* … 4: 5 "):
        open_labels(config, grid_of(made), CLASSES, first_label=2)
    with pytest.raises(LabelError, match=r"are empty: .* or below 9"):
        open_labels(config, grid_of(made), CLASSES, first_label=9)
    scene = LabelledScene(
        config, settings(config, data={s: [config.model_dump()] for s in ("train", "val")} | {"first_label": 3})
    )
    np.testing.assert_array_equal(scene.labels.read(whole(grid_of(made))), wanted)


def test_labels_from_1_are_known_by_one_class_too_many(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene()
    path = write_labels(tmp_path / "l.tif", stripes(made.valid.shape) + 1, made.transform, made.crs)
    with pytest.raises(LabelError, match=": 3 ") as caught:
        open_labels(raster_config(made, path), grid_of(made), CLASSES)
    assert "data.first_label=1" in str(caught.value.hint)


FIVE = ClassTable.from_names(list("abcde"), ["#000000"] * 5)


@pytest.mark.parametrize("values", [["1", "2", "3", "4"], [1, 2, 3, 4], [1.0, 2.0, 3.0, 4.0], ["1.0", "02", "3", "4"]])
def test_numbers_in_a_field_count_from_the_first_label(
    make_scene: MakeScene, tmp_path: Path, values: list[Any]
) -> None:
    made = make_scene()
    grid = grid_of(made)
    squares = [box(*grid.transform @ (10 * i, 40), *grid.transform @ (10 * i + 10, 20)) for i in range(4)]
    geopandas.GeoDataFrame({"code": values}, geometry=squares, crs=made.crs).to_file(tmp_path / "l.gpkg")
    config = raster_config(made, tmp_path / "l.gpkg", attribute="code", outside="ignore")
    for first in (0, 1):
        burnt = open_labels(config, grid, FIVE, first_label=first).read(whole(grid))
        assert [burnt[30, 10 * i + 5] for i in range(4)] == [i + 1 - first for i in range(4)]
    burnt = open_labels(config, grid, FIVE, first_label=3).read(whole(grid))  # 1 and 2 are ignored, as in a raster
    assert [burnt[30, 10 * i + 5] for i in range(4)] == [NODATA, NODATA, 0, 1]
    four = ClassTable.from_names(list("abcd"), ["#000000"] * 4)
    with pytest.raises(LabelError, match="no class name or id: '4'") as caught:
        open_labels(config, grid, four)
    assert "data.first_label=1" in str(caught.value.hint)


def test_a_field_holds_names_or_numbers_and_never_both(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene()
    grid = grid_of(made)
    square = box(*grid.transform @ (10, 40), *grid.transform @ (30, 20))

    def labelled(values: list[str], classes: ClassTable, first: int) -> int:
        frame = geopandas.GeoDataFrame({"code": values}, geometry=[square] * len(values), crs=made.crs)
        frame.to_file(tmp_path / "l.gpkg")
        config = raster_config(made, tmp_path / "l.gpkg", attribute="code", outside="ignore")
        return int(open_labels(config, grid, classes, first_label=first).read(whole(grid))[30, 20])

    with pytest.raises(LabelError, match=r"names of classes \(b\) and numbers \(1\)"):
        labelled(["1", "b"], FIVE, 1)
    # Codes that are names of classes stay names: ESA's WorldCover counts in tens.
    codes = ClassTable.from_names(["10", "20", "3", "1"], ["#000000"] * 4)
    assert labelled(["20", "3"], codes, 1) == 2
    assert labelled(["1"], codes, 1) == 3


def test_a_file_without_features_says_that_all_is_outside(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene()
    grid = grid_of(made)
    none = geopandas.GeoDataFrame({"kind": np.array([], dtype=object)}, geometry=[], crs="EPSG:4326")
    for name in ("l.gpkg", "l.shp", "l.fgb"):
        pyogrio.write_dataframe(none, tmp_path / name, geometry_type="Polygon")
    (tmp_path / "l.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    none.to_parquet(tmp_path / "l.parquet")
    for name in ("l.gpkg", "l.shp", "l.fgb", "l.geojson", "l.parquet"):
        for more in ({"attribute": "kind"}, {"class_name": "house"}):
            config = raster_config(made, tmp_path / name, outside="other", **more)
            assert (open_labels(config, grid, CLASSES).read(Window(0, 0, 96, 80)) == 0).all()
        with pytest.raises(LabelError, match="have no features") as caught:
            open_labels(raster_config(made, tmp_path / name, outside="ignore", class_name="house"), grid, CLASSES)
        assert "outside: other" in str(caught.value.hint)


@pytest.mark.parametrize("orientation", ["north", "rotated"])
@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32633"])
def test_outside_the_labelled_area_labels_are_ignored(
    labelled_file: LabelledFile, make_scene: MakeScene, tmp_path: Path, orientation: str, crs: str
) -> None:
    made = make_scene(orientation=orientation)
    grid = grid_of(made)
    shapes, _ = polygons(grid)
    area = tmp_path / "area.gpkg"
    geopandas.GeoSeries(shapes[:2], crs=grid.crs).to_crs(crs).to_file(area)
    inside = rasterize(shapes[:2], out_shape=grid.shape, transform=grid.transform) > 0
    ids = stripes(grid.shape)
    raster = write_labels(tmp_path / "l.tif", ids, made.transform, made.crs)
    labels = open_labels(raster_config(made, raster, labelled_area=area), grid, CLASSES)
    wanted = np.where(inside, ids, NODATA)
    assert (labels.read(whole(grid)) != wanted).sum() <= (0 if crs == "EPSG:32633" else 4)  # straight in another CRS
    part = labels.read(Window(-5, 30, 40, 60))
    assert (part[:5] == NODATA).all() and (part[:, 50:] == NODATA).all()
    np.testing.assert_array_equal(part[5:, :50], labels.read(whole(grid))[:35, 30:])
    assert (labels.read(Window(90, 0, 6, 6)) == NODATA).all()
    geopandas.GeoSeries(shapes, crs=grid.crs).to_frame("geometry").assign(kind="house").to_file(tmp_path / "p.gpkg")
    vector = raster_config(made, tmp_path / "p.gpkg", labelled_area=area, attribute="kind", outside="other")
    burnt = open_labels(vector, grid, CLASSES).read(whole(grid))
    assert set(np.unique(burnt)) == {2, NODATA} and ((burnt == 2) != inside).sum() <= 4


def test_a_labelled_area_that_cannot_be_meant_is_explained(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene()
    raster = write_labels(tmp_path / "l.tif", stripes(made.valid.shape), made.transform, made.crs)

    def complaint(area: Path) -> LabelError:
        with pytest.raises(LabelError) as caught:
            open_labels(raster_config(made, raster, labelled_area=area), grid_of(made), CLASSES)
        return caught.value

    assert complaint(tmp_path / "none.gpkg").message == f"no such labelled area: {tmp_path / 'none.gpkg'}"
    geopandas.GeoSeries([box(0, 0, 1, 1)], crs=4326).to_file(tmp_path / "away.gpkg")
    assert "no polygon of the labelled area" in complaint(tmp_path / "away.gpkg").message
    (tmp_path / "text.gpkg").write_text("nothing")
    assert "labelled area" in complaint(tmp_path / "text.gpkg").message


# --- scenes with labels


@pytest.fixture
def two_scenes(make_scene: MakeScene, tmp_path: Path) -> list[SceneConfig]:
    """Two scenes whose first band is 60 per class, one of them with a corner of nodata."""
    entries = []
    for seed, (nodata, size) in enumerate([("none", (150, 110)), ("mask", (96, 130))]):
        made = make_scene(nodata=nodata, size=size, seed=seed)
        ids = stripes(size, side=11)
        with rasterio.open(made.path, "r+") as file:
            file.write(60 * ids + 5, 1)
        labels = write_labels(tmp_path / f"labels{seed}.tif", ids, made.transform, made.crs)
        entries.append(raster_config(made, labels))
    return entries


def labelled(entries: list[SceneConfig], config: TrainConfig) -> list[LabelledScene]:
    return [LabelledScene(entry, config) for entry in entries]


def assert_labels_follow_pixels(sample: dict[str, torch.Tensor]) -> None:
    labels, valid = sample["labels"], sample["valid"]
    assert (labels[~valid] == NODATA).all()
    known = labels != NODATA
    np.testing.assert_allclose(sample["pixels"][0][known] * 255, 60.0 * labels[known] + 5, atol=0.01)


def test_invalid_pixels_are_ignored_and_hold_nothing(two_scenes: list[SceneConfig]) -> None:
    scene = LabelledScene(two_scenes[1], settings(*two_scenes))
    pixels, valid, labels = scene.read(Window(0, 0, 96, 130))
    assert 0 < (~valid).sum() < valid.size
    assert (labels[~valid] == NODATA).all() and (labels[valid] != NODATA).all()
    assert (pixels[:, ~valid] == 0).all()


STILL = {"scale": (1, 1), "brightness": 0, "contrast": 0, "hue": 0, "saturation": 0}


def test_a_random_window_is_a_function_of_seed_and_place_alone(two_scenes: list[SceneConfig]) -> None:
    config = settings(*two_scenes)
    whole_run = RandomWindows(labelled(two_scenes, config), config, length=12)
    resumed = RandomWindows(labelled(two_scenes, config), config, length=12, start=5)
    for i in (3, 0, 2):  # in any order
        for key, value in whole_run[5 + i].items():
            assert torch.equal(value, resumed[i][key]), key
    other = config.model_copy(update={"seed": 1})
    assert not torch.equal(RandomWindows(whole_run.scenes, other, length=1)[0]["pixels"], whole_run[0]["pixels"])
    assert len({whole_run[i]["pixels"].numpy().tobytes() for i in range(12)}) == 12


def test_workers_draw_the_same_windows_as_none(two_scenes: list[SceneConfig]) -> None:
    config = settings(*two_scenes)
    dataset = RandomWindows(labelled(two_scenes, config), config, length=6)
    alone = list(DataLoader(dataset, batch_size=2))
    # spawned, so scenes must travel closed
    shared = list(DataLoader(dataset, batch_size=2, num_workers=1, multiprocessing_context="spawn"))
    assert len(alone) == len(shared) == 3
    for a, b in zip(alone, shared, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in ("pixels", "valid", "labels"))


def test_a_labelled_scene_travels_closed(two_scenes: list[SceneConfig]) -> None:
    config = settings(*two_scenes)
    scene = LabelledScene(two_scenes[0], config)
    before = scene.read(Window(3, 4, 20, 20))
    after = pickle.loads(pickle.dumps(scene)).read(Window(3, 4, 20, 20))
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_configured_gsd_resamples_scene_and_labels(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene(size=(96, 80))
    ids = stripes((96, 80), side=16)
    shapes = [box(c * 16, r * 16, c * 16 + 16, r * 16 + 16) for r in range(6) for c in range(5)]
    names = [CLASSES[int(ids[r * 16, c * 16])].name for r in range(6) for c in range(5)]
    ground = geopandas.GeoSeries(shapes).affine_transform(made.transform.to_shapely())
    geopandas.GeoDataFrame({"class_name": names}, geometry=ground, crs=made.crs).to_file(tmp_path / "l.gpkg")
    gsd = grid_of(made).gsd_m()
    assert gsd is not None
    imagery = {"gsd_m": 2 * gsd}
    places = (made.transform, made.crs), (made.transform, None), (Affine.identity(), None)
    rasters = [
        SceneConfig(scene=made.path, labels=write_labels(tmp_path / f"l{n}.tif", ids, *place))
        for n, place in enumerate(places)
    ]
    for entry in (
        *rasters,
        SceneConfig(scene=made.path, labels=tmp_path / "l.gpkg", attribute="class_name", outside="ignore"),
    ):
        config = settings(entry, imagery=imagery, augment=STILL)
        scene = pickle.loads(pickle.dumps(LabelledScene(entry, config)))
        assert scene.grid.shape == (48, 40)
        np.testing.assert_array_equal(scene.read(whole(scene.grid))[2], ids[::2, ::2])
        with open_scene(made.path, Imagery(gsd=2 * gsd)) as resampled:
            np.testing.assert_array_equal(scene.read(whole(scene.grid))[0], resampled.read(whole(scene.grid))[0])
        assert build_contract(config, [scene]).gsd_m == 2 * gsd


def test_a_configured_gsd_out_of_reach_is_refused(two_scenes: list[SceneConfig]) -> None:
    with pytest.raises(SceneError, match="cannot be resampled to 1e-09 m") as raised:
        LabelledScene(two_scenes[0], settings(*two_scenes, imagery={"gsd_m": 1e-9}))
    assert str(raised.value.hint).startswith("give imagery.gsd_m in metres")


def test_random_windows_have_the_training_size_and_labels(two_scenes: list[SceneConfig]) -> None:
    config = settings(*two_scenes, augment=STILL)
    dataset = RandomWindows(labelled(two_scenes, config), config, length=30)
    for i in range(30):
        sample = dataset[i]
        assert sample["pixels"].shape == (3, 32, 32) and sample["pixels"].dtype == torch.float32
        assert_labels_follow_pixels(sample)


def test_a_zoomed_window_sees_more_or_less_ground(two_scenes: list[SceneConfig]) -> None:
    def changes_per_row(zoom: float) -> float:
        config = settings(*two_scenes[:1], augment=STILL | {"scale": (zoom, zoom)})
        dataset = RandomWindows(labelled(two_scenes[:1], config), config, length=10)
        labels = torch.stack([dataset[i]["labels"] for i in range(10)]).int()
        return float((labels.diff(dim=2) != 0).float().sum(2).mean())

    assert changes_per_row(0.5) > 1.6 * changes_per_row(1.0) > 2.4 * changes_per_row(2.0)


def test_a_small_scene_is_padded_by_reflection_without_labels(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene(size=(20, 70))
    labels = write_labels(tmp_path / "l.tif", stripes((20, 70)), made.transform, made.crs)
    config = settings(raster_config(made, labels), augment=STILL | {"dihedral": False})
    dataset = RandomWindows(labelled([raster_config(made, labels)], config), config, length=5)
    for i in range(5):
        sample = dataset[i]
        assert sample["valid"].all()
        (labelled_rows,) = torch.where((sample["labels"] != NODATA).all(1))
        top, bottom = int(labelled_rows[0]), int(labelled_rows[-1])
        assert len(labelled_rows) == 20 == bottom - top + 1
        assert (sample["labels"] != NODATA).sum() == 20 * 32
        pixels = sample["pixels"]
        assert top == 0 or torch.equal(pixels[:, top - 1], pixels[:, top + 1])
        assert bottom == 31 or torch.equal(pixels[:, bottom + 1], pixels[:, bottom - 1])


def test_windows_of_one_class_are_redrawn(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene(size=(400, 400))
    ids = np.zeros((400, 400), dtype=np.uint8)
    ids[:, 180:220] = 1
    labels = write_labels(tmp_path / "l.tif", ids, made.transform, made.crs)

    def mixed(share: float) -> float:
        entry = raster_config(made, labels)
        config = settings(entry, train={"size": 32, "max_class_share": share}, augment=STILL)
        dataset = RandomWindows(labelled([entry], config), config, length=40)
        return sum(len(dataset[i]["labels"].unique()) > 1 for i in range(40)) / 40

    assert mixed(1.0) < 0.4 < mixed(0.9)


def test_scenes_are_drawn_in_proportion_to_their_pixels(make_scene: MakeScene, tmp_path: Path) -> None:
    entries = []
    for value, size in ((1, (64, 64)), (2, (64, 192))):
        made = make_scene(size=size)
        ids = np.full(size, value, dtype=np.uint8)
        entries.append(raster_config(made, write_labels(tmp_path / f"l{value}.tif", ids, made.transform, made.crs)))
    config = settings(*entries, augment=STILL)
    dataset = RandomWindows(labelled(entries, config), config, length=120)
    share = np.mean([int(dataset[i]["labels"][0, 0]) == 2 for i in range(120)])
    assert 0.6 < share < 0.9  # 3/4


@pytest.mark.parametrize("sizes", [[(150, 110), (96, 130)], [(64, 64)], [(10, 200)], [(65, 1)]])
def test_covering_windows_count_every_valid_pixel_once(
    make_scene: MakeScene, tmp_path: Path, sizes: list[tuple[int, int]]
) -> None:
    entries, wanted = [], np.zeros(3, dtype=int)
    for n, size in enumerate(sizes):
        made = make_scene(size=size, nodata="mask", seed=n)
        ids = stripes(size, side=5)
        entries.append(raster_config(made, write_labels(tmp_path / f"l{n}.tif", ids, made.transform, made.crs)))
        wanted += np.bincount(ids[made.valid], minlength=3)
    config = settings(*entries)
    dataset = CoveringWindows(labelled(entries, config), config)
    counted = np.zeros(3, dtype=int)
    for i in range(len(dataset)):
        sample = dataset[i]
        assert sample["pixels"].shape == (3, 64, 64)
        counted += np.bincount(sample["labels"].flatten(), minlength=256)[:3]
    np.testing.assert_array_equal(counted, wanted)


def test_covering_windows_hold_the_scenes_own_pixels(two_scenes: list[SceneConfig]) -> None:
    config = settings(*two_scenes)
    dataset = CoveringWindows(labelled(two_scenes, config), config)
    for i in range(len(dataset)):
        assert_labels_follow_pixels(dataset[i])


@pytest.mark.parametrize(("dtype", "scale"), [("uint8", 1 / 255), ("uint16", 1e-4), ("float32", 1.0)])
@pytest.mark.parametrize("bands", [1, 4])
def test_statistics_are_numpys_over_all_valid_pixels(
    make_scene: MakeScene, tmp_path: Path, dtype: str, scale: float, bands: int
) -> None:
    names = [f"b{i}" for i in range(bands)]
    mades = [
        make_scene(dtype=dtype, bands=bands, nodata="value", size=s, seed=i)
        for i, s in enumerate([(600, 40), (50, 90)])
    ]
    entries = [
        raster_config(m, write_labels(tmp_path / f"l{i}.tif", stripes(m.valid.shape), m.transform, m.crs))
        for i, m in enumerate(mades)
    ]
    config = settings(*entries, imagery={"bands": names, "dtype": dtype})
    mean, std = band_statistics(labelled(entries, config), scale)
    values = np.concatenate([m.pixels[:, m.valid] for m in mades], axis=1).astype(np.float64) * scale
    np.testing.assert_allclose(mean, values.mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(std, values.std(1), rtol=1e-4, atol=1e-6)


def test_a_constant_band_has_standard_deviation_one(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene(bands=1)
    with rasterio.open(made.path, "r+") as file:
        file.write(np.full((1, *made.valid.shape), 51, dtype=np.uint8))
    entry = raster_config(made, write_labels(tmp_path / "l.tif", stripes(made.valid.shape), made.transform, made.crs))
    config = settings(entry, imagery={"bands": ["grey"]})
    assert band_statistics(labelled([entry], config), 1 / 255) == ([0.2], [1.0])


def test_chosen_bands_come_in_the_order_asked_for(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene(bands=4, dtype="uint16")
    entry = raster_config(made, write_labels(tmp_path / "l.tif", stripes(made.valid.shape), made.transform, made.crs))
    imagery = {"bands": ["nir", "red"], "indexes": [4, 1], "dtype": "uint16"}
    pixels, *_ = LabelledScene(entry, settings(entry, imagery=imagery)).read(Window(0, 0, 96, 80))
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels, made.pixels[[3, 0]] * 1e-4, rtol=1e-5)


def test_a_nodata_value_of_the_configuration_counts(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene(nodata="none")
    with rasterio.open(made.path, "r+") as file:
        pixels = file.read()
        pixels[:, :10] = 7
        file.write(pixels)
    entry = raster_config(made, write_labels(tmp_path / "l.tif", stripes(made.valid.shape), made.transform, made.crs))
    _, valid, labels = LabelledScene(entry, settings(entry, imagery={"nodata": 7})).read(Window(0, 0, 96, 80))
    assert not valid[:10].any() and valid[10:].mean() > 0.99
    assert (labels[:10] == NODATA).all()


def test_a_scene_of_another_dtype_is_refused(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene(dtype="uint16")
    entry = raster_config(made, write_labels(tmp_path / "l.tif", stripes(made.valid.shape), made.transform, made.crs))
    with pytest.raises(SceneError, match="is uint16, the configuration says uint8") as caught:
        LabelledScene(entry, settings(entry))
    assert caught.value.hint == "set imagery.dtype=uint16"


def test_a_box_over_the_edge_still_labels_the_scene(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene()
    grid = grid_of(made)
    left, _, _, top = grid.bounds
    frame = geopandas.GeoDataFrame(geometry=[box(left - 100, top - 5, left + 5, top + 100)], crs=grid.crs)
    frame.to_file(tmp_path / "edge.gpkg")
    config = raster_config(made, tmp_path / "edge.gpkg", class_name="house", outside="other")
    found = open_labels(config, grid, CLASSES).read(whole(grid))
    wanted = np.zeros(grid.shape, dtype=np.uint8)
    wanted[:10, :10] = 2
    np.testing.assert_array_equal(found, wanted)
