"""What lies in a cell: materials and their reflectance, parcels, plants, houses, and the plane geometry they need."""

from __future__ import annotations

import math

import numpy as np
import shapely
from shapely import affinity
from shapely.geometry import LineString, Point, Polygon, box
from shapely.geometry.base import BaseGeometry

from geoseg.arrays import FloatArray
from geoseg.landscape.features import MAX_HEIGHT_M, FeatureList, Kind, Place
from geoseg.landscape.network import Edge, largest
from geoseg.landscape.noise import Rng


def _color(red: float, green: float, blue: float, nir: float) -> FloatArray:
    """Reflectance of a material."""
    return np.array([red, green, blue, nir])


GRASS_GREEN, STRAW = _color(0.075, 0.110, 0.048, 0.38), _color(0.150, 0.150, 0.085, 0.33)
EARTH, EARTH_DRY = _color(0.150, 0.112, 0.078, 0.22), _color(0.245, 0.205, 0.155, 0.30)
TARMAC, PAINT = _color(0.125, 0.125, 0.125, 0.14), _color(0.190, 0.187, 0.180, 0.20)
GRAVEL = _color(0.255, 0.225, 0.175, 0.28)
LEAF_DARK, LEAF_LIGHT = _color(0.028, 0.048, 0.024, 0.28), _color(0.070, 0.105, 0.042, 0.46)
LAKE, SHALLOW = _color(0.022, 0.036, 0.034, 0.012), _color(0.055, 0.066, 0.045, 0.035)

# (soil or gap between rows, plant): young crop, dense crop, ripe grain, ploughed, stubble, rape in flower, maize.
CROPS = (
    (EARTH, _color(0.085, 0.125, 0.050, 0.34)),
    (_color(0.058, 0.090, 0.038, 0.34), _color(0.088, 0.138, 0.050, 0.46)),
    (_color(0.215, 0.180, 0.095, 0.27), _color(0.300, 0.255, 0.140, 0.35)),
    (_color(0.105, 0.078, 0.055, 0.16), _color(0.175, 0.132, 0.095, 0.23)),
    (_color(0.200, 0.165, 0.115, 0.26), _color(0.270, 0.240, 0.165, 0.32)),
    (_color(0.150, 0.165, 0.060, 0.42), _color(0.300, 0.280, 0.055, 0.50)),
    (_color(0.070, 0.075, 0.045, 0.25), _color(0.065, 0.118, 0.042, 0.47)),
)
CROP_SHARES = (0.17, 0.24, 0.17, 0.16, 0.12, 0.03, 0.11)

# Red, brown-red, brown, slate, light grey metal, dark grey, as tiles age.
ROOFS = (
    *(_color(0.230, 0.095, 0.060, 0.30), _color(0.180, 0.085, 0.062, 0.25), _color(0.120, 0.085, 0.066, 0.18)),
    *(_color(0.085, 0.088, 0.095, 0.11), _color(0.300, 0.300, 0.295, 0.32), _color(0.140, 0.140, 0.142, 0.16)),
)
ROOF_SHARES = (0.34, 0.20, 0.14, 0.13, 0.06, 0.13)
HALL_SHARES = (0.06, 0.06, 0.08, 0.15, 0.35, 0.30)
SOLAR = _color(0.030, 0.038, 0.065, 0.05)
CARS = _color(0.5, 0.5, 0.5, 0.5), _color(0.04, 0.04, 0.05, 0.05), _color(0.3, 0.05, 0.04, 0.3)


def vary(rng: Rng, color: FloatArray, amount: float = 0.12) -> FloatArray:
    """A colour with slightly changed brightness and hue."""
    return np.asarray(color * math.exp(rng.normal(0, amount)) * np.exp(rng.normal(0, amount * 0.25, 4)))


def split(area: Polygon, rng: Rng, target: float, *, across: bool) -> list[Polygon]:
    """Cut an area into parcels near ``target`` m², across its long axis, or into strips along it."""
    if area.area < 1.7 * target:
        return [area]
    (x, y), axis, half_length, half_width = long_axis(area)
    if not across:
        axis, half_length, half_width = np.array([-axis[1], axis[0]]), half_width, half_length
    cut = rng.uniform(-0.22, 0.22) * half_length
    turn = math.degrees(math.atan2(axis[1], axis[0])) + rng.normal(0, 2.5)
    far = 4 * (half_length + half_width)
    pieces = []
    for rectangle in (box(-far, -far, cut, far), box(cut, -far, far, far)):
        turned = affinity.rotate(rectangle, turn, origin=(0, 0))
        piece = largest(area.intersection(affinity.translate(turned, x, y)))
        pieces += split(piece, rng, target, across=across) if piece.area > 1 else []
    return pieces


def long_axis(area: Polygon) -> Place:
    """The frame of the smallest rectangle around an area."""
    corners = shapely.get_coordinates(shapely.minimum_rotated_rectangle(area))[:4]
    first, second = corners[1] - corners[0], corners[2] - corners[1]
    a, b = float(np.hypot(*first)), float(np.hypot(*second))
    axis, length, width = (first / a, a, b) if a >= b else (second / b, b, a)
    return Place(corners.mean(axis=0), axis, length / 2, width / 2)


def blob(x: float, y: float, radius: float, rng: Rng) -> Polygon:
    """A closed smooth outline around a point."""
    angle = np.arange(48) * (2 * math.pi / 48)
    waves = sum(rng.normal(0, 0.22 / k) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in (2, 3, 4, 5))
    r = radius * np.clip(1 + waves, 0.5, 1.6)
    stretch = rng.uniform(0.75, 1.0)
    outline = Polygon(np.column_stack([r * np.cos(angle), stretch * r * np.sin(angle)]))
    return affinity.translate(affinity.rotate(outline, rng.uniform(0, 180), origin=(0, 0)), x, y)


def add_parcel(things: FeatureList, area: Polygon, rng: Rng, *, use: str) -> None:
    """One parcel of ``crop``, ``meadow``, ``soil`` or ``garden``."""
    if area.is_empty or area.area < 20:
        return
    kind, soil, plant = Kind.MEADOW, GRASS_GREEN, STRAW
    period, style = 2.0, float(rng.random())
    if use == "crop":
        kind = Kind.CROP
        soil, plant = CROPS[int(rng.choice(len(CROPS), p=CROP_SHARES))]
        period = float(rng.uniform(1.9, 3.4))
    elif use == "soil":
        kind = Kind.SOIL
        soil, plant = (EARTH, EARTH_DRY) if rng.random() < 0.6 else (EARTH_DRY, GRAVEL)
    colors = vary(rng, soil, 0.14 if use == "garden" else 0.1), vary(rng, plant)
    things.add(area, kind, long_axis(area), colors, style=style, period=period)


def wood(things: FeatureList, area: Polygon, rng: Rng) -> None:
    """A wood: a canopy with a soft, lobed edge, and crowns all over it."""
    inner = largest(area.buffer(-7).buffer(3))
    if inner.is_empty:
        return
    conifers = float(rng.random() < 0.35)
    dark = LEAF_DARK * (0.75 if conifers else 1.0)
    colors = vary(rng, dark), vary(rng, LEAF_LIGHT * 0.6)
    things.add(inner, Kind.CANOPY, long_axis(inner), colors, height=6.0)
    spacing = 4.4 if conifers else 6.2
    left, top, right, bottom = inner.bounds
    xs, ys = np.meshgrid(np.arange(left, right, spacing), np.arange(top, bottom, spacing))
    spots = np.column_stack([xs.ravel(), ys.ravel()]) + rng.uniform(-0.42, 0.42, (xs.size, 2)) * spacing
    spots = spots[shapely.contains_xy(inner.buffer(0.5), spots)]
    radii = rng.uniform(0.5, 0.86, len(spots)) * spacing
    crowns(things, spots, radii, rng, dark=dark, height=2.0 if conifers else 1.4, spread=0.12)


def scatter(
    things: FeatureList,
    area: Polygon,
    rng: Rng,
    *,
    per_hectare: float,
    keep_off: BaseGeometry | None = None,
    radius: tuple[float, float] = (2.2, 5.0),
) -> None:
    """Single trees at random places of an area, their trunks away from buildings."""
    if area.is_empty:
        return
    left, top, right, bottom = area.bounds
    count = int(rng.poisson(per_hectare * (right - left) * (bottom - top) / 1e4))
    spots = rng.uniform((left, top), (right, bottom), (count, 2))
    radii = rng.uniform(*radius, count)
    points = shapely.points(spots)
    inside = shapely.contains(area, points) & (shapely.distance(area.exterior, points) > 0.5 * radii)
    if keep_off is not None and not keep_off.is_empty:
        inside &= shapely.distance(keep_off, points) > radii * 0.85
    crowns(things, spots[inside], radii[inside], rng)


def hedge(things: FeatureList, parcel: Polygon, area: Polygon, rng: Rng) -> None:
    """A row of trees or bushes along the longest side of a parcel."""
    ring = shapely.get_coordinates(parcel.exterior)
    sides = np.hypot(*(ring[1:] - ring[:-1]).T)
    k = int(np.argmax(sides))
    size = float(rng.uniform(1.7, 3.0))
    at = np.arange(size, sides[k] - size, size * 1.35)
    at = at[rng.random(len(at)) < 0.93]
    spots = ring[k] + (at / sides[k])[:, None] * (ring[k + 1] - ring[k]) + rng.normal(0, 0.35, (len(at), 2))
    spots = spots[shapely.contains_xy(area.buffer(0.5), spots)]
    crowns(things, spots, rng.uniform(0.8, 1.25, len(spots)) * size, rng, height=1.1)


def crowns(
    things: FeatureList,
    spots: FloatArray,
    radii: FloatArray,
    rng: Rng,
    *,
    dark: FloatArray = LEAF_DARK,
    height: float = 1.6,
    spread: float = 0.2,
) -> None:
    """Tree crowns, lobed outlines around the trunks; ``height`` is in crown radii."""
    if not len(spots):
        return
    angle = np.arange(12) * (2 * math.pi / 12)
    r = radii[:, None] * (1 + np.clip(rng.normal(0, 0.11, (len(spots), 12)), -0.25, 0.25))
    turned = angle + rng.uniform(0, 1, (len(spots), 1))
    outline = spots[:, None, :] + np.stack([r * np.cos(turned), r * np.sin(turned)], axis=-1)
    light = np.exp(rng.normal(0, spread, len(spots)))
    hue = np.exp(rng.normal(0, 0.08, (len(spots), 4)))
    polygons = np.atleast_1d(np.asarray(shapely.polygons(outline)))
    for crown, spot, radius, gain, tint in zip(polygons, spots, radii, light, hue, strict=True):
        colors = dark * gain * tint, LEAF_LIGHT * gain * tint
        place = Place.round(spot, float(radius) * 1.12)
        things.add(crown, Kind.CROWN, place, colors, height=min(height * float(radius) + 1.5, MAX_HEIGHT_M))


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
