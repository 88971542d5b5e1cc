from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import geopandas
import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.crs import CRS

import geoseg.class_map
from geoseg.class_map import ClassMapReader, read_class_map
from geoseg.class_map.names import CLASSES_TAG
from geoseg.class_map.writing import MapFileWriter
from geoseg.classes import ClassTable
from geoseg.errors import LabelError, OutputError, SceneError
from geoseg.grid import Grid
from geoseg.map_rows import MapRows
from geoseg.programs.vectorize import vectorize
from geoseg.windows import Window

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

TABLE = ClassTable.from_names(["ground", "Gebäude & <Dächer>", "水"], ["#aabbcc", "#ff0000", "#0000ff"])
NORTH_UP = Affine(0.3, 0, 500_000.125, 0, -0.3, 5_000_000.5)
GRIDS = {
    "utm": (NORTH_UP, "EPSG:32633"),
    "south-up": (Affine(0.3, 0, 500_000, 0, 0.3, 5_000_000), "EPSG:32633"),
    "rotated": (Affine.translation(500_000, 5_000_000) @ Affine.rotation(30) @ Affine.scale(0.3, -0.4), "EPSG:32633"),
    "geographic": (Affine(1e-5 / 3, 0, 15.1, 0, -1e-5 / 3, 47.2), "EPSG:4326"),
    "own projection": (NORTH_UP, "+proj=tmerc +lat_0=46.5 +lon_0=13.3 +k=0.9999 +x_0=1000 +ellps=bessel +units=m"),
    "pixels": (Affine.identity(), None),
    "transform only": (NORTH_UP, None),
}


def grid_of(shape=(40, 30), name="utm"):
    transform, crs = GRIDS[name]
    return Grid(*shape, transform, None if crs is None else CRS.from_user_input(crs))


def random_map(shape, seed=0):
    values = np.random.default_rng(seed).integers(0, 4, shape, dtype=np.uint8)
    return np.where(values == 3, 255, values).astype(np.uint8)


def write(path, values, grid=None, *, heights=None, tags=None):
    grid = grid or grid_of(values.shape)
    with MapFileWriter(path, grid, TABLE, tags=tags) as out:
        row = 0
        for height in heights or [len(values)]:
            out.write(MapRows(values[row : row + height]))
            row += height
        if row < len(values):
            out.write(MapRows(values[row:]))
    return path


def foreign(path, values, *, nodata=None, colormap=None, dtype="uint8", count=1, **profile):
    shape = {"height": values.shape[-2], "width": values.shape[-1]}
    with rasterio.open(path, "w", driver="GTiff", dtype=dtype, count=count, nodata=nodata, **shape, **profile) as dst:
        if colormap:
            dst.write_colormap(1, colormap)
        for band in range(1, count + 1):
            dst.write(values.astype(dtype), band)
    return path


def vrt_of(path):
    """What GDAL itself finds in the file, as the XML of a VRT that refers to it."""
    with rasterio.open(path) as src, rasterio.MemoryFile(ext=".vrt") as memory:
        rasterio.shutil.copy(src, memory.name, driver="VRT")
        return ET.fromstring(memory.read())


@pytest.mark.parametrize("name", GRIDS)
def test_a_map_comes_back_as_it_was_written(tmp_path, name):
    values, grid = random_map((40, 30)), grid_of(name=name)
    back = read_class_map(write(tmp_path / "map.tif", values, grid))
    np.testing.assert_array_equal(back.values, values)
    assert back.grid == grid
    assert back.classes == TABLE
    with rasterio.open(tmp_path / "map.tif") as src:
        assert (src.shape, src.transform, src.crs, src.nodata) == (grid.shape, grid.transform, grid.crs, 255)


@given(heights=st.lists(st.integers(1, 700), max_size=6), height=st.integers(1, 1400))
def test_the_bytes_do_not_depend_on_how_the_rows_come(tmp_path_factory, heights, height):
    folder = tmp_path_factory.mktemp("maps")
    values = random_map((height, 37))
    heights = [h for i, h in enumerate(heights) if sum(heights[: i + 1]) <= height]
    one = write(folder / "one.tif", values)
    other = write(folder / "other.tif", values, heights=heights)
    assert one.read_bytes() == other.read_bytes()
    np.testing.assert_array_equal(read_class_map(one).values, values)


def test_the_file_is_tiled_compressed_and_has_overviews(tmp_path):
    values = np.zeros((1100, 700), dtype=np.uint8)
    values[:, 300:] = 1
    with rasterio.open(write(tmp_path / "map.tif", values, heights=[300, 1, 599])) as src:
        assert src.block_shapes == [(512, 512)]
        assert src.profile["compress"] in ("zstd", "deflate")
        assert src.overviews(1) == [2, 4]
        small = src.read(1, out_shape=(138, 88))
    assert set(np.unique(small)) == {0, 1}
    assert (tmp_path / "map.tif").stat().st_size < 50_000


def test_colours_names_and_table_are_found_by_gdal(tmp_path):
    values = random_map((40, 30))
    path = write(tmp_path / "map.tif", values, tags={"GEOSEG_MODEL": "buildings-tiny"})
    with rasterio.open(path) as src:
        assert src.colorinterp[0].name == "palette"
        assert src.colormap(1)[1] == (255, 0, 0, 255)
        assert src.colormap(1)[255][3] == 0
        assert src.tags()["GEOSEG_MODEL"] == "buildings-tiny"
        assert [e["name"] for e in json.loads(src.tags()[CLASSES_TAG])] == list(TABLE.names)
    names = vrt_of(path).findall("VRTRasterBand/CategoryNames/Category")
    assert [n.text for n in names] == list(TABLE.names)
    rows = ET.parse(tmp_path / "map.tif.aux.xml").findall(".//GDALRasterAttributeTable/Row")
    assert [[f.text for f in row][:3] for row in rows] == [
        [str(c.id), str((values == c.id).sum()), c.name] for c in TABLE
    ]


def test_the_style_names_and_colours_every_class(tmp_path):
    write(tmp_path / "map.tif", random_map((4, 3)))
    entries = ET.parse(tmp_path / "map.qml").findall("pipe/rasterrenderer[@type='paletted']/colorPalette/paletteEntry")
    found = [(e.get("value"), e.get("label"), e.get("color")) for e in entries]
    assert found == [("0", "ground", "#aabbcc"), ("1", "Gebäude & <Dächer>", "#ff0000"), ("2", "水", "#0000ff")]


def test_the_table_survives_the_loss_of_the_sidecars(tmp_path):
    path = write(tmp_path / "map.tif", random_map((4, 3)))
    (tmp_path / "map.tif.aux.xml").unlink()
    (tmp_path / "map.qml").unlink()
    assert read_class_map(path).classes == TABLE


def test_an_older_map_survives_an_exception(tmp_path):
    path = write(tmp_path / "map.tif", random_map((40, 30)))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(KeyboardInterrupt), MapFileWriter(path, grid_of((2000, 30)), TABLE) as out:
        out.write(MapRows(np.zeros((1500, 30), dtype=np.uint8)))
        raise KeyboardInterrupt
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_map_that_is_not_whole_is_not_published(tmp_path):
    with (
        pytest.raises(ValueError, match="40 rows, but only 10"),
        MapFileWriter(tmp_path / "m.tif", grid_of(), TABLE) as out,
    ):
        out.write(MapRows(np.zeros((10, 30), dtype=np.uint8)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "rows", [np.zeros((1, 31), np.uint8), np.zeros((1, 30), np.int64), np.zeros((41, 30), np.uint8)]
)
def test_rows_that_do_not_fit_are_refused(tmp_path, rows):
    with pytest.raises(ValueError, match="rows"), MapFileWriter(tmp_path / "m.tif", grid_of(), TABLE) as out:
        out.write(MapRows(rows))
    assert list(tmp_path.iterdir()) == []


def test_stale_sidecars_are_replaced(tmp_path):
    for name in ("map.tif", "map.tif.aux.xml", "map.tif.ovr", "map.qml"):
        (tmp_path / name).write_text("old")
    write(tmp_path / "map.tif", random_map((40, 30)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["map.qml", "map.tif", "map.tif.aux.xml"]
    assert all(p.read_bytes() != b"old" for p in tmp_path.iterdir())


def test_a_missing_folder_is_an_output_error(tmp_path):
    with pytest.raises(OutputError), MapFileWriter(tmp_path / "no" / "m.tif", grid_of(), TABLE):
        pass


def test_a_window_of_a_map(tmp_path):
    values = random_map((40, 30))
    part = read_class_map(write(tmp_path / "map.tif", values), window=Window(5, 7, 20, 10))
    np.testing.assert_array_equal(part.values, values[5:25, 7:17])
    assert part.grid == grid_of().crop(Window(5, 7, 20, 10))


def test_foreign_maps_nodata_names_and_colours(tmp_path):
    values = np.array([[0, 1, 2], [3, 1, 0]])
    plain = read_class_map(foreign(tmp_path / "plain.tif", values, nodata=0))
    np.testing.assert_array_equal(plain.values, [[255, 1, 2], [3, 1, 255]])
    assert plain.classes.names == ("class_0", "class_1", "class_2", "class_3")
    assert len({c.color for c in plain.classes}) == 4

    path = foreign(tmp_path / "named.tif", values, colormap={0: (1, 2, 3, 255), 3: (9, 8, 7, 255)})
    names = "".join(f"<Category>{n}</Category>" for n in ("none", "tree", "", "tree"))
    pam = f'<PAMDataset><PAMRasterBand band="1"><CategoryNames>{names}</CategoryNames></PAMRasterBand></PAMDataset>'
    (tmp_path / "named.tif.aux.xml").write_text(pam)
    named = read_class_map(path)
    assert named.classes.names == ("none", "tree", "class_2", "tree (3)")
    assert (named.classes[0].color, named.classes[3].color) == ((1, 2, 3), (9, 8, 7))
    np.testing.assert_array_equal(named.values, values)


QML = """<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>
<qgis version="3.40.5-Bratislava"><pipe><rasterrenderer type="paletted" band="1"><colorPalette>
<paletteEntry value="0" label="water" color="#0000ff" alpha="255"/>
<paletteEntry value="1" label="1" color="#00ff00" alpha="255"/>
<paletteEntry value="2" label="roof &amp; yard" color="#ff0000" alpha="255"/>
</colorPalette></rasterrenderer></pipe></qgis>"""
RAT = """<PAMDataset><PAMRasterBand band="1"><GDALRasterAttributeTable tableType="thematic">
<FieldDefn index="0"><Name>OID</Name><Type>0</Type><Usage>0</Usage></FieldDefn>
<FieldDefn index="1"><Name>Value</Name><Type>0</Type><Usage>0</Usage></FieldDefn>
<FieldDefn index="2"><Name>ClassName</Name><Type>2</Type><Usage>0</Usage></FieldDefn>
<FieldDefn index="3"><Name>R</Name><Type>0</Type><Usage>6</Usage></FieldDefn>
<FieldDefn index="4"><Name>G</Name><Type>0</Type><Usage>7</Usage></FieldDefn>
<FieldDefn index="5"><Name>B</Name><Type>0</Type><Usage>8</Usage></FieldDefn>
<Row index="0"><F>7</F><F>0</F><F>water</F><F>0</F><F>0</F><F>255</F></Row>
<Row index="1"><F>8</F><F>2</F><F>roof &amp; yard</F><F>255</F><F>0</F><F>0</F></Row>
</GDALRasterAttributeTable></PAMRasterBand></PAMDataset>"""


@pytest.mark.parametrize("kept", ["qml", "rat", "metadata", "tag of the band"])
def test_names_are_found_where_another_program_kept_them(tmp_path, kept):
    """QGIS saves a raster anew without the tags of the old one: the style, or an attribute table, is what is left."""
    path = foreign(tmp_path / "again.tif", np.array([[0, 1], [2, 2]]))
    wanted = ("water", "class_1", "roof & yard")
    if kept == "qml":
        (tmp_path / "again.qml").write_text(QML)
    elif kept == "rat":
        (tmp_path / "again.tif.aux.xml").write_text(RAT)
    else:
        with rasterio.open(path, "r+") as file:
            if kept == "metadata":
                file.update_tags(1, class_0="water", class_2="roof & yard")
            else:
                wanted = TABLE.names
                entries = [{"name": c.name, "color": "#ff0000"} for c in TABLE]
                file.update_tags(1, **{CLASSES_TAG: json.dumps(entries)})
    found = read_class_map(path).classes
    assert found.names == wanted
    if kept in ("qml", "rat"):
        assert found[2].color == (255, 0, 0) and found[0].color == (0, 0, 255)


def test_the_raster_itself_goes_before_a_style_beside_it(tmp_path):
    path = write(tmp_path / "again.tif", random_map((40, 30)))
    (tmp_path / "again.qml").write_text(QML)
    assert read_class_map(path).classes == TABLE
    named = foreign(tmp_path / "named.tif", np.array([[0, 1], [2, 2]]))
    (tmp_path / "named.tif.aux.xml").write_text(RAT.replace("water", "lake"))
    (tmp_path / "named.qml").write_text(QML)
    assert read_class_map(named).classes.names == ("lake", "class_1", "roof & yard")
    (tmp_path / "named.qml").write_text("no XML")
    assert read_class_map(named).classes.names == ("lake", "class_1", "roof & yard")


def test_a_file_of_classes_names_a_map_outright(tmp_path, caplog):
    path = foreign(tmp_path / "again.tif", np.array([[0, 1], [2, 2]]), crs="EPSG:32633", transform=NORTH_UP)
    vectorize(path, tmp_path / "plain.gpkg")
    assert "--classes FILE.yaml" in caplog.text
    (tmp_path / "names.yaml").write_text("[{name: sea, background: true}, beach, hotel]")
    vectorize(path, tmp_path / "named.gpkg", classes=tmp_path / "names.yaml")
    assert list(geopandas.read_file(tmp_path / "named.gpkg", layer="named")["class_name"]) == ["beach", "hotel"]
    (tmp_path / "few.yaml").write_text("[sea, beach]")
    with pytest.raises(LabelError, match="holds the value 2") as caught:
        vectorize(path, tmp_path / "few.gpkg", classes=tmp_path / "few.yaml")
    assert "--classes" in str(caught.value.hint)


def test_what_is_no_class_map_is_refused(tmp_path):
    values = np.array([[0, 255]])
    with pytest.raises(SceneError, match="3 bands of uint8, expected 1 band of uint8") as error:
        read_class_map(foreign(tmp_path / "rgb.tif", values, count=3))
    assert "geoseg predict" in error.value.hint
    with pytest.raises(SceneError, match="1 band of int16"):
        read_class_map(foreign(tmp_path / "dem.tif", values, dtype="int16"))
    with pytest.raises(SceneError, match="class of the value 255"):
        read_class_map(foreign(tmp_path / "mask.tif", values, nodata=0))
    with pytest.raises(SceneError, match="no such class map"):
        read_class_map(tmp_path / "none.tif")
    (tmp_path / "text.tif").write_text("hello")
    with pytest.raises(SceneError, match="is not a raster that GDAL can read"):
        read_class_map(tmp_path / "text.tif")


@pytest.mark.parametrize(("dtype", "hint"), [("float32", "-ot Byte"), ("uint16", "at most 255 classes")])
def test_one_band_of_another_type_gets_a_way_to_convert_it(tmp_path, dtype, hint):
    path = foreign(tmp_path / "map.tif", np.zeros((4, 3)), dtype=dtype)
    for read in (ClassMapReader, read_class_map):
        with pytest.raises(SceneError, match=f"1 band of {dtype}") as error:
            read(path)
        assert hint in error.value.hint
        assert "\n" not in error.value.message + error.value.hint


def test_an_empty_map_has_rows_of_nodata(tmp_path):
    with ClassMapReader(foreign(tmp_path / "map.tif", np.zeros((4, 3)), nodata=0)) as reader:
        assert reader.classes.names == ("class_0",)
        assert all((rows.classes == 255).all() for rows in reader.rows())


def test_a_mask_band_counts_beside_nodata(tmp_path):
    values = random_map((40, 30))
    path = foreign(tmp_path / "map.tif", values, nodata=255)
    mask = np.arange(30) < 20
    with rasterio.open(path, "r+") as dst:
        dst.write_mask(np.broadcast_to(mask, values.shape))
    back = read_class_map(path).values
    np.testing.assert_array_equal(back, np.where(mask, values, 255))


def test_a_map_with_a_class_table_is_opened_unread(tmp_path):
    values = random_map((600, 700))
    own = write(tmp_path / "own.tif", values)
    named = foreign(tmp_path / "named.tif", values, colormap={i: (i, 9, 9, 255) for i in range(4)})
    names = "".join(f"<Category>{n}</Category>" for n in "abc")
    pam = f'<PAMDataset><PAMRasterBand band="1"><CategoryNames>{names}</CategoryNames></PAMRasterBand></PAMDataset>'
    (tmp_path / "named.tif.aux.xml").write_text(pam)
    reads = []
    original = geoseg.class_map.reading._read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geoseg.class_map.reading, "_read", lambda *given: reads.append(given) or original(*given))
        for path, expected in ((own, TABLE.names), (named, ("a", "b", "c"))):
            with ClassMapReader(path) as reader:
                assert reader.classes.names == expected
                assert reads == []
        with ClassMapReader(foreign(tmp_path / "plain.tif", values, nodata=255)) as reader:
            assert reader.classes.names == ("class_0", "class_1", "class_2")
            assert len(reads) == 2


def test_rows_of_a_damaged_map_end_in_an_error(tmp_path):
    path = write(tmp_path / "map.tif", random_map((1100, 700)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 9 // 10])
    with ClassMapReader(path) as reader, pytest.raises(SceneError, match="cannot be read") as error:
        list(reader.rows())
    assert "gdalinfo" in error.value.hint


def test_a_truncated_map_is_refused(tmp_path):
    path = write(tmp_path / "map.tif", random_map((600, 700)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SceneError):
        read_class_map(path)
