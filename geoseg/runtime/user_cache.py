"""The user's cache folder: what can be made anew, and is kept to save time."""

import os
import tempfile
from pathlib import Path


def user_cache(name: str) -> Path:
    """``$XDG_CACHE_HOME/geoseg/NAME``, or ``~/.cache/geoseg/NAME``; nothing is created."""
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a user whom the machine does not know, as in many a container
        base = tempfile.gettempdir()
    return Path(base) / "geoseg" / name
