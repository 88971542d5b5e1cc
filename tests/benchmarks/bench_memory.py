"""Peak memory of `geoseg predict` on a square scene and on one four times as high, each in a process of its own.

    python tests/benchmarks/bench_memory.py --model landscape-tiny

The peak is the resident set that the operating system reports of the process, Python, torch and the network included.
A run on a scene of one window shows what these take; the rest is what the plan's figure is about. GDAL's block cache
(5 % of the machine's memory by default, GDAL_CACHEMAX changes it) counts too and is not in the plan. Linux and macOS.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import rasterio
from rasterio.windows import Window as RasterWindow

from geoseg.contract import find_model, load_contract
from geoseg.landscape import Landscape
from geoseg.windows import Window

ROOT = Path(__file__).parents[2]
BLOCK = 512


def write_tiled(path: Path, landscape: Landscape, height: int, width: int) -> None:
    """A scene of any size that repeats one small landscape: cheap to make, streamed."""
    pixels, _ = landscape.read(Window(0, 0, landscape.height, landscape.width))
    cols = np.arange(width) % landscape.width
    layout = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "deflate", "zlevel": 1}
    grid = landscape.grid
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=height,
        width=width,
        count=len(pixels),
        dtype=pixels.dtype,
        crs=grid.crs,
        transform=grid.transform,
        photometric="minisblack",
        alpha="no",
        **layout,
    ) as file:
        for row in range(0, height, BLOCK):
            rows = np.arange(row, min(row + BLOCK, height)) % landscape.height
            file.write(pixels[:, rows[:, None], cols], window=RasterWindow(0, row, width, len(rows)))


def peak_mib(arguments: list[str]) -> tuple[float, str]:
    """Peak resident set, MiB, of `geoseg` with these arguments, and what it printed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "geoseg", "--quiet", *arguments]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, env=environment)
        # wait4 tells of this child alone; RUSAGE_CHILDREN would give the largest of all so far.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if process.returncode:
        sys.exit(f"{' '.join(command)} exited with {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return usage.ru_maxrss * unit / 2**20, text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="landscape-tiny", help="model folder, or the name of a shipped model")
    parser.add_argument("--width", type=int, default=4000, help="width of both scenes, px")
    parser.add_argument("--heights", type=int, nargs="+", default=[4000, 16000], help="heights, px")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()

    contract = load_contract(find_model(options.model))
    bands = tuple(band.name for band in contract.bands)
    small = Landscape(1000, 1000, bands=bands, dtype=contract.dtype, gsd_m=contract.gsd_m or 0.5)
    size = contract.window.size
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        scene, output = Path(folder, "scene.tif"), Path(folder, "map.tif")
        for height, width in [(size, size), *((h, options.width) for h in options.heights)]:
            write_tiled(scene, small, height, width)
            arguments = ["predict", str(scene), "-m", options.model, "-o", str(output), "--device", options.device]
            peak, text = peak_mib([*arguments, "--overwrite", "--ignore-gsd"])
            peaks.append(peak)
            plan = re.search(r"(\d+) MiB beside the network", text)
            planned = f"{plan[1]} MiB" if plan else "not told"
            print(
                f"{height:6d} × {width} px: peak {peak:6.0f} MiB, {peak - peaks[0]:+6.0f} MiB against one window, "
                f"plan {planned}",
                flush=True,
            )
    heights = " and ".join(str(h) for h in (options.heights[0], options.heights[-1]))
    print(f"peak of the highest over that of the lowest, heights {heights}: {peaks[-1] / peaks[1]:.3f}")


if __name__ == "__main__":
    main()
