"""A limited number of open datasets, each used by one thread at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rasterio
from rasterio.errors import RasterioError

from geoseg.errors import SceneError, quoted
from geoseg.files import open_raster
from geoseg.scene.remote import gdal_settings, is_remote

MAX_IDLE = 128
"""Unused datasets kept open; far below the usual limit of 1024 open files."""


class OpenFiles:
    """Datasets opened when needed; those unused for longest are closed.

    Two threads must not read one dataset at once, so each reader borrows one. Readers one after another get the same
    dataset, and with it GDAL's cache of its blocks.

    Args:
        max_idle: Unused datasets kept open.
    """

    def __init__(self, max_idle: int = MAX_IDLE) -> None:
        self._max_idle = max_idle
        self._idle: list[tuple[str, Any]] = []  # longest unused first
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[OpenFiles], tuple[int]]:
        # Open files cannot be pickled: another process opens its own.
        return OpenFiles, (self._max_idle,)

    @property
    def idle(self) -> int:
        """Number of unused open datasets."""
        return len(self._idle)

    @contextmanager
    def borrow(self, path: str) -> Iterator[Any]:
        """A rasterio dataset of a path, for this thread alone.

        Raises:
            SceneError: No such file, or no raster.
        """
        with gdal_settings(path):
            dataset = self._take(path) or open_dataset(path)
            try:
                yield dataset
            except BaseException:
                dataset.close()  # its state is unknown after an error
                raise
            self._give_back(path, dataset)

    def close(self, path: str | None = None) -> None:
        """Close the idle datasets of a path; None closes all."""
        with self._lock:
            mine = [dataset for p, dataset in self._idle if path in (None, p)]
            self._idle = [] if path is None else [(p, dataset) for p, dataset in self._idle if p != path]
        for dataset in mine:
            dataset.close()

    def _take(self, path: str) -> Any | None:
        with self._lock:
            for i in range(len(self._idle) - 1, -1, -1):
                if self._idle[i][0] == path:
                    return self._idle.pop(i)[1]
        return None

    def _give_back(self, path: str, dataset: Any) -> None:
        with self._lock:
            self._idle.append((path, dataset))
            surplus = self._idle[: -self._max_idle]
            self._idle = self._idle[-self._max_idle :]
        for _, old in surplus:
            old.close()


def open_dataset(path: str) -> Any:
    """The rasterio dataset of a path.

    Raises:
        SceneError: No such file, or no raster.
    """
    if not path:
        raise SceneError("the path of the scene is empty", hint="name a raster")
    try:
        with gdal_settings(path):
            # Shared, GDAL would give two threads one dataset. A server may take long, so several are asked at once.
            return (rasterio.open if is_remote(path) else open_raster)(path, sharing=False)
    except RasterioError as error:
        if not is_remote(path) and Path(path).is_dir():
            raise SceneError(
                f"{path} is a folder, not a raster", hint=f"name the files in it: {quoted(path)}/*.tif"
            ) from error
        if "No such file" in str(error):
            raise SceneError(f"no such scene: {path}", hint="check the path") from error
        raise SceneError(
            f"{path} is not a raster that GDAL can read: {reason(error, path)}",
            hint=f"check {'the address' if is_remote(path) else 'the file'} with: gdalinfo {quoted(path)}",
        ) from error


def reason(error: RasterioError, path: str) -> str:
    """What GDAL said first, without the path it begins with: rasterio's own words are "see previous exception"."""
    text = str(error.__cause__ or error)
    return text.removeprefix(f"'{path}' ").removeprefix(f"{Path(path).name}, ").removeprefix(f"{path}: ").rstrip(".")
