"""Rules for polygons together: each of a pair acts, or the pair is refused."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import pytest
from affine import Affine
from rasterio.crs import CRS

from geoseg.class_map import ClassMapReader
from geoseg.class_map.writing import MapFileWriter
from geoseg.classes import ClassTable
from geoseg.errors import ConfigError
from geoseg.grid import Grid
from geoseg.map_rows import MapRows
from geoseg.polygons import PolygonRules, Tolerance, class_rules, polygonize
from geoseg.programs.vectorize import vectorize
from support.arcs import rectangle

GROUND, HOUSE, SHED, TREE = 0, 1, 2, 3
PLACE, UTM = Affine(1, 0, 500_000, 0, -1, 5_200_000), CRS.from_epsg(32633)

NAMES, COLORS = ["ground", "house", "shed", "tree"], ["#d9d4c7", "#c0392b", "#884422", "#228822"]
CLASSES = ClassTable.from_names(NAMES, COLORS)
OBJECTS = ClassTable.from_names(NAMES, COLORS, {"ground"})


def village() -> npt.NDArray[np.uint8]:
    """Turned houses, one with a speck, a court and no data in it, a shed beside another, round trees, specks."""
    values = np.zeros((120, 160), dtype=np.uint8)
    rectangle(values, 40.3, 38.5, 44, 30, 17, HOUSE)
    values[34:36, 30:32] = GROUND  # 4 m²
    values[42:47, 44:49] = GROUND  # 25 m²
    values[30:33, 46:52], values[33:35, 48:50] = 255, GROUND  # a speck that is no hole
    rectangle(values, 115.2, 40.5, 40, 26, 33, HOUSE)
    rectangle(values, 100.2, 80.5, 30, 20, 60, SHED)
    rows, cols = np.mgrid[:120, :160] + 0.5
    for row, col, radius in ((90, 40, 17), (95, 130, 12)):
        values[(rows - row) ** 2 + (cols - col) ** 2 < radius**2] = TREE
    for value, row, col in ((HOUSE, 110, 80), (TREE, 8, 8), (SHED, 6, 150), (HOUSE, 90, 45)):
        values[row : row + 2, col : col + 2] = value
    values[:2, :2] = SHED  # likewise
    return values


def polygons(rules: PolygonRules, classes: ClassTable = CLASSES) -> geopandas.GeoDataFrame:
    return polygonize(village(), PLACE, crs=UTM, classes=classes, rules=rules)


def outcome(rules: dict[str, Any]) -> list[tuple[str, str]]:
    frame = polygons(PolygonRules(**rules))
    return sorted(zip(frame["class_name"], frame.geometry.to_wkt(), strict=True))


# Each with what it needs to act at all, which stays when the rule itself is taken away.
RULES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dissolve": ({"dissolve": {"house": ["house", "shed"]}}, {}),
    "keep": ({"keep": ["house"]}, {}),
    "fill holes": ({"fill_holes_m2": 30}, {}),
    "min area": ({"min_area_m2": 5}, {}),
    "small": ({"small": "drop"}, {"min_area_m2": 5}),
    "smooth": ({"smooth": True}, {}),
    "simplify": ({"simplify": Tolerance(1.5, "px")}, {}),
    "method": ({"method": "dp"}, {"simplify": Tolerance(1.5, "px")}),
    "regularize": ({"regularize": ["house"]}, {}),
}


@pytest.mark.parametrize("pair", list(itertools.combinations(RULES, 2)), ids=" and ".join)
def test_each_rule_of_a_pair_acts(pair: tuple[str, str]) -> None:
    (rule, base), (other, other_base) = (RULES[name] for name in pair)
    together = outcome(base | other_base | rule | other)
    if rule.keys().isdisjoint(other_base):  # else the other one cannot be without it
        assert together != outcome(base | other_base | other), f"{pair[0]} does nothing beside {pair[1]}"
    assert together != outcome(base | other_base | rule), f"{pair[1]} does nothing beside {pair[0]}"


@pytest.mark.parametrize(
    ("rules", "message", "hint"),
    [
        ({"small": "drop"}, "--small drop has no effect without --min-area", "--min-area 10"),
        ({"method": "dp"}, "--simplify-method dp has no effect with --simplify none", "--simplify 1.5px"),
        ({"keep": ["house"], "regularize": ["tree"]}, "--regularize has no effect on tree", "--keep tree"),
        ({"keep": ["house"], "dissolve": {"green": ["tree"]}}, "--dissolve has no effect on green", "--keep green"),
        ({"regularize": ["ground"]}, "--regularize has no effect on ground", "--keep ground"),
        ({"contact_share": 0.3}, "--contact-share has no effect without --separate", "--separate CLASS"),
        ({"separate": ["house"], "contact_share": 0}, "--contact-share must be above 0", "--contact-share 0.25"),
    ],
)
def test_rules_without_effect_are_refused(rules: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        class_rules(PolygonRules(**rules), OBJECTS)
    assert hint in str(caught.value.hint)


def test_what_is_kept_is_what_it_is_among_the_others() -> None:
    """Leaving classes out changes nothing about the polygons of the others: walls, borders, areas."""
    for rules in ({}, {"simplify": Tolerance(1.5, "px"), "regularize": ["house"]}, {"smooth": True}):
        whole, kept = polygons(PolygonRules(**rules)), polygons(PolygonRules(**rules, keep=["house", "shed", "tree"]))
        rest = whole[whole["class_name"] != "ground"].reset_index(drop=True)
        assert len(rest) == len(kept) and rest.geometry.geom_equals(kept.geometry).all()
        np.testing.assert_array_equal(rest["area_m2"], kept["area_m2"])


def test_outlines_of_kept_houses_are_regularized_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "map.tif"
    with MapFileWriter(path, Grid(120, 160, PLACE, UTM), CLASSES) as writer:
        writer.write(MapRows(village()))
    rules = PolygonRules(simplify=Tolerance(1.5, "px"), min_area_m2=5, keep=["house"], regularize=["house"])
    report = vectorize(path, tmp_path / "houses.gpkg", rules=rules)
    assert report.notes == ("2 of 2 outlines regularized, 0 of 2 simplified",)
    frame = geopandas.read_file(tmp_path / "houses.gpkg", layer="houses")
    for shell in frame.geometry.exterior:
        edges = np.diff(np.asarray(shell.coords), axis=0)
        angles = np.degrees(np.arctan2(edges[:, 1], edges[:, 0]))
        off = np.abs((np.diff(angles, append=angles[0]) + 45) % 90 - 45)
        assert len(edges) == 4 and off.max() < 0.2


def test_a_background_becomes_no_polygons_unless_it_is_kept() -> None:
    frame = polygons(PolygonRules(), OBJECTS)
    assert set(frame["class_name"]) == {"house", "shed", "tree"}
    kept = polygons(PolygonRules(keep=["ground", "house"]), OBJECTS)
    assert set(kept["class_name"]) == {"ground", "house"}
    np.testing.assert_array_equal(
        polygons(PolygonRules(keep=NAMES), OBJECTS)["area_m2"], polygons(PolygonRules())["area_m2"]
    )
    two = PolygonRules(dissolve={"rest": ["ground", "tree"]})
    assert "rest" in set(polygons(two, OBJECTS)["class_name"])  # a group with an object in it is one


@pytest.mark.parametrize("small", ["merge", "drop"])
def test_small_holes_are_filled_if_classes_are_left_out(small: Any) -> None:
    for rules in (PolygonRules(min_area_m2=5, small=small, keep=["house"]), PolygonRules(min_area_m2=5, small=small)):
        frame = polygons(rules, OBJECTS)
        houses = frame[frame["class_name"] == "house"]
        assert sorted(len(h.interiors) for h in houses.geometry) == [0, 2]  # the speck alone is filled
        assert frame["area_m2"].min() > 5
    filled = polygons(PolygonRules(fill_holes_m2=30, keep=["house"]), OBJECTS)
    assert sum(len(h.interiors) for h in filled.geometry) == 0
    assert len(filled) == len(polygons(PolygonRules(keep=["house"])))  # a house is no hole of what is left out


@pytest.mark.parametrize("bands", [1, 7, 64])
def test_left_out_classes_do_not_depend_on_bands(bands: int) -> None:
    from geoseg.polygons import polygonize_rows, to_frame

    rules = PolygonRules(min_area_m2=5, simplify=Tolerance(1.5, "px"), keep=["house"], regularize=["house"])
    grid = Grid(120, 160, PLACE, UTM)
    rows = (MapRows(village()[i : i + bands]) for i in range(0, 120, bands))
    frame = to_frame(polygonize_rows(rows, grid, CLASSES, rules=rules, band_rows=16), grid, CLASSES)
    assert frame.geometry.to_wkt().tolist() == polygons(rules).geometry.to_wkt().tolist()


def test_a_map_says_which_class_is_its_background(tmp_path: Path) -> None:
    path = tmp_path / "map.tif"
    with MapFileWriter(path, Grid(120, 160, PLACE, UTM), OBJECTS) as writer:
        writer.write(MapRows(village()))
    with ClassMapReader(path) as reader:
        assert reader.classes == OBJECTS
    report = vectorize(path, tmp_path / "map.gpkg")
    assert "left out: ground (background)" in "\n".join(report.lines())
    assert [c.name for c in report.classes] == ["house", "shed", "tree"]


def test_a_map_of_nothing_but_background_gives_an_empty_layer(tmp_path: Path) -> None:
    path = tmp_path / "map.tif"
    with MapFileWriter(path, Grid(64, 64, PLACE, UTM), OBJECTS) as writer:
        writer.write(MapRows(np.zeros((64, 64), dtype=np.uint8)))
    for name in ("none.gpkg", "none.geojson", "none.fgb", "none.parquet", "none.shp"):
        assert vectorize(path, tmp_path / name).polygons == 0
        assert (tmp_path / name).exists()
