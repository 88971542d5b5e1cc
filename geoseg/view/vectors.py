"""Vector files as map tiles: made once with GDAL's writer of PMTiles, kept in the user's cache, read tile by tile."""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyogrio
import pyproj
import shapely
from pmtiles import reader as pmtiles

from geoseg.errors import OutputError, SceneError
from geoseg.export.gdal import WKB_FIELD
from geoseg.export.pmtiles import write_tiles
from geoseg.files import atomic_output
from geoseg.georeference import Georeference, crs_georeference
from geoseg.runtime.user_cache import user_cache
from geoseg.scene.vector_files import VectorLayer, open_layer
from geoseg.view.place import WORLD_M, Bounds, Plane, lonlat_bounds, mercator

CLASS_FIELDS = ("class_name", "class", "label", "category", "type", "name")
"""Fields that may hold the names of classes, the likeliest first."""

_BATCH = 8192
_MOST_LEVEL = 22  # of GDAL's writer
_MOST_LATITUDE = 85.0511287
_KEPT = 32
"""Tile sets in the cache; those not used for longest go."""

_ZOOMS = 4
"""Zoom levels that are made: below them outlines would be a blot."""

_SPACING_PX = 64
"""Mean distance of the features at the highest level, px of a tile that is drawn 512 px wide."""

_VERSION = "2"


@dataclass(frozen=True, slots=True)
class TiledLayer:
    """A layer of features on the page's map; its tiles may have to be made.

    Attributes:
        layer: The layer.
        plane: Where it lies if it has no place on Earth; None if it has one.
        bounds: Longitudes and latitudes; None if it has no features.
        zooms: Lowest and highest zoom level.
        tiles: The PMTiles file: the layer's own file, or one in the cache.
    """

    layer: VectorLayer
    plane: Plane | None
    bounds: Bounds | None
    zooms: tuple[int, int]
    tiles: Path

    @property
    def is_made(self) -> bool:
        """Whether the tiles are there."""
        return self.tiles.exists()


def tiled_layer(path: str, name: str, plane: Plane) -> TiledLayer:
    """A layer of a vector file as it lies on the page's map; only its extent is read.

    Raises:
        SceneError: A layer whose extent cannot be read.
    """
    if path.lower().endswith(".pmtiles"):
        return _of_pmtiles(path, name)
    try:
        layer = open_layer(path, name, count=True)
    except Exception as error:  # of pyogrio, pyarrow or GDAL
        raise SceneError(f"{path} cannot be read: {error}", hint=f"check it with: ogrinfo {path}") from error
    on_earth = _is_on_earth(layer)
    if not layer.features or layer.bounds is None or not np.isfinite(layer.bounds).all():
        return TiledLayer(layer, None, None, (0, 0), Path())
    bounds = _mercator_bounds(layer, None if on_earth else plane)
    width, height = max(bounds[2] - bounds[0], 1e-3), max(bounds[3] - bounds[1], 1e-3)
    spacing = math.sqrt(width * height / layer.features)
    high = round(math.log2(WORLD_M * _SPACING_PX / (512 * spacing))) + 1
    high = min(max(high, 0), _MOST_LEVEL)
    status = Path(path).stat()
    facts = (str(Path(path).resolve()), name, status.st_size, status.st_mtime_ns, None if on_earth else plane, _VERSION)
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()
    low = max(high - _ZOOMS, 0)
    return TiledLayer(
        layer,
        None if on_earth else plane,
        lonlat_bounds(bounds),
        (low, high),
        user_cache("view") / f"{digest[:32]}.pmtiles",
    )


def make_tiles(tiled: TiledLayer, progress: Callable[[int], None]) -> None:
    """Make the tiles of a layer.

    Args:
        tiled: The layer.
        progress: Called with the number of features that have been read since the last call.

    Raises:
        OutputError: The cache cannot be written.
    """
    layer, plane = tiled.layer, tiled.plane
    folder = tiled.tiles.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot make folder {folder}: {error.strerror}", hint="set XDG_CACHE_HOME to a folder that can be written"
        ) from error
    _make_room(folder)
    with atomic_output(tiled.tiles) as scratch, _Opened(layer) as (schema, batches):

        def records() -> Iterator[pa.RecordBatch]:
            for batch in batches:
                if plane is not None and plane != Plane():
                    batch = _moved(batch, plane)
                yield batch
                progress(len(batch))

        crs = "EPSG:3857" if plane is not None else layer.crs
        write_tiles(records(), schema, scratch, tiled.zooms, layer=layer.name, crs=crs)


class _Opened:
    """The features of a layer as record batches, their geometry last."""

    def __init__(self, layer: VectorLayer) -> None:
        self._layer = layer
        self._context: Any = None

    def __enter__(self) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        if self._layer.path.lower().endswith((".parquet", ".geoparquet", ".pq")):
            frame = self._layer.read(list(self._layer.fields))
            geometry = frame.geometry.name
            table = pa.Table.from_pandas(frame.drop(columns=geometry), preserve_index=False)
            table = table.append_column(WKB_FIELD, pa.array(shapely.to_wkb(frame.geometry.to_numpy()), pa.binary()))
            return table.schema, iter(table.to_batches(max_chunksize=_BATCH))
        self._context = pyogrio.open_arrow(self._layer.path, layer=self._layer.name, batch_size=_BATCH)
        info, stream = self._context.__enter__()
        reader = pa.RecordBatchReader.from_stream(stream)
        geometry = info["geometry_name"] or "wkb_geometry"
        names = [n for n in reader.schema.names if n != geometry and n in self._layer.fields]
        schema = pa.schema([*(reader.schema.field(n) for n in names), WKB_FIELD])

        def batches() -> Iterator[pa.RecordBatch]:
            for batch in reader:
                columns = [batch.column(n) for n in names]
                yield pa.RecordBatch.from_arrays([*columns, batch.column(geometry).cast(pa.binary())], schema=schema)

        return schema, batches()

    def __exit__(self, *error: Any) -> None:
        if self._context is not None:
            self._context.__exit__(*error)


class TileFile:
    """An open PMTiles file; several threads may read it.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        with path.open("rb") as file:
            self._reader = _reader(file)
        with suppress(OSError):
            os.utime(path)  # used last

    def tile(self, z: int, x: int, y: int) -> bytes | None:
        """A gzipped vector tile; None where there are no features."""
        with self._lock:
            found: bytes | None = self._reader.get(z, x, y)
        return found


def values_of(layer: VectorLayer, field: str, most: int = 64) -> list[str]:
    """The different values of a field of text, sorted; none where there are more than ``most``."""
    if layer.path.lower().endswith(".pmtiles"):
        return []
    found: set[str] = set()
    with _Opened(layer) as (_, batches):
        for batch in batches:
            found |= {str(value) for value in pa.compute.unique(batch.column(field)).to_pylist() if value is not None}
            if len(found) > most:
                return []
    return sorted(found)


def class_field(layer: VectorLayer) -> str | None:
    """The field that holds the names of classes, if any."""
    by_name = {field.lower(): field for field in layer.fields}
    return next((by_name[name] for name in CLASS_FIELDS if name in by_name), None)


def _of_pmtiles(path: str, name: str) -> TiledLayer:
    try:
        with Path(path).open("rb") as file:
            reader = _reader(file)
            header, metadata = reader.header(), reader.metadata()
        layers = metadata["vector_layers"]
        known = next(entry for entry in layers if entry["id"] == name)
    except Exception as error:  # likewise
        raise SceneError(
            f"{path} holds no vector tiles that can be read", hint="make it anew with geoseg vectorize"
        ) from error
    bounds = tuple(header[key] / 1e7 for key in ("min_lon_e7", "min_lat_e7", "max_lon_e7", "max_lat_e7"))
    west, south, east, north = bounds
    layer = VectorLayer(path, name, "Unknown", "EPSG:4326", dict(known.get("fields", {})), -1, None, True)
    return TiledLayer(
        layer, None, (west, south, east, north), (int(header["min_zoom"]), int(header["max_zoom"])), Path(path)
    )


def _reader(file: BinaryIO) -> Any:
    source: Any = pmtiles
    return source.Reader(source.MmapSource(file))


def pmtiles_layers(path: str) -> list[str]:
    """Names of the layers of a PMTiles file.

    Raises:
        SceneError: No vector tiles.
    """
    try:
        with Path(path).open("rb") as file:
            return [entry["id"] for entry in _reader(file).metadata()["vector_layers"]]
    except Exception as error:  # of what pmtiles finds in place of a header
        raise SceneError(f"{path} holds no vector tiles that can be read", hint="check the file") from error


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
    south, north = (min(max(v, -_MOST_LATITUDE), _MOST_LATITUDE) for v in (south, north))
    return *mercator(west, south), *mercator(east, north)


def _moved(batch: pa.RecordBatch, plane: Plane) -> pa.RecordBatch:
    geometries = shapely.from_wkb(batch.column(batch.num_columns - 1).to_numpy(zero_copy_only=False))
    shift = np.array([plane.left, plane.top])
    geometries = shapely.transform(geometries, lambda xy: (xy - shift) * plane.unit)
    return batch.set_column(batch.num_columns - 1, WKB_FIELD, pa.array(shapely.to_wkb(geometries), pa.binary()))


def _make_room(folder: Path) -> None:
    files = sorted(folder.glob("*.pmtiles"), key=lambda file: file.stat().st_mtime)
    for file in files[: max(len(files) - _KEPT + 1, 0)]:
        file.unlink(missing_ok=True)
