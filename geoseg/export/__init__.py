"""Polygons → GIS file, by suffix. Imports no torch.

Each exporter is a function ``(frame, path, classes)`` that writes one file (and what belongs to its format beside
it) and knows nothing of overwriting; `write_polygons` adds the QGIS style and publishes all of it together.
"""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from pathlib import Path

import geopandas

from geoseg.classes import ClassTable
from geoseg.errors import OutputError
from geoseg.export.qml import style_qml
from geoseg.export.vectors import write_flatgeobuf, write_geojson, write_geopackage, write_geoparquet, write_shapefile
from geoseg.outputs import atomic_output

Exporter = Callable[[geopandas.GeoDataFrame, Path, ClassTable], None]

EXPORTERS: dict[str, Exporter] = {
    ".geojson": write_geojson,
    ".gpkg": write_geopackage,
    ".shp": write_shapefile,
    ".fgb": write_flatgeobuf,
    ".parquet": write_geoparquet,
}

__all__ = ["EXPORTERS", "Exporter", "exporter_for", "style_qml", "write_polygons"]


def exporter_for(path: str | PathLike[str]) -> Exporter:
    """The exporter of a file's suffix, in any case; to be called before any work.

    Raises:
        OutputError: No exporter writes that suffix.
    """
    suffix = Path(path).suffix
    try:
        return EXPORTERS[suffix.lower()]
    except KeyError:
        found = f"the suffix {suffix}" if suffix else "no suffix"
        raise OutputError(
            f"output {path} has {found}, wanted one of {' '.join(EXPORTERS)}",
            hint=f"write for example -o {Path(path).with_suffix('.gpkg')}",
        ) from None


def write_polygons(frame: geopandas.GeoDataFrame, path: str | PathLike[str], classes: ClassTable) -> None:
    """Write polygons in the format of the suffix, with a QGIS style ``.qml`` beside; all of it or nothing.

    What is there under that name is replaced (call `geoseg.outputs.check_output` before the work).

    Args:
        frame: Columns class_id, class_name, area_m2 and geometry, as `geoseg.polygons.polygonize` gives them.
        path: Output file.
        classes: Names and colours for the style.

    Raises:
        OutputError: Unknown suffix, a folder that cannot be written, or a disk that is full.
    """
    exporter, path = exporter_for(path), Path(path)
    with atomic_output(path) as scratch:
        exporter(frame, scratch, classes)
        scratch.with_suffix(".qml").write_text(style_qml(classes), encoding="utf-8")
