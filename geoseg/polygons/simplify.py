"""How far polygons are simplified, and doing it with all shared borders at once.

GEOS simplifies a coverage after Visvalingam and Whyatt: the vertex whose triangle with its two neighbours is the
smallest goes first, until no triangle below ``tolerance²`` is left. So a tolerance of t px is a square's side, not
a distance: it removes what is smaller than t² px². The steps of a 45° stair (0.5 px² each) go from 0.71 px on, a
step of one pixel every n pixels goes where n / 2 < t². Kept vertices are vertices of the raster; junctions of three
and more polygons always stay.

References:
    M. Visvalingam, J. D. Whyatt, "Line generalisation by repeated elimination of points", 1993;
    GEOS `CoverageSimplifier`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import shapely

from geoseg.errors import ConfigError
from geoseg.grid import Grid

_TOLERANCE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(px|m)")


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Simplification tolerance: a positive value in pixels of the map or in metres on the ground."""

    value: float
    unit: Literal["px", "m"]

    def __post_init__(self) -> None:
        if not (self.value > 0 and math.isfinite(self.value)):
            raise ValueError(f"a tolerance is a positive number, found {self.value}")

    def __str__(self) -> str:
        return f"{self.value:g}{self.unit}"

    def in_pixels(self, grid: Grid) -> float:
        """The tolerance in pixels of a map.

        Raises:
            ConfigError: Metres, and the map has no CRS.
        """
        if self.unit == "px":
            return self.value
        gsd = grid.gsd_m()
        if gsd is None:
            raise ConfigError(
                f"a tolerance of {self} needs a georeferenced map, but this one has no CRS",
                hint="give the tolerance in pixels: --simplify 1px",
            )
        return self.value / gsd


def parse_tolerance(text: str) -> Tolerance | None:
    """The tolerance written as ``2px`` or ``0.5m``; None for ``none`` (and for zero).

    Raises:
        ConfigError: Anything else.
    """
    text = text.strip().lower()
    if text == "none":
        return None
    match = _TOLERANCE.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"tolerance {text!r} is neither pixels, nor metres, nor none",
            hint="write for example --simplify 2px, --simplify 0.5m or --simplify none",
        )
    value = float(match[1])
    if value == 0:
        return None
    return Tolerance(value, "px" if match[2] == "px" else "m")


def simplify_coverage(polygons: npt.NDArray[Any], tolerance_px: float) -> npt.NDArray[Any]:
    """Polygons of a valid coverage with fewer vertices; still a valid coverage, without gaps or overlaps.

    Args:
        polygons: Shapely polygons with all vertices of shared borders in both neighbours, pixel coordinates.
        tolerance_px: Side of the square whose area bounds what is removed, px.

    Returns:
        Array of the same length and order. With a GEOS that removes tiny islands, these come back empty and their
        hole in the surrounding polygon is closed.
    """
    if len(polygons) == 0 or tolerance_px <= 0:
        return polygons
    return np.asarray(shapely.coverage_simplify(polygons, tolerance_px))
