"""Pixels of each class in every block of a scene: one pass over the labels, cached on disk."""

import functools
import hashlib
import json
import logging
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from geoseg.arrays import ByteArray, FloatArray, IntArray, Valid
from geoseg.classes import NODATA
from geoseg.config import TrainConfig
from geoseg.data.labelled import LabelledScene, labels_of
from geoseg.errors import GeosegError
from geoseg.files import atomic_output
from geoseg.paths import RASTER_SUFFIXES, InputPath, file_behind, suffix
from geoseg.runtime.machine import reading_threads, user_cache
from geoseg.scene import Scene
from geoseg.windows import Window, pieces

log = logging.getLogger(__name__)

BLOCK = 256  # side of the blocks, px
FORMAT = 2  # version of the cached files; raise it when the same labels are counted differently
MAX_WEIGHT_RATIO = 10.0  # limit of suggested weights, relative to the class of median frequency, and of its inverse
CHUNK = 2 * BLOCK, 16 * BLOCK  # rows and columns of whole blocks that are read at once, px

_INVALID = NODATA + 1

# Files beside a shapefile, a GeoPackage being written, and a raster, on which labels depend too.
_COMPANIONS = {".shp": (".dbf", ".shx", ".prj", ".cpg"), ".gpkg": (".gpkg-wal",)}
_RASTER_COMPANIONS = ".aux.xml", ".msk"


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """Pixels of each class in each block of a scene that training may see."""

    counts: IntArray  # valid pixels of each class, (rows, cols, K)
    ignored: IntArray  # pixels without a class, (rows, cols)
    invalid: IntArray  # pixels with a class whose imagery is invalid, (rows, cols)

    @property
    def total(self) -> IntArray:
        """Pixels of each class in the scene, (K,)."""
        return np.asarray(self.counts.sum(axis=(0, 1)))


def class_histograms(scenes: Sequence[LabelledScene], settings: TrainConfig) -> list[Histogram]:
    """`class_histogram` of several scenes, in threads."""
    with reading_threads("count") as threads:
        return list(threads.map(lambda scene: class_histogram(scene, settings), scenes))


def class_histogram(scene: LabelledScene, settings: TrainConfig) -> Histogram:
    """Pixels of each class in each block of a scene, counted once.

    Of a scene cut into blocks only the training part is counted. The result is cached in
    ``$XDG_CACHE_HOME/geoseg/histograms`` (``~/.cache/geoseg/histograms``) under a digest of all that it depends on,
    files by size and time of change. A damaged cache file is replaced.
    """
    key, classes = _digest(scene, settings), len(settings.classes)
    kept = user_cache("histograms") / f"{key}.npz"
    found = _load(kept, key, scene, classes)
    if found is None:
        found = _count(scene, classes)
        _store(kept, key, found)
    return found


def count_blocks(labels: ByteArray, valid: Valid | None, classes: int) -> Histogram:
    """Pixels of each class in the blocks of a window that begins where a block begins.

    Labels and valid pixels are (H, W), 255 to be ignored; no valid pixels given means all.
    """
    height, width = labels.shape
    values = labels if valid is None else np.where(valid | (labels == NODATA), labels, np.uint16(_INVALID))
    rows, cols = -(-height // BLOCK), -(-width // BLOCK)
    column = (np.arange(width) // BLOCK * (_INVALID + 1)).astype(np.int64)
    counts = np.empty((rows, cols, _INVALID + 1), dtype=np.int64)
    for row in range(rows):
        place = values[row * BLOCK : (row + 1) * BLOCK] + column
        counts[row] = np.bincount(place.ravel(), minlength=cols * (_INVALID + 1)).reshape(cols, -1)
    return Histogram(counts[:, :, :classes].copy(), counts[:, :, NODATA], counts[:, :, _INVALID])


def suggested_weights(total: npt.ArrayLike) -> FloatArray:
    """Loss weight (K,) of each class from its number of pixels (K,): median frequency balancing, with bounds.

    Each class gets the median of the frequencies over its own (Eigen and Fergus, ICCV 2015, section 6.3.2), within
    [1/10, 10], so that a class of a few pixels does not rule the gradient. The mean over the classes that occur is 1; a
    class that does not occur gets 0.
    """
    count = np.asarray(total, dtype=np.float64)
    weights = np.zeros_like(count)
    present = count > 0
    if present.any():
        ratio = np.median(count[present]) / count[present]
        ratio = np.clip(ratio, 1 / MAX_WEIGHT_RATIO, MAX_WEIGHT_RATIO)
        weights[present] = ratio / ratio.mean()
    return weights


def read_labels(scene: LabelledScene, window: Window, split: str = "train") -> tuple[ByteArray, Valid | None]:
    """Labels (H, W) of a window that belong to a split, 255 elsewhere, and where the imagery is valid; None for all.

    Imagery that cannot be invalid is not read.
    """
    labels = labels_of(scene, split).read(window)
    if not scene.scene.can_be_invalid or not (labels != NODATA).any():
        return labels, None
    return labels, scene.scene.read(window, reflect_valid=True)[1]


def _count(scene: LabelledScene, classes: int) -> Histogram:
    height, width = scene.grid.shape
    shape = -(-height // BLOCK), -(-width // BLOCK)
    counts, ignored, invalid = (np.zeros(s, dtype=np.int64) for s in ((*shape, classes), shape, shape))
    for window in pieces(height, width, *CHUNK):
        part = count_blocks(*read_labels(scene, window), classes)
        row, col = window.row // BLOCK, window.col // BLOCK
        place = slice(row, row + part.ignored.shape[0]), slice(col, col + part.ignored.shape[1])
        counts[place], ignored[place], invalid[place] = part.counts, part.ignored, part.invalid
    return Histogram(counts, ignored, invalid)


def _digest(scene: LabelledScene, settings: TrainConfig) -> str:
    config, grid, split = scene.config, scene.grid, scene.split
    imagery = scene.scene
    files = config.labels, config.labelled_area, config.corrections
    facts = {
        "format": FORMAT,
        "block": BLOCK,
        "files": [_file_facts(file) if file is not None else None for file in files],
        "stated": [config.model_dump(), settings.data.first_label],
        "classes": settings.class_table.names,
        "grid": [*grid.shape, *list(grid.transform)[:6], grid.crs.to_wkt() if grid.crs is not None else None],
        "imagery": [imagery.fingerprint(), settings.imagery.alpha] if imagery.can_be_invalid else None,
        "split": [[w.row, w.col, w.height, w.width] for w in split.validation] if split is not None else None,
        "buffer": split.buffer if split is not None else None,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _file_facts(source: InputPath) -> list[Any]:
    """Path, size and time of change of a file and of those that belong to it."""
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
    """The cached histogram, if it is complete and of this scene."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            found = Histogram(kept["counts"], kept["ignored"], kept["invalid"])
            is_same = str(kept["key"]) == key
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        log.info("%s cannot be read, counting classes again: %s", path, error)
        return None
    rows, cols = (np.minimum(BLOCK, n - np.arange(0, n, BLOCK)) for n in scene.grid.shape)
    total = found.counts.sum(axis=2) + found.ignored + found.invalid
    is_whole = found.counts.shape[2] == classes and np.array_equal(total, np.outer(rows, cols))
    return found if is_same and is_whole else None


def _store(path: Path, key: str, histogram: Histogram) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_output(path) as scratch:
            np.savez_compressed(scratch, key=np.array(key), **asdict(histogram))
    except (OSError, GeosegError) as error:
        _warn(f"counts of classes cannot be cached in {path.parent}, each run counts again: {error}")


@functools.cache
def _warn(message: str) -> None:
    """Warn once, not for each of thousands of scenes."""
    log.warning(message)
