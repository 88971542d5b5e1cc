from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import orjson
import pandas as pd
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS

import geoseg
from geoseg.class_map import change, read_class_map
from geoseg.class_map.writing import MapFileWriter
from geoseg.classes import ClassTable
from geoseg.errors import ConfigError, SceneError
from geoseg.evaluation.change import MapErrors, estimated_change, read_errors
from geoseg.evaluation.tables import write_json
from geoseg.grid import Grid
from geoseg.map_rows import MapRows
from geoseg.options import PolygonRules
from geoseg.tolerance import Tolerance
from support import commands
from support.evaluations import made_evaluation

Ids = npt.NDArray[np.uint8]

CLASSES = ClassTable.from_names(["forest", "built", "water"], ["#00aa00", "#aa0000", "#0000aa"])
MERCATOR = Affine(0.73, 0, 1_669_792, 0, -0.73, 5_942_074)
EXACT = PolygonRules()


def write(
    path: Path, ids: Ids, *, classes: ClassTable = CLASSES, crs: int | None = 3857, transform: Affine = MERCATOR
) -> Path:
    grid = Grid(*ids.shape, transform, None if crs is None else CRS.from_epsg(crs))
    with MapFileWriter(path, grid, classes) as writer:
        writer.write(MapRows(ids))
    return path


def ids(seed: int, shape: tuple[int, int] = (60, 50), classes: int = 3) -> Ids:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, classes, (shape[0] // 5 + 1, shape[1] // 5 + 1))
    values = np.kron(coarse, np.ones((5, 5), int))[: shape[0], : shape[1]].astype(np.uint8)
    values[rng.random(shape) < 0.05] = 255
    return values


@pytest.fixture
def maps(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path / "old.tif", ids(1)), write(tmp_path / "new.tif", ids(2))


def polygons(path: Path) -> pd.DataFrame:
    return geopandas.read_file(path, layer=path.stem) if path.suffix == ".gpkg" else geopandas.read_file(path)


# --- the matrix


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([32633, 3857, None]))
def test_the_matrix_adds_up_to_the_common_ground(tmp_path_factory: Any, seed: int, crs: int | None) -> None:
    folder = tmp_path_factory.mktemp("maps")
    a, b = ids(seed), ids(seed + 1)
    old, new = write(folder / "a.tif", a, crs=crs), write(folder / "b.tif", b, crs=crs)
    report, back = geoseg.compare(old, new), geoseg.compare(new, old)
    common = (a != 255) & (b != 255)
    row_m2 = report.grid.pixel_area_m2()
    assert report.area_m2.sum() == pytest.approx((common.sum(axis=1) * row_m2).sum(), rel=1e-12)
    for i in range(3):
        for j in range(3):
            assert report.pixels[i, j] == ((a == i) & (b == j)).sum()
    np.testing.assert_array_equal(back.pixels, report.pixels.T)
    np.testing.assert_array_equal(back.area_m2, report.area_m2.T)


def test_bands_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = write(tmp_path / "old.tif", ids(1, (1300, 20)))
    new = write(tmp_path / "new.tif", ids(2, (1300, 20)))
    whole = geoseg.compare(old, new, tmp_path / "whole.geojson")
    monkeypatch.setattr(change, "_ROWS_PX", 1)
    cut = geoseg.compare(old, new, tmp_path / "cut.geojson")
    np.testing.assert_array_equal(cut.area_m2, whole.area_m2)
    text = (tmp_path / "whole.geojson").read_text()
    assert (tmp_path / "cut.geojson").read_text() == text.replace('"whole"', '"cut"')


def test_identical_maps_have_no_change(maps: tuple[Path, Path], tmp_path: Path) -> None:
    old, _ = maps
    report = geoseg.compare(old, old, tmp_path / "c.gpkg")
    assert report.polygons == 0 and len(polygons(tmp_path / "c.gpkg")) == 0
    assert any(line.startswith("nothing changed: all") for line in report.lines())
    assert np.count_nonzero(report.area_m2 - np.diag(np.diag(report.area_m2))) == 0


# --- changes as polygons and as a raster


@pytest.mark.parametrize("suffix", ["gpkg", "geojson", "shp", "parquet", "fgb"])
def test_polygons_have_the_areas_of_the_matrix(maps: tuple[Path, Path], tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"c.{suffix}"
    report = geoseg.compare(*maps, path, rules=EXACT)
    frame = geopandas.read_parquet(path) if suffix == "parquet" else polygons(path)
    assert len(frame) == report.polygons
    sums = frame.groupby(["from", "to"])["area_m2"].sum()
    for i, a in enumerate(CLASSES.names):
        for j, b in enumerate(CLASSES.names):
            found = sums.get((a, b), 0.0)
            assert found == pytest.approx(0 if i == j else report.area_m2[i, j], rel=1e-6)
    assert (frame["class_name"] == frame["from"] + ":" + frame["to"]).all()


def test_rules_take_changes_as_classes(maps: tuple[Path, Path], tmp_path: Path) -> None:
    geoseg.compare(*maps, tmp_path / "k.gpkg", rules=PolygonRules(keep=["forest:built"], min_area_m2=3))
    kept = polygons(tmp_path / "k.gpkg")
    assert set(kept["to"]) == {"built"} and set(kept["from"]) == {"forest"} and kept["area_m2"].min() >= 3
    loss = PolygonRules(keep=["loss"], dissolve={"loss": ["forest:built", "forest:water"]})
    geoseg.compare(*maps, tmp_path / "l.gpkg", rules=loss)
    lost = polygons(tmp_path / "l.gpkg")
    assert (
        set(lost["class_name"]) == {"loss"} and set(lost["from"]) == {"forest"} and set(lost["to"]) == {"built, water"}
    )
    old, _ = maps
    same = geoseg.compare(old, old, tmp_path / "s.gpkg", rules=PolygonRules(keep=["built:forest"]))
    assert same.polygons == 0  # a change that did not happen may be asked for
    with pytest.raises(ConfigError, match="forest:wood"):
        geoseg.compare(*maps, tmp_path / "w.gpkg", rules=PolygonRules(keep=["forest:wood"]))


def test_a_raster_of_changes_names_them(maps: tuple[Path, Path], tmp_path: Path) -> None:
    report = geoseg.compare(*maps, tmp_path / "c.tif")
    found, a, b = read_class_map(tmp_path / "c.tif"), ids(1), ids(2)
    assert found.grid == report.grid and found.classes.names[0] == "unchanged"
    expected = np.array(["unchanged" if x == y else f"{CLASSES.names[x]}:{CLASSES.names[y]}" for x, y in zip(
        np.minimum(a, 2).ravel(), np.minimum(b, 2).ravel(), strict=True)])  # fmt: skip
    known = ((a != 255) & (b != 255)).ravel()
    values = found.values.ravel()
    assert (values[~known] == 255).all()
    assert (np.array(found.classes.names)[values[known]] == expected[known]).all()


def test_more_than_254_changes_fit_no_map(tmp_path: Path) -> None:
    many = ClassTable.from_names([f"c{i}" for i in range(20)], ["#000000"] * 20)
    rng = np.random.default_rng(0)
    old, new = (
        write(tmp_path / name, rng.integers(0, 20, (80, 80)).astype(np.uint8), classes=many)
        for name in ("a.tif", "b.tif")
    )
    assert len(geoseg.compare(old, new).lines()) > 20
    with pytest.raises(SceneError, match="different changes, and a map of changes holds at most 254"):
        geoseg.compare(old, new, tmp_path / "c.gpkg")
    assert not (tmp_path / "c.gpkg").exists()


# --- maps that do not fit


def test_classes_in_another_order_are_matched_by_name(maps: tuple[Path, Path], tmp_path: Path) -> None:
    turned = ClassTable.from_names(["water", "forest", "built"], ["#0000aa", "#00aa00", "#aa0000"])
    values = ids(2)
    moved = np.where(values == 255, 255, (values + 1) % 3).astype(np.uint8)
    again = write(tmp_path / "turned.tif", moved, classes=turned)
    np.testing.assert_array_equal(geoseg.compare(maps[0], again).pixels, geoseg.compare(*maps).pixels)


@pytest.mark.parametrize(
    ("changed", "message", "hint"),
    [
        ({"transform": MERCATOR @ Affine.translation(0.5, 2)}, "moved by 0.5 columns and 2 rows", "gdalwarp -r near"),
        ({"transform": MERCATOR @ Affine.scale(1.01)}, "not on the grid", "-ts 50 60"),
        ({"crs": 32633}, "EPSG:32633 and not EPSG:3857", "-t_srs EPSG:3857 -te 1669792"),
        ({"crs": None}, "no CRS and not EPSG:3857", "both need a CRS"),
    ],
)
def test_maps_on_different_grids_are_refused(
    maps: tuple[Path, Path], tmp_path: Path, changed: dict[str, Any], message: str, hint: str
) -> None:
    other = write(tmp_path / "other.tif", ids(2), **changed)
    with pytest.raises(SceneError, match=message) as caught:
        geoseg.compare(maps[0], other)
    assert hint in str(caught.value.hint)


@pytest.mark.skipif(shutil.which("gdalwarp") is None, reason="needs GDAL's programs")
def test_the_command_of_the_hint_makes_maps_comparable(maps: tuple[Path, Path], tmp_path: Path) -> None:
    moved = write(tmp_path / "moved.tif", ids(2), transform=MERCATOR @ Affine.translation(3, 2))
    with pytest.raises(SceneError) as caught:
        geoseg.compare(maps[0], moved)
    subprocess.run(shlex.split(str(caught.value.hint)), check=True, cwd=tmp_path, capture_output=True)
    report = geoseg.compare(maps[0], tmp_path / "aligned.tif")
    assert report.classes.names == CLASSES.names
    a, b = ids(1)[2:, 3:], ids(2)[:-2, :-3]
    assert report.pixels[0, 1] == ((a == 0) & (b == 1)).sum()


def test_maps_of_different_size_or_classes_are_refused(maps: tuple[Path, Path], tmp_path: Path) -> None:
    small = write(tmp_path / "small.tif", ids(2, (60, 40)))
    with pytest.raises(SceneError, match="40 × 60 px and not 50 × 60 px"):
        geoseg.compare(maps[0], small)
    other = ClassTable.from_names(["forest", "town", "water"], ["#000000"] * 3)
    named = write(tmp_path / "named.tif", ids(2), classes=other)
    with pytest.raises(SceneError, match=r"old\.tif lacks town; .*named\.tif lacks built") as caught:
        geoseg.compare(maps[0], named)
    assert "--classes" in str(caught.value.hint)
    with pytest.raises(SceneError, match="no common ground"):
        geoseg.compare(maps[0], write(tmp_path / "none.tif", np.full((60, 50), 255, dtype=np.uint8)))


# --- estimates


def test_estimates_are_those_of_the_published_example() -> None:
    """Olofsson et al. 2014, section 5; 30 m pixels."""
    sample = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]]).T  # there rows are the map
    mapped_m2 = np.array([200_000, 150_000, 3_200_000, 6_450_000]) * 900.0
    area, margin = MapErrors(sample, np.ones(4)).areas(mapped_m2)
    np.testing.assert_allclose(area / 1e4, [21_158, 11_686, 285_770, 581_386], atol=1)
    np.testing.assert_allclose(margin / 1e4, [6_158, 3_756, 15_510, 16_282], rtol=1e-3)


def test_the_interval_of_a_change_is_that_of_a_simulation() -> None:
    rng = np.random.default_rng(5)
    share = np.array([[0.9, 0.1], [0.2, 0.8]])  # (mapped, true)
    old, new = np.array([700.0, 300.0]), np.array([500.0, 500.0])

    def sampled() -> MapErrors:
        return MapErrors(np.array([rng.multinomial(200, row) for row in share]).T, np.ones(2))

    draws = [estimated_change([sampled(), sampled()], old, new) for _ in range(3000)]
    found, margins = (np.array(column) for column in zip(*draws, strict=True))
    np.testing.assert_allclose(found.mean(axis=0), (new - old) @ share, rtol=0.02)
    inside = np.abs(found - (new - old) @ share) <= margins
    assert 0.93 < inside.mean() < 0.97
    one = sampled()
    np.testing.assert_array_equal(estimated_change([one], old, new), estimated_change([one, one], old, new))


def test_an_evaluation_gives_estimates_and_its_own_width(tmp_path: Path) -> None:
    evaluation = made_evaluation(tmp_path)
    write_json(tmp_path / "scores.json", evaluation)
    names = evaluation.classes.names
    errors = read_errors(tmp_path, names)
    areas = evaluation.total.areas
    assert areas is not None
    estimate, margin = errors.areas(areas.mapped_ha)  # the map that was evaluated has the evaluation's own interval
    np.testing.assert_allclose(estimate, areas.estimated_ha, rtol=1e-6)
    sampled = errors.spread != 1
    np.testing.assert_allclose(margin[sampled], areas.margin_ha[sampled], rtol=1e-6)
    turned = read_errors(tmp_path / "scores.json", names[::-1])
    np.testing.assert_array_equal(turned.confusion, errors.confusion[::-1, ::-1])


@pytest.mark.parametrize(
    "content", ["{}", "no json", '{"classes": ["a"], "all": {"classes": {"a": {}}, "confusion": [[1]]}}']
)
def test_what_is_no_evaluation_is_refused(maps: tuple[Path, Path], tmp_path: Path, content: str) -> None:
    (tmp_path / "scores.json").write_text(content)
    with pytest.raises(ConfigError, match="evaluation"):
        geoseg.compare(*maps, evaluations=[tmp_path])
    with pytest.raises(ConfigError, match="no such evaluation"):
        geoseg.compare(*maps, evaluations=[tmp_path / "nowhere"])
    with pytest.raises(ConfigError, match="found 3 evaluations"):
        geoseg.compare(*maps, evaluations=[tmp_path] * 3)


def test_rules_for_polygons_need_polygons(maps: tuple[Path, Path], tmp_path: Path) -> None:
    for output in (None, tmp_path / "changes.tif"):
        with pytest.raises(ConfigError, match="no effect without polygons"):
            geoseg.compare(*maps, output, rules=PolygonRules(min_area_m2=4))
    assert not (tmp_path / "changes.tif").exists()


def test_a_tolerance_in_metres_names_the_map_without_a_crs(tmp_path: Path) -> None:
    maps = [write(tmp_path / f"{seed}.tif", ids(seed), crs=None) for seed in (1, 2)]
    with pytest.raises(ConfigError, match=r"1\.tif has no CRS, so --simplify 2m has no meaning"):
        geoseg.compare(*maps, tmp_path / "changes.gpkg", rules=PolygonRules(simplify=Tolerance(2, "m")))


# --- the command


def test_the_command_prints_the_matrix_and_writes_changes(maps: tuple[Path, Path], tmp_path: Path) -> None:
    measures = {name: {"mapped_ha": 1.0, "margin_ha": 0.1} for name in CLASSES.names}
    confusion = np.eye(3, dtype=int) * 50 + 2
    content = {"classes": CLASSES.names, "all": {"classes": measures, "confusion": confusion.tolist()}}
    (tmp_path / "scores.json").write_bytes(orjson.dumps(content))
    ran = commands.run("compare", *maps, "-o", tmp_path / "c.gpkg", "--evaluation", tmp_path)
    assert ran.exit_code == 0, ran.stderr
    report = geoseg.compare(*maps)
    assert "from \\ to, ha" in ran.stdout and "± 95 %" in ran.stdout and "polygons of change" in ran.stdout
    assert f"{report.area_m2[0, 1] / 1e4:,.2f}" in ran.stdout
    assert commands.run("-q", "compare", *maps).stdout == "\n".join(report.lines()) + "\n"
    for words in (["nowhere.tif", maps[1]], [*maps, "-o", tmp_path / "c.gpkg"], [*maps, "-o", "c.png"]):
        failed = commands.run("compare", *words)
        assert failed.exit_code == 2 and failed.stderr.startswith("error: ")
