"""Processors and memory of this machine or container."""

import os
from pathlib import Path

_CONTAINER = Path("/sys/fs/cgroup/memory.max")


def processors() -> int:
    """Processors that this process may use, at least 1."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Memory of this machine or container; None if the system does not say."""
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
    try:
        return min(found, int(_CONTAINER.read_text()))
    except (OSError, ValueError):  # no container, or one without a limit
        return found
