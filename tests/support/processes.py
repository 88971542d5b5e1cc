"""Programs that tests start."""

from __future__ import annotations

import signal


def heed_ctrl_c() -> None:
    """For ``preexec_fn``: tests started in the background of a shell ignore Ctrl-C, and a child would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
