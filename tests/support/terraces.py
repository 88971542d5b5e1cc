"""Terraces of houses that touch, as imagery and as one polygon for each house."""

from __future__ import annotations

from pathlib import Path

import geopandas
import numpy as np
import rasterio
from affine import Affine
from shapely.geometry import box

GSD_M = 0.5


def write_terraces(folder: Path, name: str, *, size: int = 256, seed: int = 0) -> None:
    """``name.tif`` and ``name.gpkg``: rows of houses on noise, the walls between them dark."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(70, 110, (3, size, size))
    transform = Affine(GSD_M, 0, 500_000 + 2000 * seed, 0, -GSD_M, 5_000_000)
    houses = []
    for top in range(10, size - 40, 48):
        left, depth = int(rng.integers(4, 24)), int(rng.integers(22, 30))
        while left < size - 30:
            if rng.random() < 0.25:
                left += 16
            width = int(rng.integers(16, 26))
            right = min(left + width, size - 4)
            roof = pixels[:, top : top + depth, left:right]
            roof[:] = np.array([200, 120, 100])[:, None, None] + rng.integers(-15, 15, roof.shape)
            roof[:, :, 0] = roof[:, :, -1] = 30
            (x, y), (a, b) = transform @ (left, top), transform @ (right, top + depth)
            houses.append(box(x, b, a, y))
            left = right
    frame = geopandas.GeoDataFrame(geometry=houses, crs="EPSG:32633")
    frame.to_file(folder / f"{name}.gpkg")
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": size, "width": size}
    with rasterio.open(
        folder / f"{name}.tif", "w", **profile, crs="EPSG:32633", transform=transform, tiled=True
    ) as out:
        out.write(pixels.astype(np.uint8))
