"""Vector files as map tiles: of a file's features, kept in the user's cache, or the tiles of a PMTiles file itself."""

import gzip
import hashlib
import math
import sqlite3
import threading
import xml.etree.ElementTree as ET
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
from pmtiles import reader as pmtiles

from geoseg.classes import format_color
from geoseg.errors import SceneError, quoted
from geoseg.georeference import MERCATOR_LATITUDE, Georeference, crs_georeference
from geoseg.runtime.machine import user_cache
from geoseg.scene.vector_files import STYLES, VectorLayer, open_layer
from geoseg.view.feature_store import TiledLayer
from geoseg.view.place import WORLD_M, Bounds, Plane, lonlat_bounds, mercator

_MOST_ZOOM = 22
_SPACING_PX = 16
"""Mean distance of features from which on all are shown, px: some 1,000 in a tile, which is drawn 512 px wide."""

_VERSION = "4"


def tiled_layer(path: str, name: str, plane: Plane) -> TiledLayer:
    """A layer of a vector file as it lies on the page's map; only its extent is read."""
    try:
        layer = open_layer(path, name, count=True)
    except Exception as error:  # of pyogrio, pyarrow or GDAL
        raise SceneError(f"{path} cannot be read: {error}", hint=f"check it with: ogrinfo {quoted(path)}") from error
    placed_in = None if _is_on_earth(layer) else plane
    if not layer.features or layer.bounds is None or not np.isfinite(layer.bounds).all():
        return TiledLayer(layer, None, None, (0, 0), 0, Path())
    bounds = _mercator_bounds(layer, placed_in)
    width, height = max(bounds[2] - bounds[0], 1e-3), max(bounds[3] - bounds[1], 1e-3)
    spacing = math.sqrt(width * height / layer.features)
    full = min(max(round(math.log2(WORLD_M * _SPACING_PX / (512 * spacing))), 0), _MOST_ZOOM)
    status = Path(path).stat()
    facts = (str(Path(path).resolve()), name, status.st_size, status.st_mtime_ns, placed_in, _VERSION)
    store = user_cache("view") / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}.json"
    return TiledLayer(layer, placed_in, lonlat_bounds(bounds), (0, _MOST_ZOOM), full, store, style_colors(path, name))


def style_colors(path: str, layer: str) -> dict[str, str]:
    """Colours of the categories in a layer's QGIS style, by label and by value; none without such a style."""
    try:
        root = ET.fromstring(_style_in(path, layer) or Path(path).with_suffix(".qml").read_bytes())
    except (OSError, ET.ParseError):
        return {}
    colors = {}
    for symbol in root.iterfind(".//renderer-v2/symbols/symbol"):
        options = (e.get("value") or e.get("v") for e in symbol.iter() if "color" in (e.get("name"), e.get("k")))
        with suppress(ValueError):
            red, green, blue = map(int, (next(options, None) or "").split(",")[:3])
            colors[symbol.get("name")] = format_color((red, green, blue))
    found: dict[str, str] = {}
    for category in root.iterfind(".//renderer-v2/categories/category"):
        color = colors.get(category.get("symbol"))
        if color is not None:
            found |= {category.get(key, ""): color for key in ("value", "label")}
    return found


def _style_in(path: str, layer: str) -> str | None:
    """The style that a GeoPackage holds of a layer, if any."""
    if not path.lower().endswith(".gpkg"):
        return None
    query = f"SELECT styleQML FROM {STYLES} WHERE f_table_name = ? ORDER BY useAsDefault DESC"
    try:
        with closing(sqlite3.connect(f"{Path(path).resolve().as_uri()}?mode=ro", uri=True)) as connection:
            row = connection.execute(query, (layer,)).fetchone()
    except sqlite3.DatabaseError:  # most often, there is no such table
        return None
    return None if row is None else str(row[0])


class TileFile:
    """An open PMTiles file, which several threads may read; a `SceneError` if it holds no vector tiles."""

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        self.path = path
        source: Any = pmtiles
        try:
            with Path(path).open("rb") as file:
                self._reader = source.Reader(source.MmapSource(file))
            header = self._reader.header()
            self._fields = {entry["id"]: entry.get("fields", {}) for entry in self._reader.metadata()["vector_layers"]}
            self._bounds = [header[key] / 1e7 for key in ("min_lon_e7", "min_lat_e7", "max_lon_e7", "max_lat_e7")]
            self._zooms = int(header["min_zoom"]), int(header["max_zoom"])
        except Exception as error:  # of what pmtiles finds in place of a header
            raise SceneError(
                f"{path} holds no vector tiles that can be read", hint="make it anew with geoseg vectorize"
            ) from error

    def layers(self) -> list[TiledLayer]:
        """Its layers."""
        west, south, east, north = self._bounds
        found = []
        for name, fields in self._fields.items():
            layer = VectorLayer(self.path, name, "Unknown", "EPSG:4326", dict(fields), -1, None, True)
            found.append(TiledLayer(layer, None, (west, south, east, north), self._zooms, 0, Path(self.path)))
        return found

    def tile(self, z: int, x: int, y: int) -> bytes | None:
        """A vector tile; None where there are no features."""
        with self._lock:
            found: bytes | None = self._reader.get(z, x, y)
        return gzip.decompress(found) if found is not None and found.startswith(b"\x1f\x8b") else found


def _is_on_earth(layer: VectorLayer) -> bool:
    """Whether a layer has a CRS of the Earth, and coordinates that this CRS has."""
    if layer.crs is None or crs_georeference(layer.crs) is not Georeference.EARTH:
        return False
    if layer.bounds is not None and pyproj.CRS.from_user_input(layer.crs).is_geographic:
        # GeoJSON has no other CRS, and that of a map without one holds its pixels.
        return max(map(abs, layer.bounds[::2])) <= 360 and max(map(abs, layer.bounds[1::2])) <= 90
    return True


def _mercator_bounds(layer: VectorLayer, plane: Plane | None) -> Bounds:
    assert layer.bounds is not None
    left, bottom, right, top = layer.bounds
    if plane is not None:
        return *(plane.transform @ (left, bottom)), *(plane.transform @ (right, top))
    way = pyproj.Transformer.from_crs(layer.crs, 4326, always_xy=True)
    west, south, east, north = way.transform_bounds(left, bottom, right, top)
    east = east if east >= west else 180.0
    south, north = (min(max(v, -MERCATOR_LATITUDE), MERCATOR_LATITUDE) for v in (south, north))
    return *mercator(west, south), *mercator(east, north)
