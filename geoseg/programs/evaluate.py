"""How good a model is on labelled scenes: their maps against the truth, and all that follows from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from geoseg.classes import ClassTable
from geoseg.config import TrainConfig
from geoseg.data import open_scenes
from geoseg.errors import ConfigError
from geoseg.evaluation import (
    CONFUSION_CSV,
    CONFUSION_PNG,
    FILES,
    RELIABILITY_CSV,
    REPORT,
    SCORES_CSV,
    SCORES_JSON,
)
from geoseg.evaluation.boundary import DISTANCE_PX
from geoseg.evaluation.report import write_report
from geoseg.evaluation.result import Evaluation, SceneResult
from geoseg.evaluation.stitched import CASES, Asked, evaluate_scenes
from geoseg.evaluation.tables import (
    draw_confusion,
    write_json,
    write_matrix,
    write_reliability,
    write_scores,
)
from geoseg.files import atomic_output, check_output, made_folder
from geoseg.network.metrics import Matrix, Scores
from geoseg.network.stored_model import open_model
from geoseg.paper.patches import PROTOCOLS, evaluate_patches, scene_names
from geoseg.prediction.imagery import check_scene
from geoseg.prediction.precision import record_precision
from geoseg.prediction.predictor import Predictor
from geoseg.programs.early import check_evaluation
from geoseg.runtime.devices import resolve_device
from geoseg.version import __version__

SCENE = "scene"
"""The protocol that counts every pixel of a stitched map once; the others are `geoseg.paper.patches.PROTOCOLS`."""


def evaluate(
    model: str,
    config: TrainConfig,
    *,
    output: Path,
    split: str = "val",
    protocol: str = SCENE,
    ms_flip: bool = False,
    objects: Sequence[str] | None = None,
    boundary_px: int = DISTANCE_PX,
    windows: int = CASES,
    size: int | None = None,
    overlap: int | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    backend: str = "auto",
    precision: str = "auto",
    overwrite: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Map every scene of a split as `geoseg predict` would, and count it against its labels.

    Writes `FILES`: all numbers as JSON and as CSV, the reliability diagram and the confusion matrix (rows = truth,
    columns = map, pixels) as CSV, the matrix as PNG, and everything as one HTML file.

    Args:
        model: Model folder, or the name of a shipped model.
        config: Names the scenes and their labels.
        output: Folder for the files; made where it is missing.
        split: "val" or "train". Of scenes that are cut into blocks, those of the split count.
        protocol: "scene", or one of patches: "jseg", "mmseg", "whole", which measure pixels and nothing else.
        ms_flip: The paper's multi-scale testing: six scales, each also flipped.
        objects: Classes whose regions are counted as objects; None for all but the background.
        boundary_px: Width of the strips along borders, px.
        windows: How many of the worst windows, and of the best, are shown.
        size: Window side, px; None takes the model's.
        overlap: Overlap of the windows, px; None takes the model's.
        batch_size: Windows per forward.
        device: "auto", "cpu", "cuda" or "cuda:N".
        backend: What runs the network; see `geoseg.programs.predict.predict`.
        precision: In which data type; likewise.
        overwrite: Replace files that are there.
        progress: Draw a progress bar on standard error.

    Raises:
        ConfigError: An unknown split, protocol or class, classes other than the model's, or an option that the protocol
            does not have.
        OutputError: A file exists, or the folder cannot be written.
        SceneError: A scene that cannot be read, or breaks the model's imagery contract.
        LabelError: Labels that do not fit.
    """
    if split not in ("train", "val"):
        raise ConfigError(f"unknown split {split!r}", hint="--split val or --split train")
    if protocol not in (SCENE, *PROTOCOLS):
        raise ConfigError(f"no protocol is called {protocol!r}", hint=f"--protocol {', '.join((SCENE, *PROTOCOLS))}")
    check_evaluation(
        model,
        config,
        output=output,
        files=FILES,
        protocol=protocol,
        objects=objects,
        size=size,
        overlap=overlap,
        batch_size=batch_size,
        backend=backend,
        precision=precision,
        overwrite=overwrite,
    )
    target = torch.device(resolve_device(device))
    trained = open_model(model)
    classes = trained.contract.class_table
    asked = Asked(
        split=split,
        boundary_px=boundary_px,
        objects=_object_ids(classes, objects),
        cases=windows,
        size=size,
        overlap=overlap,
        batch_size=batch_size,
    )
    tta = "scales+flips" if ms_flip else "none"
    predictor = Predictor(trained, target, tta=tta, backend=backend, precision=precision)
    scenes = open_scenes(config, split)
    for labelled in scenes:
        check_scene(trained.contract, labelled.scene)
        if protocol == SCENE:
            asked.plan(predictor, labelled.scene)  # windows that cannot be are refused before any work
    names = _unique(scene_names(scenes))
    with _folder(output, overwrite=overwrite):
        if protocol == SCENE:
            found = evaluate_scenes(predictor, scenes, names, asked, folder=output, progress=progress)
        else:
            matrices = evaluate_patches(
                trained,
                scenes,
                protocol,
                device=target,
                ms_flip=ms_flip,
                base_size=config.augment.base_size,
                split=split,
                progress=lambda patches: tqdm(patches, unit="patch", desc="evaluate", disable=not progress),
            )
            found = _of_matrices(classes, matrices, output)
        facts = {
            "model": trained.contract.name,
            "weights": f"SHA-256 {trained.digest[:16]}…",
            "configuration": config.name,
            "split": split,
            "protocol": "whole scenes, stitched" if protocol == SCENE else protocol,
            "multi-scale and flip": ms_flip,
            **found.facts,
            "scenes": len(found.scenes),
            "device": torch.cuda.get_device_name(target) if target.type == "cuda" else target.type,
            "geoseg": __version__,
            "torch": torch.__version__,
        }
        if protocol == SCENE and precision == "auto" and target.type == "cpu":
            record = record_precision(trained, scenes, data=config.name, split=split, progress=progress)
            if record is not None:
                facts["bfloat16"] = (
                    f"costs {record.loss_points:.2f} points of mIoU ({record.float32.miou:.4f} in float32), and "
                    f"{100 * record.bfloat16.agreement:.2f} % of pixels keep their class (on {record.measured_on})"
                )
        evaluation = dataclasses.replace(found, facts=facts)
        _write(evaluation)
    return evaluation


def _object_ids(classes: ClassTable, names: Sequence[str] | None) -> tuple[int, ...] | None:
    """Ids of the classes that are objects, None for all: those named, or all but a background beside others."""
    if names is not None:
        return tuple(sorted({classes.id_of(name) for name in names}))
    ids = tuple(c.id for c in classes if not c.background)
    return ids if 0 < len(ids) < len(classes) else None


def _unique(names: Sequence[str]) -> list[str]:
    """The names; where the same scene is listed again, perhaps with other labels, with a number behind it."""
    found: dict[str, None] = {}
    for name in names:
        number, free = 1, name
        while free in found:
            number += 1
            free = f"{name} ({number})"
        found[free] = None
    return list(found)


def _of_matrices(classes: ClassTable, matrices: dict[str, Matrix], folder: Path) -> Evaluation:
    total = np.sum([np.zeros((len(classes), len(classes)), dtype=np.int64), *matrices.values()], axis=0)
    results = {name: SceneResult(Scores(matrix)) for name, matrix in matrices.items()}
    return Evaluation(classes, SceneResult(Scores(total)), results, folder)


@contextmanager
def _folder(path: Path, *, overwrite: bool) -> Iterator[None]:
    """The folder for all files, none of which may be in the way."""
    with made_folder(path):
        for name in FILES:
            check_output(path / name, overwrite=overwrite)
        yield


def _write(evaluation: Evaluation) -> None:
    """All files, or none of them."""
    classes, matrix = evaluation.classes, evaluation.total.scores.matrix
    with atomic_output(evaluation.folder / SCORES_JSON) as scratch:
        write_json(scratch, evaluation)
        write_scores(scratch.with_name(SCORES_CSV), evaluation)
        write_reliability(scratch.with_name(RELIABILITY_CSV), evaluation)
        write_matrix(scratch.with_name(CONFUSION_CSV), classes, matrix)
        draw_confusion(scratch.with_name(CONFUSION_PNG), classes, matrix)
        write_report(evaluation, scratch.with_name(REPORT))
