"""Stream a landscape to files: scene and labels as tiled GeoTIFFs, truth as a GeoPackage."""

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from typing import Any

from rasterio.enums import ColorInterp, Resampling
from rasterio.windows import Window as RasterWindow

from geoseg.classes import NODATA
from geoseg.files import atomic_output, check_output
from geoseg.georeference import open_raster
from geoseg.landscape.features import LANDSCAPE_CLASSES
from geoseg.landscape.scenery import Landscape
from geoseg.windows import Window, pieces

Progress = Callable[[Iterable[Window]], Iterable[Window]]

_READ_BLOCKS = 4  # Blocks read together: fewer halos rendered twice, still little memory.
_TRUTH_PX = 4096  # Side of the pieces in which the truth of larger scenes is made and cut.
_INTERP = {"red": ColorInterp.red, "green": ColorInterp.green, "blue": ColorInterp.blue}


def write_landscape(
    landscape: Landscape,
    scene_path: str | PathLike[str],
    *,
    labels_path: str | PathLike[str] | None = None,
    truth_path: str | PathLike[str] | None = None,
    block: int = 512,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a landscape as files; memory does not grow with the scene.

    Args:
        scene_path: GeoTIFF of the pixels: tiled, deflate, BigTIFF if needed, named bands, overviews.
        labels_path: GeoTIFF of the class ids: uint8, nodata 255, a colour table, overviews.
        truth_path: GeoPackage of the polygons. Those of scenes above 4096 px are cut at multiples of 4096 px.
        block: Side of the TIFF's tiles, px; a multiple of 16.
        overwrite: Replace existing files.
        progress: Wraps the iterable of windows, as tqdm does.

    Raises:
        OutputError: An output exists, or its folder is missing or not writable.
        ValueError: ``block`` is not a multiple of 16.
    """
    if block < 16 or block % 16:
        raise ValueError(f"block must be a positive multiple of 16, found {block}")
    scene = check_output(scene_path, overwrite=overwrite)
    labels, truth = (None if p is None else check_output(p, overwrite=overwrite) for p in (labels_path, truth_path))
    with ExitStack() as published:
        parts = {path: published.enter_context(atomic_output(path)) for path in (scene, labels, truth) if path}
        _write_rasters(landscape, parts[scene], parts[labels] if labels else None, block, progress)
        if truth:
            for n, window in enumerate(pieces(*landscape.grid.shape, _TRUTH_PX, _TRUTH_PX)):
                mode = "a" if n else "w"
                landscape.truth(window).to_file(parts[truth], driver="GPKG", layer="truth", mode=mode)


def _write_rasters(
    landscape: Landscape, scene_path: Path, labels_path: Path | None, block: int, progress: Progress | None
) -> None:
    grid = landscape.grid
    layout: dict[str, Any] = {"driver": "GTiff", "tiled": True, "blockxsize": block, "blockysize": block}
    layout |= {"compress": "deflate", "zlevel": 6, "bigtiff": "if_safer"}
    layout |= {"height": grid.height, "width": grid.width, "transform": grid.transform, "crs": grid.crs}
    bands = landscape.bands
    rgb = bands[:3] == ("red", "green", "blue")
    # Without photometric and alpha a fourth band is alpha to GDAL, and dark infrared would read as a hole.
    scene_layout = layout | {
        **{"count": len(bands), "dtype": landscape.dtype, "nodata": landscape.nodata, "interleave": "pixel"},
        **{"predictor": 3 if landscape.dtype == "float32" else 2, "alpha": "no"},
        "photometric": "rgb" if rgb else "minisblack",
    }
    with ExitStack() as files:
        scene = files.enter_context(open_raster(scene_path, "w", **scene_layout))
        scene.descriptions = bands
        colors = [_INTERP.get(band, ColorInterp.undefined) for band in bands]
        scene.colorinterp = colors if rgb else [ColorInterp.gray, *[ColorInterp.undefined] * (len(bands) - 1)]
        truth = None
        if labels_path is not None:
            labels_layout = layout | {"count": 1, "dtype": "uint8", "nodata": NODATA}
            truth = files.enter_context(open_raster(labels_path, "w", **labels_layout))
            truth.write_colormap(1, {c.id: (*c.color, 255) for c in LANDSCAPE_CLASSES})
            truth.update_tags(1, **{f"class_{c.id}": c.name for c in LANDSCAPE_CLASSES})
        windows: Iterable[Window] = list(pieces(*grid.shape, block, block * _READ_BLOCKS))
        for window in progress(windows) if progress else windows:
            pixels, ids = landscape.read(window)
            target = RasterWindow(window.col, window.row, window.width, window.height)
            scene.write(pixels, window=target)
            if truth is not None:
                truth.write(ids, 1, window=target)
    _add_overviews(scene_path, Resampling.average, block)
    if labels_path is not None:
        _add_overviews(labels_path, Resampling.mode, block)


def _add_overviews(path: Path, resampling: Resampling, block: int) -> None:
    """Add overviews, each half as large as the last, down to one tile."""
    with open_raster(path, "r+") as file:
        levels = math.ceil(math.log2(max(*file.shape, block) / block))
        file.build_overviews([2**level for level in range(1, levels + 1)], resampling)
