"""Output files: checked before the work, written beside their final name and renamed at the end.

What keeps a file from being written becomes an `OutputError` in one place, `writing`.
"""

import errno
import os
import re
import secrets
import shutil
import sqlite3
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path, PurePath

from geoseg.errors import GeosegError, OutputError, quoted
from geoseg.options import AnyPath

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""A full disk, a quota, a file larger than the file system allows, a read-only disk."""

# What other programs keep beside a file and derive from its content: overviews and statistics of a raster, spatial
# indices of a shapefile, journals of a GeoPackage. Beside a new file they would show the old content.
_DERIVED = (".ovr", ".aux.xml", ".msk", "-wal", "-shm", "-journal")
_DERIVED_OF_SHAPEFILE = (".qix", ".sbn", ".sbx", ".idm", ".ind", ".cpg", ".prj", ".qpj")

# Files of a shapefile beside its .shp; a table or a raster of the same name may have some of these too.
_PARTS_OF_SHAPEFILE = (".dbf", ".shx", ".prj", ".cpg")

STYLE_MARK = "written by geoseg, which replaces it together with its layer"
"""Comment in the styles (``.qml``) that are ours; QGIS drops it when it saves a style."""

_PLACEHOLDER = re.compile(r"{(\w+)}")
_SCRATCH = re.compile(r"\.(.+)\.[0-9a-f]{8}\.partial")
_LONG_FOR_SQLITE = 480
_FULL_BYTES = 64 << 10

# A GeoPackage's layer has the file's name, and these names are reserved by SQLite, the format, and QGIS.
_RESERVED = re.compile(r"(sqlite|gpkg|rtree)_.*|layer_styles", re.IGNORECASE)

_REPLACE = "add --overwrite, or choose another name with -o"


# --- errors


def output_error(message: str, error: Exception, *, hint: str | None = None) -> OutputError:
    """An `OutputError`: what failed, such as "cannot write map.tif", and the reason that the system or a library gave.

    Without a ``hint`` it has the usual one for the reason.
    """
    number = error.errno if isinstance(error, OSError) else None
    # rasterio says only "see previous exception"; its cause is GDAL's message.
    reason = str(error.__cause__ or error) if number is None else os.strerror(number)
    if hint is None and number == errno.ENAMETOOLONG:
        hint = "choose a shorter name with -o"
    elif hint is None:
        is_full = number is None or number in (errno.ENOSPC, errno.EDQUOT)
        hint = "free some space or choose another folder" if is_full else "choose another folder"
    return OutputError(f"{message}: {reason}", hint=hint)


@contextmanager
def writing(path: Path, *errors: type[Exception], hint: str | None = None) -> Iterator[None]:
    """Turn `OSError` and further ``errors`` of writing a file into an `OutputError`; a `GeosegError` passes.

    The message gives the final name of a file inside `atomic_output`; without a ``hint`` it has the usual one.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, GeosegError) or not isinstance(error, (OSError, *errors)):
            raise
        has_reason = isinstance(error, OSError) and error.errno is not None
        cause = error if has_reason or not _is_full(path.parent) else OSError(errno.ENOSPC, "")
        raise output_error(f"cannot write {_final_name(path)}", cause, hint=hint) from cause


def _is_full(folder: Path) -> bool:
    """Whether a disk has no room left, which libraries seldom give as the reason."""
    return folder.is_dir() and shutil.disk_usage(folder).free < _FULL_BYTES


# --- checks before the work


def check_output(path: AnyPath, *, overwrite: bool, inputs: Iterable[AnyPath] = (), styled: bool = False) -> Path:
    """The output path, after checking that it may be written; ``inputs`` are never replaced.

    ``styled`` says whether a style is written beside the file.

    Raises:
        OutputError: The file exists, or its style or a part of another shapefile is in the way, and ``overwrite`` is
            False; it is a folder, an input or a symbolic link; another program is changing it (GeoPackage); its name is
            reserved (GeoPackage) or too long; or its folder is missing or not writable.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    with writing(path):
        if suffix == ".gpkg" and _RESERVED.fullmatch(path.stem):
            raise OutputError(
                f"output {path} cannot be a GeoPackage: its layer would be called {path.stem}, which is reserved",
                hint=f"-o {path.with_stem('map_' + path.stem)}",
            )
        if path.is_dir():
            raise OutputError(f"output {path} is a folder", hint="name a file in it")
        if path.is_symlink():  # renaming would replace the link by a file
            target = path.resolve()
            raise OutputError(f"output {path} is a symbolic link to {target}", hint=f"name the file: -o {target}")
        exists = path.exists()
        if exists and any(Path(i).exists() and path.samefile(i) for i in inputs):
            raise OutputError(f"output {path} is also an input", hint="choose another name with -o")
        if not overwrite:
            _check_nothing_replaced(path, styled=styled)
        if exists and suffix == ".gpkg" and _is_locked(path):
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
    return path


def _check_nothing_replaced(path: Path, *, styled: bool) -> None:
    if path.exists():
        raise OutputError(f"output {path} exists", hint=_REPLACE)
    is_shapefile = path.suffix.lower() == ".shp"
    next_file = path.with_name(f"{path.stem}_2{path.suffix}")
    if is_shapefile and next_file.exists():
        raise OutputError(f"{next_file} exists, where {path.name} continues if it gets too large", hint=_REPLACE)
    beside = [path.with_suffix(end) for end in _PARTS_OF_SHAPEFILE if is_shapefile]
    style = path.with_suffix(".qml")
    if styled and has_style(path) and style.exists() and STYLE_MARK not in style.read_text("utf-8", errors="replace"):
        beside.append(style)
    for other in beside:
        if other.exists():
            raise OutputError(f"{other} exists, and {path.name} would replace it", hint=_REPLACE)


def has_style(path: Path) -> bool:
    """Whether a style is written beside an output; a GeoPackage contains its own."""
    return path.suffix.lower() != ".gpkg"


def _try_names(file: Path) -> None:
    """Write the longest names that will be needed: a file beside the output, or the journal of a GeoPackage."""
    file.with_name(f"{file.name}.aux.xml").touch()
    if file.suffix.lower() == ".gpkg":
        try:
            with closing(sqlite3.connect(file)) as connection:
                connection.execute("PRAGMA synchronous=OFF")
                connection.execute("CREATE TABLE tried (id)")
        except sqlite3.OperationalError as error:
            if len(os.fsencode(file.absolute())) <= _LONG_FOR_SQLITE:
                raise OSError(errno.EIO, str(error)) from error
            raise OutputError(
                f"cannot write {_final_name(file)}: SQLite opens no path longer than about 500 bytes",
                hint="choose a shorter name with -o",
            ) from error


def _is_locked(path: Path) -> bool:
    """Whether another program is changing an SQLite file; False for a file of another kind."""
    try:
        with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.DatabaseError as error:
        return "locked" in str(error)
    return False


def check_folder(path: Path, *, hint: str = "choose another with -o") -> None:
    """Check that a folder can be made, or written if it exists; an `OutputError` if not."""
    with made_folder(path, hint=hint):
        try:
            tempfile.TemporaryFile(dir=path).close()
        except OSError as error:
            raise output_error(f"cannot write into folder {path}", error, hint=hint) from error


def check_output_folder(folder: Path, *, overwrite: bool, ours: Collection[str], writer: str) -> None:
    """Check that a folder may be written; an existing one is replaced only if all files in it are ``ours``.

    ``writer`` is the name, for the message, of what writes files of the names ``ours``.
    """
    if not folder.exists():
        check_output(folder, overwrite=False)
    elif not folder.is_dir():
        raise OutputError(f"output {folder} is a file", hint="name a folder with -o")
    elif not overwrite:
        raise OutputError(f"output {folder} exists", hint="add --overwrite, or choose another folder with -o")
    elif folder.is_symlink():
        raise OutputError(f"output {folder} is a symbolic link", hint=f"name the folder: -o {folder.resolve()}")
    elif others := sorted(entry.name for entry in folder.iterdir() if entry.name not in ours):
        raise OutputError(
            f"output {folder} holds {others[0]}, which {writer} did not write, so it is not replaced",
            hint="choose another folder with -o",
        )


# --- writing


@contextmanager
def atomic_output(path: Path) -> Iterator[Path]:
    """A scratch folder beside ``path`` to write its file, and files that belong to it, in; published on success.

    It yields the same name inside the scratch folder. On a clean exit all files of the folder are renamed into the
    final folder, the named one last, and what other programs derived from a file it replaces (``.ovr``, ``.aux.xml``,
    indices) is removed. After an exception, Ctrl-C included, nothing is published. The scratch folder is removed in
    either case. An `OutputError` if the folder is not writable or the disk is full.
    """
    try:
        with _scratch(path) as scratch:
            yield scratch / path.name
            _publish(scratch, path)
    except OSError as error:
        if error.errno in DISK_ERRORS:
            raise output_error(f"cannot write {path}", error) from error
        raise


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A scratch folder beside a final name, renamed on success; an existing folder is replaced."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _scratch(folder) as scratch:
        yield scratch
        for file in scratch.iterdir():
            file.chmod(0o644)  # safetensors makes files that only their owner can read
        if folder.exists():
            shutil.rmtree(folder)
        scratch.rename(folder)


def _publish(scratch: Path, path: Path) -> None:
    written = {p.name for p in scratch.iterdir()}
    if path.name not in written:
        raise FileNotFoundError(f"{path.name} was not written into {scratch}")
    derived = [path.name + end for end in _DERIVED]
    if path.suffix.lower() == ".shp":
        derived += [path.stem + end for end in _DERIVED_OF_SHAPEFILE]
    with writing(path):
        for name in derived:
            if name not in written:
                (path.parent / name).unlink(missing_ok=True)
        for name in [*sorted(written - {path.name}), path.name]:
            (scratch / name).replace(path.parent / name)


@contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """A scratch folder beside an output."""
    folder = path.parent / f".{path.name}.{secrets.token_hex(4)}.partial"
    try:
        with writing(path):
            folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _final_name(path: Path) -> Path:
    """The name that a file in a scratch folder gets in the end; the path itself elsewhere."""
    return path.parent.with_name(path.name) if _SCRATCH.fullmatch(path.parent.name) else path


def remove_scratch(output: Path) -> None:
    """Remove the scratch folders that killed runs left beside an output; only where no other run writes it."""
    for path in output.parent.iterdir():
        if (found := _SCRATCH.fullmatch(path.name)) and found[1] == output.name:
            shutil.rmtree(path, ignore_errors=True)


def make_folder(path: Path, *, hint: str = "choose another with -o") -> None:
    """Make a folder and those above it, unless it exists; an `OutputError` if it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(f"cannot make folder {path}", error, hint=hint) from error


@contextmanager
def made_folder(path: Path, *, hint: str = "choose another with -o") -> Iterator[None]:
    """Make a folder for outputs, and remove it again if nothing was put into it; see `make_folder`."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    make_folder(path, hint=hint)
    try:
        yield
    finally:
        for folder in missing:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


# --- one output for each scene


def output_pattern(output: AnyPath) -> Path | None:
    """The pattern of one output for each scene; None if one file is named.

    A folder, which exists or ends with a slash, stands for ``FOLDER/{stem}.tif``. A file name may have ``{stem}`` and
    ``{parent}``: the scene's name without its suffix, and the name of its folder; another word is an `OutputError`.
    """
    path = Path(output)
    words = _PLACEHOLDER.findall(path.name)
    if unknown := [word for word in words if word not in ("stem", "parent")]:
        raise OutputError(
            f"output {path} has the unknown placeholder {{{unknown[0]}}}",
            hint="{stem} is the scene's file name without its suffix, {parent} the name of its folder",
        )
    if words:
        return path
    is_folder = os.fspath(output).endswith(("/", os.sep)) or (path.is_dir() and not path.suffix)
    return path / "{stem}.tif" if is_folder else None


def name_outputs(pattern: Path, scenes: Sequence[str]) -> list[Path]:
    """The output of each scene; an `OutputError` if two scenes have the same."""
    found: dict[Path, str] = {}
    for scene in scenes:
        source = PurePath(scene.partition("?")[0])
        path = pattern.with_name(pattern.name.replace("{stem}", source.stem).replace("{parent}", source.parent.name))
        if path in found:
            longer = pattern.with_name(f"{{parent}}_{pattern.name}")
            raise OutputError(
                f"{found[path]} and {scene} would both be written to {path}",
                hint="map them in two runs" if "{parent}" in pattern.name else f"-o '{longer}'",
            )
        found[path] = scene
    return list(found)
