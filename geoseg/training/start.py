"""The start of training: weights of another model, and frozen parts of the network."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from geoseg.classes import ClassTable
from geoseg.errors import ConfigError
from geoseg.network.model_folder import load_model
from geoseg.training.task import SegmentationTask
from geoseg.words import count

log = logging.getLogger(__name__)


def start_from(network: nn.Module, bands: Sequence[str], classes: ClassTable, model: str) -> None:
    """Load the weights of a trained model with the same network.

    ``bands`` and ``classes`` are those to train; ``model`` is a folder, or the name of a shipped model. If the class
    tables differ, classes of the same name take their rows of the segmentation head, and the others stay unchanged.

    A `ModelError` for no such model, a `ConfigError` if it has another network, another number of bands, or a head
    without rows of classes.
    """
    trained = load_model(model)
    before, now = [band.name for band in trained.contract.bands], list(bands)
    if len(before) != len(now):
        raise ConfigError(
            f"model.start_from {model} takes {count(len(before), 'band')} ({', '.join(before)}), the configuration has "
            f"{len(now)} ({', '.join(now)})",
            hint="set imagery.bands (and imagery.indexes) to the model's, or leave out model.start_from",
        )
    if before != now:
        log.warning("model.start_from %s was trained on %s, and is now trained on %s", model, before, now)
    weights = trained.network.state_dict()
    known = trained.contract.class_table.channel_names
    if known != classes.channel_names:
        _take_rows(weights, network, known, classes.channel_names, model)
    own = network.state_dict()
    for key in sorted(own.keys() | weights.keys()):
        found, wanted = (tuple(t[key].shape) if key in t else "nothing" for t in (weights, own))
        if found != wanted:
            raise ConfigError(
                f"model.start_from {model} has another network than the configuration: {key} is {found}, "
                f"expected {wanted}",
                hint="take model.architecture, encoder and options from its config.json",
            )
    network.load_state_dict(weights)


def _take_rows(
    weights: dict[str, Tensor], network: nn.Module, old: Sequence[str], new: Sequence[str], model: str
) -> None:
    """Replace the head's tensors in ``weights`` by the network's own, with the rows of common classes."""
    own = network.state_dict()
    head = "segmentation_head."  # in all of SMP's models it makes one channel per class
    heads = [key for key in weights if key.startswith(head) and key in own and weights[key].shape[:1] == (len(old),)]
    if not heads:
        raise ConfigError(
            f"model.start_from {model} has the classes {', '.join(old)}, but no head with a row for each",
            hint="train with the same classes, or leave out model.start_from",
        )
    kept = [name for name in new if name in old]
    for key in heads:
        rows = own[key].clone()
        if rows.shape[1:] == weights[key].shape[1:]:
            for name in kept:
                rows[new.index(name)] = weights[key][old.index(name)]
            weights[key] = rows
    fresh = [name for name in new if name not in old]
    log.info(
        "classes that keep their weights: %s; new ones: %s; left behind: %s",
        *(", ".join(names) or "none" for names in (kept, fresh, [n for n in old if n not in new])),
    )


class StartingScores(Callback):
    """Validates the model that training starts from, as iteration 0 of the run; in the log it is step −1."""

    def __init__(self, windows: Iterable[dict[str, Tensor]]) -> None:
        self._windows = windows
        self._scores: dict[str, float] = {}

    @torch.no_grad()
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate, unless the run is resumed."""
        assert isinstance(pl_module, SegmentationTask)
        if trainer.global_step:
            return
        pl_module.eval()
        pl_module.on_validation_epoch_start()
        with trainer.precision_plugin.val_step_context():
            for index, batch in enumerate(self._windows):
                pl_module.validation_step(trainer.strategy.batch_to_device(batch), index)
        self._scores = pl_module.gathered_scores()
        pl_module.train()
        for logger in trainer.loggers:
            logger.log_metrics(self._scores, step=-1)
        log.info("iteration 0: mIoU %.4f", self._scores["val_miou"])

    def state_dict(self) -> dict[str, Any]:
        """The scores, for checkpoints."""
        return {"scores": self._scores}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore those of a checkpoint."""
        self._scores = state_dict["scores"]


def freeze(network: nn.Module, parts: tuple[str, ...]) -> tuple[nn.Module, ...]:
    """Freeze modules or parameters, given by name; the modules are returned, as their batch norms must not move either.

    A `ConfigError` if the network has no such part.
    """
    modules = dict(network.named_modules())
    known: dict[str, nn.Module | nn.Parameter] = {**dict(network.named_parameters()), **modules}
    for part in parts:
        if part not in known:
            parent = part
            while parent and parent not in modules:
                parent = parent.rpartition(".")[0]
            begin = f"{parent}." if parent else ""
            below = {begin + name[len(begin) :].split(".")[0] for name in known if name and name.startswith(begin)}
            names = ", ".join(sorted(below - {begin}))
            raise ConfigError(f"model.freeze: the network has no {part}", hint=f"it has {names}")
        known[part].requires_grad_(False)
    return tuple(modules[part] for part in parts if part in modules)


def leaves_unused(network: nn.Module, bands: int, size: int) -> bool:
    """Whether some trained parameter has no gradient, which DDP has to know; the network is on the CPU."""
    trained = [p for p in network.parameters() if p.requires_grad]
    was_training = network.training
    network.eval()
    logits = network(torch.zeros(1, bands, size, size))
    network.train(was_training)
    return any(grad is None for grad in torch.autograd.grad(logits.sum(), trained, allow_unused=True))
