from __future__ import annotations

import errno
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoseg.errors import GeosegError, OutputError, SceneError
from geoseg.map_rows import MapRows
from geoseg.prediction.bands import BandFacts, Layers
from geoseg.prediction.parts import JOURNAL, Parts, PartWriter, parts_folder
from geoseg.prediction.predictor import Predictor
from geoseg.programs.predict import predict
from geoseg.tiling.plan import Plan, Task
from geoseg.tiling.stitcher import SeamCounts
from support.executors import ExecutorContract
from support.model_folders import make_model
from support.plans import make_plan
from support.processes import fresh_processes, from_shell
from support.scenes import MadeScene, write_scene

ROOT = Path(__file__).parents[1]
WAY: dict[str, Any] = {"device": "cpu", "size": 256, "overlap": 32, "band_rows": 512}


def planned(height: int, width: int) -> Plan:
    return make_plan(
        height,
        width,
        size=64,
        overlap=32,
        stride=8,
        classes=3,
        band_rows=512,
        strip_cols=512,
    )


# --- parts as files


@given(st.integers(1, 1100), st.integers(1, 1100), st.booleans(), st.booleans(), st.lists(st.integers(1, 300)))
def test_rows_come_back_in_order_whatever_pieces_they_came_in(
    height: int, width: int, confidence: bool, probabilities: bool, heights: list[int]
) -> None:
    plan, rng = planned(height, width), np.random.default_rng(0)
    layers = Layers(confidence=confidence, probabilities=probabilities, disagreement=True, contact=True)

    def values(*shape: int) -> Any:
        return rng.integers(0, 3, shape, dtype=np.uint8)

    whole = MapRows(
        values(height, width),
        values(height, width) if confidence else None,
        values(3, height, width) if probabilities else None,
        values(height, width),
        values(height, width),
    )
    with tempfile.TemporaryDirectory() as folder:
        parts = Parts(Path(folder), layers, 3)
        for task in plan.tasks:
            w = task.window
            own = whole[w.row : w.row_stop]
            columns = {k: None if v is None else v[..., w.col : w.col_stop] for k, v in own.layers.items()}
            rows = MapRows(**columns)  # type: ignore[arg-type]
            with parts.write(task) as part:
                for h in [*heights, w.height]:
                    part.write(rows[:h])
                    rows = rows[h:]
                    if not len(rows):
                        break
                part.facts = BandFacts(task.band, SeamCounts(1, 2, 3, task.strip))
        for band in range(plan.bands):
            first = band * plan.band_rows
            for rows in parts.rows(plan, band, height=100):
                wanted = whole[first : first + len(rows)]
                for name, layer in wanted.layers.items():
                    found = rows.layers[name]
                    assert (found is None) == (layer is None)
                    if layer is not None and found is not None:
                        np.testing.assert_array_equal(found, layer)
                first += len(rows)
            assert first == min((band + 1) * plan.band_rows, height)
        assert parts.facts(plan.tasks[-1]) == BandFacts(plan.bands - 1, SeamCounts(1, 2, 3, plan.strips - 1))


TASK = planned(10, 20).tasks[0]


def filled(parts: Parts, task: Task = TASK) -> None:
    with parts.write(task) as part:
        part.write(MapRows(np.ones((task.window.height, task.window.width), dtype=np.uint8)))


def test_a_part_appears_when_it_is_whole(tmp_path: Path) -> None:
    parts = Parts(tmp_path, Layers(), 3)
    with pytest.raises(ZeroDivisionError), parts.write(TASK) as part:
        part.write(MapRows(np.ones((5, 20), dtype=np.uint8)))
        assert not parts.has(TASK)
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    filled(parts)
    assert parts.has(TASK)


@pytest.mark.parametrize("keep", [0, 3, 20, 60])
def test_a_damaged_part_is_noticed(tmp_path: Path, keep: int) -> None:
    parts = Parts(tmp_path, Layers(), 3)
    filled(parts)
    content = parts.path(TASK).read_bytes()
    parts.path(TASK).write_bytes(content[: min(keep, len(content) // 4)])
    with pytest.raises(OutputError, match="is damaged") as caught:
        next(parts.rows(planned(10, 20), 0))
    assert "--restart" in str(caught.value.hint)


def test_the_folder_stays_with_a_part_in_it_and_goes_at_the_end(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "parts", Layers(), 3)
    with pytest.raises(ZeroDivisionError), parts.opened({"a": 1}, restart=False):
        raise ZeroDivisionError
    assert not parts.folder.exists()
    with pytest.raises(ZeroDivisionError), parts.opened({"a": 1}, restart=False):
        filled(parts)
        raise ZeroDivisionError
    (parts.folder / "killed.partial").touch()
    with parts.opened({"a": 1}, restart=False):
        assert parts.has(TASK)
        assert not (parts.folder / "killed.partial").exists()
    assert not parts.folder.exists()


@pytest.mark.parametrize(
    ("then", "restart", "message"),
    [({"the model": 2, "x": 0}, False, "the model changed since the last run: starting anew"), ({}, True, "")],
)
def test_parts_of_something_else_are_discarded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, then: dict[str, Any], restart: bool, message: str
) -> None:
    now = {"the model": 1, "x": 0}
    parts = Parts(tmp_path / "parts", Layers(), 3)
    with pytest.raises(ZeroDivisionError), parts.opened(now, restart=False):
        filled(parts)
        raise ZeroDivisionError
    with parts.opened(then or now, restart=restart):
        assert not parts.has(TASK)
    assert [record.message for record in caplog.records] == ([message] if message else [])


def test_a_broken_journal_means_nothing_is_known_of_the_parts(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "parts", Layers(), 3)
    parts.folder.mkdir()
    filled(parts)
    (parts.folder / JOURNAL).write_text("{")
    with parts.opened({"a": 1}, restart=False):
        assert not parts.has(TASK)


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
def test_two_runs_of_one_output_are_refused(tmp_path: Path) -> None:
    parts = Parts(parts_folder(tmp_path / "map.tif"), Layers(), 3)
    with (
        parts.opened({}, restart=False),
        pytest.raises(OutputError, match=r"another process is making .*/map\.tif"),
        parts.opened({}, restart=False),
    ):
        pass


# --- predictions that stop and go on


class TestInProcess(ExecutorContract):
    @pytest.fixture
    def where(self) -> dict[str, Any]:
        return {"executor": "in-process"}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> MadeScene:
    return write_scene(tmp_path_factory.mktemp("scene") / "scene.tif", size=(1900, 300), nodata="value")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def wanted(scene: MadeScene, model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    predict(scene.path, model, folder / "map.tif", confidence=True, **WAY)
    return files(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException, int], None]:
    """Raise an error at the n-th piece that is written."""

    def stop(error: BaseException, after: int) -> None:
        write, count = PartWriter.write, iter(range(10**6))

        def failing(self: PartWriter, rows: MapRows) -> None:
            if next(count) == after:
                raise error
            write(self, rows)

        monkeypatch.setattr(PartWriter, "write", failing)

    return stop


def finish(scene: MadeScene, model: Path, folder: Path, kept: int, wanted: dict[str, bytes]) -> None:
    """The same call goes on and ends in the same bytes, with nothing beside them."""
    report = predict(scene.path, model, folder / "map.tif", confidence=True, **WAY)
    assert report.resumed == kept
    assert files(folder) == wanted
    if kept:
        assert any(f"{kept} of 4 parts taken over" in line for line in report.lines())


@pytest.mark.parametrize("after", [3, 6])
def test_a_full_disk_keeps_what_is_finished(
    scene: MadeScene,
    model: Path,
    wanted: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stopped: Callable[[BaseException, int], None],
    after: int,
) -> None:
    stopped(OSError(errno.ENOSPC, "No space left on device"), after)
    with pytest.raises(OutputError, match=r"No space left on device; \d of 4 bands are kept") as caught:
        predict(scene.path, model, tmp_path / "map.tif", confidence=True, **WAY)
    monkeypatch.undo()
    assert "free some space" in str(caught.value.hint)
    assert "the same command continues" in str(caught.value.hint)
    assert [p.name for p in tmp_path.iterdir()] == [".map.tif.parts"]
    kept = len(list((tmp_path / ".map.tif.parts").glob("*.tif")))
    assert kept > 0
    finish(scene, model, tmp_path, kept, wanted)


def test_ctrl_c_keeps_what_is_finished(
    scene: MadeScene,
    model: Path,
    wanted: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stopped: Callable[[BaseException, int], None],
) -> None:
    stopped(KeyboardInterrupt(), 5)
    with pytest.raises(KeyboardInterrupt, match=r"interrupted; \d of 4 bands are kept, and the same command continues"):
        predict(scene.path, model, tmp_path / "map.tif", confidence=True, **WAY)
    monkeypatch.undo()
    kept = len(list((tmp_path / ".map.tif.parts").glob("*.tif")))
    finish(scene, model, tmp_path, kept, wanted)


@pytest.mark.skipif(sys.platform == "win32", reason="signals differ there")
def test_the_command_line_tells_in_one_line_what_ctrl_c_keeps(scene: MadeScene, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "map.tif"
    command = ["predict", str(scene.path), "-m", str(model), "-o", str(output), "--size", "256", "--device", "cpu"]
    process = from_shell("--quiet", *command, before="from support.processes import slow_bands; slow_bands(0.5)")
    deadline = time.monotonic() + 120
    while not list(parts_folder(output).glob("*.tif")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, talk = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.fullmatch(r"interrupted; [123] of 4 bands are kept, and the same command continues\n", talk)
    assert [p.name for p in tmp_path.iterdir()] == [".map.tif.parts"]


def test_an_unreadable_block_keeps_what_is_finished(
    model: Path, tmp_path: Path, scene: MadeScene, wanted: dict[str, bytes]
) -> None:
    broken = tmp_path / "scene.tif"
    content = bytearray(scene.path.read_bytes())
    whole = bytes(content)
    middle = len(content) * 3 // 4
    content[middle : middle + 4000] = bytes([255]) * 4000
    broken.write_bytes(content)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(SceneError, match=r"cannot be read in rows .*; [123] of 4 bands are kept") as caught:
        predict(broken, model, out / "map.tif", confidence=True, **WAY)
    assert "then the same command continues" in str(caught.value.hint)
    # Put right, the scene is another one as far as anyone can tell, and nothing made from the broken one is used.
    broken.write_bytes(whole)
    report = predict(broken, model, out / "map.tif", confidence=True, **WAY)
    assert report.resumed == 0
    assert files(out) == wanted


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"overlap": 64}, "the overlap"),
        ({"blend": "flat"}, "the blend"),
        ({"confidence": False}, "the layers"),
        ({"tta": "flips"}, "the test-time augmentation"),
    ],
)
def test_another_option_starts_anew_and_says_so(
    scene: MadeScene,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    stopped: Callable[[BaseException, int], None],
    change: dict[str, Any],
    name: str,
) -> None:
    stopped(OSError(errno.ENOSPC, "No space left on device"), 5)
    with pytest.raises(OutputError):
        predict(scene.path, model, tmp_path / "map.tif", confidence=True, **WAY)
    monkeypatch.undo()
    report = predict(scene.path, model, tmp_path / "map.tif", **({"confidence": True} | WAY | change))
    assert report.resumed == 0
    assert f"{name} changed since the last run: starting anew" in caplog.text


def test_the_batch_and_the_threads_may_change_on_the_way(
    scene: MadeScene,
    model: Path,
    wanted: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stopped: Callable[[BaseException, int], None],
) -> None:
    stopped(OSError(errno.ENOSPC, "No space left on device"), 5)
    with pytest.raises(GeosegError):
        predict(scene.path, model, tmp_path / "map.tif", confidence=True, batch_size=1, **WAY)
    monkeypatch.undo()
    report = predict(scene.path, model, tmp_path / "map.tif", confidence=True, batch_size=5, readers=2, **WAY)
    assert report.resumed > 0
    assert files(tmp_path) == wanted


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
def test_kill_9_at_any_moment_then_the_same_command(
    scene: MadeScene, model: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    output, started = tmp_path / "map.tif", parts_folder(tmp_path / "map.tif")
    kills = 0
    for wait in seconds():
        process = fresh_processes().Process(target=predict_slowly, args=(scene.path, model, output))
        process.start()
        deadline = time.monotonic() + 60
        while not started.exists() and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.join(wait)
        if process.is_alive():
            process.kill()
            process.join()
            kills += 1
            assert not output.exists() or output.read_bytes() == wanted["map.tif"]
            if output.exists() and not started.exists():
                break  # it was on its way out, all done
            continue
        assert process.exitcode == 0
        break
    assert kills >= 1
    assert files(tmp_path) == wanted


def test_killed_while_the_files_get_their_names(
    scene: MadeScene, model: Path, wanted: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of map and confidence one is there, under its name; the same call must not take it for somebody else's."""
    import geoseg.files

    publish, calls = geoseg.files._publish, iter(range(9))

    def failing(scratch: Path, path: Path) -> None:
        if next(calls) == 1:
            raise KeyboardInterrupt
        publish(scratch, path)

    monkeypatch.setattr(geoseg.files, "_publish", failing)
    with pytest.raises(KeyboardInterrupt):
        predict(scene.path, model, tmp_path / "map.tif", confidence=True, **WAY)
    monkeypatch.undo()
    (tmp_path / ".map.tif.0123abcd.partial").mkdir()  # what a kill leaves
    (tmp_path / "map.tif").write_bytes(b"half of it")
    finish(scene, model, tmp_path, 4, wanted)


def predict_slowly(scene: Path, model: Path, output: Path) -> None:
    forward = Predictor.logits

    def slow(self: Predictor, *args: Any) -> Any:
        time.sleep(0.03)
        return forward(self, *args)

    Predictor.logits = slow  # type: ignore[method-assign]
    predict(scene, model, output, confidence=True, **WAY)


def seconds() -> Iterator[float]:
    """Longer and longer waits, so that every machine gets done."""
    wait = 0.15
    while True:
        yield wait
        wait *= 2.5


def test_a_vector_file_goes_on_too(
    scene: MadeScene,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stopped: Callable[[BaseException, int], None],
) -> None:
    whole, again = tmp_path / "whole", tmp_path / "again"
    whole.mkdir()
    again.mkdir()
    first = predict(scene.path, model, whole / "map.fgb", **WAY)
    stopped(OSError(errno.ENOSPC, "No space left on device"), 5)
    with pytest.raises(OutputError):
        predict(scene.path, model, again / "map.fgb", **WAY)
    monkeypatch.undo()
    report = predict(scene.path, model, again / "map.fgb", **WAY)
    assert report.resumed > 0
    assert report.polygons == first.polygons
    assert files(again) == files(whole)
    np.testing.assert_array_equal(report.areas_m2, first.areas_m2)
