"""One scene mapped and measured: its finished rows go past all measures once, and are let go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from geoseg.arrays import ByteArray
from geoseg.classes import NODATA
from geoseg.data import LabelledScene, Labels, labels_of
from geoseg.data.labelled import SplitLabels
from geoseg.evaluation.areas import estimate_areas
from geoseg.evaluation.blocks import BlockMeasure, Blocks, Candidate, CaseFinder, join_blocks
from geoseg.evaluation.boundary import BoundaryMeasure
from geoseg.evaluation.calibration import Reliability, Temper
from geoseg.evaluation.objects import ObjectMeasure
from geoseg.evaluation.result import BoundaryScores, ObjectScores, SceneResult, Values, WindowCase
from geoseg.map_rows import MapRows
from geoseg.network.metrics import Scores
from geoseg.options import Layers
from geoseg.prediction.bands import predicted_rows
from geoseg.prediction.predictor import Predictor
from geoseg.runtime.ahead import ahead
from geoseg.scene import Pixels, Valid
from geoseg.tiling.plan import Plan
from geoseg.windows import Window

LAYERS = Layers(confidence=True)

_PIECE_PX = 1 << 22
_STRETCH = 2.0  # per cent of the pixels that come out black, and as many white


@dataclass(frozen=True, slots=True, eq=False)
class SceneCounts:
    """What was counted on one scene, or on several together.

    Attributes:
        blocks: Pairs of truth and map.
        boundary: Strips along borders.
        objects: Regions.
        reliability: Confidence.
        mapped_m2: Ground of each class in the map, m², (K,), labelled or not, of the part of the scene that belongs to
            the split; None where a scene has no CRS.
    """

    blocks: Blocks
    boundary: BoundaryScores
    objects: ObjectScores
    reliability: Reliability
    mapped_m2: Values | None

    def result(self, temper: Temper) -> SceneResult:
        """The scores that follow from the counts; the temperature was found elsewhere."""
        return SceneResult(
            Scores(self.blocks.matrix),
            self.boundary,
            self.objects,
            self.reliability.result(temper),
            None if self.mapped_m2 is None else estimate_areas(self.blocks, self.mapped_m2),
        )


def join_counts(parts: Sequence[SceneCounts]) -> SceneCounts:
    """The counts of several scenes together."""
    first, *others = parts
    boundary, objects, reliability, mapped = first.boundary, first.objects, first.reliability, first.mapped_m2
    for part in others:
        boundary, objects, reliability = (
            boundary + part.boundary,
            objects + part.objects,
            reliability + part.reliability,
        )
        mapped = None if mapped is None or part.mapped_m2 is None else mapped + part.mapped_m2
    return SceneCounts(join_blocks([part.blocks for part in parts]), boundary, objects, reliability, mapped)


def measure_scene(
    predictor: Predictor,
    labelled: LabelledScene,
    plan: Plan,
    *,
    split: str = "val",
    boundary_px: int,
    objects: Iterable[int] | None = None,
    number: int = 0,
    finder: CaseFinder | None = None,
    on_rows: Callable[[int], Any] = lambda pixels: None,
) -> SceneCounts:
    """Map a scene and count the map against its labels, in memory that does not grow with the scene's height.

    Args:
        predictor: The model.
        labelled: The scene.
        plan: Its plan, which decides nothing but the time it takes.
        split: Which labels count where the scene is cut into blocks, "train" or "val".
        boundary_px: Width of the strips along borders, px.
        objects: Ids of the classes whose regions are objects; None for all.
        number: Number of the scene, for ``finder``.
        finder: Is offered every block.
        on_rows: Told how many pixels were measured, as they are.

    Raises:
        SceneError: A block of the scene cannot be read.
        DeviceError: One window alone is more than the device's memory.
    """
    grid, classes = labelled.grid, plan.classes
    pixel_m2 = grid.pixel_area_m2()
    blocks = BlockMeasure(classes, pixel_m2, grid.width, scene=number, finder=finder)
    boundary = BoundaryMeasure(classes, grid.width, distance_px=boundary_px)
    regions = ObjectMeasure(classes, grid.width, of=objects)
    reliability = Reliability()
    mapped_m2 = np.zeros(classes)
    labels, part = labels_of(labelled, split), _part_of(labelled, split)
    row = 0
    # The measures have no need of the GIL, nor of the device that makes the next rows meanwhile.
    for rows in ahead(_pieces(predicted_rows(predictor, labelled.scene, plan, layers=LAYERS), grid.width)):
        window = Window(row, 0, len(rows), grid.width)
        truth, mapped = labels.read(window), rows.classes
        assert rows.confidence is not None
        blocks.feed(truth, mapped)
        boundary.feed(truth, mapped)
        regions.feed(truth, mapped)
        reliability.feed(truth, mapped, rows.confidence)
        mapped_m2 += _class_areas(mapped, part.read(window) != NODATA, pixel_m2[row : row + len(rows)], classes)
        row += len(rows)
        on_rows(len(rows) * grid.width)
    return SceneCounts(
        blocks.result(),
        boundary.result(),
        regions.result(),
        reliability,
        mapped_m2 if grid.is_metric else None,
    )


def window_case(labelled: LabelledScene, name: str, split: str, bands: Sequence[str], found: Candidate) -> WindowCase:
    """A block with its pixels: imagery and labels are read again, the map was kept.

    Raises:
        SceneError: A block of the scene cannot be read.
    """
    pixels, valid = labelled.scene.read(found.window)
    truth = labels_of(labelled, split).read(found.window)
    return WindowCase(name, found.window, found.error, picture(pixels, valid, bands), truth, found.mapped)


def picture(pixels: Pixels, valid: Valid, bands: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Imagery as one would look at it, (H, W, 3) uint8: red, green and blue, or else the first three bands, or one.

    Bytes stay as they are. Of other data types, each band is stretched between its 2nd and 98th percentile in the
    window. Invalid pixels are grey.

    Args:
        pixels: (B, H, W).
        valid: (H, W).
        bands: Names of the bands.
    """
    names = [name.lower() for name in bands]
    colors = ("red", "green", "blue")
    shown = [names.index(c) for c in colors] if set(colors) <= set(names) else [0, 1, 2] if len(names) > 2 else [0] * 3
    out = np.full((*valid.shape, 3), 128, dtype=np.uint8)
    for channel, band in enumerate(shown):
        values = pixels[band][valid]
        if values.dtype != np.uint8 and values.size:
            low, high = np.percentile(values.astype(np.float64), (_STRETCH, 100 - _STRETCH))
            values = np.clip((values.astype(np.float64) - low) / max(high - low, 1e-12) * 255, 0, 255)
        out[..., channel][valid] = values.astype(np.uint8)
    return out


class _Everywhere:
    """Labels that are class 0 everywhere: which part of a scene belongs to a split is read through them."""

    def read(self, window: Window) -> ByteArray:
        return np.zeros((window.height, window.width), dtype=np.uint8)


def _part_of(labelled: LabelledScene, split: str) -> Labels:
    """255 outside the part of a scene that belongs to a split."""
    return _Everywhere() if labelled.split is None else SplitLabels(_Everywhere(), labelled.split, split)


def _pieces(rows: Iterable[MapRows], width: int) -> Iterator[MapRows]:
    """The rows in pieces of a few million pixels, which the measures take room for."""
    height = max(_PIECE_PX // width, 1)
    for piece in rows:
        for first in range(0, len(piece), height):
            yield piece[first : first + height]


def _class_areas(mapped: ByteArray, wanted: npt.NDArray[np.bool_], pixel_m2: Values, classes: int) -> Values:
    """Ground of each class in rows of a map, m², (K,)."""
    place = np.arange(len(mapped), dtype=np.int64)[:, None] * (NODATA + 1) + np.where(wanted, mapped, NODATA)
    counts = np.bincount(place.ravel(), minlength=len(mapped) * (NODATA + 1)).reshape(len(mapped), NODATA + 1)
    areas: Values = pixel_m2 @ counts[:, :classes]
    return areas
