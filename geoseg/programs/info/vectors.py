"""Facts about a file of features."""

from typing import Any

from geoseg.errors import LabelError, quoted
from geoseg.georeference import crs_georeference, pyproj_crs
from geoseg.paths import input_path
from geoseg.programs.info.rasters import FEW_VALUES, Fact, crs_text, extent, file_size
from geoseg.scene.vector_files import STYLES, VectorLayer, layer_names, open_layer, reading
from geoseg.words import count


def vector_facts(path: str) -> list[Fact]:
    """Facts about a file of features, layer by layer: CRS, count, fields, and values of fields that may be classes."""
    name = input_path(path)
    facts = [("vector", f"{path}{file_size(path)}")]
    with reading("vector file", name, LabelError):
        for layer, _ in layer_names(name):
            if layer == STYLES:
                facts.append(("styles", "QGIS styles are inside"))
            else:
                facts += _layer_facts(open_layer(name, layer, count=True))
    return facts


def _layer_facts(layer: VectorLayer) -> list[Fact]:
    facts = [("layer", f"{layer.name}: {count(layer.features, 'feature')} of type {layer.kind or 'none'}")]
    if layer.crs is None:
        command = f"ogr2ogr -a_srs EPSG:… with_crs.gpkg {quoted(layer.path)} {quoted(layer.name)}"
        text = f"layer {layer.name} has no CRS, so it cannot be laid over a scene: {command}"
        facts += [("CRS", "none"), ("warning", text)]
    else:
        crs = pyproj_crs(layer.crs)
        facts.append(("CRS", crs_text(crs)))
        if layer.features and layer.bounds is not None:
            facts.append(("extent", extent(crs_georeference(crs), crs, layer.bounds)))
    attributes = layer.table()
    for field, dtype in layer.fields.items():
        kind = "text" if dtype in ("object", "string", "large_string") else dtype
        facts.append(("field", f"{field}: {kind}{_class_values(attributes[field])}"))
    return facts


def _class_values(column: Any) -> str:
    """Values and their counts, where few values recur as the classes of labels do."""
    counts = column.value_counts()
    recur = len(counts) == 1 or (1 < len(counts) <= FEW_VALUES and counts.iloc[0] > 1)
    if column.dtype.kind in "fM" or not recur or max(len(str(value)) for value in counts.index) > 60:
        return ""
    missing = int(column.isna().sum())
    values = [f"{value} ({count})" for value, count in counts.items()] + ([f"empty ({missing})"] if missing else [])
    return ", values " + ", ".join(values)
