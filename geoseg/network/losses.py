"""Losses over logits (N, K, H, W) and integer class ids (N, H, W), where 255 means "no label" and does not count.

Every loss is one number for the whole batch, also for a batch that several processes share (`_over_processes`). It is
computed in float32, also under autocast, and in float64 for float64 logits; without a labelled pixel it is 0, and so is
its gradient.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from geoseg.classes import NODATA
from geoseg.errors import ConfigError

OHEM_MIN_KEPT = 1 / 16  # share of the labelled pixels of each image that count at least, hard or not


class SummedLoss(nn.Module):
    """A weighted sum of `LOSSES`, given by name.

    ``weights`` are those of the classes in cross_entropy, ohem and focal, not all 0; None for 1 each. Dice and Lovász
    weigh all classes alike.
    """

    class_weights: Tensor | None

    def __init__(
        self, terms: Sequence[tuple[str, float]], *, classes: int, weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        if weights is not None and (len(weights) != classes or not any(weight > 0 for weight in weights)):
            raise ConfigError(
                f"train.class_weights are {list(weights)} for {classes} classes",
                hint="give one number for each class, not all 0, or train.class_weights=balanced",
            )
        self.terms = tuple(terms)
        table = None if weights is None else torch.tensor(weights, dtype=torch.float32)
        self.register_buffer("class_weights", table, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The weighted sum. Under torch.distributed all processes must call it together."""
        with torch.autocast(logits.device.type, enabled=False):
            total = logits.new_zeros((), dtype=_precise(logits).dtype)
            for name, weight in self.terms:
                total = total + weight * LOSSES[name](logits, labels, self.class_weights)
            return total


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean cross-entropy over the labelled pixels, each weighted with the weight (K,) of its class.

    The official SegNeXt divides by all pixels (mmsegmentation's ``avg_non_ignore=False``), so nodata shrinks its step.
    """
    losses, weight = _losses_and_weights(logits, labels, weights)
    return _weighted_mean(losses, weight)


def ohem(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Weighted mean cross-entropy of the hard pixels: those whose class has a probability below 0.7.

    At least the hardest sixteenth of an image's labelled pixels counts. Pixels are chosen image by image, so the
    choice does not depend on the rest of the batch.

    References:
        Shrivastava et al., online hard example mining (arXiv 1604.03540). Threshold and least share as in BiSeNet
        (arXiv 1808.00897), which chooses from the whole batch.
    """
    losses, weight = _losses_and_weights(logits, labels, weights)
    labelled = labels != NODATA
    with torch.no_grad():
        # The harder a pixel, the larger its loss; pixels without a label come last.
        hardness = losses.masked_fill(~labelled, -1).flatten(1)  # (N, H*W)
        kept = (labelled.flatten(1).sum(1) * OHEM_MIN_KEPT).ceil().long().clamp(min=1)
        least = hardness.sort(1, descending=True).values.gather(1, kept[:, None] - 1)
        threshold = least.clamp(max=-torch.log(least.new_tensor(0.7)))
        hard = (hardness >= threshold).view_as(labelled) & labelled
    return _weighted_mean(losses, weight * hard)


def focal(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Weighted mean over the labelled pixels of cross-entropy times (1 - p)², where p is the true class's probability.

    References:
        Lin et al., Focal loss for dense object detection (arXiv 1708.02002), γ = 2. There the sum is divided by the
        number of boxes found, which pixels do not have.
    """
    losses, weight = _losses_and_weights(logits, labels, weights)
    return _weighted_mean((1 - torch.exp(-losses)) ** 2 * losses, weight)


def dice(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """1 minus the mean of 2 Σ p y / (Σ p + Σ y) over the classes in the batch's labels; ``weights`` are ignored.

    The sums run over all labelled pixels of the batch. For probabilities of 0 and 1 it is 1 minus the mean F1.

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
    """Lovász-softmax: a convex extension of 1 - IoU over the classes of an image's labels; ``weights`` are ignored.

    The mean over the batch's images that have a label. For probabilities of 0 and 1 it is 1 minus the mean IoU.

    References:
        Berman et al., The Lovász-Softmax loss (arXiv 1705.08790), "present" classes, per image. Written from the paper.
    """
    probabilities, truth = _probabilities_and_truth(logits, labels)
    labelled = (labels != NODATA).flatten(1)
    losses = [_lovasz_of_image(*image) for image in zip(probabilities, truth, labelled, strict=True)]
    total, images = _over_processes(torch.stack(losses).sum(), labelled.any(1).sum())
    return total / images.clamp(min=1)


def _lovasz_of_image(probabilities: Tensor, truth: Tensor, labelled: Tensor) -> Tensor:
    """Lovász loss of probabilities and truth (K, P), both 0 where not ``labelled`` (P,); 0 without a label."""
    errors, order = (probabilities - truth).abs().masked_fill(~labelled, -1).sort(1, descending=True)
    with torch.no_grad():
        true = truth.gather(1, order)
        missed = true.cumsum(1)
        total = truth.sum(1, keepdim=True)
        # Jaccard loss if the pixels up to each are wrong and those after it right
        union = total + (1 - true).cumsum(1)
        jaccard = 1 - (total - missed) / union.clamp(min=1)
        slopes = torch.diff(jaccard, dim=1, prepend=jaccard.new_zeros(len(jaccard), 1))
        present = total[:, 0] > 0
    # Pixels without a label come last, with an error of -1
    losses = (errors.clamp(min=0) * slopes).sum(1)
    return (losses * present).sum() / present.sum().clamp(min=1)


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    loss.__name__: loss for loss in (cross_entropy, ohem, dice, lovasz, focal)
}
"""Losses of logits, labels and class weights (K,) or None, by the name they have in a configuration."""


def _precise(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _losses_and_weights(logits: Tensor, labels: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each pixel and the weight of its class, both (N, H, W) and 0 without a label."""
    labels = labels.long()
    losses = F.cross_entropy(_precise(logits), labels, ignore_index=NODATA, reduction="none")
    labelled = labels != NODATA
    if weights is None:
        return losses, labelled.to(losses.dtype)
    of_pixels = weights.to(losses.dtype)[labels.masked_fill(~labelled, 0)]
    return losses, of_pixels * labelled


def _probabilities_and_truth(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and one-hot labels (N, K, H*W), both 0 without a label."""
    labels = labels.flatten(1).long()
    labelled = labels != NODATA
    probabilities = _precise(logits).flatten(2).softmax(1) * labelled[:, None]
    classes = torch.arange(logits.shape[1], device=labels.device)
    return probabilities, (labels[:, None] == classes[:, None]).to(probabilities.dtype)


def _weighted_mean(losses: Tensor, weight: Tensor) -> Tensor:
    total, weights = _over_processes((losses * weight).sum(), weight.sum())
    return total / torch.where(weights > 0, weights, 1)


def _over_processes(*parts: Tensor) -> list[Tensor]:
    """Sums over all processes; their gradient is that of this process's part times the number of processes.

    So DDP's mean over processes of the gradient of any function of these sums is the gradient for the whole batch.
    """
    dtype = next(part.dtype for part in parts if part.is_floating_point())
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return [part.to(dtype) for part in parts]
    # Counts of pixels may exceed 2^24, the largest count exact in float32
    sums = torch.cat([part.detach().double().flatten() for part in parts])
    dist.all_reduce(sums)
    scale = dist.get_world_size()
    sizes = [part.numel() for part in parts]
    totals = [t.view_as(p).to(dtype) for t, p in zip(torch.split(sums, sizes), parts, strict=True)]
    return [
        total + scale * (part - part.detach()) if part.requires_grad else total
        for total, part in zip(totals, parts, strict=True)
    ]
