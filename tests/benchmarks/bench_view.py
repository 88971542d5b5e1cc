"""The viewer: time from the command to the first picture in a browser, and of the tiles of a million polygons.

    python tests/benchmarks/bench_view.py --folder /tmp/view

Needs Chromium on PATH; its own start is not counted. The files are made in the folder unless they are there: imagery of
16,384² and 30,000² px with overviews, 30,000² px in strips without, a class map of 16,384² px, a million polygons.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import geopandas
import numpy as np
import rasterio
import shapely
from maps import class_tile, write_class_map
from rasterio.enums import Resampling
from rasterio.windows import Window

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from geoseg.view.place import tiles_over  # noqa: E402
from geoseg.view.program import open_session  # noqa: E402
from support.browser import BROWSER, Browser  # noqa: E402

PLACE = {"crs": "EPSG:32633", "transform": rasterio.Affine(0.3, 0, 400000, 0, -0.3, 5600000)}
POLYGONS = 1_000_000
DRAWN = (
    "typeof maps !== 'undefined' && maps.length > 0 && maps[0].isReady && maps[0].loaded() && maps[0].areTilesLoaded()"
)


def write_image(path: Path, side: int, *, striped: bool) -> None:
    """Imagery of three bands: one piece again and again, JPEG in tiles with overviews, or deflated strips without."""
    piece = class_tile(2048, noisy=True)
    colors = np.random.default_rng(0).integers(0, 256, (3, 8)).astype(np.uint8)
    layout = (
        {"compress": "deflate", "zlevel": 1} if striped else {"tiled": True, "compress": "jpeg", "photometric": "ycbcr"}
    )
    if not striped:
        layout |= {"blockxsize": 512, "blockysize": 512}
    profile = {"driver": "GTiff", "height": side, "width": side, "count": 3, "dtype": "uint8", "interleave": "pixel"}
    pixels = np.tile(colors[:, piece], (1, 1, -(-side // len(piece))))[..., :side]
    with rasterio.open(path, "w", **profile, **PLACE, **layout, bigtiff="yes") as file:
        for row in range(0, side, len(piece)):
            height = min(len(piece), side - row)
            file.write(pixels[:, :height], window=Window(0, row, side, height))
    if not striped:
        with rasterio.open(path, "r+") as file:
            file.build_overviews([2**i for i in range(1, 8)], Resampling.nearest)


def write_polygons(path: Path, count: int) -> None:
    """Ragged disks of 24 corners, 20 m apart."""
    columns = round(count**0.5)
    x, y = np.meshgrid(np.arange(columns) * 20.0 + 400000, 5600000 - np.arange(count // columns) * 20.0)
    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    reach = np.random.default_rng(0).uniform(4, 9, (x.size, 24))
    rings = np.stack([x.reshape(-1, 1) + reach * np.cos(turn), y.reshape(-1, 1) + reach * np.sin(turn)], axis=-1)
    names = np.array(["building", "tree", "pond"])[np.arange(x.size) % 3]
    shapes = shapely.polygons(np.concatenate([rings, rings[:, :1]], axis=1))
    frame = geopandas.GeoDataFrame(
        {"class_name": names, "area_m2": shapely.area(shapes)}, geometry=shapes, crs="EPSG:32633"
    )
    frame.to_file(path, layer="polygons", use_arrow=True)


def first_picture(path: Path, browser: Browser) -> tuple[float, str]:
    """Seconds from the command until the page has drawn all that it asked for, and what it says."""
    browser.open("about:blank")
    start = time.monotonic()
    command = [sys.executable, "-m", "geoseg", "view", "--no-browser", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        browser.open(process.stdout.readline().strip())
        browser.wait(DRAWN, 120)
        seconds = time.monotonic() - start
        notice = str(browser.run("document.getElementById('notices').innerText"))
        process.terminate()
    return seconds, notice


def main() -> None:
    """Print the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    folder, rounds = (options := parser.parse_args()).folder, options.rounds
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    folder.mkdir(parents=True, exist_ok=True)
    makers = {
        "cog16k.tif": lambda path: write_image(path, 16384, striped=False),
        "cog30k.tif": lambda path: write_image(path, 30000, striped=False),
        "striped30k.tif": lambda path: write_image(path, 30000, striped=True),
        "map16k.tif": lambda path: write_class_map(path, 16384, 16384, noisy=False),
        "polygons.gpkg": lambda path: write_polygons(path, POLYGONS),
    }
    for name, make in makers.items():
        if not (folder / name).exists():
            make(folder / name)
            if name == "map16k.tif":  # as geoseg predict writes it
                with rasterio.open(folder / name, "r+") as file:
                    file.build_overviews([2**i for i in range(1, 7)], Resampling.mode)
    assert BROWSER is not None, "no chromium or google-chrome on PATH"
    browser = Browser(folder / "profile")
    for name in ("cog16k.tif", "cog30k.tif", "striped30k.tif", "map16k.tif"):
        found = [first_picture(folder / name, browser) for _ in range(rounds)]
        times, notice = [seconds for seconds, _ in found], found[0][1]
        seconds = f"{statistics.median(times):.1f} s ({min(times):.1f} … {max(times):.1f})"
        print(f"{name}: first picture after {seconds} {notice}")
    browser.close()

    session = open_session([folder / "polygons.gpkg"], progress=True)
    start = time.monotonic()
    session.work()
    print(f"{POLYGONS} polygons: read once in {time.monotonic() - start:.0f} s")
    vector = session.layers[0].vector
    assert vector is not None and vector.bounds is not None and session.layers[0].error is None
    rng = random.Random(0)
    for z in range(vector.full_zoom - 7, vector.full_zoom + 4):
        every = tiles_over(vector.bounds, z)
        times = []
        for tile in rng.sample(every, min(len(every), 24)):
            start = time.monotonic()
            session.tile(0, *tile)
            times.append(1000 * (time.monotonic() - start))
        shown = "all" if z >= vector.full_zoom else "the largest"
        print(f"zoom {z}, {shown}: {statistics.median(times):.0f} ms a tile, at most {max(times):.0f}")


if __name__ == "__main__":
    main()
