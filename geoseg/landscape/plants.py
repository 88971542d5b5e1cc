"""Woods, hedges, single trees."""

from __future__ import annotations

import math

import numpy as np
import shapely
from shapely.geometry import Polygon
from shapely.geometry.base import BaseGeometry

from geoseg.arrays import FloatArray
from geoseg.landscape.features import MAX_HEIGHT_M, FeatureList, Kind, Place
from geoseg.landscape.network import largest
from geoseg.landscape.noise import Rng
from geoseg.landscape.palette import LEAF_DARK, LEAF_LIGHT, vary
from geoseg.landscape.shapes import long_axis


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
