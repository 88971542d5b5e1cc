"""Stream a landscape to files: scene and labels as tiled GeoTIFFs, truth as a GeoPackage."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import rasterio
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window as RasterWindow

from geoseg.classes import NODATA
from geoseg.files import atomic_output, check_output
from geoseg.landscape.features import LANDSCAPE_CLASSES
from geoseg.landscape.scenery import Landscape
from geoseg.windows import Window

Progress = Callable[[Iterable[Window]], Iterable[Window]]

_READ_BLOCKS = 4  # Blocks read together: fewer halos rendered twice, still little memory.
_TRUTH_PX = 4096  # Side of the pieces in which the truth of larger scenes is made and cut.
_INTERP = {"red": ColorInterp.red, "green": ColorInterp.green, "blue": ColorInterp.blue}


@dataclass(frozen=True, slots=True)
class LandscapeFiles:
    """Where a written landscape lies; labels and truth are None where they were not asked for."""

    scene: Path
    labels: Path | None
    truth: Path | None


def write_landscape(
    landscape: Landscape,
    scene_path: str | PathLike[str],
    *,
    labels_path: str | PathLike[str] | None = None,
    truth_path: str | PathLike[str] | None = None,
    block: int = 512,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> LandscapeFiles:
    """Write a landscape as files; memory does not grow with the scene.

    Args:
        landscape: What to write.
        scene_path: GeoTIFF of the pixels, tiled, deflate, BigTIFF where needed, bands named, with overviews.
        labels_path: GeoTIFF of the class ids, uint8, nodata 255, with the classes' colours and overviews.
        truth_path: GeoPackage of the polygons. Scenes above 4096 px are done in squares of that side, so their
            polygons are cut at multiples of 4096 px.
        block: Side of the TIFF's tiles, px; a multiple of 16.
        overwrite: Replace existing files.
        progress: Wraps the iterable of windows, as tqdm does.

    Raises:
        OutputError: An output exists, or its folder is missing or not writable.
        ValueError: ``block`` is no multiple of 16.
    """
    if block < 16 or block % 16:
        raise ValueError(f"block must be a positive multiple of 16, found {block}")
    scene = check_output(scene_path, overwrite=overwrite)
    labels = check_output(labels_path, overwrite=overwrite) if labels_path is not None else None
    truth = check_output(truth_path, overwrite=overwrite) if truth_path is not None else None
    with ExitStack() as published:
        scene_part = published.enter_context(atomic_output(scene))
        labels_part = published.enter_context(atomic_output(labels)) if labels else None
        truth_part = published.enter_context(atomic_output(truth)) if truth else None
        _write_rasters(landscape, scene_part, labels_part, block, progress)
        if truth_part:
            for n, window in enumerate(_windows(landscape, _TRUTH_PX, _TRUTH_PX)):
                mode = "a" if n else "w"
                landscape.truth(window).to_file(truth_part, driver="GPKG", layer="truth", mode=mode)
    return LandscapeFiles(scene, labels, truth)


def _windows(landscape: Landscape, height: int, width: int) -> list[Window]:
    return [
        Window(row, col, min(height, landscape.height - row), min(width, landscape.width - col))
        for row in range(0, landscape.height, height)
        for col in range(0, landscape.width, width)
    ]


def _write_rasters(
    landscape: Landscape, scene_path: Path, labels_path: Path | None, block: int, progress: Progress | None
) -> None:
    grid = landscape.grid
    layout: dict[str, Any] = {
        "driver": "GTiff",
        "height": grid.height,
        "width": grid.width,
        "transform": grid.transform,
        "crs": grid.crs,
        "tiled": True,
        "blockxsize": block,
        "blockysize": block,
        "compress": "deflate",
        "zlevel": 6,
        "bigtiff": "if_safer",
    }
    bands = landscape.bands
    rgb = bands[:3] == ("red", "green", "blue")
    with ExitStack() as files, warnings.catch_warnings():
        # A scene without georeference was asked for; rasterio would warn of it.
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        scene = files.enter_context(
            rasterio.open(
                scene_path,
                "w",
                count=len(bands),
                dtype=landscape.dtype,
                nodata=landscape.nodata,
                predictor=3 if landscape.dtype == "float32" else 2,
                interleave="pixel",
                # Without these two GDAL calls a fourth band alpha, and dark infrared would read as a hole.
                photometric="rgb" if rgb else "minisblack",
                alpha="no",
                **layout,
            )
        )
        scene.descriptions = bands
        scene.colorinterp = [_INTERP.get(b, ColorInterp.undefined) if rgb else _plain(n) for n, b in enumerate(bands)]
        truth = None
        if labels_path is not None:
            truth = files.enter_context(
                rasterio.open(labels_path, "w", count=1, dtype="uint8", nodata=NODATA, **layout)
            )
            truth.write_colormap(1, {c.id: (*c.color, 255) for c in LANDSCAPE_CLASSES})
            truth.update_tags(1, **{f"class_{c.id}": c.name for c in LANDSCAPE_CLASSES})
        # Whole tiles, once each, row by row.
        windows: Iterable[Window] = _windows(landscape, block, block * _READ_BLOCKS)
        for window in progress(windows) if progress else windows:
            pixels, ids = landscape.read(window)
            target = RasterWindow(window.col, window.row, window.width, window.height)
            scene.write(pixels, window=target)
            if truth is not None:
                truth.write(ids, 1, window=target)
        files.close()
        _add_overviews(scene_path, Resampling.average, block)
        if labels_path is not None:
            _add_overviews(labels_path, Resampling.mode, block)


def _add_overviews(path: Path, resampling: Resampling, block: int) -> None:
    """Smaller copies of a raster in the same file, each half the last, down to one tile; viewers open those first."""
    with rasterio.open(path, "r+") as file:
        levels = math.ceil(math.log2(max(*file.shape, block) / block))
        file.build_overviews([2**level for level in range(1, levels + 1)], resampling)


def _plain(index: int) -> ColorInterp:
    return ColorInterp.gray if index == 0 else ColorInterp.undefined
