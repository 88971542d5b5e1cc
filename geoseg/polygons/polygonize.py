"""Class map → polygons: a valid coverage, streamed from rows to batches, or as one frame.

The borders between regions are cut into arcs from junction to junction, each of which is simplified once and used by
both its neighbours (see `geoseg.polygons.joining`). So neighbours have the same vertices along a common border before
and after every step: simplified, smoothed, reprojected, rounded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import pandas as pd
from affine import Affine
from rasterio.crs import CRS

from geoseg.classes import NODATA, ClassTable
from geoseg.errors import LabelError
from geoseg.grid import Grid
from geoseg.map_rows import CONFIDENCE_SCALE, MapRows
from geoseg.polygons.batch import FloatArray, IntArray, PolygonBatch
from geoseg.polygons.cracks import SUBPIXEL
from geoseg.polygons.finish import arc_finisher, rows_around
from geoseg.polygons.joining import ClosedPolygons, Tracer
from geoseg.polygons.measure import Measure
from geoseg.polygons.regions import filter_regions
from geoseg.polygons.regularize import Regularize
from geoseg.polygons.rules import ClassRules, PolygonRules, class_rules

ByteArray = npt.NDArray[np.uint8]

_FEED_PX = 1 << 22
_NOTHING, _ZERO = np.zeros(0, dtype=np.int64), np.zeros(1, dtype=np.int64)
_NO_POLYGONS = ClosedPolygons(
    value=_NOTHING.astype(np.uint8),
    xy=np.empty((0, 2), dtype=np.int32),
    rings=_ZERO,
    polygons=_ZERO,
    pixels=_NOTHING,
    first=_NOTHING,
    confidence_sum=_NOTHING,
    confidence_min=_NOTHING.astype(np.uint8),
)


def polygonize(
    values: ByteArray,
    transform: Affine,
    *,
    crs: Any = None,
    classes: ClassTable | None = None,
    nodata: int = NODATA,
    confidence: ByteArray | None = None,
    rules: PolygonRules | None = None,
) -> geopandas.GeoDataFrame:
    """Polygons of a class map in memory: a valid coverage, one row per 4-connected region of a class.

    Args:
        values: Class map, (H, W) uint8.
        transform: Affine pixel → CRS; rotated and south-up ones too.
        crs: Anything that rasterio takes as a CRS, or None.
        classes: Names of the ids; None gives ``class_0``, ``class_1``, …
        nodata: Value that becomes no polygon.
        confidence: Confidence of each pixel as `geoseg.map_rows.MapRows` holds it, (H, W) uint8, or None.
        rules: What becomes of small regions and of borders; None keeps every pixel step.

    Returns:
        Columns class_id (int32), class_name (str), area_m2 and perim_m (true ones on the ellipsoid, in pixels without
        a CRS), with ``confidence`` also conf_mean and conf_min (0 … 1), and geometry in the CRS, shells
        counter-clockwise. Rows are ordered by the last row of pixels that a region has, then by its first pixel.

    Raises:
        LabelError: A value that the class table does not have.
        ConfigError: A tolerance in metres and no CRS, or a class in the rules that the table does not have.
    """
    height, width = values.shape
    grid = Grid(height, width, transform, None if crs is None else CRS.from_user_input(crs))
    if nodata != NODATA:
        values = np.where(values == nodata, np.uint8(NODATA), values)
    if classes is None:
        classes = _numbered(int(values.max(where=values != NODATA, initial=0)) + 1)
    step = max(_FEED_PX // max(width, 1), 1)
    rows = (
        MapRows(values[i : i + step], None if confidence is None else confidence[i : i + step])
        for i in range(0, height, step)
    )
    rules = rules or PolygonRules()
    batches = list(polygonize_rows(rows, grid, classes, rules=rules))
    return to_frame(batches, grid, class_rules(rules, classes).classes)


def polygonize_rows(
    rows: Iterable[MapRows],
    grid: Grid,
    classes: ClassTable,
    *,
    rules: PolygonRules | None = None,
    threads: int = 2,
    band_rows: int | None = None,
) -> Iterator[PolygonBatch]:
    """Polygons of a class map that arrives row by row, in batches, as they close.

    The polygons, their order and their numbers depend on the map alone, not on how its rows arrive. Memory grows with
    the width and with the regions and borders that are still open, not with the height.

    Args:
        rows: The map from top to bottom; with confidence in all of them or in none.
        grid: Grid of the whole map.
        classes: Names of the ids.
        rules: See `polygonize`.
        threads: Bands that are traced at once.
        band_rows: Rows of a band, of which memory holds a few; None takes bands of some 4 Mpx.

    Yields:
        Batches in the coordinates of the CRS, class ids of the table after dissolving (`class_rules`), with columns
        as of `polygonize`.

    Raises:
        LabelError: A value that the class table does not have.
        ConfigError: See `polygonize`; raised by the first batch.
    """
    rules = rules or PolygonRules()
    resolved = class_rules(rules, classes)
    tolerance_px = rules.simplify.in_pixels(grid) if rules.simplify else 0.0
    regularize = Regularize(resolved.regularized) if resolved.regularized else None
    finish = None
    if tolerance_px > 0 or rules.smooth or regularize:
        finish = arc_finisher(
            tolerance_px=tolerance_px, method=rules.method, smooth=rules.smooth, regularize=regularize, threads=threads
        )
    tracer = Tracer(
        grid.width,
        finish=finish,
        lookahead=rows_around(smooth=rules.smooth, regularize=regularize),
        near_classes=resolved.regularized,
        threads=threads,
        band_rows=band_rows,
    )
    measure = Measure(grid)
    mapped = _mapped(rows, classes, resolved)
    if rules.min_area_m2 > 0 or rules.fill_holes_m2 > 0:
        mapped = filter_regions(
            mapped,
            width=grid.width,
            row_areas=grid.pixel_area_m2(),
            min_area=rules.min_area_m2,
            small=rules.small,
            fill_holes=rules.fill_holes_m2,
        )
    with tracer:
        has_confidence, batches = False, 0
        for values, confidence in mapped:
            has_confidence = confidence is not None
            for closed in tracer.feed(values, confidence):
                batches += 1
                yield _batch(closed, grid, measure, has_confidence=has_confidence)
        for closed in tracer.close():
            batches += 1
            yield _batch(closed, grid, measure, has_confidence=has_confidence)
    if not batches:  # a file without polygons has its fields all the same
        yield _batch(_NO_POLYGONS, grid, measure, has_confidence=has_confidence)


def to_frame(batches: Sequence[PolygonBatch], grid: Grid, classes: ClassTable) -> geopandas.GeoDataFrame:
    """Batches as one frame in the grid's CRS, with class names."""
    ids = np.concatenate([np.zeros(0, dtype=np.uint8), *(batch.class_id for batch in batches)])
    names = np.array([c.name for c in classes], dtype=object)
    columns: dict[str, Any] = {"class_id": ids.astype(np.int32), "class_name": pd.Series(names[ids], dtype="str")}
    for name in batches[0].columns if batches else ("area_m2", "perim_m"):
        columns[name] = np.concatenate([np.zeros(0), *(batch.columns[name] for batch in batches)])
    polygons = np.concatenate([np.empty(0, dtype=object), *(batch.geometries() for batch in batches)])
    return geopandas.GeoDataFrame(columns, geometry=polygons, crs=grid.crs and grid.crs.to_wkt())


def _numbered(count: int) -> ClassTable:
    return ClassTable.from_names([f"class_{i}" for i in range(count)], [(0, 0, 0)] * count)


def _mapped(
    rows: Iterable[MapRows], classes: ClassTable, resolved: ClassRules
) -> Iterator[tuple[ByteArray, ByteArray | None]]:
    """Rows with their values dissolved and those not kept gone, once it is known that the table has them all."""
    for part in rows:
        present = np.flatnonzero(np.bincount(part.classes.ravel(), minlength=256))
        unknown = present[(present >= len(classes)) & (present != NODATA)]
        if len(unknown):
            raise LabelError(
                f"the class map holds the value {unknown[0]}, but its class table ends at {len(classes) - 1}"
            )
        yield resolved.table[part.classes], part.confidence


def _batch(closed: ClosedPolygons, grid: Grid, measure: Measure, *, has_confidence: bool) -> PolygonBatch:
    """Polygons in the CRS, measured; shells counter-clockwise there."""
    t = grid.transform
    x, y = closed.xy[:, 0] / SUBPIXEL, closed.xy[:, 1] / SUBPIXEL
    xy = np.column_stack([t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f])
    if t.a * t.e - t.b * t.d > 0:  # a transform that turns nothing over leaves the rings as seen with y down
        xy = _reversed_rings(xy, closed.rings)
    batch = PolygonBatch(closed.value, xy, closed.rings, closed.polygons)
    columns: dict[str, npt.NDArray[Any]] = dict(measure.columns(batch))
    if has_confidence:
        mean = closed.confidence_sum / (closed.pixels * float(CONFIDENCE_SCALE))
        columns["conf_mean"] = mean.astype(np.float32)
        columns["conf_min"] = (closed.confidence_min / CONFIDENCE_SCALE).astype(np.float32)
    return dataclasses.replace(batch, columns=columns)


def _reversed_rings(xy: FloatArray, rings: IntArray) -> FloatArray:
    ends = np.repeat(rings[:-1] + rings[1:] - 1, np.diff(rings))
    return xy[ends - np.arange(len(xy))]
