"""Where a person's labels pay most: the windows of a map that the model was least sure of."""

from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.warp import transform_bounds

from geoseg.arrays import ByteArray, FloatArray
from geoseg.classes import NODATA
from geoseg.errors import ConfigError, quoted
from geoseg.georeference import open_raster
from geoseg.map_rows import CONFIDENCE_SCALE
from geoseg.view.layers import Layer
from geoseg.view.rasters import TiledRaster
from geoseg.windows import Window

WINDOW_PX = 256
_LEAST_VALID = 0.25


def doubtful_windows(layers: list[Layer], most: int) -> list[dict[str, Any]]:
    """At most so many windows of the first map with confidence or disagreement, those with most doubt first.

    Each as the page lists it: name, note, bounds in longitude and latitude. A `ConfigError` if no map has such a layer.
    """
    for word in ("disagreement", "confidence"):
        for layer in layers:
            if layer.raster is not None and layer.path.removesuffix(".tif").endswith(f"_{word}"):
                return _windows(layer.raster, most, is_share=layer.kind == "share")
    maps = [layer.path for layer in layers if layer.kind == "classes"]
    raise ConfigError(
        "no map has a layer that says where the model was unsure",
        hint=f"make one: geoseg predict SCENE -m MODEL -o {quoted(maps[0]) if maps else 'MAP.tif'} "
        "--confidence --overwrite",
    )


def _windows(raster: TiledRaster, most: int, *, is_share: bool) -> list[dict[str, Any]]:
    height, width = raster.grid.shape
    scores: FloatArray = np.full((-(-height // WINDOW_PX), -(-width // WINDOW_PX)), -1.0)
    with raster.counted() as dataset:
        for row in range(len(scores)):
            top, bottom = (round(r * WINDOW_PX / height * dataset.height) for r in (row, row + 1))
            bottom = min(max(bottom, top + 1), dataset.height)
            values = dataset.read(1, window=rasterio.windows.Window(0, top, dataset.width, bottom - top))
            edges = [round(c * WINDOW_PX / width * dataset.width) for c in range(scores.shape[1])]
            scores[row] = _doubt(values, edges, is_share=is_share)
    order = np.argsort(-scores, axis=None, kind="stable")[:most]
    found = []
    for row, col in zip(*np.unravel_index(order, scores.shape), strict=True):
        if scores[row, col] <= 0:
            break
        window = Window(int(row) * WINDOW_PX, int(col) * WINDOW_PX, WINDOW_PX, WINDOW_PX)
        note = f"{1 - scores[row, col]:.0%} sure" if is_share else f"{scores[row, col]:.1%} differ"
        name = f"row {window.row}, column {window.col}"
        found.append({"kind": "Least sure", "name": name, "note": note, "bounds": window_bounds(raster, window)})
    return found


def _doubt(values: ByteArray, edges: list[int], *, is_share: bool) -> FloatArray:
    """Mean doubt in [0, 1] of each column of windows; -1 where little is valid."""
    valid = values != NODATA
    counts = np.add.reduceat(valid.sum(axis=0), edges)
    sums = np.add.reduceat(np.where(valid, values, 0).sum(axis=0, dtype=np.int64), edges)
    mean = sums / np.maximum(counts, 1) / (CONFIDENCE_SCALE if is_share else 1)
    return np.where(counts >= _LEAST_VALID * len(values) * WINDOW_PX / 16, 1 - mean if is_share else mean, -1.0)


def window_bounds(raster: TiledRaster, window: Window) -> tuple[float, float, float, float]:
    """Longitudes and latitudes of a window of a raster."""
    with open_raster(raster.name) as placed:
        inside = Window(
            max(window.row, 0),
            max(window.col, 0),
            min(window.row_stop, placed.height) - max(window.row, 0),
            min(window.col_stop, placed.width) - max(window.col, 0),
        )
        transform: Affine = placed.transform
        corners = [transform @ (c, r) for r in (inside.row, inside.row_stop) for c in (inside.col, inside.col_stop)]
        xs, ys = zip(*corners, strict=True)
        west, south, east, north = transform_bounds(placed.crs, 4326, min(xs), min(ys), max(xs), max(ys))
    return west, south, east, north
