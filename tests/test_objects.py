"""Objects of a class that touch, separated along their contact."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import pytest
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.crs import CRS
from scipy import ndimage

from geoseg.class_map.writing import MapFileWriter
from geoseg.classes import ClassTable
from geoseg.grid import Grid
from geoseg.map_rows import CUT_EAST, CUT_SOUTH, MapRows, join_rows
from geoseg.options import PolygonRules
from geoseg.polygons import polygonize
from geoseg.polygons.rules.objects import Separation, separate_objects
from geoseg.polygons.trace.joining import closed_polygons
from geoseg.tolerance import parse_tolerance
from support.class_maps import maps
from support.commands import run, succeed

Values = npt.NDArray[np.uint8]

HOUSE = 1
TABLE = ClassTable.from_names(["ground", "house"], ["#dddddd", "#aa2222"], {"ground"}, {"house"})
METRES = {"crs": "EPSG:32631", "transform": Affine(1, 0, 500_000, 0, -1, 5_000_000)}


def cuts_of(classes: Values, objects: npt.NDArray[Any]) -> Values:
    """Where neighbours of a class are of different objects."""
    cuts = np.zeros(classes.shape, dtype=np.uint8)
    cuts[:, :-1][(classes[:, :-1] == classes[:, 1:]) & (objects[:, :-1] != objects[:, 1:])] |= CUT_EAST
    cuts[:-1][(classes[:-1] == classes[1:]) & (objects[:-1] != objects[1:])] |= CUT_SOUTH
    return cuts


def objects_of(classes: Values, contact: Values, rule: Separation) -> npt.NDArray[np.int64]:
    """The definition once more on the whole map: cores, then the strip step by step; 0 outside the classes."""
    objects = np.where(np.isin(classes, rule.classes), -1, 0)
    number = 1
    for value in rule.classes:
        cores, _ = ndimage.label((classes == value) & (contact < 127))
        for core, (rows, _) in enumerate(ndimage.find_objects(cores), start=1):
            if rows.stop - rows.start > rule.tall_px:
                objects[cores == core] = 1
            elif (cores == core).sum() >= rule.limit:
                number += 1
                objects[cores == core] = number
    for _ in range(rule.reach_px):
        before = objects.copy()
        for y, x in zip(*np.nonzero(before == -1), strict=True):
            for b, a in ((y - 1, x), (y, x - 1), (y, x + 1), (y + 1, x)):
                inside = 0 <= b < len(classes) and 0 <= a < classes.shape[1]
                if inside and before[b, a] > 0 and classes[b, a] == classes[y, x]:
                    objects[y, x] = before[b, a]
                    break
    objects[objects == -1] = 1
    return objects


def separated(classes: Values, contact: Values, rule: Separation, heights: Any = (1000,), band_rows: int = 64) -> Any:
    """All rows with their cuts, fed in blocks of these heights."""
    rows = MapRows(classes, contact=contact)
    ends = np.cumsum([*heights] * len(classes))
    pieces = (rows[a:b] for a, b in pairwise([0, *ends[ends < len(classes)], len(classes)]))
    areas = np.ones(len(classes))
    return join_rows(list(separate_objects(pieces, classes.shape[1], areas, rule, band_rows=band_rows)), axis=-2)


def town(size: int = 60, houses: int = 40, seed: int = 0) -> tuple[Values, Values, npt.NDArray[Any]]:
    """Houses that touch, the contact within 1 px of another house, and the number of each pixel's house."""
    rng = np.random.default_rng(seed)
    number = np.zeros((size, size), dtype=int)
    for i in range(1, houses + 1):
        y, x = rng.integers(0, size - 5, 2)
        number[y : y + rng.integers(5, 15), x : x + rng.integers(5, 15)] = i
    low = ndimage.minimum_filter(np.where(number, number, 999), 3)
    near = (ndimage.maximum_filter(number, 3) != number) | (low != number)
    contact = np.where(near & (number > 0), 254, 0).astype(np.uint8)
    return (number > 0).astype(np.uint8), contact, number


@given(maps(), st.sampled_from([1, 3, 7]), st.data())
def test_cuts_part_regions_as_other_values_do(values: Values, band_rows: int, data: st.DataObject) -> None:
    feed = data.draw(st.integers(1, len(values)))
    classes = np.where(values == 255, 255, values // 3).astype(np.uint8)
    kinds: list[list[Any]] = []
    for rows in (MapRows(values), MapRows(classes, cuts=cuts_of(classes, values))):
        pieces = (rows[row : row + feed] for row in range(0, len(values), feed))
        parts = closed_polygons(pieces, values.shape[1], threads=0, band_rows=band_rows)
        kinds.append([[p.xy.tolist(), p.rings.tolist(), p.polygons.tolist(), p.pixels.tolist()] for p in parts])
    assert kinds[0] == kinds[1]


@given(maps(20), st.data())
def test_objects_are_those_of_the_definition_for_any_bands(classes: Values, data: st.DataObject) -> None:
    classes = np.where(classes == 255, 255, classes % 3).astype(np.uint8)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    contact = np.where(rng.random(classes.shape) < data.draw(st.sampled_from([0.1, 0.4, 0.7])), 200, 100)
    contact = contact.astype(np.uint8)
    rule = Separation(
        data.draw(st.sampled_from([(1,), (0, 2)])),
        contact=0.5,
        limit=data.draw(st.sampled_from([0, 3])),
        reach_px=data.draw(st.sampled_from([1, 3, 64])),
        tall_px=data.draw(st.sampled_from([2, 5, 2048])),
    )
    expected = cuts_of(classes, objects_of(classes, contact, rule))
    heights = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    out = separated(classes, contact, rule, heights, band_rows=data.draw(st.sampled_from([1, 4, 64])))
    np.testing.assert_array_equal(out.classes, classes)
    np.testing.assert_array_equal(out.cuts, expected)
    assert out.contact is None


def test_rows_leave_before_the_map_ends() -> None:
    classes, contact, _ = town(400, 900)
    rows = MapRows(classes, contact=contact)
    taken = 0

    def counted() -> Any:
        nonlocal taken
        for row in range(0, 400, 10):
            taken = row + 10
            yield rows[row : row + 10]

    rule = Separation((HOUSE,), reach_px=8)
    first = next(separate_objects(counted(), 400, np.ones(400), rule, band_rows=20))
    assert len(first) > 0
    assert taken < 200


@pytest.mark.parametrize("options", [{}, {"simplify": parse_tolerance("1.5px")}, {"smooth": True}])
def test_separated_houses_are_a_valid_coverage(options: dict[str, Any]) -> None:
    classes, contact, _ = town()
    rules = PolygonRules(separate=("house",), keep=("house", "ground"), **options)
    frame = polygonize(classes, classes=TABLE, contact=contact, rules=rules, **METRES)
    shapes = frame.geometry.to_numpy()
    assert shapely.is_valid(shapes).all()
    assert shapely.coverage_is_valid(shapes)
    assert shapely.area(shapes).sum() == pytest.approx(classes.size)
    if not options:
        together = polygonize(classes, classes=TABLE, rules=PolygonRules(keep=("house", "ground")), **METRES)
        for name in ("house", "ground"):
            areas = [f.geometry[f.class_name == name].area.sum() for f in (frame, together)]
            assert areas[0] == areas[1], f"no pixel of {name} is lost"
        assert len(frame) > len(together)


def test_a_strip_is_shared_out_between_the_houses_beside_it() -> None:
    classes = np.zeros((12, 24), dtype=np.uint8)
    classes[2:10, 2:22] = HOUSE
    contact = np.zeros_like(classes)
    contact[2:10, 10:14] = 254
    frame = polygonize(classes, classes=TABLE, contact=contact, rules=PolygonRules(separate=("house",)), **METRES)
    houses = frame[frame.class_name == "house"]
    assert sorted(houses.geometry.area) == [80, 80]
    assert shapely.length(shapely.shared_paths(*houses.geometry.exterior)) == pytest.approx(8)


def test_a_house_in_a_courtyard_is_a_hole_of_the_other() -> None:
    classes = np.full((20, 20), HOUSE, dtype=np.uint8)
    contact = np.zeros_like(classes)
    contact[5:15, 5:15], contact[7:13, 7:13] = 254, 0
    frame = polygonize(classes, classes=TABLE, contact=contact, rules=PolygonRules(separate=("house",)), **METRES)
    outer, inner = sorted(frame.geometry, key=shapely.area, reverse=True)
    assert inner.area == 62, "two corners of the strip are equally near, and the outer house is to their north"
    assert outer.area == 400 - 62
    assert len(outer.interiors) == 1


def test_cores_below_the_smallest_area_are_no_objects() -> None:
    classes = np.full((9, 30), HOUSE, dtype=np.uint8)
    contact = np.zeros_like(classes)
    contact[:, 10:20], contact[4:6, 14:16] = 254, 0
    for min_area, count in ((0, 3), (5, 2)):
        rules = PolygonRules(separate=("house",), min_area_m2=min_area)
        assert len(polygonize(classes, classes=TABLE, contact=contact, rules=rules, **METRES)) == count


def test_a_lower_share_parts_more() -> None:
    classes, contact = np.full((8, 20), HOUSE, dtype=np.uint8), np.zeros((8, 20), dtype=np.uint8)
    contact[:, 10] = 90
    for share, count in ((0.5, 1), (0.3, 2)):
        rules = PolygonRules(separate=("house",), contact_share=share)
        assert len(polygonize(classes, classes=TABLE, contact=contact, rules=rules, **METRES)) == count


def test_objects_without_contact_are_refused() -> None:
    with pytest.raises(ValueError, match="contact"):
        list(separate_objects([MapRows(np.ones((3, 3), np.uint8))], 3, np.ones(3), Separation((1,))))


def write_town(path: Path, *, with_contact: bool = True) -> None:
    classes, contact, _ = town()
    grid = Grid(*classes.shape, METRES["transform"], CRS.from_user_input(METRES["crs"]))
    layers = ("classes", "contact") if with_contact else ("classes",)
    with MapFileWriter(path, grid, TABLE, layers=layers) as writer:
        writer.write(MapRows(classes, contact=contact))


def test_vectorize_separates_by_the_raster_beside_the_map(tmp_path: Path) -> None:
    write_town(tmp_path / "map.tif")
    for name, options in (("plain", []), ("apart", ["--separate", "house"])):
        succeed("vectorize", tmp_path / "map.tif", "-o", tmp_path / f"{name}.gpkg", "--simplify", "none", *options)
    plain, apart = (geopandas.read_file(tmp_path / f"{name}.gpkg") for name in ("plain", "apart"))
    assert len(apart) > 2 * len(plain)
    assert apart.area.sum() == pytest.approx(plain.area.sum())
    names = tmp_path / "names.yaml"
    names.write_text("classes: [{name: soil, color: '#111111', background: true}, {name: roof, color: '#222222'}]")
    succeed("vectorize", tmp_path / "map.tif", "-o", tmp_path / "roofs.gpkg", "--classes", names, "--separate", "roof")
    assert len(geopandas.read_file(tmp_path / "roofs.gpkg")) == len(apart)


@pytest.mark.parametrize(
    ("option", "with_contact", "message"),
    [
        ("house", False, "no map_contact.tif beside the map"),
        ("ground", True, "was not trained to see where two objects"),
        ("hause", True, "which the map does not have"),
    ],
)
def test_what_cannot_be_separated_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, with_contact: bool, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_town(Path("map.tif"), with_contact=with_contact)
    ran = run("vectorize", "map.tif", "-o", "out.gpkg", "--separate", option)
    assert ran.exit_code == 2
    assert message in ran.stderr
    assert "hint:" in ran.stderr
    assert not Path("out.gpkg").exists()
