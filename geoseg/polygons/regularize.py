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

from geoseg._jit import njit
from geoseg.polygons.cracks import NODATA, OUTSIDE, SUBPIXEL, ArcBatch, Cracks
from geoseg.polygons.ground import fill_path, path_length, path_table_size, strays

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
PointArray = npt.NDArray[np.int32]

_PRICES = (2.5, 6.0)  # of a line: what it has to save in squared distances, px²; the dearer one if that fails
_MOST_VARIANCE = 0.22  # mean squared distance of the middles from their lines, px²; 1/12 is the raster's own
_LEAST_AGREEMENT = 0.35  # of the chords' directions modulo 90°: 1 for a straight wall, 0 for a circle
_SHORTEST_WALL = 2.0  # px
_WAY = 3  # cracks beside a node up to which a wall may begin
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
        table = np.empty(path_table_size(length), dtype=np.int64)
        used = fill_path(corners, closed[arc], table)
        for price in _PRICES:
            walls = _rectilinear(corners, closed[arc], price, max_shift, cracks, table, used)
            if len(walls) == 0 or len(walls) > len(corners) or len(walls) < 2 + least[arc]:
                continue
            if closed[arc] and abs(_area(walls) / SUBPIXEL**2 / _area(corners) - 1) > _MOST_AREA_CHANGE:
                continue
            if _is_simple(walls):
                out[offsets[arc] : offsets[arc] + len(walls)] = walls
                sizes[arc] = len(walls)
                break


@njit
def _rectilinear(
    corners: PointArray, closed: bool, price: float, max_shift: float, cracks: Cracks, table: IntArray, used: int
) -> PointArray:
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
            angle = _level(angle + _turn(u, v, bounds, label), x, y)
        u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
        bounds, label = _runs(u, v, closed, reach, price)
        if len(bounds) == 0:
            return nothing
    lines = _lines_of_runs(u, v, bounds, label, closed)
    if len(lines) == 0 or not _explain(u, v, bounds, label, lines, max_shift):
        return nothing
    if closed:
        ring = _on_the_map(_meeting_points(lines, label), angle, centre_x, centre_y)
        walls = np.concatenate((ring, ring[:1]))
        if _has_short_walls(ring, True) or not _keep_their_ground(walls, corners, True, cracks, table, used):
            return nothing
        return walls
    return _between_nodes(corners, u, v, bounds, lines, label, angle, centre_x, centre_y, cracks, table, used)


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
def _runs(u: FloatArray, v: FloatArray, closed: bool, reach: int, price: float) -> tuple[IntArray, int]:
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
                cost = sums[j, 2 * label + 1] - sums[i, 2 * label + 1] - total * total / count + price
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
def _level(angle: float, x: FloatArray, y: FloatArray) -> float:
    """The angle, or 0 if the raster cannot tell: the arc's ends would be less than half a pixel off a row or column."""
    extent = max(x.max() - x.min(), y.max() - y.min())
    return 0.0 if abs(math.sin(angle)) * extent < 0.5 else angle


@njit
def _lines_of_runs(u: FloatArray, v: FloatArray, bounds: IntArray, label: int, closed: bool) -> FloatArray:
    """Where each run's line crosses the other axis, px; of a loop, whose last run goes on with the first, one less."""
    count = len(bounds) - 1
    lines = np.empty(count)
    for k in range(count):
        across = v if (label + k) % 2 == 0 else u
        lines[k] = across[bounds[k] : bounds[k + 1]].mean()
    if closed:
        first, last = bounds[1], len(u) - bounds[count - 1]
        lines[0] = (first * lines[0] + last * lines[count - 1]) / (first + last)
        lines = lines[: count - 1]
        if len(lines) < 4:
            return lines[:0]
    return lines


@njit
def _explain(u: FloatArray, v: FloatArray, bounds: IntArray, label: int, lines: FloatArray, max_shift: float) -> bool:
    """Whether lines and their corners are near enough to the middles of the cracks."""
    squares = 0.0
    count = len(lines)
    for k in range(len(bounds) - 1):
        across = v if (label + k) % 2 == 0 else u
        for i in range(bounds[k], bounds[k + 1]):
            distance = abs(across[i] - lines[k % count])
            if distance > max_shift:
                return False
            squares += distance * distance
        if k > 0:
            u_line, v_line = lines[k % count], lines[k - 1]
            if (label + k) % 2 == 0:
                u_line, v_line = v_line, u_line
            i = bounds[k]
            du = max(min(u[i - 1], u[i]) - u_line, u_line - max(u[i - 1], u[i]), 0.0)
            dv = max(min(v[i - 1], v[i]) - v_line, v_line - max(v[i - 1], v[i]), 0.0)
            if math.hypot(du, dv) > max_shift:
                return False
    return squares <= _MOST_VARIANCE * len(u)


@njit
def _meeting_points(lines: FloatArray, label: int) -> FloatArray:
    """Corners of a closed ring of lines: u, v of where each line meets the next."""
    count = len(lines)
    meet = np.empty((count, 2))
    for k in range(count):
        along = (label + k) % 2
        meet[k, 1 - along], meet[k, along] = lines[k], lines[(k + 1) % count]
    return meet


@njit
def _on_the_map(points: FloatArray, angle: float, centre_x: float, centre_y: float) -> PointArray:
    """Points u, v in px as x, y in 1/256 px."""
    cosine, sine = math.cos(angle), math.sin(angle)
    placed = np.empty(points.shape, dtype=np.int32)
    for k in range(len(points)):
        placed[k, 0] = round((points[k, 0] * cosine - points[k, 1] * sine + centre_x) * SUBPIXEL)
        placed[k, 1] = round((points[k, 1] * cosine + points[k, 0] * sine + centre_y) * SUBPIXEL)
    return placed


@njit
def _has_short_walls(walls: PointArray, closed: bool) -> bool:
    """Whether a wall between two of these corners, also between the last and the first one of a ring, is too short."""
    for k in range(0 if closed else 1, len(walls)):
        a, b = walls[k - 1], walls[k]
        if math.hypot(float(b[0]) - a[0], float(b[1]) - a[1]) < _SHORTEST_WALL * SUBPIXEL:
            return True
    return False


@njit
def _between_nodes(
    corners: PointArray,
    u: FloatArray,
    v: FloatArray,
    bounds: IntArray,
    lines: FloatArray,
    label: int,
    angle: float,
    centre_x: float,
    centre_y: float,
    cracks: Cracks,
    table: IntArray,
    used: int,
) -> PointArray:
    """The lines, joined with the nodes at both ends; nothing where that is not possible on the arc's own ground.

    Near a node all arcs have little ground. A wall that does not pass it begins at the first crack from where it keeps
    its ground, and the cracks before that one stay as they are.
    """
    count = len(lines)
    last_label = (label + count - 1) % 2
    first_run, last_run = bounds[1], bounds[-1] - bounds[-2]
    starts = _ways_in(corners, u, v, first_run, lines[0], label, angle, centre_x, centre_y)
    ends = _ways_in(corners[::-1], u[::-1], v[::-1], last_run, lines[-1], last_label, angle, centre_x, centre_y)
    for start_size, start_line, start in zip(*starts):  # noqa: B905 - numba knows no strict
        for end_size, end_line, end in zip(*ends):  # noqa: B905
            if start_size == 0 or end_size == 0:
                continue
            meet = np.empty((count - 1, 2))
            for k in range(count - 1):
                along = (label + k) % 2
                meet[k, 1 - along] = start_line if k == 0 else lines[k]
                meet[k, along] = end_line if k == count - 2 else lines[k + 1]
            middle = _on_the_map(meet, angle, centre_x, centre_y)
            if len(middle) > 1 and _has_short_walls(middle, False):
                continue
            walls = np.concatenate((start[:start_size], middle, end[:end_size][::-1]))
            if _keep_their_ground(walls, corners, False, cracks, table, used):
                return walls
    return np.empty((0, 2), dtype=np.int32)


@njit
def _ways_in(
    corners: PointArray,
    u: FloatArray,
    v: FloatArray,
    run: int,
    line: float,
    label: int,
    angle: float,
    centre_x: float,
    centre_y: float,
) -> tuple[IntArray, FloatArray, PointArray]:
    """Ways from the node at the start of an arc to the line of its first run, the best first.

    Returns:
        Number of points of each way (0: there is no such way), where its line is, and its points in 1/256 px.
    """
    sizes, lines = np.zeros(1 + 2 * _WAY, dtype=np.int64), np.full(1 + 2 * _WAY, line)
    points = np.empty((1 + 2 * _WAY, _WAY + 3, 2), dtype=np.int32)
    node_x, node_y = corners[0, 0] - centre_x, corners[0, 1] - centre_y
    at = node_x * math.cos(angle) + node_y * math.sin(angle)
    if label == 0:
        at = node_y * math.cos(angle) - node_x * math.sin(angle)
    points[:, 0] = SUBPIXEL * corners[0]
    if abs(at - line) < _NODE_PULL:  # the line is moved to pass the node
        sizes[0], lines[0] = 1, at
    meet = np.empty((1, 2))
    x, y, turn, beyond = int(corners[0, 0]), int(corners[0, 1]), 1, 0
    for k in range(1, min(_WAY, run - 2) + 1):
        # To the corner before the k-th crack, and on to the foot of its middle on the line.
        x, y = x + int(np.sign(corners[turn, 0] - x)), y + int(np.sign(corners[turn, 1] - y))
        meet[0, 0], meet[0, 1] = u[k], v[k]
        meet[0, 1 - label] = line
        foot = _on_the_map(meet, angle, centre_x, centre_y)[0]
        sizes[k], points[k, 1] = 2, foot
        for i in range(1, beyond + 1):
            points[_WAY + k, i] = SUBPIXEL * corners[i]
        points[_WAY + k, beyond + 1, 0], points[_WAY + k, beyond + 1, 1] = SUBPIXEL * x, SUBPIXEL * y
        points[_WAY + k, beyond + 2] = foot
        sizes[_WAY + k] = beyond + 3
        if x == corners[turn, 0] and y == corners[turn, 1]:
            turn, beyond = turn + 1, beyond + 1
    return sizes, lines, points


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
def _keep_their_ground(
    walls: PointArray, corners: PointArray, closed: bool, cracks: Cracks, table: IntArray, used: int
) -> bool:
    """Whether walls stay where no other arc can come."""
    for i in range(len(walls) - 1):
        first_x, first_y, last_x, last_y = 0, 0, 0, 0
        if not closed and i == 0:
            first_x, first_y = corners[1, 0] - corners[0, 0], corners[1, 1] - corners[0, 1]
        if not closed and i == len(walls) - 2:
            last_x, last_y = corners[-2, 0] - corners[-1, 0], corners[-2, 1] - corners[-1, 1]
        if strays(
            walls[i, 0],
            walls[i, 1],
            walls[i + 1, 0],
            walls[i + 1, 1],
            int(np.sign(first_x)),
            int(np.sign(first_y)),
            int(np.sign(last_x)),
            int(np.sign(last_y)),
            True,
            cracks,
            table,
            used,
        ):
            return False
    return True
