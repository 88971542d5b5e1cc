"""Write and read the class raster: one uint8 band, 255 = nodata, with its names and colours inside and beside it.

What a class map carries, and who reads it: a colour table (every GIS), the class table as a JSON tag (geoseg, also
when the file travels alone), category names and a raster attribute table in ``.tif.aux.xml`` (GDAL, ArcGIS, QGIS;
TIFF itself has no place for them), a style in ``.qml`` (QGIS), and the tags of whoever made it.
"""

from __future__ import annotations

import colorsys
import json
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.shutil
from rasterio.enums import MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window as RasterWindow

from geoseg.classes import NODATA, ClassTable, Color, MapClass, format_color
from geoseg.errors import OutputError, SceneError
from geoseg.export.qml import style_qml
from geoseg.grid import Grid
from geoseg.outputs import atomic_output
from geoseg.windows import Window

ClassValues = npt.NDArray[np.uint8]

CLASSES_TAG = "GEOSEG_CLASSES"
BLOCK = 512
_COARSEST_OVERVIEW_PX = 256
_OVERVIEW_CACHE_BYTES = 64 << 20


class ClassMapWriter:
    """A class map being written from top to bottom; a context manager that publishes it at a clean end.

    Rows are kept until a row of 512 × 512 blocks is whole, then written once: rewriting a compressed block leaves
    its old bytes behind. Memory is one such row, whatever the height. On an exception nothing is published.

    Args:
        path: Output file; what is there is replaced (call `geoseg.outputs.check_output` before the work).
        grid: Size, transform and CRS of the map; without a CRS the map has no georeference but its transform.
        classes: Ids, names and colours.
        tags: Provenance, put into the file as it is: model, version, window size, …

    Raises:
        OutputError: The folder is not writable or the disk is full.
    """

    def __init__(
        self, path: str | PathLike[str], grid: Grid, classes: ClassTable, *, tags: Mapping[str, str] | None = None
    ) -> None:
        self.path = Path(path)
        self.grid = grid
        self.classes = classes
        self.rows_written = 0
        self._tags = dict(tags or {})
        self._counts = np.zeros(256, dtype=np.int64)
        self._stack = ExitStack()

    def __enter__(self) -> ClassMapWriter:
        with ExitStack() as stack:
            self._scratch = stack.enter_context(atomic_output(self.path))
            with _as_output_error(self.path):
                self._dataset = stack.enter_context(_create(self._scratch, self.grid))
                self._dataset.write_colormap(1, _colormap(self.classes))
                self._dataset.update_tags(**{**self._tags, CLASSES_TAG: _to_json(self.classes)})
            self._buffer = np.empty((min(BLOCK, self.grid.height), self.grid.width), dtype=np.uint8)
            self._stack = stack.pop_all()
        return self

    def write_rows(self, rows: ClassValues) -> None:
        """Append finished rows, (h, W) uint8 of class ids and 255, h of any size.

        Raises:
            ValueError: Rows of another width or dtype, or more rows than the map has.
            OutputError: The disk is full.
        """
        height, width = self.grid.shape
        if rows.ndim != 2 or rows.shape[1] != width or rows.dtype != np.uint8:
            raise ValueError(f"rows must be (h, {width}) uint8, found {rows.shape} {rows.dtype}")
        if self.rows_written + len(rows) > height:
            raise ValueError(f"the map has {height} rows, but {self.rows_written + len(rows)} were given")
        self._counts += np.bincount(rows.ravel(), minlength=256)
        while len(rows):
            filled = self.rows_written % BLOCK
            taken = rows[: BLOCK - filled]
            self._buffer[filled : filled + len(taken)] = taken
            self.rows_written += len(taken)
            rows = rows[len(taken) :]
            if self.rows_written % BLOCK == 0 or self.rows_written == height:
                self._write_buffer(filled + len(taken))

    def _write_buffer(self, count: int) -> None:
        window = RasterWindow(0, self.rows_written - count, self.grid.width, count)
        with _as_output_error(self.path):
            self._dataset.write(self._buffer[:count], 1, window=window)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._stack.__exit__(kind, value, trace)
            return
        with self._stack:
            self._finish()

    def _finish(self) -> None:
        if self.rows_written != self.grid.height:
            raise ValueError(f"the map has {self.grid.height} rows, but only {self.rows_written} were written")
        levels: list[int] = []
        while max(self.grid.shape) / 2 ** len(levels) > _COARSEST_OVERVIEW_PX:
            levels.append(2 ** (len(levels) + 1))
        with _as_output_error(self.path):
            if levels:
                # The commonest class, not the nearest pixel: roads and houses do not flicker between zoom levels.
                # GDAL's block cache, a share of the machine's memory, would fill up with the whole map meanwhile.
                with rasterio.Env(GDAL_CACHEMAX=_OVERVIEW_CACHE_BYTES):
                    self._dataset.build_overviews(levels, Resampling.mode)
            self._dataset.close()
        _add_sidecar(self._scratch.with_name(self._scratch.name + ".aux.xml"), self.classes, self._counts)
        self._scratch.with_suffix(".qml").write_text(style_qml(self.classes), encoding="utf-8")


@dataclass(frozen=True, slots=True, eq=False)
class ClassMap:
    """A class map in memory: values (H, W) uint8 with 255 = nodata, where they lie, and what they mean."""

    values: ClassValues
    grid: Grid
    classes: ClassTable


def read_class_map(path: str | PathLike[str], *, window: Window | None = None) -> ClassMap:
    """A class map, whole or a window of it; also one made by other programs.

    Names and colours come from geoseg's tag, else from the file's category names and colour table, else the
    classes are called ``class_0``, ``class_1``, … up to the highest value there is. Pixels that the file's nodata
    value or mask calls invalid become 255, and 255 is nodata where the file says nothing.

    Args:
        path: A raster of one uint8 band.
        window: Rows and columns inside the raster, px; None for all.

    Raises:
        SceneError: No such file, unreadable, more than one band, not uint8, or a class with the value 255.
    """
    try:
        with _quiet(), rasterio.open(path) as src:
            _check_class_map(path, src)
            grid = Grid(src.height, src.width, src.transform, src.crs)
            classes = _class_table(src)
            part = window or Window(0, 0, grid.height, grid.width)
            values = _read(src, RasterWindow(part.col, part.row, part.width, part.height))
    except RasterioError as error:
        if not Path(path).exists():
            raise SceneError(f"no such class map: {path}", hint="check the path") from error
        raise SceneError(f"{path} cannot be read: {error}", hint=f"check it with: gdalinfo -checksum {path}") from error
    return ClassMap(values, grid if window is None else grid.crop(window), classes)


def _create(path: Path, grid: Grid) -> Any:
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "height": grid.height,
        "width": grid.width,
        "count": 1,
        "dtype": "uint8",
        "nodata": NODATA,
        "crs": grid.crs,
        "tiled": True,
        "blockxsize": BLOCK,
        "blockysize": BLOCK,
        "compress": "zstd" if _has_zstd() else "deflate",
        "predictor": 1,
        "bigtiff": "if_safer",
    }
    if not grid.transform.is_identity:
        profile["transform"] = grid.transform
    with _quiet():
        return rasterio.open(path, "w", **profile)


def _has_zstd() -> bool:
    # rasterio does not say what its GTiff driver was built with; a one-pixel file in memory does.
    with _quiet(), rasterio.MemoryFile() as memory:
        try:
            with memory.open(driver="GTiff", height=1, width=1, count=1, dtype="uint8", compress="zstd"):
                return True
        except RasterioError:
            return False


def _colormap(classes: ClassTable) -> dict[int, tuple[int, int, int, int]]:
    return {**{c.id: (*c.color, 255) for c in classes}, NODATA: (0, 0, 0, 0)}


def _to_json(classes: ClassTable) -> str:
    return json.dumps([{"id": c.id, "name": c.name, "color": format_color(c.color)} for c in classes])


def _add_sidecar(path: Path, classes: ClassTable, counts: npt.NDArray[np.int64]) -> None:
    """Category names and attribute table as GDAL's PAM file, beside what GDAL may have put there itself."""
    root = ET.parse(path).getroot() if path.exists() else ET.Element("PAMDataset")
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
    ET.ElementTree(root).write(path, encoding="utf-8")


def _check_class_map(path: str | PathLike[str], src: Any) -> None:
    if src.count != 1 or src.dtypes[0] != "uint8":
        bands = "1 band" if src.count == 1 else f"{src.count} bands"
        raise SceneError(
            f"{path} is no class map: found {bands} of {src.dtypes[0]}, wanted 1 band of uint8",
            hint=f"map the scene first: geoseg predict {path} -m MODEL -o MAP.tif",
        )


def _read(src: Any, window: RasterWindow) -> ClassValues:
    values: ClassValues = src.read(1, window=window)
    invalid = np.zeros(values.shape, dtype=bool)
    if MaskFlags.all_valid not in src.mask_flag_enums[0]:
        invalid = src.read_masks(1, window=window) == 0
        if src.nodata != NODATA and (values[~invalid] == NODATA).any():
            raise SceneError(
                f"{src.name} has a class of the value {NODATA}, which is nodata in a class map",
                hint=f'renumber it: gdal_calc.py -A {src.name} --calc="where(A==255,1,A)" --outfile=MAP.tif',
            )
    values[invalid] = NODATA
    return values


def _class_table(src: Any) -> ClassTable:
    text = src.tags().get(CLASSES_TAG)
    if text is not None:
        try:
            entries = json.loads(text)
            return ClassTable.from_names([e["name"] for e in entries], [e["color"] for e in entries])
        except (ValueError, TypeError, KeyError) as error:
            raise SceneError(
                f"{src.name} has a damaged tag {CLASSES_TAG}: {error}",
                hint=f"remove it: gdal_edit.py -unsetmd {src.name}",
            ) from error
    try:
        colors: dict[int, Any] = src.colormap(1)
    except ValueError:
        colors = {}
    names = _category_names(src)
    highest = max(_highest_value(src), len(names) - 1)
    classes: list[MapClass] = []
    for i in range(min(highest + 1, NODATA)):
        name = names[i] if i < len(names) and names[i].strip() else f"class_{i}"
        if name in (c.name for c in classes):
            name = f"{name} ({i})"
        color = tuple(colors[i][:3]) if i in colors else _generic_color(i)
        classes.append(MapClass(i, name, color))
    return ClassTable(tuple(classes))


def _category_names(src: Any) -> list[str]:
    # rasterio has no getter. GDAL writes the names of any driver into the XML of a VRT that refers to the file.
    with rasterio.MemoryFile(ext=".vrt") as memory:
        rasterio.shutil.copy(src, memory.name, driver="VRT")
        root = ET.fromstring(memory.read())
    return [c.text or "" for c in root.findall("VRTRasterBand/CategoryNames/Category")]


def _highest_value(src: Any) -> int:
    highest = 0
    for top in range(0, src.height, BLOCK):
        values = _read(src, RasterWindow(0, top, src.width, min(BLOCK, src.height - top)))
        highest = max(highest, int(values.max(where=values != NODATA, initial=0)))
    return highest


def _generic_color(class_id: int) -> Color:
    # Hues a golden angle apart stay different from all before.
    red, green, blue = colorsys.hsv_to_rgb(class_id * 0.618034 % 1, 0.6, 0.85)
    return round(red * 255), round(green * 255), round(blue * 255)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without rasterio's warning about maps that have no georeference: that they may is part of the contract."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


@contextmanager
def _as_output_error(path: Path) -> Iterator[None]:
    try:
        yield
    except RasterioError as error:
        raise OutputError(f"cannot write {path}: {error}", hint="free some space or choose another folder") from error
