"""HTML as values: tags that escape what they hold, numbers as they are shown, tables."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable

from geoseg.classes import MapClass, format_color

NOTHING = "–"
"""Shown where a number does not exist: a class in neither truth nor map has no IoU."""

_VOID = frozenset({"br", "col", "img", "link", "meta"})


class Markup(str):
    """Text that is HTML already; every other string is escaped where `tag` takes it in."""

    __slots__ = ()


Content = str | None | Iterable["Content"]
Number = int | float


def tag(name: str, *content: Content, **attributes: object) -> Markup:
    """One element: ``tag("td", "a < b", class_="n")`` is ``<td class="n">a &lt; b</td>``.

    Args:
        name: Of the element, HTML or SVG.
        content: Strings, elements, or iterables of them, one after another; None is left out.
        attributes: An underscore stands for a hyphen, one at the end for nothing (``class_``). None and False are left
            out, True gives the bare name.
    """
    words = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            words.append(key)
        elif value is not None and value is not False:
            words.append(f'{key}="{html.escape(str(value))}"')
    end = "" if name in _VOID else f"</{name}>"
    return Markup(f"<{' '.join(words)}>{join(*content)}{end}")


def join(*content: Content) -> Markup:
    """Contents one after another without an element around them."""
    return Markup("".join(_text(c) for c in content))


def _text(content: Content) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content if isinstance(content, Markup) else html.escape(content)
    return join(*content)


def percent(share: Number, decimals: int = 1) -> Markup:
    """A share of [0, 1] in per cent, without the sign; the whole number stands in ``<data value>``."""
    return _data(share, f"{100 * share:.{decimals}f}")


def count(number: Number) -> Markup:
    """A whole number with commas between the thousands."""
    return _data(int(number), f"{number:,.0f}")


def decimal(number: Number, decimals: int, *, sign: bool = False) -> Markup:
    """A number with ``decimals`` places and commas between the thousands; with ``sign``, also that of the positive."""
    return _data(number, f"{number:{'+' if sign else ''},.{decimals}f}".replace("-", "−"))


def _data(number: Number, shown: str) -> Markup:
    if not math.isfinite(number):
        return Markup(NOTHING)
    exact = number if isinstance(number, int) else float(number)
    return tag("data", shown, value=repr(exact))


def swatch(c: MapClass) -> Markup:
    """A small square in the colour of a class."""
    return color_square(format_color(c.color))


def color_square(color: str) -> Markup:
    """A small square in a CSS colour."""
    return tag("span", class_="swatch", style=f"--c:{color}", aria_hidden="true")


def named(c: MapClass) -> Markup:
    """A class's colour and name."""
    return join(swatch(c), c.name)


def head(*content: Content, **attributes: object) -> Markup:
    """Head of a column."""
    return tag("th", *content, **{"scope": "col", **attributes})


def upright(c: MapClass) -> Markup:
    """Head of a narrow column: a class's colour and name, from bottom to top."""
    return head(tag("span", swatch(c), c.name, title=c.name), class_="upright")


def row_head(name: Content) -> Markup:
    """Head of a row; a long name takes several lines."""
    return tag("th", tag("span", name, class_="name"), scope="row")


def row(name: Content, numbers: Iterable[Content]) -> Markup:
    """A row of a table: its head, and a cell of each number."""
    return tag("tr", row_head(name), (tag("td", number) for number in numbers))


def table(
    name: str,
    caption: Content,
    heads: Iterable[Content],
    rows: Iterable[Content],
    foot: Iterable[Content] = (),
    *,
    class_: str | None = None,
) -> Markup:
    """A table that scrolls sideways by itself where the page is narrower.

    Args:
        name: Its id.
        caption: What the numbers are.
        heads: Rows of its head, the heads of single columns last.
        rows: Its rows.
        foot: Rows below, for means and totals.
        class_: For the style and for sorting ("sortable").
    """
    foot = list(foot)
    inner = tag(
        "table",
        tag("caption", tag("span", caption), id=f"{name}-caption"),
        tag("thead", heads),
        tag("tbody", rows),
        tag("tfoot", foot) if foot else None,
        id=name,
        class_=class_,
    )
    # What scrolls must be reachable by keyboard, and then needs a name.
    return tag("div", inner, class_="scroll", role="region", tabindex=0, aria_labelledby=f"{name}-caption")


def section(name: str, title: str, *content: Content) -> Markup:
    """A part of the page under its heading; ``name`` is its id."""
    return tag("section", tag("h2", title, id=f"{name}-title"), *content, id=name, aria_labelledby=f"{name}-title")


def note(*content: Content) -> Markup:
    """A sentence on how to read what follows."""
    return tag("p", *content, class_="note")
