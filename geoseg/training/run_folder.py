"""The folder of a run: ``config.yaml``, ``environment.json``, ``checkpoints/``, ``logs/`` and ``model/``."""

from __future__ import annotations

import errno
import json
import logging
import pickle
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

from geoseg.config import TrainConfig, load_config
from geoseg.errors import ConfigError, GeosegError, reason
from geoseg.files import DISK_ERRORS, output_error
from geoseg.training.callbacks import BEST, LAST, Checkpoints
from geoseg.training.failures import GO_ON
from geoseg.training.processes import Team
from geoseg.training.start import StartingScores
from geoseg.training.task import SegmentationTask, windows_per_step
from geoseg.version import __version__

log = logging.getLogger(__name__)

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
_DISK_ERRORS = DISK_ERRORS | {errno.EACCES, errno.EPERM, errno.EIO}
_PACKAGES = (
    *("torch", "lightning", "segmentation-models-pytorch", "timm", "numpy"),
    *("rasterio", "geopandas", "albumentations", "safetensors"),
)
FREE_WHEN_RESUMED = (
    *("batch_size", "accumulate", "cache_mb", "checkpoint_every", "compile"),
    *("patience", "precision", "val_every", "workers"),
)
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
    except OSError as error:
        if isinstance(error, GeosegError) or error.errno not in _DISK_ERRORS:
            raise
        hint = f"free some space and {GO_ON}"
        raise output_error(f"cannot write into run folder {run}", error, hint=hint) from error


def find_checkpoint(config: TrainConfig, processes: int) -> Resumed:
    """The last checkpoint of the configuration's run.

    A `ConfigError` if there is none, or the run had another configuration, or other windows per step.
    """
    path = config.output / "checkpoints" / LAST
    if not path.is_file():
        raise ConfigError(f"nothing to resume: {path} does not exist", hint="leave out --resume")
    started = load_config(config.output / CONFIG)
    _check_same(config, started)
    checkpoint = _load(path)
    before, now = checkpoint["windows_per_step"], windows_per_step(config.train, processes)
    if before != now:
        changed = [
            f"train.{key} {getattr(started.train, key)}, now it is {getattr(config.train, key)}: "
            for key in ("batch_size", "accumulate")
            if getattr(started.train, key) != getattr(config.train, key)
        ]
        raise ConfigError(
            f"{config.output / CONFIG} began with {''.join(changed[:1])}{before} windows made a step, now {now} would",
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
    scores = {key.removeprefix("val_"): round(float(score), 4) for key, score in checkpoint["val_scores"].items()}
    found = {"best_iteration": int(checkpoint["global_step"]), "val_miou": scores["miou"]}
    if started := checkpoint["callbacks"].get(StartingScores.__qualname__, {}).get("scores"):
        found["val_miou_at_start"] = before = round(started["val_miou"], 4)
        if scores["miou"] < before:
            log.warning(
                "the best network of the run, of iteration %d, has mIoU %.4f; the model it started from had %.4f: "
                "lower train.learning_rate, train longer, or keep that model",
                *found.values(),
            )
    iou = {key.removeprefix("iou_"): score for key, score in scores.items() if key.startswith("iou_")}
    return {**found, "val_iou": iou}


def _load(path: Path) -> dict[str, Any]:
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ConfigError(
            f"checkpoint {path} cannot be read: {reason(error)}",
            hint="start again with --overwrite, or copy the run's other checkpoint to its place",
        ) from error
    return checkpoint


def _check_same(config: TrainConfig, started: TrainConfig) -> None:
    """Refuse to resume with other windows, another network or another schedule."""
    before, now = (c.model_dump(mode="json", exclude={"output", "card"}) for c in (started, config))
    for settings in before, now:
        for key in FREE_WHEN_RESUMED:
            del settings["train"][key]
    if changed := [key for key in now if now[key] != before[key]]:
        key = changed[0]
        old, new = before[key], now[key]
        if isinstance(new, dict):
            inner = next(k for k in new if new[k] != old[k])
            old, new, key = old[inner], new[inner], f"{key}.{inner}"
        raise ConfigError(
            f"{config.output / CONFIG} began with {key} {old!r:.60}, now it is {new!r:.60}",
            hint="resume with the same configuration, or leave out --resume and give output=OTHER",
        )


def add_environment(run: Path, team: Team, seed: int) -> None:
    """Append what a run's result may depend on besides the configuration to the list in ``environment.json``.

    A resumed run has several.
    """
    described = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "folder": str(Path.cwd()),
        "seed": seed,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(team.device),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "processes": team.size,
        "threads": torch.get_num_threads(),
        "geoseg": __version__,
        "versions": {n: next((d.version for d in distributions(name=n)), None) for n in _PACKAGES},
        "git": {"folder": git_state(Path.cwd()), "geoseg": git_state(Path(__file__).parents[1])},
    }
    path = run / ENVIRONMENT
    starts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    path.write_text(json.dumps([*starts, described], indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the repository of a folder, and whether files differ from it; None outside a repository."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None
