"""Class map → a valid coverage of polygons: neighbours share their borders exactly. Imports no torch.

Rules and tolerances load at once; what makes polygons, and numba with it, when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from geoseg.options import PolygonRules
from geoseg.polygons.rules.options import check_without_polygons, class_rules
from geoseg.tolerance import Tolerance, parse_tolerance

if TYPE_CHECKING:
    from geoseg.polygons.batch import PolygonBatch
    from geoseg.polygons.coverage import polygonize, polygonize_rows, to_frame

__all__ = [
    "PolygonBatch",
    "PolygonRules",
    "Tolerance",
    "check_without_polygons",
    "class_rules",
    "parse_tolerance",
    "polygonize",
    "polygonize_rows",
    "to_frame",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        module = "batch" if name == "PolygonBatch" else "coverage"
        return getattr(import_module(f"geoseg.polygons.{module}"), name)
    raise AttributeError(f"module 'geoseg.polygons' has no attribute {name!r}")
