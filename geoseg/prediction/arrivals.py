"""Rows from finished parts to the output, while other parts are still being made."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np

from geoseg.class_map.overviews import class_areas
from geoseg.grid import Grid
from geoseg.map_rows import MapRows
from geoseg.prediction.tasks import Job
from geoseg.tiling.plan import Task


class Abandoned(Exception):
    """The rows end early because of an exception elsewhere, which is reported."""


class Arrivals:
    """Rows of the map, each band as soon as all its parts exist, for a thread beside the one that makes parts.

    A context manager around the making of parts: an exception there ends the rows.

    Attributes:
        areas_m2: Area per class of the rows so far, (K,).
        taker: The thread that takes the rows.
    """

    def __init__(self, job: Job, grid: Grid) -> None:
        self._job = job
        self._row_areas = grid.pixel_area_m2()
        self._changed = threading.Condition()
        self._failed = False
        self.taker: Future[Any] | None = None
        self.areas_m2 = np.zeros(job.parts.classes)

    def __enter__(self) -> Arrivals:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            with self._changed:
                self._failed = True
                self._changed.notify()

    def announce(self, task: Task) -> None:
        """A part is there.

        Raises:
            GeosegError: What stopped the thread that takes the rows: no need to make more.
        """
        with self._changed:
            self._changed.notify()
        if self.taker is not None and self.taker.done():
            self.taker.result()

    def rows(self) -> Iterator[MapRows]:
        """The map from top to bottom; waits for parts that do not exist yet.

        Raises:
            Abandoned: No more parts will come.
        """
        plan, parts = self._job.plan, self._job.parts
        row = 0
        for band in range(plan.bands):
            wanted = [plan.task(band, strip) for strip in range(plan.strips)]
            with self._changed:
                while not all(parts.has(task) for task in wanted):
                    if self._failed:
                        raise Abandoned
                    self._changed.wait()
            for rows in parts.rows(plan, band):
                row_areas = self._row_areas[row : row + len(rows)]
                self.areas_m2 += class_areas(rows.classes, row_areas, len(self.areas_m2))
                row += len(rows)
                yield rows
        parts.publish()
