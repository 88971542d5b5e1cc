"""Scenes mapped whole and measured row by row as the map is made, and the results of all together."""

import functools
import logging
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from geoseg.arrays import ByteArray, FloatArray, IntArray, Pixels, Valid
from geoseg.class_map.overviews import class_areas
from geoseg.class_map.writing import MapFileWriter
from geoseg.classes import NODATA, ClassTable
from geoseg.data.labelled import LabelledScene, covered, labels_of
from geoseg.evaluation.blocks import BlockMeasure, Blocks, Candidate, CaseFinder, estimate_areas, join_blocks
from geoseg.evaluation.boundary import BoundaryMeasure
from geoseg.evaluation.calibration import calibration, choose_blocks, count_levels, find_temper, sample_logits
from geoseg.evaluation.centres import CentreMeasure
from geoseg.evaluation.objects import ObjectMeasure
from geoseg.evaluation.result import BoundaryScores, Evaluation, ObjectScores, SceneResult, WindowCase
from geoseg.map_rows import CONFIDENCE_SCALE, MapRows
from geoseg.network.metrics import Scores
from geoseg.options import EvaluateOptions, Layers, Measures, Tiling
from geoseg.polygons.rules.objects import Separation, separate_objects
from geoseg.prediction.bands import predicted_rows
from geoseg.prediction.predictor import Predictor
from geoseg.runtime.ahead import ahead
from geoseg.scene import Raster
from geoseg.scene.shades import shades, stretch
from geoseg.tiling.plan import Plan
from geoseg.windows import Window

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class SceneCounts:
    """Counts of one scene, or of several together."""

    blocks: Blocks  # pairs of truth and map
    boundary: BoundaryScores
    objects: ObjectScores
    levels: IntArray  # pixels and right ones of each stored confidence, (255, 2)
    mapped_m2: FloatArray | None  # each class in the map, labelled or not, within the split, (K,); None without a CRS
    merged: ObjectScores | None  # with the map's objects that touch as one; None if none are told apart

    def result(self, temperature: float, tempered_error: float) -> SceneResult:
        """The scores of these counts."""
        return SceneResult(
            Scores(self.blocks.matrix),
            self.boundary,
            self.objects,
            calibration(self.levels, temperature, tempered_error),
            None if self.mapped_m2 is None else estimate_areas(self.blocks, self.mapped_m2),
        )


def _joined(parts: Sequence[SceneCounts]) -> SceneCounts:
    """The counts of several scenes together."""

    def total(values: Iterable[Any]) -> Any:
        """Their sum; None if one of them is."""
        found = list(values)
        return None if any(value is None for value in found) else functools.reduce(operator.add, found)

    return SceneCounts(
        join_blocks([part.blocks for part in parts]),
        total(part.boundary for part in parts),
        total(part.objects for part in parts),
        total(part.levels for part in parts),
        total(part.mapped_m2 for part in parts),
        total(part.merged for part in parts),
    )


def plan_scene(predictor: Predictor, scene: Raster, options: EvaluateOptions) -> Plan:
    """The plan of a scene."""
    tiling = Tiling(size=options.tiling.size, overlap=options.tiling.overlap)
    return predictor.plan(scene, tiling, batch_size=options.network.batch_size, layers=_layers(predictor))


def _layers(predictor: Predictor) -> Layers:
    return Layers(confidence=True, contact=any(c.separate for c in predictor.classes))


def measure_scene(
    predictor: Predictor,
    labelled: LabelledScene,
    plan: Plan,
    measures: Measures,
    *,
    number: int = 0,
    finder: CaseFinder | None = None,
    on_rows: Callable[[MapRows], Any] = lambda rows: None,
) -> SceneCounts:
    """Map a scene and count the map against its labels, in memory that does not grow with the scene's height.

    The plan affects only the time. ``finder`` gets every block with the scene's number, ``on_rows`` the rows of
    the map once they are measured.
    """
    grid, classes = labelled.grid, len(predictor.classes)
    pixel_m2 = grid.pixel_area_m2()
    blocks = BlockMeasure(classes, pixel_m2, grid.width, scene=number, finder=finder)
    boundary = BoundaryMeasure(classes, grid.width, distance_px=measures.boundary_px)

    def object_measure() -> ObjectMeasure | CentreMeasure:
        of = object_ids(predictor.classes, measures.objects)
        if measures.within_m is None:
            return ObjectMeasure(classes, grid.width, of=of)
        return CentreMeasure(classes, grid, *labelled.centres(), within_m=measures.within_m, of=of)

    regions = object_measure()
    # Objects of the map are told apart where the labels tell those of the truth apart.
    touching = labelled.touching
    separated = tuple(c.id for c in predictor.classes if c.separate and touching is not None)
    merged = object_measure() if separated else None
    levels = np.zeros((CONFIDENCE_SCALE + 1, 2), dtype=np.int64)
    mapped_m2 = np.zeros(classes)
    labels = labels_of(labelled, measures.split)
    row = 0
    # The measures need neither the GIL nor the device, so the next rows are made meanwhile.
    made = _pieces(predicted_rows(predictor, labelled.scene, plan, layers=_layers(predictor)), grid.width)
    if separated:
        made = separate_objects(made, grid.width, pixel_m2, Separation(separated))
    for rows in ahead(made):
        window = Window(row, 0, len(rows), grid.width)
        truth, mapped = labels.read(window), rows.classes
        assert rows.confidence is not None
        for measure in (blocks, boundary):
            measure.feed(truth, mapped)
        cuts = None if touching is None else touching.cuts(labels, window)
        regions.feed(truth, mapped, (cuts, rows.cuts))
        if merged is not None:
            merged.feed(truth, mapped, (cuts, None))
        count_levels(truth, mapped, rows.confidence, levels)
        part = covered(labelled, measures.split, window)
        counted = mapped if part is None else np.where(part, mapped, np.uint8(NODATA))
        mapped_m2 += class_areas(counted, pixel_m2[row : row + len(rows)], classes)
        row += len(rows)
        on_rows(rows)
    areas = mapped_m2 if grid.is_metric else None
    together = None if merged is None else merged.result()
    return SceneCounts(blocks.result(), boundary.result(), regions.result(), levels, areas, together)


def picture(pixels: Pixels, valid: Valid, bands: Sequence[str]) -> ByteArray:
    """Imagery (B, H, W) as a picture (H, W, 3): red, green and blue, else the first three bands, or one.

    8-bit values are unchanged. Other bands are stretched from their 2nd to their 98th percentile in the window. Invalid
    pixels are grey.
    """
    names = [name.lower() for name in bands]
    colors = ("red", "green", "blue")
    shown = [names.index(c) for c in colors] if set(colors) <= set(names) else [0, 1, 2] if len(names) > 2 else [0] * 3
    out = np.full((*valid.shape, 3), 128, dtype=np.uint8)
    for channel, band in enumerate(shown):
        values = pixels[band][valid]
        out[..., channel][valid] = values if values.dtype == np.uint8 else shades(values, *stretch(values))
    return out


def _pieces(rows: Iterable[MapRows], width: int) -> Iterator[MapRows]:
    """The rows in pieces of about four million pixels, to limit the memory of the measures."""
    height = max((1 << 22) // width, 1)
    for piece in rows:
        for first in range(0, len(piece), height):
            yield piece[first : first + height]


def object_ids(classes: ClassTable, names: Sequence[str]) -> tuple[int, ...] | None:
    """Ids of the classes that are objects: those named, or all but a background; None for all."""
    if names:
        return tuple(sorted({classes.id_of(name) for name in names}))
    ids = tuple(c.id for c in classes if not c.background)
    return ids if 0 < len(ids) < len(classes) else None


def evaluate_scenes(
    predictor: Predictor,
    scenes: Sequence[LabelledScene],
    names: Sequence[str],
    options: EvaluateOptions,
    *,
    folder: Path,
    maps: Path | None = None,
) -> Evaluation:
    """Measure the stitched map of every scene, and keep the maps with their confidence in a folder ``maps``, if any."""
    measures, classes = options.measures, predictor.classes
    objects = object_ids(classes, measures.objects)
    finder = CaseFinder(measures.windows)
    counts, plans = [], [plan_scene(predictor, labelled.scene, options) for labelled in scenes]
    pixels = sum(labelled.grid.height * labelled.grid.width for labelled in scenes)
    with tqdm(total=pixels, unit="px", unit_scale=True, desc="evaluate", disable=not options.progress) as bar:
        for number, (labelled, plan) in enumerate(zip(scenes, plans, strict=True)):
            log.info("%s: windows of %d × %d px", names[number], plan.window_height, plan.window_width)
            kept = ("classes", "confidence")
            path = maps and maps / map_name(names[number])
            with MapFileWriter(path, labelled.grid, classes, layers=kept) if path else nullcontext() as file:

                def on_rows(rows: MapRows, file: MapFileWriter | None = file) -> None:
                    if file is not None:
                        file.write(rows)
                    bar.update(rows.classes.size)

                counts.append(
                    measure_scene(predictor, labelled, plan, measures, number=number, finder=finder, on_rows=on_rows)
                )
    chosen = choose_blocks([found.blocks for found in counts])
    with tqdm(total=sum(map(len, chosen)), unit="window", desc="calibrate", disable=not options.progress) as bar:
        samples = [
            sample_logits(predictor, s.scene, labels_of(s, measures.split), plan, blocks, on_block=bar.update)
            for s, plan, blocks in zip(scenes, plans, chosen, strict=True)
        ]
    together = [np.concatenate(column) for column in zip(*samples, strict=True)]
    log.info("temperature from the logits of %d pixels", len(together[1]))
    results = [found.result(*find_temper(*sample)) for found, sample in zip(counts, samples, strict=True)]
    bands = [band.name for band in predictor.contract.bands]

    def case(found: Candidate) -> WindowCase:
        labelled = scenes[found.scene]
        truth = labels_of(labelled, measures.split).read(found.window)
        shown = picture(*labelled.scene.read(found.window), bands)
        return WindowCase(names[found.scene], found.window, found.error, shown, truth, found.mapped)

    worst, best = (tuple(map(case, cases)) for cases in finder.cases())
    sizes = sorted({(plan.window_height, plan.window_width) for plan in plans})
    facts = {
        "windows": [f"{height} × {width} px" for height, width in sizes],
        "overlap": f"{max(plan.overlap for plan in plans)} px",
        "strips along borders": f"{measures.boundary_px} px",
        "objects": "all classes" if objects is None else [classes[i].name for i in objects],
        **({} if measures.within_m is None else {"objects match": f"centres within {measures.within_m:g} m"}),
        "network": predictor.hardware["network"],
    }
    joined = _joined(counts)
    if (merged := joined.merged) is not None:
        facts["objects, if those that touch are one"] = [
            f"{c.name}: precision {merged.precision[c.id]:.3f}, recall {merged.recall[c.id]:.3f}, "
            f"F1 {merged.f1[c.id]:.3f}"
            for c in classes
            if merged.true[c.id] and c.separate
        ]
    total = joined.result(*find_temper(*together))
    return Evaluation(classes, total, dict(zip(names, results, strict=True)), folder, facts, worst, best)


def map_name(scene: str) -> str:
    """Name of the file that keeps the map of a scene."""
    return f"{scene.replace('/', '_')}_map.tif"
