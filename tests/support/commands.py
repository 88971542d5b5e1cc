"""Run ``geoseg`` as a user would, in this process, and read what it wrote."""

from __future__ import annotations

import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning
from rasterio.features import rasterize
from typer.testing import CliRunner

import geoseg.models  # noqa: F401  registers SegNeXt
from geoseg.cli import app


@dataclass(frozen=True)
class Ran:
    """What a command left on the screen."""

    exit_code: int
    stdout: str
    stderr: str


def run(*arguments: object) -> Ran:
    """``geoseg ARGUMENTS``; an exception that would reach the user as a traceback stands on its stderr."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="geoseg")
    stderr = result.stderr
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        stderr += "".join(traceback.format_exception(result.exception))
    return Ran(result.exit_code, result.stdout, stderr)


def succeed(*arguments: object) -> str:
    """Stdout of a command that must succeed."""
    ran = run(*arguments)
    assert ran.exit_code == 0, ran.stderr
    assert "Traceback" not in ran.stderr
    return ran.stdout


def read_map(path: Path) -> tuple[npt.NDArray[np.uint8], dict[str, Any]]:
    """Values and profile of a class map, as any GDAL program sees them."""
    with warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning), rasterio.open(path) as file:
        return file.read(1), {**file.profile, "colors": _colors(file), "tags": file.tags()}


def burn(frame: geopandas.GeoDataFrame, shape: tuple[int, int], transform: Affine) -> npt.NDArray[np.uint8]:
    """Class ids of polygons on a grid, 255 where there are none."""
    shapes = zip(frame.geometry, frame.class_id, strict=True)
    return rasterize(shapes, out_shape=shape, transform=transform, fill=255, dtype="uint8")


def files_in(folder: Path) -> list[str]:
    """Everything below a folder, hidden files too."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def _colors(file: Any) -> dict[int, tuple[int, ...]]:
    try:
        return dict(file.colormap(1))
    except ValueError:
        return {}
