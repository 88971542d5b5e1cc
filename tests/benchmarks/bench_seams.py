"""What stitching costs in quality: pixels that differ between windows put together and the whole scene in one window.

    python tests/benchmarks/bench_seams.py

Crops of real imagery small enough for one forward are predicted whole, then in windows that overlap by 0, 1/8, 1/4 and
1/2, blended with the sine taper, and cropped, where each pixel is from the window whose centre is nearest. Prints a
table in Markdown; IoU is of buildings against the mapped footprints. Without the imagery it says so and ends.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.windows import Window

from geoseg.prediction.report import PredictReport
from geoseg.programs.predict import predict

Ids = npt.NDArray[np.uint8]


def crop_scene(source: Path, target: Path, height: int, width: int) -> None:
    """The middle of a scene as a file of its own."""
    with rasterio.open(source) as src:
        window = Window((src.width - width) // 2, (src.height - height) // 2, width, height)
        profile = {"height": height, "width": width, "crs": src.crs, "transform": src.window_transform(window)}
        with rasterio.open(target, "w", driver="GTiff", count=src.count, dtype=src.dtypes[0], **profile) as file:
            file.write(src.read(window=window))


def predicted(scene: Path, model: str, *, size: int, overlap: int, blend: str) -> tuple[Ids, PredictReport]:
    output = scene.with_name("map.tif")
    report = predict(
        scene,
        model,
        output,
        size=size,
        overlap=overlap,
        blend=blend,
        band_rows=512,
        overwrite=True,
        ignore_gsd=True,
        device="cpu",
    )
    with rasterio.open(output) as file:
        return file.read(1), report


def building_iou(ids: Ids, labels: Ids) -> float:
    """Of class 1 where there are labels."""
    known = labels != 255
    both = ((ids == 1) & (labels == 1) & known).sum()
    return float(both / (((ids == 1) | (labels == 1)) & known).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="buildings-tiny", help="model folder, or the name of a shipped model")
    parser.add_argument("--size", type=int, default=512, help="side of a window, px")
    parser.add_argument("--height", type=int, default=1024, help="height of the crops, px")
    parser.add_argument("--width", type=int, default=2048, help="width of the crops, px")
    options = parser.parse_args()
    data = Path(os.environ.get("GEOSEG_DATA") or Path(__file__).parents[3] / "shared" / "data")
    scenes = sorted((data / "hot_buildings" / "val" / "images").glob("*.tif"))
    if not scenes:
        print(f"no imagery in {data}: set GEOSEG_DATA to its folder")
        return
    size = options.size
    print("| scene | blend | overlap | windows | pixels that differ | windows differ along borders | elsewhere | IoU |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for source in scenes:
            scene = Path(folder, source.name)
            crop_scene(source, scene, options.height, options.width)
            mask = Path(folder, "mask.tif")
            crop_scene(source.parents[1] / "masks" / source.name, mask, options.height, options.width)
            with rasterio.open(mask) as file:
                labels = file.read(1)
            whole, report = predicted(
                scene, options.model, size=max(options.height, options.width), overlap=0, blend="sine"
            )
            assert report.plan.windows == 1
            print(f"| {source.stem} | whole | | 1 | | | | {building_iou(whole, labels):.4f} |")
            for blend in ("sine", "crop"):
                for overlap in (0, size // 8, size // 4, size // 2):
                    values, report = predicted(scene, options.model, size=size, overlap=overlap, blend=blend)
                    seams = report.seams
                    score = (
                        f"{100 * seams.border_share:.2f} % | {100 * seams.inside_share:.2f} %"
                        if seams.border + seams.inside
                        else "– | –"
                    )
                    print(
                        f"| {source.stem} | {blend} | {overlap} px | {report.plan.windows} "
                        f"| {100 * (values != whole).mean():.2f} % | {score} | {building_iou(values, labels):.4f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
