"""Peak memory of `geoseg vectorize` on maps of growing height, each in a process of its own.

    python tests/benchmarks/bench_vectorize_memory.py --width 16384 --heights 16384 131072

The maps are one tile of eight classes, mirrored from tile to tile. The peak is the resident set that the operating
system reports of the process, Python and libraries included; a run on a map of 256 × 256 px shows what these take.
Linux and macOS.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from maps import write_class_map

ROOT = Path(__file__).parents[2]


def run(map_path: Path, output: Path) -> tuple[float, float]:
    """Peak resident set, MiB, and seconds of ``geoseg vectorize``."""
    program = (
        "import resource, sys; from geoseg.cli import main\n"
        "try: main()\n"
        "finally: print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, "vectorize", str(map_path), "-o", str(output), "--overwrite"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(done.stderr)
    found = re.search(r"peak (\d+)", done.stderr)
    assert found is not None
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return int(found[1]) / unit, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=16384)
    parser.add_argument("--heights", type=int, nargs="+", default=[16384, 131072])
    parser.add_argument("--format", default="gpkg", help="suffix of the output")
    parser.add_argument("--noisy", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        map_path, output = Path(folder, "map.tif"), Path(folder, f"map.{options.format}")
        for height, width in [(256, 256), *((height, options.width) for height in options.heights)]:
            write_class_map(map_path, height, width, noisy=options.noisy)
            peak, seconds = run(map_path, output)
            mpx = height * width / 1e6
            size = output.stat().st_size / 2**20
            print(
                f"{width} wide × {height} high: peak {peak:.0f} MiB, {seconds:.1f} s, {mpx / seconds:.1f} Mpx/s, "
                f"{size:.0f} MiB of {options.format}",
                flush=True,
            )


if __name__ == "__main__":
    main()
