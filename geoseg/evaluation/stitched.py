"""Scenes mapped whole and measured one after the other, and what is found on all of them together."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from geoseg.classes import ClassTable
from geoseg.data import LabelledScene, labels_of
from geoseg.evaluation.blocks import CaseFinder
from geoseg.evaluation.calibration import choose_blocks, find_temper, sample_logits
from geoseg.evaluation.result import Evaluation
from geoseg.evaluation.scenes import LAYERS, join_counts, measure_scene, window_case
from geoseg.options import EvaluateOptions, Tiling
from geoseg.prediction.predictor import Predictor
from geoseg.scene import Raster
from geoseg.tiling.plan import Plan

log = logging.getLogger(__name__)


def plan_scene(predictor: Predictor, scene: Raster, options: EvaluateOptions) -> Plan:
    """The plan of a scene.

    Raises:
        ConfigError: See `geoseg.tiling.plan.plan_prediction`.
    """
    tiling = Tiling(size=options.tiling.size, overlap=options.tiling.overlap)
    return predictor.plan(scene, tiling, batch_size=options.network.batch_size, layers=LAYERS)


def evaluate_scenes(
    predictor: Predictor,
    scenes: Sequence[LabelledScene],
    names: Sequence[str],
    options: EvaluateOptions,
    *,
    folder: Path,
) -> Evaluation:
    """Measure the stitched map of every scene.

    The temperature and the windows to look at are chosen from all scenes, once these are measured.

    Args:
        predictor: The model.
        scenes: Labelled scenes that fit it.
        names: Their names, none twice.
        options: What is measured, and how scenes are cut into windows.
        folder: For the evaluation.

    Raises:
        SceneError: A block of a scene cannot be read.
        DeviceError: One window alone is more than the device's memory.
    """
    measures, classes = options.measures, predictor.classes
    objects = _object_ids(classes, measures.objects)
    finder = CaseFinder(measures.windows)
    counts, plans = [], [plan_scene(predictor, labelled.scene, options) for labelled in scenes]
    pixels = sum(labelled.grid.height * labelled.grid.width for labelled in scenes)
    with tqdm(total=pixels, unit="px", unit_scale=True, desc="evaluate", disable=not options.progress) as bar:
        for number, (labelled, plan) in enumerate(zip(scenes, plans, strict=True)):
            log.info("%s: windows of %d × %d px", names[number], plan.window_height, plan.window_width)
            found = measure_scene(
                predictor,
                labelled,
                plan,
                split=measures.split,
                boundary_px=measures.boundary_px,
                objects=objects,
                number=number,
                finder=finder,
                on_rows=bar.update,
            )
            counts.append(found)
    chosen = choose_blocks([found.blocks for found in counts])
    with tqdm(total=sum(map(len, chosen)), unit="window", desc="calibrate", disable=not options.progress) as bar:
        samples = [
            sample_logits(
                predictor, labelled.scene, labels_of(labelled, measures.split), plan, blocks, on_block=bar.update
            )
            for labelled, plan, blocks in zip(scenes, plans, chosen, strict=True)
        ]
    together = np.concatenate([logits for logits, _ in samples]), np.concatenate([truth for _, truth in samples])
    log.info("temperature from the logits of %d pixels", len(together[1]))
    results = [found.result(find_temper(*sample)) for found, sample in zip(counts, samples, strict=True)]
    bands = [band.name for band in predictor.contract.bands]
    worst, best = (
        tuple(window_case(scenes[c.scene], names[c.scene], measures.split, bands, c) for c in cases)
        for cases in finder.cases()
    )
    sizes = sorted({(plan.window_height, plan.window_width) for plan in plans})
    facts = {
        "windows": [f"{height} × {width} px" for height, width in sizes],
        "overlap": f"{max(plan.overlap for plan in plans)} px",
        "strips along borders": f"{measures.boundary_px} px",
        "objects": "all classes" if objects is None else [classes[i].name for i in objects],
        "network": predictor.hardware["network"],
    }
    total = join_counts(counts).result(find_temper(*together))
    return Evaluation(classes, total, dict(zip(names, results, strict=True)), folder, facts, worst, best)


def _object_ids(classes: ClassTable, names: Sequence[str]) -> tuple[int, ...] | None:
    """Ids of the classes that are objects, None for all: those named, or all but a background beside others."""
    if names:
        return tuple(sorted({classes.id_of(name) for name in names}))
    ids = tuple(c.id for c in classes if not c.background)
    return ids if 0 < len(ids) < len(classes) else None
