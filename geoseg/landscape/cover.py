"""What covers a cell of the lattice: parcels, houses, woods, ponds, trees; one generator and one list per cell."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import shapely
from shapely.geometry import LineString, Polygon

from geoseg.arrays import FloatArray
from geoseg.landscape.features import FeatureList, Features, Kind, Place
from geoseg.landscape.network import Edge, Frame, Use, cell_outline, cell_use, edge, largest
from geoseg.landscape.noise import Rng, generator
from geoseg.landscape.objects import (
    CARS,
    GRASS_GREEN,
    GRAVEL,
    LAKE,
    PAINT,
    SHALLOW,
    TARMAC,
    add_parcel,
    blob,
    crowns,
    farm,
    hedge,
    scatter,
    split,
    vary,
    village,
    wood,
)


@lru_cache(maxsize=192)
def cell_features(frame: Frame, i: int, j: int) -> Features:
    """Every object of a cell, with the roads and rivers of the two edges that start at node (i, j)."""
    rng = generator(frame.seed, 6, i, j)
    use = cell_use(frame.seed, i, j)
    area, edges = cell_outline(frame, i, j)
    things = FeatureList()
    for axis in (0, 1):
        _edge_objects(things, edge(frame, i, j, axis), generator(frame.seed, 7, i, j, axis))
    if use is Use.VILLAGE:
        village(things, area, edges, rng)
    elif use is Use.ARABLE:
        _arable(things, area, rng)
    elif use is Use.MIXED:
        _wood_and_farm(things, area, rng)
    else:
        _pond(things, area, rng)
    return things.features()


def _arable(things: FeatureList, area: Polygon, rng: Rng) -> None:
    target = float(rng.choice([2500, 5000, 9000, 14000]))
    for parcel in split(area, rng, target, across=bool(rng.random() < 0.4)):
        use = str(rng.choice(["crop", "meadow", "soil"], p=[0.76, 0.12, 0.12]))
        margin = float(rng.uniform(0.8, 1.6)) if rng.random() < 0.4 else 0.0
        add_parcel(things, largest(parcel.buffer(-margin, join_style="mitre")) if margin else parcel, rng, use=use)
        if rng.random() < 0.25:
            hedge(things, parcel, area, rng)
        if use == "meadow":
            scatter(things, parcel, rng, per_hectare=7)


def _wood_and_farm(things: FeatureList, area: Polygon, rng: Rng) -> None:
    halves = split(area, rng, area.area / 2.2, across=True)
    wood(things, halves[0], rng)
    for half in halves[1:]:
        parcels = split(half, rng, half.area / 2.2, across=True)
        farm(things, parcels[0], rng)
        for parcel in parcels[1:]:
            use = str(rng.choice(["crop", "meadow"], p=[0.6, 0.4]))
            add_parcel(things, parcel, rng, use=use)
            if use == "meadow":
                scatter(things, parcel, rng, per_hectare=10)


def _pond(things: FeatureList, area: Polygon, rng: Rng) -> None:
    """A pond in a meadow with trees on its bank, and arable land around it if there is room."""
    x, y = largest(area.buffer(-30)).centroid.coords[0] if not area.buffer(-30).is_empty else area.centroid.coords[0]
    radius = min(float(rng.uniform(24, 40)), 0.42 * math.sqrt(area.area))
    pond = largest(blob(x, y, radius, rng).intersection(area.buffer(-4)))
    meadow = largest(area.intersection(blob(x, y, radius * 1.75, rng)))
    for parcel in split(area, rng, 9000, across=True):
        add_parcel(things, parcel, rng, use=str(rng.choice(["crop", "meadow", "soil"], p=[0.5, 0.3, 0.2])))
    add_parcel(things, meadow, rng, use="meadow")
    if pond.is_empty:
        return
    colors = vary(rng, LAKE, 0.2), vary(rng, SHALLOW, 0.25)
    things.add(pond, Kind.WATER, Place.round(np.array([x, y]), radius * 1.1), colors, style=1.0)
    bank = pond.buffer(rng.uniform(2.5, 4)).exterior
    stops = np.arange(0, bank.length, 5.5)
    stops = stops[rng.random(len(stops)) < 0.5] + rng.uniform(-1.5, 1.5)
    spots = shapely.get_coordinates(shapely.line_interpolate_point(bank, stops % bank.length))
    spots = spots + rng.normal(0, 0.8, spots.shape)
    spots = spots[shapely.contains_xy(area, spots)]
    crowns(things, spots, rng.uniform(2.0, 4.2, len(spots)), rng)
    scatter(things, meadow, rng, per_hectare=12, keep_off=pond.buffer(3))


def _edge_objects(things: FeatureList, line: Edge, rng: Rng) -> None:
    """What runs along an edge: asphalt, gravel, water or a border with bushes; cars and avenue trees."""
    path = LineString(line.path)
    if line.kind == "border":
        if rng.random() < 0.65:
            at = np.arange(2, path.length - 2, 3.2)
            at = at[rng.random(len(at)) < 0.9]
            spots = shapely.get_coordinates(shapely.line_interpolate_point(path, at)) + rng.normal(0, 0.3, (len(at), 2))
            crowns(things, spots, rng.uniform(1.6, 3.2, len(at)), rng, height=1.2)
        return
    kind, color, accent = {
        "river": (Kind.WATER, LAKE, SHALLOW),
        "track": (Kind.TRACK, GRAVEL, GRASS_GREEN),
        "minor": (Kind.STREET, TARMAC, PAINT),
        "main": (Kind.MAIN_ROAD, TARMAC, PAINT),
    }[line.kind]
    if line.kind in ("track", "minor"):
        color, accent = vary(rng, color, 0.13), vary(rng, accent, 0.13)
    # First the whole strip, which rounds the bends, then one rectangle for each straight piece with its own frame.
    steps = np.diff(line.path, axis=0)
    lengths = np.hypot(*steps.T)
    middle = len(steps) // 2
    strip = Place(line.path[middle] + steps[middle] / 2, steps[middle] / lengths[middle], 1e4, line.half_width)
    things.add(path.buffer(line.half_width, quad_segs=4), kind, strip, (color, accent), style=0.0)
    for a, b, step, length in zip(line.path[:-1], line.path[1:], steps, lengths, strict=True):
        outline = Place((a + b) / 2, step / length, length / 2, line.half_width).rectangle()
        place = Place(a + step / 2, step / length, length / 2, line.half_width)
        things.add(outline, kind, place, (color, accent), style=1.0 if line.kind == "main" else 0.0)
    if line.kind in ("main", "minor"):
        _cars(things, line, steps / lengths[:, None], rng)
    if line.kind == "main" and rng.random() < 0.35:
        side = float(rng.choice([-1, 1])) * (line.half_width + 2.6)
        at = np.arange(8, path.length - 8, float(rng.uniform(10, 16)))
        beside = path.parallel_offset(abs(side), "left" if side > 0 else "right")
        spots = shapely.get_coordinates(shapely.line_interpolate_point(beside, at[at < beside.length]))
        crowns(things, spots, rng.uniform(2.2, 3.4, len(spots)), rng)


def _cars(things: FeatureList, line: Edge, along: FloatArray, rng: Rng) -> None:
    """A few cars in their lanes; they belong to the road's class."""
    for k in range(1, len(along) - 1):
        if rng.random() > 0.12:
            continue
        across = np.array([-along[k][1], along[k][0]])
        lane = line.half_width * 0.5 * float(rng.choice([-1, 1]))
        place = Place(line.path[k] + along[k] * 3 + across * lane, along[k], 2.2, 0.9)
        color = CARS[int(rng.choice(len(CARS), p=[0.6, 0.25, 0.15]))]
        things.add(place.rectangle(), Kind.CAR, place, (color, CARS[1]), height=1.5)
