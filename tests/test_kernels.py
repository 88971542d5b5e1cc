"""Kernels: how often each is compiled, what of them is kept, and what a first run says."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import numba
import pytest
from numba.core import event

from geoseg.runtime import jit

MOST_KERNELS = 24
"""Kernels of a map and its polygons by the default rules; each costs a new user some tenths of a second."""

RUNS = """
import dataclasses, json, sys
import numpy as np
from affine import Affine
from rasterio.crs import CRS
from geoseg.classes import ClassTable
from geoseg.grid import Grid
from geoseg.map_rows import MapRows
from geoseg.tiling.arrays import HostArrays
from geoseg.tiling.plan import LogitsShape, SceneShape, plan_prediction
from geoseg.options import Tiling
from geoseg.polygons import PolygonRules, Tolerance, polygonize_rows
from geoseg.programs.rehearsal import stitching, vectorizing
from geoseg.tiling.stitcher import Stitcher
from geoseg.programs.vectorize import DEFAULT_RULES
from geoseg.windows import Window

rules = dataclasses.replace(DEFAULT_RULES, min_area_m2=3)
classes = ClassTable.from_names("abc", ["#000000", "#888888", "#ffffff"])
random = np.random.default_rng(0)


def signatures():
    found = {}
    for name, module in list(sys.modules.items()):
        if name.startswith("geoseg."):
            for thing in vars(module).values():
                if hasattr(thing, "signatures") and thing.signatures and thing.py_func.__module__ == name:
                    found[f"{name}.{thing.py_func.__name__}"] = len(thing.signatures)
    return found


def vectorize(height, width, rules, crs=32633, pixel=1.0, *, step=7, confidence=False, band_rows=None):
    grid = Grid(height, width, Affine(pixel, 0, 0, 0, -pixel, 40), crs and CRS.from_epsg(crs))
    values = random.integers(0, 3, grid.shape).repeat(3, axis=0).repeat(3, axis=1)[:height, :width].astype(np.uint8)
    values.flags.writeable = False
    pieces = (values[i : i + step] for i in range(0, height, step))
    rows = (MapRows(piece, piece if confidence else None) for piece in pieces)
    assert sum(map(len, polygonize_rows(rows, grid, classes, rules=rules, band_rows=band_rows)))


def stitch(height, width, overlap, number, logits):
    size = 64
    plan = plan_prediction(
        SceneShape(height=height, width=width, pixel_bytes=3),
        LogitsShape(stride=8, classes=number),
        Tiling(size=size, overlap=overlap),
        batch_size=1,
    )
    rows, cols = plan.band_span(0, plan.bands - 1), plan.strip_span(0)
    state = Stitcher(plan, rows, cols, HostArrays(tuple(range(number))))
    for row, following in zip(rows.starts, (*rows.starts[1:], None), strict=True):
        for col in cols.starts:
            state.add(Window(row, col, size, size), random.random((number, size // 8, size // 8)).astype(logits))
        for pending in state.finish(following):
            pending()


for part in [*stitching(), *vectorizing(rules, ".gpkg")]:
    part()
rehearsed = signatures()
vectorize(50, 70, rules)
vectorize(90, 41, rules, step=90, confidence=True)
vectorize(60, 60, rules, 4326, 1e-5)
stitch(200, 300, 32, 3, np.float32)
stitch(64, 64, 0, 5, np.float16)
stitch(300, 64, 32, 2, np.float32)
same = signatures()
vectorize(90, 80, rules, band_rows=16)
vectorize(60, 60, rules, None)
vectorize(60, 60, PolygonRules())
vectorize(60, 60, PolygonRules(smooth=True, fill_holes_m2=20))
vectorize(60, 60, PolygonRules(simplify=Tolerance(1.0, "px"), method="dp"))
print(json.dumps([rehearsed, same, signatures()]))
"""


@pytest.fixture(scope="module")
def signatures() -> list[dict[str, int]]:
    """How many signatures each kernel has after a rehearsal, after usual runs, and after unusual ones."""
    ran = subprocess.run([sys.executable, "-c", RUNS], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    found: list[dict[str, int]] = json.loads(ran.stdout)
    return found


def test_usual_runs_need_no_kernel_beyond_the_rehearsal(signatures: list[dict[str, int]]) -> None:
    rehearsed, same, _ = signatures
    assert same == rehearsed
    assert len(rehearsed) <= MOST_KERNELS


def test_a_kernel_is_compiled_for_one_set_of_types(signatures: list[dict[str, int]]) -> None:
    *_, every = signatures
    chosen = every.pop("geoseg.polygons.simplify.generalize._simplify_arcs")
    assert chosen == 2  # by area, and by distance
    assert set(every.values()) == {1}


def test_a_kernel_follows_helpers_that_change_in_other_files(tmp_path: Path) -> None:
    (tmp_path / "kernels.py").write_text(
        "from geoseg.runtime.jit import njit\nfrom helpers import answer\n\n"
        "@njit\ndef ask() -> int:\n    return answer()\n"
    )
    said = []
    for number in (1, 2, 1):
        (tmp_path / "helpers.py").write_text(
            f"from geoseg.runtime.jit import helper\n\n@helper\ndef answer() -> int:\n    return {number}\n"
        )
        code = "from kernels import ask; print(ask(), sum(ask.stats.cache_hits.values()))"
        path = os.pathsep.join([str(tmp_path), *sys.path])
        ran = subprocess.run(
            [sys.executable, "-B", "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
        )
        said.append(ran.stdout.split())
    assert said == [["1", "0"], ["2", "0"], ["1", "1"]]  # what it returned, and whether it was kept


def test_helpers_live_in_the_package_of_their_kernels() -> None:
    """Or beside `jit`: what lies elsewhere could change without the kernel being compiled anew."""
    package = Path(jit.__file__).parents[1]
    sources = {path.relative_to(package): path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    helpers = {
        (".".join(("geoseg", *path.with_suffix("").parts)), name)
        for path, source in sources.items()
        for name in re.findall(r"^@helper\ndef (\w+)", source, re.MULTILINE)
    }
    assert len(helpers) > 30
    elsewhere = [
        (str(path), name)
        for path, source in sources.items()
        for module, names in re.findall(r"from (geoseg[\w.]+) import (\([^)]*\)|.*)", source)
        for name in re.findall(r"\w+", names)
        if (module, name) in helpers and module.split(".")[1] not in (path.parts[0], "runtime")
    ]
    assert elsewhere == []


@pytest.mark.skipif(not Path("/proc/tty/drivers").exists(), reason="needs a file in a folder that nobody can write to")
def test_kernels_run_where_no_folder_can_keep_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    names: dict[str, object] = {}
    exec(compile("def double(x):\n    return 2 * x\n", "/proc/tty/drivers", "exec"), names)
    with pytest.raises(RuntimeError, match="no locator"):
        numba.njit(cache=True)(names["double"])
    assert jit.njit(names["double"])(21) == 42  # type: ignore[arg-type]


def test_compiling_kernels_is_reported_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(jit, "PATIENCE_S", 0.0)
    monkeypatch.setattr(jit._watch, "_said", True)  # of this process
    with caplog.at_level(logging.INFO, "geoseg.runtime.jit"), event.install_listener("numba:compile", jit._Watch()):
        for _ in range(3):
            numba.njit(lambda x: x + 1)(1)
    assert [record.message for record in caplog.records] == ["compiling kernels, once; about 10 s"]
