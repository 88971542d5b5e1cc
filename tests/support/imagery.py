"""Rasters of given pixels, and the contract of a model that takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio.crs import CRS

from geoseg.contract import Band, ClassEntry, Contract, DType, WindowSettings

RGB = ("red", "green", "blue")


def contract(
    *names: str, dtype: DType = "uint8", scale: float = 1 / 255, mean: float = 0.5, gsd_m: float | None = None
) -> Contract:
    return Contract(
        name="any",
        bands=tuple(Band(name=name, mean=mean, std=0.1) for name in names or RGB),
        dtype=dtype,
        scale=scale,
        nodata="file",
        gsd_m=gsd_m,
        classes=(ClassEntry(name="a", color="#112233"), ClassEntry(name="b", color="#445566")),
        window=WindowSettings(size=64, overlap=32),
    )


def write(path: Path, pixels: npt.NDArray[Any], *, descriptions: tuple[str, ...] = (), **options: Any) -> Path:
    bands, height, width = pixels.shape
    options = {"crs": CRS.from_epsg(32633), "transform": Affine(0.5, 0, 5e5, 0, -0.5, 5e6), **options}
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=bands, dtype=pixels.dtype, **options
    ) as file:
        file.write(pixels)
        for band, text in enumerate(descriptions, start=1):
            file.set_band_description(band, text)
    return path
