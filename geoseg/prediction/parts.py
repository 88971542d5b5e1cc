"""Finished parts of a prediction on disk, so that an interrupted one goes on where it stopped.

Beside ``map.tif`` there is meanwhile a folder ``.map.tif.parts`` with one file for every finished task and a journal,
which says what the parts were made from. A part appears under its name when it is whole, so whatever happens, also a
kill in the middle of a write, the parts that are there may be used.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from geoseg.errors import GeosegError, OutputError
from geoseg.map_rows import MapRows, join_rows
from geoseg.options import Layers
from geoseg.prediction.bands import BandFacts
from geoseg.tiling.plan import Plan, Task
from geoseg.tiling.stitcher import SeamCounts

try:
    import fcntl
except ImportError:  # Windows has none; there nothing keeps two runs from one output
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

JOURNAL = "journal.json"
PUBLISHING = "publishing"
_LENGTH = struct.Struct("<I")
_RESTART = "--restart, which makes all parts anew"
_FAST = 1
"""zlib's level: class ids shrink tenfold at it, at some hundred MB/s."""


def parts_folder(output: Path) -> Path:
    """Where the parts of an output lie while it is made."""
    return output.with_name(f".{output.name}.parts")


def was_publishing(output: Path) -> bool:
    """Whether a run was stopped while its output got its final name: what is there under it is its own."""
    return (parts_folder(output) / PUBLISHING).exists()


@dataclass(frozen=True, slots=True)
class Parts:
    """The folder of parts of one output; travels to other processes.

    Attributes:
        folder: Where they lie.
        layers: What the parts hold beside the classes.
        classes: Number of classes.
    """

    folder: Path
    layers: Layers
    classes: int

    def path(self, task: Task) -> Path:
        """File of a task."""
        return self.folder / f"band{task.band:05d}-strip{task.strip:03d}.part"

    def has(self, task: Task) -> bool:
        """Whether a task is finished."""
        return self.path(task).exists()

    @contextmanager
    def write(self, task: Task) -> Iterator[PartWriter]:
        """A part to be filled from top to bottom; it gets its name at a clean end and is gone after an exception.

        Raises:
            OutputError: The disk is full, or the folder is gone.
        """
        path = self.path(task)
        # A name of its own: a task may run twice at once where a machine was taken for dead.
        scratch = path.with_suffix(f".{secrets.token_hex(4)}.partial")
        try:
            with _as_output_error(path), scratch.open("wb") as file:
                writer = PartWriter(file)
                yield writer
                writer.finish()
                file.flush()
                os.fsync(file.fileno())
            with _as_output_error(path):
                scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)

    def read(self, task: Task) -> PartReader:
        """A finished part, to be read from top to bottom."""
        return PartReader(self.path(task), task, self)

    def facts(self, task: Task) -> BandFacts:
        """What is known of a finished task beside its rows."""
        with _as_output_error(self.path(task)), self.path(task).open("rb") as file:
            file.seek(-_LENGTH.size, os.SEEK_END)
            (length,) = _LENGTH.unpack(file.read())
            file.seek(-_LENGTH.size - length, os.SEEK_END)
            found = json.loads(file.read(length))
        skipped, *counts = found
        return BandFacts(skipped, SeamCounts(*counts[:4]), *counts[4:])

    @property
    def size_bytes(self) -> int:
        """What finished parts take on the disk."""
        return sum(part.stat().st_size for part in self.folder.glob("*.part"))

    def journal(self) -> dict[str, Any]:
        """What the parts of an interrupted run depend on; empty where there is none, or none that can be read."""
        return (_load(self.folder / JOURNAL) or {}) if any(self.folder.glob("*.part")) else {}

    def publish(self) -> None:
        """Note that all parts are there, and the output will get its final name.

        Raises:
            OutputError: The folder cannot be written.
        """
        with _as_output_error(self.folder):
            (self.folder / PUBLISHING).touch()

    @contextmanager
    def opened(self, fingerprint: Mapping[str, Any], *, restart: bool) -> Iterator[None]:
        """Make the folder or take it over, if what it holds was made from the same.

        At a clean end the folder goes. After an exception it stays where it holds a part.

        Args:
            fingerprint: Everything that the parts depend on, as JSON, under names that a user understands.
            restart: Discard what is there.

        Raises:
            OutputError: Another process works on the same output, or the folder cannot be written.
        """
        with _as_output_error(self.folder):
            self.folder.mkdir(exist_ok=True)
            lock = (self.folder / "lock").open("a")
        with lock:
            self._lock(lock)
            with _as_output_error(self.folder):
                self._take_over(json.loads(json.dumps(fingerprint)), restart=restart)
            try:
                yield
            except BaseException:
                if not any(self.folder.glob("*.part")):
                    shutil.rmtree(self.folder, ignore_errors=True)
                raise
            self._remove()

    def _remove(self) -> None:
        """Remove the folder of a finished output; the note that it is finished goes last, for the case of a kill."""
        with suppress(OSError):
            for path in self.folder.iterdir():
                if path.name != PUBLISHING:
                    path.unlink()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _lock(self, file: IO[str]) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            name = self.folder.name.removeprefix(".").removesuffix(".parts")
            raise OutputError(
                f"another process is making {self.folder.with_name(name)}",
                hint="wait for it, or choose another name with -o",
            ) from error
        except OSError:  # a network folder without locks
            log.debug("%s cannot be locked", self.folder)

    def _take_over(self, fingerprint: dict[str, Any], *, restart: bool) -> None:
        journal = self.folder / JOURNAL
        found = None if restart else _load(journal)
        kept = list(self.folder.glob("*.part"))
        if found != fingerprint:
            if kept and found is not None:
                keys = [key for key in {**found, **fingerprint} if found.get(key) != fingerprint.get(key)]
                log.warning("%s changed since the last run: starting anew", " and ".join(keys))
            for part in (*kept, self.folder / PUBLISHING):
                part.unlink(missing_ok=True)
            scratch = journal.with_suffix(".partial")
            scratch.write_text(json.dumps(fingerprint, indent=1), encoding="utf-8")
            scratch.replace(journal)
        for left in self.folder.glob("*.partial"):  # of runs that were killed
            left.unlink()


class PartWriter:
    """An open part; see `Parts.write`."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.facts = BandFacts()

    def write(self, rows: MapRows) -> None:
        """Append rows."""
        self._file.write(_LENGTH.pack(len(rows)))
        for layer in rows.layers.values():
            if layer is not None:
                data = zlib.compress(np.ascontiguousarray(layer).data, _FAST)
                self._file.write(_LENGTH.pack(len(data)))
                self._file.write(data)

    def finish(self) -> None:
        """Close the list of rows and put the facts behind it."""
        seams, known = self.facts.seams, self.facts
        counts = seams.border, seams.border_differs, seams.inside, seams.inside_differs
        facts = json.dumps([known.skipped, *counts, known.confidence, known.measured]).encode()
        self._file.write(_LENGTH.pack(0) + facts + _LENGTH.pack(len(facts)))


class PartReader:
    """An open part that gives its rows from top to bottom, as many as asked for."""

    def __init__(self, path: Path, task: Task, parts: Parts) -> None:
        self._path = path
        self._width = task.window.width
        wanted, classes = parts.layers, parts.classes
        self._bands = {
            "classes": 1,
            **({"confidence": 1} if wanted.confidence else {}),
            **({"probabilities": classes} if wanted.probabilities else {}),
            **({"disagreement": 1} if wanted.disagreement else {}),
        }
        self._records = self._read()
        self._rest: MapRows | None = None

    def take(self, count: int) -> MapRows:
        """The next rows.

        Raises:
            OutputError: The part is damaged.
        """
        taken: list[MapRows] = []
        while count:
            rows = next(self._records) if self._rest is None else self._rest
            taken.append(rows[:count])
            self._rest = rows[count:] if len(rows) > count else None
            count -= len(taken[-1])
        return join_rows(taken, axis=-2)

    def _read(self) -> Iterator[MapRows]:
        try:
            with self._path.open("rb") as file:
                while count := _LENGTH.unpack(file.read(_LENGTH.size))[0]:
                    layers = {}
                    for name, bands in self._bands.items():
                        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
                        values = np.frombuffer(zlib.decompress(file.read(length)), dtype=np.uint8)
                        shape = (bands, count, self._width) if name == "probabilities" else (count, self._width)
                        layers[name] = values.reshape(shape)
                    yield MapRows(**layers)
        except (OSError, ValueError, struct.error, zlib.error) as error:
            raise OutputError(f"{self._path} is damaged: {error}", hint=_RESTART) from error
        raise OutputError(f"{self._path} is damaged: it ends early", hint=_RESTART)


def remove_scratch(output: Path) -> None:
    """Remove the scratch folders that killed runs left beside an output; only for who holds its parts."""
    name = re.compile(rf"\.{re.escape(output.name)}\.[0-9a-f]{{8}}\.partial")
    for path in output.parent.iterdir():
        if name.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def rows_in_order(parts: Parts, plan: Plan, band: int, height: int = 256) -> Iterator[MapRows]:
    """Rows of a finished band over the scene's whole width."""
    tasks = [plan.task(band, strip) for strip in range(plan.strips)]
    readers = [parts.read(task) for task in tasks]
    left = tasks[0].window.height
    while left:
        count = min(height, left)
        pieces = [reader.take(count) for reader in readers]
        yield join_rows(pieces, axis=-1)
        left -= count


@contextmanager
def _as_output_error(path: Path) -> Iterator[None]:
    try:
        yield
    except GeosegError:  # a scene that cannot be read is an OSError too
        raise
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror}", hint="free some space or choose another folder"
        ) from error


def _load(journal: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(journal.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found
