"""A configuration from its YAML file, with ``key=value`` overrides, and back into one.

Paths in the file are relative to its folder (scenes and labels to ``data.root`` if given, those in a catalogue to the
catalogue's folder); ``data.root`` and ``output`` on the command line are relative to the working directory. Patterns,
catalogues and names of class tables are expanded, so that the configuration saved with a run lists its scenes and
classes.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from geoseg.class_tables import KNOWN
from geoseg.classes import class_entries
from geoseg.config.scenes import expand_scenes
from geoseg.config.settings import TrainConfig
from geoseg.contract import shipped_models
from geoseg.errors import ConfigError, reason
from geoseg.options import AnyPath
from geoseg.words import nearest


def load_config(path: AnyPath, overrides: Sequence[str] = ()) -> TrainConfig:
    """The configuration in a YAML file, with overrides: ``train.iterations=500``, ``data.root=/mnt/orthos``.

    Raises:
        ConfigError: No such file, invalid YAML, an unknown key (the nearest valid one is named), an invalid value, or
            a list of scenes that cannot be expanded (see `geoseg.config.scenes`).
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        raw = _yaml(text)
    except FileNotFoundError as error:
        raise ConfigError(f"no such configuration: {path}", hint="examples lie in the folder configs/") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read: {reason(error)}", hint="a configuration is a text file in UTF-8"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {_in_one_line(error)}", hint=_yaml_hint(error, text)) from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds no keys", hint="examples lie in the folder configs/")
    folder = path.parent.resolve()
    _resolve_paths(raw, folder)
    for override in overrides:
        _override(raw, override)
    _resolve_paths(raw, Path.cwd())  # those of overrides; others are absolute by now
    if isinstance(data := raw.get("data"), dict):
        expand_scenes(data, Path(data["root"]) if isinstance(data.get("root"), str) else folder)
    _expand_classes(raw, str(path))
    return parse_config(raw, source=str(path))


def parse_config(values: Mapping[str, Any], *, source: str) -> TrainConfig:
    """The configuration of nested values; ``source`` is named in errors."""
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise _explain(error, source) from error


def save_config(config: TrainConfig, path: Path) -> None:
    """Write the resolved configuration as YAML; `load_config` gives an equal one back."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True), "utf-8")


def _resolve_paths(values: dict[str, Any], folder: Path) -> None:
    """Make ``output``, ``data.root`` and ``model.start_from`` absolute, relative to a folder."""
    model = values.get("model")
    is_shipped = isinstance(model, dict) and model.get("start_from") in shipped_models()
    for table, key in (values, "output"), (values.get("data"), "root"), (None if is_shipped else model, "start_from"):
        if isinstance(table, dict) and isinstance(table.get(key), str):
            table[key] = str(folder / Path(table[key]).expanduser())


def _expand_classes(values: dict[str, Any], source: str) -> None:
    """Replace the name of a class table, as in ``classes: iSAID``, by its entries."""
    name = values.get("classes")
    if not isinstance(name, str):
        return
    table = next((table for known, table in KNOWN.items() if known.casefold() == name.casefold()), None)
    if table is None:
        raise ConfigError(
            f"{source}: there is no class table {name!r}", hint=f"list the classes, or use one of {', '.join(KNOWN)}"
        )
    values["classes"] = class_entries(table)


def _override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(
            f"override {override!r} is not of the form key=value", hint="for example: train.iterations=500"
        )
    *parents, last = key.split(".")
    target: Any = values
    for parent in parents:
        target = target.setdefault(parent, {}) if isinstance(target, dict) else None
    if not isinstance(target, dict):
        raise ConfigError(f"override {override!r}: {'.'.join(parents)} holds no keys")
    try:
        target[last] = _yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"override {override!r}: the value is not valid YAML: {_in_one_line(error)}",
            hint=_yaml_hint(error),
        ) from error


_TYPE = re.compile(r"(str|float)$|(literal|tuple|dict)\[")
"""What pydantic inserts between keys if a setting has several types."""


class _Loader(yaml.SafeLoader):
    """Refuses duplicate keys, of which PyYAML silently takes the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"duplicate key {key.value}", problem_mark=key.start_mark)
                seen.add(key.value)
        return node


def _yaml(text: str) -> Any:
    """The values in a YAML text; raises a YAMLError."""
    try:
        return yaml.load(text, Loader=_Loader)
    except ValueError as error:  # 2024-02-30 looks like a date but is none
        raise yaml.YAMLError(f"{error} (put text that looks like a date into quotes)") from error


def _in_one_line(error: yaml.YAMLError) -> str:
    """Where the YAML breaks and why, without the excerpt PyYAML draws."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None:
        return " ".join(str(error).split())
    return f"{problem} in line {mark.line + 1}, column {mark.column + 1}"


_YAML_HINTS = (
    (r"character '\\t'", "indent with spaces, not with tabs"),
    (r"mapping values are not allowed", "quote values that contain a colon, and check that the line before has one"),
    (r"while parsing a flow|expected ',' or|expected the node", "close every bracket, with commas between the entries"),
    (r"found unexpected end of stream", "close the quotes"),
    (r"could not find expected ':'", "write a colon and a space between a key and its value"),
    (r"expected <block end>", "give all keys of a table the same indentation"),
    (r"character '[%@`]'|alias|tag|escape|date", "put the value into single quotes"),
    (r"duplicate key", "remove one of them"),
    (r"another document", "keep one document: remove lines of ---"),
    (r"special characters are not allowed", "save it as plain text in UTF-8"),
)
"""Errors of PyYAML and their fixes."""


def _yaml_hint(error: yaml.YAMLError, text: str = "") -> str:
    """The fix for invalid YAML, and the line of the file where the error is."""
    mark = getattr(error, "problem_mark", None)
    words = next((hint for found, hint in _YAML_HINTS if re.search(found, str(error))), "compare it with configs/")
    lines = text.splitlines()
    if mark is None or mark.line >= len(lines):
        return words
    return f"{words}; line {mark.line + 1} is {lines[mark.line].strip()!r:.80}"


def _explain(error: ValidationError, source: str) -> ConfigError:
    """The first problem, with the nearest valid key where a key is unknown."""
    errors = error.errors()
    start = _location(errors[0])
    # If a setting has several types, the error furthest inside says most.
    same = [e for e in errors if _location(e)[: len(start)] == start]
    location = max((_location(e) for e in same), key=len)
    same = [e for e in same if _location(e) == location]
    first = same[0]
    where = ".".join(str(part) for part in location)
    if first["type"] == "extra_forbidden":
        valid = _keys_at(location[:-1])
        near = nearest(str(location[-1]), valid, cutoff=0.5)
        hint = f"did you mean {near}?" if near else f"valid keys there: {', '.join(valid)}"
        return ConfigError(f"{source} has an unknown key {where}", hint=hint)
    if first["type"] == "missing":
        return ConfigError(f"{source} lacks {where}", hint=f"add it, or give {where}=… on the command line")
    expected = [e["msg"].removeprefix("Input should be ") for e in same[1:]]
    message = " or ".join([first["msg"].removeprefix("Value error, "), *expected])
    # A rule across several keys would show the whole table.
    found = "" if isinstance(first["input"], dict) else f", found {first['input']!r:.80}"
    rule = first.get("ctx", {}).get("error")
    return ConfigError(
        f"{source}: {where + ': ' if where else ''}{message}{found}",
        hint=rule.hint if isinstance(rule, ConfigError) else None,
    )


def _location(error: Mapping[str, Any]) -> tuple[str | int, ...]:
    """Keys that lead to an error, without the names of the types tried."""
    return tuple(part for part in error["loc"] if not _TYPE.match(str(part)))


def _keys_at(location: Sequence[Any]) -> list[str]:
    """Names of the fields at a place of the tree, sorted."""
    model: type[BaseModel] = TrainConfig
    for part in location:
        if not isinstance(part, int):
            annotation = model.model_fields[part].annotation
            candidates = [annotation, *getattr(annotation, "__args__", ())]
            model = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return sorted(model.model_fields)
