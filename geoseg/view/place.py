"""Where layers lie on the page's map, which is Web Mercator; and a plane there for what has no place on Earth."""

import math
from dataclasses import dataclass

import numpy as np
from affine import Affine
from rasterio.crs import CRS

from geoseg.georeference import Georeference
from geoseg.grid import Grid

MERCATOR = CRS.from_epsg(3857)
WORLD_M = 2 * math.pi * 6378137  # side of Web Mercator's square, m

MOST_ZOOM = 24
TILE_PX = 256

Bounds = tuple[float, float, float, float]

_MOST_M = 1e6
_PIXELS_M = 0.05, 1000.0


@dataclass(frozen=True, slots=True)
class Plane:
    """Where coordinates without a place on Earth are drawn: shifted and scaled, around 0° north, 0° east."""

    left: float = 0.0  # coordinate that is drawn at 0° east
    top: float = 0.0  # coordinate that is drawn at 0° north
    unit: float = 1.0  # web Mercator metres for one unit of the coordinates

    @property
    def transform(self) -> Affine:
        """From the coordinates to Web Mercator."""
        return Affine.scale(self.unit) @ Affine.translation(-self.left, -self.top)


def plane_of(grid: Grid) -> Plane:
    """The plane in which a raster without a place on Earth is drawn at a size that can be zoomed into.

    Pixel coordinates and most local ones stay as they are; far or tiny ones are moved, and a pixel becomes 1 m.
    """
    drawn = grid.as_drawn()
    left, bottom, right, top = drawn.bounds
    pixel = math.sqrt(abs(drawn.transform.determinant))
    if max(map(abs, (left, bottom, right, top))) < _MOST_M and _PIXELS_M[0] <= pixel <= _PIXELS_M[1]:
        return Plane()
    return Plane(left, top, 1 / pixel)


def is_on_earth(grid: Grid) -> bool:
    """Whether a raster has a place on Earth; all others lie in the plane."""
    return grid.georeference is Georeference.EARTH


def lonlat(x: float, y: float) -> tuple[float, float]:
    """Longitude and latitude of a place in Web Mercator, degrees."""
    radius = WORLD_M / (2 * math.pi)
    return math.degrees(x / radius), math.degrees(math.atan(math.sinh(y / radius)))


def mercator(lon: float, lat: float) -> tuple[float, float]:
    """Web Mercator coordinates of a longitude and latitude, m."""
    radius = WORLD_M / (2 * math.pi)
    return radius * math.radians(lon), radius * math.asinh(math.tan(math.radians(lat)))


def lonlat_bounds(bounds: Bounds) -> Bounds:
    """Longitudes and latitudes of bounds in Web Mercator."""
    return *lonlat(*bounds[:2]), *lonlat(*bounds[2:])


def tile_bounds(z: int, x: int, y: int) -> Bounds:
    """Bounds of a map tile in Web Mercator."""
    side = WORLD_M / 2**z
    left, top = x * side - WORLD_M / 2, WORLD_M / 2 - y * side
    return left, top - side, left + side, top


def tiles_over(bounds: Bounds, z: int) -> list[tuple[int, int, int]]:
    """The map tiles (z, x, y) of a zoom level that meet bounds in longitude and latitude."""
    (left, bottom), (right, top) = mercator(*bounds[:2]), mercator(*bounds[2:])
    count = 2**z
    columns, rows = (
        np.clip(np.floor((np.array(ends) / WORLD_M + 0.5) * count).astype(int), 0, count - 1).tolist()
        for ends in ((left, right), (-top, -bottom))
    )
    return [(z, x, y) for y in range(rows[0], rows[1] + 1) for x in range(columns[0], columns[1] + 1)]
