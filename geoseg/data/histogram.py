"""How many pixels of each class every block of a scene holds: one pass over the labels, kept on disk."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from geoseg.classes import NODATA
from geoseg.config import TrainConfig
from geoseg.data.labelled import LabelledScene, labels_of
from geoseg.data.labels import LabelArray
from geoseg.errors import GeosegError
from geoseg.files import atomic_output
from geoseg.paths import RASTER_SUFFIXES, InputPath, file_behind, suffix
from geoseg.runtime.processors import processors
from geoseg.runtime.user_cache import user_cache
from geoseg.scene import Scene, Valid
from geoseg.windows import Window

log = logging.getLogger(__name__)

Counts = npt.NDArray[np.int64]

BLOCK = 256
"""Side of the blocks, px."""

FORMAT = 2
"""Of the files that are kept; to be raised when the same labels come to be counted otherwise."""

MAX_WEIGHT_RATIO = 10.0
"""A suggested weight is at most so many times, or one so manieth, that of the class of median frequency."""

_CHUNK = 2 * BLOCK, 16 * BLOCK
"""Rows and columns that are read at once, px; whole blocks of files, as a rule."""

_THREADS = 8
_INVALID = NODATA + 1

# Files beside a shapefile, a GeoPackage that is being written, and a raster, which labels depend on too.
_COMPANIONS = {".shp": (".dbf", ".shx", ".prj", ".cpg"), ".gpkg": (".gpkg-wal",)}
_RASTER_COMPANIONS = ".aux.xml", ".msk"


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """Pixels of each class in each block of a scene that training may see.

    Attributes:
        counts: Pixels of each class that are valid, (rows, cols, K).
        ignored: Pixels without a class that training may see, (rows, cols).
        invalid: Pixels with a class whose imagery means nothing, (rows, cols).
        block: Side of a block, px; the last ones end with the scene.
    """

    counts: Counts
    ignored: Counts
    invalid: Counts
    block: int = BLOCK

    @property
    def total(self) -> Counts:
        """Pixels of each class in the scene, (K,)."""
        total: Counts = self.counts.sum(axis=(0, 1))
        return total


def class_histograms(scenes: Sequence[LabelledScene], settings: TrainConfig) -> list[Histogram]:
    """`class_histogram` of several scenes, some at once."""
    with ThreadPoolExecutor(min(_THREADS, processors()), thread_name_prefix="geoseg-count") as threads:
        return list(threads.map(lambda scene: class_histogram(scene, settings), scenes))


def class_histogram(scene: LabelledScene, settings: TrainConfig) -> Histogram:
    """Pixels of each class in each block of a scene, counted once.

    Where a scene is cut into blocks for training and validation, only what trains is counted. The result is kept in
    ``$XDG_CACHE_HOME/geoseg/histograms`` (``~/.cache/geoseg/histograms``) under a digest of all that it depends on,
    as far as size and time of change of the files tell; what is kept and cannot be read is counted anew.

    Args:
        scene: A labelled scene.
        settings: The experiment.

    Raises:
        LabelError: Labels that cannot be read.
        SceneError: Imagery that cannot be read. It is read only where pixels of it can be invalid.
    """
    key = _digest(scene, settings)
    classes = len(settings.classes)
    kept = user_cache("histograms") / f"{key}.npz"
    found = _load(kept, key, scene, classes)
    if found is None:
        found = _count(scene, classes)
        _store(kept, key, found)
    return found


def count_blocks(labels: LabelArray, valid: Valid | None, classes: int, *, block: int = BLOCK) -> Histogram:
    """Pixels of each class in the blocks of a window that begins where a block begins.

    Args:
        labels: Class ids (H, W), 255 to be ignored.
        valid: Pixels that mean something (H, W); None where all do.
        classes: How many classes there are.
        block: Side of a block, px.
    """
    height, width = labels.shape
    values = labels if valid is None else np.where(valid | (labels == NODATA), labels, np.uint16(_INVALID))
    rows, cols = -(-height // block), -(-width // block)
    column = (np.arange(width) // block * (_INVALID + 1)).astype(np.int64)
    counts = np.empty((rows, cols, _INVALID + 1), dtype=np.int64)
    for row in range(rows):
        place = values[row * block : (row + 1) * block] + column
        counts[row] = np.bincount(place.ravel(), minlength=cols * (_INVALID + 1)).reshape(cols, -1)
    return Histogram(counts[:, :, :classes].copy(), counts[:, :, NODATA], counts[:, :, _INVALID], block)


def suggested_weights(total: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Weight of each class for a loss, from how many pixels it has: median frequency balancing, with bounds.

    Each class gets the median of the frequencies over its own, at least a tenth and at most ten, so that a class of a
    few pixels does not rule the gradient. The mean over the classes that occur is 1; a class that does not gets 0.
    (The effective number of samples of Cui et al. is near its limit for every class when pixels are counted.)

    Args:
        total: Pixels of each class, (K,).

    Returns:
        Weights, (K,).

    References:
        Eigen and Fergus, Predicting depth, surface normals and semantic labels with a common multi-scale convolutional
        architecture, ICCV 2015, section 6.3.2.
    """
    count = np.asarray(total, dtype=np.float64)
    weights = np.zeros_like(count)
    present = count > 0
    if present.any():
        ratio = np.median(count[present]) / count[present]
        ratio = np.clip(ratio, 1 / MAX_WEIGHT_RATIO, MAX_WEIGHT_RATIO)
        weights[present] = ratio / ratio.mean()
    return weights


def chunks(height: int, width: int) -> Iterator[Window]:
    """Windows that cover a scene once, each of whole blocks and of bounded size, row by row."""
    for row in range(0, height, _CHUNK[0]):
        for col in range(0, width, _CHUNK[1]):
            yield Window(row, col, min(_CHUNK[0], height - row), min(_CHUNK[1], width - col))


def read_labels(scene: LabelledScene, window: Window, split: str = "train") -> tuple[LabelArray, Valid | None]:
    """Labels (H, W) of a window that count for a split, 255 elsewhere, and where the imagery is valid.

    Imagery of which every pixel is valid is not read: None stands for it.
    """
    labels = labels_of(scene, split).read(window)
    if not scene.scene.can_be_invalid or not (labels != NODATA).any():
        return labels, None
    return labels, scene.scene.read(window, reflect_valid=True)[1]


def _count(scene: LabelledScene, classes: int) -> Histogram:
    height, width = scene.grid.shape
    rows, cols = -(-height // BLOCK), -(-width // BLOCK)
    counts = np.zeros((rows, cols, classes), dtype=np.int64)
    ignored, invalid = np.zeros((2, rows, cols), dtype=np.int64)
    for window in chunks(height, width):
        part = count_blocks(*read_labels(scene, window), classes)
        row, col = window.row // BLOCK, window.col // BLOCK
        place = slice(row, row + part.ignored.shape[0]), slice(col, col + part.ignored.shape[1])
        counts[place], ignored[place], invalid[place] = part.counts, part.ignored, part.invalid
    return Histogram(counts, ignored, invalid)


def _digest(scene: LabelledScene, settings: TrainConfig) -> str:
    """Digest of all that a histogram depends on."""
    config, grid, split = scene.config, scene.grid, scene.split
    imagery = scene.scene
    facts = {
        "format": FORMAT,
        "block": BLOCK,
        "labels": _file_facts(config.labels),
        "area": _file_facts(config.labelled_area) if config.labelled_area is not None else None,
        "stated": [config.attribute, config.class_name, config.outside, settings.data.first_label],
        "classes": settings.class_table.names,
        "grid": [*grid.shape, *list(grid.transform)[:6], grid.crs.to_wkt() if grid.crs is not None else None],
        "imagery": [imagery.fingerprint(), settings.imagery.alpha] if imagery.can_be_invalid else None,
        "split": [[w.row, w.col, w.height, w.width] for w in split.validation] if split is not None else None,
        "buffer": split.buffer if split is not None else None,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _file_facts(source: InputPath) -> list[Any]:
    """Path, size and time of change of a file, and of those that belong to it."""
    if suffix(source) == ".vrt":
        with Scene(source) as raster:  # its sources change while it does not
            return raster.source_facts()
    path = file_behind(source)
    if path is None:
        return [str(source)]
    parts = [path, *(path.with_suffix(s) for s in _COMPANIONS.get(path.suffix.lower(), ()))]
    if path.suffix.lower() in RASTER_SUFFIXES:
        parts += [path.with_name(path.name + s) for s in _RASTER_COMPANIONS]
    if path.is_dir():  # a FileGDB
        parts += sorted(path.iterdir())
    facts: list[Any] = [] if path == source else [str(source)]
    for part in parts:
        try:
            status = part.stat()
        except OSError:
            continue
        facts.append([str(part.resolve()), status.st_size, status.st_mtime_ns])
    return facts


def _load(path: Path, key: str, scene: LabelledScene, classes: int) -> Histogram | None:
    """What was kept, if it is whole and of this scene."""
    height, width = scene.grid.shape
    shape = -(-height // BLOCK), -(-width // BLOCK)
    try:
        with np.load(path, allow_pickle=False) as kept:
            found = Histogram(kept["counts"], kept["ignored"], kept["invalid"])
            is_same = str(kept["key"]) == key
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        log.info("%s cannot be read, so the classes are counted anew: %s", path, error)
        return None
    parts = found.counts, found.ignored, found.invalid
    if not is_same or any(part.dtype != np.int64 for part in parts):
        return None
    if found.counts.shape != (*shape, classes) or any(part.shape != shape for part in parts[1:]):
        return None
    sides = [np.minimum(BLOCK, n - np.arange(0, n, BLOCK)) for n in (height, width)]
    whole = np.array_equal(found.counts.sum(axis=2) + found.ignored + found.invalid, np.outer(*sides))
    return found if whole and all((part >= 0).all() for part in parts) else None


def _store(path: Path, key: str, histogram: Histogram) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_output(path) as scratch:
            np.savez_compressed(
                scratch,
                key=np.array(key),
                counts=histogram.counts,
                ignored=histogram.ignored,
                invalid=histogram.invalid,
            )
    except (OSError, GeosegError) as error:
        _tell(f"counts of classes cannot be kept in {path.parent}, so each run counts anew: {error}")


@functools.cache
def _tell(message: str) -> None:
    """Warn of the same thing once, not for each of thousands of scenes."""
    log.warning(message)
