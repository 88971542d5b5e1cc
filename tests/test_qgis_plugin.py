"""The plugin for QGIS: its zip, how it runs the command, and, where QGIS is installed, its algorithms."""

from __future__ import annotations

import importlib.util
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

from geoseg.programs.qgis_plugin import plugin_folder, write_plugin
from support import commands
from support.views import write_map

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


@pytest.mark.skipif(QGIS is None, reason="QGIS is not installed")
def test_algorithms_run_in_qgis(tmp_path: Path) -> None:
    plugins = tmp_path / "python" / "plugins"
    plugins.mkdir(parents=True)
    with zipfile.ZipFile(write_plugin(tmp_path / "geoseg.zip")) as archive:
        archive.extractall(plugins)
    write_map(tmp_path / "map.tif")
    geoseg = script(tmp_path / "geoseg", f"sys.path[:0] = {sys.path!r}\nimport geoseg.cli\ngeoseg.cli.main()")
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    env = own | {
        "PATH": "/usr/bin:/bin",  # QGIS takes the first Python there, which must be its own
        "QT_QPA_PLATFORM": "offscreen",
        "QGIS_CUSTOM_CONFIG_PATH": str(tmp_path / "profile"),
        "QGIS_PLUGINPATH": str(plugins),
        "HOME": str(tmp_path),
    }

    # Debian's wrapper may add an option that qgis_process does not know.
    program = next(filter(None, map(shutil.which, ("qgis_process.bin", "qgis_process"))))

    def qgis(*arguments: str) -> str:
        ran = subprocess.run([program, *arguments], env=env, capture_output=True, text=True, timeout=120)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    qgis("plugins", "enable", "geoseg")
    listed = qgis("list")
    assert all(f"geoseg:{name}" in listed for name in ("predict", "vectorize", "compare", "info", "train", "evaluate"))
    output = tmp_path / "out.gpkg"
    said = qgis("run", "geoseg:vectorize", "--", f"MAP={tmp_path / 'map.tif'}", f"OUTPUT={output}", f"COMMAND={geoseg}")
    assert output.exists(), said
    told = qgis("run", "geoseg:info", "--", f"FILE={tmp_path / 'map.tif'}", f"COMMAND={geoseg}")
    assert "class 2" in told
