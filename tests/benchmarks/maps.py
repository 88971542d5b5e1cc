"""Class maps for the benchmarks of vectorization: eight classes, smooth as a good network leaves them, or noisy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.windows import Window
from scipy import ndimage

from geoseg.classes import ClassTable

CLASSES = ClassTable.from_names(
    ["water", "road", "building", "tree", "grass", "field", "soil", "rail"],
    ["#3b7dd8", "#808080", "#d1495b", "#1b7f3b", "#8fce5a", "#f2d16b", "#b08968", "#5f4b8b"],
)
TILE = 4096
_CELL = 32
_NOISE, _BLUR = 0.4, 2.0


def class_tile(side: int, *, noisy: bool, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Eight classes, (side, side) uint8: the largest of eight random fields that vary over 32 px.

    Noisy maps have a second random field of two pixels added: single pixels and ragged borders everywhere, some ten
    times as many polygons.
    """
    rng = np.random.default_rng(seed)
    best = np.full((side, side), -np.inf, dtype=np.float32)
    classes = np.zeros((side, side), dtype=np.uint8)
    for k in range(len(CLASSES)):
        coarse = rng.standard_normal((side // _CELL + 4,) * 2).astype(np.float32)
        field = ndimage.zoom(coarse, _CELL, order=3)[_CELL : _CELL + side, _CELL : _CELL + side]
        field /= field.std()
        if noisy:
            fine = ndimage.gaussian_filter(rng.standard_normal((side, side)).astype(np.float32), _BLUR)
            field += _NOISE * fine / fine.std()
        larger = field > best
        best[larger] = field[larger]
        classes[larger] = k
    return classes


def write_class_map(path: Path, height: int, width: int, *, noisy: bool) -> None:
    """A class map of any size as a tiled GeoTIFF: one tile of 4,096², mirrored from tile to tile, so without seams."""
    tile = class_tile(min(TILE, max(height, width)), noisy=noisy)
    side = len(tile)
    profile = {
        "driver": "GTiff",
        "height": height,
        "width": width,
        "count": 1,
        "dtype": "uint8",
        "nodata": 255,
        "crs": "EPSG:32633",
        "transform": rasterio.Affine(0.3, 0, 400000, 0, -0.3, 5600000),
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "compress": "zstd",
        "bigtiff": "if_safer",
    }
    with rasterio.open(path, "w", **profile) as file:
        file.update_tags(**{f"class_{c.id}": c.name for c in CLASSES})
        file.write_colormap(1, {c.id: (*c.color, 255) for c in CLASSES})
        for row in range(0, height, side):
            for col in range(0, width, side):
                part = tile[:: -1 if row // side % 2 else 1, :: -1 if col // side % 2 else 1]
                part = part[: height - row, : width - col]
                file.write(part, 1, window=Window(col, row, part.shape[1], part.shape[0]))
