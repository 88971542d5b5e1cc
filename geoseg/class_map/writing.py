"""Write what a prediction finds as rasters: the class map, and confidence and other layers beside it."""

import hashlib
import json
import xml.etree.ElementTree as ET
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np

from geoseg.arrays import ByteArray, IntArray
from geoseg.class_map.geotiff import CogWriter, Tile
from geoseg.class_map.names import CLASSES_TAG, DISAGREEMENT
from geoseg.class_map.overviews import count_values
from geoseg.class_map.reading import DIGEST_TAG, layer_path
from geoseg.classes import ClassTable, Color, class_entries
from geoseg.export.styles import ramp_qml, style_qml, write_style
from geoseg.files import atomic_output
from geoseg.grid import Grid
from geoseg.map_rows import MapRows
from geoseg.options import AnyPath

LAYERS = ("classes", "confidence", "probabilities", "disagreement", "contact")
"""What `MapFileWriter` can write; the names are `geoseg.map_rows.MapRows`' own."""

# Grey where the network hardly knew, green where it was sure.
_SHARE_COLORS: dict[float, Color] = {0.0: (150, 150, 150), 0.5: (217, 217, 217), 0.8: (166, 219, 160), 1.0: (0, 90, 50)}


class MapFileWriter:
    """The rasters of a map being written from top to bottom; a context manager that publishes all at a clean end.

    Memory is some rows of every layer, whatever the height. On an exception nothing is published, and what was there
    before stays. A layer that is not asked for and is there from before stays too: it bears the digest of its own
    map, and `geoseg.class_map.ClassMapReader` leaves it aside. For errors see `CogWriter`.

    Args:
        path: The class map, replaced if it exists (call `geoseg.files.check_output` before the work); the other layers
            lie beside it (`geoseg.class_map.layer_path`).
        grid: Size, transform and CRS of the map; without a CRS the map has no georeference but its transform.
        classes: Ids, names and colours.
        layers: Names out of `LAYERS`; "classes" is always among them.
        tags: Provenance, put into every file as it is: model, version, window size, …
        tiles: Files that hold the pixels of each layer when the context ends, and need not be stored again.
    """

    def __init__(
        self,
        path: AnyPath,
        grid: Grid,
        classes: ClassTable,
        *,
        layers: Collection[str] = ("classes",),
        tags: Mapping[str, str] | None = None,
        tiles: Mapping[str, Sequence[Tile]] | None = None,
    ) -> None:
        if "classes" not in layers or not set(layers) <= set(LAYERS):
            raise ValueError(f"layers must be of {', '.join(LAYERS)} and have classes, found {', '.join(layers)}")
        self.path = Path(path)
        self.grid = grid
        self.classes = classes
        self.layers = tuple(name for name in LAYERS if name in layers)
        self.rows_written = 0
        self._tags, self._tiles = dict(tags or {}), tiles or {}
        self._digest = hashlib.sha256()
        self._counts = {name: np.zeros(256, dtype=np.int64) for name in self.layers}
        self._files: dict[str, CogWriter] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            # The stack unwinds from its end: the class map is published last, when all that belongs to it is there.
            for name in self.layers:
                scratch = stack.enter_context(atomic_output(layer_path(self.path, name)))
                table = _table(name, self.classes)
                bands = self.classes.names if name == "probabilities" else (name,)
                palette = None if table is None else {c.id: c.color for c in table}
                file = CogWriter(scratch, self.grid, bands=bands, palette=palette, tiles=self._tiles.get(name))
                self._files[name] = stack.enter_context(file)
            self._stack = stack.pop_all()
        return self

    def write(self, rows: MapRows) -> None:
        """Append finished rows, any number of them; a ValueError if they do not fit the map, or lack a layer."""
        arrays = {name: self._checked(name, getattr(rows, name), len(rows)) for name in self.layers}
        if self.rows_written + len(rows) > self.grid.height:
            raise ValueError(f"the map has {self.grid.height} rows, but {self.rows_written + len(rows)} were given")
        self._digest.update(np.ascontiguousarray(rows.classes).data)
        for name, values in arrays.items():
            if name in ("classes", "disagreement"):
                count_values(values[0], self._counts[name])
            self._files[name].write(values)
        self.rows_written += len(rows)

    def _checked(self, name: str, values: ByteArray | None, height: int) -> ByteArray:
        """The rows of a layer as (B, h, W)."""
        bands = len(self.classes) if name == "probabilities" else 1
        wanted = (bands, height, self.grid.width)
        if values is None:
            raise ValueError(f"rows without {name}, which were asked for")
        values = values if name == "probabilities" else values[None]
        if values.shape != wanted or values.dtype != np.uint8:
            raise ValueError(f"rows of {name} must be {wanted} uint8, found {values.shape} {values.dtype}")
        return values

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Add tags that are known only at the end, such as a seam score; before the context ends."""
        self._tags.update(tags)

    def __exit__(self, kind: type[BaseException] | None, *details: Any) -> None:
        if kind is not None:
            self._stack.__exit__(kind, *details)
            return
        with self._stack:
            self._finish()

    def _finish(self) -> None:
        if self.rows_written != self.grid.height:
            raise ValueError(f"the map has {self.grid.height} rows, but only {self.rows_written} were written")
        entries = [{"id": i, **entry} for i, entry in enumerate(class_entries(self.classes))]
        tags = {**self._tags, CLASSES_TAG: json.dumps(entries), DIGEST_TAG: self._digest.hexdigest()}
        for name, file in self._files.items():
            file.finish(tags)
            table = _table(name, self.classes)
            if table is None:
                style = _share_style(name, self.classes)
            else:
                _write_sidecar(file.path, table, self._counts[name])
                style = style_qml(table, present=np.flatnonzero(self._counts[name]).tolist())
            write_style(style, file.path, layer_path(self.path, name))


def _share_style(layer: str, classes: ClassTable) -> str:
    """The style of confidence, of contact, or of the probability of the first class that is no background."""
    first = next((c for c in classes if not c.background), classes[0])
    of, band = {"confidence": ("sure", 1), "contact": ("contact", 1)}.get(layer, (first.name, first.id + 1))
    return ramp_qml(_SHARE_COLORS, band=band, labels=(f"0 % {of}", f"100 % {of}"))


def _table(layer: str, classes: ClassTable) -> ClassTable | None:
    """What the values of a layer mean; None where they are shares."""
    return {"classes": classes, "disagreement": DISAGREEMENT}.get(layer)


def _write_sidecar(path: Path, classes: ClassTable, counts: IntArray) -> None:
    """Category names and attribute table as GDAL's PAM file, beside what GDAL may have put there itself."""
    sidecar = path.with_name(path.name + ".aux.xml")
    root = ET.parse(sidecar).getroot() if sidecar.exists() else ET.Element("PAMDataset")
    band = root.find("PAMRasterBand[@band='1']")
    if band is None:
        band = ET.SubElement(root, "PAMRasterBand", band="1")
    names = ET.SubElement(band, "CategoryNames")
    for c in classes:
        ET.SubElement(names, "Category").text = c.name
    table = ET.SubElement(band, "GDALRasterAttributeTable", tableType="thematic")
    # Type: 0 integer, 2 string. Usage: 5 value, 1 pixel count, 2 name, 6 to 8 red, green and blue (GDAL's gdal.h).
    fields = ("Value", 0, 5), ("Count", 0, 1), ("Class", 2, 2), ("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8)
    for index, (name, kind, usage) in enumerate(fields):
        field = ET.SubElement(table, "FieldDefn", index=str(index))
        for tag, text in (("Name", name), ("Type", str(kind)), ("Usage", str(usage))):
            ET.SubElement(field, tag).text = text
    for index, c in enumerate(classes):
        row = ET.SubElement(table, "Row", index=str(index))
        for value in (c.id, int(counts[c.id]), c.name, *c.color):
            ET.SubElement(row, "F").text = str(value)
    ET.indent(root)
    ET.ElementTree(root).write(sidecar, encoding="utf-8")
