"""Where pixels lie on the ground: size, transform and CRS of a raster as one value.

Pixel convention (GDAL's): (0, 0) is the outer corner of the first pixel, its centre is (0.5, 0.5). Rows before
columns, height before width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyproj
from affine import Affine
from rasterio._err import CPLE_BaseError  # what rasterio.warp lets through; it has no public name
from rasterio.crs import CRS
from rasterio.errors import RasterioError

from geoseg.windows import Window

FloatArray = npt.NDArray[np.float64]

NO_WAY = (RasterioError, CPLE_BaseError, pyproj.exceptions.ProjError)
"""What rasterio and pyproj raise where no way leads from one CRS to another, as from a site's own coordinates."""


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

    def crop(self, window: Window) -> Grid:
        """The grid of a window, whose origin may lie outside this grid."""
        moved = self.transform @ Affine.translation(window.col, window.row)
        return Grid(window.height, window.width, moved, self.crs)

    def pixel_area_m2(self) -> FloatArray:
        """True area of a pixel on the ellipsoid for every row, m², shape (height,), measured at the row's middle.

        A map's own areas are not the ground's: Web Mercator exaggerates them by 2 at 45° latitude, UTM by up to
        0.1 %. Without a CRS, or with a local one that is tied to no ellipsoid, the area is that of the map.
        """
        t = self.transform
        determinant = abs(t.a * t.e - t.b * t.d)
        if self.crs is None:
            return np.full(self.height, determinant)
        rows, middle = np.arange(self.height, dtype=np.float64) + 0.5, self.width / 2
        x, y = t.a * middle + t.b * rows + t.c, t.d * middle + t.e * rows + t.f
        return determinant * ground_area_m2(pyproj.CRS.from_user_input(self.crs), x, y)

    def gsd_m(self) -> float | None:
        """Ground sample distance at the scene's centre, metres: the root of a pixel's true area; None without CRS."""
        if self.crs is None:
            return None
        middle = self.crop(Window(self.height // 2, 0, 1, self.width))
        return float(np.sqrt(middle.pixel_area_m2()[0]))


def ground_area_m2(crs: pyproj.CRS, x: FloatArray, y: FloatArray) -> FloatArray:
    """Area on the ellipsoid of one square map unit, m², at coordinates of a geographic or projected CRS.

    In a geographic CRS the product of the radii of curvature; in a projected one the same behind the Jacobian of
    the inverse projection, by central differences over 100 m (1e-9 exact). PROJ's own areal scale will not do: for
    Web Mercator it is the sphere's, 0.7 % off at the equator.

    Args:
        crs: Horizontal CRS of the coordinates.
        x: Eastings or longitudes, in the CRS's units.
        y: Northings or latitudes, in the CRS's units.

    Returns:
        Areas of the coordinates' shape; where the CRS has no inverse there, or no ellipsoid, the planar area.
    """
    unit = crs.axis_info[0].unit_conversion_factor  # metres, or radians
    if crs.is_geographic:
        return unit**2 * _square_radian_m2(crs, y * unit)
    planar = np.full(np.shape(x), unit**2)
    if crs.geodetic_crs is None:
        return planar
    to_lonlat = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    step = 50 / unit
    east, west, north, south = (
        np.stack(to_lonlat.transform(x + dx, y + dy, radians=True))
        for dx, dy in ((step, 0), (-step, 0), (0, step), (0, -step))
    )
    across, along = east - west, north - south
    for d in across, along:  # neighbours on both sides of the antimeridian are near each other
        d[0] = (d[0] + np.pi) % (2 * np.pi) - np.pi
    jacobian = np.abs(across[0] * along[1] - across[1] * along[0]) / (2 * step) ** 2
    area = jacobian * _square_radian_m2(crs, (north[1] + south[1]) / 2)
    return np.where(np.isfinite(area) & (area > 0), area, planar)


def _square_radian_m2(crs: pyproj.CRS, latitude: FloatArray) -> FloatArray:
    """Ground area of a square radian of longitude and latitude, m², at a latitude in radians; 0 past the poles."""
    ellipsoid = crs.ellipsoid
    a = ellipsoid.semi_major_metre if ellipsoid else 6378137.0
    b = ellipsoid.semi_minor_metre if ellipsoid else 6356752.314245
    e2 = 1 - (b / a) ** 2
    meridian = a * (1 - e2) / (1 - e2 * np.sin(latitude) ** 2) ** 1.5
    parallel = a * np.cos(latitude) / np.sqrt(1 - e2 * np.sin(latitude) ** 2)
    return np.asarray(meridian * np.maximum(parallel, 0), dtype=np.float64)
