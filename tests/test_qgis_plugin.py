"""The plugin for QGIS: its zip, how it runs the command, and, where QGIS is installed, its algorithms."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

import support
from geoseg.landscape import LANDSCAPE_CLASSES, Landscape, write_landscape
from geoseg.programs.qgis_plugin import plugin_folder, write_plugin
from support import commands
from support.training import settings, write_config, write_scenes
from support.views import CLASSES, write_map

QGIS = shutil.which("qgis_process")


def command_module() -> Any:
    spec = importlib.util.spec_from_file_location("plugin_command", plugin_folder() / "command.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def script(path: Path, body: str) -> str:
    path.write_text(f"#!{sys.executable}\nimport os, sys, time\n{body}")
    path.chmod(0o755)
    return str(path)


def test_zip_is_what_qgis_installs(tmp_path: Path) -> None:
    result = commands.run("qgis-plugin", "-o", tmp_path / "geoseg.zip")
    assert result.exit_code == 0
    with zipfile.ZipFile(tmp_path / "geoseg.zip") as archive:
        names = set(archive.namelist())
        assert {"geoseg/__init__.py", "geoseg/metadata.txt", "geoseg/provider.py", "geoseg/command.py"} <= names
        for name in names - {"geoseg/metadata.txt"}:
            text = archive.read(name).decode()
            assert text.startswith("# SPDX-License-Identifier: Apache-2.0")
            compile(text, name, "exec")
        assert "hasProcessingProvider=yes" in archive.read("geoseg/metadata.txt").decode()
    again = commands.run("qgis-plugin", "-o", tmp_path / "geoseg.zip")
    assert again.exit_code == 2 and "exists" in again.stderr
    assert write_plugin(tmp_path / "b.zip").read_bytes() == (tmp_path / "geoseg.zip").read_bytes()
    assert "does not end in .zip" in commands.run("qgis-plugin", "-o", "geoseg.tar").stderr


def test_command_is_found_and_feeds_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = command_module()
    bar = r'sys.stderr.write("predict:  10%|#   |\rpredict:  90%|### |\r")'
    bar += '\nprint("map.tif", os.environ.get("PYTHONHOME"))'
    path = script(tmp_path / "geoseg", bar)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYTHONHOME", "/of/qgis")
    assert module.find_command() == path
    assert module.find_command(str(tmp_path / "none")) is None
    seen: list[int] = []
    said: list[str] = []
    lines = module.run_command(path, ["predict"], say=said.append, progress=seen.append, is_canceled=lambda: False)
    assert (lines, seen, said) == (["map.tif None"], [10, 90], ["map.tif None"])


def test_failures_and_cancel_reach_the_dialog(tmp_path: Path) -> None:
    module = command_module()
    nothing: Any = lambda *_: None  # noqa: E731
    failing = script(tmp_path / "failing", 'sys.exit("error: no such scene: a.tif\\nhint:  check the path")')
    with pytest.raises(RuntimeError, match=r"error: no such scene: a.tif\nhint:  check the path"):
        module.run_command(failing, [], say=nothing, progress=nothing, is_canceled=lambda: False)
    endless = script(tmp_path / "endless", "time.sleep(60)")
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    start = time.monotonic()
    assert module.run_command(endless, [], say=nothing, progress=nothing, is_canceled=stop.is_set) is None
    assert time.monotonic() - start < 20


class InQgis:
    """QGIS with the plugin, and geoseg in an environment of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plugins = folder / "python" / "plugins"
        self.plugins.mkdir(parents=True)
        with zipfile.ZipFile(write_plugin(folder / "geoseg.zip")) as archive:
            archive.extractall(self.plugins)
        self.command = script(folder / "geoseg", f"sys.path[:0] = {sys.path!r}\nimport geoseg.cli\ngeoseg.cli.main()")
        own = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
        self._env = own | {
            "PATH": "/usr/bin:/bin",  # QGIS takes the first Python there, which must be its own
            "QT_QPA_PLATFORM": "offscreen",
            "QGIS_CUSTOM_CONFIG_PATH": str(folder / "profile"),
            "QGIS_PLUGINPATH": str(self.plugins),
            "HOME": str(folder),
        }

    def call(self, *arguments: str, text: str = "") -> str:
        ran = subprocess.run(arguments, env=self._env, input=text, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    def run(self, *jobs: dict[str, Any]) -> list[dict[str, Any]]:
        """What became of algorithms that ran in QGIS's Python; see `in_qgis.py`."""
        given = [{"parameters": {"COMMAND": self.command} | job.pop("parameters"), **job} for job in jobs]
        program = Path(support.__file__).with_name("in_qgis.py")
        said = self.call("/usr/bin/python3", str(program), str(self.plugins), text=json.dumps(given))
        found: list[dict[str, Any]] = json.loads(said.splitlines()[-1])
        return found


@pytest.fixture(scope="module")
def qgis(tmp_path_factory: pytest.TempPathFactory) -> InQgis:
    if QGIS is None:
        pytest.skip("QGIS is not installed")
    return InQgis(tmp_path_factory.mktemp("qgis"))


def test_predict_runs_by_qgis_process(qgis: InQgis) -> None:
    # Debian's wrapper may add an option that qgis_process does not know.
    program = next(filter(None, map(shutil.which, ("qgis_process.bin", "qgis_process"))))
    scene, output = qgis.folder / "scene.tif", qgis.folder / "out.tif"
    write_landscape(Landscape(128, 128, seed=1), scene)
    qgis.call(program, "plugins", "enable", "geoseg")
    listed = qgis.call(program, "list")
    assert all(f"geoseg:{name}" in listed for name in ("predict", "vectorize", "compare", "info", "train", "evaluate"))
    given = [f"SCENE={scene}", "MODEL=landscape-tiny", f"OUTPUT={output}", f"COMMAND={qgis.command}"]
    said = qgis.call(program, "run", "geoseg:predict", "--", *given, "OPTIONS=--device cpu --size 128")
    assert output.exists(), said


def test_algorithms_report_load_styled_results_and_cancel(qgis: InQgis) -> None:
    folder = qgis.folder
    for seed, name in enumerate(("map.tif", "later.tif")):
        write_map(folder / name, seed=seed)
    write_scenes(folder)
    write_config(folder / "config.yaml", settings(folder, folder / "run", train={"iterations": 2}))
    slow = script(folder / "slow", 'sys.stderr.write("predict:  10%|#   |\\r")\nsys.stderr.flush()\ntime.sleep(60)')
    names = ("a.tif", "out.gpkg", "mapped.tif", "changes.gpkg")
    scene, polygons, mapped, changes = (str(folder / name) for name in names)
    options = {"MODEL": "landscape-tiny", "OPTIONS": "--device cpu --size 128"}
    predicted, vectorized, compared, described, trained, wrong, canceled = qgis.run(
        {"name": "predict", "parameters": {"SCENE": scene, "OUTPUT": mapped, **options}},
        {"name": "vectorize", "parameters": {"MAP": str(folder / "map.tif"), "OUTPUT": polygons}},
        {
            "name": "compare",
            "parameters": {"OLD": str(folder / "map.tif"), "NEW": str(folder / "later.tif"), "OUTPUT": changes},
        },
        {"name": "info", "parameters": {"FILE": str(folder / "map.tif")}},
        {"name": "train", "parameters": {"CONFIG": str(folder / "config.yaml"), "OPTIONS": "--device cpu"}},
        {"name": "predict", "parameters": {"SCENE": scene, "OUTPUT": mapped, "MODEL": "nowhere"}},
        {
            "name": "predict",
            "parameters": {"SCENE": scene, "OUTPUT": mapped, **options, "COMMAND": slow},
            "cancels": True,
        },
    )
    style, legend = predicted["loaded"][mapped]
    assert style == "paletted" and set(legend) <= set(LANDSCAPE_CLASSES.names)  # those that the map has
    assert predicted["progress"] and predicted["progress"][-1] == 100
    assert vectorized["loaded"][polygons] == ["categorizedSymbol", list(CLASSES.names)]
    style, legend = compared["loaded"][changes]
    assert style == "categorizedSymbol" and "grass:house" in legend
    assert "class 2" in described["results"]["REPORT"] and not described["loaded"]
    assert (folder / "run" / "model" / "geoseg.json").exists()
    assert trained["results"]["REPORT"] == str(folder / "run" / "model")
    assert "nowhere" in wrong["error"] and "hint:" in wrong["error"]
    assert canceled["progress"] == [10] and canceled["results"] == {} and not canceled["loaded"]
