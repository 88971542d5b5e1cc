"""Class ids of polygons, from a field that holds names or numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from geoseg.classes import NODATA, ClassTable

Ids = npt.NDArray[np.int64]

UNKNOWN, MISSING, MIXED = -1, -2, -3


@dataclass(frozen=True, slots=True, eq=False)
class FieldClasses:
    """What the values of a field mean.

    Attributes:
        ids: Class id of each value, (n,): 255 to be ignored, `UNKNOWN`, `MISSING`, or `MIXED` for a number where other
            values are names.
        texts: The values as text, (n,).
        numbers: The different numbers, where values were taken as numbers.
        mixed: A name and a number of a class, where the field holds both.
    """

    ids: Ids
    texts: tuple[str, ...]
    numbers: frozenset[int]
    mixed: tuple[str, str] | None


def field_classes(values: Iterable[Any], classes: ClassTable, first_label: int = 0) -> FieldClasses:
    """Classes of the values of a field: all by name where a name of a class occurs, else all by number.

    Numbers mean what they mean in a raster of labels: ``first_label`` is the first class, smaller ones and 255 are
    ignored.

    Args:
        values: Of the field; missing ones are None, NaN or empty.
        classes: The class table.
        first_label: Number of the first class.
    """
    texts = tuple(_text(value) for value in values)
    by_name = {c.name: c.id for c in classes}
    numbers = {text: _number(text) for text in set(texts)}
    by_number: dict[str, int] = {}
    for text, number in numbers.items():
        if number is None or not number < first_label + len(classes):
            by_number[text] = NODATA if number == NODATA else UNKNOWN
        else:
            by_number[text] = number - first_label if number >= first_label else NODATA
    names = sorted(by_name.keys() & numbers.keys())
    known = by_name if names else by_number
    other = sorted(t for t in numbers if t not in by_name and by_number[t] != UNKNOWN) if names else []
    special = {"": MISSING} | dict.fromkeys(other, MIXED)
    ids = [special.get(text, known.get(text, UNKNOWN)) for text in texts]
    return FieldClasses(
        ids=np.array(ids, dtype=np.int64),
        texts=texts,
        numbers=frozenset() if names else frozenset(n for n in numbers.values() if n is not None),
        mixed=(names[0], other[0]) if other else None,
    )


def _text(value: Any) -> str:
    """A value as text: "3" where it is 3 or 3.0, nothing where it is missing."""
    if pd.isna(value):
        return ""
    # Integer fields with a missing value come as floats.
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _number(text: str) -> int | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number >= 0 and number.is_integer() else None
