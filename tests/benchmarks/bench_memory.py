"""Peak memory of `geoseg predict` on scenes of one width and growing height, each in a process of its own.

    python tests/benchmarks/bench_memory.py

The scenes are VRTs that repeat one small scene: generated, or with ``--scene`` a real one. The peak is the resident set
that the operating system reports of the process, Python, torch and the network included. A run on a scene of one window
shows what these take; the rest is what the plan's figure is about. Linux and macOS.

``--model small`` is a network that takes milliseconds, for sizes at which a real one takes hours: what lies beside the
network is the same.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import rasterio

from geoseg.contract import Band, ClassEntry, Contract, WindowSettings, find_model, load_contract
from geoseg.landscape import Landscape, write_landscape

ROOT = Path(__file__).parents[2]


def write_repeated(path: Path, source: Path, height: int, width: int) -> None:
    """A VRT of any size that repeats a raster."""
    with rasterio.open(source) as file:
        rows, cols, bands = file.height, file.width, file.count
        kind = {"uint8": "Byte", "uint16": "UInt16", "int16": "Int16", "float32": "Float32"}[file.dtypes[0]]
        crs, geo = file.crs.to_wkt() if file.crs else "", ", ".join(str(v) for v in file.transform.to_gdal())
    parts = [
        f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}"><SRS>{crs}</SRS><GeoTransform>{geo}</GeoTransform>'
    ]
    for band in range(1, bands + 1):
        parts.append(f'<VRTRasterBand dataType="{kind}" band="{band}">')
        for row in range(0, height, rows):
            for col in range(0, width, cols):
                h, w = min(rows, height - row), min(cols, width - col)
                parts.append(
                    f"<SimpleSource><SourceFilename>{source}</SourceFilename><SourceBand>{band}</SourceBand>"
                    f'<SourceProperties RasterXSize="{cols}" RasterYSize="{rows}" DataType="{kind}" '
                    'BlockXSize="512" BlockYSize="512"/>'
                    f'<SrcRect xOff="0" yOff="0" xSize="{w}" ySize="{h}"/>'
                    f'<DstRect xOff="{col}" yOff="{row}" xSize="{w}" ySize="{h}"/></SimpleSource>'
                )
        parts.append("</VRTRasterBand>")
    path.write_text("".join([*parts, "</VRTDataset>"]), encoding="utf-8")


def make_small(folder: Path, classes: int, bands: int) -> Path:
    """A SegNeXt that runs in milliseconds, with random weights."""
    import torch

    from geoseg.network.model_folder import build_network, save_model

    torch.manual_seed(0)
    options = {"decoder_channels": 32, "nmf_rank": 4, "norm_groups": 8, "embed_dims": (8, 16, 24, 32)}
    network = build_network(
        "segnext",
        "tu-mscan_tiny",
        encoder_weights=None,
        in_channels=bands,
        classes=classes,
        depths=(1, 1, 1, 1),
        **options,
    )
    torch.nn.init.normal_(network.segmentation_head.weight)
    contract = Contract(
        name="small",
        bands=tuple(Band(name=f"band {i}", mean=0.4, std=0.2) for i in range(bands)),
        dtype="uint8",
        scale=1 / 255,
        classes=tuple(ClassEntry(name=f"class {i}", color=f"#{7 * i % 256:02x}8040") for i in range(classes)),
        window=WindowSettings(size=512, overlap=128),
    )
    save_model(folder, network, contract)
    return folder


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
    parser.add_argument("--model", default="small", help="model folder, name of a shipped model, or small")
    parser.add_argument("--classes", type=int, default=6, help="classes of the small network")
    parser.add_argument("--scene", type=Path, help="raster to repeat; a generated one where it is not given")
    parser.add_argument("--width", type=int, default=8000, help="width of the scenes, px")
    parser.add_argument("--heights", type=int, nargs="+", default=[8000, 64000], help="heights, px")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("options", nargs="*", help="further options of geoseg predict, after --")
    options = parser.parse_args()

    peaks = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tile = options.scene.absolute() if options.scene else folder / "tile.tif"
        if options.model == "small":
            bands = 3
            if options.scene:
                with rasterio.open(tile) as file:
                    bands = file.count
            model = str(make_small(folder / "small", options.classes, bands))
        else:
            model = options.model
        contract = load_contract(find_model(model))
        if not options.scene:
            colors = ("red", "green", "blue") if options.model == "small" else tuple(b.name for b in contract.bands)
            gsd_m = contract.gsd_m or 0.5
            write_landscape(Landscape(1024, 1024, bands=colors, dtype=contract.dtype, gsd_m=gsd_m), tile)
        scene, output = folder / "scene.vrt", folder / "map.tif"
        size = contract.window.size
        for height, width in [(size, size), *((h, options.width) for h in options.heights)]:
            write_repeated(scene, tile, height, width)
            arguments = ["predict", str(scene), "-m", model, "-o", str(output), "--device", options.device]
            peak, text = peak_mib([*arguments, "--overwrite", "--ignore-gsd", *options.options])
            peaks.append(peak)
            plan = re.search(r"(\d+) MiB beside the network", text)
            pace = re.search(r"[\d.]+ Mpx/s", text)
            print(
                f"{height:6d} × {width} px: peak {peak:6.0f} MiB, {peak - peaks[0]:+6.0f} MiB against one window, "
                f"plan {plan[1] if plan else '?'} MiB, {pace[0] if pace else ''}",
                flush=True,
            )
    heights = " and ".join(str(h) for h in (options.heights[0], options.heights[-1]))
    print(f"peak of the highest over that of the lowest, heights {heights}: {peaks[-1] / peaks[1]:.3f}")


if __name__ == "__main__":
    main()
