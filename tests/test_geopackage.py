from __future__ import annotations

import sqlite3
import xml.etree.ElementTree as ET
from contextlib import closing

import numpy as np
import pyogrio
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS

from geoseg.errors import OutputError
from geoseg.export import write_polygons
from geoseg.export.layer import Layer
from geoseg.export.styles import style_qml
from geoseg.grid import Grid
from geoseg.programs.vectorize import vectorize
from support.coverages import TABLE, UTM, batch
from support.formats import ExactContract, closing_rows, write_classes


class TestGeoPackage(ExactContract):
    suffix = ".gpkg"

    def read(self, path):
        table = pyogrio.list_layers(path)[0][0]
        check(path, table)
        return pyogrio.read_dataframe(path, layer=table)

    def same_crs(self, found, wanted):
        return found == wanted if wanted else found is None or "Undefined" in found.name

    def style(self, path):
        ((style, sld),) = closing_rows(path, "SELECT styleQML, styleSLD FROM layer_styles")
        assert [n.text for n in ET.fromstring(sld).iter("{http://www.opengis.net/se}Name")][2:] == ["ground", "水"]
        return style

    def test_a_style_saved_by_a_person_is_kept(self, tmp_path):
        """It is of no concern: the style is in the file."""
        (tmp_path / "out.qml").write_text("mine")
        vectorize(write_classes(tmp_path / "map.tif"), tmp_path / "out.gpkg")
        assert (tmp_path / "out.qml").read_text() == "mine"


def many_squares(n):
    rng = np.random.default_rng(n)
    x, y = rng.random((2, n)) * 1000
    size = rng.random(n) * 20
    return batch(shapely.box(x, y, x + size, y + size), rng.integers(0, 3, n))


def layer_of(crs=UTM, name="land cover"):
    return Layer(name, Grid(10, 10, Affine.identity(), CRS.from_user_input(crs) if crs else None), TABLE)


def check(path, table="land cover"):
    """What SQLite has to say against the file: nothing."""
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        assert db.execute("SELECT rtreecheck('main', ?)", [f"rtree_{table}_geom"]).fetchall() == [("ok",)]


@pytest.mark.parametrize("count", [1, 51, 52, 3_000, 70_000])
def test_the_index_finds_what_shapely_finds(tmp_path, count):
    polygons, path = many_squares(count), tmp_path / "map.gpkg"
    write_polygons([polygons], path, layer_of())
    check(path)
    boxes = shapely.bounds(polygons.geometries())
    for left, bottom, width in ((0, 0, 2000), (300, 400, 50), (999, 999, 1), (2000, 0, 5)):
        window = (left, bottom, left + width, bottom + width)
        hit = (boxes[:, :2] <= window[2:]).all(axis=1) & (boxes[:, 2:] >= window[:2]).all(axis=1)
        back = pyogrio.read_dataframe(path, layer="land cover", bbox=window, fid_as_index=True, columns=[])
        np.testing.assert_array_equal(np.sort(back.index), np.flatnonzero(hit) + 1)


def test_a_layer_can_be_edited_afterwards(tmp_path):
    path = tmp_path / "map.gpkg"
    polygons = many_squares(3_000)
    write_polygons([polygons], path, layer_of())
    more = pyogrio.read_dataframe(path, layer="land cover").iloc[:200]
    pyogrio.write_dataframe(more, path, layer="land cover", append=True)
    with closing(sqlite3.connect(path)) as db, db:
        for name, at in (("IsEmpty", None), ("MinX", 0), ("MaxX", 1), ("MinY", 2), ("MaxY", 3)):
            db.create_function(f"ST_{name}", 1, lambda g, at=at: 0 if at is None else np.frombuffer(g, "<f8", 4, 8)[at])
        db.execute('DELETE FROM "land cover" WHERE fid % 3 = 0')
        db.execute('UPDATE "land cover" SET geom = (SELECT geom FROM "land cover" WHERE fid = 1) WHERE fid = 2')
    check(path)
    info = pyogrio.read_info(path, layer="land cover")
    assert info["features"] == len(pyogrio.read_dataframe(path, layer="land cover")) == 3_200 - 3_200 // 3


@pytest.mark.parametrize(
    ("crs", "stored"),
    [
        ("EPSG:4326", ("EPSG", 4326)),
        ("EPSG:3857", ("EPSG", 3857)),
        ("ESRI:54009", ("ESRI", 54009)),
        ("+proj=laea +lat_0=45 +lon_0=7 +units=m", ("NONE", 100000)),
        ("+proj=ob_tran +o_proj=longlat +o_lat_p=39 +lon_0=180 +to_meter=0.0174532925199433", ("NONE", 100000)),
        (None, ("NONE", -1)),
    ],
)
def test_the_crs_is_read_back(tmp_path, crs, stored):
    path = tmp_path / "map.gpkg"
    write_polygons([many_squares(3)], path, layer_of(crs))
    with closing(sqlite3.connect(path)) as db:
        found = db.execute(
            "SELECT organization, organization_coordsys_id FROM gpkg_geometry_columns JOIN gpkg_spatial_ref_sys "
            "USING (srs_id)"
        ).fetchall()
        ids = {row[0] for row in db.execute("SELECT srs_id FROM gpkg_spatial_ref_sys")}
    assert found == [stored]
    assert {-1, 0, 4326} <= ids
    back = pyogrio.read_dataframe(path, layer="land cover").crs
    assert (
        back is None or "Undefined" in back.name
        if crs is None
        else CRS.from_user_input(back) == CRS.from_user_input(crs)
    )


def test_the_file_says_what_it_is(tmp_path):
    path = tmp_path / "map.gpkg"
    polygons = many_squares(3)
    write_polygons([polygons], path, layer_of())
    assert path.read_bytes()[68:72] == b"GPKG"
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (10400,)
        assert db.execute("SELECT extension_name, scope FROM gpkg_extensions").fetchall() == [
            ("gpkg_rtree_index", "write-only")
        ]
        triggers = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")}
        style = db.execute(
            "SELECT f_table_name, f_geometry_column, useAsDefault, styleQML FROM layer_styles"
        ).fetchall()
    index = "rtree_land cover_geom_"
    assert {
        index + end for end in ("insert", "update2", "update4", "update5", "update6", "update7", "delete")
    } < triggers
    assert style == [("land cover", "geom", 1, style_qml(TABLE, present=set(polygons.class_id), units=("px", "px")))]
    assert dict(pyogrio.list_layers(path)) == {"land cover": "Polygon", "layer_styles": None}


def test_names_are_quoted(tmp_path):
    path, name = tmp_path / "map.gpkg", 'it\'s "my" 水'
    write_polygons([many_squares(60)], path, layer_of(name=name))
    check(path, name)
    assert len(pyogrio.read_dataframe(path, layer=name, bbox=(0, 0, 2000, 2000))) == 60


def test_one_polygon_of_many_pages(tmp_path):
    path = tmp_path / "map.gpkg"
    angle = np.linspace(0, 2 * np.pi, 200_000)
    large = shapely.Polygon(np.column_stack([np.cos(angle), np.sin(angle)]))
    write_polygons([batch([shapely.box(0, 0, 1, 1), large, shapely.box(1, 1, 2, 2)], [0, 1, 2])], path, layer_of())
    check(path)
    assert shapely.equals_exact(
        pyogrio.read_dataframe(path, layer="land cover").geometry[1], shapely.orient_polygons(large)
    )


def test_a_name_that_geopackage_keeps_for_itself_is_refused(tmp_path):
    with pytest.raises(OutputError, match="reserved"):
        write_polygons([], tmp_path / "b.gpkg", layer_of(name="gpkg_contents"))


def test_boxes_in_the_index_contain_those_of_the_polygons(tmp_path):
    path = tmp_path / "map.gpkg"
    shapes = shapely.transform(many_squares(500).geometries(), lambda xy: np.add(xy, [500_000.1, 5_000_000.7]))
    write_polygons([batch(shapes, np.zeros(500))], path, layer_of())
    with closing(sqlite3.connect(path)) as db:
        index = np.array(
            db.execute('SELECT minx, miny, maxx, maxy FROM "rtree_land cover_geom" ORDER BY id').fetchall()
        )
    bounds = shapely.bounds(shapes)
    assert (index[:, :2] <= bounds[:, :2]).all()
    assert (index[:, 2:] >= bounds[:, 2:]).all()
    assert np.abs(index - bounds).max() < 1
