"""Class maps of squares, for the tests of the viewer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from rasterio.crs import CRS

from geoseg.class_map.writing import MapFileWriter
from geoseg.classes import NODATA, ClassTable
from geoseg.grid import Grid
from geoseg.map_rows import MapRows
from support.scenes import Orientation, place_transform

CLASSES = ClassTable.from_names(["grass", "road", "house"], ["#a6d96a", "#7f7f7f", "#d7301f"])
SIDE = 96


def blocks(seed: int = 0, side: int = SIDE) -> npt.NDArray[np.uint8]:
    """Class ids in squares of 8 px, one of them nodata."""
    ids = np.random.default_rng(seed).integers(0, len(CLASSES), (side // 8, side // 8)).astype(np.uint8)
    ids[0, 0] = NODATA
    return np.kron(ids, np.ones((8, 8), np.uint8))


def write_map(
    path: Path,
    *,
    crs: str | None = "EPSG:32633",
    orientation: Orientation = "north",
    layers: tuple[str, ...] = ("classes",),
    seed: int = 0,
    side: int = SIDE,
    confidence: npt.NDArray[np.uint8] | None = None,
) -> npt.NDArray[np.uint8]:
    ids = blocks(seed, side)
    known = None if crs is None else CRS.from_user_input(crs)
    grid = Grid(side, side, place_transform(crs, orientation), known)
    sure = np.where(ids == NODATA, NODATA, 100 + 50 * ids).astype(np.uint8) if confidence is None else confidence
    every = np.stack([np.where(ids == NODATA, NODATA, np.where(ids == i, 200, 20)).astype(np.uint8) for i in range(3)])
    differs = np.where(ids == NODATA, NODATA, (ids == 1).astype(np.uint8)).astype(np.uint8)
    with MapFileWriter(path, grid, CLASSES, layers=layers) as writer:
        writer.write(MapRows(ids, confidence=sure, probabilities=every, disagreement=differs))
    return ids
