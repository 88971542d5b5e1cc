"""The environment of a run: machine, versions, command, state of the repositories."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from geoseg.training.processes import Team
from geoseg.version import __version__

PACKAGES = (
    "torch",
    "lightning",
    "segmentation-models-pytorch",
    "timm",
    "numpy",
    "rasterio",
    "geopandas",
    "albumentations",
    "safetensors",
)
ENVIRONMENT_FILE = "environment.json"


def describe_environment(team: Team, seed: int) -> dict[str, Any]:
    """Everything a run's result may depend on, besides the configuration."""
    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "folder": str(Path.cwd()),
        "seed": seed,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(team.device),
        "gpus": gpus,
        "processes": team.size,
        "threads": torch.get_num_threads(),
        "geoseg": __version__,
        "versions": {name: _version(name) for name in PACKAGES},
        "git": {"folder": git_state(Path.cwd()), "geoseg": git_state(Path(__file__).parents[1])},
    }


def add_environment(run: Path, described: dict[str, Any]) -> None:
    """Append it to the run folder's list: a resumed run has several."""
    path = run / ENVIRONMENT_FILE
    starts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    path.write_text(json.dumps([*starts, described], indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the repository of a folder, and whether files differ from it; None outside a repository."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return {"commit": commit, "changed": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=True
    )
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
