"""Hooks of the docs site: the command line's page from the program itself, and no page that loads from elsewhere."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Any

import typer

from geoseg.cli import app

PLACE = "<!-- every verb with its options -->"
LOADED = re.compile(
    r"""<(?:script|img|iframe|source|link(?![^>]*rel="?canonical))[^>]*?(?:src|href)=["']?(?:https?:)?//"""
)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Write the verbs where a page asks for them."""
    return markdown.replace(PLACE, "\n".join(_verbs())) if PLACE in markdown else markdown


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
