"""Small scenes of any CRS, dtype, number of bands, kind of nodata, size and orientation."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning

NodataKind = Literal["none", "value", "mask", "alpha", "nan"]
Orientation = Literal["north", "south", "rotated"]

# CRS: origin (left, top) and pixel size in its units, about 0.5 m on the ground.
PLACES: dict[str | None, tuple[float, float, float]] = {
    "EPSG:32633": (500_000.0, 5_200_000.0, 0.5),
    "EPSG:3857": (1_669_792.0, 5_942_074.0, 0.73),
    "EPSG:4326": (15.0, 47.0, 5e-6),
    "EPSG:2263": (980_000.0, 200_000.0, 1.64),  # New York, US survey feet
    None: (0.0, 0.0, 1.0),
}


@dataclass(frozen=True)
class MadeScene:
    """A written scene and what is in it."""

    path: Path
    pixels: npt.NDArray[Any]  # (B, H, W), without the alpha band
    valid: npt.NDArray[np.bool_]  # (H, W)
    transform: Affine
    crs: str | None


MakeScene = Callable[..., MadeScene]
"""The fixture ``make_scene``."""


def place_transform(crs: str | None, orientation: Orientation) -> Affine:
    left, top, size = PLACES[crs]
    scale = {
        "north": Affine.scale(size, -size),
        "south": Affine.scale(size, size),
        "rotated": Affine.rotation(30) @ Affine.scale(size, -size),
    }[orientation]
    return Affine.identity() if crs is None else Affine.translation(left, top) @ scale


def write_scene(
    path: Path,
    *,
    crs: str | None = "EPSG:32633",
    dtype: str = "uint8",
    bands: int = 3,
    nodata: NodataKind = "none",
    size: tuple[int, int] = (96, 80),
    orientation: Orientation = "north",
    shift: tuple[float, float] = (0, 0),
    seed: int = 0,
    **creation: Any,
) -> MadeScene:
    """Write a GeoTIFF of plausible ground: smooth shades, a few rectangles, noise; never the nodata value by accident.

    The invalid part is a corner triangle and one lone pixel. ``shift`` moves the origin by (rows, columns) px.
    """
    height, width = size
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[0:height, 0:width]
    ground = 0.5 + 0.2 * np.sin(rows / 17 + seed) * np.cos(cols / 23)
    for _ in range(6):
        r, c, h, w = rng.integers(0, (height, width, height // 2 + 1, width // 2 + 1))
        ground[r : r + h, c : c + w] = rng.uniform(0.2, 0.8)
    shades = np.clip(ground + 0.05 * rng.standard_normal((bands, height, width)), 0.01, 0.99)
    kind = np.dtype(dtype).kind
    pixels = shades.astype(dtype) if kind == "f" else (shades * np.iinfo(dtype).max).astype(dtype)
    valid = np.ones(size, dtype=bool)
    if nodata != "none":
        valid = rows + cols >= min(height, width) // 2
        valid[height // 2, width // 2] = False
    value = {"value": 0, "nan": np.nan}.get(nodata)
    if nodata in ("value", "nan"):
        pixels[:, ~valid] = value
    if nodata == "nan":
        assert kind == "f", "only float pixels can be NaN"
    transform = place_transform(crs, orientation) @ Affine.translation(shift[1], shift[0])
    creation = {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate", **creation}
    count = bands + (nodata == "alpha")
    with (
        warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning),
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path,
            "w",
            driver="GTiff",
            height=height,
            width=width,
            count=count,
            dtype=dtype,
            crs=crs,
            transform=transform,
            nodata=value if nodata == "value" else None,
            **creation,
        ) as file,
    ):
        file.write(pixels, list(range(1, bands + 1)))
        if nodata == "mask":
            file.write_mask(valid)
        if nodata == "alpha":
            top = 1 if kind == "f" else np.iinfo(dtype).max
            file.write((valid * top).astype(dtype), count)
            file.colorinterp = [*file.colorinterp[:bands], ColorInterp.alpha]
    return MadeScene(path, pixels, valid, transform, crs)
