"""What is known of where a raster lies, in every state there is, and what follows from it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from shapely.geometry import box

from geoseg.classes import ClassTable
from geoseg.data.layers import read_layer
from geoseg.errors import GeosegError, LabelError, OutputError, SceneError
from geoseg.export import check_format
from geoseg.georeference import Georeference, are_apart, crs_georeference, crs_name, transformer, warp_command
from geoseg.grid import Grid, grid_of
from geoseg.options import Imagery
from geoseg.polygons import PolygonRules
from geoseg.programs.info import describe
from geoseg.programs.vectorize import check_rules, vectorize
from geoseg.scene import Mosaic, Scene, open_scene
from support.hints import commands_in, complaint, words_of
from support.scenes import MakeScene

pytestmark = pytest.mark.filterwarnings("ignore:'crs' was not provided")

SITE = 'LOCAL_CS["site grid",UNIT["metre",1],AXIS["x",EAST],AXIS["y",NORTH]]'
MARS = "IAU_2015:49910"
FIELD = Affine(0.14, 0, 1e5, 0, -0.14, 2e5)
"""The transform of a map of Mars that was found in the field."""

CRSS = {
    "EPSG:32633": Georeference.EARTH,
    "EPSG:4326": Georeference.EARTH,
    "EPSG:4979": Georeference.EARTH,
    "EPSG:32633+5773": Georeference.EARTH,
    MARS: Georeference.BODY,
    "IAU_2015:30100": Georeference.BODY,
    SITE: Georeference.LOCAL,
    "EPSG:5773": Georeference.LOCAL,  # heights
    "EPSG:4978": Georeference.LOCAL,  # geocentric
    'GEOGCS["Undefined geographic SRS",DATUM["unknown",SPHEROID["unknown",6378137,298.257]],'
    'PRIMEM["Greenwich",0],UNIT["degree",0.0174532925199433]]': Georeference.LOCAL,
}


def write_raster(path: Path, crs: str | None, transform: Affine | None, **options: Any) -> Path:
    """A class map of two classes, 128 × 128 px."""
    values = np.zeros((128, 128), dtype=np.uint8)
    values[30:90, 40:100] = 1
    with (
        warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning),
        rasterio.open(
            path,
            "w",
            driver="GTiff",
            height=128,
            width=128,
            count=1,
            dtype="uint8",
            nodata=255,
            crs=None if crs is None else CRS.from_user_input(crs),
            transform=transform,
            **options,
        ) as file,
    ):
        file.write(values, 1)
    return path


def control_points(crs: str | None) -> dict[str, Any]:
    corners = [(0, 0), (0, 128), (128, 0), (128, 128)]
    points = [GroundControlPoint(row=r, col=c, x=15 + c * 1e-5, y=47 - r * 1e-5) for r, c in corners]
    return {"gcps": points, "crs": None if crs is None else CRS.from_user_input(crs)}


def with_control_points(path: Path, crs: str | None = "EPSG:4326") -> Path:
    write_raster(path, None, None)
    found = control_points(crs)
    with (
        warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning),
        rasterio.open(path, "r+") as file,
    ):
        file.gcps = found["gcps"], found["crs"] or CRS()
    return path


@pytest.mark.parametrize("crs", CRSS, ids=lambda crs: crs[:20])
def test_a_crs_says_what_kind_of_place_it_knows(crs: str) -> None:
    known = CRS.from_user_input(crs)
    assert crs_georeference(known) is CRSS[crs]
    assert (transformer(known, "EPSG:4326") is not None) == (CRSS[crs] is Georeference.EARTH)
    assert not are_apart(known, known)
    assert are_apart(known, "EPSG:4326") == (CRSS[crs] is not Georeference.EARTH)


@pytest.mark.parametrize(
    ("crs", "transform", "kind", "unit", "note"),
    [
        ("EPSG:32633", FIELD, Georeference.EARTH, "ha", None),
        (MARS, FIELD, Georeference.BODY, "ha", ", a CRS of another celestial body"),
        (SITE, FIELD, Georeference.LOCAL, "ha", "is in site grid, a local CRS"),
        ("EPSG:4326", FIELD, Georeference.ASTRAY, "units²", "EPSG:4326, does not have"),
        (None, FIELD, Georeference.TRANSFORM, "units²", "has a transform but no CRS: coordinates and areas are in its"),
        ("EPSG:32633", Affine.identity(), Georeference.CRS_ALONE, "px", "has a CRS, EPSG:32633, but no transform"),
        (None, Affine.identity(), Georeference.NONE, "px", "carries no georeference"),
    ],
)
def test_a_grid_knows_what_its_numbers_are(
    crs: str | None, transform: Affine, kind: Georeference, unit: str, note: str | None
) -> None:
    grid = Grid(128, 128, transform, None if crs is None else CRS.from_user_input(crs))
    assert grid.georeference is kind and grid.area_unit[0] == unit
    assert grid.place_note is None if note is None else note in str(grid.place_note)
    assert grid.is_metric == (unit == "ha") == (grid.gsd_m() is not None) == (grid.pixel_size_m() is not None)
    if grid.is_metric:
        assert grid.gsd_m() == pytest.approx(0.14, rel=2e-3)
    elif kind is Georeference.TRANSFORM:
        np.testing.assert_allclose(grid.pixel_area_m2(), 0.14**2)


def test_a_local_plane_has_areas_in_its_own_unit() -> None:
    feet = CRS.from_wkt('LOCAL_CS["site",UNIT["US survey foot",0.304800609601219]]')
    assert Grid(2, 2, FIELD, feet).gsd_m() == pytest.approx(0.14 * 0.3048, rel=1e-4)
    # Geocentric axes are no map: a plane too, and not the ellipsoid's areas of some other place.
    assert Grid(2, 2, FIELD, CRS.from_epsg(4978)).gsd_m() == pytest.approx(0.14)


# A CRS that is given


def test_a_crs_is_given_to_a_raster_that_lacks_one(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "bare.tif", None, FIELD)
    with Scene(path, crs="EPSG:32633") as scene:
        assert scene.grid == Grid(128, 128, FIELD, CRS.from_epsg(32633))
    same = write_raster(tmp_path / "same.tif", "EPSG:32633", FIELD)
    with Scene(same, crs="EPSG:32633") as scene:
        assert crs_name(scene.grid.crs) == "EPSG:32633"
    facts = "\n".join(describe(str(path), crs="EPSG:32633"))
    assert "EPSG:32633" in facts and "longitude 11.4059" in facts and "warning" not in facts
    report = vectorize(path, tmp_path / "bare.gpkg", crs="EPSG:32633")
    assert report.grid.is_metric and " ha " in "\n".join(report.lines())
    lines = "\n".join(vectorize(path, tmp_path / "units.gpkg").lines())
    assert " units² " in lines and " px" not in lines and "no CRS" in lines and "--crs EPSG:…" in lines


@pytest.mark.parametrize(
    ("own", "transform", "given", "complaint"),
    [
        ("EPSG:32633", FIELD, "EPSG:32634", "is in EPSG:32633, so it cannot be given the CRS EPSG:32634"),
        (SITE, FIELD, "EPSG:32633", "is in site grid"),
        (None, None, "EPSG:32633", "has no transform"),
        ("EPSG:32633", None, "EPSG:32633", "has no transform"),
        (None, FIELD, "EPSG:4326", "cannot be in EPSG:4326: its x runs from 100000 to 100017.92"),
        (None, FIELD, "EPSG:999999", "'EPSG:999999', which is unknown"),
    ],
)
def test_a_crs_that_cannot_be_the_rasters_is_refused(
    tmp_path: Path, own: str | None, transform: Affine | None, given: str, complaint: str
) -> None:
    path = write_raster(tmp_path / "a b.tif", own, transform)
    with pytest.raises(SceneError, match=complaint) as error:
        open_scene(path, Imagery(crs=given))
    assert error.value.hint


# What cannot be placed on Earth


@pytest.mark.parametrize("crs", [MARS, SITE, "EPSG:4978", "EPSG:4326"], ids=lambda crs: crs[:8])
@pytest.mark.parametrize("suffix", [".geojson", ".geojsonl", ".ndjson", ".GeoJSON"])
def test_geojson_is_refused_where_no_way_leads_to_wgs84(crs: str, suffix: str, tmp_path: Path) -> None:
    path = write_raster(tmp_path / "map.tif", crs, FIELD)
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(OutputError, match="GeoJSON is WGS 84") as error:
        vectorize(path, tmp_path / f"out{suffix}")
    assert "out.gpkg" in str(error.value.hint)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    for other in (".gpkg", ".fgb", ".parquet", ".shp"):
        with rasterio.open(path) as file:
            check_format(tmp_path / f"out{other}", grid_of(file))


@pytest.mark.parametrize("crs", [MARS, SITE], ids=["another body", "engineering"])
def test_info_calls_no_metres_longitude(crs: str, tmp_path: Path) -> None:
    facts = "\n".join(describe(str(write_raster(tmp_path / "map.tif", crs, FIELD))))
    assert "longitude 1" not in facts
    assert "x 100000 … 100017.92 m, y 199982.08 … 200000 m" in facts
    assert "0.14 × 0.14 m on the map" in facts and " ha" in facts


def test_a_crs_without_a_transform_is_no_place(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "map.tif", "EPSG:32633", None)
    facts = "\n".join(describe(str(path)))
    assert "EPSG:32633, WGS 84 / UTM zone 33N, but no transform" in facts and "longitude" not in facts
    report = vectorize(path, tmp_path / "map.fgb")
    frame = geopandas.read_file(report.path)
    assert tuple(frame.total_bounds) == (0, -128, 128, 0) and frame.crs is None
    assert " px " in "\n".join(report.lines())


# Control points


@pytest.mark.parametrize("crs", ["EPSG:4326", None])
def test_control_points_are_never_mapped_in_pixels(crs: str | None, tmp_path: Path) -> None:
    path = with_control_points(tmp_path / "a b.tif", crs)
    with rasterio.open(path) as file:
        command = warp_command(file)
    assert command is not None and command.endswith(f"'{path}' warped.tif")
    assert ("-s_srs EPSG:…" in command) == (crs is None)
    for work in (lambda: open_scene(path), lambda: vectorize(path, tmp_path / "out.gpkg")):
        with pytest.raises(SceneError, match="has control points but no transform") as error:
            work()
        assert error.value.hint == command
    assert any(command in line for line in describe(str(path)))
    assert list(tmp_path.iterdir()) == [path]


def test_rational_polynomials_are_control_points_too(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "raw.tif", None, None)
    coefficients = " ".join(["1"] + ["0"] * 19)
    keys = ("LINE_OFF", "SAMP_OFF", "LAT_OFF", "LONG_OFF", "HEIGHT_OFF")
    scales = ("LINE_SCALE", "SAMP_SCALE", "LAT_SCALE", "LONG_SCALE", "HEIGHT_SCALE")
    tags = dict.fromkeys(keys, "0") | dict.fromkeys(scales, "1")
    tags |= dict.fromkeys(("LINE_NUM_COEFF", "LINE_DEN_COEFF", "SAMP_NUM_COEFF", "SAMP_DEN_COEFF"), coefficients)
    with (
        warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning),
        rasterio.open(path, "r+") as file,
    ):
        file.update_tags(ns="RPC", **tags)
    with pytest.raises(SceneError) as error:
        open_scene(path)
    assert str(error.value.hint).startswith("gdalwarp -rpc ")


def test_photographs_are_no_mosaic(make_scene: MakeScene) -> None:
    photographs = [make_scene(crs=None, seed=n).path for n in range(2)]
    with pytest.raises(SceneError, match="their relative position is unknown"):
        open_scene(photographs)
    with Mosaic([Scene(photographs[0])]) as mosaic:
        assert mosaic.grid.shape == (96, 80)


# Units


def test_metres_are_refused_and_areas_named_without_a_crs(caplog: pytest.LogCaptureFixture) -> None:
    grid = Grid(8, 8, FIELD, None)
    classes = ClassTable.from_names(["a", "b"], ["#112233", "#445566"])
    check_rules(PolygonRules(min_area_m2=5), grid, classes, path="map.tif")
    assert "map.tif has no CRS: --min-area and --fill-holes count in units²" in caplog.text


def test_labels_with_a_crs_blame_the_scene_without(make_scene: MakeScene, tmp_path: Path) -> None:
    path = tmp_path / "labels.gpkg"
    geopandas.GeoDataFrame(geometry=[box(15, 46, 16, 47)], crs="EPSG:4326").to_file(path)
    assert read_layer(path, Grid(8, 8, FIELD, None), scene="scene").empty
    for crs, kind in ((MARS, LabelError), (SITE, LabelError)):
        with pytest.raises(kind, match=r"no transformation between them is known|scene's CRS is undefined"):
            read_layer(path, Grid(8, 8, FIELD, CRS.from_user_input(crs)), scene="scene")
    with pytest.raises(GeosegError, match="the scene has no CRS") as error:
        open_scene(write_raster(tmp_path / "bare.tif", None, FIELD), Imagery(aoi=path))
    assert "--crs EPSG:…" in str(error.value.hint)


def test_no_area_of_interest_leads_from_one_body_to_another(tmp_path: Path) -> None:
    path = tmp_path / "area.gpkg"
    geopandas.GeoDataFrame(geometry=[box(15, 46, 16, 47)], crs="EPSG:4326").to_file(path)
    for name, crs in (("mars", MARS), ("site", SITE)):
        with pytest.raises(SceneError, match="no way is known from the CRS of the area of interest, WGS 84, to"):
            open_scene(write_raster(tmp_path / f"{name}.tif", crs, FIELD), Imagery(aoi=path))


def test_commands_in_the_warnings_of_info_can_be_pasted(make_scene: MakeScene, tmp_path: Path) -> None:
    folder = tmp_path / "my files"
    folder.mkdir()
    striped = make_scene(name="my files/strips.tif", size=(16, 3000), tiled=False, blockysize=4, blockxsize=3000).path
    whole = make_scene(name="my files/whole.tif", dtype="int32").path
    shapes = folder / "no crs.shp"
    geopandas.GeoDataFrame({"a": [1]}, geometry=[box(0, 0, 1, 1)]).to_file(shapes)
    typed = 0
    for path in (striped, whole, shapes, with_control_points(folder / "raw.tif")):
        for line in describe(str(path)):
            for command in commands_in(line.removeprefix("warning").strip()) if line.startswith("warning") else ():
                words = words_of(command, {"EPSG:…": "EPSG:32633"})
                assert words[0].startswith(("gdal", "ogr")) and str(path) in words
                assert complaint(words, tmp_path) is None
                typed += 1
    assert typed == 4
