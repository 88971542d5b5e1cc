"""The folder of a run: ``config.yaml``, ``environment.json``, ``checkpoints/``, ``logs/`` and ``model/``."""

from __future__ import annotations

import errno
import logging
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from geoseg.config import TrainConfig, load_config
from geoseg.errors import ConfigError, GeosegError, in_one_line
from geoseg.files import DISK_ERRORS, output_error
from geoseg.training.callbacks import BEST, LAST, Checkpoints
from geoseg.training.failures import GO_ON
from geoseg.training.start import starting_miou
from geoseg.training.task import SegmentationTask, windows_per_step

log = logging.getLogger(__name__)

CONFIG = "config.yaml"
_DISK_ERRORS = DISK_ERRORS | {errno.EACCES, errno.EPERM, errno.EIO}
FREE_WHEN_RESUMED = [
    "batch_size",
    "accumulate",
    "cache_mb",
    "checkpoint_every",
    "compile",
    "patience",
    "precision",
    "val_every",
    "workers",
]
"""Settings of the recipe that may change: they affect neither windows nor schedule. How many windows make a step is
checked separately."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """The checkpoint a run goes on from."""

    path: Path  # the file
    step: int  # iterations done
    has_ended_early: bool  # whether nothing is left to do, as validations had brought nothing better for long


def make_run_folder(run: Path, *, resume: bool) -> None:
    """Make an empty folder, or keep the existing one; a symbolic link to a folder stays."""
    run = run.resolve()
    try:
        if run.exists() and not resume:
            shutil.rmtree(run)
        for folder in ("checkpoints", "logs"):
            (run / folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(f"cannot make run folder {run}", error, hint="choose another output=…") from error


@contextmanager
def writing_into(run: Path) -> Iterator[None]:
    """Report why a run cannot write its table, its configuration and so on."""
    try:
        yield
    except GeosegError:
        raise
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        hint = f"free some space and {GO_ON}"
        raise output_error(f"cannot write into run folder {run}", error, hint=hint) from error


def find_checkpoint(config: TrainConfig, processes: int) -> Resumed:
    """The last checkpoint of the configuration's run.

    Raises:
        ConfigError: There is none, or the run had another configuration, or other windows per step.
    """
    path = config.output / "checkpoints" / LAST
    if not path.is_file():
        raise ConfigError(f"nothing to resume: {path} does not exist", hint="leave out --resume")
    started = load_config(config.output / CONFIG)
    _check_same(config, started)
    checkpoint = _load(path)
    before, now = checkpoint["windows_per_step"], windows_per_step(config.train, processes)
    if before != now:
        key, old, new = next(
            (f"train.{key}", getattr(started.train, key), getattr(config.train, key))
            for key in ("batch_size", "accumulate", "iterations")
            if getattr(started.train, key) != getattr(config.train, key) or key == "iterations"
        )
        words = f"{key} {old}, now it is {new}: " if old != new else ""
        raise ConfigError(
            f"{config.output / CONFIG} began with {words}{before} windows made a step, now {now} would",
            hint="keep train.batch_size × train.accumulate × devices as it was",
        )
    state = checkpoint["callbacks"][Checkpoints.__qualname__]
    if state["best"] is not None:
        _load(path.with_name(BEST))
    patience = config.train.patience
    ended = patience is not None and state["since_best"] >= patience
    return Resumed(path, int(checkpoint["global_step"]), ended)


def load_best(task: SegmentationTask, run: Path) -> dict[str, Any]:
    """Load the best weights, or their moving average if any, into the task; returns their validation scores."""
    checkpoint = _load(run / "checkpoints" / BEST)
    task.load_state_dict(checkpoint["state_dict"])
    scores, before = checkpoint["val_scores"], starting_miou(checkpoint)
    miou = round(float(scores["val_miou"]), 4)
    before = None if before is None else round(before, 4)
    if before is not None and miou < before:
        log.warning(
            "the best network of the run, of iteration %d, has mIoU %.4f; the model it started from had %.4f: "
            "lower train.learning_rate, train longer, or keep that model",
            checkpoint["global_step"],
            miou,
            before,
        )
    return {
        "best_iteration": int(checkpoint["global_step"]),
        "val_miou": miou,
        **({"val_miou_at_start": before} if before is not None else {}),
        "val_iou": {
            key.removeprefix("val_iou_"): round(float(value), 4)
            for key, value in scores.items()
            if key.startswith("val_iou_")
        },
    }


def _load(path: Path) -> dict[str, Any]:
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ConfigError(
            f"checkpoint {path} cannot be read: {getattr(error, 'strerror', None) or in_one_line(error)}",
            hint="start again with --overwrite, or copy the run's other checkpoint to its place",
        ) from error
    return checkpoint


def _check_same(config: TrainConfig, started: TrainConfig) -> None:
    """Refuse to resume with other windows, another network or another schedule."""
    before, now = (c.model_dump(mode="json", exclude={"output", "card"}) for c in (started, config))
    for settings in before, now:
        for key in FREE_WHEN_RESUMED:
            del settings["train"][key]
    changed = [key for key in now if now[key] != before[key]]
    if changed:
        key = changed[0]
        if isinstance(now[key], dict):
            inner = next(k for k in now[key] if now[key][k] != before[key][k])
            old, new, key = before[key][inner], now[key][inner], f"{key}.{inner}"
        else:
            old, new = before[key], now[key]
        raise ConfigError(
            f"{config.output / CONFIG} began with {key} {old!r:.60}, now it is {new!r:.60}",
            hint="resume with the same configuration, or leave out --resume and give output=OTHER",
        )
