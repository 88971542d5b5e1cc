"""Class map → polygons: a valid coverage, streamed from rows to batches, or as one frame.

The borders between regions are cut into arcs from junction to junction, each of which is simplified once and used by
both its neighbours (see `geoseg.polygons.trace.joining`). So neighbours have the same vertices along a common border
before and after every step: simplified, smoothed, reprojected, rounded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio.crs import CRS

from geoseg.classes import NODATA, ClassTable
from geoseg.errors import LabelError
from geoseg.grid import Grid
from geoseg.map_rows import CONFIDENCE_SCALE, MapRows
from geoseg.options import PolygonRules
from geoseg.polygons.batch import FloatArray, IntArray, PolygonBatch
from geoseg.polygons.measure import Measure
from geoseg.polygons.rules.options import ClassRules, class_rules
from geoseg.polygons.rules.regions import filter_regions
from geoseg.polygons.simplify.finish import arc_finisher, rows_around
from geoseg.polygons.simplify.regularize import Outlines, Regularize
from geoseg.polygons.trace.cracks import SUBPIXEL
from geoseg.polygons.trace.joining import ClosedPolygons, Tracer
from geoseg.runtime.ahead import ahead
from geoseg.runtime.jit import njit

if TYPE_CHECKING:
    import geopandas

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
    batches = ahead(polygonize_rows(rows, grid, classes, rules=rules))
    return to_frame(batches, grid, class_rules(rules, classes).classes)


def polygonize_rows(
    rows: Iterable[MapRows],
    grid: Grid,
    classes: ClassTable,
    *,
    rules: PolygonRules | None = None,
    outlines: Outlines | None = None,
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
        outlines: Counts what becomes of the outlines to regularize.
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
            tolerance_px=tolerance_px,
            method=rules.method,
            smooth=rules.smooth,
            regularize=regularize,
            outlines=outlines,
            threads=threads,
        )
    tracer = Tracer(
        grid.width,
        finish=finish,
        lookahead=rows_around(smooth=rules.smooth, regularize=regularize),
        near_classes=resolved.regularized,
        left_out=resolved.left_out,
        threads=threads,
        band_rows=band_rows,
    )
    measure = Measure(grid)
    mapped = _mapped(rows, classes, resolved)
    fill_holes = rules.fill_holes_m2 if resolved.left_out is None else max(rules.fill_holes_m2, rules.min_area_m2)
    if rules.min_area_m2 > 0 or fill_holes > 0:
        mapped = filter_regions(
            mapped,
            width=grid.width,
            row_areas=grid.pixel_area_m2(),
            min_area=rules.min_area_m2,
            small=rules.small,
            fill_holes=fill_holes,
            left_out=resolved.left_out,
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


def to_frame(batches: Iterable[PolygonBatch], grid: Grid, classes: ClassTable) -> geopandas.GeoDataFrame:
    """Batches as one frame in the grid's CRS, with class names."""
    import geopandas
    import pandas as pd

    names = np.array([c.name for c in classes], dtype=object)
    ids = [np.zeros(0, dtype=np.uint8)]
    polygons = [np.empty(0, dtype=object)]
    columns: dict[str, list[npt.NDArray[Any]]] = {}
    for batch in batches:
        ids.append(batch.class_id)
        polygons.append(batch.geometries())
        for name, values in batch.columns.items():
            columns.setdefault(name, []).append(values)
    class_id = np.concatenate(ids)
    fields: dict[str, Any] = {
        "class_id": class_id.astype(np.int32),
        "class_name": pd.Series(names[class_id], dtype="str"),
        **{name: np.concatenate(parts) for name, parts in columns.items()},
    }
    return geopandas.GeoDataFrame(fields, geometry=np.concatenate(polygons), crs=grid.crs and grid.crs.to_wkt())


def _numbered(count: int) -> ClassTable:
    return ClassTable.from_names([f"class_{i}" for i in range(count)], [(0, 0, 0)] * count)


def _mapped(
    rows: Iterable[MapRows], classes: ClassTable, resolved: ClassRules
) -> Iterator[tuple[ByteArray, ByteArray | None]]:
    """Rows with their values dissolved and those not kept gone, once it is known that the table has them all."""
    untouched = bool((resolved.table[: len(classes)] == np.arange(len(classes))).all())
    for part in rows:
        values = part.classes
        unknown = (values >= len(classes)) & (values != NODATA)
        if unknown.any():
            raise LabelError(
                f"the class map holds the value {values[unknown][0]}, but its class table ends at {len(classes) - 1}"
            )
        yield values if untouched else resolved.table[values], part.confidence


def _batch(closed: ClosedPolygons, grid: Grid, measure: Measure, *, has_confidence: bool) -> PolygonBatch:
    """Polygons in the CRS, measured; shells counter-clockwise there."""
    t = grid.transform
    # A transform that turns nothing over leaves the rings as they run with y down.
    reverse = t.a * t.e - t.b * t.d > 0
    xy = _place(closed.xy, closed.rings, (t.a, t.b, t.c, t.d, t.e, t.f), reverse)
    batch = PolygonBatch(closed.value, xy, closed.rings, closed.polygons)
    columns: dict[str, npt.NDArray[Any]] = dict(measure.columns(batch))
    if has_confidence:
        mean = closed.confidence_sum / (closed.pixels * float(CONFIDENCE_SCALE))
        columns["conf_mean"] = mean.astype(np.float32)
        columns["conf_min"] = (closed.confidence_min / CONFIDENCE_SCALE).astype(np.float32)
    return dataclasses.replace(batch, columns=columns)


@njit
def _place(
    points: npt.NDArray[np.int32],
    rings: IntArray,
    transform: tuple[float, float, float, float, float, float],
    reverse: bool,
) -> FloatArray:
    """Points in 1/256 px as coordinates of the CRS, each ring from its end where it is to be reversed."""
    a, b, c, d, e, f = transform
    xy = np.empty(points.shape, dtype=np.float64)
    for ring in range(len(rings) - 1):
        begin, end = rings[ring], rings[ring + 1]
        for i in range(begin, end):
            x, y = points[i, 0] / SUBPIXEL, points[i, 1] / SUBPIXEL
            to = begin + end - 1 - i if reverse else i
            xy[to, 0] = a * x + b * y + c
            xy[to, 1] = d * x + e * y + f
    return xy
