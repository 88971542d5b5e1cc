"""Programs that tests start."""

from __future__ import annotations

import multiprocessing
import signal
from multiprocessing.context import ForkServerContext


def heed_ctrl_c() -> None:
    """For ``preexec_fn``: tests started in the background of a shell ignore Ctrl-C, and a child would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def fresh_processes() -> ForkServerContext:
    """Processes that start with torch and Lightning loaded, and without the threads that torch has had in this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["geoseg.programs.train"])
    return context
