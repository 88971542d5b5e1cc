"""Results of an evaluation, of one scene or of all, from which tables and reports are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from geoseg.arrays import ByteArray, FloatArray, IntArray
from geoseg.classes import ClassTable
from geoseg.network.metrics import Scores, ratio
from geoseg.windows import Window


@dataclass(frozen=True, slots=True, eq=False)
class BoundaryScores:
    """Intersection and union of the strips along the borders of each class, truth and map.

    References:
        Cheng et al., Boundary IoU, CVPR 2021.
    """

    intersection: IntArray  # pixels in both strips, (K,)
    union: IntArray  # pixels in either strip, (K,)
    distance_px: int  # width of a strip, px

    @property
    def iou(self) -> FloatArray:
        """Boundary IoU per class, (K,) in [0, 1]; NaN for a class without borders."""
        return ratio(self.intersection, self.union)

    def __add__(self, other: BoundaryScores) -> BoundaryScores:
        return BoundaryScores(self.intersection + other.intersection, self.union + other.union, self.distance_px)


@dataclass(frozen=True, slots=True, eq=False)
class ObjectScores:
    """Regions of each class in truth and map, and pairs of them that match."""

    true: IntArray  # regions in the truth, (K,); 0 for classes that are not objects
    mapped: IntArray  # regions in the map, (K,)
    matched: IntArray  # pairs whose IoU exceeds one half, so that no region is in two, (K,)
    within_m: float | None = None  # largest distance of the centres of a pair, m, if they match by it instead

    @property
    def rule(self) -> str:
        """What makes a pair."""
        return "IoU above 0.5" if self.within_m is None else f"centres within {self.within_m:g} m"

    @property
    def precision(self) -> FloatArray:
        """Share of the mapped regions that match, (K,) in [0, 1]."""
        return ratio(self.matched, self.mapped)

    @property
    def recall(self) -> FloatArray:
        """Share of the true regions that match, (K,) in [0, 1]."""
        return ratio(self.matched, self.true)

    @property
    def f1(self) -> FloatArray:
        """Harmonic mean of both, (K,) in [0, 1]."""
        return ratio(2 * self.matched, self.true + self.mapped)

    def __add__(self, other: ObjectScores) -> ObjectScores:
        counts = (self.true + other.true, self.mapped + other.mapped, self.matched + other.matched)
        return ObjectScores(*counts, self.within_m)


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """How often the map is right, by its confidence."""

    count: IntArray  # pixels whose confidence lies in each of M equal bins of [0, 1], (M,)
    confidence: FloatArray  # sum of their confidences, (M,)
    correct: IntArray  # right ones among them, (M,)
    temperature: float  # divisor of the logits with the least log loss; above 1 if the map is overconfident
    tempered_error: float = float("nan")  # `error` after the division; NaN if not measured

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of confidence and accuracy over the pixels, in [0, 1]."""
        return float(ratio(np.abs(self.confidence - self.correct).sum(), self.count.sum()))


@dataclass(frozen=True, slots=True, eq=False)
class AreaEstimate:
    """Area of each class, as mapped and as estimated from the errors, hectares.

    References:
        Olofsson et al., Good practices for estimating area and assessing accuracy of land change, Remote Sensing of
        Environment 148 (2014), equations 9 to 11.
    """

    mapped_ha: FloatArray  # mapped area, (K,)
    estimated_ha: FloatArray  # area corrected for errors, (K,)
    margin_ha: FloatArray  # half of its 95 % confidence interval, (K,)


@dataclass(frozen=True, slots=True, eq=False)
class SceneResult:
    """Results of one scene, or of all together; None for what the protocol does not measure."""

    scores: Scores
    boundary: BoundaryScores | None = None
    objects: ObjectScores | None = None
    calibration: Calibration | None = None
    areas: AreaEstimate | None = None


@dataclass(frozen=True, slots=True, eq=False)
class WindowCase:
    """A window to show."""

    scene: str  # name of its scene
    window: Window  # its place
    error: float  # share of its labelled pixels that are wrong
    picture: ByteArray  # imagery as a picture, (H, W, 3)
    truth: ByteArray  # class ids (H, W), 255 if unknown
    mapped: ByteArray  # class ids (H, W), 255 where the scene is invalid


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Scores of a model over all scenes and per scene."""

    classes: ClassTable  # the class table
    total: SceneResult  # over all scenes
    scenes: dict[str, SceneResult]  # by name of the scene
    folder: Path  # folder of the tables and the report
    facts: dict[str, Any] = field(default_factory=dict)  # model, protocol, windows, versions, in the order to show
    worst: tuple[WindowCase, ...] = ()  # windows with the largest errors, the worst first
    best: tuple[WindowCase, ...] = ()  # windows with the smallest errors, the best first
    files: dict[str, dict[str, str]] = field(default_factory=dict)  # paths of the scene and labels of each scene
