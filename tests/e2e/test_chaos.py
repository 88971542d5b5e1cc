"""``geoseg predict`` killed at random moments, interrupted and changed: what is there at the end, and what is said."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import geopandas
import pytest

from geoseg.network.backends.openvino import multiplies_bfloat16
from geoseg.prediction.parts import JOURNAL, parts_folder, was_publishing
from support.commands import files_in, succeed
from support.model_folders import write_model
from support.networks import WIDE
from support.processes import Started, low_bands, slow_bands
from support.scenes import write_scene

pytestmark = pytest.mark.slow

BANDS = 6


@dataclass(frozen=True)
class Place:
    """A folder with a scene and a model."""

    folder: Path

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def words(self, output: str, *options: object) -> list[str]:
        words = (
            "predict",
            self / "scene.tif",
            "-m",
            self / "model",
            "-o",
            self / output,
            "--size",
            128,
            "--device",
            "cpu",
        )
        return [str(word) for word in (*words, *options)]

    def start(self, output: str, *options: object, before: Callable[[], None] = low_bands) -> Started:
        return Started(*self.words(output, *options), before=before)

    def made(self, output: str) -> int:
        """Number of parts that are there."""
        return len(list(parts_folder(self / output).glob("*.tif")))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("chaos")
    write_scene(folder / "scene.tif", size=(BANDS * 512 - 100, 500), blockxsize=256, blockysize=256, nodata="value")
    write_model(folder / "model")
    write_model(folder / "wide", options=WIDE)  # OpenVINO runs no narrower one in bfloat16
    return Place(folder)


def wait_until(happened: Callable[[], bool], process: Started) -> None:
    """Until something has happened or the process is over."""
    while not happened() and process.poll() is None:
        time.sleep(0.005)


def kill_and_resume(place: Place, output: str, *options: object, parts: tuple[int, ...], seed: int) -> None:
    """Run the command again and again, killed at random moments, and at last to its end.

    Args:
        place: Where.
        output: Name of the output.
        options: Further options of the command.
        parts: For each kill, how many parts are to be there; it comes up to 0.3 s later.
        seed: Of these moments.
    """
    moments, path = random.Random(seed), place / output
    for number in parts:
        with place.start(output, *options) as process:
            wait_until(parts_folder(path).exists, process)
            wait_until(lambda wanted=number: place.made(output) >= wanted, process)  # type: ignore[misc]
            time.sleep(moments.uniform(0, 0.3))
            process.kill()
            _, complaints = process.communicate()
        assert "changed" not in complaints
        if path.exists() and not parts_folder(path).exists():
            return  # it was quicker, or as good as
        assert not path.exists() or was_publishing(path), "the name was given before the end"
    with place.start(output, *options) as process:
        said, complaints = process.communicate()
    assert process.returncode == 0, complaints
    assert "changed" not in complaints
    assert "taken over from an earlier run" in said


@pytest.mark.parametrize(
    ("precision", "parts"), [("float32", (0, 2, BANDS)), ("bfloat16", (3,))], ids=["float32", "bfloat16"]
)
def test_a_map_is_byte_equal_however_often_it_was_killed(place: Place, precision: str, parts: tuple[int, ...]) -> None:
    reduced = precision == "bfloat16"
    if reduced and not multiplies_bfloat16():
        pytest.skip("this CPU does not multiply bfloat16")
    way = ["--confidence", "--overwrite", "--backend", "openvino", "--precision", precision]
    way += ["-m", place / "wide"] if reduced else []  # the last model named counts
    succeed("-q", *place.words("calm.tif", *way))  # in one band, in this process
    for left in place.folder.glob("map*.tif*"):
        left.unlink()
    kill_and_resume(place, "map.tif", *way, parts=parts, seed=11)
    for name in ("{}.tif", "{}_confidence.tif"):
        assert (place / name.format("map")).read_bytes() == (place / name.format("calm")).read_bytes()
    assert not [name for name in files_in(place.folder) if name.startswith(".")]


def test_polygons_are_the_same_however_often_it_was_killed(place: Place) -> None:
    succeed("-q", *place.words("calm.gpkg"))
    kill_and_resume(place, "map.gpkg", parts=(3, BANDS), seed=5)
    made, calm = (geopandas.read_file(place / name, layer=Path(name).stem) for name in ("map.gpkg", "calm.gpkg"))
    assert len(made) > 100
    assert made.to_wkb().equals(calm.to_wkb())  # a GeoPackage carries the time, so the files differ
    assert made.crs == calm.crs
    assert not [name for name in files_in(place.folder) if name.startswith(".")]


def test_ctrl_c_reports_what_is_kept_and_a_change_what_is_lost(place: Place) -> None:
    def interrupted(*options: object) -> str:
        journal = parts_folder(place / "late.tif") / JOURNAL
        before = journal.stat().st_mtime_ns if journal.exists() else 0
        with place.start("late.tif", *options, before=partial(slow_bands, 0.05)) as process:
            wait_until(lambda: journal.exists() and journal.stat().st_mtime_ns != before, process)
            wait_until(lambda: place.made("late.tif") > 0, process)
            process.send_signal(signal.SIGINT)
            _, complaints = process.communicate()
        assert process.returncode == 130, complaints
        assert "Traceback" not in complaints
        assert not (place / "late.tif").exists()
        kept = place.made("late.tif")
        assert f"interrupted; {kept} of {BANDS} bands are kept, and the same command continues" in complaints
        return complaints

    assert "changed" not in interrupted()
    assert "warning: the overlap changed since the last run: starting anew" in interrupted("--overlap", 64)
    os.utime(place / "scene.tif")
    with place.start("late.tif", "--overlap", 64) as process:
        said, complaints = process.communicate()
    assert process.returncode == 0
    assert "warning: the scene changed since the last run: starting anew" in complaints
    assert "taken over" not in said
    assert not parts_folder(place / "late.tif").exists()
