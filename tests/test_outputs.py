from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from geoseg.errors import OutputError, SceneError
from geoseg.files import STYLE_MARK, atomic_output, check_folder, check_output, check_output_folder, made_folder


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_only_a_file_and_its_sidecars_are_published(tmp_path: Path) -> None:
    with atomic_output(tmp_path / "map.shp") as scratch:
        assert scratch.name == "map.shp"
        for end in "shp", "dbf", "shx":
            scratch.with_suffix(f".{end}").write_text(end)
        assert not (tmp_path / "map.shp").exists()
    assert names(tmp_path) == {"map.shp", "map.dbf", "map.shx"}
    assert (tmp_path / "map.dbf").read_text() == "dbf"


@pytest.mark.parametrize("stop", [ValueError("bug"), SceneError("torn"), KeyboardInterrupt()])
def test_nothing_is_published_when_the_work_stops(tmp_path: Path, stop: BaseException) -> None:
    target = tmp_path / "map.tif"
    target.write_text("old")
    with pytest.raises(type(stop)), atomic_output(target) as scratch:
        scratch.write_text("half")
        raise stop
    assert names(tmp_path) == {"map.tif"}
    assert target.read_text() == "old"


def test_a_writer_that_wrote_nothing_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "map.tif").write_text("old")
    with pytest.raises(FileNotFoundError, match=r"map\.tif"), atomic_output(tmp_path / "map.tif"):
        pass
    assert (tmp_path / "map.tif").read_text() == "old"


@pytest.mark.parametrize(
    ("output", "stale"),
    [
        ("map.tif", ["map.tif.ovr", "map.tif.aux.xml"]),
        ("map.gpkg", ["map.gpkg-wal", "map.gpkg-shm"]),
        ("map.shp", ["map.qix", "map.prj"]),
    ],
)
def test_what_was_derived_from_the_replaced_file_goes_with_it(tmp_path: Path, output: str, stale: list[str]) -> None:
    for name in [output, *stale, "map.txt", "other.ovr"]:
        (tmp_path / name).write_text("old")
    with atomic_output(tmp_path / output) as scratch:
        scratch.write_text("new")
        (scratch.parent / stale[0]).write_text("new")
    assert names(tmp_path) == {output, stale[0], "map.txt", "other.ovr"}
    assert (tmp_path / stale[0]).read_text() == "new"


def test_a_full_disk_is_one_clear_message(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"cannot write .*map\.tif: No space left"),
        atomic_output(tmp_path / "map.tif"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == set()


def test_an_error_about_another_file_keeps_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), atomic_output(tmp_path / "map.tif"):
        raise PermissionError(errno.EACCES, "denied", "labels.gpkg")


def test_a_folder_that_goes_away_meanwhile(tmp_path: Path) -> None:
    folder = tmp_path / "usb"
    folder.mkdir()
    with pytest.raises(FileNotFoundError), atomic_output(folder / "map.tif") as scratch:
        scratch.write_text("new")
        shutil.rmtree(folder)
    with pytest.raises(OutputError, match="cannot write"), atomic_output(folder / "map.tif"):
        pass


def test_check_output_leaves_no_trace(tmp_path: Path) -> None:
    assert check_output(str(tmp_path / "a.tif"), overwrite=False) == tmp_path / "a.tif"
    (tmp_path / "a.tif").write_text("old")
    assert check_output(tmp_path / "a.tif", overwrite=True, inputs=["/vsicurl/x.tif", tmp_path / "b.tif"])
    assert names(tmp_path) == {"a.tif"}


def test_check_output_refuses_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.tif").write_text("old")
    with pytest.raises(OutputError, match=r"a\.tif exists") as refused:
        check_output(tmp_path / "a.tif", overwrite=False)
    assert "--overwrite" in (refused.value.hint or "")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="also an input"):
        check_output(tmp_path / "a.tif", overwrite=True, inputs=["./a.tif"])
    with pytest.raises(OutputError, match="is a folder"):
        check_output(tmp_path, overwrite=True)
    with pytest.raises(OutputError, match="does not exist") as refused:
        check_output(tmp_path / "no" / "a.tif", overwrite=False)
    assert refused.value.hint == f"mkdir -p {tmp_path / 'no'}"
    with pytest.raises(OutputError, match="cannot write"):
        check_output(tmp_path / ("a" * 300), overwrite=False)
    with pytest.raises(OutputError):
        check_output(tmp_path / "a.tif" / "b.tif", overwrite=False)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that refuses root too")
def test_an_unwritable_folder_is_refused() -> None:
    with pytest.raises(OutputError, match=r"cannot write /proc/map\.tif"):
        check_output("/proc/map.tif", overwrite=False)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="Permission denied"):
            check_output(tmp_path / "map.tif", overwrite=False)
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("name", ["layer_styles", "LAYER_STYLES", "gpkg_contents", "sqlite_x", "rtree_map_geom"])
def test_names_reserved_in_a_geopackage_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=f"{name}, which is reserved") as caught:
        check_output(tmp_path / f"{name}.gpkg", overwrite=True)
    hint = str(caught.value.hint)
    assert check_output(hint.removeprefix("-o "), overwrite=True).suffix == ".gpkg"
    assert check_output(tmp_path / f"{name}.fgb", overwrite=True)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("suffix", [".tif", ".gpkg", ".shp", ".parquet"])
def test_a_name_too_long_for_files_beside_it_is_refused(suffix: str, tmp_path: Path) -> None:
    for length in (244, 255, 300):
        with pytest.raises(OutputError, match="name too long") as caught:
            check_output(tmp_path / f"{'n' * (length - len(suffix))}{suffix}", overwrite=False)
        assert caught.value.hint == "choose a shorter name with -o"
    assert names(tmp_path) == set()


def test_a_path_too_long_for_sqlite_is_refused(tmp_path: Path) -> None:
    folder = tmp_path
    while len(str(folder)) < 3000:
        folder /= "d" * 100
    folder.mkdir(parents=True)
    assert check_output(folder / "map.fgb", overwrite=False)
    with pytest.raises(OutputError, match="SQLite opens no path longer") as caught:
        check_output(folder / "map.gpkg", overwrite=False)
    assert caught.value.hint == "choose a shorter name with -o"
    assert names(folder) == set()


@pytest.mark.parametrize("exists", [True, False])
def test_a_symbolic_link_is_refused_and_stays(exists: bool, tmp_path: Path) -> None:
    target, link = tmp_path / "2024.tif", tmp_path / "latest.tif"
    if exists:
        target.write_text("mine")
    link.symlink_to(target.name)
    with pytest.raises(OutputError, match=r"latest\.tif is a symbolic link to .*2024\.tif") as caught:
        check_output(link, overwrite=True)
    assert check_output(str(caught.value.hint).removeprefix("name the file: -o "), overwrite=True) == target
    assert link.is_symlink() and target.exists() == exists


def test_a_folder_behind_a_symbolic_link_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "run").symlink_to("big")
    with pytest.raises(OutputError, match="is a symbolic link"):
        check_output_folder(tmp_path / "run", overwrite=True, ours=set(), writer="a test")


@pytest.mark.parametrize("name", ["map.tif", "map_confidence.tif", "map.shp"])
def test_a_style_that_is_not_ours_is_replaced_on_request(tmp_path: Path, name: str) -> None:
    output = tmp_path / name
    style = output.with_suffix(".qml")
    style.write_bytes(b"<qgis/>\xff")
    with pytest.raises(OutputError, match=rf"{style.name} exists, and {name} would replace it") as error:
        check_output(output, overwrite=False, styled=True)
    assert "--overwrite" in error.value.hint
    check_output(output, overwrite=True, styled=True)
    check_output(output, overwrite=False)  # of outputs without a style it is no concern
    style.write_text(f"<!-- {STYLE_MARK} --><qgis/>")
    check_output(output, overwrite=False, styled=True)


def test_a_folder_is_tried_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    check_folder(tmp_path / "a" / "b")
    check_folder(tmp_path)
    assert names(tmp_path) == {"notes.txt"}
    for folder in (tmp_path / "notes.txt", tmp_path / "notes.txt" / "a"):
        with pytest.raises(OutputError, match="cannot make folder"):
            check_folder(folder)


def test_a_folder_made_for_nothing_goes_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), made_folder(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
        raise KeyboardInterrupt
    assert names(tmp_path) == set()
    with made_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "map.tif").write_text("kept")
    assert names(tmp_path) == {"a"} and names(tmp_path / "a") == {"map.tif"}
