"""Training step, validation scores and optimizer of a network."""

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
from geoseg.config import RunConfig
from geoseg.contract import Contract
from geoseg.network.contact import mapped_logits
from geoseg.network.losses import SummedLoss
from geoseg.network.metrics import Scores, confusion_matrix
from geoseg.network.model_folder import Normalize
from geoseg.training.failures import LossWatch
from geoseg.training.optimizer import lr_factor, parameter_groups


class SegmentationTask(lightning.LightningModule):
    """A network in training.

    Args:
        network: SMP model.
        contract: Its imagery contract, with normalisation and classes.
        recipe: Loss, learning rate, schedule and batch.
        class_weights: Weight of each class in the loss.
        seed: With step and process, decides what is random in a step.
        frozen: Parts of the network that do not train.
        place: Describes the window of an index, for a loss that is not finite.
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
        predictions = mapped_logits(self(batch["pixels"], batch["valid"]), self.classes.channels).argmax(1)
        labels = self.mapped[batch["labels"].long()]
        self._confusion += confusion_matrix(labels, predictions, len(self.classes))

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
