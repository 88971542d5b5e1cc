"""Names and colours of the classes of a raster, from the places where programs store them.

geoseg's own tag, on the file or its band, has everything. Without it, the first of these that names a class counts:
attribute table, category names, metadata (``class_3=road``), QGIS style (``.qml``) beside the file; programs that save
a raster again keep only some of them. A class without a name is called ``class_N``.
"""

import colorsys
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from geoseg.classes import NODATA, ClassTable, Color, MapClass, parse_color
from geoseg.errors import SceneError, quoted
from geoseg.georeference import as_vrt

CLASSES_TAG = "GEOSEG_CLASSES"  # TIFF tag with the class table as JSON

DISAGREEMENT = ClassTable.from_names(["windows agree", "windows differ"], ["#e6e6e6", "#d6006c"])
"""Values of the disagreement raster, with their colours."""

_NAME, _MIN, _MAX, _MIN_MAX, _RED, _GREEN, _BLUE = 2, 3, 4, 5, 6, 7, 8  # GDALRATFieldUsage, gdal.h
_KEY = re.compile(r"class[_ ]?(\d+)([_ ]?name)?", re.IGNORECASE)
_NUMBER = re.compile(r"\s*-?\d+([.,]\d+)?\s*")

Entry = tuple[int, str, Color | None]  # id, name and colour


def class_table(file: Any, highest: Callable[[], int]) -> tuple[ClassTable, bool]:
    """The class table of an open raster of ids, and whether the file names any class.

    ``highest`` returns the highest id in it, and is called only if the file does not tell the number of classes. A
    `SceneError` if geoseg's own tag is damaged.
    """
    text = file.tags().get(CLASSES_TAG) or file.tags(1).get(CLASSES_TAG)
    if text is not None:
        return _from_tag(text, file.name), True
    try:
        colors: dict[int, Any] = file.colormap(1)
    except ValueError:
        colors = {}
    found: dict[int, tuple[str, Color | None]] = {}
    for number, name, color in (*_of_gdal(file), *_of_metadata(file), *_of_qgis(Path(file.name).with_suffix(".qml"))):
        # A label that is the number itself, as QGIS gives one, is no name.
        if 0 <= number < NODATA and name.strip() and not _NUMBER.fullmatch(name):
            found.setdefault(number, (name.strip(), color))
    count = max(found, default=-1) + 1
    if not (found and (colors or any(color for _, color in found.values()))):
        count = max(highest() + 1, count)
    names: set[str] = set()
    classes = []
    for i in range(min(count, NODATA)):
        name, color = found.get(i, (f"class_{i}", None))
        name = f"{name} ({i})" if name in names else name
        names.add(name)
        if i in colors:
            red, green, blue = colors[i][:3]
            color = red, green, blue
        classes.append(MapClass(i, name, color or _generic_color(i)))
    return ClassTable(tuple(classes)), bool(found)


def renamed(file: Any, classes: ClassTable) -> ClassTable:
    """Other names and colours for the ids of an open raster; which of its classes can be separated is as it says."""
    text = file.tags().get(CLASSES_TAG)
    able = {c.id for c in _from_tag(text, file.name) if c.separate} if text is not None else set()
    return ClassTable(tuple(replace(c, separate=c.id in able) for c in classes))


def _from_tag(text: str, name: str) -> ClassTable:
    try:
        return ClassTable.from_entries(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SceneError(
            f"{name} has a damaged tag {CLASSES_TAG}: {error}",
            hint=f"remove it: gdal_edit.py -unsetmd {quoted(name)}",
        ) from error


def _of_gdal(file: Any) -> Iterator[Entry]:
    """Attribute table and category names."""
    root = as_vrt(file)
    table = root.find("VRTRasterBand/GDALRasterAttributeTable")
    if table is not None:
        yield from _of_table(table)
    for i, category in enumerate(root.findall("VRTRasterBand/CategoryNames/Category")):
        yield i, category.text or "", None


def _of_table(table: ET.Element) -> Iterator[Entry]:
    fields = [
        (f.findtext("Name", "").lower(), int(f.findtext("Type", "0")), int(f.findtext("Usage", "0")))
        for f in table.findall("FieldDefn")
    ]

    def column(usages: tuple[int, ...], *words: str, text: bool = False) -> int | None:
        """The column that is used for one thing, else the first one whose name has a word."""
        fitting = [i for i, (_, kind, _) in enumerate(fields) if (kind == 2) == text]
        used = [i for i in fitting if fields[i][2] in usages]
        called = [i for i in fitting if any(word in fields[i][0] for word in words)]
        return next(iter((*used, *called)), None)

    value, name = column((_MIN_MAX, _MIN), "value"), column((_NAME,), "class", "name", "label", "categ", text=True)
    rgb = [column((usage,)) for usage in (_RED, _GREEN, _BLUE)]
    if name is None:
        return
    for i, row in enumerate(table.findall("Row")):
        cells = [cell.text or "" for cell in row.findall("F")]
        try:
            number = i if value is None else int(float(cells[value]))
            red, green, blue = (None if c is None else int(cells[c]) for c in rgb)
            yield number, cells[name], None if red is None or green is None or blue is None else (red, green, blue)
        except (ValueError, IndexError):
            continue


def _of_metadata(file: Any) -> Iterator[Entry]:
    for key, text in {**file.tags(), **file.tags(1)}.items():
        if found := _KEY.fullmatch(key):
            yield int(found[1]), text, None


def _of_qgis(path: Path) -> Iterator[Entry]:
    """Labels of a QGIS style of a paletted raster, or of one coloured value by value."""
    try:
        root = ET.parse(path).getroot()
    except (OSError, ET.ParseError):
        return
    for entry in (*root.iter("paletteEntry"), *root.iterfind(".//colorrampshader/item")):
        try:
            number = float(entry.get("value", ""))
            color = parse_color(entry.get("color", ""))
        except ValueError:
            continue
        if number.is_integer():
            yield int(number), entry.get("label", ""), color


def _generic_color(class_id: int) -> Color:
    # Hues a golden angle apart stay different from all before.
    red, green, blue = colorsys.hsv_to_rgb(class_id * 0.618034 % 1, 0.6, 0.85)
    return round(red * 255), round(green * 255), round(blue * 255)
