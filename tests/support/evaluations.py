"""An evaluation of a made map of generated landscapes, with errors of the kinds that networks make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from geoseg.classes import NODATA, ClassTable
from geoseg.evaluation.result import (
    AreaEstimate,
    BoundaryScores,
    Calibration,
    Evaluation,
    ObjectScores,
    SceneResult,
    WindowCase,
)
from geoseg.landscape import LANDSCAPE_CLASSES, Landscape
from geoseg.network.metrics import Scores, confusion_matrix
from geoseg.windows import Window

SIZE = 512
Ids = npt.NDArray[np.uint8]


def with_errors(truth: Ids, seed: int) -> Ids:
    """Borders a little beside the true ones, blobs of a wrong class, and one class often taken for another."""
    rng = np.random.default_rng(seed)
    mapped = np.roll(truth, (int(rng.integers(0, 3)), 1), (0, 1))
    noise = ndimage.gaussian_filter(rng.standard_normal(truth.shape), 9)
    blobs = noise > np.quantile(noise, 0.985 - 0.03 * (seed % 4))
    mapped = np.where(blobs, (mapped + 1) % len(LANDSCAPE_CLASSES), mapped)
    mapped = np.where((mapped == 1) & (ndimage.gaussian_filter(noise, 15) > 0.004), 2, mapped)
    return np.where(truth == NODATA, NODATA, mapped).astype(np.uint8)


def strips(ids: Ids, class_id: int, distance: int) -> npt.NDArray[np.bool_]:
    inside = ids == class_id
    return inside & ~ndimage.binary_erosion(inside, iterations=distance)


def boundary_scores(truth: Ids, mapped: Ids, classes: int) -> BoundaryScores:
    pairs = [(strips(truth, c, 3), strips(mapped, c, 3)) for c in range(classes)]
    both, either = [(a & b).sum() for a, b in pairs], [(a | b).sum() for a, b in pairs]
    return BoundaryScores(np.array(both), np.array(either), 3)


def calibration(matrix: npt.NDArray[np.int64], bins: int = 15) -> Calibration:
    """Of a map that is too sure, and sure of nothing below 20 %."""
    sure = (np.arange(bins) + 0.6) / bins
    count = np.round(matrix.sum() * sure**6 / (sure**6).sum()).astype(np.int64)
    count[: bins // 5] = 0
    return Calibration(count, count * sure, np.round(count * sure**1.5), 1.37)


def made_evaluation(folder: Path, *, scenes: int = 3, windows: int = 2, size: int = SIZE) -> Evaluation:
    """Everything measured, on ``scenes`` scenes of one window each; ``windows`` worst and as many best ones."""
    classes: ClassTable = LANDSCAPE_CLASSES
    k = len(classes)
    results: dict[str, SceneResult] = {}
    cases: list[WindowCase] = []
    for seed in range(max(scenes, windows)):
        window = Window(size * seed, size // 2, size, size)
        landscape = Landscape(size * (seed + 1), 2 * size, seed=seed, nodata=0 if seed % 3 == 1 else None)
        pixels, truth = landscape.read(window)
        mapped = with_errors(truth, seed)
        matrix = confusion_matrix(torch.from_numpy(truth), torch.from_numpy(mapped), k).numpy()
        name = f"landscape_{seed + 1:02}"
        results[name] = SceneResult(Scores(matrix), boundary_scores(truth, mapped, k))
        error = float((truth != mapped)[truth != NODATA].mean())
        cases.append(WindowCase(name, window, error, np.moveaxis(pixels, 0, -1), truth, mapped))
    cases.sort(key=lambda case: case.error)
    matrix = np.sum([r.scores.matrix for r in results.values()], axis=0)
    boundary = sum(
        (r.boundary for r in results.values() if r.boundary is not None),
        start=BoundaryScores(np.zeros(k, np.int64), np.zeros(k, np.int64), 3),
    )
    objects = ObjectScores(*(np.array([0, 0, 0, 0, n, 0, m]) for n, m in ((131, 3), (144, 4), (109, 2))))
    mapped_ha = matrix.sum(axis=0) * 0.25 / 1e4
    estimated_ha = matrix.sum(axis=1) * 0.25 / 1e4
    areas = AreaEstimate(mapped_ha, estimated_ha, 0.02 * estimated_ha + 0.08)
    facts: dict[str, Any] = {
        "model": "landscape-tiny",
        "protocol": "whole scenes, stitched",
        "scenes": list(results),
        "windows": "512 px, overlap 128 px",
        "scales": (1.0,),
        "flip": False,
        "versions": {"geoseg": "0.1.0", "torch": "2.14"},
        "date": "2026-11-25",
    }
    total = SceneResult(Scores(matrix), boundary, objects, calibration(matrix), areas)
    worst, best = tuple(cases[: -windows - 1 : -1]), tuple(cases[:windows])
    return Evaluation(classes, total, results, folder, facts, worst, best)
