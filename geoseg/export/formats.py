"""The formats that GDAL writes, as data: drivers, options, and what a format can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Format:
    """A format as GDAL writes it.

    Attributes:
        driver: GDAL's name of the driver.
        geometry_type: Type of the layer's geometries.
        encoding: Encoding of texts, for drivers that ask.
        dataset_options: Dataset creation options.
        layer_options: Layer creation options.
        unreferenced: Further layer creation options of a layer without a CRS.
        is_exact: Whether geometries read back are the ones written, vertex for vertex.
    """

    driver: str
    geometry_type: str = "Polygon"
    encoding: str | None = None
    dataset_options: Mapping[str, str] = field(default_factory=dict)
    layer_options: Mapping[str, str] = field(default_factory=dict)
    unreferenced: Mapping[str, str] = field(default_factory=dict)
    is_exact: bool = True


# -1 is "undefined Cartesian"; GDAL's own choice would be an undefined CRS, which QGIS asks the user about.
GEOPACKAGE = Format("GPKG", dataset_options={"VERSION": "1.4"}, unreferenced={"SRID": "-1"})

FLATGEOBUF = Format("FlatGeobuf", layer_options={"SPATIAL_INDEX": "YES"})

# The .dbf holds the date of its last change. A constant one makes the same polygons the same bytes.
SHAPEFILE = Format("ESRI Shapefile", encoding="UTF-8", layer_options={"DBF_DATE_LAST_UPDATE": "1995-07-26"})
SHAPEFILE_BYTES = 2**31 - 1
"""Most bytes of a .shp or a .dbf: programs that seek with 32 bits read no further."""
FIELD_NAME_LENGTH = 10
FIELD_TEXT_BYTES = 254
FIELD_REAL_BYTES = 24
"""Width of a real number in the .dbf as GDAL writes it, with up to 15 decimals."""

PMTILES = Format("PMTiles", geometry_type="Unknown", is_exact=False)
TILE_UNITS = 4096
"""Units of a tile's side, to which its coordinates are rounded (GDAL's default)."""
MOST_ZOOM = 22
"""The highest zoom level that GDAL writes."""
MOST_LATITUDE = 85.0511287
"""Where Web Mercator's square ends, degrees."""
