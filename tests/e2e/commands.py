"""Run ``geoseg`` as a user would, and small models to run it with."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import rasterio
import segmentation_models_pytorch as smp
import torch
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning
from rasterio.features import rasterize
from typer.testing import CliRunner

import geoseg.models  # noqa: F401  registers SegNeXt
from geoseg.cli import app
from geoseg.contract import DEFAULT_SCALE, Band, ClassEntry, Contract, DType, WindowSettings
from geoseg.network.model_folder import Normalize, save_model

TINY = {
    "embed_dims": (8, 16, 24, 32),
    "depths": (1, 1, 1, 1),
    "decoder_channels": 32,
    "nmf_rank": 4,
    "norm_groups": 8,
}
"""A SegNeXt of 40 thousand parameters."""

CLASSES = (("grass", "#55aa33"), ("roof", "#cc3311"), ("road", "#777777"))
BANDS = ("red", "green", "blue", "nir")


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


def write_model(
    folder: Path,
    *,
    bands: int = 3,
    dtype: DType = "uint8",
    nodata: float | None = None,
    gsd_m: float | None = None,
    seed: int = 0,
    options: Mapping[str, Any] = TINY,
) -> Path:
    """A model folder with random weights, balanced so that each class is about as likely as the others."""
    torch.manual_seed(seed)
    network = smp.create_model(
        "segnext",
        encoder_name="tu-mscan_tiny",
        encoder_weights=None,
        in_channels=bands,
        classes=len(CLASSES),
        **options,
    ).eval()
    scale = DEFAULT_SCALE[dtype]
    contract = Contract(
        name="random",
        bands=tuple(Band(name=name, mean=0.5 if dtype != "uint16" else 3.3, std=0.2) for name in BANDS[:bands]),
        dtype=dtype,
        scale=scale,
        nodata="file" if nodata is None else nodata,
        gsd_m=gsd_m,
        classes=tuple(ClassEntry(name=name, color=color) for name, color in CLASSES),
        window=WindowSettings(size=64, overlap=32),
    )
    with torch.inference_mode():
        shades = torch.nn.functional.interpolate(torch.rand(8, bands, 12, 12), size=(96, 96))
        logits = network.forward_logits(Normalize(contract)(shades / scale * (1.0 if dtype != "uint16" else 6.6)))
        network.segmentation_head.weight /= logits.std()
        network.segmentation_head.bias -= logits.mean((0, 2, 3)) / logits.std()
    save_model(folder, network, contract)
    return folder


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
