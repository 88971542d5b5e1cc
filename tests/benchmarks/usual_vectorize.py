"""The usual way from a class map to simplified polygons in a GeoPackage, as a script and for `bench_vectorize.py`.

python tests/benchmarks/usual_vectorize.py landcover.tif landcover.gpkg 1.5
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import rasterio
import shapely
from rasterio import features

NODATA = 255


def shapes(path: Path) -> tuple[Any, list[int], Any, Any]:
    """Polygons, class ids, transform and CRS of a map."""
    with rasterio.open(path) as source:
        values, transform, crs = source.read(1), source.transform, source.crs
    traced = features.shapes(values, mask=values != NODATA, connectivity=4, transform=transform)
    polygons, ids = [], []
    for geometry, value in traced:
        polygons.append(shapely.geometry.shape(geometry))
        ids.append(int(value))
    return np.array(polygons, dtype=object), ids, transform, crs


def vectorize(path: Path, output: Path, tolerance_px: float) -> None:
    """Class map → simplified polygons → file."""
    polygons, ids, transform, crs = shapes(path)
    polygons = shapely.coverage_simplify(polygons, tolerance_px * abs(transform.a))
    names = [f"class_{i}" for i in ids]
    frame = geopandas.GeoDataFrame({"class_id": ids, "class_name": names}, geometry=polygons, crs=crs)
    output.unlink(missing_ok=True)
    pyogrio.write_dataframe(frame, output)


if __name__ == "__main__":
    vectorize(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
