"""Everything a user can cause, as one tree of exceptions.

A message names the file, what was found and what was wanted; the hint is something to type. The command line
prints both and exits with ``exit_code``; a traceback is kept for our own bugs.
"""

from __future__ import annotations

import shlex
from os import PathLike, fspath


class GeosegError(Exception):
    """Something the user can put right.

    Args:
        message: File, found, wanted; one sentence without a trailing full stop.
        hint: What to type or change, or None where the message says it all.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class SceneError(GeosegError, OSError):
    """A raster that cannot be opened or read, or that breaks the model's imagery contract."""


class LabelError(GeosegError, ValueError):
    """Labels without a CRS, with classes outside the table, or away from the imagery."""


class ConfigError(GeosegError, ValueError):
    """A configuration or an option that cannot be meant."""


class ModelError(GeosegError, ValueError):
    """A model folder that is missing, incomplete, or made by something else."""


class OutputError(GeosegError, OSError):
    """An output that exists, cannot be written, or has an unknown suffix."""


class DeviceError(GeosegError, RuntimeError):
    """A device that was asked for and is not there, or is out of memory."""


def in_one_line(error: BaseException | str, most: int = 200) -> str:
    """The first words of another library's error; some tell every tensor of a network, or a whole stack."""
    return f"{' '.join(str(error).split()):.{most}}"


def quoted(path: str | PathLike[str]) -> str:
    """A path as it is typed in a command of a hint: in quotes where it holds spaces and the like."""
    return shlex.quote(fspath(path))
