"""Class maps in files, every layer with values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from rasterio.crs import CRS

from geoseg.class_map.writing import LAYERS, MapFileWriter
from geoseg.classes import ClassTable
from geoseg.grid import Grid
from geoseg.map_rows import MapRows

TABLE = ClassTable.from_names(["ground", "Gebäude & <Dächer>", "水"], ["#aabbcc", "#ff0000", "#0000ff"])


def grid_of(height: int, width: int) -> Grid:
    return Grid(height, width, Affine(0.3, 0, 500_000, 0, -0.3, 5_000_000), CRS.from_epsg(32633))


def random_rows(height: int, width: int, seed: int = 0) -> MapRows:
    """Every layer: blobs of 8 px with noise, a triangle of nodata."""
    rng = np.random.default_rng(seed)
    shares = np.kron(rng.random((3, -(-height // 8), -(-width // 8))), np.ones((8, 8)))[:, :height, :width]
    shares = shares + 0.3 * rng.random((3, height, width))
    shares /= shares.sum(axis=0)
    probabilities = np.round(shares * 254).astype(np.uint8)
    classes = shares.argmax(axis=0).astype(np.uint8)
    disagreement = (probabilities.max(axis=0) < 100).astype(np.uint8)
    invalid = np.add.outer(np.arange(height), np.arange(width)) < min(height, width) // 3
    contact = np.where(classes == 1, 254 - probabilities[1], 0).astype(np.uint8)
    for layer in (classes, probabilities, disagreement, contact):
        layer[..., invalid] = 255
    confidence = np.where(invalid, 255, probabilities.max(axis=0)).astype(np.uint8)
    return MapRows(classes, confidence, probabilities, disagreement, contact)


def part(rows: MapRows, top: int, bottom: int) -> MapRows:
    cut = (None if a is None else a[..., top:bottom, :] for a in (getattr(rows, name) for name in LAYERS))
    return MapRows(*cut)


def write(path: Path, rows: MapRows, *, heights: list[int] | None = None, layers: Any = LAYERS, **options: Any) -> Path:
    with MapFileWriter(path, grid_of(*rows.classes.shape), TABLE, layers=layers, **options) as out:
        top = 0
        for height in [*(heights or []), len(rows)]:
            out.write(part(rows, top, min(top + height, len(rows))))
            top = min(top + height, len(rows))
    return path
