"""Class tables from files, those of known data sets, and colours for classes that have none."""

import colorsys
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from geoseg.classes import ClassTable, Color, parse_color
from geoseg.errors import ConfigError, in_one_line, reason
from geoseg.options import AnyPath

HINT = "a list of names, or of entries like {name: roof, color: '#cc3311'}, alone or under the key classes"

_BACKGROUND = {"background"}  # what lies around the objects of iSAID, Pascal VOC and Pascal Context


def distinct_colors(count: int) -> list[Color]:
    """Colours that differ from each other: hues in steps of the golden ratio, light and dark in turn."""
    colors: dict[Color, None] = {}
    for step in itertools.count():
        hue, saturation, value = (0.05 + step * 0.618034) % 1, (0.75, 0.5, 0.9)[step % 3], (0.85, 0.95, 0.6)[step % 3]
        red, green, blue = (round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value))
        colors[red, green, blue] = None
        if len(colors) == count:
            break
    return list(colors)


def numbered_classes(count: int) -> ClassTable:
    """Classes called ``class_0``, ``class_1``, … with distinct colours."""
    return ClassTable.from_names([f"class_{i}" for i in range(count)], distinct_colors(count))


def _known(table: dict[str, str] | list[str]) -> ClassTable:
    """Names with or without colours as a table."""
    colors = table.values() if isinstance(table, dict) else distinct_colors(len(table))
    return ClassTable.from_names(table, colors, _BACKGROUND)


KNOWN = {
    name: _known(table)
    for name, table in json.loads(Path(__file__).with_name("known_classes.json").read_text(encoding="utf-8")).items()
}
"""Data sets that SegNeXt was published for, in mmsegmentation's order; the first two in its colours too."""

ISAID_LEFT_OUT = frozenset({"P1527", "P1530"})
"""Pictures of iSAID that JSeg passes over: the published networks were trained and tested without them."""


def read_class_table(path: AnyPath) -> ClassTable:
    """The class table in a YAML or JSON file.

    The file has a list of names, or of entries with ``name``, ``color`` (``#rrggbb`` or three numbers), ``id`` and
    ``background``, of which the name alone is needed; alone or under the key ``classes``, as in a training's
    configuration. A class without a colour gets one. A `ConfigError` for no such file, another form, ids that are not
    0 … K−1, or a name twice.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except FileNotFoundError as error:
        raise ConfigError(f"no such file of classes: {path}", hint=HINT) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {reason(error)}", hint=HINT) from error
    except (UnicodeDecodeError, json.JSONDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not valid YAML or JSON: {in_one_line(error, 120)}", hint=HINT) from error
    entries = content.get("classes") if isinstance(content, Mapping) else content
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{path} lists no classes", hint=HINT)
    rows = [_Row(path, place, entry) for place, entry in enumerate(entries)]
    ids = [row.id for row in rows]
    if sorted(ids) != list(range(len(ids))):
        raise ConfigError(f"{path}: class ids must be 0 … {len(ids) - 1}, found {ids!s:.80}", hint=HINT)
    rows.sort(key=lambda row: row.id)
    spare, background = distinct_colors(len(rows)), {row.name for row in rows if row.background}
    try:
        return ClassTable.from_names([r.name for r in rows], [r.color or spare[r.id] for r in rows], background)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}", hint=HINT) from error


class _Row:
    """One entry of a file, checked."""

    def __init__(self, path: Path, place: int, entry: Any) -> None:
        values = {"name": entry} if isinstance(entry, str) else entry
        if not isinstance(values, Mapping) or not isinstance(values.get("name"), str):
            raise ConfigError(f"{path}: class {place} has no name, found {entry!r:.80}", hint=HINT)
        self.name: str = values["name"]
        self.id: Any = values.get("id", place)
        self.color, self.background = values.get("color"), values.get("background", False)
        wrong = ""
        if unknown := sorted(str(key) for key in values.keys() - {"id", "name", "color", "background"}):
            wrong = f"has an unknown key {unknown[0]}"
        elif not isinstance(self.id, int):
            wrong = f"has the id {self.id!r:.40}, which is not a number"
        elif not isinstance(self.background, bool):
            wrong = f"has the background {self.background!r:.40}, which is neither true nor false"
        elif isinstance(self.color, list) and len(self.color) == 3 and all(isinstance(c, int) for c in self.color):
            self.color = tuple(self.color)
        elif isinstance(self.color, str):
            try:
                parse_color(self.color)
            except ValueError as error:
                wrong = f"has an invalid color: {error}"
        elif self.color is not None:
            wrong = f"has the color {self.color!r:.40}, which is neither #rrggbb nor three numbers"
        if wrong:
            raise ConfigError(f"{path}: class {self.name} {wrong}", hint=HINT)
