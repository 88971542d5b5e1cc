"""Polygons from class maps against the usual way, interleaved in one process; ratios of times.

    python tests/benchmarks/bench_vectorize.py --side 4096
    python tests/benchmarks/bench_vectorize.py --map landcover.tif

Three things are timed, each in every round, ours and the rivals' in turn:

- raw polygons in memory, nothing simplified: rows of the map → shapely polygons. Rivals: rasterio.features.shapes with
  shapely.geometry.shape, and xarray-spatial's polygonize where it is installed (gdal_polygonize is the same GDAL
  function as rasterio's, behind a file).
- the chain, file to file: class GeoTIFF → polygons simplified by 1.5 px → GeoPackage. Rival: rasterio.features.shapes,
  shapely.coverage_simplify, pyogrio. Ours measures true areas and perimeters and writes a style meanwhile; the rival
  does not. Whether the result is a valid coverage is printed for both.
- whole commands: `geoseg vectorize` and a script with the same rival (`usual_vectorize.py`), each a process of its own.

Kernels are compiled before the first round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import geopandas
import numpy as np
import rasterio
import shapely
import usual_vectorize
from maps import write_class_map

from geoseg.class_map import ClassMapReader
from geoseg.classes import NODATA
from geoseg.polygons import PolygonRules, Tolerance, polygonize_rows
from geoseg.programs.vectorize import vectorize
from geoseg.runtime.ahead import ahead

try:
    import xarray
    from xrspatial.experimental.polygonize import polygonize as xrspatial_polygonize
except ImportError:
    xrspatial_polygonize = None

ROOT = Path(__file__).parents[2]


def ours_raw(path: Path) -> int:
    with ClassMapReader(path) as reader:
        batches = polygonize_rows(reader.rows(512), reader.grid, reader.classes)
        return sum(len(batch.geometries()) for batch in ahead(batches))


def shapes_raw(path: Path) -> int:
    return len(usual_vectorize.shapes(path)[0])


def xrspatial_raw(path: Path) -> int:
    with rasterio.open(path) as source:
        values = source.read(1)
    ids, rings = xrspatial_polygonize(xarray.DataArray(values.astype(np.int32)), connectivity=4)
    return sum(shapely.Polygon(r[0], r[1:]) is not None for r, i in zip(rings, ids, strict=True) if i != NODATA)


def command(*words: object) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    subprocess.run([sys.executable, *map(str, words)], check=True, capture_output=True, env=environment)


def compare(title: str, ways: dict[str, Callable[[], object]], rounds: int, mpx: float) -> None:
    """Time the ways in turn; print medians and, for the rivals, the median of the ratios to the first way.

    Beside the time on the clock stands that of the processors, of child processes too: it says more on a busy machine.
    """
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            start, processor = time.perf_counter(), sum(os.times()[:4])
            run()
            seconds[name].append((time.perf_counter() - start, sum(os.times()[:4]) - processor))
    ours = next(iter(seconds.values()))
    print(title)
    for name, times in seconds.items():
        clock, cpu = (statistics.median(t[i] for t in times) for i in (0, 1))
        ratio, cpu_ratio = (statistics.median(t[i] / o[i] for t, o in zip(times, ours, strict=True)) for i in (0, 1))
        print(
            f"  {name:38} {clock:7.2f} s {mpx / clock:7.2f} Mpx/s {ratio:6.1f} × our time; "
            f"processors {cpu:7.2f} s {cpu_ratio:6.1f} ×",
            flush=True,
        )


def verdict(path: Path) -> str:
    """Number of polygons of a file, and whether they are valid polygons and a valid coverage."""
    polygons = geopandas.read_file(path, layer=path.stem).geometry.to_numpy()
    valid = "all valid" if shapely.is_valid(polygons).all() else f"{(~shapely.is_valid(polygons)).sum()} invalid"
    coverage = "a valid coverage" if shapely.coverage_is_valid(polygons) else "not a valid coverage"
    return f"{len(polygons)} polygons, {valid}, {coverage}"


def run(path: Path, folder: Path, *, name: str, rounds: int, tolerance_px: float, check: bool) -> None:
    with rasterio.open(path) as source:
        height, width = source.shape
    mpx = height * width / 1e6
    raw: dict[str, Callable[[], object]] = {
        "geoseg": lambda: ours_raw(path),
        "rasterio.features.shapes + shapely": lambda: shapes_raw(path),
    }
    if xrspatial_polygonize is not None:
        raw["xarray-spatial + shapely"] = lambda: xrspatial_raw(path)
    compare(f"{name}, {height} × {width} px: raw polygons", raw, rounds, mpx)

    rules = PolygonRules(simplify=Tolerance(tolerance_px, "px"))
    our_file, their_file = folder / "ours.gpkg", folder / "theirs.gpkg"

    chain: dict[str, Callable[[], object]] = {
        "geoseg vectorize": lambda: vectorize(path, our_file, rules=rules, overwrite=True),
        "shapes + coverage_simplify + pyogrio": lambda: usual_vectorize.vectorize(path, their_file, tolerance_px),
    }
    compare(f"{name}: class map to GeoPackage, simplified by {tolerance_px:g} px", chain, rounds, mpx)
    simplify = ["--simplify", f"{tolerance_px:g}px"]
    commands: dict[str, Callable[[], object]] = {
        "geoseg vectorize": lambda: command(
            "-m", "geoseg", "vectorize", path, "-o", our_file, "--overwrite", *simplify
        ),
        "script": lambda: command(usual_vectorize.__file__, path, their_file, tolerance_px),
    }
    compare(f"{name}: the same as whole commands", commands, rounds, mpx)
    if check:
        print(f"  ours:   {verdict(our_file)}")
        print(f"  theirs: {verdict(their_file)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=4096, help="side of the generated maps, px")
    parser.add_argument("--map", type=Path, help="time this class map instead")
    parser.add_argument("--tolerance", type=float, default=1.5, help="simplification, px")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-check", action="store_true", help="skip reading the results back")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        maps = {"the map": options.map} if options.map else {}
        if not maps:
            for name in "smooth", "noisy":
                maps[name] = folder / f"{name}.tif"
                write_class_map(maps[name], options.side, options.side, noisy=name == "noisy")
        warm = folder / "warm.tif"
        write_class_map(warm, 256, 256, noisy=True)
        ours_raw(warm)
        vectorize(warm, folder / "warm.gpkg")
        if xrspatial_polygonize is not None:
            xrspatial_raw(warm)
        for name, path in maps.items():
            run(
                path,
                folder,
                name=name,
                rounds=options.rounds,
                tolerance_px=options.tolerance,
                check=not options.no_check,
            )


if __name__ == "__main__":
    main()
