"""Tables of the report: classes, scenes, the confusion matrix, areas, bins of confidence."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from geoseg.classes import ClassTable
from geoseg.evaluation.report_html import (
    NOTHING,
    Content,
    Markup,
    count,
    decimal,
    head,
    named,
    percent,
    row,
    row_head,
    table,
    tag,
    upright,
)
from geoseg.evaluation.result import AreaEstimate, Calibration, SceneResult, Values
from geoseg.metrics import ratio

_WIDE_HEADS = 7  # more classes have their names upright
_MANY_CLASSES = 20  # above, cells are narrow and shares come without decimals


def class_table(classes: ClassTable, result: SceneResult) -> Markup:
    """Scores per class, and their means; boundaries and objects where they were measured."""
    s = result.scores
    groups: list[tuple[str, list[tuple[str, Values]]]] = [("pixels", [("IoU", s.iou)])]
    if result.boundary is not None:
        groups[0][1].append(("boundary IoU", result.boundary.iou))
    groups[0][1].extend([("precision", s.precision), ("recall", s.recall), ("F1", s.f1)])
    if (o := result.objects) is not None:
        name = f"objects, IoU above {o.threshold:g}"
        groups.append((name, [("precision", o.precision), ("recall", o.recall), ("F1", o.f1)]))
    columns = [column for _, group in groups for column in group]
    pixels = s.matrix.sum(axis=1)
    empty = tag("td", class_="empty")
    over = [tag("th", name, scope="colgroup", colspan=len(group)) for name, group in groups]
    heads = [tag("tr", empty, over, empty)] if len(groups) > 1 else []
    heads += [tag("tr", head("class"), (head(name) for name, _ in columns), head("true pixels"))]
    rows = [row(named(c), [*(percent(v[c.id]) for _, v in columns), count(pixels[c.id])]) for c in classes]
    foot = [row("mean, sum", [*(percent(_mean(v)) for _, v in columns), count(pixels.sum())])]
    caption = "Scores per class, per cent"
    if result.boundary is not None:
        caption += f"; boundaries are strips of {result.boundary.distance_px} px"
    return table("class-table", caption, heads, rows, foot, class_="sortable")


def scene_table(classes: ClassTable, scenes: dict[str, SceneResult], total: SceneResult) -> Markup:
    """Accuracy, mean IoU and IoU per class of each scene, and of all together."""

    def cells(result: SceneResult) -> Iterable[Content]:
        s = result.scores
        return [percent(s.miou), percent(s.accuracy), *(percent(v) for v in s.iou), count(s.matrix.sum())]

    heads = tag(
        "tr",
        head("scene"),
        (head(name) for name in ("mIoU", "accuracy")),
        (head(named(c)) if len(classes) <= _WIDE_HEADS else upright(c) for c in classes),
        head("pixels"),
    )
    rows = [row(name, cells(result)) for name, result in scenes.items()]
    foot = [row("all", cells(total))]
    caption = "mIoU, accuracy and IoU per class, per cent"
    class_ = "sortable" if len(classes) <= _WIDE_HEADS else "sortable dense"
    return table("scene-table", caption, [heads], rows, foot, class_=class_)


def confusion_table(classes: ClassTable, result: SceneResult) -> Markup:
    """Of each true class, the share that is mapped as each class, coloured; pixels in the tooltips."""
    matrix = result.scores.matrix
    pixels = matrix.sum(axis=1)
    shares = ratio(matrix, np.broadcast_to(pixels[:, None], matrix.shape))
    decimals = 1 if len(classes) <= _MANY_CLASSES else 0

    def cell(true: int, mapped: int) -> Markup:
        share, number = float(shares[true, mapped]), int(matrix[true, mapped])
        title = f"{classes[true].name} mapped as {classes[mapped].name}: {number:,} px"
        if math.isnan(share):
            return tag("td", NOTHING, title=title)
        # A confusion of two per cent shall be seen beside a hit of ninety: the root, not the share.
        weight = math.sqrt(share)
        shown = f"{100 * share:.{decimals}f}" if number else "0"
        kinds = ["hit" if true == mapped else "miss"]
        kinds += ["strong"] if weight > 0.75 else ["faint"] if not float(shown) else []
        return tag("td", shown, class_=" ".join(kinds), style=f"--s:{weight:.3f}", title=title)

    heads = tag("tr", head("truth ↓ map →"), (upright(c) for c in classes), head("true pixels"))
    rows = [
        tag(
            "tr",
            row_head(named(c)),
            (cell(c.id, m.id) for m in classes),
            tag("td", count(pixels[c.id]), class_="total"),
        )
        for c in classes
    ]
    class_ = "confusion narrow" if len(classes) > _MANY_CLASSES else "confusion"
    return table("confusion-table", "Shares of the true pixels, per cent", [heads], rows, class_=class_)


def area_table(classes: ClassTable, areas: AreaEstimate) -> Markup:
    """Areas as mapped and as estimated, with the interval."""
    decimals = area_decimals(areas)
    heads = tag("tr", (head(name) for name in ("class", "mapped", "estimated", "± 95 %", "estimated − mapped, %")))
    change = 100 * (ratio(areas.estimated_ha, areas.mapped_ha) - 1)
    rows = [
        row(
            named(c),
            [
                *(decimal(v[c.id], decimals) for v in (areas.mapped_ha, areas.estimated_ha, areas.margin_ha)),
                decimal(change[c.id], 1, sign=True),
            ],
        )
        for c in classes
    ]
    sums = [decimal(float(np.sum(v)), decimals) for v in (areas.mapped_ha, areas.estimated_ha)]
    foot = [row("sum", [*sums, NOTHING, NOTHING])]
    return table("area-table", "Area of each class, hectares", [heads], rows, foot, class_="sortable")


def area_decimals(areas: AreaEstimate) -> int:
    """Decimals that show the largest area to four digits, and a small one beside it to one hundredth of a hectare."""
    known = [float(v) for v in (*areas.mapped_ha, *areas.estimated_ha) if v > 0]
    if not known:
        return 1
    of_largest, of_smallest = 3 - math.floor(math.log10(max(known))), 1 - math.floor(math.log10(min(known)))
    return max(of_largest, min(of_smallest, 2), 0)


def confidence_table(calibration: Calibration) -> Markup:
    """The bins of the reliability diagram in numbers; those without a pixel are left out."""
    bins = len(calibration.count)
    sure = ratio(calibration.confidence, calibration.count)
    right = ratio(calibration.correct, calibration.count)
    heads = tag("tr", (head(name) for name in ("confidence", "mean", "right", "pixels")))
    rows = [
        row(
            f"{100 * i / bins:.0f} to {100 * (i + 1) / bins:.0f}",
            [percent(sure[i]), percent(right[i]), count(calibration.count[i])],
        )
        for i in np.flatnonzero(calibration.count)
    ]
    return table("confidence-table", "Bins of confidence, per cent", [heads], rows)


def _mean(values: Values) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan
