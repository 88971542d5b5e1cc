"""An evaluation as one self-contained HTML file: numbers, tables, plots, pictures."""

from __future__ import annotations

import base64
import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from geoseg.arrays import FloatArray, IntArray
from geoseg.classes import ClassTable, format_color
from geoseg.evaluation.report_pictures import ERROR_COLOR, window_pictures
from geoseg.evaluation.report_plots import Bars, bar_plot, reliability_diagram
from geoseg.evaluation.result import AreaEstimate, Evaluation, SceneResult
from geoseg.evaluation.tables import class_columns, class_means, reliability_rows
from geoseg.files import atomic_output
from geoseg.network.metrics import ratio

_RELIABILITY = "Share of the pixels that are right, over the confidence of the map"
_LISTED = 6  # entries of a list among the facts; a data set may have hundreds of scenes
_NOTHING = "–"  # no value: a class in neither truth nor map has no IoU


def write_report(evaluation: Evaluation, path: Path) -> None:
    """Write an evaluation as one self-contained HTML file, replacing an existing one.

    The same evaluation gives the same bytes. Measures that are None are left out or stated as not measured; NaN is
    shown as an en dash.

    Raises:
        OutputError: The folder is missing or not writable, or the disk is full.
    """
    page = report_page(evaluation)
    with atomic_output(path) as scratch:
        # Bytes of file names that are not UTF-8 become escapes.
        scratch.write_bytes(page.encode("utf-8", "backslashreplace"))


def report_page(evaluation: Evaluation) -> str:
    """The page of `write_report` as text."""
    templates = Environment(
        loader=PackageLoader("geoseg.evaluation"),
        autoescape=True,  # names of classes and scenes may be anything
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    templates.tests["finite"] = math.isfinite
    templates.filters |= {"color": format_color, "words": _words, "percent": _percent}
    script = templates.get_template("report.js").render()
    classes, total, model = evaluation.classes, evaluation.total, evaluation.facts.get("model")
    matrix = total.scores.matrix
    calibration = total.calibration if total.calibration is not None and total.calibration.count.any() else None
    page = templates.get_template("report.html.j2").render(
        title=f"Evaluation of {_words(model)}" if model else "Evaluation",
        script=script,
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        facts=evaluation.facts,
        classes=classes,
        total=total,
        scenes=evaluation.scenes,
        groups=_column_groups(total),
        shares=ratio(matrix, matrix.sum(axis=1, keepdims=True)),
        calibration=calibration,
        bins=calibration and reliability_rows(calibration),
        areas=total.areas,
        area_decimals=_area_decimals(total.areas),
        area_changes=total.areas and 100 * (ratio(total.areas.estimated_ha, total.areas.mapped_ha) - 1),
        iou_plot=_iou_plot(classes, total),
        reliability_plot=calibration and reliability_diagram("reliability-plot", _RELIABILITY, calibration),
        area_plot=total.areas and _area_plot(classes, total.areas),
        windows={
            key: [window_pictures(case, classes) for case in cases]
            for key, cases in (("worst", evaluation.worst), ("best", evaluation.best))
        },
        error_color=ERROR_COLOR,
    )
    return f"{page}\n"


def _words(value: Any) -> str:
    """A fact as text; lists and tables in a line."""
    if value is None:
        return _NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(v)}" for key, v in value.items())
    if isinstance(value, (list, tuple)):
        more = len(value) - _LISTED
        return ", ".join(map(_words, value[:_LISTED])) + (f" and {more} more" if more > 0 else "")
    return f"{value:g}" if isinstance(value, float) else str(value)


def _percent(share: float, decimals: int = 1) -> str:
    return _NOTHING if math.isnan(share) else f"{100 * share:.{decimals}f} %"


def _column_groups(result: SceneResult) -> list[tuple[str, dict[str, tuple[FloatArray | IntArray, float]]]]:
    """Groups of columns of the class table: names, values (K,) and their mean."""
    values, means = class_columns(result), class_means(result)
    pixels = {"IoU": "iou", "boundary IoU": "boundary_iou", "precision": "precision", "recall": "recall", "F1": "f1"}
    groups = [("pixels", pixels)]
    if result.objects is not None:
        objects = {"precision": "object_precision", "recall": "object_recall", "F1": "object_f1"}
        groups.append((f"objects, IoU above {result.objects.threshold:g}", objects))
    return [
        (group, {head: (values[key], means[key]) for head, key in keys.items() if key in values})
        for group, keys in groups
    ]


def _iou_plot(classes: ClassTable, total: SceneResult) -> str:
    iou = total.scores.iou
    border = np.full(len(classes), np.nan) if total.boundary is None else total.boundary.iou
    order = np.argsort(-iou, kind="stable")  # NaN comes last
    tooltips = [
        f"{classes[i].name}: IoU {_percent(iou[i])}"
        + ("" if np.isnan(border[i]) else f", boundary IoU {_percent(border[i])}")
        for i in order
    ]
    shown = [_percent(v).removesuffix(" %") for v in iou[order]]
    bars = Bars([classes[i] for i in order], 100 * iou[order], shown, tooltips, 100 * border[order])
    title = "IoU of each class, per cent, the largest first"
    return bar_plot("iou-plot", title, bars, end=100, line=100 * total.scores.miou)


def _area_plot(classes: ClassTable, areas: AreaEstimate) -> str:
    decimals = _area_decimals(areas)
    columns = (areas.mapped_ha, areas.estimated_ha, areas.margin_ha)
    mapped, estimated, margin = (
        [_NOTHING if np.isnan(v) else f"{v:,.{decimals}f}" for v in values] for values in columns
    )
    tooltips = [f"{c.name}: mapped {mapped[c.id]} ha, estimated {estimated[c.id]} ± {margin[c.id]} ha" for c in classes]
    bars = Bars(list(classes), areas.mapped_ha, estimated, tooltips, areas.estimated_ha, areas.margin_ha)
    return bar_plot("area-plot", "Area of each class, hectares, mapped and estimated", bars)


def _area_decimals(areas: AreaEstimate | None) -> int:
    """Decimals that show four digits of the largest area, and small ones to one hundredth of a hectare."""
    known = [] if areas is None else [float(v) for v in (*areas.mapped_ha, *areas.estimated_ha) if v > 0]
    if not known:
        return 1
    of_largest, of_smallest = 3 - math.floor(math.log10(max(known))), 1 - math.floor(math.log10(min(known)))
    return max(of_largest, min(of_smallest, 2), 0)
