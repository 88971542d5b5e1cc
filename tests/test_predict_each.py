"""Many scenes, one output for each: the same maps as one by one, resumable, and no failure stops the others."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import geopandas
import pytest
import rasterio
from affine import Affine
from shapely.geometry import box

from geoseg.contract import Band, ClassEntry, Contract, PrecisionRecord, PrecisionScore, WindowSettings, load_contract
from geoseg.errors import ConfigError, DeviceError, GeosegError, OutputError, SceneError
from geoseg.files import name_outputs, output_pattern
from geoseg.network import backends
from geoseg.network.model_folder import build_network, save_model
from geoseg.network.stored_model import open_model
from geoseg.options import Imagery, PredictOptions, from_keywords
from geoseg.paths import scene_names
from geoseg.prediction import predictor as predictor_module
from geoseg.prediction.predictor import Predictor
from geoseg.programs import predict_each as each_module
from geoseg.programs import session
from geoseg.programs.dry_run import dry_run
from geoseg.programs.predict import predict
from geoseg.programs.predict_each import JOURNAL, dry_run_each, predict_each
from geoseg.programs.session import Session, fingerprint
from geoseg.scene import open_scene
from support import commands
from support.networks import TINY
from support.scenes import MakeScene, write_scene


def how(**keywords: Any) -> PredictOptions:
    return from_keywords(PredictOptions, {"device": "cpu", "backend": "torch", **keywords}, caller="how")


HOW = how()


def test_a_group_of_options_is_of_its_class() -> None:
    with pytest.raises(TypeError, match=r"how\(\) takes tiling as Tiling\(…\), found 3"):
        how(tiling=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    network = build_network("segnext", "tu-mscan_tiny", encoder_weights=None, in_channels=3, classes=2, **TINY)
    contract = Contract(
        name="tiny",
        bands=tuple(Band(name=name, mean=0.5, std=0.2) for name in ("red", "green", "blue")),
        dtype="uint8",
        scale=1 / 255,
        gsd_m=0.5,
        classes=(ClassEntry(name="ground", color="#000000"), ClassEntry(name="roof", color="#ff0000")),
        window=WindowSettings(size=64, overlap=32),
        stride=8,
    )
    save_model(folder, network, contract)
    return folder


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """A folder of three scenes of different places and sizes."""
    folder = tmp_path / "scenes"
    folder.mkdir()
    for n, name in enumerate(("a", "b", "c")):
        write_scene(folder / f"{name}.tif", size=(96 + 32 * n, 80), shift=(0, 10_000 * n), seed=n)
    (folder / "notes.txt").write_text("no raster")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".tif"}


def test_each_map_is_that_of_its_scene_alone(model: Path, scenes: Path, tmp_path: Path) -> None:
    report = predict_each(scenes, model, f"{tmp_path / 'maps'}/", HOW)
    assert [written.path.name for written in report.written] == ["a.tif", "b.tif", "c.tif"]
    assert not report.failed and not report.there
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("a", "b", "c"):
        predict(scenes / f"{name}.tif", model, alone / f"{name}.tif", device="cpu", backend="torch")
    assert contents(tmp_path / "maps") == contents(alone)


def test_the_model_is_loaded_once(model: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    def load(*args: Any, **options: Any) -> Any:
        loaded.append(args)
        return backends.load_backend(*args, **options)

    monkeypatch.setattr(predictor_module, "load_backend", load)
    assert len(predict_each(scenes, model, tmp_path / "maps" / "{stem}.gpkg", HOW).written) == 3
    assert len(loaded) == 1


def test_a_scene_that_fails_keeps_no_other_from_being_mapped(model: Path, scenes: Path, tmp_path: Path) -> None:
    write_scene(scenes / "four.tif", bands=4)
    (scenes / "broken.tif").write_text("no raster")
    words = ["-q", "predict", str(scenes), "missing.tif", "-m", str(model), "-o", f"{tmp_path / 'maps'}/"]
    ran = commands.run(*words, "--device", "cpu", "--backend", "torch")
    assert (ran.exit_code, ran.stdout) == (1, f"{tmp_path / 'maps'}\n")
    said = ran.stderr.splitlines()
    assert [line.partition(":")[0] for line in said] == ["error", "hint"] * 3
    for name in ("four.tif has 4 bands", "broken.tif is not a raster", "no such scene: missing.tif"):
        assert name in ran.stderr
    assert contents(tmp_path / "maps").keys() == {"a.tif", "b.tif", "c.tif"}


def test_a_scene_outside_the_area_of_interest_is_named(model: Path, scenes: Path, tmp_path: Path) -> None:
    with rasterio.open(scenes / "a.tif") as file:
        area, crs = box(*file.bounds), file.crs
    geopandas.GeoDataFrame(geometry=[area], crs=crs).to_file(tmp_path / "aoi.gpkg")
    words = ["predict", str(scenes), "-m", str(model), "-o", f"{tmp_path / 'maps'}/", "--device", "cpu"]
    ran = commands.run(*words, "--backend", "torch", "--aoi", str(tmp_path / "aoi.gpkg"))
    assert ran.stdout.splitlines()[-1] == f"look at them: geoseg view {tmp_path / 'maps'}"
    assert ran.exit_code == 1 and contents(tmp_path / "maps").keys() == {"a.tif"}
    for name in ("b", "c"):
        assert f"error: {scenes / name}.tif: no polygon of the area of interest" in ran.stderr


def test_what_is_finished_is_not_mapped_again(
    model: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, wanted = tmp_path / "maps", tmp_path / "wanted"
    predict_each(scenes, model, f"{wanted}/", HOW)
    mapped = each_module.predict_in

    def interrupted(session: Session, scene: str, *args: Any, **options: Any) -> Any:
        if scene.endswith("b.tif"):
            raise KeyboardInterrupt("interrupted")
        return mapped(session, scene, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(each_module, "predict_in", interrupted)
        with pytest.raises(KeyboardInterrupt, match="interrupted; 1 of 3 scenes done"):
            predict_each(scenes, model, f"{output}/", HOW)
    assert contents(output).keys() == {"a.tif"}
    report = predict_each(scenes, model, output, HOW)
    assert [path.name for path in report.there] == ["a.tif"]
    assert [written.path.name for written in report.written] == ["b.tif", "c.tif"]
    assert contents(output) == contents(wanted)
    write_scene(scenes / "d.tif", seed=9)
    report = predict_each(scenes, model, output, HOW)
    assert ([w.path.name for w in report.written], len(report.there)) == (["d.tif"], 3)


def test_a_new_record_of_precision_makes_no_output_stale(model: Path, scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    output = f"{tmp_path / 'maps'}/"
    predict_each(scenes, tmp_path / "model", output, HOW)
    contract = load_contract(tmp_path / "model")
    scores = PrecisionScore(miou=0.9, agreement=1), PrecisionScore(miou=0.5, agreement=0.6)
    record = PrecisionRecord(measured_on="any", float32=scores[0], bfloat16=scores[1])
    contract.model_copy(update={"precision": record}).save(tmp_path / "model")
    assert len(predict_each(scenes, tmp_path / "model", output, HOW).there) == 3


def test_another_validity_is_another_fingerprint(model: Path, scenes: Path) -> None:
    stored = open_model(model)
    with open_scene([scenes / "a.tif"]) as scene:
        plan = Predictor(stored).plan(scene)
        with_alpha = how(alpha=True)
        found = [fingerprint(stored, scene, plan, options, precision="float32") for options in (HOW, with_alpha)]
    assert found[0] != found[1]
    assert found[0] == json.loads(json.dumps(found[0])), "as it comes back from a journal"


def test_foreign_outputs_are_replaced_only_on_request(model: Path, scenes: Path, tmp_path: Path) -> None:
    output = tmp_path / "maps"
    predict_each(scenes, model, f"{output}/", HOW)
    before = contents(output)
    other = how(blend="flat")
    with pytest.raises(OutputError, match=r"a\.tif, and 2 more, exists and was not made from the same") as caught:
        predict_each(scenes, model, output, other)
    assert "--overwrite" in str(caught.value.hint)
    (output / "b.tif").write_text("mine")
    for restart in (False, True):
        with pytest.raises(OutputError, match=r"b\.tif exists and was not made"):
            predict_each(scenes, model, output, how(restart=restart))
    report = predict_each(scenes, model, output, how(overwrite=True))
    assert ([w.path.name for w in report.written], len(report.there)) == (["b.tif"], 2)
    assert contents(output) == before
    assert len(predict_each(scenes, model, output, how(restart=True)).written) == 3


def test_a_style_of_a_persons_own_is_kept(model: Path, scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "b.qml").write_text("my colours")
    report = predict_each(scenes, model, tmp_path / "maps", HOW)
    [(scene, error)] = report.failed
    assert scene == str(scenes / "b.tif") and "b.qml" in error.message and "--overwrite" in str(error.hint)
    assert (tmp_path / "maps" / "b.qml").read_text() == "my colours"


def test_a_bug_in_one_scene_is_reported_and_others_are_mapped(
    model: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mapped = each_module.predict_in

    def buggy(session: Session, scene: str, *args: Any, **options: Any) -> Any:
        return 1 / 0 if scene.endswith("b.tif") else mapped(session, scene, *args, **options)

    monkeypatch.setattr(each_module, "predict_in", buggy)
    report = predict_each(scenes, model, f"{tmp_path / 'maps'}/", HOW)
    assert [written.path.name for written in report.written] == ["a.tif", "c.tif"]
    [(scene, error)] = report.failed
    assert scene == str(scenes / "b.tif") and "ZeroDivisionError" in error.message
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("kind", ["full disk", "device"])
def test_what_would_stop_every_scene_stops_at_once(
    kind: str, model: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fail(session: Session, scene: str, *args: Any, **options: Any) -> Any:
        asked.append(scene)
        if kind == "device":
            raise DeviceError("device cpu is out of memory")
        raise OutputError("cannot write") from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(each_module, "predict_in", fail)
    with pytest.raises(GeosegError, match="0 of 3 scenes done"):
        predict_each(scenes, model, f"{tmp_path / 'maps'}/", HOW)
    assert len(asked) == 1
    assert not (tmp_path / "maps").exists(), "made for nothing"


def test_a_missing_device_is_reported_once(model: Path, scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError):
        predict_each(scenes, model, f"{tmp_path / 'maps'}/", how(device="tpu"))
    assert not (tmp_path / "maps").exists()


def test_the_plan_of_many_writes_nothing(model: Path, scenes: Path, tmp_path: Path) -> None:
    lines = dry_run_each(scenes, model, f"{tmp_path / 'maps'}/", HOW)
    assert [line.partition(":")[0] for line in lines[:-1]] == [
        f"{scenes / name}.tif → {tmp_path / 'maps' / name}.tif" for name in ("a", "b", "c")
    ]
    assert lines[-1].startswith("3 scenes, ") and lines[-1].endswith(" s")
    assert not (tmp_path / "maps").exists()


# --- names


def test_a_folder_of_scenes_is_its_rasters(scenes: Path, tmp_path: Path) -> None:
    (scenes / ".hidden.tif").write_text("")
    (scenes / "a.tif.aux.xml").write_text("")
    files = [str(scenes / f"{name}.tif") for name in ("a", "b", "c")]
    assert scene_names([scenes]) == files
    assert scene_names([files[1], scenes]) == [files[1], files[0], files[2]]
    (tmp_path / "product.zarr").mkdir()
    shutil.copy(files[0], tmp_path / "product.zarr")
    (tmp_path / "empty").mkdir()
    whole = [str(tmp_path / "product.zarr"), str(tmp_path / "empty"), "https://server/a.tif"]
    assert scene_names(whole) == whole


def test_a_folder_is_one_mosaic_where_one_output_is_named(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tiles"
    folder.mkdir()
    for n in range(2):
        write_scene(folder / f"{n}.tif", shift=(0, 80 * n))
    report = predict(folder, model, tmp_path / "map.tif", device="cpu", backend="torch")
    assert report.grid.shape == (96, 160)


def test_outputs_are_named_after_their_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "map.tif").mkdir()
    assert output_pattern("maps/") == output_pattern("maps/{stem}.tif") == Path("maps/{stem}.tif")
    assert output_pattern("there") == Path("there/{stem}.tif")
    assert output_pattern("map.tif") is output_pattern("maps") is output_pattern("maps/map.gpkg") is None
    scenes = ["x/a.tif", "y/b.v2.jp2", "https://server/z/c.tif?key=1"]
    assert name_outputs(Path("maps/{stem}.gpkg"), scenes) == [Path(f"maps/{n}.gpkg") for n in ("a", "b.v2", "c")]
    pattern = Path("maps/{parent}_{stem}.tif")
    assert name_outputs(pattern, scenes) == [Path(f"maps/{n}.tif") for n in ("x_a", "y_b.v2", "z_c")]
    with pytest.raises(OutputError, match="unknown placeholder"):
        output_pattern("maps/{name}.tif")


def test_two_scenes_of_one_output_are_refused() -> None:
    with pytest.raises(OutputError, match=r"x/a\.tif and y/a\.tif would both be written to maps/a\.tif") as caught:
        name_outputs(Path("maps/{stem}.tif"), ["x/a.tif", "y/a.tif"])
    assert caught.value.hint == "-o 'maps/{parent}_{stem}.tif'"


# --- room


@pytest.fixture
def far(tmp_path: Path) -> list[Path]:
    """Two scenes 9,000 km apart, on one pixel grid."""
    return [write_scene(tmp_path / f"{n}.tif", shift=(18_000_000 * n, 0)).path for n in range(2)]


def test_scenes_far_apart_are_no_mosaic(model: Path, far: list[Path], tmp_path: Path) -> None:
    with pytest.raises(SceneError, match=r"the 2 scenes cover 0\.0011 % of the mosaic") as caught:
        predict(far, model, tmp_path / "mosaic.tif", device="cpu", backend="torch")
    assert caught.value.hint == "map each scene on its own: -o FOLDER/"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.tif", "1.tif"]
    planned = dry_run(far, model, tmp_path / "mosaic.tif", HOW)
    assert planned.refusal is not None and planned.lines()[-1].startswith("refused    the 2 scenes cover")
    assert len(predict_each(far, model, f"{tmp_path / 'FOLDER'}/", HOW).written) == 2


def test_scenes_near_each_other_are_one(model: Path, tmp_path: Path) -> None:
    scenes = [write_scene(tmp_path / f"{n}.tif", shift=(0, 800 * n)).path for n in range(2)]
    assert predict(scenes, model, tmp_path / "map.tif", device="cpu", backend="torch").grid.shape == (96, 880)


def test_a_disk_that_cannot_hold_the_map_is_refused(
    model: Path, make_scene: MakeScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_scene()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(session.shutil, "disk_usage", lambda folder: usage._replace(free=50))
    with pytest.raises(OutputError, match=r"needs at least .* of disk, .* free") as caught:
        predict(made.path, model, tmp_path / "map.tif", device="cpu", backend="torch")
    assert "another folder" in str(caught.value.hint)
    assert [path.name for path in tmp_path.iterdir()] == [made.path.name]
    monkeypatch.setattr(session.shutil, "disk_usage", lambda folder: usage._replace(free=1 << 20))
    predict(made.path, model, tmp_path / "map.tif", device="cpu", backend="torch")


def test_a_machine_that_cannot_hold_the_plan_is_refused(
    model: Path, make_scene: MakeScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_scene()
    monkeypatch.setattr(session, "memory_bytes", lambda: 1 << 20)
    with pytest.raises(ConfigError, match=r"columns need .* of memory, this machine has 1\.0 MiB"):
        predict(made.path, model, tmp_path / "map.tif", device="cpu", backend="torch")
    monkeypatch.setattr(session, "memory_bytes", lambda: None)
    predict(made.path, model, tmp_path / "map.tif", device="cpu", backend="torch")


def test_a_mosaic_knows_how_much_its_scenes_cover(tmp_path: Path) -> None:
    made = [write_scene(tmp_path / f"{n}.tif", shift=(0, 160 * n)).path for n in range(2)]
    with open_scene(made) as mosaic, open_scene(made[0]) as scene, open_scene(made, Imagery(gsd=1.0)) as coarse:
        assert (scene.covered_share, mosaic.covered_share) == (1, pytest.approx(2 / 3))
        assert coarse.covered_share == mosaic.covered_share
    with rasterio.open(made[1], "r+") as file:
        file.transform = file.transform @ Affine.translation(-160, 0)
    with open_scene(made) as both:
        assert both.covered_share == 1


def test_the_journal_is_all_that_is_left_beside_the_outputs(model: Path, scenes: Path, tmp_path: Path) -> None:
    predict_each(scenes, model, tmp_path / "maps" / "{stem}.geojson", HOW)
    names = {path.name for path in (tmp_path / "maps").iterdir()}
    assert {name for name in names if name.startswith(".")} == {JOURNAL}
    assert {name for name in names if name.endswith(".geojson")} == {"a.geojson", "b.geojson", "c.geojson"}
