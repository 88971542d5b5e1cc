"""What becomes of the regions and borders of a class map on their way to polygons, as one value."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from geoseg.classes import ClassTable, MapClass
from geoseg.errors import ConfigError, quoted
from geoseg.options import PolygonRules


@dataclass(frozen=True, slots=True, eq=False)
class ClassRules:
    """`PolygonRules` that speak of classes, worked out for one class table.

    Attributes:
        table: (256,) uint8: the value that each value of the map becomes; 255 → 255.
        classes: The class table after dissolving. A group has the id and the colour of its first class; the ids of its
            other classes do not occur any more.
        regularized: Ids of the classes to regularize.
        left_out: Id that all classes have which are to become no polygons; None where all become some.
    """

    table: npt.NDArray[np.uint8]
    classes: ClassTable
    regularized: tuple[int, ...]
    left_out: int | None = None


def class_rules(rules: PolygonRules, classes: ClassTable) -> ClassRules:
    """The rules for the classes of a map.

    Raises:
        ConfigError: A class that the table does not have, one that is in two groups, a group with the name of a class
            outside it, or a rule for a class that is left out.
    """
    table = np.arange(256, dtype=np.uint8)
    entries = list(classes)
    grouped: dict[int, str] = {}
    for group, members in rules.dissolve.items():
        ids = sorted({_id_of(classes, name, "--dissolve") for name in members})
        if not ids:
            raise ConfigError(f"--dissolve {group} names no class", hint=f"--dissolve {group}={classes[0].name},…")
        for i in ids:
            if i in grouped:
                raise ConfigError(
                    f"class {classes[i].name} is in two groups, {grouped[i]} and {group}", hint="take it out of one"
                )
            grouped[i] = group
        if group in classes.names and classes.id_of(group) not in ids:
            raise ConfigError(
                f"the group {group} has the name of a class outside it", hint=f"--dissolve {group}={group},…"
            )
        table[ids] = ids[0]
        background = all(classes[i].background for i in ids)
        entries[ids[0]] = MapClass(ids[0], group, classes[ids[0]].color, background)
    # Names of swallowed classes are free again only after all groups are known.
    swallowed = {i for i in grouped if table[i] != i}
    names = {entry.name for entry in entries if entry.id not in swallowed}
    for i in swallowed:
        entries[i] = MapClass(i, _unused(entries[i].name, names), entries[i].color)
        names.add(entries[i].name)
    dissolved = ClassTable(tuple(entries))
    regularized = {_id_of(dissolved, name, "--regularize"): name for name in rules.regularize}
    present = set(table[: len(classes)].tolist())
    kept = {_id_of(dissolved, name, "--keep") for name in rules.keep}
    kept = kept or {i for i in present if not dissolved[i].background} or present
    groups = {int(table[i]): group for i, group in grouped.items()}
    for option, named in (("--regularize", regularized), ("--dissolve", groups)):
        for i, name in named.items():
            if i not in kept:
                raise ConfigError(
                    f"{option} has no effect on {name}, which becomes no polygons", hint=f"add --keep {quoted(name)}"
                )
    left_out = min(present - kept, default=None)
    if left_out is not None:
        table[: len(classes)][~np.isin(table[: len(classes)], list(kept))] = left_out
    return ClassRules(table, dissolved, tuple(sorted(regularized)), left_out)


def _id_of(classes: ClassTable, name: str, option: str) -> int:
    try:
        return classes.id_of(name)
    except KeyError:
        near = difflib.get_close_matches(name, classes.names, n=1)
        hint = f"{option} {near[0]}" if near else f"the classes are: {', '.join(classes.names)}"
        raise ConfigError(f"{option} names the class {name}, which the map does not have", hint=hint) from None


def _unused(name: str, names: set[str]) -> str:
    while name in names:
        name += " (dissolved)"
    return name
