"""Numbers, long lists and mistyped names in messages."""

import difflib
from collections.abc import Iterable, Sequence


def count(number: int, noun: str, plural: str | None = None) -> str:
    """``1 window``, ``2 windows``; ``plural`` where it is not the noun with an s."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def first_lines(lines: Sequence[str], most: int, total: int | None = None) -> list[str]:
    """The first lines of a list, and how many more there are of ``total``; None if the list has them all."""
    more = (len(lines) if total is None else total) - most
    return [*lines[:most], *([f"and {more} more"] if more > 0 else [])]


def listed(items: Sequence[str], most: int) -> str:
    """The first items joined by commas, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def nearest(word: str, words: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The most similar of some words, ignoring case; None if none is similar."""
    known = {other.casefold(): other for other in words}
    near = difflib.get_close_matches(word.casefold().strip(), known, n=1, cutoff=cutoff)
    return known[near[0]] if near else None


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right; empty columns are left out."""
    columns = [column for column in zip(*rows, strict=True) if any(column[1:]) or len(rows) == 1]
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]).rstrip()
        for first, *others in zip(*columns, strict=True)
    ]
