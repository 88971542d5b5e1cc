"""Losses over logits (N, K, H, W) and class ids (N, H, W), where pixels of 255 do not count.

Every loss is one number of the whole batch, also of a batch that several processes share: each counts its part, the
parts are added up, and the gradient of each process is scaled such that the mean over processes, which is what DDP
makes of gradients, is the gradient of the whole batch in one process. It does not matter then how many labelled pixels
each process has, nor whether it has any.

All is reckoned in float32, also under autocast, and in float64 for logits of float64. Without a labelled pixel the loss
is 0, with a gradient of 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from geoseg.classes import NODATA
from geoseg.errors import ConfigError

OHEM_THRESHOLD = 0.7
"""A pixel whose own class has a lower probability is hard."""

OHEM_MIN_KEPT = 1 / 16
"""Share of the labelled pixels of each image that count at least, hard or not."""

FOCAL_GAMMA = 2.0


class Term(Protocol):
    """Name and weight of one summand, as `geoseg.config.LossTerm` has them."""

    @property
    def name(self) -> str:
        """Key of `LOSSES`."""
        ...

    @property
    def weight(self) -> float:
        """Factor on it."""
        ...


class SummedLoss(nn.Module):
    """A weighted sum of losses; see `build_loss`."""

    class_weights: Tensor | None

    def __init__(self, terms: Sequence[tuple[str, float]], class_weights: Tensor | None) -> None:
        super().__init__()
        self.terms = tuple(terms)
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The sum for logits (N, K, H, W) and class ids (N, H, W), integer; 255 is ignored.

        Where torch.distributed runs, all processes have to call it at once.
        """
        with torch.autocast(logits.device.type, enabled=False):
            total = logits.new_zeros((), dtype=_precise(logits).dtype)
            for name, weight in self.terms:
                total = total + weight * LOSSES[name](logits, labels, self.class_weights)
            return total

    def extra_repr(self) -> str:
        """The summands, for print."""
        return " + ".join(f"{weight:g} × {name}" for name, weight in self.terms)


def build_loss(terms: Sequence[Term], *, classes: int, weights: Sequence[float] | None) -> SummedLoss:
    """The loss of a configuration.

    Args:
        terms: Summands: names of `LOSSES`, and their weights.
        classes: K.
        weights: Weight of each class in cross_entropy, ohem and focal; None for 1 each. Dice and Lovász weigh classes
            alike by themselves.

    Raises:
        ConfigError: An unknown loss, another number of weights than of classes, or weights that are all 0.
    """
    for term in terms:
        if term.name not in LOSSES:
            raise ConfigError(f"unknown loss {term.name!r}", hint=f"losses: {', '.join(LOSSES)}")
    if weights is not None and (len(weights) != classes or not any(weight > 0 for weight in weights)):
        raise ConfigError(
            f"train.class_weights are {list(weights)} for {classes} classes",
            hint="give one number for each class, not all 0, or train.class_weights=balanced",
        )
    table = None if weights is None else torch.tensor(weights, dtype=torch.float32)
    return SummedLoss([(term.name, term.weight) for term in terms], table)


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean cross-entropy over the labelled pixels, weighted by the weight of their class.

    The official SegNeXt averages over all pixels, ignored ones counting as 0 (mmsegmentation's
    ``avg_non_ignore=False``); here the mean is over the pixels that have a label, so that nodata does not shrink the
    step.

    Args:
        logits: (N, K, H, W).
        labels: Class ids (N, H, W), integer; 255 is ignored.
        weights: (K,), or None for 1 each.
    """
    losses, weight = _losses_and_weights(logits, labels, weights)
    return _weighted_mean(losses, weight)


def ohem(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of the hard pixels alone: those whose class has a probability under 0.7.

    Of each image the hardest sixteenth of its labelled pixels counts in any case. The choice is made image by image,
    so it does not depend on which others are in the batch.

    Args:
        logits: (N, K, H, W).
        labels: Class ids (N, H, W), integer; 255 is ignored.
        weights: (K,), or None for 1 each.

    References:
        Shrivastava et al., online hard example mining (arXiv 1604.03540). Threshold and least share as in BiSeNet
        (arXiv 1808.00897) and its kin, which choose in the batch as a whole.
    """
    losses, weight = _losses_and_weights(logits, labels, weights)
    labelled = labels != NODATA
    with torch.no_grad():
        # From easy to hard a rising loss; what has no label is easiest of all.
        hardness = losses.masked_fill(~labelled, -1).flatten(1)  # (N, H*W)
        kept = (labelled.flatten(1).sum(1) * OHEM_MIN_KEPT).ceil().long().clamp(min=1)
        least = hardness.sort(1, descending=True).values.gather(1, kept[:, None] - 1)
        threshold = least.clamp(max=-torch.log(least.new_tensor(OHEM_THRESHOLD)))
        hard = (hardness >= threshold).view_as(labelled) & labelled
    return _weighted_mean(losses, weight * hard)


def focal(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy times (1 - p)², p being the probability of the true class; a mean over the labelled pixels.

    Args:
        logits: (N, K, H, W).
        labels: Class ids (N, H, W), integer; 255 is ignored.
        weights: (K,), or None for 1 each.

    References:
        Lin et al., Focal loss for dense object detection (arXiv 1708.02002), γ = 2. There the sum is divided by the
        number of boxes found, which pixels do not have.
    """
    losses, weight = _losses_and_weights(logits, labels, weights)
    return _weighted_mean((1 - torch.exp(-losses)) ** FOCAL_GAMMA * losses, weight)


def dice(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """1 minus the mean, over the classes that the batch's labels hold, of 2 Σ p y / (Σ p + Σ y).

    The sums go over all labelled pixels of the batch. For probabilities of 0 and 1 this is 1 minus the mean F1 of
    these classes. A class without a pixel has no part: its score would be 0 however small its probabilities are.

    Args:
        logits: (N, K, H, W).
        labels: Class ids (N, H, W), integer; 255 is ignored.
        weights: Not used; each class counts alike.

    References:
        Milletari et al., V-Net (arXiv 1606.04797), without the squares in the denominator.
    """
    probabilities, truth = _probabilities_and_truth(logits, labels)
    hits, mapped, true = _over_processes(
        (probabilities * truth).sum((0, 2)), probabilities.sum((0, 2)), truth.sum((0, 2))
    )
    present = true > 0
    scores = 2 * hits / torch.where(present, mapped + true, 1)
    return ((1 - scores) * present).sum() / present.sum().clamp(min=1)


def lovasz(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Lovász-softmax: a convex extension of 1 - IoU, per image, over the classes its labels hold.

    The mean over the batch's images that have a label. For probabilities of 0 and 1 it is 1 minus the mean IoU of the
    classes present.

    Args:
        logits: (N, K, H, W).
        labels: Class ids (N, H, W), integer; 255 is ignored.
        weights: Not used; each class counts alike.

    References:
        Berman et al., The Lovász-Softmax loss (arXiv 1705.08790), "present" classes, per image. Written from the paper.
    """
    probabilities, truth = _probabilities_and_truth(logits, labels)
    labelled = (labels != NODATA).flatten(1)
    losses = [_lovasz_of_image(*image) for image in zip(probabilities, truth, labelled, strict=True)]
    total, images = _over_processes(torch.stack(losses).sum(), labelled.any(1).sum())
    return total / images.clamp(min=1)


def _lovasz_of_image(probabilities: Tensor, truth: Tensor, labelled: Tensor) -> Tensor:
    """Of probabilities (K, P) and truth (K, P), both 0 where not labelled (P,); 0 where nothing is."""
    errors, order = (probabilities - truth).abs().masked_fill(~labelled, -1).sort(1, descending=True)
    with torch.no_grad():
        true = truth.gather(1, order)
        missed = true.cumsum(1)
        total = truth.sum(1, keepdim=True)
        # Jaccard loss when the pixels up to each are wrong, those after it right
        union = total + (1 - true).cumsum(1)
        jaccard = 1 - (total - missed) / union.clamp(min=1)
        slopes = torch.diff(jaccard, dim=1, prepend=jaccard.new_zeros(len(jaccard), 1))
        present = total[:, 0] > 0
    # Pixels without a label have come last, with an error of -1
    losses = (errors.clamp(min=0) * slopes).sum(1)
    return (losses * present).sum() / present.sum().clamp(min=1)


LossFunction = Callable[[Tensor, Tensor, Tensor | None], Tensor]

LOSSES: dict[str, LossFunction] = {
    "cross_entropy": cross_entropy,
    "ohem": ohem,
    "dice": dice,
    "lovasz": lovasz,
    "focal": focal,
}
"""Losses of logits, labels and class weights, by the name that a configuration gives them."""


def _precise(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _losses_and_weights(logits: Tensor, labels: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each pixel (N, H, W), 0 without a label, and its class's weight, likewise."""
    labels = labels.long()
    losses = F.cross_entropy(_precise(logits), labels, ignore_index=NODATA, reduction="none")
    labelled = labels != NODATA
    if weights is None:
        return losses, labelled.to(losses.dtype)
    of_pixels = weights.to(losses.dtype)[labels.masked_fill(~labelled, 0)]
    return losses, of_pixels * labelled


def _probabilities_and_truth(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and one-hot labels (N, K, H*W), both 0 where there is no label."""
    labels = labels.flatten(1).long()
    labelled = labels != NODATA
    probabilities = _precise(logits).flatten(2).softmax(1) * labelled[:, None]
    classes = torch.arange(logits.shape[1], device=labels.device)
    return probabilities, (labels[:, None] == classes[:, None]).to(probabilities.dtype)


def _weighted_mean(losses: Tensor, weight: Tensor) -> Tensor:
    total, weights = _over_processes((losses * weight).sum(), weight.sum())
    return total / torch.where(weights > 0, weights, 1)


def _over_processes(*parts: Tensor) -> list[Tensor]:
    """Sums over all processes, as if the pixels of all were here; the gradient times the number of processes.

    The mean over processes of the gradient of any function of these sums is then that of the whole batch: the function
    has the same slopes everywhere, and each process adds its own pixels.
    """
    dtype = next(part.dtype for part in parts if part.is_floating_point())
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return [part.to(dtype) for part in parts]
    # Counts of pixels pass 2^24, beyond which float32 does not count
    sums = torch.cat([part.detach().double().flatten() for part in parts])
    dist.all_reduce(sums)
    scale = dist.get_world_size()
    sizes = [part.numel() for part in parts]
    totals = [t.view_as(p).to(dtype) for t, p in zip(torch.split(sums, sizes), parts, strict=True)]
    return [
        total + scale * (part - part.detach()) if part.requires_grad else total
        for total, part in zip(totals, parts, strict=True)
    ]
