"""QGIS styles: of a class table, for class maps and for their polygons, and of a ramp, for rasters of shares.

QGIS applies a ``.qml`` that lies beside a layer's file and has its name. ``landcover.tif`` and ``landcover.shp``
share ``landcover.qml``, so the one document holds both: ``<pipe>``, which only raster layers read, and
``<renderer-v2>``, which only vector layers read. `write_style` keeps the part of the other layer.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

from geoseg.classes import ClassTable, Color, format_color
from geoseg.outputs import STYLE_MARK

_HEAD = f"<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n<!-- {STYLE_MARK} -->\n"
_RASTERS = (".tif", ".tiff", ".vrt", ".img", ".jp2", ".jpg", ".png", ".asc")
_VECTORS = (".shp", ".fgb", ".parquet", ".geojson", ".geojsonl", ".ndjson", ".pmtiles")


def style_qml(classes: ClassTable, *, attribute: str = "class_id") -> str:
    """A QGIS style: paletted raster and categorised fills, in the colours and with the names of the classes.

    Args:
        classes: Ids, names and colours.
        attribute: Field of the polygons that holds the class id.
    """
    root = _new_style()
    _add_raster_renderer(root, classes)
    _add_vector_renderer(root, classes, attribute)
    return _document(root)


def ramp_qml(colors: Mapping[float, Color]) -> str:
    """A QGIS style of a raster's first band: colours between the values given, linearly.

    Args:
        colors: Colour at each value, in rising order. The values are the real ones, since QGIS multiplies what a
            file holds with the file's scale.
    """
    root = _new_style()
    low, high = min(colors), max(colors)
    renderer = ET.SubElement(
        ET.SubElement(root, "pipe"),
        "rasterrenderer",
        type="singlebandpseudocolor",
        band="1",
        opacity="1",
        alphaBand="-1",
        nodataColor="",
        classificationMin=f"{low:g}",
        classificationMax=f"{high:g}",
    )
    ET.SubElement(renderer, "rasterTransparency")
    ramp = ET.SubElement(
        ET.SubElement(renderer, "rastershader"),
        "colorrampshader",
        colorRampType="INTERPOLATED",
        classificationMode="1",
        clip="0",
        minimumValue=f"{low:g}",
        maximumValue=f"{high:g}",
    )
    for value, color in colors.items():
        ET.SubElement(ramp, "item", value=f"{value:g}", label=f"{value:g}", color=format_color(color), alpha="255")
    return _document(root)


def write_style(style: str, file: Path, final: Path) -> None:
    """Write a style beside a layer's file, with what is there for the other kind of layer of that name.

    Polygons beside a raster leave the raster's legend as it is, and give it none where it has none; so does a raster
    beside polygons.

    Args:
        style: The style.
        file: The layer's file, in a scratch folder.
        final: Where it will lie.
    """
    part, others = ("renderer-v2", _VECTORS) if final.suffix.lower() in _RASTERS else ("pipe", _RASTERS)
    if any(final.with_suffix(suffix).exists() for suffix in others):
        root = ET.fromstring(style)
        kept = _part(final.with_suffix(".qml"), part)
        parts = [own for own in root if own.tag != part] + ([] if kept is None else [kept])
        root[:] = sorted(parts, key=lambda element: element.tag)
        style = _document(root)
    file.with_suffix(".qml").write_text(style, encoding="utf-8")


def _part(style: Path, name: str) -> ET.Element | None:
    """An element of a style; None where there is no style, no such element, or no XML."""
    try:
        return ET.parse(style).find(name)
    except (OSError, ET.ParseError):
        return None


def darker(color: Color) -> Color:
    """The same hue for outlines."""
    red, green, blue = color
    return red * 6 // 10, green * 6 // 10, blue * 6 // 10


def _new_style() -> ET.Element:
    return ET.Element("qgis", version="3.28.0", styleCategories="Symbology")


def _document(root: ET.Element) -> str:
    ET.indent(root)
    return _HEAD + ET.tostring(root, encoding="unicode") + "\n"


def _add_raster_renderer(root: ET.Element, classes: ClassTable) -> None:
    pipe = ET.SubElement(root, "pipe")
    renderer = ET.SubElement(
        pipe, "rasterrenderer", type="paletted", band="1", opacity="1", alphaBand="-1", nodataColor=""
    )
    ET.SubElement(renderer, "rasterTransparency")
    palette = ET.SubElement(renderer, "colorPalette")
    for c in classes:
        ET.SubElement(palette, "paletteEntry", value=str(c.id), color=format_color(c.color), alpha="255", label=c.name)


def _add_vector_renderer(root: ET.Element, classes: ClassTable, attribute: str) -> None:
    renderer = ET.SubElement(
        root,
        "renderer-v2",
        type="categorizedSymbol",
        attr=attribute,
        symbollevels="0",
        enableorderby="0",
        forceraster="0",
    )
    categories = ET.SubElement(renderer, "categories")
    symbols = ET.SubElement(renderer, "symbols")
    for c in classes:
        name = str(c.id)
        ET.SubElement(categories, "category", value=name, symbol=name, label=c.name, render="true")
        symbol = ET.SubElement(symbols, "symbol", type="fill", name=name, alpha="1", clip_to_extent="1", force_rhr="0")
        layer = ET.SubElement(symbol, "layer", {"class": "SimpleFill", "enabled": "1", "locked": "0", "pass": "0"})
        options = ET.SubElement(layer, "Option", type="Map")
        for key, value in _fill(c.color).items():
            ET.SubElement(options, "Option", type="QString", name=key, value=value)


def _fill(color: Color) -> dict[str, str]:
    def rgba(rgb: Color, alpha: int) -> str:
        return ",".join(str(v) for v in (*rgb, alpha))

    return {
        "style": "solid",
        "color": rgba(color, 150),
        "outline_style": "solid",
        "outline_color": rgba(darker(color), 255),
        "outline_width": "0.26",
        "outline_width_unit": "MM",
        "joinstyle": "miter",
    }
