"""Measure what --regularize makes of buildings, beside no rule and beside the library buildingregulariser.

    python tools/measure_walls.py map_a.tif footprints_a.geojson map_b.tif footprints_b.geojson
    python tools/measure_walls.py --towns 8 --tolerance 2px 3px 4px 6px
    python tools/measure_walls.py --towns 8 --rival

Polygons are made with ``--simplify 1.5px --min-area 5 --fill-holes 10``, with and without ``--regularize``, and
compared with the footprints on the grid of the map. A building is regular if more than 95 % of its outline is within 2°
of two perpendicular directions. Counted are buildings above 40 m² that do not end at the edge of the map: those alone,
and those that touch another one. The footprints themselves show what can be reached. A generated town is rectangles and
L-shapes of any direction, some with an annexe, on grass, trees and roads, whose pixels are then blurred and roughened
as predictions are; its truth is exact.

The rival runs on the simplified polygons with its own defaults: pip install --no-deps buildingregulariser. Gaps and
overlaps are those of its buildings and the other polygons of the map.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import geopandas
import numpy as np
import rasterio.features
import shapely
from affine import Affine
from rasterio.crs import CRS
from scipy import ndimage

from geoseg.class_map import layer_path, read_class_map
from geoseg.classes import ClassTable
from geoseg.grid import Grid
from geoseg.map_rows import MapRows
from geoseg.polygons import PolygonRules, Tolerance, parse_tolerance, polygonize

BUILDING, LARGE_M2, BOUNDARY_PX = "building", 40, 3
CLASSES = ClassTable.from_names(
    ["grass", BUILDING, "road", "trees"], ["#8fbf6f", "#c0504d", "#888888", "#3f7f3f"], separate={BUILDING}
)
DEGREES = np.arange(0, 90, 0.25)


def directions(polygon) -> tuple[np.ndarray, np.ndarray]:
    """Direction modulo 90°, and length, of the edges of a polygon's shell."""
    edges = np.diff(shapely.get_coordinates(polygon.exterior), axis=0)
    return np.degrees(np.arctan2(edges[:, 1], edges[:, 0])) % 90, np.hypot(*edges.T)


def best_share(polygon) -> tuple[float, float]:
    """Largest share of the outline within 2° of two perpendicular directions, and that direction, degrees."""
    angle, length = directions(polygon)
    off = np.abs((angle - DEGREES[:, None] + 45) % 90 - 45)
    shares = ((off <= 2) * length).sum(axis=1) / length.sum()
    return float(shares.max()), float(DEGREES[shares.argmax()])


def burn(shapes, grid: Grid) -> np.ndarray:
    """The pixels of polygons."""
    if not len(shapes):
        return np.zeros(grid.shape, bool)
    return rasterio.features.rasterize(shapes, grid.shape, transform=grid.transform, dtype=np.uint8) > 0


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union, %."""
    return float(100 * (a & b).sum() / max((a | b).sum(), 1))


def rim(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask within `BOUNDARY_PX` of its border."""
    return mask & ~ndimage.binary_erosion(mask, iterations=BOUNDARY_PX)


def angle_error(shapes, truth) -> float:
    """Median angle between the main directions of buildings and of the true ones they overlap most, degrees."""
    tree, errors = shapely.STRtree(truth), []
    for shape in shapes:
        near = tree.query(shape, predicate="intersects")
        if len(near):
            best = truth[near[shapely.area(shapely.intersection(truth[near], shape)).argmax()]]
            difference = best_share(shape)[1] - best_share(best)[1]
            errors.append(abs((difference + 45) % 90 - 45))
    return float(np.median(errors)) if errors else np.nan


def regular(shapes, grid: Grid) -> tuple[np.ndarray, str]:
    """Which buildings are counted, and the share of regular ones: of those alone, of those that touch another one."""
    metric = grid.gsd_m() / abs(grid.transform.a)
    pairs = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    touches = np.bincount(pairs[0], minlength=len(shapes)) > 1
    edge = shapely.box(*grid.bounds).exterior.buffer(grid.transform.a / 2)
    counted = (shapely.area(shapes) * metric**2 > LARGE_M2) & ~shapely.intersects(shapes, edge)
    is_regular = np.array([best_share(shape)[0] > 0.95 for shape in shapes])

    def share(which) -> str:
        return f"{100 * is_regular[which].mean():3.0f} % of {which.sum():4d}" if which.any() else "      none    "

    return counted, f"regular: alone {share(counted & ~touches)}, touching {share(counted & touches)}"


def report(name: str, shapes, others, truth, grid: Grid, seconds: float) -> None:
    """One line of the table."""
    found, reference = burn(shapes, grid), burn(truth, grid)
    metric = grid.gsd_m() / abs(grid.transform.a)  # metres on the ground per unit of the map
    counted, shares = regular(shapes, grid)
    everything = np.concatenate([shapes, others])
    whole = shapely.area(shapely.union_all(everything, grid_size=1e-6))
    overlaps, gaps = shapely.area(everything).sum() - whole, shapely.box(*grid.bounds).area - whole
    print(
        f"{name:20s} IoU {iou(found, reference):5.2f}  boundary {iou(rim(found), rim(reference)):5.2f}  "
        f"{shares}  "
        f"vertices {np.median(shapely.get_num_coordinates(shapes[counted])) - 1:4.0f}  "
        f"angle {angle_error(shapes[counted], truth):5.2f}°  "
        f"gaps {abs(gaps) * metric**2:6.1f} m², overlaps {abs(overlaps) * metric**2:6.1f} m²  {seconds:5.2f} s"
    )


def measure(rows: MapRows, classes: ClassTable, grid: Grid, truth, tolerances, *, rival: bool) -> None:
    """Print the table of one map."""
    plain = {"simplify": Tolerance(1.5, "px"), "min_area_m2": 5, "fill_holes_m2": 10, "keep": tuple(classes.names)}
    if rows.contact is not None:
        plain["separate"] = (BUILDING,)
    ways = {"simplified": {}}
    for tolerance in tolerances:
        ways[f"regularized, {tolerance}"] = {"regularize": (BUILDING,), "regularize_tolerance": tolerance}
    for name, more in reversed(ways.items()):
        for _ in range(2):  # kernels are compiled in the first round
            start = time.perf_counter()
            frame = polygonize(
                rows.classes,
                grid.transform,
                crs=grid.crs,
                classes=classes,
                contact=rows.contact,
                rules=PolygonRules(**plain, **more),
            )
            seconds = time.perf_counter() - start
        is_building = (frame.class_name == BUILDING).to_numpy()
        shapes, others = frame.geometry[is_building].to_numpy(), frame.geometry[~is_building].to_numpy()
        report(name, shapes, others, truth, grid, seconds)
    if rival:
        from buildingregulariser import regularize_geodataframe

        metric = grid.gsd_m() / abs(grid.transform.a)
        start = time.perf_counter()
        theirs = regularize_geodataframe(
            frame[is_building].copy(), parallel_threshold=1.0 / metric, simplify_tolerance=0.5 / metric, num_cores=1
        )
        seconds = time.perf_counter() - start
        report("buildingregulariser", shapely.get_parts(theirs.geometry.to_numpy()), others, truth, grid, seconds)


def report_footprints(truth, grid: Grid) -> None:
    """How regular the footprints themselves are: one by one, and with those that touch joined, as a map shows them."""
    half = abs(grid.transform.a) / 2
    joined = shapely.get_parts(shapely.union_all(shapely.buffer(truth, half, join_style="mitre")))
    print(f"{'footprints':20s} {regular(shapely.get_parts(truth), grid)[1]}")
    print(f"{'footprints, joined':20s} {regular(joined, grid)[1]}")


def town(seed: int, side: int = 768):
    """A generated town at 0.3 m: rows of its map with rough buildings, its grid, and the true buildings."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] + 0.5
    values = np.zeros((side, side), np.uint8)
    values[ndimage.gaussian_filter(rng.normal(size=values.shape), 25) > 0.012] = 3
    street = rng.uniform(0, 180)
    along = (x - side / 2) * np.cos(np.radians(street)) + (y - side / 2) * np.sin(np.radians(street))
    values[np.abs((along + 90) % 180 - 90) < 9] = 2
    plots: list[list[shapely.Polygon]] = []
    for _ in range(400):
        length, width = rng.uniform(20, 70), rng.uniform(16, 40)
        plot = [shapely.box(-length / 2, -width / 2, length / 2, width / 2)]
        kind, angle = rng.random(), rng.uniform(0, 90)
        if kind < 0.4:
            plot[0] -= shapely.box(length * rng.uniform(0, 0.2), width * rng.uniform(-0.1, 0.1), length, width)
        elif kind < 0.6:
            plot.append(
                shapely.box(length / 2, -width / 2, length / 2 + rng.uniform(20, 40), width * rng.uniform(0, 0.5))
            )
        if rng.random() < 0.7:
            angle = street + rng.normal(0, 12)
        shift = rng.uniform(60, side - 60, 2)
        plot = [shapely.affinity.translate(shapely.affinity.rotate(p, angle, origin=(0, 0)), *shift) for p in plot]
        if all(p.distance(q) > 6 for p in plot for other in plots for q in other):
            plots.append(plot)
    buildings = [shape for plot in plots for shape in plot]
    inside = rasterio.features.rasterize(buildings, values.shape, dtype=np.uint8).astype(float)
    rough = ndimage.gaussian_filter(inside, 2.5) + 0.35 * ndimage.gaussian_filter(rng.normal(size=inside.shape), 2.0)
    values[rough > 0.5] = 1
    contacts = [plot[0].buffer(2) & plot[1].buffer(2) for plot in plots if len(plot) > 1]
    contact = np.uint8(254) * rasterio.features.rasterize(contacts, values.shape, dtype=np.uint8)
    transform = Affine(0.3, 0, 500_000, 0, -0.3, 5_000_000)
    truth = shapely.transform(np.array(buildings), lambda xy: xy * [0.3, -0.3] + [500_000, 5_000_000])
    return MapRows(values, contact=contact), Grid(side, side, transform, CRS.from_epsg(32631)), truth


def main() -> None:
    """Read the arguments and print a table for each map."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="*", type=Path, metavar="MAP FOOTPRINTS")
    parser.add_argument("--towns", type=int, default=0)
    parser.add_argument("--tolerance", type=parse_tolerance, nargs="+", default=[PolygonRules().regularize_tolerance])
    parser.add_argument("--separate", action="store_true", help="separate buildings by MAP_contact.tif")
    parser.add_argument("--rival", action="store_true")
    options = parser.parse_args()
    for map_path, footprints in zip(options.pairs[::2], options.pairs[1::2], strict=True):
        found = read_class_map(map_path)
        truth = geopandas.read_file(footprints).to_crs(found.grid.crs).geometry.to_numpy()
        print(map_path.name)
        report_footprints(truth, found.grid)
        contact = None
        if options.separate:
            with rasterio.open(layer_path(map_path, "contact")) as raster:
                contact = raster.read(1)
        rows = MapRows(found.values, contact=contact)
        measure(rows, found.classes, found.grid, truth, options.tolerance, rival=options.rival)
    for seed in range(options.towns):
        rows, grid, truth = town(seed)
        print(f"town {seed}")
        measure(rows, CLASSES, grid, truth, options.tolerance, rival=options.rival)


if __name__ == "__main__":
    main()
