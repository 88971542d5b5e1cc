"""A network in training: its step, validation scores, and SegNeXt's optimizer and learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from geoseg.classes import NODATA
from geoseg.config.settings import RunConfig
from geoseg.contract import Contract
from geoseg.errors import ConfigError
from geoseg.network.losses import SummedLoss
from geoseg.network.metrics import Scores, confusion_matrix
from geoseg.network.model_folder import Normalize
from geoseg.tiling.arrays import mapped_logits
from geoseg.training.failures import LossWatch


class SegmentationTask(lightning.LightningModule):
    """An SMP model in training on imagery of a contract.

    With step and process, ``seed`` decides what is random in a step. The ``frozen`` parts do not train. ``place``
    describes the window of an index, for a loss that is not finite.
    """

    mapped: Tensor  # the class of each channel, (256,)

    # With few validation windows some processes get none.
    allow_zero_length_dataloader_with_multiple_devices = True

    def __init__(
        self,
        network: nn.Module,
        contract: Contract,
        recipe: RunConfig,
        *,
        class_weights: list[float] | None = None,
        seed: int = 0,
        frozen: tuple[nn.Module, ...] = (),
        place: Callable[[int], str] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.normalize = Normalize(contract.model_copy(update={"scale": 1.0}))  # windows come scaled, or as bytes
        self._scale = contract.scale
        self.recipe = recipe
        self.classes = contract.class_table
        terms = [(term.name, term.weight) for term in recipe.loss]
        channels = self.classes.channels
        weights = None if class_weights is None else [class_weights[i] for i in channels]
        self.loss = SummedLoss(terms, classes=len(channels), weights=weights)
        mapped = [*channels, *[NODATA] * (NODATA + 1 - len(channels))]
        self.register_buffer("mapped", torch.tensor(mapped), persistent=False)
        self.watch = LossWatch(recipe, place)
        self._seed, self._frozen = seed, frozen
        self._losses: list[Tensor] = []

    def train(self, mode: bool = True) -> SegmentationTask:
        """Training mode for all but the frozen parts, whose batch norms and random layers do not change."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def forward(self, pixels: Tensor, valid: Tensor) -> Tensor:
        """Logits of all channels (N, C, H, W) of scaled pixels or bytes (N, B, H, W), valid (N, H, W)."""
        if pixels.dtype == torch.uint8:
            pixels = pixels * self._scale
        logits: Tensor = self.network(self.normalize(pixels, valid))
        return logits

    def on_train_start(self) -> None:
        """Set the modes, which Lightning does not."""
        self.train()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the forward pass with seed, index and process, so that a resumed run repeats it."""
        words = np.random.SeedSequence((self._seed, batch_idx, self.global_rank)).generate_state(2)
        torch.manual_seed(int(words[0]) << 31 ^ int(words[1]))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch of windows; its mean over a step's forward passes and processes is logged."""
        loss: Tensor = self.loss(self(batch["pixels"], batch["valid"]), batch["labels"])
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.watch.note(loss, batch, self.global_step, rate)
        self._losses.append(loss.detach())
        if len(self._losses) == self.recipe.accumulate:
            self.log("loss", torch.stack(self._losses).mean(), sync_dist=self.trainer.world_size > 1)
            self._losses = []
        return loss

    def on_validation_epoch_start(self) -> None:
        """Reset the counts."""
        size = len(self.classes)
        self._confusion = torch.zeros(size, size, dtype=torch.int64, device=self.device)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Count the pixels of a batch of windows."""
        logits = mapped_logits(self(batch["pixels"], batch["valid"]), self.classes.channels, torch)
        labels = self.mapped[batch["labels"].long()]
        self._confusion += confusion_matrix(labels, logits.argmax(1), len(self.classes))

    def on_validation_epoch_end(self) -> None:
        """Log mIoU and the IoU of each class over all processes."""
        self.log_dict(self.gathered_scores())

    def gathered_scores(self) -> dict[str, float]:
        """mIoU and the IoU of each class over all processes.

        mIoU is NaN if the truth has a single class: mapping nothing else would be best.
        """
        if self.trainer.world_size > 1:
            dist.all_reduce(self._confusion)
        scores = Scores(self._confusion.cpu().numpy())
        miou = scores.miou if (scores.matrix.sum(axis=1) > 0).sum() > 1 else math.nan
        return {"val_miou": miou, **{f"val_iou_{c.name}": float(scores.iou[c.id]) for c in self.classes}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the validation scores of the weights, and the number of windows per step."""
        metrics = self.trainer.callback_metrics
        checkpoint["val_scores"] = {k: float(v) for k, v in metrics.items() if k.startswith("val_")}
        checkpoint["windows_per_step"] = windows_per_step(self.recipe, self.trainer.world_size)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Convert the count of forward passes: the windows of a step may be divided differently now."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        ahead = checkpoint["global_step"] * self.recipe.accumulate - progress["total"]["processed"]
        for part in ("total", "current"):
            for key in ("ready", "started", "processed", "completed"):
                progress[part][key] += ahead

    def configure_optimizers(self) -> Any:
        """AdamW and the polynomial decay with linear warm-up, stepped every iteration."""
        optimizer = torch.optim.AdamW(parameter_groups(self.network, self.recipe), lr=self.recipe.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, self.recipe))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def windows_per_step(recipe: RunConfig, processes: int) -> int:
    """Windows per step of the optimizer."""
    return recipe.batch_size * recipe.accumulate * processes


def parameter_groups(network: nn.Module, recipe: RunConfig) -> list[dict[str, Any]]:
    """Trained parameters of encoder and decoder, each split into norms (without weight decay) and others.

    References:
        SegNeXt's ``custom_keys``: norms without decay, ten times the learning rate outside the encoder. By its names
        the stem's two batch norms and the decoder's group norms have decay; here no norm has.
    """
    norms = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for module_name, module in network.named_modules():
        in_encoder = module_name == "encoder" or module_name.startswith("encoder.")
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad:
                groups.setdefault((in_encoder, isinstance(module, norms)), []).append(parameter)
    if not groups:
        raise ConfigError("model.freeze leaves nothing to train", hint="shorten the list")
    return [
        {
            "params": parameters,
            "lr": recipe.learning_rate * (1 if in_encoder else recipe.decoder_lr_factor),
            "weight_decay": 0.0 if is_norm else recipe.weight_decay,
        }
        for (in_encoder, is_norm), parameters in groups.items()
    ]


def lr_factor(step: int, recipe: RunConfig) -> float:
    """Learning rate at a step relative to its peak: polynomial decay to 0, times a linear warm-up from 1e-6.

    References:
        mmcv 1.x's ``poly`` policy with linear warm-up, which SegNeXt was trained with.
    """
    decay = (1 - min(step / recipe.iterations, 1)) ** recipe.poly_power
    if step >= recipe.warmup_iterations:
        return float(decay)
    return float(decay * (1 - (1 - step / recipe.warmup_iterations) * (1 - 1e-6)))
