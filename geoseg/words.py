"""Numbers in messages."""

from __future__ import annotations


def count(number: int, noun: str, plural: str | None = None) -> str:
    """``1 window``, ``2 windows``; ``plural`` where it is not the noun with an s."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"
