"""Finished parts of a prediction on disk, so that an interrupted run continues where it stopped.

While ``map.tif`` is made, the folder ``.map.tif.parts`` has a GeoTIFF for every finished task, which gets its name when
it is complete, and a journal of what they were made from.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from affine import Affine
from rasterio.errors import RasterioError
from rasterio.windows import Window as RasterWindow

from geoseg.class_map.geotiff import Tile, TiledFile, check_written, writing_raster
from geoseg.errors import OutputError
from geoseg.files import writing
from geoseg.georeference import open_raster
from geoseg.grid import Grid
from geoseg.map_rows import MapRows
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
_RESTART = "--restart, which makes all parts again"
_FACTS_TAG = "GEOSEG_FACTS"


def parts_folder(output: Path) -> Path:
    """Where the parts of an output lie while it is made."""
    return output.with_name(f".{output.name}.parts")


def was_publishing(output: Path) -> bool:
    """Whether a run was stopped while its output got its final name: what is there under it is its own."""
    return (parts_folder(output) / PUBLISHING).exists()


@dataclass(frozen=True, slots=True)
class Parts:
    """The folder of the parts of one output; travels to other processes."""

    folder: Path
    layers: Layers  # what the parts hold beside the classes
    classes: int  # number of classes
    grid: Grid | None = None  # that of the whole map; None leaves the parts without a georeference

    def path(self, task: Task) -> Path:
        """File of a task."""
        return self.folder / f"band{task.band:05d}-strip{task.strip:03d}.tif"

    def has(self, task: Task) -> bool:
        """Whether a task is finished."""
        return self.path(task).exists()

    @property
    def bands(self) -> dict[str, slice]:
        """Which bands of a part hold each layer, counted from 0."""
        found, stop = {}, 0
        for name in ("classes", *self.layers.names):
            start, stop = stop, stop + (self.classes if name == "probabilities" else 1)
            found[name] = slice(start, stop)
        return found

    def tiles(self, plan: Plan) -> dict[str, list[Tile]]:
        """All parts as the pixels of each layer of the map."""
        return {
            name: [Tile(self.path(task), task.window, bands.start + 1) for task in plan.tasks]
            for name, bands in self.bands.items()
        }

    @contextmanager
    def write(self, task: Task) -> Iterator[PartWriter]:
        """A part to be filled from top to bottom; it gets its name at a clean end and is removed after an exception."""
        path = self.path(task)
        # A name of its own: a task may run twice at once if its machine was taken for dead.
        scratch = path.with_suffix(f".{secrets.token_hex(4)}.partial")
        try:
            with writing_raster(path):
                part = PartWriter(scratch, task, self)
                with part.tiled:
                    yield part
                    part.tiled.file.update_tags(**{_FACTS_TAG: json.dumps(asdict(part.facts))})
                check_written(scratch, part.tiled.checksum[0])
                with scratch.open("rb+") as file:
                    os.fsync(file.fileno())
                scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)

    def facts(self, task: Task) -> BandFacts:
        """What is known of a finished task beside its rows."""
        with self._reading(task) as file:
            found = json.loads(file.tags()[_FACTS_TAG])
            return BandFacts(**{**found, "seams": SeamCounts(**found["seams"])})

    def rows(self, plan: Plan, band: int, height: int = 256) -> Iterator[MapRows]:
        """Rows of a finished band over the scene's whole width, from the top; an `OutputError` if a part is damaged."""
        tasks = [plan.task(band, strip) for strip in range(plan.strips)]
        total = tasks[0].window.height
        with ExitStack() as stack:
            files = [stack.enter_context(self._reading(task)) for task in tasks]
            for top in range(0, total, height):
                count = min(height, total - top)
                pieces = [file.read(window=RasterWindow(0, top, file.width, count)) for file in files]
                layers = {name: np.concatenate([piece[b] for piece in pieces], -1) for name, b in self.bands.items()}
                yield MapRows(**{name: a if name == "probabilities" else a[0] for name, a in layers.items()})

    @contextmanager
    def _reading(self, task: Task) -> Iterator[Any]:
        path = self.path(task)
        try:
            with open_raster(path) as file:
                bands = 1 + self.layers.bytes(self.classes)
                if (file.height, file.width, file.count) != (task.window.height, task.window.width, bands):
                    raise ValueError("it has another size")
                yield file
        except (RasterioError, KeyError, ValueError) as error:
            raise OutputError(f"{path} is damaged: {error.__cause__ or error}", hint=_RESTART) from error

    @property
    def size_bytes(self) -> int:
        """What finished parts take on the disk."""
        return sum(part.stat().st_size for part in self.folder.glob("*.tif"))

    def journal(self) -> dict[str, Any]:
        """What the parts of an interrupted run depend on; empty where there is none, or none that can be read."""
        return (read_journal(self.folder / JOURNAL) or {}) if any(self.folder.glob("*.tif")) else {}

    def publish(self) -> None:
        """Note that all parts are there, and the output will get its final name."""
        with writing(self.folder):
            (self.folder / PUBLISHING).touch()

    @contextmanager
    def opened(self, fingerprint: Mapping[str, Any], *, restart: bool) -> Iterator[None]:
        """Make the folder, or take it over if what it holds was made from the same ``fingerprint``.

        The fingerprint is everything that the parts depend on, as JSON, under names that a user understands. With
        ``restart`` the folder's parts are discarded. At a clean end the folder is removed; after an exception it stays
        if it holds a part. An `OutputError` if another process works on the same output.
        """
        with writing(self.folder):
            self.folder.mkdir(exist_ok=True)
            lock = (self.folder / "lock").open("a")
        with lock:
            self._lock(lock)
            with writing(self.folder):
                self._take_over(json.loads(json.dumps(fingerprint)), restart=restart)
            try:
                yield
            except BaseException:
                if not any(self.folder.glob("*.tif")):
                    shutil.rmtree(self.folder, ignore_errors=True)
                raise
            with suppress(OSError):  # the note that the output is finished goes last, for the case of a kill
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
        found = None if restart else read_journal(journal)
        kept = list(self.folder.glob("*.tif"))
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

    def __init__(self, path: Path, task: Task, parts: Parts) -> None:
        self.facts = BandFacts()  # what is known beside the rows; to be set before the context ends
        self._bands = parts.bands
        names = [name for name, bands in self._bands.items() for _ in range(bands.start, bands.stop)]
        grid = parts.grid or Grid(0, 0, Affine.identity(), None)
        self.tiled = TiledFile(path, grid.crop(task.window), names)  # the file

    def write(self, rows: MapRows) -> None:
        """Append rows."""
        layers = [getattr(rows, name) for name in self._bands]
        arrays = [layer if layer.ndim == 3 else layer[None] for layer in layers]
        for _ in self.tiled.write(arrays[0] if len(arrays) == 1 else np.concatenate(arrays)):
            pass


def read_journal(path: Path) -> dict[str, Any] | None:
    """What a journal says; None where there is none, or none that can be read."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else None
    return None
