"""Vector tiles of the viewer: GDAL reads from them what was put in, and large features are cut unseen."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyarrow as pa
import pyogrio
import pytest
import shapely
from shapely.geometry import LineString, MultiPolygon, Point, Polygon, box

pytest.importorskip("pmtiles")

from geoseg.scene.vector_files import open_layer
from geoseg.view import feature_store
from geoseg.view.feature_store import TiledLayer
from geoseg.view.place import tile_bounds, tiles_over
from geoseg.view.vector_tiles import EXTENT, encode_tile

TILE = (16, 35195, 22041)
LEFT, BOTTOM, RIGHT, TOP = tile_bounds(*TILE)
UNIT = (RIGHT - LEFT) / EXTENT


def decoded(body: bytes, folder: Path) -> geopandas.GeoDataFrame:
    """What GDAL finds in a tile, in units from its lower left corner."""
    (folder / "tile.pbf").write_bytes(body)
    found = pyogrio.read_dataframe(f"MVT:{folder / 'tile.pbf'}")
    assert isinstance(found, geopandas.GeoDataFrame)
    return found


def units(shape: Any) -> Any:
    return shapely.transform(shape, lambda xy: (xy - (LEFT, BOTTOM)) / UNIT)


def blob(x: float, y: float, radius: float, corners: int) -> Polygon:
    """A ragged disk, its place and size in shares of the tile."""
    turn = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    reach = radius * (1 + 0.2 * np.sin(9 * turn))
    share = np.column_stack([x + reach * np.cos(turn), y + reach * np.sin(turn)])
    return Polygon(share * (RIGHT - LEFT) + (LEFT, BOTTOM))


def test_shapes_come_back_within_a_unit(tmp_path: Path) -> None:
    ring = blob(0.5, 0.5, 0.3, 90) - blob(0.5, 0.5, 0.1, 40)
    two = MultiPolygon([blob(0.1, 0.1, 0.05, 20), blob(0.9, 0.9, 0.2, 50)])  # the second leaves the tile
    line = LineString([(LEFT, BOTTOM), ((LEFT + RIGHT) / 2, TOP), (RIGHT, BOTTOM)])
    shapes = np.array([ring, two, line, Point((LEFT + RIGHT) / 2, (BOTTOM + TOP) / 2), box(0, 0, 1, 1)], dtype=object)
    fields = pa.table({"row": pa.array(range(len(shapes)))})
    found = decoded(encode_tile("any", shapes, fields, tile_bounds(*TILE)), tmp_path).set_index("row").geometry
    tile = box(0, 0, EXTENT, EXTENT)
    assert set(found.index) == {0, 1, 2, 3}  # what lies elsewhere is left out
    assert len(shapely.get_parts(found[0])[0].interiors) == 1
    for row in range(3):
        wanted = units(shapes[row]).intersection(tile)
        assert found[row].intersection(tile).hausdorff_distance(wanted) < 2
        assert found[row].intersection(tile).area == pytest.approx(wanted.area, rel=0.005)
    assert shapely.get_coordinates(found[3]).tolist() == [[EXTENT / 2, EXTENT / 2]]


def test_attributes_keep_their_types(tmp_path: Path) -> None:
    shapes = np.array([Point(LEFT + 5, TOP - 5)] * 3, dtype=object)
    table = {
        "name": ["haus", "Straße", None],
        "count": [-3, 4, 1 << 40],
        "share": [0.25, np.nan, 1e-9],
        "is": [True, False, None],
    }
    found = decoded(encode_tile("any", shapes, pa.table(table), tile_bounds(*TILE)), tmp_path)
    assert found.name[:2].tolist() == ["haus", "Straße"] and found.name.isna().tolist() == [False, False, True]
    assert found["count"].tolist() == table["count"]
    assert found.share[[0, 2]].tolist() == [0.25, 1e-9] and np.isnan(found.share[1])
    assert found["is"][:2].astype(bool).tolist() == [True, False]


def test_what_collapses_is_left_out() -> None:
    tiny = box(LEFT + 9, BOTTOM + 9, LEFT + 9 + UNIT / 9, BOTTOM + 9 + UNIT / 9)
    none = pa.table({"row": [0]})
    assert encode_tile("any", np.array([tiny], dtype=object), none, tile_bounds(*TILE)) == b""
    assert encode_tile("any", np.array([], dtype=object), none[:0], tile_bounds(*TILE)) == b""


def test_cache_keeps_what_was_used_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = geopandas.GeoDataFrame({"class": ["house"]}, geometry=[blob(0.2, 0.2, 0.01, 12)], crs=3857)
    frame.to_file(tmp_path / "a.gpkg", layer="a")
    layer = open_layer(str(tmp_path / "a.gpkg"), "a")
    left = tmp_path / "cache" / ".killed.json.0123abcd.partial"
    left.mkdir(parents=True)
    for file in (left, tmp_path / "cache" / ".running.json.0123abcd.partial"):
        file.mkdir(exist_ok=True)
    os.utime(left, (0, 0))
    stores = [tmp_path / "cache" / f"{name}.json" for name in "abc"]
    tiled = [TiledLayer(layer, None, None, (0, 22), 9, store) for store in stores]
    for number, store in enumerate(stores):
        tiled[number].make(lambda count: None)
        os.utime(store, (number, number))
        if number == 1:
            tiled[0].values()  # now used last
            size = sum(file.stat().st_size for file in store.parent.glob("a.*"))
            monkeypatch.setattr(feature_store, "_KEPT_BYTES", size)
    assert sorted(file.name for file in (tmp_path / "cache").iterdir() if file.suffix in (".json", ".partial")) == [
        ".running.json.0123abcd.partial",
        "a.json",
        "c.json",
    ]


def test_large_features_are_cut_without_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_store, "_MOST_VERTICES", 40)
    large = blob(0.5, 0.5, 1.4, 900) - blob(0.4, 0.6, 0.5, 300)
    frame = geopandas.GeoDataFrame({"class": ["field", "house"]}, geometry=[large, blob(0.2, 0.2, 0.01, 12)], crs=3857)
    frame.to_file(tmp_path / "a.gpkg", layer="a")
    store = tmp_path / "store.json"
    seen: list[int] = []
    layer = open_layer(str(tmp_path / "a.gpkg"), "a")
    tiled = TiledLayer(layer, None, None, (0, 22), 16, store)
    tiled.make(seen.append)
    assert sum(seen) == 2
    assert len(pyogrio.read_dataframe(store.with_suffix(".fgb"))) > 4
    assert tiled.values() == ["field", "house"]
    for z in (16, 17, 18):
        for tile in tiles_over(tuple(frame.to_crs(4326).total_bounds), z)[::3]:
            body, is_crowded = tiled.tile(*tile)
            whole = encode_tile("a", frame.geometry.to_numpy(), pa.table({"class": frame["class"]}), tile_bounds(*tile))
            assert bool(body) == bool(whole) and not is_crowded
            if body:
                inside = box(1, 1, EXTENT - 1, EXTENT - 1)
                cut, plain = (decoded(b, tmp_path).clip(inside) for b in (body, whole))
                assert cut.area.sum() == pytest.approx(plain.area.sum(), rel=1e-3, abs=9)
                lines = [shapely.intersection(frame.boundary.to_numpy(), inside) for frame in (cut, plain)]
                assert shapely.length(lines[0]).sum() == pytest.approx(shapely.length(lines[1]).sum(), rel=0.01, abs=9)
