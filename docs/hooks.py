"""Hooks of the docs site: pages written from the program itself, and no page that loads from elsewhere."""

from __future__ import annotations

import html
import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any

import griffe
import typer
from pydantic import BaseModel

from geoseg.cli import app
from geoseg.config import TrainConfig

PLACES = {
    "<!-- every verb with its options -->": lambda: _verbs(),
    "<!-- every key with its default -->": lambda: _keys(TrainConfig),
}
LOADED = re.compile(
    r"""<(?:script|img|iframe|source|link(?![^>]*rel="?canonical))[^>]*?(?:src|href)=["']?(?:https?:)?//"""
)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Write the verbs of the command line and the keys of a configuration where a page asks for them."""
    for place, lines in PLACES.items():
        if place in markdown:
            markdown = markdown.replace(place, "\n".join(lines()))
    return markdown


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse a page that loads anything from another server."""
    if outside := LOADED.search(output):
        raise RuntimeError(f"{page.url} loads from outside: {outside[0]}")
    return output


def _verbs() -> Iterator[str]:
    program: Any = typer.main.get_command(app)
    yield from _command(program, "geoseg", heading="##")
    for name, command in program.commands.items():
        yield from _command(command, f"geoseg {name}", heading="##")
        for part, inner in getattr(command, "commands", {}).items():
            yield from _command(inner, f"geoseg {name} {part}", heading="###")


def _command(command: Any, name: str, *, heading: str) -> Iterator[str]:
    context = command.make_context(name, [], resilient_parsing=True)
    usage = " ".join(command.collect_usage_pieces(context))
    yield from (
        f"{heading} {name} {{ data-toc-label='{name.removeprefix('geoseg ')}' }}",
        "",
        f"    {name} {usage}",
        "",
    )
    yield from (html.escape(command.help or "", quote=False), "")
    panels: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(context):
        if record := parameter.get_help_record(context):
            default = "Options" if parameter.opts[0].startswith("-") else "Arguments"
            panels.setdefault(getattr(parameter, "rich_help_panel", None) or default, []).append(record)
    for panel, records in panels.items():
        yield from (f"| {panel} | |", "|---|---|")
        yield from (f"| `{_cell(left)}` | {html.escape(_cell(right), quote=False)} |" for left, right in records)
        yield ""


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def _keys(model: type[BaseModel]) -> Iterator[str]:
    """A table of keys for every model inside one, under the places where it is used."""
    places: dict[type[BaseModel], list[str]] = {}
    _find_models(model, "", places)
    for nested, keys in places.items():
        documented: Any = griffe.Docstring(inspect.getdoc(nested) or "").parse("google", warnings=False)
        meanings = {a.name: a.description for part in documented if part.kind.value == "attributes" for a in part.value}
        yield from (
            "## " + ", ".join(keys),
            "",
            documented[0].value,
            "",
            "| key | default | values | meaning |",
            "|---|---|---|---|",
        )
        for name, field in nested.model_fields.items():
            default = "required" if field.is_required() else f"`{_value(field.get_default(call_default_factory=True))}`"
            default = "" if _models(field.annotation) else default
            meaning = _cell(meanings.get(name, "")).replace("``", "`").replace("None ", "`null` ")
            yield f"| `{name}` | {default} | {_cell(_kind(field.annotation))} | {meaning} |"
        yield ""


def _find_models(model: type[BaseModel], key: str, places: dict[type[BaseModel], list[str]]) -> None:
    for name, field in model.model_fields.items():
        for nested in _models(field.annotation):
            places.setdefault(nested, []).append(f"{key}{name}")
            if len(places[nested]) == 1:
                _find_models(nested, f"{key}{name}.", places)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    return list(dict.fromkeys(m for part in typing.get_args(annotation) for m in _models(part)))


def _kind(annotation: Any) -> str:
    """A type in words of YAML."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin is typing.Annotated:
        return _kind(parts[0])
    if origin in (tuple, list):
        return "list" if _models(annotation) else f"list of {_kind(parts[0]).replace('text', 'name')}s"
    if parts and origin is not dict:
        return " or ".join(dict.fromkeys(_kind(part) for part in parts if part is not type(None)))
    words = {int: "integer", float: "number", str: "text", bool: "`true`, `false`"}
    return words.get(annotation) or ("path" if "Path" in getattr(annotation, "__name__", "") else "mapping")


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(list(value)).replace("'", "") if isinstance(value, tuple) else str(value)
