"""Where an experiment trains and validates, as a GeoPackage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import geopandas

from geoseg.data.labelled import LabelledScene
from geoseg.data.places import outline
from geoseg.data.split import ROLE_NAMES
from geoseg.files import atomic_output


def write_split(path: Path, train: Sequence[LabelledScene], val: Sequence[LabelledScene] = ()) -> None:
    """Write the blocks of scenes that are cut, and the outlines of others, as polygons; one layer per CRS.

    Fields: ``scene``, ``split`` (train, val, unused), ``block_row`` and ``block_col`` (missing for whole scenes).
    Scenes without a CRS have pixel coordinates, y = -row.

    A scene cut into blocks is written once, with those that validate.

    Raises:
        OutputError: The folder is not writable.
    """
    layers: dict[str, list[dict[str, Any]]] = {}
    systems: dict[str, Any] = {}
    done = set()
    for name, scenes in (("train", train), ("val", val)):
        for labelled in scenes:
            if labelled.split is not None and labelled.index in done:
                continue
            done.add(labelled.index)
            crs = labelled.grid.as_drawn().crs
            key = crs.to_wkt() if crs is not None else ""
            systems[key] = crs
            layers.setdefault(key, []).extend(_records(labelled, name))
    with atomic_output(path) as scratch:
        for number, (key, records) in enumerate(layers.items()):
            layer = "split" if len(layers) == 1 else f"split_{number + 1}"
            frame = geopandas.GeoDataFrame(records, crs=systems[key])
            frame = frame.astype({"block_row": "Int32", "block_col": "Int32"})
            frame.to_file(scratch, driver="GPKG", layer=layer, mode="a" if number else "w")


def _records(labelled: LabelledScene, name: str) -> Iterator[dict[str, Any]]:
    grid, scene = labelled.grid.as_drawn(), str(labelled.config.scene)
    if labelled.split is None:
        yield {"scene": scene, "split": name, "block_row": None, "block_col": None, "geometry": outline(grid)}
        return
    for row, col, window, role in labelled.split.blocks():
        place = {"block_row": row, "block_col": col, "geometry": outline(grid, window)}
        yield {"scene": scene, "split": ROLE_NAMES[role], **place}
