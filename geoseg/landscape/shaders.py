"""What each kind of object looks like from above: how its two colours mix, and how much light comes back.

A shader takes the pixels of one kind and returns the share of the accent colour and a gain for both. Elementwise
arithmetic without transcendental functions, see `geoseg.landscape.render`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from geoseg.arrays import Float32Array, FloatArray
from geoseg.landscape.features import Kind


@dataclass(frozen=True, slots=True)
class Sun:
    """The sun: unit vector on the ground towards it (x right, y down), and tangent of its elevation."""

    x: float
    y: float
    slope: float


def dome(u: Float32Array, v: Float32Array) -> tuple[Float32Array, Float32Array]:
    """Height of a crown in [0.35, 1] and the squared distance from its trunk, u and v in crown radii."""
    square = np.minimum(u * u + v * v, np.float32(1))
    return np.float32(0.35) + np.float32(0.65) * np.sqrt(np.float32(1) - square), square


@dataclass(frozen=True, slots=True)
class Spots:
    """Pixels of one kind, as flat arrays: coordinates in and parameters of the object, and noise fields in [-1, 1]."""

    u: Float32Array
    v: Float32Array
    half_length: Float32Array
    half_width: Float32Array
    style: Float32Array
    period: Float32Array
    ux: FloatArray
    uy: FloatArray
    fine: Float32Array
    mid: Float32Array
    coarse: Float32Array
    broad: Float32Array
    grain: Float32Array


Shade = tuple[Float32Array, Float32Array]
Shader = Callable[[Spots, Sun, float], Shade]

_f = np.float32


def _wave(phase: npt.NDArray[np.floating[Any]]) -> Float32Array:
    """Smooth periodic wave in [0, 1] of period 1, by parabolas."""
    t = phase - np.floor(phase)
    rise = np.abs(2 * t - 1).astype(np.float32)
    return np.asarray(rise * rise * (3 - 2 * rise))


def _meadow(s: Spots, sun: Sun, gsd_m: float) -> Shade:
    mix = 0.30 + 0.35 * s.coarse + 0.22 * s.mid + 0.25 * s.broad
    gain = 1 + 0.07 * s.fine + 0.10 * s.mid + 0.04 * s.grain
    return np.clip(mix, 0, 1), gain


def _crop(s: Spots, sun: Sun, gsd_m: float) -> Shade:
    """Rows along the parcel, across it on the headlands, tramlines where the tractor always drives."""
    u, v = s.u * s.half_length, s.v * s.half_width
    headland = np.abs(u) > s.half_length - 9
    across = np.where(headland & (s.half_length > 30), u, v) + _f(0.25) * s.coarse
    # Rows finer than two pixels would alias; they fade instead.
    period = np.maximum(s.period, 0)
    contrast = np.clip((period / _f(gsd_m) - 2) / 1.5, 0, 1)
    rows = _wave(across / period) - 0.5
    tram = across / 21.0
    tram = np.abs(tram - np.floor(tram) - 0.5) * 21.0
    wheel = np.clip(_f(1.3) - np.abs(tram - _f(1.0)) * _f(1.9), 0, 1) * np.where(s.style > 0.25, _f(0.8), _f(0))
    vigour = 0.58 + 0.26 * s.coarse + 0.22 * s.broad + 0.10 * s.mid
    mix = np.clip(vigour + contrast * (0.5 + 0.55 * s.style) * rows + 0.12 * s.fine, 0, 1)
    mix *= 1 - wheel
    gain = 1 + contrast * 0.16 * rows + 0.05 * s.fine + 0.04 * s.grain - 0.08 * wheel
    return mix, gain


def _soil(s: Spots, sun: Sun, gsd_m: float) -> Shade:
    mix = 0.45 + 0.50 * s.coarse + 0.30 * s.mid + 0.2 * s.broad
    stones = np.where(s.grain > 0.93, _f(0.22), _f(0))
    gain = 1 + 0.10 * s.fine + 0.12 * s.mid + 0.06 * s.grain + stones
    return np.clip(mix, 0, 1), gain


def _water(s: Spots, sun: Sun, gsd_m: float) -> Shade:
    """Dark in the middle, paler over the shallows; faint ripples."""
    shore = np.where(s.style > 0.5, s.u * s.u + s.v * s.v, s.v * s.v)
    mix = np.clip(0.75 * shore * shore + 0.15 * s.coarse + 0.05 * s.mid, 0, 1)
    gain = 1 + 0.05 * s.mid + 0.04 * s.fine + 0.10 * s.broad
    return mix, gain


def _asphalt(s: Spots, sun: Sun, gsd_m: float) -> Shade:
    """Worn lanes, patches, and on main roads a broken centre line and edge lines."""
    v = np.abs(s.v)
    lane = np.abs(v - _f(0.5))
    mix = np.clip(0.30 + 0.25 * s.coarse + 0.25 * s.mid - 0.5 * (_f(0.3) - lane), 0, 1)
    along = s.u * s.half_length / 6.5
    dash = (along - np.floor(along) < 0.5) & (v * s.half_width < 0.16)
    edge = np.abs(v * s.half_width - s.half_width + 0.45) < 0.14
    paint = np.where((s.style > 0.5) & (dash | edge), _f(1.1), _f(0)) * _f(min(1.0, 0.3 / gsd_m))
    gain = 1 + 0.05 * s.fine + 0.05 * s.mid + 0.03 * s.grain + paint
    return mix, gain


def _track(s: Spots, sun: Sun, gsd_m: float) -> Shade:
    """Two ruts with grass between them and at the sides."""
    v = np.abs(s.v)
    green: Float32Array = np.clip((np.abs(v - 0.5) - 0.26) * 3.2 + 0.30 * s.mid + 0.2 * s.coarse, 0, 1)
    gain = 1 + 0.08 * s.fine + 0.08 * s.mid + 0.05 * s.grain
    return _f(0.75) * green, gain


def _car(s: Spots, sun: Sun, gsd_m: float) -> Shade:
    glass = np.where((s.u > 0.05) & (s.u < 0.4), _f(0.8), _f(0))
    return glass, np.ones_like(glass)


def _roof(s: Spots, sun: Sun, gsd_m: float) -> Shade:
    """Flat, gabled or hipped: the sides lie in more or less light; tile courses, skylights, solar panels."""
    kind = s.style - np.floor(s.style)
    u, v = s.u * s.half_length, s.v * s.half_width
    pitched = kind >= 0.3
    hip = (kind >= 0.65) & (s.half_width - np.abs(v) > s.half_length - np.abs(u))
    # Sunlight on a plane of slope 0.7 facing along (fx, fy): the flat ground gets 1.
    ax, ay = s.ux.astype(np.float32), s.uy.astype(np.float32)
    side = np.where(hip, np.sign(u), np.sign(v))
    fx, fy = np.where(hip, ax, -ay) * side, np.where(hip, ay, ax) * side
    facing = fx * _f(sun.x) + fy * _f(sun.y)
    slope = _f(0.7)
    lit = (_f(1) + slope * facing / _f(sun.slope)) / np.sqrt(_f(1) + slope * slope)
    light = np.where(pitched, _f(0.25) + _f(0.75) * np.maximum(lit, _f(0.05)), _f(1))
    courses = _wave(np.where(hip, u, v) / s.period) - _f(0.5)
    visible = _f(min(1.0, max(0.0, (1.1 / gsd_m - 2) / 2)))
    to_ridge = np.where(hip, s.half_length - np.abs(u) - s.half_width + np.abs(v), np.abs(v))
    ridge = np.where(pitched & (np.abs(to_ridge) < max(0.25, 0.45 * gsd_m)), _f(0.16), _f(0))
    solar = (s.style >= 1) & pitched & (facing > 0) & ~hip
    solar &= (np.abs(s.u) < 0.62) & (np.abs(np.abs(s.v) - 0.5) < 0.3)
    parapet = ~pitched & ((np.abs(s.u) > 1 - 0.6 / s.half_length) | (np.abs(s.v) > 1 - 0.6 / s.half_width))
    wear = 1 + 0.05 * s.mid + 0.05 * s.fine + 0.03 * s.grain + _f(0.10) * visible * courses
    mix = np.where(solar, _f(0.95), np.where(parapet, _f(0.7), _f(0.2) + _f(0.2) * s.mid))
    mix = np.where((s.style >= 1) & ~solar, _f(0), mix)
    return mix, light * wear + ridge


def _canopy(s: Spots, sun: Sun, gsd_m: float) -> Shade:
    mix = np.clip(0.3 + 0.4 * s.mid + 0.3 * s.fine, 0, 1)
    return mix, 0.9 + 0.2 * s.fine + 0.15 * s.mid + 0.06 * s.grain


def _crown(s: Spots, sun: Sun, gsd_m: float) -> Shade:
    """A dome of leaves: light towards the sun, dark away from it, clumps of twigs."""
    _, square = dome(s.u, s.v)
    facing = s.u * _f(sun.x) + s.v * _f(sun.y)
    clumps = 0.30 * s.fine + 0.28 * s.mid
    mix = np.clip(0.50 + 0.58 * facing - 0.20 * square + clumps, 0, 1)
    gain = 1.06 + 0.16 * facing + 0.14 * s.fine + 0.07 * s.grain - 0.12 * square
    return mix, gain


_BY_KIND = _meadow, _crop, _soil, _water, _track, _asphalt, _asphalt, _car, _roof, _canopy, _crown
SHADERS: dict[Kind, Shader] = dict(zip(Kind, _BY_KIND, strict=True))
