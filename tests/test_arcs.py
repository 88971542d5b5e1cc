from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from geoseg.polygons.trace.arcs import BandArcs, trace_band
from geoseg.polygons.trace.cracks import pack_cracks
from geoseg.polygons.trace.labels import BandRegions
from support.arcs import crack_count, cracks_of, has_horizontal, has_vertical, is_node, is_vertex
from support.class_maps import framed, maps

NO_CONFIDENCE = np.empty((0, 0), np.uint8)


def whole(values: npt.NDArray[np.uint8], confidence: Any = NO_CONFIDENCE) -> tuple[BandRegions, BandArcs]:
    return trace_band(framed(values), confidence, first_row=0)


def lattice_sides(points: npt.NDArray[np.int32]) -> set[tuple[int, int, int, int]]:
    """Unit sides along a polyline, each from its smaller to its larger corner."""
    sides = set()
    for (x, y), (to_x, to_y) in zip(points[:-1].tolist(), points[1:].tolist(), strict=True):
        assert (x == to_x) != (y == to_y), "an arc runs along rows and columns"
        for step in range(abs(to_x - x) + abs(to_y - y)):
            here = (min(x, to_x) + step * (y == to_y), min(y, to_y) + step * (x == to_x))
            sides.add((*here, here[0] + (y == to_y), here[1] + (x == to_x)))
    return sides


def test_two_pixels_meet_in_one_straight_arc() -> None:
    regions, arcs = whole(np.array([[3, 7]], np.uint8))
    assert regions.value.tolist() == [-1, 3, 7]
    assert regions.pixels.tolist() == [0, 1, 1]
    assert regions.first.tolist()[1:] == [0, 1]
    assert arcs.open_pieces == 0
    lines = [arcs.points[a:b].tolist() for a, b in zip(arcs.offsets[:-1], arcs.offsets[1:], strict=True)]
    between = lines.index([[1, 0], [1, 1]])
    assert arcs.sides[between].tolist() == [2, 1], "going south, the left hand is in the east"
    assert len(lines) == 7, "six more between the corners of the map and the two ends of that one"


def test_a_pixel_inside_is_a_loop_with_its_inside_on_the_left() -> None:
    values = np.zeros((3, 3), np.uint8)
    values[1, 1] = 5
    regions, arcs = whole(values)
    loop = int(np.flatnonzero(arcs.nodes[:, 0] < 0)[0])
    points = arcs.points[arcs.offsets[loop] : arcs.offsets[loop + 1]]
    assert points.tolist() == [[1, 1], [1, 2], [2, 2], [2, 1], [1, 1]]
    assert regions.value[arcs.sides[loop]].tolist() == [5, 0]
    assert arcs.area[loop] == -2
    assert arcs.extent[loop].tolist() == [1, 2]


@given(maps())
def test_regions_are_those_of_scipy(values: npt.NDArray[np.uint8]) -> None:
    confidence = np.random.default_rng(values.size).integers(0, 255, values.shape).astype(np.uint8)
    regions, _ = whole(values, confidence)
    expected = []
    for value in np.unique(values):
        labels, count = ndimage.label(values == value)
        for k in range(1, count + 1):
            inside = labels == k
            place = np.flatnonzero(inside)
            expected.append(
                (place[0], value, len(place), np.nonzero(inside)[0].max(), confidence[inside].sum(dtype=int),
                 confidence[inside].min())
            )  # fmt: skip
    found = zip(
        regions.first, regions.value, regions.pixels, regions.last, regions.confidence_sum, regions.confidence_min,
        strict=True,
    )  # fmt: skip
    assert list(found)[1:] == sorted(expected), "in raster order of their first pixels, behind the outside"


@given(maps())
def test_arcs_run_along_every_crack_once(values: npt.NDArray[np.uint8]) -> None:
    _, arcs = whole(values)
    rows = framed(values)
    width = values.shape[1]
    cracks = cracks_of(*pack_cracks(rows), width)
    along, turning = [], []
    for k, (begin, end) in enumerate(zip(arcs.offsets[:-1], arcs.offsets[1:], strict=True)):
        points = arcs.points[begin:end]
        sides = lattice_sides(points)
        along += sides
        assert np.all(np.any(points[2:] != points[1:-1], axis=1))
        assert not np.any(np.all(points[2:] == points[1:-1], axis=1) | np.any(
            (points[2:] == points[1:-1]) & (points[1:-1] == points[:-2]), axis=1)), "nothing collinear"  # fmt: skip
        turning += [tuple(p) for p in points[1:-1].tolist()]
        if arcs.nodes[k, 0] >= 0:
            assert is_node(cracks, width, *points[0].tolist()) and is_node(cracks, width, *points[-1].tolist())
            assert arcs.keys[k, 0] < arcs.keys[k, 1]
        else:
            assert tuple(points[0]) == tuple(points[-1])
            turning.append(tuple(points[0].tolist()))
        assert not any(is_node(cracks, width, *p) for p in points[1:-1].tolist())
        x, y = points.T.astype(int)
        assert arcs.area[k] == (x[:-1] * y[1:] - x[1:] * y[:-1]).sum()
        assert arcs.extent[k].tolist() == [y.min(), y.max()]
    assert len(along) == len(set(along))
    corners = [(x, y) for y in range(rows.shape[0] - 1) for x in range(rows.shape[1] - 1)]
    expected = {(x, y, x + 1, y) for x, y in corners if has_horizontal(cracks, x, y)}
    expected |= {(x, y, x, y + 1) for x, y in corners if has_vertical(cracks, x, y)}
    assert set(along) == expected
    assert sorted(turning) == sorted(c for c in corners if is_vertex(cracks, *c) and not is_node(cracks, width, *c))
    outer = {(x, y) for x in (0, values.shape[1]) for y in (0, values.shape[0])}
    nodes = {c for c in corners if is_node(cracks, width, *c)}
    assert nodes == outer | {c for c in corners if crack_count(cracks, *c) >= 3}
    assert len(arcs.cracks) == len(nodes)


@given(maps(), st.data())
def test_a_band_has_its_arcs_and_pieces_at_the_seams(values: npt.NDArray[np.uint8], data: st.DataObject) -> None:
    first = data.draw(st.integers(0, values.shape[0] - 1))
    end = data.draw(st.integers(first + 1, values.shape[0]))
    rows = framed(values)
    regions, arcs = trace_band(rows[first : end + 1], NO_CONFIDENCE, first_row=first)
    above, last = rows[first], rows[end]
    assert ((arcs.top >= 0) == (above[:-1] != above[1:])).all()
    assert ((arcs.bottom >= 0) == (last[:-1] != last[1:])).all()
    ends = np.concatenate([arcs.top[arcs.top >= 0], arcs.bottom[arcs.bottom >= 0]])
    assert len(np.unique(ends)) == len(ends)
    assert set(ends >> 1) == set(range(arcs.open_pieces))
    assert (regions.value[regions.bottom] == last[1:-1]).all()
    assert (regions.value[regions.top] == above[1:-1]).all()
    assert regions.pixels.sum() == (end - first) * values.shape[1]
    _, everything = whole(values)
    lines = {
        tuple(map(tuple, everything.points[a:b].tolist()))
        for a, b in zip(everything.offsets[:-1], everything.offsets[1:], strict=True)
    }
    for k in range(arcs.open_pieces, len(arcs.area)):
        assert tuple(map(tuple, arcs.points[arcs.offsets[k] : arcs.offsets[k + 1]].tolist())) in lines


def test_cracks_are_absent_outside_the_stored_rows() -> None:
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    horizontal, vertical = pack_cracks(framed(values))
    assert horizontal.shape == vertical.shape == (4, 1)
    cracks = cracks_of(horizontal, vertical, 4, rows=slice(1, 3))
    assert [has_vertical(cracks, 1, y) for y in range(-1, 5)] == [False, False, True, True, False, False]
    assert [has_horizontal(cracks, x, 1) for x in range(-1, 6)] == [False, True, True, True, True, False, False]


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (8, 8)])
def test_a_map_of_one_value_is_four_arcs(shape: tuple[int, int]) -> None:
    regions, arcs = whole(np.zeros(shape, np.uint8))
    assert len(regions.value) == 2
    assert len(arcs.area) == len(arcs.cracks) == 4
    assert arcs.offsets.tolist() == [0, 2, 4, 6, 8]
