"""Map tiles of rasters: colours of imagery, and the values of class maps as bytes that the page colours itself."""

import copy
import io
import math
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import rasterio
from PIL import Image
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.vrt import WarpedVRT
from rasterio.warp import calculate_default_transform, transform_bounds
from rio_tiler.reader import part

from geoseg.arrays import ByteArray
from geoseg.classes import NODATA
from geoseg.errors import quoted
from geoseg.georeference import MERCATOR_LATITUDE, as_vrt, open_raster
from geoseg.grid import Grid
from geoseg.runtime.machine import processors
from geoseg.scene import Scene
from geoseg.scene.open_files import OpenFiles
from geoseg.scene.shades import shades, stretch
from geoseg.view.place import MERCATOR, MOST_ZOOM, TILE_PX, WORLD_M, Bounds, Plane, is_on_earth, tile_bounds

_MOST_VALUES = 32e6  # values that may be decoded for one tile: about a second's work

_MOST_COUNTED = 1 << 26  # pixels up to which every one is counted; beyond, those of an overview
_CACHE_BYTES = 256 << 20
_QUALITY = 90

_AT_ONCE = threading.BoundedSemaphore(max(processors(), 2))
"""Tiles that are read at the same time; a browser asks for dozens."""


@dataclass(frozen=True, slots=True, eq=False)
class TiledRaster:
    """A raster on the page's map. Make it with `tiled`."""

    path: str  # the file
    name: str  # what GDAL opens: the file, or a VRT that puts it in its place
    grid: Grid  # the file's grid
    bounds: Bounds  # longitudes and latitudes
    pixel_zoom: float  # zoom level, a real number, at which its pixels are those of the map's tiles
    fast_zoom: int  # the lowest zoom level whose tiles are read in about a second
    bands: tuple[int, ...]  # 1-based bands of ``name`` that are drawn
    stretch: tuple[tuple[float, float], ...]  # values of each of them that come out black and white

    def zoom_levels(self, *, finer: int) -> tuple[int, int]:
        """The lowest and highest zoom level of its tiles; ``finer`` levels more than its pixels need."""
        high = min(max(math.ceil(self.pixel_zoom) + finer, 0), MOST_ZOOM)
        return min(self.fast_zoom, high), high

    @property
    def slow_note(self) -> str | None:
        """What to do where the whole raster cannot be shown at once; None where it can."""
        left, _, right, _ = self.bounds
        whole = math.log2(360 / max(right - left, 1e-9)) + 1
        if self.fast_zoom <= max(whole, 0):
            return None
        return (
            f"{self.path} has no overviews: it is shown from zoom {self.fast_zoom} on. Make it fast at any zoom: "
            f"geoseg prepare scenes {quoted(self.path)} -o tiled"
        )

    @contextmanager
    def counted(self) -> Iterator[Any]:
        """The open file to count pixels in; the first overview that is small enough stands for a large one."""
        height, width = self.grid.shape
        with rasterio.Env(GDAL_CACHEMAX=64 << 20):
            options: dict[str, Any] = {}
            if height * width > _MOST_COUNTED:
                with open_raster(self.path) as dataset:
                    steps = dataset.overviews(1)
                fitting = [i for i, step in enumerate(steps) if height * width / step**2 <= _MOST_COUNTED]
                options = {"overview_level": min(fitting, default=len(steps) - 1)} if steps else {}
            with open_raster(self.path, sharing=False, **options) as dataset:
                yield dataset

    def values(self, files: OpenFiles, z: int, x: int, y: int, band: int = 1) -> ByteArray:
        """The bytes of one band in a tile, (256, 256) uint8 by nearest neighbour, 255 where there are none."""
        tile = self._read(files, z, x, y, (band,), "nearest")
        return np.asarray(np.ma.filled(tile[0], NODATA), np.uint8)

    def picture(self, files: OpenFiles, z: int, x: int, y: int) -> tuple[bytes, str]:
        """Imagery in a tile as JPEG, or as PNG where it does not fill the tile, and its media type."""
        bands = self.bands if len(self.bands) >= 3 else self.bands[:1] * 3
        tile = self._read(files, z, x, y, self.bands, "bilinear")
        valid = ~np.ma.getmaskarray(tile).all(axis=0)
        pixels = np.ma.getdata(tile)
        if pixels.dtype.kind == "f":
            valid &= np.isfinite(pixels).all(axis=0)
        channels = [
            values if values.dtype == np.uint8 else shades(values, *ends)
            for values, ends in zip(pixels, self.stretch, strict=True)
        ]
        rgb = np.stack(channels if len(channels) == len(bands) else channels * 3, axis=-1)[..., :3]
        out = io.BytesIO()
        if valid.all():
            Image.fromarray(rgb).save(out, "JPEG", quality=_QUALITY)
            return out.getvalue(), "image/jpeg"
        rgba = np.dstack([rgb, np.where(valid, 255, 0).astype(np.uint8)])
        Image.fromarray(rgba).save(out, "PNG", compress_level=1)
        return out.getvalue(), "image/png"

    def _read(self, files: OpenFiles, z: int, x: int, y: int, bands: tuple[int, ...], method: Any) -> Any:
        with ExitStack() as stack:
            stack.enter_context(_AT_ONCE)
            stack.enter_context(rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES))
            dataset = stack.enter_context(files.borrow(self.name))
            source, t = dataset, dataset.transform
            if dataset.crs == MERCATOR and not (t.b == t.d == 0 and t.e < 0 < t.a):  # rio-tiler expects north up
                source = stack.enter_context(WarpedVRT(dataset, crs=MERCATOR, add_alpha=True))
            return part(
                source,
                tile_bounds(z, x, y),
                TILE_PX,
                TILE_PX,
                dst_crs=MERCATOR,
                indexes=bands,
                resampling_method=method,
                reproject_method=method,
            ).array


def tiled(scene: Scene, plane: Plane, bands: Sequence[int] | None = None, *, picks: bool = True) -> TiledRaster:
    """A raster as it lies on the page's map, in the plane if it has no place on Earth.

    ``bands`` are 1-based, three or one; None takes the first three, or the first of one or two. With ``picks`` no other
    bands are read.
    """
    grid = scene.grid
    pixels, valid = scene.sample()
    is_alpha = scene.alpha_band is not None and set(np.unique(pixels[scene.alpha_band - 1])) <= {0, 255}
    if bands is None:
        colors = [b for b in scene.bands if not (is_alpha and b == scene.alpha_band)]
        bands = colors[:3] if len(colors) >= 3 else colors[:1]
    read = list(bands)
    if is_alpha and scene.alpha_band is not None and scene.alpha_band not in bands:
        read.append(scene.alpha_band)
    # GDAL warps all of a dataset's bands through overviews, but some of them at full size.
    picked = read if picks and read != list(range(1, scene.file_bands + 1)) else None
    name = _name(scene, plane, keeps_alpha=is_alpha, picked=picked)
    with open_raster(name, sharing=False) as dataset:
        left, bottom, right, top = dataset.bounds if dataset.transform.is_rectilinear else grid.bounds
        corners = min(left, right), min(bottom, top), max(left, right), max(bottom, top)
        transform, _, _ = calculate_default_transform(dataset.crs, MERCATOR, grid.width, grid.height, *corners)
        west, south, east, north = transform_bounds(dataset.crs, CRS.from_epsg(4326), *corners)
        zoom = math.log2(WORLD_M / TILE_PX / abs(transform.a))
        fast = _fast_zoom(dataset, zoom, len(bands))
    return TiledRaster(
        path=scene.path,
        name=name,
        grid=grid,
        bounds=(west, max(south, -MERCATOR_LATITUDE), east if east > west else 180, min(north, MERCATOR_LATITUDE)),
        pixel_zoom=zoom,
        fast_zoom=fast,
        bands=tuple(bands) if picked is None else tuple(range(1, len(bands) + 1)),
        stretch=tuple((0, 255) if scene.dtype == np.uint8 else stretch(pixels[b - 1][valid]) for b in bands),
    )


def _name(scene: Scene, plane: Plane, *, keeps_alpha: bool, picked: list[int] | None) -> str:
    """The file, or a VRT as text: in the plane, of the picked bands, and near infrared tagged as alpha no alpha."""
    on_earth = is_on_earth(scene.grid)
    if on_earth and picked is None and (scene.alpha_band is None or keeps_alpha):
        return scene.path
    root = as_vrt(scene.dataset)
    for source in root.iter("SourceFilename"):
        source.attrib["relativeToVRT"] = "0"
        source.text = scene.path
    if picked is not None:
        elements = root.findall("VRTRasterBand")
        for element in elements:
            root.remove(element)
        for number, band in enumerate(picked, 1):
            element = copy.deepcopy(elements[band - 1])
            element.attrib["band"] = str(number)
            root.append(element)
    if not keeps_alpha:
        for color in root.iter("ColorInterp"):
            if color.text == "Alpha":
                color.text = ColorInterp.undefined.name.title()
    if not on_earth:
        for tag in ("SRS", "GeoTransform", "GCPList"):
            for element in root.findall(tag):
                root.remove(element)
        transform = plane.transform @ scene.grid.as_drawn().transform
        ET.SubElement(root, "SRS").text = MERCATOR.to_wkt()
        ET.SubElement(root, "GeoTransform").text = ", ".join(map(repr, map(float, transform.to_gdal())))
    return ET.tostring(root, encoding="unicode")


def _fast_zoom(dataset: Any, pixel_zoom: float, bands: int) -> int:
    """The lowest zoom level at which a tile takes no more than `_MOST_VALUES` decoded values."""
    levels = [1, *dataset.overviews(1)]
    rows, cols = dataset.block_shapes[0]
    for z in range(math.ceil(pixel_zoom), -1, -1):
        side = TILE_PX * 2 ** (pixel_zoom - z)
        level = max(level for level in levels if level <= max(side / TILE_PX, 1))
        height, width = (
            block * min(math.ceil(side / level / block) + 1, math.ceil(whole / level / block))
            for whole, block in ((dataset.height, rows), (dataset.width, cols))
        )
        if height * width * bands > _MOST_VALUES:
            return z + 1
    return 0
