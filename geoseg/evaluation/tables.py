"""The numbers of an evaluation as lines for people, CSV, JSON, and the confusion matrix as a picture."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from geoseg.classes import ClassTable
from geoseg.evaluation import SCORES_CSV
from geoseg.evaluation.result import Calibration, Counts, Evaluation, SceneResult, Values
from geoseg.network.metrics import ratio

ALL, MEAN, OVERALL = "all", "mean", "overall"

_MANY_SCENES = 20  # so many are told of one by one

_MANY_CELLS = 1 << 18  # of all scenes' confusion matrices; from here on JSON comes in one line

_MANY_CLASSES = 30  # from here on cells of the picture are small and without numbers

Column = tuple[str, Values | Counts]


def summary_lines(evaluation: Evaluation) -> list[str]:
    """The scores as tables for people; the last line is the folder."""
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
        lines.append(f"and {more} scenes more, all of them in {SCORES_CSV}")
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
    """Write every measure of every class as CSV, of all scenes together and of each; empty where there is none.

    After the classes of a scene come ``mean`` (over the classes that have a value; of IoU and F1 at least two) and
    ``overall``: the frequency-weighted IoU and the accuracy of all pixels.
    """
    columns = class_columns(evaluation.total)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["scene", "class", *columns])
        for name, result in _named_results(evaluation).items():
            values = class_columns(result)
            for c in evaluation.classes:
                writer.writerow([name, c.name, *(_cell(values.get(key), c.id) for key in columns)])
            shares = [key for key in columns if key in _SHARES]
            means = {key: _mean(values[key]) for key in shares if key in values}
            means |= {"iou": result.scores.miou, "f1": result.scores.mean_f1}
            writer.writerow([name, MEAN, *(_text(means.get(key, math.nan)) for key in columns)])
            overall = {"iou": result.scores.frequency_weighted_iou, "accuracy": result.scores.accuracy}
            writer.writerow([name, OVERALL, *(_text(overall.get(key, math.nan)) for key in columns)])


_SHARES = frozenset(
    {"iou", "f1", "precision", "recall", "accuracy", "boundary_iou", "object_f1", "object_precision", "object_recall"}
)


def class_columns(result: SceneResult) -> dict[str, Values | Counts]:
    """All that is known of each class, (K,) each, under the names of the CSV and the JSON."""
    s = result.scores
    columns: dict[str, Values | Counts] = {
        "iou": s.iou,
        "f1": s.f1,
        "precision": s.precision,
        "recall": s.recall,
        "accuracy": s.class_accuracy,
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
    """Write everything but the pictures as JSON; what does not exist is null."""
    classes = evaluation.classes

    def values(result: SceneResult) -> dict[str, Any]:
        s, columns = result.scores, class_columns(result)
        told: dict[str, Any] = {
            "miou": s.miou,
            "frequency_weighted_iou": s.frequency_weighted_iou,
            "mean_f1": s.mean_f1,
            "accuracy": s.accuracy,
            "mean_accuracy": s.mean_accuracy,
            "classes": {c.name: {key: column[c.id] for key, column in columns.items()} for c in classes},
            "confusion": s.matrix.tolist(),
        }
        if result.boundary is not None:
            told["boundary_px"] = result.boundary.distance_px
        if result.objects is not None:
            told["object_iou_above"] = result.objects.threshold
        if (c := result.calibration) is not None:
            told["calibration"] = {
                "error": c.error,
                "temperature": c.temperature,
                "tempered_error": c.tempered_error,
                "bins": reliability_rows(c),
            }
        return told

    def windows(key: str) -> list[dict[str, Any]]:
        cases = evaluation.worst if key == "worst" else evaluation.best
        names = ("row", "col", "height", "width")
        return [{"scene": c.scene, "error": c.error} | {n: getattr(c.window, n) for n in names} for c in cases]

    content = {
        "facts": evaluation.facts,
        "classes": list(classes.names),
        "all": values(evaluation.total),
        "scenes": {name: values(result) for name, result in evaluation.scenes.items()},
        "windows": {key: windows(key) for key in ("worst", "best")},
    }
    # Indented JSON is written by Python, a number a line: of hundreds of scenes and classes that takes a minute.
    indent = 1 if len(evaluation.scenes) * len(classes) ** 2 < _MANY_CELLS else None
    text = json.dumps(_plain(content), indent=indent, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def reliability_rows(calibration: Calibration) -> list[dict[str, float]]:
    """Each bin of the reliability diagram: its ends, mean confidence, share that is right, pixels."""
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
    """Write the reliability diagram of all scenes and of each as CSV; a head alone where it is not measured."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["scene", "from", "to", "confidence", "accuracy", "pixels"])
        for name, result in _named_results(evaluation).items():
            for row in reliability_rows(result.calibration) if result.calibration is not None else ():
                writer.writerow([name, *(_text(value) for value in row.values())])


def write_matrix(path: Path, classes: ClassTable, matrix: Counts) -> None:
    """Write a confusion matrix (K, K) as CSV: rows = truth, columns = map, pixels."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["truth \\ map", *classes.names])
        for c in classes:
            writer.writerow([c.name, *matrix[c.id].tolist()])


def draw_confusion(path: Path, classes: ClassTable, matrix: Counts) -> None:
    """Draw a confusion matrix (K, K) as a PNG: the share of each true class that is mapped as each class."""
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
    """Results of the scenes, and of all together under a name that no scene has, last."""
    name = ALL
    while name in evaluation.scenes:
        name = f"({name})"
    return {**evaluation.scenes, name: evaluation.total}


def _cell(values: Values | Counts | None, class_id: int) -> str:
    return "" if values is None else _text(values[class_id])


def _text(value: float) -> str:
    if isinstance(value, int | np.integer):
        return str(value)
    return "" if math.isnan(value) else f"{value:.6f}"


def _mean(values: Values | Counts) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def _plain(value: Any) -> Any:
    """Values that JSON knows: no NaN, no numpy."""
    if isinstance(value, dict):
        return {str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return value if all(type(v) is int for v in value) else [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)
