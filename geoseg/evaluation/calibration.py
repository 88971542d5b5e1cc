"""Calibration of a map's confidence: a reliability diagram, and the temperature that would correct it."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import optimize, special

from geoseg.arrays import ByteArray, Float32Array, IntArray
from geoseg.classes import NODATA
from geoseg.data.labels import Labels
from geoseg.evaluation.blocks import BLOCK_PX, Blocks
from geoseg.evaluation.result import Calibration
from geoseg.map_rows import CONFIDENCE_SCALE
from geoseg.prediction.predictor import Predictor, WindowPixels
from geoseg.runtime.jit import njit
from geoseg.scene import Raster
from geoseg.tiling.arrays import mapped_logits
from geoseg.tiling.plan import Plan
from geoseg.windows import Window

BINS = 20
TEMPERATURES = (0.05, 20.0)  # a model that is right everywhere would need 0
SAMPLED_BLOCKS, SAMPLED_PX = 64, 2048  # largest sample of logits: blocks, and pixels in each


def calibration(levels: IntArray, temperature: float, tempered_error: float) -> Calibration:
    """The reliability diagram of pixels counted by `count_levels`, with the result of `find_temper`."""
    level = np.arange(CONFIDENCE_SCALE + 1)
    place = np.minimum(level * BINS // CONFIDENCE_SCALE, BINS - 1)
    counts, confidence = np.zeros((BINS, 2), dtype=np.int64), np.zeros(BINS)
    np.add.at(counts, place, levels)
    np.add.at(confidence, place, levels[:, 0] * level / CONFIDENCE_SCALE)
    return Calibration(counts[:, 0], confidence, counts[:, 1], temperature, tempered_error)


@njit
def count_levels(truth: ByteArray, mapped: ByteArray, confidence: ByteArray, levels: IntArray) -> None:
    """Add all pixels and the right ones of rows (h, W) to those of each stored confidence, (255, 2)."""
    for y in range(truth.shape[0]):
        for x in range(truth.shape[1]):
            if truth[y, x] != NODATA and mapped[y, x] != NODATA:
                levels[confidence[y, x], 0] += 1
                levels[confidence[y, x], 1] += truth[y, x] == mapped[y, x]


def find_temper(logits: Float32Array, truth: ByteArray) -> tuple[float, float]:
    """The temperature of a sample, and the calibration error it leaves; NaN for an empty one.

    It is the T within `TEMPERATURES` for which softmax(logits / T) has the least log loss, to 1e-4 of T. Logits are
    (n, K), up to a constant for each pixel, and class ids (n,).

    References:
        Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    if not len(truth):
        return float("nan"), float("nan")
    wide = logits.astype(np.float64)

    def loss(log_temperature: float) -> float:
        return -float(special.log_softmax(wide / np.exp(log_temperature), axis=1)[np.arange(len(truth)), truth].mean())

    found = optimize.minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-4})
    temperature = float(np.exp(found.x))
    probabilities = special.softmax(wide / temperature, axis=1)
    sure, off = probabilities.max(axis=1), np.zeros(BINS)
    place = np.minimum((sure * BINS).astype(int), BINS - 1)
    np.add.at(off, place, sure - (probabilities.argmax(axis=1) == truth))
    return temperature, float(np.abs(off).sum() / len(truth))


def choose_blocks(scenes: Sequence[Blocks]) -> list[list[Window]]:
    """Up to `SAMPLED_BLOCKS` labelled blocks of all scenes, listed by scene; the same for the same scenes."""
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
) -> tuple[Float32Array, ByteArray]:
    """Logits (n, K) and class ids (n,) of labelled pixels of some blocks, each from its most central window.

    The map's probabilities have passed through a byte, which loses what is below 1/508, and the log loss of an
    overconfident model depends on just that.
    """
    classes = len(predictor.classes)
    logits, truth = [np.zeros((0, classes), dtype=np.float32)], [np.zeros(0, dtype=np.uint8)]
    windows = [_window_around(plan, block) for block in blocks]
    items = (WindowPixels(w, *scene.read(w, reflect_valid=True, clip=False)) for w in windows)
    for block, (window, coarse) in zip(blocks, predictor.run_windows(items, batch_size=plan.batch_size), strict=True):
        found = mapped_logits(torch.as_tensor(coarse)[None].float(), predictor.classes.channels, torch)
        fine = F.interpolate(found, (window.height, window.width), mode="bilinear", align_corners=False)
        ids = labels.read(window)
        rows, cols = np.arange(window.row, window.row_stop), np.arange(window.col, window.col_stop)
        in_block = (
            ((rows >= block.row) & (rows < block.row_stop))[:, None] & (cols >= block.col) & (cols < block.col_stop)
        )
        place = np.flatnonzero(in_block & scene.read(window)[1] & (ids != NODATA))
        if len(place) > SAMPLED_PX:
            place = np.sort(np.random.default_rng((block.row, block.col)).choice(place, SAMPLED_PX, replace=False))
        logits.append(fine[0].cpu().numpy().reshape(classes, -1)[:, place].T)
        truth.append(ids.ravel()[place])
        on_block()
    return np.concatenate(logits), np.concatenate(truth)


def _window_around(plan: Plan, block: Window) -> Window:
    """The window of the plan whose centre is nearest to a block's."""
    middle = block.row + block.height / 2, block.col + block.width / 2
    row = min(plan.rows, key=lambda start: abs(start + plan.window_height / 2 - middle[0]))
    col = min(plan.cols, key=lambda start: abs(start + plan.window_width / 2 - middle[1]))
    return Window(row, col, plan.window_height, plan.window_width)
