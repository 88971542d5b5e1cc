"""The arcs of small maps, traced crack by crack in plain Python: slow, simple, and independent of the tracer."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import shapely
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from geoseg.polygons.simplify.finish import ArcFinisher
from geoseg.polygons.trace.cracks import OUTSIDE, SUBPIXEL, ArcBatch, BitRows, Cracks

STEPS = {"E": (1, 0), "S": (0, 1), "W": (-1, 0), "N": (0, -1)}


def crack_planes_of(values):
    """`Cracks` of a whole map, and its two planes unpacked."""
    framed = np.pad(np.asarray(values, dtype=np.int16), 1, constant_values=OUTSIDE)
    height, width = np.shape(values)
    horizontal = np.zeros((height + 1, (width + 8) // 8 * 8), dtype=bool)
    vertical = np.zeros_like(horizontal)
    horizontal[:, :width] = framed[:-1, 1:-1] != framed[1:, 1:-1]
    vertical[:height, : width + 1] = framed[1:-1, :-1] != framed[1:-1, 1:]

    def pack(plane):
        return np.packbits(plane, axis=1, bitorder="little")

    return cracks_of(pack(horizontal), pack(vertical), width), horizontal, vertical


def cracks_of(horizontal, vertical, width, *, rows=slice(0, None)):
    """`Cracks` of some rows of packed planes that begin at the top of a map."""
    cracks = Cracks(BitRows(width), BitRows(width))
    for kept, plane in zip(cracks, (horizontal, vertical), strict=True):
        kept.add(plane[: rows.start])
        kept.add(plane[rows])
        kept.drop_above(rows.start)
    return cracks


def trace(values):
    """All arcs of a map as an `ArcBatch`."""
    values = np.asarray(values)
    _, horizontal, vertical = crack_planes_of(values)
    height, width = values.shape
    leaves = {}  # corner → directions of its cracks
    for y, x in zip(*np.nonzero(horizontal), strict=True):
        leaves.setdefault((int(x), int(y)), set()).add("E")
        leaves.setdefault((int(x) + 1, int(y)), set()).add("W")
    for y, x in zip(*np.nonzero(vertical), strict=True):
        leaves.setdefault((int(x), int(y)), set()).add("S")
        leaves.setdefault((int(x), int(y) + 1), set()).add("N")
    corners = {(0, 0), (width, 0), (0, height), (width, height)}
    nodes = {c for c, d in leaves.items() if len(d) > 2} | corners
    seen, arcs = set(), []

    def walk(corner, direction, stop):
        points = [corner]
        while True:
            dx, dy = STEPS[direction]
            x, y = corner
            there = (x + dx, y + dy)
            seen.add(frozenset((corner, there)))
            corner = there
            if corner in stop:
                points.append(corner)
                return points
            back = {"E": "W", "W": "E", "N": "S", "S": "N"}[direction]
            (turn,) = leaves[corner] - {back}
            if turn != direction:
                points.append(corner)
            direction = turn

    for node in sorted(nodes, key=lambda c: (c[1], c[0])):
        for direction in sorted(leaves[node]):
            dx, dy = STEPS[direction]
            if frozenset((node, (node[0] + dx, node[1] + dy))) not in seen:
                arcs.append((walk(node, direction, nodes), False))
    for corner in sorted(leaves, key=lambda c: (c[1], c[0])):
        loop = corner not in nodes and {"E", "S"} <= leaves[corner]
        if loop and frozenset((corner, (corner[0] + 1, corner[1]))) not in seen:
            arcs.append((walk(corner, "E", {corner}), True))
    # Of the arcs between the same two nodes one may become a straight line, and one that is straight already will.
    ends, least = set(), [0] * len(arcs)
    for i in sorted(range(len(arcs)), key=lambda i: len(arcs[i][0])):
        points, loop = arcs[i]
        pair = frozenset((points[0], points[-1]))
        least[i] = 0 if loop else 2 if len(pair) == 1 else int(pair in ends)
        ends.add(pair)
    return ArcBatch(
        points=np.concatenate([np.array(p, dtype=np.int32) for p, _ in arcs]),
        offsets=np.cumsum([0, *(len(p) for p, _ in arcs)]).astype(np.int64),
        closed=np.array([loop for _, loop in arcs]),
        least=np.array(least, dtype=np.uint8),
        keys=np.full((len(arcs), 2), -1),
    )


def split(points, offsets):
    """Arcs as a list of coordinate arrays."""
    return np.split(points, offsets[1:-1])


def reverse(batch):
    """The same arcs, each walked the other way."""
    return batch._replace(
        points=np.concatenate([p[::-1] for p in split(batch.points, batch.offsets)]),
        keys=batch.keys[:, ::-1],
    )


def rotate_loops(batch, by):
    """The same arcs, loops started ``by`` vertices later."""
    arcs = split(batch.points, batch.offsets)
    for i in np.flatnonzero(batch.closed):
        ring = np.roll(arcs[i][:-1], -by, axis=0)
        arcs[i] = np.vstack([ring, ring[:1]])
    return batch._replace(points=np.concatenate(arcs))


def assert_coverage(batch, points, offsets, rounding=0.0, seed=0):
    """Arcs meet in nodes only, bound as many polygons as before, and these are a valid coverage."""
    xy = points / SUBPIXEL
    if rounding:
        # Every place gets its own shift, the same in all arcs that pass it.
        places, which = np.unique(points, axis=0, return_inverse=True)
        shift = np.random.default_rng(seed).uniform(-rounding, rounding, places.shape) / np.sqrt(2)
        xy = xy + shift[which.ravel()]
    lines = np.array([shapely.LineString(p) for p in split(xy, offsets)])
    assert shapely.is_simple(lines).all()
    before = [shapely.LineString(p) for p in split(batch.points, batch.offsets)]
    a, b = shapely.STRtree(lines).query(lines, predicate="intersects")
    a, b = a[a < b], b[a < b]
    if not batch.closed.all() and len(a):
        shared = shapely.intersection(lines[a], lines[b])
        for i, j, common in zip(a, b, shared, strict=True):
            ends = {tuple(xy[k]) for arc in (i, j) for k in (offsets[arc], offsets[arc + 1] - 1)}
            assert {tuple(c) for c in shapely.get_coordinates(common)} <= ends, (i, j, common)
            assert shapely.get_type_id(common) in (0, 4), (i, j, common)
    assert not batch.closed[a].any() and not batch.closed[b].any()
    polygons = shapely.get_parts(shapely.polygonize(lines))
    assert len(polygons) == len(shapely.get_parts(shapely.polygonize(before)))
    assert shapely.is_valid(polygons).all()
    assert shapely.coverage_is_valid(polygons)
    return polygons


maps = arrays.arrays(
    np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.sampled_from([0, 1, 255]), fill=st.just(0)
)
methods = st.sampled_from(["vw", "dp"])


def blobs(seed=0, size=60, classes=3):
    """A map of smooth regions: sums of waves, cut at levels."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    field = sum(np.sin(x * a + y * b + c) for a, b, c in rng.normal(size=(8, 3)) * [0.25, 0.25, 3] for _ in range(1))
    return np.digitize(field, np.quantile(field, np.linspace(0, 1, classes + 1)[1:-1])).astype(np.uint8)


def finished(values, **options):
    batch = trace(values)
    return batch, *ArcFinisher(**options)(batch, crack_planes_of(values)[0])


def as_sets(points, offsets):
    """Each arc as the set of its edges, whatever its direction and start."""
    arcs = split(points, offsets)
    return [{frozenset([tuple(a), tuple(b)]) for a, b in pairwise(p)} for p in arcs]


def stairs(step, count=6, margin=30):
    """A wall that rises by one pixel every ``step`` pixels."""
    heights = np.repeat(np.arange(count), step)
    y = np.arange(count + margin)[:, None]
    return (y >= heights[None, :]).astype(np.uint8)


def rectangle(values, x, y, length, width, degrees, value=1, notch=(0, 0)):
    """Paint the pixels whose centres are in a rotated rectangle, less a notch at one corner."""
    angle = np.radians(degrees)
    rows, columns = np.mgrid[: values.shape[0], : values.shape[1]] + 0.5
    along = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)
    across = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
    inside = (abs(along) < length / 2) & (abs(across) < width / 2)
    inside &= ~((along > length / 2 - notch[0]) & (across > width / 2 - notch[1]))
    values[inside] = value
    return values


def is_set(plane, x, y):
    """The bit of corner (x, y); False outside the stored rows and columns."""
    (row,) = plane.between(y, y)
    return 0 <= x < 8 * len(row) and bool(row[x >> 3] >> (x & 7) & 1)


def crack_count(cracks, x, y):
    """Number of cracks that meet at a corner, 0 … 4."""
    along = has_horizontal(cracks, x, y) + has_horizontal(cracks, x - 1, y)
    return along + has_vertical(cracks, x, y) + has_vertical(cracks, x, y - 1)


def has_horizontal(cracks, x, y):
    """Whether the side from corner (x, y) to (x + 1, y) is a crack."""
    return is_set(cracks.horizontal, x, y)


def has_vertical(cracks, x, y):
    """Whether the side from corner (x, y) to (x, y + 1) is a crack."""
    return is_set(cracks.vertical, x, y)


def is_node(cracks, width, x, y):
    """Whether arcs end at a corner: three or four cracks meet there, or it is an outer corner of the map."""
    count = crack_count(cracks, x, y)
    if count == 2 and x in (0, width):
        return has_vertical(cracks, x, y) != has_vertical(cracks, x, y - 1)
    return count >= 3


def is_vertex(cracks, x, y):
    """Whether an arc turns or ends at a corner."""
    along = has_horizontal(cracks, x, y) or has_horizontal(cracks, x - 1, y)
    return along and (has_vertical(cracks, x, y) or has_vertical(cracks, x, y - 1))
