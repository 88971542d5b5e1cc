"""How far a map's confidence can be believed: a reliability diagram, and the temperature that would put it right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from geoseg.arrays import ByteArray
from geoseg.classes import NODATA
from geoseg.data import Labels
from geoseg.evaluation.blocks import BLOCK_PX, Blocks
from geoseg.evaluation.result import Calibration, Counts
from geoseg.map_rows import CONFIDENCE_SCALE
from geoseg.prediction.predictor import Predictor, WindowPixels
from geoseg.runtime.jit import njit
from geoseg.scene import Raster
from geoseg.tiling.plan import Plan
from geoseg.windows import Window

BINS = 20
TEMPERATURES = (0.05, 20.0)
"""Where a temperature is looked for: a model that is right everywhere would want 0."""

SAMPLED_BLOCKS = 64
SAMPLED_PX = 2048
"""So many pixels in each of so many blocks, at most, make the sample of logits."""

_CHUNK = 1 << 14

Logits = npt.NDArray[np.float32]


class Temper(NamedTuple):
    """A temperature, and the expected calibration error of a sample's logits once they are divided by it."""

    temperature: float
    error: float


class Reliability:
    """Counts pixels, and those of them that are right, for each of the 255 values confidence is stored as."""

    def __init__(self) -> None:
        self._levels = np.zeros((CONFIDENCE_SCALE + 1, 2), dtype=np.int64)

    def feed(self, truth: ByteArray, mapped: ByteArray, confidence: ByteArray) -> None:
        """Take rows of truth, map and confidence, each (h, W); pixels with 255 in truth or map do not count."""
        _count_levels(truth, mapped, confidence, self._levels)

    def __add__(self, other: Reliability) -> Reliability:
        total = Reliability()
        total._levels = self._levels + other._levels
        return total

    def result(self, temper: Temper) -> Calibration:
        """The diagram in bins, beside what a temperature would do."""
        level = np.arange(CONFIDENCE_SCALE + 1)
        place = np.minimum(level * BINS // CONFIDENCE_SCALE, BINS - 1)
        count, right = (np.zeros(BINS, dtype=np.int64) for _ in range(2))
        confidence = np.zeros(BINS)
        np.add.at(count, place, self._levels[:, 0])
        np.add.at(right, place, self._levels[:, 1])
        np.add.at(confidence, place, self._levels[:, 0] * level / CONFIDENCE_SCALE)
        return Calibration(count, confidence, right, temper.temperature, temper.error)


@njit
def _count_levels(truth: ByteArray, mapped: ByteArray, confidence: ByteArray, levels: Counts) -> None:
    for y in range(truth.shape[0]):
        for x in range(truth.shape[1]):
            if truth[y, x] != NODATA and mapped[y, x] != NODATA:
                levels[confidence[y, x], 0] += 1
                levels[confidence[y, x], 1] += truth[y, x] == mapped[y, x]


def fit_temperature(logits: Logits, truth: ByteArray) -> float:
    """The T for which softmax(logits / T) has the least log loss; NaN without a pixel.

    The loss is convex in 1 / T, so its slope is bisected, to 1e-4 of T.

    Args:
        logits: (n, K); what differs by a constant for each pixel, as log-probabilities do, is the same.
        truth: Class ids (n,).

    Returns:
        T within `TEMPERATURES`; an end of that range where the loss still falls there.

    References:
        Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    if not len(truth):
        return float("nan")
    low, high = (float(np.log(t)) for t in TEMPERATURES)
    while high - low > 1e-4:
        middle = (low + high) / 2
        if _slope(logits, truth, float(np.exp(-middle))) > 0:  # of the loss over 1 / T: a larger T is better
            low = middle
        else:
            high = middle
    return float(np.exp((low + high) / 2))


def find_temper(logits: Logits, truth: ByteArray) -> Temper:
    """The temperature of a sample (n, K) with class ids (n,), and what error it leaves there; NaN without a pixel."""
    temperature = fit_temperature(logits, truth)
    if not len(truth):
        return Temper(temperature, float("nan"))
    off = np.zeros(BINS)
    for start in range(0, len(truth), _CHUNK):
        part, true = logits[start : start + _CHUNK].astype(np.float64) / temperature, truth[start : start + _CHUNK]
        weight = np.exp(part - part.max(axis=1, keepdims=True))
        sure = weight.max(axis=1) / weight.sum(axis=1)
        place = np.minimum((sure * BINS).astype(int), BINS - 1)
        np.add.at(off, place, sure - (part.argmax(axis=1) == true))
    return Temper(temperature, float(np.abs(off).sum() / len(truth)))


def _slope(logits: Logits, truth: ByteArray, factor: float) -> float:
    """Derivative of the mean log loss by the factor on the logits."""
    total = 0.0
    for start in range(0, len(truth), _CHUNK):
        part, true = logits[start : start + _CHUNK].astype(np.float64), truth[start : start + _CHUNK]
        part -= part.max(axis=1, keepdims=True)
        weight = np.exp(factor * part)
        mean = (weight * part).sum(axis=1) / weight.sum(axis=1)
        total += float((mean - part[np.arange(len(true)), true]).sum())
    return total / len(truth)


def choose_blocks(scenes: Sequence[Blocks]) -> list[list[Window]]:
    """Up to `SAMPLED_BLOCKS` labelled blocks of all scenes, for each scene its own; the same for the same scenes."""
    labelled = [(i, j) for i, blocks in enumerate(scenes) for j in np.flatnonzero(blocks.labelled).tolist()]
    chosen: list[list[Window]] = [[] for _ in scenes]
    picks = np.sort(np.random.default_rng(len(labelled)).permutation(len(labelled))[:SAMPLED_BLOCKS])
    for i, j in (labelled[pick] for pick in picks.tolist()):
        chosen[i].append(Window(int(scenes[i].row[j]), int(scenes[i].col[j]), BLOCK_PX, BLOCK_PX))
    return chosen


def sample_logits(
    predictor: Predictor,
    scene: Raster,
    labels: Labels,
    plan: Plan,
    blocks: Sequence[Window],
    *,
    on_block: Callable[[], Any] = lambda: None,
) -> tuple[Logits, ByteArray]:
    """Logits of labelled pixels of some blocks, each from the one window of the plan that it lies most central in.

    The map's own probabilities have passed through a byte, which knows nothing below 1/508: of a model that is too
    sure, just what the log loss depends on is lost.

    Args:
        predictor: The model.
        scene: The open scene.
        labels: Its labels.
        plan: Its plan.
        blocks: Where to look.
        on_block: Called after each of them.

    Returns:
        Logits (n, K) and class ids (n,).

    Raises:
        SceneError: A block of the scene cannot be read.
    """
    classes = plan.classes
    logits, truth = [np.zeros((0, classes), dtype=np.float32)], [np.zeros(0, dtype=np.uint8)]
    windows = [_window_around(plan, block) for block in blocks]
    items = (WindowPixels(w, *scene.read(w, reflect_valid=True, clip=False)) for w in windows)
    for block, (window, coarse) in zip(blocks, predictor.run_windows(items, batch_size=plan.batch_size), strict=True):
        size = (window.height, window.width)
        fine = (
            F.interpolate(torch.as_tensor(coarse)[None].float(), size=size, mode="bilinear", align_corners=False)[0]
            .cpu()
            .numpy()
        )
        ids = labels.read(window)
        ids[~scene.read(window)[1]] = NODATA
        rows, cols = np.arange(window.row, window.row_stop), np.arange(window.col, window.col_stop)
        ids[(rows < block.row) | (rows >= block.row_stop)] = NODATA
        ids[:, (cols < block.col) | (cols >= block.col_stop)] = NODATA
        place = np.flatnonzero(ids != NODATA)
        if len(place) > SAMPLED_PX:
            place = np.sort(np.random.default_rng((block.row, block.col)).choice(place, SAMPLED_PX, replace=False))
        logits.append(fine.reshape(classes, -1)[:, place].T)
        truth.append(ids.ravel()[place])
        on_block()
    return np.concatenate(logits), np.concatenate(truth)


def _window_around(plan: Plan, block: Window) -> Window:
    """The window of the plan whose middle is nearest to a block's."""
    middle = block.row + block.height / 2, block.col + block.width / 2
    row = min(plan.rows, key=lambda start: abs(start + plan.window_height / 2 - middle[0]))
    col = min(plan.cols, key=lambda start: abs(start + plan.window_width / 2 - middle[1]))
    return Window(row, col, plan.window_height, plan.window_width)
