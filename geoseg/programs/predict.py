"""Scenes and a model to a class map, or straight on to polygons: the program behind ``geoseg predict``."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self, TypeAlias

from tqdm import tqdm

from geoseg.class_map import SCENE_TAG, layer_path
from geoseg.class_map.writing import LAYERS, MapFileWriter
from geoseg.classes import ClassTable
from geoseg.contract import Contract
from geoseg.errors import ConfigError, GeosegError, OutputError
from geoseg.export import EXPORTERS, check_format
from geoseg.files import check_output
from geoseg.network.stored_model import StoredModel, open_model
from geoseg.paths import input_path, scene_names
from geoseg.polygons import PolygonRules
from geoseg.prediction.arrivals import Arrivals
from geoseg.prediction.bands import BandFacts, Layers
from geoseg.prediction.executors import Executor, find_executor
from geoseg.prediction.imagery import check_scene, doubts, low_confidence, model_nodata
from geoseg.prediction.parts import Parts, parts_folder, remove_scratch, was_publishing
from geoseg.prediction.predictor import Predictor, WindowPixels
from geoseg.prediction.report import PredictReport, seam_text
from geoseg.prediction.room import check_room
from geoseg.prediction.stages import Stages
from geoseg.prediction.tasks import Job, Source
from geoseg.programs.early import RASTER_SUFFIXES
from geoseg.programs.rehearsal import Part, rehearsing, stitching, vectorizing
from geoseg.programs.vectorize import DEFAULT_RULES, VectorReport, check_rules, write_vectors
from geoseg.scene import Raster
from geoseg.tiling.plan import IN_PROCESS, Plan, Taper
from geoseg.version import __version__
from geoseg.windows import Window
from geoseg.words import count

log = logging.getLogger(__name__)

TIMED_WINDOWS = 3

AnyPath = str | os.PathLike[str]
Bar: TypeAlias = "tqdm[Any]"


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictOptions:
    """How to predict; see `predict` for the words."""

    size: int | None = None
    overlap: int | None = None
    batch_size: int | None = None
    blend: str | Taper = "sine"
    tta: str = "none"
    device: str = "auto"
    backend: str = "auto"
    precision: str = "auto"
    bands: Sequence[int] | None = None
    nodata: float | None = None
    alpha: bool = False
    crs: str | None = None
    aoi: AnyPath | None = None
    gsd: str | float | None = None
    ignore_gsd: bool = False
    confidence: bool = False
    probabilities: bool = False
    disagreement: bool = False
    rules: PolygonRules = DEFAULT_RULES
    executor: str = IN_PROCESS
    address: str | None = None
    readers: int | None = None
    band_rows: int | None = None
    strip_cols: int | None = None

    @property
    def layers(self) -> Layers:
        """What is wanted beside the classes."""
        return Layers(self.confidence, self.probabilities, self.disagreement)


def predict(
    scenes: AnyPath | Sequence[AnyPath],
    model: AnyPath,
    output: AnyPath,
    *,
    size: int | None = None,
    overlap: int | None = None,
    batch_size: int | None = None,
    blend: str | Taper = "sine",
    tta: str = "none",
    device: str = "auto",
    backend: str = "auto",
    precision: str = "auto",
    bands: Sequence[int] | None = None,
    nodata: float | None = None,
    alpha: bool = False,
    crs: str | None = None,
    aoi: AnyPath | None = None,
    gsd: str | float | None = None,
    ignore_gsd: bool = False,
    confidence: bool = False,
    probabilities: bool = False,
    disagreement: bool = False,
    rules: PolygonRules = DEFAULT_RULES,
    executor: str = IN_PROCESS,
    address: str | None = None,
    readers: int | None = None,
    band_rows: int | None = None,
    strip_cols: int | None = None,
    overwrite: bool = False,
    restart: bool = False,
    progress: bool = False,
) -> PredictReport:
    """Map scenes with a model.

    Everything that can be wrong is checked before the first window; nothing is found under the output's name before
    it is finished. Interrupted in whatever way, the same call goes on where it stopped, and the output has the same
    bytes as if nothing had happened.

    Args:
        scenes: A raster, or several that are read as one mosaic; of a folder the rasters in it.
        model: Model folder, or the name of a shipped model.
        output: ``.tif`` for a class map; ``.gpkg`` or another suffix of `geoseg.export.EXPORTERS` for polygons.
        size: Window side, px; None takes the model's.
        overlap: Strip shared by neighbouring windows, px; None takes the model's, or a quarter of ``size``.
        batch_size: Windows at once; None takes one per processor on a CPU, 16 on a GPU. It changes nothing but speed
            and memory on a CPU, and rounding on a GPU.
        blend: How overlapping windows are weighted: "sine", "linear", "flat", "crop", or a function from a window's
            length and overlap, in logits, to its weights along one axis.
        tta: Test-time augmentation: "none", "flips", "d4", "scales" or "scales+flips".
        device: "auto", "cpu", "cuda" or "cuda:N".
        backend: What runs the network: "openvino", "torch", "compile", or "auto": OpenVINO on a CPU, torch.compile on a
            GPU.
        precision: "float32", "bfloat16", or "auto": on a CPU bfloat16 where it is known to cost this model next to
            nothing, on a GPU bfloat16.
        bands: 1-based bands of the scene for the model's bands; None takes all.
        nodata: Value that means nothing, over the file's own.
        alpha: Take the alpha band as validity.
        crs: CRS of scenes that have a transform but no CRS.
        aoi: Vector file; what lies outside its polygons is not mapped.
        gsd: Read the scene resampled to pixels of so many metres, or to the "model"'s.
        ignore_gsd: Predict though the ground sample distance is not the model's.
        confidence: Write ``OUT_confidence.tif`` beside the map: the probability of the class.
        probabilities: Write ``OUT_probabilities.tif``: of every class.
        disagreement: Write ``OUT_disagreement.tif``: where overlapping windows saw different classes.
        rules: What becomes of small regions and of borders, where the output is a vector file.
        executor: Where the work is done: "in-process", or on a "ray" cluster.
        address: Ray cluster, as host:port; None takes that of the variable RAY_ADDRESS, or all of this machine.
        readers: Threads that decode the scene; None takes one on a CPU, up to eight beside a GPU.
        band_rows: Height of the parts that are kept when the run is interrupted, px; a multiple of 512.
        strip_cols: Width of the strips that the scene is cut into, px; a multiple of 512. None cuts only where the
            memory demands it.
        overwrite: Replace what is there.
        restart: Discard what an interrupted run has finished.
        progress: Draw a progress bar on standard error.

    Raises:
        OutputError: Unknown suffix, the output exists, its folder cannot be written, or the disk is full.
        ModelError: No such model, or a broken one.
        SceneError: A scene that cannot be read, or breaks the model's imagery contract.
        ConfigError: A window size, overlap, blend, augmentation or tolerance that cannot be meant.
        DeviceError: A device that is not there, or has no memory for a single window.
        KeyboardInterrupt: Ctrl-C; its text says what is kept.
    """
    options = PredictOptions(
        size=size,
        overlap=overlap,
        batch_size=batch_size,
        blend=blend,
        tta=tta,
        device=device,
        backend=backend,
        precision=precision,
        bands=bands,
        nodata=nodata,
        alpha=alpha,
        crs=crs,
        aoi=aoi,
        gsd=gsd,
        ignore_gsd=ignore_gsd,
        confidence=confidence,
        probabilities=probabilities,
        disagreement=disagreement,
        rules=rules,
        executor=executor,
        address=address,
        readers=readers,
        band_rows=band_rows,
        strip_cols=strip_cols,
    )
    return run_prediction(scenes, model, output, options, overwrite=overwrite, restart=restart, progress=progress)


def run_prediction(
    scenes: AnyPath | Sequence[AnyPath],
    model: AnyPath,
    output: AnyPath,
    options: PredictOptions,
    *,
    overwrite: bool = False,
    restart: bool = False,
    progress: bool = False,
) -> PredictReport:
    """`predict` with its options as one value."""
    with Session(model, options) as session:
        return session.predict(scenes, output, overwrite=overwrite, restart=restart, progress=progress)


class Session:
    """A model and where it runs, for one prediction or for many: opened, connected and loaded once.

    Args:
        model: Model folder, or the name of a shipped model.
        options: How to predict.

    Raises:
        ConfigError: No such executor.
        ModelError: No such model, or a broken one.
    """

    def __init__(self, model: AnyPath, options: PredictOptions) -> None:
        self.model, self.options = os.fspath(model), options
        self._connect = find_executor(options.executor)
        self.stored = open_model(model)
        self._predictors: dict[str, Predictor] = {}
        self._open = ExitStack()
        self._rehearsed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._open.close()

    @cached_property
    def executor(self) -> Executor:
        """Where the work is done."""
        return self._open.enter_context(self._connect(self.options.device, self.options.address))

    def predictor(self, precision: str) -> Predictor:
        """The model in a precision, or "auto"."""
        options = self.options
        made = Predictor(
            self.stored,
            self.executor.device,
            tta=options.tta,
            batched=self.executor.batched,
            backend=options.backend,
            precision=precision,
        )
        return self._predictors.setdefault(made.precision, made)  # the first has the network

    def source(self, scenes: AnyPath | Sequence[AnyPath]) -> Source:
        """What is read of scenes, and how."""
        options, contract = self.options, self.stored.contract
        return Source(
            tuple(scene_names([scenes] if isinstance(scenes, str | os.PathLike) else scenes)),
            bands=None if options.bands is None else tuple(options.bands),
            nodata=model_nodata(contract, options.nodata),
            alpha=options.alpha,
            crs=options.crs,
            aoi=None if options.aoi is None else str(input_path(options.aoi)),
            gsd_m=_gsd_m(options.gsd, contract),
        )

    def predict(
        self,
        scenes: AnyPath | Sequence[AnyPath],
        output: AnyPath,
        *,
        overwrite: bool = False,
        restart: bool = False,
        progress: bool | Bar = False,
    ) -> PredictReport:
        """Map scenes; see `predict`. ``progress`` may be a bar that counts the pixels of several predictions."""
        with _prepared(self, scenes, Path(output), overwrite=overwrite) as ready:
            parts = ready.job.parts
            check_room(ready.job.plan, ready.scene, ready.output.parent, there_bytes=parts.size_bytes)
            with (
                rehearsing(*self._rehearsals(ready)),
                parts.opened(ready.fingerprint(), restart=restart),
                _kept(ready),
            ):
                for name in ("classes", *LAYERS[1:]):
                    remove_scratch(layer_path(ready.output, name))
                return _run(ready, progress)

    def _rehearsals(self, ready: _Ready) -> list[Part]:
        """What this process does with logits, once for all predictions; the network is read or converted meanwhile."""
        options, parts = self.options, []
        if not self._rehearsed and ready.predictor.device == "cpu" and options.executor == IN_PROCESS:
            parts += stitching(confidence=options.confidence, probabilities=options.probabilities)
        if not self._rehearsed and ready.output.suffix.lower() not in RASTER_SUFFIXES:
            parts += vectorizing(options.rules, ready.output.suffix)
        self._rehearsed = True
        return parts

    def dry_run(
        self, scenes: AnyPath | Sequence[AnyPath], output: AnyPath, *, overwrite: bool = False, timed: bool = True
    ) -> DryRun:
        """The plan of a prediction; see `dry_run`. Nothing is computed unless ``timed``."""
        with _prepared(self, scenes, Path(output), overwrite=overwrite) as ready:
            plan, folder = ready.job.plan, ready.output.parent
            free = shutil.disk_usage(folder).free
            try:
                check_room(plan, ready.scene, folder, there_bytes=ready.job.parts.size_bytes)
            except GeosegError as error:
                return DryRun(plan, None, free, error)
            return DryRun(plan, _time_windows(ready) if timed and plan.executor == IN_PROCESS else None, free)


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a prediction would do.

    Attributes:
        plan: Windows, bands, memory, disk.
        window_seconds: Time per window on this machine, several at once as in the run; None where the windows that
            were tried hold nothing to be mapped, or where other machines do the work.
        free_bytes: Free space in the output's folder.
        refusal: Why it would not be begun, or None.
    """

    plan: Plan
    window_seconds: float | None
    free_bytes: int
    refusal: GeosegError | None = None

    @property
    def seconds(self) -> float | None:
        """Time of the whole run, were the scene valid everywhere."""
        return None if self.window_seconds is None else self.window_seconds * self.plan.forwards

    def lines(self) -> list[str]:
        """The plan for people."""
        free = f"free       {self.free_bytes / 2**20:.0f} MiB in the output's folder"
        if self.refusal is not None:
            return [*self.plan.lines(), free, f"refused    {self.refusal.message}; {self.refusal.hint}"]
        if self.seconds is None:
            here = self.plan.executor == IN_PROCESS
            why = "the windows tried hold nothing to map" if here else "it depends on the cluster"
            return [*self.plan.lines(), free, f"time       unknown: {why}"]
        pace = self.plan.height * self.plan.width / 1e6 / self.seconds
        return [
            *self.plan.lines(),
            free,
            f"time       about {_duration(self.seconds)} "
            f"({1000 * (self.window_seconds or 0):.0f} ms a window, {pace:.2f} Mpx/s)",
        ]


def dry_run(
    scenes: AnyPath | Sequence[AnyPath],
    model: AnyPath,
    output: AnyPath,
    options: PredictOptions,
    *,
    overwrite: bool = False,
) -> DryRun:
    """The plan of a prediction and how long it will take, measured on three windows of the scene; writes nothing.

    Raises:
        GeosegError: As `predict` does before its first window.
    """
    with Session(model, options) as session:
        return session.dry_run(scenes, output, overwrite=overwrite)


@dataclass(frozen=True, slots=True)
class _Ready:
    """Everything checked and open.

    Attributes:
        doubts: What speaks against the scene.
        hardware: Of whoever does the work, once `fingerprint` has asked.
    """

    output: Path
    options: PredictOptions
    trained: StoredModel
    predictor: Predictor
    scene: Raster
    executor: Executor
    job: Job
    doubts: tuple[str, ...]
    hardware: dict[str, str] = field(default_factory=dict)

    @property
    def classes(self) -> ClassTable:
        return self.predictor.classes

    def fingerprint(self) -> dict[str, Any]:
        """What the parts depend on, under names that a user understands."""
        plan, predictor = self.job.plan, self.predictor
        contract = self.trained.contract.model_copy(update={"precision": None})  # what it chose stands below
        tapers = b"".join(taper.tobytes() for taper in plan.tapers)
        self.hardware.update(self.executor.hardware(self.job, predictor))
        device: dict[str, Any] = {**self.hardware}
        network = device.pop("network")
        if predictor.batched:  # kernels depend on the batch there
            device["batch"] = plan.batch_size
        return {
            "the scene": self.scene.fingerprint(),
            "the model": [self.trained.digest, _digest(contract.model_dump_json().encode())],
            "the window size": [plan.window_height, plan.window_width],
            "the overlap": plan.overlap,
            "the blend": _digest(tapers),
            "the test-time augmentation": self.job.tta,
            "the layers": [name for name in LAYERS[1:] if getattr(self.job.parts.layers, name)],
            "the division into bands": [plan.band_rows, plan.strip_cols],
            "the device": device,
            "the backend": network,
            "the precision": predictor.precision,
            "geoseg": __version__,
            "torch": version("torch"),
        }

    def tags(self) -> dict[str, str]:
        """Provenance of the map: what made it."""
        plan = self.job.plan
        return {
            "GEOSEG_VERSION": __version__,
            "GEOSEG_MODEL": self.trained.contract.name,
            "GEOSEG_MODEL_SHA256": self.trained.digest,
            "GEOSEG_WINDOW": f"{plan.window_height}x{plan.window_width}",
            "GEOSEG_OVERLAP": str(plan.overlap),
            "GEOSEG_BLEND": plan.blend if isinstance(plan.blend, str) else plan.blend.__name__,
            "GEOSEG_TTA": self.job.tta,
            "GEOSEG_NETWORK": self.hardware["network"],
            SCENE_TAG: Path(self.job.source.scenes[0]).name,
        }


@contextmanager
def _prepared(
    session: Session, scenes: AnyPath | Sequence[AnyPath], path: Path, *, overwrite: bool
) -> Iterator[_Ready]:
    """Check all that can be wrong; the scene is open inside."""
    options, contract = session.options, session.stored.contract
    source = session.source(scenes)
    check_kind(path, options)
    suffix = path.suffix.lower()
    layers = () if suffix not in RASTER_SUFFIXES else tuple(n for n in LAYERS[1:] if getattr(options, n))
    for file in (path, *(layer_path(path, layer) for layer in layers)):
        check_output(file, overwrite=overwrite or was_publishing(path), inputs=source.scenes, styled=True)
    with source.open() as scene:
        executor = session.executor
        check_scene(contract, scene, ignore_gsd=options.ignore_gsd)
        parts = Parts(parts_folder(path).absolute(), options.layers, len(contract.classes))
        precision = options.precision
        if precision == "auto":  # an interrupted run continues in what it began with, whatever was recorded since
            precision = parts.journal().get("the precision", precision)
        predictor = session.predictor(precision)
        plan = predictor.plan(
            scene,
            size=options.size,
            overlap=options.overlap,
            batch_size=executor.batch_size if options.batch_size is None else options.batch_size,
            blend=options.blend,
            layer_bytes=options.layers.bytes(len(contract.classes)),
            band_rows=options.band_rows,
            strip_cols=options.strip_cols,
            executor=options.executor,
        )
        _ = plan.tapers  # a blend of the caller's own is checked here
        if suffix not in RASTER_SUFFIXES:
            check_format(path, scene.grid)
            check_rules(options.rules, scene.grid, contract.class_table, path=scene.path)
        if not scene.grid.is_metric:
            log.warning("%s %s", scene.path, scene.grid.place_note)
        against = doubts(contract, scene)
        for doubt in against:
            log.warning("%s", doubt)
        job = Job(
            source,
            session.model,
            options.tta,
            plan,
            parts,
            options.readers or executor.readers,
            options.backend,
            predictor.precision,
        )
        yield _Ready(path, options, session.stored, predictor, scene, executor, job, against)


def check_kind(output: Path, options: PredictOptions) -> None:
    """Refuse an output of a kind that cannot be written.

    Raises:
        OutputError: An unknown suffix.
        ConfigError: Polygons, and layers that only a raster has.
    """
    suffix = output.suffix.lower()
    if suffix not in (*RASTER_SUFFIXES, *EXPORTERS):
        known = ", ".join((".tif", *EXPORTERS))
        raise OutputError(f"output {output} has the unknown suffix {suffix or '(none)'}", hint=f"known: {known}")
    if suffix not in RASTER_SUFFIXES and (options.probabilities or options.disagreement):
        raise ConfigError("probabilities and disagreement are rasters", hint="write them beside a map: -o MAP.tif")


def _gsd_m(gsd: str | float | None, contract: Contract) -> float | None:
    if gsd != "model":
        try:
            return None if gsd is None else float(gsd)
        except ValueError:
            raise ConfigError(f"gsd {gsd!r} is no number of metres", hint="--gsd 0.5, or --gsd model") from None
    if contract.gsd_m is None:
        raise ConfigError(f"model {contract.name} was trained without a GSD", hint="give it in metres: --gsd 0.5")
    return contract.gsd_m


def _run(ready: _Ready, progress: bool | Bar) -> PredictReport:
    """Do what is left of the tasks; the output grows in a thread as their parts get ready in order."""
    start = time.perf_counter()
    job, grid = ready.job, ready.scene.grid
    tasks = job.plan.tasks
    left = [task for task in tasks if not job.parts.has(task)]
    if len(left) < len(tasks):
        log.info("%d of %s are there from an earlier run", len(tasks) - len(left), count(len(tasks), "part"))
    stages = Stages()
    arrivals = Arrivals(job, grid)
    total = grid.height * grid.width
    there = total - sum(task.window.height * task.window.width for task in left)
    own: AbstractContextManager[object] = nullcontext()
    if isinstance(progress, bool):
        own = bar = progress_bar(total, there, shown=progress)
    else:
        bar = progress
        bar.update(there)

    def advance(pixels: int) -> None:
        bar.update(pixels)

    with own, ThreadPoolExecutor(1, "geoseg-output") as thread:
        writing = arrivals.taker = thread.submit(_write_output, ready, arrivals, stages)
        with arrivals:
            ready.executor.run(
                job,
                left,
                predictor=ready.predictor,
                scene=ready.scene,
                stages=stages,
                on_rows=advance,
                on_part=arrivals.announce,
            )
        facts, vectors = writing.result()
    unsure = low_confidence(facts.mean_confidence, len(ready.classes))
    if unsure is not None:
        log.warning("%s", unsure)
    notes = () if vectors is None else vectors.notes
    return PredictReport(
        path=ready.output,
        grid=grid,
        plan=job.plan,
        skipped=facts.skipped,
        seams=facts.seams,
        areas_m2=arrivals.areas_m2,
        classes=ready.classes,
        seconds=time.perf_counter() - start,
        stages=stages.seconds,
        resumed=len(tasks) - len(left),
        polygons=None if vectors is None else vectors.polygons,
        mean_confidence=facts.mean_confidence,
        notes=(*notes, *ready.doubts),
    )


def progress_bar(total: int, initial: int = 0, *, shown: bool) -> Bar:
    """A bar on standard error that counts pixels."""
    return tqdm(total=total, initial=initial, unit="px", unit_scale=True, desc="predict", disable=not shown)


def _write_output(ready: _Ready, arrivals: Arrivals, stages: Stages) -> tuple[BandFacts, VectorReport | None]:
    """Write the output from rows as they arrive; facts of the map, and what was written where it is a vector file."""
    job, grid, source = ready.job, ready.scene.grid, Path(ready.job.source.scenes[0]).name

    def facts() -> BandFacts:
        return sum((job.parts.facts(task) for task in job.plan.tasks), BandFacts())

    if ready.output.suffix.lower() not in RASTER_SUFFIXES:
        report = write_vectors(
            arrivals.rows(), grid, ready.classes, ready.output, rules=ready.options.rules, source=source
        )
        return facts(), report
    layers = ["classes", *(name for name in LAYERS[1:] if getattr(job.parts.layers, name))]
    with MapFileWriter(ready.output, grid, ready.classes, layers=layers, tags=ready.tags()) as writer:
        for rows in arrivals.rows():
            with stages.time("output"):
                writer.write(rows)
        found = facts()
        writer.set_tags({"GEOSEG_SEAMS": seam_text(found.seams)})
    return found, None


@contextmanager
def _kept(ready: _Ready) -> Iterator[None]:
    """Add to what stops the run how much of it is kept."""
    parts, tasks = ready.job.parts, ready.job.plan.tasks
    try:
        yield
    except (GeosegError, KeyboardInterrupt) as error:
        done = sum(parts.has(task) for task in tasks)
        text = f"{done} of {count(len(tasks), 'band' if ready.job.plan.strips == 1 else 'part')} are kept"
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(
                f"interrupted; {text}, and the same command continues" if done else "interrupted"
            ) from error
        if done:
            error.message += f"; {text}"
            error.hint = f"{error.hint + '; ' if error.hint else ''}then the same command continues"
        raise


def _time_windows(ready: _Ready) -> float | None:
    """Seconds a window takes from file to logits, as many side by side as in the run: three places of the scene."""
    plan, scene = ready.job.plan, ready.scene
    places = [(plan.rows[i * (len(plan.rows) - 1) // 2], plan.cols[i * (len(plan.cols) - 1) // 2]) for i in range(3)]
    start = time.perf_counter()
    items = []
    for row, col in dict.fromkeys(places):
        window = Window(row, col, plan.window_height, plan.window_width)
        items.append(WindowPixels(window, *scene.read(window, reflect_valid=True, clip=False)))
    reading = (time.perf_counter() - start) / len(items)
    if not any(item.valid.any() for item in items):
        return None

    def timed(rounds: int) -> float:
        work = [items[i % len(items)] for i in range(rounds * plan.batch_size)]
        start = time.perf_counter()
        for _ in ready.predictor.run(work, batch_size=plan.batch_size):
            pass
        return (time.perf_counter() - start) / len(work)

    timed(1)  # the first forward chooses kernels
    return max(statistics.median(timed(1) for _ in range(TIMED_WINDOWS)), reading / ready.job.readers)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
