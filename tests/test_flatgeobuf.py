from __future__ import annotations

import numpy as np
import pyogrio
import pytest
import shapely

from geoseg.errors import OutputError
from geoseg.export import write_polygons
from geoseg.export.layer import portions, wkb_array
from geoseg.polygons.batch import PolygonBatch
from support.coverages import coverage
from support.formats import ExactContract


class TestFlatGeobuf(ExactContract):
    suffix = ".fgb"


def test_the_file_has_an_index_and_a_named_layer(tmp_path):
    polygons, layer = coverage()
    write_polygons([polygons], tmp_path / "map.fgb", layer)
    info = pyogrio.read_info(tmp_path / "map.fgb")
    assert list(info["dtypes"]) == ["int32", "object", "float64", "float64", "float32", "float32", "object"]
    assert (info["geometry_type"], info["layer_name"]) == ("Polygon", "land cover")
    assert info["capabilities"]["fast_spatial_filter"]


@pytest.mark.parametrize(("features", "size"), [(10**9, 10**9), (7, 10**9), (10**9, 2_000), (1, 1), (20, 3_000)])
def test_batches_are_cut_into_portions_of_bounded_size(features, size):
    polygons, _ = coverage()
    parts = list(portions([polygons], features=features, size=size))
    for part in parts:
        assert len(part) == 1 or (len(part) <= features and sum(map(len, wkb_array(part).to_pylist())) <= size)
    assert np.concatenate([part.columns["area_m2"] for part in parts]).tolist() == polygons.columns["area_m2"].tolist()
    whole = b"".join(shapely.to_wkb(polygons.geometries(), byte_order=1))
    assert b"".join(wkb for part in parts for wkb in wkb_array(part).to_pylist()) == whole


def test_a_polygon_of_more_than_2_gib_is_refused():
    vertices = np.zeros((1, 2), dtype=np.float64)
    huge = PolygonBatch(np.array([3], np.uint8), vertices, np.array([0, 2**27]), np.array([0, 1]))
    with pytest.raises(OutputError, match="class 3 has more than 2 GiB"):
        list(portions([huge]))
