"""Classes, bands and nodata of the labelled scenes of a configuration: ``geoseg stats``."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import rasterio

from geoseg.arrays import FloatArray, IntArray, Valid
from geoseg.class_map.overviews import class_areas
from geoseg.classes import NODATA
from geoseg.config import TrainConfig
from geoseg.data.histogram import BLOCK, CHUNK, count_blocks, suggested_weights
from geoseg.data.labelled import LabelledScene, covered, open_scenes
from geoseg.data.statistics import Moments, ValueCounts, chosen, finite_moments, nothing_valid, scaled_std
from geoseg.errors import ConfigError
from geoseg.network.metrics import ratio
from geoseg.runtime.machine import reading_threads
from geoseg.windows import Window, pieces
from geoseg.words import aligned, count

LOW, HIGH = 0.02, 0.98  # shares of the pixels between which imagery is usually stretched

_CACHE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, eq=False)
class SceneStats:
    """What the scenes of a split hold; blocks are of 256 px.

    Classes are counted over pixels that are valid and labelled, (K,), bands over valid pixels, (B,), as in the files.
    """

    config: TrainConfig
    split: str
    scenes: int
    pixels: int  # valid or not
    blocks: int  # that any of these pixels lies in
    nodata: float  # share of the pixels, in [0, 1]
    ignored: float  # share of the pixels that are valid and have no class
    class_pixels: IntArray
    hectares: FloatArray | None  # of each class, on the ellipsoid; None where no scene is georeferenced
    class_blocks: IntArray  # that hold a pixel of the class
    class_scenes: IntArray  # that hold a pixel of the class
    minimum: FloatArray
    low: FloatArray  # the smallest value that at least 2 % of the pixels do not exceed
    high: FloatArray  # the same for 98 %
    maximum: FloatArray
    moments: Moments

    @property
    def shares(self) -> FloatArray:
        """Shares (K,) of the pixels that have a class, in [0, 1]."""
        return ratio(self.class_pixels, max(self.class_pixels.sum(), 1))

    @property
    def weights(self) -> FloatArray:
        """Weights (K,) suggested for the loss, see `geoseg.data.histogram.suggested_weights`."""
        return suggested_weights(self.class_pixels)

    @property
    def overrides(self) -> list[str]:
        """What to add to ``geoseg train CONFIG`` to fix class weights, mean and standard deviation."""
        scale = self.config.imagery.effective_scale
        mean, std = self.moments.mean * scale, scaled_std(self.moments.std, scale)
        lists = ("train.class_weights", self.weights), ("imagery.mean", mean), ("imagery.std", std)
        return [f"{key}=[{','.join(f'{v:.5g}' for v in values)}]" for key, values in lists if any(values)]

    def lines(self) -> list[str]:
        """Tables for people, and the settings to train with."""
        head = f"{self.split}: {count(self.scenes, 'scene')}, {self.pixels / 1e6:.4g} Mpx"
        shares, weights = self.shares, self.weights
        classes = [["class", "pixels", "share", "hectares", "blocks", "scenes", "weight"]]
        for i, name in enumerate(self.config.class_table.names):
            area = "" if self.hectares is None else f"{self.hectares[i]:,.4g}"
            held = str(self.class_blocks[i]), str(self.class_scenes[i])
            figures = f"{self.class_pixels[i]:,}", f"{shares[i]:.3%}", area, *held, f"{weights[i]:.4g}"
            classes.append([f"{i} {name}", *figures])
        bands = [["band", "min", "2 %", "98 %", "max", "mean", "std"]]
        columns = (self.minimum, self.low, self.high, self.maximum, self.moments.mean, self.moments.std)
        for name, *values in zip(self.config.imagery.bands, *columns, strict=True):
            bands.append([name, *(f"{value:.6g}" for value in values)])
        return [
            f"{head}, {self.blocks} blocks of {BLOCK} px; {self.nodata:.2%} nodata, {self.ignored:.2%} without a class",
            "",
            *aligned(classes),
            "",
            *aligned(bands),
            *(["", "to train with these:", shlex.join(self.overrides)] if self.split == "train" else []),
        ]


@dataclass(slots=True, eq=False)
class _Sums:
    """What one scene holds."""

    classes: IntArray
    class_blocks: IntArray
    hectares: FloatArray
    minimum: FloatArray
    maximum: FloatArray
    moments: Moments
    pixels: int = 0
    blocks: int = 0
    invalid: int = 0
    ignored: int = 0


def scene_stats(settings: TrainConfig, split: str = "train") -> SceneStats:
    """Count classes, bands and nodata of the scenes of a split.

    Everything is read once, imagery of float32 twice; memory does not grow with the scenes. Of scenes that are cut
    into blocks, only those pixels count that the split may see. A `ConfigError` for another split, a `LabelError` for
    labels that cannot be read, a `SceneError` for a scene that cannot be read or has infinite values at valid pixels,
    and for no valid pixel at all.
    """
    if split not in ("train", "val"):
        raise ConfigError(f"unknown split {split!r}", hint="--split train or --split val")
    scenes = open_scenes(settings, split)
    dtype, bands = np.dtype(settings.imagery.dtype), len(settings.imagery.bands)
    values = ValueCounts(dtype, bands)
    with rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES), reading_threads("stats", most=4) as threads:
        sums = list(threads.map(lambda scene: _sum(scene, split, len(settings.classes), values), scenes))
        if not any(s.moments.count for s in sums):
            raise nothing_valid(scenes)
        if not values.is_exact:
            values.refine((LOW, HIGH))
            list(threads.map(lambda scene: _count_again(scene, split, values), scenes))
    pixels = sum(s.pixels for s in sums)
    return SceneStats(
        config=settings,
        split=split,
        scenes=len(scenes),
        pixels=pixels,
        blocks=sum(s.blocks for s in sums),
        nodata=sum(s.invalid for s in sums) / max(pixels, 1),
        ignored=sum(s.ignored for s in sums) / max(pixels, 1),
        class_pixels=np.sum([s.classes for s in sums], axis=0),
        hectares=np.sum([s.hectares for s in sums], axis=0) if any(s.grid.is_metric for s in scenes) else None,
        class_blocks=np.sum([s.class_blocks for s in sums], axis=0),
        class_scenes=np.sum([s.classes > 0 for s in sums], axis=0),
        minimum=np.min([s.minimum for s in sums], axis=0),
        low=values.percentile(LOW),
        high=values.percentile(HIGH),
        maximum=np.max([s.maximum for s in sums], axis=0),
        moments=sum((s.moments for s in sums), Moments.none(bands)),
    )


def _sum(scene: LabelledScene, split: str, classes: int, values: ValueCounts) -> _Sums:
    bands = len(scene.scene.bands)
    row_area = scene.grid.pixel_area_m2() / 1e4
    sums = _Sums(
        classes=np.zeros(classes, dtype=np.int64),
        class_blocks=np.zeros(classes, dtype=np.int64),
        hectares=np.zeros(classes),
        minimum=np.full(bands, np.inf),
        maximum=np.full(bands, -np.inf),
        moments=Moments.none(bands),
    )
    for window, wanted in _parts(scene, split):
        pixels, valid = scene.scene.read(window)
        use = valid & wanted
        labels = np.where(use, scene.labels.read(window), np.uint8(NODATA))
        size, used = int(np.count_nonzero(wanted)), int(np.count_nonzero(use))
        sums.pixels += size
        sums.invalid += size - used
        sums.ignored += used - int(np.count_nonzero(labels != NODATA))
        sums.blocks += _blocks_with(wanted)
        counts = count_blocks(labels, None, classes).counts
        sums.classes += counts.sum(axis=(0, 1))
        sums.class_blocks += (counts > 0).sum(axis=(0, 1))
        if scene.grid.is_metric:
            sums.hectares += class_areas(labels, row_area[window.row : window.row_stop], classes)
        of_bands = chosen(pixels, use)
        if of_bands.shape[1]:
            sums.minimum = np.minimum(sums.minimum, of_bands.min(axis=1))
            sums.maximum = np.maximum(sums.maximum, of_bands.max(axis=1))
            sums.moments += finite_moments(scene, of_bands)
            values.add(of_bands)
    return sums


def _count_again(scene: LabelledScene, split: str, values: ValueCounts) -> None:
    for window, wanted in _parts(scene, split):
        values.add_fine(chosen(*scene.scene.read(window), wanted))


def _parts(scene: LabelledScene, split: str) -> Iterator[tuple[Window, Valid]]:
    """Windows that cover a scene, and which of their pixels belong to a split."""
    for window in pieces(*scene.grid.shape, *CHUNK):
        part = covered(scene, split, window)
        wanted = np.ones((window.height, window.width), dtype=bool) if part is None else part
        if wanted.any():
            yield window, wanted


def _blocks_with(wanted: Valid) -> int:
    """Blocks of a window that hold any wanted pixel."""
    rows, cols = (np.arange(0, n, BLOCK) for n in wanted.shape)
    return int(np.add.reduceat(np.add.reduceat(wanted, rows, axis=0, dtype=np.int64), cols, axis=1).astype(bool).sum())
