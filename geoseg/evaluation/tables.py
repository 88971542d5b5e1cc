"""The numbers of an evaluation as text, CSV and JSON, and the confusion matrix as a picture."""

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from matplotlib.figure import Figure

from geoseg.arrays import FloatArray, IntArray
from geoseg.classes import ClassTable
from geoseg.evaluation import SCORES_CSV
from geoseg.evaluation.result import Calibration, Evaluation, SceneResult
from geoseg.network.metrics import known_mean, ratio
from geoseg.words import aligned

_MANY_SCENES = 20  # scenes in the text
_MANY_CLASSES = 30  # from here on cells of the picture are small and without numbers

_OF_OBJECTS = ("object_f1", "object_precision", "object_recall")
_SHARES = ("iou", "f1", "precision", "recall", "boundary_iou", *_OF_OBJECTS)

Columns = dict[str, FloatArray | IntArray]


def summary_lines(evaluation: Evaluation) -> list[str]:
    """The scores as text; the last line is the folder."""
    classes, total = evaluation.classes, evaluation.total
    s, values = total.scores, class_columns(total)
    heads = {key: key.replace("_", " ").replace("iou", "IoU").replace("f1", "F1") for key in _SHARES}
    lines = _aligned(classes, {head: values[key] for key, head in heads.items() if key in values}, 4)
    lines.append(
        f"mIoU {_number(s.miou, 4)}, mean F1 {_number(s.mean_f1, 4)}, "
        f"frequency-weighted IoU {_number(s.frequency_weighted_iou, 4)}, accuracy {_number(s.accuracy, 4)}"
    )
    if (c := total.calibration) is not None:
        lines.append(
            f"calibration error {_number(c.error, 4)}; {_number(c.tempered_error, 4)} if the logits are divided by "
            f"{_number(c.temperature, 3)}, the best temperature"
        )
    if (a := total.areas) is not None:
        areas: Columns = {
            "mapped, ha": a.mapped_ha,
            "estimated, ha": a.estimated_ha,
            "95 % interval, ± ha": a.margin_ha,
        }
        lines += ["", *_aligned(classes, areas, 2), ""]
    for name, result in list(evaluation.scenes.items())[:_MANY_SCENES]:
        ious = ", ".join(f"{c.name} {_number(result.scores.iou[c.id], 4)}" for c in classes)
        lines.append(f"{name}: mIoU {_number(result.scores.miou, 4)} ({ious})")
    more = len(evaluation.scenes) - _MANY_SCENES
    if more > 0:
        lines.append(f"and {more} more scenes, see {SCORES_CSV}")
    return [*lines, str(evaluation.folder)]


def _aligned(classes: ClassTable, columns: Columns, decimals: int) -> list[str]:
    """A table with a row for each class and a head."""
    texts = [[head, *(_number(v, decimals) for v in values.tolist())] for head, values in columns.items()]
    return aligned(list(zip(["class", *classes.names], *texts, strict=True)))


def _number(value: float, decimals: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{decimals}f}"


def class_columns(result: SceneResult) -> Columns:
    """All measures of each class, (K,) each, by their names in CSV and JSON."""
    s = result.scores
    columns: Columns = {
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
        columns |= dict(zip(_OF_OBJECTS, (o.f1, o.precision, o.recall), strict=True))
        columns |= {"objects_true": o.true, "objects_mapped": o.mapped, "objects_matched": o.matched}
    if (a := result.areas) is not None:
        columns |= {"mapped_ha": a.mapped_ha, "estimated_ha": a.estimated_ha, "margin_ha": a.margin_ha}
    return columns


def class_means(result: SceneResult) -> dict[str, float]:
    """Means over the classes with a value of all measures that are shares; of IoU and F1 over at least two."""
    means = {key: known_mean(values) for key, values in class_columns(result).items() if key in (*_SHARES, "accuracy")}
    return means | {"iou": result.scores.miou, "f1": result.scores.mean_f1}


def write_scores(path: Path, evaluation: Evaluation) -> None:
    """Write every measure of every class as CSV, for each scene and for all; empty if there is no value.

    After the classes of a scene come ``mean`` (`class_means`) and ``overall``: the frequency-weighted IoU and the
    accuracy of all pixels.
    """
    rows: list[dict[str, Any]] = []
    for name, result in _named_results(evaluation).items():
        values = class_columns(result)
        found = {c.name: {key: column[c.id] for key, column in values.items()} for c in evaluation.classes}
        overall = {"iou": result.scores.frequency_weighted_iou, "accuracy": result.scores.accuracy}
        for row, measures in [*found.items(), ("mean", class_means(result)), ("overall", overall)]:
            rows.append({"scene": name, "class": row, **measures})
    _write_csv(path, ["scene", "class", *class_columns(evaluation.total)], rows)


def write_json(path: Path, evaluation: Evaluation) -> None:
    """Write everything but the pictures as JSON; missing values are null."""
    cases = {"worst": evaluation.worst, "best": evaluation.best}
    content = {
        "facts": evaluation.facts,
        "classes": list(evaluation.classes.names),
        "all": _values(evaluation.total, evaluation.classes),
        "scenes": {name: _values(result, evaluation.classes) for name, result in evaluation.scenes.items()},
        "files": evaluation.files,
        "windows": {
            key: [{"scene": c.scene, "error": c.error, **asdict(c.window)} for c in found]
            for key, found in cases.items()
        },
    }
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
    path.write_bytes(orjson.dumps(content, default=str, option=options))  # NaN becomes null


def _values(result: SceneResult, classes: ClassTable) -> dict[str, Any]:
    """All numbers of a result, by name."""
    columns = class_columns(result)
    names = ("miou", "frequency_weighted_iou", "mean_f1", "accuracy", "mean_accuracy")
    found: dict[str, Any] = {name: getattr(result.scores, name) for name in names}
    found["classes"] = {c.name: {key: column[c.id] for key, column in columns.items()} for c in classes}
    found["confusion"] = result.scores.matrix.tolist()
    if result.boundary is not None:
        found["boundary_px"] = result.boundary.distance_px
    if result.objects is not None:
        within_m = result.objects.within_m
        found |= {"object_iou_above": 0.5} if within_m is None else {"object_within_m": within_m}
    if (c := result.calibration) is not None:
        found["calibration"] = {name: getattr(c, name) for name in ("error", "temperature", "tempered_error")}
        found["calibration"]["bins"] = reliability_rows(c)
    return found


def reliability_rows(calibration: Calibration) -> list[dict[str, float]]:
    """Bins of the reliability diagram: ends, mean confidence, accuracy, pixels."""
    count, bins = calibration.count, len(calibration.count)
    means = ratio(calibration.confidence, count).tolist(), ratio(calibration.correct, count).tolist()
    return [
        {"from": i / bins, "to": (i + 1) / bins, "confidence": sure, "accuracy": right, "pixels": pixels}
        for i, (sure, right, pixels) in enumerate(zip(*means, count.tolist(), strict=True))
    ]


def write_reliability(path: Path, evaluation: Evaluation) -> None:
    """Write the reliability diagram of each scene and of all as CSV; only the header if it is not measured."""
    rows = [
        {"scene": name, **row}
        for name, result in _named_results(evaluation).items()
        for row in (reliability_rows(result.calibration) if result.calibration is not None else ())
    ]
    _write_csv(path, ["scene", "from", "to", "confidence", "accuracy", "pixels"], rows)


def write_matrix(path: Path, classes: ClassTable, matrix: IntArray) -> None:
    """Write a confusion matrix (K, K) as CSV, pixels: rows = truth, columns = map."""
    head = "truth \\ map"
    rows = [{head: c.name, **dict(zip(classes.names, matrix[c.id].tolist(), strict=True))} for c in classes]
    _write_csv(path, [head, *classes.names], rows)


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as CSV; NaN is empty, and so is what a row has no value for."""

    def text(value: Any) -> Any:
        return ("" if math.isnan(value) else f"{value:.6f}") if isinstance(value, float) else value

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows({key: text(value) for key, value in row.items()} for row in rows)


def draw_confusion(path: Path, classes: ClassTable, matrix: IntArray) -> None:
    """Draw a confusion matrix (K, K) as PNG: the share of each true class that is mapped as each class."""
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    many = len(classes) >= _MANY_CLASSES
    side = 2.5 + (0.2 if many else 0.75) * len(classes)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    places = range(len(classes))
    axes.set_xticks(places, classes.names, rotation=90 if many else 45, ha="center" if many else "right")
    axes.set_yticks(places, classes.names)
    axes.set(xlabel="map", ylabel="truth")
    for row in places if not many else ():
        for col in places:
            ink = "white" if share[row, col] > 0.5 else "black"
            axes.text(col, row, f"{100 * share[row, col]:.1f}", ha="center", va="center", color=ink, fontsize=9)
    figure.colorbar(image, ax=axes, label="share of the true class")
    figure.savefig(path, dpi=120)


def _named_results(evaluation: Evaluation) -> dict[str, SceneResult]:
    """Results of the scenes, then of all together under a name that no scene has."""
    name = "all"
    while name in evaluation.scenes:
        name = f"({name})"
    return {**evaluation.scenes, name: evaluation.total}
