"""Parcels of crop, meadow, bare soil or garden."""

from __future__ import annotations

from shapely.geometry import Polygon

from geoseg.landscape.features import FIELD, GRASS, SOIL, Z_GROUND, FeatureList, Kind
from geoseg.landscape.noise import Rng
from geoseg.landscape.palette import CROP_SHARES, CROPS, EARTH, EARTH_DRY, GRASS_GREEN, GRAVEL, STRAW, vary
from geoseg.landscape.shapes import long_axis


def add_parcel(things: FeatureList, area: Polygon, rng: Rng, *, use: str) -> None:
    """One parcel of ``crop``, ``meadow``, ``soil`` or ``garden``."""
    if area.is_empty or area.area < 20:
        return
    centre, axis, half_length, half_width = long_axis(area)
    kind, class_id, soil, plant = Kind.MEADOW, GRASS, GRASS_GREEN, STRAW
    period, style = 2.0, float(rng.random())
    if use == "crop":
        kind, class_id = Kind.CROP, FIELD
        crop = int(rng.choice(len(CROPS), p=CROP_SHARES))
        soil, plant = CROPS[crop]
        period = float(rng.uniform(1.9, 3.4))
    elif use == "soil":
        kind, class_id = Kind.SOIL, SOIL
        soil, plant = (EARTH, EARTH_DRY) if rng.random() < 0.6 else (EARTH_DRY, GRAVEL)
    things.add(
        area,
        z=Z_GROUND,
        kind=kind,
        class_id=class_id,
        origin=centre,
        axis=axis,
        half_length=half_length,
        half_width=half_width,
        style=style,
        period=period,
        color=vary(rng, soil, 0.14 if use == "garden" else 0.1),
        accent=vary(rng, plant),
    )
