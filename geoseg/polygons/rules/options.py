"""The rules for polygons, worked out for one map. Imports no numba."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from geoseg.arrays import ByteArray
from geoseg.classes import NODATA, ClassTable, MapClass
from geoseg.errors import ConfigError, quoted
from geoseg.options import DEFAULT_RULES, PolygonRules
from geoseg.words import nearest


@dataclass(frozen=True, slots=True)
class RegionRule:
    """What becomes of regions below a limit.

    ``merge``: a region below the limit goes to the neighbour with which it has the longest border. Within a cluster
    the smallest region goes first (of equal ones the first in raster order). Large regions of one value count as one
    neighbour, since the absorbed region joins them all. Of equal borders the larger neighbour wins: large ones before
    small ones, among large ones the lower value, among small ones the larger area, then the first in raster order.
    Areas and borders add up, and what then touches a neighbour of its own value is one with it, until none is small.
    A region that has nothing but nodata and the map's outside around it becomes nodata. Large regions never change;
    that an absorbed region may connect two of them has no influence on others.

    ``drop``: regions below the limit become nodata, or what is left out.

    ``fill``: a hole (interior ring) of a region goes to the region if its area, with everything in it, is below the
    limit; of holes within holes the outermost such one decides. Nodata is filled like any value, and has no holes;
    nor has what is left out.

    Attributes:
        action: One of these.
        limit: Area below which it is done; an area that equals it up to rounding is not below.
        left_out: Value whose regions become no polygons: what they surround is no hole to fill, and regions that are
            dropped become part of them. `NODATA` if all become polygons.
    """

    action: Literal["merge", "drop", "fill"]
    limit: float
    left_out: int = NODATA


def region_rules(rules: PolygonRules, left_out: int | None = None) -> list[RegionRule]:
    """The rules on regions in the order in which they act, given the value of pixels that become no polygons."""
    value = NODATA if left_out is None else left_out
    holes = rules.fill_holes_m2 if left_out is None else max(rules.fill_holes_m2, rules.min_area_m2)
    found = [RegionRule("fill", holes, value), RegionRule(rules.small, rules.min_area_m2, value)]
    return [rule for rule in found if rule.limit > 0]


@dataclass(frozen=True, slots=True, eq=False)
class ClassRules:
    """`PolygonRules` that speak of classes, worked out for one class table.

    Attributes:
        table: (256,) uint8: the value that each value of the map becomes; 255 → 255.
        classes: The class table after dissolving. A group has the id and the colour of its first class; the ids of its
            other classes do not occur any more.
        regularized: Ids of the classes to regularize.
        separated: Ids of the classes whose objects are told apart.
        left_out: Id that all classes have which are to become no polygons; None where all become some.
    """

    table: ByteArray
    classes: ClassTable
    regularized: tuple[int, ...]
    separated: tuple[int, ...]
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
        separate = any(classes[i].separate for i in ids)
        entries[ids[0]] = MapClass(ids[0], group, classes[ids[0]].color, background, separate)
    # Names of swallowed classes are free again only after all groups are known.
    swallowed = {i for i in grouped if table[i] != i}
    names = {entry.name for entry in entries if entry.id not in swallowed}
    for i in swallowed:
        name = entries[i].name
        while name in names:
            name += " (dissolved)"
        entries[i] = MapClass(i, name, entries[i].color)
        names.add(name)
    dissolved = ClassTable(tuple(entries))
    regularized = {_id_of(dissolved, name, "--regularize"): name for name in rules.regularize}
    separated = {_id_of(dissolved, name, "--separate"): name for name in rules.separate}
    able = [c.name for c in dissolved if c.separate]
    for i, name in separated.items():
        if not dissolved[i].separate:
            raise ConfigError(
                f"--separate {name}: the model was not trained to see where two objects of that class touch",
                hint=f"--separate {quoted(able[0])}" if able else "train with separate: true in the entry of the class",
            )
    present = set(table[: len(classes)].tolist())
    kept = {_id_of(dissolved, name, "--keep") for name in rules.keep}
    kept = kept or {i for i in present if not dissolved[i].background} or present
    groups = {int(table[i]): group for i, group in grouped.items()}
    for option, named in (("--regularize", regularized), ("--separate", separated), ("--dissolve", groups)):
        for i, name in named.items():
            if i not in kept:
                raise ConfigError(
                    f"{option} has no effect on {name}, which becomes no polygons", hint=f"add --keep {quoted(name)}"
                )
    left_out = min(present - kept, default=None)
    if left_out is not None:
        table[: len(classes)][~np.isin(table[: len(classes)], list(kept))] = left_out
    return ClassRules(table, dissolved, tuple(sorted(regularized)), tuple(sorted(separated)), left_out)


def _id_of(classes: ClassTable, name: str, option: str) -> int:
    try:
        return classes.id_of(name)
    except KeyError:
        near = nearest(name, classes.names)
        hint = f"{option} {near}" if near else f"the classes are: {', '.join(classes.names)}"
        raise ConfigError(f"{option} names the class {name}, which the map does not have", hint=hint) from None


def check_without_polygons(rules: PolygonRules) -> None:
    """Refuse rules for polygons where none are written."""
    changed = [f.name for f in fields(rules) if getattr(rules, f.name) != getattr(DEFAULT_RULES, f.name)]
    if changed:
        raise ConfigError(f"no effect without polygons: {', '.join(changed)}", hint="write polygons: -o FILE.gpkg")
