"""Class map → polygons → GIS file: the program behind ``geoseg vectorize``. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from affine import Affine

from geoseg.class_map import ClassMap, read_class_map
from geoseg.errors import LabelError
from geoseg.export import exporter_for, write_polygons
from geoseg.outputs import check_output
from geoseg.plan import count
from geoseg.polygons import Tolerance, polygonize

# Looked at on generated scenes: 1 px leaves the stairs of shallow slopes, 2 px starts to cut corners of small houses.
DEFAULT_SIMPLIFY = Tolerance(1.5, "px")


@dataclass(frozen=True, slots=True)
class ClassArea:
    """One class of a vectorised map: polygons and their area, m² (px where the map has no CRS)."""

    name: str
    polygons: int
    area_m2: float


@dataclass(frozen=True, slots=True)
class VectorReport:
    """What `vectorize` wrote.

    Attributes:
        path: The file.
        polygons: Number of polygons.
        classes: Polygons and areas of the classes, in the order of their ids.
        georeferenced: Whether the areas are of the ground (m²) or of the map alone (px).
    """

    path: Path
    polygons: int
    classes: tuple[ClassArea, ...]
    georeferenced: bool

    def lines(self) -> list[str]:
        """The report for people, the output's path first."""
        unit, factor = ("ha", 1e-4) if self.georeferenced else ("px", 1.0)
        width = max(len(c.name) for c in self.classes)
        return [str(self.path)] + [
            f"  {c.name:{width}}  {c.area_m2 * factor:12,.2f} {unit}  {count(c.polygons, 'polygon')}"
            for c in self.classes
        ]


def vectorize(
    map_path: str | PathLike[str],
    output: str | PathLike[str],
    *,
    simplify: Tolerance | None = DEFAULT_SIMPLIFY,
    min_area_m2: float = 0.0,
    overwrite: bool = False,
) -> VectorReport:
    """Write the polygons of a class map as a GIS file, in the format of the output's suffix.

    Args:
        map_path: Class map: what `geoseg predict` wrote, or any raster of one uint8 band.
        output: ``.geojson``, ``.gpkg``, ``.shp``, ``.fgb`` or ``.parquet``; a ``.qml`` style comes beside it.
        simplify: Tolerance for borders (see `geoseg.polygons.simplify`), or None to keep every pixel step.
        min_area_m2: Regions below this area go to a neighbour (see `geoseg.polygons.polygonize`).
        overwrite: Replace what is there.

    Raises:
        SceneError: The input is no class map, or unreadable.
        OutputError: Unknown suffix, the output exists, or its folder cannot be written.
        LabelError: A value outside the map's class table.
        ConfigError: A tolerance in metres, and the map has no CRS.
    """
    exporter_for(output)
    path = check_output(output, overwrite=overwrite, inputs=[map_path])
    class_map = read_class_map(map_path)
    try:
        frame = polygonize(
            class_map.values,
            _transform(class_map),
            crs=class_map.grid.crs,
            classes=class_map.classes,
            simplify=simplify,
            min_area_m2=min_area_m2,
        )
    except LabelError as error:
        raise LabelError(
            f"{map_path}: {error.message}", hint=f"see what it holds with: geoseg info {map_path}"
        ) from error
    write_polygons(frame, path, class_map.classes)
    total = len(class_map.classes)
    polygons = np.bincount(frame.class_id, minlength=total)
    areas = np.bincount(frame.class_id, weights=frame.area_m2, minlength=total)
    by_class = (ClassArea(c.name, int(polygons[c.id]), float(areas[c.id])) for c in class_map.classes)
    return VectorReport(path, len(frame), tuple(by_class), class_map.grid.is_georeferenced)


def _transform(class_map: ClassMap) -> Affine:
    transform = class_map.grid.transform
    if class_map.grid.crs is None and transform.is_identity:
        # QGIS draws a raster without georeference with its rows running down from y = 0; so do its polygons.
        return Affine.scale(1, -1)
    return transform
