"""Class map → a valid coverage of polygons: neighbours share their borders exactly. Imports no torch."""

from geoseg.polygons.area import area_m2
from geoseg.polygons.polygonize import polygonize
from geoseg.polygons.simplify import Tolerance, parse_tolerance

__all__ = ["Tolerance", "area_m2", "parse_tolerance", "polygonize"]
