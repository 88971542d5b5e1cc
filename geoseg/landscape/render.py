"""From objects to pixels: object ids by GDAL's pixel-centre rule, then height, shadow, texture, light and the sensor.

Every step is elementwise in global pixel coordinates, or looks at a fixed neighbourhood that is rendered as well, and
noise is integer hashing and elementwise IEEE arithmetic (no sine, no BLAS, no reduction). So any window equals the crop
of a larger one bit for bit.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import rasterio.features
import shapely

from geoseg.arrays import AnyArray, Float32Array, FloatArray, Int16Array, Int32Array, IntArray
from geoseg.landscape.features import COLUMNS, MAX_HEIGHT_M, Features, Kind
from geoseg.landscape.network import generator
from geoseg.landscape.shaders import SHADERS, Spots, Sun, dome
from geoseg.windows import Window

UInt32 = npt.NDArray[np.uint32]

_STRIP_PX = 1 << 17  # Pixels shaded at a time, so that temporaries stay in the processor's cache.
_CENTIMETRES = 100.0

# Seed, lattice spacing in m and share of the octaves of each noise field.
_OCTAVES = {
    "fine": ((0, 0.8, 1.0),),
    "mid": ((1, 4.6, 0.62), (2, 1.9, 0.50)),
    "coarse": ((3, 26.0, 0.68), (4, 10.3, 0.48)),
    "broad": ((9, 120.0, 0.75), (10, 53.0, 0.42)),
}
BANDS = ("red", "green", "blue", "nir")  # bands a landscape can have
_PARAMETERS = ("half_length", "half_width", "style", "period", "ux", "uy")

# Light left in full shadow: the blue sky still shines there. Red, green, blue, nir.
_SHADOW = (0.30, 0.34, 0.44, 0.24)
_HAZE = (0.006, 0.009, 0.016, 0.002)
_GRASS = np.array([[0.080, 0.112, 0.050, 0.37], [0.150, 0.150, 0.088, 0.33]], dtype=np.float32)
_FLIGHT_STRIP_M = 230.0

# Gaussian noise by table: standard normal quantiles of the 256 values of a byte.
_NORMAL = np.sort(np.random.default_rng(0).standard_normal(256 * 64))
_QUANTILES = _NORMAL.reshape(256, 64).mean(axis=1).astype(np.float32)


def hash_grid(rows: IntArray, cols: IntArray, seed: int) -> UInt32:
    """Well mixed 32-bit integers for every pair of a row and a column, shape (rows, cols).

    By "lowbias32" of C. Wellons, Prospecting for Hash Functions (2018), public domain.
    """
    start = np.uint32((seed * 0x9E3779B1 + 0x7F4A7C15) & 0xFFFFFFFF)
    row_part = _mix(rows.astype(np.uint32) * np.uint32(0x85EBCA6B) + start)
    col_part = cols.astype(np.uint32) * np.uint32(0xC2B2AE35)
    return _mix(row_part[:, None] + col_part[None, :])


def _mix(h: UInt32) -> UInt32:
    h ^= h >> np.uint32(16)
    h *= np.uint32(0x7FEB352D)
    h ^= h >> np.uint32(15)
    h *= np.uint32(0x846CA68B)
    h ^= h >> np.uint32(16)
    return h


def value_noise(y: FloatArray, x: FloatArray, *, spacing: float, seed: int) -> Float32Array:
    """Smooth noise in [-1, 1] at the grid of coordinates ``y`` × ``x``, shape (len(y), len(x)).

    Hashed values on a square lattice, interpolated between neighbours with a smoothstep along each axis. ``spacing`` is
    the distance of lattice points; features are about twice as large. Seeds give independent fields.
    """
    row, row_weight = _lattice(y, spacing)
    col, col_weight = _lattice(x, spacing)
    hashed = hash_grid(np.arange(row[0], row[-1] + 2), np.arange(col[0], col[-1] + 2), seed)
    lattice = hashed.astype(np.float32) * np.float32(2.0**-31) - np.float32(1)
    left = lattice[:, col - col[0]]
    along = left + (lattice[:, col - col[0] + 1] - left) * col_weight
    upper, lower = along[row - row[0]], along[row - row[0] + 1]
    lower -= upper
    lower *= row_weight[:, None]
    lower += upper
    return np.asarray(lower)


def _lattice(coordinates: FloatArray, spacing: float) -> tuple[IntArray, Float32Array]:
    scaled = coordinates / spacing
    index = np.floor(scaled)
    fraction = scaled - index
    return index.astype(np.int64), (fraction * fraction * (3 - 2 * fraction)).astype(np.float32)


def burn_ids(features: Features, height: int, width: int) -> Int32Array:
    """Id raster (height, width) by the pixel-centre rule in painter's order: 1 + index of the object, 0 for none."""
    ids = np.zeros((height, width), dtype=np.int32)
    if len(features):
        counts = shapely.get_num_coordinates(features.polygons)
        rings = np.split(shapely.get_coordinates(features.polygons), np.cumsum(counts)[:-1])
        shapes = [({"type": "Polygon", "coordinates": [r.tolist()]}, n) for n, r in enumerate(rings, start=1)]
        rasterio.features.rasterize(shapes, out=ids)
    return ids


@dataclass(frozen=True, slots=True)
class Painter:
    """Renders the reflectance of a landscape, see `geoseg.landscape.Landscape` for the arguments."""

    seed: int
    gsd_m: float
    bands: tuple[str, ...]

    @property
    def sun(self) -> Sun:
        """Where the light comes from: the south-east to the south-west, 36° to 52° high."""
        rng = generator(self.seed, 8)
        azimuth = math.radians(rng.uniform(115, 245))
        return Sun(math.sin(azimuth), -math.cos(azimuth), math.tan(math.radians(rng.uniform(36, 52))))

    @property
    def halo_px(self) -> int:
        """Pixels around a window that may cast a shadow into it or blur into it."""
        shifts = self._shadow_shifts()
        return sum(shifts) + len(shifts) + 2

    def _shadow_shifts(self) -> list[int]:
        """Steps, px, of the shadow search: 1, 2, 4, … and a rest, together the longest shadow."""
        rest = math.ceil(MAX_HEIGHT_M / self.sun.slope / self.gsd_m)
        shifts: list[int] = []
        while rest:
            shifts.append(min(1 << len(shifts), rest))
            rest -= shifts[-1]
        return shifts

    def strips(self, features: Features, ids: Int32Array, around: Window) -> Iterator[tuple[Window, Float32Array]]:
        """Strips of a window from the top, in scene pixels, and their reflectance (B, H, W) without sensor noise.

        Objects are in painter's order; ``ids`` is their id raster over ``around``, the window grown by `halo_px`.
        """
        halo = self.halo_px
        columns = _columns(features.table)
        heights = self._heights(columns, ids, around)
        shadow = self._shadow(heights)
        height, width = around.height - 2 * halo, around.width - 2 * halo
        step = max(_STRIP_PX // (width + 2), 1)
        for top in range(0, height, step):
            bottom = min(top + step, height)
            # One more pixel on every side for the lens.
            part = Window(around.row + halo + top - 1, around.col + halo - 1, bottom - top + 2, width + 2)
            inside = slice(halo + top - 1, halo + bottom + 1), slice(halo - 1, halo + width + 1)
            strip = Window(part.row + 1, part.col + 1, part.height - 2, part.width - 2)
            yield strip, _lens(self._strip(columns, ids[inside], shadow[inside], part))

    def _coordinates(self, window: Window) -> tuple[FloatArray, FloatArray]:
        """Centres of rows and columns, m in the scene's frame."""
        rows = np.arange(window.row, window.row_stop, dtype=np.float64) + 0.5
        cols = np.arange(window.col, window.col_stop, dtype=np.float64) + 0.5
        return np.asarray(rows * self.gsd_m), np.asarray(cols * self.gsd_m)

    def _heights(self, columns: dict[str, AnyArray], ids: Int32Array, around: Window) -> Int16Array:
        """Height above ground, cm: roofs with their slope, crowns as domes."""
        kind, heights = columns["kind"], columns["height"][ids]
        shaped = (kind == Kind.CROWN) | ((kind == Kind.ROOF) & (columns["style"] % 1 >= 0.3))
        y, x = self._coordinates(around)
        flat = np.flatnonzero(shaped[ids])
        if len(flat):
            here = ids.ravel()[flat]
            u, v = _local(columns, here, y[flat // len(x)], x[flat % len(x)])
            shape = np.where(kind[here] == Kind.CROWN, dome(u, v)[0], 1 - 0.35 * np.abs(v))
            heights.ravel()[flat] *= shape.astype(np.float32)
        return np.asarray((heights * np.float32(_CENTIMETRES)).astype(np.int16))

    def _shadow(self, heights: Int16Array) -> Float32Array:
        """Share of direct sunlight kept away, in [0, 1].

        The highest line of light seen from each pixel towards the sun, by doubling: the maximum over 2n steps is that
        over n steps and that over n steps seen from n steps further, less the fall of the light on the way.
        """
        sun, gsd = self.sun, self.gsd_m
        crest = heights.copy()
        for steps in self._shadow_shifts():
            dx, dy = round(steps * sun.x), round(steps * sun.y)
            fall = round(steps * gsd * sun.slope * _CENTIMETRES)
            here, there = [], []  # pixels with such a neighbour along each axis, and these neighbours; perhaps none
            for length, shift in zip(crest.shape, (dy, dx), strict=True):
                here.append(slice(max(-shift, 0), max(length - max(shift, 0), 0)))
                there.append(slice(max(shift, 0), max(length + min(shift, 0), 0)))
            np.maximum(crest[*here], crest[*there] - np.int16(fall), out=crest[*here])
        penumbra = np.float32(max(45.0, 0.5 * gsd * _CENTIMETRES))
        return np.asarray(np.clip((crest - heights).astype(np.float32) / penumbra, 0, 1))

    def _strip(
        self, columns: dict[str, AnyArray], ids: Int32Array, shadow: Float32Array, window: Window
    ) -> Float32Array:
        """Reflectance (B, H, W) of a strip as the lens sees it."""
        y, x = self._coordinates(window)
        fields = {name: self._field(y, x, octaves) for name, octaves in _OCTAVES.items()}
        grain = self._hash(window, 5)
        mix, gain = np.zeros(ids.shape, dtype=np.float32), np.ones(ids.shape, dtype=np.float32)
        kinds = columns["kind"][ids].ravel()
        for kind in np.unique(kinds):
            at = np.flatnonzero(kinds == kind)
            here = ids.ravel()[at]
            u, v = _local(columns, here, y[at // len(x)], x[at % len(x)])
            parameters = {name: columns[name][here] for name in _PARAMETERS}
            noise: dict[str, AnyArray] = {name: field.ravel()[at] for name, field in fields.items()}
            white = ((grain.ravel()[at] & np.uint32(255)).astype(np.float32) - np.float32(127.5)) / np.float32(127.5)
            spots = Spots(u, v, **parameters, **noise, grain=white)
            mix.ravel()[at], gain.ravel()[at] = SHADERS[Kind(kind)](spots, self.sun, self.gsd_m)
        # Slow variation of the illumination, a few per cent over half a kilometre.
        gain *= np.float32(1) + np.float32(0.06) * value_noise(y, x, spacing=420.0, seed=self.seed * 16 + 6)
        out = np.empty((len(self.bands), *ids.shape), dtype=np.float32)
        strip_of, gains = self._flights(y, x)
        for n, band in enumerate(self.bands):
            b = BANDS.index(band)
            first, layer = columns["color"][b][ids], columns["accent"][b][ids]
            layer -= first
            layer *= mix
            layer += first
            layer *= gain
            layer *= np.float32(1) - shadow * np.float32(1 - _SHADOW[b])
            layer += np.float32(_HAZE[b])
            layer *= gains[b][strip_of]
            out[n] = layer
        return out

    def _field(self, y: FloatArray, x: FloatArray, octaves: tuple[tuple[int, float, float], ...]) -> Float32Array:
        """A noise field of two incommensurable octaves; with one alone the lattice would show as squares."""
        field = np.zeros((len(y), len(x)), dtype=np.float32)
        for n, spacing, share in octaves:
            noise = value_noise(y, x, spacing=max(spacing, 1.4 * self.gsd_m), seed=self.seed * 16 + n)
            field += noise * np.float32(share)
        return field

    def _hash(self, window: Window, n: int) -> UInt32:
        rows, cols = np.arange(window.row, window.row_stop), np.arange(window.col, window.col_stop)
        return hash_grid(rows, cols, self.seed * 16 + n)

    def _flights(self, y: FloatArray, x: FloatArray) -> tuple[IntArray, Float32Array]:
        """Index (H, W) of the flight strip, and gain (4, strips): small radiometric steps along wavering seams."""
        rng = generator(self.seed, 9)
        turn = math.radians(rng.uniform(-12, 12))
        across = x[None, :] * math.cos(turn) + y[:, None] * math.sin(turn) + rng.uniform(0, _FLIGHT_STRIP_M)
        across = across + 3.0 * value_noise(y, x, spacing=35.0, seed=self.seed * 16 + 7)
        strip = np.floor(across / _FLIGHT_STRIP_M).astype(np.int64)
        numbers = np.arange(strip.min(), strip.max() + 1)
        steps = np.array([generator(self.seed, 10, int(n)).normal(0, 0.025, 4) for n in numbers])
        gains = 1 + np.clip(steps, -0.06, 0.06)
        return strip - numbers[0], np.ascontiguousarray(gains.T.astype(np.float32))

    def sensor_noise(self, window: Window) -> Float32Array:
        """Noise (B, H, W) of unit variance, white and different in every band."""
        bits = self._hash(window, 8)
        return np.stack([_QUANTILES[(bits >> np.uint32(8 * BANDS.index(b))) & np.uint32(255)] for b in self.bands])


def _lens(image: Float32Array) -> Float32Array:
    """The point spread of optics and resampling: weights 1 6 1 along both axes; one pixel shorter on every side."""
    image = (image[:, 1:-1] * np.float32(6) + image[:, :-2] + image[:, 2:]) * np.float32(0.125)
    return (image[:, :, 1:-1] * np.float32(6) + image[:, :, :-2] + image[:, :, 2:]) * np.float32(0.125)


def _columns(table: AnyArray) -> dict[str, AnyArray]:
    """The table as contiguous columns, with a first row for pixels without an object: grass."""
    first = np.zeros(1, dtype=table.dtype)
    first["ux"] = first["half_length"] = first["half_width"] = 1
    first["color"], first["accent"] = _GRASS
    rows = np.concatenate([first, table])
    return {name: np.ascontiguousarray(rows[name].T) for name in COLUMNS.names or ()}


def _local(columns: dict[str, AnyArray], ids: Int32Array, y: FloatArray, x: FloatArray) -> tuple[Float32Array, ...]:
    """Coordinates along and across each object, in half lengths and half widths."""
    dx, dy = x - columns["x"][ids], y - columns["y"][ids]
    ux, uy = columns["ux"][ids], columns["uy"][ids]
    u = (dx * ux + dy * uy) / columns["half_length"][ids]
    v = (dy * ux - dx * uy) / columns["half_width"][ids]
    return u.astype(np.float32), v.astype(np.float32)
