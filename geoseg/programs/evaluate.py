"""Maps of labelled scenes against their labels: the program behind ``geoseg evaluate``."""

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from geoseg.config import TrainConfig
from geoseg.data.labelled import open_scenes
from geoseg.evaluation import (
    CONFUSION_CSV,
    CONFUSION_PNG,
    MAPS,
    RELIABILITY_CSV,
    REPORT,
    SCORES_CSV,
    SCORES_JSON,
)
from geoseg.evaluation.report import write_report
from geoseg.evaluation.result import Evaluation, SceneResult
from geoseg.evaluation.scenes import evaluate_scenes, map_name, plan_scene
from geoseg.evaluation.tables import draw_confusion, write_json, write_matrix, write_reliability, write_scores
from geoseg.files import atomic_output, check_output, made_folder
from geoseg.network.metrics import Scores
from geoseg.network.stored_model import open_model
from geoseg.options import EvaluateOptions, from_keywords, signature_with
from geoseg.paper.patches import evaluate_patches, scene_names
from geoseg.paths import InputPath
from geoseg.prediction.imagery import check_scene
from geoseg.prediction.precision import record_precision
from geoseg.prediction.predictor import Predictor
from geoseg.programs.early import check_evaluation
from geoseg.runtime.machine import resolve_device
from geoseg.version import __version__


def evaluate(
    model: str, config: TrainConfig, output: Path, options: EvaluateOptions | None = None, **changes: Any
) -> Evaluation:
    """Map every scene of a split as `geoseg predict` would, and count it against its labels.

    Writes all numbers as JSON and as CSV, the reliability diagram and the confusion matrix (rows = truth, columns =
    map, pixels) as CSV, the matrix as PNG, and everything as one HTML file (`geoseg.evaluation.FILES`); with
    ``maps=True`` also the map of each scene and its confidence, in a folder ``maps``.

    Args:
        model: Model folder, or the name of a shipped model.
        config: Names the scenes and their labels.
        output: Folder for the files; made if it does not exist.
        options: All options as one value, which type checkers know.
        changes: Single options: the fields of `geoseg.options.Measures`, `Windows`, `Network` and `EvaluateOptions`,
            as ``split="train", size=512``.

    Raises:
        ConfigError: An invalid option, or classes other than the model's.
        OutputError: A file exists, or the folder cannot be written.
        SceneError: A scene that cannot be read, or breaks the model's imagery contract.
        LabelError: Labels that do not fit.
        TypeError: An unknown option.
    """
    options = from_keywords(EvaluateOptions, changes, caller="evaluate", given=options)
    measures, network = options.measures, options.network
    check_evaluation(model, config, output, options)
    target = torch.device(resolve_device(network.device))
    trained = open_model(model)
    classes = trained.contract.class_table
    whole = measures.protocol == "scene"
    tta = "scales+flips" if measures.ms_flip else "none"
    predictor = Predictor(trained, target, network, tta=tta)
    scenes = open_scenes(config, measures.split)
    gsd_hint = f"add imagery.gsd_m={trained.contract.gsd_m} to resample it on the way"
    for labelled in scenes:
        check_scene(trained.contract, labelled.scene, gsd_hint=gsd_hint)
        if whole:
            plan_scene(predictor, labelled.scene, options)  # refuses invalid windows before any work
            if measures.within_m is not None:
                labelled.centres()  # refuses labels without single objects
    names = _unique(scene_names(scenes))
    maps = [output / MAPS / map_name(name) for name in names] if options.maps else []
    for file in maps:
        if file.parent.is_dir():
            check_output(file, overwrite=options.overwrite)
    with made_folder(output), ExitStack() as stack:
        scratch = None
        if maps:  # they appear all together at a clean end
            stack.enter_context(made_folder(maps[0].parent))
            scratch = stack.enter_context(atomic_output(maps[0])).parent
        if whole:
            found = evaluate_scenes(predictor, scenes, names, options, folder=output, maps=scratch)
        else:
            matrices = evaluate_patches(
                trained,
                scenes,
                measures.protocol,
                device=target,
                ms_flip=measures.ms_flip,
                base_size=config.augment.base_size,
                split=measures.split,
                progress=lambda patches: tqdm(patches, unit="patch", desc="evaluate", disable=not options.progress),
            )
            total = sum(matrices.values(), np.zeros((len(classes), len(classes)), dtype=np.int64))
            results = {name: SceneResult(Scores(matrix)) for name, matrix in matrices.items()}
            found = Evaluation(classes, SceneResult(Scores(total)), results, output)
        facts = {
            "model": trained.contract.name,
            "weights": f"SHA-256 {trained.digest[:16]}…",
            "configuration": config.name,
            "split": measures.split,
            "protocol": "whole scenes, stitched" if whole else measures.protocol,
            "multi-scale and flip": measures.ms_flip,
            **found.facts,
            "scenes": len(found.scenes),
            "device": torch.cuda.get_device_name(target) if target.type == "cuda" else target.type,
            "geoseg": __version__,
            "torch": torch.__version__,
        }
        if whole and network.precision == "auto" and target.type == "cpu":
            record = record_precision(
                trained, scenes, data=config.name, split=measures.split, progress=options.progress
            )
            if record is not None:
                facts["bfloat16"] = (
                    f"costs {record.loss_points:.2f} points of mIoU ({record.float32.miou:.4f} in float32), and "
                    f"{100 * record.bfloat16.agreement:.2f} % of pixels keep their class (on {record.measured_on})"
                )
        files = {
            name: {"scene": _absolute(labelled.config.scene), "labels": _absolute(labelled.config.labels)}
            for name, labelled in zip(names, scenes, strict=True)
        }
        for name, path in zip(names, maps, strict=False):  # none without --maps
            files[name]["map"] = _absolute(path)
        evaluation = dataclasses.replace(found, facts=facts, files=files)
        _write(evaluation)
    return evaluation


evaluate.__signature__ = signature_with(evaluate, EvaluateOptions)  # type: ignore[attr-defined]


def _absolute(path: InputPath) -> str:
    return str(path.absolute()) if isinstance(path, Path) else path


def _unique(names: Sequence[str]) -> list[str]:
    """The names; a scene that is listed again, perhaps with other labels, gets a number."""
    found: dict[str, None] = {}
    for name in names:
        number, free = 1, name
        while free in found:
            number += 1
            free = f"{name} ({number})"
        found[free] = None
    return list(found)


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
