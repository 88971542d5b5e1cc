"""QGIS styles: of a class table, for class maps and for their polygons, and of a ramp, for rasters of shares.

QGIS applies a ``.qml`` that lies beside a layer's file and has its name. ``landcover.tif`` and ``landcover.shp``
share ``landcover.qml``, so the one document holds both: ``<pipe>``, which only raster layers read, and
``<renderer-v2>``, which only vector layers read. `write_style` keeps the part of the other layer.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from geoseg.classes import ClassTable, Color, MapClass, format_color
from geoseg.files import STYLE_MARK

_HEAD = f"<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n<!-- {STYLE_MARK} -->\n"
CLASS_FIELD = "class_id"
FILL_ALPHA = 150
OUTLINE: Color = (70, 70, 70)
"""One colour for all: neighbours share their borders, which would take the colour of whichever is drawn last."""

_RASTERS = (".tif", ".tiff", ".vrt", ".img", ".jp2", ".jpg", ".png", ".asc")
_VECTORS = (".shp", ".fgb", ".parquet", ".geojson", ".geojsonl", ".ndjson", ".pmtiles")


def style_qml(
    classes: ClassTable,
    *,
    present: Collection[int] | None = None,
    units: tuple[str, str] = ("m²", "m"),
) -> str:
    """A QGIS style: paletted raster and categorised fills, in the colours and with the names of the classes.

    Args:
        classes: Ids, names and colours.
        present: Ids of the classes that the layer has, for the legend; None takes all.
        units: Units of areas and lengths, for the names that fields are shown with.
    """
    entries = shown(classes, present)
    root = _new_style()
    aliases = ET.SubElement(root, "aliases")
    for field, name in _aliases(*units).items():
        ET.SubElement(aliases, "alias", field=field, name=name)
    _add_raster_renderer(root, entries)
    _add_vector_renderer(root, entries)
    return _document(root)


def shown(classes: ClassTable, present: Collection[int] | None) -> list[MapClass]:
    """The classes of a legend: those that are present; all where that is not known, or none is."""
    return [c for c in classes if present and c.id in present] or list(classes)


def ramp_qml(colors: Mapping[float, Color], *, band: int = 1, labels: tuple[str, str] | None = None) -> str:
    """A QGIS style of one band of a raster: colours between the values given, linearly.

    Args:
        colors: Colour at each value, in rising order. The values are the real ones, since QGIS multiplies what a
            file holds with the file's scale.
        band: The band, from 1.
        labels: What the legend says at the ends of the ramp; None gives their values.
    """
    root = _new_style()
    low, high = min(colors), max(colors)
    renderer = ET.SubElement(
        ET.SubElement(root, "pipe"),
        "rasterrenderer",
        type="singlebandpseudocolor",
        band=str(band),
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
    if labels is not None:
        legend = {"minimumLabel": labels[0], "maximumLabel": labels[1], "useContinuousLegend": "1", "orientation": "2"}
        ET.SubElement(ramp, "rampLegendSettings", legend)
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
    return ET.Element("qgis", version="3.28.0", styleCategories="Symbology|Fields")


def _document(root: ET.Element) -> str:
    ET.indent(root)
    return _HEAD + ET.tostring(root, encoding="unicode") + "\n"


def _aliases(area: str, length: str) -> dict[str, str]:
    return {
        "class_id": "Class number",
        "class_name": "Class",
        "area_m2": f"Area ({area})",
        "perim_m": f"Perimeter ({length})",
        "conf_mean": "Mean confidence",
        "conf_min": "Lowest confidence",
        "source": "Imagery",
    }


def _add_raster_renderer(root: ET.Element, classes: Iterable[MapClass]) -> None:
    pipe = ET.SubElement(root, "pipe")
    renderer = ET.SubElement(
        pipe, "rasterrenderer", type="paletted", band="1", opacity="1", alphaBand="-1", nodataColor=""
    )
    ET.SubElement(renderer, "rasterTransparency")
    palette = ET.SubElement(renderer, "colorPalette")
    for c in classes:
        ET.SubElement(palette, "paletteEntry", value=str(c.id), color=format_color(c.color), alpha="255", label=c.name)


def _add_vector_renderer(root: ET.Element, classes: Iterable[MapClass]) -> None:
    renderer = ET.SubElement(
        root,
        "renderer-v2",
        type="categorizedSymbol",
        attr=CLASS_FIELD,
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
        "color": rgba(color, FILL_ALPHA),
        "outline_style": "solid",
        "outline_color": rgba(OUTLINE, 255),
        "outline_width": "0.26",
        "outline_width_unit": "MM",
        "joinstyle": "miter",
    }
