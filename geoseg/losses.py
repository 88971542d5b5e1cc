"""Losses over logits (N, K, H, W) and class ids (N, H, W)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from geoseg.classes import NODATA


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the labelled pixels; 0, with a gradient of 0, where none is labelled.

    The official SegNeXt averages over all pixels, ignored ones counting as 0 (mmsegmentation's
    ``avg_non_ignore=False``); here the mean is over the pixels that have a label, so that nodata does not shrink the
    step.

    Args:
        logits: (N, K, H, W).
        labels: Class ids (N, H, W), integer; 255 is ignored.
    """
    total = F.cross_entropy(logits.float(), labels.long(), ignore_index=NODATA, reduction="sum")
    return total / (labels != NODATA).sum().clamp(min=1)
