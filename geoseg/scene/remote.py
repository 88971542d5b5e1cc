"""Imagery on servers: GDAL's settings for it, and a server's own answers about a file."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import rasterio

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
