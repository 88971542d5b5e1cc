"""Scenes mapped whole and measured one after the other, and what is found on all of them together."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from geoseg.data import LabelledScene, labels_of
from geoseg.errors import ConfigError
from geoseg.evaluation.blocks import CaseFinder
from geoseg.evaluation.boundary import DISTANCE_PX
from geoseg.evaluation.calibration import choose_blocks, find_temper, sample_logits
from geoseg.evaluation.result import Evaluation
from geoseg.evaluation.scenes import LAYERS, join_counts, measure_scene, window_case
from geoseg.prediction.predictor import Predictor
from geoseg.scene import Raster
from geoseg.tiling.plan import Plan

log = logging.getLogger(__name__)

CASES = 8


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be measured, and how scenes are cut into windows.

    Attributes:
        split: "train" or "val".
        boundary_px: Width of the strips along borders, px.
        objects: Ids of the classes whose regions are objects; None for all.
        cases: How many of the worst windows, and of the best, are kept.
        size: Window side, px; None takes the model's.
        overlap: Overlap of the windows, px; None takes the model's.
        batch_size: Windows per forward; None takes what fits.

    Raises:
        ConfigError: A strip of no width, or less than no windows.
    """

    split: str = "val"
    boundary_px: int = DISTANCE_PX
    objects: tuple[int, ...] | None = None
    cases: int = CASES
    size: int | None = None
    overlap: int | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.boundary_px < 1:
            raise ConfigError(
                f"strips along borders are {self.boundary_px} px wide, wanted 1 px or more",
                hint=f"--boundary {DISTANCE_PX}",
            )
        if self.cases < 0:
            raise ConfigError(f"{self.cases} windows cannot be shown", hint=f"--windows {CASES}, or 0 for none")

    def plan(self, predictor: Predictor, scene: Raster) -> Plan:
        """The plan of a scene.

        Raises:
            ConfigError: See `geoseg.tiling.plan.plan_prediction`.
        """
        return predictor.plan(
            scene,
            size=self.size,
            overlap=self.overlap,
            batch_size=self.batch_size,
            layer_bytes=LAYERS.bytes(len(predictor.classes)),
        )


def evaluate_scenes(
    predictor: Predictor,
    scenes: Sequence[LabelledScene],
    names: Sequence[str],
    asked: Asked,
    *,
    folder: Path,
    progress: bool = False,
) -> Evaluation:
    """Measure the stitched map of every scene.

    The temperature and the windows to look at are chosen from all scenes, once these are measured.

    Args:
        predictor: The model.
        scenes: Labelled scenes that fit it.
        names: Their names, none twice.
        asked: What is to be measured.
        folder: For the evaluation.
        progress: Draw a progress bar on standard error.

    Raises:
        SceneError: A block of a scene cannot be read.
        DeviceError: One window alone is more than the device's memory.
    """
    finder = CaseFinder(asked.cases)
    counts, plans = [], [asked.plan(predictor, labelled.scene) for labelled in scenes]
    pixels = sum(labelled.grid.height * labelled.grid.width for labelled in scenes)
    with tqdm(total=pixels, unit="px", unit_scale=True, desc="evaluate", disable=not progress) as bar:
        for number, (labelled, plan) in enumerate(zip(scenes, plans, strict=True)):
            log.info("%s: windows of %d × %d px", names[number], plan.window_height, plan.window_width)
            found = measure_scene(
                predictor,
                labelled,
                plan,
                split=asked.split,
                boundary_px=asked.boundary_px,
                objects=asked.objects,
                number=number,
                finder=finder,
                on_rows=bar.update,
            )
            counts.append(found)
    chosen = choose_blocks([found.blocks for found in counts])
    with tqdm(total=sum(map(len, chosen)), unit="window", desc="calibrate", disable=not progress) as bar:
        samples = [
            sample_logits(
                predictor, labelled.scene, labels_of(labelled, asked.split), plan, blocks, on_block=bar.update
            )
            for labelled, plan, blocks in zip(scenes, plans, chosen, strict=True)
        ]
    together = np.concatenate([logits for logits, _ in samples]), np.concatenate([truth for _, truth in samples])
    log.info("temperature from the logits of %d pixels", len(together[1]))
    results = [found.result(find_temper(*sample)) for found, sample in zip(counts, samples, strict=True)]
    bands = [band.name for band in predictor.contract.bands]
    worst, best = (
        tuple(window_case(scenes[c.scene], names[c.scene], asked.split, bands, c) for c in cases)
        for cases in finder.cases()
    )
    sizes = sorted({(plan.window_height, plan.window_width) for plan in plans})
    facts = {
        "windows": [f"{height} × {width} px" for height, width in sizes],
        "overlap": f"{max(plan.overlap for plan in plans)} px",
        "strips along borders": f"{asked.boundary_px} px",
        "objects": "all classes" if asked.objects is None else [predictor.classes[i].name for i in asked.objects],
        "network": predictor.hardware["network"],
    }
    total = join_counts(counts).result(find_temper(*together))
    return Evaluation(predictor.classes, total, dict(zip(names, results, strict=True)), folder, facts, worst, best)
