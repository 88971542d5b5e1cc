"""QGIS styles (QML) of a class table, for class maps and their polygons, and of a ramp; the class table as SLD.

QGIS applies a ``.qml`` that lies beside a layer's file and has its name. ``landcover.tif`` and ``landcover.shp``
share ``landcover.qml``, so the one document holds both: ``<pipe>``, which only raster layers read, and
``<renderer-v2>``, which only vector layers read. `write_style` keeps the part of the other layer.
"""

import xml.etree.ElementTree as ET
from collections.abc import Collection, Mapping
from pathlib import Path

from geoseg.classes import ClassTable, Color, MapClass, format_color
from geoseg.files import STYLE_MARK

_HEAD = f"<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n<!-- {STYLE_MARK} -->\n"
_CLASS_FIELD = "class_id"
_FILL_ALPHA = 150
_OUTLINE: Color = (70, 70, 70)
"""One colour for all: neighbours share their borders, which would take the colour of whichever is drawn last."""

_RASTERS = (".tif", ".tiff", ".vrt", ".img", ".jp2", ".jpg", ".png", ".asc")
_VECTORS = (".shp", ".fgb", ".parquet", ".geojson", ".geojsonl", ".ndjson", ".pmtiles")


def style_qml(
    classes: ClassTable, *, present: Collection[int] | None = None, units: tuple[str, str] = ("m²", "m")
) -> str:
    """A QGIS style: paletted raster and categorised fills, in the colours and with the names of the classes.

    The legend has the classes that are ``present``, or all; fields are shown with the ``units`` of areas and lengths.
    """
    names = {
        "class_id": "Class number",
        "class_name": "Class",
        "area_m2": f"Area ({units[0]})",
        "perim_m": f"Perimeter ({units[1]})",
        "conf_mean": "Mean confidence",
        "conf_min": "Lowest confidence",
        "source": "Imagery",
    }
    shown = _shown(classes, present)
    palette = [
        _node("paletteEntry", value=str(c.id), color=format_color(c.color), alpha="255", label=c.name) for c in shown
    ]
    categories = [_node("category", value=str(c.id), symbol=str(c.id), label=c.name, render="true") for c in shown]
    return _document(
        _node("aliases", *(_node("alias", field=field, name=name) for field, name in names.items())),
        _raster_style(_node("colorPalette", *palette), type="paletted"),
        _node(
            "renderer-v2",
            _node("categories", *categories),
            _node("symbols", *map(_symbol, shown)),
            type="categorizedSymbol",
            attr=_CLASS_FIELD,
            symbollevels="0",
            enableorderby="0",
            forceraster="0",
        ),
    )


def ramp_qml(colors: Mapping[float, Color], *, band: int = 1, labels: tuple[str, str] | None = None) -> str:
    """A QGIS style of one band (from 1) of a raster: colours between the values given, linearly.

    The values rise, and are the real ones, since QGIS multiplies what a file holds with the file's scale. ``labels``
    are what the legend says at the ends of the ramp; None gives their values.
    """
    low, high = f"{min(colors):g}", f"{max(colors):g}"
    items = [
        _node("item", value=f"{value:g}", label=f"{value:g}", color=format_color(color), alpha="255")
        for value, color in colors.items()
    ]
    if labels is not None:
        legend = {"minimumLabel": labels[0], "maximumLabel": labels[1], "useContinuousLegend": "1", "orientation": "2"}
        items.insert(0, _node("rampLegendSettings", **legend))
    ramp = {"colorRampType": "INTERPOLATED", "classificationMode": "1", "clip": "0"}
    shader = _node("colorrampshader", *items, **ramp, minimumValue=low, maximumValue=high)
    style = _raster_style(_node("rastershader", shader), type="singlebandpseudocolor", band=str(band))
    style[0].attrib.update(classificationMin=low, classificationMax=high)
    return _document(style)


def style_sld(classes: ClassTable, layer: str, *, present: Collection[int] | None = None) -> str:
    """An SLD 1.1 style for GeoServer and other map servers: a fill for every class, as `style_qml` draws them."""
    rules = []
    for c in _shown(classes, present):
        fill = {"fill": format_color(c.color), "fill-opacity": f"{_FILL_ALPHA / 255:.2f}"}
        stroke = {"stroke": format_color(_OUTLINE), "stroke-width": "1", "stroke-linejoin": "mitre"}
        drawn = [
            _node(tag, *(_text("se:SvgParameter", value, name=name) for name, value in values.items()))
            for tag, values in (("se:Fill", fill), ("se:Stroke", stroke))
        ]
        equal = _text("ogc:PropertyName", _CLASS_FIELD), _text("ogc:Literal", str(c.id))
        is_class = _node("ogc:Filter", _node("ogc:PropertyIsEqualTo", *equal))
        rules.append(_node("se:Rule", _text("se:Name", c.name), is_class, _node("se:PolygonSymbolizer", *drawn)))
    style = _node("UserStyle", _text("se:Name", "classes"), _node("se:FeatureTypeStyle", *rules))
    uri = "http://www.opengis.net/"
    attributes = {"version": "1.1.0", "xmlns": f"{uri}sld", "xmlns:se": f"{uri}se", "xmlns:ogc": f"{uri}ogc"}
    root = _node("StyledLayerDescriptor", _node("NamedLayer", _text("se:Name", layer), style), **attributes)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def write_style(style: str, file: Path, final: Path) -> None:
    """Write a style beside a layer's file, keeping the part for the other kind of layer of its ``final`` name.

    Polygons beside a raster leave the raster's legend as it is, and give it none where it has none; so does a raster
    beside polygons.
    """
    part, others = ("renderer-v2", _VECTORS) if final.suffix.lower() in _RASTERS else ("pipe", _RASTERS)
    if any(final.with_suffix(suffix).exists() for suffix in others):
        parts = {own.tag: own for own in ET.fromstring(style) if own.tag != part}
        try:
            kept = ET.parse(final.with_suffix(".qml")).find(part)
        except (OSError, ET.ParseError):
            kept = None
        if kept is not None:
            parts[part] = kept
        style = _document(*(parts[tag] for tag in sorted(parts)))
    file.with_suffix(".qml").write_text(style, encoding="utf-8")


def darker(color: Color) -> Color:
    """The same hue for outlines."""
    red, green, blue = color
    return red * 6 // 10, green * 6 // 10, blue * 6 // 10


def _shown(classes: ClassTable, present: Collection[int] | None) -> list[MapClass]:
    """The classes of a legend: those that are present; all where that is not known, or none is."""
    return [c for c in classes if present and c.id in present] or list(classes)


def _document(*parts: ET.Element) -> str:
    root = _node("qgis", *parts, version="3.28.0", styleCategories="Symbology|Fields")
    ET.indent(root)
    return _HEAD + ET.tostring(root, encoding="unicode") + "\n"


def _node(_tag: str, *children: ET.Element, **attributes: str) -> ET.Element:
    element = ET.Element(_tag, attributes)
    element.extend(children)
    return element


def _text(_tag: str, text: str, **attributes: str) -> ET.Element:
    element = ET.Element(_tag, attributes)
    element.text = text
    return element


def _raster_style(colors: ET.Element, *, type: str, band: str = "1") -> ET.Element:
    fixed = {"opacity": "1", "alphaBand": "-1", "nodataColor": ""}
    return _node("pipe", _node("rasterrenderer", _node("rasterTransparency"), colors, type=type, band=band, **fixed))


def _symbol(c: MapClass) -> ET.Element:
    fill = {
        "style": "solid",
        "color": ",".join(map(str, (*c.color, _FILL_ALPHA))),
        "outline_style": "solid",
        "outline_color": ",".join(map(str, (*_OUTLINE, 255))),
        "outline_width": "0.26",
        "outline_width_unit": "MM",
        "joinstyle": "miter",
    }
    options = [_node("Option", type="QString", name=key, value=value) for key, value in fill.items()]
    layer = {"class": "SimpleFill", "enabled": "1", "locked": "0", "pass": "0"}
    drawn = _node("layer", _node("Option", *options, type="Map"), **layer)
    return _node("symbol", drawn, type="fill", name=str(c.id), alpha="1", clip_to_extent="1", force_rhr="0")
