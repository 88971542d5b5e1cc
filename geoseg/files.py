"""Files as outputs and inputs. An output is written beside its final name and renamed at the end: nothing partial is
ever found under the name asked for. A raster without a georeference is opened without a warning.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import sqlite3
import threading
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path, PurePath

from geoseg.errors import OutputError, quoted

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}

# What other programs keep beside a file and derive from its content: overviews and statistics of a raster, spatial
# indices of a shapefile, the journals of a GeoPackage. Beside a new file they show, or do, the wrong thing.
_DERIVED = (".ovr", ".aux.xml", ".msk", "-wal", "-shm", "-journal")
_DERIVED_OF_SHAPEFILE = (".qix", ".sbn", ".sbx", ".idm", ".ind", ".cpg", ".prj", ".qpj")

# What makes up a shapefile beside its .shp; a table or a raster of the same name may have some of these too.
_PARTS_OF_SHAPEFILE = (".dbf", ".shx", ".prj", ".cpg", ".fields.txt")

STYLE_MARK = "written by geoseg, which replaces it together with its layer"
"""Comment in the styles (``.qml``) that are ours; QGIS drops it when it saves a style anew."""

_PLACEHOLDER = re.compile(r"{(\w+)}")
_LONG_FOR_SQLITE = 480

# A GeoPackage's layer has the file's name, and these names belong to SQLite, the format, and QGIS.
_RESERVED = re.compile(r"(sqlite|gpkg|rtree)_.*|layer_styles", re.IGNORECASE)


def check_output(
    path: str | os.PathLike[str],
    *,
    overwrite: bool,
    inputs: Iterable[str | os.PathLike[str]] = (),
    styled: bool = False,
) -> Path:
    """The output path, once it is known that it may be written; to be called before any work.

    Args:
        path: File that will be written.
        overwrite: Whether an existing file may be replaced.
        inputs: Files the work reads, none of which may be replaced, whatever ``overwrite`` says.
        styled: Whether a style is written beside the file.

    Raises:
        OutputError: The file exists and ``overwrite`` is False, it is a folder, an input or a symbolic link, another
            program is changing it (GeoPackage), its name is reserved (GeoPackage) or too long, or its folder is missing
            or not writable; or ``overwrite`` is False, and beside it lies a style that is not ours, or part of another
            shapefile.
    """
    path = Path(path)
    try:
        if path.suffix.lower() == ".gpkg" and _RESERVED.fullmatch(path.stem):
            raise OutputError(
                f"output {path} cannot be a GeoPackage of this name: its layer would be called {path.stem}, which is "
                "reserved",
                hint=f"-o {path.with_stem('map_' + path.stem)}",
            )
        if path.is_dir():
            raise OutputError(f"output {path} is a folder", hint="name a file in it")
        exists = path.exists()
        if path.is_symlink():  # which renaming would replace by a file
            target = path.resolve()
            raise OutputError(f"output {path} is a symbolic link to {target}", hint=f"name the file: -o {target}")
        if exists and any(Path(i).exists() and path.samefile(i) for i in inputs):
            raise OutputError(f"output {path} is also an input", hint="choose another name with -o")
        if exists and not overwrite:
            raise OutputError(f"output {path} exists", hint="add --overwrite, or choose another name with -o")
        part = path.with_name(f"{path.stem}_2{path.suffix}")
        if path.suffix.lower() == ".shp" and part.exists() and not overwrite:
            raise OutputError(
                f"{part} exists, where {path.name} goes on if it gets too large",
                hint="add --overwrite, or choose another name with -o",
            )
        if not overwrite and (other := _not_ours(path, styled=styled)) is not None:
            raise OutputError(
                f"{other} exists, and {path.name} would replace it",
                hint="add --overwrite, or choose another name with -o",
            )
        if exists and path.suffix.lower() == ".gpkg" and _is_locked(path):
            raise OutputError(
                f"output {path} is being written by another program", hint="close it there, or choose another name"
            )
        folder = path.parent
        if not folder.is_dir():
            raise OutputError(
                f"folder {folder} of output {path.name} does not exist", hint=f"mkdir -p {quoted(folder)}"
            )
        # Trying beats os.access, which says yes to root and to read-only mounts.
        with _scratch(path) as scratch:
            _try_names(scratch / path.name)
    except OutputError:
        raise
    except OSError as error:
        hint = "choose a shorter name with -o" if error.errno == errno.ENAMETOOLONG else "choose another name with -o"
        raise OutputError(f"cannot write {path}: {error.strerror}", hint=hint) from error
    return path


def has_style(path: Path) -> bool:
    """Whether a style file comes beside an output; a GeoPackage holds its own."""
    return path.suffix.lower() != ".gpkg"


def _not_ours(path: Path, *, styled: bool) -> Path | None:
    """A file beside a new output that would be replaced, and that neither belongs to an older output nor is ours."""
    if path.suffix.lower() == ".shp" and not path.exists():
        for part in (path.with_suffix(end) for end in _PARTS_OF_SHAPEFILE):
            if part.exists():
                return part
    style = path.with_suffix(".qml")
    if styled and has_style(path) and style.exists() and STYLE_MARK not in style.read_text("utf-8", errors="replace"):
        return style
    return None


def _try_names(file: Path) -> None:
    """Write what has the longest names: a file beside the output, or the journal of a GeoPackage."""
    file.with_name(f"{file.name}.aux.xml").touch()
    if file.suffix.lower() == ".gpkg":
        try:
            with closing(sqlite3.connect(file)) as connection:
                connection.execute("PRAGMA synchronous=OFF")
                connection.execute("CREATE TABLE tried (id)")
        except sqlite3.OperationalError as error:
            is_long = len(os.fsencode(file.absolute())) > _LONG_FOR_SQLITE
            words = f"SQLite opens no path longer than about 500 bytes ({error})" if is_long else str(error)
            raise OSError(errno.ENAMETOOLONG if is_long else errno.EIO, words) from error


@contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """A scratch folder beside an output."""
    folder = _scratch_name(path)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def atomic_output(path: Path) -> Iterator[Path]:
    """A scratch folder beside ``path`` to write its file (and the file's sidecars) in; published on success.

    Yields:
        Where to write the file: the same name inside the scratch folder. On a clean exit every file of the folder
        is renamed into the final folder, the named one last, and what other programs derived from a file it
        replaces (``.ovr``, ``.aux.xml``, indices) is removed. On an exception, Ctrl-C too, nothing is published.
        Either way the scratch folder goes.

    Raises:
        OutputError: The folder is gone or not writable, or the disk is full.
    """
    scratch = _scratch_name(path)
    try:
        scratch.mkdir()
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        yield scratch / path.name
        _publish(scratch, path)
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            raise _cannot_write(path, error) from error
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def made_folder(path: Path, *, hint: str = "choose another with -o") -> Iterator[None]:
    """A folder for outputs, made where it is missing and removed again if it was made for nothing.

    Raises:
        OutputError: It cannot be made.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make folder {path}: {error.strerror}", hint=hint) from error
    try:
        yield
    finally:
        for folder in missing:
            with suppress(OSError):  # there is something in it
                folder.rmdir()


def check_folder(path: Path, *, hint: str = "choose another with -o") -> None:
    """Whether a folder can be made, or written where it is there.

    Raises:
        OutputError: It cannot.
    """
    with made_folder(path, hint=hint):
        try:
            with _scratch(path / "trial"):
                pass
        except OSError as error:
            raise OutputError(f"cannot write into folder {path}: {error.strerror}", hint=hint) from error


def output_pattern(output: str | os.PathLike[str]) -> Path | None:
    """The pattern of one output for each scene; None where one file is named.

    Args:
        output: A folder, which exists or ends with a slash and stands for ``FOLDER/{stem}.tif``, or a file's name with
            ``{stem}`` and perhaps ``{parent}``: names of the scene without its ending, and of its folder.

    Raises:
        OutputError: Another word in braces.
    """
    path = Path(output)
    words = _PLACEHOLDER.findall(path.name)
    if unknown := [word for word in words if word not in ("stem", "parent")]:
        raise OutputError(
            f"output {path} has {{{unknown[0]}}}, which stands for nothing",
            hint="{stem} is the scene's file name without its ending, {parent} that of its folder",
        )
    if words:
        return path
    is_folder = os.fspath(output).endswith(("/", os.sep)) or (path.is_dir() and not path.suffix)
    return path / "{stem}.tif" if is_folder else None


def name_outputs(pattern: Path, scenes: Sequence[str]) -> list[Path]:
    """The output of each scene.

    Raises:
        OutputError: Two scenes have the same.
    """
    found: dict[Path, str] = {}
    for scene in scenes:
        source = PurePath(scene.partition("?")[0])
        name = pattern.name.replace("{stem}", source.stem).replace("{parent}", source.parent.name)
        path = pattern.with_name(name)
        if path in found:
            longer = pattern.with_name(f"{{parent}}_{pattern.name}")
            raise OutputError(
                f"{found[path]} and {scene} would both be written to {path}",
                hint="map them in two runs" if "{parent}" in pattern.name else f"-o '{longer}'",
            )
        found[path] = scene
    return list(found)


def check_output_folder(folder: Path, *, overwrite: bool, ours: Collection[str], writer: str) -> None:
    """Whether a folder may be written; of folders that are there only what ``writer`` wrote is ever replaced.

    Args:
        folder: Folder that will be written.
        overwrite: Whether an existing one may be replaced.
        ours: Names of what the writer puts into it.
        writer: Who that is, in words that "did not write" follows.

    Raises:
        OutputError: It exists and ``overwrite`` is False, it holds other files, it is a file, or it cannot be written.
    """
    if not folder.is_dir():
        if folder.exists():
            raise OutputError(f"output {folder} is a file", hint="name a folder with -o")
        check_output(folder, overwrite=False)
    elif not overwrite:
        raise OutputError(f"output {folder} exists", hint="add --overwrite, or choose another folder with -o")
    elif folder.is_symlink():
        raise OutputError(f"output {folder} is a symbolic link", hint=f"name the folder: -o {folder.resolve()}")
    elif others := sorted(entry.name for entry in folder.iterdir() if entry.name not in ours):
        raise OutputError(
            f"output {folder} holds {others[0]}, which {writer} did not write, so it is not replaced",
            hint="choose another folder with -o",
        )


def _publish(scratch: Path, path: Path) -> None:
    parts = {p.name for p in scratch.iterdir()}
    if path.name not in parts:
        raise FileNotFoundError(f"{path.name} was not written into {scratch}")
    derived = [path.name + end for end in _DERIVED]
    if path.suffix.lower() == ".shp":
        derived += [path.stem + end for end in _DERIVED_OF_SHAPEFILE]
    try:
        for name in derived:
            if name not in parts:
                (path.parent / name).unlink(missing_ok=True)
        for name in [*sorted(parts - {path.name}), path.name]:
            (scratch / name).replace(path.parent / name)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _is_locked(path: Path) -> bool:
    """Whether another program is changing an SQLite file; a file of another kind is not locked."""
    try:
        with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        return "locked" in str(error)
    except sqlite3.DatabaseError:
        return False
    return False


def _scratch_name(path: Path) -> Path:
    return path.parent / f".{path.name}.{secrets.token_hex(4)}.partial"


def _cannot_write(path: Path, error: OSError) -> OutputError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return OutputError(
        f"cannot write {path}: {error.strerror}",
        hint=f"{'free some space or ' if full else ''}choose another folder",
    )


# warnings.catch_warnings changes the process, so two threads must not be inside at once.
_OPENING = threading.RLock()


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing is said about missing georeferences within; one thread at a time, so only for what is short."""
    from rasterio.errors import NotGeoreferencedWarning

    with _OPENING, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield
