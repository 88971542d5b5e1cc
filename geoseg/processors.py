"""How many processors there are to use."""

from __future__ import annotations

import os


def processors() -> int:
    """Processors that this process may use, at least 1; not every system tells of less than all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
