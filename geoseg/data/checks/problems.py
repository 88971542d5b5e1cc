"""What is wrong with data, as values in one list, and the one error that is raised for it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Literal

from geoseg.errors import GeosegError, LabelError
from geoseg.words import count

log = logging.getLogger(__name__)

Severity = Literal["error", "warning"]

_NAMED = 50
"""Lines of the message that is raised; of a set of thousands of scenes each may be wrong in the same way."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with the data.

    Attributes:
        severity: "error" where training is refused, "warning" where it goes on.
        where: File or scene it is about; problems are listed by it.
        message: File, found, wanted; one sentence without a trailing full stop.
        hint: What to type or change, or None where the message says it all.
    """

    severity: Severity
    where: str
    message: str
    hint: str | None = None


def error(where: str | PathLike[str], message: str, hint: str | None = None) -> Problem:
    """A problem that training is refused for."""
    return Problem("error", str(where), message, hint)


def warning(where: str | PathLike[str], message: str, hint: str | None = None) -> Problem:
    """A problem that is told, and no more."""
    return Problem("warning", str(where), message, hint)


def as_problem(where: str | PathLike[str], raised: GeosegError) -> Problem:
    """What another part of the program refused with."""
    return error(where, raised.message, raised.hint)


def in_order(problems: Sequence[Problem]) -> list[Problem]:
    """Errors before warnings, then by file, each problem once."""
    return sorted(dict.fromkeys(problems), key=lambda p: (p.severity != "error", p.where, p.message))


def problem_lines(problems: Sequence[Problem]) -> list[str]:
    """The whole list as lines of text: how many there are, then each with a number and its hint."""
    if not problems:
        return ["no problems found"]
    lines = [f"{_counted(problems)} in the data of this configuration:"]
    for number, problem in enumerate(problems, start=1):
        lines.append(f"{number:>4}. {problem.severity}: {problem.message}")
        if problem.hint is not None:
            lines.append(f"      hint: {problem.hint}")
    return lines


def refuse(problems: Sequence[Problem]) -> None:
    """Log the warnings where there is nothing worse, else raise.

    Raises:
        LabelError: There are errors. A single one without warnings reads as if it had been raised on its own; else the
            message counts all and numbers the first fifty, and the hint is the first one's.
    """
    errors = [problem for problem in problems if problem.severity == "error"]
    if not errors:
        for problem in problems:
            log.warning("%s%s", problem.message, f" ({problem.hint})" if problem.hint else "")
        return
    if len(problems) == 1:
        raise LabelError(errors[0].message, hint=errors[0].hint)
    lines = [f"{_counted(problems)} in the data of this configuration:"]
    lines += [f"{number:>4}. {p.severity}: {p.message}" for number, p in enumerate(problems[:_NAMED], start=1)]
    if len(problems) > _NAMED:
        lines.append(f"      and {len(problems) - _NAMED} more, all of which geoseg train CONFIG --check prints")
    hint = next((p.hint for p in errors if p.hint is not None), None)
    raise LabelError("\n".join(lines), hint=f"begin with: {hint}" if hint is not None else None)


def listed(items: Sequence[str], most: int) -> str:
    """The first few of several things, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def _counted(problems: Sequence[Problem]) -> str:
    errors = sum(problem.severity == "error" for problem in problems)
    parts = [count(n, kind) for n, kind in ((errors, "error"), (len(problems) - errors, "warning")) if n]
    return " and ".join(parts)
