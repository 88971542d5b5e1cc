"""Train a network on labelled scenes with Lightning; at the end the best one stands in a model folder.

A run folder holds ``config.yaml`` (as resolved), ``checkpoints/`` (best and last), ``metrics.csv`` and TensorBoard
logs under ``logs/``, and ``model/``, the model folder to predict with.
"""

from __future__ import annotations

import logging
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint, LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

import geoseg
from geoseg.config import RunConfig, TrainConfig, load_config, save_config
from geoseg.contract import Band, Contract
from geoseg.datasets import CoveringWindows, LabelledScene, RandomWindows, band_statistics
from geoseg.devices import resolve_device
from geoseg.errors import ConfigError, DeviceError, OutputError
from geoseg.losses import cross_entropy
from geoseg.metrics import Scores, confusion_matrix
from geoseg.model_folder import Normalize, build_network, load_model, save_model

log = logging.getLogger(__name__)

WARMUP_START = 1e-6
BEST, LAST = "best", "last"
FREE_WHEN_RESUMED = ("workers", "val_every", "precision", "compile")
"""Settings of the recipe that neither choose the windows nor the schedule."""


class SegmentationTask(lightning.LightningModule):
    """The training step, the validation scores and the optimizer of one network.

    Args:
        network: SMP model.
        contract: Its imagery contract, for the normalisation and the classes.
        recipe: Learning rate, schedule and batch.
    """

    val_matrix: Tensor

    def __init__(self, network: nn.Module, contract: Contract, recipe: RunConfig) -> None:
        super().__init__()
        self.network = network
        self.normalize = Normalize(contract.model_copy(update={"scale": 1.0}))  # windows come scaled
        self.recipe = recipe
        self.classes = contract.class_table
        self.register_buffer("val_matrix", torch.zeros(len(self.classes), len(self.classes), dtype=torch.int64), False)

    def forward(self, pixels: Tensor, valid: Tensor) -> Tensor:
        """Logits (N, K, H, W) of scaled pixels (N, B, H, W), which count where valid (N, H, W)."""
        logits: Tensor = self.network(self.normalize(pixels, valid))
        return logits

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean cross-entropy of a batch of windows."""
        loss = cross_entropy(self(batch["pixels"], batch["valid"]), batch["labels"])
        if not torch.isfinite(loss):
            raise ConfigError(
                f"the loss became {loss.item()} at iteration {self.global_step}",
                hint=f"lower train.learning_rate (now {self.recipe.learning_rate:g}), "
                "or lengthen train.warmup_iterations",
            )
        self.log("loss", loss, prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Forget the counts of the validation before."""
        self.val_matrix.zero_()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Count the pixels of a batch of windows."""
        predictions = self(batch["pixels"], batch["valid"]).argmax(1)
        self.val_matrix += confusion_matrix(batch["labels"], predictions, len(self.classes))

    def on_validation_epoch_end(self) -> None:
        """Log mIoU and the IoU of each class."""
        matrix = torch.as_tensor(self.all_gather(self.val_matrix)).view(-1, *self.val_matrix.shape).sum(0)
        scores = Scores(matrix.cpu().numpy())
        self.log("val_miou", scores.miou, prog_bar=True, sync_dist=False)
        self.log_dict({f"val_iou_{c.name}": scores.iou[c.id] for c in self.classes})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the validation scores with the weights they belong to."""
        metrics = self.trainer.callback_metrics
        checkpoint["val_scores"] = {k: float(v) for k, v in metrics.items() if k.startswith("val_")}

    def configure_optimizers(self) -> Any:
        """AdamW and the polynomial decay with linear warm-up, stepped every iteration."""
        optimizer = torch.optim.AdamW(parameter_groups(self.network, self.recipe), lr=self.recipe.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, self.recipe))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class _SaveLast(Checkpoint):
    """A checkpoint after every validation, better or not: what ``--resume`` goes on from.

    ModelCheckpoint's own ``save_last`` skips the validations that bring no better score. As a Checkpoint in the list
    after the one that keeps the best, it runs after it and so stores the score that is the best by now.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        trainer.save_checkpoint(self._path)


def parameter_groups(network: nn.Module, recipe: RunConfig) -> list[dict[str, Any]]:
    """Encoder and the rest, each split into norms (no weight decay) and others.

    References:
        SegNeXt's ``custom_keys``: norms without decay, ten times the learning rate outside the encoder.
    """
    norms = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for module_name, module in network.named_modules():
        in_encoder = module_name == "encoder" or module_name.startswith("encoder.")
        for parameter in module.parameters(recurse=False):
            groups.setdefault((in_encoder, isinstance(module, norms)), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": recipe.learning_rate * (1 if in_encoder else recipe.decoder_lr_factor),
            "weight_decay": 0.0 if is_norm else recipe.weight_decay,
        }
        for (in_encoder, is_norm), parameters in groups.items()
    ]


def lr_factor(step: int, recipe: RunConfig) -> float:
    """Learning rate at a step over its peak: polynomial decay to 0, times a linear warm-up.

    References:
        mmcv 1.x's ``poly`` policy with linear warm-up, which SegNeXt was trained with.
    """
    decay = (1 - min(step / recipe.iterations, 1)) ** recipe.poly_power
    if step >= recipe.warmup_iterations:
        return float(decay)
    return float(decay * (1 - (1 - step / recipe.warmup_iterations) * (1 - WARMUP_START)))


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    progress: bool = False,
) -> Path:
    """Run an experiment.

    Args:
        config: The experiment.
        resume: Go on from the last checkpoint of the run folder.
        overwrite: Replace the run folder.
        device: "auto", "cpu", "cuda" or "cuda:N".
        progress: Draw a progress bar on standard error.

    Returns:
        The model folder of the best network by validation mIoU.

    Raises:
        OutputError: The run folder exists, or cannot be made.
        ConfigError: Nothing to resume, another configuration than the one to resume, an impossible model, or a loss
            that is no longer finite.
        DeviceError: A device that is not there, or is out of memory.
        SceneError: A scene that cannot be read.
        LabelError: Labels that do not fit.
    """
    target = resolve_device(device)
    run = config.output
    if resume:
        checkpoint = _last_checkpoint(run)
        _check_same(config, run / "config.yaml")
    else:
        checkpoint = None
        _check_run(run, overwrite=overwrite)
    train_scenes = [LabelledScene(entry, config) for entry in config.data.entries("train")]
    val_scenes = [LabelledScene(entry, config) for entry in config.data.entries("val")]
    lightning.seed_everything(config.seed, verbose=False)
    contract = build_contract(config, train_scenes)
    network = build_network(
        config.model.architecture,
        config.model.encoder,
        encoder_weights=config.model.encoder_weights,
        in_channels=len(contract.bands),
        classes=len(contract.classes),
        **config.model.options,
    ).to(memory_format=torch.channels_last)
    if config.model.start_from is not None:
        _start_from(network, config.model.start_from)
    if config.train.compile:
        network.compile()
    _prepare_run(run, resume=resume)
    save_config(config, run / "config.yaml")

    task = SegmentationTask(network, contract, config.train)
    start = _global_step(checkpoint) if checkpoint is not None else 0
    # As long as the whole run even where it goes on: Lightning counts the batches done before, and max_steps ends it.
    length = config.train.iterations * config.train.batch_size
    windows = RandomWindows(train_scenes, config, length=length, start=start * config.train.batch_size)
    with _quiet(), _explained(config):
        trainer = _trainer(config, run, target, progress=progress)
        trainer.fit(
            task,
            _loader(windows, config),
            _loader(CoveringWindows(val_scenes, config), config),
            ckpt_path=checkpoint,
            weights_only=True,
        )
    best = run / "checkpoints" / f"{BEST}.ckpt"
    scores = _load_best(task, best)
    trained = {"val_miou": scores.pop("val_miou"), "val_iou": scores, "iterations": trainer.global_step}
    contract = contract.model_copy(update={"training": {**contract.training, **trained}})
    save_model(run / "model", network, contract)
    return run / "model"


def _start_from(network: nn.Module, model: str) -> None:
    """Put the weights of a trained model of the same network in place."""
    try:
        network.load_state_dict(load_model(model).network.state_dict())
    except RuntimeError as error:
        raise ConfigError(
            f"model.start_from {model} is another network than the configured one: {error}",
            hint="take model.architecture, encoder, options, bands and the number of classes from its config.json",
        ) from error


def build_contract(config: TrainConfig, scenes: list[LabelledScene]) -> Contract:
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
            "geoseg": geoseg.__version__,
            "architecture": config.model.architecture,
            "encoder": config.model.encoder,
            "scenes": [entry.scene.name for entry in config.data.entries("train")],
            "validation_scenes": [entry.scene.name for entry in config.data.entries("val")],
            "recipe": config.train.model_dump(mode="json"),
            "seed": config.seed,
            **config.card,
        },
    )


def _loader(dataset: Any, config: TrainConfig) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_size=config.train.batch_size,
        num_workers=config.train.workers,
        persistent_workers=config.train.workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def _trainer(config: TrainConfig, run: Path, device: torch.device, *, progress: bool) -> lightning.Trainer:
    precision = config.train.precision
    if precision is None:
        precision = "bf16-mixed" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "32-true"
    every = min(config.train.val_every, config.train.iterations)
    folder = run / "checkpoints"
    best = ModelCheckpoint(folder, filename=BEST, monitor="val_miou", mode="max", enable_version_counter=False)
    return lightning.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=[device.index or 0] if device.type == "cuda" else 1,
        precision=precision,
        max_steps=config.train.iterations,
        max_epochs=-1,
        val_check_interval=every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=min(10, every),
        logger=[CSVLogger(run, name="", version="logs"), TensorBoardLogger(run, name="", version="logs")],
        callbacks=[
            best,
            _SaveLast(folder / f"{LAST}.ckpt"),
            LearningRateMonitor("step"),
            *([TQDMProgressBar(refresh_rate=1)] if progress else []),
        ],
        enable_progress_bar=progress,
        default_root_dir=run,
        enable_model_summary=False,
    )


def _check_run(run: Path, *, overwrite: bool) -> None:
    if not run.exists():
        return
    if not overwrite:
        raise OutputError(
            f"run folder {run} exists", hint="add --resume to go on, --overwrite to start anew, or output=OTHER"
        )
    if not (run / "config.yaml").exists():
        raise OutputError(f"{run} exists and is no run folder, so it is not replaced", hint="choose another output=…")


def _prepare_run(run: Path, *, resume: bool) -> None:
    try:
        if run.exists() and not resume:
            shutil.rmtree(run)
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make run folder {run}: {error.strerror}", hint="choose another output=…") from error


def _check_same(config: TrainConfig, started: Path) -> None:
    """Refuse to go on with other windows, another network or another schedule than the run began with."""
    before, now = (c.model_dump(mode="json", exclude={"output", "card"}) for c in (load_config(started), config))
    for settings in before, now:
        for key in FREE_WHEN_RESUMED:
            del settings["train"][key]
    changed = [key for key in now if now[key] != before[key]]
    if changed:
        key = changed[0]
        if isinstance(now[key], dict):
            inner = next(k for k in now[key] if now[key][k] != before[key][k])
            old, new, key = before[key][inner], now[key][inner], f"{key}.{inner}"
        else:
            old, new = before[key], now[key]
        raise ConfigError(
            f"{started} began with {key} {old!r:.60}, now it is {new!r:.60}",
            hint="resume with the same configuration, or leave out --resume and give output=OTHER",
        )


def _last_checkpoint(run: Path) -> Path:
    checkpoint = run / "checkpoints" / f"{LAST}.ckpt"
    if not checkpoint.is_file():
        raise ConfigError(f"nothing to resume: {checkpoint} does not exist", hint="leave out --resume")
    return checkpoint


def _global_step(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"])


def _load_best(task: SegmentationTask, best: Path) -> dict[str, Any]:
    """Put the best weights into the task and give back the validation scores they had."""
    checkpoint = torch.load(best, map_location="cpu", weights_only=True)
    task.load_state_dict(checkpoint["state_dict"])
    return {"val_miou": round(float(checkpoint["val_scores"]["val_miou"]), 4)} | {
        key.removeprefix("val_iou_"): round(float(value), 4)
        for key, value in checkpoint["val_scores"].items()
        if key.startswith("val_iou_")
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's advice is for its developers' users, not ours; its progress bar belongs on standard error."""
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


@contextmanager
def _explained(config: TrainConfig) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"the device is out of memory with {config.train.batch_size} windows of {config.train.size} px",
            hint=f"train.batch_size={max(config.train.batch_size // 2, 1)}",
        ) from error
    except SystemExit as error:
        # Lightning turns Ctrl-C into an exit; it is the command line that says how a program ends.
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
