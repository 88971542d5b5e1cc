from __future__ import annotations

import logging
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from shapely.geometry import Polygon, box

from geoseg.classes import NODATA
from geoseg.config import TrainConfig, parse_config
from geoseg.data.checks import dataset as checks
from geoseg.data.labelled import open_scenes
from geoseg.data.problems import Problem, problem_lines, refuse
from geoseg.data.windows import RandomWindows
from geoseg.errors import ConfigError, LabelError
from support.hints import commands_in, complaint, misplaced_commands, words_of
from support.scenes import MadeScene, MakeScene

pytestmark = [
    pytest.mark.filterwarnings("ignore:'crs' was not provided"),
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
]

NAMES = ("other", "field", "house")
SHAPE = (96, 80)  # of `write_scene`
Entry = dict[str, Any]


def config(*train: Entry, val: list[Entry] | None = None, imagery: Any = None, **data: Any) -> TrainConfig:
    values = {
        "name": "test",
        "output": "run",
        "classes": [{"name": name, "color": "#000000"} for name in NAMES],
        "imagery": imagery or {},
        "data": {"train": list(train), "val": list(train) if val is None else val, "leakage": "warn", **data},
        "train": {"size": 32},
    }
    return parse_config(values, source="test")


def check_data(settings: TrainConfig) -> list[Problem]:
    """All problems, once each command in their hints has been typed."""
    problems = checks.check_data(settings)
    for hint in dict.fromkeys(problem.hint for problem in problems if problem.hint is not None):
        assert not misplaced_commands(hint)
        for command in commands_in(hint):
            program, *rest = words_of(command, {"EPSG:…": "EPSG:32633", "CONFIG": "config.yaml", "FOLDER": "folder"})
            if program != "gdal_edit.py":  # which would change what the test goes on with
                with tempfile.TemporaryDirectory() as folder:
                    assert complaint([program, *rest], Path(folder)) is None
    return problems


def reported(problems: list[Problem], *words: str) -> Problem:
    """The one problem whose message has all the words."""
    found = [p for p in problems if all(word in p.message for word in words)]
    assert len(found) == 1, "\n".join(problem_lines(problems))
    return found[0]


def errors(problems: list[Problem]) -> list[Problem]:
    return [p for p in problems if p.severity == "error"]


def about(problems: list[Problem], *paths: Path) -> list[Problem]:
    return [p for p in problems if p.where in {str(path) for path in paths}]


def stripes(side: int = 8, shape: tuple[int, int] = SHAPE) -> npt.NDArray[np.uint8]:
    rows, cols = np.mgrid[0 : shape[0], 0 : shape[1]]
    return ((rows // side + cols // side) % 3).astype(np.uint8)


def write_raster(path: Path, ids: npt.NDArray[Any], made: MadeScene, **changes: Any) -> Path:
    bands = ids if ids.ndim == 3 else ids[None]
    profile = {"crs": made.crs, "transform": made.transform, "dtype": ids.dtype, **changes}
    count, height, width = bands.shape
    with rasterio.open(path, "w", driver="GTiff", count=count, height=height, width=width, **profile) as file:
        file.write(bands)
    return path


def ground(made: MadeScene, row: float, col: float, height: float, width: float) -> Polygon:
    """A rectangle in pixels of a scene as a polygon on the ground."""
    left, top = made.transform @ (col, row)
    right, bottom = made.transform @ (col + width, row + height)
    return box(left, bottom, right, top)


def write_polygons(path: Path, made: MadeScene, kinds: list[Any], shapes: list[Any], crs: Any = "same") -> Path:
    frame = geopandas.GeoDataFrame({"kind": kinds}, geometry=shapes, crs=made.crs if crs == "same" else crs)
    frame.to_file(path)
    return path


@pytest.fixture
def made(make_scene: MakeScene) -> MadeScene:
    return make_scene()


@pytest.fixture
def all_classes(made: MadeScene) -> list[tuple[str, Polygon]]:
    return [(name, ground(made, 10, 5 + 20 * i, 30, 15)) for i, name in enumerate(NAMES)]


def polygons(made: MadeScene, path: Path, features: list[tuple[Any, Any]], crs: Any = "same", **entry: Any) -> Entry:
    kinds, shapes = [kind for kind, _ in features], [shape for _, shape in features]
    write_polygons(path, made, kinds, shapes, crs)
    return {"scene": made.path, "labels": path, "attribute": "kind", "outside": "other", **entry}


# --- the list


def test_nothing_is_wrong_with_good_data(
    made: MadeScene, all_classes: list[tuple[str, Polygon]], make_scene: MakeScene, tmp_path: Path
) -> None:
    other = make_scene(shift=(0, 500), seed=1)
    raster = {"scene": other.path, "labels": write_raster(tmp_path / "l.tif", stripes(), other)}
    vector = polygons(made, tmp_path / "l.gpkg", all_classes)
    assert check_data(config(vector, val=[raster], leakage="refuse")) == []
    assert problem_lines([]) == ["no problems found"]


def test_the_list_counts_numbers_and_gives_hints() -> None:
    problems = [
        Problem("error", "a", "a is wrong", "type this"),
        Problem("error", "b", "b is wrong"),
        Problem("warning", "a", "a is odd", "look there"),
    ]
    lines = problem_lines(problems)
    assert lines[0].startswith("2 errors and 1 warning")
    assert [line.split(". ")[0].strip() for line in lines if "hint" not in line][1:] == ["1", "2", "3"]
    assert sum("hint: type this" in line or "hint: look there" in line for line in lines) == 2

    with pytest.raises(LabelError) as refused:
        refuse(problems)
    assert refused.value.message.splitlines()[0].startswith("2 errors and 1 warning")
    assert [p.message in refused.value.message for p in problems] == [True] * 3
    assert refused.value.hint is not None and "type this" in refused.value.hint


def test_one_error_reads_as_if_raised_alone() -> None:
    with pytest.raises(LabelError) as refused:
        refuse([Problem("error", "a", "a is wrong", "type this")])
    assert (refused.value.message, refused.value.hint) == ("a is wrong", "type this")


def test_warnings_are_logged_and_nothing_is_raised(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        refuse([Problem("warning", "a", "a is odd", "look there")])
    assert caplog.messages == ["a is odd (look there)"]
    refuse([])


def test_one_bad_scene_hides_no_other(made: MadeScene, make_scene: MakeScene, tmp_path: Path) -> None:
    missing = {
        "scene": tmp_path / "none.tif",
        "labels": tmp_path / "none.gpkg",
        "attribute": "kind",
        "outside": "other",
    }
    wrong = {"scene": make_scene(dtype="uint16").path, "labels": tmp_path / "no_labels.tif"}
    (tmp_path / "text.tif").write_text("no raster")
    broken = {"scene": tmp_path / "text.tif", "labels": write_raster(tmp_path / "l.tif", stripes(), made)}
    unreadable = {"scene": made.path, "labels": tmp_path / "text.tif"}
    found = check_data(config(missing, wrong, val=[broken, unreadable]))
    assert len(errors(found)) == 5 and found == sorted(found, key=lambda p: (p.severity != "error", p.where, p.message))
    for path in "none.tif", "none.gpkg", "no_labels.tif":
        reported(found, "no such", path)
    reported(found, "is uint16, the configuration says uint8")
    assert len([p for p in found if "text.tif is not a raster" in p.message]) == 1, "once, however often it is named"


# --- imagery


def test_dtype_and_bands_are_reported_at_once(make_scene: MakeScene, tmp_path: Path) -> None:
    scene = make_scene(dtype="uint16", bands=2)
    entry = {"scene": scene.path, "labels": write_raster(tmp_path / "l.tif", stripes(), scene)}
    found = check_data(config(entry))
    assert "imagery.dtype=uint16" in str(reported(found, "is uint16").hint)
    assert "imagery.bands" in str(reported(found, "has bands 1 … 2, but band 3", "red, green, blue").hint)


@pytest.mark.parametrize(
    ("dtype", "top", "scale"), [("uint16", 255, 1 / 255), ("uint16", 65535, 1 / 65535), ("float32", 255, 1 / 255)]
)
def test_values_off_the_usual_scale(dtype: str, top: int, scale: float, make_scene: MakeScene, tmp_path: Path) -> None:
    scene = make_scene(dtype=dtype)
    with rasterio.open(scene.path, "r+") as file:
        shades = np.random.default_rng(0).integers(1, top, (3, *SHAPE)).astype(dtype)
        file.write(shades)
    entry = {"scene": scene.path, "labels": write_raster(tmp_path / "l.tif", stripes(), scene)}
    problem = reported(check_data(config(entry, imagery={"dtype": dtype})), "times the scale")
    assert problem.severity == "warning" and problem.hint is not None
    assert float(problem.hint.removeprefix("imagery.scale=")) == pytest.approx(scale, rel=1e-4)
    after = check_data(config(entry, imagery={"dtype": dtype, "scale": scale}))
    assert not [p for p in after if "times the scale" in p.message]


def test_usual_values_of_every_dtype_are_taken(make_scene: MakeScene, tmp_path: Path) -> None:
    for dtype, factor in (("uint8", 1.0), ("uint16", 6000.0), ("int16", 6000.0), ("float32", 0.6)):
        scene = make_scene(dtype=dtype)
        if dtype != "uint8":
            with rasterio.open(scene.path, "r+") as file:
                file.write((np.random.default_rng(0).random((3, *SHAPE)) * factor).astype(dtype))
        entry = {"scene": scene.path, "labels": write_raster(tmp_path / f"{dtype}.tif", stripes(), scene)}
        assert about(check_data(config(entry, imagery={"dtype": dtype})), scene.path) == []


def test_pixels_that_mean_nothing(make_scene: MakeScene, tmp_path: Path) -> None:
    def entry(change: Callable[[npt.NDArray[Any]], None], **options: Any) -> Entry:
        scene = make_scene(**options)
        pixels = scene.pixels.copy()
        change(pixels)
        with rasterio.open(scene.path, "r+") as file:
            file.write(pixels)
        labels = write_raster(tmp_path / f"{scene.path.stem}_labels.tif", stripes(), scene)
        return {"scene": scene.path, "labels": labels}

    def blank(pixels: npt.NDArray[Any]) -> None:
        pixels[:, :70] = 0

    def flat(pixels: npt.NDArray[Any]) -> None:
        pixels[2] = 7

    def endless(pixels: npt.NDArray[Any]) -> None:
        pixels[0, 3, 4] = np.inf

    declared, unsaid, constant = entry(blank, nodata="value"), entry(blank), entry(flat)
    found = check_data(config(declared, unsaid, constant))
    assert reported(found, "are nodata", str(declared["scene"])).severity == "warning"
    assert reported(found, "are 0 in all bands", str(unsaid["scene"])).hint == "if 0 means no data: imagery.nodata=0"
    assert reported(found, "band 3 (blue) is 7", str(constant["scene"])).severity == "warning"
    infinite = entry(endless, dtype="float32")
    assert reported(check_data(config(infinite, imagery={"dtype": "float32"})), "infinite").severity == "error"


def test_scenes_side_by_side(make_scene: MakeScene, tmp_path: Path) -> None:
    fine, bare = make_scene(), make_scene(crs=None, seed=1)
    coarse = make_scene(seed=2)
    with rasterio.open(coarse.path, "r+") as file:
        file.transform = coarse.transform @ Affine.scale(3)
    strips = make_scene(size=(64, 5000), shift=(900, 0), tiled=False, blockysize=64, blockxsize=5000)
    entries = []
    for n, scene in enumerate((fine, bare, coarse, strips)):
        with rasterio.open(scene.path) as file:
            profile = {"crs": file.crs, "transform": file.transform}
            labels = write_raster(tmp_path / f"l{n}.tif", stripes(shape=file.shape), scene, **profile)
        entries.append({"scene": scene.path, "labels": labels})
    found = check_data(config(*entries))
    assert errors(found) == []
    assert str(bare.path) in reported(found, "1 of 4 scenes have no CRS").message
    sizes = reported(found, "differ in pixel size")
    assert str(fine.path) in sizes.message or str(strips.path) in sizes.message
    assert f"{coarse.path} 1.5 m" in sizes.message
    assert str(sizes.hint).endswith("imagery.gsd_m=1.5")
    resampled = check_data(config(*entries, imagery={"gsd_m": 1.5}))
    assert errors(resampled) == []
    assert not any("pixel size" in problem.message or "grid of scene" in problem.message for problem in resampled)
    slow = reported(found, "slow to read")
    assert slow.where == str(strips.path) and str(slow.hint).startswith("geoseg prepare scenes")


def test_the_command_for_slow_scenes_names_all_of_them(make_scene: MakeScene, tmp_path: Path) -> None:
    def hint(count: int) -> str:
        return str(reported(check_data(config(*entries[:count])), "slow to read").hint)

    entries = []
    for n in range(9):
        scene = make_scene(size=(32, 5000), shift=(900 * n, 0), tiled=False, blockysize=32, blockxsize=5000)
        with rasterio.open(scene.path) as file:
            profile = {"crs": file.crs, "transform": file.transform}
            labels = write_raster(tmp_path / f"l{n}.png", stripes(shape=file.shape), scene, **profile)
        entries.append({"scene": scene.path, "labels": labels})
    named = " ".join(str(entry["scene"]) for entry in entries[:3])
    assert hint(3) == f"geoseg prepare scenes {named} -o FOLDER"
    assert hint(9) == f"geoseg prepare scenes {tmp_path}/*.tif -o FOLDER"


def test_a_scene_with_a_crs_without_definition(make_scene: MakeScene, tmp_path: Path) -> None:
    local = make_scene()
    crs = CRS.from_wkt('LOCAL_CS["site grid",UNIT["metre",1]]')
    with rasterio.open(local.path, "r+") as file:
        file.crs = crs
    labels = write_raster(tmp_path / "l.tif", stripes(), local, crs=crs)
    found = check_data(config({"scene": local.path, "labels": labels}))
    assert errors(found) == [] and reported(found, "does not say where on Earth", "site grid").severity == "warning"
    vector = write_polygons(tmp_path / "l.gpkg", local, ["field"], [ground(local, 5, 5, 20, 20)], crs="EPSG:32633")
    entry = {"scene": local.path, "labels": vector, "attribute": "kind", "outside": "other"}
    assert reported(check_data(config(entry)), "scene's CRS", "is undefined").severity == "error"
    elsewhere = write_raster(tmp_path / "elsewhere.tif", stripes(), local)
    reported(
        check_data(config({"scene": local.path, "labels": elsewhere})),
        "elsewhere.tif are in EPSG:32633",
        "is undefined",
    )
    area = {"scene": local.path, "labels": labels, "labelled_area": vector}
    reported(
        check_data(config(area)), "labelled area", "in EPSG:32633, scene", "site grid", "does not say where on Earth"
    )


def test_a_scene_gets_its_crs_from_the_configuration(
    all_classes: list[tuple[str, Polygon]], made: MadeScene, tmp_path: Path
) -> None:
    bare = write_raster(tmp_path / "bare.tif", made.pixels, made, crs=None)
    entry = polygons(made, tmp_path / "l.gpkg", all_classes, scene=bare)
    assert errors(check_data(config({**entry, "crs": "EPSG:32633"}))) == []
    degrees = polygons(made, tmp_path / "d.gpkg", [("field", box(15, 46, 16, 47))], crs="EPSG:4326", scene=bare)
    assert "crs: EPSG:…" in str(reported(check_data(config(degrees)), "no feature of", "which has no CRS").hint)
    wrong = {**entry, "scene": made.path, "crs": "EPSG:32634"}
    reported(check_data(config(wrong)), "is in EPSG:32633, so it cannot be given the CRS EPSG:32634")


def test_pixels_that_are_others_than_they_seem(make_scene: MakeScene, tmp_path: Path) -> None:
    """Bands in another order, values that tags change, bytes in wider pixels, pixels far from square."""
    swapped, tagged, flat = make_scene(photometric="MINISBLACK"), make_scene(seed=1), make_scene(seed=2)
    wide = make_scene(dtype="int16", seed=3)
    with rasterio.open(swapped.path, "r+") as file:
        file.descriptions = ("blue", "green", "red")
    with rasterio.open(tagged.path, "r+") as file:
        file.scales, file.offsets = (1e-4,) * 3, (-0.1,) * 3
    stretched = flat.transform @ Affine.scale(4, 0.25)
    with rasterio.open(flat.path, "r+") as file:
        file.transform = stretched
    with rasterio.open(wide.path, "r+") as file:
        file.write((wide.pixels // 256).astype("int16"))
    scenes = (swapped, tagged, flat, wide)
    places = [stretched if scene is flat else scene.transform for scene in scenes]
    labels = [
        write_raster(tmp_path / f"l{n}.tif", stripes(), scene, transform=place)
        for n, (scene, place) in enumerate(zip(scenes, places, strict=True))
    ]
    found = check_data(config(*({"scene": s.path, "labels": path} for s, path in zip(scenes, labels, strict=True))))
    order = reported(found, "bands 1,2,3 of scene", str(swapped.path), "but have other names")
    assert order.hint == "imagery.indexes=[3,2,1]" and order.severity == "warning"
    assert reported(found, "scale and offset tags", str(tagged.path), "(0.0001 and -0.1)").severity == "warning"
    assert "gdalwarp -tr 0.125 0.125" in str(reported(found, "2 m wide and 0.125 m high, far from square").hint)
    resampled = check_data(config({"scene": flat.path, "labels": labels[2]}, imagery={"gsd_m": 0.5}))
    assert not any("far from square" in problem.message for problem in resampled)
    assert "gdal_translate -ot Byte " in str(reported(found, f"{wide.path} is int16").hint)
    assert "-scale" not in str(reported(found, f"{wide.path} is int16").hint)


def test_control_points_are_reported_with_the_command(made: MadeScene, tmp_path: Path) -> None:
    raw = write_raster(tmp_path / "raw.tif", made.pixels, made, crs=None, transform=Affine.identity())
    with rasterio.open(raw, "r+") as file:
        points = [GroundControlPoint(r, c, 15 + c * 5e-6, 47 - r * 5e-6) for r in (0, 96) for c in (0, 80)]
        file.gcps = points, CRS.from_epsg(4326)
    labels = write_raster(tmp_path / "l.tif", stripes(), made, crs=None, transform=Affine.identity())
    found = check_data(config({"scene": raw, "labels": labels}))
    problem = reported(found, "has control points but no transform: its labels count in pixels")
    assert problem.severity == "warning" and str(problem.hint).startswith("gdalwarp ")


# --- labels from a raster


def test_ids_outside_the_table_are_all_counted(made: MadeScene, tmp_path: Path) -> None:
    ids = stripes()
    ids[:2], ids[2:3, :5] = 7, 9
    entry = {"scene": made.path, "labels": write_raster(tmp_path / "l.tif", ids, made)}
    problem = reported(check_data(config(entry)), "outside the classes")
    assert problem.severity == "error" and "7 (160 px), 9 (5 px)" in problem.message


def test_the_first_label_is_respected(made: MadeScene, tmp_path: Path) -> None:
    ids = (stripes() + 1).astype(np.uint8)
    entry = {"scene": made.path, "labels": write_raster(tmp_path / "l.tif", ids, made)}
    assert "data.first_label=1" in str(reported(check_data(config(entry)), "outside the classes", "3 (").hint)
    assert errors(check_data(config(entry, first_label=1))) == []
    ids[:4] = 0
    entry["labels"] = write_raster(tmp_path / "with_0.tif", ids, made)
    assert errors(check_data(config(entry, first_label=1))) == []
    ids[0, 0] = 4
    entry["labels"] = write_raster(tmp_path / "with_4.tif", ids, made)
    assert "4 (1 px)" in reported(check_data(config(entry, first_label=1)), "outside the classes 1 … 3").message


def test_rasters_that_hold_no_labels(made: MadeScene, tmp_path: Path) -> None:
    empty = {"scene": made.path, "labels": write_raster(tmp_path / "e.tif", np.full(SHAPE, NODATA, np.uint8), made)}
    three = {"scene": made.path, "labels": write_raster(tmp_path / "3.tif", np.stack([stripes()] * 3), made)}
    floats = {"scene": made.path, "labels": write_raster(tmp_path / "f.tif", stripes().astype(np.float32), made)}
    found = check_data(config(empty, three, floats))
    reported(found, "e.tif are empty")
    reported(found, "3 bands of uint8, expected one band")
    reported(found, "1 band of float32, expected one band")
    assert len(errors(found)) == 3


def test_labels_under_a_mask_are_not_looked_at(made: MadeScene, tmp_path: Path) -> None:
    ids = stripes()
    ids[:20] = 99
    labels = write_raster(tmp_path / "l.tif", ids, made, nodata=None)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(labels, "r+") as file:
        file.write_mask(ids != 99)
    assert errors(check_data(config({"scene": made.path, "labels": labels}))) == []
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(labels, "r+") as file:
        file.write_mask(np.zeros(SHAPE, dtype=bool))
    reported(check_data(config({"scene": made.path, "labels": labels})), "are empty")


def test_labels_in_a_photograph_are_ids_like_any(made: MadeScene, tmp_path: Path) -> None:
    with rasterio.open(tmp_path / "l.bmp", "w", driver="BMP", height=96, width=80, count=1, dtype="uint8") as file:
        file.write(stripes(), 1)
    assert errors(check_data(config({"scene": made.path, "labels": tmp_path / "l.bmp"}))) == []


def test_nodata_that_is_a_class_is_reported(made: MadeScene, tmp_path: Path) -> None:
    entry = {"scene": made.path, "labels": write_raster(tmp_path / "l.tif", stripes(), made, nodata=0)}
    problem = reported(check_data(config(entry)), "0 is class 'other' and the nodata value")
    assert problem.severity == "warning" and f"{(stripes() == 0).mean():.0%}" in problem.message


def test_a_mask_of_0_and_255(made: MadeScene, tmp_path: Path) -> None:
    ids = np.where(stripes() > 1, 255, 0).astype(np.uint8)
    entry = {"scene": made.path, "labels": write_raster(tmp_path / "l.tif", ids, made)}
    settings = config(entry)
    settings = settings.model_copy(update={"classes": settings.classes[:2]})
    assert reported(check_data(settings), "contain only 0 and 255").severity == "warning"


@pytest.mark.parametrize(
    ("change", "severity", "words"),
    [
        (lambda t: t @ Affine.translation(3, -2), None, ()),  # another part of the same pixel grid
        (lambda t: t @ Affine.translation(0.5, 0), "warning", ("not on the pixel grid of scene",)),
        (lambda t: t @ Affine.scale(2), "warning", ("not on the pixel grid of scene", "of 1 in EPSG:32633")),
        (lambda t: t @ Affine.translation(60, 60), "warning", ("cover 9% of scene",)),
        (lambda t: t @ Affine.translation(1000, 0), "error", ("do not touch scene",)),
    ],
)
def test_where_a_raster_of_labels_lies(
    change: Callable[[Affine], Affine], severity: str | None, words: tuple[str, ...], made: MadeScene, tmp_path: Path
) -> None:
    labels = write_raster(tmp_path / "l.tif", stripes(), made, transform=change(made.transform))
    found = about(check_data(config({"scene": made.path, "labels": labels})), labels)
    if severity is None:
        assert found == []
    else:
        assert reported(found, *words).severity == severity


def test_labels_of_a_resampled_scene_have_pixels_of_their_own(made: MadeScene, tmp_path: Path) -> None:
    coarse = made.transform @ Affine.scale(2)
    labels = write_raster(tmp_path / "l.tif", stripes()[::2, ::2], made, transform=coarse)
    assert about(check_data(config({"scene": made.path, "labels": labels}, imagery={"gsd_m": 1.0})), labels) == []


def test_unreferenced_labels_must_have_the_size(made: MadeScene, tmp_path: Path) -> None:
    fits = write_raster(tmp_path / "fits.tif", stripes(), made, crs=None, transform=Affine.identity())
    short = write_raster(tmp_path / "short.tif", stripes()[:50], made, crs=None, transform=Affine.identity())
    lost = write_raster(tmp_path / "lost.tif", stripes(), made, crs=CRS.from_wkt('LOCAL_CS["x",UNIT["metre",1]]'))
    found = check_data(config(*({"scene": made.path, "labels": path} for path in (fits, short, lost))))
    reported(found, "short.tif have 50 × 80 px, scene", "has 96 × 80")
    reported(found, "the CRS of labels", "lost.tif", "does not say where on Earth")
    assert len(errors(found)) == 2 and about(found, fits) == []
    # Without a CRS transforms can still be compared.
    same = write_raster(tmp_path / "same.tif", stripes(), made, crs=None)
    moved = write_raster(tmp_path / "moved.tif", stripes(), made, crs=None, transform=made.transform @ Affine.scale(2))
    found = check_data(config({"scene": made.path, "labels": same}, {"scene": made.path, "labels": moved}))
    assert reported(found, "moved.tif have another transform than scene").severity == "error"
    assert len(errors(found)) == 1
    with pytest.raises(LabelError, match="another transform than scene"):
        open_scenes(config({"scene": made.path, "labels": moved}), "train")


# --- labels from polygons


def test_what_the_entry_leaves_open(made: MadeScene, tmp_path: Path, all_classes: list[tuple[str, Polygon]]) -> None:
    entry = polygons(made, tmp_path / "l.gpkg", all_classes, attribute=None, outside=None)
    found = check_data(config(entry))
    assert "outside: other" in str(reported(found, "the class outside the polygons is not given").hint)
    assert "attribute: FIELD" in str(reported(found, "the class of the polygons is not given").hint)
    entry = polygons(made, tmp_path / "l.gpkg", all_classes, attribute="kinds")
    assert "did you mean kind?" in str(reported(check_data(config(entry)), "has no field kinds").hint)


def test_unknown_classes_are_all_counted_with_the_nearest(made: MadeScene, tmp_path: Path) -> None:
    square = ground(made, 10, 10, 20, 20)
    kinds = ["Hous", "Hous", "shed", "field", None, "1"]
    entry = polygons(made, tmp_path / "l.gpkg", [(kind, square) for kind in kinds])
    found = check_data(config(entry))
    problem = reported(found, "2 values that are no class")
    assert "'Hous' (2×, house?)" in problem.message and "'shed' (1×)" in problem.message
    assert reported(found, "is empty in 1 of 6 features").severity == "error"
    numbers = polygons(made, tmp_path / "n.gpkg", [(1, square), (2, square), (8, square)])
    assert "'8' (1×)" in reported(check_data(config(numbers)), "1 value that is no class").message


def test_classes_far_from_every_scene_do_no_harm(made: MadeScene, tmp_path: Path) -> None:
    near, far = ground(made, 10, 10, 20, 20), ground(made, 5000, 10, 20, 20)
    entry = polygons(made, tmp_path / "l.gpkg", [("field", near), ("swamp", far), (None, far)])
    found = check_data(config(entry))
    assert errors(found) == []
    assert reported(found, "2 of 3 features", "(67%) lie outside").severity == "warning"


def test_polygons_that_touch_no_scene(made: MadeScene, make_scene: MakeScene, tmp_path: Path) -> None:
    other = make_scene(shift=(0, 400), seed=1)
    entry = polygons(made, tmp_path / "l.gpkg", [("field", ground(made, 10, 10, 20, 20))])
    found = check_data(config(entry, {**entry, "scene": other.path}))
    problem = reported(found, "no feature of", str(other.path))
    assert problem.severity == "error" and len(errors(found)) == 1
    degrees = polygons(made, tmp_path / "d.gpkg", [("field", box(15, 46, 15.001, 46.001))], crs="EPSG:4326")
    assert reported(check_data(config(degrees)), "no feature of", str(made.path)).severity == "error"


def test_labels_without_crs_or_definition(made: MadeScene, tmp_path: Path) -> None:
    square = ground(made, 10, 10, 20, 20)
    none = polygons(made, tmp_path / "none.gpkg", [("field", square)], crs=None)
    vague = []
    for number in (-1, 0):  # GeoPackage's two codes for "undefined"
        vague.append(polygons(made, tmp_path / f"vague{number}.gpkg", [("field", square)], crs=None))
        with sqlite3.connect(tmp_path / f"vague{number}.gpkg") as file:
            file.execute("UPDATE gpkg_contents SET srs_id = ?", (number,))
            file.execute("UPDATE gpkg_geometry_columns SET srs_id = ?", (number,))
    found = check_data(config(none, *vague))
    assert "ogr2ogr -a_srs" in str(reported(found, "none.gpkg have no CRS").hint)
    reported(found, "the CRS of labels", "vague-1.gpkg", "Undefined Cartesian", "does not say where on Earth")
    reported(found, "the CRS of labels", "vague0.gpkg", "Undefined geographic", "does not say where on Earth")
    assert len(errors(found)) == 3


def test_geometries_that_are_no_good_polygons(made: MadeScene, tmp_path: Path) -> None:
    left, bottom, right, top = ground(made, 10, 10, 20, 20).bounds
    bow = Polygon([(left, bottom), (right, top), (right, bottom), (left, top)])
    good = ground(made, 40, 10, 20, 20)
    features = [("field", bow), ("house", good), ("house", good), ("field", None), ("field", Polygon())]
    found = check_data(config(polygons(made, tmp_path / "l.gpkg", features)))
    assert errors(found) == []
    invalid = reported(
        found, "invalid geometries in", ": 1 (feature", "Self-intersection", f"{(left + right) / 2:.0f}"[:5]
    )
    assert "feature 1" in invalid.message and "-makevalid" in str(invalid.hint)
    reported(found, "2 of 5 features", "have no geometry")
    reported(found, "1 feature", "repeats another one exactly")


def test_invalid_polygons_are_burnt_as_the_message_says(made: MadeScene, tmp_path: Path) -> None:
    from geoseg.data.labelled import LabelledScene
    from geoseg.windows import Window

    left, bottom, right, top = ground(made, 10, 10, 20, 20).bounds
    bow = Polygon([(left, bottom), (right, top), (right, bottom), (left, top)])
    # A ring that goes around a square twice on the inside: even and odd.
    outer, inner = box(left, bottom - 20, right, top - 20), box(left + 2, bottom - 18, right - 2, top - 22)
    twice = Polygon([*outer.exterior.coords, *inner.exterior.coords])
    settings = config(polygons(made, tmp_path / "l.gpkg", [("field", bow), ("house", twice)]))
    reported(check_data(settings), "invalid geometries in", ": 2 (")
    labels = LabelledScene(settings.data.train[0], settings).labels.read(Window(0, 0, *SHAPE))
    assert 0.4 < (labels[10:30, 10:30] == 1).mean() < 0.6
    assert labels[51, 11] == 2 and labels[60, 20] == 0


def test_polygons_of_different_classes_over_each_other(made: MadeScene, tmp_path: Path) -> None:
    town, roof = ground(made, 10, 10, 60, 60), ground(made, 20, 20, 10, 10)
    layered = polygons(made, tmp_path / "layered.gpkg", [("field", town), ("house", roof)])
    assert about(check_data(config(layered)), tmp_path / "layered.gpkg") == []
    hidden = polygons(made, tmp_path / "hidden.gpkg", [("house", roof), ("field", town)])
    assert "1 of house" in reported(check_data(config(hidden)), "1 polygon", "lies under later ones").message
    beside = ground(made, 10, 40, 60, 35)
    crossed = polygons(made, tmp_path / "crossed.gpkg", [("field", town), ("house", beside)])
    share = 30 / (60 + 35)
    assert f"on {share:.0%} of their area, field and house" in reported(check_data(config(crossed)), "overlap").message
    same = polygons(made, tmp_path / "same.gpkg", [("field", town), ("field", beside)])
    assert not [p for p in check_data(config(same)) if "overlap" in p.message]


def test_a_scene_without_objects_is_a_negative_example(made: MadeScene, make_scene: MakeScene, tmp_path: Path) -> None:
    none = make_scene(shift=(0, 400), seed=1)
    (tmp_path / "none.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    empty = {"scene": none.path, "labels": tmp_path / "none.geojson", "class_name": "house", "outside": "other"}
    fields = polygons(made, tmp_path / "l.gpkg", [("field", ground(made, 10, 10, 20, 20))])
    settings = config(fields, empty)
    found = check_data(settings)
    assert errors(found) == []
    problem = reported(found, f"the whole of scene {none.path} is 'other'")
    assert problem.severity == "warning"
    assert len(open_scenes(settings, "train")) == 2
    found = check_data(config(fields, {**empty, "outside": "ignore"}))
    assert "outside: other" in str(reported(found, "no pixel of scene", "has a class").hint)
    # Far from every polygon of another scene's file a scene may also lie by mistake.
    away = reported(check_data(config(fields, {**fields, "scene": none.path})), "touches scene", str(none.path))
    assert away.severity == "error" and "file without features" in str(away.hint)


def test_numbers_off_by_one_are_reported(made: MadeScene, tmp_path: Path) -> None:
    squares = [ground(made, 10, 20 * i, 30, 15) for i in range(4)]
    pair = [(str(i), square) for i, square in enumerate(squares[:2], start=1)]
    entry = polygons(made, tmp_path / "l.gpkg", pair)  # 1 field, 2 house, and other is what lies outside
    assert not [p for p in check_data(config(entry)) if "first_label" in p.message]
    shifted = reported(check_data(config(entry, first_label=1)), "class house never occurs; with 0 every class would")
    assert "data.first_label=0" in str(shifted.hint)
    three = polygons(made, tmp_path / "t.gpkg", [(i, s) for i, s in enumerate(squares[:3], start=1)], outside="ignore")
    assert "data.first_label=1" in str(reported(check_data(config(three)), "'3' (1×)").hint)
    assert not [p for p in check_data(config(three, first_label=1)) if "first_label" in p.message]
    raster = {"scene": made.path, "labels": write_raster(tmp_path / "l.tif", stripes(), made)}
    reported(check_data(config(raster, first_label=1)), "class house never occurs; with 0 every class would")
    mixed = polygons(made, tmp_path / "m.gpkg", [("field", squares[0]), ("2", squares[1])])
    assert reported(check_data(config(mixed)), "names of classes (field) and numbers (2)").severity == "error"


# --- areas, classes, leakage


def test_labelled_areas(made: MadeScene, tmp_path: Path, all_classes: list[tuple[str, Polygon]]) -> None:
    entry = polygons(made, tmp_path / "l.gpkg", all_classes)
    write_polygons(tmp_path / "far.gpkg", made, ["x"], [ground(made, 9000, 10, 20, 20)])
    write_polygons(tmp_path / "bare.gpkg", made, ["x"], [ground(made, 0, 0, 20, 20)], crs=None)
    areas = [tmp_path / name for name in ("none.gpkg", "far.gpkg", "bare.gpkg")]
    found = check_data(config(*({**entry, "labelled_area": area} for area in areas)))
    reported(found, "no such labelled area", "none.gpkg")
    reported(found, "no polygon of the labelled area", "far.gpkg")
    reported(found, "bare.gpkg", "the labelled area has no CRS")
    assert len(errors(found)) == 3


def test_classes_that_training_or_validation_never_sees(
    made: MadeScene, make_scene: MakeScene, tmp_path: Path, all_classes: list[tuple[str, Polygon]]
) -> None:
    other = make_scene(shift=(0, 400), seed=1)
    ids = np.where(stripes() == 2, 0, stripes()).astype(np.uint8)
    without = {"scene": other.path, "labels": write_raster(tmp_path / "l.tif", ids, other)}
    vector = polygons(made, tmp_path / "l.gpkg", all_classes)
    assert (
        reported(check_data(config(without, val=[vector])), "'house' occurs in no training scene").severity == "warning"
    )
    found = check_data(config(vector, val=[without]))
    assert reported(found, "'house' occurs in no validation scene").severity == "warning"
    # Only what lies in the labelled area is seen.
    area = write_polygons(tmp_path / "area.gpkg", made, ["x"], [ground(made, 0, 0, 96, 40)])
    found = check_data(config({**vector, "labelled_area": area}, val=[vector]))
    reported(found, "'house' occurs in no training scene")


def test_classes_of_scenes_cut_into_blocks(make_scene: MakeScene, tmp_path: Path) -> None:
    scene = make_scene(size=(256, 256))
    ids = np.zeros((256, 256), dtype=np.uint8)
    ids[:, ::2] = 1  # "house" nowhere
    entry = {"scene": str(scene.path), "labels": str(write_raster(tmp_path / "l.tif", ids, scene))}
    values = config(entry).model_dump(mode="json")
    values["data"] = {"scenes": [entry], "split": {"block": 64, "buffer": 16}}
    values["window"], values["augment"]["scale"] = {"size": 64, "overlap": 0}, [1, 1]
    found = check_data(parse_config(values, source="test"))
    assert [p.message for p in found] == ["class 'house' occurs in no training scene, so it cannot be learnt"]


def test_labels_of_one_class_are_refused(made: MadeScene, tmp_path: Path) -> None:
    """A raster of 0 and 1 whose nodata is 0: every labelled pixel is of class 1."""
    ids = (stripes() == 1).astype(np.uint8)
    hidden = {"scene": made.path, "labels": write_raster(tmp_path / "hidden.tif", ids, made, nodata=0)}
    problem = reported(check_data(config(hidden)), "every labelled pixel of the training scenes is 'field'")
    assert problem.severity == "error"
    assert problem.hint is not None
    assert problem.hint == f"if 0 is class 'other': gdal_edit.py -unsetnodata {hidden['labels']}"
    seen = {"scene": made.path, "labels": write_raster(tmp_path / "seen.tif", ids, made)}
    assert not errors(check_data(config(seen)))

    house = [("house", ground(made, 10, 5, 30, 15))]
    for outside, found in (("ignore", 1), ("other", 0)):
        entry = polygons(made, tmp_path / f"{outside}.gpkg", house, outside=outside)
        problems = errors(check_data(config(entry)))
        assert len(problems) == found
        assert all(str(p.hint).startswith("outside: other, if that is all ground outside") for p in problems)
    # Even where the table has no other class
    values = config(polygons(made, tmp_path / "one.gpkg", house)).model_dump(mode="json")
    values["classes"] = values["classes"][2:]
    for split in ("train", "val"):
        values["data"][split][0]["outside"] = "house"
    (problem,) = errors(check_data(parse_config(values, source="test")))
    assert "add a class to the configuration" in str(problem.hint)


def test_validation_of_one_class_is_warned_of(made: MadeScene, make_scene: MakeScene, tmp_path: Path) -> None:
    other = make_scene(shift=(0, 500), seed=1)
    full = {"scene": made.path, "labels": write_raster(tmp_path / "l.tif", stripes(), made)}
    single = {"scene": other.path, "labels": write_raster(tmp_path / "v.tif", np.zeros(SHAPE, np.uint8), other)}
    problem = reported(
        check_data(config(full, val=[single])), "every labelled pixel of the validation scenes is 'other'"
    )
    assert problem.severity == "warning"
    assert "the last network is kept" in str(problem.hint)


def test_nothing_labelled_at_all_is_an_error(made: MadeScene, tmp_path: Path) -> None:
    good = {"scene": made.path, "labels": write_raster(tmp_path / "l.tif", stripes(), made)}
    corner = write_polygons(tmp_path / "a.gpkg", made, ["a"], [ground(made, 0.1, 0.1, 0.2, 0.2)])  # no pixel's centre
    nothing = {**good, "labelled_area": corner}
    for data, kind in ((config(nothing, val=[good]), "training"), (config(good, val=[nothing]), "validation")):
        problem = reported(errors(check_data(data)), f"no pixel of the {kind} scenes has a class")
        assert "geoseg stats" in str(problem.hint)
    with pytest.raises(ConfigError, match="no training scene has a valid pixel with a class"):
        RandomWindows(open_scenes(config(nothing), "train"), config(nothing), length=1)


@pytest.mark.parametrize(("leakage", "severity"), [("refuse", "error"), ("warn", "warning")])
def test_leakage_is_an_error_or_a_warning(leakage: str, severity: str, made: MadeScene, tmp_path: Path) -> None:
    entry = {"scene": made.path, "labels": write_raster(tmp_path / "l.tif", stripes(), made)}
    found = [p for p in check_data(config(entry, leakage=leakage)) if p.where == "data"]
    assert found and {p.severity for p in found} == {severity}


def test_large_sets_are_looked_at_in_part(
    make_scene: MakeScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "PIXEL_SCENES", 3)
    entries = []
    for n in range(7):
        scene = make_scene(seed=n, shift=(0, 200 * n))
        with rasterio.open(scene.path, "r+") as file:
            file.write(np.full(SHAPE, 7, np.uint8), 1)
        entries.append({"scene": scene.path, "labels": write_raster(tmp_path / f"l{n}.tif", stripes(), scene)})
    assert sum("band 1 (red) is 7" in p.message for p in check_data(config(*entries))) == 3


def test_a_message_is_not_as_long_as_a_large_set() -> None:
    with pytest.raises(LabelError) as refused:
        refuse([Problem("error", str(i), f"scene {i} is wrong") for i in range(1000)])
    lines = refused.value.message.splitlines()
    assert lines[0].startswith("1000 errors") and len(lines) < 60 and "950 more" in lines[-1] and "--check" in lines[-1]
