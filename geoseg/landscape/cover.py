"""What covers a cell of the lattice: materials and their reflectance, parcels, plants, houses, roads, water.

There is one generator of random numbers and one list of objects per cell.
"""

import math
from functools import lru_cache

import numpy as np
import shapely
from shapely import affinity
from shapely.geometry import LineString, Polygon, box
from shapely.geometry.base import BaseGeometry

from geoseg.arrays import FloatArray
from geoseg.landscape.features import MAX_HEIGHT_M, FeatureList, Features, Kind, Place
from geoseg.landscape.network import Edge, Frame, Rng, Use, cell_outline, cell_use, edge, generator, largest


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


def _vary(rng: Rng, color: FloatArray, amount: float = 0.12) -> FloatArray:
    """A colour with slightly changed brightness and hue."""
    return np.asarray(color * math.exp(rng.normal(0, amount)) * np.exp(rng.normal(0, amount * 0.25, 4)))


def _split(area: Polygon, rng: Rng, target: float, *, across: bool) -> list[Polygon]:
    """Cut an area into parcels near ``target`` m², across its long axis, or into strips along it."""
    if area.area < 1.7 * target:
        return [area]
    (x, y), axis, half_length, half_width = Place.around(area)
    if not across:
        axis, half_length, half_width = np.array([-axis[1], axis[0]]), half_width, half_length
    cut = rng.uniform(-0.22, 0.22) * half_length
    turn = math.degrees(math.atan2(axis[1], axis[0])) + rng.normal(0, 2.5)
    far = 4 * (half_length + half_width)
    pieces = []
    for rectangle in (box(-far, -far, cut, far), box(cut, -far, far, far)):
        turned = affinity.rotate(rectangle, turn, origin=(0, 0))
        piece = largest(area.intersection(affinity.translate(turned, x, y)))
        pieces += _split(piece, rng, target, across=across) if piece.area > 1 else []
    return pieces


def _blob(x: float, y: float, radius: float, rng: Rng) -> Polygon:
    """A closed smooth outline around a point."""
    angle = np.arange(48) * (2 * math.pi / 48)
    waves = sum(rng.normal(0, 0.22 / k) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in (2, 3, 4, 5))
    r = radius * np.clip(1 + waves, 0.5, 1.6)
    stretch = rng.uniform(0.75, 1.0)
    outline = Polygon(np.column_stack([r * np.cos(angle), stretch * r * np.sin(angle)]))
    return affinity.translate(affinity.rotate(outline, rng.uniform(0, 180), origin=(0, 0)), x, y)


def _add_parcel(things: FeatureList, area: Polygon, rng: Rng, *, use: str) -> None:
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
    colors = _vary(rng, soil, 0.14 if use == "garden" else 0.1), _vary(rng, plant)
    things.add(area, kind, Place.around(area), colors, style=style, period=period)


def _wood(things: FeatureList, area: Polygon, rng: Rng) -> None:
    """A wood: a canopy with a soft, lobed edge, and crowns all over it."""
    inner = largest(area.buffer(-7).buffer(3))
    if inner.is_empty:
        return
    conifers = float(rng.random() < 0.35)
    dark = LEAF_DARK * (0.75 if conifers else 1.0)
    colors = _vary(rng, dark), _vary(rng, LEAF_LIGHT * 0.6)
    things.add(inner, Kind.CANOPY, Place.around(inner), colors, height=6.0)
    spacing = 4.4 if conifers else 6.2
    left, top, right, bottom = inner.bounds
    xs, ys = np.meshgrid(np.arange(left, right, spacing), np.arange(top, bottom, spacing))
    spots = np.column_stack([xs.ravel(), ys.ravel()]) + rng.uniform(-0.42, 0.42, (xs.size, 2)) * spacing
    spots = spots[shapely.contains_xy(inner.buffer(0.5), spots)]
    radii = rng.uniform(0.5, 0.86, len(spots)) * spacing
    _crowns(things, spots, radii, rng, dark=dark, height=2.0 if conifers else 1.4, spread=0.12)


def _scatter(
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
    _crowns(things, spots[inside], radii[inside], rng)


def _hedge(things: FeatureList, parcel: Polygon, area: Polygon, rng: Rng) -> None:
    """A row of trees or bushes along the longest side of a parcel."""
    ring = shapely.get_coordinates(parcel.exterior)
    sides = np.hypot(*(ring[1:] - ring[:-1]).T)
    k = int(np.argmax(sides))
    size = float(rng.uniform(1.7, 3.0))
    at = np.arange(size, sides[k] - size, size * 1.35)
    at = at[rng.random(len(at)) < 0.93]
    spots = ring[k] + (at / sides[k])[:, None] * (ring[k + 1] - ring[k]) + rng.normal(0, 0.35, (len(at), 2))
    spots = spots[shapely.contains_xy(area.buffer(0.5), spots)]
    _crowns(things, spots, rng.uniform(0.8, 1.25, len(spots)) * size, rng, height=1.1)


def _crowns(
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


def _village(things: FeatureList, area: Polygon, edges: list[Edge], rng: Rng) -> None:
    """Plots with a garden and a house each, the houses parallel to the nearest street."""
    streets = [LineString(e.path) for e in edges if e.kind in ("main", "minor")] or [area.exterior]
    for plot in _split(area, rng, float(rng.uniform(620, 1000)), across=True):
        _add_parcel(things, plot, rng, use="garden")
        house: Polygon | None = None
        street = min(streets, key=plot.distance)
        if plot.distance(street) < 40 and rng.random() < 0.93:
            house = _house_on(things, plot, street, rng)
        if rng.random() < 0.3:
            _add_parcel(things, _beside(plot, house, rng), rng, use="soil")
        _scatter(things, plot, rng, per_hectare=50, keep_off=house, radius=(1.6, 4.0))


def _beside(plot: Polygon, house: Polygon | None, rng: Rng) -> Polygon:
    """A vegetable bed or a gravelled yard: a piece of a plot away from its house."""
    centre, axis, half_length, _ = Place.around(plot)
    bed = Place(centre, axis, rng.uniform(3.5, 6), rng.uniform(3, 4.5)).rectangle()
    shift = axis * half_length * rng.uniform(-0.6, 0.6)
    free = plot.buffer(-1) if house is None else plot.buffer(-1).difference(house.buffer(1))
    return largest(affinity.translate(bed, float(shift[0]), float(shift[1])).intersection(free))


def _house_on(things: FeatureList, plot: Polygon, street: LineString, rng: Rng) -> Polygon | None:
    room = plot.buffer(-1.6)
    if room.is_empty:
        return None
    at = street.project(plot.centroid)
    ends = [street.interpolate(max(at - 4, 0)), street.interpolate(min(at + 4, street.length))]
    step = np.array([ends[1].x - ends[0].x, ends[1].y - ends[0].y])
    axis = step / np.hypot(*step)
    if rng.random() < 0.35:
        axis = np.array([-axis[1], axis[0]])
    middle = np.array(plot.centroid.coords[0])
    front = np.array(street.interpolate(at).coords[0])
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
    color = _vary(rng, ROOFS[int(rng.choice(len(ROOFS), p=shares))], 0.14)
    style = float(rng.uniform(0, 0.3) if rng.random() < flat else rng.uniform(0.3, 1))
    height = float(rng.uniform(*eave))
    if rng.random() < 0.22:
        style += 1
    for wing in wings:
        period = float(rng.uniform(0.9, 1.4))
        colors = color, _vary(rng, SOLAR, 0.1) if style >= 1 else color * 1.35
        things.add(wing.rectangle(), Kind.ROOF, wing, colors, height=height, style=style, period=period)


def _farm(things: FeatureList, area: Polygon, rng: Rng) -> None:
    """A yard of bare ground with halls in rows and a few trees."""
    _add_parcel(things, area, rng, use="soil")
    room = area.buffer(-4)
    if room.is_empty:
        return
    centre, axis, half_length, half_width = Place.around(area)
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
    _scatter(things, area, rng, per_hectare=12, keep_off=shapely.union_all(placed))


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
        _village(things, area, edges, rng)
    elif use is Use.ARABLE:
        _arable(things, area, rng)
    elif use is Use.MIXED:
        _wood_and_farm(things, area, rng)
    else:
        _pond(things, area, rng)
    return things.features()


def _arable(things: FeatureList, area: Polygon, rng: Rng) -> None:
    target = float(rng.choice([2500, 5000, 9000, 14000]))
    for parcel in _split(area, rng, target, across=bool(rng.random() < 0.4)):
        use = str(rng.choice(["crop", "meadow", "soil"], p=[0.76, 0.12, 0.12]))
        margin = float(rng.uniform(0.8, 1.6)) if rng.random() < 0.4 else 0.0
        _add_parcel(things, largest(parcel.buffer(-margin, join_style="mitre")) if margin else parcel, rng, use=use)
        if rng.random() < 0.25:
            _hedge(things, parcel, area, rng)
        if use == "meadow":
            _scatter(things, parcel, rng, per_hectare=7)


def _wood_and_farm(things: FeatureList, area: Polygon, rng: Rng) -> None:
    halves = _split(area, rng, area.area / 2.2, across=True)
    _wood(things, halves[0], rng)
    for half in halves[1:]:
        parcels = _split(half, rng, half.area / 2.2, across=True)
        _farm(things, parcels[0], rng)
        for parcel in parcels[1:]:
            use = str(rng.choice(["crop", "meadow"], p=[0.6, 0.4]))
            _add_parcel(things, parcel, rng, use=use)
            if use == "meadow":
                _scatter(things, parcel, rng, per_hectare=10)


def _pond(things: FeatureList, area: Polygon, rng: Rng) -> None:
    """A pond in a meadow with trees on its bank, and arable land around it if there is room."""
    x, y = largest(area.buffer(-30)).centroid.coords[0] if not area.buffer(-30).is_empty else area.centroid.coords[0]
    radius = min(float(rng.uniform(24, 40)), 0.42 * math.sqrt(area.area))
    pond = largest(_blob(x, y, radius, rng).intersection(area.buffer(-4)))
    meadow = largest(area.intersection(_blob(x, y, radius * 1.75, rng)))
    for parcel in _split(area, rng, 9000, across=True):
        _add_parcel(things, parcel, rng, use=str(rng.choice(["crop", "meadow", "soil"], p=[0.5, 0.3, 0.2])))
    _add_parcel(things, meadow, rng, use="meadow")
    if pond.is_empty:
        return
    colors = _vary(rng, LAKE, 0.2), _vary(rng, SHALLOW, 0.25)
    things.add(pond, Kind.WATER, Place.round(np.array([x, y]), radius * 1.1), colors, style=1.0)
    bank = pond.buffer(rng.uniform(2.5, 4)).exterior
    stops = np.arange(0, bank.length, 5.5)
    stops = stops[rng.random(len(stops)) < 0.5] + rng.uniform(-1.5, 1.5)
    spots = shapely.get_coordinates(shapely.line_interpolate_point(bank, stops % bank.length))
    spots = spots + rng.normal(0, 0.8, spots.shape)
    spots = spots[shapely.contains_xy(area, spots)]
    _crowns(things, spots, rng.uniform(2.0, 4.2, len(spots)), rng)
    _scatter(things, meadow, rng, per_hectare=12, keep_off=pond.buffer(3))


def _edge_objects(things: FeatureList, line: Edge, rng: Rng) -> None:
    """What runs along an edge: asphalt, gravel, water or a border with bushes; cars and avenue trees."""
    path = LineString(line.path)
    if line.kind == "border":
        if rng.random() < 0.65:
            at = np.arange(2, path.length - 2, 3.2)
            at = at[rng.random(len(at)) < 0.9]
            spots = shapely.get_coordinates(shapely.line_interpolate_point(path, at)) + rng.normal(0, 0.3, (len(at), 2))
            _crowns(things, spots, rng.uniform(1.6, 3.2, len(at)), rng, height=1.2)
        return
    kind, color, accent = {
        "river": (Kind.WATER, LAKE, SHALLOW),
        "track": (Kind.TRACK, GRAVEL, GRASS_GREEN),
        "minor": (Kind.STREET, TARMAC, PAINT),
        "main": (Kind.MAIN_ROAD, TARMAC, PAINT),
    }[line.kind]
    if line.kind in ("track", "minor"):
        color, accent = _vary(rng, color, 0.13), _vary(rng, accent, 0.13)
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
        _crowns(things, spots, rng.uniform(2.2, 3.4, len(spots)), rng)


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
