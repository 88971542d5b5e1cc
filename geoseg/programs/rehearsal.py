"""The path on a few pixels, in a thread, so that numba's kernels are compiled or loaded by the time they are needed.

It runs while a network is converted or a scene generated. Each part runs the real code, so there is no list of kernels.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from affine import Affine
from rasterio.crs import CRS

from geoseg.class_map.overviews import add_checksum, count_values, halve
from geoseg.classes import ClassTable
from geoseg.grid import Grid
from geoseg.map_rows import MapRows
from geoseg.options import CONTACT_SHARE, WALL_TOLERANCE, Layers, Tiling
from geoseg.polygons import PolygonRules
from geoseg.programs.vectorize import write_vectors
from geoseg.tiling.arrays import HostArrays
from geoseg.tiling.plan import LogitsShape, SceneShape, plan_prediction
from geoseg.tiling.stitcher import Stitcher
from geoseg.windows import Window

log = logging.getLogger(__name__)

Part = Callable[[], None]

_CLASSES = ClassTable.from_names(("a", "b"), ("#000000", "#ffffff"), separate={"b"})
_SIDE = 32  # px, the smallest window


@contextmanager
def rehearsing(*parts: Part) -> Iterator[None]:
    """Run parts one after the other in a thread; those not begun at the end of the context are left out.

    Errors are only logged: the real run raises them again.
    """
    with ThreadPoolExecutor(1, "geoseg-rehearsal") as thread:
        for part in parts:
            thread.submit(_quietly, part)
        try:
            yield
        finally:
            thread.shutdown(wait=False, cancel_futures=True)


def _quietly(part: Part) -> None:
    try:
        part()
    except Exception:
        log.debug("a rehearsal failed", exc_info=True)


def stitching(layers: Layers = Layers()) -> list[Part]:
    """Stitch windows to rows with the given layers, and do with rows what writing a map does."""

    def stitch() -> None:
        shape = SceneShape(height=_SIDE, width=_SIDE, pixel_bytes=3)
        logits_shape, tiling = LogitsShape(stride=4, classes=2), Tiling(size=_SIDE, overlap=0)
        plan = plan_prediction(shape, logits_shape, tiling, batch_size=1)
        span = plan.band_span(0, plan.bands - 1)
        stitcher = Stitcher(plan, span, plan.strip_span(0), HostArrays((0, 1)), layers)
        stitcher.add(Window(0, 0, _SIDE, _SIDE), np.zeros((2, _SIDE // 4, _SIDE // 4), dtype=np.float32))
        for pending in stitcher.finish(None):
            classes = pending().classes
            halve(classes[None], by_mean=False)
            add_checksum(classes[None], 0, 0, np.zeros(1, dtype=np.uint64))
            count_values(classes, np.zeros(256, dtype=np.int64))

    return [stitch]


def vectorizing(rules: PolygonRules, *suffixes: str) -> list[Part]:
    """Make polygons and files of them: with no rules, with some, with all, so that each part is short."""
    regularize, separate = ("a",) if rules.regularize else (), ("b",) if rules.separate else ()
    rules = dataclasses.replace(
        rules, dissolve={}, keep=(), regularize=regularize, regularize_tolerance=WALL_TOLERANCE, separate=separate
    )
    some = dataclasses.replace(rules, min_area_m2=0, fill_holes_m2=0, separate=(), contact_share=CONTACT_SHARE)
    grid = Grid(_SIDE, _SIDE, Affine.translation(500_000, 5_000_000) @ Affine.scale(1, -1), CRS.from_epsg(32633))
    values = (np.indices(grid.shape).sum(axis=0) // 7 % 2).astype(np.uint8)
    rows = MapRows(values, contact=np.zeros_like(values))

    def vectorize(rules: PolygonRules, suffix: str) -> None:
        with TemporaryDirectory(prefix="geoseg-") as folder:
            write_vectors([rows], grid, _CLASSES, Path(folder, "rehearsal").with_suffix(suffix), rules=rules)

    first, *others = suffixes
    steps = [(PolygonRules(), first), (some, first), (rules, first), *((rules, suffix) for suffix in others)]
    return [partial(vectorize, *step) for step in steps]
