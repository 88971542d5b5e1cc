"""A model opened once for one prediction or many, and each prediction checked before its first window."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from operator import index
from pathlib import Path
from typing import Any, Self

from geoseg.class_map.reading import SCENE_TAG, layer_path
from geoseg.contract import Contract
from geoseg.errors import ConfigError, OutputError, SceneError
from geoseg.export import check_format
from geoseg.files import check_output
from geoseg.network.stored_model import StoredModel, open_model
from geoseg.options import AnyPath, Layers, PredictOptions
from geoseg.paths import input_path, is_map, scene_names
from geoseg.prediction.executors import Executor, find_executor
from geoseg.prediction.imagery import check_scene, doubts, model_nodata
from geoseg.prediction.parts import Parts, parts_folder, was_publishing
from geoseg.prediction.predictor import Predictor
from geoseg.prediction.tasks import Job, Source
from geoseg.programs.early import check_kind
from geoseg.programs.vectorize import check_rules
from geoseg.runtime.machine import memory_bytes
from geoseg.scene import Raster
from geoseg.tiling.plan import IN_PROCESS, Plan
from geoseg.version import __version__
from geoseg.words import count

log = logging.getLogger(__name__)

LARGE_PX = 1 << 30
LEAST_COVERED = 1e-3
"""Scenes that cover less than this share of a mosaic of more than `LARGE_PX` lie far apart: a mistake."""

MOST_COMPRESSED, MOST_COMPRESSED_NODATA = 200, 2000
"""No class map shrinks by more than these factors: inside scenes, and in nodata."""

EACH = "map each scene on its own: -o FOLDER/"


class Session:
    """A model and where it runs: opened, connected and loaded once; arguments as of `geoseg.predict`."""

    def __init__(self, model: AnyPath, options: PredictOptions) -> None:
        self.name, self.options = os.fspath(model), options
        self._connect = find_executor(options.running.executor)
        self.model = open_model(model)
        self._predictors: dict[str, Predictor] = {}
        self._open = ExitStack()
        self.rehearsed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._open.close()

    @cached_property
    def executor(self) -> Executor:
        """Where the work is done; a `DeviceError` if there is no such device."""
        return self._open.enter_context(self._connect(self.options.network.device, self.options.running.address))

    def predictor(self, output: Path) -> Predictor:
        """The model in the precision asked for; with "auto", in that of an interrupted run of the same output."""
        network = self.options.network
        if network.precision == "auto":
            network = replace(network, precision=self.parts(output).journal().get("the precision", "auto"))
        executor, tta = self.executor, self.options.tiling.tta
        made = Predictor(self.model, executor.device, network, tta=tta, batched=executor.batched)
        return self._predictors.setdefault(made.precision, made)  # the first has the network

    def parts(self, output: Path) -> Parts:
        """Where the finished parts of an output are kept until it is whole."""
        return Parts(parts_folder(output).absolute(), self.layers(output), len(self.model.contract.classes))

    def layers(self, output: Path) -> Layers:
        """What is made beside the classes for an output: with the contact if it is asked for or may be needed.

        A `ConfigError` if the contact is asked for and the model does not know it.
        """
        layers, contract = self.options.layers, self.model.contract
        able = any(entry.separate for entry in contract.classes)
        if layers.contact and not able:
            raise ConfigError(
                f"model {contract.name} does not know where objects touch, so it has no contact to write",
                hint="leave out --contact, or train with separate: true in the entry of a class",
            )
        wanted = (layers.contact is not False) if is_map(output) else bool(self.options.rules.separate)
        return replace(layers, contact=able and wanted)

    def source(self, scenes: AnyPath | Sequence[AnyPath]) -> Source:
        """What is read of scenes, resolved for the model."""
        imagery, contract = self.options.imagery, self.model.contract
        resolved = replace(
            imagery,
            bands=None if imagery.bands is None else tuple(map(index, imagery.bands)),
            nodata=model_nodata(contract, imagery.nodata),
            aoi=None if imagery.aoi is None else str(input_path(imagery.aoi)),
            gsd=_gsd_m(imagery.gsd, contract),
        )
        return Source(tuple(scene_names(scenes)), resolved)

    def plan(self, scene: Raster, predictor: Predictor, output: Path) -> Plan:
        """Windows, parts and memory for a scene."""
        given = self.options.network.batch_size
        return predictor.plan(
            scene,
            self.options.tiling,
            batch_size=self.executor.batch_size if given is None else given,
            layers=self.layers(output),
            executor=self.options.running.executor,
        )

    @contextmanager
    def prepared(self, scenes: AnyPath | Sequence[AnyPath], output: Path, *, overwrite: bool) -> Iterator[Prepared]:
        """Check everything that can be wrong with a prediction; its scene is open inside."""
        options, contract = self.options, self.model.contract
        source = self.source(scenes)
        check_kind(output, options)
        layers = self.layers(output).names if is_map(output) else ()
        for file in (output, *(layer_path(output, layer) for layer in layers)):
            check_output(file, overwrite=overwrite or was_publishing(output), inputs=source.scenes, styled=True)
        with source.open() as scene:
            executor = self.executor
            check_scene(contract, scene, ignore_gsd=options.imagery.ignore_gsd)
            predictor = self.predictor(output)
            plan = self.plan(scene, predictor, output)
            _ = plan.tapers  # checks a blend of the caller's own
            if not is_map(output):
                check_format(output, scene.grid)
                check_rules(options.rules, scene.grid, contract.class_table, path=scene.path)
            if not scene.grid.is_metric:
                log.warning("%s %s", scene.path, scene.grid.place_note)
            against = doubts(contract, scene)
            for doubt in against:
                log.warning("%s", doubt)
            job = Job(
                source,
                self.name,
                replace(options.network, precision=predictor.precision),
                options.tiling.tta,
                plan,
                replace(self.parts(output), grid=scene.grid),
                options.running.readers or executor.readers,
            )
            yield Prepared(self, output, predictor, scene, job, against)


@dataclass(frozen=True)
class Prepared:
    """A prediction whose input is checked and open."""

    session: Session
    output: Path
    predictor: Predictor
    scene: Raster
    job: Job
    doubts: tuple[str, ...]  # why the scene may not suit the model

    def check_room(self) -> None:
        """Refuse a prediction that cannot be finished here; parts of an earlier run need no more room.

        A `SceneError` for scenes that cover next to nothing of their mosaic, an `OutputError` for a disk too small even
        if the output compresses well, a `ConfigError` for more memory than the machine has.
        """
        plan, scene, folder = self.job.plan, self.scene, self.output.parent
        several = len(scene.paths) > 1
        if scene.covered_share < LEAST_COVERED and plan.height * plan.width > LARGE_PX:
            number = count(len(scene.paths), "scene")
            raise SceneError(
                f"the {number} cover {100 * scene.covered_share:.2g} % of the mosaic, {plan.height} × {plan.width} px",
                hint=EACH,
            )
        share = scene.covered_share / MOST_COMPRESSED + 1 / MOST_COMPRESSED_NODATA
        least, free = plan.disk_bytes * share - self.job.parts.size_bytes, shutil.disk_usage(folder).free
        if least > free:
            raise OutputError(
                f"a map of {plan.height} × {plan.width} px needs at least {_size(least)} of disk, "
                f"{folder} has {_size(free)} free",
                hint=EACH if several else "choose another folder with -o, or cut the scene with gdal_translate -srcwin",
            )
        memory = memory_bytes()
        if plan.executor == IN_PROCESS and memory is not None and plan.memory_bytes > memory:
            raise ConfigError(
                f"{plan.width} columns need {_size(plan.memory_bytes)} of memory, this machine has {_size(memory)}",
                hint=EACH if several else "cut the scene into narrower ones with gdal_translate -srcwin",
            )

    @cached_property
    def hardware(self) -> dict[str, str]:
        """What runs the network, and where; see `Executor.hardware`."""
        return self.session.executor.hardware(self.job, self.predictor)

    def fingerprint(self) -> dict[str, Any]:
        """What the parts depend on: the map, how it is divided, and what the last bits depend on."""
        plan = self.job.plan
        device: dict[str, Any] = {**self.hardware}
        network = device.pop("network")
        if self.predictor.batched:  # kernels depend on the batch there
            device["batch"] = plan.batch_size
        session = self.session
        options = replace(session.options, layers=self.job.parts.layers)
        return {
            **fingerprint(session.model, self.scene, plan, options, precision=self.predictor.precision),
            "the division into bands": [plan.band_rows, plan.strip_cols],
            "the device": device,
            "the backend": network,
            "torch": version("torch"),
        }

    def tags(self) -> dict[str, str]:
        """Provenance of the map."""
        plan, model = self.job.plan, self.session.model
        return {
            "GEOSEG_VERSION": __version__,
            "GEOSEG_MODEL": model.contract.name,
            "GEOSEG_MODEL_SHA256": model.digest,
            "GEOSEG_WINDOW": f"{plan.window_height}x{plan.window_width}",
            "GEOSEG_OVERLAP": str(plan.overlap),
            "GEOSEG_BLEND": plan.blend if isinstance(plan.blend, str) else plan.blend.__name__,
            "GEOSEG_TTA": self.job.tta,
            "GEOSEG_NETWORK": self.hardware["network"],
            SCENE_TAG: Path(self.job.source.scenes[0]).name,
        }


def _size(number: float) -> str:
    return f"{number / 2**30:,.1f} GiB" if number >= 1 << 30 else f"{number / 2**20:,.1f} MiB"


def _gsd_m(gsd: str | float | None, contract: Contract) -> float | None:
    if gsd != "model":
        return None if gsd is None else float(gsd)
    if contract.gsd_m is None:
        raise ConfigError(f"model {contract.name} was trained without a GSD", hint="give it in metres: --gsd 0.5")
    return contract.gsd_m


def fingerprint(
    model: StoredModel, scene: Raster, plan: Plan, options: PredictOptions, *, precision: str
) -> dict[str, Any]:
    """What a class map depends on wherever it is made, under names that a user understands.

    The model's record of what bfloat16 costs is left out: what counts is the ``precision`` chosen by it.
    """
    contract = model.contract.model_copy(update={"precision": None})
    return {
        "the scene": {**scene.fingerprint(), **({"alpha": True} if options.imagery.alpha else {})},
        "the model": [model.digest, short_digest(contract.model_dump_json().encode())],
        "the window size": [plan.window_height, plan.window_width],
        "the overlap": plan.overlap,
        "the blend": short_digest(b"".join(taper.tobytes() for taper in plan.tapers)),
        "the test-time augmentation": options.tiling.tta,
        "the layers": list(options.layers.names),
        "the precision": precision,
        "geoseg": __version__,
    }


def short_digest(data: bytes) -> str:
    """The first 16 hexadecimal digits of the SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]
