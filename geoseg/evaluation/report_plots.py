"""Plots of the report as inline SVG: bars of classes, and the reliability diagram."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from geoseg.classes import MapClass, format_color
from geoseg.evaluation.report_html import Markup, join, tag
from geoseg.evaluation.result import Calibration

_ROW, _BAR, _AXIS = 22, 12, 26  # px: a class, its bar, the labels below all
_LONGEST_NAME = 22  # characters; longer ones are cut, their tooltip is not


@dataclass(frozen=True, slots=True)
class Bar:
    """One class of a bar plot, in the units of the axis.

    Attributes:
        of: The class.
        value: Length of the bar; NaN draws none.
        shown: The value in words, right of the plot.
        told: The row in a sentence, for the tooltip.
        mark: Where a mark stands across the bar; NaN for none.
        span: The ends of a whisker through the mark; None for none.
    """

    of: MapClass
    value: float
    shown: str
    told: str
    mark: float = math.nan
    span: tuple[float, float] | None = None


def bar_plot(name: str, title: str, bars: Sequence[Bar], ticks: Sequence[float], *, line: float = math.nan) -> Markup:
    """Lying bars, one a class, over an axis that begins at 0.

    Lengths are shares of the width, so the plot is as wide as its column while its text keeps its size.

    Args:
        name: Id of the plot.
        title: What it shows, for those who do not see it.
        bars: From top to bottom.
        ticks: Places of the axis, the last is its end.
        line: Where a line crosses all bars, such as their mean; NaN for none.
    """
    below = len(bars) * _ROW + 4

    def x(value: float) -> str:
        return f"{100 * min(max(value / ticks[-1], 0), 1):.2f}%"

    def rule(value: float, kind: str) -> Markup:
        return tag("line", x1=x(value), x2=x(value), y1=0, y2=below, class_=kind)

    decimals = max(0, -math.floor(math.log10(ticks[1] - ticks[0])))
    axis = [
        join(
            rule(tick, "grid"),
            tag(
                "text",
                f"{tick:,.{decimals}f}",
                x=x(tick),
                y=below + 16,
                text_anchor="middle",
                class_="tick minor" if i % 2 else "tick",
            ),
        )
        for i, tick in enumerate(ticks)
    ]
    rows = [_bar_row(bar, i * _ROW + _ROW / 2, x) for i, bar in enumerate(bars)]
    names = min(max((len(bar.of.name) for bar in bars), default=0), _LONGEST_NAME)
    numbers = max((len(bar.shown) for bar in bars), default=0)
    return tag(
        "svg",
        tag("title", title, id=f"{name}-title"),
        axis,
        rows,
        None if math.isnan(line) else rule(line, "mean"),
        id=name,
        class_="bars",
        role="img",
        aria_labelledby=f"{name}-title",
        height=below + _AXIS,
        style=f"--names:{names}ch;--numbers:{numbers}ch",
    )


def _bar_row(bar: Bar, y: float, x: Callable[[float], str]) -> Markup:
    name = bar.of.name if len(bar.of.name) <= _LONGEST_NAME else bar.of.name[: _LONGEST_NAME - 1] + "…"
    drawn: list[Markup] = []
    if not math.isnan(bar.value):
        fill = format_color(bar.of.color)
        drawn.append(tag("rect", x=0, y=y - _BAR / 2, width=x(bar.value), height=_BAR, fill=fill, class_="bar"))
    if not math.isnan(bar.mark):
        low, high = bar.span or (bar.mark, bar.mark)
        reach = 4 if bar.span else _BAR / 2 + 3
        strokes = [(v, v, y - reach, y + reach) for v in (low, high)] + [(low, high, y, y)]
        # A halo first: a class may have the colour of the stroke.
        for kind in ("halo", "stroke"):
            drawn += [tag("line", x1=x(a), x2=x(b), y1=c, y2=d, class_=kind) for a, b, c, d in strokes]
        if bar.span:
            drawn.append(tag("circle", cx=x(bar.mark), cy=y, r=3.5, class_="dot"))
    return tag(
        "g",
        tag("title", bar.told),
        tag("text", name, x=0, dx=-8, y=y, dy="0.35em", text_anchor="end"),
        drawn,
        tag("text", bar.shown, x="100%", y=y, dy="0.35em", text_anchor="end", class_="number"),
    )


def ticks_to(largest: float, most: int = 5) -> list[float]:
    """Round places from 0 to the first that is not below ``largest``, at most ``most`` steps of 1, 2 or 5 × 10ⁿ."""
    if not largest > 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(largest / most))
    step = next(power * m for m in (1, 2, 5, 10) if power * m * most >= largest * (1 - 1e-9))
    steps = math.ceil(largest / step - 1e-9)
    return [step * i for i in range(max(steps, 1) + 1)]


_SIDE, _LEFT, _TOP, _COUNTS = 260, 44, 8, 56  # px: the diagram, what lies beside it, the histogram below


def reliability_diagram(name: str, calibration: Calibration) -> Markup:
    """Accuracy of each bin over its confidence, beside the diagonal of a map that is as right as it is sure.

    Below lies the share of the pixels in each bin.
    """
    bins = len(calibration.count)
    width = _SIDE / bins
    base, floor = _TOP + _SIDE, _TOP + _SIDE + 12 + _COUNTS
    share = calibration.count / max(int(calibration.count.sum()), 1)
    highest = max(float(share.max(initial=0)), 1e-12)
    drawn: list[Markup] = []
    points: list[Markup] = []
    for i in np.flatnonzero(calibration.count):
        accuracy = float(calibration.correct[i] / calibration.count[i])
        sure = float(calibration.confidence[i] / calibration.count[i])
        told = f"sure {sure:.1%}, right {accuracy:.1%}, {calibration.count[i]:,} px ({share[i]:.1%})"
        height, tall = _SIDE * accuracy, _COUNTS * float(share[i]) / highest
        rects = [
            _rect(_LEFT + i * width, base - height, width, height, "accuracy"),
            _rect(_LEFT + i * width, floor - tall, width, tall, "share"),
        ]
        drawn.append(tag("g", tag("title", told), rects))
        points.append(tag("circle", cx=_n(_LEFT + _SIDE * sure), cy=_n(base - height), r=3, class_="dot"))
    right = _LEFT + _SIDE
    axis: list[Markup] = []
    for tick in (0, 25, 50, 75, 100):
        x, y = _LEFT + _SIDE * tick / 100, base - _SIDE * tick / 100
        axis.append(tag("line", x1=_LEFT, x2=right, y1=_n(y), y2=_n(y), class_="grid"))
        axis.append(tag("text", str(tick), x=_LEFT - 6, y=_n(y), dy="0.35em", text_anchor="end", class_="tick"))
        axis.append(tag("text", str(tick), x=_n(x), y=floor + 16, text_anchor="middle", class_="tick"))
    middle = _TOP + _SIDE / 2
    words = [
        tag("text", "confidence, %", x=_LEFT + _SIDE / 2, y=floor + 34, text_anchor="middle"),
        tag("text", "right, %", x=12, y=middle, text_anchor="middle", transform=f"rotate(-90 12 {middle})"),
        tag("text", "pixels", x=_LEFT - 6, y=floor - _COUNTS / 2, dy="0.35em", text_anchor="end", class_="tick"),
    ]
    return tag(
        "svg",
        tag("title", "Share of pixels mapped right over the confidence of the map", id=f"{name}-title"),
        axis,
        drawn,
        tag("line", x1=_LEFT, y1=base, x2=right, y2=_TOP, class_="diagonal"),
        tag("line", x1=_LEFT, y1=floor, x2=right, y2=floor, class_="grid"),
        points,
        words,
        id=name,
        class_="reliability",
        role="img",
        aria_labelledby=f"{name}-title",
        viewBox=f"0 0 {right + 16} {floor + 40}",
    )


def _rect(x: float, y: float, width: float, height: float, kind: str) -> Markup:
    return tag("rect", x=_n(x), y=_n(y), width=_n(width), height=_n(height), class_=kind)


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
