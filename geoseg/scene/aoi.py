"""Area of interest: polygons of any vector file, in any CRS, as validity of windows of a scene.

A pixel is inside if its centre is, whatever the window; with GDAL the window counts if an edge runs through centres.
"""

import hashlib

import numpy as np
import pyproj
import shapely

from geoseg.arrays import BoolArray, Geometries, Int32Array
from geoseg.errors import GeosegError, SceneError, quoted
from geoseg.georeference import pyproj_crs, transformer
from geoseg.grid import Grid, crs_hint
from geoseg.options import AnyPath
from geoseg.paths import input_path
from geoseg.scene.vector_files import bounds_in, polygon_layer, reading, single_polygons
from geoseg.windows import Window

_EDGE_SHARE = 256
"""Edges are cut to at most this share of the scene before they change CRS, where straight lines become curves.
What is left is below (1/256)² of the curve's own sagitta, 5 mm for a border of 100 km along a parallel."""

_CHUNK_PX = 1 << 22


class Aoi:
    """Valid polygons in pixel coordinates of one grid, x = columns, y = rows from its corner; they may overlap.

    ``digest`` is what changes when the polygons do.
    """

    def __init__(self, polygons: Geometries, digest: str) -> None:
        self.digest = digest
        self._tree = shapely.STRtree(polygons)
        # Exteriors turn one way and holes the other: the sum of turns is 0 outside, and not 0 in overlaps.
        points, ring = shapely.get_coordinates(shapely.get_rings(shapely.orient_polygons(polygons)), return_index=True)
        same = ring[1:] == ring[:-1]
        a, b = points[:-1][same], points[1:][same]
        down = a[:, 1] < b[:, 1]
        # From the upper end to the lower whichever way it runs: a border of two polygons crosses a row in one place.
        high, low = np.where(down[:, None], a, b), np.where(down[:, None], b, a)
        # Rows whose centres an edge crosses: y_high <= row + ½ < y_low.
        first, stop = (np.ceil(end[:, 1] - 0.5).astype(np.int64) for end in (high, low))
        crosses = first < stop
        self._first, self._stop = first[crosses], stop[crosses]
        self._x, self._y = high[crosses].T
        self._slope = ((low[:, 0] - high[:, 0])[crosses]) / ((low[:, 1] - high[:, 1])[crosses])
        self._left = np.minimum(high[:, 0], low[:, 0])[crosses]
        self._turn = np.where(down, 1, -1)[crosses]

    def touches(self, window: Window) -> bool:
        """Whether any polygon meets a window; False means that no pixel of it is inside."""
        outline = shapely.box(window.col, window.row, window.col_stop, window.row_stop)
        return len(self._tree.query(outline, predicate="intersects")) > 0

    def mask(self, window: Window) -> BoolArray:
        """Pixels (H, W) of a window whose centre lies in a polygon."""
        inside = np.zeros((window.height, window.width), dtype=bool)
        if self.touches(window):
            rows = max(_CHUNK_PX // window.width, 1)
            for top in range(0, window.height, rows):
                part = inside[top : top + rows]
                part[:] = self._winding(Window(window.row + top, window.col, len(part), window.width)) != 0
        return inside

    def _winding(self, window: Window) -> Int32Array:
        """Winding number of the polygons around each pixel's centre, (H, W)."""
        # Edges right of the window do not matter; those left of it do.
        met = (self._first < window.row_stop) & (self._stop > window.row) & (self._left < window.col_stop)
        edges = np.flatnonzero(met)
        first = np.maximum(self._first[edges], window.row)
        count = np.minimum(self._stop[edges], window.row_stop) - first
        edge = np.repeat(edges, count)
        row = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count - first, count)
        x = self._x[edge] + (row + 0.5 - self._y[edge]) * self._slope[edge]
        # Clipped as floats: far outside, a column does not fit an integer.
        col = np.clip(np.ceil(x - 0.5), window.col, window.col_stop).astype(np.int64)
        turns = np.zeros((window.height, window.width + 1), dtype=np.int32)
        np.add.at(turns, (row - window.row, col - window.col), self._turn[edge].astype(np.int32))
        return np.cumsum(turns[:, :-1], axis=1, dtype=np.int32)


def load_aoi(path: AnyPath, grid: Grid, *, what: str = "area of interest", kind: type[GeosegError] = SceneError) -> Aoi:
    """The polygons of a vector file with one layer of them as an area of interest of a scene.

    ``what`` the polygons are is for messages. An error of the given ``kind`` if `polygon_layer` finds none, only the
    file or only the scene has a CRS, or no polygon touches the scene.
    """
    path = input_path(path)
    layer = polygon_layer(path, what, kind)
    crs = layer.crs
    if (crs is None) == grid.is_georeferenced:
        without, has = (what, "scene") if crs is None else ("scene", what)
        raise kind(
            f"{path}: the {without} has no CRS, but the {has} has one",
            hint=f"say which one: ogr2ogr -a_srs EPSG:… with_crs.gpkg {quoted(path)}"
            if crs is None
            else crs_hint(grid),
        )
    with reading(what, path, kind):
        geometries = single_polygons(layer.read(bounds=bounds_in(crs, grid)).geometry.to_numpy())
        if not len(geometries) and not len(single_polygons(layer.read().geometry.to_numpy())):
            raise kind(f"{what} {path} holds no polygons", hint=f"see what it holds: geoseg info {quoted(path)}")
    # WKB in the file's own CRS: what is asked for, whatever PROJ makes of it.
    digest = hashlib.sha256(b"".join([str(crs).encode(), *shapely.to_wkb(geometries).tolist()])).hexdigest()
    polygons = single_polygons(shapely.make_valid(geometries, method="structure", keep_collapsed=False))
    if crs is not None:
        polygons = _to_crs(polygons, pyproj_crs(crs), grid, what, kind)
    to_px = ~grid.transform
    polygons = shapely.transform(
        polygons, lambda p: p @ np.array([[to_px.a, to_px.d], [to_px.b, to_px.e]]) + [to_px.c, to_px.f]
    )
    polygons = single_polygons(shapely.make_valid(polygons, method="structure", keep_collapsed=False))
    near = shapely.intersects(polygons, shapely.box(0, 0, grid.width, grid.height))
    if not near.any():
        raise kind(
            f"no polygon of the {what} {path} touches the scene",
            hint=f"check that both have the right CRS: geoseg info {quoted(path)}",
        )
    return Aoi(polygons[near], digest)


def _to_crs(polygons: Geometries, crs: pyproj.CRS, grid: Grid, what: str, kind: type[GeosegError]) -> Geometries:
    """Polygons near a grid in its CRS; straight edges stay where they were on the ground."""
    wanted = pyproj_crs(grid.crs)
    if crs == wanted:
        return polygons
    to_wanted = transformer(crs, wanted)
    if to_wanted is None:
        raise kind(
            f"no way is known from the CRS of the {what}, {crs.name}, to the scene's, {wanted.name}",
            hint="draw it in the scene's own CRS",
        )
    left, bottom, right, top = to_wanted.transform_bounds(*grid.bounds, direction="INVERSE")
    extent = max(right - left, top - bottom)
    if np.isfinite(extent) and left < right:
        # Most of a country's parcels are far from the scene, and what is far may have no place in its CRS.
        margin = extent / 10
        frame = shapely.box(left - margin, bottom - margin, right + margin, top + margin)
        polygons = polygons[shapely.intersects(polygons, frame)]
        polygons = single_polygons(shapely.intersection(polygons, frame))
        polygons = shapely.segmentize(polygons, extent / _EDGE_SHARE)
    moved = shapely.transform(polygons, lambda p: np.column_stack(to_wanted.transform(*p.T)))
    return np.asarray(moved[np.isfinite(shapely.bounds(moved)).all(axis=1)])
