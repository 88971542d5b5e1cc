"""Where training windows lie: anywhere, or around a class; a function of a random generator alone."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from geoseg.arrays import ByteArray, FloatArray, Int32Array
from geoseg.classes import NODATA
from geoseg.config.settings import AugmentConfig, TrainConfig
from geoseg.data.histogram import BLOCK, Histogram, class_histograms, read_labels
from geoseg.data.labelled import LabelledScene
from geoseg.errors import ConfigError
from geoseg.grid import Grid
from geoseg.windows import Window

_TRIES, _PLACES = 1000, 20  # places and zooms tried for one that a split allows; around one pixel before another one
_LABELLED = -1  # any class


class _Blocks(NamedTuple):
    """Blocks of all scenes that contain a class."""

    place: Int32Array  # scene, row and column of each, (3, N)
    ends: FloatArray  # cumulative sum of their weights, (N,)


class Sampler:
    """Draws the places of training windows.

    A window is first given a class by ``train.class_shares``, or none. With a class, it lies around a pixel of that
    class, each one equally likely, which falls into the window's middle half along each axis if the scene extends far
    enough. Without, it lies anywhere; if scenes are labelled in part (``labelled_area``, ``outside: ignore``), around
    any labelled pixel. A `ConfigError` if such a class occurs nowhere, or a split leaves no room for a window.
    """

    def __init__(self, scenes: Sequence[LabelledScene], settings: TrainConfig) -> None:
        self.scenes = scenes
        self._size, self._augment = settings.train.size, settings.augment
        self._align, self._max_share = settings.train.align_blocks, settings.train.max_class_share
        ends = np.cumsum(_scene_weights(scenes, settings))
        self._ends = ends / ends[-1]
        shares = settings.train.class_shares or {}
        if shares == "balanced":
            shares = dict.fromkeys(settings.class_table.names, 1 / len(settings.classes))
        self._classes = [settings.class_table.id_of(name) for name in shares]
        self._class_ends = np.cumsum(list(shares.values()))
        self._rest = _LABELLED if any(s.config.is_part_labelled for s in scenes) else None
        self._blocks: dict[int, _Blocks] = {}
        if shares or self._rest is not None:
            self._blocks = _blocks(class_histograms(scenes, settings), [*self._classes, _LABELLED], settings)
            if _LABELLED not in self._blocks:
                raise ConfigError(
                    "no training scene has a valid pixel with a class",
                    hint="see what the scenes hold with: geoseg stats CONFIG",
                )
            self._check_classes(settings)

    def draw(self, rng: np.random.Generator) -> tuple[int, Window, ByteArray]:
        """A scene, a window of it, and the window's labels (H, W).

        A window is redrawn for the same class while one class covers more than ``train.max_class_share`` of it.
        """
        wanted = self._choose_class(rng)
        for _ in range(10):  # as in SegNeXt's training (mmsegmentation's cat_max_ratio)
            found = self._around(wanted, rng) if wanted is not None else None
            scene, window = found or self._anywhere(rng)
            labels = self.scenes[scene].labels.read(window)
            counts = np.bincount(labels.ravel(), minlength=NODATA + 1)[:NODATA]
            is_mixed = (counts > 0).sum() > 1 and counts.max() < self._max_share * counts.sum()
            if is_mixed or self._max_share == 1:
                break
        return scene, window, labels

    def _choose_class(self, rng: np.random.Generator) -> int | None:
        if not self._classes:
            return self._rest
        i = int(np.searchsorted(self._class_ends, rng.random(), side="right"))
        # Shares of thirds and the like add up to a little less than 1.
        is_rest = i == len(self._classes) and self._class_ends[-1] < 1 - 1e-9
        return self._rest if is_rest else self._classes[min(i, len(self._classes) - 1)]

    def _anywhere(self, rng: np.random.Generator) -> tuple[int, Window]:
        """A window anywhere, at a random zoom; inside the scene if it fits."""
        for _ in range(_TRIES):
            i = _pick(self._ends, rng)
            scene = self.scenes[i]
            side = self._side(scene.grid, rng)
            if scene.split is None:
                row, col = (int(rng.integers(min(0, n - side), max(0, n - side) + 1)) for n in scene.grid.shape)
                return i, self._aligned(scene, Window(row, col, side, side))
            window = scene.split.draw(rng, side, side)
            if window is not None:
                return i, self._aligned(scene, window)
        raise ConfigError(
            f"no training window of {self._size} px fits between the validation blocks",
            hint="lower data.split.val_share or data.split.buffer, or enlarge data.split.block",
        )

    def _around(self, wanted: int, rng: np.random.Generator) -> tuple[int, Window] | None:
        """A window with a pixel of a class in its middle; None if none that was tried is allowed."""
        blocks = self._blocks[wanted]
        for _ in range(_TRIES // _PLACES):
            i, *block = blocks.place[:, _pick(blocks.ends, rng)].tolist()
            scene = self.scenes[i]
            pixel = _pixel(scene, block, wanted, rng)
            if pixel is None:  # resampled labels can differ at the edges of windows
                continue
            for attempt in range(1 if scene.split is None else _PLACES):
                side = self._side(scene.grid, rng)
                # Beside a validation block, a pixel may be allowed only near the edge of a window.
                row, col = (
                    _start(n, p, side, rng, middle=attempt < _PLACES // 2)
                    for n, p in zip(scene.grid.shape, pixel, strict=True)
                )
                window = Window(row, col, side, side)
                if scene.split is None or scene.split.allows(window):
                    return i, self._aligned(scene, window, pixel)
        return None

    def _side(self, grid: Grid, rng: np.random.Generator) -> int:
        """Side of a window, px: the training size over a random zoom and the fit to the base size."""
        low, high = self._augment.scale
        if self._augment.scale_sampling == "log":
            zoom = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        else:
            zoom = float(rng.uniform(low, high))
        return max(round(self._size / (zoom * base_factor(grid, self._augment))), 1)

    def _aligned(self, scene: LabelledScene, window: Window, pixel: tuple[int, int] | None = None) -> Window:
        """The window moved to the start of the nearest block of the file, if blocks are small and it is allowed."""
        if not self._align:
            return window
        row, col = (
            _snapped(start, window.height, n, block)
            for start, n, block in zip((window.row, window.col), scene.grid.shape, scene.scene.block_shape, strict=True)
        )
        moved = Window(row, col, window.height, window.width)
        if scene.split is not None and not scene.split.allows(moved):
            return window
        holds = pixel is None or (row <= pixel[0] < moved.row_stop and col <= pixel[1] < moved.col_stop)
        return moved if holds else window

    def _check_classes(self, settings: TrainConfig) -> None:
        names = settings.class_table.names
        asked = self._classes
        absent = [names[c] for c in asked if c not in self._blocks]
        if absent:
            here = ", ".join(names[c] for c in asked if c in self._blocks)
            raise ConfigError(
                f"train.class_shares asks for {', '.join(absent)}, which no training scene contains",
                hint=f"give shares only to classes that occur: train.class_shares={{NAME: SHARE}} of {here or 'none'}",
            )
        rng = np.random.default_rng(settings.seed)
        is_cut = any(scene.split is not None for scene in self.scenes)
        for c in asked:
            if is_cut and self._around(c, rng) is None:
                raise ConfigError(
                    f"no training window of {self._size} px that contains class {names[c]} fits between the validation "
                    "blocks",
                    hint="lower data.split.buffer or data.split.val_share, or leave the class out of class_shares",
                )


def base_factor(grid: Grid, config: AugmentConfig) -> float:
    """The zoom that random zooms of a scene are relative to: its fit to ``augment.base_size``, times ``base_zoom``.

    It is that of mmsegmentation's Resize with keep_ratio.
    """
    if config.base_size is None:
        return config.base_zoom
    long, short = max(config.base_size), min(config.base_size)
    return config.base_zoom * min(long / max(grid.shape), short / min(grid.shape))


def _scene_weights(scenes: Sequence[LabelledScene], settings: TrainConfig) -> FloatArray:
    if settings.train.draw == "scenes":
        weights = np.ones(len(scenes))
    else:
        weights = np.array([float(s.grid.height) * s.grid.width for s in scenes])
    side = settings.train.size
    room = [1.0 if s.split is None else s.split.fraction(side, side) for s in scenes]
    # If no window of the middle zoom fits, smaller ones may: keep such scenes with a small weight.
    return weights * np.maximum(room, 1e-3)


def _blocks(histograms: Sequence[Histogram], classes: Sequence[int], settings: TrainConfig) -> dict[int, _Blocks]:
    """Blocks that contain each class; classes without any are left out."""
    places, parts = [], []
    for i, histogram in enumerate(histograms):
        rows, cols = np.nonzero(histogram.counts.any(axis=2))
        places.append(np.stack([np.full(len(rows), i), rows, cols]).astype(np.int32))
        parts.append(histogram.counts[rows, cols])
    place, counts = np.concatenate(places, axis=1), np.concatenate(parts)
    found = {}
    for c in classes:
        weights = (counts.sum(axis=1) if c == _LABELLED else counts[:, c]).astype(np.float64)
        held = np.flatnonzero(weights)
        if len(held):
            weights, scene = weights[held], place[0, held]
            if settings.train.draw == "scenes":
                weights /= np.bincount(scene, weights)[scene]
            found[c] = _Blocks(place[:, held], np.cumsum(weights))
    return found


def _pick(ends: FloatArray, rng: np.random.Generator) -> int:
    """A random index by weights, given their cumulative sum."""
    return min(int(np.searchsorted(ends, rng.random() * ends[-1], side="right")), len(ends) - 1)


def _pixel(scene: LabelledScene, block: Sequence[int], wanted: int, rng: np.random.Generator) -> tuple[int, int] | None:
    """Row and column of a random pixel of a class in a block (row, column); None if there is none."""
    row, col = block[0] * BLOCK, block[1] * BLOCK
    height, width = scene.grid.shape
    window = Window(row, col, min(BLOCK, height - row), min(BLOCK, width - col))
    labels, valid = read_labels(scene, window)
    is_wanted = labels != NODATA if wanted == _LABELLED else labels == wanted
    places = np.flatnonzero(is_wanted if valid is None else is_wanted & valid)
    if not len(places):
        return None
    place = int(places[rng.integers(len(places))])
    return row + place // window.width, col + place % window.width


def _start(length: int, pixel: int, side: int, rng: np.random.Generator, *, middle: bool) -> int:
    """Start of a window that contains a pixel, in its middle half if wanted and the scene allows."""
    low, high = min(0, length - side), max(0, length - side)
    margin = side // 4 if middle else 0
    first = min(max(pixel - side + 1 + margin, low), high)
    last = min(max(pixel - margin, low), high)
    return int(rng.integers(first, max(first, last) + 1))


def _snapped(start: int, side: int, length: int, block: int) -> int:
    """The nearest start of a block, or the last possible start; unchanged if blocks exceed half a window."""
    last = length - side
    if last <= 0 or 2 * block > side:
        return start
    below = start // block * block
    above = min(below + block, last)
    return below if start - below <= above - start else above
