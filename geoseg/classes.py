"""The class table: ids, names and colours."""

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from geoseg.words import nearest

NODATA = 255  # value of a class map where the scene is invalid, and of a label to be ignored

RIGHT, IGNORE = "right as it is", "ignore"
"""What a correction of a map may say in place of a class: the map is right there, or nothing is known."""

Color = tuple[int, int, int]


def parse_color(text: str) -> Color:
    """Red, green and blue, each in [0, 255], from ``#rrggbb``; a ValueError for anything else."""
    if re.fullmatch("#[0-9a-fA-F]{6}", text) is None:
        raise ValueError(f"color {text!r} is not of the form #rrggbb")
    red, green, blue = bytes.fromhex(text[1:])
    return red, green, blue


def format_color(color: Color) -> str:
    """``#rrggbb`` of red, green and blue in [0, 255]."""
    return "#{:02x}{:02x}{:02x}".format(*color)


@dataclass(frozen=True, slots=True)
class MapClass:
    """One class of a map: its id (the pixel value and the logit channel), its name, its RGB colour in [0, 255].

    A background is what surrounds objects: it is in maps, but becomes polygons only on request. Of a class to separate
    it is known beside the map where two objects touch (``MAP_contact.tif``). A ValueError for an invalid name or
    colour.
    """

    id: int
    name: str
    color: Color
    background: bool = False
    separate: bool = False

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError(f"class {self.id} has no name")
        if len(self.color) != 3 or not all(0 <= channel <= 255 for channel in self.color):
            raise ValueError(f"color {self.color} of class {self.name} is not three numbers in 0 … 255")


@dataclass(frozen=True, slots=True)
class ClassTable:
    """Classes of a map, ids 0 … K−1 in order; a class's id is its logit channel and its pixel value.

    Raises:
        ValueError: No class, ids that are not 0 … K−1 in order, a repeated name, or more than 255 classes.
    """

    classes: tuple[MapClass, ...]

    def __post_init__(self) -> None:
        ids = [c.id for c in self.classes]
        names = [c.name for c in self.classes]
        if not ids:
            raise ValueError("a class table needs at least one class")
        if ids != list(range(len(ids))):
            raise ValueError(f"class ids must be 0 … {len(ids) - 1} in order, found {ids}")
        if len(ids) > NODATA:
            raise ValueError(f"at most {NODATA} classes fit an 8-bit map, found {len(ids)}")
        repeated = sorted({n for n in names if names.count(n) > 1})
        if repeated:
            raise ValueError(f"class names must differ, repeated: {', '.join(repeated)}")

    @classmethod
    def from_names(
        cls,
        names: Iterable[str],
        colors: Iterable[str | Color],
        background: Container[str] = (),
        separate: Container[str] = (),
    ) -> Self:
        """Table of the names in order, ids from 0; colours as ``#rrggbb`` or as RGB in [0, 255].

        A ValueError for more names than colours or the reverse, or a colour that is none; see `ClassTable`.
        """
        names, rgb = list(names), [parse_color(c) if isinstance(c, str) else c for c in colors]
        if len(names) != len(rgb):
            raise ValueError(f"every class needs a color: found {len(names)} names and {len(rgb)} colors")
        entries = enumerate(zip(names, rgb, strict=True))
        return cls(tuple(MapClass(i, n, color, n in background, n in separate) for i, (n, color) in entries))

    @classmethod
    def from_entries(cls, entries: Iterable[Mapping[str, Any]]) -> Self:
        """The table that `class_entries` stored."""
        rows = list(entries)
        flags = ({e["name"] for e in rows if e.get(flag)} for flag in ("background", "separate"))
        return cls.from_names([e["name"] for e in rows], [e["color"] for e in rows], *flags)

    def __len__(self) -> int:
        return len(self.classes)

    def __iter__(self) -> Iterator[MapClass]:
        return iter(self.classes)

    def __getitem__(self, class_id: int) -> MapClass:
        return self.classes[class_id]

    @property
    def names(self) -> tuple[str, ...]:
        """Class names, by id."""
        return tuple(c.name for c in self.classes)

    @property
    def channels(self) -> tuple[int, ...]:
        """The class of each logit channel: all classes, then the contact of each class to separate."""
        return *range(len(self.classes)), *(c.id for c in self.classes if c.separate)

    @property
    def channel_names(self) -> tuple[str, ...]:
        """What each logit channel stands for."""
        return *self.names, *(f"contact of {c.name}" for c in self.classes if c.separate)

    def id_of(self, name: str) -> int:
        """Id of the class called ``name``; a KeyError if there is none."""
        for c in self.classes:
            if c.name == name:
                return c.id
        raise KeyError(name)


def class_entries(classes: ClassTable) -> list[dict[str, Any]]:
    """A table as it is stored: name, colour (``#rrggbb``) and the flags that are set of each class."""
    flags = ("background", "separate")
    return [
        {"name": c.name, "color": format_color(c.color), **{flag: True for flag in flags if getattr(c, flag)}}
        for c in classes
    ]


def nearest_name(name: str, names: Sequence[str]) -> str:
    """The name most similar to a mistyped one; all names, joined by "or", if none is similar."""
    return nearest(name, names, cutoff=0.5) or " or ".join(names)
