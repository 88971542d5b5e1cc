from __future__ import annotations

import gzip
import json

import numpy as np
import pyogrio
import pyproj
import pytest
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.crs import CRS

from geoseg.errors import OutputError
from geoseg.export import write_polygons
from geoseg.export.pmtiles import write_pmtiles, zoom_levels
from geoseg.grid import Grid
from support.coverages import NORTH_UP, TABLE, UTM, batch, coverage, pieces
from support.formats import FormatContract

WORLD_M = 2 * np.pi * 6378137
MAPS = {
    "utm": (UTM, NORTH_UP),
    "degrees": ("EPSG:4326", Affine(1e-4, 0, 15, 0, -1e-4, 47)),
    "rotated": (UTM, Affine.translation(500_000, 5_000_000) @ Affine.rotation(31) @ Affine.scale(0.3, -0.3)),
    "web mercator": ("EPSG:3857", Affine(0.6, 0, 1_690_000, 0, -0.6, 5_960_000)),
}


class TestPMTiles(FormatContract):
    suffix = ".pmtiles"


def tiles(path):
    """Metadata and lowest and highest zoom level of a file, by its own header."""
    content = path.read_bytes()
    start, size = np.frombuffer(content, "<u8", 2, 24)
    return json.loads(gzip.decompress(content[start : start + size])), content[100], content[101]


def mercator(geometries, crs):
    transformer = pyproj.Transformer.from_crs(crs, 3857, always_xy=True)
    return shapely.transform(geometries, transformer.transform, interleaved=False)


@pytest.mark.parametrize(("crs", "transform"), MAPS.values(), ids=MAPS)
def test_polygons_come_back_with_their_attributes(tmp_path, crs, transform):
    polygons, layer = coverage(crs=crs, transform=transform)
    path = tmp_path / "Karte é.pmtiles"
    assert write_pmtiles(pieces(polygons, 4), path, layer) == len(polygons)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    back = pyogrio.read_dataframe(path)
    assert pyogrio.read_info(path)["layer_name"] == layer.name
    assert back.crs == "EPSG:3857"
    wanted = mercator(polygons.geometries(), layer.grid.crs)
    _, _, zoom = tiles(path)
    unit = WORLD_M / 2**zoom / 4096
    for c in TABLE:
        ours, theirs = wanted[polygons.class_id == c.id], back[back.class_id == c.id]
        assert set(theirs.class_name) == {c.name}
        assert set(theirs.color) == {"#{:02x}{:02x}{:02x}".format(*c.color)}
        # Polygons lie in several tiles where they cross their edges.
        whole = shapely.union_all(theirs.geometry.to_numpy())
        off = shapely.symmetric_difference(whole, shapely.union_all(ours))
        assert shapely.area(off) < unit * shapely.length(shapely.union_all(ours))
    assert set(back.area_m2) == set(polygons.columns["area_m2"])
    assert set(back.source) == {layer.source}


@pytest.mark.parametrize("name", ["utm", "rotated"])
def test_zoom_levels_are_in_the_file_and_all_have_tiles(tmp_path, name):
    crs, transform = MAPS[name]
    blocks = np.kron(np.arange(36, dtype=np.uint8).reshape(6, 6) % 3, np.ones((200, 200), np.uint8))
    polygons, layer = coverage(blocks, crs=crs, transform=transform)
    path = tmp_path / "map.pmtiles"
    write_pmtiles([polygons], path, layer)
    _, low, high = tiles(path)
    assert (low, high) == zoom_levels(layer.grid)
    assert low < high
    for zoom in range(low, high + 1):
        assert len(pyogrio.read_dataframe(path, ZOOM_LEVEL=zoom))


@given(
    st.floats(0.02, 100),
    st.integers(1, 100_000),
    st.integers(1, 100_000),
    st.floats(-170, 170),
    st.floats(-70, 70),
)
def test_zoom_levels_fit_the_map_and_its_pixels(pixel_m, height, width, lon, lat):
    x, y = pyproj.Transformer.from_crs(4326, 3857, always_xy=True).transform(lon, lat)
    grid = Grid(height, width, Affine(pixel_m, 0, x, 0, -pixel_m, y), CRS.from_epsg(3857))
    if max(height, width) * pixel_m > 2e6:
        return
    low, high = zoom_levels(grid)
    tile = WORLD_M / 2.0 ** np.array([low, low + 1, high, high - 1])
    units = pixel_m / (tile / 4096)
    size = max(height, width) * pixel_m
    slack = 1e-3  # degrees are rounded
    assert 0 <= low <= high <= 22
    assert size <= tile[0] * (1 + slack)
    assert size >= tile[1] * (1 - slack) or low == high
    assert units[2] >= 8 * (1 - 0.1) or high == 22
    assert units[3] <= 8 * (1 + 0.1) or high == 0


def test_the_metadata_hold_the_classes_and_their_colours(tmp_path):
    polygons, layer = coverage()
    path = tmp_path / "map.pmtiles"
    write_pmtiles([polygons], path, layer)
    metadata, _, _ = tiles(path)
    (described,) = metadata["vector_layers"]
    assert (metadata["name"], described["id"]) == (layer.name, layer.name)
    assert json.loads(described["description"]) == [
        {"id": c.id, "name": c.name, "color": "#{:02x}{:02x}{:02x}".format(*c.color)} for c in TABLE
    ]
    assert set(described["fields"]) == {"class_id", "class_name", *polygons.columns, "source", "color"}


def test_polygons_across_the_antimeridian_stay_in_the_world(tmp_path):
    polygons, layer = coverage(crs="EPSG:32601", transform=Affine(500, 0, 160_000, 0, -500, 1_800_000))
    path = tmp_path / "map.pmtiles"
    write_pmtiles([polygons], path, layer)
    back = pyogrio.read_dataframe(path)
    bounds = shapely.bounds(back.geometry.to_numpy())
    assert (np.abs(bounds[:, [0, 2]]) <= WORLD_M / 2 + 1).all()
    assert (bounds[:, 2] - bounds[:, 0]).max() < 1e5
    assert np.isclose(bounds[:, 0].min(), -WORLD_M / 2) and np.isclose(bounds[:, 2].max(), WORLD_M / 2)


@pytest.mark.parametrize("crs", [None, 'LOCAL_CS["site grid",UNIT["metre",1],AXIS["x",EAST],AXIS["y",NORTH]]'])
def test_a_map_of_no_known_place_is_refused(tmp_path, crs):
    polygons, layer = coverage(crs=crs)
    with pytest.raises(OutputError, match=r"map\.pmtiles cannot be written: PMTiles is WGS 84") as error:
        write_polygons([polygons], tmp_path / "map.pmtiles", layer)
    assert "map.gpkg" in error.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("batches", [[], [batch([], [])]])
def test_a_layer_without_polygons_is_refused(tmp_path, batches):
    _, layer = coverage()
    with pytest.raises(OutputError, match="no polygon"):
        write_polygons(batches, tmp_path / "map.pmtiles", layer)
    assert list(tmp_path.iterdir()) == []


def test_a_map_where_web_mercator_has_ended_is_refused(tmp_path):
    polygons, layer = coverage(crs="EPSG:4326", transform=Affine(0.01, 0, 10, 0, -0.01, 89))
    with pytest.raises(OutputError, match="Web Mercator ends"):
        write_pmtiles([polygons], tmp_path / "map.pmtiles", layer)


def test_a_file_cut_short_is_noticed(tmp_path, monkeypatch):
    polygons, layer = coverage()
    path = tmp_path / "map.pmtiles"
    write = pyogrio.write_arrow

    def cut_short(*args, **options):
        write(*args, **options)
        with path.open("rb+") as file:
            file.truncate(path.stat().st_size - 1)

    monkeypatch.setattr(pyogrio, "write_arrow", cut_short)
    with pytest.raises(OutputError, match=r"cannot write .*map\.pmtiles: No space left"):
        write_pmtiles([polygons], path, layer)
