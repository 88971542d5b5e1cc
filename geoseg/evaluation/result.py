"""What an evaluation found: plain values, of one scene or of all, which tables and reports are made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from geoseg.classes import ClassTable
from geoseg.network.metrics import Scores, ratio
from geoseg.windows import Window

Counts = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class BoundaryScores:
    """Intersection and union of the strips along the borders of each class, truth and map.

    Attributes:
        intersection: Pixels in both strips, (K,).
        union: Pixels in either, (K,).
        distance_px: Width of a strip, px.

    References:
        Cheng et al., Boundary IoU, CVPR 2021.
    """

    intersection: Counts
    union: Counts
    distance_px: int

    @property
    def iou(self) -> Values:
        """Boundary IoU per class, (K,) in [0, 1]; NaN for a class without a border in either."""
        return ratio(self.intersection, self.union)

    def __add__(self, other: BoundaryScores) -> BoundaryScores:
        return BoundaryScores(self.intersection + other.intersection, self.union + other.union, self.distance_px)


@dataclass(frozen=True, slots=True, eq=False)
class ObjectScores:
    """Regions of a class in truth and map, and how many of them match one another.

    Attributes:
        true: Regions in the truth, (K,); 0 for classes that are no objects.
        mapped: Regions in the map, (K,).
        matched: Pairs of them whose IoU exceeds the threshold, (K,). Above 0.5 no region is in two pairs.
        threshold: That threshold.
    """

    true: Counts
    mapped: Counts
    matched: Counts
    threshold: float = 0.5

    @property
    def precision(self) -> Values:
        """Share of the mapped regions that are one of the truth, (K,) in [0, 1]."""
        return ratio(self.matched, self.mapped)

    @property
    def recall(self) -> Values:
        """Share of the true regions that were found, (K,) in [0, 1]."""
        return ratio(self.matched, self.true)

    @property
    def f1(self) -> Values:
        """Harmonic mean of both, (K,) in [0, 1]."""
        return ratio(2 * self.matched, self.true + self.mapped)

    def __add__(self, other: ObjectScores) -> ObjectScores:
        return ObjectScores(
            self.true + other.true, self.mapped + other.mapped, self.matched + other.matched, self.threshold
        )


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """How often the map is right where it is how sure.

    Attributes:
        count: Pixels whose confidence lies in each of M equal bins of [0, 1], (M,).
        confidence: Sum of their confidences, (M,).
        correct: How many of them are right, (M,).
        temperature: What the logits should be divided by for the least log loss; above 1 where the map is too sure.
        tempered_error: `error` once they are divided by it; NaN where not measured.
    """

    count: Counts
    confidence: Values
    correct: Counts
    temperature: float
    tempered_error: float = float("nan")

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of confidence and accuracy over the pixels, in [0, 1]."""
        if not self.count.sum():
            return float("nan")
        return float(np.abs(self.confidence - self.correct).sum() / self.count.sum())


@dataclass(frozen=True, slots=True, eq=False)
class AreaEstimate:
    """Area of each class on the ground, as mapped and as estimated from the errors, hectares.

    Attributes:
        mapped_ha: Area of the map, (K,).
        estimated_ha: Area corrected for the errors found, (K,).
        margin_ha: Half of its 95 % confidence interval, (K,).

    References:
        Olofsson et al., Good practices for estimating area and assessing accuracy of land change, Remote Sensing of
        Environment 148 (2014), equations 9 to 11.
    """

    mapped_ha: Values
    estimated_ha: Values
    margin_ha: Values


@dataclass(frozen=True, slots=True, eq=False)
class SceneResult:
    """What was found on one scene, or on all together. None is what the protocol does not measure."""

    scores: Scores
    boundary: BoundaryScores | None = None
    objects: ObjectScores | None = None
    calibration: Calibration | None = None
    areas: AreaEstimate | None = None


@dataclass(frozen=True, slots=True, eq=False)
class WindowCase:
    """A window to look at.

    Attributes:
        scene: Name of its scene.
        window: Where it lies.
        error: Share of its labelled pixels that are mapped wrong.
        picture: Imagery as one would look at it, (H, W, 3) uint8.
        truth: Class ids (H, W), 255 where nothing is known.
        mapped: Class ids (H, W), 255 where the scene is invalid.
    """

    scene: str
    window: Window
    error: float
    picture: npt.NDArray[np.uint8]
    truth: npt.NDArray[np.uint8]
    mapped: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """A model's scores over all scenes together, and per scene.

    Attributes:
        classes: The class table.
        total: Over all scenes.
        scenes: Of each scene, by its name.
        folder: Where the tables and the report lie.
        facts: How it was made, for people: model, protocol, windows, versions; in the order to be shown.
        worst: The windows with the largest errors, the worst first.
        best: The windows with the smallest errors, the best first.
    """

    classes: ClassTable
    total: SceneResult
    scenes: dict[str, SceneResult]
    folder: Path
    facts: dict[str, Any] = field(default_factory=dict)
    worst: tuple[WindowCase, ...] = ()
    best: tuple[WindowCase, ...] = ()
