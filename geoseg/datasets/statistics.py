"""Per-band mean and standard deviation of scenes, streamed over whole block rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from geoseg.datasets.labelled import LabelledScene
from geoseg.windows import Window

SAMPLE_ROWS = 512
MAX_BANDS_OF_ROWS = 32
"""Rows are read in this many bands a scene at most, evenly spread: enough for a mean, bounded on huge scenes."""


def band_statistics(scenes: Sequence[LabelledScene], scale: float) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per band of the scaled, valid pixels.

    Args:
        scenes: Scenes of the same bands.
        scale: Factor on pixel values.

    Returns:
        Means and standard deviations, one per band; a constant band has standard deviation 1.
    """
    bands = len(scenes[0].scene.bands)
    count, total, square = 0, np.zeros(bands), np.zeros(bands)
    for labelled in scenes:
        height, width = labelled.grid.shape
        starts = np.arange(0, height, SAMPLE_ROWS)
        if len(starts) > MAX_BANDS_OF_ROWS:
            starts = starts[np.linspace(0, len(starts) - 1, MAX_BANDS_OF_ROWS).astype(int)]
        for row in starts.tolist():
            pixels, valid = labelled.scene.read(Window(row, 0, min(SAMPLE_ROWS, height - row), width))
            values = pixels[:, valid].astype(np.float64) * scale
            count += values.shape[1]
            total += values.sum(axis=1)
            square += (values**2).sum(axis=1)
    mean = total / max(count, 1)
    std = np.sqrt(np.maximum(square / max(count, 1) - mean**2, 0))
    return [round(float(m), 6) for m in mean], [round(float(s), 6) if s > 1e-6 else 1.0 for s in std]
