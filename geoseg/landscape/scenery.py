"""`Landscape`: a generated scene as a value, whose pixels, labels and vector truth are read in windows or written."""

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyproj
import rasterio.errors
import rasterio.features
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, Resampling
from rasterio.windows import Window as RasterWindow
from shapely.geometry import Polygon, box

from geoseg.arrays import ByteArray, Float32Array, Geometries, IntArray, Pixels
from geoseg.classes import NODATA
from geoseg.errors import ConfigError
from geoseg.files import atomic_output, check_output
from geoseg.georeference import open_raster
from geoseg.grid import Grid
from geoseg.landscape.cover import cell_features
from geoseg.landscape.features import BUILDING, FIELD, GRASS, LANDSCAPE_CLASSES, SOIL, Features
from geoseg.landscape.network import Frame, generator
from geoseg.landscape.render import BANDS, Painter, burn_ids
from geoseg.options import AnyPath
from geoseg.scene.vector_files import meets
from geoseg.windows import Window, pieces

Progress = Callable[[Iterable[Window]], Iterable[Window]]

DTYPES = ("uint8", "uint16", "float32")
"""uint8: square root of reflectance, as an orthophoto; uint16: reflectance × 10000; float32: reflectance in [0, 1]."""

_METRES_PER_DEGREE = 111_320.0
_EXPOSURE = 2.3  # Reflectances above 1 / 2.3 are white in uint8.
_SNAP_PX = 2.0**-27  # Closer lines are merged: far below a pixel, far above the rounding of a window's coordinates.
_NOISE = {"uint8": 2.2, "uint16": 22.0, "float32": 0.0022}
_READ_BLOCKS = 4  # Blocks read together: fewer halos rendered twice, still little memory.
_TRUTH_PX = 4096  # Side of the pieces in which the truth of larger scenes is made and cut.


@dataclass(frozen=True, slots=True)
class Landscape:
    """An aerial scene that exists only as its parameters.

    The georeference has no effect on the pixels.

    Args:
        height: Rows, px.
        width: Columns, px.
        seed: Of everything: layout, colours, light, noise; non-negative.
        gsd_m: Side of a pixel, m; 0.3 to 0.5 looks like an orthophoto.
        crs: CRS of the scene as a string for PROJ, or None for a scene without georeference.
        bands: Names from `BANDS`, in order.
        dtype: One of `DTYPES`.
        nodata: Value of an irregular invalid region (a ragged flight edge and a hole), or None for no such region.
        transform: Any transform from pixel to CRS; None puts a north-up scene into the middle of the CRS's area of use.

    Raises:
        ConfigError: A size below 1, an unknown band, dtype or CRS, or a nodata value the dtype cannot hold.
    """

    height: int
    width: int
    _: KW_ONLY
    seed: int = 0
    gsd_m: float = 0.5
    crs: str | None = "EPSG:32633"
    bands: tuple[str, ...] = ("red", "green", "blue")
    dtype: str = "uint8"
    nodata: float | None = None
    transform: Affine | None = None
    grid: Grid = field(init=False, compare=False, repr=False)
    """Size, transform and CRS of the scene."""

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ConfigError(f"a landscape needs at least 1 × 1 px, found {self.height} × {self.width}")
        if not self.gsd_m > 0 or not math.isfinite(self.gsd_m):
            raise ConfigError(f"gsd_m must be above 0, found {self.gsd_m}")
        if self.seed < 0:
            raise ConfigError(f"seed must not be negative, found {self.seed}")
        unknown = [b for b in self.bands if b not in BANDS]
        if unknown or not self.bands:
            raise ConfigError(f"bands of a landscape are {', '.join(BANDS)}, found {', '.join(self.bands) or 'none'}")
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype of a landscape is one of {', '.join(DTYPES)}, found {self.dtype}")
        if self.nodata is not None and not _holds(self.dtype, self.nodata):
            raise ConfigError(f"nodata {self.nodata} is not a value of {self.dtype}")
        object.__setattr__(self, "grid", Grid(self.height, self.width, *self._georeference()))

    def _georeference(self) -> tuple[Affine, CRS | None]:
        if self.crs is None:
            return self.transform or Affine.identity(), None
        try:
            definition, crs = pyproj.CRS.from_user_input(self.crs), CRS.from_user_input(self.crs)
        except (pyproj.exceptions.CRSError, rasterio.errors.CRSError) as error:
            raise ConfigError(f"unknown CRS {self.crs}", hint="use an authority code such as EPSG:32633") from error
        return self.transform or _north_up(definition, self.gsd_m), crs

    @property
    def frame(self) -> Frame:
        """The lattice of roads and cells, placed so that small scenes show the point where four kinds of cells meet."""
        x, y = (min(side * self.gsd_m, 512.0) / 2 for side in (self.width, self.height))
        return Frame.around(self.seed, x, y)

    def read(self, window: Window) -> tuple[Pixels, ByteArray]:
        """Pixels (B, H, W) in ``dtype`` and class ids (H, W) of a window, 255 where the scene is invalid.

        They equal the crop of the whole scene bit for bit.

        Raises:
            ValueError: The window is empty or not inside the scene.
        """
        self._check(window)
        painter = Painter(self.seed, self.gsd_m, self.bands)
        halo = painter.halo_px
        around = Window(window.row - halo, window.col - halo, window.height + 2 * halo, window.width + 2 * halo)
        features = self._features(around)
        ids = burn_ids(features, around.height, around.width)
        labels = np.append(GRASS, features.classes).astype(np.uint8)[ids[halo:-halo, halo:-halo]]
        pixels = np.empty((len(self.bands), window.height, window.width), dtype=self.dtype)
        for strip, reflectance in painter.strips(features, ids, around):
            top = strip.row - window.row
            pixels[:, top : top + strip.height] = self._encode(reflectance, painter.sensor_noise(strip))
        if self.nodata is not None:
            burnt = rasterio.features.rasterize(self._invalid(window), out_shape=labels.shape, dtype="uint8")
            invalid = burnt == 1
            labels[invalid] = NODATA
            pixels[:, invalid] = self.nodata
        return pixels, labels

    def truth(self, window: Window | None = None) -> gpd.GeoDataFrame:
        """The polygons of a window, or of the whole scene: a disjoint coverage of its valid part.

        Columns are ``class_id``, ``class_name`` and ``geometry``, in CRS coordinates, or in pixels without CRS and
        transform. Burnt with `rasterio.features.rasterize` over the window's grid it gives the labels. Fields, plots
        and buildings are separate polygons; connected areas of any other class are one.

        Raises:
            ValueError: The window is empty or not inside the scene.
        """
        window = window or Window(0, 0, self.height, self.width)
        self._check(window)
        features = self._features(window)
        class_id, polygons = _coverage(features, window.height, window.width, without=self._invalid(window))
        transform = self.grid.crop(window).transform
        linear = np.array([[transform.a, transform.d], [transform.b, transform.e]])
        geometry = shapely.transform(polygons, lambda xy: xy @ linear + (transform.c, transform.f))
        names = [LANDSCAPE_CLASSES[n].name for n in class_id]
        return gpd.GeoDataFrame({"class_id": class_id, "class_name": names}, geometry=geometry, crs=self.grid.crs)

    def _check(self, window: Window) -> None:
        rows = 0 <= window.row < window.row_stop <= self.height
        if not (rows and 0 <= window.col < window.col_stop <= self.width):
            raise ValueError(f"{window} is not inside a landscape of {self.height} × {self.width} px")

    def _features(self, window: Window) -> Features:
        """The objects near a window in painter's order, polygons in its pixels; their table stays in metres."""
        frame = self.frame
        left, top, right, bottom = (v * self.gsd_m for v in (window.col, window.row, window.col_stop, window.row_stop))
        found = Features.join(cell_features(frame, i, j) for i, j in frame.cells_near(left, top, right, bottom))
        near = meets(found.polygons, (left, top, right, bottom))
        origin = np.array([window.col, window.row])
        polygons = shapely.transform(found.polygons[near], lambda xy: xy / self.gsd_m - origin)
        return Features(polygons, found.table[near])

    def _invalid(self, window: Window) -> list[Polygon]:
        """The invalid region in the window's pixel coordinates: a slanted, ragged edge on the left, and a hole."""
        if self.nodata is None:
            return []
        rng = generator(self.seed, 11)
        h, w = float(self.height), float(self.width)
        start, end = rng.uniform(0.02, 0.16, 2) * w
        # The outermost images end at different places: a staircase with a slant, its steps a little off the vertical.
        y = np.linspace(-1.3, h + 1.7, 14)
        x = start + (end - start) * (y / h) + rng.uniform(-0.02, 0.02, len(y)) * w
        stairs = np.column_stack([np.repeat(x, 2)[:-1], np.repeat(y, 2)[1:]])
        stairs[1::2] += (0.21, 0.37)
        edge = Polygon([(-2.6, -1.3), *stairs, (-2.6, h + 2.4)])
        angle = np.sort(rng.uniform(0, 2 * math.pi, 11))
        radius = rng.uniform(0.5, 1.0, 11) * 0.05 * min(h, w)
        cx, cy = rng.uniform(0.35, 0.85) * w, rng.uniform(0.2, 0.8) * h
        hole = Polygon(np.column_stack([cx + radius * np.cos(angle), cy + radius * np.sin(angle)]))
        return [shapely.transform(g, lambda xy: xy - [window.col, window.row]) for g in (edge, hole)]

    def _encode(self, reflectance: Float32Array, noise: Float32Array) -> Pixels:
        clipped = np.clip(reflectance, 0, 1)
        step = np.float32(_NOISE[self.dtype])
        if self.dtype == "float32":
            pixels: Pixels = np.clip(clipped + step * noise, np.float32(1e-4), np.float32(1))
        elif self.dtype == "uint16":
            pixels = np.clip(np.rint(clipped * np.float32(10000) + step * noise), 1, 10000).astype(np.uint16)
        else:
            tone = np.float32(255) * np.sqrt(np.minimum(clipped * np.float32(_EXPOSURE), np.float32(1)))
            pixels = np.clip(np.rint(tone + step * noise), 1, 254).astype(np.uint8)
        if self.nodata is not None and not math.isnan(self.nodata):
            # A valid pixel must not equal nodata; changing one band by one step is enough.
            clash = (pixels == pixels.dtype.type(self.nodata)).all(axis=0)
            if self.dtype == "float32":
                pixels[0][clash] = np.nextafter(np.float32(self.nodata), np.float32(0))
            else:
                pixels[0][clash] = int(self.nodata) + (1 if self.nodata < 100 else -1)
        return pixels


def _holds(dtype: str, nodata: float) -> bool:
    if dtype == "float32":
        return math.isnan(nodata) or bool(np.float32(nodata) == nodata)
    return float(nodata).is_integer() and 0 <= nodata <= np.iinfo(dtype).max


def _north_up(crs: pyproj.CRS, gsd_m: float) -> Affine:
    """A north-up transform whose origin is the rounded middle of the CRS's area of use."""
    area = crs.area_of_use
    lon, lat = ((area.west + area.east) / 2, (area.south + area.north) / 2) if area else (15.0, 48.0)
    if crs.is_geographic:
        lat = 48.0 if abs(lat) < 1 else lat
        degrees = gsd_m / _METRES_PER_DEGREE
        return Affine(degrees / math.cos(math.radians(lat)), 0, round(lon, 1), 0, -degrees, round(lat, 1))
    x, y = pyproj.Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True).transform(lon, lat)
    unit = crs.axis_info[0].unit_conversion_factor
    return Affine(gsd_m / unit, 0, round(x, -2), 0, -gsd_m / unit, round(y, -2))


def _coverage(features: Features, height: int, width: int, *, without: list[Polygon]) -> tuple[IntArray, Geometries]:
    """Class ids (n,) and disjoint polygons (n,) of a rectangle with objects in painter's order, in its pixels.

    It is cut along all outlines, and each face given to the topmost object; areas to leave out lie over all. Faces come
    from one noded set of lines, so neighbours share their borders vertex by vertex.
    """
    frame = box(0, 0, width, height)
    polygons = np.concatenate([features.polygons, np.array(without, dtype=object)])
    lines = shapely.union_all([*shapely.boundary(polygons), frame.exterior], grid_size=_SNAP_PX)
    faces = shapely.get_parts(shapely.polygonize(shapely.get_parts(lines)))
    inner = shapely.point_on_surface(faces)
    within = shapely.contains(frame, inner)
    faces, inner = faces[within], inner[within]
    face, index = shapely.STRtree(polygons).query(inner, predicate="within")
    top = np.full(len(faces), -1)
    np.maximum.at(top, face, index)
    kept = top < len(features)
    faces, top = faces[kept], top[kept]
    classes = np.append(features.classes, GRASS).astype(np.int64)[top]
    # Fields, plots and buildings stay apart; other classes are merged.
    apart = np.isin(classes, (SOIL, FIELD, BUILDING))
    group = np.where(apart, top + len(LANDSCAPE_CLASSES), classes)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    groups = np.split(order, starts[1:]) if len(order) else []
    joined = np.array([shapely.coverage_union_all(faces[members]) for members in groups], dtype=object)
    polygons, owner = shapely.get_parts(joined, return_index=True)
    return classes[order[starts]][owner], polygons


def write_landscape(
    landscape: Landscape,
    scene_path: AnyPath,
    *,
    labels_path: AnyPath | None = None,
    truth_path: AnyPath | None = None,
    block: int = 512,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a landscape as files; memory does not grow with the scene.

    Args:
        scene_path: GeoTIFF of the pixels: tiled, deflate, BigTIFF if needed, named bands, overviews.
        labels_path: GeoTIFF of the class ids: uint8, nodata 255, a colour table, overviews.
        truth_path: GeoPackage of the polygons. Those of scenes above 4096 px are cut at multiples of 4096 px.
        block: Side of the TIFF's tiles, px; a multiple of 16.
        overwrite: Replace existing files.
        progress: Wraps the iterable of windows, as tqdm does.

    Raises:
        OutputError: An output exists, or its folder is missing or not writable.
        ValueError: ``block`` is not a multiple of 16.
    """
    if block < 16 or block % 16:
        raise ValueError(f"block must be a positive multiple of 16, found {block}")
    scene = check_output(scene_path, overwrite=overwrite)
    labels, truth = (None if p is None else check_output(p, overwrite=overwrite) for p in (labels_path, truth_path))
    with ExitStack() as published:
        parts = {path: published.enter_context(atomic_output(path)) for path in (scene, labels, truth) if path}
        _write_rasters(landscape, parts[scene], parts[labels] if labels else None, block, progress)
        if truth:
            for n, window in enumerate(pieces(*landscape.grid.shape, _TRUTH_PX, _TRUTH_PX)):
                mode = "a" if n else "w"
                landscape.truth(window).to_file(parts[truth], driver="GPKG", layer="truth", mode=mode)


def _write_rasters(
    landscape: Landscape, scene_path: Path, labels_path: Path | None, block: int, progress: Progress | None
) -> None:
    grid = landscape.grid
    layout: dict[str, Any] = {"driver": "GTiff", "tiled": True, "blockxsize": block, "blockysize": block}
    layout |= {"compress": "deflate", "zlevel": 6, "bigtiff": "if_safer"}
    layout |= {"height": grid.height, "width": grid.width, "transform": grid.transform, "crs": grid.crs}
    bands = landscape.bands
    rgb = bands[:3] == ("red", "green", "blue")
    # Without photometric and alpha a fourth band is alpha to GDAL, and dark infrared would read as a hole.
    scene_layout = layout | {
        **{"count": len(bands), "dtype": landscape.dtype, "nodata": landscape.nodata, "interleave": "pixel"},
        **{"predictor": 3 if landscape.dtype == "float32" else 2, "alpha": "no"},
        "photometric": "rgb" if rgb else "minisblack",
    }
    with ExitStack() as files:
        scene = files.enter_context(open_raster(scene_path, "w", **scene_layout))
        scene.descriptions = bands
        colors = [ColorInterp.red, ColorInterp.green, ColorInterp.blue] if rgb else [ColorInterp.gray]
        scene.colorinterp = colors + [ColorInterp.undefined] * (len(bands) - len(colors))
        truth = None
        if labels_path is not None:
            labels_layout = layout | {"count": 1, "dtype": "uint8", "nodata": NODATA}
            truth = files.enter_context(open_raster(labels_path, "w", **labels_layout))
            truth.write_colormap(1, {c.id: (*c.color, 255) for c in LANDSCAPE_CLASSES})
            truth.update_tags(1, **{f"class_{c.id}": c.name for c in LANDSCAPE_CLASSES})
        windows: Iterable[Window] = list(pieces(*grid.shape, block, block * _READ_BLOCKS))
        for window in progress(windows) if progress else windows:
            pixels, ids = landscape.read(window)
            target = RasterWindow(window.col, window.row, window.width, window.height)
            scene.write(pixels, window=target)
            if truth is not None:
                truth.write(ids, 1, window=target)
    _add_overviews(scene_path, Resampling.average, block)
    if labels_path is not None:
        _add_overviews(labels_path, Resampling.mode, block)


def _add_overviews(path: Path, resampling: Resampling, block: int) -> None:
    """Add overviews, each half as large as the last, down to one tile."""
    with open_raster(path, "r+") as file:
        levels = math.ceil(math.log2(max(*file.shape, block) / block))
        file.build_overviews([2**level for level in range(1, levels + 1)], resampling)
