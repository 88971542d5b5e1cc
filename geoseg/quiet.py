"""Open rasters without rasterio's warning about those that have no georeference: that they may is in our contract."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rasterio.errors import NotGeoreferencedWarning

# warnings.catch_warnings changes the process, so two threads must not be inside at once.
_LOCK = threading.RLock()


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing is said about missing georeferences within; one thread at a time, so only for what is short."""
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield
