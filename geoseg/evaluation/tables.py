"""The numbers of an evaluation as text, CSV and JSON, and the confusion matrix as a picture."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from geoseg.arrays import FloatArray, IntArray
from geoseg.classes import ClassTable
from geoseg.evaluation import SCORES_CSV
from geoseg.evaluation.result import Calibration, Evaluation, SceneResult
from geoseg.network.metrics import known_mean, ratio

ALL, MEAN, OVERALL = "all", "mean", "overall"

_MANY_SCENES = 20  # scenes in the text
_MANY_CLASSES = 30  # from here on cells of the picture are small and without numbers

Column = tuple[str, FloatArray | IntArray]


def summary_lines(evaluation: Evaluation) -> list[str]:
    """The scores as text; the last line is the folder."""
    classes, total = evaluation.classes, evaluation.total
    s = total.scores
    columns: list[Column] = [("IoU", s.iou), ("F1", s.f1), ("precision", s.precision), ("recall", s.recall)]
    if total.boundary is not None:
        columns.append(("boundary IoU", total.boundary.iou))
    if (o := total.objects) is not None:
        columns += [("object F1", o.f1), ("precision", o.precision), ("recall", o.recall)]
    lines = _aligned(classes, columns, lambda value: _number(value, 4))
    lines.append(
        f"mIoU {_number(s.miou, 4)}, frequency-weighted IoU {_number(s.frequency_weighted_iou, 4)}, "
        f"mean F1 {_number(s.mean_f1, 4)}, accuracy {_number(s.accuracy, 4)}"
    )
    if (c := total.calibration) is not None:
        lines.append(
            f"calibration error {_number(c.error, 4)}, temperature {_number(c.temperature, 3)}, "
            f"error with it {_number(c.tempered_error, 4)}"
        )
    if (a := total.areas) is not None:
        columns = [("mapped, ha", a.mapped_ha), ("estimated, ha", a.estimated_ha), ("± 95 %", a.margin_ha)]
        lines += ["", *_aligned(classes, columns, lambda value: _number(value, 2)), ""]
    for name, result in list(evaluation.scenes.items())[:_MANY_SCENES]:
        ious = ", ".join(f"{c.name} {_number(result.scores.iou[c.id], 4)}" for c in classes)
        lines.append(f"{name}: mIoU {_number(result.scores.miou, 4)} ({ious})")
    more = len(evaluation.scenes) - _MANY_SCENES
    if more > 0:
        lines.append(f"and {more} more scenes, see {SCORES_CSV}")
    return [*lines, str(evaluation.folder)]


def _aligned(classes: ClassTable, columns: Sequence[Column], text: Callable[[float], str]) -> list[str]:
    first = max(len("class"), *(len(c.name) for c in classes))
    widths = [max(len(name), *(len(text(v)) for v in values.tolist())) for name, values in columns]
    rows = [("class", [name for name, _ in columns])]
    rows += [(c.name, [text(values[c.id]) for _, values in columns]) for c in classes]
    return [
        "  ".join([f"{name:{first}}", *(f"{word:>{width}}" for word, width in zip(words, widths, strict=True))])
        for name, words in rows
    ]


def _number(value: float, decimals: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{decimals}f}"


def write_scores(path: Path, evaluation: Evaluation) -> None:
    """Write every measure of every class as CSV, for each scene and for all; empty if there is no value.

    After the classes of a scene come ``mean`` (over the classes with a value; of IoU and F1 at least two) and
    ``overall``: the frequency-weighted IoU and the accuracy of all pixels.
    """
    columns = class_columns(evaluation.total)
    rows: list[list[str]] = [["scene", "class", *columns]]
    for name, result in _named_results(evaluation).items():
        s, values = result.scores, class_columns(result)
        for c in evaluation.classes:
            rows.append([name, c.name, *(_text(values[key][c.id]) if key in values else "" for key in columns)])
        means = {key: known_mean(values[key]) for key in columns if key in _SHARES and key in values}
        means |= {"iou": s.miou, "f1": s.mean_f1}
        overall = {"iou": s.frequency_weighted_iou, "accuracy": s.accuracy}
        for row, found in ((MEAN, means), (OVERALL, overall)):
            rows.append([name, row, *(_text(found.get(key, math.nan)) for key in columns)])
    _write_csv(path, rows)


_SHARES = frozenset(
    {"iou", "f1", "precision", "recall", "accuracy", "boundary_iou", "object_f1", "object_precision", "object_recall"}
)


def class_columns(result: SceneResult) -> dict[str, FloatArray | IntArray]:
    """All measures of each class, (K,) each, by their names in CSV and JSON."""
    s = result.scores
    columns: dict[str, FloatArray | IntArray] = {
        "iou": s.iou,
        "f1": s.f1,
        "precision": s.precision,
        "recall": s.recall,
        "accuracy": s.recall,
        "true_px": s.matrix.sum(axis=1),
        "mapped_px": s.matrix.sum(axis=0),
    }
    if result.boundary is not None:
        columns["boundary_iou"] = result.boundary.iou
    if (o := result.objects) is not None:
        columns |= {"object_f1": o.f1, "object_precision": o.precision, "object_recall": o.recall}
        columns |= {"objects_true": o.true, "objects_mapped": o.mapped, "objects_matched": o.matched}
    if (a := result.areas) is not None:
        columns |= {"mapped_ha": a.mapped_ha, "estimated_ha": a.estimated_ha, "margin_ha": a.margin_ha}
    return columns


def write_json(path: Path, evaluation: Evaluation) -> None:
    """Write everything but the pictures as JSON; missing values are null."""
    classes = evaluation.classes

    def values(result: SceneResult) -> dict[str, Any]:
        s, columns = result.scores, class_columns(result)
        found: dict[str, Any] = {
            "miou": s.miou,
            "frequency_weighted_iou": s.frequency_weighted_iou,
            "mean_f1": s.mean_f1,
            "accuracy": s.accuracy,
            "mean_accuracy": s.mean_accuracy,
            "classes": {c.name: {key: column[c.id] for key, column in columns.items()} for c in classes},
            "confusion": s.matrix.tolist(),
        }
        if result.boundary is not None:
            found["boundary_px"] = result.boundary.distance_px
        if result.objects is not None:
            found["object_iou_above"] = result.objects.threshold
        if (c := result.calibration) is not None:
            found["calibration"] = {
                "error": c.error,
                "temperature": c.temperature,
                "tempered_error": c.tempered_error,
                "bins": reliability_rows(c),
            }
        return found

    content = {
        "facts": evaluation.facts,
        "classes": list(classes.names),
        "all": values(evaluation.total),
        "scenes": {name: values(result) for name, result in evaluation.scenes.items()},
        "files": evaluation.files,
        "windows": {
            key: [{"scene": c.scene, "error": c.error, **asdict(c.window)} for c in cases]
            for key, cases in (("worst", evaluation.worst), ("best", evaluation.best))
        },
    }
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
    path.write_bytes(orjson.dumps(content, default=str, option=options))  # NaN becomes null


def reliability_rows(calibration: Calibration) -> list[dict[str, float]]:
    """Bins of the reliability diagram: ends, mean confidence, accuracy, pixels."""
    bins = len(calibration.count)
    sure, right = ratio(calibration.confidence, calibration.count), ratio(calibration.correct, calibration.count)
    return [
        {
            "from": i / bins,
            "to": (i + 1) / bins,
            "confidence": float(sure[i]),
            "accuracy": float(right[i]),
            "pixels": int(calibration.count[i]),
        }
        for i in range(bins)
    ]


def write_reliability(path: Path, evaluation: Evaluation) -> None:
    """Write the reliability diagram of each scene and of all as CSV; only the header if it is not measured."""
    rows = [["scene", "from", "to", "confidence", "accuracy", "pixels"]]
    for name, result in _named_results(evaluation).items():
        for row in reliability_rows(result.calibration) if result.calibration is not None else ():
            rows.append([name, *(_text(value) for value in row.values())])
    _write_csv(path, rows)


def write_matrix(path: Path, classes: ClassTable, matrix: IntArray) -> None:
    """Write a confusion matrix (K, K) as CSV, pixels: rows = truth, columns = map."""
    _write_csv(path, [["truth \\ map", *classes.names], *([c.name, *matrix[c.id].tolist()] for c in classes)])


def _write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def draw_confusion(path: Path, classes: ClassTable, matrix: IntArray) -> None:
    """Draw a confusion matrix (K, K) as PNG: the share of each true class that is mapped as each class."""
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    many = len(classes) >= _MANY_CLASSES
    side = 2.5 + (0.2 if many else 0.75) * len(classes)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    places = range(len(classes))
    axes.set_xticks(places, classes.names, rotation=90 if many else 45, ha="center" if many else "right")
    axes.set_yticks(places, classes.names)
    axes.set_xlabel("map")
    axes.set_ylabel("truth")
    for row in places if not many else ():
        for col in places:
            ink = "white" if share[row, col] > 0.5 else "black"
            axes.text(col, row, f"{100 * share[row, col]:.1f}", ha="center", va="center", color=ink, fontsize=9)
    figure.colorbar(image, ax=axes, label="share of the true class")
    figure.savefig(path, dpi=120)


def _named_results(evaluation: Evaluation) -> dict[str, SceneResult]:
    """Results of the scenes, then of all together under a name that no scene has."""
    name = ALL
    while name in evaluation.scenes:
        name = f"({name})"
    return {**evaluation.scenes, name: evaluation.total}


def _text(value: float) -> str:
    if isinstance(value, int | np.integer):
        return str(value)
    return "" if math.isnan(value) else f"{value:.6f}"
