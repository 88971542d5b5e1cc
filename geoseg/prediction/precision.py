"""What bfloat16 costs a model: both precisions over the same scenes, recorded in the contract."""

import logging
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from tqdm import tqdm

from geoseg.classes import NODATA
from geoseg.contract import SHIPPED, PrecisionRecord, PrecisionScore
from geoseg.data.labelled import LabelledScene, labels_of
from geoseg.errors import ModelError
from geoseg.network.backends import PRECISIONS
from geoseg.network.backends.openvino import multiplies_bfloat16
from geoseg.network.metrics import Scores, count_pixels
from geoseg.network.stored_model import StoredModel
from geoseg.options import Network
from geoseg.prediction.bands import predicted_rows
from geoseg.prediction.predictor import Predictor
from geoseg.windows import Window

log = logging.getLogger(__name__)

MEASURED_PX = 64_000_000  # scenes are measured until this many pixels are reached; more would not change the answer


def record_precision(
    model: StoredModel, scenes: Sequence[LabelledScene], *, data: str, split: str = "val", progress: bool = False
) -> PrecisionRecord | None:
    """Measure what bfloat16 costs a model on this CPU, and write it into the model's ``geoseg.json``.

    Nothing is written if the folder is read-only, or belongs to the package, whose models have a record. The record
    names the ``data`` set; of scenes that are cut into blocks, those of ``split`` count.

    Returns:
        The record; None if this CPU or the network does not run in bfloat16, or fewer than two classes occur.
    """
    if model.folder.is_relative_to(SHIPPED):
        return model.contract.precision
    record = measure_precision(model, scenes, data=data, split=split, progress=progress)
    if record is None:
        return None
    try:
        model.contract.model_copy(update={"precision": record}).save(model.folder)
    except OSError as error:
        log.warning("what bfloat16 costs cannot be recorded in %s: %s", model.folder, error.strerror)
    log.info(
        "bfloat16 costs this model %.2f points of mIoU; %.2f %% of pixels keep their class",
        record.loss_points,
        100 * record.bfloat16.agreement,
    )
    return record


def measure_precision(
    model: StoredModel, scenes: Sequence[LabelledScene], *, data: str, split: str = "val", progress: bool = False
) -> PrecisionRecord | None:
    """The record of `record_precision`, not written."""
    if not multiplies_bfloat16():
        return None
    ways = [Predictor(model, network=Network(backend="openvino", precision=precision)) for precision in PRECISIONS]
    count = len(model.contract.classes)
    scores = np.zeros((2, count, count), dtype=np.int64)
    equal = 0
    pixels = list(accumulate(scene.grid.height * scene.grid.width for scene in scenes))
    measured = scenes[: bisect_left(pixels, MEASURED_PX) + 1]
    total = max(pixels[: len(measured)], default=0)
    try:
        with tqdm(total=total, unit="px", unit_scale=True, desc="bfloat16", disable=not progress) as bar:
            for way in ways:
                _ = way.forward  # a network without bfloat16 is found before anything is mapped
            for labelled in measured:
                labels, row = labels_of(labelled, split), 0
                maps = [predicted_rows(way, labelled.scene, way.plan(labelled.scene)) for way in ways]
                for rows in zip(*maps, strict=True):
                    ids = [piece.classes for piece in rows]
                    truth = labels.read(Window(row, 0, len(ids[0]), labelled.grid.width))
                    row += len(ids[0])
                    for score, found in zip(scores, ids, strict=True):
                        score += count_pixels(truth, found, count)
                    equal += int(((ids[0] == ids[1]) & (truth != NODATA) & (ids[0] != NODATA)).sum())
                    bar.update(ids[0].size)
    except ModelError as error:
        log.info("this network is not measured in bfloat16: %s", error)
        return None
    whole, reduced = (Scores(score).miou for score in scores)
    if not np.isfinite([whole, reduced]).all():
        return None
    return PrecisionRecord(
        measured_on=data,
        float32=PrecisionScore(miou=round(whole, 4), agreement=1),
        bfloat16=PrecisionScore(miou=round(reduced, 4), agreement=round(equal / int(scores[0].sum()), 5)),
    )
