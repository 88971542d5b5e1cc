"""A scene and its labels, read together window by window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from geoseg.classes import NODATA
from geoseg.config import ImageryConfig, SceneConfig, TrainConfig
from geoseg.data.labels import LabelArray, Labels, open_labels, process_files
from geoseg.data.layers import whole_layers
from geoseg.data.split import VAL, SceneSplit, block_edges, scene_split
from geoseg.errors import ConfigError, SceneError
from geoseg.grid import Grid
from geoseg.runtime.gather import gather
from geoseg.scene import Scene, Valid
from geoseg.scene.mosaic import UNUSABLE
from geoseg.scene.open_files import OpenFiles
from geoseg.windows import Window

_OPENING_THREADS = 8

_PROBE_PX, _PROBES = 32, 4
"""Side and number of the windows that are looked at first for valid imagery under labels."""


class LabelledScene:
    """A scene and its labels, opened where they are read: it travels to worker processes closed.

    Args:
        config: Names the scene and its labels.
        settings: The experiment.
        index: The scene's place among those of its split; with the seed it decides which blocks validate.

    Attributes:
        config: As given.
        index: As given.
        grid: The scene's grid.
        labels: The scene's labels, those outside its labelled area ignored.
        split: Its blocks for training and for validation; None where scenes are split whole.

    Raises:
        SceneError: A raster that cannot be read, or with another dtype or too few bands.
        LabelError: See `geoseg.data.labels.open_labels`.
    """

    def __init__(self, config: SceneConfig, settings: TrainConfig, *, index: int = 0) -> None:
        self.config, self.index = config, index
        self._imagery = settings.imagery
        self._scene: Scene | None = None
        self._files: OpenFiles | None = None
        process_files().close(str(config.scene))  # perhaps opened before the file became what it is now
        scene = self.scene
        wanted = self._imagery.dtype
        if scene.dtype != wanted:
            raise SceneError(
                f"scene {config.scene} is {scene.dtype}, the configuration says {wanted}",
                hint=f"set imagery.dtype={scene.dtype}",
            )
        self.grid: Grid = scene.grid
        classes = settings.class_table
        self.labels: Labels = open_labels(config, self.grid, classes, first_label=settings.data.first_label)
        self.split: SceneSplit | None = None
        if settings.data.split is not None:
            counts = self._counts(settings.data.split.block, len(classes))
            self.split = scene_split(self.grid, settings.data.split, seed=settings.seed, index=index, counts=counts)

    @property
    def scene(self) -> Scene:
        """The open scene; its file is one of few that a process keeps open, however many scenes there are."""
        files = process_files()
        if self._scene is None or self._files is not files:
            self._scene, self._files = open_configured(self.config, self._imagery, files), files
        return self._scene

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_scene": None, "_files": None}

    def read(self, window: Window, labels: LabelArray | None = None) -> tuple[npt.NDArray[Any], Valid, LabelArray]:
        """Pixels (B, H, W) ready to augment, valid (H, W), and labels (H, W), 255 where the pixels are invalid.

        Pixels of 8 bit stay as they are; others come as float32 scaled by the configuration. Invalid pixels hold 0.

        Args:
            window: Rows and columns, px; may reach past the scene.
            labels: The window's labels where they have been read already; None reads them.
        """
        pixels, valid = self.scene.read(window, reflect_valid=True)
        if labels is None:
            labels = self.labels.read(window)
        if pixels.dtype != np.uint8:
            pixels = pixels.astype(np.float32) * np.float32(self._imagery.effective_scale)
        if valid.all():
            return pixels, valid, labels
        return np.where(valid, pixels, pixels.dtype.type(0)), valid, np.where(valid, labels, np.uint8(NODATA))

    def _counts(self, block: int, classes: int) -> npt.NDArray[np.int64]:
        """Labelled pixels of each class in each block (rows, cols, K), none where no labelled pixel is valid."""
        rows, cols = block_edges(self.grid.height, block).tolist(), block_edges(self.grid.width, block).tolist()
        counts = np.zeros((len(rows) - 1, len(cols) - 1, classes), dtype=np.int64)
        for i, j in np.ndindex(*counts.shape[:2]):
            window = Window(rows[i], cols[j], rows[i + 1] - rows[i], cols[j + 1] - cols[j])
            labels = self.labels.read(window)
            if self._is_valid_somewhere(window, labels != NODATA):
                counts[i, j] = np.bincount(labels.ravel(), minlength=NODATA + 1)[:classes]
        return counts

    def _is_valid_somewhere(self, window: Window, labelled: npt.NDArray[np.bool_]) -> bool:
        """Whether a labelled pixel of a window is valid; a few places are looked at before the whole of it."""
        places = np.flatnonzero(labelled)
        if not places.size:
            return False
        for place in places[np.linspace(0, places.size - 1, _PROBES + 2).astype(int)[1:-1]].tolist():
            row, col = divmod(place, window.width)
            part = Window(row, col, min(_PROBE_PX, window.height - row), min(_PROBE_PX, window.width - col))
            _, valid = self.scene.read(Window(window.row + row, window.col + col, part.height, part.width))
            if (valid & labelled[part.row : part.row_stop, part.col : part.col_stop]).any():
                return True
        return bool((self.scene.read(window)[1] & labelled).any())


class SplitLabels:
    """Labels of one part of a scene that is cut into blocks, the others ignored.

    Args:
        labels: Labels of the whole scene.
        split: Its blocks.
        part: "val" for the labels of validation blocks, "train" for those ``buffer`` px or more from them.
    """

    def __init__(self, labels: Labels, split: SceneSplit, part: str) -> None:
        self._labels, self._split, self._part = labels, split, part

    def read(self, window: Window) -> LabelArray:
        """Class ids (H, W) of a window, 255 where to be ignored and outside the scene."""
        wanted = self.covers(window)
        if not wanted.any():
            return np.full(wanted.shape, NODATA, dtype=np.uint8)
        return np.where(wanted, self._labels.read(window), NODATA).astype(np.uint8)

    def covers(self, window: Window) -> Valid:
        """Which pixels of a window belong to the part, (H, W)."""
        if self._part == "val":
            return self._split.validates(window)
        return ~self._split.validates(window, self._split.buffer)


def labels_of(labelled: LabelledScene, split: str) -> Labels:
    """The labels of a scene that count for a split ("train", "val"): all of them, unless it is cut into blocks."""
    if labelled.split is None:
        return labelled.labels
    return SplitLabels(labelled.labels, labelled.split, split)


def open_configured(config: SceneConfig, imagery: ImageryConfig, files: OpenFiles | None = None) -> Scene:
    """The scene of an entry with the configured bands, nodata and alpha."""
    nodata = imagery.nodata if isinstance(imagery.nodata, float) else None
    return Scene(
        config.scene, bands=imagery.band_indexes, nodata=nodata, alpha=imagery.alpha, crs=config.crs, files=files
    )


def open_scenes(settings: TrainConfig, split: str) -> list[LabelledScene]:
    """All scenes of a split, several opened at once.

    Where scenes are cut into blocks, those come that have a block that validates, or room for a window that trains.

    Args:
        settings: The experiment.
        split: "train" or "val".

    Raises:
        SceneError: Scenes that cannot be used.
        LabelError: Labels that cannot be used. What is wrong with several scenes or their labels is said at once.
        ConfigError: Blocks of which none validates, or between which no window can train.
    """
    scenes = _opened(settings, split)
    return scenes if settings.data.split is None else _with_room(scenes, settings, split)


def open_both(settings: TrainConfig) -> tuple[list[LabelledScene], list[LabelledScene]]:
    """The scenes that train and those that validate, as `open_scenes` gives them; what is cut into blocks opens once.

    Raises:
        SceneError: See `open_scenes`.
        LabelError: Likewise.
        ConfigError: Likewise.
    """
    if settings.data.split is None:
        return _opened(settings, "train"), _opened(settings, "val")
    scenes = _opened(settings, "train")
    return _with_room(scenes, settings, "train"), _with_room(scenes, settings, "val")


def _opened(settings: TrainConfig, split: str) -> list[LabelledScene]:
    """Every scene of a split, or one error for all that cannot be used."""
    entries = settings.data.entries(split)

    def opened(numbered: tuple[int, SceneConfig]) -> LabelledScene:
        return LabelledScene(numbered[1], settings, index=numbered[0])

    with whole_layers():
        return gather(opened, enumerate(entries), UNUSABLE, threads=_OPENING_THREADS, name="open")


def _with_room(scenes: Sequence[LabelledScene], settings: TrainConfig, split: str) -> list[LabelledScene]:
    """Scenes that are cut into blocks, without those that have nothing for a split."""
    config = settings.data.split
    assert config is not None
    # The smallest window that training may draw.
    zoom = settings.augment.base_zoom * settings.augment.scale[1]
    side = 1 if settings.augment.base_size else max(round(settings.train.size / zoom), 1)
    trains = [s for s in scenes if s.split is not None and s.split.fraction(side, side)]
    validates = [s for s in scenes if s.split is not None and (s.split.roles == VAL).any()]
    if not validates:
        usable = sum(int((s.split.roles > 0).sum()) for s in scenes if s.split is not None)
        raise ConfigError(
            f"none of the {usable} labelled blocks of {config.block} px validates",
            hint=_smaller_blocks(scenes, settings),
        )
    if not trains:
        raise ConfigError(
            f"no training window of {side} px fits beside the validation blocks of {config.block} px "
            f"and their buffer of {config.buffer} px",
            hint=_smaller_buffer(scenes, config.buffer, side),
        )
    return trains if split == "train" else validates


def _smaller_blocks(scenes: Sequence[LabelledScene], settings: TrainConfig) -> str:
    """The blocks that give the largest scene two of them, or what else to do."""
    assert settings.data.split is not None
    longest = max(max(scene.grid.shape) for scene in scenes)
    block = min(settings.data.split.block, longest) // 64 * 32
    if block >= max(settings.largest_window, 32):
        return f"data.split.block={block}"
    return "validate on other scenes: data.train and data.val in place of data.scenes and data.split"


def _smaller_buffer(scenes: Sequence[LabelledScene], buffer: int, side: int) -> str:
    """The largest buffer, among halves of the present one, that leaves room for a window, or what else to do."""
    splits = [scene.split for scene in scenes if scene.split is not None]
    while buffer:
        buffer //= 2
        if any(replace(split, buffer=buffer).fraction(side, side) for split in splits):
            return f"data.split.buffer={buffer}"
    return "smaller windows (train.size), or validate on other scenes: data.train and data.val in place of data.scenes"
