"""Numbers, long lists and mistyped names in messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def count(number: int, noun: str, plural: str | None = None) -> str:
    """``1 window``, ``2 windows``; ``plural`` where it is not the noun with an s."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def first_lines(lines: Sequence[str], most: int) -> list[str]:
    """The first lines of a list, and how many more there are."""
    more = len(lines) - most
    return [*lines[:most], *([f"and {more} more"] if more > 0 else [])]


def nearest(word: str, words: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The most similar of some words, ignoring case; None if none is similar."""
    known = {other.casefold(): other for other in words}
    near = difflib.get_close_matches(word.casefold().strip(), known, n=1, cutoff=cutoff)
    return known[near[0]] if near else None
