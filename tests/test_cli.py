from __future__ import annotations

import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import geoseg.info
from geoseg.cli import app
from geoseg.cli.options import parse_bands
from geoseg.errors import ConfigError, GeosegError

# Verbs that need none of it, and mistakes that are refused before any of it is loaded.
NETWORKS = ["torch", "timm", "segmentation_models_pytorch", "lightning", "albumentations", "cv2", "openvino"]
MAPS = ["rasterio", "geopandas", "pandas", "pyogrio", "shapely", "pyproj", "pyarrow", "numba", "scipy", "matplotlib"]

VERBS = ["predict", "vectorize", "train", "evaluate", "info", "models", "weights", "export", "demo"]
HEAVY = ["torch", "numpy", "rasterio", "geopandas", "pyogrio", "shapely", "lightning", "matplotlib", "pydantic", "rich"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "geoseg", *arguments], capture_output=True, text=True, check=False)


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    code = f"import sys, geoseg.cli; print(*[m for m in {HEAVY} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


def heavy_modules(*arguments: object, folder: Path) -> tuple[int, list[str]]:
    """Exit code of a command that runs in a folder, and which heavy modules it has loaded at its end."""
    code = (
        f"import sys, geoseg.cli; sys.argv = ['geoseg', *{[str(a) for a in arguments]}]\n"
        "try:\n    geoseg.cli.main()\n"
        f"finally:\n    print('loaded', *[m for m in {NETWORKS + MAPS} if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    return ran.returncode, ran.stdout.splitlines()[-1].split()[1:]


@pytest.mark.parametrize("arguments", ["models", "models --csv", "weights list"])
def test_lists_load_nothing_heavy(arguments: str, tmp_path: Path) -> None:
    assert heavy_modules(*arguments.split(), folder=tmp_path) == (0, [])


@pytest.mark.parametrize(
    "arguments",
    [
        "weights import nowhere.pth -o out",
        "weights import notes.txt -o out",
        "weights import mscan_tiny -o notes.txt",
        "weights import mscan_tiny -o folder",
        "weights import mscan_tiny -o out --classes nowhere.yaml",
    ],
)
def test_a_mistake_is_refused_before_anything_heavy(arguments: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "folder").mkdir()
    assert heavy_modules(*arguments.split(), folder=tmp_path) == (2, [])


def test_help_answers_at_once() -> None:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        assert run("--help").returncode == 0
        times.append(time.perf_counter() - start)
    # 0.12 s on a quiet machine, 0.4 s promised; the margin is for a loaded one. What it rests on is tested above.
    assert min(times) < 1


def test_the_version_is_printed() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"geoseg {geoseg.__version__}\n")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str) -> None:
    result = CliRunner().invoke(app, [verb, "--help"])
    assert result.exit_code == 0
    assert f"Usage: geoseg {verb}" in result.stdout
    assert "Options:" in result.stdout


def test_results_go_to_stdout_and_expected_failures_to_stderr(tmp_path: Path) -> None:
    result = run("info", str(tmp_path / "nowhere.tif"))
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == f"error: no such scene: {tmp_path / 'nowhere.tif'}\nhint:  check the path\n"


@pytest.mark.parametrize("arguments", [["nope"], ["info"], ["predict", "a.tif"], ["info", "x", "--nope"]])
def test_usage_errors_exit_with_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
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

    monkeypatch.setattr(geoseg.info, "describe", fail)
    result = CliRunner().invoke(app, ["info", "a.tif"])
    assert (result.exit_code, result.stderr, result.stdout) == (exit_code, stderr, "")


def test_our_own_bugs_keep_their_traceback() -> None:
    code = (
        "import sys, geoseg.cli, geoseg.info\n"
        "def fail(*_, **__): raise ZeroDivisionError('ours')\n"
        "geoseg.info.describe = fail\n"
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

    monkeypatch.setattr(geoseg.info, "describe", talk)
    for options, said in [
        ([], "warning: a doubt\n"),
        (["-q"], ""),
        (["-v"], "info: a step\nwarning: a doubt\n"),
        (["-vv"], "debug: a detail\ninfo: a step\nwarning: a doubt\nerror: CPLE_AppDefined\n"),
    ]:
        result = CliRunner().invoke(app, [*options, "info", "a.tif"])
        assert (result.stdout, result.stderr) == ("result\n", said)


def test_bands_are_numbers_from_1() -> None:
    assert parse_bands(None) is None
    assert parse_bands("4, 3,2") == (4, 3, 2)
    for text in ["", "a", "0", "1,,2", "-1", "1.5"]:
        with pytest.raises(ConfigError, match="--bands"):
            parse_bands(text)
