"""What the viewer shows: each file named on the command line as one or several layers, and what lies beside them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rasterio.windows import Window as RasterWindow

from geoseg.class_map import layer_path
from geoseg.class_map.names import CLASSES_TAG, DISAGREEMENT, class_table
from geoseg.class_map.reading import DIGEST_TAG
from geoseg.classes import NODATA, ClassTable, format_color
from geoseg.errors import GeosegError, SceneError, quoted
from geoseg.georeference import open_raster, refuse_unwarped
from geoseg.paths import VECTOR_SUFFIXES, exists, input_path, scene_names, suffix
from geoseg.scene import Scene
from geoseg.view.corrections import Corrections, corrections_path
from geoseg.view.place import Plane, is_on_earth, plane_of
from geoseg.view.rasters import TiledRaster, tiled

if TYPE_CHECKING:
    from geoseg.view.feature_store import TiledLayer

log = logging.getLogger(__name__)

BESIDE = ("confidence", "disagreement", "probabilities", "contact")  # layers of a class map that are found by name
_FEW_VALUES = 64  # A raster of one band with no more values than this in a sample holds classes

_ROWS = 512


@dataclass(slots=True, eq=False)
class Layer:
    """One layer of the page."""

    path: str  # the file
    kind: str  # "image", "classes", "share" (confidence, probabilities: 0 … 254), or "vector"
    name: str  # what the page calls it
    state: str  # size and time of change of the file; a new one tells the page to load the layer anew
    raster: TiledRaster | None = None  # tiles of a raster
    vector: TiledLayer | None = None  # tiles of features
    classes: ClassTable | None = None  # what the values of a class map mean
    bands: tuple[str, ...] = ()  # names of the bands of probabilities
    of: str | None = None  # the class map that it belongs to, if any
    corrections: Corrections | None = None  # where corrections of a class map lie
    is_shown: bool = True  # whether the page shows it at first
    areas: dict[str, Any] | None = None  # of each class; see `count_areas`
    error: str | None = None  # what is wrong with it now
    share_made: float | None = None  # how much of its store is made, in [0, 1]; None once all is
    values: list[str] = field(default_factory=list)  # of the field that holds the classes of features
    is_crowded: bool = False  # whether some tile had too many features to show them all


def state_of(path: str) -> str:
    """Size and time of change of a file, as text; "" of what is not a file, "gone" of what is not there."""
    file = input_path(path)
    if not isinstance(file, Path):
        return ""
    try:
        status = file.stat()
    except OSError:
        return "gone"
    return f"{status.st_size}-{status.st_mtime_ns}"


class Opener:
    """Opens files as layers, all without a place on Earth in one plane.

    Args:
        bands: 1-based bands of imagery to draw; None takes the first three.
    """

    def __init__(self, bands: Sequence[int] | None = None) -> None:
        self._bands = bands
        self.plane: Plane | None = None  # the plane, once there is a layer in it

    def open(self, paths: Sequence[str]) -> list[Layer]:
        """All layers of files, and of folders of rasters, in the order to be drawn: imagery, classes, features."""
        names = scene_names(paths)
        rasters = [name for name in names if suffix(input_path(name)) not in VECTOR_SUFFIXES]
        layers: dict[str, Layer] = {}
        for name in rasters:
            for layer in self.raster_layers(name):
                layers.setdefault(f"{layer.path}", layer)
        for name in names:
            if name not in rasters:
                for layer in self.vector_layers(name):
                    layers.setdefault(f"{layer.path}|{layer.name}", layer)
        order = ("image", "classes", "share", "vector")
        return sorted(layers.values(), key=lambda layer: order.index(layer.kind))

    def raster_layers(self, path: str) -> list[Layer]:
        """A raster, and the layers of a class map that lie beside it; a `SceneError` if it cannot be shown."""
        first = self.raster_layer(path)
        found = [first]
        file = input_path(first.path)
        if first.kind == "classes" and isinstance(file, Path):
            for word in BESIDE:
                beside = layer_path(file, word)
                if exists(beside):
                    layer = self._beside(str(beside), first)
                    if layer is not None:
                        found.append(layer)
        return found

    def _beside(self, path: str, class_map: Layer) -> Layer | None:
        try:
            layer = self.raster_layer(path)
        except GeosegError as error:
            log.warning("%s", error)
            return None
        assert class_map.raster is not None and layer.raster is not None
        if _digest(path) != _digest(class_map.path) or layer.raster.grid.shape != class_map.raster.grid.shape:
            log.warning("%s belongs to another map than %s and is left out", path, class_map.path)
            return None
        layer.is_shown, layer.of = False, class_map.path
        return layer

    def raster_layer(self, path: str) -> Layer:
        """A raster as one layer."""
        if not exists(input_path(path)):
            raise SceneError(f"no such file: {path}", hint="check the path")
        state = state_of(path)
        with Scene(path) as scene:
            refuse_unwarped(scene.path, scene.warp_command)
            on_earth = is_on_earth(scene.grid)
            if not on_earth and self.plane is None:
                self.plane = plane_of(scene.grid)
            kind, classes = _kind(scene)
            bands = self._bands if kind == "image" else (1,)
            if bands is not None and max(bands) > scene.file_bands:
                raise SceneError(
                    f"{scene.path} has bands 1 … {scene.file_bands}, but band {max(bands)} was asked for",
                    hint=f"list its bands with: geoseg info {quoted(path)}",
                )
            raster = tiled(scene, self.plane or Plane(), bands, picks=kind == "image")
            names = scene.band_names if kind == "share" and scene.file_bands > 1 else ()
            layer = Layer(scene.path, kind, Path(scene.path).name, state, raster=raster, classes=classes, bands=names)
            if kind == "classes" and classes is not DISAGREEMENT:
                file = input_path(scene.path)
                if isinstance(file, Path) and classes is not None:
                    layer.corrections = Corrections(
                        corrections_path(file),
                        scene.grid.crs if on_earth else None,
                        None if on_earth else self.plane,
                        classes.names,
                    )
            return layer

    def vector_layers(self, path: str) -> list[Layer]:
        """Every layer of features of a vector file; a `SceneError` if it cannot be read or has none."""
        if not exists(input_path(path)):
            raise SceneError(f"no such file: {path}", hint="check the path")
        from geoseg.scene.vector_files import STYLES, layer_names  # which load pandas: pages of rasters come sooner
        from geoseg.view.vectors import TileFile, tiled_layer

        state = state_of(path)
        try:
            if suffix(input_path(path)) == ".pmtiles":
                vectors = TileFile(path).layers()
            else:
                names = [name for name, shape in layer_names(path) if shape is not None and name != STYLES]
                vectors = [tiled_layer(path, name, self.plane or Plane()) for name in names]
        except GeosegError:
            raise
        except Exception as error:  # of pyogrio or pyarrow
            raise SceneError(
                f"{path} is neither a raster nor a vector file that GDAL reads",
                hint=f"see what it is: geoseg info {quoted(path)}",
            ) from error
        layers = []
        for vector in vectors:
            title = Path(path).name if len(vectors) == 1 else f"{Path(path).name}: {vector.layer.name}"
            layer = Layer(path, "vector", title, state, vector=vector)
            if vector.bounds is None:
                layer.error = "it is empty"
            elif not vector.is_made:
                layer.share_made = 0.0
            layers.append(layer)
        if not layers:
            raise SceneError(f"{path} holds no features", hint=f"see what it holds: geoseg info {quoted(path)}")
        return layers


def describe(layer: Layer, number: int, tables: Sequence[ClassTable]) -> dict[str, Any]:
    """A layer as the page shows it; ``tables`` are those of all maps shown, for the colours of features."""
    facts: dict[str, Any] = {
        "id": number,
        "name": layer.name,
        "path": layer.path,
        "kind": layer.kind,
        "state": layer.state,
        "shown": layer.is_shown,
        "of": layer.of,
        "error": layer.error,
        "making": layer.share_made,
        "bands": list(layer.bands),
        "corrections": layer.corrections.path.name if layer.corrections is not None else None,
        "corrected": layer.corrections.state if layer.corrections is not None else None,
    }
    if layer.raster is not None:
        low, high = layer.raster.zoom_levels(finer=0 if layer.kind == "image" else 2)
        facts |= {"bounds": layer.raster.bounds, "zooms": [low, high], "slow": layer.raster.slow_note}
    if layer.vector is not None:
        vector = layer.vector
        facts |= {"bounds": vector.bounds, "zooms": vector.zooms, "layer": vector.layer.name}
        facts |= {"field": vector.class_field, "fields": list(vector.layer.fields), "values": layer.values}
        facts |= {"full": vector.full_zoom, "partial": vector.is_partial, "crowded": layer.is_crowded}
        facts["colors"] = {c.name: format_color(c.color) for table in tables for c in table} | vector.colors
    if layer.classes is not None:
        areas = layer.areas or {}
        facts["classes"] = [
            {"id": c.id, "name": c.name, "color": format_color(c.color), "area": areas.get("areas", {}).get(c.id)}
            for c in layer.classes
        ]
        facts["unit"], facts["about"] = areas.get("unit"), areas.get("about", False)
    return facts


def count_areas(layer: Layer) -> dict[str, Any]:
    """Area of each class of a class map, its unit, and whether it was counted in an overview."""
    raster = layer.raster
    assert raster is not None and layer.classes is not None
    unit, factor = raster.grid.area_unit
    height, width = raster.grid.shape
    pixel = raster.grid.pixel_area_m2()
    areas = np.zeros(256)
    with raster.counted() as dataset:
        scale = height / dataset.height * width / dataset.width
        for top in range(0, dataset.height, _ROWS):
            window = RasterWindow(0, top, dataset.width, min(_ROWS, dataset.height - top))
            values = dataset.read(1, window=window)
            values[dataset.read_masks(1, window=window) == 0] = NODATA
            middle = min(int((top + window.height / 2) * height / dataset.height), height - 1)
            areas += np.bincount(values.ravel(), minlength=256) * pixel[middle] * scale
    found = {c.id: float(areas[c.id] * factor) for c in layer.classes}
    return {"areas": found, "unit": unit, "about": scale > 1}


def _kind(scene: Scene) -> tuple[str, ClassTable | None]:
    """What a raster holds, and the classes of a class map."""
    names = tuple(name.lower() for name in scene.band_names)
    if scene.dtype != np.uint8:
        return "image", None
    tags = scene.dataset.tags()
    is_ours = DIGEST_TAG in tags
    if names == ("disagreement",) and is_ours:
        return "classes", DISAGREEMENT
    if names in (("confidence",), ("contact",)) and is_ours:
        return "share", None
    if is_ours and scene.scaling is not None and scene.file_bands > 1:
        return "share", None
    if scene.file_bands > 1:
        return "image", None
    if CLASSES_TAG in tags:
        return "classes", class_table(scene.dataset, lambda: 0)[0]
    pixels, valid = scene.sample()
    values = [value for value in np.unique(pixels[0, valid]).tolist() if value != NODATA]
    if scene.has_palette or len(values) <= _FEW_VALUES:
        highest = int(max(values, default=0))
        return "classes", class_table(scene.dataset, lambda: highest)[0]
    return "image", None


def _digest(path: str) -> str | None:
    with open_raster(path) as dataset:
        found: str | None = dataset.tags().get(DIGEST_TAG)
        return found
