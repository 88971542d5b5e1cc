"""An evaluation as one HTML file that needs nothing beside it: numbers, tables, plots, pictures."""

from __future__ import annotations

import base64
import hashlib
import math
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from geoseg.classes import ClassTable
from geoseg.evaluation.report_html import NOTHING, Content, Markup, join, note, percent, section, tag
from geoseg.evaluation.report_pictures import legend, window_figures
from geoseg.evaluation.report_plots import Bar, bar_plot, reliability_diagram, ticks_to
from geoseg.evaluation.report_tables import (
    area_decimals,
    area_table,
    class_table,
    confidence_table,
    confusion_table,
    scene_table,
)
from geoseg.evaluation.result import Calibration, Evaluation, SceneResult
from geoseg.outputs import atomic_output

_LISTED = 6  # entries of a list among the facts; a data set may have hundreds of scenes
_NOT_MEASURED = "Not measured by this protocol."


def write_report(evaluation: Evaluation, path: Path) -> None:
    """Write an evaluation as one self-contained HTML file.

    The file asks for nothing else: style, script, plots and pictures are inside. The same evaluation gives the same
    bytes. Measures that are None are left out or said not to be measured, NaN is shown as an en dash.

    Args:
        evaluation: What to show.
        path: The file; what is there is replaced.

    Raises:
        OutputError: The folder is missing or not writable, or the disk is full.
    """
    page = report_page(evaluation)
    with atomic_output(path) as scratch:
        # Names of files need not be text: what is none in UTF-8 is shown as an escape.
        scratch.write_bytes(page.encode("utf-8", "backslashreplace"))


def report_page(evaluation: Evaluation) -> str:
    """The page of `write_report` as text."""
    style, script = _data("report.css"), _data("report.js")
    # No request leaves the page and no script runs in it but ours, whatever a name of a class or a scene holds.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    model = evaluation.facts.get("model")
    title = f"Evaluation of {_words(model)}" if model else "Evaluation"
    sections = _sections(evaluation)
    links = [tag("a", name, href=f"#{key}") for key, name, _ in sections]
    page = tag(
        "html",
        tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", http_equiv="Content-Security-Policy", content=policy),
            tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name_="color-scheme", content="light dark"),
            tag("title", title),
            tag("style", Markup(style)),
        ),
        tag(
            "body",
            tag(
                "header",
                tag("h1", title),
                _facts(evaluation.facts),
                tag("nav", links, aria_label="Sections"),
            ),
            tag("main", (section(key, name, content) for key, name, content in sections)),
            tag("script", Markup(script)),
        ),
        lang="en",
    )
    return f"<!DOCTYPE html>\n{page}\n"


def _data(name: str) -> str:
    return files("geoseg.evaluation").joinpath(name).read_text(encoding="utf-8")


def _sections(evaluation: Evaluation) -> list[tuple[str, str, Content]]:
    """Id, heading and content of each section."""
    classes, total = evaluation.classes, evaluation.total
    sections: list[tuple[str, str, Content]] = [
        ("summary", "Summary", _summary(total)),
        ("classes", "Classes", _classes(classes, total)),
        ("scenes", "Scenes", scene_table(classes, evaluation.scenes, total)),
        ("confusion", "Confusion", _confusion(classes, total)),
        ("calibration", "Calibration", _calibration(total)),
        ("areas", "Areas", _areas(classes, total)),
    ]
    for key, title, cases in (
        ("worst", "Worst windows", evaluation.worst),
        ("best", "Best windows", evaluation.best),
    ):
        if cases:
            figures = window_figures(cases, classes)
            sections.append((key, title, join(legend(classes), tag("div", figures, class_="windows"))))
    return sections


def _facts(facts: dict[str, Any]) -> Markup | None:
    if not facts:
        return None
    pairs = [tag("div", tag("dt", key), tag("dd", _words(value))) for key, value in facts.items()]
    return tag("dl", pairs, class_="facts")


def _words(value: Any) -> str:
    """A fact as people write it; lists and tables in a line."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(v)}" for key, v in value.items())
    if isinstance(value, (list, tuple)):
        more = len(value) - _LISTED
        return ", ".join(map(_words, value[:_LISTED])) + (f" and {more} more" if more > 0 else "")
    return f"{value:g}" if isinstance(value, float) else str(value)


def _summary(total: SceneResult) -> Markup:
    s = total.scores
    numbers = [
        ("mIoU", "mean over the classes", s.miou),
        ("accuracy", "pixels mapped right", s.accuracy),
        ("fwIoU", "weighted by true pixels", s.frequency_weighted_iou),
        ("mean F1", "mean over the classes", s.mean_f1),
    ]
    if total.calibration is not None:
        numbers.append(("ECE", "confidence against accuracy", total.calibration.error))
    shown = [
        tag("div", tag("dt", name), tag("dd", percent(value, 2), tag("span", " %", class_="unit")), tag("dd", meaning))
        for name, meaning, value in numbers
    ]
    return tag("dl", shown, class_="headline")


def _classes(classes: ClassTable, total: SceneResult) -> Markup:
    iou = total.scores.iou
    border = total.boundary.iou if total.boundary is not None else np.full(len(classes), math.nan)
    bars = []
    for i in sorted(range(len(classes)), key=lambda i: -iou[i] if not math.isnan(iou[i]) else 1.0):
        told = f"{classes[i].name}: IoU {_percent(iou[i])}"
        if not math.isnan(border[i]):
            told += f", boundary IoU {_percent(border[i])}"
        bars.append(Bar(classes[i], 100 * iou[i], _percent(iou[i]).removesuffix(" %"), told, 100 * border[i]))
    title = "IoU of each class, per cent, the largest first"
    words = "IoU, per cent; the dashed line is their mean"
    words += ", the short stroke on a bar the boundary IoU" if total.boundary is not None else ""
    plot = bar_plot("iou-plot", title, bars, [0, 20, 40, 60, 80, 100], line=100 * total.scores.miou)
    return join(class_table(classes, total), tag("figure", plot, tag("figcaption", words), class_="plot"))


def _confusion(classes: ClassTable, total: SceneResult) -> Markup:
    words = "Each row is a true class, each column what it is mapped as; pointing at a number shows its pixels."
    return join(note(words), confusion_table(classes, total))


def _calibration(total: SceneResult) -> Markup:
    calibration = total.calibration
    if calibration is None or not calibration.count.sum():
        return note(_NOT_MEASURED)
    return join(
        note(_calibration_words(calibration)),
        tag(
            "div",
            tag(
                "figure",
                reliability_diagram("reliability-plot", calibration),
                tag("figcaption", "Bars below the diagonal: the map is surer than it is right"),
                class_="plot",
            ),
            confidence_table(calibration),
            class_="pair",
        ),
    )


def _calibration_words(calibration: Calibration) -> str:
    sure = float(calibration.confidence.sum() / calibration.count.sum())
    right = float(calibration.correct.sum() / calibration.count.sum())
    words = f"On average the map is {_percent(sure)} sure and {_percent(right)} right; "
    words += f"the expected calibration error is {_percent(calibration.error)}. "
    t = calibration.temperature
    if math.isnan(t):
        return words
    kind = "too sure" if t > 1.005 else "not sure enough" if t < 0.995 else "as sure as it should be"
    words += f"Logits divided by a temperature of {t:.2f} have the least log loss: the map is {kind}."
    after = calibration.tempered_error
    return words if math.isnan(after) else f"{words} The calibration error is then {_percent(after)}."


def _areas(classes: ClassTable, total: SceneResult) -> Markup:
    areas = total.areas
    if areas is None:
        return note(_NOT_MEASURED)
    decimals = area_decimals(areas)
    low = np.maximum(areas.estimated_ha - areas.margin_ha, 0)  # no ground is less than none
    high = areas.estimated_ha + areas.margin_ha
    bars = []
    for c in classes:
        mapped, estimated, margin = (float(v[c.id]) for v in (areas.mapped_ha, areas.estimated_ha, areas.margin_ha))
        known, corrected, give = (_hectares(v, decimals) for v in (mapped, estimated, margin))
        told = f"{c.name}: mapped {known} ha, estimated {corrected} ± {give} ha"
        span = None if math.isnan(margin) else (float(low[c.id]), float(high[c.id]))
        bars.append(Bar(c, mapped, corrected, told, estimated, span))
    longest = np.concatenate([areas.mapped_ha, areas.estimated_ha, high])
    ticks = ticks_to(float(np.nanmax(longest)) if not np.isnan(longest).all() else 0.0)
    plot = bar_plot("area-plot", "Area of each class, hectares, mapped and estimated", bars, ticks)
    words = "Hectares: bars as mapped, dots as estimated with the 95 % confidence interval; numbers are the estimates"
    return join(
        note(
            "Errors that do not cancel falsify the areas of a map. The estimate corrects them by what the labels show "
            "(Olofsson et al. 2014). Its interval takes labelled blocks, not single pixels, for a random sample of the "
            "map, since neighbours err together."
        ),
        tag("figure", plot, tag("figcaption", words), class_="plot"),
        area_table(classes, areas),
    )


def _percent(share: float) -> str:
    return NOTHING if math.isnan(share) else f"{100 * share:.1f} %"


def _hectares(area: float, decimals: int) -> str:
    return NOTHING if math.isnan(area) else f"{area:,.{decimals}f}"
