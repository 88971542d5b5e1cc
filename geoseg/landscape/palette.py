"""Reflectances of the landscape's materials in red, green, blue and near infrared."""

from __future__ import annotations

import math

import numpy as np

from geoseg.arrays import FloatArray
from geoseg.landscape.noise import Rng


def _color(red: float, green: float, blue: float, nir: float) -> FloatArray:
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
