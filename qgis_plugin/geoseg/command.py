# SPDX-License-Identifier: Apache-2.0
"""Run the geoseg command in its own environment; its progress goes to the dialog, and Cancel ends it."""

import os
import queue
import re
import shutil
import signal
import subprocess
import threading
import time

SETTING = "geoseg/command"
"""Where QGIS keeps the path of the command, once it has been chosen."""

_PERCENT = re.compile(r"(\d{1,3})%\|")
# QGIS sets these for its own Python and GDAL; another environment must not see them.
_OF_QGIS = ("PYTHONHOME", "PYTHONPATH", "GDAL_DATA", "PROJ_LIB", "PROJ_DATA", "GDAL_DRIVER_PATH", "LD_LIBRARY_PATH")


def find_command(chosen=""):
    """Path of the geoseg command: the one chosen, else the one on PATH; None if there is none."""
    if chosen:
        return chosen if os.access(chosen, os.X_OK) else None
    return shutil.which("geoseg")


_PATIENCE_S = 5
"""How long a canceled command may take to end by itself."""


def run_command(command, arguments, *, say, progress, is_canceled):
    """Run geoseg and return what it printed.

    Args:
        command: Path of the command.
        arguments: What follows it.
        say: Called with each line that it says.
        progress: Called with the percentage of its progress bar.
        is_canceled: Asked several times a second; True ends the command.

    Returns:
        Lines of its output, or None if it was canceled.

    Raises:
        RuntimeError: It failed; the message is its own.
    """
    env = {key: value for key, value in os.environ.items() if key not in _OF_QGIS}
    own_group = {"start_new_session": True} if os.name == "posix" else {}
    process = subprocess.Popen(
        [command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env=env,
        **own_group,
    )
    said, printed, lines = [], [], queue.Queue()

    def read(stream, kept):
        for line in _lines(stream):
            lines.put((line, kept))

    streams = ((process.stderr, said), (process.stdout, printed))
    readers = [threading.Thread(target=read, args=pair, daemon=True) for pair in streams]
    for reader in readers:
        reader.start()
    canceled_at = None
    while any(reader.is_alive() for reader in readers) or not lines.empty():
        if canceled_at is None and is_canceled():
            canceled_at = time.monotonic()
            _interrupt(process)
        elif canceled_at is not None and time.monotonic() - canceled_at > _PATIENCE_S:
            process.terminate()  # a program started from a background shell ignores Ctrl-C
        try:
            line, kept = lines.get(timeout=0.2)
        except queue.Empty:
            continue
        # The dialog is told from this thread alone: QGIS's feedback belongs to the thread of the algorithm.
        found = _PERCENT.findall(line)
        if found and kept is said:
            progress(min(int(found[-1]), 100))
        elif line.strip() or kept is printed:
            kept.append(line)
            say(line)
    process.wait()
    if canceled_at is not None:
        return None
    if process.returncode:
        raise RuntimeError("\n".join(said[-10:]) or f"geoseg ended with exit code {process.returncode}")
    return printed


def _lines(stream):
    """Lines of a stream, those too that a progress bar ends with a carriage return."""
    pending = b""
    for chunk in iter(lambda: stream.read1(4096), b""):
        *lines, pending = re.split(rb"[\r\n]", pending + chunk)
        for line in lines:
            yield line.decode("utf-8", "replace")
    if pending:
        yield pending.decode("utf-8", "replace")


def _interrupt(process):
    """End the command as Ctrl-C would: what it has finished is kept for the next run."""
    if os.name == "posix":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.terminate()
