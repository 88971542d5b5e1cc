"""What every executor keeps: a test class inherits it and says where the tasks run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from geoseg.errors import SceneError
from geoseg.programs.predict import predict
from support.commands import run
from support.model_folders import write_model
from support.scenes import write_scene

OPTIONS: dict[str, Any] = {
    "band_rows": 512,
    "strip_cols": 512,
    "size": 128,
    "overlap": 32,
    "device": "cpu",
    "confidence": True,
}


def map_files(folder: Path, name: str) -> list[bytes]:
    """A map and its confidence."""
    return [(folder / f"{name}{layer}.tif").read_bytes() for layer in ("", "_confidence")]


class ExecutorContract:
    """Tests of one executor; a fixture ``where`` has the options that choose it."""

    unreadable: ClassVar[str] = r"cannot be read in rows .*; \d of 4 bands are kept"
    planned: ClassVar[tuple[str, ...]] = ()
    """What a dry run says of the executor."""

    @pytest.fixture(scope="class")
    @classmethod
    def place(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A scene in two files, a model, and the map that this process makes of them in one piece."""
        folder = tmp_path_factory.mktemp("executor")
        write_model(folder / "model")
        tiles = {"blockxsize": 256, "blockysize": 256}
        write_scene(folder / "top.tif", size=(1024, 1000), nodata="value", **tiles)
        write_scene(folder / "bottom.tif", size=(1400, 1000), shift=(1024, 0), seed=1, **tiles)
        whole = OPTIONS | {"band_rows": None, "strip_cols": None}
        predict([folder / "top.tif", folder / "bottom.tif"], folder / "model", folder / "here.tif", **whole)
        return folder

    def test_the_same_bytes_come_from_tasks(
        self, place: Path, where: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        predict([place / "top.tif", place / "bottom.tif"], place / "model", place / "there.tif", **OPTIONS, **where)
        assert map_files(place, "there") == map_files(place, "here")
        assert "died" not in caplog.text
        assert not list(place.glob(".*"))

    def test_an_unreadable_scene_keeps_finished_parts(self, place: Path, where: dict[str, Any], tmp_path: Path) -> None:
        path = write_scene(tmp_path / "scene.tif", size=(1600, 400), compress="none").path
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 3 // 4])
        with pytest.raises(SceneError, match=self.unreadable):
            predict(path, place / "model", tmp_path / "map.tif", **OPTIONS, **where)
        assert {p.name for p in tmp_path.iterdir()} == {"scene.tif", ".map.tif.parts"}

    def test_a_dry_run_writes_nothing(self, place: Path, where: dict[str, Any], tmp_path: Path) -> None:
        options = [word for name, value in where.items() for word in (f"--{name}", value)]
        words = ["predict", place / "top.tif", "-m", place / "model", "-o", tmp_path / "map.tif", *options]
        ran = run(*words, "--dry-run")
        assert ran.exit_code == 0, ran.stderr
        assert all(text in ran.stdout for text in self.planned)
        assert not list(tmp_path.iterdir())
