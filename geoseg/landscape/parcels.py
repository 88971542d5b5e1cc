"""Parcels of crop, meadow, bare soil or garden."""

from __future__ import annotations

from shapely.geometry import Polygon

from geoseg.landscape.features import FeatureList, Kind
from geoseg.landscape.noise import Rng
from geoseg.landscape.palette import CROP_SHARES, CROPS, EARTH, EARTH_DRY, GRASS_GREEN, GRAVEL, STRAW, vary
from geoseg.landscape.shapes import long_axis


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
