"""Errors that a user can put right, as one tree of exceptions.

The command line prints message and hint, and exits with ``exit_code``; a traceback is for bugs of geoseg.
"""

import shlex
from collections.abc import Sequence
from os import PathLike, fspath


class GeosegError(Exception):
    """An error that the user can put right.

    Args:
        message: What is wrong, in which file, what was found and expected; one sentence without a full stop.
        hint: What to type or change; None if the message says it all.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class SceneError(GeosegError, OSError):
    """A raster that cannot be opened or read, or does not fit the model's imagery contract."""


class LabelError(GeosegError, ValueError):
    """Labels without a CRS, with classes outside the table, or outside the imagery."""


class ConfigError(GeosegError, ValueError):
    """An invalid configuration or option."""


class ModelError(GeosegError, ValueError):
    """A model folder that is missing, incomplete or not one of geoseg's."""


class OutputError(GeosegError, OSError):
    """An output that exists, cannot be written, or has an unknown suffix."""


class DeviceError(GeosegError, RuntimeError):
    """A device that does not exist or is out of memory."""


def one_error(errors: Sequence[GeosegError], what: str, *, most: int = 20) -> GeosegError:
    """One error that lists several under a first line such as "2 of 3 scenes cannot be used", ``most`` of them at most.

    It is of their common class; if their hints differ, each line has its own. A single error is returned as it is.
    """
    first = errors[0]
    if len(errors) == 1:
        return first
    kind = type(first) if all(type(error) is type(first) for error in errors) else GeosegError
    is_same = all(error.hint == first.hint for error in errors)
    lines = [error.message if is_same or not error.hint else f"{error.message} ({error.hint})" for error in errors]
    more = [f"and {len(lines) - most} more"] if len(lines) > most else []
    return kind("\n  ".join([f"{what}:", *lines[:most], *more]), hint=first.hint if is_same else None)


def reason(error: BaseException) -> str:
    """Why a file cannot be read, without its name; of another library's error the first words."""
    return getattr(error, "strerror", None) or in_one_line(error)


def in_one_line(error: BaseException | str, most: int = 200) -> str:
    """The first words of another library's error, which may be as long as a stack trace."""
    return f"{' '.join(str(error).split()):.{most}}"


def quoted(path: str | PathLike[str]) -> str:
    """A path as it is typed in a shell command, in quotes if it contains spaces and the like."""
    return shlex.quote(fspath(path))
