"""What is known of where a raster or layer lies on Earth; transformations between CRSs; opening and copying rasters."""

import threading
import warnings
import xml.etree.ElementTree as ET
from enum import Enum
from functools import lru_cache
from typing import Any, TypeAlias

import pyproj
import rasterio
import rasterio.shutil
from pyproj.exceptions import CRSError, ProjError
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError

from geoseg.errors import SceneError, quoted
from geoseg.options import AnyPath

AnyCRS: TypeAlias = CRS | pyproj.CRS | str

MERCATOR_LATITUDE = 85.0511287  # where Web Mercator's square ends, degrees

WARNINGS = threading.RLock()
"""Held inside `warnings.catch_warnings`, which changes the whole process: only one thread may be inside."""


class Georeference(Enum):
    """What is known of where a raster lies, decided by `Grid.georeference`; the value is to follow the file's name."""

    EARTH = "is in {crs}"
    BODY = "is in {crs}, a CRS of another celestial body: its coordinates are not longitudes and latitudes on Earth"
    LOCAL = "is in {crs}, a local CRS: where on Earth it lies is not known"
    ASTRAY = "has coordinates that its CRS, {crs}, does not have: coordinates and areas are in the transform's unit"
    TRANSFORM = "has a transform but no CRS: coordinates and areas are in its unknown unit (--crs EPSG:… assigns one)"
    CRS_ALONE = "has a CRS, {crs}, but no transform: coordinates and areas are in pixels"
    NONE = "carries no georeference (no CRS, no transform): coordinates and areas are in pixels"


def crs_georeference(crs: AnyCRS) -> Georeference:
    """EARTH, BODY or LOCAL; engineering, vertical, geocentric and undefined CRSs are local."""
    return _crs_georeference(crs if isinstance(crs, str) else crs.to_wkt())


@lru_cache(maxsize=256)
def _crs_georeference(text: str) -> Georeference:
    try:
        known = pyproj.CRS.from_user_input(text)
    except CRSError:
        return Georeference.LOCAL
    is_horizontal = known.geodetic_crs is not None and (known.is_geographic or known.is_projected)
    if not is_horizontal or known.name.lower().startswith("undefined"):
        return Georeference.LOCAL
    try:
        pyproj.Transformer.from_crs(known, 4326)
    except ProjError:
        return Georeference.BODY
    return Georeference.EARTH


def crs_name(crs: AnyCRS | None) -> str:
    """``EPSG:32633``, else the CRS's name, or ``no CRS``."""
    if crs is None:
        return "no CRS"
    known = pyproj_crs(crs)
    authority = known.to_authority(min_confidence=100)
    return ":".join(authority) if authority is not None else known.name


def pyproj_crs(crs: AnyCRS | None) -> pyproj.CRS:
    """A CRS as pyproj's."""
    return pyproj.CRS.from_user_input(crs)


def are_apart(crs: AnyCRS, other: AnyCRS) -> bool:
    """Whether two CRSs differ and no transformation between them is known."""
    return pyproj_crs(crs) != pyproj_crs(other) and transformer(crs, other) is None


def transformer(crs: AnyCRS, wanted: AnyCRS) -> pyproj.Transformer | None:
    """The transformation from one CRS to another, x before y; None if none is known, as for a local CRS."""
    own, other = pyproj_crs(crs), pyproj_crs(wanted)
    if Georeference.LOCAL in (crs_georeference(own), crs_georeference(other)):
        return None  # PROJ would take the heights of a vertical CRS for coordinates
    try:
        return pyproj.Transformer.from_crs(own, other, always_xy=True)
    except ProjError:
        return None


def warp_command(dataset: Any) -> str | None:
    """The command for an open raster with GCPs, RPCs or geolocation arrays but no transform; None for others."""
    if dataset.crs is not None or not dataset.transform.is_identity:
        return None
    points, crs = dataset.gcps
    if points:
        how = "" if crs is not None else "-s_srs EPSG:… "
    elif dataset.rpcs is not None:
        how = "-rpc "
    elif dataset.tags(ns="GEOLOCATION"):
        how = "-geoloc "
    else:
        return None
    nothing = "" if dataset.nodata is not None else "-dstnodata 0 "
    return f"gdalwarp {how}{nothing}{quoted(dataset.name)} warped.tif"


def refuse_unwarped(path: str, command: str | None) -> None:
    """A `SceneError` for a raster with control points; ``command`` is that of `warp_command`."""
    if command is not None:
        raise SceneError(
            f"{path} has control points but no transform, so its pixels have no place on the ground", hint=command
        )


def open_raster(path: AnyPath, mode: str = "r", **options: Any) -> Any:
    """`rasterio.open` without its warning about a missing georeference; one thread at a time."""
    with WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(path, mode, **options)


def copy_raster(source: Any, target: AnyPath, **options: Any) -> None:
    """`rasterio.shutil.copy`, with a `RasterioIOError` for what GDAL reports, as rasterio's other functions have.

    It lets through GDAL's errors, whose classes have no public name.
    """
    try:
        rasterio.shutil.copy(source, target, **options)
    except (OSError, SystemError):  # SystemError if GDAL gives no reason
        raise
    except Exception as error:
        raise RasterioIOError(str(error)) from error


def as_vrt(dataset: Any) -> ET.Element:
    """The XML of a VRT that refers to an open raster; it has what GDAL knows and rasterio has no getter for."""
    with rasterio.MemoryFile(ext=".vrt") as memory:
        copy_raster(dataset, memory.name, driver="VRT")
        return ET.fromstring(memory.read())
