"""Time of each stage of a prediction, to see which of them limits the speed."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


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
