"""One output for each of many scenes: ``geoseg predict SCENE… -o FOLDER/``.

The model is loaded once. A scene that fails keeps no other from being mapped. What is finished is noted in a journal in
the folder, so the same call goes on where it was interrupted, and maps only what is new when scenes were added.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from geoseg.errors import DeviceError, GeosegError, ModelError, OutputError, SceneError, in_one_line
from geoseg.files import made_folder, name_outputs, output_pattern, writing
from geoseg.paths import scene_names
from geoseg.prediction.parts import was_publishing
from geoseg.prediction.report import PredictReport
from geoseg.programs.predict import AnyPath, Bar, DryRun, PredictOptions, Session, check_kind, progress_bar
from geoseg.version import __version__
from geoseg.words import count

log = logging.getLogger(__name__)

JOURNAL = ".geoseg-predict.json"

_CHANGE_NOTHING = {"device", "executor", "address", "readers", "batch_size", "band_rows", "strip_cols", "aoi"}
"""Options that an output does not depend on; the area of interest is part of a scene's fingerprint."""

_AS_USUAL = PredictOptions()
_OPENING_THREADS = 8
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class EachReport:
    """What became of many scenes.

    Attributes:
        folder: Where the outputs are.
        written: Of each that was mapped.
        there: Outputs that an earlier run had finished.
        failed: Scenes that could not be mapped, and why.
        seconds: Time of all.
    """

    folder: Path
    written: tuple[PredictReport, ...]
    there: tuple[Path, ...]
    failed: tuple[tuple[str, GeosegError], ...]
    seconds: float

    def lines(self) -> list[str]:
        """The report for people, the folder first, what failed left aside."""
        width = max((len(report.path.name) for report in self.written), default=0)
        table = [
            f"  {report.path.name:{width}}  {report.grid.height} × {report.grid.width} px, {report.mpx_per_s:.2f} Mpx/s"
            for report in self.written
        ]
        parts = [f"{count(len(self.written), 'scene')} mapped in {self.seconds:.1f} s"]
        if self.there:
            parts.append(f"{len(self.there)} there from an earlier run")
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        return [str(self.folder), *table, ", ".join(parts)]


@dataclass(frozen=True, slots=True)
class _Item:
    """A scene that can be opened, where its output goes, its pixels, and a digest of all that the output depends on."""

    scene: str
    output: Path
    pixels: int
    made_from: str


def predict_each(
    scenes: AnyPath | Sequence[AnyPath],
    model: AnyPath,
    output: AnyPath,
    options: PredictOptions = _AS_USUAL,
    *,
    overwrite: bool = False,
    restart: bool = False,
    progress: bool = False,
) -> EachReport:
    """Map every scene on its own.

    Args:
        scenes: Rasters; of a folder those in it.
        model: Model folder, or the name of a shipped model.
        output: A folder for class maps, made where it is missing, or a pattern like ``maps/{stem}.gpkg``; see
            `geoseg.files.output_pattern`.
        options: How to predict.
        overwrite: Replace outputs that are there and were not made from the same.
        restart: Map all scenes again, also those that are finished.
        progress: Draw one progress bar over all scenes on standard error.

    Returns:
        What was mapped, what was there, and what failed.

    Raises:
        OutputError: Outputs that are there and are not to be replaced, two scenes of one output, a folder that cannot
            be made, or a disk that is full.
        ModelError: No such model, or a broken one.
        ConfigError: An option that cannot be meant.
        DeviceError: A device that is not there, or has no memory for a single window.
        KeyboardInterrupt: Ctrl-C; its text says what is kept.
    """
    start = time.perf_counter()
    pattern, names = _names(scenes, output, options)
    outputs = name_outputs(pattern, names)
    written: list[PredictReport] = []
    with made_folder(pattern.parent), Session(model, options) as session:
        _ = session.executor  # a device that is not there is no scene's fault
        items, failed = _look(session, names, outputs)
        journal = _Journal(pattern.parent)
        made = {item for item in items if journal.has(item)}
        there = set() if restart else made
        left = [item for item in items if item not in there]
        if not overwrite:
            _check_free([item for item in left if item not in made])
        with progress_bar(sum(item.pixels for item in left), shown=progress) as bar:
            expected = 0
            for number, item in enumerate(left, start=1):
                bar.set_description(f"predict {number}/{len(left)}")
                try:
                    replaces = overwrite or item in made
                    written.append(_predict(session, item, overwrite=replaces, restart=restart, bar=bar))
                    journal.add(item)
                except KeyboardInterrupt as error:
                    raise KeyboardInterrupt(f"{error}; {_done(number - 1, left)}") from error
                except GeosegError as error:
                    if _concerns_all(error):
                        error.message += f"; {_done(number - 1, left)}"
                        raise
                    failed.append((item.scene, error))
                expected += item.pixels
                bar.update(expected - bar.n)  # of a scene that failed
    return EachReport(
        folder=pattern.parent,
        written=tuple(written),
        there=tuple(item.output for item in items if item in there),
        failed=tuple(failed),
        seconds=time.perf_counter() - start,
    )


def dry_run_each(
    scenes: AnyPath | Sequence[AnyPath], model: AnyPath, output: AnyPath, options: PredictOptions = _AS_USUAL
) -> list[str]:
    """The plans of many predictions as lines for people, with the time of all measured on the first.

    Raises:
        GeosegError: As `predict_each`, before its first window, and for the first scene that fails.
    """
    pattern, names = _names(scenes, output, options)
    lines: list[str] = []
    plans: list[DryRun] = []
    with made_folder(pattern.parent), Session(model, options) as session:
        for name, path in zip(names, name_outputs(pattern, names), strict=True):
            found = session.dry_run(name, path, overwrite=True, timed=not plans)
            lines.append(f"{name} → {path}: {found.plan}")
            if found.refusal is not None:
                lines.append(f"refused: {found.refusal.message}")
            plans.append(found)
    forwards = sum(found.plan.forwards for found in plans)
    seconds = plans[0].window_seconds
    pace = "" if seconds is None else f", about {forwards * seconds:.0f} s"
    return [*lines, f"{count(len(plans), 'scene')}, {count(forwards, 'window')}{pace}"]


def _names(scenes: AnyPath | Sequence[AnyPath], output: AnyPath, options: PredictOptions) -> tuple[Path, list[str]]:
    pattern = output_pattern(output)
    if pattern is None:
        raise OutputError(f"output {output} is one file for several scenes", hint=f"name a folder: -o {output}/")
    check_kind(pattern, options)
    return pattern, scene_names([scenes] if isinstance(scenes, str | os.PathLike) else scenes)


def _look(
    session: Session, names: Sequence[str], outputs: Sequence[Path]
) -> tuple[list[_Item], list[tuple[str, GeosegError]]]:
    """Headers of all scenes, and what cannot be opened."""
    common = _facts(session)

    def look(name: str, output: Path) -> _Item | SceneError:
        try:
            with session.source(name).open() as scene:
                facts = _digest({"scene": scene.fingerprint(), **common})
                return _Item(name, output, scene.grid.height * scene.grid.width, facts)
        except SceneError as error:
            return error

    with ThreadPoolExecutor(_OPENING_THREADS, thread_name_prefix="geoseg-look") as threads:
        found = list(threads.map(look, names, outputs))
    failed: list[tuple[str, GeosegError]] = [
        (name, error) for name, error in zip(names, found, strict=True) if isinstance(error, SceneError)
    ]
    return [item for item in found if isinstance(item, _Item)], failed


def _facts(session: Session) -> dict[str, Any]:
    """What an output depends on beside its scene."""
    options = session.options
    given = {f.name: getattr(options, f.name) for f in fields(options) if f.name not in _CHANGE_NOTHING}
    given["blend"] = getattr(options.blend, "__name__", options.blend)
    contract = session.stored.contract.model_dump_json()
    return {"model": session.stored.key, "contract": contract, "geoseg": __version__, "options": str(given)}


def _predict(session: Session, item: _Item, *, overwrite: bool, restart: bool, bar: Bar) -> PredictReport:
    """Map a scene; what is a bug of ours ends this scene only.

    Raises:
        GeosegError: Whatever went wrong.
    """
    try:
        return session.predict(item.scene, item.output, overwrite=overwrite, restart=restart, progress=bar)
    except GeosegError:
        raise
    except Exception as error:
        log.exception("scene %s", item.scene)
        raise GeosegError(f"{item.scene}: {type(error).__name__}: {in_one_line(error)}") from error


def _concerns_all(error: GeosegError) -> bool:
    """Whether the next scene would fail as well."""
    return isinstance(error, ModelError | DeviceError) or getattr(error.__cause__, "errno", None) in _FULL


def _check_free(items: Sequence[_Item]) -> None:
    taken = [item.output for item in items if item.output.exists() and not was_publishing(item.output)]
    if taken:
        more = f", and {len(taken) - 1} more," if len(taken) > 1 else ""
        raise OutputError(
            f"output {taken[0]}{more} exists and was not made from the same scene, model and options",
            hint="add --overwrite, or choose another folder with -o",
        )


def _done(number: int, items: Sequence[_Item]) -> str:
    return f"{number} of {count(len(items), 'scene')} are done"


class _Journal:
    """What the outputs of a folder were made from; one that was changed since counts for nothing."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / JOURNAL
        self._found = self._read()

    def has(self, item: _Item) -> bool:
        """Whether the output of an item is there as it would be made."""
        with suppress(OSError):
            return self._found.get(item.output.name) == _entry(item)
        return False

    def add(self, item: _Item) -> None:
        """Note that an output is finished.

        Raises:
            OutputError: The folder cannot be written any more.
        """
        self._found = {**self._read(), item.output.name: _entry(item)}
        scratch = self._path.with_suffix(f".{secrets.token_hex(4)}.partial")
        try:
            with writing(self._path):
                scratch.write_text(json.dumps(self._found, indent=1), encoding="utf-8")
                scratch.replace(self._path)
        finally:
            scratch.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            found = json.loads(self._path.read_text(encoding="utf-8"))
            return found if isinstance(found, dict) else {}
        return {}


def _entry(item: _Item) -> dict[str, Any]:
    status = item.output.stat()
    return {"made_from": item.made_from, "bytes": status.st_size, "modified_ns": status.st_mtime_ns}


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
