"""A factory of small scenes (CRS × dtype × bands × nodata kind × size × orientation), the options of a small network,
and the way to real imagery.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from hypothesis import HealthCheck, settings
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning

# Machines that run tests are busy: how long an example takes says nothing about the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

NodataKind = Literal["none", "value", "mask", "alpha", "nan"]
Orientation = Literal["north", "south", "rotated"]


LOG_LEVELS = {logger: logger.level for logger in (logging.getLogger(), logging.getLogger("geoseg"))}
"""As they are before any test."""


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Counts that geoseg keeps between runs lie in a folder of the tests', for the programs they start too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def unchanged_logging() -> Iterator[None]:
    """The command line sets up logging for the whole process; other tests must not see it."""
    _reset_logging()  # fixtures of a whole file run the command line, too
    yield
    _reset_logging()
    logging.captureWarnings(False)


def _reset_logging() -> None:
    root = logging.getLogger()
    # pytest's own handlers are subclasses.
    root.handlers[:] = [handler for handler in root.handlers if type(handler) is not logging.StreamHandler]
    for logger, level in LOG_LEVELS.items():
        logger.setLevel(level)


# CRS: origin (left, top) and pixel size in its units, about 0.5 m on the ground.
PLACES: dict[str | None, tuple[float, float, float]] = {
    "EPSG:32633": (500_000.0, 5_200_000.0, 0.5),
    "EPSG:3857": (1_669_792.0, 5_942_074.0, 0.73),
    "EPSG:4326": (15.0, 47.0, 5e-6),
    "EPSG:2263": (980_000.0, 200_000.0, 1.64),  # New York, US survey feet
    None: (0.0, 0.0, 1.0),
}

# Options of a SegNeXt that runs in milliseconds.
TINY: dict[str, Any] = {
    "decoder_channels": 32,
    "nmf_rank": 4,
    "norm_groups": 8,
    "embed_dims": (8, 16, 24, 32),
    "depths": (1, 1, 1, 1),
}

# The same, wide enough for OpenVINO in bfloat16.
WIDE: dict[str, Any] = {
    "decoder_channels": 32,
    "nmf_rank": 16,
    "norm_groups": 8,
    "embed_dims": (32, 32, 48, 64),
    "depths": (1, 1, 1, 1),
}


@dataclass(frozen=True)
class MadeScene:
    """A written scene and what is in it."""

    path: Path
    pixels: npt.NDArray[Any]  # (B, H, W), without the alpha band
    valid: npt.NDArray[np.bool_]  # (H, W)
    transform: Affine
    crs: str | None


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


@pytest.fixture
def make_scene(tmp_path: Path) -> Callable[..., MadeScene]:
    """`write_scene` into the test's own folder, under a name of its own or the given ``name``."""
    made = iter(range(1000))

    def make(*, name: str | None = None, **options: Any) -> MadeScene:
        return write_scene(tmp_path / (name or f"scene{next(made)}.tif"), **options)

    return make


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real imagery; tests that take it carry the marker ``real_data``."""
    folder = Path(os.environ.get("GEOSEG_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not (folder / "hot_buildings").is_dir():
        pytest.skip(f"no real imagery in {folder}: set GEOSEG_DATA to its folder")
    return folder
