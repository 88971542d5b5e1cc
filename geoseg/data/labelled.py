"""Scenes and their labels as a configuration names them, opened, and read together window by window."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
from rasterio.crs import CRS

from geoseg.arrays import AnyArray, ByteArray, FloatArray, IntArray, Valid
from geoseg.classes import NODATA, ClassTable
from geoseg.config.settings import ImageryConfig, SceneConfig, TrainConfig
from geoseg.contract import contact_widths
from geoseg.data.labels import Labels, MaskedLabels, SceneHere, no_transformation, outline, process_files
from geoseg.data.layers import assign_crs, whole_layers
from geoseg.data.polygon_labels import CorrectedLabels, PolygonLabels, Touching
from geoseg.data.problems import Problem, as_problem, raise_first
from geoseg.data.raster_labels import ConfidentPart, RasterLabels, missing_labels
from geoseg.data.split import VAL, SceneSplit, scene_split
from geoseg.errors import ConfigError, LabelError, SceneError
from geoseg.files import atomic_output
from geoseg.georeference import are_apart
from geoseg.grid import Grid
from geoseg.paths import RASTER_SUFFIXES, exists, opened_name, suffix
from geoseg.runtime.ahead import gather
from geoseg.scene import Scene
from geoseg.scene.aoi import load_aoi
from geoseg.scene.mosaic import UNUSABLE
from geoseg.scene.open_files import OpenFiles
from geoseg.scene.raster import Raster
from geoseg.scene.vector_files import polygon_layer
from geoseg.windows import Window

_OPENING_THREADS = 8
_PROBE_PX, _PROBES = 32, 4  # side and number of the windows looked at first for valid imagery under labels


class LabelledScene:
    """A scene and its labels. It travels to worker processes closed, and is opened where it is read.

    Attributes:
        config: Names the scene and its labels.
        index: Position of the scene in its split; with the seed it decides which blocks validate.
        grid: The scene's grid.
        labels: The scene's labels; 255 outside its labelled area.
        touching: Where objects of classes to separate touch; None without such classes, and if labels are a raster.
        split: Its blocks for training and validation; None unless scenes are cut into blocks.

    Raises:
        SceneError: A raster that cannot be read, or with another dtype or too few bands.
        LabelError: Labels that do not fit the scene or the table; see `Touching`.
    """

    def __init__(self, config: SceneConfig, settings: TrainConfig, *, index: int = 0) -> None:
        self.config, self.index = config, index
        self._imagery = settings.imagery
        process_files().close(str(config.scene))  # perhaps opened before the file changed
        self._scene = SceneHere(partial(_at_configured_gsd, config, settings.imagery))
        found, expected = self.scene.dtype, settings.imagery.dtype
        if found != expected:
            raise SceneError(
                f"scene {config.scene} is {found}, the configuration says {expected}", hint=f"set imagery.dtype={found}"
            )
        self.grid: Grid = self.scene.grid
        classes = self._classes = settings.class_table
        self._first_label = settings.data.first_label
        stored = stored_labels(config, self.grid, classes, first_label=self._first_label, own=self.scene.own_grid)
        self.labels: Labels = corrected_labels(stored, config, self.grid, classes)
        self.touching: Touching | None = None
        widths = contact_widths(settings.classes)
        if widths and isinstance(stored, PolygonLabels):
            self.touching = Touching(stored, classes, widths, self.grid, scene=config.scene)
        self.split: SceneSplit | None = None
        if settings.data.split is not None:
            self.split = scene_split(self.grid, settings.data.split, seed=settings.seed, index=index, count=self._count)

    @property
    def scene(self) -> Raster:
        """The open scene, at ``imagery.gsd_m`` if configured; a process keeps few files open, however many scenes."""
        return self._scene.get()

    def centres(self) -> tuple[FloatArray, IntArray]:
        """Centres of the labels' features, column and row in px (n, 2), and their class ids (n,).

        A `LabelError` if the labels are a raster, or the scene's ground is not known in metres.
        """
        if is_raster(self.config):
            message = f"labels {self.config.labels} are a raster, whose objects are not known one by one"
            raise LabelError(message, hint="leave out --within, or name a vector file as labels")
        if not self.grid.is_metric:
            message = f"scene {self.config.scene} {self.grid.place_note}, so its metres are not known"
            raise LabelError(message, hint="leave out --within")
        return PolygonLabels(self.config, self.grid, self._classes, first_label=self._first_label).centres()

    def read(self, window: Window, labels: ByteArray | None = None) -> tuple[AnyArray, Valid, ByteArray]:
        """Pixels (B, H, W) ready to augment, valid (H, W), and labels (H, W), 255 where the pixels are invalid.

        8-bit pixels stay as they are; others are float32 scaled by the configuration. Invalid pixels are 0. The window
        may reach past the scene; ``labels`` are its labels, if already read.
        """
        pixels, valid = self.scene.read(window, reflect_valid=True)
        labels = self.labels.read(window) if labels is None else labels
        if pixels.dtype != np.uint8:
            pixels = pixels.astype(np.float32) * np.float32(self._imagery.effective_scale)
        if valid.all():
            return pixels, valid, labels
        return np.where(valid, pixels, pixels.dtype.type(0)), valid, np.where(valid, labels, np.uint8(NODATA))

    def _count(self, window: Window) -> IntArray:
        """Labelled pixels of each class in a window, (K,); 0 if no labelled pixel is valid."""
        labels = self.labels.read(window)
        counts = np.bincount(labels.ravel(), minlength=NODATA + 1)[: len(self._classes)]
        return counts if self._is_valid_somewhere(window, labels != NODATA) else np.zeros_like(counts)

    def _is_valid_somewhere(self, window: Window, labelled: Valid) -> bool:
        """Whether a labelled pixel of a window is valid; a few places are looked at before the whole window."""
        places = np.flatnonzero(labelled)
        if not places.size:
            return False
        for place in places[np.linspace(0, places.size - 1, _PROBES + 2).astype(int)[1:-1]].tolist():
            row, col = divmod(place, window.width)
            height, width = min(_PROBE_PX, window.height - row), min(_PROBE_PX, window.width - col)
            _, valid = self.scene.read(Window(window.row + row, window.col + col, height, width))
            if (valid & labelled[row : row + height, col : col + width]).any():
                return True
        return bool((self.scene.read(window)[1] & labelled).any())


def stored_labels(config: SceneConfig, grid: Grid, classes: ClassTable, *, first_label: int, own: Grid) -> Labels:
    """The labels as they are in their file, on a grid that the scene, with its ``own``, may be resampled to."""
    if not exists(config.labels):
        raise_first([missing_labels(config.labels)])
    opened_name(config.labels, kind=LabelError)  # refuses archives with several files
    if is_raster(config):
        labels = RasterLabels(config, grid, classes, first_label=first_label, own=own)
        return labels if config.min_confidence is None else MaskedLabels(labels, ConfidentPart(config, grid, own))
    if config.min_confidence is not None:
        message = f"labels {config.labels} are polygons, and min_confidence needs a class map"
        raise LabelError(message, hint="leave min_confidence out, or name the map of geoseg predict --confidence")
    return PolygonLabels(config, grid, classes, first_label=first_label)


def corrected_labels(labels: Labels, config: SceneConfig, grid: Grid, classes: ClassTable) -> Labels:
    """Labels under their corrections, in the labelled area."""
    if config.corrections is not None:
        labels = CorrectedLabels(labels, config, grid, classes)
    if config.labelled_area is None:
        return labels
    area = load_aoi(config.labelled_area, grid, what="labelled area", kind=LabelError)
    return MaskedLabels(labels, area.mask)


def is_raster(config: SceneConfig) -> bool:
    """Whether the labels of a configured scene are a raster, by their suffix; otherwise they are polygons."""
    return suffix(config.labels) in RASTER_SUFFIXES


def check_labelled_area(config: SceneConfig, grid: Grid | None) -> list[Problem]:
    """Problems of a labelled area: a CRS that does not lead to the scene's, or polygons that do not touch it."""
    path = config.labelled_area
    if path is None or grid is None:
        return []
    try:
        crs = polygon_layer(path, "labelled area", LabelError).crs
        if crs is not None and grid.is_georeferenced and are_apart(crs, grid.crs):
            what = "polygons of labelled area"
            return [no_transformation(what, path, crs, config.scene, grid.crs, assign=assign_crs(path))]
        load_aoi(path, grid, what="labelled area", kind=LabelError)
    except LabelError as raised:
        return [as_problem(path, raised)]
    return []


def labels_of(labelled: LabelledScene, split: str) -> Labels:
    """The labels of a scene that belong to a split ("train", "val"): all of them, unless it is cut into blocks."""
    if labelled.split is None:
        return labelled.labels
    return MaskedLabels(labelled.labels, partial(labelled.split.covers, split))


def covered(labelled: LabelledScene, split: str, window: Window) -> Valid | None:
    """Pixels (H, W) of a window that belong to a split; None for all."""
    return None if labelled.split is None else labelled.split.covers(split, window)


def open_configured(config: SceneConfig, imagery: ImageryConfig, files: OpenFiles | None = None) -> Scene:
    """The scene of an entry with the configured bands, nodata and alpha."""
    nodata = imagery.nodata if isinstance(imagery.nodata, float) else None
    return Scene(
        config.scene, bands=imagery.band_indexes, nodata=nodata, alpha=imagery.alpha, crs=config.crs, files=files
    )


def _at_configured_gsd(config: SceneConfig, imagery: ImageryConfig, files: OpenFiles) -> Raster:
    scene = open_configured(config, imagery, files)
    if imagery.gsd_m is None or scene.grid.pixel_size_m() is None:
        return scene
    from geoseg.scene.resample import Resampled  # it loads numba, which few trainings need

    return Resampled(scene, imagery.gsd_m, option="imagery.gsd_m")


def open_scenes(settings: TrainConfig, split: str) -> list[LabelledScene]:
    """All scenes of a split ("train", "val"), several opened at once.

    If scenes are cut into blocks, those with a block that validates, or with room for a training window.

    Raises:
        SceneError: Scenes that cannot be used.
        LabelError: Labels that cannot be used; one error reports all scenes and labels.
        ConfigError: No block validates, or no training window fits between those that do.
    """
    return _with_room(_opened(settings, split), settings, split)


def open_both(settings: TrainConfig) -> tuple[list[LabelledScene], list[LabelledScene]]:
    """The scenes that train and those that validate, as `open_scenes` gives them; scenes cut into blocks open once."""
    scenes = _opened(settings, "train")
    others = _opened(settings, "val") if settings.data.split is None else scenes
    return _with_room(scenes, settings, "train"), _with_room(others, settings, "val")


def _opened(settings: TrainConfig, split: str) -> list[LabelledScene]:
    """Every scene of a split, or one error for all that cannot be used."""

    def opened(numbered: tuple[int, SceneConfig]) -> LabelledScene:
        return LabelledScene(numbered[1], settings, index=numbered[0])

    with whole_layers():
        entries = enumerate(settings.data.entries(split))
        return gather(opened, entries, UNUSABLE, threads=_OPENING_THREADS, name="open")


def _with_room(scenes: list[LabelledScene], settings: TrainConfig, split: str) -> list[LabelledScene]:
    """The scenes; of those that are cut into blocks, only those with something for a split."""
    config = settings.data.split
    if config is None:
        return scenes
    # The smallest window that training may draw.
    zoom = settings.augment.base_zoom * settings.augment.scale[1]
    side = 1 if settings.augment.base_size else max(round(settings.train.size / zoom), 1)
    cut = [(scene, scene.split) for scene in scenes if scene.split is not None]
    trains = [scene for scene, blocks in cut if blocks.fraction(side, side)]
    validates = [scene for scene, blocks in cut if (blocks.roles == VAL).any()]
    if not validates:
        usable = sum(int((blocks.roles > 0).sum()) for _, blocks in cut)
        block = min(config.block, max(max(scene.grid.shape) for scene in scenes)) // 64 * 32
        other = "validate on other scenes: data.train and data.val instead of data.scenes and data.split"
        raise ConfigError(
            f"none of the {usable} labelled blocks of {config.block} px validates",
            hint=f"data.split.block={block}" if block >= max(settings.largest_window, 32) else other,
        )
    if trains:
        return trains if split == "train" else validates
    hint = "use smaller windows (train.size), or validate on other scenes: data.train and data.val"
    buffers = [config.buffer >> n for n in range(1, config.buffer.bit_length() + 1)]
    for buffer in buffers:
        if any(replace(blocks, buffer=buffer).fraction(side, side) for _, blocks in cut):
            hint = f"data.split.buffer={buffer}"
            break
    raise ConfigError(
        f"no training window of {side} px fits beside the validation blocks of {config.block} px "
        f"and their buffer of {config.buffer} px",
        hint=hint,
    )


def write_split(path: Path, train: Sequence[LabelledScene], val: Sequence[LabelledScene] = ()) -> None:
    """Write where an experiment trains and validates as a GeoPackage of polygons; one layer per CRS.

    They are the blocks of scenes that are cut, and the outlines of others. Fields: ``scene``, ``split`` (train, val,
    unused), ``block_row`` and ``block_col`` (missing for whole scenes). Scenes without a CRS have pixel coordinates,
    y = -row. A scene cut into blocks is written once, with those that validate.
    """
    layers: dict[CRS | None, list[dict[str, Any]]] = {}
    done = set()
    for name, labelled in [*(("train", scene) for scene in train), *(("val", scene) for scene in val)]:
        if labelled.split is None or labelled.index not in done:
            done.add(labelled.index)
            layers.setdefault(labelled.grid.as_drawn().crs, []).extend(_records(labelled, name))
    with atomic_output(path) as scratch:
        for number, (crs, records) in enumerate(layers.items()):
            layer = "split" if len(layers) == 1 else f"split_{number + 1}"
            frame = geopandas.GeoDataFrame(records, crs=crs)
            frame = frame.astype({"block_row": "Int32", "block_col": "Int32"})
            frame.to_file(scratch, driver="GPKG", layer=layer, mode="a" if number else "w")


def _records(labelled: LabelledScene, name: str) -> Iterator[dict[str, Any]]:
    grid, scene = labelled.grid.as_drawn(), str(labelled.config.scene)
    if labelled.split is None:
        yield {"scene": scene, "split": name, "block_row": None, "block_col": None, "geometry": outline(grid)}
        return
    for row, col, window, role in labelled.split.blocks():
        place = {"block_row": row, "block_col": col, "geometry": outline(grid, window)}
        yield {"scene": scene, "split": ("unused", "train", "val")[role], **place}
