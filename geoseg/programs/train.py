"""Train a network on labelled scenes with Lightning, and save the best one as a model folder.

What a run folder holds is in docs/howto/training.md; the parts of a run are in `geoseg.training`.
"""

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from geoseg.config import TrainConfig, parse_config, save_config
from geoseg.contract import Band, Contract, find_model, load_contract
from geoseg.data.checks.dataset import check_data
from geoseg.data.histogram import class_histograms, suggested_weights
from geoseg.data.labelled import LabelledScene, open_both, write_split
from geoseg.data.problems import problem_lines, refuse
from geoseg.data.statistics import band_statistics
from geoseg.data.windows import CoveringWindows, RandomWindows
from geoseg.network.model_folder import build_network, save_model
from geoseg.network.stored_model import open_model
from geoseg.options import TrainOptions, from_keywords, signature_with
from geoseg.prediction.precision import record_precision
from geoseg.programs.early import check_new_run
from geoseg.runtime.machine import resolve_device
from geoseg.training.callbacks import Checkpoints, MovingAverage, NormsOfFirst, interruptible
from geoseg.training.display import MetricsTable, ProgressLine, SamplePictures
from geoseg.training.failures import explained
from geoseg.training.loaders import make_loader, readers_ended
from geoseg.training.preview import PROBE_PX, Preview, describe_run
from geoseg.training.processes import Team, assignment, count_devices, find_place, joined, launch
from geoseg.training.run_folder import (
    CONFIG,
    Resumed,
    add_environment,
    find_checkpoint,
    load_best,
    make_run_folder,
    writing_into,
)
from geoseg.training.start import StartingScores, freeze, leaves_unused, start_from
from geoseg.training.task import SegmentationTask, parameter_groups, windows_per_step
from geoseg.version import __version__

log = logging.getLogger(__name__)

LOG_EVERY = 10

PART = (
    "import os, sys; from geoseg.programs.train import take_part; take_part(); "
    "sys.stdout.flush(); sys.stderr.flush(); os._exit(0)"
)
"""What each of several processes runs. Threads of gloo may outlive their group, and an interpreter that ends aborts."""


def train(config: TrainConfig, options: TrainOptions | None = None, **changes: Any) -> Path:
    """Run an experiment.

    With several devices, each has a process. These are started here, unless torchrun or SLURM's srun has started them,
    which then also set ``devices`` and ``nodes``. With several nodes each runs this function, with MASTER_ADDR,
    MASTER_PORT and NODE_RANK in the environment.

    Args:
        config: The experiment.
        options: All options as one value, which type checkers know.
        changes: Single options: the fields of `geoseg.options.TrainOptions`, as ``overwrite=True, device="cpu"``.

    Returns:
        The model folder of the best network by validation mIoU.

    Raises:
        OutputError: The run folder exists, or cannot be made, or the disk is full.
        ConfigError: Nothing to resume, a configuration other than the one to resume, an invalid model, or a loss that
            is no longer finite.
        DeviceError: No such device, or it is out of memory; a process was killed; in one of several processes,
            `PeerEnded` if another has failed.
        SceneError: A scene that cannot be read.
        LabelError: Labels that do not fit, with the list of all problems of the data.
        RunStopped: SIGTERM has ended the run after a checkpoint. It is a KeyboardInterrupt.
        TypeError: An unknown option.
    """
    options = from_keywords(TrainOptions, changes, caller="train", given=options)
    place = find_place()
    count = count_devices(options.device, options.devices)
    if place is None and count * options.nodes > 1:
        task = {"config": config.model_dump(mode="json"), "options": asdict(options), "command": sys.argv}
        launch(task, PART, devices=count, nodes=options.nodes)
        return config.output / "model"
    with joined(options.device, place) as team:
        return _run(config, team, options)


train.__signature__ = signature_with(train, TrainOptions)  # type: ignore[attr-defined]


def take_part() -> None:
    """Be one of the processes that `train` has started."""
    with assignment() as task:
        config = parse_config(task["config"], source="the run")
        options = TrainOptions(**task["options"])
        sys.argv = task["command"]
        with joined(options.device, find_place()) as team:
            _run(config, team, replace(options, progress=options.progress and team.is_first))


def check(config: TrainConfig, options: TrainOptions | None = None, **changes: Any) -> Preview:
    """Problems of an experiment's data, and the plan of its run; nothing is trained or written.

    Takes what `train` takes, and raises what it does, for everything but the data.
    """
    options = from_keywords(TrainOptions, changes, caller="check", given=options)
    network, _ = _build(config)
    problems = check_data(config)
    words = tuple(problem_lines(problems))
    if any(problem.severity == "error" for problem in problems):
        return Preview(words, is_fine=False)
    scenes, val_scenes = open_both(config)
    facts = describe_run(
        config,
        network,
        scenes,
        len(CoveringWindows(val_scenes, config)),
        device=torch.device(resolve_device(options.device)),
        devices=count_devices(options.device, options.devices) * options.nodes,
    )
    return Preview(words, is_fine=True, facts=facts)


def _run(config: TrainConfig, team: Team, options: TrainOptions) -> Path:
    run = config.output
    resumed: Resumed | None = None
    with team.same_fate():
        if options.resume:
            resumed = find_checkpoint(config, team.size)
        elif team.is_first:
            check_new_run(run, overwrite=options.overwrite)
        # Missing weights are reported before the data is read, which may take minutes.
        lightning.seed_everything(config.seed, verbose=False)
        network, frozen = _build(config)
    team.from_first(lambda: refuse(check_data(config)))
    with team.same_fate():
        scenes, val_scenes = open_both(config)
    contract = team.from_first(lambda: build_contract(config, scenes))
    weights = team.from_first(lambda: class_weights(config, scenes))
    with team.same_fate():
        start = resumed.step if resumed is not None else 0
        per_step = windows_per_step(config.train, team.size)
        # That of the whole run, also when resumed: Lightning counts earlier batches, and max_steps ends the run.
        length = config.train.iterations * per_step
        std = [band.std for band in contract.bands]
        windows = RandomWindows(scenes, config, length=length, start=start * per_step, std=std, as_bytes=True)
        val_windows = CoveringWindows(val_scenes, config, as_bytes=True)
        task = SegmentationTask(
            network,
            contract,
            config.train,
            class_weights=weights,
            seed=config.seed,
            frozen=frozen,
            place=lambda index: _named(windows, index),
        )
    with team.same_fate():
        if team.is_first:
            make_run_folder(run, resume=options.resume)
            with writing_into(run):
                save_config(config, run / CONFIG)
                add_environment(run, team, config.seed)
                if config.data.split is not None:
                    write_split(run / "split.gpkg", scenes, val_scenes)

    trains = resumed is None or not resumed.has_ended_early
    unused = team.size > 1 and leaves_unused(network, len(contract.bands), min(config.train.size, PROBE_PX))
    wants = team.size > 1 and config.train.sync_norm and any(isinstance(m, _BatchNorm) for m in network.modules())
    syncs = wants and team.device.type == "cuda"
    if syncs:
        convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]  # timm's knows its norms with activations
    elif wants and team.is_first:
        log.warning("batch norms are not synchronised on CPUs: each process normalises with its own windows")
    if config.train.compile:
        network.compile()
    iterations = start
    if trains:
        loaders = make_loader(windows, config, team), make_loader(val_windows, config, team)
        checkpoints = Checkpoints(run / "checkpoints", config.train, team)
        # In this order: statistics before they are averaged, pictures while the average stands in the network
        callbacks = [
            *([NormsOfFirst()] if team.size > 1 and not syncs else []),
            *([StartingScores(loaders[1])] if config.model.start_from is not None else []),
            *([SamplePictures(val_windows, config.class_table)] if team.is_first else []),
            *([MovingAverage(config.train.ema)] if config.train.ema is not None else []),
            LearningRateMonitor("step"),
            *([ProgressLine(config.train.iterations, checkpoints)] if options.progress else []),
            checkpoints,
        ]
        with (
            _quiet(),
            interruptible(run, checkpoints),
            explained(config.train),
            writing_into(run),
            readers_ended(*loaders),
        ):
            trainer = _trainer(config, team, callbacks, start=start, unused=unused)
            trainer.fit(task, *loaders, ckpt_path=resumed.path if resumed is not None else None, weights_only=True)
            iterations = trainer.global_step
    with team.same_fate():
        if team.is_first:
            trained = {**load_best(task, run), "iterations": iterations}
            contract = contract.model_copy(update={"training": {**contract.training, **trained}})
            with writing_into(run):
                save_model(run / "model", network, contract)
            if config.train.measure_precision:
                record_precision(open_model(run / "model"), val_scenes, data=config.name, progress=options.progress)
    return run / "model"


def class_weights(config: TrainConfig, scenes: Sequence[LabelledScene]) -> list[float] | None:
    """Weight of each class in the loss, as configured or as the training scenes suggest; None for none."""
    weights = config.train.class_weights
    if weights != "balanced":
        return None if weights is None else list(weights)
    total = np.sum([histogram.total for histogram in class_histograms(scenes, config)], axis=0)
    suggested = [float(weight) for weight in suggested_weights(total)]
    names = config.class_table.names
    log.info("class weights: %s", ", ".join(f"{n} {w:.3g}" for n, w in zip(names, suggested, strict=True)))
    return suggested


def build_contract(config: TrainConfig, scenes: Sequence[LabelledScene]) -> Contract:
    """The imagery contract of an experiment; statistics and GSD are measured on the scenes where not given."""
    imagery = config.imagery
    if imagery.mean is not None and imagery.std is not None:
        mean, std = list(imagery.mean), list(imagery.std)
    else:
        mean, std = band_statistics(scenes, imagery.effective_scale)
    gsds = [gsd for gsd in (s.grid.gsd_m() for s in scenes) if gsd is not None]
    gsd = imagery.gsd_m if imagery.gsd_m is not None else (round(float(np.median(gsds)), 4) if gsds else None)
    return Contract(
        name=config.name,
        bands=tuple(Band(name=n, mean=m, std=s) for n, m, s in zip(imagery.bands, mean, std, strict=True)),
        dtype=imagery.dtype,
        scale=imagery.effective_scale,
        nodata=imagery.nodata,
        gsd_m=gsd,
        classes=config.classes,
        window=config.window,
        training={
            "geoseg": __version__,
            "architecture": config.model.architecture,
            "encoder": config.model.encoder,
            "scenes": [Path(entry.scene).name for entry in config.data.entries("train")],
            "validation_scenes": [Path(entry.scene).name for entry in config.data.entries("val")],
            "recipe": config.train.model_dump(mode="json"),
            "seed": config.seed,
            **_start(config),
            **config.card,
        },
    )


def _start(config: TrainConfig) -> dict[str, Any]:
    """The model that training starts from, so that the record counts all iterations behind the weights."""
    if config.model.start_from is None:
        return {}
    contract = load_contract(find_model(config.model.start_from))
    done = contract.training
    iterations = done.get("best_iteration", done.get("iterations", 0)) + done.get("iterations_before", 0)
    return {"started_from": contract.name, "iterations_before": iterations}


def _build(config: TrainConfig) -> tuple[nn.Module, tuple[nn.Module, ...]]:
    """The network with the weights that training starts from, and the parts of it that stay as they are."""
    network = build_network(
        config.model.architecture,
        config.model.encoder,
        encoder_weights=config.model.encoder_weights,
        in_channels=len(config.imagery.bands),
        classes=len(config.class_table.channels),
        **config.model.options,
    ).to(memory_format=torch.channels_last)
    if config.model.start_from is not None:
        start_from(network, config.imagery.bands, config.class_table, config.model.start_from)
    frozen = freeze(network, config.model.freeze)
    parameter_groups(network, config.train)  # refuses where nothing is left to train
    return network, frozen


def _named(windows: RandomWindows, index: int) -> str:
    scene, window = windows.place(index)
    return f"{scene} rows {window.row} … {window.row_stop} columns {window.col} … {window.col_stop}"


def _trainer(
    config: TrainConfig, team: Team, callbacks: list[lightning.Callback], *, start: int, unused: bool
) -> lightning.Trainer:
    recipe, run, device = config.train, config.output, team.device
    precision = recipe.precision
    if precision is None:
        precision = "bf16-mixed" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "32-true"
    every = recipe.validation_interval
    place, strategy = team.place, "auto"
    if place is not None:
        strategy = DDPStrategy(broadcast_buffers=False, find_unused_parameters=unused)  # type: ignore[assignment]
    local = place.local_size if place is not None else 1
    gpus = list(range(local)) if place is not None else [device.index or 0]
    return lightning.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=gpus if device.type == "cuda" else local,
        num_nodes=team.size // local,
        strategy=strategy,
        plugins=[TorchElasticEnvironment()] if place is not None else None,
        use_distributed_sampler=False,
        precision=precision,
        accumulate_grad_batches=recipe.accumulate,
        max_steps=recipe.iterations,
        max_epochs=-1,
        val_check_interval=every * recipe.accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=min(LOG_EVERY, every),
        logger=[
            MetricsTable(run / "logs" / "metrics.csv", start=start),
            TensorBoardLogger(run, name="", version="logs", purge_step=start or None),
        ],
        callbacks=callbacks,
        enable_progress_bar=False,
        default_root_dir=run,
        enable_model_summary=False,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's advice, which is not for our users, and send its progress bar to standard error."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
