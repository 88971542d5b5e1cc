"""How good a model is on labelled scenes: stitched whole-scene maps against the truth."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from geoseg.classes import ClassTable
from geoseg.config import SceneConfig, TrainConfig
from geoseg.datasets import Labels, open_configured, open_labels
from geoseg.devices import resolve_device
from geoseg.errors import ConfigError, OutputError
from geoseg.metrics import Matrix, Scores, confusion_matrix
from geoseg.model_folder import load_model
from geoseg.outputs import atomic_output, check_output
from geoseg.prediction.bands import predicted_rows
from geoseg.prediction.imagery import check_scene
from geoseg.prediction.predictor import Predictor
from geoseg.windows import Window

CONFUSION_CSV, CONFUSION_PNG, SCORES_CSV = "confusion.csv", "confusion.png", "scores.csv"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores of a model over all scenes together, and per scene.

    Attributes:
        classes: The class table.
        total: Scores over all scenes.
        scenes: Scores of each scene, by its name.
        folder: Where the tables and the picture lie.
    """

    classes: ClassTable
    total: Scores
    scenes: dict[str, Scores]
    folder: Path

    def lines(self) -> list[str]:
        """The scores as a table for people."""
        width = max(len(c.name) for c in self.classes)
        lines = [f"{'class':{width}}      IoU       F1  precision   recall"]
        t = self.total
        for c in self.classes:
            row = (t.iou[c.id], t.f1[c.id], t.precision[c.id], t.recall[c.id])
            lines.append(f"{c.name:{width}}  {row[0]:7.4f}  {row[1]:7.4f}    {row[2]:7.4f}  {row[3]:7.4f}")
        lines.append(f"mIoU {t.miou:.4f}, mean F1 {t.mean_f1:.4f}, accuracy {t.accuracy:.4f}")
        for name, scores in self.scenes.items():
            ious = ", ".join(f"{c.name} {scores.iou[c.id]:.4f}" for c in self.classes)
            lines.append(f"{name}: mIoU {scores.miou:.4f} ({ious})")
        return [*lines, str(self.folder)]


def evaluate(
    model: str,
    config: TrainConfig,
    *,
    output: Path,
    split: str = "val",
    size: int | None = None,
    overlap: int | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    backend: str = "auto",
    precision: str = "auto",
    overwrite: bool = False,
) -> Evaluation:
    """Map every scene of a split as `geoseg predict` would, and count it against its labels.

    Writes ``scores.csv``, ``confusion.csv`` (rows = truth, columns = map, pixels) and ``confusion.png``.

    Args:
        model: Model folder, or the name of a shipped model.
        config: Names the scenes and their labels.
        output: Folder for the tables; made where it is missing.
        split: "val" or "train".
        size: Window side, px; None takes the model's.
        overlap: Overlap of the windows, px; None takes the model's.
        batch_size: Windows per forward.
        device: "auto", "cpu", "cuda" or "cuda:N".
        backend: What runs the network; see `geoseg.predict.predict`.
        precision: In which data type; likewise.
        overwrite: Replace tables that are there.

    Raises:
        ConfigError: An unknown split, or classes other than the model's.
        OutputError: A table exists, or the folder cannot be written.
        SceneError: A scene that cannot be read, or breaks the model's imagery contract.
        LabelError: Labels that do not fit.
    """
    if split not in ("train", "val"):
        raise ConfigError(f"unknown split {split!r}", hint="--split val or --split train")
    target = resolve_device(device)
    trained = load_model(model)
    classes = trained.contract.class_table
    if config.class_table.names != classes.names:
        raise ConfigError(
            f"the model maps {', '.join(classes.names)}, the configuration has {', '.join(config.class_table.names)}",
            hint="evaluate with the configuration of the same classes",
        )
    predictor = Predictor(trained, target, backend=backend, precision=precision)
    entries: Sequence[SceneConfig] = config.data.entries(split)
    labels_of: list[Labels] = []
    for entry in entries:
        with open_configured(entry, config.imagery) as scene:
            check_scene(trained.contract, scene)
            predictor.plan(scene, size=size, overlap=overlap, batch_size=batch_size)
            labels_of.append(open_labels(entry, scene.grid, classes))
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make folder {output}: {error.strerror}", hint="choose another with -o") from error
    files = [check_output(output / name, overwrite=overwrite) for name in (SCORES_CSV, CONFUSION_CSV, CONFUSION_PNG)]
    scenes: dict[str, Scores] = {}
    for entry, labels in zip(entries, labels_of, strict=True):
        with open_configured(entry, config.imagery) as scene:
            plan = predictor.plan(scene, size=size, overlap=overlap, batch_size=batch_size)
            matrix = torch.zeros(len(classes), len(classes), dtype=torch.int64)
            row = 0
            for rows in predicted_rows(predictor, scene, plan):
                truth = labels.read(Window(row, 0, len(rows), scene.grid.width))
                matrix += confusion_matrix(torch.from_numpy(truth), torch.from_numpy(rows.classes), len(classes))
                row += len(rows)
        scenes[entry.scene.stem] = Scores(matrix.numpy())
    total = Scores(np.sum([s.matrix for s in scenes.values()], axis=0))
    _write_scores(files[0], classes, {**scenes, "all": total})
    _write_matrix(files[1], classes, total.matrix)
    draw_confusion(files[2], classes, total.matrix)
    return Evaluation(classes, total, scenes, output)


def _write_scores(path: Path, classes: ClassTable, scenes: dict[str, Scores]) -> None:
    with atomic_output(path) as scratch, scratch.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["scene", "class", "iou", "f1", "precision", "recall"])
        for name, s in scenes.items():
            for c in classes:
                values = (s.iou[c.id], s.f1[c.id], s.precision[c.id], s.recall[c.id])
                writer.writerow([name, c.name, *(f"{v:.6f}" for v in values)])
            writer.writerow([name, "mean", f"{s.miou:.6f}", f"{s.mean_f1:.6f}", "", ""])
            writer.writerow([name, "accuracy", f"{s.accuracy:.6f}", "", "", ""])


def _write_matrix(path: Path, classes: ClassTable, matrix: Matrix) -> None:
    with atomic_output(path) as scratch, scratch.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["truth \\ map", *classes.names])
        for c in classes:
            writer.writerow([c.name, *matrix[c.id].tolist()])


def draw_confusion(path: Path, classes: ClassTable, matrix: Matrix) -> None:
    """Draw a confusion matrix (K, K) as a PNG: the share of each true class that is mapped as each class."""
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = 2.5 + 0.75 * len(classes)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    places = range(len(classes))
    axes.set_xticks(places, classes.names, rotation=45, ha="right")
    axes.set_yticks(places, classes.names)
    axes.set_xlabel("map")
    axes.set_ylabel("truth")
    for row in places:
        for col in places:
            ink = "white" if share[row, col] > 0.5 else "black"
            axes.text(col, row, f"{100 * share[row, col]:.1f}", ha="center", va="center", color=ink, fontsize=9)
    figure.colorbar(image, ax=axes, label="share of the true class")
    with atomic_output(path) as scratch:
        figure.savefig(scratch, dpi=120)
