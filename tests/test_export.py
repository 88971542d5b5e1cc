from __future__ import annotations

import resource
import signal
import sqlite3
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from contextlib import closing, contextmanager

import geopandas
import numpy as np
import pyogrio
import pyproj
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS

from geoseg.class_map.writing import MapFileWriter
from geoseg.classes import ClassTable, format_color
from geoseg.errors import OutputError, SceneError
from geoseg.export import EXPORTERS, check_format, exporter_for, style_qml, write_polygons
from geoseg.export.layer import Layer
from geoseg.grid import Grid
from geoseg.map_rows import MapRows
from geoseg.polygons import PolygonRules, Tolerance
from geoseg.programs.info import describe
from geoseg.programs.vectorize import vectorize
from support.coverages import TABLE, blobs, coverage

UTM = "EPSG:32633"
NORTH_UP = Affine(0.3, 0, 500_000, 0, -0.3, 5_000_000)
RAW = PolygonRules()
JSON = (".geojson", ".geojsonl", ".ndjson")
EXACT = [suffix for suffix in EXPORTERS if suffix != ".pmtiles"]  # whose coordinates are those of tiles


@contextmanager
def files_of_at_most(size):
    """As a full disk would, the system refuses to write more than this into a file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def read(path):
    if path.suffix == ".parquet":
        return geopandas.read_parquet(path)
    if path.suffix == ".ndjson":  # GDAL knows the driver by its other suffix
        return geopandas.read_file(f"GeoJSONSeq:{path}")
    return geopandas.read_file(path, layer=path.stem)


@pytest.mark.parametrize("suffix", EXACT)
def test_polygons_come_back_from_every_format(tmp_path, suffix):
    batch, layer = coverage()
    path = tmp_path / f"land cover{suffix}"
    assert write_polygons([batch], path, layer) == len(batch)
    back = read(path)
    crs = "EPSG:4326" if suffix in JSON else layer.grid.crs
    assert back.crs == crs
    expected = geopandas.GeoSeries(batch.geometries(), crs=layer.grid.crs).to_crs(crs)
    assert len(back) == len(batch)
    np.testing.assert_allclose(back.total_bounds, expected.total_bounds, rtol=1e-7)
    np.testing.assert_allclose(np.sort(back.area_m2), np.sort(batch.columns["area_m2"]), rtol=1e-9)
    counts = [(back.class_name == c.name).sum() for c in TABLE]
    np.testing.assert_array_equal(counts, np.bincount(batch.class_id, minlength=len(TABLE)))
    assert shapely.is_valid(back.geometry.to_numpy()).all()
    assert shapely.coverage_is_valid(back.geometry.to_numpy())
    style = tmp_path / "land cover.qml"
    assert not style.exists() if suffix == ".gpkg" else style.read_text(encoding="utf-8") == style_qml(TABLE)


@pytest.mark.parametrize("suffix", EXPORTERS)
def test_overwriting_leaves_nothing_of_the_older_file(tmp_path, suffix):
    batch, layer = coverage()
    path = tmp_path / f"{layer.name}{suffix}"
    write_polygons([batch], path, layer)
    names = sorted(p.name for p in tmp_path.iterdir())
    (tmp_path / ("land cover.qix" if suffix == ".shp" else f"{path.name}-wal")).write_text("old")
    one, layer = coverage(np.array([[1]], dtype=np.uint8))
    write_polygons([one], path, layer)
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert len(read(path)) == 1


@pytest.mark.parametrize("suffix", EXPORTERS)
def test_nothing_is_left_of_an_export_that_fails(tmp_path, suffix):
    batch, layer = coverage()

    def batches():
        yield batch
        raise SceneError("the disk of the map has gone", hint="look for it")

    with pytest.raises(SceneError, match="has gone"):
        write_polygons(batches(), tmp_path / f"map{suffix}", layer)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", EXPORTERS)
def test_ctrl_c_in_the_source_stays_ctrl_c(tmp_path, suffix):
    batch, layer = coverage()

    def batches():
        yield batch
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_polygons(batches(), tmp_path / f"map{suffix}", layer)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", EXPORTERS)
def test_a_full_disk_is_an_error_wherever_it_strikes(tmp_path, suffix):
    batch, layer = coverage(blobs((200, 200)))
    path = tmp_path / f"map{suffix}"
    write_polygons([batch], path, layer)
    sizes = sorted(p.stat().st_size for p in tmp_path.iterdir())
    for file in tmp_path.iterdir():
        file.unlink()
    for limit in {size - less for size in sizes for less in (1, 100, 4_000, 10_000, size // 2) if size - less > 8_000}:
        if limit < sizes[-1]:
            with files_of_at_most(limit), pytest.raises(OutputError, match=rf"cannot write .*map\{suffix}: .+"):
                write_polygons([batch], path, layer)
            assert list(tmp_path.iterdir()) == []


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


@pytest.mark.parametrize("suffix", EXPORTERS)
def test_the_legend_has_the_classes_that_are_present(tmp_path, suffix):
    polygons, layer = coverage(np.kron([[2, 0], [0, 2]], np.ones((5, 5), np.uint8)).astype(np.uint8))
    path = tmp_path / f"map{suffix}"
    write_polygons([polygons], path, layer)
    wanted = style_qml(TABLE, present=[0, 2])
    if suffix == ".gpkg":
        ((style, sld),) = closing_rows(path, "SELECT styleQML, styleSLD FROM layer_styles")
        assert [n.text for n in ET.fromstring(sld).iter("{http://www.opengis.net/se}Name")][2:] == ["ground", "水"]
    else:
        style = (tmp_path / "map.qml").read_text(encoding="utf-8")
    assert style == wanted
    labels = [c.get("label") for c in ET.fromstring(wanted).findall("renderer-v2/categories/category")]
    assert labels == ["ground", "水"]


def closing_rows(path, query):
    with closing(sqlite3.connect(path)) as db:
        return db.execute(query).fetchall()


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


TOWGS84 = "+proj=tmerc +lat_0=0 +lon_0=9 +x_0=3500000 +ellps=bessel +units=m +towgs84={} +type=crs"
OBLIQUE = "+proj=omerc +lat_0=4 +lonc=102.25 +alpha=323.02 +gamma=330 +x_0=804671 +ellps=evrstSS +units=m +type=crs"
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


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb", ".parquet"])
@pytest.mark.parametrize(("crs", "x", "y"), [(TOWGS84.format("598.1,73.7,418.2"), 3.5e6, 5.5e6), (OBLIQUE, 8e5, 4e5)])
def test_other_formats_keep_a_crs_of_ones_own(class_map, tmp_path, suffix, crs, x, y):
    path = class_map(crs, Affine(0.3, 0, x, 0, -0.3, y))
    back = read(vectorize(path, tmp_path / f"out{suffix}", rules=RAW).path)
    places = [
        pyproj.Transformer.from_crs(known, 4326, always_xy=True).transform(x, y)
        for known in (back.crs, pyproj.CRS.from_user_input(crs))
    ]
    np.testing.assert_allclose(*places, rtol=0, atol=1e-7)


@pytest.mark.parametrize("crs", ["EPSG:31467", "EPSG:25832+5783", "EPSG:4979", "EPSG:5514", "ESRI:54009"])
def test_a_shapefile_holds_the_crs_of_registers(crs):
    known = pyproj.CRS.from_user_input(crs)
    west, south, east, north = known.area_of_use.bounds if known.area_of_use else (0, 0, 10, 10)
    x, y = pyproj.Transformer.from_crs(4326, known, always_xy=True).transform((west + east) / 2, (south + north) / 2)
    size = 1e-5 if known.is_geographic else 0.3
    check_format("map.shp", Grid(200, 300, Affine(size, 0, x, 0, -size, y), CRS.from_user_input(crs)))


@pytest.fixture
def class_map(tmp_path):
    def make(crs=UTM, transform=NORTH_UP):
        values = blobs()
        grid = Grid(*values.shape, transform, crs and CRS.from_user_input(crs))
        with MapFileWriter(tmp_path / "map.tif", grid, TABLE) as out:
            out.write(MapRows(values))
        return tmp_path / "map.tif"

    return make


@pytest.mark.parametrize("suffix", EXPORTERS)
def test_vectorize_writes_the_map_in_every_format(class_map, tmp_path, suffix):
    report = vectorize(class_map(), tmp_path / f"map{suffix}", rules=RAW)
    back = read(report.path)
    pixels = np.bincount(blobs().ravel(), minlength=256)
    assert len(back) == report.polygons == sum(c.polygons for c in report.classes)
    assert [c.name for c in report.classes] == list(TABLE.names)
    np.testing.assert_allclose([c.area_m2 for c in report.classes], pixels[:3] * 0.09, rtol=1e-3)
    described = "\n".join(describe(str(report.path)))
    assert f"map: {len(back)} features" in described and "class_name: text" in described


@pytest.mark.parametrize("suffix", EXPORTERS)
def test_map_and_polygons_of_one_name_share_one_style(class_map, tmp_path, suffix):
    path = class_map()
    before = (tmp_path / "map.qml").read_text()
    vectorize(path, tmp_path / f"map{suffix}")
    assert (tmp_path / "map.qml").read_text() == before


def legend(style):
    """Labels of a style for rasters and for polygons."""
    root = ET.parse(style)
    return [
        [entry.get("label") for entry in root.findall(path)]
        for path in ("pipe/rasterrenderer/colorPalette/paletteEntry", "renderer-v2/categories/category")
    ]


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


@pytest.mark.parametrize("suffix", EXPORTERS)
def test_a_style_saved_by_a_person_is_kept(class_map, tmp_path, suffix):
    path, style = class_map(), tmp_path / "out.qml"
    style.write_text("<qgis><renderer-v2/></qgis>")
    if suffix == ".gpkg":
        vectorize(path, tmp_path / "out.gpkg")
    else:
        with pytest.raises(OutputError, match=rf"out\.qml exists, and out\{suffix} would replace it") as error:
            vectorize(path, tmp_path / f"out{suffix}")
        assert "--overwrite" in error.value.hint
        assert not (tmp_path / f"out{suffix}").exists()
    assert style.read_text() == "<qgis><renderer-v2/></qgis>"
    if suffix != ".gpkg":
        vectorize(path, tmp_path / f"out{suffix}", overwrite=True)
        assert legend(style)[1] == list(TABLE.names)
        (tmp_path / f"out{suffix}").unlink()
        if suffix != ".shp":
            vectorize(path, tmp_path / f"out{suffix}")  # a style of ours is replaced without a word


@pytest.mark.parametrize("end", ["dbf", "prj", "cpg"])
def test_a_table_of_that_name_is_not_taken_for_a_shapefile(class_map, tmp_path, end):
    path, table = class_map(), tmp_path / f"out.{end}"
    table.write_text("mine")
    with pytest.raises(OutputError, match=rf"out\.{end} exists, and out\.shp would replace it"):
        vectorize(path, tmp_path / "out.shp")
    assert table.read_text() == "mine"


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson"])
def test_ctrl_c_ends_the_command_without_a_trace(tmp_path, suffix):
    values = blobs((1500, 1500))
    with MapFileWriter(tmp_path / "map.tif", Grid(*values.shape, NORTH_UP, CRS.from_user_input(UTM)), TABLE) as out:
        out.write(MapRows(values))
    before = sorted(tmp_path.iterdir())
    words = ["vectorize", tmp_path / "map.tif", "-o", tmp_path / f"polygons{suffix}", "--simplify", "none"]
    command = subprocess.Popen(
        [sys.executable, "-m", "geoseg", *map(str, words)],
        stderr=subprocess.PIPE,
        # Started in the background of a shell, the tests ignore Ctrl-C, and a child would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not any(file.stat().st_size > 1 << 20 for file in tmp_path.glob(f".polygons{suffix}.*/*")):
        assert command.poll() is None, "the command ended before it could be stopped"
        time.sleep(0.01)
    command.send_signal(signal.SIGINT)
    _, stderr = command.communicate(timeout=60)
    assert (command.returncode, stderr.decode()) == (130, "interrupted\n")
    assert sorted(tmp_path.iterdir()) == before


def test_an_unreferenced_map_is_vectorized_where_qgis_draws_it(class_map, tmp_path):
    report = vectorize(class_map(None, Affine.identity()), tmp_path / "map.gpkg")
    assert tuple(read(report.path).total_bounds) == (0, -60, 50, 0)


def test_vectorize_checks_everything_before_it_writes(class_map, tmp_path):
    path = class_map(None, Affine.identity())
    names = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(OutputError, match="dwg"):
        vectorize(tmp_path / "none.tif", tmp_path / "map.dwg")
    with pytest.raises(SceneError, match="no such"):
        vectorize(tmp_path / "none.tif", tmp_path / "map.gpkg")
    with pytest.raises(SceneError, match="no CRS"):
        vectorize(path, tmp_path / "map.gpkg", rules=PolygonRules(simplify=Tolerance(0.5, "m")))
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    vectorize(path, tmp_path / "map.gpkg")
    with pytest.raises(OutputError, match="exists"):
        vectorize(path, tmp_path / "map.gpkg")
    vectorize(path, tmp_path / "map.gpkg", overwrite=True)
