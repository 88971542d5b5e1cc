"""Where pixels lie on the ground: size, transform and CRS of a raster as one value."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyproj
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError

from geoseg.arrays import FloatArray
from geoseg.errors import SceneError, quoted
from geoseg.georeference import Georeference, crs_georeference, crs_name, pyproj_crs
from geoseg.windows import Window

_MOST_LATITUDE, _MOST_LONGITUDE = 180, 720
"""Degrees that a raster's centre may have: some continue past the antimeridian or a pole; metres are far more."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Height and width in px, the affine pixel → CRS transform, and the CRS or None.

    A raster without a transform has the identity: its coordinates are pixels.
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
    def georeference(self) -> Georeference:
        """What is known of where the raster lies."""
        if self.crs is None:
            # Polygons of a raster without georeference have y = -row (`as_drawn`).
            is_pixels = self.transform in (Affine.identity(), Affine.scale(1, -1))
            return Georeference.NONE if is_pixels else Georeference.TRANSFORM
        if not self.has_transform:
            return Georeference.CRS_ALONE
        kind = crs_georeference(self.crs)
        return kind if kind is Georeference.LOCAL or self._is_on_globe() else Georeference.ASTRAY

    @property
    def has_transform(self) -> bool:
        """Whether the raster has a transform."""
        return not self.transform.is_identity

    @property
    def is_georeferenced(self) -> bool:
        """Whether the raster has a CRS and a transform."""
        return self.crs is not None and self.has_transform

    @property
    def is_metric(self) -> bool:
        """Whether lengths and areas are known in metres, on an ellipsoid or in a local plane."""
        kind = self.georeference
        is_plane = kind is Georeference.LOCAL and not pyproj_crs(self.crs).is_geographic
        return kind in (Georeference.EARTH, Georeference.BODY) or is_plane

    @property
    def area_unit(self) -> tuple[str, float]:
        """The unit in which areas are reported, and the factor for `pixel_area_m2`."""
        if self.is_metric:
            return "ha", 1e-4
        return ("px" if self.georeference in (Georeference.NONE, Georeference.CRS_ALONE) else "units²"), 1.0

    @property
    def place_note(self) -> str | None:
        """A sentence about the georeference, to follow the file's name; None for a CRS of the Earth."""
        kind = self.georeference
        return None if kind is Georeference.EARTH else kind.value.format(crs=crs_name(self.crs))

    def as_drawn(self) -> Grid:
        """The grid as GIS programs draw it: without a transform, y is -row."""
        if self.has_transform:
            return self
        return dataclasses.replace(self, transform=Affine.scale(1, -1), crs=None)

    def _is_on_globe(self) -> bool:
        """Whether the raster's centre has a longitude and a latitude."""
        known = pyproj_crs(self.crs)
        x, y = self.transform @ (self.width / 2, self.height / 2)
        if known.is_geographic:
            degrees = np.degrees(known.axis_info[0].unit_conversion_factor)
            return bool(abs(y * degrees) <= _MOST_LATITUDE and abs(x * degrees) <= _MOST_LONGITUDE)
        return bool(np.isfinite(_to_lonlat(known.to_wkt()).transform(x, y)).all())

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

        Areas in map units differ: by a factor of 2 in Web Mercator at 45° latitude, by up to 0.1 % in UTM. In a local
        CRS the area is that of its plane; without a CRS (`area_unit`) that of the transform.
        """
        unit_m2 = abs(self.transform.determinant)
        if not self.is_metric:
            return np.full(self.height, unit_m2)
        t, rows, middle = self.transform, np.arange(self.height, dtype=np.float64) + 0.5, self.width / 2
        x, y = t.a * middle + t.b * rows + t.c, t.d * middle + t.e * rows + t.f
        return unit_m2 * ground_area_m2(pyproj_crs(self.crs), x, y)

    def gsd_m(self) -> float | None:
        """Ground sample distance at the centre, m: the root of a pixel's true area; None if not `is_metric`."""
        if not self.is_metric:
            return None
        middle = self.crop(Window(self.height // 2, 0, 1, self.width))
        return float(np.sqrt(middle.pixel_area_m2()[0]))

    def pixel_size_m(self) -> tuple[float, float] | None:
        """Height and width of the centre pixel on the ground, m; None if not `is_metric`."""
        if not self.is_metric:
            return None
        t = self.transform
        x, y = np.array(t @ (self.width / 2, self.height / 2))
        steps = ground_steps(pyproj_crs(self.crs), x, y) @ [[t.b, t.a], [t.e, t.d]]  # one pixel down, one to the right
        height, width = np.hypot(*steps).tolist()
        return height, width


def grid_of(dataset: Any, crs: str | None = None) -> Grid:
    """The grid of an open rasterio dataset; ``crs``, as EPSG code or WKT, is that of a file that has none.

    A `SceneError` if there is no such CRS, the file has another or no transform, or its coordinates cannot be in it.
    """
    grid, path = Grid(dataset.height, dataset.width, dataset.transform, dataset.crs), dataset.name
    if crs is None:
        return grid
    try:
        known = CRS.from_user_input(crs)
    except CRSError as error:
        raise SceneError(
            f"{path} cannot be given the CRS {crs!r}, which is unknown", hint="give its code, as in EPSG:32633"
        ) from error
    if grid.crs is not None and grid.crs != known:
        raise SceneError(
            f"{path} is in {crs_name(grid.crs)}, so it cannot be given the CRS {crs_name(known)}",
            hint=f"leave the CRS out, or reproject the file: gdalwarp -t_srs {quoted(crs)} {quoted(path)} warped.tif",
        )
    assigned = dataclasses.replace(grid, crs=known)
    if grid.georeference in (Georeference.NONE, Georeference.CRS_ALONE):
        raise SceneError(
            f"{path} has no transform, so a CRS does not say where its pixels lie",
            hint="leave the CRS out, or put a world file beside the raster",
        )
    if assigned.georeference is Georeference.ASTRAY:
        left, bottom, right, top = grid.bounds
        raise SceneError(
            f"{path} cannot be in {crs_name(known)}: its x runs from {left:.9g} to {right:.9g}, "
            f"its y from {bottom:.9g} to {top:.9g}",
            hint="give the CRS that these coordinates are in",
        )
    return assigned


@lru_cache(maxsize=64)
def _to_lonlat(wkt: str) -> pyproj.Transformer:
    """From a CRS to the longitudes and latitudes on its own ellipsoid, degrees."""
    crs = pyproj.CRS.from_wkt(wkt)
    return pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)


def crs_hint(grid: Grid) -> str:
    """How to give a scene without a CRS one."""
    if grid.georeference is Georeference.TRANSFORM:
        return "say which CRS the scene is in: --crs EPSG:…, or crs: EPSG:… in the scene's entry of a configuration"
    return "the scene has no transform: georeference it first, in QGIS or with control points and gdalwarp"


def ground_area_m2(crs: pyproj.CRS, x: FloatArray, y: FloatArray) -> FloatArray:
    """Area on the ellipsoid of one square map unit, m², at coordinates x, y of a geographic or projected CRS.

    PROJ's areal scale is that of the sphere for Web Mercator, 0.7 % off. Where the CRS has no inverse, or no ellipsoid,
    it is the planar area.
    """
    (east_x, east_y), (north_x, north_y) = np.moveaxis(ground_steps(crs, x, y), (-2, -1), (0, 1))
    area: FloatArray = np.abs(east_x * north_y - east_y * north_x)
    if crs.is_geographic:
        return area
    return np.where(np.isfinite(area) & (area > 0), area, crs.axis_info[0].unit_conversion_factor ** 2)


def ground_steps(crs: pyproj.CRS, x: FloatArray, y: FloatArray) -> FloatArray:
    """Metres east and north on the ellipsoid that a step of one map unit leads, at coordinates of a CRS.

    The radii of curvature; in a projected CRS times the Jacobian of the inverse projection, by central differences over
    100 m (1e-9 exact).

    Returns:
        Matrices (…, 2, 2) for coordinates (…): rows east and north, columns x and y. Not finite where the CRS has no
        inverse; those of the plane in a local CRS.
    """
    unit = crs.axis_info[0].unit_conversion_factor  # metres, or radians
    zero = np.zeros(np.shape(x))
    if crs.is_geographic:
        parallel, meridian = _radii_m(crs, np.asarray(y) * unit)
        return _matrices(unit * parallel, zero, zero, unit * meridian)
    if crs_georeference(crs) is Georeference.LOCAL:
        return _matrices(zero + unit, zero, zero, zero + unit)
    to_lonlat = _to_lonlat(crs.to_wkt())
    step = 50 / unit
    east, west, north, south = (
        np.stack(to_lonlat.transform(x + dx, y + dy, radians=True))
        for dx, dy in ((step, 0), (-step, 0), (0, step), (0, -step))
    )
    across, along = east - west, north - south
    for d in across, along:  # neighbours on both sides of the antimeridian are near each other
        d[0] = (d[0] + np.pi) % (2 * np.pi) - np.pi
    across, along = across / (2 * step), along / (2 * step)
    parallel, meridian = _radii_m(crs, (north[1] + south[1]) / 2)
    return _matrices(parallel * across[0], parallel * along[0], meridian * across[1], meridian * along[1])


def _matrices(a: FloatArray, b: FloatArray, c: FloatArray, d: FloatArray) -> FloatArray:
    """Matrices ((a, b), (c, d)), (…, 2, 2)."""
    return np.stack([np.stack([a, b], axis=-1), np.stack([c, d], axis=-1)], axis=-2)


def _radii_m(crs: pyproj.CRS, latitude: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Metres on the ground of a radian of longitude and of latitude, at a latitude in radians; 0 past the poles."""
    ellipsoid = crs.ellipsoid
    a = ellipsoid.semi_major_metre if ellipsoid else 6378137.0
    b = ellipsoid.semi_minor_metre if ellipsoid else 6356752.314245
    e2 = 1 - (b / a) ** 2
    meridian = a * (1 - e2) / (1 - e2 * np.sin(latitude) ** 2) ** 1.5
    parallel = a * np.cos(latitude) / np.sqrt(1 - e2 * np.sin(latitude) ** 2)
    return np.maximum(parallel, 0), meridian
