"""Corrections of a class map: polygons that a person drew, in ``MAP.corrections.gpkg`` beside it."""

from __future__ import annotations

import hashlib
import sqlite3
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyproj
import shapely
from rasterio.crs import CRS

from geoseg.classes import IGNORE, RIGHT
from geoseg.errors import ConfigError, OutputError, SceneError
from geoseg.files import atomic_output, check_output, make_folder
from geoseg.georeference import WARNINGS
from geoseg.runtime.machine import user_cache
from geoseg.view.place import MERCATOR, Plane

if TYPE_CHECKING:
    import geopandas

_MOST_VERTICES = 100_000
_MOST_NOTE = 1000
_PATIENCE_S = 30
_NO_FEATURE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, shapely.errors.ShapelyError)


@dataclass(frozen=True, slots=True)
class Corrections:
    """The corrections of one class map."""

    path: Path  # the GeoPackage; it need not exist
    crs: CRS | None  # CRS of the scene, which its polygons are in; None for a map without one
    plane: Plane | None  # where the map lies on the page if it has no place on Earth; None if it has one
    classes: tuple[str, ...]  # names of the map's classes

    @property
    def state(self) -> str:
        """Changes whenever the file does, or what SQLite keeps beside it of a program that has it open."""
        found = []
        for path in (self.path, self.path.with_name(f"{self.path.name}-wal")):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            found.append(f"{status.st_size}-{status.st_mtime_ns}")
        return "+".join(found) or "none"

    def read(self) -> dict[str, Any]:
        """The polygons as GeoJSON in longitude and latitude, in the order they were drawn."""
        if not self.path.exists():
            return {"type": "FeatureCollection", "features": []}
        import pyogrio  # which loads pandas: the page comes sooner

        try:
            frame = pyogrio.read_dataframe(self.path)
            shapes = self._to_lonlat(frame.geometry.to_numpy(), frame.crs)
            texts = {key: frame[key].fillna("").astype(str).tolist() for key in ("class", "time", "note")}
        except Exception as error:  # of pyogrio, pyproj, or a missing column
            raise SceneError(f"{self.path} holds no corrections: {error}", hint="move it elsewhere") from error
        features = [
            {
                "type": "Feature",
                "id": i,
                "geometry": shapely.geometry.mapping(shape),
                "properties": {key: values[i] for key, values in texts.items()},
            }
            for i, shape in enumerate(shapes)
        ]
        return {"type": "FeatureCollection", "features": features}

    def write(self, features: Sequence[Any], known: str) -> str:
        """Replace all polygons at once: the file is the old one or the new one, never part of it.

        Features are GeoJSON in longitude and latitude; a time that is missing becomes now. ``known`` is the file's
        state when it was read: what others have written since is not replaced. Returns the new state. A `ConfigError`
        for a shape that is no polygon, a class that the map does not have, or a file that has changed.
        """
        import pyogrio

        frame = self._frame(features)
        with _alone(self.path):
            if self.state != known:
                raise ConfigError(f"{self.path.name} was changed by another program", hint="it has been loaded anew")
            check_output(self.path, overwrite=True)
            with atomic_output(self.path) as scratch, WARNINGS, warnings.catch_warnings():
                warnings.filterwarnings("ignore", "'crs' was not provided")
                options = {} if frame.crs is not None else {"SRID": "-1"}
                pyogrio.write_dataframe(
                    frame, scratch, driver="GPKG", layer=self.path.stem, geometry_type="Polygon", layer_options=options
                )
            return self.state

    def _frame(self, features: Sequence[Any]) -> geopandas.GeoDataFrame:
        """Features as they are stored."""
        import geopandas
        import pandas as pd

        now = datetime.now(UTC).isoformat(timespec="seconds")
        rows: list[tuple[Any, str, datetime, str]] = []
        for number, feature in enumerate(features, 1):
            try:
                shape = shapely.geometry.shape(feature["geometry"])
                properties = feature["properties"]
                name, time = str(properties["class"]), properties.get("time") or now
                time = datetime.fromisoformat(time).astimezone(UTC)
                note = str(properties.get("note") or "")[:_MOST_NOTE]
            except _NO_FEATURE as error:
                raise ConfigError(f"polygon {number} is not a GeoJSON feature") from error
            if isinstance(shape, shapely.Polygon) and shape.length and not shape.is_valid:
                raise ConfigError(f"polygon {number} crosses itself", hint="move its corners apart, or draw it anew")
            if not isinstance(shape, shapely.Polygon) or shape.is_empty or not shape.area:
                raise ConfigError(f"polygon {number} has no area", hint="draw three corners or more")
            if shapely.get_num_coordinates(shape) > _MOST_VERTICES:
                raise ConfigError(f"polygon {number} has more than {_MOST_VERTICES} corners", hint="draw several")
            if name not in (*self.classes, RIGHT, IGNORE):
                raise ConfigError(f"polygon {number} has the unknown class {name!r}", hint=", ".join(self.classes))
            rows.append((shape, name, time, note))
        columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
        shapes, names, times, notes = columns
        data = {"class": pd.Series(names, dtype=str), "time": pd.Series(times, dtype="datetime64[ms, UTC]")}
        crs = None if self.crs is None else self.crs.to_wkt()
        placed = self._from_lonlat(np.array(shapes, dtype=object))
        for number, bounds in enumerate(shapely.bounds(placed), 1):
            if not np.isfinite(bounds).all():
                raise ConfigError(f"polygon {number} lies where the map's CRS has no coordinates", hint="draw it anew")
        return geopandas.GeoDataFrame({**data, "note": pd.Series(notes, dtype=str)}, geometry=placed, crs=crs)

    def _to_lonlat(self, shapes: Any, crs: Any) -> Any:
        plane = self.plane
        if plane is not None:
            shapes = shapely.transform(shapes, lambda xy: (xy - [plane.left, plane.top]) * plane.unit)
            crs = None
        way = pyproj.Transformer.from_crs(MERCATOR.to_wkt() if crs is None else crs, 4326, always_xy=True)
        return shapely.transform(shapes, lambda xy: np.column_stack(way.transform(xy[:, 0], xy[:, 1])))

    def _from_lonlat(self, shapes: Any) -> Any:
        plane = self.plane
        crs = MERCATOR if plane is not None or self.crs is None else self.crs
        way = pyproj.Transformer.from_crs(4326, crs.to_wkt(), always_xy=True)
        shapes = shapely.transform(shapes, lambda xy: np.column_stack(way.transform(xy[:, 0], xy[:, 1])))
        if plane is not None:
            shapes = shapely.transform(shapes, lambda xy: xy / plane.unit + [plane.left, plane.top])
        return shapes


def corrections_path(class_map: Path) -> Path:
    """``map.corrections.gpkg`` for ``map.tif``."""
    return class_map.with_name(f"{class_map.stem}.corrections.gpkg")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keeps other viewers of this user out, so that none replaces what another has just written.

    SQLite's lock ends with the process that holds it. It lies in the cache: beside the map nothing else is written.
    """
    folder = user_cache("view")
    make_folder(folder, hint="set XDG_CACHE_HOME to a folder that can be written")
    lock = folder / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]}.lock"
    try:
        with closing(sqlite3.connect(lock, timeout=_PATIENCE_S, isolation_level=None)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            yield
    except sqlite3.OperationalError as error:
        raise OutputError(f"{path.name} is in use by another viewer: {error}", hint="try again") from error
