from __future__ import annotations

import signal
import time
import xml.etree.ElementTree as ET

import pyogrio
import pyproj
import pytest
from affine import Affine
from rasterio.crs import CRS

from geoseg.classes import ClassTable, format_color
from geoseg.errors import ConfigError, OutputError, SceneError
from geoseg.export import EXPORTERS, check_format, exporter_for, style_qml, write_polygons
from geoseg.export.layer import Layer
from geoseg.grid import Grid
from geoseg.polygons import PolygonRules, Tolerance
from geoseg.programs.vectorize import vectorize
from support.coverages import TABLE, blobs, coverage
from support.formats import OBLIQUE, RAW, TOWGS84, closing_rows, legend, write_classes
from support.processes import from_shell

UTM = "EPSG:32633"
NORTH_UP = Affine(0.3, 0, 500_000, 0, -0.3, 5_000_000)


def test_the_style_has_a_category_and_a_fill_for_every_class():
    root = ET.fromstring(style_qml(TABLE))
    renderer = root.find("renderer-v2[@type='categorizedSymbol'][@attr='class_id']")
    assert [(c.get("value"), c.get("label")) for c in renderer.find("categories")] == [
        (str(c.id), c.name) for c in TABLE
    ]
    fills = [o.get("value") for o in renderer.findall(".//Option[@name='color']")]
    assert [tuple(int(v) for v in f.split(",")[:3]) for f in fills] == [c.color for c in TABLE]


def test_neighbours_share_the_colour_of_their_border():
    root = ET.fromstring(style_qml(TABLE))
    outlines = {o.get("value") for o in root.findall(".//Option[@name='outline_color']")}
    assert len(outlines) == 1
    red, green, blue, _ = next(iter(outlines)).split(",")
    assert red == green == blue


@pytest.mark.parametrize(
    ("crs", "transform", "area", "length"),
    [
        (UTM, NORTH_UP, "Area (m²)", "Perimeter (m)"),
        (None, NORTH_UP, "Area (units²)", "Perimeter (units)"),
        (None, Affine.scale(1, -1), "Area (px)", "Perimeter (px)"),
    ],
)
def test_fields_are_shown_with_their_units(tmp_path, crs, transform, area, length):
    polygons, layer = coverage(crs=crs, transform=transform)
    write_polygons([polygons], tmp_path / "map.fgb", layer)
    aliases = {a.get("field"): a.get("name") for a in ET.parse(tmp_path / "map.qml").findall("aliases/alias")}
    assert (aliases["area_m2"], aliases["perim_m"]) == (area, length)
    assert set(pyogrio.read_info(tmp_path / "map.fgb")["fields"]) == set(aliases)


def test_map_servers_get_the_colours_as_sld(tmp_path):
    polygons, layer = coverage()
    write_polygons([polygons], tmp_path / "map.gpkg", layer)
    ((text,),) = closing_rows(tmp_path / "map.gpkg", "SELECT styleSLD FROM layer_styles")
    names = {"se": "http://www.opengis.net/se", "ogc": "http://www.opengis.net/ogc"}
    rules = ET.fromstring(text).findall(".//se:Rule", names)
    found = [
        [rule.findtext(tag, None, names) for tag in ("se:Name", ".//ogc:Literal", ".//se:SvgParameter[@name='fill']")]
        for rule in rules
    ]
    assert found == [[c.name, str(c.id), format_color(c.color)] for c in TABLE]


def test_an_unknown_suffix_lists_the_known_ones():
    with pytest.raises(OutputError, match=r"suffix \.dwg.*\.gpkg \.fgb \.parquet \.geojson") as error:
        exporter_for("out/map.dwg")
    assert "-o out/map.gpkg" in error.value.hint
    with pytest.raises(OutputError, match="no suffix"):
        exporter_for("map")
    assert exporter_for("MAP.GPKG") is EXPORTERS[".gpkg"]


ROTATED = "+proj=ob_tran +o_proj=longlat +o_lat_p=30 +o_lon_p=10 +lon_0=20 +ellps=WGS84 +type=crs"


@pytest.mark.parametrize(
    ("crs", "x", "y", "lost"),
    [
        (TOWGS84.format("598.1,73.7,418.2,0.202,0.045,-2.455,6.7"), 3.5e6, 5.5e6, r"lie 1\d\d m off"),
        (OBLIQUE, 8e5, 4e5, r"lie [\d,]+ m off"),
        (ROTATED, 5, 5, "have no known CRS"),
    ],
    ids=["datum", "oblique", "rotated pole"],
)
def test_a_shapefile_that_loses_the_crs_is_refused(class_map, tmp_path, crs, x, y, lost):
    size = 0.3 if x > 180 else 1e-4
    path = class_map(crs, Affine(size, 0, x, 0, -size, y))
    with pytest.raises(OutputError, match=lost) as error:
        vectorize(path, tmp_path / "out.shp", rules=RAW)
    assert error.value.hint == f"a GeoPackage keeps the map's CRS: -o {tmp_path / 'out.gpkg'}"
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("crs", ["EPSG:31467", "EPSG:25832+5783", "EPSG:4979", "EPSG:5514", "ESRI:54009"])
def test_a_shapefile_holds_the_crs_of_registers(crs):
    known = pyproj.CRS.from_user_input(crs)
    west, south, east, north = known.area_of_use.bounds if known.area_of_use else (0, 0, 10, 10)
    x, y = pyproj.Transformer.from_crs(4326, known, always_xy=True).transform((west + east) / 2, (south + north) / 2)
    size = 1e-5 if known.is_geographic else 0.3
    check_format("map.shp", Grid(200, 300, Affine(size, 0, x, 0, -size, y), CRS.from_user_input(crs)))


@pytest.fixture
def class_map(tmp_path):
    return lambda *place: write_classes(tmp_path / "map.tif", **dict(zip(("crs", "transform"), place, strict=False)))


OTHER = ClassTable.from_names(["a", "b", "c"], ["#010101", "#020202", "#030303"])


def test_polygons_keep_the_legend_of_the_raster_beside(class_map, tmp_path):
    class_map()
    polygons, layer = coverage()
    write_polygons([polygons], tmp_path / "map.shp", Layer("map", layer.grid, OTHER))
    assert legend(tmp_path / "map.qml") == [list(TABLE.names), list(OTHER.names)]
    class_map()  # and the other way round
    assert legend(tmp_path / "map.qml") == [list(TABLE.names), list(OTHER.names)]


def test_polygons_give_no_legend_to_a_raster_without_one(class_map, tmp_path):
    class_map()
    (tmp_path / "map.qml").unlink()
    vectorize(tmp_path / "map.tif", tmp_path / "map.shp")
    assert legend(tmp_path / "map.qml") == [[], list(TABLE.names)]


@pytest.mark.parametrize("end", ["dbf", "prj", "cpg"])
def test_a_table_of_that_name_is_not_taken_for_a_shapefile(class_map, tmp_path, end):
    path, table = class_map(), tmp_path / f"out.{end}"
    table.write_text("mine")
    with pytest.raises(OutputError, match=rf"out\.{end} exists, and out\.shp would replace it"):
        vectorize(path, tmp_path / "out.shp")
    assert table.read_text() == "mine"


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson"])
def test_ctrl_c_ends_the_command_without_a_trace(tmp_path, suffix):
    write_classes(tmp_path / "map.tif", blobs((2500, 2500)))
    before = sorted(tmp_path.iterdir())
    words = ["vectorize", tmp_path / "map.tif", "-o", tmp_path / f"polygons{suffix}", "--simplify", "none"]
    command = from_shell(*words)
    while not any(file.stat().st_size > 1 << 20 for file in tmp_path.glob(f".polygons{suffix}.*/polygons{suffix}")):
        assert command.poll() is None, "the command ended before it could be stopped"
        time.sleep(0.01)
    command.send_signal(signal.SIGINT)
    _, stderr = command.communicate(timeout=60)
    assert (command.returncode, stderr) == (130, "interrupted\n")
    assert sorted(tmp_path.iterdir()) == before


def test_an_unreferenced_map_is_vectorized_where_qgis_draws_it(class_map, tmp_path):
    report = vectorize(class_map(None, Affine.identity()), tmp_path / "map.gpkg")
    assert pyogrio.read_info(report.path, layer=0)["total_bounds"] == (0, -60, 50, 0)


def test_vectorize_checks_everything_before_it_writes(class_map, tmp_path):
    path = class_map(None, Affine.identity())
    names = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(OutputError, match="dwg"):
        vectorize(tmp_path / "none.tif", tmp_path / "map.dwg")
    with pytest.raises(SceneError, match="no such"):
        vectorize(tmp_path / "none.tif", tmp_path / "map.gpkg")
    with pytest.raises(ConfigError, match=r"map\.tif has no CRS, so --simplify 0\.5m"):
        vectorize(path, tmp_path / "map.gpkg", rules=PolygonRules(simplify=Tolerance(0.5, "m")))
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    vectorize(path, tmp_path / "map.gpkg")
    with pytest.raises(OutputError, match="exists"):
        vectorize(path, tmp_path / "map.gpkg")
    vectorize(path, tmp_path / "map.gpkg", overwrite=True)
