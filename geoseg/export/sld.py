"""The style of a class table as SLD 1.1, which GeoServer and other map servers read."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Collection

from geoseg.classes import ClassTable, MapClass, format_color
from geoseg.export.qml import CLASS_FIELD, FILL_ALPHA, OUTLINE, shown

_OGC = "http://www.opengis.net/ogc"
_SE = "http://www.opengis.net/se"
_SLD = "http://www.opengis.net/sld"


def style_sld(classes: ClassTable, layer: str, *, present: Collection[int] | None = None) -> str:
    """An SLD style: a rule with a fill for every class, as `geoseg.export.qml.style_qml` draws them.

    Args:
        classes: Ids, names and colours.
        layer: Name of the layer.
        present: Ids of the classes that the layer has; None takes all.
    """
    root = ET.Element("StyledLayerDescriptor", {"version": "1.1.0", "xmlns": _SLD, "xmlns:se": _SE, "xmlns:ogc": _OGC})
    named = ET.SubElement(root, "NamedLayer")
    ET.SubElement(named, "se:Name").text = layer
    style = ET.SubElement(named, "UserStyle")
    ET.SubElement(style, "se:Name").text = "classes"
    features = ET.SubElement(style, "se:FeatureTypeStyle")
    for c in shown(classes, present):
        _add_rule(features, c)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _add_rule(features: ET.Element, c: MapClass) -> None:
    rule = ET.SubElement(features, "se:Rule")
    ET.SubElement(rule, "se:Name").text = c.name
    equal = ET.SubElement(ET.SubElement(rule, "ogc:Filter"), "ogc:PropertyIsEqualTo")
    ET.SubElement(equal, "ogc:PropertyName").text = CLASS_FIELD
    ET.SubElement(equal, "ogc:Literal").text = str(c.id)
    polygon = ET.SubElement(rule, "se:PolygonSymbolizer")
    fill = {"fill": format_color(c.color), "fill-opacity": f"{FILL_ALPHA / 255:.2f}"}
    stroke = {"stroke": format_color(OUTLINE), "stroke-width": "1", "stroke-linejoin": "mitre"}
    for tag, values in (("se:Fill", fill), ("se:Stroke", stroke)):
        element = ET.SubElement(polygon, tag)
        for name, value in values.items():
            ET.SubElement(element, "se:SvgParameter", name=name).text = value
