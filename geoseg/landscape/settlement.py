"""Villages and farms: plots, houses along their streets, halls in their yards."""

from __future__ import annotations

import numpy as np
import shapely
from shapely import affinity
from shapely.geometry import LineString, Point, Polygon

from geoseg.arrays import FloatArray
from geoseg.landscape.features import FeatureList, Kind, Place
from geoseg.landscape.network import Edge, largest
from geoseg.landscape.noise import Rng
from geoseg.landscape.palette import HALL_SHARES, ROOF_SHARES, ROOFS, SOLAR, vary
from geoseg.landscape.parcels import add_parcel
from geoseg.landscape.plants import scatter
from geoseg.landscape.shapes import long_axis, split


def village(things: FeatureList, area: Polygon, edges: list[Edge], rng: Rng) -> None:
    """Plots with a garden and a house each, the houses parallel to the nearest street."""
    streets = [LineString(e.path) for e in edges if e.kind in ("main", "minor")] or [area.exterior]
    for plot in split(area, rng, float(rng.uniform(620, 1000)), across=True):
        add_parcel(things, plot, rng, use="garden")
        house: Polygon | None = None
        street = min(streets, key=plot.distance)
        if plot.distance(street) < 40 and rng.random() < 0.93:
            house = _house_on(things, plot, street, rng)
        if rng.random() < 0.3:
            add_parcel(things, _beside(plot, house, rng), rng, use="soil")
        scatter(things, plot, rng, per_hectare=50, keep_off=house, radius=(1.6, 4.0))


def _beside(plot: Polygon, house: Polygon | None, rng: Rng) -> Polygon:
    """A vegetable bed or a gravelled yard: a piece of a plot away from its house."""
    centre, axis, half_length, _ = long_axis(plot)
    bed = Place(centre, axis, rng.uniform(3.5, 6), rng.uniform(3, 4.5)).rectangle()
    shift = axis * half_length * rng.uniform(-0.6, 0.6)
    free = plot.buffer(-1) if house is None else plot.buffer(-1).difference(house.buffer(1))
    return largest(affinity.translate(bed, float(shift[0]), float(shift[1])).intersection(free))


def _direction(line: LineString, near: Point) -> FloatArray:
    """Unit vector of a line where it passes a point."""
    at = line.project(near)
    ends = [line.interpolate(max(at - 4, 0)), line.interpolate(min(at + 4, line.length))]
    step = np.array([ends[1].x - ends[0].x, ends[1].y - ends[0].y])
    return np.asarray(step / np.hypot(*step))


def _house_on(things: FeatureList, plot: Polygon, street: LineString, rng: Rng) -> Polygon | None:
    room = plot.buffer(-1.6)
    if room.is_empty:
        return None
    axis = _direction(street, plot.centroid)
    if rng.random() < 0.35:
        axis = np.array([-axis[1], axis[0]])
    middle = np.array(plot.centroid.coords[0])
    front = np.array(street.interpolate(street.project(plot.centroid)).coords[0])
    for _ in range(6):
        length, width = rng.uniform(6.0, 9.5), rng.uniform(4.4, 6.0)
        centre = middle + (front - middle) * rng.uniform(0, 0.35) + rng.normal(0, 1.5, 2)
        wings = [Place(centre, axis, length, width)]
        if rng.random() < 0.35:
            side = float(rng.choice([-1, 1]))
            across = np.array([-axis[1], axis[0]])
            wing_length, wing_width = width * rng.uniform(0.75, 1.0), length * rng.uniform(0.38, 0.5)
            corner = centre + axis * side * (length - wing_width) + across * (width * 0.4 + wing_length)
            wings.append(Place(corner, across, wing_length + width * 0.4, wing_width))
        house = shapely.union_all([wing.rectangle() for wing in wings])
        if room.contains(house) and isinstance(house, Polygon):
            _roofs(things, wings, rng, shares=ROOF_SHARES, flat=0.1, eave=(3.5, 6.5))
            return house
    return None


def _roofs(
    things: FeatureList,
    wings: list[Place],
    rng: Rng,
    *,
    shares: tuple[float, ...],
    flat: float,
    eave: tuple[float, float],
) -> None:
    """One roof for each wing; a style below 0.3 is flat, below 0.65 gabled, else hipped, plus 1 with solar panels."""
    color = vary(rng, ROOFS[int(rng.choice(len(ROOFS), p=shares))], 0.14)
    style = float(rng.uniform(0, 0.3) if rng.random() < flat else rng.uniform(0.3, 1))
    height = float(rng.uniform(*eave))
    if rng.random() < 0.22:
        style += 1
    for wing in wings:
        period = float(rng.uniform(0.9, 1.4))
        colors = color, vary(rng, SOLAR, 0.1) if style >= 1 else color * 1.35
        things.add(wing.rectangle(), Kind.ROOF, wing, colors, height=height, style=style, period=period)


def farm(things: FeatureList, area: Polygon, rng: Rng) -> None:
    """A yard of bare ground with halls in rows and a few trees."""
    add_parcel(things, area, rng, use="soil")
    room = area.buffer(-4)
    if room.is_empty:
        return
    centre, axis, half_length, half_width = long_axis(area)
    across = np.array([-axis[1], axis[0]])
    placed: list[Polygon] = []
    for v in np.arange(-half_width + 8, half_width, 26):
        u = -half_length + 6
        while u < half_length:
            length, width = rng.uniform(9, 20), rng.uniform(6.5, 10.5)
            wing = Place(centre + axis * (u + length) + across * (v + rng.uniform(0, 4)), axis, length, width)
            body = wing.rectangle()
            if room.contains(body) and all(body.distance(p) > 4 for p in placed) and rng.random() < 0.75:
                _roofs(things, [wing], rng, shares=HALL_SHARES, flat=0.5, eave=(5, 8))
                placed.append(body)
                u += 2 * length
            u += rng.uniform(5, 12)
    scatter(things, area, rng, per_hectare=12, keep_off=shapely.union_all(placed))
