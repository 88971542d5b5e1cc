"""Where pixels lie on the ground: size, transform and CRS of a raster as one value.

Pixel convention (GDAL's): (0, 0) is the outer corner of the first pixel, its centre is (0.5, 0.5). Rows before
columns, height before width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyproj
from affine import Affine
from rasterio.crs import CRS

from geoseg.windows import Window

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Grid:
    """Height and width in px, the affine pixel → CRS transform, and the CRS or None.

    A raster without georeference has the identity transform and no CRS; its "coordinates" are pixels.
    """

    height: int
    width: int
    transform: Affine
    crs: CRS | None

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width), px."""
        return self.height, self.width

    @property
    def is_georeferenced(self) -> bool:
        """True where the raster has a CRS; a transform alone says nothing of where on earth it lies."""
        return self.crs is not None

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(left, bottom, right, top) of the four outer corners in CRS units; holds for rotated rasters too."""
        corners = [self.transform @ (c, r) for r in (0, self.height) for c in (0, self.width)]
        xs, ys = zip(*corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    @property
    def area_of_interest(self) -> Window:
        """The whole raster as a window."""
        return Window(0, 0, self.height, self.width)

    def crop(self, window: Window) -> Grid:
        """The grid of a window, whose origin may lie outside this grid."""
        moved = self.transform @ Affine.translation(window.col, window.row)
        return Grid(window.height, window.width, moved, self.crs)

    def pixel_area_m2(self) -> FloatArray:
        """True area of a pixel on the ground for every row, m², shape (height,).

        In a geographic CRS the pixel's quadrilateral on the ellipsoid; in a projected one the planar area
        divided by the projection's areal scale at the middle of each row (Web Mercator exaggerates areas by
        2 at 45° latitude). Without a CRS a pixel counts as one unit.
        """
        if self.crs is None:
            return np.ones(self.height)
        rows = np.arange(self.height) + 0.5
        middle = self.width / 2
        t = self.transform
        x, y = t.a * middle + t.b * rows + t.c, t.d * middle + t.e * rows + t.f
        crs = pyproj.CRS.from_user_input(self.crs)
        determinant = abs(t.a * t.e - t.b * t.d)
        if crs.is_geographic:
            meridian, parallel = _radii_of_curvature(crs, np.radians(y))
            return determinant * math.radians(1) ** 2 * meridian * parallel
        unit = crs.axis_info[0].unit_conversion_factor
        return determinant * unit**2 / areal_scale(crs, x, y)

    def gsd_m(self) -> float | None:
        """Ground sample distance at the scene's centre, metres: the root of the pixel's true area; None without CRS."""
        if self.crs is None:
            return None
        row = max(self.height // 2 - 1, 0)
        middle = self.crop(Window(row, 0, 1, self.width))
        return float(np.sqrt(middle.pixel_area_m2()[0]))


def areal_scale(crs: pyproj.CRS, x: FloatArray, y: FloatArray) -> FloatArray:
    """Map area per ground area of a projected CRS at given coordinates in its units; 1 where it is undefined."""
    to_lonlat = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    lon, lat = to_lonlat.transform(x, y)
    factors = pyproj.Proj(crs).get_factors(lon, lat, errcheck=False)
    scale = np.asarray(factors.areal_scale, dtype=np.float64)
    return np.where(np.isfinite(scale) & (scale > 0), scale, 1.0)


def _radii_of_curvature(crs: pyproj.CRS, latitude: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Metres per radian along the meridian and along the parallel at a latitude in radians."""
    ellipsoid = crs.ellipsoid
    a = ellipsoid.semi_major_metre if ellipsoid else 6378137.0
    b = ellipsoid.semi_minor_metre if ellipsoid else 6356752.314245
    e2 = 1 - (b / a) ** 2
    w = np.sqrt(1 - e2 * np.sin(latitude) ** 2)
    return a * (1 - e2) / w**3, a * np.cos(latitude) / w
