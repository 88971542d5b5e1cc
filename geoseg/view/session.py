"""The layers that are open, kept up with their files, and the tiles of each."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from geoseg.classes import ClassTable
from geoseg.errors import ConfigError, GeosegError
from geoseg.scene.open_files import OpenFiles
from geoseg.view.layers import Layer, Opener, count_areas, describe, state_of

if TYPE_CHECKING:
    from geoseg.view.vectors import TileFile

log = logging.getLogger(__name__)

MVT = "application/vnd.mapbox-vector-tile"  # media type of a vector tile


class Session:
    """Layers of one page. Tiles, areas and the state of files are asked for by several threads.

    The ``opener`` opens a file anew when it has changed. ``windows`` are places to jump to: name, bounds in longitude
    and latitude, and a note of each. ``basemap`` is the template of an online background map, with {z}, {x} and {y}.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        opener: Opener,
        *,
        windows: Sequence[dict[str, Any]] = (),
        title: str = "geoseg",
        basemap: str | None = None,
        progress: bool = False,
    ) -> None:
        self.layers = list(layers)
        self.windows = list(windows)
        self.title = title
        self.basemap = basemap
        self._opener = opener
        self._progress = progress
        self._files = OpenFiles()
        self._tiles: dict[str, TileFile] = {}
        self._lock = threading.RLock()
        self._wanted = threading.Event()

    def start(self) -> None:
        """Begin to make the stores of features and to count areas, in a thread of its own."""
        threading.Thread(target=self._work, name="geoseg-view", daemon=True).start()

    def work(self) -> None:
        """Make all stores of features and count all areas now."""
        for layer in self.layers:
            try:
                if layer.kind == "classes" and layer.areas is None and layer.error is None:
                    layer.areas = count_areas(layer)
                elif layer.vector is not None and layer.vector.bounds is not None and layer.error is None:
                    self._make(layer)
            except GeosegError as error:
                layer.error = str(error)
            except Exception as error:  # the file may be gone or changing: the page says so, and goes on
                layer.error = f"{type(error).__name__}: {error}"
                log.warning("%s: %s", layer.path, layer.error)

    def _work(self) -> None:
        while True:
            self.work()
            self._wanted.wait()
            self._wanted.clear()

    def _make(self, layer: Layer) -> None:
        vector = layer.vector
        assert vector is not None
        if not vector.is_made:
            total = max(vector.layer.features, 1)
            with tqdm(total=total, unit="", unit_scale=True, desc=layer.name, disable=not self._progress) as bar:

                def read(count: int) -> None:
                    bar.update(count)
                    layer.share_made = min(bar.n / total, 0.99)

                vector.make(read)
        if not _holds_tiles(layer):
            layer.values = vector.values()
        layer.share_made = None

    def facts(self) -> dict[str, Any]:
        """All that the page shows, as JSON; files that have changed are opened anew first."""
        with self._lock:
            for number, layer in enumerate(self.layers):
                if layer.state != (state := state_of(layer.path)):
                    self._reopen(number, layer, state)
            layers = list(self.layers)
        tables: list[ClassTable] = [layer.classes for layer in layers if layer.classes is not None]
        plane = self._opener.plane
        return {
            "title": self.title,
            "layers": [describe(layer, number, tables) for number, layer in enumerate(layers)],
            "windows": self.windows,
            "basemap": self.basemap,
            "plane": None if plane is None else [plane.left, plane.top, plane.unit],
        }

    def _reopen(self, number: int, old: Layer, state: str) -> None:
        if old.raster is not None:
            self._files.close(old.raster.name)
        try:
            if state == "gone":
                raise ConfigError("the file is gone")
            if old.raster is not None:
                new = self._opener.raster_layer(old.path)
            else:
                new = next(layer for layer in self._opener.vector_layers(old.path) if layer.name == old.name)
        except StopIteration:
            old.state, old.error = state, "the layer is gone"
            return
        except GeosegError as error:
            old.state, old.error = state, str(error)
            return
        new.is_shown, new.of = old.is_shown, old.of
        self.layers[number] = new
        self._wanted.set()

    def layer(self, number: int) -> Layer:
        """A layer by its number; a `ConfigError` if there is none."""
        if not 0 <= number < len(self.layers):
            raise ConfigError(f"there is no layer {number}")
        return self.layers[number]

    def tile(self, number: int, z: int, x: int, y: int, band: int = 1) -> tuple[bytes, str] | None:
        """A tile and its media type: JPEG or PNG of imagery, the bytes of a class map, a vector tile.

        None where there is nothing, or the tile would take too long.
        """
        layer = self.layer(number)
        if layer.vector is not None:
            return self._vector_tile(layer, z, x, y)
        raster = layer.raster
        assert raster is not None
        if z < raster.fast_zoom and z < raster.zoom_levels(finer=0)[1]:
            return None
        if layer.kind == "image":
            return raster.picture(self._files, z, x, y)
        return raster.values(self._files, z, x, y, band).tobytes(), "application/octet-stream"

    def _vector_tile(self, layer: Layer, z: int, x: int, y: int) -> tuple[bytes, str] | None:
        vector = layer.vector
        assert vector is not None
        if layer.share_made is not None or vector.bounds is None:
            return None
        if not _holds_tiles(layer):
            body, is_crowded = vector.tile(z, x, y)
            layer.is_crowded |= is_crowded
            return (body, MVT) if body else None
        from geoseg.view.vectors import TileFile

        key = f"{layer.path} {layer.state}"
        with self._lock:
            if key not in self._tiles:
                self._tiles[key] = TileFile(layer.path)
            file = self._tiles[key]
        found = file.tile(z, x, y)
        return None if found is None else (found, MVT)

    def corrections(self, number: int) -> tuple[dict[str, Any], str]:
        """The corrections of a class map as GeoJSON, and the state of their file; a `GeosegError` if it has none."""
        corrections = self.layer(number).corrections
        if corrections is None:
            raise ConfigError(f"layer {number} takes no corrections")
        state = corrections.state  # before reading: what is written meanwhile must not pass as known
        return corrections.read(), state

    def correct(self, number: int, features: list[Any], state: str) -> str:
        """Replace the corrections of a class map, whose file's state is as the page knows it; the new state."""
        corrections = self.layer(number).corrections
        if corrections is None:
            raise ConfigError(f"layer {number} takes no corrections")
        with self._lock:
            return corrections.write(features, state)


def _holds_tiles(layer: Layer) -> bool:
    """Whether a layer of features is read from a file of tiles."""
    return layer.path.lower().endswith(".pmtiles")


def title_of(paths: Sequence[str]) -> str:
    """A title for the page: the first file's name, and how many more there are."""
    first = Path(paths[0]).name or str(paths[0])
    return first if len(paths) == 1 else f"{first} and {len(paths) - 1} more"
