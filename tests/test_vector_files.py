from __future__ import annotations

import os
import zipfile
from pathlib import Path

import geopandas
import numpy as np
import pyarrow.dataset
import pyarrow.parquet
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS
from shapely.geometry import GeometryCollection, LineString, MultiPolygon, Point, Polygon, box
from shapely.geometry.base import BaseGeometry

from geoseg.classes import ClassTable
from geoseg.config import parse_config
from geoseg.config.settings import SceneConfig
from geoseg.data.checks.dataset import check_data
from geoseg.errors import GeosegError, LabelError, SceneError
from geoseg.grid import Grid
from geoseg.options import Imagery
from geoseg.programs.info import describe
from geoseg.scene import open_scene
from geoseg.scene.vector_files import polygons_of, single_polygons
from geoseg.windows import Window
from support.labels import open_labels
from support.places import grid_of, on_ground
from support.scenes import MadeScene, MakeScene

CLASSES = ClassTable.from_names(["other", "roof"], ["#000000", "#ff0000"])


def write(path: Path, made: MadeScene, shapes: list[BaseGeometry]) -> Path:
    frame = geopandas.GeoDataFrame(
        {"kind": ["roof"] * len(shapes)}, geometry=[on_ground(made, s) for s in shapes], crs=made.crs
    )
    if path.suffix == ".parquet":
        frame.to_parquet(path, write_covering_bbox=True)
    else:
        frame.to_file(path)
    return path


def roofs(made: MadeScene, labels: Path | str, **entry: str) -> int:
    """Pixels labelled as roof."""
    config = SceneConfig(scene=made.path, labels=labels, **{"class_name": "roof", "outside": "other", **entry})
    grid = grid_of(made)
    return int((open_labels(config, grid, CLASSES).read(Window(0, 0, *grid.shape)) == 1).sum())


def valid_pixels(made: MadeScene, aoi: Path | str) -> int:
    with open_scene(made.path, Imagery(aoi=aoi)) as scene:
        return int(scene.read(Window(0, 0, *scene.grid.shape))[1].sum())


# --- only polygons count


def test_lines_and_points_in_a_collection_are_not_burnt(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene(size=(256, 256))
    roof = MultiPolygon([box(10, 10, 60, 110), box(70, 10, 95, 110)])
    yard = box(120, 20, 220, 120)
    mixed = GeometryCollection([yard, LineString([(5, 50), (250, 130)]), Point(30, 200)])
    for name in ("l.gpkg", "l.geojson", "l.fgb", "l.parquet"):
        path = write(tmp_path / name, made, [roof, mixed])
        assert roofs(made, path) == 7_500 + 10_000
        assert valid_pixels(made, path) == 17_500
        area = roofs(made, write(tmp_path / f"all_{name}", made, [box(0, 0, 256, 256)]), labelled_area=str(path))
        assert area == 17_500
    entry = {"scene": made.path, "labels": tmp_path / "l.gpkg", "class_name": "roof", "outside": "other"}
    classes = [{"name": c.name, "color": "#000000"} for c in CLASSES]
    data = {"train": [entry], "val": [entry], "leakage": "warn"}
    settings = parse_config(
        {"name": "t", "output": "r", "classes": classes, "data": data, "train": {"size": 64}}, source="t"
    )
    found = [problem.message for problem in check_data(settings)]
    assert any("lines and points beside the polygons in 1 feature" in message for message in found)


def test_an_area_of_interest_is_its_polygons_alone(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene()
    path = write(tmp_path / "l.gpkg", made, [Point(5, 5), box(10, 10, 20, 20), LineString([(0, 0), (60, 60)])])
    assert valid_pixels(made, path) == 100


def test_polygons_of_geometries_of_any_kind() -> None:
    square, other = box(0, 0, 1, 1), box(3, 0, 4, 1)
    nested = GeometryCollection([GeometryCollection([MultiPolygon([square, other]), Point(0, 0)]), LineString()])
    given = np.array([square, None, Point(1, 1), nested, Polygon(), GeometryCollection([Point(0, 0)])], dtype=object)
    assert shapely.area(polygons_of(given)).tolist() == [1, 0, 0, 2, 0, 0]
    assert shapely.area(single_polygons(given)).tolist() == [1, 1, 1]


# --- GeoParquet


def test_geoparquet_is_read_as_labels_area_and_by_info(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene()
    path = write(tmp_path / "roofs.parquet", made, [box(10, 10, 40, 30)])
    assert roofs(made, path, class_name=None, attribute="kind") == 600
    assert valid_pixels(made, path) == 600
    text = "\n".join(describe(str(path)))
    assert "roofs: 1 feature of type Polygon" in text and "EPSG:32633" in text
    assert "kind: text, values roof (1)" in text
    frame = geopandas.read_parquet(path)
    frame.to_parquet(tmp_path / "plain.parquet")  # without a bounding box column
    frame.to_crs("EPSG:4326").to_parquet(tmp_path / "degrees.parquet", write_covering_bbox=True)
    assert roofs(made, tmp_path / "plain.parquet") == 600
    assert abs(roofs(made, tmp_path / "degrees.parquet") - 600) <= 2
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(LabelError, match=r"broken\.parquet cannot be read") as caught:
        roofs(made, tmp_path / "broken.parquet")
    assert "geoseg info" in str(caught.value.hint)


def test_row_groups_far_from_the_scene_are_not_read(make_scene: MakeScene, tmp_path: Path) -> None:
    made = make_scene()
    near = [box(10, 10, 20, 20), box(30, 30, 40, 40)]
    far = [shapely.transform(box(0, 0, 9, 9), lambda p, i=i: p + 1000 + 10 * i) for i in range(100)]
    frame = geopandas.GeoDataFrame(geometry=[on_ground(made, s) for s in [*near, *far]], crs=made.crs)
    path = tmp_path / "many.parquet"
    frame.to_parquet(path, write_covering_bbox=True, row_group_size=2)
    whole = path.read_bytes()
    with pyarrow.parquet.ParquetFile(path) as file:
        assert file.metadata.num_row_groups == 51
        column = file.metadata.row_group(1).column(0)
        begin = column.dictionary_page_offset or column.data_page_offset
        end = file.metadata.row_group(50).column(0).data_page_offset
    path.write_bytes(whole[:begin] + b"\xff" * (end - begin) + whole[end:])
    assert roofs(made, path) == valid_pixels(made, path) == 200
    with pytest.raises((OSError, pyarrow.ArrowException)):
        geopandas.read_parquet(path)


def test_a_catalogue_may_be_geoparquet_or_lie_in_an_archive(make_scene: MakeScene, tmp_path: Path) -> None:
    from geoseg.config import load_config

    made = make_scene()
    write(tmp_path / "roofs.gpkg", made, [box(10, 10, 40, 30)])
    frame = geopandas.GeoDataFrame(
        {"scene": [made.path.name], "labels": ["roofs.gpkg"]},
        geometry=[on_ground(made, box(0, 0, 80, 96))],
        crs=made.crs,
    )
    frame.to_parquet(tmp_path / "scenes.parquet", write_covering_bbox=True)
    frame.to_file(tmp_path / "scenes.gpkg")
    with zipfile.ZipFile(tmp_path / "scenes.zip", "w") as file:
        file.write(tmp_path / "scenes.gpkg", "scenes.gpkg")
    text = (
        "name: t\noutput: r\nclasses: [{name: other, color: '#000000'}, {name: roof, color: '#ff0000'}]\n"
        "data: {train: [{catalogue: NAME, class_name: roof, outside: other}], val: [{scene: v, labels: v}]}\n"
    )
    for name in ("scenes.parquet", "scenes.zip"):
        (tmp_path / "c.yaml").write_text(text.replace("NAME", name))
        (entry,) = load_config(tmp_path / "c.yaml").data.train
        assert (entry.scene, entry.labels) == (made.path, tmp_path / "roofs.gpkg")


# --- archives and other names that only GDAL understands


@pytest.fixture
def archive(make_scene: MakeScene, tmp_path: Path) -> tuple[MadeScene, Path]:
    """A scene, and a zip file with a shapefile in a folder and the scene itself."""
    made = make_scene()
    (tmp_path / "in").mkdir()
    write(tmp_path / "in/roofs.shp", made, [box(10, 10, 40, 30)])
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as file:
        for part in sorted((tmp_path / "in").iterdir()):
            file.write(part, f"town/{part.name}")
        file.write(made.path, "town/scene.tif")
    return made, tmp_path / "all.zip"


@pytest.mark.parametrize("form", ["/vsizip/{}/town/{}", "zip://{}!town/{}", "{}!town/{}", "zip://{}!/town/{}"])
def test_members_of_archives_go_by_any_of_their_names(archive: tuple[MadeScene, Path], form: str) -> None:
    made, path = archive
    labels, scene = form.format(path, "roofs.shp"), form.format(path, "scene.tif")
    assert roofs(made, labels) == valid_pixels(made, labels) == 600
    with open_scene(scene) as opened:
        np.testing.assert_array_equal(opened.read(Window(0, 0, 96, 80))[0], made.pixels)
        assert opened.fingerprint()["files"][0]["bytes"] == path.stat().st_size
    assert "roofs: 1 feature" in "\n".join(describe(labels))
    data = [{"scene": scene, "labels": labels, "class_name": "roof", "outside": "other", "labelled_area": labels}]
    classes = [{"name": c.name, "color": "#000000"} for c in CLASSES]
    values = {"name": "t", "output": "r", "classes": classes, "data": {"train": data, "val": data, "leakage": "warn"}}
    errors = [
        p for p in check_data(parse_config({**values, "train": {"size": 64}}, source="t")) if p.severity == "error"
    ]
    assert errors == []


def test_a_zip_file_stands_for_the_one_file_in_it(archive: tuple[MadeScene, Path]) -> None:
    made, path = archive
    assert roofs(made, f"{path}!town/roofs.shp") == valid_pixels(made, path) == 600
    with open_scene(path) as opened:
        assert opened.path == f"/vsizip/{path}/town/scene.tif"
    with pytest.raises(GeosegError, match="holds several files") as caught:  # labels may be either
        roofs(made, path)
    assert f"/vsizip/{path}/town/roofs.shp" in str(caught.value.hint)
    with zipfile.ZipFile(path, "a") as file:
        file.write(made.path, "town/again.tif")
    with pytest.raises(SceneError, match=r"holds several files: town/scene\.tif, town/again\.tif"):
        open_scene(path)


def test_archives_of_a_configuration_count_from_its_folder(archive: tuple[MadeScene, Path], tmp_path: Path) -> None:
    from geoseg.config import load_config

    made, _ = archive
    (tmp_path / "c.yaml").write_text(
        "name: t\noutput: r\nclasses: [{name: other, color: '#000000'}, {name: roof, color: '#ff0000'}]\n"
        "data:\n  train:\n  - {scene: /vsizip/all.zip/town/scene.tif, labels: all.zip!town/roofs.shp, "
        "class_name: roof, outside: other}\n"
        "  - {scene: 'https://example.org/a.tif', labels: l.gpkg, class_name: roof, outside: other}\n"
        f"  val:\n  - {{scene: {made.path}, labels: 'zip://all.zip!town/roofs.shp', class_name: roof, "
        "outside: other}\n"
    )
    here = Path.cwd()
    os.chdir("/")
    try:
        data = load_config(tmp_path / "c.yaml").data
    finally:
        os.chdir(here)
    assert data.train[0].scene == f"/vsizip/{tmp_path}/all.zip/town/scene.tif"
    assert data.train[1].scene == "https://example.org/a.tif"
    assert {data.train[0].labels, data.val[0].labels} == {f"/vsizip/{tmp_path}/all.zip/town/roofs.shp"}
    assert roofs(made, data.val[0].labels) == 600


def test_an_archived_map_is_vectorized_with_its_confidence(tmp_path: Path) -> None:
    from geoseg.class_map.writing import MapFileWriter
    from geoseg.map_rows import MapRows
    from geoseg.programs.vectorize import vectorize

    grid = Grid(64, 64, Affine(0.5, 0, 500_000, 0, -0.5, 5_200_000), CRS.from_epsg(32633))
    with MapFileWriter(tmp_path / "map.tif", grid, CLASSES, layers=("classes", "confidence")) as writer:
        values = np.zeros((64, 64), dtype=np.uint8)
        values[10:30, 10:40] = 1
        writer.write(MapRows(values, np.full((64, 64), 200, dtype=np.uint8)))
    with zipfile.ZipFile(tmp_path / "maps.zip", "w") as file:
        for name in ("map.tif", "map_confidence.tif"):
            file.write(tmp_path / name, f"out/{name}")
    vectorize(f"/vsizip/{tmp_path}/maps.zip/out/map.tif", tmp_path / "map.gpkg")
    frame = geopandas.read_file(tmp_path / "map.gpkg", layer="map")
    assert set(frame["class_name"]) == {"other", "roof"} and (frame["conf_min"] > 0.7).all()


def test_missing_members_of_archives_are_named(archive: tuple[MadeScene, Path]) -> None:
    made, path = archive
    with pytest.raises(LabelError, match=r"no such labels: /vsizip/.*/town/none\.shp"):
        roofs(made, f"/vsizip/{path}/town/none.shp")
    with pytest.raises(SceneError, match=r"no such area of interest: /vsizip/.*/none\.zip/a\.shp"):
        valid_pixels(made, f"/vsizip/{path.parent}/none.zip/a.shp")
