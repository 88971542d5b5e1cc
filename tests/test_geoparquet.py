from __future__ import annotations

import json

import geopandas
import numpy as np
import pyarrow.parquet as pq
import pyproj
import pytest
import shapely
from affine import Affine

from geoseg.export import geoparquet
from geoseg.export.geoparquet import hilbert_keys, write_geoparquet
from geoseg.grid import Grid
from support.coverages import TABLE, blobs, coverage, pieces
from support.formats import FIELDS, PLACES, ExactContract


class TestGeoParquet(ExactContract):
    suffix = ".parquet"

    def read(self, path):
        return geopandas.read_parquet(path)

    def read_window(self, path, window):
        return geopandas.read_parquet(path, bbox=window)


def hilbert_order(polygons, grid: Grid):
    bounds = shapely.bounds(polygons.geometries())
    return np.argsort(hilbert_keys((bounds[:, :2] + bounds[:, 2:]) / 2, grid), kind="stable")


def assert_same(frame, polygons, order):
    assert shapely.equals_exact(frame.geometry.to_numpy(), polygons.geometries()[order]).all()
    assert list(frame.class_id) == list(polygons.class_id[order])
    assert list(frame.class_name) == [TABLE[i].name for i in polygons.class_id[order]]
    for name, values in polygons.columns.items():
        np.testing.assert_array_equal(frame[name], values[order])
        assert frame[name].dtype == values.dtype


@pytest.mark.parametrize(("crs", "transform"), PLACES)
@pytest.mark.parametrize("row_group", [7, 65_536])
def test_polygons_and_attributes_come_back_in_hilbert_order(tmp_path, crs, transform, row_group):
    polygons, layer = coverage(crs=crs, transform=transform)
    path = tmp_path / "Karte é.parquet"
    assert write_geoparquet(pieces(polygons, 5), path, layer, row_group=row_group) == len(polygons)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    frame = geopandas.read_parquet(path)
    assert list(frame.columns) == [*FIELDS, "geometry"]
    assert frame.crs == crs
    assert_same(frame, polygons, hilbert_order(polygons, layer.grid))
    assert set(frame.source) == {layer.source}
    assert pq.ParquetFile(path).num_row_groups == -(-len(polygons) // row_group)


def test_the_order_does_not_depend_on_the_batches(tmp_path):
    polygons, layer = coverage()
    for count in 2, 9:
        write_geoparquet(pieces(polygons, count), tmp_path / f"{count}.parquet", layer, row_group=20)
    assert (tmp_path / "2.parquet").read_bytes() == (tmp_path / "9.parquet").read_bytes()


def test_the_metadata_are_those_of_geoparquet_1_1(tmp_path):
    polygons, layer = coverage(crs="EPSG:4326", transform=Affine(1e-4, 0, 15, 0, -1e-4, 47))
    write_geoparquet([polygons], tmp_path / "map.parquet", layer)
    file = pq.ParquetFile(tmp_path / "map.parquet")
    geo = json.loads(file.metadata.metadata[b"geo"])
    column = geo["columns"]["geometry"]
    assert (geo["version"], geo["primary_column"], list(geo["columns"])) == ("1.1.0", "geometry", ["geometry"])
    assert (column["encoding"], column["geometry_types"]) == ("WKB", ["Polygon"])
    assert column["orientation"] == "counterclockwise"
    assert column["bbox"] == list(shapely.total_bounds(polygons.geometries()))
    assert column["covering"]["bbox"] == {k: ["bbox", k] for k in ("xmin", "ymin", "xmax", "ymax")}
    assert pyproj.CRS.from_json_dict(column["crs"]) == pyproj.CRS(4326)
    assert column["crs"]["id"] == {"authority": "EPSG", "code": 4326}
    compressed = {file.metadata.row_group(0).column(i).compression for i in range(file.metadata.num_columns)}
    assert compressed == {"ZSTD"}


def test_a_map_without_crs_says_so(tmp_path):
    polygons, layer = coverage(crs=None, transform=Affine.identity())
    write_geoparquet([polygons], tmp_path / "map.parquet", layer)
    geo = json.loads(pq.ParquetFile(tmp_path / "map.parquet").metadata.metadata[b"geo"])
    # Left out it would mean longitude and latitude.
    assert geo["columns"]["geometry"]["crs"] is None


def test_readers_skip_row_groups_that_lie_elsewhere(tmp_path):
    polygons, layer = coverage(blobs((200, 200)))
    path = tmp_path / "map.parquet"
    write_geoparquet([polygons], path, layer, row_group=50)
    metadata = pq.ParquetFile(path).metadata
    columns = {metadata.schema.column(i).path: i for i in range(metadata.num_columns)}
    left, bottom, right, top = layer.grid.bounds
    window = left, bottom, left + (right - left) / 10, bottom + (top - bottom) / 10
    touched = 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        assert group.num_rows <= 50
        low, high = ([group.column(columns[f"bbox.{axis}{end}"]).statistics for axis in "xy"] for end in ("min", "max"))
        touched += all(s.min <= w for s, w in zip(low, window[2:], strict=True)) and all(
            s.max >= w for s, w in zip(high, window[:2], strict=True)
        )
    assert metadata.num_row_groups > 20
    assert 1 <= touched <= metadata.num_row_groups // 5
    part = geopandas.read_parquet(path, bbox=window)
    boxes = shapely.box(*shapely.bounds(polygons.geometries()).T)
    assert len(part) == shapely.intersects(boxes, shapely.box(*window)).sum()


def test_row_groups_are_bounded_in_bytes_too(tmp_path, monkeypatch):
    polygons, layer = coverage()
    monkeypatch.setattr(geoparquet, "_ROW_GROUP_BYTES", 3_000)
    path = tmp_path / "map.parquet"
    write_geoparquet([polygons], path, layer)
    assert pq.ParquetFile(path).num_row_groups > 3
    assert_same(geopandas.read_parquet(path), polygons, hilbert_order(polygons, layer.grid))


def test_neighbours_on_the_curve_are_neighbours_on_the_map():
    grid = Grid(32, 32, Affine.translation(0, 32) @ Affine.scale(1, -1), None)
    x, y = np.meshgrid(np.arange(32), np.arange(32))
    keys = hilbert_keys(np.column_stack([x.ravel(), y.ravel()]) + 0.5, grid)
    assert len(set(keys)) == 1024
    path = np.column_stack([x.ravel(), y.ravel()])[np.argsort(keys)]
    assert (np.abs(np.diff(path, axis=0)).sum(axis=1) == 1).all()
    far = hilbert_keys(np.array([[-9.0, -9.0], [99.0, 99.0]]), grid)
    corners = hilbert_keys(np.array([[0.0, 0.0], [31.9999, 31.9999]]), grid)
    assert list(far) == list(corners)
