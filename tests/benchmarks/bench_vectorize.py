"""`vectorize` against the usual two ways of making polygons, interleaved in one process.

    python tests/benchmarks/bench_vectorize.py --side 4096

All read the same class map, simplify by the same number of pixels and write a GeoPackage. The rivals trace with
rasterio.features.shapes and write with geopandas; the first simplifies polygon by polygon, the second with GEOS's
coverage_simplify. They measure no areas and write no style; whether their polygons are a valid coverage is printed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import geopandas
import numpy as np
import rasterio
import shapely
from rasterio import features
from shapely.geometry import shape

from geoseg.class_map import ClassMapWriter
from geoseg.classes import NODATA
from geoseg.landscape import LANDSCAPE_CLASSES, Landscape
from geoseg.polygons import Tolerance
from geoseg.vectorize import vectorize
from geoseg.windows import Window

STRIP = 512


def write_map(path: Path, side: int, speckle: float) -> None:
    """The labels of a landscape as a class map, with a share of random pixels, as networks leave them."""
    landscape = Landscape(side, side)
    rng = np.random.default_rng(0)
    with ClassMapWriter(path, landscape.grid, LANDSCAPE_CLASSES) as writer:
        for row in range(0, side, STRIP):
            _, labels = landscape.read(Window(row, 0, min(STRIP, side - row), side))
            noise = rng.integers(0, len(LANDSCAPE_CLASSES), labels.shape, dtype=np.uint8)
            writer.write_rows(np.where(rng.random(labels.shape) < speckle, noise, labels).astype(np.uint8))


def rival(map_path: Path, output: Path, tolerance_px: float, *, coverage: bool) -> None:
    with rasterio.open(map_path) as source:
        values, transform, crs = source.read(1), source.transform, source.crs
    traced = [(shape(s), v) for s, v in features.shapes(values, mask=values != NODATA, transform=transform)]
    polygons, ids = np.array([s for s, _ in traced], dtype=object), [int(v) for _, v in traced]
    tolerance = tolerance_px * transform.a
    polygons = shapely.coverage_simplify(polygons, tolerance) if coverage else shapely.simplify(polygons, tolerance)
    names = [LANDSCAPE_CLASSES[i].name for i in ids]
    geopandas.GeoDataFrame({"class_id": ids, "class_name": names}, geometry=polygons, crs=crs).to_file(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=4096, help="side of the class map, px")
    parser.add_argument("--tolerance", type=float, default=1.5, help="simplification, px")
    parser.add_argument("--speckle", type=float, default=0.0, help="share of pixels set to a random class")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        map_path = Path(folder, "map.tif")
        write_map(map_path, options.side, options.speckle)
        tolerance = Tolerance(options.tolerance, "px")
        ways: dict[str, Callable[[Path], object]] = {
            "geoseg vectorize": lambda path: vectorize(map_path, path, simplify=tolerance, overwrite=True),
            "shapes + simplify": lambda path: rival(map_path, path, options.tolerance, coverage=False),
            "shapes + coverage_simplify": lambda path: rival(map_path, path, options.tolerance, coverage=True),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        outputs = {name: Path(folder, f"{number}.gpkg") for number, name in enumerate(ways)}
        for _ in range(options.rounds):
            for name, run in ways.items():
                outputs[name].unlink(missing_ok=True)
                start = time.perf_counter()
                run(outputs[name])
                seconds[name].append(time.perf_counter() - start)
        print(f"class map of {options.side} × {options.side} px, tolerance {tolerance}, speckle {options.speckle:g}")
        for name, path in outputs.items():
            polygons = geopandas.read_file(path, layer=path.stem).geometry.to_numpy()
            median = statistics.median(seconds[name])
            ratio = statistics.median(
                t / ours for t, ours in zip(seconds[name], seconds["geoseg vectorize"], strict=True)
            )
            valid = "a valid coverage" if shapely.coverage_is_valid(polygons) else "not a valid coverage"
            print(
                f"{name:28} {median:7.2f} s  {options.side**2 / 1e6 / median:7.2f} Mpx/s  {ratio:5.2f} × our time  "
                f"{len(polygons)} polygons, {valid}"
            )


if __name__ == "__main__":
    main()
