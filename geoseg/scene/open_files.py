"""A limited number of open datasets, each used by one thread at a time; GDAL's settings for files on servers."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import rasterio
from rasterio.errors import RasterioError

from geoseg.errors import SceneError, quoted
from geoseg.georeference import open_raster

MAX_IDLE = 128  # unused datasets kept open; far below the usual limit of 1024 open files

_SERVERS = ("/vsicurl", "/vsis3", "/vsigs", "/vsiaz", "/vsiadls", "/vsioss", "/vsiswift", "/vsihdfs", "/vsiwebhdfs")
_TIMEOUT_S = 20

HTTP_SETTINGS = {
    "GDAL_HTTP_MAX_RETRY": "4",  # of 429 and 5xx; what is not there or not allowed stays so
    "GDAL_HTTP_RETRY_DELAY": "0.5",  # s, doubled each time
    "GDAL_HTTP_CONNECTTIMEOUT": str(_TIMEOUT_S),
    "GDAL_HTTP_LOW_SPEED_TIME": "60",  # a transfer that stands still for a minute is dead
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_INGESTED_BYTES_AT_OPEN": "32768",  # the header of a COG in one request
    "VSI_CACHE": "YES",
    "VSI_CACHE_SIZE": str(4 << 20),  # per file; what is read ahead, not what is kept
}
"""For files on a server and for VRTs, whose sources may be; environment variables of the same names win."""

# GDAL then asks for nothing beside the file: no listing, no .msk, .ovr or .aux.xml, five requests fewer for each file.
_NOTHING_BESIDE = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}


class OpenFiles:
    """Datasets opened when needed; of the unused ones, ``max_idle`` stay open.

    Two threads must not read one dataset at once, so each reader borrows one. Readers one after another get the same
    dataset, and with it GDAL's cache of its blocks.
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
        """A rasterio dataset of a path, for this thread alone; see `open_dataset`."""
        with self._lock:
            last = next((i for i in reversed(range(len(self._idle))) if self._idle[i][0] == path), None)
            dataset = None if last is None else self._idle.pop(last)[1]
        with gdal_settings(path):
            dataset = dataset or open_dataset(path)
            try:
                yield dataset
            except BaseException:
                dataset.close()  # its state is unknown after an error
                raise
            with self._lock:
                self._idle.append((path, dataset))
                surplus, self._idle = self._idle[: -self._max_idle], self._idle[-self._max_idle :]
            for _, old in surplus:
                old.close()

    def close(self, path: str | None = None) -> None:
        """Close the idle datasets of a path; None closes all."""
        with self._lock:
            mine = [dataset for p, dataset in self._idle if path in (None, p)]
            self._idle = [] if path is None else [(p, dataset) for p, dataset in self._idle if p != path]
        for dataset in mine:
            dataset.close()


def open_dataset(path: str) -> Any:
    """The rasterio dataset of a path; a `SceneError` if there is no such file, or no raster."""
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


def is_remote(path: str) -> bool:
    """Whether a path is a URL, or GDAL's name of something on a server."""
    return ("://" in path and not path.startswith(("file://", "zip://", "tar://"))) or path.startswith(_SERVERS)


def gdal_settings(path: str) -> AbstractContextManager[Any]:
    """GDAL's settings in which a path is to be opened and read."""
    if is_remote(path):
        settings = HTTP_SETTINGS | _NOTHING_BESIDE
    elif path.lower().endswith(".vrt"):
        settings = HTTP_SETTINGS
    else:
        return nullcontext()
    env: AbstractContextManager[Any] = rasterio.Env(**{k: v for k, v in settings.items() if k not in os.environ})
    return env


def remote_facts(path: str) -> dict[str, Any]:
    """Address, size and ETag or date of a file on an HTTP server; only the address for other stores.

    What follows a "?" is left out: often a signature, which is secret and changes.
    """
    facts: dict[str, Any] = {"path": path.removeprefix("/vsicurl/").partition("?")[0]}
    try:
        headers = _ask(path)
    except OSError:  # GDAL, which has other ways to log in, could open it
        return facts
    if headers is not None:
        size = headers.get("Content-Range", "").rpartition("/")[2] or headers.get("Content-Length")
        facts |= {"bytes": size, "etag": headers.get("ETag"), "modified": headers.get("Last-Modified")}
    return facts


def server_complaint(path: str) -> str | None:
    """A server's error, which GDAL does not report; None if it answers."""
    try:
        _ask(path)
    except urllib.error.HTTPError as error:
        return f"the server answers {error.code} {error.reason}".rstrip()
    except OSError as error:
        return f"the server does not answer: {getattr(error, 'reason', error)}"
    return None


def _ask(path: str) -> Any | None:
    """Headers of a request for one byte (signed addresses refuse HEAD); None if not over HTTP."""
    url = path.removeprefix("/vsicurl/")
    if not url.startswith(("http://", "https://")):
        return None
    request = urllib.request.Request(url, headers={"Range": "bytes=0-0"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
        return answer.headers
