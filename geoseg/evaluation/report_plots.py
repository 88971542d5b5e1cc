"""Plots of the report as SVG inside the page, in the page's colours, light or dark."""

import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from geoseg.arrays import FloatArray
from geoseg.classes import MapClass, format_color
from geoseg.evaluation.result import Calibration
from geoseg.network.metrics import ratio

_STYLE: Any = {"svg.fonttype": "none", "font.family": "DejaVu Sans", "font.size": 13, "axes.axisbelow": True}
_WIDTH, _ROW, _AXIS = 420, 24, 34  # px: a plot, the row of a class, the labels of the axis
_LONGEST_NAME = 22  # characters; longer names are cut, their tooltips are not


@dataclass(frozen=True, slots=True, eq=False)
class Bars:
    """Bars of a plot, one per class."""

    classes: Sequence[MapClass]  # from top to bottom
    values: FloatArray  # lengths, (K,); NaN draws none
    shown: Sequence[str]  # text to the right of each bar
    tooltips: Sequence[str]  # each row as a sentence
    marks: FloatArray  # positions of marks across the bars, (K,); NaN for none
    margins: FloatArray | None = None  # half lengths of whiskers through the marks, (K,); None for strokes


def bar_plot(name: str, title: str, bars: Bars, *, end: float | None = None, line: float = math.nan) -> str:
    """An ``<svg>`` element of horizontal bars over an axis from 0 to ``end`` (None to fit).

    ``name`` is its id in the page, ``title`` its subject for screen readers, ``line`` the value of a line across all
    bars, such as their mean; NaN for none.
    """
    values, marks, margins = bars.values, bars.marks, bars.margins
    with matplotlib.rc_context(_STYLE):
        rows = np.arange(len(bars.classes))
        figure, (axes,) = _figure(len(rows) * _ROW + _AXIS, 1)
        axes.grid(axis="x", clip_on=False, gid="grid|")
        colors = [format_color(c.color) for c in bars.classes]
        for bar, tooltip in zip(axes.barh(rows, values, 0.5, color=colors, clip_on=False), bars.tooltips, strict=True):
            _mark(bar, "bar", tooltip)
        whiskers = None if margins is None else np.stack([np.minimum(margins, marks), margins])
        kind, size = ("|", 15) if margins is None else ("o", 5)
        for layer in ("halo", "stroke"):  # without a halo, a stroke on a bar of its own colour is lost
            drawn = axes.errorbar(marks, rows, xerr=whiskers, fmt=kind, markersize=size, capsize=4, clip_on=False)
            for artist in drawn.get_children():
                _mark(artist, layer)
        if not math.isnan(line):
            _mark(axes.axvline(line, clip_on=False), "mean")
        right = 8 * (max(map(len, bars.shown)) + 1)  # px: of the column of numbers
        place: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
        for y, text, tooltip in zip(rows, bars.shown, bars.tooltips, strict=True):
            _mark(axes.annotate(text, (1, y), (right, 0), ha="right", va="center_baseline", **place), "number", tooltip)
        names = [c.name if len(c.name) <= _LONGEST_NAME else c.name[: _LONGEST_NAME - 1] + "…" for c in bars.classes]
        axes.set_yticks(rows, [_printable(name) for name in names], parse_math=False)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.locator_params(axis="x", nbins=5)
        axes.xaxis.set_major_formatter("{x:,.10g}")
        axes.set_xlim(0, end)
        return _svg(figure, name, title)


def reliability_diagram(name: str, title: str, calibration: Calibration) -> str:
    """An ``<svg>`` element: accuracy of each bin over its confidence and the diagonal; below, shares of pixels."""
    count = calibration.count
    sure, right = 100 * ratio(calibration.confidence, count), 100 * ratio(calibration.correct, count)
    share = 100 * count / count.sum()
    places = 100 * (np.arange(len(count)) + 0.5) / len(count)
    with matplotlib.rc_context(_STYLE):
        figure, (above, below) = _figure(_WIDTH, 2, height_ratios=(4, 1), sharex=True)
        above.grid(clip_on=False, gid="grid|")
        for axes, heights, kind in ((above, right, "accuracy"), (below, share, "share")):
            for i in np.flatnonzero(count):
                (bar,) = axes.bar(places[i], heights[i], 100 / len(count), clip_on=False)
                tooltip = f"confidence {sure[i]:.1f} %, right {right[i]:.1f} %, {count[i]:,} px ({share[i]:.1f} %)"
                _mark(bar, kind, tooltip)
        _mark(above.plot([0, 100], [0, 100], clip_on=False)[0], "diagonal")
        _mark(above.plot(sure, right, "o", markersize=6, clip_on=False)[0], "dot")
        above.set(xlim=(0, 100), ylim=(0, 100), ylabel="right, %")
        below.set(xlabel="confidence, %", ylabel="pixels", yticks=[])
        return _svg(figure, name, title)


def _figure(height: float, rows: int, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure as wide as all others, and its axes without frames and ticks."""
    figure = Figure(figsize=(_WIDTH / 72, height / 72), layout="constrained")
    axes = list(figure.subplots(rows, squeeze=False, **options).flat)
    for one in axes:
        one.set_frame_on(False)
        one.tick_params(length=0)
    return figure, axes


def _mark(artist: Artist, kind: str, tooltip: str = "") -> None:
    """Give an artist a class for the style sheet and a tooltip, both in its id, which `_svg` reads from the SVG."""
    artist.set_gid(f"{kind}|{_printable(tooltip)}")


def _printable(text: str) -> str:
    """The text without characters that XML does not allow."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _svg(figure: Figure, name: str, title: str) -> str:
    file = io.BytesIO()
    # No date and no random ids: the same plot gives the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the reader's browser draws the text, and has more fonts
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    root = ElementTree.fromstring(file.getvalue())
    for element in list(root.iter()):
        element.tag = element.tag.rpartition("}")[2]  # HTML names SVG's elements without a namespace
        for key in [key for key in element.attrib if "}" in key]:
            element.set(key.rpartition("}")[2], element.attrib.pop(key))
        if element.tag == "g":
            kind, marked, tooltip = element.attrib.pop("id", "").partition("|")
            if marked:
                element.set("class", kind)
            for drawn in element.iter() if marked and kind not in ("bar", "number") else ():
                drawn.attrib.pop("style", None)  # the page's style sheet has the colours, light and dark
            if tooltip:
                _put_title(element, tooltip)
    for element in root.findall("defs"):
        root.remove(element)  # a style for all elements, which would be the page's, too
    _put_title(root, title).set("id", f"{name}-title")
    root.attrib = {"id": name, "role": "img", "aria-labelledby": f"{name}-title", "viewBox": root.attrib["viewBox"]}
    return ElementTree.tostring(root, encoding="unicode")


def _put_title(element: ElementTree.Element, text: str) -> ElementTree.Element:
    title = ElementTree.Element("title")
    title.text = text
    element.insert(0, title)
    return title
