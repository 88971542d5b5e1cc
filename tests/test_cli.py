from __future__ import annotations

import dataclasses
import inspect
import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest
import rasterio

import geoseg.programs.info
from geoseg.cli.options import parse_bands, sentences
from geoseg.errors import ConfigError, GeosegError
from geoseg.options import (
    Imagery,
    Layers,
    Measures,
    Network,
    PolygonRules,
    PredictOptions,
    Running,
    Tiling,
    from_keywords,
)
from geoseg.pretrained import PRETRAINED
from geoseg.programs import early
from support import commands
from support.scenes import write_scene

# Verbs that need none of it, and mistakes that are refused before any of it is loaded.
NETWORKS = ["torch", "timm", "segmentation_models_pytorch", "lightning", "albumentations", "cv2", "openvino"]
MAPS = ["rasterio", "geopandas", "pandas", "pyogrio", "shapely", "pyproj", "pyarrow", "numba", "scipy", "matplotlib"]

VERBS = ["predict", "vectorize", "compare", "train", "evaluate", "info", "models", "weights", "export", "demo"]
HEAVY = ["torch", "numpy", "rasterio", "geopandas", "pyogrio", "shapely", "lightning", "matplotlib", "pydantic", "rich"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "geoseg", *arguments], capture_output=True, text=True, check=False)


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    code = f"import sys, geoseg.cli; print(*[m for m in {HEAVY} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


def after_each(*commands: str, folder: Path) -> list[tuple[int, list[str]]]:
    """Exit code of each command, run in a folder by one fresh process, and which heavy modules are loaded after it."""
    code = (
        "import json, sys\nfrom typer.testing import CliRunner\nfrom geoseg.cli import app\n"
        "for line in sys.stdin.read().splitlines():\n"
        "    code = CliRunner().invoke(app, line.split()).exit_code\n"
        f"    print(json.dumps([code, [m for m in {NETWORKS + MAPS} if m in sys.modules]]))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], input="\n".join(commands), cwd=folder, capture_output=True, text=True, check=True
    )
    return [tuple(json.loads(line)) for line in ran.stdout.splitlines()]


def test_lists_load_nothing_heavy(tmp_path: Path) -> None:
    assert after_each("models", "models --csv", "weights list", folder=tmp_path) == [(0, [])] * 3


def test_statistics_load_no_network(place: Path) -> None:
    [(exit_code, loaded)] = after_each("stats good.yaml", folder=place)
    assert exit_code == 2  # the labels are noise
    assert not set(loaded) & set(NETWORKS)


def test_a_look_at_a_raster_loads_no_pandas_and_no_network(place: Path) -> None:
    found = after_each("info scene.tif", "info nowhere.tif", "info scene.tif -m nowhere", folder=place)
    assert found == [(code, ["rasterio", "pyproj"]) for code in (0, 2, 2)]


def test_importing_vectorize_loads_no_pandas_and_no_writer() -> None:
    unused = [
        "pandas",
        "geopandas",
        "pyogrio",
        "orjson",
        "pyarrow.parquet",
        "pyarrow.compute",
        "matplotlib",
        "pydantic",
    ]
    code = f"import sys, geoseg.programs.vectorize; print(*[m for m in {unused + NETWORKS} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


def test_vectorizing_loads_what_its_format_needs(place: Path, tmp_path: Path) -> None:
    suffixes = ("geojson", "parquet", "gpkg")
    found = after_each(*(f"vectorize map.tif -o {tmp_path}/map.{suffix}" for suffix in suffixes), folder=place)
    polygons = {"rasterio", "shapely", "pyproj", "pyarrow", "numba", "scipy"}  # numba loads scipy
    pyogrio = {"pyogrio", "geopandas", "pandas"}  # pyogrio loads the others where they are installed
    assert [(code, set(loaded)) for code, loaded in found] == [(0, polygons), (0, polygons), (0, polygons | pyogrio)]


TO_MAP = "predict scene.tif -m buildings-tiny -o map.tif"
TO_POLYGONS = "predict scene.tif -m buildings-tiny -o map.gpkg"
TO_SCORES = "evaluate buildings-tiny good.yaml"
TO_ONNX = "export buildings-tiny -o model.onnx"

MISTAKES = [
    "predict nowhere.tif -m buildings-tiny -o map.tif",
    "predict scene.tif nowhere.tif -m buildings-tiny -o map.tif",
    "predict scene.tif -m nowhere -o map.tif",
    "predict scene.tif -m folder -o map.tif",
    "predict scene.tif -m buildings-tiny -o map.dwg",
    "predict scene.tif -m buildings-tiny -o there.tif",
    "predict scene.tif -m buildings-tiny -o scene.tif --overwrite",
    "predict scene.tif -m buildings-tiny -o folder.tif",
    "predict scene.tif -m buildings-tiny -o maps",
    "predict scene.tif -m buildings-tiny -o maps/{name}.tif",
    "predict scene.tif shown -m buildings-tiny -o maps/",
    "predict nowhere.tif -m buildings-tiny -o maps/",
    "predict scene.tif -m nowhere -o maps/",
    "predict scene.tif -m buildings-tiny -o no/map.tif",
    f"{TO_MAP} --blend sinus",
    f"{TO_MAP} --tta d5",
    f"{TO_MAP} --backend tensorrt",
    f"{TO_MAP} --precision float16",
    f"{TO_MAP} --device gpu",
    f"{TO_MAP} --executor dask",
    f"{TO_MAP} --size 100",
    f"{TO_MAP} --overlap 2048",
    f"{TO_MAP} --batch-size 0",
    f"{TO_MAP} --bands red",
    f"{TO_MAP} --gsd fine",
    f"{TO_MAP} --aoi nowhere.gpkg",
    f"{TO_POLYGONS} --simplify much",
    f"{TO_POLYGONS} --simplify-method dp2",
    f"{TO_POLYGONS} --small eat",
    f"{TO_POLYGONS} --keep hose",
    f"{TO_POLYGONS} --dissolve green",
    "vectorize nowhere.tif -o map.gpkg",
    "compare map.tif nowhere.tif",
    "compare scene.tif scene.tif --min-area 4",
    "compare scene.tif scene.tif -o map.gpkg --separate roof",
    "vectorize scene.tif -o map.tif",
    "vectorize scene.tif -o there.gpkg",
    "vectorize scene.tif -o map.gpkg --simplify much",
    "train nowhere.yaml",
    "train typo.yaml",
    "train good.yaml train.iteratoins=5",
    "train good.yaml train.iterations=many",
    "train good.yaml model.architecture=segnex",
    "train good.yaml model.encoder=tu-mscan_tinny",
    "train good.yaml model.start_from=nowhere",
    "train good.yaml model.options.nmf_rnak=8",
    "train good.yaml model.architecture=segnex --check",
    "train good.yaml output=folder",
    "train good.yaml --resume",
    "train good.yaml --device gpu",
    "train good.yaml --devices few",
    "train no_labels.yaml",
    "stats typo.yaml",
    "stats good.yaml --split test",
    "stats no_labels.yaml",
    "evaluate nowhere good.yaml",
    "evaluate buildings-tiny typo.yaml",
    "evaluate landscape-tiny good.yaml",
    "evaluate buildings-tiny no_labels.yaml",
    f"{TO_SCORES} --split test",
    f"{TO_SCORES} --protocol isaid",
    f"{TO_SCORES} --protocol mmseg --size 512",
    f"{TO_SCORES} --objects hose",
    f"{TO_SCORES} --size 100",
    f"{TO_SCORES} --boundary 0",
    f"{TO_SCORES} --backend tensorrt",
    f"{TO_SCORES} -o evaluated",
    "export nowhere -o model.onnx",
    "export buildings-tiny -o model.tif",
    "export buildings-tiny -o no/model.onnx",
    f"{TO_ONNX} --size 100",
    f"{TO_ONNX} --opset 9",
    "weights import nowhere.pth -o out",
    "weights import notes.txt -o out",
    "weights import mscan_tiny -o notes.txt",
    "weights import mscan_tiny -o folder",
    "weights import mscan_tiny -o out --classes nowhere.yaml",
    "demo -o notes.txt",
    "demo -o notes.txt/shown",
    "train good.yaml output=notes.txt/run",
    f"{TO_SCORES} -o notes.txt/scores",
    "demo -o shown",
    "demo --device gpu",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a scene, configurations, and files that are in the way."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("scene", "labels", "val", "val_labels"):
        write_scene(folder / f"{name}.tif", bands=1 if "labels" in name else 3)
    good = """
name: good
output: run
classes: [{name: background, color: "#000000"}, {name: building, color: "#ff0000"}]
data:
  train: [{scene: scene.tif, labels: labels.tif}]
  val: [{scene: val.tif, labels: val_labels.tif}]
"""
    with (
        rasterio.open(folder / "labels.tif") as labels,
        rasterio.open(folder / "map.tif", "w", **labels.profile) as map_,
    ):
        map_.write(labels.read() // 128)
    (folder / "good.yaml").write_text(good)
    (folder / "typo.yaml").write_text(good.replace("output:", "ouput:"))
    (folder / "no_labels.yaml").write_text(good.replace("labels.tif", "nowhere.tif"))
    for name in (
        "folder/keep",
        "folder.tif/keep",
        "shown/scene.tif",
        "evaluated/scores.csv",
        "notes.txt",
        "there.tif",
        "there.gpkg",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    return folder


def test_mistakes_are_refused_before_anything_heavy(place: Path) -> None:
    before = sorted(place.rglob("*"))
    found = dict(zip(MISTAKES, after_each(*MISTAKES, folder=place), strict=True))
    # What one of them loads stays for those after it, so the first one is to blame.
    assert found == dict.fromkeys(MISTAKES, (2, []))
    assert sorted(place.rglob("*")) == before


def test_choices_of_options_are_those_of_the_programs() -> None:
    from geoseg import options
    from geoseg.network.backends import BACKENDS, PRECISIONS
    from geoseg.network.tta import TTA
    from geoseg.paper.patches import PROTOCOLS
    from geoseg.tiling.plan import BLENDS

    assert get_args(options.Blend) == tuple(BLENDS)
    assert get_args(options.TtaName) == tuple(TTA)
    assert get_args(options.Backend) == ("auto", *BACKENDS)
    assert get_args(options.Precision) == ("auto", *PRECISIONS)
    assert get_args(options.Protocol) == ("scene", *PROTOCOLS)


@pytest.mark.parametrize(
    ("arguments", "choices"),
    [
        ("predict a.tif -m m -o o.tif --blend sinus", "'sine', 'linear', 'flat', 'crop'"),
        ("predict a.tif -m m -o o.tif --backend foo", "'auto', 'openvino', 'torch', 'compile'"),
        ("vectorize map.tif -o o.gpkg --simplify-method chaikin", "'vw', 'dp'"),
        ("vectorize map.tif -o o.gpkg --small eat", "'merge', 'drop'"),
        ("evaluate m c.yaml --split test", "'val', 'train'"),
        ("stats c.yaml --split test", "'val', 'train'"),
        ("evaluate m c.yaml --boundary 0", "greater than or equal to 1"),
        ("predict a.tif -m m -o o.tif --batch-size 0", "greater than or equal to 1"),
    ],
)
def test_a_wrong_value_lists_the_right_ones(arguments: str, choices: str) -> None:
    result = commands.run(*arguments.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert choices in " ".join(result.stderr.split())


def test_help_has_a_panel_for_each_kind_of_option() -> None:
    lines = commands.run("predict", "--help").stdout.splitlines()
    panels = ["Arguments", "Options", "Windows", "Network", "Imagery", "Layers", "Polygons", "Running"]
    assert [line.rstrip(":") for line in lines if line[:1].isalpha() and line.endswith(":")] == panels


@pytest.mark.parametrize("verb", ["predict", "vectorize", "compare"])
def test_help_shows_the_defaults_of_polygons(verb: str) -> None:
    text = " ".join(commands.run(verb, "--help").stdout.split())
    assert "none keeps every vertex. [default: 1.5px]" in text
    assert "join the polygon around them. [default: 0; x>=0]" in text


def test_every_option_is_explained_in_one_sentence() -> None:
    for kind in (Tiling, Network, Imagery, Layers, PolygonRules, Running, Measures):
        texts = sentences(kind)
        assert texts.keys() == {f.name for f in dataclasses.fields(kind)}
        assert all(text.endswith(".") for text in texts.values())


def test_names_that_are_refused_early_are_those_of_the_programs() -> None:
    import segmentation_models_pytorch as smp

    import geoseg.models
    from geoseg.export import EXPORTERS
    from geoseg.models.mscan import MultiScaleGate

    assert set(early.ARCHITECTURES) == set(smp.MODEL_ARCHITECTURES_MAPPING)
    assert tuple(EXPORTERS) == early.VECTOR_SUFFIXES
    assert geoseg.models.RECIPES.keys() <= {f"tu-{name}" for name in PRETRAINED}
    set_by_others = {"in_chans", "num_classes", "global_pool", "encoder_name", "encoder_depth", "encoder_weights"}
    set_by_others |= {
        "in_channels",
        "classes",
        "activation",
        "aux_params",
        "encoder_kwargs",
        "self",
        "study",
        "channels",
    }
    makers = (geoseg.models.SegNeXt.__init__, geoseg.models.MSCAN.__init__, MultiScaleGate.__init__)
    signatures = [inspect.signature(maker) for maker in makers]
    assert set(early.SEGNEXT_OPTIONS) == {name for s in signatures for name in s.parameters} - set_by_others


def test_options_as_one_value_are_changed_by_keywords() -> None:
    given = PredictOptions(tiling=Tiling(size=64))
    found = from_keywords(PredictOptions, {"overlap": 32}, caller="predict", given=given)
    assert found == PredictOptions(tiling=Tiling(size=64, overlap=32))
    with pytest.raises(TypeError, match=r"predict\(\) takes options as PredictOptions\(…\), found"):
        from_keywords(PredictOptions, {}, caller="predict", given={"size": 64})  # type: ignore[arg-type]


def test_help_answers_at_once() -> None:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        assert run("--help").returncode == 0
        times.append(time.perf_counter() - start)
    # 0.12 s on a quiet machine, 0.4 s promised; the margin is for a loaded one. What it rests on is tested above.
    assert min(times) < 1


def test_the_version_is_printed() -> None:
    result = commands.run("--version")
    assert (result.exit_code, result.stdout) == (0, f"geoseg {geoseg.__version__}\n")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str) -> None:
    result = commands.run(verb, "--help")
    assert result.exit_code == 0
    assert f"Usage: geoseg {verb}" in result.stdout
    assert "<list[str]>" not in result.stdout
    assert "<str>" not in result.stdout
    assert "Options:" in result.stdout


def test_results_go_to_stdout_and_expected_failures_to_stderr(tmp_path: Path) -> None:
    result = run("info", str(tmp_path / "nowhere.tif"))
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == f"error: no such scene: {tmp_path / 'nowhere.tif'}\nhint:  check the path\n"


def test_many_missing_scenes_are_counted(tmp_path: Path) -> None:
    names = [str(tmp_path / f"{i}.tif") for i in range(23)]
    result = commands.run("predict", *names, "-m", "landscape-tiny", "-o", str(tmp_path))
    assert result.exit_code == 2
    assert f"no such scene: {names[0]}; no such scene: {names[1]}; " in result.stderr
    assert result.stderr.splitlines()[0].endswith("; and 3 more")


@pytest.mark.parametrize("arguments", [["nope"], ["info"], ["predict", "a.tif"], ["info", "x", "--nope"]])
def test_usage_errors_exit_with_2(arguments: list[str]) -> None:
    result = commands.run(*arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr


@pytest.mark.parametrize(
    ("failure", "exit_code", "stderr"),
    [
        (ConfigError("a.yaml has no scenes", hint="add one"), 2, "error: a.yaml has no scenes\nhint:  add one\n"),
        (GeosegError("the disk is gone"), 2, "error: the disk is gone\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_failures_end_in_one_message(
    monkeypatch: pytest.MonkeyPatch, failure: BaseException, exit_code: int, stderr: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(geoseg.programs.info, "describe", fail)
    result = commands.run("info", "a.tif")
    assert (result.exit_code, result.stderr, result.stdout) == (exit_code, stderr, "")


TOO_LONG = "n" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        f"info {TOO_LONG}.tif",
        f"info {TOO_LONG}",
        f"info scene.tif -m {TOO_LONG}",
        f"predict {TOO_LONG}.tif -m buildings-tiny -o map.tif",
        f"predict scene.tif -m {TOO_LONG} -o map.tif",
        f"predict scene.tif -m buildings-tiny -o {TOO_LONG}.tif",
        f"predict scene.tif -m buildings-tiny -o map.tif --aoi {TOO_LONG}.gpkg",
        f"vectorize {TOO_LONG}.tif -o map.gpkg",
        f"vectorize scene.tif -o {TOO_LONG}.gpkg",
        f"train {TOO_LONG}.yaml",
        f"train good.yaml output={TOO_LONG}",
        f"train good.yaml model.start_from={TOO_LONG}",
        f"stats good.yaml data.root={TOO_LONG}",
        f"evaluate {TOO_LONG} good.yaml",
        f"evaluate buildings-tiny good.yaml -o {TOO_LONG}",
        f"export {TOO_LONG} -o model.onnx",
        f"export buildings-tiny -o {TOO_LONG}.onnx",
        f"weights import {TOO_LONG}.pth -o out",
        f"weights import mscan_tiny -o {TOO_LONG}",
        f"prepare scenes {TOO_LONG}.tif -o out",
        f"prepare isaid {TOO_LONG} -o out",
        f"demo -o {TOO_LONG}",
    ],
    ids=lambda arguments: arguments.replace(TOO_LONG, "LONG"),
)
def test_a_name_that_no_disk_takes_is_refused(arguments: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    result = commands.run(*arguments.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ") and "hint: " in result.stderr


def test_our_own_bugs_keep_their_traceback() -> None:
    code = (
        "import sys, geoseg.cli, geoseg.programs.info\n"
        "def fail(*_, **__): raise ZeroDivisionError('ours')\n"
        "geoseg.programs.info.describe = fail\n"
        "sys.argv = ['geoseg', 'info', 'a.tif']\n"
        "geoseg.cli.main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "Traceback" in result.stderr and "ZeroDivisionError: ours" in result.stderr


def test_how_much_is_said_is_the_users_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    def talk(*_: object, **__: object) -> list[str]:
        log = logging.getLogger("geoseg.somewhere")
        log.debug("a detail")
        log.info("a step")
        log.warning("a doubt")
        logging.getLogger("rasterio._env").error("CPLE_AppDefined")
        return ["result"]

    monkeypatch.setattr(geoseg.programs.info, "describe", talk)
    for given, said in [
        ([], "warning: a doubt\n"),
        (["-q"], ""),
        (["-v"], "info: a step\nwarning: a doubt\n"),
        (["-vv"], "debug: a detail\ninfo: a step\nwarning: a doubt\nerror: CPLE_AppDefined\n"),
    ]:
        result = commands.run(*given, "info", "a.tif")
        assert (result.stdout, result.stderr) == ("result\n", said)


def test_quiet_verbs_say_where_their_output_is(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "map.gpkg"
    loud = commands.run("vectorize", str(place / "map.tif"), "-o", str(out))
    assert loud.exit_code == 0 and len(loud.stdout.splitlines()) > 1
    quiet = commands.run("-q", "vectorize", str(place / "map.tif"), "-o", str(out), "--overwrite")
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (0, f"{out}\n", "")


def test_bands_are_numbers_from_1() -> None:
    assert parse_bands(None) is None
    assert parse_bands("4, 3,2") == (4, 3, 2)
    for text in ["", "a", "0", "1,,2", "-1", "1.5"]:
        with pytest.raises(ConfigError, match="--bands"):
            parse_bands(text)
