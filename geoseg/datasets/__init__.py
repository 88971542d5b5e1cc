"""Labelled scenes to windows."""

from __future__ import annotations

from geoseg.datasets.labelled import LabelledScene, open_configured
from geoseg.datasets.labels import Labels, PolygonLabels, RasterLabels, open_labels
from geoseg.datasets.statistics import band_statistics
from geoseg.datasets.windows import CoveringWindows, RandomWindows

__all__ = [
    "CoveringWindows",
    "LabelledScene",
    "Labels",
    "PolygonLabels",
    "RandomWindows",
    "RasterLabels",
    "band_statistics",
    "open_configured",
    "open_labels",
]
