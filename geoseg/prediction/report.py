"""Time of each stage of a prediction, and its report for people and for programs."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from geoseg.arrays import FloatArray
from geoseg.classes import ClassTable
from geoseg.grid import Grid
from geoseg.tiling.plan import Plan
from geoseg.tiling.stitcher import SeamCounts
from geoseg.words import count


class Stages:
    """Seconds of work by stage; threads may share one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def time(self, stage: str, *, workers: int = 1) -> Iterator[None]:
        """Count the time of a block, divided by the number of workers that share the stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, (time.perf_counter() - start) / workers)

    def add(self, stage: str, seconds: float) -> None:
        """Count seconds of work."""
        with self._lock:
            self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage, in the order in which they first ended."""
        with self._lock:
            return dict(self._seconds)


@dataclass(frozen=True, slots=True)
class PredictReport:
    """Output and course of a prediction."""

    path: Path  # the output
    grid: Grid
    plan: Plan
    skipped: int  # windows with nothing to map, which the network never saw
    seams: SeamCounts  # where overlapping windows saw different classes
    # Area per class, m² on the ground (else in the unit of the transform, or px), (K,)
    areas_m2: FloatArray
    classes: ClassTable
    seconds: float  # time of the prediction, without loading the model
    # Seconds of work per stage, which run side by side: read, network, stitch, write
    stages: dict[str, float] = field(default_factory=dict)
    resumed: int = 0  # parts that an earlier run had finished
    polygons: int | None = None  # number of polygons if the output is a vector file
    # Mean probability of the class, 0 … 1, measured on some of the rows; None if none is valid
    mean_confidence: float | None = None
    notes: tuple[str, ...] = ()  # remarks for people: on polygons, and on scenes unlike the training's

    @property
    def mpx_per_s(self) -> float:
        """Scene pixels per second, in millions, without the parts of an earlier run."""
        share = 1 - self.resumed / len(self.plan.tasks)
        return share * self.grid.height * self.grid.width / 1e6 / self.seconds

    @property
    def shares(self) -> dict[str, float]:
        """Share of each stage in the work, the largest first."""
        total = max(sum(self.stages.values()), 1e-12)
        return {stage: seconds / total for stage, seconds in sorted(self.stages.items(), key=lambda s: -s[1])}

    def lines(self) -> list[str]:
        """The report for people, the output's path first."""
        total = max(float(self.areas_m2.sum()), 1e-12)
        unit, factor = self.grid.area_unit
        width = max(len(c.name) for c in self.classes)
        table = [
            f"  {c.name:{width}}  {area * factor:12,.2f} {unit}  {100 * area / total:5.1f} %"
            for c, area in zip(self.classes, self.areas_m2, strict=True)
        ]
        size = f"{self.grid.height} × {self.grid.width} px"
        done = f"{size} in {self.seconds:.1f} s, {self.mpx_per_s:.2f} Mpx/s; {self.plan}"
        stages = " · ".join(f"{stage} {100 * share:.0f} %" for stage, share in self.shares.items())
        extra = [f"work: {stages}" if stages else ""]
        if self.resumed:
            extra.append(f"{self.resumed} of {count(len(self.plan.tasks), 'part')} taken over from an earlier run")
        if self.skipped:
            extra.append(f"{count(self.skipped, 'window')} without a valid pixel skipped")
        if self.seams.border + self.seams.inside:
            extra.append(seam_text(self.seams))
        if self.polygons is not None:
            extra.append(count(self.polygons, "polygon"))
        if self.mean_confidence is not None:
            extra.append(f"mean confidence {self.mean_confidence:.2f}")
        extra += self.notes
        if not self.grid.is_metric:
            extra.append(f"the map {self.grid.place_note}")
        return [str(self.path), *table, done, *filter(None, extra)]


def seam_text(seams: SeamCounts) -> str:
    """The seam score in words."""
    return (
        f"overlapping windows differ on {100 * seams.border_share:.2f} % along their borders, "
        f"{100 * seams.inside_share:.2f} % elsewhere"
    )
