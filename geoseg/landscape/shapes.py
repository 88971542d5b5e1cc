"""Plane geometry of parcels: cut, measure, draw."""

from __future__ import annotations

import math

import numpy as np
import shapely
from shapely import affinity
from shapely.geometry import Polygon, box

from geoseg.landscape.features import Place
from geoseg.landscape.network import largest
from geoseg.landscape.noise import Rng


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
