"""One output for each of many scenes: ``geoseg predict SCENE… -o FOLDER/``."""

import errno
import json
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from geoseg.errors import DeviceError, GeosegError, ModelError, OutputError, SceneError, in_one_line
from geoseg.files import atomic_output, made_folder, name_outputs, output_pattern, writing
from geoseg.options import AnyPath, PredictOptions
from geoseg.paths import is_map, scene_names
from geoseg.prediction.parts import read_journal, was_publishing
from geoseg.prediction.report import PredictReport
from geoseg.programs.dry_run import DryRun, dry_run_in
from geoseg.programs.early import check_kind
from geoseg.programs.predict import Bar, predict_in, progress_bar
from geoseg.programs.session import Session, fingerprint, short_digest
from geoseg.scene import Raster
from geoseg.words import count

log = logging.getLogger(__name__)

JOURNAL = ".geoseg-predict.json"

_OPENING_THREADS = 8
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class EachReport:
    """Outputs of many scenes."""

    folder: Path
    written: tuple[PredictReport, ...]
    there: tuple[Path, ...]  # outputs that an earlier run had finished
    failed: tuple[tuple[str, GeosegError], ...]  # scenes, and why
    seconds: float

    def lines(self) -> list[str]:
        """The report for people, the folder first, without failed scenes."""
        width = max((len(report.path.name) for report in self.written), default=0)
        table = [
            f"  {report.path.name:{width}}  {report.grid.height} × {report.grid.width} px, {report.mpx_per_s:.2f} Mpx/s"
            for report in self.written
        ]
        parts = [f"{count(len(self.written), 'scene')} mapped in {self.seconds:.1f} s"]
        if self.there:
            parts.append(f"{len(self.there)} finished by an earlier run")
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        return [str(self.folder), *table, ", ".join(parts)]


@dataclass(frozen=True, slots=True)
class _Item:
    """A scene that can be opened, its output, its number of pixels, and a digest of all that the output depends on."""

    scene: str
    output: Path
    pixels: int
    made_from: str


def predict_each(
    scenes: AnyPath | Sequence[AnyPath],
    model: AnyPath,
    output: AnyPath,
    options: PredictOptions = PredictOptions(),
) -> EachReport:
    """Map every scene on its own; if one fails, the others are still mapped.

    A journal in the folder records what is finished, so the same call continues an interrupted run, and maps only what
    is new when scenes were added. ``overwrite`` replaces outputs that were made from something else, ``restart`` maps
    finished scenes again. The output is a folder for class maps, made if it does not exist, or a pattern like
    ``maps/{stem}.gpkg``; see `geoseg.files.output_pattern`.

    Raises:
        OutputError: Outputs that exist and may not be replaced, two scenes with one output, a folder that cannot be
            made, or a full disk.
        GeosegError: For other errors that no scene is to blame for, see `geoseg.predict`.
    """
    start, running = time.perf_counter(), options.running
    pattern, names, outputs = _names(scenes, output, options)
    written: list[PredictReport] = []
    with made_folder(pattern.parent), Session(model, options) as session:
        _ = session.executor  # a missing device is no scene's fault
        items, failed = _look(session, names, outputs)
        journal = _Journal(pattern.parent)
        made = {item for item in items if journal.has(item)}
        there = set() if running.restart else made
        left = [item for item in items if item not in there]
        if not running.overwrite:
            _check_free([item for item in left if item not in made])
        with progress_bar(sum(item.pixels for item in left), shown=running.progress) as bar:
            expected = 0
            for number, item in enumerate(left, start=1):
                bar.set_description(f"predict {number}/{len(left)}")
                try:
                    replaces = running.overwrite or item in made
                    written.append(_predict(session, item, overwrite=replaces, bar=bar))
                    journal.add(item)
                except KeyboardInterrupt as error:
                    raise KeyboardInterrupt(f"{error}; {_done(number - 1, left)}") from error
                except GeosegError as error:
                    if isinstance(error, ModelError | DeviceError) or getattr(error.__cause__, "errno", None) in _FULL:
                        # the next scene would fail as well
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
    scenes: AnyPath | Sequence[AnyPath], model: AnyPath, output: AnyPath, options: PredictOptions = PredictOptions()
) -> list[str]:
    """The plans of many predictions as lines for people, with the time of all measured on the first."""
    pattern, names, outputs = _names(scenes, output, options)
    lines: list[str] = []
    plans: list[DryRun] = []
    with made_folder(pattern.parent), Session(model, options) as session:
        for name, path in zip(names, outputs, strict=True):
            found = dry_run_in(session, name, path, overwrite=True, timed=not plans)
            lines.append(f"{name} → {path}: {found.plan}")
            if found.refusal is not None:
                lines.append(f"refused: {found.refusal.message}")
            plans.append(found)
    forwards = sum(found.plan.forwards for found in plans)
    seconds = plans[0].window_seconds
    pace = "" if seconds is None else f", about {forwards * seconds:.0f} s"
    return [*lines, f"{count(len(plans), 'scene')}, {count(forwards, 'window')}{pace}"]


def _names(
    scenes: AnyPath | Sequence[AnyPath], output: AnyPath, options: PredictOptions
) -> tuple[Path, list[str], list[Path]]:
    """The pattern of the outputs, the scenes, and the output of each."""
    pattern = output_pattern(output)
    if pattern is None:
        raise OutputError(f"output {output} is one file for several scenes", hint=f"name a folder: -o {output}/")
    check_kind(pattern, options)
    names = scene_names(scenes)
    return pattern, names, name_outputs(pattern, names)


def _look(
    session: Session, names: Sequence[str], outputs: Sequence[Path]
) -> tuple[list[_Item], list[tuple[str, GeosegError]]]:
    """Scenes that can be opened, and why the others cannot."""

    def look(name: str, output: Path) -> _Item | SceneError:
        try:
            with session.source(name).open() as scene:
                return _Item(name, output, scene.grid.height * scene.grid.width, _made_from(session, scene, output))
        except SceneError as error:
            return error

    with ThreadPoolExecutor(_OPENING_THREADS, thread_name_prefix="geoseg-look") as threads:
        found = list(threads.map(look, names, outputs))
    failed: list[tuple[str, GeosegError]] = [
        (name, error) for name, error in zip(names, found, strict=True) if isinstance(error, SceneError)
    ]
    return [item for item in found if isinstance(item, _Item)], failed


def _made_from(session: Session, scene: Raster, output: Path) -> str:
    """A digest of all that an output depends on, but for the machine that makes it."""
    predictor, plan = session.predictor(output), session.plan(scene, session.predictor(output), output)
    options = replace(session.options, layers=session.layers(output))
    facts = fingerprint(session.model, scene, plan, options, precision=predictor.precision)
    facts["the backend"] = options.network.backend
    if not is_map(output):
        facts["the polygon rules"] = str(options.rules)
    return short_digest(json.dumps(facts, sort_keys=True).encode())


def _predict(session: Session, item: _Item, *, overwrite: bool, bar: Bar) -> PredictReport:
    """Map a scene; a bug of ours becomes a `GeosegError` too, and ends this scene only."""
    try:
        return predict_in(session, item.scene, item.output, overwrite=overwrite, progress=bar)
    except GeosegError:
        raise
    except Exception as error:
        log.exception("scene %s", item.scene)
        raise GeosegError(f"{item.scene}: {type(error).__name__}: {in_one_line(error)}") from error


def _check_free(items: Sequence[_Item]) -> None:
    taken = [item.output for item in items if item.output.exists() and not was_publishing(item.output)]
    if taken:
        more = f", and {len(taken) - 1} more," if len(taken) > 1 else ""
        raise OutputError(
            f"output {taken[0]}{more} exists and was not made from the same scene, model and options",
            hint="add --overwrite, or choose another folder with -o",
        )


def _done(number: int, items: Sequence[_Item]) -> str:
    return f"{number} of {count(len(items), 'scene')} done"


class _Journal:
    """What the outputs of a folder were made from; outputs changed since are not counted."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / JOURNAL
        self._found = read_journal(self._path) or {}

    def has(self, item: _Item) -> bool:
        """Whether the output of an item exists as it would be made."""
        with suppress(OSError):
            return self._found.get(item.output.name) == _entry(item)
        return False

    def add(self, item: _Item) -> None:
        """Record that an output is finished."""
        self._found = {**(read_journal(self._path) or {}), item.output.name: _entry(item)}
        with atomic_output(self._path) as scratch, writing(self._path):
            scratch.write_text(json.dumps(self._found, indent=1), encoding="utf-8")


def _entry(item: _Item) -> dict[str, Any]:
    status = item.output.stat()
    return {"made_from": item.made_from, "bytes": status.st_size, "modified_ns": status.st_mtime_ns}
