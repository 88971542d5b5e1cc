"""Walls that are straight and at right angles, where the raster supports it.

An arc along a building is a sequence of cracks, and the wall it stands for passes their middles with an error of half
a pixel at most. Two directions at right angles are estimated from the chords of the arc; then the sequence is cut into
runs that lie along the one and the other by turns, such that the squared distances of the middles from the lines
through their runs, plus a price for each line, are the least possible (segmented least squares). Corners are where
consecutive lines meet; nodes, where arcs end, stay where they are.

The result counts only if it explains the raster: see `Regularize`. It also has to stay on the arc's own ground (see
`geoseg.polygons.ground`), which makes it independent of what becomes of its neighbours. All other arcs are left to
simplification.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from geoseg.polygons._jit import njit
from geoseg.polygons.cracks import NODATA, OUTSIDE, SUBPIXEL, ArcBatch, Cracks
from geoseg.polygons.ground import fill_path, path_length, path_table_size, strays

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
PointArray = npt.NDArray[np.int32]

_PRICE = 2.5  # of a line: what it has to save in squared distances, px²
_MOST_VARIANCE = 0.22  # mean squared distance of the middles from their lines, px²; 1/12 is the raster's own
_LEAST_AGREEMENT = 0.35  # of the chords' directions modulo 90°: 1 for a straight wall, 0 for a circle
_SHORTEST_WALL = 2.0  # px
_NODE_PULL = 0.75  # px up to which a wall is moved to pass the node that it ends at
_MOST_AREA_CHANGE = 0.06
_LONGEST_PATH = 20_000  # cracks; what is longer is no building


@dataclass(frozen=True, slots=True)
class Regularize:
    """Which arcs get straight walls and right angles, and how far these may be from the raster.

    Attributes:
        classes: Classes whose borders are made regular, for example buildings; not their borders on nodata and on the
            end of the map.
        max_shift_px: Largest distance of a wall from the middles of its cracks, px, at most 1.5.
    """

    classes: tuple[int, ...]
    max_shift_px: float = 1.5

    def __post_init__(self) -> None:
        if not self.classes:
            raise ValueError("no class to regularize")
        if not 0 < self.max_shift_px <= 1.5:
            raise ValueError(f"max_shift_px is above 0 and at most 1.5, found {self.max_shift_px}")

    def concerns(self, batch: ArcBatch) -> BoolArray:
        """The arcs of a batch with one of the classes on one side and ground on the other, (a,)."""
        wanted = np.isin(batch.left, self.classes) | np.isin(batch.right, self.classes)
        for side in (batch.left, batch.right):
            wanted &= (side != NODATA) & (side != OUTSIDE)
        return wanted


def regular_arcs(batch: ArcBatch, cracks: Cracks, rule: Regularize) -> tuple[PointArray, IntArray]:
    """Arcs with straight walls and right angles in the place of some arcs of a batch.

    Args:
        batch: Arcs along the lattice.
        cracks: The raster's cracks, with the plane ``near`` for the classes of the rule.
        rule: Which arcs, and how far they may move.

    Returns:
        Points in 1/256 px, (n, 2), and the number of points of each arc, (a,): arc i has the first ones of those from
        ``batch.offsets[i]`` on; 0 where the arc stays as it is.
    """
    points = np.empty_like(batch.points)
    sizes = np.zeros(len(batch.closed), dtype=np.int64)
    arcs = np.flatnonzero(rule.concerns(batch))
    if len(arcs):
        _regularize(
            batch.points, batch.offsets, batch.closed, batch.least, arcs, cracks, rule.max_shift_px, points, sizes
        )
    return points, sizes


@njit
def _regularize(
    points: PointArray,
    offsets: IntArray,
    closed: BoolArray,
    least: npt.NDArray[np.uint8],
    arcs: IntArray,
    cracks: Cracks,
    max_shift: float,
    out: PointArray,
    sizes: IntArray,
) -> None:
    """`regular_arcs`, one arc after the other."""
    for arc in arcs:
        corners = points[offsets[arc] : offsets[arc + 1]]
        length = path_length(corners, 0, len(corners))
        if length < 8 or length > _LONGEST_PATH:
            continue
        walls = _rectilinear(corners, closed[arc], max_shift)
        if len(walls) == 0 or len(walls) > len(corners) or len(walls) < 2 + least[arc]:
            continue
        if closed[arc] and abs(_area(walls) / SUBPIXEL**2 / _area(corners) - 1) > _MOST_AREA_CHANGE:
            continue
        if not _is_simple(walls) or not _keeps_its_ground(walls, corners, closed[arc], cracks):
            continue
        out[offsets[arc] : offsets[arc] + len(walls)] = walls
        sizes[arc] = len(walls)


@njit
def _rectilinear(corners: PointArray, closed: bool, max_shift: float) -> PointArray:
    """Points of the arc made of lines in two directions, 1/256 px; none where two directions do not explain it."""
    nothing = np.empty((0, 2), dtype=np.int32)
    x, y = _middles(corners)
    centre_x, centre_y = x.mean(), y.mean()
    x, y = x - centre_x, y - centre_y
    n = len(x)
    reach = max(2, min(8, n // 6))  # cracks on either side of a chord's middle, more or less
    angle, agreement = _main_direction(x, y, closed, reach)
    if agreement < _LEAST_AGREEMENT:
        return nothing
    if closed:
        begin = _straightest(x, y, angle, reach)
        x, y = np.roll(x, -begin), np.roll(y, -begin)
    bounds, label = np.zeros(2, np.int64), 0
    u, v = x, y
    for attempt in range(3):
        if attempt > 0:
            angle += _turn(u, v, bounds, label)
        u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
        bounds, label = _runs(u, v, closed, reach)
        if len(bounds) == 0:
            return nothing
    return _corners_of_runs(u, v, bounds, label, corners, closed, max_shift, angle, centre_x, centre_y)


@njit
def _middles(corners: PointArray) -> tuple[FloatArray, FloatArray]:
    """The middles of an arc's cracks."""
    n = path_length(corners, 0, len(corners))
    x, y = np.empty(n), np.empty(n)
    at = 0
    for i in range(len(corners) - 1):
        dx, dy = corners[i + 1, 0] - corners[i, 0], corners[i + 1, 1] - corners[i, 1]
        for k in range(abs(dx + dy)):
            x[at] = corners[i, 0] + (k + 0.5) * np.sign(dx)
            y[at] = corners[i, 1] + (k + 0.5) * np.sign(dy)
            at += 1
    return x, y


@njit
def _main_direction(x: FloatArray, y: FloatArray, closed: bool, reach: int) -> tuple[float, float]:
    """Angle of the chords modulo 90°, radians, and how well they agree about it, 0 … 1."""
    n = len(x)
    cosine, sine, weight = 0.0, 0.0, 0.0
    for i in range(n if closed else n - reach):
        j = (i + reach) % n
        dx, dy = x[j] - x[i], y[j] - y[i]
        length2 = dx * dx + dy * dy
        if length2 > 0:
            # The fourth power of dx + i dy has four times its angle.
            real, imaginary = dx * dx - dy * dy, 2 * dx * dy
            cosine += (real * real - imaginary * imaginary) / length2
            sine += 2 * real * imaginary / length2
            weight += length2
    if weight == 0:
        return 0.0, 0.0
    return math.atan2(sine, cosine) / 4, math.hypot(cosine, sine) / weight


@njit
def _straightest(x: FloatArray, y: FloatArray, angle: float, reach: int) -> int:
    """The crack of a loop around which it runs straightest in one of the two directions."""
    n = len(x)
    best, most = 0, -np.inf
    for i in range(n):
        a, b = (i - reach) % n, (i + reach) % n
        dx, dy = x[b] - x[a], y[b] - y[a]
        along = abs(dx * math.cos(angle) + dy * math.sin(angle))
        across = abs(dy * math.cos(angle) - dx * math.sin(angle))
        straightness = max(along, across) - 3 * min(along, across)
        if straightness > most + 1e-9:
            best, most = i, straightness
    return best


@njit
def _runs(u: FloatArray, v: FloatArray, closed: bool, reach: int) -> tuple[IntArray, int]:
    """Cut a sequence of points into runs along u and v by turns.

    Returns:
        Where each run begins, with the end last, and whether the first one lies along u (0) or v (1). A loop's first
        and last run are the two halves of one. No bounds where there is no solution.
    """
    n = len(u)
    sums = np.zeros((n + 1, 4))
    for i in range(n):
        sums[i + 1, 0], sums[i + 1, 1] = sums[i, 0] + v[i], sums[i, 1] + v[i] * v[i]
        sums[i + 1, 2], sums[i + 1, 3] = sums[i, 2] + u[i], sums[i, 3] + u[i] * u[i]
    best = np.full((n + 1, 2), np.inf)
    before = np.zeros((n + 1, 2), dtype=np.int64)
    best[0, 0] = best[0, 1] = 0.0
    first = 0
    if closed:
        first = 0 if abs(u[reach] - u[-reach]) > abs(v[reach] - v[-reach]) else 1
        best[0, first] = np.inf  # what comes before a run has the other label
    for j in range(1, n + 1):
        for label in range(2):
            for i in range(j - 1, -1, -1):
                count = j - i
                total = sums[j, 2 * label] - sums[i, 2 * label]
                cost = sums[j, 2 * label + 1] - sums[i, 2 * label + 1] - total * total / count + _PRICE
                if cost >= best[j, label]:
                    break  # a longer run fits worse still
                # A single crack is no wall, except as the beginning or end of one that goes on past a node.
                if count == 1 and i > 0 and j < n:
                    continue
                if cost + best[i, 1 - label] < best[j, label]:
                    best[j, label], before[j, label] = cost + best[i, 1 - label], i
    label = first if closed else int(best[n, 1] < best[n, 0])
    if best[n, label] == np.inf:
        return np.empty(0, dtype=np.int64), 0
    count, j, at = 0, n, label
    while j > 0:
        j, at, count = before[j, at], 1 - at, count + 1
    bounds = np.empty(count + 1, dtype=np.int64)
    j, at = n, label
    for k in range(count, 0, -1):
        bounds[k] = j
        j, at = before[j, at], 1 - at
    bounds[0] = 0
    return bounds, 1 - at


@njit
def _turn(u: FloatArray, v: FloatArray, bounds: IntArray, label: int) -> float:
    """Small angle by which the two directions fit the runs better, radians."""
    products, squares = 0.0, 0.0
    for k in range(len(bounds) - 1):
        run_u, run_v = u[bounds[k] : bounds[k + 1]], v[bounds[k] : bounds[k + 1]]
        du, dv = run_u - run_u.mean(), run_v - run_v.mean()
        if (label + k) % 2 == 0:
            products += (du * dv).sum()
            squares += (du * du).sum()
        else:
            products -= (du * dv).sum()
            squares += (dv * dv).sum()
    return math.atan2(products, squares)


@njit
def _corners_of_runs(
    u: FloatArray,
    v: FloatArray,
    bounds: IntArray,
    label: int,
    corners: PointArray,
    closed: bool,
    max_shift: float,
    angle: float,
    centre_x: float,
    centre_y: float,
) -> PointArray:
    """Where the lines through the runs meet, 1/256 px; nothing where they are too far from the runs."""
    nothing = np.empty((0, 2), dtype=np.int32)
    cosine, sine = math.cos(angle), math.sin(angle)
    count = len(bounds) - 1
    n = len(u)
    lines = np.empty(count)
    if closed:
        if count < 5:
            return nothing
        # The first and the last run are one.
        across = v if label == 0 else u
        whole = (across[: bounds[1]].sum() + across[bounds[-2] :].sum()) / (bounds[1] + n - bounds[-2])
        lines[0] = lines[-1] = whole
    for k in range(1 if closed else 0, count - 1 if closed else count):
        across = v if (label + k) % 2 == 0 else u
        lines[k] = across[bounds[k] : bounds[k + 1]].mean()
    ends = np.empty((2, 2))  # the ends of the arc, along u and v
    for k in range(2):
        end_x, end_y = corners[-k, 0] - centre_x, corners[-k, 1] - centre_y
        ends[k, 0], ends[k, 1] = end_x * cosine + end_y * sine, end_y * cosine - end_x * sine
        if not closed and count > 1:
            run = (count - 1) * k
            at = ends[k, 1] if (label + run) % 2 == 0 else ends[k, 0]
            if abs(at - lines[run]) < _NODE_PULL:
                lines[run] = at  # a right angle is worth more than half a pixel
    squares = 0.0
    for k in range(count):
        across = v if (label + k) % 2 == 0 else u
        for i in range(bounds[k], bounds[k + 1]):
            distance = abs(across[i] - lines[k])
            if distance > max_shift:
                return nothing
            squares += distance * distance
    if squares > _MOST_VARIANCE * n:
        return nothing
    meet = np.empty((count + 1, 2))
    meet[0], meet[count] = ends[0], ends[1]
    for k in range(1, count):
        if (label + k) % 2 == 0:
            meet[k, 0], meet[k, 1] = lines[k - 1], lines[k]
        else:
            meet[k, 0], meet[k, 1] = lines[k], lines[k - 1]
        # Not farther from the cracks on either side of the corner than lines may be.
        i = bounds[k]
        du = max(min(u[i - 1], u[i]) - meet[k, 0], meet[k, 0] - max(u[i - 1], u[i]), 0.0)
        dv = max(min(v[i - 1], v[i]) - meet[k, 1], meet[k, 1] - max(v[i - 1], v[i]), 0.0)
        if math.hypot(du, dv) > max_shift:
            return nothing
    if closed:
        meet[0] = meet[count - 1]
        meet = meet[:count]
    for k in range(len(meet) - 1):
        inside = closed or 0 < k < len(meet) - 2
        if math.hypot(meet[k + 1, 0] - meet[k, 0], meet[k + 1, 1] - meet[k, 1]) < (_SHORTEST_WALL if inside else 0.5):
            return nothing
    walls = np.empty((len(meet), 2), dtype=np.int32)
    for k in range(len(meet)):
        walls[k, 0] = round((meet[k, 0] * cosine - meet[k, 1] * sine + centre_x) * SUBPIXEL)
        walls[k, 1] = round((meet[k, 1] * cosine + meet[k, 0] * sine + centre_y) * SUBPIXEL)
    return walls


@njit
def _area(ring: PointArray) -> float:
    """Area inside a closed ring, square units; negative where it runs clockwise on the map."""
    area = 0.0
    for i in range(len(ring) - 1):
        area += float(ring[i, 0]) * ring[i + 1, 1] - float(ring[i + 1, 0]) * ring[i, 1]
    return area / 2


@njit
def _is_simple(points: PointArray) -> bool:
    """Whether no two edges that are not neighbours come nearer than the clearance, roughly: 1/4 px along x or y."""
    n = len(points) - 1
    for i in range(n):
        for j in range(i + 2, n):
            touching = i == 0 and j == n - 1 and points[0, 0] == points[n, 0] and points[0, 1] == points[n, 1]
            if not touching and _near_each_other(points[i], points[i + 1], points[j], points[j + 1]):
                return False
    return True


@njit
def _near_each_other(a: PointArray, b: PointArray, c: PointArray, d: PointArray) -> bool:
    """Whether two segments cross or come nearer than 1/4 px."""
    if _crossing(a, b, c, d):
        return True
    limit = float(SUBPIXEL // 4) ** 2
    return (
        _distance2(a, c, d) < limit
        or _distance2(b, c, d) < limit
        or _distance2(c, a, b) < limit
        or _distance2(d, a, b) < limit
    )


@njit
def _side(a: PointArray, b: PointArray, p: PointArray) -> float:
    return float((float(b[0]) - a[0]) * (float(p[1]) - a[1]) - (float(b[1]) - a[1]) * (float(p[0]) - a[0]))


@njit
def _crossing(a: PointArray, b: PointArray, c: PointArray, d: PointArray) -> bool:
    return _side(a, b, c) * _side(a, b, d) < 0 and _side(c, d, a) * _side(c, d, b) < 0


@njit
def _distance2(p: PointArray, a: PointArray, b: PointArray) -> float:
    """Squared distance of p from the segment a–b."""
    dx, dy, px, py = float(b[0]) - a[0], float(b[1]) - a[1], float(p[0]) - a[0], float(p[1]) - a[1]
    length2 = dx * dx + dy * dy
    along = min(max((px * dx + py * dy) / length2, 0.0), 1.0) if length2 > 0 else 0.0
    return float((px - along * dx) ** 2 + (py - along * dy) ** 2)


@njit
def _keeps_its_ground(walls: PointArray, corners: PointArray, closed: bool, cracks: Cracks) -> bool:
    """Whether an arc stays where no other arc can come."""
    table = np.empty(path_table_size(path_length(corners, 0, len(corners))), dtype=np.int64)
    used = fill_path(corners, closed, table)
    for i in range(len(walls) - 1):
        first_x, first_y, last_x, last_y = 0, 0, 0, 0
        if not closed and i == 0:
            first_x, first_y = np.sign(corners[1, 0] - corners[0, 0]), np.sign(corners[1, 1] - corners[0, 1])
        if not closed and i == len(walls) - 2:
            last_x, last_y = np.sign(corners[-2, 0] - corners[-1, 0]), np.sign(corners[-2, 1] - corners[-1, 1])
        x0, y0, x1, y1 = walls[i, 0], walls[i, 1], walls[i + 1, 0], walls[i + 1, 1]
        if strays(x0, y0, x1, y1, first_x, first_y, last_x, last_y, True, cracks, table, used):
            return False
    return True
