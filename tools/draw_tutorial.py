"""Draw the pictures of README and tutorial from the files that ``geoseg demo`` leaves.

geoseg demo && python tools/draw_tutorial.py geoseg-demo docs/img
"""

from __future__ import annotations

import argparse
from pathlib import Path

import geopandas
import matplotlib
import numpy as np
import rasterio
from PIL import Image
from rasterio.plot import plotting_extent
from rasterio.windows import Window

matplotlib.use("agg")
import matplotlib.pyplot as plt

CLOSE_UP = Window(380, 560, 200, 200)


def main() -> None:
    """Shrink the demo's overlay, and draw a part of imagery, class map and polygons side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()

    overlay = Image.open(options.demo / "overlay.png").convert("RGB")
    overlay.thumbnail((1600, 1600))
    overlay.save(options.folder / "demo.jpg", quality=82, optimize=True)

    with rasterio.open(options.demo / "scene.tif") as scene:
        pixels = np.moveaxis(scene.read((1, 2, 3), window=CLOSE_UP), 0, -1)
        extent = plotting_extent(pixels[..., 0], scene.window_transform(CLOSE_UP))
    with rasterio.open(options.demo / "landcover.tif") as class_map:
        colors = class_map.colormap(1)
        lookup = np.array([colors.get(i, (0, 0, 0, 0))[:3] for i in range(256)], np.uint8)
        classes = lookup[class_map.read(1, window=CLOSE_UP)]
    left, right, bottom, top = extent
    polygons = geopandas.read_file(options.demo / "landcover.gpkg", layer="landcover", bbox=(left, bottom, right, top))
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.2), dpi=110)
    for axis, title in zip(axes, ("imagery", "class map", "polygons"), strict=True):
        axis.set(title=title, xticks=[], yticks=[], xlim=(left, right), ylim=(bottom, top), xlabel="", ylabel="")
    axes[0].imshow(pixels, extent=extent)
    axes[1].imshow(classes, extent=extent, interpolation="nearest")
    axes[2].imshow(pixels, extent=extent)
    polygons.plot(ax=axes[2], color=lookup[polygons["class_id"]] / 255, edgecolor="black", linewidth=0.6, alpha=0.6)
    axes[2].set(xlim=(left, right), ylim=(bottom, top), xlabel="", ylabel="")
    figure.tight_layout()
    figure.savefig(options.folder / "tutorial-close-up.jpg", pil_kwargs={"quality": 85})


if __name__ == "__main__":
    main()
