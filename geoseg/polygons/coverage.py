"""Class map → polygons: a valid coverage, streamed from rows to batches, or as one frame.

Neighbours have the same vertices along a common border, simplified, smoothed, reprojected and rounded ones too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine
from rasterio.crs import CRS

from geoseg.arrays import AnyArray, ByteArray
from geoseg.classes import NODATA, ClassTable
from geoseg.errors import LabelError
from geoseg.grid import Grid
from geoseg.map_rows import CONFIDENCE_SCALE, MapRows
from geoseg.options import PolygonRules
from geoseg.polygons.batch import PolygonBatch
from geoseg.polygons.measure import Measure
from geoseg.polygons.rules.objects import Separation, separate_objects
from geoseg.polygons.rules.options import ClassRules, class_rules, region_rules
from geoseg.polygons.rules.small_regions import apply_rule, in_turns
from geoseg.polygons.simplify.finish import ArcFinisher
from geoseg.polygons.trace.cracks import SUBPIXEL
from geoseg.polygons.trace.joining import ClosedPolygons, closed_polygons
from geoseg.polygons.walls.rows import Outlines, Walls
from geoseg.runtime.ahead import ahead

if TYPE_CHECKING:
    import geopandas

_FEED_PX = 1 << 22


def polygonize(
    values: ByteArray,
    transform: Affine,
    *,
    crs: Any = None,
    classes: ClassTable | None = None,
    nodata: int = NODATA,
    confidence: ByteArray | None = None,
    contact: ByteArray | None = None,
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
        contact: Contact of each pixel, likewise; needed where ``rules`` separate objects.
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
        count = int(values.max(where=values != NODATA, initial=0)) + 1
        classes = ClassTable.from_names([f"class_{i}" for i in range(count)], [(0, 0, 0)] * count)
    step = max(_FEED_PX // max(width, 1), 1)
    whole = MapRows(values, confidence, contact=contact)
    rows = (whole[i : i + step] for i in range(0, height, step))
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
        rows: The map from top to bottom; with confidence in all of them or in none, and with contact where ``rules``
            separate objects.
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
    outlines, walls = outlines or Outlines(), None
    if resolved.regularized:
        tolerance_px = rules.regularize_tolerance.walls_px(grid)
        walls = Walls(grid.width, resolved.regularized, tolerance_px, outlines, resolved.separated)
    finish = None
    if rules.simplify or rules.smooth or walls:
        tolerance_px = rules.simplify.in_pixels(grid) if rules.simplify else 0.0
        finish = ArcFinisher(tolerance_px, rules.method, rules.smooth, walls, threads)
    mapped = _mapped(rows, classes, resolved)
    for rule in region_rules(rules, resolved.left_out):
        mapped = apply_rule(mapped, grid.width, grid.pixel_area_m2(), rule)
    if resolved.separated:
        separation = Separation(resolved.separated, rules.min_area_m2, rules.contact_share)
        mapped = separate_objects(mapped, grid.width, grid.pixel_area_m2(), separation)
    if walls:
        mapped = in_turns(walls, mapped, grid.height)
    measure = Measure(grid)
    for closed in closed_polygons(
        mapped, grid.width, finish=finish, left_out=resolved.left_out, threads=threads, band_rows=band_rows
    ):
        outlines.total += int(np.isin(closed.value, resolved.regularized).sum())
        yield _batch(closed, grid, measure)


def to_frame(batches: Iterable[PolygonBatch], grid: Grid, classes: ClassTable) -> geopandas.GeoDataFrame:
    """Batches as one frame in the grid's CRS, with class names."""
    import geopandas
    import pandas as pd

    names = np.array([c.name for c in classes], dtype=object)
    ids = [np.zeros(0, dtype=np.uint8)]
    polygons = [np.empty(0, dtype=object)]
    columns: dict[str, list[AnyArray]] = {}
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


def _mapped(rows: Iterable[MapRows], classes: ClassTable, resolved: ClassRules) -> Iterator[MapRows]:
    """Rows with their values dissolved and those not kept gone, once it is known that the table has them all."""
    untouched = bool((resolved.table[: len(classes)] == np.arange(len(classes))).all())
    for part in rows:
        values = part.classes
        unknown = (values >= len(classes)) & (values != NODATA)
        if unknown.any():
            raise LabelError(
                f"the class map holds the value {values[unknown][0]}, but its class table ends at {len(classes) - 1}"
            )
        yield MapRows(values if untouched else resolved.table[values], part.confidence, contact=part.contact)


def _batch(closed: ClosedPolygons, grid: Grid, measure: Measure) -> PolygonBatch:
    """Polygons in the CRS, measured; shells counter-clockwise there."""
    t, points = grid.transform, closed.xy
    if t.a * t.e - t.b * t.d > 0:  # a transform that turns nothing over leaves the rings as they run with y down
        ends = closed.rings[:-1] + closed.rings[1:] - 1
        points = points[np.repeat(ends, np.diff(closed.rings)) - np.arange(len(points))]
    x, y = points[:, 0] / SUBPIXEL, points[:, 1] / SUBPIXEL
    xy = np.column_stack([t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f])
    batch = PolygonBatch(closed.value, xy, closed.rings, closed.polygons)
    columns: dict[str, AnyArray] = dict(measure.columns(batch))
    if closed.confidence_sum is not None:
        mean = closed.confidence_sum / (closed.pixels * float(CONFIDENCE_SCALE))
        columns["conf_mean"] = mean.astype(np.float32)
        columns["conf_min"] = (closed.confidence_min / CONFIDENCE_SCALE).astype(np.float32)
    return dataclasses.replace(batch, columns=columns)
