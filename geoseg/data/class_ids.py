"""Class ids of polygons, from a field of names or numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from geoseg.arrays import IntArray
from geoseg.classes import NODATA, ClassTable

UNKNOWN, MISSING, MIXED = -1, -2, -3


@dataclass(frozen=True, slots=True, eq=False)
class FieldClasses:
    """What the values of a field mean.

    Attributes:
        ids: Class id of each value, (n,): 255 to be ignored, `UNKNOWN`, `MISSING`, or `MIXED` for a number among names.
        texts: The values as text, (n,).
        numbers: The different numbers, if values are numbers.
        mixed: One name and one number, if the field has both.
    """

    ids: IntArray
    texts: tuple[str, ...]
    numbers: frozenset[int]
    mixed: tuple[str, str] | None


def field_classes(values: Iterable[Any], classes: ClassTable, first_label: int = 0) -> FieldClasses:
    """Class ids of the values of a field: all by name if any is the name of a class, otherwise all by number.

    Numbers mean the same as in a raster of labels: ``first_label`` is the first class; smaller numbers and 255 are
    ignored. Missing values are None, NaN or empty.
    """
    texts = tuple(_text(value) for value in values)
    numbers = {text: _number(text) for text in set(texts)}
    by_name = {c.name: c.id for c in classes}
    by_number = {text: _by_number(number, len(classes), first_label) for text, number in numbers.items()}
    names = sorted(by_name.keys() & numbers.keys())
    known = by_name if names else by_number
    other = sorted(t for t in numbers if t not in by_name and by_number[t] != UNKNOWN) if names else []
    special = {"": MISSING} | dict.fromkeys(other, MIXED)
    return FieldClasses(
        ids=np.array([special.get(text, known.get(text, UNKNOWN)) for text in texts], dtype=np.int64),
        texts=texts,
        numbers=frozenset() if names else frozenset(n for n in numbers.values() if n is not None),
        mixed=(names[0], other[0]) if other else None,
    )


def _by_number(number: int | None, classes: int, first: int) -> int:
    if number is None or number >= first + classes:
        return NODATA if number == NODATA else UNKNOWN
    return number - first if number >= first else NODATA


def _text(value: Any) -> str:
    """A value as text: "3" for 3 and 3.0, empty if missing."""
    if pd.isna(value):
        return ""
    # Integer fields with a missing value are read as floats.
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _number(text: str) -> int | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number >= 0 and number.is_integer() else None
