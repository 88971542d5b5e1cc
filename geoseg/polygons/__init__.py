"""Class map → a valid coverage of polygons: neighbours share their borders exactly. Imports no torch."""

from geoseg.polygons.batch import PolygonBatch
from geoseg.polygons.polygonize import polygonize, polygonize_rows, to_frame
from geoseg.polygons.rules import PolygonRules, class_rules
from geoseg.polygons.tolerance import Tolerance, parse_tolerance

__all__ = [
    "PolygonBatch",
    "PolygonRules",
    "Tolerance",
    "class_rules",
    "parse_tolerance",
    "polygonize",
    "polygonize_rows",
    "to_frame",
]
