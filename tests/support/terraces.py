"""Terraces of houses that touch, as imagery and as one polygon for each house, or as a class map with contact."""

from __future__ import annotations

from pathlib import Path

import geopandas
import numpy as np
import rasterio
from affine import Affine
from shapely.geometry import box

GSD_M = 0.5

HOUSES = {
    "row": [(-36, -11, -18, 11), (-18, -11, 0, 11), (0, -11, 14, 11), (14, -11, 36, 11)],
    "staggered": [(-36, -18, -16, 9), (-16, -9, 4, 17), (4, -18, 30, 8)],
    "annexe": [(-30, -15, 12, 15), (12, -15, 34, 2)],
    "three at a point": [(-30, -22, 30, 0), (-30, 0, -4, 20), (-4, 0, 30, 20)],
    "bond": [(-34, -20, -8, 0), (-8, -20, 34, 0), (-34, 0, 10, 20), (10, 0, 34, 20)],
    "four at a point": [(-26, -20, 0, 0), (0, -20, 28, 0), (-26, 0, 0, 22), (0, 0, 28, 22)],
}
"""Houses that touch: left, top, right and bottom of each around a common centre, px."""


def touching(values, owner, houses, x, y, degrees):
    """Paint houses as class 1, turned around (x, y), and their numbers into ``owner``."""
    angle = np.radians(degrees)
    rows, columns = np.mgrid[: values.shape[0], : values.shape[1]] + 0.5
    u = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)
    v = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
    for left, top, right, bottom in houses:
        inside = (u >= left) & (u < right) & (v >= top) & (v < bottom)
        owner[inside], values[inside] = owner.max() + 1, 1


def contact_of(owner):
    """Contact on either side of the borders between owners, (h, w) uint8."""
    contact = np.zeros(owner.shape, np.uint8)
    for numbers, found in ((owner, contact), (owner.T, contact.T)):
        meets = (numbers[1:] != numbers[:-1]) & (numbers[1:] > 0) & (numbers[:-1] > 0)
        found[1:][meets] = found[:-1][meets] = 254
    return contact


def rough_town(seed, size=100):
    """Houses of all directions that touch, each a little too large or too small, on ground of two classes."""
    rng = np.random.default_rng(seed)
    values, owner = np.zeros((size, size), np.uint8), np.zeros((size, size), np.int32)
    values[size // 2 :] = 2
    for _ in range(rng.integers(1, 4)):
        houses = np.array(HOUSES[rng.choice(list(HOUSES))]) * np.tile(rng.uniform(0.3, 0.9, 2), 2)
        houses = houses + rng.uniform(0, 3, houses.shape) * rng.integers(0, 2)
        x, y = rng.uniform(0.2 * size, 0.8 * size, 2)
        touching(values, owner, houses, x, y, rng.choice([0, 45, rng.uniform(0, 90)]))
    share = rng.choice([0, 0.05, 0.2])
    for axis, step in ((0, 1), (1, 1), (0, -1), (1, -1)):
        moved = rng.random(values.shape) < share
        values, owner = (np.where(moved, np.roll(part, step, axis), part) for part in (values, owner))
    return values, contact_of(np.where(values == 1, owner, 0))


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
