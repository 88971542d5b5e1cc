"""Whatever raster is named, a verb does its work in the raster's place, or refuses it in one message.

Drawn are CRS × transform × nodata × data type × bands.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

import geopandas
import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import yaml
from affine import Affine
from hypothesis import event, given
from hypothesis import strategies as st
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning

from geoseg.contract import DType
from support.commands import Ran, files_in, run
from support.model_folders import BANDS, CLASSES, write_model
from support.networks import SHALLOW, TINY

SIZE = (40, 56)

# CRS, and a place and a pixel size that it can have.
CRSS: dict[str, tuple[str | None, float, float, float]] = {
    "UTM": ("EPSG:32633", 500_000, 5_200_000, 0.5),
    "degrees": ("EPSG:4326", 15, 47, 5e-6),
    "degrees at the antimeridian": ("EPSG:4326", 179.9999, -17, 5e-6),
    "feet": ("EPSG:2263", 980_000, 200_000, 1.64),
    "with heights": ("EPSG:32633+5773", 500_000, 5_200_000, 0.5),
    "of no authority": ("+proj=tmerc +lon_0=9 +k=1 +x_0=500000 +ellps=bessel +units=m", 500_000, 5_200_000, 0.5),
    "Mars": ("IAU_2015:49910", 1e5, 2e5, 0.14),
    "Moon": ("IAU_2015:30100", 10, 20, 1e-5),
    "site": ('LOCAL_CS["site grid",UNIT["metre",1],AXIS["x",EAST],AXIS["y",NORTH]]', 1000, 2000, 0.1),
    "heights alone": ("EPSG:5773", 1000, 2000, 0.1),
    "geocentric": ("EPSG:4978", 4e6, 1e6, 0.5),
    "wrong": ("EPSG:4326", 500_000, 5_200_000, 0.5),
    "none": (None, 500_000, 5_200_000, 0.5),
}
TRANSFORMS = ("north-up", "south-up", "rotated", "non-square", "none", "GCPs", "GCPs without CRS")
NODATA = ("none", "value", "unlikely value", "mask", "alpha", "nan")
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64", "complex64")
OUTPUTS = (".tif", ".gpkg", ".geojson", ".fgb", ".shp")
VERBS = ("predict", "vectorize", "train")


@dataclass(frozen=True)
class Drawn:
    """A raster as it is drawn."""

    crs: str
    transform: str
    nodata: str
    dtype: str
    bands: int
    output: str
    verb: str


def transform_of(drawn: Drawn) -> Affine | None:
    _, left, top, size = CRSS[drawn.crs]
    scale = {
        "north-up": Affine.scale(size, -size),
        "south-up": Affine.scale(size, size),
        "rotated": Affine.rotation(30) @ Affine.scale(size, -size),
        "non-square": Affine.scale(size * 2, -size / 2),
    }
    return Affine.translation(left, top) @ scale[drawn.transform] if drawn.transform in scale else None


def write(path: Path, drawn: Drawn, *, labels: bool = False) -> npt.NDArray[np.bool_]:
    """The raster, or class ids on its grid; where its pixels mean something."""
    height, width = SIZE
    rows, cols = np.mgrid[:height, :width]
    valid = rows + cols > 15
    dtype = np.dtype("uint8" if labels else drawn.dtype)
    pixels = np.random.default_rng(0).integers(1, 120, (1 if labels else drawn.bands, *SIZE))
    if labels:
        pixels = (rows // 8 + cols // 8)[None] % len(CLASSES)
    pixels = pixels.astype(dtype)
    kind = "none" if labels else drawn.nodata
    nodata = {"value": 0, "unlikely value": -9999, "nan": np.nan}.get(kind)
    if kind in ("value", "nan"):
        pixels[:, ~valid] = nodata if dtype.kind in "fc" or kind == "value" else 0
    if kind not in ("value", "mask", "alpha") and (kind != "nan" or dtype.kind not in "fc"):
        valid = np.ones_like(valid)
    text = CRSS[drawn.crs][0]
    crs = None if text is None or drawn.transform.startswith("GCPs") else CRS.from_user_input(text)
    can_be = nodata is not None and (
        dtype.kind in "fc" or (nodata == nodata and np.can_cast(np.min_scalar_type(nodata), dtype))
    )
    with (
        warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning),
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path,
            "w",
            driver="GTiff",
            height=height,
            width=width,
            count=len(pixels) + (kind == "alpha"),
            dtype=dtype,
            nodata=nodata if can_be else None,
            **{key: value for key, value in (("crs", crs), ("transform", transform_of(drawn))) if value is not None},
        ) as file,
    ):
        file.write(pixels, list(range(1, len(pixels) + 1)))
        if kind == "mask":
            file.write_mask(valid)
        if kind == "alpha":
            file.write((valid * 200).astype(dtype), len(pixels) + 1)
            file.colorinterp = [*file.colorinterp[: len(pixels)], ColorInterp.alpha]
        if drawn.transform.startswith("GCPs"):
            points = [GroundControlPoint(r, c, 15 + c * 5e-6, 47 - r * 5e-6) for r in (0, height) for c in (0, width)]
            file.gcps = points, CRS.from_epsg(4326) if drawn.transform == "GCPs" else CRS()
    return valid


@pytest.fixture(scope="module")
def models() -> Iterator[Any]:
    with tempfile.TemporaryDirectory() as folder:

        @cache
        def model(bands: int, dtype: str) -> Path:
            known = dtype if dtype in get_args(DType) else "uint8"
            return write_model(Path(folder) / f"{bands}-{known}", bands=bands, dtype=known, options=SHALLOW)  # type: ignore[arg-type]

        yield model


def check_end(ran: Ran) -> bool:
    """Whether a command did its work; else it has refused, in one message."""
    assert ran.exit_code in (0, 2), ran.stderr
    assert "Traceback" not in ran.stderr
    if ran.exit_code == 2:
        lines = ran.stderr.splitlines()
        assert lines[0].startswith("error: ") and sum(line.startswith("error: ") for line in lines) == 1, ran.stderr
        assert ran.stdout == ""
    return ran.exit_code == 0


def check_place(path: Path, drawn: Drawn, scene: Path, valid: npt.NDArray[np.bool_], *, is_map: bool) -> None:
    """Whether a map, or its polygons, lie where the scene does."""
    with warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning), rasterio.open(scene) as file:
        transform, crs = file.transform, file.crs
    if path.suffix == ".tif":
        with warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning), rasterio.open(path) as file:
            assert file.shape == SIZE and file.crs == crs
            assert file.transform.almost_equals(transform, precision=1e-9)
            np.testing.assert_array_equal(file.read(1) != 255, valid)
        return
    with warnings.catch_warnings(action="ignore"):
        frame = geopandas.read_file(path)
    if transform.is_identity:
        transform, crs = Affine.scale(1, -1), None
    corners = np.array([transform @ (c, r) for c in (0, SIZE[1]) for r in (0, SIZE[0])])
    if path.suffix == ".geojson" and crs is not None:
        corners = np.array(geopandas.points_from_xy(*corners.T, crs=crs).to_crs(4326).to_numpy())
        corners = np.array([(point.x, point.y) for point in corners])
        if corners[:, 0].max() > 180 or np.ptp(corners[:, 0]) > 180:  # cut at the antimeridian
            corners = corners[:, 1:]
            frame = frame.set_geometry(frame.geometry.affine_transform([0, 0, 0, 1, 0, 0]))
    low, high = corners.min(axis=0), corners.max(axis=0)
    slack = 1e-3 * (high - low).max()
    left, bottom, right, top = frame.total_bounds
    found = np.array([[left, bottom], [right, top]])[:, -corners.shape[1] :]
    assert (found[0] >= low - slack).all() and (found[1] <= high + slack).all()
    if is_map:  # of every pixel
        np.testing.assert_allclose(found, [low, high], atol=slack)


@given(
    drawn=st.builds(
        Drawn,
        crs=st.sampled_from(list(CRSS)),
        transform=st.sampled_from(TRANSFORMS),
        nodata=st.sampled_from(NODATA),
        dtype=st.sampled_from(DTYPES),
        bands=st.integers(1, 4),
        output=st.sampled_from(OUTPUTS),
        verb=st.sampled_from(VERBS),
    )
)
def test_any_raster_is_mapped_in_its_place_or_refused(models: Any, drawn: Drawn) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scene, labels = folder / "scene.tif", folder / "labels.tif"
        valid = write(scene, drawn)
        write(labels, drawn, labels=True)
        check_end(run("info", scene))
        check_end(run("info", labels))
        if drawn.verb == "train":
            check_training(folder, drawn)
            return
        if drawn.verb == "predict":
            out, source = folder / f"map{drawn.output}", scene
            alpha = ["--alpha"] if drawn.nodata == "alpha" else []
            words = ["predict", scene, "-m", models(drawn.bands, drawn.dtype), "-o", out, *alpha]
        else:
            out, source = folder / f"vectors{drawn.output if drawn.output != '.tif' else '.parquet'}", labels
            words = ["vectorize", labels, "-o", out, "--simplify", "none"]
        before = files_in(folder)
        done = check_end(run(*words))
        event(f"{drawn.verb} {'done' if done else 'refused'}")
        if not done:
            assert files_in(folder) == before
            return
        assert not drawn.transform.startswith("GCPs")
        if out.suffix != ".parquet":
            check_place(out, drawn, source, valid, is_map=drawn.verb == "vectorize")


def check_training(folder: Path, drawn: Drawn) -> None:
    entry = {"scene": "scene.tif", "labels": "labels.tif"}
    values = {
        "name": "any",
        "output": "run",
        "classes": [{"name": name, "color": color} for name, color in CLASSES],
        "model": {"options": TINY},
        "imagery": {"bands": list(BANDS[: drawn.bands]), "dtype": drawn.dtype, "alpha": drawn.nodata == "alpha"},
        "data": {"train": [entry], "val": [entry], "leakage": "warn"},
        "window": {"size": 64, "overlap": 32},
        "train": {"iterations": 1, "batch_size": 1, "size": 32, "workers": 0, "val_every": 1},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    ran = run("train", folder / "config.yaml", "--check")
    assert ran.exit_code in (0, 2), ran.stderr
    assert "Traceback" not in ran.stderr
    if ran.exit_code == 2:  # a list of problems, or a data type that no configuration takes
        assert " error" in ran.stdout or ran.stderr.startswith("error: "), ran.stderr
