"""Write beside the final name, rename at the end: nothing partial is ever found under the name asked for."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from geoseg.errors import OutputError


def check_output(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """The output path, once it is known that it may be written; to be called before any work.

    Args:
        path: File that will be written.
        overwrite: Whether an existing file may be replaced.

    Raises:
        OutputError: The file exists and ``overwrite`` is False, it is a folder, or its folder is missing or not
            writable.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"output {path} is a folder", hint="name a file in it")
    if path.exists() and not overwrite:
        raise OutputError(f"output {path} exists", hint="add --overwrite, or choose another name with -o")
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"folder {folder} of output {path.name} does not exist", hint=f"mkdir -p {folder}")
    # Asking the file system beats os.access, which says yes to root and to read-only mounts.
    probe = folder / f".{path.name}.{secrets.token_hex(4)}.probe"
    try:
        probe.touch(exist_ok=False)
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error.strerror}", hint="choose another folder with -o") from error
    probe.unlink()
    return path


@contextmanager
def atomic_output(path: Path) -> Iterator[Path]:
    """A scratch folder beside ``path`` to write its file (and the file's sidecars) in; published on success.

    Yields:
        Where to write the file: the same name inside the scratch folder. On a clean exit every file of the folder
        is renamed into the final folder, the named one last; on an exception nothing is published. Either way the
        scratch folder is removed.

    Raises:
        OutputError: The disk is full or the folder is gone.
    """
    scratch = path.parent / f".{path.name}.{secrets.token_hex(4)}.partial"
    try:
        scratch.mkdir()
        try:
            yield scratch / path.name
            sidecars = sorted(p for p in scratch.iterdir() if p.name != path.name)
            for part in [*sidecars, scratch / path.name]:
                os.replace(part, path.parent / part.name)
        finally:
            for rest in scratch.iterdir():
                rest.unlink(missing_ok=True)
            scratch.rmdir()
    except OutputError:
        raise
    except OSError as error:
        if error.errno is None or isinstance(error, FileNotFoundError):
            raise
        raise OutputError(f"cannot write {path}: {error.strerror}", hint="free some space or choose another folder") from error
