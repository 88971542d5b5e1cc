"""Problems found in data, as values, and the error raised for a list of them."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from geoseg.errors import GeosegError, LabelError
from geoseg.options import AnyPath
from geoseg.words import count

log = logging.getLogger(__name__)

_MOST_LISTED = 50  # lines of an error message; thousands of scenes may be wrong in the same way


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of the data."""

    severity: Literal["error", "warning"]  # an "error" stops training, a "warning" does not
    where: str  # file or scene it concerns; lists are sorted by it
    message: str  # file, found, expected; one sentence without a full stop
    hint: str | None = None  # the fix, if the message does not imply it


def error(where: AnyPath, message: str, hint: str | None = None) -> Problem:
    """A problem that stops training."""
    return Problem("error", str(where), message, hint)


def warning(where: AnyPath, message: str, hint: str | None = None) -> Problem:
    """A problem that is only reported."""
    return Problem("warning", str(where), message, hint)


def as_problem(where: AnyPath, raised: GeosegError) -> Problem:
    """An exception as a problem."""
    return error(where, raised.message, raised.hint)


def has_error(problems: Iterable[Problem]) -> bool:
    """Whether any of the problems stops training."""
    return any(problem.severity == "error" for problem in problems)


def raise_first(problems: Iterable[Problem]) -> None:
    """Raise the first error of some problems as a `LabelError`; warnings are ignored."""
    for problem in problems:
        if problem.severity == "error":
            raise LabelError(problem.message, hint=problem.hint)


def problem_lines(problems: Sequence[Problem]) -> list[str]:
    """The problems as text: how many, then each with its number and hint."""
    if not problems:
        return ["no problems found"]
    lines = [_headline(problems)]
    for line, problem in zip(_numbered(problems), problems, strict=True):
        lines += [line] if problem.hint is None else [line, f"      hint: {problem.hint}"]
    return lines


def refuse(problems: Sequence[Problem]) -> None:
    """Raise a `LabelError` that lists the problems if any is an error, the first fifty; otherwise log the warnings."""
    errors = [problem for problem in problems if problem.severity == "error"]
    if not errors:
        for problem in problems:
            log.warning("%s%s", problem.message, f" ({problem.hint})" if problem.hint else "")
        return
    if len(problems) == 1:
        raise_first(problems)
    lines = [_headline(problems), *_numbered(problems[:_MOST_LISTED])]
    if len(problems) > _MOST_LISTED:
        lines.append(f"      and {len(problems) - _MOST_LISTED} more; geoseg train CONFIG --check prints all")
    hint = next((p.hint for p in errors if p.hint is not None), None)
    raise LabelError("\n".join(lines), hint=f"begin with: {hint}" if hint is not None else None)


def _numbered(problems: Sequence[Problem]) -> list[str]:
    return [f"{number:>4}. {p.severity}: {p.message}" for number, p in enumerate(problems, start=1)]


def _headline(problems: Sequence[Problem]) -> str:
    errors = sum(problem.severity == "error" for problem in problems)
    parts = [count(n, kind) for n, kind in ((errors, "error"), (len(problems) - errors, "warning")) if n]
    return f"{' and '.join(parts)} in the data of this configuration:"
